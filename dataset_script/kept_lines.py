"""Which lines stay: each melody once, and none of an excluded file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from dataset_script.chunks import read_arrow
from dataset_script.grouping import scratch

NAME_BITS = 32  # for the place of a line's name among those of its file
LINE_KEYS = np.dtype([("digest", "u8"), ("digest_end", "u8"), ("name", "i8"), ("is_lead", "?")])
LINES_AT_ONCE = 1 << 20  # are compared


@dataclass
class Choice:
    """Which lines stay.

    Attributes:
        is_kept: whether each line stays, lines of all chunks one after the other.
        md5: of the files of which a line stays.
        gone: number of those that go, by reason.
    """

    is_kept: np.ndarray
    md5: set[str]
    gone: Counter[str]


def choose_lines(paths: Sequence[Path], md5: Sequence[str], excluded: Collection[str], folder: Path) -> Choice:
    """Choose which lines stay.

    Of equal lines (same notes, same time signature, anywhere in the input) one stays: a lead before others, then the
    one with the smallest `melody_id`.

    Args:
        paths: Arrow files with the lines of all chunks, see `chunks.lines_table`.
        md5: of all files, in order.
        excluded: md5 of the files that are left out.
        folder: for what is large, see `grouping.scratch`.
    """
    number_of = {one: number for number, one in enumerate(md5)}
    bounds = np.cumsum([0, *(read_arrow(path, ["is_lead"]).num_rows for path in paths)]).tolist()
    lines = scratch(bounds[-1], LINE_KEYS, folder)
    for path, begin, end in zip(paths, bounds[:-1], bounds[1:], strict=True):
        lines[begin:end] = line_keys(read_arrow(path, ["melody_id", "md5", "digest", "is_lead"]), number_of)
    is_excluded = np.isin(np.array(md5), np.array(sorted(excluded), dtype="U32"))

    is_kept, gone = np.zeros(len(lines), dtype=bool), Counter()
    bits = max((len(lines) - 1) // LINES_AT_ONCE, 0).bit_length()
    part_of = (lines["digest"] >> np.uint64(1) >> np.uint64(63 - bits)).astype(np.uint16)  # equal lines are in one
    for part in range(1 << bits):
        rows = np.flatnonzero(part_of == part)
        left = rows[~is_excluded[lines["name"][rows] >> NAME_BITS]]
        left = left[np.argsort(lines["name"][left], kind="stable")]
        is_again = np.append(False, np.diff(lines["name"][left]) == 0)[: len(left)]
        some = lines[left[~is_again]]
        order = np.lexsort((some["name"], ~some["is_lead"], some["digest_end"], some["digest"]))
        digests = some[["digest", "digest_end"]][order]
        is_first = np.append(True, digests[1:] != digests[:-1])[: len(order)]
        is_kept[left[~is_again][order[is_first]]] = True
        gone["excluded on request"] += len(rows) - len(left)
        gone["file was there twice"] += int(is_again.sum())
        gone["same as another line"] += int((~is_first).sum())
    kept = np.unique(lines["name"][is_kept] >> NAME_BITS)
    return Choice(is_kept, {md5[number] for number in kept.tolist()}, gone)


def line_keys(table: pa.Table, number_of: Mapping[str, int]) -> np.ndarray:
    """Return what the choice of lines looks at: the digest, the place of its name in the order of all, and if it leads.

    Args:
        table: columns melody_id, md5, digest and is_lead of the lines of a chunk.
        number_of: place of each file in the order of md5.

    Returns:
        Values of `LINE_KEYS`, shape (L,).
    """
    keys = np.empty(table.num_rows, LINE_KEYS)
    digest = b"".join(table["digest"].to_pylist())
    keys["digest"], keys["digest_end"] = np.frombuffer(digest, np.uint64).reshape(-1, 2).T
    # A name begins with the md5 of its file, whose place comes first.
    _, place = np.unique(np.array(table["melody_id"].to_pylist(), dtype="S"), return_inverse=True)
    md5 = table["md5"].combine_chunks().dictionary_encode()
    file = md5.indices.to_numpy()
    first = np.full(len(md5.dictionary), len(keys))
    np.minimum.at(first, file, place)
    number = np.array([number_of[one] for one in md5.dictionary.to_pylist()])
    keys["name"] = (number[file] << NAME_BITS) + place - first[file]
    keys["is_lead"] = table["is_lead"].to_numpy()
    return keys
