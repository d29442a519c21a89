"""Changes that make a near-duplicate of a MIDI file: another key, tempo, instruments, order, some notes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from symusic import Note
from symusic.core import ScoreTick

CHANGED = 0.1  # share of the notes that are changed or deleted

Columns = dict[str, np.ndarray]


def edit_notes(score: ScoreTick, edit: Callable[[Columns], Columns], pitched_only: bool = False) -> None:
    """Replace the notes of each track, given as columns `time`, `duration`, `pitch` and `velocity`."""
    for track in score.tracks:
        if len(track.notes) and not (pitched_only and track.is_drum):
            columns = edit({name: values.astype(np.int64) for name, values in track.notes.numpy().items()})
            track.notes = Note.from_numpy(
                columns["time"].astype(np.int32),
                columns["duration"].astype(np.int32),
                columns["pitch"].astype(np.int8),
                columns["velocity"].astype(np.int8),
                "tick",
            )


def where(columns: Columns, is_kept: np.ndarray) -> Columns:
    """Keep some of the notes."""
    return {name: values[is_kept] for name, values in columns.items()}


def transpose(score: ScoreTick, random: np.random.Generator) -> None:
    """Move all but the drums by one to six semitones up or down."""
    by = random.choice([-6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6])

    def edit(columns: Columns) -> Columns:
        columns["pitch"] += by
        return where(columns, (columns["pitch"] >= 0) & (columns["pitch"] < 128))

    edit_notes(score, edit, pitched_only=True)


def change_tempo(score: ScoreTick, random: np.random.Generator) -> None:
    """Play it at 0.6 to 1.6 times the tempo."""
    factor = random.uniform(0.6, 1.6)
    for tempo in score.tempos:
        tempo.mspq = round(tempo.mspq / factor)


def rescale(score: ScoreTick, up: int, down: int) -> None:
    """Multiply all times by up / down."""

    def edit(columns: Columns) -> Columns:
        columns["time"] = columns["time"] * up // down
        columns["duration"] = np.maximum(columns["duration"] * up // down, 1)
        return columns

    edit_notes(score, edit)
    for events in (score.tempos, score.time_signatures):
        for event in events:
            event.time = event.time * up // down


def double(score: ScoreTick, random: np.random.Generator) -> None:
    """Write it in notes twice as long."""
    rescale(score, 2, 1)


def halve(score: ScoreTick, random: np.random.Generator) -> None:
    """Write it in notes half as long."""
    rescale(score, 1, 2)


def reprogram(score: ScoreTick, random: np.random.Generator) -> None:
    """Take other instruments, and the names away; another track may become the lead."""
    for track in score.tracks:
        track.name = ""
        track.program = 0 if track.is_drum else int(random.integers(128))


def cut_end(score: ScoreTick, random: np.random.Generator) -> None:
    """Cut the last third off."""
    end = score.end() * 2 // 3
    edit_notes(score, lambda columns: where(columns, columns["time"] < end))


def cut_start(score: ScoreTick, random: np.random.Generator) -> None:
    """Cut the first third off, on a beat and wherever the bar line lies."""
    begin = score.end() // 3 // score.ticks_per_quarter * score.ticks_per_quarter

    def edit(columns: Columns) -> Columns:
        columns = where(columns, columns["time"] >= begin)
        columns["time"] -= begin
        return columns

    edit_notes(score, edit)
    for events in (score.tempos, score.time_signatures):
        for event in events:
            event.time = max(event.time - begin, 0)


def change_notes(score: ScoreTick, random: np.random.Generator) -> None:
    """Move a tenth of the notes by one to five semitones."""

    def edit(columns: Columns) -> Columns:
        size = len(columns["pitch"])
        by = random.integers(1, 6, size) * random.choice([-1, 1], size) * (random.random(size) < CHANGED)
        columns["pitch"] = np.clip(columns["pitch"] + by, 0, 127)
        return columns

    edit_notes(score, edit, pitched_only=True)


def delete_notes(score: ScoreTick, random: np.random.Generator) -> None:
    """Leave out a tenth of the notes."""
    edit_notes(
        score, lambda columns: where(columns, random.random(len(columns["pitch"])) >= CHANGED), pitched_only=True
    )


def reorder(score: ScoreTick, random: np.random.Generator) -> None:
    """Shuffle the tracks."""
    score.tracks = [score.tracks[index] for index in random.permutation(len(score.tracks))]


def combine(score: ScoreTick, random: np.random.Generator) -> None:
    """Make a change of each sort; where a sort has variants, one of them."""
    sorts = ((transpose,), (reprogram,), (cut_end, cut_start), (change_tempo, double, halve))
    for variants in (*sorts, (change_notes, delete_notes), (reorder,)):
        variants[random.integers(len(variants))](score, random)


CHANGES: dict[str, Callable[[ScoreTick, np.random.Generator], None]] = {
    "transposed": transpose,
    "other_tempo": change_tempo,
    "notes_doubled": double,
    "notes_halved": halve,
    "other_programs": reprogram,
    "last_third_cut": cut_end,
    "first_third_cut": cut_start,
    "notes_changed": change_notes,
    "notes_deleted": delete_notes,
    "tracks_reordered": reorder,
    "all_combined": combine,
}
