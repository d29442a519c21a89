"""q(z|x): from the tokens of a melody to a Gaussian over its latent.

Dimension key: B batch, T tokens, N bars, C hidden size, Z latent size.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils.generic import ModelOutput

from .arguments_melody_vae import check_buffers
from .configuration_melody_vae import MelodyVAEConfig
from .relative_attention import MelodyVAELayer

ENCODE_BATCH_SIZE = 8  # melodies on a CPU; 4 and 16 were slower in small batches


@dataclass
class MelodyVAEPosterior(ModelOutput):
    """Diagonal Gaussian q(z|x).

    Args:
        latent_mean: `(B, Z)`.
        latent_log_variance: `(B, Z)`.
    """

    latent_mean: torch.Tensor = None  # pyright: ignore[reportAssignmentType] - ModelOutput wants defaults
    latent_log_variance: torch.Tensor = None  # pyright: ignore[reportAssignmentType]

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw a latent `(B, Z)` by reparameterisation (Kingma & Welling 2014, arXiv:1312.6114)."""
        mean = self.latent_mean
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return mean + noise * (0.5 * self.latent_log_variance).exp()

    def kl_nats(self) -> torch.Tensor:
        """KL divergence from N(0, I), summed over the latent, `(B,)` nats per melody."""
        mean, log_variance = self.latent_mean.float(), self.latent_log_variance.float()
        return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


class MelodyEncoder(nn.Module):
    """q(z|x): bidirectional layers over tokens, a mean per bar, and from each bar its share of the latent."""

    def __init__(self, config: MelodyVAEConfig):
        super().__init__()
        self.layers = nn.ModuleList(
            MelodyVAELayer(config, index, is_causal=False) for index in range(config.num_encoder_layers)
        )
        self.absent_bar = nn.Parameter(torch.empty(config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mean_proj = nn.Linear(config.hidden_size, config.latent_size // config.max_bars)
        self.log_variance_proj = nn.Linear(config.hidden_size, config.latent_size // config.max_bars)

    def forward(
        self,
        hidden_states: torch.Tensor,
        bar_one_hot: torch.Tensor,
        attention_mask: torch.Tensor | None,
        rotation: torch.Tensor | None = None,
    ) -> MelodyVAEPosterior:
        """Encode embedded tokens `(B, T, C)`; `bar_one_hot` `(B, T, N)` is zero for tokens outside bars."""
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask=attention_mask, rotation=rotation)
        tokens_per_bar = bar_one_hot.sum(1)[..., None]  # (B, N, 1)
        bars = bar_one_hot.transpose(1, 2) @ hidden_states / tokens_per_bar.clamp_min(1)  # (B, N, C)
        bars = self.norm(torch.where(tokens_per_bar > 0, bars, self.absent_bar.to(bars.dtype)))
        return MelodyVAEPosterior(
            latent_mean=self.mean_proj(bars).flatten(1),  # (B, Z)
            latent_log_variance=self.log_variance_proj(bars).flatten(1),
        )


class EncodingMixin:
    """How [`MelodyVAEModel`] encodes melodies."""

    def encode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        musical_position: torch.Tensor | None = None,
        pitch: torch.Tensor | None = None,
        **kwargs,
    ) -> MelodyVAEPosterior:
        """Encode melodies of up to `max_bars` bars.

        Args:
            input_ids: `(B, T)`.
            attention_mask: `(B, T)`, 0 at padding; by default where `pad_token_id` is.
            musical_position: `(B, T)`, what [`MelodyVAEModel.musical_position`] returns, if it was computed already.
            pitch: `(B, T)`, what [`MelodyVAEModel.musical_pitch`] returns, likewise.
            kwargs: Ignored, so that a processor's whole output can be passed.

        Returns:
            The posterior q(z|x), `(B, Z)`.

        Raises:
            ValueError: If the model has no latent, or a melody is too long for it.
        """
        if not self.config.latent_size:
            raise ValueError("latent_size=0: this model is a plain Music Transformer and has no latent to encode into")
        check_buffers(self)
        if musical_position is None:
            musical_position, pitch = self.musical_position(input_ids), self.musical_pitch(input_ids)
        if self._may_read_values(musical_position) and not torch.compiler.is_compiling() and musical_position.numel():
            num_bars, max_bars = int(musical_position.max()) + 1, self.config.max_bars
            if num_bars > max_bars:
                raise ValueError(
                    f"a melody of {num_bars} bars does not fit a latent of max_bars={max_bars}: cut it into windows"
                )
        if attention_mask is None:
            attention_mask = input_ids.ne(self.config.pad_token_id).long()
        if self.config.repeat_token_ids:
            input_ids, attention_mask, musical_position, pitch = self._without_repeats(
                input_ids, attention_mask, musical_position, pitch
            )
        if self._may_be_split() and input_ids.device.type == "cpu" and len(input_ids) > ENCODE_BATCH_SIZE:
            return self._encode_by_length(input_ids, attention_mask, musical_position, pitch)
        return self._encode_rows(input_ids, attention_mask, musical_position, pitch)

    def _may_be_split(self) -> bool:
        """Whether a batch may be read in parts: not in training, nor where its operations are recorded."""
        return not (self.training or torch.compiler.is_compiling() or torch.jit.is_tracing())  # pyright: ignore[reportPrivateImportUsage]

    def _encode_by_length(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *of_tokens: torch.Tensor | None
    ) -> MelodyVAEPosterior:
        """Encode melodies of like length together, a few at a time: less padding, and all stays in the cache."""
        parts, order = [], attention_mask.sum(-1).argsort()
        for rows in order.split(ENCODE_BATCH_SIZE):
            kept = attention_mask[rows].any(0).nonzero().squeeze(1)
            span = slice(int(kept[0]), int(kept[-1]) + 1) if len(kept) else slice(0, 1)
            given = (input_ids, attention_mask, *of_tokens)
            parts.append(self._encode_rows(*(None if each is None else each[rows, span] for each in given)))
        back = order.argsort()
        return MelodyVAEPosterior(
            latent_mean=torch.cat([part.latent_mean for part in parts])[back],
            latent_log_variance=torch.cat([part.latent_log_variance for part in parts])[back],
        )

    def _encode_rows(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        musical_position: torch.Tensor,
        pitch: torch.Tensor | None,
    ) -> MelodyVAEPosterior:
        """Encode melodies `(B, T)` side by side, see [`encode`]."""
        one_hot = self._bar_one_hot(musical_position)[..., 1:]  # (B, T, N)
        one_hot = one_hot * attention_mask[..., None]
        embedded, rotation = self._add_position_embeddings(self.embed_tokens(input_ids), musical_position, pitch)
        embedded = self.dropout(embedded)
        mask = create_bidirectional_mask(
            self.config, embedded, attention_mask, allow_is_bidirectional_skip=self._may_read_values(embedded)
        )
        return self.melody_encoder(embedded, one_hot.to(embedded.dtype), mask, rotation)
