"""Thirty people at the Space at once: how long they wait, and what it costs in memory.

`LOAD_MODEL=runs/lakh python -m pytest -s -m slow tests/space/test_space_load.py` prints what visitors would see on this
machine with a trained model; a small one of random weights stands in for it otherwise.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from benchmarks.space_process import PATIENCE_SECONDS, members, memory_of, running_space
from benchmarks.timing import processor_seconds_of
from tests.builders.space_server import save_model

PEOPLE, ROUNDS, COUNT, BARS = 30, 5, 4, 16
CORES = min(4, len(os.sched_getaffinity(0)))
MOST_COMPUTED, ALONE_COMPUTED = 20.0, 2.0  # seconds of processor time: of a round, of one person's melodies
MOST_SECONDS = (
    60.0  # of waiting, p95; on cores that have nothing else to do, a round's processor time is shared by them
)
MOST_GROWTH = 32 * 2**20  # bytes between the second round and the last

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> Iterator[tuple[str, int, Path]]:
    folder = tmp_path_factory.mktemp("load")
    model = os.environ.get("LOAD_MODEL") or save_model(folder / "model")
    with running_space(Path(model).resolve(), folder / "run", workers=CORES) as (url, group):
        yield url, group, folder / "run/log.txt"
    assert members(group) == []


def press_make(client: httpx.Client, seed: int, person: int = 0) -> tuple[float, list[dict]]:
    """Ask for melodies as the page does, by way of the queue and in one session; gives seconds and melodies."""
    began = time.perf_counter()
    asked = [COUNT, BARS, "any", "any", "any", "any", "any", "any", {}, 1.0, seed]
    body = {"data": asked, "session_hash": f"person{person}"}
    event = client.post("/gradio_api/call/make", json=body).raise_for_status().json()["event_id"]
    kind = ""
    with client.stream("GET", f"/gradio_api/call/make/{event}") as answer:
        for line in answer.iter_lines():  # there is one every few seconds, whether the answer comes or not
            assert time.perf_counter() - began < PATIENCE_SECONDS
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: ") and kind == "complete":
                return time.perf_counter() - began, json.loads(line.removeprefix("data: "))[0]
            else:
                assert kind not in ("error", "cancelled"), line
    raise AssertionError("the answer broke off")


def pitches(melodies: list[dict]) -> list[Any]:
    return [melody["pitch"] for melody in melodies]


def test_thirty_people_at_once(space):
    """All press at the same moment, again and again: nobody waits long, gets an error, or somebody else's melodies."""
    url, group, log = space
    clients = [httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) for _ in range(PEOPLE)]
    began = time.perf_counter()
    page = clients[0].get("/").raise_for_status()
    print(f"\n{CORES} cores, first page {len(page.content) / 1e6:.2f} MB in {time.perf_counter() - began:.2f} s")
    before = processor_seconds_of(members(group))
    alone = [press_make(clients[0], seed) for seed in range(5)]
    assert processor_seconds_of(members(group)) - before < 5 * ALONE_COMPUTED
    print(f"one person: median {np.median([seconds for seconds, _ in alone]):.2f} s")
    memory, seconds = [], []
    for turn in range(ROUNDS):
        together, before = threading.Barrier(PEOPLE), processor_seconds_of(members(group))

        def visit(number: int, turn: int = turn, together: threading.Barrier = together) -> tuple[float, list[dict]]:
            together.wait(PATIENCE_SECONDS)
            return press_make(clients[number], 1000 * turn + number, number)

        with ThreadPoolExecutor(PEOPLE) as pool:
            answers = list(pool.map(visit, range(PEOPLE)))
        assert all(len(melodies) == COUNT for _, melodies in answers)
        assert len({str(pitches(melodies)) for _, melodies in answers}) == PEOPLE
        if turn == 0:  # the seeds that one person asked for
            assert [pitches(melodies) for _, melodies in answers[:5]] == [pitches(melodies) for _, melodies in alone]
        computed = processor_seconds_of(members(group)) - before
        assert computed < MOST_COMPUTED
        waited = [each for each, _ in answers]
        seconds += waited
        memory.append(memory_of(members(group)))
        median, worst = np.percentile(waited, [50, 95])
        print(
            f"round {turn + 1}: median {median:.2f} s, p95 {worst:.2f} s, slowest {max(waited):.2f} s, "
            f"{computed:.1f} s of processor time, memory {memory[-1] / 1e6:.0f} MB"
        )
    for client in clients:
        client.close()
    assert "Traceback" not in log.read_text(encoding="utf-8")
    assert memory[-1] - memory[1] < MOST_GROWTH
    assert np.percentile(seconds, 95) < MOST_SECONDS
