"""A critic that tells samples from training melodies, by their latents.

`sample` draws several candidates for a melody and keeps the one that the critic takes most for a training melody
(best of n; compare discriminator rejection sampling, Azadi et al. 2019, arXiv:1810.06758). Dimension key: B batch,
N bars, Z latent size, S size of a bar's share of the latent, P pairs of bars.
"""

import torch
from torch import nn

from .configuration_melody_vae import MelodyVAEConfig


class MelodyCritic(nn.Module):
    """A small network over how alike the bars of a melody are, and the mean and spread of their latents."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, config: MelodyVAEConfig):
        super().__init__()
        self.num_bars = config.max_bars
        share = config.latent_size // config.max_bars
        pairs = config.max_bars * (config.max_bars - 1) // 2
        self.dropout = nn.Dropout(0.5)
        self.up_proj = nn.Linear(pairs + 2 * share + 1, config.critic_size)
        self.act_fn = nn.GELU()
        self.down_proj = nn.Linear(config.critic_size, 1)
        self.register_buffer("mean", torch.zeros(config.latent_size))
        self.register_buffer("scale", torch.ones(config.latent_size))

    def features(self, latent: torch.Tensor, bars: torch.Tensor) -> torch.Tensor:
        """Return what the network reads.

        Args:
            latent: `(B, Z)`, means of posteriors.
            bars: `(B,)`, how many of its bars each melody has.

        Returns:
            `(B, P + 2 S + 1)`: cosine likeness of each two bars, 0 for those that are not there; mean and standard
            deviation over the bars; the share of the bars that are there.
        """
        shares = ((latent - self.mean) / self.scale).unflatten(-1, (self.num_bars, -1))  # (B, N, S)
        is_bar = torch.arange(self.num_bars, device=latent.device) < bars[:, None]  # (B, N)
        shares, count = shares * is_bar[..., None], bars.clamp_min(1)[:, None].to(shares.dtype)
        unit = nn.functional.normalize(shares, dim=-1)
        first, second = torch.triu_indices(self.num_bars, self.num_bars, 1, device=latent.device)
        likeness = (unit @ unit.transpose(1, 2))[:, first, second]
        mean = shares.sum(1) / count
        spread = (((shares - mean[:, None]) * is_bar[..., None]).square().sum(1) / count).sqrt()
        return torch.cat([likeness, mean, spread, count / self.num_bars], -1)

    def score(self, features: torch.Tensor) -> torch.Tensor:
        """Return `(B,)` logits of [`MelodyCritic.features`]: higher for what looks more like a training melody."""
        hidden_states = self.act_fn(self.up_proj(self.dropout(features)))
        return self.down_proj(self.dropout(hidden_states)).squeeze(-1)

    def forward(self, latent: torch.Tensor, bars: torch.Tensor) -> torch.Tensor:
        """Return `(B,)` logits of melodies; arguments as of [`MelodyCritic.features`]."""
        return self.score(self.features(latent, bars))
