"""Note F1: precision and recall of the notes of a reconstructed melody.

A melody is a mapping with `pitch` (MIDI numbers), `start` and `duration` (grid steps from the first bar line): lists of
ints, sorted, not overlapping. The grid has `num_steps` steps, 256 for 16 bars of 4/4 in sixteenths.

This file stands alone, so that `evaluate.load("metrics/note_f1")` can copy it. Its `checked_notes` is a copy
of step_accuracy.py's, and a test asserts that the two are equal.
"""

from collections.abc import Mapping, Sequence

import datasets
import evaluate
import numpy as np

LOWEST_PITCH, HIGHEST_PITCH = 21, 108  # the piano's 88 keys

Melody = Mapping[str, Sequence[int]]


def checked_notes(
    pitch: Sequence[int], start: Sequence[int], duration: Sequence[int], num_steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the three lists as int64 arrays of shape (notes,), or say what is wrong with them.

    Args:
        pitch: MIDI numbers, 21 to 108.
        start: Onset steps, rising.
        duration: In steps, at least 1; no note reaches into the next or beyond the grid.
        num_steps: Length of the grid.

    Raises:
        ValueError: With the offending value, if any of this does not hold.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    columns = {}
    for name, values in (("pitch", pitch), ("start", start), ("duration", duration)):
        column = np.asarray(values)
        if column.ndim != 1 or (column.size and column.dtype.kind not in "iu"):
            raise ValueError(f"{name} must be a flat list of integers, got {values!r}")
        columns[name] = column.astype(np.int64)
    pitches, starts, durations = columns["pitch"], columns["start"], columns["duration"]
    if not len(pitches) == len(starts) == len(durations):
        raise ValueError(
            "pitch, start and duration must be equally long, "
            f"got {len(pitches)}, {len(starts)} and {len(durations)} values"
        )
    for value in pitches[(pitches < LOWEST_PITCH) | (pitches > HIGHEST_PITCH)]:
        raise ValueError(f"pitch must be {LOWEST_PITCH} to {HIGHEST_PITCH}, got {value}")
    for value in durations[durations < 1]:
        raise ValueError(f"duration must be at least 1 step, got {value}")
    for value in starts[starts < 0]:
        raise ValueError(f"start must not be negative, got {value}")
    ends = starts + durations
    for index in np.flatnonzero(starts[1:] <= starts[:-1]):
        raise ValueError(f"start must rise, got {starts[index]} before {starts[index + 1]}")
    for index in np.flatnonzero(ends[:-1] > starts[1:]):
        raise ValueError(f"notes must not overlap, got one until step {ends[index]} and one from {starts[index + 1]}")
    for value in ends[ends > num_steps]:
        raise ValueError(f"a note must end within the grid of {num_steps} steps, got one until step {value}")
    return pitches, starts, durations


def note_f1(
    predictions: Sequence[Melody], references: Sequence[Melody], num_steps: int = 256
) -> dict[str, float | int]:
    """Count the notes that come back: those whose onset step and pitch both agree. Lengths do not count.

    The rule is that of onset-only note transcription scores (mir_eval.transcription without offsets) on an exact grid.

    Args:
        predictions: Reconstructed melodies.
        references: The originals, in the same order.
        num_steps: Length of the grid that all share.

    Returns:
        `precision`, `recall` and `f1`, micro-averaged: the notes of all melodies are counted together, so a melody
        weighs as much as it has notes. `matched`, `predicted`, `expected`: the three counts of notes. `count`:
        melodies. A share of no notes is 1 if the other side has none either (nothing was asked, nothing invented),
        else 0.

    Raises:
        ValueError: If there are no melodies, not as many predictions as references, or something is not a melody on
            this grid (see `checked_notes`).
    """
    if len(predictions) != len(references):
        raise ValueError(f"need one prediction for each reference, got {len(predictions)} for {len(references)}")
    if len(references) == 0:
        raise ValueError("note F1 of no melodies is undefined, got 0 references")
    matched = predicted = expected = 0
    for prediction, reference in zip(predictions, references, strict=True):
        ours, theirs = _onsets(prediction, num_steps), _onsets(reference, num_steps)
        matched += len(ours & theirs)
        predicted += len(ours)
        expected += len(theirs)
    is_silent = predicted + expected == 0
    return {
        "precision": matched / predicted if predicted else float(is_silent),
        "recall": matched / expected if expected else float(is_silent),
        "f1": 1.0 if is_silent else 2 * matched / (predicted + expected),
        "matched": matched,
        "predicted": predicted,
        "expected": expected,
        "count": len(references),
    }


def _onsets(melody: Melody, num_steps: int) -> set[tuple[int, int]]:
    """Return the (start, pitch) pairs; in a melody no two notes share one."""
    pitches, starts, _ = checked_notes(melody["pitch"], melody["start"], melody["duration"], num_steps)
    return set(zip(starts.tolist(), pitches.tolist(), strict=True))


class NoteF1(evaluate.Metric):
    """F1 of the notes of reconstructed melodies, by onset and pitch."""

    def _info(self) -> evaluate.MetricInfo:
        steps = datasets.List(datasets.Value("int32"))
        melody = {"pitch": steps, "start": steps, "duration": steps}
        return evaluate.MetricInfo(
            description=note_f1.__doc__ or "",
            citation="",
            inputs_description="predictions, references: melodies {'pitch': [...], 'start': [...], 'duration': [...]}",
            features=datasets.Features({"predictions": melody, "references": melody}),
        )

    def _compute(self, predictions, references, num_steps: int = 256):
        return note_f1(predictions, references, num_steps)
