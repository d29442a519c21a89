"""Measure speed beside peers and limits, one thread, in turns: `make benchmark`, or `python -m benchmarks.speed`.

Beside the model stand transformers' GPT-2 and Llama with as many parameters and random weights, which sample as many
tokens from the whole softmax (the model's top-p, its grammar and its prior are in its own figures), and as the limit
the bare matrix products of a token. Each figure is the least processor time of several turns; every turn is kept,
wall time as well. The parts:

    one, batch, thousand   sample one melody, 64 side by side, 1,000 in one call
    encode                 one melody after the other, and in batches
    midi_in                MIDI files into ids; MidiTok's tokens, symusic's parsing
    attention, memory      a layer without gradients, beside plain scaled_dot_product_attention
    cold_start             from the start of a process to the first melody, beside imports
    training               a step in fp32 and bf16
    growth_...             with bars, melodies side by side, and length
    guard                  the ratios of small sizes, which a test compares with its own

What is in the output file is not measured again, unless --parts names it: the same command goes on where it was
stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from benchmarks.reports import rounded, versions
from benchmarks.speed_parts import FULL, SHORT, SpeedParts
from benchmarks.timing import one_core
from command import UserError, check_output, machine, run_command, write_json

OUTPUT = Path("results/benchmark.json")
LIBRARIES = ("torch", "transformers", "miditok", "symusic", "onnxruntime")
TIMED = ("one", "batch", "thousand", "encode", "midi_in", "attention", "memory", "cold_start", "training")
TIMED += ("growth_bars", "growth_batch", "growth_length")
PARTS = (*TIMED, "guard")
GUARDED = ("one", "batch", "encode", "midi_in", "attention")
FALL = 2 / 3  # of a ratio's committed value


class Target(NamedTuple):
    """What one side is to reach beside another.

    Args:
        part: Where both were timed.
        side: Ours.
        beside: The other's.
        bound: How many times as fast ours is to be, at least; where `is_cost`, how many times as much it may take.
        is_cost: Whether the ratio is written as what ours takes, in units of what the other takes.
    """

    part: str
    side: str
    beside: str
    bound: float
    is_cost: bool = False


RUNTIME_START = Target("cold_start", "ONNX", "one second", 1.0, is_cost=True)
TARGETS = (
    Target("one", "ours", "GPT-2", 2.3),
    Target("one", "ONNX", "GPT-2", 5.5),
    Target("batch", "ours", "GPT-2", 3.5),
    Target("batch", "ONNX", "GPT-2", 5.0),
    Target("thousand", "ours", "GPT-2", 3.5),
    Target("encode", "batches of 16", "one by one", 0.5, is_cost=True),
    Target("encode", "batches of 64", "one by one", 0.5, is_cost=True),
    Target("encode", "batches of 256", "one by one", 0.5, is_cost=True),
    Target("midi_in", "ours", "MidiTok", 1.0, is_cost=True),
    Target("attention", "ours, causal", "plain, causal", 1.3, is_cost=True),
    Target("attention", "ours, bidirectional", "plain, bidirectional", 1.3, is_cost=True),
    Target("memory", "ours, causal", "plain, causal", 1.3, is_cost=True),
    Target("memory", "ours, bidirectional", "plain, bidirectional", 1.3, is_cost=True),
    Target("cold_start", "ours", "its imports alone", 1.3, is_cost=True),
    RUNTIME_START,
)


def cost_of(part: Mapping[str, Any], side: str) -> float | None:
    """Return what a unit of a side's work takes, in milliseconds or MiB; None where it was not measured."""
    if "mib" in part:
        return part["mib"].get(side)
    return part["sides"][side]["milliseconds"] if side in part["sides"] else None


def compare(parts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Set every target that was measured beside its ratio."""
    rows = []
    for target in TARGETS:
        if target.part not in parts:
            continue
        ours, other = (cost_of(parts[target.part], side) for side in (target.side, target.beside))
        if target == RUNTIME_START:
            other = 1e3
        if ours is None or other is None:
            continue
        ratio = ours / other if target.is_cost else other / ours
        is_met = ratio <= target.bound if target.is_cost else ratio >= target.bound
        rows.append({**target._asdict(), "ratio": ratio, "is_met": is_met})
    return rows


def speeds(parts: Mapping[str, Any]) -> dict[str, float]:
    """Return how many times as fast ours is as what it stands beside, by target."""
    return {
        f"{row['part']}: {row['side']} beside {row['beside']}": 1 / row["ratio"] if row["is_cost"] else row["ratio"]
        for row in compare(parts)
    }


def fallen(committed: Mapping[str, float], measured: Mapping[str, float]) -> list[str]:
    """Name the ratios that are less than two thirds of the committed ones."""
    return [
        f"{name}: {measured[name]:.2f}, was {value:.2f}"
        for name, value in committed.items()
        if name in measured and measured[name] < FALL * value
    ]


def guard() -> dict[str, float]:
    """Measure the ratios of small sizes, without the exported model."""
    parts = SpeedParts(SHORT, with_onnx=False)
    return speeds({name: getattr(parts, name)() for name in GUARDED})


def measures(parts: SpeedParts) -> dict[str, Callable[[], Any]]:
    """Return what measures each part."""
    found = {name: getattr(parts, name) for name in TIMED}
    return found | {"guard": guard}


def read_report(output: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Read what was measured so far.

    Raises:
        UserError: If that was with other sizes or versions, or on another machine.
    """
    report = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {"parts": {}}
    for name, value in settings.items():
        if report.get(name, value) != value:
            raise UserError(f"{output}: measured with other {name}; give another --output, or remove it")
    return report


def measure(options: argparse.Namespace) -> None:
    """Measure what the report lacks, and write it after each part."""
    check_output(options.output)
    sizes = SHORT if options.short else FULL
    settings = {"sizes": rounded(json.loads(json.dumps(asdict(sizes)))), "machine": machine()}
    settings["versions"] = versions(LIBRARIES)
    report = read_report(options.output, settings)
    wanted = options.parts or [name for name in PARTS if name not in report["parts"]]
    torch.set_num_threads(1)
    with one_core(), tqdm(total=len(wanted), unit="part", smoothing=0) as progress:
        parts = SpeedParts(sizes, progress, options.onnx, not options.without_onnx)
        of = measures(parts)
        for name in wanted:
            progress.set_description(name)
            load = os.getloadavg()[0]
            report["parts"][name] = rounded(of[name]() | ({} if name == "guard" else {"load_average": load}))
            report |= settings | {"targets": rounded(compare(report["parts"]))}
            write_json(report, options.output)
            progress.update()
    print(f"{summary(report)}\n\nwritten to {options.output}")


def summary(report: Mapping[str, Any]) -> str:
    """Say of each target what was wanted and what was measured."""
    lines = []
    for row in report["targets"]:
        name = f"{row['part']}: {row['side']} beside {row['beside']}"
        wanted = f"{'at most' if row['is_cost'] else 'at least'} {row['bound']:g}"
        lines.append(f"{name:<66} {row['ratio']:>7.2f}   {wanted:<14} {'met' if row['is_met'] else 'not met'}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the report to write")
    parser.add_argument("--parts", nargs="+", choices=PARTS, metavar="PART", help="these, even if they are there")
    parser.add_argument("--short", action="store_true", help="small sizes, which take a minute or two")
    parser.add_argument("--onnx", type=Path, help="folder of export_onnx.py; by default the release is exported first")
    parser.add_argument("--without_onnx", action="store_true", help="leave the exported model out")
    options = parser.parse_args(arguments)
    return run_command(measure, options, stopped="stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
