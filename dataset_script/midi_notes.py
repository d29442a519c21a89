"""One MIDI file -> its notes on the bar grid of its time signatures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from symusic.core import ScoreTick

from dataset_script.midi_reader import Events, read_events
from dataset_script.midi_repair import repair_midi
from dataset_script.voices import join_voices

# 63 bits: a note is one sortable, non-negative int64
STRAND_BITS, STEP_BITS, PITCH_BITS, DURATION_BITS, PHASE_BITS = 16, 20, 7, 16, 4
DURATION_SHIFT = PHASE_BITS
PITCH_SHIFT = DURATION_SHIFT + DURATION_BITS
STEP_SHIFT = PITCH_SHIFT + PITCH_BITS
STRAND_SHIFT = STEP_SHIFT + STEP_BITS
PHASES = 1 << PHASE_BITS  # where in a step an onset was played, to the nearest of so many places; 0 is on the step
MAX_STEPS = 1 << STEP_BITS
MAX_STRANDS = 1 << STRAND_BITS
MAX_DURATION = (1 << DURATION_BITS) - 1
MAX_TRACKS = 1 << 15  # `track` is an int16
ENDLESS_TICKS = 1 << 40


class UnreadableMidiError(ValueError):
    """A file that yields no notes; the message is the reason under which the funnel counts it."""


GRID_COLUMNS = 8
START_TICKS, LENGTH_TICKS, NUMERATOR, DENOMINATOR, BAR_STEPS, FIRST_BAR, STEPS_UP, TICKS_DOWN = range(GRID_COLUMNS)
"""The columns of a bar grid (int64, shape (G, 8)): the stretches of constant time signature of one file, in order.

START_TICKS: where the stretch begins; bars are counted from here. LENGTH_TICKS: its length; the last stretch has no end
(a very large number). NUMERATOR, DENOMINATOR: of the time signature, after `canonical_time_signature`. BAR_STEPS: grid
steps in a bar. FIRST_BAR: number of bars of the file before the stretch. STEPS_UP, TICKS_DOWN: as many grid steps
as ticks."""


@dataclass
class FileNotes:
    """The notes of one file that are no drums, quantised.

    Attributes:
        notes: packed notes (int64, shape (N,)), sorted by strand, onset, falling pitch, falling duration, phase. A
            *strand* is a track inside one stretch of constant time signature: strand = position of the track * G +
            stretch.
        coarse: likewise on a grid of half the resolution, for the search for near-duplicates.
        grid: the stretches, see `GRID_COLUMNS`.
        has_time_signature: whether the file states one.
        track: index in the file of each pitched voice that has notes, see `join_voices`.
        program: General MIDI program of each.
        names: name of each.
        tempo_ticks: where tempos change, shape (P,).
        mspq: microseconds per quarter note from there on, shape (P,).
        dropped_tracks: number of tracks left out, by reason.
        displacement_steps: sum over the notes of how far quantisation moved their onsets, in steps.
    """

    notes: np.ndarray
    coarse: np.ndarray
    grid: np.ndarray
    has_time_signature: bool
    track: list[int]
    program: list[int]
    names: list[str]
    tempo_ticks: np.ndarray
    mspq: np.ndarray
    dropped_tracks: dict[str, int]
    displacement_steps: float


@njit(cache=True)
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


@njit(cache=True)
def bar_grid(
    time: np.ndarray, numerators: np.ndarray, denominators: np.ndarray, ticks_per_quarter: int, steps_per_beat: int
) -> np.ndarray:
    """Find the stretches of constant time signature (see `GRID_COLUMNS`).

    A signature that is stated again on a bar line changes nothing and is passed over; stated again inside a bar, it
    starts a new bar and therefore a new stretch. 4/4 holds until the first signature.

    Args:
        time: where signatures are stated, in ticks, shape (P,).
        numerators: of each, shape (P,).
        denominators: of each, shape (P,).
        ticks_per_quarter: resolution of the file.
        steps_per_beat: grid steps in a beat.
    """
    grid = np.zeros((len(time) + 1, GRID_COLUMNS), dtype=np.int64)
    whole_note_ticks = 4 * ticks_per_quarter
    grid[0, NUMERATOR] = grid[0, DENOMINATOR] = 4
    last = 0
    # In the order of time; of equal times the later event holds.
    for place in np.argsort(time, kind="mergesort"):
        if numerators[place] < 1 or denominators[place] < 1:
            continue
        numerator, denominator = canonical_time_signature(np.int64(numerators[place]), np.int64(denominators[place]))
        start = max(np.int64(time[place]), 0)
        if start == grid[last, START_TICKS]:  # the last of several at one place holds
            last -= 1
        is_restated = (
            last >= 0
            and numerator == grid[last, NUMERATOR]
            and denominator == grid[last, DENOMINATOR]
            and (start - grid[last, START_TICKS]) * denominator % (whole_note_ticks * numerator) == 0
        )
        if not is_restated:
            last += 1
            grid[last, START_TICKS], grid[last, NUMERATOR], grid[last, DENOMINATOR] = start, numerator, denominator
    # How long each stretch is, what its grid is, and how many bars come before it.
    for stretch in range(last + 1):
        numerator, denominator = grid[stretch, NUMERATOR], grid[stretch, DENOMINATOR]
        length = grid[stretch + 1, START_TICKS] - grid[stretch, START_TICKS] if stretch < last else ENDLESS_TICKS
        grid[stretch, LENGTH_TICKS] = length
        grid[stretch, BAR_STEPS] = numerator * steps_per_beat
        grid[stretch, STEPS_UP], grid[stretch, TICKS_DOWN] = denominator * steps_per_beat, whole_note_ticks
        if stretch < last:
            bars = -(-length * denominator // (whole_note_ticks * numerator))
            grid[stretch + 1, FIRST_BAR] = grid[stretch, FIRST_BAR] + bars
    return grid[: last + 1]


@njit(cache=True)
def drop_ornaments(notes: np.ndarray, begin: np.ndarray, end: np.ndarray, first: int, last: int) -> int:
    """Leave out the ornaments of one voice on one grid step, where not all notes on it sound together.

    Only what overlaps in played time is a chord.

    Of two notes of which one ends at or before the other begins the longer takes the step, the earlier where they are
    equally long.

    Args:
        notes: packed notes; those from `first` on are moved together.
        begin: onset of each of them in ticks, rising from `first` on.
        end: end of each of them in ticks, later than the onset.
        first: index of the first note on the step.
        last: index after the last.

    Returns:
        Index after the last note that stays.
    """
    is_ornament = np.zeros(last - first, dtype=np.bool_)
    order = np.argsort(end[first:last])
    longest = seen = 0  # of the notes that end at or before a note's onset
    for one in range(first, last):
        while end[first + order[seen]] <= begin[one]:
            longest = max(longest, end[first + order[seen]] - begin[first + order[seen]])
            seen += 1
        is_ornament[one - first] = longest >= end[one] - begin[one]
    longest, left = 0, last - 1  # of the notes that begin at or after a note's end
    for place in order[::-1]:
        one = first + place
        while begin[left] >= end[one]:
            longest = max(longest, end[left] - begin[left])
            left -= 1
        is_ornament[place] |= longest > end[one] - begin[one]
    kept = first
    for one in range(first, last):
        if not is_ornament[one - first]:
            notes[kept], begin[kept], end[kept] = notes[one], begin[one], end[one]
            kept += 1
    return kept


@njit(cache=True, error_model="numpy")
def pack_notes(
    time: np.ndarray, duration: np.ndarray, pitch: np.ndarray, track_notes: np.ndarray, grid: np.ndarray
) -> tuple[np.ndarray, float]:
    """Move onsets and ends to the nearest grid step, halves upwards, and pack each note into one integer.

    An onset that is nearest to the next stretch's first bar line belongs to that stretch. A note ends with its stretch
    at the latest and is at least one step long. Ornaments are left out, see `drop_ornaments`.

    Args:
        time: onsets in ticks, tracks one after the other, rising in each, shape (N,).
        duration: lengths in ticks, shape (N,).
        pitch: MIDI pitches, shape (N,).
        track_notes: number of notes of each track, shape (K,).
        grid: what `bar_grid` returned.

    Returns:
        The notes as in `FileNotes.notes`, not sorted, and the sum of their onsets' displacements in steps; no notes
        at all if one has an impossible time.
    """
    notes = np.empty(len(time), dtype=np.int64)
    begin_ticks, end_ticks = np.empty(len(time), dtype=np.int64), np.empty(len(time), dtype=np.int64)
    stretches = len(grid)
    # The first step after each stretch, and how many steps a tick is: no division that a note does not need.
    end_steps, ratio = -(-grid[:, LENGTH_TICKS] * grid[:, STEPS_UP] // grid[:, TICKS_DOWN]), 1 / grid[:, TICKS_DOWN]
    displacement = 0.0
    end_of_track = 0
    packed_count = on_step = 0  # notes packed so far, and the first of those on the same step as the last
    last_place, last_onset, first_end = np.int64(-1), np.int64(-1), np.int64(0)  # of the notes on that step
    for track in range(len(track_notes)):
        begin_of_track, end_of_track = end_of_track, end_of_track + track_notes[track]
        stretch = 0
        for note in range(begin_of_track, end_of_track):
            # The stretch that the onset lies in, and the nearest step of its grid.
            onset = np.int64(time[note])
            if onset < 0:
                return notes[:0], 0.0
            if onset < grid[stretch, START_TICKS]:
                stretch = 0
            while stretch + 1 < stretches and grid[stretch + 1, START_TICKS] <= onset:
                stretch += 1
            place, up, down = stretch, grid[stretch, STEPS_UP], grid[stretch, TICKS_DOWN]
            exact = (onset - grid[stretch, START_TICKS]) * up  # in 1 / down of a step
            step = (2 * exact + down) // (2 * down)
            moved = (exact - step * down) * ratio[stretch]
            displacement += abs(moved)
            is_next = step * down >= grid[place, LENGTH_TICKS] * up
            while is_next:  # more than once where a stretch is shorter than half a step
                place, step = place + 1, 0
                up, down = grid[place, STEPS_UP], grid[place, TICKS_DOWN]
                is_next = grid[place, LENGTH_TICKS] * up * 2 <= down
            if step >= MAX_STEPS:
                return notes[:0], 0.0
            # The length, and all of it in one number.
            ticks = max(duration[note], 0)
            end = (2 * (onset + ticks - grid[place, START_TICKS]) * up + down) // (2 * down)
            length = min(max(min(end, end_steps[place]) - step, 1), MAX_DURATION)
            at = (track * stretches + place) << STEP_BITS | step
            value = (at << PITCH_BITS | (127 - np.int64(pitch[note]))) << DURATION_BITS | (MAX_DURATION - length)
            value = value << PHASE_BITS | np.int64(np.rint(moved * PHASES)) & (PHASES - 1)
            # The voice's notes on the step before are complete: its ornaments go.
            if at != last_place:
                if last_onset >= first_end:
                    packed_count = drop_ornaments(notes, begin_ticks, end_ticks, on_step, packed_count)
                on_step, last_place, first_end = packed_count, at, np.int64(ENDLESS_TICKS)
            last_onset, end = onset, onset + max(ticks, 1)
            first_end = min(first_end, end)
            notes[packed_count], begin_ticks[packed_count], end_ticks[packed_count] = value, onset, end
            packed_count += 1
    if last_onset >= first_end:
        packed_count = drop_ornaments(notes, begin_ticks, end_ticks, on_step, packed_count)
    return notes[:packed_count], displacement


def reason_of(data: bytes) -> str:
    """Return the reason for leaving bytes out that cannot be repaired."""
    head = data[:512].lstrip().lower()
    if head.startswith(b"riff"):
        return "RIFF container"
    if b"<html" in head or head.startswith(b"<!doctype"):
        return "web page"
    return "truncated" if b"mthd" in head else "no MThd header"


def parse(data: bytes) -> ScoreTick:
    """Parse the bytes of a MIDI file.

    Raises:
        UnreadableMidiError: with the reason, if they are damaged.
    """
    try:
        return ScoreTick.from_midi(data)
    except MemoryError:
        raise
    except Exception as error:  # symusic raises whatever its C++ threw
        message = str(error).lower()
        is_short = any(sign in message for sign in ("chunk length", "remaining", "end of", "eof", "out of"))
        raise UnreadableMidiError("truncated" if is_short else "damaged events") from error


def events_of(score: ScoreTick) -> Events:
    """Take the events that matter out of a score whose unit is the tick."""
    # Tracks with pitched notes, in the file's order.
    track, dropped = [], {}
    for index, part in enumerate(score.tracks):
        if not part.is_drum and len(part.notes):
            track.append(index)
        else:
            reason = "drums" if part.is_drum else "no notes"
            dropped[reason] = dropped.get(reason, 0) + 1
    # Their notes, those of a track after each other.
    parts = [score.tracks[index] for index in track]
    track_notes = np.array([len(part.notes) for part in parts], dtype=np.int64)
    notes = {"time": np.int32, "duration": np.int32, "pitch": np.uint8}
    notes = {name: np.empty(track_notes.sum(), kind) for name, kind in notes.items()}
    for part, end in zip(parts, track_notes.cumsum(), strict=True):
        columns = part.notes.numpy()  # kept no longer: the columns of many thousands of tracks fill the memory
        for name, column in notes.items():
            column[end - len(part.notes) : end] = columns[name]
    tempos, signatures = score.tempos.numpy(), score.time_signatures.numpy()
    return Events(
        ticks_per_quarter=score.ticks_per_quarter,
        **notes,
        track_notes=track_notes,
        track=track,
        file_track=track,
        channel=[0] * len(track),
        program=[part.program for part in parts],
        names=[part.name for part in parts],
        dropped=dropped,
        open_notes=0,
        tempo_ticks=tempos["time"].astype(np.int32),
        mspq=tempos["mspq"].astype(np.int32),
        signature_ticks=signatures["time"].astype(np.int32),
        numerators=signatures["numerator"].astype(np.int32),
        denominators=signatures["denominator"].astype(np.int32),
    )


def events_of_bytes(data: bytes) -> Events:
    """Read the bytes of a MIDI file; one that is not in order is repaired as the model's processor repairs it.

    Raises:
        UnreadableMidiError: with the reason, if the bytes are no MIDI file or a damaged one.
    """
    if not data:
        raise UnreadableMidiError("empty file")
    events = read_events(data, ends_notes=True)
    if events is not None and not events.open_notes:
        return events
    try:
        repaired, _ = repair_midi(data, has_open_notes=events is not None)
        return read_events(repaired, ends_notes=True) or events_of(parse(repaired))
    except ValueError as error:  # what cannot be repaired
        if events is not None:
            return events
        raise error if isinstance(error, UnreadableMidiError) else UnreadableMidiError(reason_of(data)) from error


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
    events = join_voices(events_of_bytes(midi) if isinstance(midi, bytes) else events_of(midi))
    # A file without ticks, notes or a possible grid is given up.
    if events.ticks_per_quarter < 1:
        raise UnreadableMidiError("no ticks per quarter note")
    if not events.track:
        raise UnreadableMidiError("only drums" if "drums" in events.dropped else "no notes")
    grid = bar_grid(
        events.signature_ticks, events.numerators, events.denominators, events.ticks_per_quarter, steps_per_beat
    )
    if len(events.track) * len(grid) > MAX_STRANDS or events.track[-1] >= MAX_TRACKS:
        raise UnreadableMidiError("too many tracks or time signatures")
    columns = events.time, events.duration, events.pitch, events.track_notes
    notes, displacement = pack_notes(*columns, grid)
    if not len(notes):
        raise UnreadableMidiError("notes at impossible times")
    # On half as many steps too: by these, notes of other quantisations are compared.
    coarse, _ = pack_notes(*columns, grid * np.where(np.arange(GRID_COLUMNS) == TICKS_DOWN, 2, 1))
    notes.sort()
    coarse.sort()
    return FileNotes(
        notes=notes,
        coarse=coarse,
        grid=grid,
        has_time_signature=len(events.numerators) > 0,
        track=events.track,
        program=events.program,
        names=events.names,
        tempo_ticks=events.tempo_ticks,
        mspq=events.mspq,
        dropped_tracks=events.dropped,
        displacement_steps=displacement,
    )
