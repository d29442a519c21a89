"""How a benchmark ends: with a report in JSON, or with one line that says why there is none."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from command import check_output, run_command, write_json


def rounded(value: Any) -> Any:
    """Round all floats in nested dicts and lists to four digits that count."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, list) else value


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of the libraries that a measurement depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}


def report_to(output: Path, measure: Callable[[], dict[str, Any]], summary: Callable[[dict[str, Any]], str]) -> int:
    """Measure, write the report, and print its main figures.

    Args:
        output: The file to write; whether it can be is seen before anything is measured.
        measure: Returns the report.
        summary: Puts a report's main figures into lines.

    Returns:
        The command's exit code: 0, 2 after one line about bad input or a measurement that failed, 130 when stopped.
    """

    def report() -> None:
        check_output(output)
        measured = measure()
        write_json(measured, output)
        print(f"{summary(measured)}\n\nwritten to {output}")

    return run_command(report, stopped="stopped; nothing was measured")
