"""What tells that files hold the same music: hashes of their melody lines, and what leaks from split to split.

A file is described by its runs of eight notes, each by its seven intervals alone: whatever the key, the tempo, the
instruments and the order of the tracks. Beside its melody lines these are runs of its top and its bottom line, which do
not depend on how the notes are divided into tracks. All are read twice, on the grid and on one of half the resolution:
a copy in notes half as long has lost every other sixteenth, and equals the original on the coarser grid. Runs that
occur in few files count more, so that a bass pattern which every second boogie has links nobody; and what is linked
must have a stretch of sixteen notes in common.
`benchmarks/near_duplicates.py` measures what that finds and what it confuses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from dataset_script.midi_notes import MAX_STEPS, PITCH_BITS, PITCH_SHIFT, STEP_BITS, STEP_SHIFT, STRAND_SHIFT

NOTES = 8  # in a run
MIN_DISTINCT = 4  # different intervals that a run needs: scales, trills and repeated notes are everybody's
STRETCH_NOTES = 16  # that two files must share in one piece
STRETCH_WINDOW = 17  # of so many stretches in a row one is kept: of 32 notes that two files share, the same one
VERBATIM_NOTES = 32  # in a row, in any key, that the leads of two files must not share unless they are linked
VERBATIM_DISTINCT = 3  # different intervals that these need: less is a note repeated, or a trill
MAX_HASHES = 512  # of a file: those with the smallest values, which is the same random sample of runs in every file

MIN_LINE_HASHES = 8  # a line with fewer different runs is too plain to tell whether it is a copy

LEFT_OUT = np.uint64(0)  # no hash is 0
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio (Knuth's multiplicative hashing)


@njit(cache=True, inline="always")
def mix(value):
    """Spread uint64 values over all 64 bits (the finaliser of SplitMix64; Steele, Lea and Flood, 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True)
def hash_runs(
    codes: np.ndarray,
    length: int,
    seen: np.ndarray,
    hashes: np.ndarray,
    at: int,
    least: int = MIN_DISTINCT,
    plain: np.uint64 = LEFT_OUT,
) -> int:
    """Hash each run of codes that has enough different ones, rolling from one to the next (Karp and Rabin).

    Args:
        codes: what describes each note after the one before, below the size of `seen`, shape (N,).
        length: codes in a run.
        seen: scratch, all zeros; zeros again afterwards.
        hashes: where to write.
        at: where in it to begin.
        least: so many different codes are enough.
        plain: what to write for a run with fewer; `LEFT_OUT` for nothing.

    Returns:
        Where the hashes end.
    """
    leading = np.uint64(1)
    for _ in range(length - 1):
        leading *= MULTIPLIER
    value, distinct = np.uint64(0), 0
    for index in range(len(codes)):
        code = codes[index]
        value = value * MULTIPLIER + mix(np.uint64(code + 1))
        distinct += seen[code] == 0
        seen[code] += 1
        if index >= length - 1:
            if distinct >= least or plain != LEFT_OUT:
                hashes[at] = mix(value) if distinct >= least else plain
                at += 1
            code = codes[index - length + 1]
            value -= mix(np.uint64(code + 1)) * leading
            seen[code] -= 1
            distinct -= seen[code] == 0
    for code in codes[-length:]:
        seen[code] = 0
    return at


@njit(cache=True)
def keep_distinct(hashes: np.ndarray, table: np.ndarray) -> int:
    """Move the different values to the front, in order of appearance, and return how many there are.

    Args:
        hashes: shape (M,).
        table: scratch of at least 4 M places, for open addressing; 0 is an empty place (and never was a hash).
    """
    shift = 63
    while 1 << (64 - shift) < 2 * len(hashes):
        shift -= 1
    last = (1 << (64 - shift)) - 1
    table[: last + 1] = 0
    kept = 0
    for value in hashes:
        place = np.int64(value >> np.uint64(shift))
        while table[place] != 0 and table[place] != value:
            place = (place + 1) & last
        if table[place] == 0:
            table[place] = value
            hashes[kept] = value
            kept += 1
    return kept


@njit(cache=True)
def intervals(pitch: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return the steps from note to note as codes from 0 to 254, written to the scratch `codes`, shape (N - 1,)."""
    for note in range(1, len(pitch)):
        codes[note - 1] = np.int64(pitch[note]) - np.int64(pitch[note - 1]) + 127
    return codes[: max(len(pitch) - 1, 0)]


@njit(cache=True)
def signatures(pitch: np.ndarray, offsets: np.ndarray, line_file: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hash the lines of a batch of files: at most `MAX_HASHES` for each file.

    Args:
        pitch: MIDI pitches, lines one after the other (uint8), shape (N,).
        offsets: where each line's notes begin and the last ends, shape (L + 1,).
        line_file: file of each line, rising, shape (L,).

    Returns:
        Hashes (uint64), those of each file together and each once, and the file of each, shape (M,).
    """
    codes, seen = np.empty(len(pitch), dtype=np.uint8), np.zeros(256, dtype=np.int32)
    hashes, table = np.empty(len(pitch), dtype=np.uint64), np.empty(4 * len(pitch) + 2, dtype=np.uint64)
    files = np.empty(len(pitch), dtype=np.int64)
    kept = count = 0  # hashes of the files before this one, and with those of this one
    for line in range(len(line_file)):
        steps = intervals(pitch[offsets[line] : offsets[line + 1]], codes)
        count = hash_runs(steps, NOTES - 1, seen, hashes, count)
        if line + 1 == len(line_file) or line_file[line + 1] != line_file[line]:
            begin, end = kept, kept + keep_distinct(hashes[kept:count], table)
            if end - begin > MAX_HASHES:
                hashes[begin:end] = np.partition(hashes[begin:end], MAX_HASHES)
            kept = count = min(end, begin + MAX_HASHES)
            files[begin:kept] = line_file[line]
    return hashes[:kept].copy(), files[:kept].copy()


@njit(cache=True)
def outlines(
    packed: np.ndarray, file_notes: np.ndarray, file_stretches: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the top and the bottom line of each file: the highest and the lowest note at each onset, of all tracks.

    Args:
        packed: notes of all files, see `midi_notes.FileNotes`, shape (N,).
        file_notes: where each file's notes begin and the last ends, shape (F + 1,).
        file_stretches: number of stretches of constant time signature of each file, shape (F,).

    Returns:
        Pitches of the lines' notes, shape (M,), where each line's begin and the last ends, shape (2 F + 1,), and the
        file of each: top and bottom of the first, of the second, ...
    """
    files = len(file_stretches)
    pitch, line_file = np.empty(2 * len(packed), dtype=np.uint8), np.empty(2 * files, dtype=np.int64)
    offsets = np.zeros(2 * files + 1, dtype=np.int64)
    count = 0
    for file in range(files):
        # Notes in order of stretch, step and pitch, whatever their track.
        notes = packed[file_notes[file] : file_notes[file + 1]].copy()
        for note in range(len(notes)):
            value = notes[note]
            stretch = (value >> STRAND_SHIFT) % file_stretches[file]
            low = 127 - (value >> PITCH_SHIFT & ((1 << PITCH_BITS) - 1))
            notes[note] = (stretch << STEP_BITS | value >> STEP_SHIFT & (MAX_STEPS - 1)) << PITCH_BITS | low
        notes.sort()
        for is_bottom in range(2):
            for note in range(len(notes)):
                edge = note - 1 if is_bottom else note + 1
                if 0 <= edge < len(notes) and notes[edge] >> PITCH_BITS == notes[note] >> PITCH_BITS:
                    continue
                pitch[count] = notes[note] & ((1 << PITCH_BITS) - 1)
                count += 1
            offsets[2 * file + is_bottom + 1], line_file[2 * file + is_bottom] = count, file
    return pitch[:count], offsets, line_file


def side_by_side(
    readings: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bring the lines of each file together that several readings of a batch of files have found.

    Args:
        readings: arguments of `signatures`.

    Returns:
        The arguments of `signatures` for all lines.
    """
    pitch, lengths, line_file = (
        np.concatenate(values)
        for values in zip(*((pitch, np.diff(offsets), file) for pitch, offsets, file in readings), strict=True)
    )
    order = np.argsort(line_file, kind="stable")
    offsets = np.append(0, np.cumsum(lengths[order]))
    moved = np.repeat((np.cumsum(lengths) - lengths)[order] - offsets[:-1], lengths[order])
    return pitch[moved + np.arange(len(pitch))], offsets, line_file[order]


@njit(cache=True)
def winnow_stretches(
    pitch: np.ndarray, codes: np.ndarray, seen: np.ndarray, values: np.ndarray, hashes: np.ndarray, at: int
) -> int:
    """Hash the stretches of a line in any key, and keep the smallest hash of each `STRETCH_WINDOW` in a row.

    That is winnowing (Schleimer, Wilkerson and Aiken, 2003): two lines that share so many stretches in a row keep the
    same one of these. Stretches with fewer than `MIN_DISTINCT` different intervals are passed over.

    Args:
        pitch: MIDI pitches, shape (N,).
        codes: scratch of at least N.
        seen: scratch of 256, all zeros; zeros again afterwards.
        values: scratch of at least N.
        hashes: where to write.
        at: where in it to begin.

    Returns:
        Where the hashes end.
    """
    plain = np.uint64(0xFFFFFFFFFFFFFFFF)
    count = hash_runs(intervals(pitch, codes), STRETCH_NOTES - 1, seen, values, 0, MIN_DISTINCT, plain)
    smallest = -1
    for last in range(max(min(STRETCH_WINDOW, count) - 1, 0), count):
        first = max(last - STRETCH_WINDOW + 1, 0)
        if smallest < first:
            new = first
            for place in range(first + 1, last + 1):
                if values[place] <= values[new]:
                    new = place
        else:
            new = last if values[last] <= values[smallest] else smallest
        if new != smallest and values[new] != plain:
            hashes[at] = values[new]
            at += 1
        smallest = new
    return at


@njit(cache=True)
def stretches(pitch: np.ndarray, offsets: np.ndarray, line_file: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hash stretches of `STRETCH_NOTES` notes of a batch of files, enough of them to find any 32 notes in common.

    Args:
        pitch: as in `signatures`.
        offsets: likewise.
        line_file: likewise.

    Returns:
        Hashes (uint64), those of each file together, rising and each once, and the file of each, shape (M,).
    """
    codes, seen = np.empty(len(pitch), dtype=np.uint8), np.zeros(256, dtype=np.int32)
    values, hashes = np.empty(len(pitch) + 1, dtype=np.uint64), np.empty(len(pitch), dtype=np.uint64)
    files = np.empty(len(pitch), dtype=np.int64)
    kept = count = 0
    for line in range(len(line_file)):
        count = winnow_stretches(pitch[offsets[line] : offsets[line + 1]], codes, seen, values, hashes, count)
        if line + 1 == len(line_file) or line_file[line + 1] != line_file[line]:
            hashes[kept:count].sort()
            begin = kept
            for place in range(begin, count):
                if kept == begin or hashes[place] != hashes[kept - 1]:
                    hashes[kept] = hashes[place]
                    kept += 1
            count = kept
            files[begin:kept] = line_file[line]
    return hashes[:kept].copy(), files[:kept].copy()


@njit(cache=True)
def verbatim_runs(
    pitch: np.ndarray, offsets: np.ndarray, line_file: np.ndarray, is_lead: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Hash every run of `VERBATIM_NOTES` notes of the leads of a batch of files, in any key.

    Args:
        pitch: as in `signatures`.
        offsets: likewise.
        line_file: likewise.
        is_lead: whether each line is of its file's lead, shape (L,).

    Returns:
        Hashes (uint64), those of each file together and each once, and the file of each, shape (M,).
    """
    codes, seen = np.empty(len(pitch), dtype=np.uint8), np.zeros(256, dtype=np.int32)
    hashes, table = np.empty(len(pitch), dtype=np.uint64), np.empty(4 * len(pitch) + 2, dtype=np.uint64)
    files = np.empty(len(pitch), dtype=np.int64)
    kept = count = 0
    for line in range(len(line_file)):
        if is_lead[line]:
            steps = intervals(pitch[offsets[line] : offsets[line + 1]], codes)
            count = hash_runs(steps, VERBATIM_NOTES - 1, seen, hashes, count, VERBATIM_DISTINCT)
        if line + 1 == len(line_file) or line_file[line + 1] != line_file[line]:
            end = kept + keep_distinct(hashes[kept:count], table)
            files[kept:end] = line_file[line]
            kept = count = end
    return hashes[:kept].copy(), files[:kept].copy()


def index_hashes(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bring equal hashes together.

    Args:
        hashes: shape (M,).

    Returns:
        The stable order that sorts them, and where each run of equal ones begins and the last ends, shape (R + 1,).
    """
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    borders = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    return order, np.concatenate([[0], borders, [len(hashes)]]) if len(hashes) else np.zeros(1, dtype=np.int64)


@njit(cache=True)
def line_runs(pitch: np.ndarray, start: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hash every run of `NOTES` notes of each line: its intervals, and whether notes come faster or slower.

    Unlike `signatures` it takes no sample and looks at the rhythm: inter-onset intervals that differ from the one
    before by less than a third count as equal.

    Args:
        pitch: MIDI pitches, lines one after the other, shape (N,).
        start: onsets in steps, rising in each line, shape (N,).
        offsets: where each line's notes begin and the last ends, shape (L + 1,).

    Returns:
        Hashes (uint64), each once in each line, shape (M,), and where each line's begin and the last ends,
        shape (L + 1,).
    """
    codes = np.empty(len(pitch), dtype=np.int64)
    seen = np.zeros(3 * 256, dtype=np.int32)
    hashes, table = np.empty(len(pitch), dtype=np.uint64), np.empty(4 * len(pitch) + 2, dtype=np.uint64)
    bounds = np.zeros(len(offsets), dtype=np.int64)
    for line in range(len(offsets) - 1):
        begin, end = offsets[line], offsets[line + 1]
        for note in range(begin + 2, end):
            gap, before = start[note] - start[note - 1], start[note - 1] - start[note - 2]
            rhythm = (3 * gap > 4 * before) + 2 * (4 * gap < 3 * before)
            codes[note] = 3 * (np.int64(pitch[note]) - np.int64(pitch[note - 1]) + 127) + rhythm
        kept = bounds[line]
        count = hash_runs(codes[begin + 2 : max(end, begin + 2)], NOTES - 2, seen, hashes, kept)
        bounds[line + 1] = kept + keep_distinct(hashes[kept:count], table)
    return hashes[: bounds[-1]].copy(), bounds


@njit(cache=True)
def match_lines(
    run: np.ndarray,
    bounds: np.ndarray,
    reference_line: np.ndarray,
    borders: np.ndarray,
    reference_size: np.ndarray,
) -> np.ndarray:
    """Find for each line a reference that shares half of the runs of the one that has fewer, -1 if there is none.

    Args:
        run: number of each run in the index of the references, -1 if none has it, shape (M,).
        bounds: where each line's runs begin and the last ends, shape (L + 1,).
        reference_line: the references that have each run, one run after the other, shape (P,).
        borders: where those of each run begin and the last ends, shape (R + 1,).
        reference_size: number of runs of each reference.
    """
    shared = np.zeros(len(reference_size), dtype=np.int32)
    match = np.full(len(bounds) - 1, -1, dtype=np.int64)
    for line in range(len(match)):
        size = bounds[line + 1] - bounds[line]
        if size < MIN_LINE_HASHES:
            continue
        runs = run[bounds[line] : bounds[line + 1]]
        for number in runs[runs >= 0]:
            for other in reference_line[borders[number] : borders[number + 1]]:
                shared[other] += 1
                if match[line] < 0 and 2 * shared[other] >= min(size, reference_size[other]):
                    match[line] = other
            if match[line] >= 0:
                break
        for number in runs[runs >= 0]:
            shared[reference_line[borders[number] : borders[number + 1]]] = 0
    return match


def near_duplicate_lines(
    lines: tuple[np.ndarray, np.ndarray], references: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Find the lines of which there is a near-duplicate among other lines, whatever files and groups they are from.

    Two lines are near-duplicates if they share at least half of the runs of the one that has fewer. Lines of fewer
    than `MIN_LINE_HASHES` runs are left out on both sides.

    Args:
        lines: what `line_runs` gave for L lines.
        references: what it gave for the lines to search.

    Returns:
        A near-duplicate of each line, -1 if there is none, and whether the line is too plain to have any, shape (L,).
    """
    hashes, bounds = references
    sizes = np.diff(bounds)
    is_indexed = np.repeat(sizes >= MIN_LINE_HASHES, sizes)
    hashes, line = hashes[is_indexed], np.repeat(np.arange(len(sizes)), sizes)[is_indexed]
    order, borders = index_hashes(hashes)
    known = hashes[order][borders[:-1]]
    run = np.searchsorted(known, lines[0])
    run[run == len(known)] = 0
    run = np.where(known[run] == lines[0], run, -1) if len(known) else np.full(len(lines[0]), -1)
    return match_lines(run, lines[1], line[order], borders, sizes), np.diff(lines[1]) < MIN_LINE_HASHES
