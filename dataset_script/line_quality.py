"""What a melody line is worth: how well it lies on the grid, its silence, repetition and arpeggios, and one quality."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numba import njit

from dataset_script.melody_rules import HASH_FACTOR
from dataset_script.midi_notes import PHASES

WEIGHTS_PATH = Path(__file__).with_name("line_quality.json")

SECTION_BARS = 16  # distinct bars are counted in sections of so many
NARROWEST_SKIP, WIDEST_SKIP = 3, 9  # semitones from one note of an arpeggio to the next
GRID_FIT_FLOOR = 0.6  # lines below are left out of the config `leads`: their bars and rhythms mean little
MAX_SILENCE = 0.5  # so are lines with more silence,
MIN_NOTES_PER_BAR = 0.5  # fewer notes,
MIN_PITCH_CLASSES = 3  # or fewer pitch classes

# The place on the circle of each phase: 1 on the step, -1 half-way between two steps.
COSINE = np.cos(2 * np.pi * np.arange(PHASES) / PHASES)

FIGURES = ("grid_fit", "silence", "distinct_bars", "repeated_pitches", "arpeggio")


def grid_fits(phase: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return how concentrated onsets are at the steps: 1 where all are on a step, 0 where they are anywhere.

    It is the mean cosine of the onsets' phases, a whole step being the circle: the length of their mean resultant
    vector in the direction of the steps (Mardia and Jupp, Directional Statistics, 2000), 0 where it points away.

    Args:
        phase: where in a step each onset was played, in `PHASES` parts, shape (N,).
        offsets: where each line's onsets begin and the last ends, shape (L + 1,); no line is empty.

    Returns:
        Shape (L,).
    """
    summed = np.append(0.0, np.cumsum(COSINE[phase]))
    return ((summed[offsets[1:]] - summed[offsets[:-1]]) / np.diff(offsets)).clip(0.0, 1.0).round(6)


@njit(cache=True)
def describe_figures(pitch, start, duration, offsets, bars, bar_steps):
    """Return silence, distinct bars, repeated pitches and arpeggio of each line, shape (L, 4); see `describe_lines`."""
    found = np.zeros((len(bars), 4))
    content = np.empty(SECTION_BARS, dtype=np.uint64)
    for line in range(len(bars)):
        first, end = offsets[line], offsets[line + 1]
        sounding = repeated = arpeggio = distinct = 0
        section, used = 0, 0
        note = first
        # Bar by bar: a hash of what is in it, compared with those before in its section.
        for bar in range(bars[line]):
            if bar // SECTION_BARS != section:
                section, used = bar // SECTION_BARS, 0
            value = np.uint64(0)
            while note < end and start[note] < (bar + 1) * bar_steps[line]:
                place = np.int64(start[note]) - bar * bar_steps[line]
                value = value * np.uint64(HASH_FACTOR) + np.uint64((place << 7 | np.int64(pitch[note])) + 1)
                note += 1
            is_new = True
            for earlier in range(used):
                is_new &= content[earlier] != value
            if is_new:
                content[used] = value
                used += 1
                distinct += 1
        # Note by note: each beside the one or two before it.
        for note in range(first, end):
            sounding += np.int64(duration[note])
            if note > first:
                repeated += pitch[note] == pitch[note - 1]
            if note > first + 1:
                step, before = np.int64(pitch[note]) - pitch[note - 1], np.int64(pitch[note - 1]) - pitch[note - 2]
                is_even = start[note] - start[note - 1] == start[note - 1] - start[note - 2]
                arpeggio += (
                    is_even
                    and NARROWEST_SKIP <= abs(step) <= WIDEST_SKIP
                    and NARROWEST_SKIP <= abs(before) <= WIDEST_SKIP
                )
        found[line, 0] = max(1 - sounding / (bars[line] * bar_steps[line]), 0.0)
        found[line, 1] = distinct / bars[line]
        found[line, 2] = repeated / max(end - first - 1, 1)
        found[line, 3] = arpeggio / max(end - first - 2, 1)
    return found


def describe_lines(
    pitch: np.ndarray,
    start: np.ndarray,
    duration: np.ndarray,
    phase: np.ndarray,
    offsets: np.ndarray,
    bars: np.ndarray,
    bar_steps: np.ndarray,
) -> dict[str, np.ndarray]:
    """Describe lines by five numbers from 0 to 1.

    Args:
        pitch: MIDI pitches, lines one after the other, shape (N,).
        start: onsets in steps from the line's first bar line, shape (N,).
        duration: lengths in steps, shape (N,).
        phase: see `grid_fits`, shape (N,).
        offsets: where each line's notes begin and the last ends, shape (L + 1,).
        bars: length of each line, shape (L,).
        bar_steps: steps in a bar of each, shape (L,).

    Returns:
        By the names in `FIGURES`, shape (L,) each: the grid fit; the share of the bars' time in which nothing sounds;
        the share of the bars that are new in their section of 16 bars; the share of intervals that are none; and the
        share of notes that go on an arpeggio: the third of three at even distances, with two skips of 3 to 9 semitones.
    """
    figures = describe_figures(pitch, start, duration, offsets, bars, bar_steps)
    return dict(zip(FIGURES, (grid_fits(phase, offsets), *figures.T), strict=True))


@lru_cache(maxsize=1)
def read_weights() -> dict[str, np.ndarray | float]:
    """Read the fitted weights of the quality."""
    stored = json.loads(WEIGHTS_PATH.read_text(encoding="utf-8"))
    columns = {
        key: np.array([of[key] for of in stored["figures"].values()]) for key in ("mean", "scale", "linear", "square")
    }
    return columns | {"bias": stored["bias"]}


def quality_columns(
    figures: Mapping[str, np.ndarray], complexity: np.ndarray, notes_per_bar: np.ndarray
) -> dict[str, np.ndarray]:
    """Return what the quality is made from, by name, shape (L,) each."""
    return {**figures, "complexity": complexity, "log_notes_per_bar": np.log(notes_per_bar)}


def qualities(figures: Mapping[str, np.ndarray], complexity: np.ndarray, notes_per_bar: np.ndarray) -> np.ndarray:
    """Rate lines from 0 to 1: the probability that a line like this is of a track that its author called the tune.

    The other tracks are those whose names say accompaniment, tunes and these being equally many. Unlike the lead score
    it looks at the line alone, and not at register, program, name or the other tracks.

    Args:
        figures: what `describe_lines` gave.
        complexity: of each line, shape (L,).
        notes_per_bar: of each line, shape (L,).

    Returns:
        Shape (L,).
    """
    weights = read_weights()
    columns = np.stack(list(quality_columns(figures, complexity, notes_per_bar).values()), axis=1)
    standard = ((columns - weights["mean"]) / weights["scale"]).clip(-4, 4)
    logit = weights["bias"] + standard @ weights["linear"] + standard**2 @ weights["square"]
    return 1 / (1 + np.exp(-logit.round(6)))
