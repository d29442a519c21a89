"""Everything the Space can do, as plain functions: the page's buttons, the API's endpoints and the MCP tools are these.

Arguments come from strangers. Each is checked, see `checks.py`, before a worker sees it.
"""

import base64
import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from checks import ANY, MAX_COUNT, MAX_SEED, TEMPOS, ArgumentChecks
from engine import Engine
from harmony import harmonize
from listening import Ballot, ListeningTest
from melody import (
    CHOICES,
    Melody,
    RefusedError,
    check_length,
    check_melody,
    check_number,
    clean_text,
    file_name,
    to_midi,
)
from notation import to_abc, to_musicxml
from originality import judge, load_index
from ranking import OPENING_BARS, OPENING_SEEDS, choose_opening

MODES: tuple[str, ...] = tuple(CHOICES["modes"])
SLOW_BELOW, FAST_FROM = 90.0, 130.0
VOICES: dict[str, list[int] | None] = CHOICES["voices"]  # lowest and highest MIDI pitch
PATH_POINTS = 9
GRID_SIDE = 7
MAX_FILE_BYTES = 2 * 1024 * 1024
ATTRIBUTE_NAMES: dict[str, str] = CHOICES["attributes"]


def load_tunes() -> list[Melody]:
    """Read the public-domain tunes that come with the Space."""
    return json.loads((Path(__file__).parent / "tunes.json").read_text(encoding="utf-8"))


class Actions:
    """The Space's actions.

    Args:
        engine: Does the model's work.
        votes: Folder for the listening test's votes.
    """

    def __init__(self, engine: Engine, votes: Path):
        self.engine = engine
        self.facts: dict[str, Any] = engine("facts")
        self.check = ArgumentChecks(self.facts)
        self.index = load_index(engine.model_id)
        self.tunes = {tune["title"]: tune for tune in load_tunes()}
        self.test = ListeningTest(
            [tune for tune in self.tunes.values() if tune["time_signature"] in self.facts["meters"]],
            self._compose_like,
            Ballot(votes),
            engine.model_id,
        )
        self._make = lru_cache(maxsize=64)(self._make_uncached)  # links, and the page's first melodies, come again

    @property
    def max_bars(self) -> int:
        """Bars that one latent holds."""
        return self.facts["max_bars"]

    @property
    def most_bars(self) -> int:
        """Bars that a melody made here has at most."""
        return 2 * self.max_bars

    @property
    def genres(self) -> list[str]:
        """What the model can be asked for as a genre."""
        return self.facts["conditions"].get("genre", [])

    def opening(self, count: int) -> list[Melody]:
        """Make the melodies that the page opens with: of many seeds', the nearest to the tunes of the Space."""
        bars = min(OPENING_BARS, self.max_bars)
        with ThreadPoolExecutor(OPENING_SEEDS) as pool:  # so that they are made together
            made = list(pool.map(lambda seed: self.make(count=1, bars=bars, seed=seed)[0], range(OPENING_SEEDS)))
        return choose_opening(made, self.tunes.values(), count)

    def make(
        self,
        count: int = 4,
        bars: int = 8,
        key: str = ANY,
        scale: str = ANY,
        time_signature: str = ANY,
        genre: str = ANY,
        tempo: str | float = ANY,
        voice: str = ANY,
        attributes: dict[str, float] | None = None,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> list[dict]:
        """Sample new melodies. The same settings and seed give the same melodies again.

        Args:
            count: How many, 1 to 8.
            bars: How long each is, in bars, from 1 to twice what the model holds at once.
            key: Such as "D minor"; other pitches than its own may occur. "any" leaves it open.
            scale: The only pitches, as tonic and mode, such as "D dorian" or "F# minor"; "any" leaves it open.
            time_signature: Such as "6/8"; "any" leaves it open.
            genre: One of the model's genres; "any" leaves it open.
            tempo: Quarter notes per minute, 30 to 300, or "slow", "medium", "fast" or "any".
            voice: Whose range, such as "alto" or "violin"; "any" leaves it open.
            attributes: For attributes such as "note_density" how much more than usual (or less, if negative), -3 to 3
                standard deviations.
            temperature: How daring, 0.1 to 2; 1 is as the model learned.
            seed: 0 to 2147483647.

        Returns:
            Melodies: pitch (MIDI), start and duration (grid steps), time_signature, steps_per_beat, bars, tempo,
            program, title and origin.
        """
        draws = self.check.draws(count, seed, temperature)
        bars = int(check_number("bars", bars, 1, self.most_bars, whole=True))
        asked = {
            "key": self.check.scale("key", key, ("major", "minor")),
            "scale": self.check.scale("scale", scale, MODES),
            "time_signature": self.check.choice("time_signature", time_signature, self.facts["meters"]),
            "genre": self.check.choice("genre", genre, self.genres),
            "tempo": self.check.tempo(tempo),
            "voice": self.check.choice("voice", voice, list(VOICES)),
        }
        more = self.check.attributes(attributes)
        made = self._make(bars=bars, asked=tuple(asked.items()), attributes=tuple(more.items()), **draws)
        return [dict(melody) for melody in made]

    def _make_uncached(
        self,
        bars: int,
        count: int,
        seed: int,
        temperature: float,
        asked: tuple[tuple[str, Any], ...],
        attributes: tuple[tuple[str, float], ...],
    ) -> list[Melody]:
        wanted = dict(asked)
        # What the notes must be is enforced; what else is asked for is a condition of the model.
        known = self.facts["conditions"]
        constraints = {name: wanted[name] for name in ("scale", "time_signature") if wanted[name] != ANY}
        if limits := VOICES[wanted["voice"]]:
            constraints["lowest_pitch"], constraints["highest_pitch"] = limits
        tempo = wanted["tempo"]
        conditions = {
            "key": wanted["scale"] if wanted["key"] == ANY else wanted["key"],
            "time_signature": wanted["time_signature"],
            "genre": wanted["genre"],
            "tempo": tempo if isinstance(tempo, str) else tempo_class(tempo),
        }
        melodies = self.engine(
            "make" if bars <= self.max_bars else "compose",
            count=count,
            bars=bars,
            seed=seed,
            temperature=temperature,
            conditions={name: value for name, value in conditions.items() if value in known.get(name, ())}
            | dict(attributes),
            constraints=constraints,
            tempo=TEMPOS[tempo] if isinstance(tempo, str) else tempo,
        )
        # How each melody was made goes with it.
        origin = {"tab": "make", "count": count, "bars": bars, **wanted, **dict(attributes)}
        origin |= {"temperature": temperature, "seed": seed}
        return [
            {**self._judged(melody), "title": f"Melody {number}", "origin": {**origin, "pick": number}}
            for number, melody in enumerate(melodies, start=1)
        ]

    def change(
        self,
        melody: dict,
        amounts: dict[str, float] | None = None,
        similarity: float = 1.0,
        count: int = 1,
        seed: int = 0,
    ) -> list[dict]:
        """Change a melody: more or less of an attribute, or variations that are alike.

        Args:
            melody: As the other endpoints return it; its first bars count, as many as the model holds.
            amounts: For attributes such as "note_density" how much more (or less, if negative), -3 to 3 standard
                deviations.
            similarity: 1 keeps the melody as the model remembers it, 0 keeps nothing.
            count: How many variations, 1 to 8, where similarity is below 1.
            seed: 0 to 2147483647.

        Returns:
            Melodies.
        """
        source = self.check.window(melody)
        checked = self.check.attributes(amounts)
        similarity = check_number("similarity", similarity, 0, 1)
        count = int(check_number("count", count, 1, MAX_COUNT, whole=True))
        seed = int(check_number("seed", seed, 0, MAX_SEED, whole=True))
        made = self.engine("change", melody=source, amounts=checked, similarity=similarity, count=count, seed=seed)
        return self._entitle(made, source, "changed", {"tab": "change", "seed": seed})

    def blend(self, melodies: list[dict]) -> list[dict]:
        """Find melodies between two or four: a path of 9, or a square of 7 by 7, row by row.

        The first and the last of a path, and the corners of a square, are the melodies that were given.

        Args:
            melodies: Two (start and end), or four (top left, top right, bottom left, bottom right).

        Returns:
            9 or 49 melodies.
        """
        if not isinstance(melodies, list) or len(melodies) not in (2, 4):
            raise RefusedError("Blend two melodies, or four")
        ends = [self.check.window(melody, f"Melody {letter}") for letter, melody in zip("ABCD", melodies, strict=False)]
        if len({end["time_signature"] for end in ends}) > 1:
            meters = ", ".join(f"{letter} {end['time_signature']}" for letter, end in zip("ABCD", ends, strict=False))
            raise RefusedError(f"These melodies differ in meter ({meters}). Choose melodies of one meter to blend.")
        size = PATH_POINTS if len(ends) == 2 else GRID_SIDE
        made = self.engine("blend", melodies=ends, size=size)
        corners = (0, size - 1) if len(ends) == 2 else (0, size - 1, size * (size - 1), size * size - 1)
        blends = self._entitle(made, {"title": "Blend"}, "", {"tab": "blend"})
        for place, end in zip(corners, ends, strict=True):
            blends[place] = {**end, "origin": {"tab": "blend"}}
        return blends

    def extend(
        self, melody: dict, bars: int = 4, count: int = 2, seed: int = 0, temperature: float = 1.0
    ) -> list[dict]:
        """Continue a melody; what was there stays as it is.

        Args:
            melody: As the other endpoints return it.
            bars: Bars to add, at most half of what the model holds.
            count: How many continuations, 1 to 8.
            seed: 0 to 2147483647.
            temperature: 0.1 to 2.

        Returns:
            Melodies, the given one at the beginning of each.
        """
        source = self.check.on_grid(melody)
        bars = int(check_number("bars", bars, 1, self.max_bars // 2, whole=True))
        made = self.engine("extend", melody=source, bars=bars, **self.check.draws(count, seed, temperature))
        return self._entitle(made, source, "continued", {"tab": "extend", "seed": seed})

    def fill(
        self, melody: dict, bars: list[int], count: int = 2, seed: int = 0, temperature: float = 1.0
    ) -> list[dict]:
        """Write chosen bars of a melody anew; all others stay as they are.

        Args:
            melody: As the other endpoints return it, not longer than the model holds.
            bars: Which bars, counted from 1.
            count: How many versions, 1 to 8.
            seed: 0 to 2147483647.
            temperature: 0.1 to 2.

        Returns:
            Melodies.
        """
        source = self.check.window(melody)
        if not isinstance(bars, list) or not bars:
            raise RefusedError("Choose at least one bar to write anew")
        if len(bars) > self.max_bars:
            raise RefusedError(f"{len(bars)} bars; {self.max_bars} is the most")
        chosen = sorted({int(check_number("a bar", bar, 1, source["bars"], whole=True)) for bar in bars})
        made = self.engine(
            "fill", melody=source, bars=[bar - 1 for bar in chosen], **self.check.draws(count, seed, temperature)
        )
        return self._entitle(made, source, "filled", {"tab": "fill", "seed": seed})

    def read_midi(self, midi_base64: str) -> dict:
        """Read the tunes of a MIDI file.

        Args:
            midi_base64: The file, at most 2 MB, in base64.

        Returns:
            tracks, each with name, melody and found (a sentence: which track and bars, and how sure it is the tune);
            best, the index of the likeliest tune; and is_certain, whether it is likely enough to be taken for it.
        """
        return self.read_midi_bytes(self._decode(midi_base64))

    def _decode(self, midi_base64: Any) -> bytes:
        """Read a file from base64."""
        text = str(midi_base64)
        if len(text) > MAX_FILE_BYTES * 4 // 3 + 4:
            raise RefusedError(f"A MIDI file has at most {MAX_FILE_BYTES // 2**20} MB here")
        try:
            return base64.b64decode(text, validate=True)
        except ValueError as error:
            raise RefusedError("midi_base64 is not base64") from error

    def read_midi_bytes(self, content: bytes) -> dict[str, Any]:
        """Read the tunes of a MIDI file, see `read_midi`."""
        if len(content) > MAX_FILE_BYTES:
            raise RefusedError(f"A MIDI file has at most {MAX_FILE_BYTES // 2**20} MB here")
        return self.engine("read_midi", content=content)

    def put_back(self, melody: dict, midi_base64: str) -> dict:
        """Put a melody back into the MIDI file that it came from: in its track, at its place, all else as it is.

        Args:
            melody: With the place that read_midi gave it; change, fill and extend keep it.
            midi_base64: The file, at most 2 MB, in base64.

        Returns:
            name, and base64, the file.
        """
        checked = check_melody(melody)
        content = self._decode(midi_base64)
        return as_file(checked, "mid", self.engine("put_back", content=content, melody=checked))

    def tune(self, title: str = "Ode to Joy") -> dict:
        """Give one of the public-domain tunes that come with the Space.

        Args:
            title: Such as "Greensleeves".

        Returns:
            A melody.
        """
        if title not in self.tunes:
            raise RefusedError(f"no tune called {clean_text(title, 40)}; there are {', '.join(self.tunes)}")
        return dict(self.tunes[title])

    def harmonize(self, melody: dict) -> dict:
        """Find the key and the chords of a melody, and write an accompaniment.

        Args:
            melody: As the other endpoints return it.

        Returns:
            key, such as "D minor"; chords, one for each bar; and the accompaniment's pitch, start and duration.
        """
        return harmonize(check_melody(melody))

    def midi(self, melody: dict, chords: bool = False) -> dict:
        """Write a melody as a MIDI file.

        Args:
            melody: As the other endpoints return it.
            chords: Whether to add the accompaniment of harmonize, as a second track.

        Returns:
            name, and base64, the file.
        """
        checked = check_melody(melody)
        return as_file(checked, "mid", to_midi(checked, harmonize(checked) if chords else None))

    def wav(self, melody: dict, chords: bool = False) -> dict:
        """Play a melody into a WAV file.

        Args:
            melody: As the other endpoints return it; its program chooses the instrument.
            chords: Whether to play the accompaniment of harmonize, too.

        Returns:
            name, and base64, the file: 16 bits, mono.
        """
        checked = check_melody(melody)
        check_length(checked)
        under = harmonize(checked) if chords else None
        return as_file(checked, "wav", self.engine("wav", melody=checked, accompaniment=under))

    def sheet(self, melody: dict, form: str = "musicxml", chords: bool = False) -> dict:
        """Write a melody as sheet music.

        Args:
            melody: As the other endpoints return it.
            form: "musicxml" or "abc".
            chords: Whether to name the chords of harmonize above the staff.

        Returns:
            name, and base64, the file.
        """
        checked = check_melody(melody)
        if form not in ("musicxml", "abc"):
            raise RefusedError(f"unknown form {clean_text(form, 24)}; there is musicxml, abc")
        found = harmonize(checked)
        names = found["chords"] if chords else None
        if form == "abc":
            return as_file(checked, "abc", to_abc(checked, found["key"], names).encode())
        return as_file(checked, "musicxml", to_musicxml(checked, found["key"], names))

    def about(self) -> dict:
        """Say what the model is and what it can be asked for.

        Returns:
            Sizes, conditions, attributes and meters, and the words that the other endpoints take.
        """
        return {
            **self.facts,
            "model": self.engine.model_id,
            "modes": list(MODES),
            "voices": list(VOICES),
            "tunes": list(self.tunes),
        }

    def listening_pair(self) -> dict:
        """Take a pair of the blind listening test: one melody by a person, one by the model.

        Returns:
            pair, by which to vote, and the melodies a and b.
        """
        return self.test.pair()

    def listening_vote(self, pair: str, choice: str) -> dict:
        """Vote in the blind listening test.

        Args:
            pair: As the pair has it.
            choice: "a" or "b": which melody a person wrote.

        Returns:
            is_right, person_is and tune, the title of the person's melody.
        """
        return self.test.vote(pair, choice)

    def _compose_like(self, bars: int, meter: str, tempo: float, seed: int) -> Melody:
        """Sample one melody for the listening test."""
        known = self.facts["conditions"].get("time_signature", ())
        made = self.engine(
            "make",
            count=1,
            bars=bars,
            seed=seed,
            temperature=1.0,
            conditions={"time_signature": meter} if meter in known else {},
            constraints={"time_signature": meter},
            tempo=tempo,
        )
        return made[0]

    def _judged(self, melody: Melody) -> Melody:
        """Say how original a melody is, where there is an index to ask."""
        return melody if self.index is None else {**melody, "originality": judge(self.index, melody)}

    def _entitle(self, melodies: Sequence[Melody], source: Melody, how: str, origin: dict[str, Any]) -> list[Melody]:
        """Name what was made of a melody, number it where there are several, and keep its place in a file."""
        title = clean_text(f"{source['title']}, {how}" if how else source["title"])
        place = {"place": source["place"]} if "place" in source else {}
        return [
            {
                **self._judged(melody),
                **place,
                "title": f"{title} {number}" if len(melodies) > 1 else title,
                "origin": origin,
            }
            for number, melody in enumerate(melodies, start=1)
        ]


def as_file(melody: Melody, suffix: str, content: bytes) -> dict[str, str]:
    """Return a file as it travels: its name and its content in base64."""
    return {"name": file_name(melody, suffix), "base64": base64.b64encode(content).decode()}


def tempo_class(quarters_per_minute: float) -> str:
    """Name the model's class of a tempo."""
    return "slow" if quarters_per_minute < SLOW_BELOW else "medium" if quarters_per_minute < FAST_FROM else "fast"


def new_seed() -> int:
    """Draw a seed that is short enough to be read aloud."""
    return random.SystemRandom().randrange(100_000)
