"""Processor time of the code under test, without that of the tests around it."""

import gc
import time
from collections.abc import Callable
from typing import Any


def processor_seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """Return the least processor time of a few calls.

    No garbage is collected meanwhile: a collection walks over all that other tests of the process hold, for seconds.
    """
    least = float("inf")
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            begin = time.process_time()
            work()
            least = min(least, time.process_time() - begin)
    finally:
        gc.enable()
    return least
