"""Groups of files that hold the same music, by the hashes of `near_duplicates`, in memory that the files do not fill.

What grows with the number of files are the hashes. They lie in files without a name (`scratch`), in parts of which each
holds the hashes of one range, so that what is sorted at a time is no longer for more files.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

WEIGHT_ONE = 256  # weight of a hash that one file has; the weight falls with the square root of the number of files
MIN_SCORE = 10  # 0.04 * WEIGHT_ONE: the least (shared weight) * cosine² of two files that are linked
MIN_WEIGHT = 384  # 1.5 * WEIGHT_ONE: and the least shared weight
FILE_BITS = 24  # for the number of a file; the other 40 bits of a key are the hash's
MAX_NEIGHBOURS = 64  # a hash of more files than this is compared between each and the next so many, in order of md5

PART_HASHES = 1 << 21  # about so many are sorted at a time
LARGE_BYTES = 1 << 23  # arrays above this are on disk


def scratch(size: int, dtype: Any, folder: Path | None) -> np.ndarray:
    """Return an array to be filled: where it is large, in a file without a name, whose pages the system can take back.

    Args:
        size: number of values.
        dtype: of them.
        folder: where there is room for such a file; None: the system's folder for temporary files.

    Raises:
        OSError: if there is no room.
    """
    size_bytes = size * np.dtype(dtype).itemsize
    if size_bytes <= LARGE_BYTES:
        return np.empty(size, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        if sys.platform == "linux":  # else a disk that is full would end the process at a write to memory
            os.posix_fallocate(file.fileno(), 0, size_bytes)
        return np.asarray(np.memmap(file, dtype, "w+", shape=(size,)))


class Hashes(Sequence[np.ndarray]):
    """Hashes of files, one file after the other in one array.

    Args:
        values: the hashes (uint64), shape (M,).
        bounds: where those of each file begin and the last ends, shape (F + 1,).
    """

    def __init__(self, values: np.ndarray, bounds: np.ndarray):
        self.values, self.bounds = values, bounds

    @classmethod
    def of(cls, files: Sequence[np.ndarray]) -> Hashes:
        """Put the hashes of each file together, unless they are."""
        if isinstance(files, cls):
            return files
        bounds = np.append(0, np.cumsum([len(item) for item in files])).astype(np.int64)
        return cls(np.concatenate([np.empty(0, dtype=np.uint64), *files]), bounds)

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.bounds) - 1

    def __getitem__(self, file: Any) -> Any:
        """Return the hashes of one file."""
        return self.values[self.bounds[file] : self.bounds[file + 1]]

    def parts(self, folder: Path | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Divide the hashes by their upper bits.

        Yields:
            Hashes of one range and the file of each, files rising, shape (N,); the ranges rise too.
        """
        bits = max((len(self.values) - 1) // PART_HASHES, 0).bit_length()
        values, file = scratch(len(self.values), np.uint64, folder), scratch(len(self.values), np.int32, folder)
        for begin, end in pairwise(divide(self.values, self.bounds, bits, values, file).tolist()):
            yield values[begin:end], file[begin:end]


@njit(cache=True, nogil=True)
def divide(values: np.ndarray, bounds: np.ndarray, bits: int, divided: np.ndarray, file: np.ndarray) -> np.ndarray:
    """Bring hashes with the same upper bits together, a counting sort.

    Args:
        values: hashes, those of each file together, shape (M,).
        bounds: where those of each file begin and the last ends, shape (F + 1,).
        bits: number of upper bits.
        divided: where to write the hashes, shape (M,).
        file: where to write the file of each, shape (M,).

    Returns:
        Where each part begins and the last ends, shape (2**bits + 1,).
    """
    down = np.uint64(63 - bits)
    starts = np.zeros((1 << bits) + 1, dtype=np.int64)
    for value in values:
        starts[np.int64(value >> np.uint64(1) >> down) + 1] += 1
    starts = np.cumsum(starts)
    filled = starts.copy()
    for one in range(len(bounds) - 1):
        for value in values[bounds[one] : bounds[one + 1]]:
            part = np.int64(value >> np.uint64(1) >> down)
            divided[filled[part]], file[filled[part]] = value, one
            filled[part] += 1
    return starts


@njit(cache=True, nogil=True)
def index_keys(
    keys: np.ndarray, total: np.ndarray, file: np.ndarray, borders: np.ndarray, weight: np.ndarray, shared: int
) -> int:
    """Find the hashes that several files have, of one part.

    Args:
        keys: hashes with their files, sorted, see `find_pairs`, shape (N,).
        total: the weight of all hashes of each file, to which theirs is added, shape (F,).
        file: where to write the files that have each such hash, rising, one hash after the other.
        borders: where to write where those of each begin and the last ends.
        weight: where to write the weight of each.
        shared: number of hashes that are written already.

    Returns:
        Number of hashes that are written now.
    """
    file_bits = np.uint64(FILE_BITS)
    begin = 0
    for end in range(1, len(keys) + 1):
        if end < len(keys) and keys[end] >> file_bits == keys[begin] >> file_bits:
            continue
        length = end - begin
        # Exact: the root of a small integer, rounded down.
        weight[shared] = np.int64(np.sqrt(WEIGHT_ONE * WEIGHT_ONE // length))
        for place in range(begin, end):
            one = np.int64(keys[place] & np.uint64((1 << FILE_BITS) - 1))
            total[one] += weight[shared]
            if length > 1:
                file[borders[shared] + place - begin] = one
        if length > 1:
            borders[shared + 1] = borders[shared] + length
            shared += 1
        begin = end
    return shared


@njit(cache=True, nogil=True)
def find_links(
    file: np.ndarray, borders: np.ndarray, weight: np.ndarray, total: np.ndarray, places: np.ndarray, runs: np.ndarray
) -> np.ndarray:
    """Find the pairs of files to link.

    Args:
        file: the files that have each hash, rising, one hash after the other, shape (M,).
        borders: where those of each hash begin and the last ends, shape (R + 1,).
        weight: of each hash, shape (R,).
        total: weight of all hashes of each file, shape (F,).
        places: scratch (int64), shape (M,).
        runs: likewise.

    Returns:
        Two files each, the lower first, shape (P, 2).
    """
    # The places of each file's hashes: a counting sort.
    bounds = np.zeros(len(total) + 1, dtype=np.int64)
    for one in file:
        bounds[one + 1] += 1
    bounds = np.cumsum(bounds)
    filled = bounds.copy()
    for run in range(len(weight)):
        for at in range(borders[run], borders[run + 1]):
            places[filled[file[at]]], runs[filled[file[at]]] = at, run
            filled[file[at]] += 1
    shared = np.zeros(len(total), dtype=np.int64)
    touched = np.empty(len(total), dtype=np.int64)
    links, found = np.empty((1024, 2), dtype=np.int64), 0
    # Of each file, the weight that it shares with those after it; `touched` are those to look at and to clear.
    for one in range(len(total)):
        count = 0
        for place in range(bounds[one], bounds[one + 1]):
            at, run = places[place], runs[place]
            for other in file[at + 1 : min(borders[run + 1], at + 1 + MAX_NEIGHBOURS)]:
                if shared[other] == 0:
                    touched[count] = other
                    count += 1
                shared[other] += weight[run]
        for other in touched[:count]:
            both = shared[other]
            # (both / WEIGHT_ONE) * (both / sqrt(total * total))², the cosine of the files' vectors of square roots
            if both >= MIN_WEIGHT and both**3 >= MIN_SCORE * total[one] * total[other]:
                if found == len(links):
                    links = np.concatenate((links, np.empty_like(links)))
                links[found] = one, other
                found += 1
            shared[other] = 0
    return links[:found].copy()


def find_pairs(material: Sequence[np.ndarray], folder: Path | None = None) -> np.ndarray:
    """Find the pairs of files that share much of their material.

    A hash weighs 1 / sqrt(number of files that have it). A pair is linked by the weight W that it shares and its
    cosine C = W / sqrt(weight of one file * weight of the other): where W * C² reaches `MIN_SCORE` / `WEIGHT_ONE`, and
    W `MIN_WEIGHT` / `WEIGHT_ONE`. Evidence counts as well as likeness, and so do neither two long files with a phrase
    in common nor two short ones.

    Args:
        material: hashes of each file, each once, files in order of their md5; at most 2**24 files.
        folder: for what is large, see `scratch`.

    Returns:
        Numbers of two files each, the lower first, shape (P, 2).
    """
    hashes = Hashes.of(material)
    assert len(hashes) < 1 << FILE_BITS
    count = len(hashes.values)
    file = scratch(count, np.int32, folder)
    borders, weight = scratch(count // 2 + 2, np.int64, folder), scratch(count // 2 + 1, np.int64, folder)
    total, shared, borders[0] = np.zeros(len(hashes), dtype=np.int64), 0, 0
    for keys, of_file in hashes.parts(folder):
        # The hash's upper bits with the file below them: one sort brings equal hashes together, files in order.
        keys >>= np.uint64(FILE_BITS)
        keys <<= np.uint64(FILE_BITS)
        keys |= of_file.astype(np.uint64)
        keys.sort()
        shared = index_keys(keys, total, file, borders, weight, shared)
    places, runs = (scratch(int(borders[shared]), np.int64, folder) for _ in range(2))
    return find_links(file[: borders[shared]], borders[: shared + 1], weight[:shared], total, places, runs)


@njit(cache=True)
def components(size: int, pairs: np.ndarray) -> np.ndarray:
    """Return the smallest member of each item's connected component (union-find with path halving).

    Args:
        size: number of items.
        pairs: of items that are connected, shape (P, 2).
    """
    parent = np.arange(size)
    for pair in range(len(pairs) + size):
        if pair < len(pairs):
            one, other = pairs[pair]
        else:  # in the end each item leads to its component's smallest
            one = other = pair - len(pairs)
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        while parent[other] != other:
            parent[other] = parent[parent[other]]
            other = parent[other]
        parent[max(one, other)] = min(one, other)
        if pair >= len(pairs):
            parent[pair - len(pairs)] = one
    return parent


@njit(cache=True, nogil=True)
def share_stretch(pairs: np.ndarray, hashes: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Tell which pairs of files have a stretch in common.

    Args:
        pairs: two files each, shape (P, 2).
        hashes: of the files' stretches, rising in each, shape (M,).
        bounds: where those of each file begin and the last ends, shape (F + 1,).

    Returns:
        Shape (P,).
    """
    found = np.zeros(len(pairs), dtype=np.bool_)
    for pair in range(len(pairs)):
        one, other = bounds[pairs[pair, 0]], bounds[pairs[pair, 1]]
        one_end, other_end = bounds[pairs[pair, 0] + 1], bounds[pairs[pair, 1] + 1]
        while one < one_end and other < other_end and not found[pair]:
            found[pair] = hashes[one] == hashes[other]
            if hashes[one] < hashes[other]:
                one += 1
            else:
                other += 1
    return found


def verified_pairs(
    material: Sequence[np.ndarray], stretch: Sequence[np.ndarray], folder: Path | None = None
) -> np.ndarray:
    """Find the pairs of files to link: those of `find_pairs` that have a stretch of notes in common.

    Args:
        material: what `signatures` gave for each file, files in order of their md5.
        stretch: what `stretches` gave for each.
        folder: for what is large.

    Returns:
        Shape (P, 2).
    """
    pairs, hashes = find_pairs(material, folder), Hashes.of(stretch)
    return pairs[share_stretch(pairs, hashes.values, hashes.bounds)]


def verbatim_pairs(verbatim: Sequence[np.ndarray], folder: Path | None = None) -> np.ndarray:
    """Find files whose leads share a run of notes: neighbours among the files that have it.

    Args:
        verbatim: what `verbatim_runs` gave for each file.
        folder: for what is large.

    Returns:
        Shape (P, 2).
    """
    found = np.empty(0, dtype=np.int64)
    for hashes, file in Hashes.of(verbatim).parts(folder):
        order = np.argsort(hashes, kind="stable")
        is_shared = hashes[order[1:]] == hashes[order[:-1]]
        one, other = (file[places[is_shared]].astype(np.int64) for places in (order[:-1], order[1:]))
        found = np.unique(np.concatenate([found, one << FILE_BITS | other]))
    return np.stack([found >> FILE_BITS, found & ((1 << FILE_BITS) - 1)], axis=1)


def groups(
    material: Sequence[np.ndarray],
    stretch: Sequence[np.ndarray],
    verbatim: Sequence[np.ndarray],
    folder: Path | None = None,
) -> np.ndarray:
    """Cluster files that hold the same music: the connected components of `verified_pairs` and `verbatim_pairs`.

    Args:
        material: what `signatures` gave for each file, files in order of their md5.
        stretch: what `stretches` gave for each.
        verbatim: what `verbatim_runs` gave for each.
        folder: for what is large, see `scratch`.

    Returns:
        For each file the number of the first file of its group, shape (F,).
    """
    pairs = [verified_pairs(material, stretch, folder), verbatim_pairs(verbatim, folder)]
    return components(len(material), np.concatenate(pairs))
