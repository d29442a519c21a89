"""Index a training split, and ask the index: `python -m evaluation.originality build|check|benchmark`."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from tqdm.auto import tqdm

from command import UserError, machine, run_command, write_json
from metrics.originality.originality_index import OriginalityIndex, describe
from modeling.tune_finding_melody_vae import find_melody
from training.data import load_lines

COLUMNS = ["melody_id", "pitch", "start", "time_signature", "steps_per_beat", "bars"]


def index_split(dataset: str, split: str, kind: str) -> OriginalityIndex:
    """Index the lines of a split.

    Args:
        dataset: Folder or Hub id.
        split: Of it.
        kind: "lead" or "all".

    Raises:
        UserError: If there is no such data set or it does not name its melodies.
    """
    lines = load_lines(dataset, split, kind)
    if "melody_id" not in lines.column_names:
        raise UserError(f"{dataset}: the column melody_id is missing; build it with dataset_script.build")
    lines = lines.select_columns(COLUMNS)
    rows = (row for batch in lines.with_format("numpy").iter(1000) for row in unbatch(batch))
    about = {"dataset": Path(dataset).name, "split": split, "kind": kind}
    return OriginalityIndex.build(tqdm(rows, total=len(lines), desc="Hashing bars", unit=" lines"), about)


def build(args: argparse.Namespace) -> None:
    """Write the index of a split."""
    clock = time.perf_counter()
    index = index_split(args.dataset, args.split, args.lines)
    output = Path(args.output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        index.save(output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); choose another --output") from error
    print(
        f"{len(index):,} melody lines, {int(index.about['bars']):,} bars: {output.stat().st_size / 2**20:.1f} MiB "
        f"in {time.perf_counter() - clock:.1f} s: {output}"
    )


def unbatch(batch: Any) -> list[dict]:
    """Turn a batch of columns into rows."""
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def check(args: argparse.Namespace) -> None:
    """Report on the tunes of MIDI files, or on lines of a data set."""
    try:
        index = OriginalityIndex.load(args.index)
        if args.midi:
            named = [(path, find_melody(path)) for path in args.midi]
        else:
            lines = load_lines(args.dataset, args.split, "lead")
            chosen = map(dict, lines.select(range(min(args.num, len(lines)))))
            named = [(line["melody_id"], line) for line in chosen]
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    for name, line in named:
        report = index.report(line)
        print(json.dumps({"melody": name, **report}) if args.json else f"{name}: {describe(report)}")


def made_up_windows(count: int, bars: int, seed: int) -> Iterator[dict]:
    """Yield random melodies of `bars` bars in 4/4 with four notes a bar, as cheaply as can be."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        onsets = 4 * np.arange(4 * bars) + generator.integers(0, 4, 4 * bars)
        yield {
            "melody_id": f"{number:08d}",
            "pitch": 60 + generator.integers(0, 12, 4 * bars),
            "start": onsets,
            "time_signature": "4/4",
            "steps_per_beat": 4,
            "bars": bars,
        }


def measure(windows: int, samples: int, path: Path, seed: int = 0) -> dict[str, Any]:
    """Build an index of made-up windows of 16 bars at `path`, and ask it about windows of its own and about new ones.

    Nothing of real melodies repeats so little as these: the index is as large as it can be. Their bars are as rare,
    though, so every other question is about a window that the index has, found in its whole length.
    """
    clock = time.perf_counter()
    lines = tqdm(made_up_windows(windows, 16, seed), total=windows, desc="Hashing bars", unit=" windows")
    index = OriginalityIndex.build(lines)
    index.save(path)
    build_seconds = time.perf_counter() - clock
    index = OriginalityIndex.load(path)
    known, new = made_up_windows(samples // 2, 16, seed), made_up_windows(samples // 2, 16, seed + 1)
    milliseconds = []
    for one, other in zip(known, new, strict=True):
        for line in (one, other):
            clock = time.perf_counter()
            index.report(line)
            milliseconds.append(1000 * (time.perf_counter() - clock))
    return {
        "windows": windows,
        "bars": int(index.about["bars"]),
        "build_seconds": build_seconds,
        "megabytes": path.stat().st_size / 1e6,
        "query_milliseconds": {"mean": float(np.mean(milliseconds)), "most": max(milliseconds)},
        "queries": len(milliseconds),
        "machine": machine(),
    }


def benchmark(args: argparse.Namespace) -> None:
    """Measure an index of so many windows."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args.windows, args.samples, Path(folder) / "index.safetensors")
    if args.output:
        write_json(found, args.output)
    print(json.dumps(found, indent=1))


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.originality", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    making = commands.add_parser("build", help="make an index of a data set's split")
    making.add_argument("--dataset", required=True, help="folder or Hub id of the melodies")
    making.add_argument("--output", required=True, help="safetensors file to write, about 12 bytes a bar")
    making.add_argument("--split", default="train", help="split to index (default: %(default)s)")
    kinds = ("lead", "all")
    making.add_argument("--lines", choices=kinds, default="lead", help="the files' tunes, or every line (%(default)s)")
    asking = commands.add_parser("check", help="find what melodies have in common with an index")
    asking.add_argument("--index", required=True, help="file that build has written")
    source = asking.add_mutually_exclusive_group(required=True)
    source.add_argument("--midi", nargs="+", metavar="FILE", help="MIDI files; the tune is found in each")
    source.add_argument("--dataset", help="folder or Hub id, whose lead lines are asked about")
    asking.add_argument("--split", default="test", help="of the data set (default: %(default)s)")
    asking.add_argument("--num", type=int, default=8, help="lines of the data set (default: %(default)s)")
    asking.add_argument("--json", action="store_true", help="a JSON object for each melody instead of a sentence")
    timing = commands.add_parser("benchmark", help="measure building and asking, on made-up melodies")
    timing.add_argument("--windows", type=int, default=500_000, help="windows of 16 bars (default: %(default)s)")
    timing.add_argument("--samples", type=int, default=200, help="questions (default: %(default)s)")
    timing.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)
    datasets.disable_progress_bars()
    return run_command({"build": build, "check": check, "benchmark": benchmark}[args.command], args)


if __name__ == "__main__":
    sys.exit(main())
