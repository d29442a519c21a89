"""One MIDI file -> its notes on the bar grid of its time signatures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from symusic.core import ScoreTick

STRAND_BITS, STEP_BITS, PITCH_BITS, DURATION_BITS = 20, 20, 7, 16  # 63 bits: a note is one sortable, non-negative int64
STEP_SHIFT = PITCH_BITS + DURATION_BITS
MAX_STEPS = 1 << STEP_BITS
MAX_STRANDS = 1 << STRAND_BITS
MAX_DURATION = (1 << DURATION_BITS) - 1
MAX_TRACKS = 1 << 15  # `track` is an int16


class UnreadableMidiError(ValueError):
    """A file that yields no notes; the message is the reason under which the funnel counts it."""


@dataclass
class BarGrid:
    """The stretches of constant time signature of one file, in order; every field has one entry for each (shape (G,)).

    Attributes:
        start_ticks: where the stretch begins; bars are counted from here.
        length_ticks: its length; the last stretch has no end (a very large number).
        numerator: of the time signature, after rewriting (see `canonical_time_signature`).
        denominator: of the time signature, after rewriting.
        bar_steps: grid steps in a bar.
        first_bar: number of bars of the file before the stretch.
        steps_per_tick: numerator and denominator of the exact ratio, shape (G, 2).
    """

    start_ticks: np.ndarray
    length_ticks: np.ndarray
    numerator: np.ndarray
    denominator: np.ndarray
    bar_steps: np.ndarray
    first_bar: np.ndarray
    steps_per_tick: np.ndarray


@dataclass
class FileNotes:
    """The notes of one file that are no drums, quantised.

    Attributes:
        notes: packed notes (int64, shape (N,)), sorted by strand, onset, falling pitch, falling duration. A *strand*
            is a track inside one stretch of constant time signature: strand = position of the track * G + stretch.
        grid: the stretches.
        track: index in the file of each pitched track that has notes, shape (K,).
        program: General MIDI program of each, shape (K,).
        names: name of each.
        tempo_ticks: where tempos change, shape (P,); tick 0 is always there.
        tempo: quarter notes per minute from there on, shape (P,).
        dropped_tracks: number of tracks left out, by reason.
    """

    notes: np.ndarray
    grid: BarGrid
    track: np.ndarray
    program: np.ndarray
    names: list[str]
    tempo_ticks: np.ndarray
    tempo: np.ndarray
    dropped_tracks: dict[str, int]


def canonical_time_signature(numerator: int, denominator: int) -> tuple[int, int]:
    """Rewrite a time signature to the one that the grid is built on; the bar keeps its length.

    Halves become quarters (2/2 -> 4/4, 3/2 -> 6/4), and sixteenths and shorter become eighths where the numerator
    allows (6/16 -> 3/8).
    """
    while denominator < 4:
        numerator, denominator = 2 * numerator, 2 * denominator
    while denominator > 8 and numerator % 2 == 0:
        numerator, denominator = numerator // 2, denominator // 2
    return numerator, denominator


def bar_grid(score: ScoreTick, steps_per_beat: int) -> BarGrid:
    """Find the stretches of constant time signature of a score whose unit is the tick.

    A signature that is stated again on a bar line changes nothing and is passed over; stated again inside a bar, it
    starts a new bar and therefore a new stretch. 4/4 holds until the first signature.
    """
    whole_note_ticks = 4 * score.ticks_per_quarter
    stretches = [(0, 4, 4)]
    for signature in sorted(score.time_signatures, key=lambda signature: signature.time):
        if signature.numerator < 1 or signature.denominator < 1:
            continue
        numerator, denominator = canonical_time_signature(signature.numerator, signature.denominator)
        stretch = (max(signature.time, 0), numerator, denominator)
        if stretch[0] == stretches[-1][0]:  # the last of several at one place holds
            stretches.pop()
        if not stretches or not is_restated(stretches[-1], stretch, whole_note_ticks):
            stretches.append(stretch)
    return stretches_grid(tuple(stretches), whole_note_ticks, steps_per_beat)


@lru_cache(maxsize=256)  # most files have one of a few
def stretches_grid(stretches: tuple[tuple[int, int, int], ...], whole_note_ticks: int, steps_per_beat: int) -> BarGrid:
    """Lay the grid over stretches, each given by start in ticks, numerator and denominator."""
    start, numerator, denominator = np.array(stretches, dtype=np.int64).T
    length = np.append(np.diff(start), np.int64(1) << 40)
    bars = -(-length * denominator // (whole_note_ticks * numerator))
    ratio = np.stack([denominator * steps_per_beat, np.full_like(denominator, whole_note_ticks)], axis=1)
    first_bar = np.concatenate([[0], np.cumsum(bars[:-1])])
    return BarGrid(start, length, numerator, denominator, numerator * steps_per_beat, first_bar, ratio)


def is_restated(old: tuple[int, int, int], new: tuple[int, int, int], whole_note_ticks: int) -> bool:
    """Tell whether the stretch `new` (start in ticks, numerator, denominator) repeats `old` on one of its bar lines."""
    return old[1:] == new[1:] and (new[0] - old[0]) * old[2] % (whole_note_ticks * old[1]) == 0


def quantise(
    start_ticks: np.ndarray, end_ticks: np.ndarray, grid: BarGrid
) -> tuple[np.ndarray, np.ndarray, np.ndarray | int]:
    """Move onsets and ends to the nearest grid step, halves upwards.

    An onset that is nearest to the next stretch's first bar line belongs to that stretch. A note ends with its stretch
    at the latest and is at least one step long.

    Args:
        start_ticks: onsets, shape (N,).
        end_ticks: ends, shape (N,).
        grid: the stretches.

    Returns:
        Onset in steps from the start of its stretch, duration in steps, and index of the stretch, shape (N,) each
        (the index is a plain 0 where there is one stretch only).
    """
    if len(grid.start_ticks) == 1:
        up, down = (int(value) for value in grid.steps_per_tick[0])
        start = (start_ticks * (2 * up) + down) // (2 * down)
        end = (end_ticks * (2 * up) + down) // (2 * down)
        return start, np.minimum(np.maximum(end - start, 1), MAX_DURATION), 0
    stretch = np.searchsorted(grid.start_ticks, start_ticks, side="right") - 1
    up, down = grid.steps_per_tick[stretch, 0], grid.steps_per_tick[stretch, 1]
    start = (2 * (start_ticks - grid.start_ticks[stretch]) * up + down) // (2 * down)
    is_next = start * down >= grid.length_ticks[stretch] * up
    while is_next.any():  # more than once where a stretch is shorter than half a step
        stretch, start = stretch + is_next, np.where(is_next, 0, start)
        up, down = grid.steps_per_tick[stretch, 0], grid.steps_per_tick[stretch, 1]
        is_next &= grid.length_ticks[stretch] * up * 2 <= down
    end = (2 * (end_ticks - grid.start_ticks[stretch]) * up + down) // (2 * down)
    end = np.minimum(end, -(-grid.length_ticks[stretch] * up // down))
    return start, np.minimum(np.maximum(end - start, 1), MAX_DURATION), stretch


def parse(data: bytes) -> ScoreTick:
    """Parse the bytes of a MIDI file.

    Raises:
        UnreadableMidiError: with the reason, if the bytes are no MIDI file or a damaged one.
    """
    if not data:
        raise UnreadableMidiError("empty file")
    if not data.startswith(b"MThd"):
        head = data[:512].lstrip().lower()
        if head.startswith(b"riff"):
            raise UnreadableMidiError("RIFF container")
        raise UnreadableMidiError("web page" if b"<html" in head or head.startswith(b"<!doctype") else "no MThd header")
    try:
        return ScoreTick.from_midi(data)
    except Exception as error:  # symusic raises whatever its C++ threw
        message = str(error).lower()
        is_short = any(sign in message for sign in ("chunk length", "remaining", "end of", "eof", "out of"))
        raise UnreadableMidiError("truncated" if is_short else "damaged events") from error


def read_notes(midi: bytes | ScoreTick, steps_per_beat: int) -> FileNotes:
    """Read one MIDI file and put its pitched notes on the grid.

    A step is 1/`steps_per_beat` of the note that the time signature counts in, which is MidiTok's grid as well: a bar
    of 4/4 has 4 * 4 steps, one of 6/8 has 6 * 4.

    Args:
        midi: content of the file, or a score whose unit is the tick.
        steps_per_beat: grid steps in a beat.

    Raises:
        UnreadableMidiError: with the reason, if there is nothing to read.
    """
    score = parse(midi) if isinstance(midi, bytes) else midi
    if score.ticks_per_quarter < 1:
        raise UnreadableMidiError("no ticks per quarter note")
    grid = bar_grid(score, steps_per_beat)
    columns, track, program, names, dropped = [], [], [], [], {}
    for index, part in enumerate(score.tracks):
        if part.is_drum or not len(part.notes):
            reason = "drums" if part.is_drum else "no notes"
            dropped[reason] = dropped.get(reason, 0) + 1
            continue
        columns.append(part.notes.numpy())
        track.append(index)
        program.append(part.program)
        names.append(part.name)
    if not columns:
        raise UnreadableMidiError("only drums" if "drums" in dropped else "no notes")
    if len(track) * len(grid.start_ticks) > MAX_STRANDS or track[-1] >= MAX_TRACKS:
        raise UnreadableMidiError("too many tracks or time signatures")

    time = np.concatenate([column["time"] for column in columns]).astype(np.int64)
    duration = np.concatenate([column["duration"] for column in columns])
    pitch = np.concatenate([column["pitch"] for column in columns]).astype(np.int64)
    position = np.repeat(np.arange(len(columns)), [len(column["time"]) for column in columns])
    start, duration_steps, stretch = quantise(time, time + duration, grid)
    if start.max() >= MAX_STEPS or time.min() < 0 or pitch.min() < 0:
        raise UnreadableMidiError("notes at impossible times")
    strand = position * len(grid.start_ticks) + stretch
    notes = (((strand << STEP_BITS | start) << PITCH_BITS | (127 - pitch)) << DURATION_BITS) | (
        MAX_DURATION - duration_steps
    )
    notes.sort()

    tempos = score.tempos.numpy()
    tempo_ticks, mspq = np.append(0, tempos["time"]), np.append(500_000, tempos["mspq"])  # 120 until the first tempo
    return FileNotes(
        notes=notes,
        grid=grid,
        track=np.array(track),
        program=np.array(program),
        names=names,
        tempo_ticks=tempo_ticks,
        tempo=60e6 / np.maximum(mspq, 1),
        dropped_tracks=dropped,
    )
