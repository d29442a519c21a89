"""Note F1: precision and recall of the notes of a reconstructed melody.

A melody is a mapping with `pitch` (MIDI numbers), `start` and `duration` (grid steps from the first bar line): lists of
ints, sorted, not overlapping. The grid has `num_steps` steps, 256 for 16 bars of 4/4 in sixteenths.

It imports nothing of this repository but its own folder, so that `evaluate.load("metrics/note_f1")` can copy it.
"""

from collections.abc import Mapping, Sequence

import datasets
import evaluate

from .checked_notes import checked_notes

Melody = Mapping[str, Sequence[int]]


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
