"""Many clients at the Space at once, who do all that it offers, and some that send nonsense."""

from __future__ import annotations

import base64
import json
import random
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hostile_files import hostile_file
from benchmarks.space_process import members, memory_of, running_space
from benchmarks.timing import processor_seconds_of

HOSTILE_EVERY = 20  # one in so many clients is hostile
STEP_SECONDS = 2.0  # between looks at the memory
TARGETS = {"not_answered": 0, "p95_seconds": 5.0, "memory_growth": 0.1}  # the last: of what a fifth of the time took
ANSWER_SECONDS = 300.0

HOSTILE: list[tuple[str, list[Any]]] = [
    ("make", [10**9]),
    ("make", []),
    ("read_midi", ["TVRoZA" * 1000]),
    ("read_midi", [base64.b64encode(hostile_file("tracks", 30_000)).decode()]),
    (
        "wav",
        [{"pitch": [60] * 4096, "start": [0] * 4096, "duration": [4096] * 4096, "bars": 256, "time_signature": "4/4"}],
    ),
    ("tune", ["<img src=x onerror=alert(1)>"]),
    ("blend", [[{}, {}]]),
]


def ask(url: str, action: str, data: list[Any]) -> Any:
    """Ask the API.

    Raises:
        ValueError: If it answers that it cannot.
    """
    body = json.dumps({"data": data}).encode()
    request = urllib.request.Request(f"{url}/gradio_api/call/{action}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}/gradio_api/call/{action}/{event}", timeout=ANSWER_SECONDS) as answer:
        lines = answer.read().decode().splitlines()
    kinds = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    if not kinds or kinds[-1] != "complete":
        raise ValueError(kinds[-1] if kinds else "nothing")
    return json.loads([line.removeprefix("data: ") for line in lines if line.startswith("data: ")][-1])[0]


class Client:
    """Somebody who makes a melody, and does this and that with it.

    Args:
        url: Of the Space.
        number: Seed of what this one does.
    """

    def __init__(self, url: str, number: int):
        self.url, self.random = url, random.Random(number)
        self.melodies: list[dict] = []
        self.file = ""  # the last one that was downloaded

    def choose(self) -> tuple[str, Callable[[], Any]]:
        """Choose what to do next; the first time, to make melodies."""
        if len(self.melodies) < 2 or not self.file:
            name = "make" if len(self.melodies) < 2 else "midi"
        else:
            name = self.random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        return name, getattr(self, name)

    def keep(self, melodies: list[dict]) -> None:
        """Take one of the melodies that came."""
        assert melodies
        assert all(melody["pitch"] for melody in melodies)
        self.melodies = [*self.melodies, self.random.choice(melodies)][-2:]

    def seed(self) -> int:
        """Draw a seed that nobody asked for before, most likely."""
        return self.random.randrange(2**31)

    def make(self) -> None:
        """Make four melodies."""
        bars = self.random.choice([4, 8, 16])
        self.keep(ask(self.url, "make", [4, bars, "any", "any", "4/4", *["any"] * 3, {}, 1.0, self.seed()]))

    def change(self) -> None:
        """Have more or less of an attribute."""
        amounts = {"note_density": self.random.choice([-1.0, 1.0])}
        self.keep(ask(self.url, "change", [self.melodies[-1], amounts, 1.0, 1, self.seed()]))

    def vary(self) -> None:
        """Have variations."""
        self.keep(ask(self.url, "change", [self.melodies[-1], {}, 0.7, 4, self.seed()]))

    def fill(self) -> None:
        """Have two bars written anew."""
        bars = self.random.sample(range(1, 1 + min(16, self.melodies[-1]["bars"])), 2)
        self.keep(ask(self.url, "fill", [self.melodies[-1], bars, 2, self.seed(), 1.0]))

    def extend(self) -> None:
        """Have a melody continued, if it is not long already."""
        if self.melodies[-1]["bars"] > 32:
            return self.make()
        return self.keep(ask(self.url, "extend", [self.melodies[-1], 4, 2, self.seed(), 1.0]))

    def blend(self) -> None:
        """Have the way between two melodies."""
        assert len(ask(self.url, "blend", [self.melodies[-2:]])) == 9

    def midi(self) -> None:
        """Take a MIDI file home."""
        self.file = ask(self.url, "midi", [self.melodies[-1], True])["base64"]
        assert base64.b64decode(self.file).startswith(b"MThd")

    def wav(self) -> None:
        """Take a WAV file home."""
        assert base64.b64decode(ask(self.url, "wav", [self.melodies[-1], True])["base64"]).startswith(b"RIFF")

    def read_midi(self) -> None:
        """Bring a MIDI file."""
        assert ask(self.url, "read_midi", [self.file])["tracks"]

    def about(self) -> None:
        """Ask what the model is."""
        assert ask(self.url, "about", [])["model"]


WEIGHTS = {"make": 4, "change": 2, "vary": 2, "fill": 2, "extend": 2, "blend": 1, "midi": 2, "wav": 1}
WEIGHTS |= {"read_midi": 1, "about": 1}


class Siege:
    """What clients found.

    Args:
        url: Of the Space.
        until: Time by which they are done.
        pause: Seconds, on average, that one listens between two requests; hostile ones do not.
    """

    def __init__(self, url: str, until: float, pause: float):
        self.url, self.until, self.pause = url, until, pause
        self.waited: dict[str, list[float]] = defaultdict(list)  # seconds, by action
        self.errors, self.hostile = Counter(), Counter()

    def visit(self, number: int) -> None:
        """Ask for one thing after the other."""
        if number % HOSTILE_EVERY == 0:
            return self.annoy(number)
        client = Client(self.url, number)
        while time.monotonic() < self.until:
            time.sleep(min(client.random.expovariate(1 / self.pause), 4 * self.pause) if self.pause else 0)
            name, act = client.choose()
            began = time.monotonic()
            try:
                act()
            except Exception as error:  # what is looked for
                self.errors[f"{name}: {type(error).__name__} {str(error)[:80]}".strip()] += 1
            self.waited[name].append(time.monotonic() - began)
        return None

    def annoy(self, number: int) -> None:
        """Ask for one impossible thing after the other."""
        generator = random.Random(number)
        while time.monotonic() < self.until:
            try:
                ask(self.url, *generator.choice(HOSTILE))
                self.hostile["answered"] += 1
            except Exception:
                self.hostile["refused"] += 1


def besiege(model: Path, count: int, seconds: float, pause: float, folder: Path) -> dict[str, Any]:
    """Have many clients use the Space at once, one in twenty of them with nonsense."""
    memory: list[int] = []
    is_over = threading.Event()
    with running_space(model, folder) as (url, group):
        siege = Siege(url, time.monotonic() + seconds, pause)

        def look() -> None:
            while not is_over.wait(STEP_SECONDS):
                memory.append(memory_of(members(group)))

        with ThreadPoolExecutor(count + 1) as clients:
            clients.submit(look)
            try:
                list(clients.map(siege.visit, range(count)))
                processor = processor_seconds_of(members(group))
            finally:
                is_over.set()
        is_alive = any(process.pid == group for process in members(group)) and bool(ask(url, "about", []))
    return summarize(siege, memory) | {
        "clients": count,
        "seconds": seconds,
        "pause_seconds": pause,
        "processor_seconds": processor,
        "tracebacks": (folder / "log.txt").read_text(encoding="utf-8").count("Traceback"),
        "alive_at_the_end": is_alive,
    }


def summarize(siege: Siege, memory: list[int]) -> dict[str, Any]:
    """Put what clients found into figures, beside what is aimed at."""
    waited = [each for action in siege.waited.values() for each in action]
    fifth = len(memory) // 5  # the first warms up
    before, after = (float(np.median(part or [0])) for part in (memory[fifth : 2 * fifth], memory[-fifth:]))
    median, worst = np.percentile(waited, [50, 95]) if waited else (0.0, 0.0)
    return {
        "answered": len(waited) - sum(siege.errors.values()),
        "not_answered": sum(siege.errors.values()),
        "errors": dict(siege.errors.most_common(5)),
        "hostile_requests": sum(siege.hostile.values()),
        "median_seconds": float(median),
        "p95_seconds": float(worst),
        "p95_seconds_by_action": {
            name: float(np.percentile(each, 95)) for name, each in sorted(siege.waited.items()) if each
        },
        "requests_by_action": {name: len(each) for name, each in sorted(siege.waited.items())},
        "memory_bytes": after,
        "memory_growth": after / before - 1 if before else 0.0,
        "targets": TARGETS,
    }
