"""Files that hold the same tune: hashes of their material, and the connected components of the files that share it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RUN = 20  # notes in a shingle
MIN_DISTINCT = 6  # different (interval, rhythm) pairs that a run needs; runs with fewer occur by chance everywhere
MIN_SHARED = 8  # shingles that two files must share at least
MIN_CONTAINED = 0.5  # and their share of the file with fewer shingles
MAX_NEIGHBOURS = 64  # a shingle of more files than this links each to the next so many, in order of md5
PAIRS_AT_ONCE = 1 << 24

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio (Knuth's multiplicative hashing)


def mix(values: np.ndarray) -> np.ndarray:
    """Spread uint64 values over all 64 bits (the finaliser of SplitMix64; Steele, Lea and Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shingles(pitch: np.ndarray, start: np.ndarray, line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hash each run of `RUN` notes of each line, whatever its transposition and its tempo.

    A run is described by its intervals in semitones and by the ratios of successive inter-onset intervals, so that the
    same tune written in notes twice as long has the same hashes. Runs of little variety are left out.

    Args:
        pitch: MIDI pitches, lines one after the other, shape (N,).
        start: onsets in steps, shape (N,).
        line: index of each note's line, rising, shape (N,).

    Returns:
        Hashes (uint64) and the line of each, shape (M,).
    """
    pairs = RUN - 2  # (interval, ratio) pairs of a run: the first interval has no ratio
    if len(pitch) < RUN:
        return np.empty(0, dtype=np.uint64), np.empty(0, dtype=line.dtype)
    gaps = np.diff(start).astype(np.float64)
    gaps[gaps <= 0] = 1.0  # between two lines: never inside a run that counts
    ratio = (gaps[1:] / gaps[:-1]).view(np.uint64)  # one division of small integers: the same bits everywhere
    interval = np.diff(pitch.astype(np.int64))[1:].view(np.uint64)
    codes = mix(ratio * MULTIPLIER + interval)
    runs = len(pitch) - RUN + 1
    hashes = np.zeros(runs, dtype=np.uint64)
    for position in range(pairs):
        hashes = hashes * MULTIPLIER + codes[position : position + runs]
    # A pair is new in its run where its last occurrence lies before the run's first.
    order = np.argsort(codes, kind="stable")
    previous = np.full(len(codes), -1)
    same = codes[order[1:]] == codes[order[:-1]]
    previous[order[1:][same]] = order[:-1][same]
    distinct = np.zeros(runs, dtype=np.int8)
    for position in range(pairs):
        distinct += previous[position : position + runs] < np.arange(runs)
    keep = (line[: len(line) - RUN + 1] == line[RUN - 1 :]) & (distinct >= MIN_DISTINCT)
    return mix(hashes[keep]), line[: len(line) - RUN + 1][keep]


def neighbours(files: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Pair the files that stand in one run, each with the `MAX_NEIGHBOURS` after it at most.

    Args:
        files: file numbers, rising inside each run, shape (M,).
        lengths: lengths of the runs, summing to M.

    Returns:
        Pairs packed as lower << 32 | higher, with repetition.
    """
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(files)) - 1  # how many follow in the run
    found = []
    for distance in range(1, MAX_NEIGHBOURS + 1):
        first = np.flatnonzero(left >= distance)
        if not len(first):
            break
        found.append(files[first] << 32 | files[first + distance])
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def shared_counts(material: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Count the hashes that each pair of files shares.

    Args:
        material: distinct hashes of each file.

    Returns:
        Pairs packed as lower << 32 | higher, and the number of hashes that they share, shape (P,) each.
    """
    hashes = np.concatenate([np.empty(0, dtype=np.uint64), *material])
    files = np.repeat(np.arange(len(material)), [len(item) for item in material])
    order = np.argsort(hashes, kind="stable")
    hashes, files = hashes[order], files[order]
    borders = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1])) if len(hashes) else np.empty(0, dtype=np.int64)
    lengths = np.diff(np.append(borders, len(hashes)))
    is_shared = np.repeat(lengths > 1, lengths)
    files, lengths = files[is_shared], lengths[lengths > 1]

    pairs, counts = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    bounds = np.append(0, np.cumsum(lengths))
    work = np.append(0, np.cumsum(lengths * np.minimum(lengths - 1, MAX_NEIGHBOURS)))  # an upper bound on pairs
    at = 0
    while at < len(lengths):
        until = max(at + 1, int(np.searchsorted(work, work[at] + PAIRS_AT_ONCE, side="right")) - 1)
        new, new_counts = np.unique(
            neighbours(files[bounds[at] : bounds[until]], lengths[at:until]), return_counts=True
        )
        merged, inverse = np.unique(np.concatenate([pairs, new]), return_inverse=True)
        counts = np.bincount(inverse, weights=np.concatenate([counts, new_counts]), minlength=len(merged)).astype(int)
        pairs, at = merged, until
    return pairs, counts


def components(size: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Return the smallest member of each item's connected component (union-find with path halving)."""
    parent = list(range(size))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return [root(item) for item in range(size)]


def groups(material: Sequence[np.ndarray]) -> list[int]:
    """Cluster files that hold the same tune.

    Two files are linked where they share at least `MIN_SHARED` hashes and `MIN_CONTAINED` of those of the file that
    has fewer; the groups are the connected components. The same whatever the order of the pairs.

    Args:
        material: distinct hashes of each file, files in order of their md5.

    Returns:
        For each file the number of the first file of its group.
    """
    sizes = np.array([len(item) for item in material])
    pairs, counts = shared_counts(material)
    low, high = pairs >> 32, pairs & 0xFFFFFFFF
    is_linked = (counts >= MIN_SHARED) & (counts >= MIN_CONTAINED * np.minimum(sizes[low], sizes[high]))
    return components(len(material), list(zip(low[is_linked].tolist(), high[is_linked].tolist(), strict=True)))
