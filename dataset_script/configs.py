"""The configurations of a finished data set beside its lines: leads, windows of them, whole songs, files and a sample.

All but `files` have the columns of the lines and are made from the Parquet files of these, split by split.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset_script import features
from dataset_script.chunks import FILE_FIGURES, NO_LINE, SAME_CONTENT, file_files, read_arrow
from dataset_script.line_quality import GRID_FIT_FLOOR, MAX_SILENCE, MIN_NOTES_PER_BAR, MIN_PITCH_CLASSES
from dataset_script.parquet_files import METADATA_COLUMNS, split_of, take_lines, write_parquet
from dataset_script.schema import FEATURES, FILES_FEATURES, SPLITS
from dataset_script.windows import windows

LINES_FOLDER = "data"
FILES_SPLIT = "files"  # the files are of all splits
WINDOW_BARS = 16
ROWS_AT_ONCE = 2_000
NOTES = ["pitch", "start", "duration"]
SAMPLE_LINES = {"train": 800, "validation": 100, "test": 100}
BITS_OF_PITCH_CLASSES = np.array([bin(value).count("1") for value in range(1 << 12)], dtype=np.int8)

DESCRIPTIONS = {
    "lines": "whole melody lines of all tracks, 4 bars and more",
    "leads": "lines of the tune of each file that lie on the grid and are no junk: for training",
    "16bar": f"windows of {WINDOW_BARS} bars cut from the leads, one after the other: a note is in one at most",
    "songs": "the lead of each file as one melody, with the rests between its lines",
    "files": "every file that was read, with what became of it",
    "sample": "a small choice of the leads, loaded in seconds",
}


def is_clean(batch: pa.RecordBatch) -> np.ndarray:
    """Tell which lines lie on the grid and are neither silent, sparse nor of one or two pitch classes, shape (L,)."""
    offsets = batch["pitch"].offsets.to_numpy()
    pitch = batch["pitch"].values.to_numpy()
    classes = np.bitwise_or.reduceat(1 << (pitch.astype(np.int64) % 12), offsets[:-1])
    return (
        (batch["grid_fit"].to_numpy() >= GRID_FIT_FLOOR)
        & (batch["silence"].to_numpy() <= MAX_SILENCE)
        & (np.diff(offsets) >= MIN_NOTES_PER_BAR * batch["bars"].to_numpy())
        & (BITS_OF_PITCH_CLASSES[classes] >= MIN_PITCH_CLASSES)
    )


def is_junk_window(window: Mapping[str, Any]) -> bool:
    """Tell whether a window has fewer than 8 notes, one pitch class, or is silent for more than half of its time.

    Whether it lies on the grid is known of its line.
    """
    steps = window["bars"] * int(window["time_signature"].split("/")[0]) * window["steps_per_beat"]
    return (
        len(window["pitch"]) < 8
        or len({pitch % 12 for pitch in window["pitch"]}) < 2
        or sum(window["duration"]) < steps / 2
        or window["grid_fit"] < GRID_FIT_FLOOR
    )


def batches(folder: Path, split: str) -> Iterator[pa.RecordBatch]:
    """Read a split of a configuration."""
    for path in sorted(folder.glob(f"{split}-*.parquet")):
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(ROWS_AT_ONCE)


def rows_where(is_wanted: np.ndarray, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
    """Keep some rows of a batch; Arrow's own `filter` is several times slower on lists of notes."""
    rows = take_lines(pa.Table.from_batches([batch]), np.flatnonzero(is_wanted))
    return rows.cast(batch.schema).to_batches()


def lines_of_leads(data: Path, split: str) -> Iterator[pa.RecordBatch]:
    """Read the lines of the leads."""
    for batch in batches(data, split):
        yield from rows_where(np.asarray(batch["is_lead"]), batch)


def leads(data: Path, split: str) -> Iterator[pa.RecordBatch]:
    """Choose the leads that are worth training on."""
    for batch in lines_of_leads(data, split):
        yield from rows_where(is_clean(batch), batch)


def as_batches(rows: Iterable[Mapping[str, Any]]) -> Iterator[pa.RecordBatch]:
    """Turn rows into batches."""
    rows = iter(rows)
    while part := list(islice(rows, ROWS_AT_ONCE)):
        yield pa.RecordBatch.from_pylist(part, FEATURES.arrow_schema)


def lead_windows(lead_folder: Path, split: str) -> Iterator[pa.RecordBatch]:
    """Cut the leads into windows, one after the other, and leave junk out."""
    cut = (
        window
        for batch in batches(lead_folder, split)
        for line in rows_of(batch)
        for window in windows(line, WINDOW_BARS, WINDOW_BARS)
    )
    return as_batches(window for window in cut if not is_junk_window(window))


def songs(data: Path, split: str) -> Iterator[pa.RecordBatch]:
    """Join the lines of each file's lead, with the rests between them."""

    def rows() -> Iterator[dict[str, Any]]:
        lines = (line for batch in lines_of_leads(data, split) for line in rows_of(batch))
        for _, of_file in groupby(lines, key=lambda line: line["md5"]):
            in_order = sorted(of_file, key=first_bar)
            for _, same in groupby(in_order, key=lambda line: line["time_signature"]):
                yield join_lines(list(same))

    return as_batches(rows())


def rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Read rows, the notes as arrays: lists of Python's numbers take several times as long."""
    for values, *notes in zip(batch.drop_columns(NOTES).to_pylist(), *(batch[name] for name in NOTES), strict=True):
        yield values | {name: of.values.to_numpy() for name, of in zip(NOTES, notes, strict=True)}


def first_bar(line: Mapping[str, Any]) -> int:
    """Return the bars of the file before a line."""
    return int(line["melody_id"].rsplit(":", 1)[1])


def join_lines(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Join lines of one track and time signature to one melody that rests between them.

    Key, complexity, bars and silence are those of the whole; its other figures and its quality are means by bars.
    """
    # Put the lines on one count of bars, beginning with the first one's.
    first, last = lines[0], lines[-1]
    numerator, denominator = map(int, first["time_signature"].split("/"))
    bar_steps = numerator * first["steps_per_beat"]
    begin = first_bar(first)
    start = np.concatenate([line["start"] + (first_bar(line) - begin) * bar_steps for line in lines])
    # A line may end in the next one's first bar: of the two what begins later counts, and ends what sounds.
    is_later = np.append(True, start[1:] > np.maximum.accumulate(start)[:-1])
    start = start[is_later]
    pitch, duration = (np.concatenate([line[name] for line in lines])[is_later] for name in ("pitch", "duration"))
    duration[:-1] = np.minimum(duration[:-1], np.diff(start))
    bars = first_bar(last) - begin + last["bars"]
    # What is measured of a line is measured anew; means are weighted by bars.
    offsets = np.array([0, len(start)])
    key, confidence = features.keys(pitch, duration.astype(np.int64), offsets)
    quarters = np.array([4 * bars * numerator / denominator])
    complexity = features.complexities(pitch, start.astype(np.int32), offsets, quarters, first["steps_per_beat"])
    weight = np.array([line["bars"] for line in lines]) / sum(line["bars"] for line in lines)
    means = ("grid_fit", "distinct_bars", "repeated_pitches", "arpeggio", "quality")
    return {
        **first,
        "bars": bars,
        "pitch": pitch,
        "start": start,
        "duration": duration,
        "key": features.KEY_NAMES[int(key[0])],
        "key_confidence": float(confidence[0]),
        "complexity": float(complexity[0]),
        **{name: float(np.dot(weight, [line[name] for line in lines])) for name in means},
        "silence": 1 - int(duration.sum()) / (bars * bar_steps),
    }


def sample(lead_folder: Path, split: str) -> Iterator[pa.RecordBatch]:
    """Choose the first leads of a split, which is in the order of md5: no order at all."""
    left = SAMPLE_LINES[split]
    for batch in batches(lead_folder, split):
        yield batch.slice(0, left)
        left -= min(left, batch.num_rows)
        if not left:
            return


def write_configs(folder: Path, num_proc: int = 1) -> None:
    """Write all configurations but `lines`, which is there, and `files` of a data set.

    Args:
        folder: of the data set.
        num_proc: number of splits to write at a time.
    """
    data = folder / LINES_FOLDER
    with ThreadPoolExecutor(num_proc) as pool:
        for name, make, source in (
            ("leads", leads, data),
            ("songs", songs, data),
            ("16bar", lead_windows, folder / "leads"),
            ("sample", sample, folder / "leads"),
        ):
            writing = [pool.submit(write_parquet, make(source, split), folder / name, split) for split in SPLITS]
            for future in writing:
                future.result()


def files_table(
    work: Path,
    group: Mapping[str, str],
    with_lines: Collection[str],
    excluded: Collection[str],
    metadata: Mapping[str, Mapping[str, str]],
) -> pa.Table:
    """Put together what became of every file.

    Args:
        work: where `process_all` wrote.
        group: near-duplicate group by md5.
        with_lines: md5 of the files of which a line stays.
        excluded: md5 of those that are left out.
        metadata: what is known of the songs, by md5.
    """
    columns = ["name", "md5", "reason", "is_melodic", *FILE_FIGURES]
    table = pa.concat_tables([read_arrow(path, columns).replace_schema_metadata() for path in file_files(work)])
    seen: set[str] = set()
    reasons, groups, splits = [], [], []
    for md5, reason, is_melodic in zip(*(table[name].to_pylist() for name in columns[1:4]), strict=True):
        is_read = reason is None
        if is_read and md5 in seen:
            reason = SAME_CONTENT
        elif is_read and not is_melodic:
            reason = NO_LINE
        elif is_read and md5 not in with_lines:
            reason = "excluded on request" if md5 in excluded else "all lines are in other files too"
        seen |= {md5} if is_read else set()
        reasons.append(reason)
        groups.append(group.get(md5) if is_read else None)
        splits.append(split_of(group[md5]) if reason is None else None)
    added = {"reason": reasons, "group": groups, "split": splits}
    md5 = table["md5"].to_pylist()
    added |= {name: [metadata.get(one or "", {}).get(name) for one in md5] for name in METADATA_COLUMNS}
    kept = {name: table[name] for name in ("name", "md5", *FILE_FIGURES)}
    return pa.table({**kept, **{name: pa.array(values, pa.string()) for name, values in added.items()}})


def write_files(table: pa.Table, folder: Path) -> None:
    """Write the configuration `files`: a row for every file that was read.

    Args:
        table: the columns of `FILES_FEATURES`.
        folder: of the data set.
    """
    order = pc.sort_indices(table, [("md5", "ascending"), ("name", "ascending")])
    schema = FILES_FEATURES.arrow_schema
    write_parquet(table.select(schema.names).take(order).cast(schema).to_batches(), folder / "files", FILES_SPLIT)


def describe_configs(folder: Path) -> dict[str, dict[str, dict[str, int]]]:
    """Return rows and bytes of each split of each configuration that has any, from the Parquet files' own heads."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for name in DESCRIPTIONS:
        for split in (*SPLITS, FILES_SPLIT):
            paths = sorted((folder / (LINES_FOLDER if name == "lines" else name)).glob(f"{split}-*.parquet"))
            heads = [pq.read_metadata(path) for path in paths]
            if heads:
                found.setdefault(name, {})[split] = {
                    "rows": sum(head.num_rows for head in heads),
                    "bytes": sum(
                        head.row_group(group).total_byte_size for head in heads for group in range(head.num_row_groups)
                    ),
                    "file_bytes": sum(path.stat().st_size for path in paths),
                }
    return found
