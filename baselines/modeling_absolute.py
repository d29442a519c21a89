"""Music Transformer with absolute positions: what relative attention is measured against.

Dimension key: B batch, T tokens, C hidden size.
"""

import math

import torch
from torch import nn
from transformers import initialization as init

from modeling.modeling_melody_vae import MelodyVAEModel
from modeling.relative_attention import RelativeAttention

from .configuration_baselines import AbsoluteMusicTransformerConfig


class AbsoluteAttention(RelativeAttention):
    """Identical to [`RelativeAttention`] except that it knows no distances."""

    def __init__(self, config: AbsoluteMusicTransformerConfig, layer_idx: int):
        super().__init__(config, layer_idx, is_causal=True)
        del self.distance_embedding

    def init_weights(self, std: float) -> None:
        """There are no weights of its own to draw."""

    def position_bias(self, query: torch.Tensor, num_keys: int, past: int | torch.Tensor) -> torch.Tensor | None:  # pyright: ignore[reportIncompatibleMethodOverride] - attention functions take None
        """Return no bias."""
        return None

    def may_use_blocks(self, query: torch.Tensor) -> bool:
        """Whether blocks are faster: not where nothing is added to the logits."""
        return False


class Sinusoids(nn.Module):
    """Sines and cosines of the position (Vaswani et al. 2017, arXiv:1706.03762, section 3.5), for any length.

    A deviation: they are scaled by a number that is learned (Li et al. 2018, arXiv:1809.08895) and starts as small as
    the embeddings of tokens do here; of the paper's size they would drown them.
    """

    def __init__(self, config: AbsoluteMusicTransformerConfig):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.scale = nn.Parameter(torch.empty(1))

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Return `(B, T, C)` for `position_ids` `(B, T)`."""
        index = torch.arange(0, self.hidden_size, 2, device=position_ids.device)
        angles = position_ids[..., None] * torch.exp(-math.log(10_000) * index / self.hidden_size)  # (B, T, C / 2)
        return self.scale * torch.cat([angles.sin(), angles.cos()], dim=-1)[..., : self.hidden_size]


class AbsoluteMusicTransformer(MelodyVAEModel):
    """Identical to [`MelodyVAEModel`] with `latent_size=0` except for absolute instead of relative positions.

    This is the "Transformer" of Music Transformer's comparisons (Huang et al. 2018, arXiv:1809.04281, table 3).

    Args:
        config: An [`AbsoluteMusicTransformerConfig`].

    Raises:
        ValueError: If the configuration has a latent.
    """

    config: AbsoluteMusicTransformerConfig
    config_class = AbsoluteMusicTransformerConfig

    def __init__(self, config: AbsoluteMusicTransformerConfig):
        if config.latent_size:
            raise ValueError(f"latent_size={config.latent_size}: this baseline is a language model and has no latent")
        super().__init__(config)
        self.positions = Sinusoids(config)
        for index, layer in enumerate(self.layers):
            layer.attention = AbsoluteAttention(config, index)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Sinusoids):
            init.constant_(module.scale, math.sqrt(2) * self.config.initializer_range)  # as long as a token's embedding

    def _embed(self, input_ids, attention_mask, musical_position, pitch, previous_ids, cache):
        """Embed tokens as [`MelodyVAEModel`] does and add their positions; padding is not counted."""
        hidden_states, rotation = super()._embed(
            input_ids, attention_mask, musical_position, pitch, previous_ids, cache
        )
        length = input_ids.shape[1]
        if attention_mask is not None and attention_mask.dim() == 2:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp_min(0)[:, -length:]
        else:
            past = 0 if cache is None else cache.get_seq_length()
            position_ids = (torch.arange(length, device=input_ids.device) + past)[None]
        return hidden_states + self.positions(position_ids).to(hidden_states.dtype), rotation
