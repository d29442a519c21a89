"""Measure how the memory of a build grows with the number of files: real ones, and transposed and edited copies.

The files come round by round; from the second on each copy is transposed and has a tenth of its notes moved, so that it
has lines of its own and belongs to the group of the original. Memory is the most that a process has held; of the main
one without pages of files, which the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from symusic.core import ScoreTick
from tqdm import tqdm

from benchmarks.dataset import LAKH_FILES, build_command, check, start
from benchmarks.near_duplicates import contents_of
from benchmarks.planted_changes import change_notes, transpose
from benchmarks.reports import report_to, rounded, versions
from command import machine
from dataset_script.build import LIBRARIES
from dataset_script.midi_repair import repair_midi
from dataset_script.midi_sources import InputError, open_all

PART_FILES = 1000  # in an archive
SAMPLING_SECONDS = 0.05  # between two looks at the memory
MIB = 1 << 20


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", required=True, nargs="+", help="archives, folders or patterns of MIDI files")
    parser.add_argument("--output", type=Path, default=Path("results/dataset_growth.json"), help="the report to write")
    parser.add_argument(
        "--files",
        type=int,
        nargs="+",
        default=[8_000, 30_000, 100_000],
        help=f"numbers of files to build from, multiples of {PART_FILES} (default: 8000 30000 100000)",
    )
    parser.add_argument("--num_proc", type=int, default=2, help="processes of each build (default: 2)")
    parser.add_argument("--work", type=Path, help="folder for the copies, some gigabytes; left out: a temporary one")
    options = parser.parse_args(arguments)
    for number in options.files:
        if number < PART_FILES or number % PART_FILES:
            parser.error(f"--files must be multiples of {PART_FILES}, not {number}")
    return options


def copy_of(number: int, content: bytes, copy: int) -> bytes:
    """Return a file that is transposed and has a tenth of its notes moved; copy 0 is the file itself."""
    if not copy:
        return content
    try:
        score = ScoreTick.from_midi(repair_midi(content)[0])
    except Exception:  # symusic raises whatever its C++ threw
        return content + b"\0" * copy  # a file that cannot be read is as bad as the original, and another one
    random = np.random.default_rng([number, copy])
    transpose(score, random)
    change_notes(score, random)
    return score.dumps_midi()


def write_part(path: Path, files: list[tuple[int, bytes, int]]) -> None:
    """Write an archive of copies."""
    unfinished = path.with_suffix(".unfinished")
    with tarfile.open(unfinished, "w") as archive:
        for number, content, copy in files:
            midi = copy_of(number, content, copy)
            member = tarfile.TarInfo(f"{copy}/{number}.mid")
            member.size = len(midi)
            archive.addfile(member, io.BytesIO(midi))
    unfinished.replace(path)


def write_copies(given: list[str], parts: int, folder: Path, num_proc: int) -> list[Path]:
    """Write so many archives of copies, round by round; those that are there are kept.

    Raises:
        InputError: if there is no MIDI file.
    """
    contents = [content for _, content in contents_of(open_all(given))]
    if not contents:
        raise InputError(f"no MIDI file in {' and '.join(given)}; give an archive or a folder with some")

    def files() -> Iterator[tuple[int, bytes, int]]:
        for place in range(parts * PART_FILES):
            copy, number = divmod(place, len(contents))
            yield number, contents[number], copy

    stream, paths = files(), [folder / f"{part:05d}.tar" for part in range(parts)]
    with ProcessPoolExecutor(num_proc) as pool, tqdm(total=parts, desc="copies", unit="000 files") as progress:
        for first in range(0, parts, num_proc):  # so that no more are in memory
            some = [(path, list(islice(stream, PART_FILES))) for path in paths[first : first + num_proc]]
            for done in [pool.submit(write_part, *part) for part in some if not part[0].exists()]:
                done.result()
            progress.update(len(some))
    return paths


def peak_memory(sources: Sequence[Path], work: Path, num_proc: int) -> dict[str, Any]:
    """Build a data set and look at the resident set of its processes 20 times a second; nothing is timed here."""
    log, output = work / "build.log", work / "data_set"
    shutil.rmtree(output, ignore_errors=True)
    building = start(build_command(sources, output, num_proc), log)
    peak: dict[int, int] = {building.pid: 0}
    private = 0
    while building.poll() is None:
        try:
            parent = psutil.Process(building.pid)
            for process in (parent, *parent.children(recursive=True)):
                memory = process.memory_info()
                peak[process.pid] = max(peak.get(process.pid, 0), memory.rss)
                if process is parent:
                    private = max(private, memory.rss - memory.shared)
        except psutil.NoSuchProcess:
            pass  # one of them ended between the two calls
        time.sleep(SAMPLING_SECONDS)
    check(building.returncode, log)
    return {
        "parent_mib": peak.pop(building.pid) / MIB,
        "parent_private_mib": private / MIB,
        "workers_mib": sorted((size / MIB for size in peak.values()), reverse=True),
    }


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Build from each number of files, the smallest first."""
    numbers = sorted(options.files)
    paths = write_copies(options.input, numbers[-1] // PART_FILES, folder, options.num_proc)
    builds = {}
    for number in tqdm(numbers, desc="builds"):
        with tempfile.TemporaryDirectory(dir=folder) as work:
            builds[str(number)] = peak_memory(paths[: number // PART_FILES], Path(work), options.num_proc)
    first, last = (builds[str(number)]["parent_private_mib"] for number in (numbers[0], numbers[-1]))
    growth = (last - first) / max(numbers[-1] - numbers[0], 1)
    return {
        "input": " + ".join(Path(one).name for one in options.input),
        "num_proc": options.num_proc,
        "files": builds,
        "parent_kib_per_file": growth * 1024,
        "lakh_parent_private_mib": last + growth * (LAKH_FILES - numbers[-1]),
        "machine": machine(),
        "versions": versions(sorted({"symusic", *LIBRARIES})),
    }


def summary(report: dict[str, Any]) -> str:
    """Put the main figures into lines."""
    lines = [
        f"{int(number):>8,} files: main process {build['parent_private_mib']:>6.0f} MiB, "
        f"largest worker {max(build['workers_mib'], default=0):>6.0f} MiB"
        for number, build in report["files"].items()
    ]
    return "\n".join([*lines, f"all of Lakh, in a straight line: {report['lakh_parent_private_mib']:.0f} MiB"])


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 after one line about bad input."""
    options = parse_arguments(arguments)

    def measured() -> dict[str, Any]:
        if options.work:
            options.work.mkdir(parents=True, exist_ok=True)
            return rounded(measure(options, options.work))
        with tempfile.TemporaryDirectory(prefix="melody-vae-growth-") as folder:
            return rounded(measure(options, Path(folder)))

    return report_to(options.output, measured, summary)


if __name__ == "__main__":
    sys.exit(main())
