"""A learned prior over the latents of the melody VAE.

Dimension key: B batch, N bars, S share of a bar in the latent, Z latent size, C hidden size.
"""

import math
from itertools import pairwise

import torch
from torch import nn

from .configuration_melody_vae import MelodyVAEConfig
from .relative_attention import MelodyVAELayer


class LatentPrior(nn.Module):
    """A learned p(z): rectified flow over the bars' shares of the latent (Liu et al. 2023, arXiv:2209.03003).

    Between noise e (t = 0) and a latent x (t = 1) it follows straight lines (1 - t) e + t x; a transformer over the
    bars learns their direction x - e. Any bars may be known: they enter as they are, and the rest is drawn to fit them.
    Conditions (key, tempo, ...) are embedded; each may be left open.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, config: MelodyVAEConfig):
        super().__init__()
        self.config = config
        self.condition_sizes = {name: len(values) for name, values in (config.conditions or {}).items()}
        share = config.latent_size // config.max_bars
        self.bar_proj = nn.Linear(2 * share + 1, config.hidden_size)  # the noisy share, the known one, whether known
        self.bar_embedding = nn.Parameter(torch.empty(config.max_bars, config.hidden_size))
        self.time_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.condition_embeddings = nn.ModuleDict(
            {name: nn.Embedding(size + 1, config.hidden_size) for name, size in self.condition_sizes.items()}
        )  # the last row: left open
        self.layers = nn.ModuleList(
            MelodyVAELayer(config, index, is_causal=False) for index in range(config.num_prior_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.direction_proj = nn.Linear(config.hidden_size, share)
        self.register_buffer("mean", torch.zeros(config.latent_size))
        self.register_buffer("scale", torch.ones(config.latent_size))

    def forward(
        self, noisy: torch.Tensor, time: torch.Tensor, known: torch.Tensor, is_known: torch.Tensor, labels: dict
    ) -> torch.Tensor:
        """Predict the direction of the flow.

        Args:
            noisy: `(B, N, S)` shares at `time`, in units of `scale`.
            time: `(B,)` from 0 to 1.
            known: `(B, N, S)` shares that are given.
            is_known: `(B, N)` which of them are.
            labels: For each condition `(B,)` indices of its values; one past the last leaves it open.

        Returns:
            `(B, N, S)`.
        """
        flags = is_known[..., None].to(noisy.dtype)  # (B, N, 1)
        hidden_states = self.bar_proj(torch.cat([noisy * (1 - flags), known * flags, flags], -1)) + self.bar_embedding
        half = self.config.hidden_size // 2
        rates = torch.exp(torch.arange(half, device=time.device) * (-math.log(1e4) / half)).to(noisy.dtype)
        angles = 1000 * time[:, None] * rates  # (B, C / 2)
        condition = self.time_proj(torch.cat([angles.sin(), angles.cos()], -1))
        for name, embedding in self.condition_embeddings.items():
            condition = condition + embedding(labels[name])
        condition = condition[:, None].expand_as(hidden_states)  # (B, N, C)
        for layer in self.layers:
            hidden_states = layer(hidden_states, condition)
        return self.direction_proj(self.norm(hidden_states))

    def open_labels(self, n: int) -> dict[str, torch.Tensor]:
        """Labels that leave every condition open."""
        device = self.mean.device
        return {name: torch.full((n,), size, device=device) for name, size in self.condition_sizes.items()}

    def loss(self, latent: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean squared error of the direction over bars that are not known; half the melodies have known bars.

        Args:
            latent: `(B, Z)` samples of the posterior.
            labels: As in `forward`; each is left open in a tenth of the melodies, and all in another.
        """
        melodies, bars = len(latent), self.config.max_bars
        target = ((latent - self.mean) / self.scale).unflatten(-1, (bars, -1))  # (B, N, S)
        noise = torch.randn_like(target)
        time = torch.randn(melodies, device=latent.device).sigmoid()  # logit-normal (Esser et al. 2024)
        # What is known: nothing, a beginning, or any bars.
        kind, share, length = torch.rand(3, melodies, 1, device=latent.device)
        beginning = torch.arange(bars, device=latent.device) < length * bars
        some = torch.rand(melodies, bars, device=latent.device) < share
        is_known = torch.where(kind < 0.5, torch.zeros_like(some), torch.where(kind < 0.75, beginning, some))
        is_open = torch.rand(melodies, device=latent.device) < 0.1
        labels = {
            name: of.masked_fill(is_open | (torch.rand(melodies, device=of.device) < 0.1), self.condition_sizes[name])
            for name, of in labels.items()
        }
        at = time[:, None, None]
        direction = self(at * target + (1 - at) * noise, time, target, is_known, labels)
        error = (direction - (target - noise)).square().mean(-1)  # (B, N)
        return error[~is_known].mean()

    @torch.no_grad()
    def complete(
        self,
        latent: torch.Tensor,
        is_known: torch.Tensor,
        labels: dict[str, torch.Tensor],
        begin: float = 0.0,
        guidance: float = 1.0,
        steps: int = 32,
    ) -> torch.Tensor:
        """Draw the bars of latents that are not known.

        Args:
            latent: `(B, Z)`; bars that are not known matter only where `begin` is above 0.
            is_known: `(B, N)`.
            labels: As in `forward`.
            begin: Where on the way from noise (0) to `latent` (1) to begin; the nearer to 1, the more alike.
            guidance: By how much conditions are exaggerated (Ho & Salimans 2022, arXiv:2207.12598); 1 is not at all.
            steps: Steps of Heun's method from 0 to 1.

        Returns:
            `(B, Z)`.
        """
        target = ((latent - self.mean) / self.scale).unflatten(-1, (self.config.max_bars, -1))
        state = begin * target + (1 - begin) * torch.randn_like(target)
        open_labels = self.open_labels(len(latent))

        def direction(at: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            told = self(at, time.expand(len(at)), target, is_known, labels)
            if guidance == 1:
                return told
            untold = self(at, time.expand(len(at)), target, is_known, open_labels)
            return untold + guidance * (told - untold)

        count = math.ceil(steps * (1 - begin))
        times = torch.linspace(begin, 1, count + 1, device=latent.device, dtype=latent.dtype)
        for now, then in pairwise(times):
            first = direction(state, now)
            guess = state + (then - now) * first
            state = state + (then - now) * (first + direction(guess, then)) / 2
        state = torch.where(is_known[..., None], target, state)
        return state.flatten(1) * self.scale + self.mean
