"""Notes on the bar grid -> melody lines. Works on many files at once, on flat arrays without a loop over notes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dataset_script import features
from dataset_script.midi_notes import (
    DURATION_BITS,
    MAX_DURATION,
    MAX_STEPS,
    PITCH_BITS,
    STEP_BITS,
    STEP_SHIFT,
    FileNotes,
)
from dataset_script.near_duplicates import shingles

LOWEST_PITCH, HIGHEST_PITCH = 21, 108  # the piano's 88 keys, MusicVAE's range
MIN_BARS = 4
MAX_BARS = (1 << 16) - 1  # `bars` is a uint16
MIN_PITCHES = 3
MAX_DISCARDED = 0.5  # a track of which the skyline discards a larger share of the notes is chords, not a melody

LINE_REASONS = (
    f"shorter than {MIN_BARS} bars",
    f"longer than {MAX_BARS} bars",
    f"pitch outside {LOWEST_PITCH}-{HIGHEST_PITCH}",
    f"fewer than {MIN_PITCHES} pitches",
)


class Batch:
    """Files side by side: tables of their tracks (shape (K,)) and strands (shape (S,)), and all notes (shape (N,)).

    A strand is a track in one stretch of constant time signature; lines never cross strands.

    Attributes:
        files: what `read_notes` gave for each file.
        track_file: file of each track.
        strand_file: file of each strand.
        strand_track: track of each strand, counted through the batch.
        strand_stretch: stretch of each strand, counted inside its file.
        bar_steps: grid steps in a bar of each strand.
        first_bar: bars of the file before each strand.
        numerator: of each strand's time signature.
        denominator: of each strand's time signature.
        packed: all notes as `FileNotes` packs them, but with the strand counted through the batch in `strand`.
        strand: strand of each note.
    """

    def __init__(self, files: Sequence[FileNotes]):
        tracks = np.array([len(item.track) for item in files])
        stretches = np.array([len(item.grid.start_ticks) for item in files])
        strands_before = np.cumsum(tracks * stretches) - tracks * stretches
        self.files = files
        self.track_file = np.repeat(np.arange(len(files)), tracks)
        self.strand_file = np.repeat(np.arange(len(files)), tracks * stretches)
        inside = np.arange(len(self.strand_file)) - strands_before[self.strand_file]
        self.strand_stretch = inside % stretches[self.strand_file]
        self.strand_track = (np.cumsum(tracks) - tracks)[self.strand_file] + inside // stretches[self.strand_file]
        at = (np.cumsum(stretches) - stretches)[self.strand_file] + self.strand_stretch
        self.bar_steps = np.concatenate([item.grid.bar_steps for item in files])[at]
        self.first_bar = np.concatenate([item.grid.first_bar for item in files])[at]
        self.numerator = np.concatenate([item.grid.numerator for item in files])[at]
        self.denominator = np.concatenate([item.grid.denominator for item in files])[at]
        self.packed = np.concatenate([item.notes for item in files])
        self.strand = (self.packed >> (STEP_SHIFT + STEP_BITS)) + np.repeat(
            strands_before, [len(item.notes) for item in files]
        )


@dataclass
class Skyline:
    """The highest note of each onset, strand by strand in order of time (shape (N,)), and counts by track (shape (K,)).

    Attributes:
        strand: strand of each note.
        step: onset from the start of the strand's stretch.
        pitch: MIDI pitch.
        duration: length in steps, cut where the next note begins.
        to_next: steps to the next onset in the strand, `MAX_STEPS` at its end.
        is_alone: whether the next note begins no earlier than about the note's own end.
        notes: number of notes of each track before the skyline.
        kept: number of notes of each track after it.
    """

    strand: np.ndarray
    step: np.ndarray
    pitch: np.ndarray
    duration: np.ndarray
    to_next: np.ndarray
    is_alone: np.ndarray
    notes: np.ndarray
    kept: np.ndarray


def skyline(batch: Batch) -> Skyline:
    """Make every track monophonic: of the notes with one onset the highest stays, and the next onset ends it."""
    tracks = len(batch.track_file)
    notes = np.bincount(batch.strand_track[batch.strand], minlength=tracks)
    place = batch.strand << STEP_BITS | (batch.packed >> STEP_SHIFT & (MAX_STEPS - 1))
    is_top = np.append(True, place[1:] != place[:-1])  # the packed notes are sorted by falling pitch
    place, packed = place[is_top], batch.packed[is_top]
    strand, step = place >> STEP_BITS, place & (MAX_STEPS - 1)
    to_next = np.append(np.diff(step), MAX_STEPS)
    to_next[:-1][strand[1:] != strand[:-1]] = MAX_STEPS
    duration = MAX_DURATION - (packed & MAX_DURATION)
    return Skyline(
        strand=strand,
        step=step,
        pitch=127 - (packed >> DURATION_BITS & ((1 << PITCH_BITS) - 1)),
        duration=np.minimum(duration, to_next),
        to_next=to_next,
        # Legato playing holds a note a little into the next one: a step, or a quarter of its length.
        is_alone=duration - np.maximum(duration >> 2, 1) <= to_next,
        notes=notes,
        kept=np.bincount(batch.strand_track[strand], minlength=tracks),
    )


def rate_tracks(batch: Batch, top: Skyline) -> dict[str, np.ndarray]:
    """Describe how much each track of a batch is the tune: the terms of `features.lead_scores`, shape (K,) each."""
    tracks = len(batch.track_file)
    track = batch.strand_track[top.strand]
    bar = batch.first_bar[top.strand] + top.step // batch.bar_steps[top.strand]
    is_new_bar = np.append(True, (bar[1:] != bar[:-1]) | (track[1:] != track[:-1]))
    active_bars = np.bincount(track[is_new_bar], minlength=tracks)
    quarters = (4 * batch.numerator / batch.denominator)[top.strand[is_new_bar]]
    file_begins = np.searchsorted(batch.strand_file[top.strand], np.arange(len(batch.files)))  # each has notes
    file_bars = np.maximum.reduceat(bar, file_begins) + 1
    used = np.zeros((tracks, 128), dtype=bool)
    used[track, top.pitch] = True
    return features.lead_features(
        mean_pitch=np.bincount(track, weights=top.pitch, minlength=tracks) / top.kept,
        monophony=np.bincount(track[top.is_alone], minlength=tracks) / top.notes,
        coverage=active_bars / file_bars[batch.track_file],
        pitches=used.sum(axis=1),
        density=top.kept / np.bincount(track[is_new_bar], weights=quarters, minlength=tracks),
        program=np.concatenate([item.program for item in batch.files]),
        hints=np.array([features.name_hint(name) for item in batch.files for name in item.names]),
    )


@dataclass
class Lines:
    """Melody lines of a batch of files: one entry per line (shape (L,)), notes one after the other (shape (N,)).

    Attributes:
        file: index of each line's file in the batch, rising.
        first_bar: bars of the file before the line.
        numerator: of the time signature.
        denominator: of the time signature.
        key: index into `features.KEY_NAMES`.
        offsets: where each line's notes begin and the last ends, shape (L + 1,).
        pitch: MIDI pitches of all notes.
        start: their onsets in steps from the bar line at or before the line's first note.
        duration: their lengths in steps.
        digest: a hash of notes and time signature of each line; equal lines have equal digests.
        hashes: hashes of the lead tracks' material, shape (M,).
        hash_file: index of the file of each, shape (M,).
        tracks: number of tracks by what became of them: "melody", or the reason for leaving them out.
        dropped: number of lines left out, by reason.
        track: the column of the same name, like the other attributes.
    """

    file: np.ndarray
    first_bar: np.ndarray
    numerator: np.ndarray
    denominator: np.ndarray
    track: np.ndarray
    program: np.ndarray
    lead_score: np.ndarray
    is_lead: np.ndarray
    tempo: np.ndarray
    key: np.ndarray
    key_confidence: np.ndarray
    bars: np.ndarray
    complexity: np.ndarray
    offsets: np.ndarray
    pitch: np.ndarray
    start: np.ndarray
    duration: np.ndarray
    digest: list[bytes]
    hashes: np.ndarray
    hash_file: np.ndarray
    tracks: Counter[str]
    dropped: Counter[str]


def extract_lines(files: Sequence[FileNotes], steps_per_beat: int) -> Lines:
    """Find the melody lines of a batch of files.

    Tracks become monophonic by their skyline, then split where they are silent for more than a bar and where the time
    signature changes; tracks of chords, short, monotonous and very high or low lines go.

    Args:
        files: what `read_notes` gave for each, at least one.
        steps_per_beat: the one given to `read_notes`.
    """
    batch = Batch(files)
    top = skyline(batch)
    lead_score = features.lead_scores(rate_tracks(batch, top))
    is_chords = top.notes - top.kept > MAX_DISCARDED * top.notes

    is_melodic = ~is_chords[batch.strand_track[top.strand]]
    strand, step, pitch = top.strand[is_melodic], top.step[is_melodic], top.pitch[is_melodic]
    duration, to_next = top.duration[is_melodic], top.to_next[is_melodic]
    last = np.flatnonzero(to_next - duration > np.where(to_next == MAX_STEPS, -1, batch.bar_steps[strand]))
    first = np.append(0, last + 1)[: len(last)]
    of = strand[first]
    bar = step[first] // batch.bar_steps[of]
    origin = bar * batch.bar_steps[of]
    bars = -((origin - step[last] - duration[last]) // batch.bar_steps[of])
    length = last - first + 1
    line = np.repeat(np.arange(len(last)), length)
    verdict = judge(pitch, line, bars)

    is_kept = verdict == 0
    of, bar, bars, length = of[is_kept], bar[is_kept], bars[is_kept], length[is_kept]
    is_kept_note = is_kept[line]
    start = (step - origin[line])[is_kept_note].astype(np.int32)
    pitch, duration = pitch[is_kept_note].astype(np.uint8), duration[is_kept_note].astype(np.uint16)
    lines = len(of)
    line = np.repeat(np.arange(lines), length)
    offsets = np.append(0, np.cumsum(length))
    track, file = batch.strand_track[of], batch.strand_file[of]
    numerator, denominator = batch.numerator[of], batch.denominator[of]
    is_lead = find_leads(lead_score, track, file)
    is_lead_note = is_lead[line]
    hashes, hash_line = shingles(pitch[is_lead_note], start[is_lead_note], line[is_lead_note])
    key, key_confidence = features.keys(pitch, duration, line, lines)
    tracks = Counter({"melody": len(np.unique(track)), "chords": int(is_chords.sum())})
    tracks["no line left"] = len(is_chords) - tracks.total()
    for item in files:
        tracks.update(item.dropped_tracks)
    return Lines(
        file=file,
        first_bar=batch.first_bar[of] + bar,
        numerator=numerator,
        denominator=denominator,
        track=np.concatenate([item.track for item in files])[track],
        program=np.concatenate([item.program for item in files])[track],
        lead_score=lead_score[track],
        is_lead=is_lead,
        tempo=tempos(batch, of, start[offsets[:-1]] + bar * batch.bar_steps[of]),
        key=key,
        key_confidence=key_confidence,
        bars=bars,
        complexity=features.complexities(pitch, start, line, 4 * bars * numerator / denominator, steps_per_beat),
        offsets=offsets,
        pitch=pitch,
        start=start,
        duration=duration,
        digest=list(digests(pitch, start, duration, offsets, numerator, denominator)),
        hashes=hashes,
        hash_file=file[hash_line],
        tracks=tracks,
        dropped=Counter(
            {reason: int((verdict == number).sum()) for number, reason in enumerate(LINE_REASONS, start=1)}
        ),
    )


def judge(pitch: np.ndarray, line: np.ndarray, bars: np.ndarray) -> np.ndarray:
    """Return 0 for each line to keep, else 1 + the place of its reason in `LINE_REASONS`, shape (L,)."""
    used = np.zeros((len(bars), 128), dtype=bool)
    used[line, pitch] = True
    is_outside = used[:, :LOWEST_PITCH].any(axis=1) | used[:, HIGHEST_PITCH + 1 :].any(axis=1)
    return np.select(
        [bars < MIN_BARS, bars > MAX_BARS, is_outside, used.sum(axis=1) < MIN_PITCHES], [1, 2, 3, 4], default=0
    )


def find_leads(lead_score: np.ndarray, track: np.ndarray, file: np.ndarray) -> np.ndarray:
    """Tell which lines belong to the lead of their file: its best track of those that have lines, else the first.

    Args:
        lead_score: of each track of the batch, shape (K,).
        track: track of each line, shape (L,).
        file: file of each line, shape (L,).
    """
    order = np.lexsort((track, -lead_score[track], file))
    is_first = np.append(True, file[order[1:]] != file[order[:-1]])[: len(order)]
    lead = np.zeros(len(lead_score), dtype=bool)
    lead[track[order[is_first]]] = True
    return lead[track]


def tempos(batch: Batch, strand: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Return the tempo in quarter notes per minute at a step of a strand, shape (L,)."""
    found = np.empty(len(strand))
    strand_file, strand_stretch = batch.strand_file[strand], batch.strand_stretch[strand]
    bounds = np.searchsorted(strand_file, np.arange(len(batch.files) + 1))
    for item, begin, end in zip(batch.files, bounds[:-1], bounds[1:], strict=True):
        if begin == end:
            continue
        if len(item.tempo) == 1:
            found[begin:end] = item.tempo[0]
            continue
        up, down = item.grid.steps_per_tick[strand_stretch[begin:end]].T
        # Half a step of grace: a note that was quantised backwards still begins in the tempo that it was played in.
        ticks = item.grid.start_ticks[strand_stretch[begin:end]] + (2 * step[begin:end] + 1) * down // (2 * up)
        found[begin:end] = item.tempo[np.searchsorted(item.tempo_ticks, ticks, side="right") - 1]
    return found


def digests(
    pitch: np.ndarray,
    start: np.ndarray,
    duration: np.ndarray,
    offsets: np.ndarray,
    numerator: np.ndarray,
    denominator: np.ndarray,
) -> Iterator[bytes]:
    """Hash notes and time signature of each line (16 bytes of BLAKE2b)."""
    signatures = zip(numerator.tolist(), denominator.tolist(), strict=True)
    bounds = offsets.tolist()
    for begin, end, signature in zip(bounds[:-1], bounds[1:], signatures, strict=True):
        notes = [values[begin:end].tobytes() for values in (pitch, start, duration)]
        yield hashlib.blake2b(b"".join([b"%d/%d" % signature, *notes]), digest_size=16).digest()
