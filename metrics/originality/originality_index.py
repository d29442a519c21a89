"""An index of melodies that finds what a new melody has in common with any of them, in whatever key.

A file of about 12 bytes a bar, made once from a training split and read by memory map. It holds hashes, and no melody
can be read back from it. numpy and the standard library are all it needs, so that this file can be copied beside a
Space's `app.py`; the index itself is a safetensors file.

How it works. A bar is told by the onsets of its notes and the interval of each from the note before it, wherever that
note is, as a hash of 32 bits (its *continuation*); or, where a span begins with it, without the first note's interval
(its *head*). So a span is a head and the continuations that follow it, and no transposition changes it. The index is a
suffix array (Manber and Myers 1993): the bars with notes, ordered by head and what follows. A binary search for each
bar of a melody finds the longest span in common. Two bars that differ have the same hash once in 4 billion.

A line is a mapping with `pitch`, `start`, `time_signature`, `steps_per_beat` and `bars`, as the data set and
`processor.to_lines` have it.
"""

import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SPAN_BARS = 4  # design: originality is told by spans of so many bars
FEWEST_NOTES = 2  # of a span: one note alone has no interval, and every melody has it
DEPTH = 32  # bars by which the index is ordered; a longer span in common counts as so long
FORMAT = "melody originality index 1"
NO_INTERVAL = 511  # of a span's first note; intervals lie within -127..127
MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))

Line = Mapping[str, Any]


def mix(values: np.ndarray) -> np.ndarray:
    """Scatter uint64 numbers over all 64 bits (Steele et al. 2014's splitmix64, the finishing steps)."""
    values = (values ^ (values >> np.uint64(30))) * MULTIPLIERS[0]
    values = (values ^ (values >> np.uint64(27))) * MULTIPLIERS[1]
    return values ^ (values >> np.uint64(31))


def steps_per_bar(line: Line) -> int:
    """Grid steps in each bar of a line."""
    return int(line["time_signature"].split("/")[0]) * int(line["steps_per_beat"])


def bar_hashes(
    pitch: np.ndarray,
    start: np.ndarray,
    note_line: np.ndarray,
    bar_steps: np.ndarray,
    meter: np.ndarray,
    bars: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hash the bars of lines.

    Args:
        pitch: MIDI pitches of all notes, line after line, shape (N,).
        start: Onsets in steps from their line's first bar line, shape (N,).
        note_line: Which line each note is of, shape (N,).
        bar_steps: Steps per bar of each line, shape (L,).
        meter: A number for each line's meter and grid; bars of different ones are never alike; shape (L,).
        bars: How many each line has, shape (L,).

    Returns:
        For each bar its head, its continuation (uint32, never 0) and how many notes begin in it, shape (B + L,): each
        line is followed by a row of zeros, its end.
    """
    # Rows: the bars of each line, and one for its end.
    first_row = np.concatenate([[0], np.cumsum(bars + 1)])
    row_of_note = first_row[note_line] + start // bar_steps[note_line]
    place = (start % bar_steps[note_line]).astype(np.uint64)
    interval = np.diff(pitch.astype(np.int64), prepend=0) + 128
    is_line_start = np.diff(note_line, prepend=-1) != 0
    interval[is_line_start] = NO_INTERVAL
    # Onsets within a bar differ, so a sum tells the notes apart whatever their order.
    codes = mix(place * np.uint64(512) + interval.astype(np.uint64) + np.uint64(1))
    as_first = mix(place * np.uint64(512) + np.uint64(NO_INTERVAL + 1))
    # Sums over bars as differences of a running sum.
    counts = np.bincount(row_of_note, minlength=first_row[-1])
    begins = np.concatenate([[0], np.cumsum(counts)])
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(codes, dtype=np.uint64)])  # wraps around, as does its
    total = running[begins[1:]] - running[begins[:-1]]  # difference
    has_notes = counts > 0
    first = begins[:-1][has_notes]
    # As the opening of a span a bar has no interval to the note before.
    opening = total.copy()
    opening[has_notes] += as_first[first] - codes[first]
    # Equal bars of other time signatures differ; 0 is the end of a line.
    salt = mix(np.repeat(meter.astype(np.uint64), bars + 1) + np.uint64(1 << 40))
    is_end = np.zeros(first_row[-1], dtype=bool)
    is_end[first_row[1:] - 1] = True
    hashes = []
    for sums in (opening, total):
        hashed = (mix(sums + salt) >> np.uint64(32)).astype(np.uint32)
        hashes.append(np.where(is_end, np.uint32(0), np.maximum(hashed, np.uint32(1))))
    return hashes[0], hashes[1], counts


def line_columns(lines: Sequence[Line]) -> dict[str, np.ndarray]:
    """Lay lines out as the arrays that `bar_hashes` takes."""
    notes = np.array([len(line["pitch"]) for line in lines])
    bar_steps = np.array([steps_per_bar(line) for line in lines])
    ends = np.array(
        [
            line["start"][-1] // size + 1 if len(line["start"]) else 0
            for line, size in zip(lines, bar_steps, strict=True)
        ]
    )
    return {
        "pitch": np.concatenate([np.asarray(line["pitch"], dtype=np.int64) for line in lines]),
        "start": np.concatenate([np.asarray(line["start"], dtype=np.int64) for line in lines]),
        "note_line": np.repeat(np.arange(len(lines)), notes),
        "bar_steps": bar_steps,
        "meter": np.array([meter_number(line) for line in lines]),
        "bars": np.maximum(np.array([int(line["bars"]) for line in lines]), ends),
    }


def meter_number(line: Line) -> int:
    """Number a line's time signature and grid."""
    numerator, denominator = map(int, line["time_signature"].split("/"))
    return (numerator * 256 + denominator) * 256 + int(line["steps_per_beat"])


def order_suffixes(heads: np.ndarray, continuations: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Order the bars with notes by head and the `DEPTH` continuations that follow, by doubling; uint32 rows."""
    half = np.uint64(32)
    ranks = continuations.astype(np.uint64)
    known = 1
    while known < DEPTH:
        following = np.concatenate([ranks[known:], np.zeros(min(known, len(ranks)), np.uint64)])
        pairs = (ranks << half) | following
        order = np.argsort(pairs, kind="stable")
        is_new = np.concatenate([[False], np.diff(pairs[order]) != 0])
        ranks = np.empty_like(ranks)
        ranks[order] = np.cumsum(is_new, dtype=np.uint64)
        known *= 2
    rows = np.flatnonzero(counts)
    keys = (heads[rows].astype(np.uint64) << half) | ranks[rows + 1]  # a line's end follows its last bar
    return rows[np.argsort(keys, kind="stable")].astype(np.uint32)


class OriginalityIndex:
    """The bars of a training split, in an order in which spans are found.

    Args:
        tensors: What [`OriginalityIndex.build`] makes, or memory maps of it.
        about: What the index was made from, strings by name.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], about: Mapping[str, str]):
        self.rows = tensors["rows"]  # of the bars with notes, in order
        self.heads = tensors["heads"]  # of the same bars, in the same order, so rising
        self.continuations = tensors["continuations"]  # of every bar, line after line, each followed by a 0
        self.first_rows = tensors["first_rows"]  # of each line, and the end
        self.names = tensors["names"]  # of the lines, UTF-8, one after the other
        self.name_ends = tensors["name_ends"]
        self.about = dict(about)

    def __len__(self) -> int:
        """How many lines there are."""
        return len(self.first_rows) - 1

    @classmethod
    def build(
        cls, lines: Iterable[Line], about: Mapping[str, str] | None = None, at_once: int = 1000
    ) -> "OriginalityIndex":
        """Index lines, each with a `melody_id`.

        Args:
            lines: Read once; about 40 bytes a bar are held in memory.
            about: What they are, to be kept with the index.
            at_once: Lines that are hashed at a time.

        Raises:
            ValueError: If there are none.
        """
        parts, names, bars = [], [], []
        # Lines are hashed many at a time.
        pending: list[Line] = []

        def hash_pending() -> None:
            columns = line_columns(pending)
            parts.append(bar_hashes(**columns))
            bars.append(columns["bars"])
            pending.clear()

        for line in lines:
            pending.append(line)
            names.append(str(line["melody_id"]).encode())
            if len(pending) == at_once:
                hash_pending()
        if pending:
            hash_pending()
        if not names:
            raise ValueError("an index of no melodies: got 0 lines")
        # The suffix array of all bars is the index.
        heads, continuations, counts = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        rows = order_suffixes(heads, continuations, counts)
        tensors = {
            "rows": rows,
            "heads": heads[rows],
            "continuations": continuations,
            "first_rows": np.concatenate([[0], np.cumsum(np.concatenate(bars) + 1)]).astype(np.uint32),
            "names": np.frombuffer(b"".join(names), dtype=np.uint8),
            "name_ends": np.cumsum([len(name) for name in names]).astype(np.uint32),
        }
        return cls(tensors, {**(about or {}), "lines": str(len(names)), "bars": str(len(heads) - len(names))})

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        names = ("rows", "heads", "continuations", "first_rows", "name_ends", "names")
        header: dict[str, Any] = {"__metadata__": {"format": FORMAT, **self.about}}
        end = 0
        for name in names:
            tensor = getattr(self, name)
            kind = {"uint32": "U32", "uint8": "U8"}[tensor.dtype.name]
            header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
            end += tensor.nbytes
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        partial = Path(f"{path}.partial")
        with partial.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in names:
                getattr(self, name).tofile(file)
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "OriginalityIndex":
        """Map an index into memory; pages are read as they are needed.

        Raises:
            ValueError: If the file is no such index; names it.
            OSError: If it cannot be read.
        """
        try:
            with Path(path).open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length)) if length < 1 << 20 else {}
            about = header.pop("__metadata__")
            if about.pop("format") != FORMAT:
                raise ValueError("another format")
            kinds = {"U32": np.uint32, "U8": np.uint8}
            tensors = {
                name: np.memmap(path, kinds[of["dtype"]], "r", 8 + length + of["data_offsets"][0], tuple(of["shape"]))
                for name, of in header.items()
            }
            return cls(tensors, about)
        except (ValueError, KeyError, struct.error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path}: not an originality index; make one with python -m evaluation.originality build"
            ) from error

    def name(self, line: int) -> str:
        """Return a line's `melody_id`."""
        begin = int(self.name_ends[line - 1]) if line else 0
        return bytes(self.names[begin : int(self.name_ends[line])]).decode()

    def common_bars(self, row: int, following: np.ndarray) -> tuple[int, bool]:
        """Compare what follows a bar of the index with what follows one of a melody.

        Returns:
            How many bars agree, and whether the index's come first in its order.
        """
        ours = np.asarray(self.continuations[row + 1 : row + 1 + len(following)])
        differing = np.flatnonzero(ours != following[: len(ours)])
        if len(differing):
            at = int(differing[0])
            return at, bool(ours[at] < following[at])
        return len(ours), len(ours) < len(following)

    def boundary(self, low: int, high: int, is_before: Callable[[int], bool]) -> int:
        """Find by bisection where entries `low` to `high` cease to be before what is looked for."""
        while low < high:
            middle = (low + high) // 2
            if is_before(int(self.rows[middle])):
                low = middle + 1
            else:
                high = middle
        return low

    def longest_from(self, head: int, following: np.ndarray) -> tuple[int, int, tuple[int, int]]:
        """Find the longest span in common that begins with one bar of a melody.

        Args:
            head: Of the bar.
            following: Continuations of the bars after it.

        Returns:
            Its bars (0: none), the row of the index where it begins, and the range of entries with that head.
        """
        key = np.uint32(head)
        low, high = (int(np.searchsorted(self.heads, key, side)) for side in ("left", "right"))
        if low == high:
            return 0, 0, (low, high)
        at = self.boundary(low, high, lambda row: self.common_bars(row, following)[1])
        neighbours = [int(self.rows[entry]) for entry in (at - 1, at) if low <= entry < high]
        found = [(1 + self.common_bars(row, following)[0], row) for row in neighbours]
        bars, row = max(found, key=lambda each: each[0])
        return bars, row, (low, high)

    def occurrences(self, following: np.ndarray, entries: tuple[int, int]) -> int:
        """Count the entries of a range that go on with all of `following`."""

        def is_before(row: int) -> bool:
            common, comes_first = self.common_bars(row, following)
            return common < len(following) and comes_first

        def is_not_after(row: int) -> bool:
            common, comes_first = self.common_bars(row, following)
            return common == len(following) or comes_first

        return self.boundary(*entries, is_not_after) - self.boundary(*entries, is_before)

    def report(self, line: Line, span_bars: int = SPAN_BARS) -> dict[str, Any]:
        """Tell what a melody has in common with the index.

        A span is of whole bars, begins and ends with a bar in which notes begin, and has `FEWEST_NOTES` or more.

        Args:
            line: The melody.
            span_bars: Length of the spans that are counted; unlike the longest, they may end with silence.

        Returns:
            `spans`: how many begin in the melody; `copied_spans`: those that the index has. `longest_bars`,
            `longest_notes`: of the longest span in common (most bars, then most notes), 0 if there is none; then
            `first_bar`: where it begins in the melody, from 0; `melody_id`, `melody_bar`: a line that has it, and where
            in that line; `occurrences`: places of the index that have it. None of these where there is none.
        """
        heads, continuations, counts = bar_hashes(**line_columns([line]))
        notes_before = np.concatenate([[0], np.cumsum(counts)])
        end = len(counts) - 1  # the last row is the line's end
        spans = copied = 0
        best: tuple[int, int, int, int, tuple[int, int]] | None = None
        # From each bar on, the longest stretch that the index has too.
        for first in np.flatnonzero(counts).tolist():
            following = continuations[first + 1 : min(end, first + DEPTH)]
            bars, row, entries = self.longest_from(int(heads[first]), following)
            if first + span_bars <= end and notes_before[first + span_bars] - notes_before[first] >= FEWEST_NOTES:
                spans += 1
                copied += bars >= span_bars
            while bars and not counts[first + bars - 1]:  # silence at the end is no likeness
                bars -= 1
            notes = int(notes_before[first + bars] - notes_before[first])
            if notes >= FEWEST_NOTES and (best is None or (bars, notes) > best[:2]):
                best = (bars, notes, first, row, entries)
        found: dict[str, Any] = {"spans": spans, "copied_spans": copied, "longest_bars": 0, "longest_notes": 0}
        if best is None:
            return {**found, "first_bar": None, "melody_id": None, "melody_bar": None, "occurrences": 0}
        # Where the best of them stands in the index.
        bars, notes, first, row, entries = best
        of_line = int(np.searchsorted(self.first_rows, np.uint32(row), "right")) - 1
        return {
            **found,
            "longest_bars": bars,
            "longest_notes": notes,
            "first_bar": first,
            "melody_id": self.name(of_line),
            "melody_bar": row - int(self.first_rows[of_line]),
            "occurrences": self.occurrences(continuations[first + 1 : first + bars], entries),
        }


def describe(report: Mapping[str, Any]) -> str:
    """Say in a sentence what [`OriginalityIndex.report`] found."""
    if not report["longest_bars"]:
        return "Nothing in common with the training melodies, not even a bar."
    begin, bars = report["first_bar"] + 1, report["longest_bars"]
    where = f"bar {begin}" if bars == 1 else f"bars {begin} to {begin + bars - 1}"
    others = report["occurrences"] - 1
    also = f" and {others:,} more place{'s' * (others != 1)}" if others else ""
    return (
        f"The longest span in common with a training melody, in any key: {where} ({report['longest_notes']} notes), "
        f"as in {report['melody_id']} from bar {report['melody_bar'] + 1}{also}. Of its {report['spans']} spans of "
        f"{SPAN_BARS} bars, {report['copied_spans']} occur there."
    )
