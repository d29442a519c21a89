"""The Space's workers: who is served together, and that nobody notices."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.builders.space_server import BARS, ROOT, save_model

sys.path.append(str(ROOT / "space"))

import engine
from composer import Composer
from engine import Engine, answer
from melody import RefusedError


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def composer(model_folder) -> Composer:
    return Composer(str(model_folder))


class Slow:
    """A composer that makes numbers for melodies, and does not go on before it is told to."""

    def __init__(self):
        self.batches: list[list[int]] = []
        self.is_free = threading.Event()

    def make(self, requests: list[dict]) -> list[list[int]]:
        self.batches.append([request["seed"] for request in requests])
        assert self.is_free.wait(30)
        if any(request["seed"] < 0 for request in requests):
            raise RefusedError("no seed below 0")
        return [[request["seed"]] * request["count"] for request in requests]

    def facts(self) -> dict:
        return {"max_bars": 16}

    def wav(self, **played: Any) -> bytes:
        return b"RIFF"


@pytest.fixture
def slow(monkeypatch) -> Slow:
    composer = Slow()
    monkeypatch.setattr(engine, "_composer", composer)
    monkeypatch.setattr(engine.Engine, "_start", lambda self, has_model=True: ThreadPoolExecutor(1))
    return composer


def until(is_so: Callable[[], bool]) -> None:
    for _ in range(3000):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to that")


def test_who_comes_while_all_are_busy_is_served_together(slow):
    pool = Engine("model", workers=1)
    until(lambda: len(slow.batches) == 1)  # warming
    with ThreadPoolExecutor(20) as people:
        asked = []

        def ask(action: str, **arguments: Any) -> Future:
            asked.append(people.submit(pool, action, **arguments))
            until(lambda: len(pool._waiting) == len(asked))  # so that the order is certain
            return asked[-1]

        answers = [ask("make", seed=seed, count=4) for seed in (11, 12, -1, 13)]
        facts = ask("facts")
        answers += [ask("make", seed=seed, count=5) for seed in range(20, 26)]
        slow.is_free.set()
        assert [answer.result(30) for answer in answers if answer is not answers[2]] == [
            *([seed] * 4 for seed in (11, 12, 13)),
            *([seed] * 5 for seed in range(20, 26)),
        ]
        with pytest.raises(RefusedError, match="no seed below 0"):
            answers[2].result(30)
        assert facts.result(30) == {"max_bars": 16}
    first = [11, 12, -1, 13, 20, 21, 22]  # 31 melodies
    assert 4 * 4 + 3 * 5 <= engine.MOST_TOGETHER < 4 * 4 + 4 * 5
    alone = [[seed] for seed in first]  # one of them cannot be done: each by itself
    assert slow.batches[1:] == [first, *alone, [23, 24, 25]]
    pool.close()


def test_who_comes_within_a_moment_shares_the_idle_workers(slow, monkeypatch):
    monkeypatch.setattr(engine, "GATHERING_SECONDS", 1.0)
    slow.is_free.set()
    pool = Engine("model", workers=3)
    pool.wait()
    slow.is_free.clear()
    with ThreadPoolExecutor(7) as people:
        answers = [people.submit(pool, "make", seed=seed, count=4) for seed in range(1, 8)]
        until(lambda: len(slow.batches) == 6)  # three of them were warming
        slow.is_free.set()
        assert [answer.result(30) for answer in answers] == [[seed] * 4 for seed in range(1, 8)]
        assert sorted(map(len, slow.batches[3:])) == [2, 2, 3]
        monkeypatch.setattr(engine, "GATHERING_SECONDS", 60.0)
        began = time.monotonic()
        pool("facts")
        assert time.monotonic() - began < 30  # what is not shared waits for nobody
    pool.close()


def test_a_fault_reaches_who_asked_and_the_worker_goes_on(slow):
    slow.is_free.set()
    pool = Engine("model", workers=1)
    pool.wait()
    with pytest.raises(TypeError):
        pool("facts", nonsense=1)
    assert pool("make", seed=3, count=1) == [3]
    pool.close()
    with pytest.raises(RefusedError, match="shutting down"):
        pool("facts")


def test_files_and_sound_do_not_wait_for_melodies(slow):
    pool = Engine("model", workers=1)
    until(lambda: len(slow.batches) == 1)  # the only worker with a model is busy
    with ThreadPoolExecutor(1) as people:
        assert people.submit(pool, "wav", melody={}).result(30) == b"RIFF"
    slow.is_free.set()
    pool.close()


def test_a_request_beyond_its_deadline_is_ended_and_the_next_is_answered(slow, monkeypatch):
    slow.is_free.set()
    pool = Engine("model", workers=1)
    pool.wait()
    slow.is_free.clear()
    monkeypatch.setattr(engine, "DEADLINE_SECONDS", 0.2)
    with pytest.raises(RefusedError, match="took too long"):
        pool("make", seed=1, count=1)
    assert pool("facts") == {"max_bars": 16}  # by a new worker: the old one is still at it
    slow.is_free.set()
    assert pool("make", seed=2, count=1) == [2]
    pool.close()


def test_a_worker_that_cannot_be_started_is_said_and_started_for_the_next_request(slow, monkeypatch):
    """The system may lack memory, processes or files for a moment; nobody waits for a worker that is not there."""
    failures = []

    def start(self, has_model=True):
        if failures:
            raise failures.pop()
        return ThreadPoolExecutor(1)

    monkeypatch.setattr(engine.Engine, "_start", start)
    slow.is_free.set()
    failures += [BrokenPipeError(32, "Broken pipe"), BlockingIOError(11, "no more processes")]  # both workers
    pool = Engine("model", workers=1)
    with pytest.raises(RefusedError, match=r"cannot be started: .*(Broken pipe|no more processes)"):
        pool.wait()
    until(lambda: not failures)
    assert pool("make", seed=1, count=1) == [1]
    assert pool("wav", melody={}) == b"RIFF"
    slow.is_free.clear()
    monkeypatch.setattr(engine, "DEADLINE_SECONDS", 0.2)
    failures.append(OSError(12, "no memory"))
    with pytest.raises(RefusedError, match="took too long"):
        pool("make", seed=2, count=1)
    slow.is_free.set()
    until(lambda: not failures)
    assert pool("make", seed=3, count=1) == [3]
    pool.close()


@pytest.mark.slow
def test_the_process_of_a_late_request_is_killed(model_folder, monkeypatch):
    monkeypatch.setitem(engine.WITHOUT_MODEL, "wav", 0.3)
    pool = Engine(str(model_folder), workers=1)
    pool.wait()
    until(lambda: len(multiprocessing.active_children()) == 2)
    before = {child.pid for child in multiprocessing.active_children()}
    notes = 4096
    played = {"pitch": [60] * notes, "start": [0] * notes, "duration": [4 * 256] * notes, "time_signature": "4/4"}
    played |= {"steps_per_beat": 4, "bars": 256, "tempo": 300.0, "program": 0, "title": "hours of work"}
    with pytest.raises(RefusedError, match="took too long"):
        pool("wav", melody=played)
    until(lambda: len(before & {child.pid for child in multiprocessing.active_children()}) == 1)
    monkeypatch.setitem(engine.WITHOUT_MODEL, "wav", 60.0)
    short = {**played, "pitch": [60], "start": [0], "duration": [1]}
    assert pool("wav", melody=short)[:4] == b"RIFF"
    assert pool("facts")["max_bars"] == BARS
    pool.close()


def test_who_waits_is_told_when_the_server_ends(slow, monkeypatch):
    monkeypatch.setattr(engine, "PATIENCE_SECONDS", 0.1)
    pool = Engine("model", workers=1)
    until(lambda: len(slow.batches) == 1)
    with ThreadPoolExecutor(1) as people:
        answer = people.submit(pool, "facts")
        until(lambda: len(pool._waiting) == 1)
        pool.close()
        with pytest.raises(RefusedError, match="shutting down"):
            answer.result(30)
    slow.is_free.set()


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(model_folder):
    pool = Engine(str(model_folder), workers=1)
    pool.wait()
    workers = multiprocessing.active_children()  # that with the model, and that without
    assert len(workers) == 2
    for worker in workers:
        assert worker.pid
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RefusedError, match="restarted"):
        pool("facts")
    assert pool("facts")["max_bars"] == BARS
    pool.close()


def request(seed: int, **asked: Any) -> dict[str, Any]:
    plain = {"count": 3, "bars": 4, "temperature": 1.0, "conditions": {}, "constraints": {}, "tempo": 100.0}
    return {**plain, "seed": seed, **asked}


def test_melodies_are_the_same_alone_and_among_others(composer):
    """Requests of all kinds together; each melody is that of its seed and its number, in single precision too."""
    kinds: list[dict] = [
        {},
        {"bars": 7, "temperature": 0.7},
        {"constraints": {"scale": "D dorian"}, "tempo": 152.0},
        {"constraints": {"time_signature": "3/4", "lowest_pitch": 60, "highest_pitch": 81}, "count": 1},
        {"conditions": {"key": "A minor", "genre": "Folk"}, "constraints": {"scale": "A minor"}, "count": 5},
    ]
    requests = [request(seed, **kinds[seed % len(kinds)]) for seed in range(13)]
    together = composer.make(requests)
    assert [len(made) for made in together] == [each["count"] for each in requests]
    for seed in (0, 3, 4, 12):
        assert composer.make([requests[seed]]) == [together[seed]]
    (fewer,) = composer.make([{**requests[4], "count": 2}])
    assert fewer == together[4][:2]
    assert {melody["tempo"] for melody in together[2]} == {152.0}


def test_one_that_cannot_be_done_does_not_spoil_the_others(composer):
    impossible = request(1, constraints={"scale": "C major", "lowest_pitch": 61, "highest_pitch": 61})
    answers = answer(composer, "make", [request(0), impossible, request(2)])
    assert [is_done for is_done, _ in answers] == [True, False, True]
    assert "no pitch of the scale" in answers[1][1]
    assert answers[2][1] == composer.make([request(2)])[0]
