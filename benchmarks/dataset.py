"""Measure how fast data sets are built: note_seq, symusic's parsing alone, and this project end to end, in one run.

All three read the same files. The single-core figures come from processes that are bound to one core, the runs take
turns (A B C A B C ...), and every value is kept beside its median. What each run is called in the report:

    note_seq_sample      note_seq's melody extraction, MusicVAE's way, on a random sample of the files; one core
    parsing              symusic reading and parsing every file, nothing else; one core
    ours                 dataset_script.build from an unpacked folder to Parquet files, --num_proc 1; one core
    parsing_sample,      the same two on the sample that note_seq gets
    ours_sample
    parsing_N, ours_N    in N processes on all cores; what parsing gains from N processes is what these cores can give
    ours_archive         ours straight from the archive, where --input is one; one core, once

The seconds of `ours` count from after the start of the interpreter and its imports to the last file written, as those
of the others do; `ours_command` is the whole command, and `ours_extraction` stops before the Parquet files. On one core
they are those of the processor, so that other programs do not count; in several processes they are those of the clock.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

from symusic.core import ScoreTick
from tqdm import tqdm

from benchmarks.reports import report_to, rounded, versions
from benchmarks.timing import one_core, processor_seconds
from command import machine
from dataset_script.build import LIBRARIES
from dataset_script.midi_sources import InputError, in_folder

# The newest of each on which note_seq's latest release was seen to work, on Python 3.11.
NOTE_SEQ_PINS = ("note-seq==0.0.5", "pretty_midi==0.2.11.post0", "mido==1.3.3", "protobuf==7.36.2", "numpy==2.4.6")
NOTE_SEQ_SCRIPT = Path(__file__).with_name("note_seq_melodies.py")
REPOSITORY = Path(__file__).parents[1]

PROCESSES = (1, 2, 4)
LAKH_FILES = 178_561  # of LMD-full
CHUNK_FILES = 64  # to a process at a time, as dataset_script does
WARM_UP_FILES = 20
SAMPLE_SEED = 0

TARGETS = {  # path in "ratios" -> what is wanted at least
    ("ours_to_note_seq", "all_files"): 100.0,
    ("ours_to_parsing", "all_files"): 0.5,
    ("speedup_of_4_processes", "ours"): 3.0,
}

NOTES = {
    "ours_to_note_seq": "all_files: ours on all files to note_seq on its sample, whose rate is multiplied by parsing's "
    "rate on all files over its rate on the sample, so that large or small files in the sample do not count; sample: "
    "both on the sample, where the seconds that ours takes whatever the number of files weigh more",
    "lakh_minutes": f"the seconds of all steps in proportion to {LAKH_FILES} files, the start of the interpreter apart",
    "processor_share": "cores that each run kept busy, start-up included: on one core, clearly less than 1 means that "
    "other programs were on it and the seconds are too many",
}

Figures = dict[str, float]
"""Seconds by name of run."""
Run = tuple[str, Callable[[str], Figures], bool]
"""Name of a run, what does it, and whether it is on one core."""


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dataset", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", required=True, type=Path, help="a folder of MIDI files, or a tar archive of them")
    parser.add_argument("--output", type=Path, default=Path("results/dataset_speed.json"), help="the report to write")
    parser.add_argument(
        "--note_seq_files", type=int, default=300, help="size of note_seq's sample (default: 300); 0 leaves it out"
    )
    parser.add_argument(
        "--one_core", action="store_true", help="leave out the runs in several processes, for which cores must be idle"
    )
    parser.add_argument("--repeats", type=int, default=3, help="how often each run is repeated (default: 3)")
    parser.add_argument(
        "--note_seq_python",
        type=Path,
        help="a Python interpreter that has note_seq; left out: one is set up in the user's cache folder",
    )
    options = parser.parse_args(arguments)
    if options.note_seq_files < 0:
        parser.error(f"--note_seq_files must be 0 or more, not {options.note_seq_files}")
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, not {options.repeats}")
    return options


def unpacked(given: Path, work: Path) -> Path:
    """Return a folder with the files of `--input`, which is unpacked into `work` if it is an archive.

    Raises:
        InputError: if there is no such thing, or the archive is damaged.
    """
    if given.is_dir():
        return given
    if not given.exists():
        raise InputError(f"{given} does not exist; give --input a folder of MIDI files or a tar archive")
    try:
        with tarfile.open(given) as archive:
            archive.extractall(work / "unpacked", filter="data")
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        why = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        raise InputError(f"{given} cannot be unpacked ({why}); give --input a folder or a whole archive") from error
    return work / "unpacked"


def copied(paths: list[Path], folder: Path) -> list[Path]:
    """Copy files into a new folder, and return where they are now."""
    folder.mkdir()
    return [Path(shutil.copy(path, folder / f"{number:06d}_{path.name}")) for number, path in enumerate(paths)]


def note_seq_interpreter(given: Path | None) -> Path:
    """Return an interpreter that has note_seq; without `given` one is set up in the user's cache folder, once.

    Raises:
        InputError: if `given` has no note_seq, or none can be installed.
    """
    if given is not None:
        python = given.absolute()  # not resolved: a venv's interpreter is a link
        try:
            is_fit = not subprocess.run([python, "-c", "import note_seq"], capture_output=True).returncode
        except OSError:
            is_fit = False
        if not is_fit:
            raise InputError(f"{given} is no Python with note_seq; leave --note_seq_python out to have one set up")
        return python
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "melody-vae" / f"{NOTE_SEQ_PINS[0]}-python{platform.python_version()}"
    python, is_done = folder / "bin" / "python", folder / ".installed"
    if not is_done.is_file() or is_done.read_text(encoding="utf-8").split() != list(NOTE_SEQ_PINS):
        print(f"setting up {folder} with {', '.join(NOTE_SEQ_PINS)}", flush=True)
        for command in (
            [sys.executable, "-m", "venv", "--clear", folder],
            [python, "-m", "pip", "install", "--quiet", *NOTE_SEQ_PINS],
        ):
            done = subprocess.run(command, capture_output=True, encoding="utf-8")
            if done.returncode:
                why = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
                raise InputError(f"note_seq cannot be installed ({why}); give --note_seq_python or --note_seq_files 0")
        is_done.write_text("\n".join(NOTE_SEQ_PINS), encoding="utf-8")
    return python


def parse_chunk(paths: list[Path]) -> tuple[float, float, float, int]:
    """Read and parse files; return when it began and ended, its processor seconds, and how many are broken."""
    began, used, broken = time.perf_counter(), time.process_time(), 0
    for path in paths:
        try:
            ScoreTick.from_midi(path.read_bytes())
        except Exception:  # symusic raises whatever its C++ threw
            broken += 1
    return began, time.perf_counter(), time.process_time() - used, broken


def parsing_seconds(paths: list[Path], num_proc: int, is_alone: bool = False) -> tuple[float, int]:
    """Parse files in processes side by side, from when all have started; return the seconds, and how many are broken.

    Clocks are compared across processes: perf_counter is the same one for all of them on Linux.

    Args:
        paths: the files.
        num_proc: number of processes.
        is_alone: whether the processor's seconds count.
    """
    chunks = [paths[start : start + CHUNK_FILES] for start in range(0, len(paths), CHUNK_FILES)]
    num_proc = min(num_proc, len(chunks))
    context = multiprocessing.get_context("spawn")
    everyone = context.Barrier(num_proc)
    with ProcessPoolExecutor(num_proc, context, initializer=everyone.wait) as pool:
        began, ended, used, broken = zip(*pool.map(parse_chunk, chunks), strict=True)
    return sum(used) if is_alone else max(ended) - min(began), sum(broken)


def build_command(sources: Sequence[Path], output: Path, num_proc: int) -> list[str]:
    """Return the command that builds a data set."""
    given = [str(source.absolute()) for source in sources]
    options = ["--input", *given, "--output", str(output.absolute()), "--num_proc", str(num_proc)]
    return [sys.executable, "-m", "dataset_script.build", *options]


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command in the repository, with what it prints in a file."""
    with log.open("wb") as sink:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=sink, stderr=subprocess.STDOUT)


def check(code: int, log: Path) -> None:
    """Hand on what a command said that ended with an exit code other than 0.

    Raises:
        InputError: with its last line.
    """
    if code:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"]
        raise InputError(f"dataset_script.build ended with exit code {code}: {said[-1].removeprefix('error: ')}")


def build_seconds(name: str, source: Path, work: Path, num_proc: int, is_alone: bool = False) -> Figures:
    """Build a data set in a fresh process; return the seconds from after its imports, of all of it, and of a part.

    Args:
        name: of the run.
        source: the MIDI files.
        work: folder for the data set.
        num_proc: number of processes.
        is_alone: whether the processor's seconds count.
    """
    log, output = work / "build.log", work / "data_set"
    shutil.rmtree(output, ignore_errors=True)
    clock = processor_seconds if is_alone else time.perf_counter
    began = clock()
    code = start(build_command([source], output, num_proc), log).wait()
    command = clock() - began
    check(code, log)
    report = json.loads((output / "build.json").read_text(encoding="utf-8"))
    seconds = report["processor_seconds" if is_alone else "seconds"]
    return {name: seconds["to_parquet"], f"{name}_command": command, f"{name}_extraction": seconds["extraction"]}


def note_seq_report(python: Path, paths: list[Path], work: Path) -> dict[str, Any]:
    """Run note_seq on files in its own interpreter.

    Raises:
        InputError: if it fails as a whole.
    """
    listing = work / "note_seq_files.txt"
    listing.write_text("\n".join(map(str, paths)), encoding="utf-8")
    done = subprocess.run([python, NOTE_SEQ_SCRIPT, listing], capture_output=True, encoding="utf-8")
    if done.returncode:
        why = (done.stderr.strip() or "no message").splitlines()[-1]
        raise InputError(f"{python} {NOTE_SEQ_SCRIPT.name} failed ({why}); give another --note_seq_python")
    return json.loads(done.stdout.splitlines()[-1])


def derive(measured: dict[str, Any]) -> dict[str, Any]:
    """Work out rates, ratios and the time for all of Lakh from the seconds that were measured.

    Args:
        measured: `files` and `sample_files`, the number of files of each, and `seconds`, a list of values for each run.

    Returns:
        `files_per_second`, from the median of each run; `ratios`; `lakh_minutes`. A ratio to note_seq is None where
        note_seq was left out.
    """
    files, sample_files = measured["files"], measured["sample_files"]
    seconds = {name: median(values) for name, values in measured["seconds"].items()}
    rate = {name: (sample_files if "_sample" in name else files) / value for name, value in seconds.items()}
    to_note_seq = None
    if "note_seq_sample" in rate:
        # Were the sample's files larger than the others, note_seq would be faster on all files by as much as parsing.
        typical = rate["parsing"] / rate["parsing_sample"]
        to_note_seq = {
            "all_files": rate["ours"] / (rate["note_seq_sample"] * typical),
            "all_files_against_sample": rate["ours"] / rate["note_seq_sample"],
            "sample": rate["ours_sample"] / rate["note_seq_sample"],
            "sample_extraction": rate["ours_sample_extraction"] / rate["note_seq_sample"],
        }
    # What more processes gain, beside what parsing alone gains.
    speedup = {
        count: {
            "ours": seconds["ours_1"] / seconds[f"ours_{count}"],
            "ours_command": seconds["ours_1_command"] / seconds[f"ours_{count}_command"],
            "parsing": seconds["parsing_1"] / seconds[f"parsing_{count}"],
        }
        for count in PROCESSES[1:]
        if f"ours_{count}" in seconds
    }
    return {
        "files_per_second": rate,
        "ratios": {
            "ours_to_note_seq": to_note_seq,
            "ours_to_parsing": {
                "all_files": rate["ours"] / rate["parsing"],
                "all_files_command": rate["ours_command"] / rate["parsing"],
                "all_files_extraction": rate["ours_extraction"] / rate["parsing"],
            },
            **{f"speedup_of_{count}_processes": gains for count, gains in speedup.items()},
            **{
                f"efficiency_of_{count}_processes": {name: gain / count for name, gain in gains.items()}
                for count, gains in speedup.items()
            },
        },
        "lakh_minutes": {
            name: lakh_minutes(seconds[run], seconds[f"{run}_command"], files)
            for name, run in (("1", "ours"), ("4", "ours_4"))
            if run in seconds
        },
    }


def lakh_minutes(total: float, command: float, files: int) -> float:
    """Carry the time of `files` files over to all of LMD-full in proportion, the start of the interpreter apart."""
    return (command - total + total * LAKH_FILES / files) / 60


def do_runs(schedule: Sequence[Run], progress: tqdm) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Do runs one after the other; return the seconds of each, and the processor's share, one value for each turn."""
    seconds: dict[str, list[float]] = {}
    processor_share: dict[str, list[float]] = {}
    for name, run, is_alone in schedule:
        progress.set_postfix_str(name)
        with one_core() if is_alone else nullcontext():
            before, began = processor_seconds(), time.perf_counter()
            figures = run(name)
            share = (processor_seconds() - before) / (time.perf_counter() - began)
        processor_share.setdefault(name, []).append(share)
        for figure, value in figures.items():
            seconds.setdefault(figure, []).append(value)
        progress.update()
    return seconds, processor_share


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Do all runs and return the report.

    Raises:
        InputError: if the input, or note_seq's interpreter, is of no use.
    """
    # The files, and a sample that note_seq can finish.
    folder = unpacked(options.input, work)
    paths = [path for _, path in in_folder(folder) if isinstance(path, Path)]
    if len(paths) < 2:
        raise InputError(f"only one MIDI file in {options.input}; give a folder or an archive with more")
    python = note_seq_interpreter(options.note_seq_python) if options.note_seq_files else None
    sample_size = min(options.note_seq_files, len(paths))
    sample = copied(sorted(random.Random(SAMPLE_SEED).sample(paths, sample_size)), work / "sample")
    copied(paths[:WARM_UP_FILES], work / "few")
    note_seq: dict[str, Any] = {}

    def parse(name: str, which: list[Path], num_proc: int = 1, is_alone: bool = True) -> Figures:
        return {name: parsing_seconds(which, num_proc, is_alone)[0]}

    def extract(name: str) -> Figures:
        assert python is not None
        note_seq.update(note_seq_report(python, sample, work))
        return {name: note_seq.pop("seconds")}

    # The runs, in turns, so that a slow minute hits all alike.
    runs: list[Run] = []
    if python is not None:
        runs.append(("note_seq_sample", extract, True))
        runs.append(("parsing_sample", lambda name: parse(name, sample), True))
        runs.append(("ours_sample", lambda name: build_seconds(name, work / "sample", work, 1, True), True))
    runs.append(("parsing", lambda name: parse(name, paths), True))
    runs.append(("ours", lambda name: build_seconds(name, folder, work, 1, True), True))
    for count in () if options.one_core else PROCESSES:
        runs.append((f"parsing_{count}", lambda name, count=count: parse(name, paths, count, False), False))
        runs.append((f"ours_{count}", lambda name, count=count: build_seconds(name, folder, work, count), False))
    last: list[Run] = [("ours_archive", lambda name: build_seconds(name, options.input, work, 1, True), True)]
    schedule = runs * options.repeats + last * (not options.input.is_dir())

    # Warm up, then run.
    load = [os.getloadavg()[0]]
    with tqdm(total=len(schedule) + 1, unit=" runs") as progress:
        progress.set_postfix_str("warming up")
        build_seconds("warm_up", work / "few", work, PROCESSES[-1])  # fills the caches of compiled code
        _, broken = parsing_seconds(paths, 1)  # and the files' cache
        progress.update()
        seconds, processor_share = do_runs(schedule, progress)
        load.append(os.getloadavg()[0])

    measured = {"files": len(paths), "sample_files": sample_size, "seconds": seconds}
    return {
        "input": options.input.name,
        "bytes": sum(path.stat().st_size for path in paths),
        "unparsed_files": broken,
        "repeats": options.repeats,
        **measured,
        **derive(measured),
        "processor_share": processor_share,
        "note_seq": note_seq or None,
        "notes": NOTES,
        "load_average_before_and_after": load,
        "machine": machine(),
        "versions": versions(sorted({"symusic", *LIBRARIES})),
    }


def summary(report: dict[str, Any]) -> str:
    """Say what was wanted and what was measured, in one line each."""
    lines = []
    for (ratio, entry), wanted in TARGETS.items():
        values = report["ratios"].get(ratio)
        value = f"{values[entry]:.2f}" if values else "left out"
        lines.append(f"{ratio.replace('_', ' '):<26} {value:>10}   wanted: {wanted:g} or more")
    for count, minutes in report["lakh_minutes"].items():
        lines.append(f"{f'minutes for Lakh, {count} proc':<26} {minutes:>10.1f}   {LAKH_FILES:,} files, in proportion")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 after one line about bad input."""
    options = parse_arguments(arguments)

    def measured() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="melody-vae-benchmark-") as work:
            return rounded(measure(options, Path(work)))

    return report_to(options.output, measured, summary)


if __name__ == "__main__":
    sys.exit(main())
