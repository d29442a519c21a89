"""Note BLEU: n-grams of notes that a reconstructed melody shares with the original, by sacrebleu.

A melody is a mapping with `pitch` (MIDI numbers), `start` and `duration` (grid steps from the first bar line): lists of
ints, sorted, not overlapping. The grid has `num_steps` steps, 256 for 16 bars of 4/4 in sixteenths.

This file stands alone, so that `evaluate.load("metrics/note_bleu")` can copy it. Its `checked_notes` is a copy
of step_accuracy.py's, and a test asserts that the two are equal.
"""

from collections.abc import Mapping, Sequence

import datasets
import evaluate
import numpy as np
from sacrebleu.metrics.bleu import BLEU

LOWEST_PITCH, HIGHEST_PITCH = 21, 108  # the piano's 88 keys

Melody = Mapping[str, Sequence[int]]

_CITATION = """@inproceedings{post2018call,
  title = {A Call for Clarity in Reporting {BLEU} Scores}, author = {Post, Matt},
  booktitle = {WMT}, year = {2018}, url = {https://aclanthology.org/W18-6319}
}"""


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


def note_words(melody: Melody, num_steps: int = 256, steps_per_bar: int = 16) -> str:
    """Write a melody as one word a note: pitch, place in the bar and length, such as `60@4+2`.

    Raises:
        ValueError: If the lists are not a melody on this grid (see `checked_notes`), or `steps_per_bar` is below 1.
    """
    if steps_per_bar < 1:
        raise ValueError(f"steps_per_bar must be at least 1, got {steps_per_bar}")
    notes = checked_notes(melody["pitch"], melody["start"], melody["duration"], num_steps)
    return " ".join(
        f"{pitch}@{start % steps_per_bar}+{duration}" for pitch, start, duration in zip(*notes, strict=True)
    )


def note_bleu(
    predictions: Sequence[Melody], references: Sequence[Melody], num_steps: int = 256, steps_per_bar: int = 16
) -> dict[str, float | int | str | list[float]]:
    """Compute corpus BLEU (Papineni et al. 2002) over notes as words, one reference for each prediction.

    Args:
        predictions: Reconstructed melodies.
        references: The originals, in the same order.
        num_steps: Length of the grid that all share.
        steps_per_bar: Grid steps of a bar.

    Returns:
        `bleu`: 0 to 100. `precisions`: of 1 to 4 notes, 0 to 100. `signature`: sacrebleu's, which says how it was
        computed and by which version; quote it with the number. `count`: melodies. Where there is no note on either
        side `bleu` is 100 (nothing was asked, nothing invented) and so are the precisions; where only one side has
        notes it is 0.

    Raises:
        ValueError: If there are no melodies, not as many predictions as references, or something is not a melody on
            this grid.
    """
    if len(predictions) != len(references):
        raise ValueError(f"need one prediction for each reference, got {len(predictions)} for {len(references)}")
    if len(references) == 0:
        raise ValueError("note BLEU of no melodies is undefined, got 0 references")
    ours, theirs = (
        [note_words(melody, num_steps, steps_per_bar) for melody in melodies] for melodies in (predictions, references)
    )
    scorer = BLEU(tokenize="none", force=True)  # words of our own: nothing to tokenise, and no full stop to warn about
    score = scorer.corpus_score(ours, [theirs])
    is_silent = not any(ours) and not any(theirs)
    return {
        "bleu": 100.0 if is_silent else score.score,
        "precisions": [100.0] * 4 if is_silent else list(score.precisions),
        "signature": str(scorer.get_signature()),
        "count": len(references),
    }


class NoteBleu(evaluate.Metric):
    """BLEU of reconstructed melodies over notes as words."""

    def _info(self) -> evaluate.MetricInfo:
        steps = datasets.List(datasets.Value("int32"))
        melody = {"pitch": steps, "start": steps, "duration": steps}
        return evaluate.MetricInfo(
            description=note_bleu.__doc__ or "",
            citation=_CITATION,
            inputs_description="predictions, references: melodies {'pitch': [...], 'start': [...], 'duration': [...]}",
            features=datasets.Features({"predictions": melody, "references": melody}),
            reference_urls=["https://aclanthology.org/W18-6319", "https://aclanthology.org/P02-1040"],
        )

    def _compute(self, predictions, references, num_steps: int = 256, steps_per_bar: int = 16):
        return note_bleu(predictions, references, num_steps, steps_per_bar)
