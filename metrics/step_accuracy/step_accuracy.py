"""Step accuracy: the share of grid steps on which a reconstructed melody does what the original does.

A melody is a mapping with `pitch` (MIDI numbers), `start` and `duration` (grid steps from the first bar line): lists of
ints, sorted, not overlapping. The grid has `num_steps` steps, 256 for 16 bars of 4/4 in sixteenths.

It imports nothing of this repository but its own folder, so that `evaluate.load("metrics/step_accuracy")` can copy it.
"""

from collections.abc import Mapping, Sequence

import datasets
import evaluate
import numpy as np

from .checked_notes import LOWEST_PITCH, checked_notes

NO_EVENT, NOTE_OFF, FIRST_ONSET = 0, 1, 2  # step classes; the onset of a pitch is FIRST_ONSET + pitch - LOWEST_PITCH

Melody = Mapping[str, Sequence[int]]

_CITATION = """@inproceedings{roberts2018hierarchical,
  title = {A Hierarchical Latent Vector Model for Learning Long-Term Structure in Music},
  author = {Roberts, Adam and Engel, Jesse and Raffel, Colin and Hawthorne, Curtis and Eck, Douglas},
  booktitle = {ICML}, year = {2018}, url = {https://arxiv.org/abs/1803.05428}
}"""


def step_classes(
    pitch: Sequence[int], start: Sequence[int], duration: Sequence[int], num_steps: int = 256
) -> np.ndarray:
    """Write a melody as MusicVAE's 90 classes per step (Roberts et al., arXiv:1803.05428).

    0 is no event (a note goes on, or silence does), 1 a note-off, 2 to 89 the onset of pitch 21 to 108. A note-off
    stands on the step where a note ends, unless another note starts there or the grid is over.

    Args:
        pitch: MIDI numbers, 21 to 108.
        start: Onset steps, rising.
        duration: In steps, at least 1.
        num_steps: Length of the grid.

    Returns:
        Classes, int64 of shape (num_steps,); of a melody without notes, all 0.

    Raises:
        ValueError: With the value, if the lists are not a melody on this grid (see `checked_notes`).
    """
    pitches, starts, durations = checked_notes(pitch, start, duration, num_steps)
    classes = np.full(num_steps + 1, NO_EVENT, dtype=np.int64)  # one more, for a note that ends with the grid
    classes[starts + durations] = NOTE_OFF
    classes[starts] = FIRST_ONSET + pitches - LOWEST_PITCH
    return classes[:num_steps]


def step_accuracy(
    predictions: Sequence[Melody], references: Sequence[Melody], num_steps: int = 256
) -> dict[str, float | int]:
    """Compare melodies step by step.

    Args:
        predictions: Reconstructed melodies.
        references: The originals, in the same order.
        num_steps: Length of the grid that all share.

    Returns:
        `accuracy`: share of steps with equal classes, over all melodies. `floor`: the accuracy of predicting silence,
        that is the share of no-event steps in the references. `exact`: share of melodies without one wrong step.
        `count`: melodies. Two melodies without notes agree on every step.

    Raises:
        ValueError: If there are no melodies (their share is undefined), not as many predictions as references, or
            something is not a melody on this grid.
    """
    if len(predictions) != len(references):
        raise ValueError(f"need one prediction for each reference, got {len(predictions)} for {len(references)}")
    if len(references) == 0:
        raise ValueError("step accuracy of no melodies is undefined, got 0 references")
    predicted, expected = (
        np.stack([step_classes(melody["pitch"], melody["start"], melody["duration"], num_steps) for melody in melodies])
        for melodies in (predictions, references)
    )  # (melodies, num_steps) each
    is_equal = predicted == expected
    return {
        "accuracy": float(is_equal.mean()),
        "floor": float((expected == NO_EVENT).mean()),
        "exact": float(is_equal.all(axis=1).mean()),
        "count": len(references),
    }


class StepAccuracy(evaluate.Metric):
    """Share of sixteenth steps on which a reconstructed melody equals the original."""

    def _info(self) -> evaluate.MetricInfo:
        steps = datasets.List(datasets.Value("int32"))
        melody = {"pitch": steps, "start": steps, "duration": steps}
        return evaluate.MetricInfo(
            description=step_accuracy.__doc__ or "",
            citation=_CITATION,
            inputs_description="predictions, references: melodies {'pitch': [...], 'start': [...], 'duration': [...]}",
            features=datasets.Features({"predictions": melody, "references": melody}),
            reference_urls=["https://arxiv.org/abs/1803.05428"],
        )

    def _compute(self, predictions, references, num_steps: int = 256):
        return step_accuracy(predictions, references, num_steps)
