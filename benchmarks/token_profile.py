"""Where the time of a token goes: a stopwatch around each part of sampling."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

REST = "loop"
GROUPS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "attention": (("decoders_melody_vae", "StepDecoder", "_attend"),),
    "feed-forward": (("decoders_melody_vae", "StepDecoder", "_feed_forward"),),
    "decoder's other steps (embedding, norms, head)": (("decoders_melody_vae", "StepDecoder", "_step"),),
    "grammar": (
        ("logits_process_melody_vae", "MelodyLogitsProcessor", "__call__"),
        ("logits_process_melody_vae", "BarCountLogitsProcessor", "__call__"),
    ),
    "choice of the token": (("decoding_melody_vae", "TokenSampler", "__call__"),),
    "latent (prior)": (("prior_melody_vae", "LatentSamplingMixin", "sample_latent"),),
}
"""Module, class and function of what each part is; what is called within another one's counts for the inner."""


class Stopwatch:
    """Sums up processor seconds by group, each without what other groups do within it."""

    def __init__(self):
        self.seconds = dict.fromkeys((*GROUPS, REST), 0.0)
        self.running = [REST]
        self.since = time.process_time()

    def lap(self) -> None:
        """Give the time since the last lap to the innermost group that runs."""
        now = time.process_time()
        self.seconds[self.running[-1]] += now - self.since
        self.since = now

    def timed(self, group: str, function: Callable) -> Callable:
        """Wrap a function so that its time is a group's."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.lap()
            self.running.append(group)
            try:
                return function(*args, **kwargs)
            finally:
                self.lap()
                self.running.pop()

        return run


@contextmanager
def stopwatch(model: Any) -> Iterator[Stopwatch]:
    """Time the groups of a model's code, wherever that was loaded from."""
    package, watch = type(model).__module__.rsplit(".", 1)[0], Stopwatch()
    with ExitStack() as stack:
        for group, functions in GROUPS.items():
            for module, owner, name in functions:
                place = import_module(f"{package}.{module}")
                place = getattr(place, owner) if owner else place
                stack.enter_context(patch.object(place, name, watch.timed(group, getattr(place, name))))
        watch.lap()
        watch.seconds = dict.fromkeys(watch.seconds, 0.0)
        yield watch
        watch.lap()


def profile(model: Any, work: Callable[[], int], repeats: int) -> dict[str, Any]:
    """Return the milliseconds a token that each group takes, in the run that took least.

    Args:
        model: A `MelodyVAEModel`.
        work: Samples from it, and returns how many tokens that were.
        repeats: Runs; one more comes before, untimed.
    """
    work()
    best: dict[str, float] = {}
    for _ in range(repeats):
        with stopwatch(model) as watch:
            tokens = work()
        found = {group: 1e3 * seconds / tokens for group, seconds in watch.seconds.items()}
        if not best or sum(found.values()) < sum(best.values()):
            best = found
    return best
