"""The blind listening test: a tune that a person wrote beside one that the model wrote, and where votes are kept."""

import json
import os
import random
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from melody import Melody, RefusedError, cut_bars, transpose

BARS = 8
MAX_PENDING = 2000
MAX_FILE_BYTES = 16 * 2**20  # of votes, some 50,000; more are not kept
MINUTES_BETWEEN_COMMITS = 10
HEARD = ("pitch", "start", "duration", "time_signature", "steps_per_beat", "bars", "tempo")  # and nothing that betrays


class Ballot:
    """Keep votes: in a file, and with `HF_TOKEN` and `VOTES_DATASET` set, in a data set on the Hub.

    Args:
        folder: Where the file lies.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        # A Space's disk is empty after each restart: a name of its own keeps one run from overwriting another's votes.
        self.file = folder / f"votes-{secrets.token_hex(6)}.jsonl"
        self.lock: Any = threading.Lock()
        if os.environ.get("HF_TOKEN") and (dataset := os.environ.get("VOTES_DATASET")):
            from huggingface_hub import CommitScheduler  # asks the Hub as soon as it is made

            scheduler = CommitScheduler(
                repo_id=dataset, repo_type="dataset", folder_path=folder, every=MINUTES_BETWEEN_COMMITS, private=True
            )
            self.lock = scheduler.lock  # it must not read half a line

    def write(self, vote: dict[str, Any]) -> None:
        """Add a vote as a line of JSON, while there is room."""
        line = json.dumps(vote, ensure_ascii=False) + "\n"
        with self.lock, self.file.open("a", encoding="utf-8") as file:
            if file.tell() + len(line.encode()) <= MAX_FILE_BYTES:
                file.write(line)


class ListeningTest:
    """Make pairs and judge votes. Which of the two is whose stays here until the vote.

    Args:
        tunes: Melodies by people.
        compose: Samples a melody, given bars, time signature, tempo and seed.
        ballot: Where votes are kept.
        model_id: Written into each vote.
    """

    def __init__(
        self, tunes: list[Melody], compose: Callable[[int, str, float, int], Melody], ballot: Ballot, model_id: str
    ):
        self.tunes = [tune for tune in tunes if tune["bars"] >= BARS]
        self.compose = compose
        self.ballot = ballot
        self.model_id = Path(model_id).name if Path(model_id).exists() else model_id  # no path of this server
        self.pending: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.lock = threading.Lock()

    def pair(self) -> dict[str, Any]:
        """Make a pair: `pair`, by which to vote, and the melodies `a` and `b`."""
        draw = random.SystemRandom()
        tune = draw.choice(self.tunes)
        shift = draw.randint(-4, 4)
        seed = draw.randrange(2**31)
        person = transpose(cut_bars(tune, 0, BARS), shift)
        machine = self.compose(BARS, tune["time_signature"], tune["tempo"], seed)
        person_is = draw.choice("ab")
        bare = [{**{name: melody[name] for name in HEARD}, "program": 0} for melody in (person, machine)]
        a, b = bare if person_is == "a" else bare[::-1]
        token = secrets.token_urlsafe(12)
        with self.lock:
            self.pending[token] = {
                "person_is": person_is,
                "tune": tune["title"],
                "transposed_semitones": shift,
                "bars": BARS,
                "time_signature": tune["time_signature"],
                "seed": seed,
                "model": self.model_id,
            }
            while len(self.pending) > MAX_PENDING:
                self.pending.popitem(last=False)
        return {"pair": token, "a": {**a, "title": "Melody A"}, "b": {**b, "title": "Melody B"}}

    def vote(self, pair: str, choice: str) -> dict[str, Any]:
        """Judge and keep a vote; each pair has one.

        Args:
            pair: As `pair` gave it.
            choice: `a` or `b`: which melody a person wrote.

        Returns:
            `is_right`, `person_is` and the `tune`'s title.

        Raises:
            RefusedError: If the choice is no choice, or the pair unknown or voted on.
        """
        if choice not in ("a", "b"):
            raise RefusedError("Choose a or b")
        with self.lock:
            secret = self.pending.pop(str(pair), None)
        if secret is None:
            raise RefusedError("This pair has been voted on, or is too old: take the next one")
        is_right = choice == secret["person_is"]
        self.ballot.write(
            {"time": datetime.now(UTC).isoformat(timespec="seconds"), **secret, "choice": choice, "is_right": is_right}
        )
        return {"is_right": is_right, "person_is": secret["person_is"], "tune": secret["tune"]}
