"""Latents of melodies: encoded, drawn from the prior, and expanded for the melody decoder.

Dimension key: B batch, T tokens, N bars, S share of a bar in the latent, Z latent size, K decoder layers, C hidden
size, A attributes.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .grammar_state_melody_vae import TokenTable
from .melody_line_melody_vae import ATTRIBUTES, read_conditions, read_line, write_line
from .options_melody_vae import FEWEST_STEPS, PRIOR_STEPS, check_conditions
from .token_grammar_melody_vae import NO_ONSET, TokenColumn, TokenWriter, mark_repeats, runs_of_tokens

Generators = Sequence[np.random.Generator]
"""A source of random numbers for each melody."""


def make_generators(n: int, seed: int | None = None, generator: Generators | None = None) -> Generators:
    """Return a generator for each of `n` melodies; melody i of a seed is the same for every `n`.

    Raises:
        ValueError: If there is a seed as well as generators, or there are not `n`.
    """
    if generator is not None:
        if seed is not None:
            raise ValueError(f"seed={seed} and generator: give one of them")
        if len(generator) != n:
            raise ValueError(f"{len(generator)} generators for {n} melodies: give a list with one for each")
        return generator
    return [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(n)]


def draw_normal(shape: tuple[int, ...], generator: Generators) -> np.ndarray:
    """Draw from N(0, I), `shape` from each generator."""
    return np.stack([source.standard_normal(shape, dtype=np.float32) for source in generator])


class LatentModel:
    """The graphs of a melody VAE but for the melody decoder's loop.

    Args:
        folder: What `export_onnx.py` wrote.
        threads: Of onnxruntime; 0 leaves it the choice.

    Raises:
        FileNotFoundError: If the folder lacks a file.
    """

    def __init__(self, folder: str | Path, threads: int = 0):
        self.folder = Path(folder)
        self.config: dict[str, Any] = json.loads(self._file("onnx_config.json").read_text(encoding="utf-8"))
        with np.load(self._file("onnx_tables.npz")) as tables:
            self.tables = dict(tables)
        config, grammar = self.config, self.tables["token_grammar"]
        self.repeats = dict(zip(config["repeat_lags"], config["repeat_token_ids"], strict=True))
        self.table = TokenTable(grammar, config["eos_token_id"], self.repeats)
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._session("decoder")

    def _file(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; write it with export_onnx.py")
        return path

    def _session(self, name: str) -> onnxruntime.InferenceSession:
        """Load a graph when it is first needed."""
        if name not in self.sessions:
            path = self._file(f"{name}.onnx")
            self.sessions[name] = onnxruntime.InferenceSession(path, self.options, providers=["CPUExecutionProvider"])
        return self.sessions[name]

    def _run(self, name: str, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run a graph; inputs that it does not read are left out."""
        session = self._session(name)
        names = {each.name for each in session.get_inputs()}
        return session.run(None, {name: value for name, value in feeds.items() if name in names})  # pyright: ignore[reportReturnType] - arrays, not all that it can return

    # Melodies as ids and as lines.

    @cached_property
    def writer(self) -> TokenWriter:
        """Writes lines with the model's tokens."""
        return TokenWriter(self.table.table)

    @cached_property
    def steps_per_beat(self) -> int:
        """Grid steps per beat."""
        signatures = self.table.table[self.table.table[:, TokenColumn.TIME_SIGNATURE] > 0][0]
        return int(signatures[TokenColumn.BAR_STEPS]) // (int(signatures[TokenColumn.TIME_SIGNATURE]) // 64)

    def read_lines(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """Read ids `(B, T)` as lines, see `melody_line_melody_vae`."""
        runs = self._runs
        base_tokens = ((base for token in row for base in runs[token]) for row in ids.tolist())
        return [read_line(melody, self.steps_per_beat) for melody in base_tokens]

    @cached_property
    def _runs(self) -> list[list[int]]:
        return runs_of_tokens(self.table.table)

    def write_lines(self, lines: Iterable[Mapping[str, Any]]) -> np.ndarray:
        """Write lines as ids `(B, T)`, padded at the end.

        Raises:
            ValueError: If the vocabulary lacks what a line has.
        """
        return self._join_bars([self.writer.write(write_line(line)) for line in lines])

    def _join_bars(self, melodies: list[list[list[int]]], is_open: bool = False) -> np.ndarray:
        """Write bars' tokens as ids `(B, T)`; padded at the end, or where they are left open, at the beginning."""
        end = [] if is_open else [self.config["eos_token_id"]]
        melodies = [
            mark_repeats(bars, self.repeats, lambda bar: bool(self.table.has_note[list(bar)].any()))
            for bars in melodies
        ]
        rows = [[self.config["bos_token_id"], *(token for bar in bars for token in bar), *end] for bars in melodies]
        return self._pad(rows, is_open)

    def _pad(self, rows: Sequence[Sequence[int]], at_the_beginning: bool = False) -> np.ndarray:
        """Write rows of ids as one array `(B, T)`."""
        length = max(map(len, rows), default=0)
        ids = np.full((len(rows), length), self.config["pad_token_id"], dtype=np.int64)
        for place, row in enumerate(rows):
            ids[place, length - len(row) if at_the_beginning else 0 :][: len(row)] = row
        return ids

    def _split_bars(self, ids: np.ndarray) -> list[list[list[int]]]:
        """Return the tokens of each bar of `ids` `(B, T)`; what stands outside bars is left out."""
        special = {self.config[f"{name}_token_id"] for name in ("pad", "bos", "eos")} | {*self.repeats.values()}
        melodies = []
        for row in ids.tolist():
            bars: list[list[int]] = []
            for token in row:
                if self.table.opens_bar[token]:
                    bars.append([])
                if bars and token not in special:
                    bars[-1].append(token)
            melodies.append(bars)
        return melodies

    def _is_repeat(self, ids: np.ndarray) -> np.ndarray:
        """Whether each token of `(B, T)` says that the bar after it is an earlier one over again."""
        return np.isin(ids, [*self.repeats.values()])

    def num_bars(self, ids: np.ndarray) -> np.ndarray:
        """Count the bars of `ids` `(B, T)`, `(B,)`."""
        return self.table.opens_bar[ids].sum(-1)

    # Latents.

    def musical_position(self, input_ids: np.ndarray) -> np.ndarray:
        """Where in the music each token is, as `MelodyVAEModel.musical_position` has it, `(B, T)`, in bars."""
        bars = self.table.opens_bar[input_ids].cumsum(-1) - 1
        if not self.config["musical_time"]:
            return bars.astype(np.float32)
        onset, steps = self._columns(input_ids, TokenColumn.LAST_ONSET, TokenColumn.BAR_STEPS)
        signature = np.maximum.accumulate(np.where(steps > 0, np.arange(input_ids.shape[1]), 0), axis=-1)
        reached = np.maximum.accumulate(bars * NO_ONSET + onset + 1, axis=-1) % NO_ONSET
        part = np.maximum(reached - 1, 0) / np.maximum(np.take_along_axis(steps, signature, axis=-1), 1)
        return (bars + np.minimum(part.astype(np.float32), np.float32(0.999))).astype(np.float32)

    def musical_pitch(self, input_ids: np.ndarray) -> np.ndarray:
        """Pitch of the latest note at each token, as `MelodyVAEModel.musical_pitch` has it, `(B, T)`, in semitones."""
        lowest, highest = self._columns(input_ids, TokenColumn.LOWEST_PITCH, TokenColumn.HIGHEST_PITCH)
        latest = np.maximum.accumulate(np.where(highest > 0, np.arange(input_ids.shape[1]), 0), axis=-1)
        pitch = np.where(highest > 0, (lowest + highest) / 2, 0.0).astype(np.float32)
        return np.take_along_axis(pitch, latest, axis=-1)

    def _columns(self, input_ids: np.ndarray, *columns: int) -> list[np.ndarray]:
        return [self.table.table[:, column][input_ids] for column in columns]

    def encode(self, input_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode melodies `(B, T)` of up to `max_bars` bars; returns the posterior's mean and log-variance, `(B, Z)`.

        Raises:
            ValueError: If the model has no latent, or a melody is too long for it.
        """
        config = self.config
        if not config["latent_size"]:
            raise ValueError("latent_size=0: this model is a plain Music Transformer and has no latent to encode into")
        if not len(input_ids):
            return np.zeros((0, config["latent_size"]), np.float32), np.zeros((0, config["latent_size"]), np.float32)
        if (longest := int(self.num_bars(input_ids).max())) > config["max_bars"]:
            raise ValueError(
                f"a melody of {longest} bars does not fit a latent of max_bars={config['max_bars']}: cut it up"
            )
        position, pitch = self.musical_position(input_ids), self.musical_pitch(input_ids)
        # What a bar is called makes no difference to the melody encoder: tokens of repeated bars go to the end.
        is_repeat = self._is_repeat(input_ids)
        order = is_repeat.argsort(axis=-1, kind="stable")
        is_read = (input_ids != config["pad_token_id"]) & ~is_repeat
        feeds = {"input_ids": input_ids, "attention_mask": is_read, "musical_position": position, "pitch": pitch}
        moved = {name: np.take_along_axis(value, order, axis=-1) for name, value in feeds.items()}
        mean, log_variance = self._run("encoder", {**moved, "attention_mask": moved["attention_mask"].astype(np.int64)})
        return mean, log_variance

    def bar_conditions(
        self, latent: np.ndarray, noise_level: Any = None, conditions: Mapping[str, list] | None = None
    ) -> np.ndarray:
        """Expand latents `(B, Z)` into condition embeddings `(B, N + 1, K, C)`, as `BarConditioner` does.

        Args:
            latent: `(B, Z)`.
            noise_level: From 0 to 1, a number or `(B, N)`; 0 by default.
            conditions: Of the melody decoder, a list for each. Attributes that are left open are those of an average
                melody where a latent has no noise, if `config.average_attributes` says so.
        """
        n, config = len(latent), self.config
        if noise_level is not None and not config["noise_probability"]:
            raise ValueError(f"noise_level={noise_level}: this model was trained without (noise_probability=0)")
        level = np.broadcast_to(np.float32(0) if noise_level is None else noise_level, (n, config["max_bars"]))
        feeds = {"latent": latent.astype(np.float32), "noise_level": np.ascontiguousarray(level, dtype=np.float32)}
        labels = self._labels(conditions or {}, n)
        if config["average_attributes"]:
            attributes = labels["labels.attributes"]
            attributes[np.isnan(attributes) & (level == 0).all(-1, keepdims=True)] = 0
        return self._run("bar_conditioner", feeds | labels)[0]

    def _labels(self, conditions: Mapping[str, list], n: int, bars: Any = None) -> dict[str, np.ndarray]:
        """Write the conditions and bars of `n` melodies as graphs take them."""
        attributes, config = self.config["attributes"], self.config
        values = np.full((n, len(attributes)), np.nan, dtype=np.float32)
        labels = {f"labels.{name}": np.full(n, len(known)) for name, known in config["conditions"].items()}
        labels |= {"labels.bars": np.zeros(n, dtype=np.int64), "labels.attributes": values}
        if bars is not None:
            labels["labels.bars"] = np.broadcast_to(np.minimum(bars, config["max_bars"]), n).astype(np.int64)
        for name, wanted in conditions.items():
            if name in attributes:
                values[:, attributes.index(name)] = [np.nan if value is None else value for value in wanted]
            else:
                known = [*config["conditions"][name], None]  # the last one: left open
                labels[f"labels.{name}"] = np.array([known.index(value) for value in wanted])
        return labels

    def attributes_of(self, lines: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Measure `config.attributes` of lines, `(B, A)`, in standard deviations from the training data's mean."""
        measured = [[ATTRIBUTES[name](line) for name in self.config["attributes"]] for line in lines]
        return (np.array(measured, np.float32) - self.tables["attribute_mean"]) / self.tables["attribute_scale"]

    def conditions_of(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, list]:
        """Read the conditions of the melody decoder from lines, as `MelodyVAEModel.conditions_of` does."""
        names, known, measured = self.config["decoder_conditions"], self.config["conditions"], {}
        if "attributes" in names:
            measured = dict(zip(self.config["attributes"], self.attributes_of(lines).T.tolist(), strict=True))
        return read_conditions(lines, {name: known[name] for name in names if name in known}, measured)

    def spread_over_latent(self, bars: np.ndarray) -> np.ndarray:
        """Repeat a value of each bar `(B, N)` for its share of the latent, `(B, Z)`."""
        return bars.repeat(self.config["latent_size"] // self.config["max_bars"], axis=1)

    def add_noise(self, latent: np.ndarray, noise_level: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Mix latents `(B, Z)` with noise at levels `(B, N)`."""
        level = self.spread_over_latent(noise_level.astype(np.float32))
        return (1 - level) * latent + level * noise

    def sample_latent(
        self,
        generator: Generators,
        known: np.ndarray | None = None,
        is_known: np.ndarray | None = None,
        conditions: Mapping[str, list] | None = None,
        guidance_scale: float = 1.0,
        noise_level: float = 0.0,
        bars: Any = None,
    ) -> np.ndarray:
        """Sample latents `(B, Z)` from the prior: the learned one where the model has it, else N(0, I).

        Args:
            generator: One for each latent.
            known: `(B, Z)` latents of which some bars are kept.
            is_known: `(B, N)` which bars are.
            conditions: A list for each.
            guidance_scale: Scale of classifier-free guidance; 1 is none.
            noise_level: How much of the bars that are not known is still noise, from 0 to 1.
            bars: Bars of the melodies, of each or of all.
        """
        n, config = len(generator), self.config
        latent = np.zeros((n, config["latent_size"]), np.float32) if known is None else known
        is_known = np.zeros((n, config["max_bars"]), dtype=bool) if is_known is None or known is None else is_known
        if config["num_prior_layers"]:
            labels = self._labels(conditions or {}, n, bars)
            return self.complete(
                latent, is_known, labels, generator, end=1.0 - noise_level, guidance_scale=guidance_scale
            )
        drawn = np.where(self.spread_over_latent(is_known), latent, draw_normal(latent.shape[1:], generator))
        if not noise_level:
            return drawn
        levels = np.where(is_known, 0.0, noise_level)
        return self.add_noise(drawn, levels, draw_normal(latent.shape[1:], generator))

    def complete(
        self,
        latent: np.ndarray,
        is_known: np.ndarray,
        labels: Mapping[str, np.ndarray],
        generator: Generators,
        begin: float = 0.0,
        end: float = 1.0,
        guidance_scale: float = 1.0,
        noise: np.ndarray | None = None,
    ) -> np.ndarray:
        """Draw the bars of latents `(B, Z)` that are not known, as `LatentPrior.sample` does, by Heun's method."""
        mean, scale, bars = self.tables["mean"], self.tables["scale"], self.config["max_bars"]
        target = ((latent - mean) / scale).reshape(len(latent), bars, -1)  # (B, N, S)
        noise = draw_normal(latent.shape[1:], generator) if noise is None else noise
        state = (begin * target + (1 - begin) * noise.reshape(target.shape)).astype(np.float32)
        null_labels = self._labels({}, len(latent)) | {"labels.bars": labels["labels.bars"]}
        fixed = {"known": target.astype(np.float32), "is_known": is_known}

        def velocity(at: np.ndarray, timestep: np.float32) -> np.ndarray:
            feeds = {"noisy": at, "timestep": np.full(len(at), timestep), **fixed}
            (conditional,) = self._run("prior", {**feeds, **labels})
            if guidance_scale == 1:
                return conditional
            (unconditional,) = self._run("prior", {**feeds, **null_labels})
            return unconditional + np.float32(guidance_scale) * (conditional - unconditional)

        count = max(math.ceil(PRIOR_STEPS * (end - begin)), min(FEWEST_STEPS, PRIOR_STEPS)) if begin < end else 0
        for now, then in pairwise(np.linspace(begin, end, count + 1, dtype=np.float32)):
            first = velocity(state, now)
            guess = state + (then - now) * first
            state = state + (then - now) * (first + velocity(guess, then)) / 2
        return np.where(self.spread_over_latent(is_known), latent, state.reshape(latent.shape) * scale + mean)

    def check_conditions(self, conditions: Mapping[str, Any] | None, n: int) -> dict[str, list]:
        """Write conditions as a list for each of `n` melodies.

        Raises:
            ValueError: If the model does not know a condition or a value.
        """
        config = self.config
        if conditions and not config["num_prior_layers"] and not config["decoder_conditions"]:
            raise ValueError(f"conditions {list(conditions)}: this model has no learned prior (train_prior.py)")
        return check_conditions(conditions, n, config["conditions"], config["attributes"])
