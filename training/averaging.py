"""A running mean of the weights, which is what is evaluated and saved."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class AveragedWeights:
    """Exponential moving average of a model's trained weights (Polyak & Juditsky 1992; Tarvainen & Valpola 2017).

    After step t (from 1) the mean m becomes d m + (1 - d) w, d = min(decay, (1 + t) / (10 + t)), so that the first
    steps are soon forgotten. It is part of every checkpoint.

    Args:
        model: Whose weights; on its device already.
        decay: 0 keeps no mean, and all methods do nothing.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = [each for each in model.parameters() if each.requires_grad] if decay else []
        self.mean = [each.detach().clone() for each in self.weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 1."""
        if self.decay:
            share = 1 - min(self.decay, (1 + step) / (10 + step))
            for mean, weight in zip(self.mean, self.weights, strict=True):
                mean.lerp_(weight, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the mean in the weights' place for a while."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange mean and weights."""
        for mean, weight in zip(self.mean, self.weights, strict=True):
            kept = weight.clone()
            weight.copy_(mean)
            mean.copy_(kept)

    def state_dict(self) -> dict:
        """Return the mean for a checkpoint."""
        return {"mean": self.mean}

    def load_state_dict(self, state: dict) -> None:
        """Take over a mean that `state_dict` made.

        Raises:
            ValueError: If it is of other weights, or there is none.
        """
        if len(state["mean"]) != len(self.mean):
            raise ValueError(f"a mean of {len(state['mean'])} tensors for {len(self.mean)}")
        for mean, saved in zip(self.mean, state["mean"], strict=True):
            mean.copy_(saved)
