"""The finished data set on disk: which lines stay, their groups and splits, Parquet files and card."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numba import njit

from dataset_script.near_duplicates import groups
from dataset_script.schema import FEATURES, SPLITS

VALIDATION_FROM, TEST_FROM = 0.8, 0.9
LINES_PER_FILE = 25_000
LINES_PER_ROW_GROUP = 5_000
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


def assign_groups(
    md5: Sequence[str],
    signatures: Sequence[np.ndarray],
    stretches: Sequence[np.ndarray],
    verbatim: Sequence[np.ndarray],
) -> dict[str, str]:
    """Return the near-duplicate group of each file: the smallest md5 of its cluster.

    Args:
        md5: of each file, in order.
        signatures: hashes of each.
        stretches: likewise.
        verbatim: likewise.
    """
    return {one: md5[first] for one, first in zip(md5, groups(signatures, stretches, verbatim), strict=True)}


def choose_lines(table: pa.Table, excluded: Collection[str] = ()) -> tuple[np.ndarray, Counter[str]]:
    """Choose which lines stay: each melody once, and none of an excluded file.

    Of equal lines (same notes, same time signature, anywhere in the input) one stays: a lead before others, then the
    one with the smallest `melody_id`.

    Args:
        table: at least the columns melody_id, md5, digest and is_lead of all lines.
        excluded: md5 of the files that are left out.

    Returns:
        Rows that stay, in order of `melody_id`, and the number of those that go, by reason.
    """
    names = np.array(table["melody_id"].to_pylist(), dtype=object)
    digest = np.array(table["digest"].combine_chunks().dictionary_encode().indices)
    is_lead = np.array(table["is_lead"])
    is_excluded = np.array(pc.is_in(table["md5"], value_set=pa.array(sorted(excluded), pa.string())))
    order = np.argsort(names, kind="stable")
    order = order[~is_excluded[order]]
    is_again = np.append(False, names[order[1:]] == names[order[:-1]])[: len(order)]  # the same file was there twice
    order = order[~is_again]
    by_digest = np.lexsort((np.arange(len(order)), ~is_lead[order], digest[order]))
    codes = digest[order[by_digest]]
    is_first = np.append(True, codes[1:] != codes[:-1])[: len(order)]
    rows = order[np.sort(by_digest[is_first])]
    gone = {
        "excluded on request": int(is_excluded.sum()),
        "file was there twice": int(is_again.sum()),
        "same as another line": int((~is_first).sum()),
    }
    return rows, Counter(gone)


def write_splits(
    table: pa.Table,
    rows: np.ndarray,
    group: Mapping[str, str],
    metadata: Mapping[str, Mapping[str, str]],
    folder: Path,
    threads: int = 1,
) -> None:
    """Write the Parquet files, sorted by `melody_id`; a split without lines gets no file, as `datasets` expects.

    Args:
        table: all lines.
        rows: those that stay, in order.
        group: near-duplicate group by md5.
        metadata: genre, title, artist and track of the Million Song Dataset by md5, where known.
        folder: where to write.
        threads: number of files to write at a time.
    """
    table = table.combine_chunks()
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(threads) as pool:
        written = []
        for name, chosen in rows_of_splits(table, rows, group).items():
            pieces = [chosen[at : at + LINES_PER_FILE] for at in range(0, len(chosen), LINES_PER_FILE)]
            for number, piece in enumerate(pieces):
                path = folder / f"{name}-{number:05d}-of-{len(pieces):05d}.parquet"
                written.append(pool.submit(write_lines, table, piece, group, metadata, path))
        for future in written:
            future.result()


def rows_of_splits(table: pa.Table, rows: np.ndarray, group: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Divide rows of a table into splits."""
    split_of_group = {name: split_of(name) for name in set(group.values())}
    split = np.array([split_of_group[group[md5]] for md5 in table["md5"].take(pa.array(rows)).to_pylist()])
    return {name: rows[split == name] for name in SPLITS}


def write_lines(
    table: pa.Table, rows: np.ndarray, group: Mapping[str, str], metadata: Mapping[str, Mapping[str, str]], path: Path
) -> None:
    """Write rows of a table (in one piece) to a Parquet file."""
    schema = FEATURES.arrow_schema
    lines = take_lines(table, rows)
    md5 = lines["md5"].to_pylist()
    lines = lines.append_column("group", pa.array([group[one] for one in md5], pa.string()))
    for name in METADATA_COLUMNS:
        lines = lines.append_column(name, pa.array([metadata.get(one, {}).get(name) for one in md5], pa.string()))
    pq.write_table(lines.select(schema.names).cast(schema), path, row_group_size=LINES_PER_ROW_GROUP, **PARQUET)


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
