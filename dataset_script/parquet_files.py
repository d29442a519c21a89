"""The finished data set on disk: groups, splits and Parquet files, of which a part is in memory at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numba import njit

from dataset_script.chunks import FINGERPRINTS, Harvest, hashes_of_files, read_arrow
from dataset_script.grouping import groups
from dataset_script.schema import FEATURES, SPLITS

VALIDATION_FROM, TEST_FROM = 0.8, 0.9
LINES_PER_FILE = 25_000
LINES_PER_ROW_GROUP = 5_000
SHELF_FILES = 4_096  # the lines of about so many MIDI files are sorted at a time
MAX_SHELVES = 200  # of a split; all are open at once
DICTIONARY_COLUMNS = ["md5", "time_signature", "key", "group", "genre", "title", "artist", "msd_id"]
PARQUET: dict[str, Any] = {
    "use_dictionary": DICTIONARY_COLUMNS,
    "column_encoding": {"start.list.element": "DELTA_BINARY_PACKED"},
    "compression": "zstd",
    "write_page_index": True,  # the Hub's viewer reads single pages by it
}
METADATA_COLUMNS = ("genre", "title", "artist", "msd_id")


def split_of(group: str) -> str:
    """Return a near-duplicate group's split: 80/10/10 by a hash of its name alone, so new files move no old group."""
    place = int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest(), "big") / 2**64
    return SPLITS[int(place >= VALIDATION_FROM) + int(place >= TEST_FROM)]


def assign_groups(found: Harvest, work: Path) -> dict[str, str]:
    """Return the near-duplicate group of each file, in order of md5: the smallest md5 of its cluster.

    Args:
        found: what is known of the files.
        work: where `chunks.process_all` wrote.
    """
    hashes = hashes_of_files(work, found.places)
    first = groups(*(hashes[name] for name in FINGERPRINTS), folder=work)
    return {one: found.md5[number] for one, number in zip(found.md5, first.tolist(), strict=True)}


def write_splits(
    paths: Sequence[Path],
    is_kept: np.ndarray,
    group: Mapping[str, str],
    metadata: Mapping[str, Mapping[str, str]],
    folder: Path,
    threads: int = 1,
) -> None:
    """Write the Parquet files, sorted by `melody_id`; a split without lines gets no file, as `datasets` expects.

    Args:
        paths: Arrow files with the lines of all chunks.
        is_kept: whether each line stays, lines of all chunks one after the other.
        group: near-duplicate group by md5, in order of md5.
        metadata: genre, title, artist and track of the Million Song Dataset by md5, where known.
        folder: where to write.
        threads: number of splits to write at a time.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as work, ThreadPoolExecutor(threads) as pool:
        written = []
        for split, shelves in shelve_lines(paths, is_kept, group, Path(work)).items():
            tables = (finish_lines(read_shelf(path), group, metadata) for path in shelves)
            written.append(pool.submit(write_parquet, in_row_groups(tables), folder, split))
        for future in written:
            future.result()


def shelve_lines(
    paths: Sequence[Path], is_kept: np.ndarray, group: Mapping[str, str], folder: Path
) -> dict[str, list[Path]]:
    """Put the lines that stay into Arrow files by split and md5: each has those of some thousand songs, to be sorted.

    Args:
        paths: Arrow files with the lines of all chunks.
        is_kept: whether each line stays.
        group: near-duplicate group by md5, in order of md5.
        folder: where to write.

    Returns:
        The files of each split that has any, in order of md5.
    """
    count = min(-(-len(group) // SHELF_FILES), MAX_SHELVES)
    split_of_group = {name: SPLITS.index(split_of(name)) for name in set(group.values())}
    shelf_of = {
        md5: split_of_group[name] * count + number * count // len(group)
        for number, (md5, name) in enumerate(group.items())
    }
    shelves: dict[int, Path] = {}
    at = 0
    with ExitStack() as stack:
        writers: dict[int, pa.RecordBatchStreamWriter] = {}
        for path in paths:
            table = read_arrow(path).combine_chunks()
            rows = np.flatnonzero(is_kept[at : at + table.num_rows])
            at += table.num_rows
            shelf = np.array([shelf_of[md5] for md5 in table["md5"].take(pa.array(rows)).to_pylist()], dtype=np.int64)
            for number in np.unique(shelf).tolist():
                if number not in shelves:
                    shelves[number] = folder / f"{number:04d}.arrow"
                    sink = stack.enter_context(pa.OSFile(str(shelves[number]), "wb"))
                    writers[number] = stack.enter_context(pa.ipc.new_stream(sink, table.schema))
                writers[number].write_table(take_lines(table, rows[shelf == number]))
    of_splits: dict[str, list[Path]] = {}
    for number, path in sorted(shelves.items()):
        of_splits.setdefault(SPLITS[number // count], []).append(path)
    return of_splits


def read_shelf(path: Path) -> pa.Table:
    """Read lines that `shelve_lines` has put together, sorted by `melody_id`."""
    lines = pa.ipc.open_stream(path.read_bytes()).read_all().combine_chunks()
    return take_lines(lines, pc.sort_indices(lines["melody_id"]).to_numpy())


def in_row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
    """Cut tables that follow one another into batches of a row group each."""
    left: list[pa.Table] = []
    for table in tables:
        left = [pa.concat_tables([*left, table])]
        whole = left[0].num_rows // LINES_PER_ROW_GROUP * LINES_PER_ROW_GROUP
        for at in range(0, whole, LINES_PER_ROW_GROUP):
            yield from left[0].slice(at, LINES_PER_ROW_GROUP).combine_chunks().to_batches()
        left = [left[0].slice(whole)]
    for table in left:
        yield from table.combine_chunks().to_batches()


def rows_of_splits(table: pa.Table, rows: np.ndarray, group: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Divide rows of a table into splits."""
    split_of_group = {name: split_of(name) for name in set(group.values())}
    split = np.array([split_of_group[group[md5]] for md5 in table["md5"].take(pa.array(rows)).to_pylist()])
    return {name: rows[split == name] for name in SPLITS}


def finish_lines(lines: pa.Table, group: Mapping[str, str], metadata: Mapping[str, Mapping[str, str]]) -> pa.Table:
    """Add what is not of the file alone, and leave out what only the choice of lines needs."""
    schema = FEATURES.arrow_schema
    md5 = lines["md5"].to_pylist()
    lines = lines.append_column("group", pa.array([group[one] for one in md5], pa.string()))
    for name in METADATA_COLUMNS:
        lines = lines.append_column(name, pa.array([metadata.get(one, {}).get(name) for one in md5], pa.string()))
    return lines.select(schema.names).cast(schema)


def write_lines(
    table: pa.Table, rows: np.ndarray, group: Mapping[str, str], metadata: Mapping[str, Mapping[str, str]], path: Path
) -> None:
    """Write rows of a table (in one piece) to a Parquet file."""
    lines = finish_lines(take_lines(table, rows), group, metadata)
    pq.write_table(lines, path, row_group_size=LINES_PER_ROW_GROUP, **PARQUET)


def write_parquet(batches: Iterable[pa.RecordBatch], folder: Path, split: str) -> None:
    """Write batches as the Parquet files of a split, one after the other; a split without rows gets no file."""
    folder.mkdir(parents=True, exist_ok=True)
    writer, paths, rows = None, [], LINES_PER_FILE
    for batch in batches:
        if not batch.num_rows:
            continue
        if rows >= LINES_PER_FILE:
            if writer:
                writer.close()
            paths.append(folder / f"{split}-{len(paths):05d}.unnumbered")
            names = set(batch.schema.names)
            encodings = {"column_encoding": PARQUET["column_encoding"]} if "start" in names else {}
            dictionary = [name for name in DICTIONARY_COLUMNS if name in names]
            writer = pq.ParquetWriter(
                paths[-1],
                batch.schema,
                **{**PARQUET, "use_dictionary": dictionary, "column_encoding": None, **encodings},
            )
            rows = 0
        assert writer is not None
        writer.write_batch(batch, row_group_size=LINES_PER_ROW_GROUP)
        rows += batch.num_rows
    if writer:
        writer.close()
    for number, path in enumerate(paths):
        path.rename(folder / f"{split}-{number:05d}-of-{len(paths):05d}.parquet")


def take_lines(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Take rows of a table in one piece; Arrow's own `take` is several times slower on lists of notes."""
    columns = {}
    for name in table.column_names:
        column = table[name].chunk(0)
        if pa.types.is_list(column.type):
            offsets, values = column.offsets.to_numpy(), column.values.to_numpy()
            first = offsets[rows]
            new_offsets = np.append(0, np.cumsum(offsets[rows + 1] - first))
            columns[name] = pa.ListArray.from_arrays(
                pa.array(new_offsets, pa.int32()), pa.array(gather_runs(values, first, new_offsets))
            )
        else:
            columns[name] = column.take(pa.array(rows))
    return pa.table(columns)


@njit(cache=True, nogil=True)
def gather_runs(values: np.ndarray, first: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Copy runs of values, given by where each begins (shape (L,)), to where `offsets` (shape (L + 1,)) puts them."""
    gathered = np.empty(offsets[-1], dtype=values.dtype)
    for run in range(len(first)):
        length = offsets[run + 1] - offsets[run]
        gathered[offsets[run] : offsets[run + 1]] = values[first[run] : first[run] + length]
    return gathered
