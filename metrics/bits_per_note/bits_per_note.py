"""Bits per note: how many bits a variational model spends on a note, whatever its tokens are.

This file stands alone, so that `evaluate.load("metrics/bits_per_note")` can copy it.
"""

import math
from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

ROUNDING_NATS = 1e-3  # a KL of zero may come out of float32 as little below zero as this

_CITATION = """@inproceedings{kingma2014auto,
  title = {Auto-Encoding Variational Bayes}, author = {Kingma, Diederik P. and Welling, Max},
  booktitle = {ICLR}, year = {2014}, url = {https://arxiv.org/abs/1312.6114}
}"""


def bits_per_note(
    reconstruction_nats: Sequence[float], kl_nats: Sequence[float], notes: Sequence[int]
) -> dict[str, float | int]:
    """Divide the negative ELBO of a set of melodies, in bits, by their notes.

    bits per note = (sum of reconstruction nats + sum of KL nats) / ln 2 / sum of notes

    Both terms are totals of a melody: -log p(x|z) summed over all tokens with z drawn from q(z|x), and
    KL(q(z|x) || p(z)) summed over latent dimensions, without a KL weight and without free bits (Kingma and Welling,
    arXiv:1312.6114, equation 3). It is an upper bound on -log2 p(x) per note. Without a latent, `kl_nats` are zeros.

    Args:
        reconstruction_nats: One for each melody, in nats.
        kl_nats: One for each melody, in nats.
        notes: One count for each melody. A melody without notes may stand among others: its nats count.

    Returns:
        `bits_per_note`, its two parts `reconstruction_bits_per_note` and `kl_bits_per_note`, `notes` in all, and
        `count`: melodies.

    Raises:
        ValueError: If the lists differ in length, a value is not finite or is negative, or there is no note at all
            (of no melodies, or of empty ones only, bits per note are undefined).
    """
    if not len(reconstruction_nats) == len(kl_nats) == len(notes):
        raise ValueError(
            "reconstruction_nats, kl_nats and notes must be equally long, "
            f"got {len(reconstruction_nats)}, {len(kl_nats)} and {len(notes)} values"
        )
    for name, values in (("reconstruction_nats", reconstruction_nats), ("kl_nats", kl_nats), ("notes", notes)):
        for value in values:
            if not math.isfinite(value) or value < (0 if name == "notes" else -ROUNDING_NATS):
                raise ValueError(f"{name} must be finite and not negative, got {value}")
    for value in notes:
        if value != int(value):
            raise ValueError(f"notes must be whole numbers, got {value}")
    total = int(np.sum(notes))
    if total == 0:
        raise ValueError(f"bits per note of {len(notes)} melodies without notes are undefined")
    reconstruction, kl = (
        float(np.sum(nats, dtype=np.float64)) / math.log(2) / total for nats in (reconstruction_nats, kl_nats)
    )
    return {
        "bits_per_note": reconstruction + kl,
        "reconstruction_bits_per_note": reconstruction,
        "kl_bits_per_note": kl,
        "notes": total,
        "count": len(notes),
    }


class BitsPerNote(evaluate.Metric):
    """Negative ELBO in bits per note."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=bits_per_note.__doc__ or "",
            citation=_CITATION,
            inputs_description="reconstruction_nats, kl_nats, notes: one number for each melody",
            features=datasets.Features(
                {
                    "reconstruction_nats": datasets.Value("float64"),
                    "kl_nats": datasets.Value("float64"),
                    "notes": datasets.Value("int64"),
                }
            ),
            reference_urls=["https://arxiv.org/abs/1312.6114"],
        )

    def _compute(self, reconstruction_nats, kl_nats, notes):
        return bits_per_note(reconstruction_nats, kl_nats, notes)
