"""Perplexity: how many equally likely tokens a model seems to choose among.

This file stands alone, so that `evaluate.load("metrics/perplexity")` can copy it.
"""

import math
from collections.abc import Sequence

import datasets
import evaluate


def perplexity(nats: Sequence[float], tokens: Sequence[int]) -> dict[str, float | int]:
    """Compute exp(sum of nats / sum of tokens), over all melodies together.

    Args:
        nats: -log p(x) of each melody, summed over its tokens. Of a variational model give the negative ELBO or the
            importance-weighted bound, and the result is an upper bound.
        tokens: Tokens of each melody that were predicted. A melody without any may stand among others.

    Returns:
        `perplexity`, `nats_per_token`, `tokens` in all, and `count`: melodies. A perplexity beyond what a float holds
        is infinite.

    Raises:
        ValueError: If the lists differ in length, a value is negative or not finite, tokens are not whole numbers, or
            there is no token at all (of nothing, perplexity is undefined).
    """
    if len(nats) != len(tokens):
        raise ValueError(f"nats and tokens must be equally long, got {len(nats)} and {len(tokens)} values")
    for name, values in (("nats", nats), ("tokens", tokens)):
        for value in values:
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be finite and not negative, got {value}")
    for value in tokens:
        if value != int(value):
            raise ValueError(f"tokens must be whole numbers, got {value}")
    total = sum(int(value) for value in tokens)
    if total == 0:
        raise ValueError(f"perplexity of {len(tokens)} melodies without tokens is undefined")
    nats_per_token = math.fsum(nats) / total
    try:
        found = math.exp(nats_per_token)
    except OverflowError:
        found = math.inf
    return {"perplexity": found, "nats_per_token": nats_per_token, "tokens": total, "count": len(nats)}


class Perplexity(evaluate.Metric):
    """Perplexity per token, from nats per melody."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=perplexity.__doc__ or "",
            citation="",
            inputs_description="nats, tokens: one number for each melody",
            features=datasets.Features({"nats": datasets.Value("float64"), "tokens": datasets.Value("int64")}),
        )

    def _compute(self, nats, tokens):
        return perplexity(nats, tokens)
