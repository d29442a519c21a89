"""Relative attention of Music Transformer (Huang et al. 2018, arXiv:1809.04281).

Dimension key: B batch, L query positions, S key positions, H heads, D head size, C hidden size, M distances.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

QUERIES_PER_BLOCK = 64  # on a CPU; 32 and 128 were slower
FEWEST_IN_BLOCKS = 2 * QUERIES_PER_BLOCK  # queries at inference; fewer gain nothing


def skew(relative_logits: torch.Tensor, num_keys: int) -> torch.Tensor:
    """Turn logits by distance into logits by key, without an L x S x D tensor (section 3.4.1 of the paper).

    Read with rows one entry shorter than they are, each row starts one distance before the row above. The paper pads
    and copies; with an entry to spare at the end of the rows a view is enough.

    Args:
        relative_logits: `(..., L, M)`, contiguous; query i finds key j in column j - i + L - 1. M = S + L covers every
            pair, M > S all pairs that a causal mask leaves.
        num_keys: S.

    Returns:
        A view `(..., L, S)` with entry (i, j) = `relative_logits[..., i, j - i + L - 1]`; entries whose column is M or
        more hold other entries of `relative_logits`. No entry occurs twice, so the view can be written to.
    """
    length, num_distances = relative_logits.shape[-2:]
    shifted = relative_logits.flatten(-2)[..., length - 1 : length - 1 + length * (num_distances - 1)]
    return shifted.unflatten(-1, (length, num_distances - 1))[..., :num_keys]


def rotate(states: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Turn queries or keys `(B, H, L, D)` by a rotation `(2, B, 1, L, P)`; P pairs of their first 2 P entries turn."""
    cos, sin = rotation.to(states.dtype)
    pairs = cos.shape[-1]
    first, second, rest = states.split([pairs, pairs, states.shape[-1] - 2 * pairs], dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], dim=-1)


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


class Block(NamedTuple):
    """Attention weights of some consecutive queries (L) and what they were made of; H and B are one dimension."""

    weights: torch.Tensor  # (H B, L, S)
    query: torch.Tensor  # (H B, L, D)
    key: torch.Tensor  # (H B, S, D)
    distances: slice  # the rows of E that the block needs, M of them
    begin: int
    end: int


class BlockwiseRelativeAttention(torch.autograd.Function):
    """Relative attention in training on a CPU, a block of queries at a time; exact, in O(L D) memory.

    `scaled_dot_product_attention` has a fused kernel there too, but none for a bias that needs a gradient: it keeps
    several tensors of L x L. Here the backward pass computes the weights again (Dao et al. 2022, arXiv:2205.14135), so
    nothing of L x L is ever whole, a block stays in the processor's cache, the keys after a causal block and most
    distances that a block does not have cost nothing, and E is multiplied with all melodies at once.

    Heads come before melodies in every tensor, (H, B, L, D), because E differs by head.
    """

    @staticmethod
    def blocks(
        query: torch.Tensor,
        key: torch.Tensor,
        embedding: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
        is_causal: bool,
    ) -> Iterator[Block]:
        """Compute the attention weights block by block; see `forward` for the arguments, here with heads first."""
        heads, batch, length, size = query.shape
        lowest = query.new_tensor(torch.finfo(query.dtype).min)
        for begin in range(0, length, QUERIES_PER_BLOCK):
            end = min(begin + QUERIES_PER_BLOCK, length)
            rows = end - begin
            num_keys = end if is_causal else length
            # Column 0 is the distance from the block's last query to key 0; skew needs one column to spare.
            distances = slice(length - end, length - end + num_keys + (1 if is_causal else rows))
            # Relative logits: the block's queries times the embeddings of their distances, skewed into place.
            block_query = query[:, :, begin:end].reshape(heads, batch * rows, size)
            relative = torch.bmm(block_query, embedding[:, distances].transpose(1, 2))  # (H, B L, M)
            logits = skew(relative.view(heads, batch, rows, -1), num_keys)
            # What a query may not see has the lowest logit.
            if mask is None and is_causal:
                is_seen = torch.ones(rows, num_keys, dtype=torch.bool, device=query.device).tril(begin)
                logits = torch.where(is_seen, logits, lowest)
            elif mask is None:
                logits = logits.contiguous()
            elif mask.dtype == torch.bool:
                logits = torch.where(mask[:, :, begin:end, :num_keys], logits, lowest)
            else:
                logits = logits + mask[:, :, begin:end, :num_keys]
            block_query, block_key = block_query.view(heads * batch, rows, size), key.flatten(0, 1)[:, :num_keys]
            logits = logits.flatten(0, 1).baddbmm_(block_query, block_key.transpose(1, 2), alpha=scaling)
            yield Block(logits.softmax(-1), block_query, block_key, distances, begin, end)

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # what is accumulated in place is of the dtype that the products have
    def forward(
        ctx,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        embedding: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
        is_causal: bool,
    ) -> torch.Tensor:
        """Attend.

        Args:
            ctx: Autograd's.
            query: `(B, H, L, D)`.
            key: `(B, H, L, D)`.
            value: `(B, H, L, D)`.
            embedding: `(H, M, D)`, scaled, from distance 1 - L on; M = L + 1 if causal, else 2 L.
            mask: Broadcastable to `(B, H, L, L)`; boolean, or added.
            scaling: Factor of `Q K^T`.
            is_causal: Whether no query sees a key to its right.

        Returns:
            `(B, L, H, D)`.
        """
        query, key, value = (each.transpose(0, 1).contiguous() for each in (query, key, value))  # (H, B, L, D)
        mask = None if mask is None else mask.transpose(0, 1)
        heads, batch, length, size = query.shape
        attended = query.new_empty(batch, length, heads, size)
        for block in BlockwiseRelativeAttention.blocks(query, key, embedding, mask, scaling, is_causal):
            rows = torch.bmm(block.weights, value.flatten(0, 1)[:, : block.key.shape[1]])  # (H B, L, D)
            attended[:, block.begin : block.end] = rows.view(heads, batch, -1, size).permute(1, 2, 0, 3)
        ctx.save_for_backward(query, key, value, embedding, mask, attended)
        ctx.scaling, ctx.is_causal = scaling, is_causal
        return attended

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(ctx, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Compute the gradients of `query`, `key`, `value` and `embedding`."""
        query, key, value, embedding, mask, attended = ctx.saved_tensors
        heads, batch, _, size = query.shape
        # What softmax takes off each row is the same before and after the product with V (eq. 4 of Dao et al.).
        offset = (grads[0] * attended).sum(-1).permute(2, 0, 1).flatten(0, 1)[..., None]  # (H B, L, 1)
        grad = grads[0].permute(2, 0, 1, 3).flatten(0, 1)  # (H B, L, D)
        query_grad, key_grad, value_grad = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        embedding_grad = torch.zeros_like(embedding)
        blocks = BlockwiseRelativeAttention.blocks(query, key, embedding, mask, ctx.scaling, ctx.is_causal)
        for weights, block_query, block_key, distances, begin, end in blocks:
            rows, num_keys = end - begin, block_key.shape[1]
            block_grad = grad[:, begin:end]
            value_grad.flatten(0, 1)[:, :num_keys].baddbmm_(weights.transpose(1, 2), block_grad)
            logits_grad = torch.bmm(block_grad, value.flatten(0, 1)[:, :num_keys].transpose(1, 2))  # (H B, L, S)
            logits_grad.sub_(offset[:, begin:end]).mul_(weights)
            key_grad.flatten(0, 1)[:, :num_keys].baddbmm_(logits_grad.transpose(1, 2), block_query, alpha=ctx.scaling)
            relative_grad = query.new_zeros(heads, batch, rows, distances.stop - distances.start)
            skew(relative_grad, num_keys).copy_(logits_grad.view(heads, batch, rows, num_keys))
            relative_grad = relative_grad.flatten(1, 2)  # (H, B L, M)
            embedding_grad[:, distances].baddbmm_(relative_grad.transpose(1, 2), block_query.view(heads, -1, size))
            rows_grad = torch.bmm(relative_grad, embedding[:, distances]).view_as(block_query)
            rows_grad.baddbmm_(logits_grad, block_key, alpha=ctx.scaling)
            query_grad[:, :, begin:end] = rows_grad.view(heads, batch, rows, size)
        by_melody = (each.transpose(0, 1) for each in (query_grad, key_grad, value_grad))
        return (*by_melody, embedding_grad, None, None, None)


class ResidualLinear(nn.Linear):
    """Linear layer whose output is added to a residual stream; starts smaller the more of them there are (GPT-2)."""


class ZeroLinear(nn.Linear):
    """Linear layer that starts at zero, also when it is added to a model that is trained already."""


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
        self.o_proj = ResidualLinear(config.hidden_size, config.hidden_size)
        num_distances = self.max_distance - self.min_distance + 1
        self.distance_embedding = nn.Parameter(torch.empty(self.num_heads, num_distances, self.head_dim))

    def init_weights(self, std: float) -> None:
        """Draw E as wide as the paper's other embeddings."""
        init.normal_(self.distance_embedding, mean=0.0, std=std)

    def embedding_of_distances(self, length: int, end: int, past: int | torch.Tensor = 0) -> torch.Tensor:
        """Look up the rows of E, scaled, for the distances 1 - `length` - `past` to `end` - 1 - `past`, `(H, M, D)`."""
        distances = torch.arange(1 - length, end, device=self.distance_embedding.device) - past
        rows = distances.clamp(self.min_distance, self.max_distance) - self.min_distance
        return self.distance_embedding[:, rows] * self.scaling

    def position_bias(self, query: torch.Tensor, num_keys: int, past: int | torch.Tensor) -> torch.Tensor:
        """Compute `skew(Q E^T)`, scaled.

        Args:
            query: `(B, H, L, D)`.
            num_keys: S, cached keys included.
            past: Number of keys before the first query.

        Returns:
            `(B, H, L, S)`. Extra memory is O(B H L S + H M D), M <= S + L.
        """
        length = query.shape[2]
        # A causal query needs no column right of its own key; what skew reads there is finite and masked. A static
        # cache has keys to come as well, and its mask has a column for each.
        is_static = not isinstance(past, int) or past + length < num_keys
        end = num_keys + 1 if is_static or not self.is_causal else num_keys - length + 2  # one to spare for skew
        embedding = self.embedding_of_distances(length, end, past)
        # Heads first, or `matmul` would copy E for every melody.
        rows = query.transpose(0, 1).flatten(1, 2)  # (H, B L, D)
        relative = torch.bmm(rows, embedding.transpose(1, 2)).unflatten(1, (-1, length))  # (H, B, L, M)
        return skew(relative.transpose(0, 1), num_keys)

    def attend_in_blocks(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Attend without gradients, a block of queries at a time: no bias of L x L is ever whole.

        All distances beyond `max_relative_distance` share a row of E, so queries are multiplied with it once.

        Args:
            query: `(B, H, L, D)`.
            key: `(B, H, L, D)`.
            value: `(B, H, L, D)`.
            mask: Broadcastable to `(B, H, L, L)`; boolean, or added.

        Returns:
            `(B, L, H, D)`.
        """
        batch, heads, length, size = query.shape
        embedding = (self.distance_embedding * self.scaling).to(query.dtype).transpose(1, 2)  # (H, D, M)
        attended, lowest = query.new_empty(batch, length, heads, size), torch.finfo(query.dtype).min
        mask = None if mask is None else mask.expand(-1, -1, length, -1)
        for begin in range(0, length, QUERIES_PER_BLOCK):
            end = min(begin + QUERIES_PER_BLOCK, length)
            rows, num_keys = end - begin, end if self.is_causal else length
            # From the block's last query to key 0, up to its first query to the last key and one to spare for skew.
            first, last = 1 - end, 1 if self.is_causal else length - begin
            low, high = max(first, self.min_distance), min(last, self.max_distance)
            block = query[:, :, begin:end]
            near = embedding[:, :, low - self.min_distance : high - self.min_distance + 1]
            relative = torch.bmm(block.transpose(0, 1).flatten(1, 2), near)  # (H, B L, M)
            left, right = relative[..., :1], relative[..., -1:]
            parts = [left.expand(-1, -1, low - first), relative, right.expand(-1, -1, last - high)]
            bias = skew(torch.cat(parts, dim=-1).unflatten(1, (batch, rows)).transpose(0, 1), num_keys)
            if mask is None and self.is_causal:
                is_later = torch.ones(rows, rows, dtype=torch.bool, device=query.device).triu(1)
                bias[..., begin:].masked_fill_(is_later, lowest)
            elif mask is not None:
                of_block = mask[:, :, begin:end, :num_keys]
                bias = torch.where(of_block, bias, lowest) if mask.dtype == torch.bool else bias + of_block
            rows_of_block = nn.functional.scaled_dot_product_attention(
                block, key[:, :, :num_keys], value[:, :, :num_keys], attn_mask=bias, scale=self.scaling
            )
            attended[:, begin:end] = rows_of_block.transpose(1, 2)
        return attended

    def may_use_blocks(self, query: torch.Tensor) -> bool:
        """Whether blocks pay, and nobody wants plain operations to compile or export."""
        return (
            query.device.type == "cpu"
            and query.dtype != torch.float16
            and self.config._attn_implementation == "sdpa"
            and not (self.training and self.config.dropout)
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        )

    def is_blockwise(self, query: torch.Tensor, cache: Cache | None) -> bool:
        """Whether [`BlockwiseRelativeAttention`] takes over from `scaled_dot_product_attention`.

        It does where the latter would have to keep every logit.
        """
        return query.requires_grad and cache is None and self.may_use_blocks(query)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        rotation: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Attend from every position of `hidden_states` `(B, L, C)`; returns the same shape.

        `rotation` is what [`rotation_of`] computes.
        """
        batch, length, _ = hidden_states.shape
        past = cache.get_seq_length(self.layer_idx) if cache is not None else 0
        if isinstance(past, torch.Tensor):
            past = past.clone()  # a static cache returns its live counter, which `update` moves
        query, key, value = (
            self.qkv_proj(hidden_states).view(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        )  # (B, H, L, D) each
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        # In blocks: with gradients in training, without them where a sequence is long; else by transformers' interface.
        if self.is_blockwise(query, cache):
            embedding = self.embedding_of_distances(length, 2 if self.is_causal else length + 1)
            attended = BlockwiseRelativeAttention.apply(
                query, key, value, embedding.to(query.dtype), attention_mask, self.scaling, self.is_causal
            )
            return self.o_proj(attended.flatten(2))
        is_whole = isinstance(past, int) and past == 0 and key.shape[2] == length
        if is_whole and length > FEWEST_IN_BLOCKS and not query.requires_grad and self.may_use_blocks(query):
            return self.o_proj(self.attend_in_blocks(query, key, value, attention_mask).flatten(2))
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, _ = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.config.dropout if self.training else 0.0,
            position_bias=self.position_bias(query, key.shape[2], past),
            **kwargs,
        )
        return self.o_proj(attended.reshape(batch, length, -1))


class MelodyVAELayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer with relative attention."""

    def __init__(self, config, layer_idx: int, is_causal: bool):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = RelativeAttention(config, layer_idx, is_causal)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = ResidualLinear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: torch.Tensor, condition: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
        """Transform `hidden_states` `(B, T, C)`; `condition`, of the same shape, is added first (in-attention)."""
        if condition is not None:
            hidden_states = hidden_states + condition
        attended = self.attention(self.attention_norm(hidden_states), **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.feed_forward(hidden_states))

    def feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Compute what the feed-forward block adds to `hidden_states` `(B, T, C)`."""
        return self.down_proj(nn.functional.gelu(self.up_proj(self.feed_forward_norm(hidden_states))))
