"""What one does with melodies, as `MelodyVAEModel` has it: vary, infill, continue, interpolate, reconstruct.

Dimension key: B batch, T tokens, N bars, Z latent size, S points of a path.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .latents import Generators, draw_normal, make_generators
from .melody_line_melody_vae import key_of, major_tonic, transpose_line
from .options_melody_vae import PATH_NOISE, PATH_SPREAD, check_count, check_fill_bars, for_candidates, for_each
from .sampling import SamplingModel, as_lists


def slerp(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Interpolate on the great circle from `a` to `b`, both `(Z,)`, at positions `(S,)`; lengths change linearly."""
    weight = weight[:, None]
    length_a, length_b = (max(float(np.linalg.norm(each)), 1e-12) for each in (a, b))
    angle = math.acos(min(max(float(a @ b) / (length_a * length_b), -1), 1))
    if abs(math.sin(angle)) < 1e-4:
        return (1 - weight) * a + weight * b
    arc = (np.sin((1 - weight) * angle) * a / length_a + np.sin(weight * angle) * b / length_b) / math.sin(angle)
    return (arc * ((1 - weight) * length_a + weight * length_b)).astype(np.float32)


class OnnxMelodyVAE(SamplingModel):
    """A melody VAE of ONNX graphs, with the operations of `MelodyVAEModel`; ids and latents are arrays.

    Args:
        folder: What `export_onnx.py` wrote.
        threads: Of onnxruntime; 0 leaves it the choice.

    Raises:
        FileNotFoundError: If the folder lacks a file.
    """

    def reconstruct(self, input_ids: np.ndarray, **options) -> np.ndarray:
        """Decode melodies from their posterior's mean, under their own conditions, as many bars as they have.

        Args:
            input_ids: `(B, T)`.
            options: As in [`generate`].

        Returns:
            `(B, T)` ids.
        """
        own = {"bars": self.num_bars(input_ids), "conditions": self.conditions_of(self.read_lines(input_ids))}
        return self.decode(self.encode(input_ids)[0], **{**own, **options})

    def vary(
        self,
        latent: np.ndarray,
        n: int = 4,
        similarity: float = 0.8,
        seed: int | None = None,
        generator: Generators | None = None,
        **options,
    ) -> np.ndarray:
        """Decode `n` variations `(n, T)` of the melody of a latent `(Z,)`, as `MelodyVAEModel.vary` does.

        Args:
            latent: `(Z,)` or `(1, Z)`.
            n: Number of variations.
            similarity: Share of the notes that a variation has in common with the melody, from 0 to 1.
            seed: Makes the result repeatable.
            generator: Instead of a seed, one for each variation.
            options: As in [`generate`].

        Raises:
            ValueError: If `similarity` is not from 0 to 1, or there are not `n` generators.
        """
        if not 0 <= similarity <= 1:
            raise ValueError(f"similarity={similarity} is not a finite number from 0 to 1")
        latents, config = np.repeat(np.reshape(latent, (1, -1)).astype(np.float32), n, axis=0), self.config
        sources, own = make_generators(n, seed, generator), {}
        if n and similarity < 1:
            noise = draw_normal(latents.shape[1:], sources)
            if config["noise_probability"]:
                own = self._sampling_options() | {"conditions": self._conditions_like(latents[:1], options)}
                own["generator"] = sources
                own["noise_level"] = np.full((n, config["max_bars"]), self._variation_level(similarity), np.float32)
                latents = self.add_noise(latents, own["noise_level"], noise)
            elif config["num_prior_layers"]:
                is_known = np.zeros((n, config["max_bars"]), dtype=bool)
                latents = self.complete(latents, is_known, self._labels({}, n), sources, begin=similarity, noise=noise)
            else:
                weight = np.array([1 - similarity], np.float32)
                latents = np.concatenate([slerp(*pair, weight) for pair in zip(latents, noise, strict=True)])
        return self.generate(latents, **{**own, **options})

    def _variation_level(self, similarity: float) -> float:
        """Look up the noise level at which variations have this similarity."""
        levels = self.config["variation_levels"] or [1.0, 0.0]
        return float(np.interp(similarity, np.linspace(0, 1, len(levels)), levels))

    def _conditions_like(self, latent: np.ndarray, options: Mapping[str, Any]) -> dict[str, Any]:
        """Read the conditions of the melody decoder from the melody of a latent `(1, Z)`."""
        if not self.config["decoder_conditions"]:
            return {}
        bars = options.get("bars")
        lines = self.read_lines(self.decode(latent, bars=bars if isinstance(bars, int) else None))
        return {name: values[0] for name, values in self.conditions_of(lines).items()}

    def infill(
        self,
        input_ids: np.ndarray,
        bars: Sequence[int] = (),
        seed: int | None = None,
        conditions: Mapping[str, Any] | None = None,
        guidance_scale: float = 1.0,
        generator: Generators | None = None,
        noise_level: float | None = None,
        candidates: int = 8,
        **options,
    ) -> np.ndarray:
        """Write some bars of melodies `(B, T)` anew, `bars` from 0; the others come back as they are.

        Of `candidates` for each melody the one is kept that leads best to what follows, as by `MelodyVAEModel.infill`.
        Other arguments are those of [`sample`].

        Raises:
            ValueError: If a melody has no such bar.
        """
        n, num_bars, config = len(input_ids), self.num_bars(input_ids), self.config
        bars = check_fill_bars(bars, int(num_bars.min()) if n else config["max_bars"])
        count = check_count("candidates", candidates, 1)
        asked = self._sampling_options() | options | {"conditions": self.check_conditions(conditions, n)}
        asked["generator"] = make_generators(n, seed, generator)
        rows, asked = for_candidates(asked, n, count, np.random.Generator.spawn)
        template = input_ids[rows]
        if config["latent_size"]:
            is_known = np.ones((len(template), config["max_bars"]), dtype=bool)
            is_known[:, bars] = False
            asked |= {"guidance_scale": guidance_scale, "noise_level": noise_level}
            mean = self.encode(input_ids)[0][rows]
            asked = self._with_latent(template, asked, mean, is_known, num_bars[rows])
        ids = self.generate(template=template, regenerate=bars, **asked)
        return ids if count == 1 or not n else self._best_fillings(ids, input_ids, bars, count)

    def _best_fillings(self, ids: np.ndarray, originals: np.ndarray, bars: Sequence[int], count: int) -> np.ndarray:
        """Choose of each `count` fillings the one that [`infill`] keeps.

        Args:
            ids: `(B count, T)` those of one melody after the other.
            originals: `(B, U)`.
            bars: Which bars were filled.
            count: Candidates of each melody.
        """
        has_note = self.table.has_note
        before = [[has_note[melody[bar]].any() for bar in bars] for melody in self._split_bars(originals)]
        filled = [[has_note[melody[bar]].any() for bar in bars] for melody in self._split_bars(ids)]
        silenced = np.array(before, bool).repeat(count, axis=0) & ~np.array(filled, bool)
        price = silenced.sum(-1).astype(np.float32)
        if self.config["noise_probability"]:
            of_bar = self.table.opens_bar[ids].cumsum(-1) - 1 + self._is_repeat(ids)  # repeats stand before theirs
            follows = (of_bar > min(bars, default=0)) & ~np.isin(of_bar, bars)
            nats = (self.unconditional_nats(ids) * follows[:, 1:]).sum(-1)
            price = price + nats / (1 + nats.max())  # less than a bar
        return self._take_candidates(ids, price.reshape(-1, count).argmin(-1), count)

    def continue_melody(
        self,
        input_ids: np.ndarray,
        bars: int | Sequence[int] | None = None,
        seed: int | None = None,
        conditions: Mapping[str, Any] | None = None,
        guidance_scale: float = 1.0,
        generator: Generators | None = None,
        noise_level: float | None = None,
        **options,
    ) -> np.ndarray:
        """Keep the bars of melodies `(B, T)` and write on, up to `bars` bars, `max_bars` by default and at most.

        Other arguments are those of [`sample`].

        Returns:
            `(B, T)` ids, padded at both ends.

        Raises:
            ValueError: If a melody has no bar to begin with, or nothing is left to write.
        """
        n = len(input_ids)
        bars = self.config["max_bars"] if bars is None else bars
        bars = as_lists({"bars": bars})["bars"]
        for has, wanted in zip(self.num_bars(input_ids).tolist(), for_each("bars", bars, n), strict=True):
            if not 1 <= has < wanted:
                raise ValueError(f"{has} bars cannot be continued to bars={wanted}: give at least 1, and fewer")
        if options.get("time_signature") is not None:
            raise ValueError(f"time_signature={options['time_signature']!r}: the melody has its own")
        primer = self._join_bars(self._split_bars(input_ids), is_open=True)
        asked = self._sampling_options() | {"generator": make_generators(n, seed, generator), **options}
        asked |= {
            "conditions": self.check_conditions(conditions, n),
            "guidance_scale": guidance_scale,
            "noise_level": noise_level,
        }
        return self._generate_after(primer, bars, bars, {**asked, "opens_bar": True})

    def interpolate(self, a: np.ndarray, b: np.ndarray, steps: int = 7, **options) -> np.ndarray:
        """Decode a path between two latents `(Z,)`, ends included, `(steps, T)` ids, as `MelodyVAEModel` does."""
        corners = np.stack([np.reshape(end, -1) for end in (a, b)]).astype(np.float32)
        weight = np.linspace(0, 1, steps, dtype=np.float32)
        if not steps:
            return np.empty((0, 0), dtype=np.int64)
        if not self.config["noise_probability"]:
            latents = slerp(corners[0], corners[1], weight)
        else:
            (first, second), num_bars = self._in_one_key(corners, options)
            latents = self._blend(first, second, weight, num_bars)
            level = PATH_NOISE * np.sin(np.float32(math.pi) * weight)[:, None]
            options = {"noise_level": level.repeat(self.config["max_bars"], axis=1), **options}
        latents[weight == 0], latents[weight == 1] = corners
        return self.decode(latents, **options)

    def _in_one_key(self, latents: np.ndarray, options: Mapping[str, Any]) -> tuple[np.ndarray, int]:
        """Transpose melodies to the first one's key, by six semitones at most; returns latents and the most bars."""
        bars = options.get("bars")
        lines = self.read_lines(self.decode(latents, bars=bars if isinstance(bars, int) else None))
        moved, tonics, pitches = latents.copy(), [major_tonic(key_of(line)) for line in lines], self._pitches
        for row, (line, tonic) in enumerate(zip(lines, tonics, strict=True)):
            if tonic != tonics[0] and (transposed := transpose_line(line, tonic, tonics[0], pitches)):
                moved[row] = self.encode(self.write_lines([transposed]))[0][0]
        return moved, max(1, *(line["bars"] for line in lines))

    def _blend(self, a: np.ndarray, b: np.ndarray, weight: np.ndarray, num_bars: int) -> np.ndarray:
        """Turn latent `a` into `b`, both `(Z,)`, bar after bar; `(S, Z)` at weights `(S,)`."""
        bars = self.config["max_bars"]
        place = np.minimum(np.arange(bars), num_bars - 1) / max(1, num_bars - 1)
        weights = np.clip(weight[:, None] * (1 + PATH_SPREAD) - PATH_SPREAD * place, 0, 1).astype(np.float32)  # (S, N)
        triples = zip(a.reshape(bars, -1), b.reshape(bars, -1), weights.T, strict=True)
        return np.concatenate([slerp(*triple) for triple in triples], axis=-1)
