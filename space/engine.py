"""Worker processes that hold the model, one for each core, and what waits for them.

Generation is a long chain of small steps, which more threads hardly speed up, but eight people's melodies take little
longer than one's when they are made together. So those who come within a moment share the idle workers, and those who
come while all are busy share the next one. A worker that dies, of a hostile file or for want of memory, or that is at
one request for longer than its deadline, is ended and replaced, and the others' work goes on. What needs no model, to
read a file and to play a melody, has a worker of its own, and so never waits for melodies that are being made.
"""

import math
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from typing import Any

from melody import RefusedError

SHARED = "make"  # the action whose requests are worked on together
MOST_TOGETHER = 32  # melodies; more cost as much each, and keep the first of them waiting
GATHERING_SECONDS = 0.15  # for which the first waits for others
PATIENCE_SECONDS = 5.0  # with a worker that is busy when the server ends
DEADLINE_SECONDS = 60.0  # for a request, once it is worked on
# Actions of the worker that has no model, and their deadlines in seconds.
WITHOUT_MODEL = {"read_midi": 20.0, "wav": 30.0, "put_back": 20.0}
TOO_LONG = "This took too long and was stopped. Ask for less, or bring a smaller file."
DIED = "This could not be finished; the worker has been restarted. Please try again."
CLOSING = "The server is shutting down."
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


def _load(model_id: str, has_model: bool = True) -> None:
    """Load the model, or the processor alone, in a worker."""
    global _composer, _failure
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _yield_to_others()  # the server's own answers, such as a place in the queue, come first
    from composer import Composer, FileReader  # torch: only the workers pay for it

    try:
        _composer = Composer(model_id) if has_model else FileReader(model_id)
    except (OSError, ValueError, ImportError) as error:
        _failure = f"MODEL_ID={model_id} cannot be loaded: {str(error).splitlines()[0]}"
    if not has_model:
        _yield_to_others()  # once it is there: files that are hard to read come after melodies


def _yield_to_others() -> None:
    """Let processes of this program that do not call this come first."""
    if hasattr(os, "nice"):  # not on Windows
        os.nice(5)


def _run(action: str, requests: list[dict[str, Any]]) -> list[tuple[bool, Any]]:
    """Answer requests in a worker."""
    return [(False, _failure)] * len(requests) if _failure else answer(_composer, action, requests)


def kill(process: int) -> None:
    """End a worker that does not answer."""
    if process != os.getpid():  # tests have workers that are threads
        os.kill(process, getattr(signal, "SIGKILL", signal.SIGTERM))


def answer(composer: Any, action: str, requests: list[dict[str, Any]]) -> list[tuple[bool, Any]]:
    """Do an action of [`Composer`] for each request, together if it is `SHARED`.

    Returns:
        For each whether it is done, and its result or what the user is told: text, which may cross a process's border.
    """
    try:
        if action == SHARED:
            return [(True, result) for result in composer.make(requests)]
        return [(True, getattr(composer, action)(**request)) for request in requests]
    except RefusedError as refusal:
        if len(requests) == 1:
            return [(False, str(refusal))]
        return [each for request in requests for each in answer(composer, action, [request])]  # one spoils it for all


@dataclass(eq=False)
class Request:
    """What somebody waits for."""

    action: str
    arguments: dict[str, Any]
    answer: Future = field(default_factory=Future)
    came: float = field(default_factory=time.monotonic)


class Engine:
    """A pool of workers that hold the model, and one that does not.

    Args:
        model_id: A model id on the Hub, or a folder.
        workers: How many hold it; one for each core by default, and four at most.
    """

    def __init__(self, model_id: str, workers: int | None = None):
        self.model_id = model_id
        self.workers = workers or max(1, min(4, available_cores()))
        self._waiting: deque[Request] = deque()
        self._waiting_without: deque[Request] = deque()  # for the worker that has no model
        self._changed = threading.Condition()
        self._is_closed = False
        self._idle = 0  # workers
        self._warm: list[Future] = [Future() for _ in range(self.workers)]
        self._threads = [threading.Thread(target=self._serve, args=(warm,), daemon=True) for warm in self._warm]
        self._threads.append(threading.Thread(target=self._serve_without_model, daemon=True))
        if os.name == "posix":  # a process that all workers share: started here, by one thread
            resource_tracker.ensure_running()
        for thread in self._threads:
            thread.start()

    def _start(self, has_model: bool = True) -> ProcessPoolExecutor:
        """Start a worker, which loads the model."""
        context = multiprocessing.get_context("spawn")  # a fork would copy the server's threads and locks
        return ProcessPoolExecutor(1, mp_context=context, initializer=_load, initargs=(self.model_id, has_model))

    def _serve(self, warm: Future) -> None:
        """Give one worker, and its successors, something to do until the engine is closed."""
        pool = None
        try:  # loads the model, and takes the first, slow steps; nobody waits here
            pool = self._start()
            (ready,) = pool.submit(_run, SHARED, [WARMING]).result()
            warm.set_result(ready)
        except (OSError, BrokenProcessPool) as error:  # no memory, no more processes or files
            warm.set_result((False, f"A worker with the model cannot be started: {error}"))
        except Exception as error:
            warm.set_exception(error)
        while requests := self._next():
            pool = self._work(pool, requests, has_model=True)
        if pool:
            pool.shutdown()

    def _serve_without_model(self) -> None:
        """Let a worker read files and play melodies, one after the other, until the engine is closed."""
        pool = None
        with suppress(OSError):  # where it cannot be started now, it is with the first request
            pool = self._start(has_model=False)
            pool.submit(os.getpid)  # begins to load
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._waiting_without)
                if self._is_closed:
                    break
                request = self._waiting_without.popleft()
            pool = self._work(pool, [request], has_model=False)
        if pool:
            pool.shutdown()

    def _work(self, pool: Any, requests: list[Request], *, has_model: bool) -> Any:
        """Have requests answered by a worker.

        Returns:
            It, or its successor where it died or had to be ended; None where the system has no room for one now.
        """
        action = requests[0].action
        try:
            pool = pool or self._start(has_model)
            process = pool.submit(os.getpid).result()  # a new worker loads its model before that
            answering = pool.submit(_run, action, [each.arguments for each in requests])
            answers = answering.result(WITHOUT_MODEL.get(action, DEADLINE_SECONDS))
            for request, each in zip(requests, answers, strict=True):
                request.answer.set_result(each)
            return pool
        except (BrokenProcessPool, TimeoutError) as error:
            is_late = isinstance(error, TimeoutError)
            if is_late:
                kill(process)
            pool.shutdown(wait=False)
            for request in requests:
                request.answer.set_result((False, TOO_LONG if is_late else DIED))
            try:
                return self._start(has_model)
            except OSError:
                return None
        except Exception as error:  # a fault of the program, which belongs in the log of who asked
            for request in requests:
                request.answer.set_exception(error)
        return pool

    def _next(self) -> list[Request]:
        """Wait for the request that came first, and take with it what can be done together; nothing if closed."""
        with self._changed:
            self._idle += 1
            try:
                while not self._is_closed:
                    early = None  # wait for somebody to come
                    if self._waiting:
                        first = self._waiting[0]
                        early = first.came + GATHERING_SECONDS - time.monotonic() if first.action == SHARED else 0
                        if early <= 0:
                            return self._take()
                    self._changed.wait(early)
                return []
            finally:
                self._idle -= 1

    def _take(self) -> list[Request]:
        """Take the request that came first, and of those like it one idle worker's share."""
        taken = [self._waiting.popleft()]
        if taken[0].action == SHARED:
            melodies = taken[0].arguments["count"]
            alike = [request for request in self._waiting if request.action == SHARED]
            total = melodies + sum(request.arguments["count"] for request in alike)
            share = min(MOST_TOGETHER, math.ceil(total / self._idle))
            for request in alike:
                if melodies + request.arguments["count"] <= share:
                    melodies += request.arguments["count"]
                    self._waiting.remove(request)
                    taken.append(request)
        self._changed.notify_all()  # others may have waited for the first one's moment to pass
        return taken

    def __call__(self, action: str, **arguments: Any) -> Any:
        """Do an action of [`Composer`] in a worker and return its result.

        Raises:
            RefusedError: If it cannot be done.
        """
        request = Request(action, arguments)
        with self._changed:
            if self._is_closed:
                raise RefusedError(CLOSING)
            (self._waiting_without if action in WITHOUT_MODEL else self._waiting).append(request)
            self._changed.notify_all()
        is_done, result = request.answer.result()
        if not is_done:
            raise RefusedError(result)
        return result

    def wait(self) -> None:
        """Wait until the workers are ready.

        Raises:
            RefusedError: If they cannot load the model.
        """
        for warm in self._warm:
            is_ready, failure = warm.result()
            if not is_ready:
                raise RefusedError(failure)

    def close(self) -> None:
        """End the workers; who still waits is told so."""
        with self._changed:
            self._is_closed = True
            for waiting in (self._waiting, self._waiting_without):
                while waiting:
                    waiting.popleft().answer.set_result((False, CLOSING))
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
