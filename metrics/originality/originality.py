"""Originality: the share of a melody's 4-bar spans that other melodies have too, in whatever key.

A melody is a mapping with `pitch` (MIDI numbers), `start` and `duration` (grid steps from the first bar line): lists of
ints, sorted, not overlapping; `num_steps` is the length of the grid. `originality_index.py` answers the same question
for a whole training split in milliseconds.

It imports nothing of this repository but its own folder, so that `evaluate.load("metrics/originality")` can copy it.
"""

from collections.abc import Mapping, Sequence

import datasets
import evaluate
import numpy as np

from .checked_notes import checked_notes

FEWEST_NOTES = 2  # of a span: one note alone has no interval, and every melody has it

Melody = Mapping[str, Sequence[int]]


def spans(
    melody: Melody, span_bars: int = 4, steps_per_bar: int = 16, num_steps: int = 256
) -> list[tuple[tuple[int, int], ...]]:
    """List the spans of whole bars of a melody, a bar apart, in a form that no transposition changes.

    A span begins with a bar in which a note begins, and has at least `FEWEST_NOTES` of them; other spans are passed
    over. It is told by the onsets of its notes from its first bar line, and their intervals from its first note; their
    lengths do not count, as in note F1.

    Raises:
        ValueError: If it is not a melody on this grid (see `checked_notes`), or a size is below 1.
    """
    if span_bars < 1 or steps_per_bar < 1:
        raise ValueError(f"span_bars and steps_per_bar must be at least 1, got {span_bars} and {steps_per_bar}")
    pitch, start, _ = checked_notes(melody["pitch"], melody["start"], melody["duration"], num_steps)
    found = []
    for first_bar in range(num_steps // steps_per_bar - span_bars + 1):
        origin = first_bar * steps_per_bar
        inside = slice(*np.searchsorted(start, [origin, origin + span_bars * steps_per_bar]))
        onsets, pitches = (start[inside] - origin).tolist(), pitch[inside].tolist()
        if len(onsets) >= FEWEST_NOTES and onsets[0] < steps_per_bar:
            found.append(tuple((onset, value - pitches[0]) for onset, value in zip(onsets, pitches, strict=True)))
    return found


def originality(
    predictions: Sequence[Melody],
    references: Sequence[Melody],
    span_bars: int = 4,
    steps_per_bar: int = 16,
    num_steps: int = 256,
) -> dict[str, float | int | None]:
    """Count the spans of melodies that occur in other melodies, in the same meter place and any key.

    Args:
        predictions: Melodies in question.
        references: Melodies that they may have copied from, such as the training split's; not one for each.
        span_bars: Length of a span.
        steps_per_bar: Grid steps of a bar.
        num_steps: Length of the grid that all share.

    Returns:
        `copied`: share of the predictions' spans that some reference has; None if they have no spans (empty melodies,
        or one note each). `spans`, `copied_spans`: numbers of them. `melodies_with_copies`: share of predictions with
        a copied span. `count`: predictions.

    Raises:
        ValueError: If there are no predictions or no references (nothing to be original against), or something is not
            a melody on this grid.
    """
    if len(predictions) == 0 or len(references) == 0:
        raise ValueError(
            f"originality needs melodies on both sides, got {len(predictions)} predictions "
            f"and {len(references)} references"
        )
    known = {span for melody in references for span in spans(melody, span_bars, steps_per_bar, num_steps)}
    is_copied = [
        [span in known for span in spans(melody, span_bars, steps_per_bar, num_steps)] for melody in predictions
    ]
    total, copied = sum(map(len, is_copied)), sum(map(sum, is_copied))
    return {
        "copied": copied / total if total else None,
        "spans": total,
        "copied_spans": copied,
        "melodies_with_copies": sum(map(any, is_copied)) / len(predictions),
        "count": len(predictions),
    }


class Originality(evaluate.Metric):
    """Share of spans that occur in other melodies."""

    def _info(self) -> evaluate.MetricInfo:
        steps = datasets.List(datasets.Value("int32"))
        melody = {"pitch": steps, "start": steps, "duration": steps}
        return evaluate.MetricInfo(
            description=originality.__doc__ or "",
            citation="",
            inputs_description="predictions, references: lists (as input columns of one row) of melodies",
            features=datasets.Features({"predictions": datasets.List(melody), "references": datasets.List(melody)}),
        )

    def _compute(self, predictions, references, span_bars: int = 4, steps_per_bar: int = 16, num_steps: int = 256):
        ours, theirs = ([melody for row in rows for melody in row] for rows in (predictions, references))
        return originality(ours, theirs, span_bars, steps_per_bar, num_steps)
