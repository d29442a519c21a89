"""Relative attention of Music Transformer (Huang et al. 2018, arXiv:1809.04281).

Dimension key: B batch, L query positions, S key positions, H heads, D head size, C hidden size, M distances.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def skew(relative_logits: torch.Tensor, num_keys: int) -> torch.Tensor:
    """Turn logits by distance into logits by key, without an L x S x D tensor (section 3.4.1 of the paper).

    Args:
        relative_logits: `(..., L, M)`; query i finds key j in column j - i + L - 1. M = S + L - 1 covers every
            pair, M >= S all pairs that a causal mask leaves.
        num_keys: S.

    Returns:
        `(..., L, S)` with entry (i, j) = `relative_logits[..., i, j - i + L - 1]`; entries whose column is M or
        more hold other entries of `relative_logits`.
    """
    length, num_distances = relative_logits.shape[-2:]
    padded = nn.functional.pad(relative_logits, (0, 1)).flatten(-2)  # (..., L * (M + 1))
    shifted = padded[..., length - 1 : length - 1 + length * num_distances]  # row i starts i columns earlier
    return shifted.unflatten(-1, (length, num_distances))[..., :num_keys]


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float = 1.0,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend in plain torch operations; the reference that the other implementations are tested against."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling  # (B, H, L, S)
    if position_bias is not None:
        weights = weights + position_bias
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights  # (B, L, H, D)


class RelativeAttention(nn.Module):
    r"""Multi-head attention with a learned vector for each distance between query and key.

    .. math:: \mathrm{softmax}\left(\frac{Q K^\top + \mathrm{skew}(Q E^\top)}{\sqrt{D}}\right) V

    E has one row per head and distance. Beyond `max_relative_distance` the outermost row serves all distances (a
    deviation from the paper, whose E covers the longest sequence), so any length can be read.

    Args:
        config: A [`MelodyVAEConfig`].
        layer_idx: Index of the layer in its cache.
        is_causal: Whether E needs rows for keys to the right of the query.
    """

    def __init__(self, config, layer_idx: int, is_causal: bool):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.min_distance = -config.max_relative_distance
        self.max_distance = 0 if is_causal else config.max_relative_distance
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        num_distances = self.max_distance - self.min_distance + 1
        self.distance_embedding = nn.Parameter(torch.empty(self.num_heads, num_distances, self.head_dim))

    def init_weights(self, std: float) -> None:
        """Draw E as wide as the paper's other embeddings."""
        init.normal_(self.distance_embedding, mean=0.0, std=std)

    def relative_logits(self, query: torch.Tensor, num_keys: int, past: int | torch.Tensor) -> torch.Tensor:
        """Compute `skew(Q E^T)`.

        Args:
            query: `(B, H, L, D)`.
            num_keys: S, cached keys included.
            past: Number of keys before the first query.

        Returns:
            `(B, H, L, S)`, not yet scaled. Extra memory is O(B H L S + H M D), M < S + L.
        """
        length = query.shape[2]
        # A causal query needs no column right of its own key; what skew reads there is finite and masked. A static
        # cache has keys to come as well, and its mask has a column for each.
        is_static = not isinstance(past, int) or past + length < num_keys
        end = num_keys if is_static or not self.is_causal else num_keys - length + 1
        columns = torch.arange(1 - length, end, device=query.device)  # key minus query, were past 0
        rows = (columns - past).clamp(self.min_distance, self.max_distance) - self.min_distance
        embedding = self.distance_embedding[:, rows]  # (H, M, D)
        return skew(torch.matmul(query, embedding.transpose(1, 2)), num_keys)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Attend from every position of `hidden_states` `(B, L, C)`; returns the same shape."""
        batch, length, _ = hidden_states.shape
        past = past_key_values.get_seq_length(self.layer_idx) if past_key_values is not None else 0
        if isinstance(past, torch.Tensor):
            past = past.clone()  # a static cache returns its live counter, which `update` moves
        query, key, value = (
            self.qkv_proj(hidden_states).view(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        )  # (B, H, L, D) each
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, _ = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.config.dropout if self.training else 0.0,
            position_bias=self.relative_logits(query, key.shape[2], past) * self.scaling,
            **kwargs,
        )
        return self.o_proj(attended.reshape(batch, length, -1))
