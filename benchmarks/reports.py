"""How a benchmark ends: with a report in JSON, or with one line that says why there is none."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dataset_script.midi_sources import InputError


class MeasurementError(Exception):
    """A measurement could not be made."""


def check_report(output: Path) -> None:
    """Make the folder that the report goes to.

    Raises:
        InputError: if that cannot be done, or the report is a folder.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output.parent} cannot be made ({error.strerror}); give another --output") from error
    if output.is_dir():
        raise InputError(f"{output} is a folder; give --output the name of a file")


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
    try:
        check_report(output)
        report = measure()
    except (InputError, MeasurementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was measured", file=sys.stderr)
        return 130
    text = json.dumps(report, indent=2) + "\n"
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        print(text)  # hours may have gone into it
        print(f"error: {output} cannot be written ({error.strerror}); the report is printed above", file=sys.stderr)
        return 2
    print(f"{summary(report)}\n\nwritten to {output}")
    return 0
