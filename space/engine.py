"""Worker processes that hold the model, one for each core, so that one user's melody does not wait for another's.

Generation is a long chain of small steps, which more threads hardly speed up; processes do not share a lock. A worker
that dies, of a hostile file or for want of memory, is replaced, and the others' work goes on.
"""

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from melody import RefusedError

WARMING = {
    "count": 1,
    "bars": 2,
    "seed": 0,
    "temperature": 1.0,
    "conditions": {},
    "constraints": {},
    "tempo": 120.0,
}

_composer: Any = None  # of this worker
_failure = ""  # why it has none


def available_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end_with_parent() -> None:
    """End this worker when the server has ended, in whatever way."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)


def _load(model_id: str) -> None:
    """Load the model in a worker."""
    global _composer, _failure
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "nice"):  # not on Windows
        os.nice(5)  # the server's own answers, such as a place in the queue, come first
    from composer import Composer  # torch: only the workers pay for it

    try:
        _composer = Composer(model_id)
    except (OSError, ValueError, ImportError) as error:
        _failure = f"MODEL_ID={model_id} cannot be loaded: {str(error).splitlines()[0]}"


def _run(action: str, arguments: dict[str, Any]) -> Any:
    """Do an action in a worker; what the user is told crosses the border as text."""
    if _failure:
        return False, _failure
    try:
        return True, getattr(_composer, action)(**arguments)
    except RefusedError as refusal:
        return False, str(refusal)


class Engine:
    """A pool of workers.

    Args:
        model_id: A model id on the Hub, or a folder.
        workers: How many; one for each core by default, and four at most.
    """

    def __init__(self, model_id: str, workers: int | None = None):
        self.model_id = model_id
        self.workers = workers or max(1, min(4, available_cores()))
        self._lock = threading.Lock()
        self._pool = self._start()
        # Loads the model in every worker, and takes the first, slow steps; nobody waits here.
        self._warming = [self._pool.submit(_run, "make", WARMING) for _ in range(self.workers)]

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # a fork would copy the server's threads and locks
        return ProcessPoolExecutor(self.workers, mp_context=context, initializer=_load, initargs=(self.model_id,))

    def __call__(self, action: str, **arguments: Any) -> Any:
        """Do an action of [`Composer`] in a worker and return its result.

        Raises:
            RefusedError: If it cannot be done.
        """
        pool = self._pool
        try:
            is_done, result = pool.submit(_run, action, arguments).result()
        except BrokenProcessPool as error:
            with self._lock:
                if pool is self._pool:
                    self._pool = self._start()
            raise RefusedError(
                "This could not be finished; the workers have been restarted. Please try again."
            ) from error
        if not is_done:
            raise RefusedError(result)
        return result

    def wait(self) -> None:
        """Wait until the workers are ready.

        Raises:
            RefusedError: If they cannot load the model.
        """
        for each in self._warming:
            is_done, failure = each.result()
            if not is_done:
                raise RefusedError(failure)

    def close(self) -> None:
        """End the workers."""
        self._pool.shutdown(wait=False, cancel_futures=True)
