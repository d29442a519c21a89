"""Note BLEU: n-grams of notes that a reconstructed melody shares with the original, by sacrebleu.

A melody is a mapping with `pitch` (MIDI numbers), `start` and `duration` (grid steps from the first bar line): lists of
ints, sorted, not overlapping. The grid has `num_steps` steps, 256 for 16 bars of 4/4 in sixteenths.

It imports nothing of this repository but its own folder, so that `evaluate.load("metrics/note_bleu")` can copy it.
"""

from collections.abc import Mapping, Sequence

import datasets
import evaluate
from sacrebleu.metrics.bleu import BLEU

from .checked_notes import checked_notes

Melody = Mapping[str, Sequence[int]]

_CITATION = """@inproceedings{post2018call,
  title = {A Call for Clarity in Reporting {BLEU} Scores}, author = {Post, Matt},
  booktitle = {WMT}, year = {2018}, url = {https://aclanthology.org/W18-6319}
}"""


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
