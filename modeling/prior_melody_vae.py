"""A learned prior over the latents of the melody VAE.

Dimension key: B batch, N bars, S share of a bar in the latent, Z latent size, C hidden size, A attributes.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from .arguments_melody_vae import Generators, check_buffers, check_latent, draw_normal, make_generators
from .conditioning_melody_vae import ConditionEmbedding
from .configuration_melody_vae import MelodyVAEConfig
from .options_melody_vae import (
    FEWEST_STEPS,
    PRIOR_STEPS,
    Conditions,
    check_conditions,
    check_count,
    check_number,
    default_noise_level,
)
from .relative_attention import MelodyVAELayer, ZeroLinear

FEWEST_ROWS = 4  # products of fewer rows are summed up in another order (MKL), and might round to another token


class LatentPrior(ConditionEmbedding):
    """A learned p(z): rectified flow over the bars' shares of the latent (Liu et al. 2023, arXiv:2209.03003).

    Between noise e (t = 0) and a latent x (t = 1) it follows straight lines (1 - t) e + t x; a transformer over the
    bars learns their velocity x - e. Any bars may be known: they enter as they are, and the rest is drawn to fit them.
    How many bars the melody has, conditions (key, tempo, ...) and attributes (note density, ...) are embedded; each may
    be left open.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, config: MelodyVAEConfig):
        nn.Module.__init__(self)
        share = config.latent_size // config.max_bars
        self.bar_proj = nn.Linear(2 * share + 1, config.hidden_size)  # the noisy share, the known one, whether known
        self.bar_embedding = nn.Parameter(torch.empty(config.max_bars, config.hidden_size))
        self.time_proj = nn.Linear(config.hidden_size, config.hidden_size)  # of the timestep
        self._add_conditions(config, [*(config.conditions or {}), "attributes"])
        self.length_embedding = nn.Embedding(config.max_bars + 1, config.hidden_size)  # in bars; row 0: left open
        self.layers = nn.ModuleList(
            MelodyVAELayer(config, index, is_causal=False) for index in range(config.num_prior_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.direction_proj = ZeroLinear(config.hidden_size, share)  # to the velocity, under the weights' name
        self.register_buffer("mean", torch.zeros(config.latent_size))
        self.register_buffer("scale", torch.ones(config.latent_size))

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, known: torch.Tensor, is_known: torch.Tensor, labels: dict
    ) -> torch.Tensor:
        """Predict the velocity of the flow.

        Args:
            noisy: `(B, N, S)` shares at `timestep`, in units of `scale`.
            timestep: `(B,)` from 0 to 1.
            known: `(B, N, S)` shares that are given.
            is_known: `(B, N)` which of them are.
            labels: For each condition `(B,)` indices of its values; one past the last leaves it open. The number of
                bars is `(B,)` under `bars`; 0 is open. Attributes are `(B, A)` under `attributes`, in standard
                deviations from the training data's mean; NaN is open.

        Returns:
            `(B, N, S)`.
        """
        flags = is_known[..., None].to(noisy.dtype)  # (B, N, 1)
        hidden_states = self.bar_proj(torch.cat([noisy * (1 - flags), known * flags, flags], -1)) + self.bar_embedding
        half = self.config.hidden_size // 2
        rates = torch.exp(torch.arange(half, device=timestep.device) * (-math.log(1e4) / half)).to(noisy.dtype)
        angles = 1000 * timestep[:, None] * rates  # (B, C / 2)
        condition = self.time_proj(torch.cat([angles.sin(), angles.cos()], -1)) + self.length_embedding(labels["bars"])
        condition = condition + self.embed(labels, condition)
        condition = condition[:, None].expand_as(hidden_states)  # (B, N, C)
        for layer in self.layers:
            hidden_states = layer(hidden_states, condition)
        return self.direction_proj(self.norm(hidden_states))

    def null_labels(self, n: int) -> dict[str, torch.Tensor]:
        """Labels that leave everything open."""
        return super().null_labels(n) | {"bars": torch.zeros(n, dtype=torch.long, device=self.mean.device)}

    def loss(self, latent: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean squared error of the velocity over bars that are not known; half the melodies have known bars.

        Args:
            latent: `(B, Z)` samples of the posterior.
            labels: As in `forward`; some are left open, see [`ConditionEmbedding.hide`].
        """
        melodies, bars = len(latent), self.config.max_bars
        target = self.split_by_bar(latent)  # (B, N, S)
        noise = torch.randn_like(target)
        timestep = torch.randn(melodies, device=latent.device).sigmoid()  # logit-normal (Esser et al. 2024)
        if self.config.sampling_noise:  # and half of it where samples are drawn
            early = torch.rand(melodies, device=latent.device) * (1 - self.config.sampling_noise)
            timestep = torch.where(torch.rand(melodies, device=latent.device) < 0.5, early, timestep)
        # What is known: nothing, a beginning, or any bars.
        kind, share, length = torch.rand(3, melodies, 1, device=latent.device)
        beginning = torch.arange(bars, device=latent.device) < length * bars
        some = torch.rand(melodies, bars, device=latent.device) < share
        is_known = torch.where(kind < 0.5, torch.zeros_like(some), torch.where(kind < 0.75, beginning, some))
        labels = self.hide(labels, all_hidden=0.1, each_hidden=0.1)
        at = timestep[:, None, None]
        velocity = self(at * target + (1 - at) * noise, timestep, target, is_known, labels)
        error = (velocity - (target - noise)).square().mean(-1)  # (B, N)
        return (error * ~is_known).sum() / (~is_known).sum()  # an index by a mask would make the host wait for a GPU

    @torch.no_grad()
    def sample(
        self,
        latent: torch.Tensor,
        is_known: torch.Tensor,
        labels: dict[str, torch.Tensor],
        begin: float = 0.0,
        end: float = 1.0,
        guidance_scale: float = 1.0,
        steps: int = 32,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Draw the bars of latents that are not known.

        Args:
            latent: `(B, Z)`; bars that are not known matter only where `begin` is above 0.
            is_known: `(B, N)`.
            labels: As in `forward`.
            begin: Where on the way from noise (0) to `latent` (1) to begin; the nearer to 1, the more alike.
            end: Where on it to stop; at t the bars that are drawn are t of a latent and 1 - t of noise.
            guidance_scale: Of classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598); 1 is none.
            steps: Steps of Heun's method from 0 to 1.
            noise: `(B, N, S)` from N(0, I); drawn by default.

        Returns:
            `(B, Z)`.
        """
        check_buffers(self)
        # The flow starts at `begin` between noise and the latent.
        target = self.split_by_bar(latent)
        state = begin * target + (1 - begin) * (torch.randn_like(target) if noise is None else noise)
        null_labels = self.null_labels(len(state)) | {"bars": labels["bars"]}

        # Classifier-free guidance: from the unconditional velocity past the conditional one.
        def velocity(at: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            conditional = self(at, timestep.expand(len(at)), target, is_known, labels)
            if guidance_scale == 1:
                return conditional
            unconditional = self(at, timestep.expand(len(at)), target, is_known, null_labels)
            return unconditional + guidance_scale * (conditional - unconditional)

        # Heun's method, of second order: the mean of the velocities at both ends of a step.
        count = max(math.ceil(steps * (end - begin)), min(FEWEST_STEPS, steps)) if begin < end else 0
        timesteps = torch.linspace(begin, end, count + 1, device=state.device)
        for now, then in pairwise(timesteps.to(state.dtype)):
            first = velocity(state, now)
            guess = state + (then - now) * first
            state = state + (then - now) * (first + velocity(guess, then)) / 2
        is_kept = is_known[..., None].expand_as(state).flatten(1)
        return torch.where(is_kept, latent, self.merge_bars(state))

    def split_by_bar(self, latent: torch.Tensor) -> torch.Tensor:
        """Write latents `(B, Z)` as the shares of the bars, in units of `scale`, `(B, N, S)`."""
        return ((latent - self.mean) / self.scale).unflatten(-1, (self.config.max_bars, -1))

    def merge_bars(self, shares: torch.Tensor) -> torch.Tensor:
        """Undo `split_by_bar`."""
        return shares.flatten(1) * self.scale + self.mean


class LatentSamplingMixin:
    """How [`MelodyVAEModel`] samples latents: from its prior, around known bars, under conditions."""

    def sample_latent(
        self,
        n: int,
        known: torch.Tensor | None = None,
        is_known: torch.Tensor | None = None,
        conditions: Conditions | None = None,
        guidance_scale: float = 1.0,
        noise_level: float = 0.0,
        bars: int | Sequence[int] | torch.Tensor | None = None,
        seed: int | None = None,
        generator: Generators | None = None,
    ) -> torch.Tensor:
        """Sample latents `(n, Z)` from the prior: the learned one where the model has it, else N(0, I).

        Args:
            n: Number of latents.
            known: `(n, Z)` latents of which some bars are kept; the prior samples the others to fit them.
            is_known: `(n, N)` which bars are kept.
            conditions: As in [`sample`].
            guidance_scale: Scale of classifier-free guidance; 1 is none.
            noise_level: Where the flow stops: how much of the bars that are not known is still noise, from 0 to 1.
            bars: Bars of the melodies, of each or of all; the learned prior decides by default.
            seed: Makes the result repeatable; the global random state is left alone.
            generator: Instead of a seed, one for each latent.

        Raises:
            ValueError: If an argument has another form or shape, or the model was trained without noise.
        """
        n, size, num_bars = check_count("n", n), self.config.latent_size, self.config.max_bars
        if (known is None) != (is_known is None):
            raise ValueError("known and is_known go together")
        # Bars that are known keep their share of the latent.
        if known is None:
            latent = torch.zeros(n, size, device=self.device, dtype=self.dtype)
            is_known = torch.zeros(n, num_bars, dtype=torch.bool, device=self.device)
        else:
            latent = check_latent(known, size, n).to(self.device, self.dtype)
            if is_known.shape != (n, num_bars):
                raise ValueError(f"is_known of shape {tuple(is_known.shape)} must be ({n}, {num_bars})")
        generator = make_generators(n, seed, generator)
        level = self._check_noise_level(noise_level) or 0.0
        if not n:
            return latent
        # Without a learned prior the rest is from N(0, I).
        if not self.config.num_prior_layers:
            drawn = torch.where(self._spread_over_latent(is_known), latent, draw_normal(latent, generator))
            levels = self._bar_levels(level, is_known)
            return self.bar_conditioner.add_noise(drawn, levels, draw_normal(latent, generator)) if level else drawn
        labels = self._condition_labels(self.prior, self._conditions(conditions, n), n, bars)
        return self._complete(latent, is_known, labels, 0.0, 1.0 - level, guidance_scale, generator)

    @torch.no_grad()
    def _latent_mean(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Encode melodies as their posterior's mean `(B, Z)`."""
        if not len(input_ids):
            return torch.zeros(0, self.config.latent_size, device=self.device, dtype=self.dtype)
        return self.encode(input_ids, attention_mask).latent_mean

    @torch.no_grad()
    def _complete(
        self,
        latent: torch.Tensor,
        is_known: torch.Tensor,
        labels: dict[str, torch.Tensor],
        begin: float = 0.0,
        end: float = 1.0,
        guidance_scale: float = 1.0,
        generator: Generators | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Sample the bars of latents `(B, Z)` that are not known, see [`LatentPrior.sample`]."""
        n = len(latent)
        noise = draw_normal(latent, generator) if noise is None else noise
        rows = torch.arange(max(n, FEWEST_ROWS), device=latent.device) % n
        noise = noise.unflatten(-1, (self.config.max_bars, -1))[rows]
        labels = {name: values[rows] for name, values in labels.items()}
        latent, is_known = latent[rows], is_known[rows]
        return self.prior.sample(latent, is_known, labels, begin, end, guidance_scale, PRIOR_STEPS, noise)[:n]

    def _known_bars(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Which bars of the latent `input_ids` `(B, T)` hold, `(B, N)`."""
        check_buffers(self)
        num_bars = self.is_bar_token[input_ids].sum(-1, keepdim=True)  # (B, 1)
        return torch.arange(self.config.max_bars, device=input_ids.device) < num_bars

    def _spread_over_latent(self, bars: torch.Tensor) -> torch.Tensor:
        """Repeat a value of each bar `(B, N)` for its share of the latent, `(B, Z)`."""
        return bars.repeat_interleave(self.config.latent_size // self.config.max_bars, dim=1)

    def _bar_levels(self, level: float, is_known: torch.Tensor) -> torch.Tensor:
        """Write a noise level as that of each bar `(B, N)`; known bars have none."""
        return torch.zeros(is_known.shape, device=self.device, dtype=self.dtype).masked_fill(~is_known, level)

    def _check_noise_level(self, level: Any) -> float | None:
        """Return a noise level, None for the default.

        Raises:
            ValueError: If it is not from 0 to 1, or the model was trained without noise.
        """
        if level is None:
            return None
        level = check_number("noise_level", level, 0, 1)
        if level and not self.config.latent_size:
            raise ValueError(f"noise_level={level:g}: this model has no latent")
        if level and not self.config.noise_probability:
            raise ValueError(f"noise_level={level:g} and a model trained without (noise_probability=0)")
        return level

    def _default_noise_level(self, conditions: Mapping[str, list]) -> float:
        """How noisy the latents of melodies under these conditions are by default."""
        config = self.config
        return default_noise_level(
            config.sampling_noise, conditions, config.decoder_conditions or [], config.attributes or []
        )

    def _conditions(self, conditions: Conditions | None, n: int) -> dict[str, list]:
        """Write conditions as a list for each of `n` melodies.

        Raises:
            ValueError: If the model does not know a condition or a value.
        """
        if conditions and not self.config.num_prior_layers and not self.config.decoder_conditions:
            raise ValueError(f"conditions {list(conditions)}: this model has no learned prior (train_prior.py)")
        return check_conditions(conditions, n, self.config.conditions or {}, self.config.attributes or [])

    def _decoder_labels(
        self, conditions: Mapping[str, list], n: int, noise_level: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor] | None:
        """Write the conditions of `n` melodies as the melody decoder takes them; None where it takes none.

        Where the latent has no noise, `noise_level` `(B, N)` being 0 or None, attributes that are left open are those
        of an average melody, see `config.average_attributes`.
        """
        if not self.config.decoder_conditions or not (conditions or self.config.average_attributes):
            return None
        embedding = self.bar_conditioner.condition_embedding
        check_buffers(embedding)
        labels = self._condition_labels(embedding, conditions, n)
        if self.config.average_attributes and "attributes" in labels:
            attributes = labels["attributes"]
            is_average = attributes.isnan()
            if noise_level is not None:
                is_average &= (noise_level[:n] == 0).all(-1, keepdim=True)
            labels["attributes"] = attributes.masked_fill(is_average, 0)
        return labels

    def _condition_labels(
        self,
        embedding: ConditionEmbedding,
        conditions: Mapping[str, list],
        n: int,
        bars: int | Sequence[int] | torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Write the conditions and bars of `n` melodies as an embedding takes them, as far as it knows them."""
        labels = embedding.null_labels(n)
        if bars is not None and "bars" in labels:
            labels["bars"] = torch.as_tensor(bars, device=self.device).clamp(max=self.config.max_bars).expand(n)
        for name, values in conditions.items():
            if name in (self.config.attributes or []):
                if "attributes" not in labels:
                    continue
                values = [torch.nan if value is None else value for value in values]
                values = torch.tensor(values, dtype=torch.float32, device=self.device)
                labels["attributes"][:, (self.config.attributes or []).index(name)] = values
            elif name in labels:
                known = [*(self.config.conditions or {})[name], None]  # the last one: left open
                labels[name] = torch.tensor([known.index(value) for value in values], device=self.device)
        return labels
