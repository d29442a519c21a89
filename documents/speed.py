"""Tables of speed, from `results/benchmark.json`, which `make benchmark` writes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from documents.compare import DASH, markdown

NOT_MEASURED = "Not measured yet: `make benchmark`.\n"
SIDES = ("ours", "ONNX", "GPT-2", "Llama", "limit")
FIRST_PARTS = {"one": "a new melody", "batch": "melodies side by side", "thousand": "melodies in one call"}


def read(results: Path) -> dict[str, Any] | None:
    """Read the report; None where there is none."""
    path = results / "benchmark.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def milliseconds(part: Mapping[str, Any], side: str) -> float:
    """Return the milliseconds a unit of a side."""
    return part["sides"][side]["milliseconds"]


def sampling_rows(parts: Mapping[str, Any]) -> list[list[str]]:
    """Rows of sampling, ours beside peers and limit: milliseconds a token, or tokens a second of many melodies."""
    rows = []
    for name, what in FIRST_PARTS.items():
        if name not in parts:
            continue
        part = parts[name]
        each = [milliseconds(part, side) if side in part["sides"] else None for side in SIDES]
        if name == "one":
            cells = [DASH if value is None else f"{value:.2f}" for value in each]
            rows.append([f"{what}, ms a token", *cells])
        else:
            cells = [DASH if value is None else f"{1e3 / value:,.0f}" for value in each]
            rows.append([f"{part['melodies']:,} {what}, tokens/s", *cells])
    return rows


def other_rows(parts: Mapping[str, Any]) -> list[list[str]]:
    """Rows of work whose other sides have names of their own: part, what a unit takes, by side."""
    rows = []
    names = {"encode": "encode, ms a melody", "midi_in": "MIDI in, ms a file", "cold_start": "cold start, s"}
    names |= {"attention": "attention without gradients, ms", "memory": "the same, MiB"}
    names |= {"training": "training step, tokens/s"}
    for name, what in names.items():
        if name not in parts:
            continue
        part = parts[name]
        figures: dict[str, float] = part.get("mib") or {side: milliseconds(part, side) for side in part["sides"]}
        for side, value in figures.items():
            if name == "training":
                value = 1e3 / value
            elif name == "cold_start":
                value = value / 1e3
            rows.append([what, side, f"{value:,.0f}" if value >= 100 else f"{value:.3g}"])
            what = ""
    return rows


def target_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Rows of what is to be reached, and whether it is."""
    rows = []
    for row in report["targets"]:
        part = row["part"].replace("_", " ")
        bound = f"at most {row['bound']:g}" if row["is_cost"] else f"at least {row['bound']:g}"
        what = "cost" if row["is_cost"] else "speed"
        side = f"{part}: {row['side']} beside {row['beside']}, {what}"
        rows.append([side, f"{row['ratio']:.2f}", bound, "yes" if row["is_met"] else "no"])
    return rows


def growth(parts: Mapping[str, Any]) -> str:
    """Say how cost grows with bars, melodies and length."""
    lines = []
    if "growth_bars" in parts:
        sides = parts["growth_bars"]["sides"]
        cells = ", ".join(f"{bars}: {milliseconds(parts['growth_bars'], bars):.2f}" for bars in sides)
        lines.append(f"Milliseconds a token of one melody, by bars: {cells}.")
    if "growth_batch" in parts:
        sides = parts["growth_batch"]["sides"]
        cells = ", ".join(f"{rows}: {1e3 / milliseconds(parts['growth_batch'], rows):,.0f}" for rows in sides)
        lines.append(f"Tokens a second, by melodies side by side: {cells}.")
    if "growth_length" in parts:
        sides = parts["growth_length"]["sides"]
        cells = (
            ", ".join(f"{side} tokens: {milliseconds(parts['growth_length'], side) * 1e3:.0f}" for side in sides)
            .replace("ours, ", "ours at ")
            .replace("GPT-2, ", "GPT-2 at ")
        )
        lines.append(f"Microseconds a token of a pass without gradients: {cells}.")
    return "\n".join(lines)


def training(parts: Mapping[str, Any]) -> str:
    """Say which share of the matrix-product rate a training step reaches."""
    if "training" not in parts:
        return ""
    found = parts["training"]
    shares = ", ".join(
        f"{found[f'share_of_matrix_rate, {name}']:.0%} in {name} "
        f"(of {found[f'matrix_gflops_per_second, {name}']:.0f} GFLOP/s)"
        for name in ("fp32", "bf16")
        if f"share_of_matrix_rate, {name}" in found
    )
    emulated = "" if "share_of_matrix_rate, bf16" in found else " The processor has no bf16 of its own."
    return f"Share of the matrix-product rate that a training step reaches: {shares}.{emulated}"


def profile(results: Path) -> str:
    """Say where the time goes, from `results/profile.json`."""
    path = results / "profile.json"
    if not path.is_file():
        return ""
    found, said = json.loads(path.read_text(encoding="utf-8")), []
    for name, groups in found["milliseconds"].items():
        total = sum(groups.values())
        ordered = sorted(groups.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{part} {value / total:.0%}" for part, value in ordered if value >= 0.005 * total)
        said.append(f"- {name}, {total:.2f} ms: {shares}")
    return f"Where the time goes, on one thread of {found['machine']['processor']}:\n\n" + "\n".join(said)


def shortfalls(report: Mapping[str, Any]) -> str:
    """Say which targets are missed."""
    missed = [f"{row[0]} ({row[1]}, wanted {row[2]})" for row in target_rows(report) if row[3] == "no"]
    return f"Short of its target: {'; '.join(missed)}." if missed else "All targets are met."


def conditions(report: Mapping[str, Any]) -> str:
    """Say on which machine and with which versions this was measured."""
    libraries = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return (
        f"One thread of {report['machine']['processor']}, {libraries}; processor time, the least of several turns. "
        "GPT-2 and Llama are transformers' own, with random weights and as many parameters; the limit is the bare "
        "matrix products of a token."
    )


def summary(results: Path) -> str:
    """Write the small table of docs/generation.md, what falls short, and where the time goes."""
    if (report := read(results)) is None:
        return NOT_MEASURED
    parts = report["parts"]
    said = [conditions(report), shortfalls(report), profile(results), "Written by `make report`."]
    return markdown(["", *SIDES], sampling_rows(parts)) + "\n" + "\n\n".join(filter(None, said)) + "\n"


def speed(results: Path) -> str:
    """Write all that was measured, for results/README.md."""
    if (report := read(results)) is None:
        return NOT_MEASURED
    parts = report["parts"]
    tables = [
        markdown(["", *SIDES], sampling_rows(parts)),
        markdown(["", "side", "measured"], other_rows(parts)),
        markdown(["", "ratio", "wanted", "met"], target_rows(report)),
    ]
    said = [growth(parts), training(parts), conditions(report), profile(results)]
    said.append("Written by `make report` from `results/benchmark.json` and `results/profile.json`.")
    return "\n".join(tables) + "\n" + "\n\n".join(filter(None, said)) + "\n"
