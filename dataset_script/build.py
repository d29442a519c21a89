"""Turn MIDI files into a data set of melodies.

Reads the Lakh MIDI Dataset's archive, or any folder of MIDI files, finds the melody lines in it, and writes them as
Parquet files that datasets.load_dataset reads.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import platform
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from command import first_line, machine, run_command
from dataset_script.chunks import (
    NO_LINE,
    SAME_CONTENT,
    Harvest,
    InterruptedBuildError,
    Limits,
    harvest,
    line_files,
    load_kernels,
    process_all,
)
from dataset_script.genres import add_genre_options, metadata_from
from dataset_script.midi_sources import InputError, Sources, open_all

MAX_STEPS_PER_BEAT = 48
LISTED_FILES = 100  # so many names of unreadable files are listed in the report
LIBRARIES = ("symusic", "numpy", "pyarrow", "datasets")

EXAMPLES = """\
examples:
  python -m dataset_script.build --input lmd_full.tar.gz --output melodies --num_proc 8
  python -m dataset_script.build --input my_midi_folder --output melodies
  python -m dataset_script.build --input "songs/**/*.mid" --output melodies
"""


@dataclass(frozen=True)
class Settings:
    """How to build.

    Attributes:
        steps_per_beat: grid steps in a beat.
        num_proc: number of processes.
        limits: what one file may cost.
        excluded: md5 of the files that are left out.
    """

    steps_per_beat: int = 4
    num_proc: int = 1
    limits: Limits = field(default_factory=Limits)
    excluded: frozenset[str] = frozenset()


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset_script.build",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--input",
        nargs="+",
        help="where the music is: a tar archive such as lmd_full.tar.gz (it is read as it is, no need to unpack it), "
        "a folder, a pattern in quotes, one .mid file, or several of them; left out: the small set of tunes that comes "
        "with the program",
    )
    parser.add_argument("--output", required=True, type=Path, help="the new folder for the data set")
    parser.add_argument("--num_proc", type=int, default=1, help="how many processor cores to use (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set that was built in --output before")
    add_build_options(parser)
    options = parser.parse_args(arguments)
    if options.num_proc < 1:
        parser.error(f"--num_proc must be at least 1, not {options.num_proc}")
    return options


def add_build_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide what a data set holds, for all commands that build one."""
    parser.add_argument(
        "--steps_per_beat",
        type=int,
        choices=range(1, MAX_STEPS_PER_BEAT + 1),
        metavar=f"1-{MAX_STEPS_PER_BEAT}",
        default=Settings.steps_per_beat,
        help="how finely a beat is divided: 4 gives sixteenth notes in 4/4 (default), 12 keeps triplets as well",
    )
    parser.add_argument(
        "--max_seconds_per_file",
        type=float,
        default=Limits.seconds,
        help="a file that takes longer is left out (default: %(default)g)",
    )
    parser.add_argument(
        "--max_memory",
        type=int,
        default=Limits.memory,
        help="a file that needs more MiB of memory is left out (default: %(default)d)",
    )
    parser.add_argument(
        "--exclude",
        type=Path,
        help="a text file with the md5 of files to leave out, one in a line, such as removal requests",
    )
    add_genre_options(parser)


def read_excluded(path: Path | None) -> frozenset[str]:
    """Read the md5 of the files that are left out; what follows a # is a comment.

    Raises:
        InputError: if the file cannot be read or holds something else.
    """
    if path is None:
        return frozenset()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); check --exclude") from error
    words = {line.split("#")[0].strip().lower() for line in lines} - {""}
    wrong = sorted(word for word in words if not re.fullmatch("[0-9a-f]{32}", word))
    if wrong:
        raise InputError(f"{path} holds {wrong[0]!r}, which is no md5; give one of 32 hexadecimal digits in each line")
    return frozenset(words)


def check_output(output: Path, is_overwriting: bool) -> None:
    """Refuse an output folder that holds something.

    Raises:
        InputError: if it does, and is not an older data set that may be replaced.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not output.is_dir():
        raise InputError(f"{output} is a file; give --output a new folder")
    if not is_overwriting:
        raise InputError(f"{output} is not empty; give --output a new folder, or add --overwrite")
    if not (output / "build.json").is_file():
        raise InputError(f"{output} holds no data set built by this program; empty it yourself, or give a new folder")


def program_fingerprint() -> str:
    """Return a hash of this program and of what decides its results beside it."""
    hashed = hashlib.blake2b(version("symusic").encode(), digest_size=16)
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.suffix in (".py", ".json"):
            hashed.update(path.read_bytes())
    return hashed.hexdigest()


@contextmanager
def unfinished_build(output: Path, sources: Sources, steps_per_beat: int) -> Iterator[Path]:
    """Hold the folder beside `output` in which the build is done, and keep it when the build is interrupted.

    What an interrupted build of the same files by the same program left there is kept, anything else is removed.

    Raises:
        InputError: if another process builds there.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.parent / f".{output.name}.unfinished"
    program = program_fingerprint()
    plan = json.dumps({"input": sources.fingerprint, "steps_per_beat": steps_per_beat, "program": program})
    lock = FileLock(output.parent / f".{output.name}.lock", blocking=False)  # which forked workers do not inherit
    try:
        hold = lock.acquire()
    except Timeout as error:
        raise InputError(f"another process is building {output}; wait for it, or give another --output") from error
    with hold:
        if not (folder / "plan.json").is_file() or (folder / "plan.json").read_text(encoding="utf-8") != plan:
            shutil.rmtree(folder, ignore_errors=True)
            (folder / "work").mkdir(parents=True)
            (folder / "plan.json").write_text(plan, encoding="utf-8")
        try:
            yield folder
        except InputError as error:
            if not isinstance(error, InterruptedBuildError):
                shutil.rmtree(folder)
            raise
        else:
            shutil.rmtree(folder)
        finally:
            with suppress(PermissionError):  # Windows keeps a file that is open
                Path(lock.lock_file).unlink(missing_ok=True)


def build_dataset(
    sources: Sources,
    output: Path,
    settings: Settings,
    metadata: Mapping[str, Mapping[str, str]],
    is_overwriting: bool = False,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build the data set in a new folder; a build that was interrupted goes on.

    Args:
        sources: the MIDI files.
        output: the folder to make.
        settings: how to build.
        metadata: what is known of the songs, by md5: genre, title, artist, msd_id.
        is_overwriting: whether a data set that was built in `output` before is replaced, when the new one is finished.
        options: what the card's command for building it again is to say, if not input, grid and processes.

    Returns:
        The report that is also written to `build.json`.

    Raises:
        InputError: if there is no melody line in any file, the input is damaged, or `output` holds something else.
    """
    check_output(output, is_overwriting)
    with faults_of(output), unfinished_build(output, sources, settings.steps_per_beat) as folder:
        # Here and not at the top: importing datasets takes a second, and neither --help nor a wrong input needs it.
        importlib.import_module("dataset_script.parquet_files")
        load_kernels(settings.steps_per_beat)
        # Two parts, both of which go on where they were interrupted; the clock is read after each.
        is_resumed = any((folder / "work").iterdir())
        clock = [clocks()]
        extract(sources, settings, folder / "work")
        clock.append(clocks())
        finished = folder / "dataset"
        shutil.rmtree(finished, ignore_errors=True)
        finished.mkdir()
        found, again = write_data(folder / "work", sources.name, finished, settings, metadata)
        clock.append(clocks())
        # The report, and then the folder takes the place of the old one.
        (seconds, processor), (total, processor_total) = (np.array(clock)[1:] - clock[0]).round(2).tolist()
        report = describe(found, again, sources.name, finished, settings.steps_per_beat) | {
            "num_proc": settings.num_proc,
            "is_resumed": is_resumed,
            "seconds": {"extraction": seconds, "to_parquet": total},
            "processor_seconds": {"extraction": processor, "to_parquet": processor_total},
            "files_per_second": round(found.files / total, 1),
        }
        write_report(report | ({"options": dict(options)} if options else {}), finished)
        if output.exists():
            shutil.rmtree(output)
        finished.rename(output)
    return report


def clocks() -> tuple[float, float]:
    """Return the time, and the processor time of this process and (not on Windows) of those it started that ended."""
    used = os.times()
    return time.perf_counter(), used.user + used.system + used.children_user + used.children_system


@contextmanager
def faults_of(output: Path) -> Iterator[None]:
    """Say in one line what is wrong with the place to write to; what is done is kept.

    Raises:
        InputError: where it cannot be written.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or first_line(error)
        raise InterruptedBuildError(
            f"{output} cannot be written ({why}); make room there, or give another --output: the same command goes on "
            "with what is done"
        ) from error


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Write `build.json` and the card that is made from it."""
    from dataset_script import card

    report |= {
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    (folder / "build.json").write_text(text, encoding="utf-8", newline="\n")
    card.write_card(folder)


def extract(sources: Sources, settings: Settings, work: Path) -> None:
    """Extract the lines of all files into Arrow files, with a progress bar."""
    files = 0
    with tqdm(total=sources.files, unit=" files", desc="extracting melodies", mininterval=0.5, delay=1) as progress:
        for done in process_all(sources, settings.steps_per_beat, settings.num_proc, settings.limits, work):
            files += done
            if sources.files is None and sources.share_read > 0:
                progress.total = round(files / sources.share_read)  # an estimate, exact in the end
            progress.update(done)


def write_data(
    work: Path, source_name: str, folder: Path, settings: Settings, metadata: Mapping[str, Mapping[str, str]]
) -> tuple[Harvest, Counter[str]]:
    """Choose the lines, group the files, and write Parquet files into an empty folder.

    Returns:
        What is known of the files, and the number of lines left out then, by reason: there already, or on request.

    Raises:
        InputError: if there is no melody line in any file.
    """
    found = harvest(work)
    check_melodic(found, source_name)
    from dataset_script import configs, kept_lines, parquet_files

    paths = line_files(work)
    with ThreadPoolExecutor(1) as thread:
        grouping = thread.submit(parquet_files.assign_groups, found, work)
        chosen = kept_lines.choose_lines(paths, found.md5, settings.excluded, work)
        group = grouping.result()
    parquet_files.write_splits(paths, chosen.is_kept, group, metadata, folder / "data", settings.num_proc)
    configs.write_files(configs.files_table(work, group, chosen.md5, settings.excluded, metadata), folder)
    configs.write_configs(folder, settings.num_proc)
    return found, chosen.gone


def lost_files(found: Harvest) -> Counter[str]:
    """Count the files without a melody by reason."""
    lost = Counter(reason for _, reason in found.unreadable)
    lost[NO_LINE] = len(found.md5) - int(found.is_melodic.sum())
    lost[SAME_CONTENT] = found.files - len(found.unreadable) - len(found.md5)
    return lost


def check_melodic(found: Harvest, source_name: str) -> None:
    """Refuse an input without any melody line.

    Raises:
        InputError: if it is one.
    """
    if not found.is_melodic.any():
        why = ", ".join(f"{reason}: {count}" for reason, count in lost_files(found).most_common() if count)
        raise InputError(f"no melody found in {source_name} ({why}); give MIDI files with a tune of 4 bars or more")


def describe(
    found: Harvest, again: Counter[str], source_name: str, folder: Path, steps_per_beat: int
) -> dict[str, Any]:
    """Report on a data set whose Parquet files are written.

    Args:
        found: what is known of the files.
        again: number of lines that were left out afterwards, by reason: there already, or on request.
        source_name: what the card calls the input.
        folder: of the data set.
        steps_per_beat: grid steps in a beat.
    """
    from dataset_script import card, configs
    from dataset_script.statistics import by_count, statistics

    # What was read, what was dropped and why, what is left.
    counts = statistics(folder / "data")
    total, dropped = counts["all"], found.dropped + again
    return {
        "input": source_name,
        "version": card.content_version(folder / "data"),
        "steps_per_beat": steps_per_beat,
        "files": {
            "read": found.files,
            "with_melody": int(found.is_melodic.sum()),
            "dropped": by_count(+lost_files(found)),
        },
        "tracks": {
            "read": found.tracks.total(),
            "with_melody": found.tracks["melody"],
            "dropped": by_count(found.tracks - Counter(melody=found.tracks["melody"])),
        },
        "lines": {
            "read": total["lines"] + dropped.total(),
            "kept": total["lines"],
            "dropped": by_count(+dropped),
            "lead": total["lead_lines"],
        },
        "quantisation": {
            "notes": found.notes,
            "mean_displacement_steps": round(found.displacement_steps / found.notes, 4),
        },
        "unreadable_files": [f"{name}: {reason}" for name, reason in found.unreadable[:LISTED_FILES]],
        "configs": configs.describe_configs(folder),
        "statistics": counts,
    }


def funnel(report: dict[str, Any]) -> str:
    """Draw what went in, what was left out and what came out as a small table."""
    rows: list[tuple[str, float]] = []
    for unit, out in (("files", "with_melody"), ("tracks", "with_melody"), ("lines", "kept")):
        counts = report[unit]
        rows.append((f"{unit} read", counts["read"]))
        rows += [(f"  - {reason}", count) for reason, count in counts["dropped"].items()]
        rows.append((f"{unit} {out.replace('_', ' ')}", counts[out]))
    total = report["statistics"]["all"]
    rows += [(name.replace("_", " "), total[name]) for name in ("lead_lines", "notes", "bars", "groups")]
    rows += [(f"lines in {name}", part["lines"]) for name, part in report["statistics"]["splits"].items()]
    if not report.get("is_resumed", True):
        rows.append(("files per second", report["files_per_second"]))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}} {count:>12,}" for name, count in rows)


def build_from(options: argparse.Namespace) -> None:
    """Build what the command line asks for, and show the funnel.

    Raises:
        InputError: for bad input.
    """
    output: Path = options.output
    check_output(output, options.overwrite)
    metadata = metadata_from(options)
    if options.input is None:
        from dataset_script.tunes import embedded_scores  # only this branch needs it

        sources = Sources("embedded tunes", "embedded", None, embedded_scores())
    else:
        sources = open_all(options.input)
    limits = Limits(options.max_seconds_per_file, options.max_memory)
    settings = Settings(options.steps_per_beat, options.num_proc, limits, read_excluded(options.exclude))
    named = ("metadata", "match_scores", "genres", "exclude")  # without the folders, which are the user's own
    files = {name: getattr(options, name) and Path(getattr(options, name)).name for name in named}
    source = None if options.input is None else [Path(given).name for given in options.input]
    again = {"input": source, **files, "steps_per_beat": options.steps_per_beat, "num_proc": options.num_proc}
    report = build_dataset(sources, output, settings, metadata, options.overwrite, again)
    print(funnel(report))
    print(f"\n{output}: load it with datasets.load_dataset({str(output)!r})")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 after one line about bad input."""
    options = parse_arguments(arguments)
    return run_command(build_from, options, stopped="stopped; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
