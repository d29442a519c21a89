"""Strands of notes on the bar grid -> melody lines: compiled loops over the flat arrays of many files at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from dataset_script.melody_rules import MAX_BARS, MAX_PITCH, MIN_BARS, MIN_PITCH, MIN_PITCHES
from dataset_script.midi_notes import (
    DURATION_SHIFT,
    MAX_DURATION,
    MAX_STEPS,
    PHASES,
    PITCH_BITS,
    PITCH_SHIFT,
    START_TICKS,
    STEP_SHIFT,
    STEPS_UP,
    STRAND_SHIFT,
    TICKS_DOWN,
)
from dataset_script.near_duplicates import mix

KEPT, TOO_SHORT, TOO_LONG, OUTSIDE, MONOTONOUS = range(5)
LINE_REASONS = {
    TOO_SHORT: f"shorter than {MIN_BARS} bars",
    TOO_LONG: f"longer than {MAX_BARS} bars",
    OUTSIDE: f"pitch outside {MIN_PITCH}-{MAX_PITCH}",
    MONOTONOUS: f"fewer than {MIN_PITCHES} pitches",
}


def bounds(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return where each of several runs begins, and where the last ends."""
    return np.append(0, np.cumsum(lengths))


@njit(cache=True)
def skyline(
    packed: np.ndarray, file_notes: np.ndarray, file_strands: np.ndarray, strand_track: np.ndarray, tracks: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Make every strand monophonic: of the notes with one onset the highest stays, and the next onset ends it.

    Args:
        packed: of `Batch`, like the others.
        file_notes: of `Batch`.
        file_strands: of `Batch`.
        strand_track: of `Batch`.
        tracks: number of tracks.

    Returns:
        For each note that stays, strand by strand in order of time, shape (M,): its strand; its onset in steps from
        the start of the strand's stretch; its pitch; its length in steps, cut where the next note begins; the steps to
        the next onset in the strand, `MAX_STEPS` at its end; whether the next note begins no earlier than about the
        note's own end; and where in the step it was played, in `PHASES` parts. Last, the number of notes of each track
        before and after the skyline, shape (K,).
    """
    notes = len(packed)
    strand, step = np.empty(notes, dtype=np.int64), np.empty(notes, dtype=np.int64)
    pitch, duration = np.empty(notes, dtype=np.uint8), np.empty(notes, dtype=np.int64)
    to_next, is_alone = np.empty(notes, dtype=np.int64), np.empty(notes, dtype=np.bool_)
    phase = np.empty(notes, dtype=np.uint8)
    found, kept = np.zeros(tracks, dtype=np.int64), np.zeros(tracks, dtype=np.int64)
    last = -1
    # Notes are sorted by strand, onset and falling pitch: the first of each onset stays.
    for file in range(len(file_notes) - 1):
        for note in range(file_notes[file], file_notes[file + 1]):
            value = packed[note]
            of, onset = (value >> STRAND_SHIFT) + file_strands[file], value >> STEP_SHIFT & (MAX_STEPS - 1)
            found[strand_track[of]] += 1
            is_same_strand = last >= 0 and strand[last] == of
            if is_same_strand and step[last] == onset:
                continue  # notes with one onset are sorted by falling pitch
            if is_same_strand:
                to_next[last] = onset - step[last]
            last += 1
            kept[strand_track[of]] += 1
            strand[last], step[last], to_next[last] = of, onset, MAX_STEPS
            pitch[last] = 127 - (value >> PITCH_SHIFT & ((1 << PITCH_BITS) - 1))
            duration[last] = MAX_DURATION - (value >> DURATION_SHIFT & MAX_DURATION)
            phase[last] = value & (PHASES - 1)
    # A note ends where the next one begins.
    notes = last + 1
    for note in range(notes):
        # Legato playing holds a note a little into the next one: a step, or a quarter of its length.
        is_alone[note] = duration[note] - max(duration[note] >> 2, 1) <= to_next[note]
        duration[note] = min(duration[note], to_next[note])
    of_notes = strand[:notes], step[:notes], pitch[:notes], duration[:notes], to_next[:notes], is_alone[:notes]
    return *of_notes, phase[:notes], found, kept


@njit(cache=True)
def place_in_bars(
    strand: np.ndarray, step: np.ndarray, bar_steps: np.ndarray, first_bar: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each note's bar, counted through its file, the step in it, and the steps that it has, shape (M,)."""
    bar, position, steps = np.empty_like(step), np.empty_like(step), np.empty_like(step)
    for note in range(len(step)):
        steps[note] = bar_steps[strand[note]]
        in_stretch = step[note] // steps[note]
        bar[note], position[note] = first_bar[strand[note]] + in_stretch, step[note] - in_stretch * steps[note]
    return bar, position, steps


@njit(cache=True)
def find_lines(
    strand: np.ndarray,
    step: np.ndarray,
    pitch: np.ndarray,
    duration: np.ndarray,
    to_next: np.ndarray,
    bar_steps: np.ndarray,
    is_left_out: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Split strands where they are silent for more than a bar, and judge each line.

    Args:
        strand: what `skyline` returned, like the next four, shape (M,).
        step: onsets.
        pitch: pitches.
        duration: lengths.
        to_next: steps to the next onset.
        bar_steps: of each strand, shape (S,).
        is_left_out: whether a strand is left out altogether, shape (S,).

    Returns:
        First note, end of the notes, first bar in its stretch, number of bars, and verdict of each line, shape (L,).
    """
    notes = len(strand)
    first, end = np.empty(notes, dtype=np.int64), np.empty(notes, dtype=np.int64)
    bar, bars = np.empty(notes, dtype=np.int64), np.empty(notes, dtype=np.int64)
    verdict = np.empty(notes, dtype=np.int64)
    is_used = np.zeros(256, dtype=np.bool_)
    lines, begin = 0, 0
    # A line ends with its strand, or before a silence of more than a bar.
    for note in range(notes):
        of = strand[note]
        if to_next[note] != MAX_STEPS and to_next[note] - duration[note] <= bar_steps[of]:
            continue
        if not is_left_out[of]:
            # What its pitches are, how many bars it has, and whether it stays.
            is_used[:] = False
            lowest, highest, pitches = 255, 0, 0
            for member in range(begin, note + 1):
                value = np.int64(pitch[member])
                pitches += not is_used[value]
                is_used[value] = True
                lowest, highest = min(lowest, value), max(highest, value)
            first[lines], end[lines] = begin, note + 1
            bar[lines] = step[begin] // bar_steps[of]
            bars[lines] = -((bar[lines] * bar_steps[of] - step[note] - duration[note]) // bar_steps[of])
            verdict[lines] = KEPT
            if bars[lines] < MIN_BARS:
                verdict[lines] = TOO_SHORT
            elif bars[lines] > MAX_BARS:
                verdict[lines] = TOO_LONG
            elif lowest < MIN_PITCH or highest > MAX_PITCH:
                verdict[lines] = OUTSIDE
            elif pitches < MIN_PITCHES:
                verdict[lines] = MONOTONOUS
            lines += 1
        begin = note + 1
    return first[:lines], end[:lines], bar[:lines], bars[:lines], verdict[:lines]


@njit(cache=True)
def gather(
    first: np.ndarray,
    origin: np.ndarray,
    offsets: np.ndarray,
    step: np.ndarray,
    pitch: np.ndarray,
    duration: np.ndarray,
    signature: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Copy the notes of the lines that stay, and hash them.

    Args:
        first: first note of each line, shape (L,).
        origin: onset of its first bar line, shape (L,).
        offsets: where its notes go, shape (L + 1,).
        step: onsets of all notes, shape (M,).
        pitch: their pitches.
        duration: their lengths.
        signature: a number for the time signature of each line, shape (L,).

    Returns:
        Pitch, start and duration of the lines' notes, shape (N,), and a hash of 128 bits of each line's notes and time
        signature, shape (L, 2).
    """
    notes = offsets[-1]
    new_pitch, new_start = np.empty(notes, dtype=np.uint8), np.empty(notes, dtype=np.int32)
    new_duration = np.empty(notes, dtype=np.uint16)
    digest = np.empty((len(first), 2), dtype=np.uint64)
    for line in range(len(first)):
        low = mix(np.uint64(signature[line]))
        high = mix(~np.uint64(signature[line]))
        for position in range(offsets[line + 1] - offsets[line]):
            note, place = first[line] + position, offsets[line] + position
            new_pitch[place], new_duration[place] = pitch[note], duration[note]
            new_start[place] = step[note] - origin[line]
            content = np.uint64((step[note] - origin[line]) << 24 | duration[note] << 8 | np.int64(pitch[note]))
            low, high = mix(low ^ content), mix(high + content)
        digest[line, 0], digest[line, 1] = low, high
    return new_pitch, new_start, new_duration, digest


@njit(cache=True)
def tempos(
    first_tempo: np.ndarray,
    end_tempo: np.ndarray,
    tempo_ticks: np.ndarray,
    mspq: np.ndarray,
    grid: np.ndarray,
    step: np.ndarray,
) -> np.ndarray:
    """Return the tempo in quarter notes per minute at a step of a stretch, shape (L,); 120 until the first tempo.

    Args:
        first_tempo: index of the first tempo of the line's file, shape (L,).
        end_tempo: index after its last, shape (L,).
        tempo_ticks: where each tempo of each file begins, rising in each file, shape (P,).
        mspq: microseconds per quarter note, shape (P,).
        grid: row of the stretch in the bar grid, shape (L, 8).
        step: counted from there, shape (L,).
    """
    found = np.empty(len(step))
    for line in range(len(step)):
        up, down = grid[line, STEPS_UP], grid[line, TICKS_DOWN]
        # Half a step of grace: a note that was quantised backwards still begins in the tempo that it was played in.
        ticks = grid[line, START_TICKS] + (2 * step[line] + 1) * down // (2 * up)
        place = first_tempo[line]
        while place < end_tempo[line] and tempo_ticks[place] <= ticks:
            place += 1
        found[line] = 60e6 / max(mspq[place - 1], 1) if place > first_tempo[line] else 120.0
    return found
