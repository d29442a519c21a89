"""Paths and squares of melodies between melodies, in terms of [`MelodyVAEModel`]'s `decode`.

Dimension key: T tokens, N bars, Z latent size, S points.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from .arguments_melody_vae import check_latent
from .melody_line_melody_vae import key_of, major_tonic, transpose_line
from .options_melody_vae import PATH_NOISE, PATH_SPREAD, check_count
from .token_grammar_melody_vae import TokenWriter


def one_for_all(bars: Any) -> int | None:
    """Return bars that are the same number for all melodies; None, the model's choice, where each has its own."""
    return bars if isinstance(bars, int) else None


def slerp(a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Interpolate on the great circle from `a` to `b` (Shoemake 1985); lengths change linearly.

    Args:
        a: `(Z,)`.
        b: `(Z,)`.
        weight: `(S,)` positions, 0 is a, 1 is b.

    Returns:
        `(S, Z)`. Nearly parallel vectors are interpolated in a straight line.
    """
    weight = weight[:, None]
    length_a, length_b = a.norm().clamp_min(1e-12), b.norm().clamp_min(1e-12)  # the prior's mean has no direction
    cosine = (a @ b / (length_a * length_b)).clamp(-1, 1)
    angle = cosine.arccos()
    if angle.sin().abs() < 1e-4:
        return (1 - weight) * a + weight * b
    arc = (((1 - weight) * angle).sin() * a / length_a + (weight * angle).sin() * b / length_b) / angle.sin()
    return arc * ((1 - weight) * length_a + weight * length_b)


class InterpolationMixin:
    """What [`MelodyVAEModel`] finds between melodies."""

    def interpolate(self, a: torch.Tensor, b: torch.Tensor, steps: int = 7, **generate_kwargs) -> torch.Tensor:
        """Decode a path between two latents `(Z,)`, ends included, `(steps, T)` ids.

        The path is the great circle. In models with `config.noise_probability` each bar goes its own way on it, one
        after the other, the second melody being in the first one's key until its end; and the melody decoder gets a
        noise level, highest half way, so that it writes over the seams.
        """
        a, b = (check_latent(end, self.config.latent_size, 1).to(self.device, self.dtype) for end in (a, b))
        weight = torch.linspace(0, 1, check_count("steps", steps), device=self.device, dtype=self.dtype)
        return self._decode_path(torch.cat([a, b]), weight[:, None], **generate_kwargs)

    def _decode_path(self, corners: torch.Tensor, weights: torch.Tensor, **generate_kwargs) -> torch.Tensor:
        """Decode points between two latents, or four: top left, top right, bottom left, bottom right.

        Args:
            corners: `(2, Z)` or `(4, Z)`.
            weights: `(S, 1)` or `(S, 2)`, from 0 to 1: how far each point is to the right, and down.
            generate_kwargs: As in [`generate`].
        """
        if not len(weights):
            return self._no_ids()
        moved, num_bars = corners, None
        if self.config.noise_probability and self.config.grammar_columns:
            moved, num_bars = self._in_one_key(corners, generate_kwargs)
            level = PATH_NOISE * (math.pi * weights).sin().amax(-1, keepdim=True)
            generate_kwargs = {"noise_level": level.expand(-1, self.config.max_bars), **generate_kwargs}
        latents = self._blend(moved[0], moved[1], weights[:, 0], num_bars)
        if len(corners) == 4:
            lower = self._blend(moved[2], moved[3], weights[:, 0], num_bars)
            points = zip(latents, lower, weights[:, 1], strict=True)
            latents = torch.cat([self._blend(above, below, down[None], num_bars) for above, below, down in points])
        is_corner = ((weights == 0) | (weights == 1)).all(-1)
        corner = (weights * torch.tensor([1.0, 2.0], device=weights.device)[: weights.shape[1]]).sum(-1).long()
        return self.decode(torch.where(is_corner[:, None], corners[corner], latents), **generate_kwargs)

    def _in_one_key(self, latents: torch.Tensor, options: Mapping[str, Any]) -> tuple[torch.Tensor, int]:
        """Transpose melodies to the first one's key, by six semitones at most; returns latents and the most bars."""
        lines = self.read_lines(self.decode(latents, bars=one_for_all(options.get("bars"))))
        writer, moved = TokenWriter(self.token_grammar.cpu()), latents.clone()
        tonics, pitches = [major_tonic(key_of(line)) for line in lines], writer.values("Pitch")
        for row, (line, tonic) in enumerate(zip(lines, tonics, strict=True)):
            if tonic != tonics[0] and (transposed := transpose_line(line, tonic, tonics[0], pitches)):
                moved[row] = self._latent_mean(self.write_lines([transposed], writer))[0]
        return moved, max(1, *(line["bars"] for line in lines))

    def _blend(self, a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor, num_bars: int | None) -> torch.Tensor:
        """Turn latent `a` into `b`, both `(Z,)`, bar after bar or all at once; `(S, Z)` at weights `(S,)`."""
        if num_bars is None:
            return slerp(a, b, weight)
        place = torch.arange(self.config.max_bars, device=a.device).clamp_max(num_bars - 1) / max(1, num_bars - 1)
        weights = (weight[:, None] * (1 + PATH_SPREAD) - PATH_SPREAD * place).clamp(0, 1)  # (S, N)
        pairs = zip(*(latent.unflatten(0, (self.config.max_bars, -1)) for latent in (a, b)), weights.T, strict=True)
        return torch.cat([slerp(*pair) for pair in pairs], dim=-1)

    def interpolate_grid(self, corners: torch.Tensor, size: int = 5, **generate_kwargs) -> torch.Tensor:
        """Decode a square of points between four latents, its corners included.

        Args:
            corners: `(4, Z)`: top left, top right, bottom left, bottom right.
            size: Points along each side.
            generate_kwargs: As in [`generate`].

        Returns:
            `(size * size, T)` ids, row by row.
        """
        if len(check_latent(corners, self.config.latent_size)) != 4:
            raise ValueError(f"a grid has 4 corners, not {corners.shape[0]}")
        corners = corners.to(self.device, self.dtype)
        weight = torch.linspace(0, 1, check_count("size", size), device=self.device, dtype=self.dtype)
        down, right = torch.meshgrid(weight, weight, indexing="ij")
        return self._decode_path(corners, torch.stack([right.flatten(), down.flatten()], dim=-1), **generate_kwargs)
