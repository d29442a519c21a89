"""What the melody decoder is conditioned on: each bar's share of a latent, its noise level, and labels.

Dimension key: B batch, N bars, C hidden size, Z latent size, K decoder layers, A attributes.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from .configuration_melody_vae import MelodyVAEConfig
from .relative_attention import MelodyVAELayer, ZeroLinear

NOISE_HARMONICS = 8  # of the embedding of a bar's noise level


class ConditionEmbedding(nn.Module):
    """Embeds what is asked of melodies: conditions (key, tempo, ...) and attributes (note density, ...), each or none.

    Args:
        config: Names the values of each condition, and the attributes.
        names: Which conditions it embeds; `attributes` among them for these.
        null_is_zero: Whether a label that is left open has a null embedding of zeros; else one that is learned.
    """

    attribute_mean: torch.Tensor
    attribute_scale: torch.Tensor

    def __init__(self, config: MelodyVAEConfig, names: Sequence[str], null_is_zero: bool = False):
        super().__init__()
        self._add_conditions(config, names, null_is_zero)

    def _add_conditions(self, config: MelodyVAEConfig, names: Sequence[str], null_is_zero: bool = False) -> None:
        """Make what embeds conditions, as the class's arguments say."""
        self.config = config
        conditions = config.conditions or {}
        self.condition_sizes = {name: len(values) for name, values in conditions.items() if name in names}
        self.condition_embeddings = nn.ModuleDict(
            {
                name: nn.Embedding(size + 1, config.hidden_size, padding_idx=size if null_is_zero else None)
                for name, size in self.condition_sizes.items()
            }
        )  # the last row: left open
        attributes = len(config.attributes or []) if "attributes" in names else 0
        self.attribute_proj = nn.Linear(2 * attributes, config.hidden_size, bias=False) if attributes else None
        self.register_buffer("attribute_mean", torch.zeros(attributes))  # of the training data
        self.register_buffer("attribute_scale", torch.ones(attributes))

    def embed(self, labels: Mapping[str, torch.Tensor], like: torch.Tensor) -> torch.Tensor:
        """Sum the embeddings of labels, as [`LatentPrior.forward`] takes them, in the form of `like` `(B, C)`."""
        condition = torch.zeros_like(like)
        for name, embedding in self.condition_embeddings.items():
            condition = condition + embedding(labels[name])
        if self.attribute_proj is not None:
            asked = labels["attributes"].to(like.dtype)
            is_open = asked.isnan()
            values = torch.cat([asked.masked_fill(is_open, 0), (~is_open).to(like.dtype)], -1)  # (B, 2 A)
            condition = condition + self.attribute_proj(values)
        return condition

    def null_labels(self, n: int) -> dict[str, torch.Tensor]:
        """Labels that leave everything open."""
        device = self.attribute_mean.device
        labels = {name: torch.full((n,), size, device=device) for name, size in self.condition_sizes.items()}
        if self.attribute_proj is not None:
            labels["attributes"] = torch.full((n, len(self.attribute_mean)), torch.nan, device=device)
        return labels

    def hide(
        self, labels: Mapping[str, torch.Tensor], all_hidden: float, each_hidden: float
    ) -> dict[str, torch.Tensor]:
        """Leave labels open at random, in training.

        Args:
            labels: As in [`LatentPrior.forward`].
            all_hidden: Share of the melodies of which nothing is given.
            each_hidden: Share of the others of which a condition is not given. Of the attributes half of them have
                none, a quarter some, and a quarter all.
        """
        n, device = len(next(iter(labels.values()))), self.attribute_mean.device
        is_open, labels = torch.rand(n, device=device) < all_hidden, dict(labels)
        for name, hidden in {**self.condition_sizes, "bars": 0}.items():
            if name in labels:
                is_hidden = is_open | (torch.rand(n, device=device) < each_hidden)
                labels[name] = labels[name].masked_fill(is_hidden, hidden)
        if self.attribute_proj is not None:
            kind = torch.rand(n, 1, device=device)
            some = torch.rand(labels["attributes"].shape, device=device) < 0.5
            hidden = (kind < 0.5) | ((kind < 0.75) & some)
            labels["attributes"] = labels["attributes"].masked_fill(hidden | is_open[:, None], torch.nan)
        return labels


class BarConditioner(nn.Module):
    """Expand a latent into the condition embedding of each bar and layer of the melody decoder.

    At a bar's last token the melody decoder predicts the first token of the next bar, so every token is conditioned on
    its own bar and on the next one.

    With `config.noise_probability` it is also conditioned on the noise level a of each bar, of a latent
    (1 - a) z + a e with noise e, as on the path of [`LatentPrior`]: with a = 1 everywhere the melody decoder is a
    language model, with a = 0 it reconstructs.
    """

    def __init__(self, config: MelodyVAEConfig):
        super().__init__()
        self.config = config
        if config.noise_probability:
            self.noise_proj = ZeroLinear(NOISE_HARMONICS, config.hidden_size, bias=False)
        if config.decoder_conditions:
            self.condition_embedding = ConditionEmbedding(config, config.decoder_conditions, null_is_zero=True)
        self.latent_proj = nn.Linear(config.latent_size // config.max_bars, config.hidden_size)
        self.bar_embedding = nn.Parameter(torch.empty(config.max_bars, config.hidden_size))
        self.edge_embedding = nn.Parameter(torch.empty(2, config.hidden_size))  # before the first bar, after the last
        self.layers = nn.ModuleList(
            MelodyVAELayer(config, index, is_causal=False) for index in range(config.num_bar_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.condition_proj = nn.Linear(2 * config.hidden_size, config.num_hidden_layers * config.hidden_size)

    def draw_noise_level(self, n: int) -> torch.Tensor:
        """Draw the noise levels of the bars of `n` latents in training, `(n, N)` from 0 to 1.

        Of the noisy ones a third have no latent at all, a third are as noisy in all bars, and of the others some bars
        are known and some are not. Where samples are drawn at a noise level, half of the even ones lie above it.
        """
        device, bars = self.bar_embedding.device, self.config.max_bars
        is_noisy, kind, amount = torch.rand(3, n, 1, device=device)
        hidden = (torch.rand(n, bars, device=device) < amount).to(amount)
        if sampled := self.config.sampling_noise:
            amount = torch.where(torch.rand_like(amount) < 0.5, amount, sampled + (1 - sampled) * amount)
        level = torch.where(kind < 1 / 3, 1.0, torch.where(kind < 2 / 3, amount, hidden))
        return torch.where(is_noisy < self.config.noise_probability, level, 0.0)

    def add_noise(
        self, latent: torch.Tensor, noise_level: torch.Tensor, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mix `latent` `(B, Z)` with noise at `noise_level` `(B, N)`; the noise is from N(0, I) unless given."""
        level = noise_level.repeat_interleave(latent.shape[-1] // self.config.max_bars, dim=-1).to(latent)
        return (1 - level) * latent + level * (torch.randn_like(latent) if noise is None else noise)

    def forward(
        self,
        latent: torch.Tensor,
        noise_level: torch.Tensor | None = None,
        labels: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Expand latents into condition embeddings.

        Args:
            latent: `(B, Z)`.
            noise_level: `(B, N)`, how much of each bar's share of `latent` is noise, from 0 to 1; 0 by default.
            labels: What is asked of the melodies, as in [`LatentPrior.forward`]; nothing by default.

        Returns:
            `(B, N + 1, K, C)`; row 0 serves the tokens before the first bar.
        """
        shares = latent.unflatten(-1, (self.config.max_bars, -1))  # (B, N, Z / N)
        if noise_level is None:
            bars = self.latent_proj(shares) + self.bar_embedding
        else:
            level = noise_level.to(shares)[..., None]  # (B, N, 1)
            # The posterior mean of a unit latent given its mixture with unit noise: 0 at level 1.
            shares = shares * ((1 - level) / ((1 - level).square() + level.square()))
            harmonics = torch.arange(1, NOISE_HARMONICS + 1, device=level.device).to(level)
            level_embedding = self.noise_proj((level * harmonics * (math.pi / 2)).sin())  # 0 at level 0
            bars = self.latent_proj(shares) + self.bar_embedding + level_embedding
        if labels is not None and self.config.decoder_conditions:
            bars = bars + self.condition_embedding.embed(labels, bars[:, 0])[:, None]
        for layer in self.layers:
            bars = layer(bars)
        before, after = self.edge_embedding.to(bars.dtype).expand(bars.shape[0], 2, -1).split(1, dim=1)
        bars = torch.cat([before, self.norm(bars).to(bars.dtype), after], dim=1)  # (B, N + 2, C)
        pairs = torch.cat([bars[:, :-1], bars[:, 1:]], dim=-1)  # (B, N + 1, 2 C)
        return self.condition_proj(pairs).unflatten(-1, (self.config.num_hidden_layers, -1))  # (B, N + 1, K, C)
