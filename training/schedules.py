"""What changes while training goes on: learning rate, KL weight, the curriculum; each a function of the step alone."""

from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "warmup_stable_decay",
)
"""Those of transformers' `get_scheduler` that are a function of the step; `min_lr_ratio` gives each of them a floor."""

DECAY_SHARE = 0.2  # of all steps, at the end of warmup_stable_decay (Hägele et al. 2024, arXiv:2405.18392)


def learning_rate_schedule(
    name: str, optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int, min_ratio: float = 0.0
) -> LambdaLR:
    """Build a schedule that is stepped once for each optimiser step, however many processes there are.

    Args:
        name: One of `SCHEDULES`.
        optimizer: Its learning rates are the peak.
        warmup_steps: Steps to the peak.
        total_steps: Steps of the whole run.
        min_ratio: What the schedule decays to, as a share of the peak: f becomes min_ratio + (1 - min_ratio) f.
    """
    specific = {"num_decay_steps": round(DECAY_SHARE * total_steps)} if name == "warmup_stable_decay" else None
    schedule = get_scheduler(name, optimizer, warmup_steps, total_steps, scheduler_specific_kwargs=specific)
    assert isinstance(schedule, LambdaLR)
    factors = [with_floor(factor, warmup_steps, min_ratio) for factor in schedule.lr_lambdas]
    for group in optimizer.param_groups:
        group["lr"] = group.pop("initial_lr")  # a second schedule begins where the first one did
    return LambdaLR(optimizer, factors)


def with_floor(factor: Callable[[int], float], warmup_steps: int, min_ratio: float) -> Callable[[int], float]:
    """Give a schedule's factor a floor, after its warm-up."""

    def raised(step: int) -> float:
        return factor(step) if step < warmup_steps else min_ratio + (1 - min_ratio) * factor(step)

    return raised


def kl_weight_at(step: int, kl_weight: float, warmup_steps: int) -> float:
    """Weight of the KL term in a step, counted from 0: it rises linearly, so the latent is in use before it costs."""
    return kl_weight * min((step + 1) / max(warmup_steps, 1), 1.0)


def curriculum_pacing(start: float, steps: int, rounds_per_step: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Let the share of the data grow exponentially from `start` to all of them.

    The fixed exponential pacing of Hacohen & Weinshall 2019 (arXiv:1904.03626), in steps of one batch:
    share(t) = min(1, start^(1 - t / steps)).

    Args:
        start: Share of the data, the simplest, that the first batch draws from.
        steps: Optimiser steps until all data are in use.
        rounds_per_step: Batches that each process accumulates for one step.

    Returns:
        Maps numbers of batches `(N,)` to shares `(N,)`.
    """

    def share(rounds: torch.Tensor) -> torch.Tensor:
        if not steps:
            return torch.ones(len(rounds), dtype=torch.float64)
        return start ** (1 - (rounds.double() / rounds_per_step / steps).clamp(0, 1))

    return share
