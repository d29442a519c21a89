"""What the model does with melodies. Runs in the worker processes; knows the model by its id or folder alone.

All of it goes through the model's own methods: `sample`, `encode`, `shift`, `vary`, `interpolate`, `interpolate_grid`,
`infill` and `continue_melody`.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from melody import (
    CHOICES,
    MAX_BARS,
    MAX_NOTES,
    Melody,
    RefusedError,
    append,
    check_melody,
    clamp_tempo,
    clean_text,
    cut_bars,
)
from song import find_place, put_back
from sound import to_wav
from transformers import AutoModel, AutoProcessor

# Meters that are offered where the vocabulary has them.
METERS: list[str] = CHOICES["meters"]
MAX_TRACKS = 32
ATTEMPTS = 6  # at a melody in the key that is asked for


def generators(seed: int, count: int, **_: Any) -> list[torch.Generator]:
    """Make a source of random numbers for each melody of a request."""
    root = torch.Generator().manual_seed(seed)
    seeds = [int(torch.randint(2**62, (), generator=root)) for _ in range(count)]
    return [torch.Generator().manual_seed(each) for each in seeds]


class FileReader:
    """A processor, which reads files, and the instruments: what needs no model.

    Args:
        model_id: A model id on the Hub, or a folder.
        threads: Of torch.
    """

    def __init__(self, model_id: str, threads: int = 1):
        torch.set_num_threads(threads)
        self.processor = AutoProcessor.from_pretrained(model_id, trust_remote_code=True)

    def wav(self, **played: Any) -> bytes:
        """Play a melody into a WAV file, see [`to_wav`]."""
        return to_wav(**played)

    def read_midi(self, content: bytes) -> dict[str, Any]:
        """Read every track of a MIDI file that could be a tune.

        Returns:
            `tracks`, each with `name`, `melody` and `found` (where it comes from, in a sentence), in the order of the
            file; `best`, the index of the likeliest tune among them, and `is_certain`, whether it is likely enough to
            be taken for the tune; the model's own processor decides.

        Raises:
            RefusedError: If the file is none, or has no tune that the model can read.
        """
        if content[:4] not in (b"MThd", b"RIFF"):
            raise RefusedError("This is not a MIDI file. Export the tune as standard MIDI (.mid) and bring that.")
        try:
            lines = self.processor.tunes(content)  # best first; a track may have several
        except ValueError as error:
            problem = clean_text(str(error).split(": ", 1)[-1], 120)
            raise RefusedError(f"No tune to be found in this file: {problem}") from error
        of_track: dict[int, Melody] = {}
        for line in lines:
            if len(of_track) < MAX_TRACKS and len(line["pitch"]) <= MAX_NOTES and line["bars"] <= MAX_BARS:
                of_track.setdefault(line["track"], line)
        if not of_track:
            raise RefusedError(f"The tunes of this file are longer than {MAX_BARS} bars. Export a part of one.")
        order = sorted(of_track)
        tracks = []
        for number in order:
            line = of_track[number]
            name = clean_text(line["track_name"]) or f"Track {number + 1}"
            melody = check_melody({**line, "tempo": clamp_tempo(line["tempo"]), "title": name})
            found = clean_text(self.processor.describe({**line, "file": ""}).removeprefix(": "), 400)
            if place := find_place(content, melody):
                melody["place"] = place
            tracks.append({"name": name, "melody": melody, "found": found})
        best = order.index(next(iter(of_track)))
        return {"tracks": tracks, "best": best, "is_certain": bool(of_track[order[best]].get("is_lead", True))}

    def put_back(self, content: bytes, melody: Melody) -> bytes:
        """Put a melody back into the MIDI file that it came from, see [`song.put_back`]."""
        return put_back(content, melody)


class Composer(FileReader):
    """A model and its processor.

    Args:
        model_id: A model id on the Hub, or a folder.
        threads: Of torch.
    """

    def __init__(self, model_id: str, threads: int = 1):
        super().__init__(model_id, threads)
        self.model = AutoModel.from_pretrained(model_id, trust_remote_code=True).eval()
        if not self.model.config.grammar_columns:
            self.model.set_grammar(self.processor.grammar_table())

    def facts(self) -> dict[str, Any]:
        """Say what the model is and what it can be asked for."""
        config = self.model.config
        grid = self.processor.steps_per_beat
        return {
            "max_bars": config.max_bars,
            "latent_size": config.latent_size,
            "conditions": dict(config.conditions or {}) if config.num_prior_layers else {},
            "attributes": list(config.attributes or []),
            "meters": [meter for meter in METERS if self.processor.can_read(meter, grid)],
            "steps_per_beat": grid,
            "parameters": self.model.num_parameters(),
            "vocabulary": config.vocab_size,
            "layers": [config.num_encoder_layers, config.num_hidden_layers, config.num_prior_layers],
        }

    def make(self, requests: Sequence[dict[str, Any]]) -> list[list[Melody]]:
        """Sample melodies from the prior, for several requests at once.

        Each melody has random numbers of its own, from its request's seed and its place there: what a request gets
        depends neither on the others nor, melody for melody, on how many it asks for.

        Args:
            requests: Each with `count`, `bars`, `seed`, `temperature`, `conditions` and `constraints` (for the model's
                `sample`), and the melodies' `tempo`. More `bars` than a latent holds only where there is one request.

        Returns:
            The melodies of each.
        """
        each = [request for request in requests for _ in range(request["count"])]
        conditions = {name: None for request in requests for name in request["conditions"]}
        constraints = {name: None for request in requests for name in request["constraints"]}
        bars = [request["bars"] for request in each]
        try:
            ids = self.model.sample(
                len(each),
                generator=[generator for request in requests for generator in generators(**request)],
                temperature=[request["temperature"] for request in each],
                bars=bars[0] if len(set(bars)) == 1 else bars,
                conditions={name: [request["conditions"].get(name) for request in each] for name in conditions},
                max_attempts=ATTEMPTS,
                **{name: [request["constraints"].get(name) for request in each] for name in constraints},
            )
        except ValueError as error:
            raise RefusedError(str(error)) from error
        lines = iter(self._melodies(ids, 120.0, 0))
        return [
            [{**line, "tempo": request["tempo"]} for line in itertools.islice(lines, request["count"])]
            for request in requests
        ]

    def compose(self, **request: Any) -> list[Melody]:
        """Sample melodies of more bars than a latent holds, for one request."""
        return self.make([request])[0]

    def change(
        self, melody: Melody, amounts: dict[str, float], similarity: float, count: int, seed: int
    ) -> list[Melody]:
        """Encode a melody, move its latent along attributes, and decode it or variations of it."""
        latent = self._encode([melody])
        for attribute, amount in amounts.items():
            latent = self.model.shift(latent, attribute, amount, bars=melody["bars"])
        asked = {"bars": melody["bars"], "time_signature": melody["time_signature"]}
        if similarity == 1:
            ids = self.model.decode(latent, **asked)
        else:
            ids = self.model.vary(latent, n=count, similarity=similarity, seed=seed, **asked)
        return self._melodies(ids, melody["tempo"], melody["program"])

    def blend(self, melodies: Sequence[Melody], size: int) -> list[Melody]:
        """Decode points between two melodies (a path of `size`) or four (a square, row by row)."""
        latents = self._encode(melodies)
        bars = max(melody["bars"] for melody in melodies)
        asked = {"bars": bars, "time_signature": melodies[0]["time_signature"]}
        if len(melodies) == 2:
            ids = self.model.interpolate(latents[0], latents[1], steps=size, **asked)
        else:
            ids = self.model.interpolate_grid(latents, size=size, **asked)
        return self._melodies(ids, melodies[0]["tempo"], melodies[0]["program"])

    def extend(self, melody: Melody, bars: int, count: int, seed: int, temperature: float) -> list[Melody]:
        """Write `bars` bars after a melody, which comes back as it is in front of them."""
        model = self.model
        known = min(melody["bars"], model.config.max_bars - bars)
        end = cut_bars(melody, melody["bars"] - known, known)
        primer = self.processor(lines=[end] * count, primer=True, return_tensors="pt")
        ids = model.continue_melody(**primer, bars=known + bars, seed=seed, temperature=temperature)
        windows = self._melodies(ids, melody["tempo"], melody["program"])
        return [append(melody, cut_bars(window, known, bars)) for window in windows]

    def fill(self, melody: Melody, bars: Sequence[int], count: int, seed: int, temperature: float) -> list[Melody]:
        """Write some bars of a melody anew; the others come back as they are."""
        batch = self.processor(lines=[melody] * count, return_tensors="pt")
        ids = self.model.infill(**batch, bars=list(bars), seed=seed, temperature=temperature)
        return self._melodies(ids, melody["tempo"], melody["program"])

    @torch.no_grad()
    def _encode(self, melodies: Sequence[Melody]) -> torch.Tensor:
        """Return latents `(B, Z)` that give the melodies back."""
        batch = self.processor(lines=list(melodies), return_tensors="pt")
        return self.model.refine(self.model.encode(**batch).latent_mean, batch["input_ids"])

    def _melodies(self, ids: torch.Tensor, tempo: float, program: int) -> list[Melody]:
        """Read generated ids as melodies."""
        return [{**line, "tempo": tempo, "program": program} for line in self.processor.to_lines(ids)]
