"""What is in a finished data set: counts and histograms, from its Parquet files alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset_script.features import KEY_NAMES
from dataset_script.schema import SPLITS

LINES_AT_ONCE = 5_000
WINDOW_BARS = 16  # the windows that are counted
STRIDES = (1, WINDOW_BARS)
LONGEST_STEPS = 1 << 12  # lengths from here on are equal for every histogram: beyond it
PROGRAMS_IN_FAMILY = 8
PROGRAM_FAMILIES = (
    "Piano", "Chromatic percussion", "Organ", "Guitar", "Bass", "Strings", "Ensemble", "Brass",
    "Reed", "Pipe", "Synth lead", "Synth pad", "Synth effects", "Ethnic", "Percussive", "Sound effects",
)  # fmt: skip
"""General MIDI's names of programs 0 to 7, 8 to 15, ... 120 to 127."""

MODES = tuple(dict.fromkeys(key.split()[1] for key in KEY_NAMES))
COUNTED = ("time_signature", "genre", "program", "key")
TEXTS = ("md5", "group", "time_signature", "genre", "key")
NUMBERS = ("bars", "tempo", "complexity", "lead_score", "key_confidence", "grid_fit", "quality")
COLUMNS = (*TEXTS, *NUMBERS, "program", "is_lead", "steps_per_beat", "pitch", "start", "duration")


def edges_of(first: float, last: float, width: float) -> np.ndarray:
    """Return the edges of bins of equal width, each rounded to what one would write."""
    return np.round(np.arange(round((last - first) / width) + 1) * width + first, 6)


HISTOGRAMS = {
    "bars": edges_of(0, 160, 4),
    "notes": edges_of(0, 400, 10),
    "notes_per_quarter": edges_of(0, 4.5, 0.1),
    "pitch_range": edges_of(-0.5, 48.5, 1),
    "tempo": edges_of(15, 305, 10),
    "complexity": edges_of(0, 1, 0.05),
    "lead_score": edges_of(0, 1, 0.05),
    "key_confidence": edges_of(0, 1, 0.05),
    "grid_fit": edges_of(0, 1, 0.05),
    "quality": edges_of(0, 1, 0.05),
    "pitch": edges_of(20.5, 108.5, 1),
    "interval": edges_of(-24.5, 24.5, 1),
    "note_quarters": edges_of(-0.125, 4.125, 0.25),
    "onset_quarters": edges_of(-0.125, 4.125, 0.25),
}
"""Edges by name. Of lines: length in bars and in notes, notes per quarter note, highest minus lowest pitch, and columns
of the data set. Of notes: pitch, semitones to the next note, length and time to the next onset in quarter notes."""


def by_count(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the counts above zero, the largest first, equal ones by name."""
    return {name: count for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count}


class Part:
    """What is counted of a split, or of all: every field is a sum or a union."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self.columns: dict[str, Counter] = {name: Counter() for name in COUNTED}
        self.genre_of_file: dict[str, str | None] = {}
        self.groups: set[str] = set()

    def add_lines(self, batch: pa.RecordBatch) -> None:
        """Count some lines."""
        bars = batch["bars"].to_numpy().astype(np.int64)
        self.totals["lines"] += len(bars)
        self.totals["lead_lines"] += batch["is_lead"].true_count
        self.totals["notes"] += len(batch["pitch"].flatten())
        self.totals["bars"] += int(bars.sum())
        for stride in STRIDES:
            self.totals[f"windows_stride_{stride}"] += int(np.maximum((bars - WINDOW_BARS) // stride + 1, 0).sum())
        for name, counts in self.columns.items():
            counts.update({pair["values"]: pair["counts"] for pair in pc.value_counts(batch[name]).to_pylist()})
        _, first = np.unique(batch["md5"].indices.to_numpy(), return_index=True)
        files = batch.select(["md5", "genre"]).take(pa.array(first))
        self.genre_of_file.update(zip(files["md5"].to_pylist(), files["genre"].to_pylist(), strict=True))
        self.groups.update(batch["group"].unique().to_pylist())

    def add(self, other: Part) -> None:
        """Count another part in."""
        self.totals.update(other.totals)
        for name, counts in self.columns.items():
            counts.update(other.columns[name])
        self.genre_of_file.update(other.genre_of_file)
        self.groups |= other.groups

    def summary(self) -> dict[str, Any]:
        """Return everything, ready for JSON; lines without a genre are those that `genres` leaves."""
        files_of_genre = Counter(self.genre_of_file.values())
        genres = by_count({name: count for name, count in self.columns["genre"].items() if name is not None})
        programs, keys = self.columns["program"], self.columns["key"]
        families, modes = Counter(), Counter()
        for program, count in programs.items():
            families[PROGRAM_FAMILIES[program // PROGRAMS_IN_FAMILY]] += count
        for key, count in keys.items():
            modes[key.split()[1]] += count
        return {
            **{name: self.totals[name] for name in ("lines", "lead_lines", "notes", "bars")},
            "files": len(self.genre_of_file),
            "groups": len(self.groups),
            "windows": {
                "bars": WINDOW_BARS,
                **{f"stride_{stride}": self.totals[f"windows_stride_{stride}"] for stride in STRIDES},
            },
            "time_signatures": by_count(self.columns["time_signature"]),
            "genres": {name: {"lines": count, "files": files_of_genre[name]} for name, count in genres.items()},
            "program_families": {name: families[name] for name in PROGRAM_FAMILIES},
            "programs": {str(program): programs[program] for program in sorted(programs)},
            "modes": {name: modes[name] for name in MODES},
            "keys": {name: keys[name] for name in KEY_NAMES},
        }


def values_of_lines(batch: pa.RecordBatch) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Return the values of some lines that the histograms count, by name, with a weight each (None: 1)."""
    # The grid of each line, and where its notes are.
    signatures = batch["time_signature"]
    fractions = np.array([text.split("/") for text in signatures.dictionary.to_pylist()], dtype=np.int64)
    numerator, denominator = fractions[signatures.indices.to_numpy()].T
    steps_per_quarter = batch["steps_per_beat"].to_numpy() * denominator / 4
    offsets = batch["pitch"].offsets.to_numpy()
    first, notes = offsets[:-1] - offsets[0], np.diff(offsets)
    pitch, start, duration = (batch[name].flatten().to_numpy() for name in ("pitch", "start", "duration"))
    is_within = np.ones(max(len(pitch) - 1, 0), dtype=bool)
    is_within[first[1:] - 1] = False  # from a line's last note to the next line's first

    # Lengths are few different numbers of steps on few different grids: these are counted, and then divided.
    grids, grid = np.unique(steps_per_quarter, return_inverse=True)
    place = np.repeat(grid * LONGEST_STEPS, notes)
    quarters = (np.arange(LONGEST_STEPS) / grids[:, None]).ravel()

    def lengths(steps: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        counts = np.bincount(place + np.minimum(steps, LONGEST_STEPS - 1), minlength=len(quarters))
        used = np.flatnonzero(counts)
        return quarters[used], counts[used]

    # Values, and how often each occurs.
    intervals = np.bincount(np.diff(pitch.astype(np.int16))[is_within] + 127, minlength=255)
    line_quarters = 4 * batch["bars"].to_numpy() * numerator / denominator
    return {
        **{name: (batch[name].to_numpy(), None) for name in NUMBERS},
        "notes": (notes, None),
        "notes_per_quarter": (notes / line_quarters, None),
        "pitch_range": (np.maximum.reduceat(pitch, first) - np.minimum.reduceat(pitch, first), None),
        "pitch": (np.arange(128), np.bincount(pitch, minlength=128)),
        "interval": (np.arange(-127, 128), intervals),
        "note_quarters": lengths(duration, place),
        "onset_quarters": lengths(np.diff(start)[is_within], place[1:][is_within]),
    }


def count_bins(edges: np.ndarray, values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Count values below the first edge, in each bin, and above the last; a bin holds its lower edge, the last both."""
    closed = np.append(edges[:-1], np.nextafter(edges[-1], np.inf))
    bins = np.searchsorted(closed, values.astype(np.float64), side="right")
    return np.bincount(bins, weights=weights, minlength=len(edges) + 1).astype(np.int64)


def statistics(data: Path) -> dict[str, Any]:
    """Count what the Parquet files of a data set hold.

    The files are read in batches: of all notes no more than a batch is in memory, of files and groups the names. The
    result does not depend on how many files or row groups a split has.

    Args:
        data: the folder with `<split>-*.parquet`; a split may have none. Every line has at least one note.

    Returns:
        `splits` (by name, those with lines) and `all`: numbers of lines, notes, bars, files, groups and windows, and
        of lines by time signature, genre (of files, too), program and key. `histograms` of all, by the names in
        `HISTOGRAMS`: `edges`, `counts`, and what lies `below` and `above`.
    """
    parts: dict[str, Part] = {}
    bins = {name: np.zeros(len(edges) + 1, dtype=np.int64) for name, edges in HISTOGRAMS.items()}
    for split in SPLITS:
        for path in sorted(data.glob(f"{split}-*.parquet")):
            with pq.ParquetFile(path, read_dictionary=list(TEXTS)) as file:
                for batch in file.iter_batches(LINES_AT_ONCE, columns=list(COLUMNS)):
                    parts.setdefault(split, Part()).add_lines(batch)
                    for name, (values, weights) in values_of_lines(batch).items():
                        bins[name] += count_bins(HISTOGRAMS[name], values, weights)
    everything = Part()
    for part in parts.values():
        everything.add(part)
    return {
        "all": everything.summary(),
        "splits": {name: part.summary() for name, part in parts.items()},
        "histograms": {
            name: {
                "edges": HISTOGRAMS[name].tolist(),
                "counts": counts[1:-1].tolist(),
                "below": int(counts[0]),
                "above": int(counts[-1]),
            }
            for name, counts in bins.items()
        },
    }
