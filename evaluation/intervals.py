"""Confidence intervals by bootstrap over melodies."""

from collections.abc import Sequence

import numpy as np

ROUNDS = 1000
LEVEL = 0.95


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float] | None = None,
    seed: int = 0,
    rounds: int = ROUNDS,
    level: float = LEVEL,
) -> list[float] | None:
    """Estimate between which values a ratio of sums lies, had other melodies been drawn.

    Melodies are drawn again with replacement (the percentile bootstrap, Efron and Tibshirani 1993, chapter 13).
    Micro-averaged numbers are such ratios: correct notes to notes, nats to notes.

    Args:
        numerators: One for each melody.
        denominators: One for each melody; all 1 by default, so that the ratio is a mean.
        seed: Of the draws.
        rounds: How often all melodies are drawn.
        level: Of the interval.

    Returns:
        Its two ends; None for fewer than two melodies, which tell nothing of others.

    Raises:
        ValueError: If the lists differ in length, or the denominators do not add up to something positive.
    """
    top = np.asarray(numerators, dtype=np.float64)
    bottom = np.ones_like(top) if denominators is None else np.asarray(denominators, dtype=np.float64)
    if top.shape != bottom.shape or top.ndim != 1:
        raise ValueError(f"need one denominator for each numerator, got {len(bottom)} for {len(top)}")
    if len(top) < 2:
        return None
    if bottom.sum() <= 0 or (bottom < 0).any():
        raise ValueError(f"denominators must not be negative, and positive in all, got a sum of {bottom.sum()}")
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(len(top), np.full(len(top), 1 / len(top)), size=rounds)
    sums = weights @ bottom
    drawn = (weights @ top)[sums > 0] / sums[sums > 0]
    return [float(end) for end in np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])]
