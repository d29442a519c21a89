"""Time several ways of doing the same work in turns, in processor seconds and wall time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psutil
from tqdm import tqdm

IDLE_SECONDS = 0.3  # so long it is watched which core has least to do

Work = Callable[[], int]
"""Does something once, and returns how many units (tokens, melodies, ...) that was."""


@contextmanager
def one_core() -> Iterator[None]:
    """Bind this thread to the core with the least to do; processes that are started meanwhile stay there."""
    cores = os.sched_getaffinity(0)
    busy = psutil.cpu_percent(IDLE_SECONDS, percpu=True)
    os.sched_setaffinity(0, {min(cores, key=lambda core: busy[core] if core < len(busy) else 100.0)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def processor_seconds() -> float:
    """Return the processor time of this process, and of all that were started here and have ended."""
    used = os.times()
    return time.process_time() + used.children_user + used.children_system


def processor_seconds_of(processes: Iterable[psutil.Process]) -> float:
    """Add up the processor time of processes, and of those that they started and that have ended."""
    total = 0.0
    for process in processes:
        with suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])  # user and system, and the same of children that have ended
    return total


def take_turns(
    sides: Mapping[str, Work], repeats: int, progress: tqdm | None = None, warm_up: bool = True
) -> dict[str, dict[str, Any]]:
    """Run every side in turns, each time in the opposite order, so that all see the same machine.

    Args:
        sides: What to time, by name.
        repeats: Of each.
        progress: Shows what runs.
        warm_up: Whether each runs once beforehand, untimed.

    Returns:
        Of each side the units of its work, the processor seconds and the wall time of every turn, and the
        milliseconds a unit: of the turn that took least, as other programs can only add to it.
    """
    found: dict[str, dict[str, Any]] = {name: {"processor_seconds": [], "wall_seconds": []} for name in sides}
    for turn in range(-warm_up, repeats):
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            if progress is not None:
                progress.set_postfix_str(name)
            used, began = processor_seconds(), time.perf_counter()
            units = sides[name]()
            seconds = time.perf_counter() - began, processor_seconds() - used
            if turn >= 0:
                found[name]["units"] = units
                found[name]["wall_seconds"].append(seconds[0])
                found[name]["processor_seconds"].append(seconds[1])
    for of_side in found.values():
        of_side["milliseconds"] = 1e3 * min(of_side["processor_seconds"]) / of_side["units"]
    return found
