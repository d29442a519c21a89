"""Turn MIDI files into a data set of melodies.

Reads the Lakh MIDI Dataset's archive, or any folder of MIDI files, finds the melody lines in it, and writes them as
Parquet files that datasets.load_dataset reads.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from dataset_script.chunks import NO_LINE, ChunkReport, process_all
from dataset_script.midi_sources import InputError, MidiSource, open_sources

GENRE_COLUMNS = ("topmagd", "masd", "tagtraum")  # the first that is not empty counts
LISTED_FILES = 100  # so many names of unreadable files are listed in the report
LIBRARIES = ("symusic", "numpy", "pyarrow", "datasets")

EXAMPLES = """\
examples:
  python -m dataset_script.build --input lmd_full.tar.gz --output melodies --num_proc 8
  python -m dataset_script.build --input my_midi_folder --output melodies
  python -m dataset_script.build --input "songs/**/*.mid" --output melodies
"""


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
        help="where the music is: a tar archive such as lmd_full.tar.gz (it is read as it is, no need to unpack it), "
        "a folder, a pattern in quotes, or one .mid file; left out: the small set of tunes that comes with the program",
    )
    parser.add_argument("--output", required=True, type=Path, help="the new folder for the data set")
    parser.add_argument("--num_proc", type=int, default=1, help="how many processor cores to use (default: 1)")
    parser.add_argument(
        "--steps_per_beat",
        type=int,
        default=4,
        help="how finely a beat is divided: 4 gives sixteenth notes in 4/4 (default), 12 keeps triplets as well",
    )
    parser.add_argument(
        "--metadata", type=Path, help="a CSV file with the genres: columns md5, and topmagd, masd or tagtraum"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a data set that was built in --output before")
    options = parser.parse_args(arguments)
    if options.num_proc < 1:
        parser.error(f"--num_proc must be at least 1, not {options.num_proc}")
    if not 1 <= options.steps_per_beat <= 48:
        parser.error(f"--steps_per_beat must be from 1 to 48, not {options.steps_per_beat}")
    return options


def read_genres(metadata: Path) -> dict[str, str]:
    """Read the genre of each file from a CSV file.

    Raises:
        InputError: if the file cannot be read or lacks the columns.
    """
    try:
        with metadata.open(newline="", encoding="utf-8") as lines:
            reader = csv.DictReader(lines)
            columns = [name for name in GENRE_COLUMNS if name in (reader.fieldnames or ())]
            if "md5" not in (reader.fieldnames or ()) or not columns:
                raise InputError(
                    f"{metadata} needs a column md5 and one of {', '.join(GENRE_COLUMNS)} in its first line"
                )
            genres = {row["md5"]: next((row[name] for name in columns if row[name]), "") for row in reader}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{metadata} cannot be read as a CSV file ({error}); check --metadata") from error
    return {md5: genre for md5, genre in genres.items() if genre}


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


def machine() -> dict[str, Any]:
    """Describe the computer: cores that may be used, and the processor's name."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = [line.split(":", 1)[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cores": cores, "processor": processor}


def collect(reports: Iterator[ChunkReport], progress: tqdm) -> ChunkReport:
    """Add up the reports of all chunks; files that were there twice count once in `md5`, `is_melodic`, `material`."""
    total = ChunkReport()
    seen: dict[str, tuple[bool, np.ndarray]] = {}
    for report in reports:
        total.files += report.files
        total.unreadable += report.unreadable
        total.tracks.update(report.tracks)
        total.dropped.update(report.dropped)
        seen.update(zip(report.md5, zip(report.is_melodic, report.material, strict=True), strict=True))
        progress.update(report.files)
    total.md5 = sorted(seen)
    total.is_melodic = [seen[md5][0] for md5 in total.md5]
    total.material = [seen[md5][1] for md5 in total.md5]
    total.unreadable.sort()
    return total


def build(
    sources: Iterator[MidiSource],
    source_name: str,
    folder: Path,
    num_proc: int,
    steps_per_beat: int,
    genres: dict[str, str],
) -> dict[str, Any]:
    """Build the data set in an empty folder.

    Args:
        sources: the MIDI files.
        source_name: what the report and the card call them.
        folder: where to write.
        num_proc: number of processes.
        steps_per_beat: grid steps in a beat.
        genres: genre by md5.

    Returns:
        The report that is also written to `build.json`.

    Raises:
        InputError: if there is no melody line in any file.
    """
    began = time.perf_counter()
    work = folder / "work"
    work.mkdir()
    with tqdm(unit=" files", desc="reading", mininterval=0.5, delay=1) as progress:
        total = collect(process_all(sources, steps_per_beat, num_proc, work), progress)
    extracted = time.perf_counter()
    # Here and not at the top: importing datasets takes seconds, and neither --help nor a wrong input needs it.
    from dataset_script import parquet_files

    lost = Counter(reason for _, reason in total.unreadable)
    lost[NO_LINE] = len(total.md5) - sum(total.is_melodic)
    lost["same content as another file"] = total.files - len(total.unreadable) - len(total.md5)
    if not any(total.is_melodic):
        why = ", ".join(f"{reason}: {count}" for reason, count in lost.most_common() if count)
        raise InputError(f"no melody found in {source_name} ({why}); give MIDI files with a tune of 4 bars or more")
    table = pa.concat_tables(
        pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in sorted(work.glob("*.arrow"))
    )
    rows, again = parquet_files.choose_lines(table)
    group = parquet_files.assign_groups(dict(zip(total.md5, total.material, strict=True)))
    splits = parquet_files.write_splits(table, rows, group, genres, folder / "data")
    parquet_files.write_card(folder, source_name, [name for name, count in splits.items() if count])

    kept = table.select(["md5", "is_lead", "time_signature", "bars", "pitch"]).take(pa.array(rows))
    md5 = kept["md5"].to_pylist()
    sizes = Counter(group[one] for one in set(md5))
    seconds = time.perf_counter() - began
    report = {
        "input": source_name,
        "steps_per_beat": steps_per_beat,
        "files": {"read": total.files, "with_melody": sum(total.is_melodic), "dropped": ordered(lost)},
        "tracks": {
            "read": total.tracks.total(),
            "with_melody": total.tracks["melody"],
            "dropped": ordered(total.tracks - Counter(melody=total.tracks["melody"])),
        },
        "lines": {
            "read": table.num_rows + total.dropped.total(),
            "kept": len(rows),
            "dropped": ordered(total.dropped + again),
            "lead": int(np.sum(kept["is_lead"].to_numpy())),
        },
        "notes": sum(len(chunk.flatten()) for chunk in kept["pitch"].chunks),
        "bars": int(np.sum(kept["bars"].to_numpy(), dtype=np.int64)),
        "splits": splits,
        "time_signatures": ordered(Counter(kept["time_signature"].to_pylist())),
        "genres": ordered(Counter(genres[one] for one in md5 if one in genres)),
        "groups": {"count": len(sizes), "largest_files": max(sizes.values())},
        "unreadable_files": [f"{name}: {reason}" for name, reason in total.unreadable[:LISTED_FILES]],
        "seconds": {"extraction": round(extracted - began, 2), "total": round(seconds, 2)},
        "files_per_second": round(total.files / (extracted - began), 1),
        "num_proc": num_proc,
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }
    (folder / "build.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    del table, kept  # they look into the Arrow files
    shutil.rmtree(work)
    return report


def ordered(counts: Counter[str]) -> dict[str, int]:
    """Return the counts above zero, the largest first, equal ones by name."""
    return {name: count for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count}


def funnel(report: dict[str, Any]) -> str:
    """Draw what went in, what was left out and what came out as a small table."""
    rows: list[tuple[str, int | str]] = []
    for unit, out in (("files", "with_melody"), ("tracks", "with_melody"), ("lines", "kept")):
        counts = report[unit]
        rows.append((f"{unit} read", counts["read"]))
        rows += [(f"  - {reason}", count) for reason, count in counts["dropped"].items()]
        rows.append((f"{unit} {out.replace('_', ' ')}", counts[out]))
    rows += [("lead lines", report["lines"]["lead"]), ("notes", report["notes"]), ("bars", report["bars"])]
    rows += [(f"lines in {name}", count) for name, count in report["splits"].items()]
    rows += [("files in the largest group", report["groups"]["largest_files"])]
    width = max(len(name) for name, _ in rows)
    table = "\n".join(f"{name:<{width}} {count:>12,}" for name, count in rows)
    return f"{table}\n{'files per second':<{width}} {report['files_per_second']:>12,}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 after one line about bad input."""
    options = parse_arguments(arguments)
    output: Path = options.output
    try:
        check_output(output, options.overwrite)
        genres = read_genres(options.metadata) if options.metadata else {}
        if options.input is None:
            from dataset_script.tunes import embedded_scores  # only this branch needs it

            sources, source_name = iter(embedded_scores()), "embedded tunes"
        else:
            sources, source_name = open_sources(options.input), Path(options.input).name
        output.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{output.name}.unfinished-", dir=output.parent))
        try:
            report = build(sources, source_name, unfinished, options.num_proc, options.steps_per_beat, genres)
            if output.exists():
                shutil.rmtree(output)
            unfinished.chmod(0o755)  # mkdtemp's folders are private
            unfinished.rename(output)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; nothing was written to {output}", file=sys.stderr)
        return 130
    print(funnel(report))
    print(f"\n{output}: load it with datasets.load_dataset({str(output)!r})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
