"""Notes on the bar grid -> melody lines, their leads and what identifies them, for many files at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dataset_script import features, line_quality
from dataset_script.lead_score import (
    find_doubles,
    has_highest,
    lead_scores,
    name_hint,
    read_weights,
    track_features,
    utilities,
)
from dataset_script.line_finding import KEPT, LINE_REASONS, bounds, find_lines, gather, place_in_bars, skyline, tempos
from dataset_script.melody_rules import MAX_DISCARDED
from dataset_script.midi_notes import (
    BAR_STEPS,
    DENOMINATOR,
    FIRST_BAR,
    NUMERATOR,
    PHASES,
    FileNotes,
)
from dataset_script.near_duplicates import outlines, side_by_side, signatures, stretches, verbatim_runs


class Batch:
    """Files side by side: tables of their tracks (shape (K,)) and strands (shape (S,)), and all notes (shape (N,)).

    A strand is a track in one stretch of constant time signature; lines never cross strands.

    Attributes:
        packed: all notes, packed and sorted as in `FileNotes`.
        file_notes: where each file's notes begin and the last ends, shape (F + 1,).
        coarse: `packed` and `file_notes` on a grid of half the resolution.
        file_tracks: where each file's tracks begin and the last ends, shape (F + 1,).
        file_strands: where each file's strands begin and the last ends, shape (F + 1,).
        track: index of each track in its file.
        program: General MIDI program of each track.
        strand_file: file of each strand.
        strand_track: track of each strand, counted through the batch.
        grid: row of each strand's stretch in its file's bar grid, shape (S, 8), see `GRID_COLUMNS`.
        hints: `name_hint` of each track.
        stretches: number of stretches of each file, shape (F,).
        has_time_signature: whether each file states one, shape (F,).
    """

    def __init__(self, files: Sequence[FileNotes]):
        tracks = np.array([len(item.track) for item in files])
        stretches = np.array([len(item.grid) for item in files])
        self.packed = np.concatenate([item.notes for item in files])
        self.file_notes = bounds([len(item.notes) for item in files])
        self.coarse = np.concatenate([item.coarse for item in files]), bounds([len(item.coarse) for item in files])
        self.file_tracks = bounds(tracks)
        self.file_strands = bounds(tracks * stretches)
        self.track = np.array([index for item in files for index in item.track])
        self.program = np.array([program for item in files for program in item.program])
        self.hints = np.array([name_hint(name) for item in files for name in item.names], dtype=float)
        self.has_time_signature = np.array([item.has_time_signature for item in files])
        self.strand_file = np.repeat(np.arange(len(files)), tracks * stretches)
        inside = np.arange(len(self.strand_file)) - self.file_strands[self.strand_file]
        stretch = bounds(stretches)[self.strand_file] + inside % stretches[self.strand_file]
        self.strand_track = self.file_tracks[self.strand_file] + inside // stretches[self.strand_file]
        self.grid = np.concatenate([item.grid for item in files])[stretch]
        self.stretches = stretches
        self.file_tempos = bounds([len(item.tempo_ticks) for item in files])
        self.tempo_ticks = np.concatenate([item.tempo_ticks for item in files])
        self.mspq = np.concatenate([item.mspq for item in files])

    def tempos(self, file: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return where the tempos of some files begin and end, and the ticks and lengths of the quarters of all."""
        return self.file_tempos[file], self.file_tempos[file + 1], self.tempo_ticks, self.mspq


class Skyline(NamedTuple):
    """What [`skyline`] returns."""

    strand: np.ndarray
    step: np.ndarray
    pitch: np.ndarray
    duration: np.ndarray
    to_next: np.ndarray
    is_alone: np.ndarray
    phase: np.ndarray
    found: np.ndarray
    kept: np.ndarray


class Judgement(NamedTuple):
    """What the tracks of a batch are like, which is likeliest to be the tune, and which are left out, shape (K,).

    Attributes:
        features: what `track_features` returned, shape (K, F).
        utility: the logarithm of the odds to be the tune, by itself.
        is_chords: whether a track is left out as chords.
        double_of: the track that it doubles, itself where it doubles none.
        is_double: whether it is left out since it doubles another.
    """

    features: np.ndarray
    utility: np.ndarray
    is_chords: np.ndarray
    double_of: np.ndarray
    is_double: np.ndarray


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
        digest: a hash of notes and time signature of each line, shape (L, 2); equal lines have equal digests.
        file_grid_fit: grid fit of all pitched notes of each file, shape (F,).
        signatures: hashes of each file's runs for the search for near-duplicates, and the file of each, shape (M,).
        stretches: hashes of each file's longer stretches, which verify it, and the file of each, shape (M',).
        verbatim: hashes of the long runs of each file's lead, and the file of each, shape (M'',).
        double_of: for each track of the batch the one that it doubles, itself where it doubles none, shape (K,).
        track_features: what the lead score is made from, of each pitched track of the batch, shape (K, features).
        track_has_lines: whether each of them has a line.
        track_utility: the logarithm of its odds to be the tune, by itself.
        tracks: number of tracks by what became of them: "melody", or the reason for leaving them out.
        dropped: number of lines left out, by reason.
        displacement_steps: sum over all pitched notes of how far quantisation moved their onsets.
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
    digest: np.ndarray
    grid_fit: np.ndarray
    has_time_signature: np.ndarray
    silence: np.ndarray
    distinct_bars: np.ndarray
    repeated_pitches: np.ndarray
    arpeggio: np.ndarray
    quality: np.ndarray
    file_grid_fit: np.ndarray
    signatures: tuple[np.ndarray, np.ndarray]
    stretches: tuple[np.ndarray, np.ndarray]
    verbatim: tuple[np.ndarray, np.ndarray]
    double_of: np.ndarray
    track_features: np.ndarray
    track_has_lines: np.ndarray
    track_utility: np.ndarray
    tracks: Counter[str]
    dropped: Counter[str]
    displacement_steps: float


def extract_lines(files: Sequence[FileNotes], steps_per_beat: int) -> Lines:
    """Find the melody lines of a batch of files.

    Tracks become monophonic by their skyline, then split where they are silent for more than a bar and where the time
    signature changes. Left out are tracks of chords, unless they are likelier than the file's others to be the tune,
    tracks that double another, and lines that are short, monotonous or very high or low.

    Args:
        files: what `read_notes` gave for each, at least one.
        steps_per_beat: the one given to `read_notes`.
    """
    # The skyline of every track, and which of the tracks are chords or doubles.
    batch = Batch(files)
    sky = Skyline(*skyline(batch.packed, batch.file_notes, batch.file_strands, batch.strand_track, len(batch.track)))
    judged = judge_tracks(batch, sky, steps_per_beat)
    is_left_out = (judged.is_chords | judged.is_double)[batch.strand_track]

    # The lines that stay, and their notes.
    bar_steps = batch.grid[:, BAR_STEPS]
    first, end, bar, bars, verdict = find_lines(*sky[:5], bar_steps, is_left_out)
    is_kept = verdict == KEPT
    first, end, bar, bars = first[is_kept], end[is_kept], bar[is_kept], bars[is_kept]
    of = sky.strand[first]
    offsets, grid, bar_steps = bounds(end - first), batch.grid[of], bar_steps[of]
    numerator, denominator = grid[:, NUMERATOR], grid[:, DENOMINATOR]
    pitch, start, duration, digest = gather(
        first, bar * bar_steps, offsets, sky.step, sky.pitch, sky.duration, numerator << 32 | denominator
    )
    phase = sky.phase[np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], end - first)]

    # What they are like, and what their tracks and files are.
    track, file = batch.strand_track[of], batch.strand_file[of]
    has_lines = np.bincount(track, minlength=len(batch.track)) > 0
    lead_score = lead_scores(judged.utility, has_lines, batch.file_tracks)
    is_lead = find_leads(lead_score, track, file)
    key, key_confidence = features.keys(pitch, duration, offsets)
    figures = line_quality.describe_lines(pitch, start, duration, phase, offsets, bars, bar_steps)
    complexity = features.complexities(pitch, start, offsets, 4 * bars * numerator / denominator, steps_per_beat)
    return Lines(
        file=file,
        first_bar=grid[:, FIRST_BAR] + bar,
        numerator=numerator,
        denominator=denominator,
        track=batch.track[track],
        program=batch.program[track],
        lead_score=lead_score[track],
        is_lead=is_lead,
        tempo=tempos(*batch.tempos(file), grid, sky.step[first]),
        key=key,
        key_confidence=key_confidence,
        bars=bars,
        complexity=complexity,
        offsets=offsets,
        pitch=pitch,
        start=start,
        duration=duration,
        digest=digest,
        **figures,
        quality=line_quality.qualities(figures, complexity, np.diff(offsets) / bars),
        has_time_signature=batch.has_time_signature[file],
        file_grid_fit=line_quality.grid_fits(batch.packed & (PHASES - 1), batch.file_notes),
        **fingerprints(batch, is_left_out, pitch, offsets, file, is_lead),
        double_of=judged.double_of,
        track_features=judged.features,
        track_has_lines=has_lines,
        track_utility=judged.utility,
        tracks=count_tracks(files, judged, has_lines),
        dropped=Counter({reason: int((verdict == number).sum()) for number, reason in LINE_REASONS.items()}),
        displacement_steps=sum(item.displacement_steps for item in files),
    )


def judge_tracks(batch: Batch, sky: Skyline, steps_per_beat: int) -> Judgement:
    """Describe the tracks of a batch, and find those that are chords or double another."""
    quarter_steps = steps_per_beat * batch.grid[:, DENOMINATOR] / 4
    described = track_features(
        bounds(sky.kept),
        batch.file_tracks,
        *place_in_bars(sky.strand, sky.step, batch.grid[:, BAR_STEPS], batch.grid[:, FIRST_BAR]),
        quarter_steps[sky.strand],
        sky.pitch,
        sky.duration,
        sky.is_alone,
        sky.found,
    )
    utility = utilities(described, batch.program, batch.hints)
    is_chords = (sky.found - sky.kept > MAX_DISCARDED * sky.found) & ~has_highest(utility, batch.file_tracks)
    double_of = find_doubles(
        bounds(sky.kept), batch.file_tracks, batch.file_strands, sky.strand, sky.step, sky.pitch, utility
    )
    return Judgement(described, utility, is_chords, double_of, ~is_chords & (double_of != np.arange(len(double_of))))


def count_tracks(files: Sequence[FileNotes], judged: Judgement, has_lines: np.ndarray) -> Counter[str]:
    """Count the tracks of a batch by what became of them."""
    outcome = Counter({"melody": int(has_lines.sum()), "chords": int(judged.is_chords.sum())})
    outcome["doubles another"] = int(judged.is_double.sum())
    outcome["no line left"] = len(has_lines) - outcome.total()
    for item in files:
        outcome.update(item.dropped_tracks)
    return outcome


def fingerprints(
    batch: Batch,
    is_left_out: np.ndarray,
    pitch: np.ndarray,
    offsets: np.ndarray,
    file: np.ndarray,
    is_lead: np.ndarray,
) -> dict[str, Any]:
    """Hash the lines, and the outlines of whole files, for the search for near-duplicates; see `Lines`."""
    music = side_by_side(
        [
            (pitch, offsets, file),
            outlines(batch.packed, batch.file_notes, batch.stretches),
            *coarse_reading(batch, is_left_out),
        ]
    )
    return {
        "signatures": signatures(*music),
        "stretches": stretches(*music),
        "verbatim": verbatim_runs(pitch, offsets, file, is_lead),
    }


def coarse_reading(batch: Batch, is_left_out: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Find the lines and outlines of a batch on its grid of half the resolution, for the search for near-duplicates.

    A bar has as many steps there as on the fine grid: so the lines are those of a copy in notes half as long.

    Args:
        batch: the files.
        is_left_out: whether a strand is left out altogether, shape (S,).

    Returns:
        Arguments of `near_duplicates.signatures`: of the lines, and of the outlines.
    """
    tracks = batch.file_strands, batch.strand_track, len(batch.track)
    strand, step, pitch, duration, to_next, *_ = skyline(*batch.coarse, *tracks)
    bar_steps = batch.grid[:, BAR_STEPS]
    first, end, _, _, verdict = find_lines(strand, step, pitch, duration, to_next, bar_steps, is_left_out)
    first, lengths = first[verdict == KEPT], (end - first)[verdict == KEPT]
    offsets = bounds(lengths)
    notes = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], lengths)
    lines = pitch[notes], offsets, batch.strand_file[strand[first]]
    return [lines, outlines(*batch.coarse, batch.stretches)]


def find_leads(lead_score: np.ndarray, track: np.ndarray, file: np.ndarray) -> np.ndarray:
    """Tell which lines belong to the lead of their file: its best track of those that have lines, else the first.

    A file whose best score lies below the floor of `lead_score.json` has no lead.

    Args:
        lead_score: of each track of the batch, shape (K,).
        track: track of each line, shape (L,).
        file: file of each line, shape (L,).
    """
    order = np.lexsort((track, -lead_score[track], file))
    is_first = np.append(True, file[order[1:]] != file[order[:-1]])[: len(order)]
    lead = np.zeros(len(lead_score), dtype=bool)
    lead[track[order[is_first]]] = True
    return (lead & (lead_score >= read_weights()["floor"]))[track]
