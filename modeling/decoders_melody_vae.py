"""Decoders that compute one token after another: by the model's own `forward`, and step by step.

Dimension key: A melodies being written, T tokens, S tokens so far, H heads, D head size, K decoder layers,
C hidden size, N bars, V vocabulary, W waves of the bar-position embedding, F rows computed: A, or melodies over again
where these are few.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers.cache_utils import DynamicCache

from .cache_melody_vae import CACHE_NAME
from .musical_position_melody_vae import periods_of
from .musical_state_melody_vae import MusicalState
from .prior_melody_vae import FEWEST_ROWS
from .relative_attention import MelodyVAELayer, RelativeAttention, ResidualLinear, ZeroLinear

CACHE_BLOCK = 64  # tokens by which the cache grows

Function = Callable[..., torch.Tensor]


def has_own_call(module: nn.Module) -> bool:
    """Whether calling a module does more than its class's `forward`: a hook, or a `forward` put in its place."""
    every = nn.modules.module
    return bool(
        "forward" in vars(module)
        or module._forward_hooks
        or module._forward_pre_hooks
        or every._global_forward_hooks
        or every._global_forward_pre_hooks
    )


def is_plain(module: nn.Module) -> bool:
    """Whether a module is nothing but torch's own product, norm or table of ordinary parameters."""
    return (
        type(module) in (nn.Linear, ResidualLinear, ZeroLinear, nn.LayerNorm, nn.Embedding)
        and not has_own_call(module)
        and all(type(parameter) is nn.Parameter for parameter in module.parameters())
    )


def function_of(module: nn.Module) -> Function:
    """Return what a module computes for rows `(A, C)`: torch's function where it is plain, else the module's call."""
    if not is_plain(module):  # adapters, quantised weights, ...: they see what `forward` hands them, `(A, 1, C)`
        return lambda rows: module(rows[:, None])[:, 0]
    if isinstance(module, nn.Linear):
        return partial(functional.linear, weight=module.weight, bias=module.bias)
    assert isinstance(module, nn.LayerNorm)
    shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
    return lambda rows: torch.layer_norm(rows, shape, weight, bias, eps)


def project_in_order(project: Function, order: torch.Tensor, scale: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return what `project` computes for rows `(A, C)`, its entries in another order and scaled."""
    return project(rows)[:, order] * scale


class ForwardDecoder:
    """Logits of one token after another by the model's own `forward`, with transformers' cache.

    Args:
        model: Any model that `generate` takes.
        model_kwargs: Of `forward`, as `generate` prepares them.
        num_melodies: How many are given.
        fewest_rows: So many melodies are computed, the given ones over again where they are fewer.
    """

    def __init__(self, model, model_kwargs: dict[str, Any], num_melodies: int, fewest_rows: int = 1):
        self.model, self.model_kwargs, self.is_first = model, model_kwargs, True
        self.num_rows, self.fewest_rows = num_melodies, fewest_rows
        self.copies: torch.Tensor | None = None
        if num_melodies < fewest_rows:
            self.copies = torch.arange(fewest_rows, device=model.device) % num_melodies
            for name, value in model_kwargs.items():
                if isinstance(value, torch.Tensor) and len(value) == num_melodies:
                    model_kwargs[name] = value[self.copies]

    def __call__(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Compute the logits after `input_ids` `(A, T)`, one token longer each time, `(A, V)`."""
        if self.copies is not None:
            input_ids = input_ids[self.copies]
        new = 1 if not self.is_first and self.model_kwargs.get("use_cache") else None
        inputs = self.model.prepare_inputs_for_generation(input_ids, next_sequence_length=new, **self.model_kwargs)
        output = self.model(**inputs, return_dict=True)
        self.model_kwargs = self.model._update_model_kwargs_for_generation(output, self.model_kwargs)
        self.is_first = False
        return output.logits[: self.num_rows, -1]

    def can_keep(self, num_left: int) -> bool:
        """Whether melodies that are done can leave, so that `num_left` are left."""
        return num_left >= FEWEST_ROWS and isinstance(self.model_kwargs.get(CACHE_NAME), DynamicCache)

    def keep(self, rows: torch.Tensor, num_rows: int) -> None:
        """Go on with some of `num_rows` melodies only."""
        self.num_rows = len(rows)
        self.model_kwargs[CACHE_NAME].batch_select_indices(rows)
        for name, value in self.model_kwargs.items():
            if isinstance(value, torch.Tensor) and len(value) == num_rows:
                self.model_kwargs[name] = value[rows]


def attentions_of(model) -> list[RelativeAttention]:
    """List the attention of each layer of the melody decoder."""
    return [layer.attention for layer in model.layers]


class LayerFunctions(NamedTuple):
    """What a layer of the melody decoder computes, for rows `(A, C)`."""

    attention_norm: Function
    qkv_proj: Function  # (A, 3 C), see [`StepDecoder`]
    o_proj: Function
    feed_forward_norm: Function
    up_proj: Function
    down_proj: Function


class StepDecoder(ForwardDecoder):
    """The same logits, computed step by step: nothing is read over the whole sequence again.

    Musical position, pitch and the previous token are carried on from token to token; keys and values are written into
    a cache that is there already; the rows of E (see [`RelativeAttention`]) lie in the order of the keys. Modules that
    are plain are not called: their weights, read when decoding begins, go into torch's functions. Of queries and keys
    the pairs of entries that [`rotate`] turns lie side by side, so that turning is one product of complex numbers, and
    keys are scaled already. The first call, over a primer, is `forward`'s.
    """

    def __init__(self, model, model_kwargs: dict[str, Any], num_melodies: int, fewest_rows: int = 1):
        super().__init__(model, model_kwargs, num_melodies, fewest_rows)
        self.conditions = model_kwargs.get("bar_conditions")  # (A, N + 1, K, C)
        self.cache = torch.empty(0)  # keys and values of each layer, (K, 2, A, H, capacity, D)
        self.length = self.capacity = 0
        self.padding: torch.Tensor | None = None  # (A, 1, 1, T) of a primer, added to the logits of attention

    @staticmethod
    def is_for(model, model_kwargs: dict[str, Any]) -> bool:
        """Whether a model can be decoded so: its parts its own, whole on one device all the time, an empty cache."""
        mask, cache = model_kwargs.get("attention_mask"), model_kwargs.get(CACHE_NAME)
        return (
            model._is_plain
            and not (model._forward_hooks or model._forward_pre_hooks)
            and all(type(layer) is MelodyVAELayer and not has_own_call(layer) for layer in model.layers)
            and all(type(each) is RelativeAttention and not has_own_call(each) for each in attentions_of(model))
            and len(set(getattr(model, "hf_device_map", {"": 0}).values())) == 1
            and not any(parameter.is_meta for parameter in model.parameters())  # offloaded between layers
            and bool(model_kwargs.get("use_cache"))
            and not model.training
            and (mask is None or mask.dim() == 2)
            and isinstance(cache, DynamicCache)
            and cache.get_seq_length() == 0
            and not model_kwargs.keys() & {"inputs_embeds", "output_hidden_states", "output_attentions"}
        )

    def __call__(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Compute the logits after `input_ids` `(A, T)`, one token longer each time, `(A, V)`."""
        if self.is_first:
            logits = super().__call__(input_ids)
            self._take_over(input_ids)
            return logits
        return self._step(input_ids[:, -1], input_ids[:, -2])

    def can_keep(self, num_left: int) -> bool:
        """Whether melodies that are done can leave, so that `num_left` are left."""
        return num_left >= FEWEST_ROWS or self.fewest_rows == FEWEST_ROWS

    def keep(self, rows: torch.Tensor, num_rows: int) -> None:
        """Go on with some of `num_rows` melodies only, in their order."""
        self.num_rows, length = len(rows), self.length
        for place, row in enumerate(rows.tolist()):  # they rise: what is overwritten has been moved, or has left
            if place < row:
                self.cache[:, :, place, :, :length] = self.cache[:, :, row, :, :length]
        self.cache = self.cache[:, :, : self.num_rows]
        self._fill()
        self.music.keep(rows.cpu().numpy())
        if self.conditions is not None:
            self.conditions = self.conditions[rows]
        if self.padding is not None:
            self.padding = self.padding[rows]

    def _fill(self) -> None:
        """Note which melodies are computed, `(F,)`; None where each is, and once."""
        self.filled = None
        if self.num_rows < self.fewest_rows:
            self.filled = torch.arange(self.fewest_rows, device=self.model.device) % self.num_rows

    # Before the first step.

    def _take_over(self, input_ids: torch.Tensor) -> None:
        """Read from `forward`'s cache, from the primer `(A, T)` and from the weights what the steps need."""
        model, layers = self.model, self.model_kwargs.pop(CACHE_NAME).layers
        config, self.length = model.config, input_ids.shape[1]
        table = model._grammar().cpu().numpy() if config.musical_time or config.musical_pitch else None
        self.music = MusicalState(len(input_ids), model.is_bar_token.cpu().numpy(), table, config.musical_time)
        for token in input_ids.T.cpu().numpy():
            self.music.advance(token)
        self._set_angles()
        self.layers = [self._functions_of(layer) for layer in model.layers]
        self.norm, self.lm_head = function_of(model.norm), function_of(model.lm_head)
        self._set_embeddings()
        pairs = [
            torch.stack([part.keys[..., self.order] * attention.scaling, part.values])[:, : self.num_rows]
            for part, attention in zip(layers, attentions_of(model), strict=True)
        ]
        self.cache = torch.stack(pairs).to(model.dtype)  # with mixed precision `forward` alone computes in bfloat16
        if self.conditions is not None:
            self.conditions = self.conditions[: self.num_rows]
        self._fill()
        self._grow()
        mask = self.model_kwargs.get("attention_mask")
        if mask is not None and not mask[:, : self.length].all():
            is_padding = mask[: self.num_rows, None, None, : self.length] == 0
            self.padding = is_padding.to(model.dtype) * torch.finfo(model.dtype).min

    def _set_angles(self) -> None:
        """Lay out the angles of the bar-position embedding (W), and after them those of pairs of entries.

        Each is a sum of what position and pitch are multiplied with, and is divided by a period. All entries of queries
        and keys have one; that of the ones that are not turned is 0.
        """
        config, device = self.model.config, self.model.device
        self.head_dim = config.hidden_size // config.num_attention_heads
        waves, nothing = torch.zeros(0, device=device), torch.zeros(0, device=device)
        if config.musical_time:
            waves = self.model.time_embedding.frequencies(device)
        bars, semitones = periods_of(self.head_dim, device)
        bars, semitones = bars if config.musical_time else nothing, semitones if config.musical_pitch else nothing
        turned = len(bars) + len(semitones)
        still = torch.zeros((self.head_dim + 1) // 2 - turned, device=device)
        no_bars, no_semitones = torch.zeros_like(bars), torch.zeros_like(semitones)
        self.num_waves, self.is_turned = len(waves), turned > 0
        self.of_position = torch.cat([waves, no_bars + 1, no_semitones, still])
        self.of_pitch = torch.cat([waves * 0, no_bars, no_semitones + 1, still])
        self.periods = torch.cat([torch.ones_like(waves), bars, semitones, still + 1])
        first = torch.arange(turned, device=device)
        rest = torch.arange(2 * turned, self.head_dim, device=device)
        self.order = torch.cat([torch.stack([first, first + turned], dim=-1).flatten(), rest])  # (D,)

    def _functions_of(self, layer: MelodyVAELayer) -> LayerFunctions:
        """Return what a layer computes, with entries of queries and keys in the order of `self.order`, keys scaled."""
        attention = layer.attention
        module, width = attention.qkv_proj, attention.num_heads * attention.head_dim
        starts = torch.arange(0, 2 * width, attention.head_dim, device=self.order.device)
        values = torch.arange(2 * width, 3 * width, device=self.order.device)
        order = torch.cat([(starts[:, None] + self.order).flatten(), values])  # (3 C,)
        scale = torch.ones(3 * width, device=order.device, dtype=self.model.dtype)
        scale[width : 2 * width] = attention.scaling
        if is_plain(module):
            weight, bias = module.weight[order] * scale[:, None], module.bias[order] * scale
            qkv_proj = partial(functional.linear, weight=weight, bias=bias)
        else:
            qkv_proj = partial(project_in_order, function_of(module), order, scale)
        others = (attention.o_proj, layer.feed_forward_norm, layer.up_proj, layer.down_proj)
        return LayerFunctions(function_of(layer.attention_norm), qkv_proj, *map(function_of, others))

    def _set_embeddings(self) -> None:
        """Read what embeds tokens and positions; `self.tokens` is None where that takes the model's own modules."""
        model, config = self.model, self.model.config
        leaves, containers = [model.embed_tokens], [model.dropout]
        if config.previous_token:
            leaves.append(model.previous_proj)
        if config.musical_time:
            leaves.append(model.time_embedding.proj)
            containers.append(model.time_embedding)
        self.tokens = None
        if any(map(has_own_call, containers)) or not all(map(is_plain, leaves)):
            return
        self.tokens = model.embed_tokens.weight
        self.previous_proj = function_of(model.previous_proj) if config.previous_token else None
        self.of_waves = None
        if config.musical_time:
            weight = model.time_embedding.proj.weight  # (C, 2 W), cosines first
            self.of_waves = weight.new_zeros(len(weight), len(self.periods), 2)
            self.of_waves[:, : self.num_waves] = weight.unflatten(1, (2, -1)).transpose(1, 2)
            self.of_waves = self.of_waves.flatten(1)

    def _grow(self) -> None:
        """Copy keys and values into a larger cache."""
        before, self.capacity = self.cache[..., : self.length, :], -(-(self.length + 1) // CACHE_BLOCK) * CACHE_BLOCK
        self.cache = before.new_empty(*before.shape[:4], self.capacity, before.shape[5])
        self.cache[..., : self.length, :] = before
        # Of the distances 1 - capacity to 0: the keys of a query end with its own.
        rows = [each.embedding_of_distances(self.capacity, 1) for each in attentions_of(self.model)]
        self.embeddings = torch.stack(rows)[..., self.order].transpose(2, 3).contiguous()  # (K, H, D, capacity)

    # A step.

    def _step(self, token: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Compute the logits after one more token `(A,)`; `before` is the one before it."""
        if self.length == self.capacity:
            self._grow()
        self.music.advance(token.cpu().numpy())
        now, bars, music = self.length, self.music.bars, np.stack([self.music.position(), self.music.pitch])
        if self.filled is not None:
            token, before, filled = token[self.filled], before[self.filled], self.filled.cpu().numpy()
            bars, music = bars[filled], music[:, filled]
        states, rotation = self._embed(token, before, music)
        places = self.cache[..., now, :].transpose(1, 2).unbind()  # of each layer, (A, 2, H, D)
        so_far = self.cache[..., : now + 1, :].flatten(0, 1).unbind()  # keys and values of each, (A, H, S, D)
        embeddings = self.embeddings[..., self.capacity - now - 1 :].unbind()  # of each, (H, D, S)
        conditions = None
        if self.conditions is not None:
            melodies = np.arange(len(bars)) % self.num_rows
            rows = melodies * self.conditions.shape[1] + np.clip(bars + 1, 0, self.conditions.shape[1] - 1)
            conditions = self.conditions.flatten(0, 1).index_select(0, torch.from_numpy(rows).to(token.device))
            conditions = conditions.unbind(1)  # K of (F, C)
        for index, layer in enumerate(self.layers):
            if conditions is not None:
                states = states + conditions[index]
            query, key_value = self._turn(layer.qkv_proj(layer.attention_norm(states)), rotation)
            places[index].copy_(key_value if self.filled is None else key_value[: self.num_rows])
            attended = self._attend(query, so_far[2 * index], so_far[2 * index + 1], embeddings[index])
            states = states + layer.o_proj(attended)
            states = states + self._feed_forward(layer, states)
        self.length += 1
        logits = self.lm_head(self.norm(states))
        return logits if self.filled is None else logits[: self.num_rows]

    def _embed(self, token: torch.Tensor, before: torch.Tensor, music: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed one more token `(F,)`, see `MelodyVAEModel._embed`; `music` is its position and pitch, `(2, F)`.

        Returns:
            `(F, C)`, and what queries, keys and values are turned by, `(F, 3, 1, D / 2)`, complex; values are not.
        """
        model = self.model
        position, pitch = torch.from_numpy(music).to(token.device)[..., None]  # (F, 1)
        angles = 2 * math.pi * position * self.of_position + 2 * math.pi * pitch * self.of_pitch
        turns = torch.polar(torch.ones_like(angles), angles / self.periods)  # (F, W + D / 2)
        turn = turns[:, None, None, self.num_waves :]
        rotation = torch.cat([turn, turn, torch.ones_like(turn)], dim=1)
        previous = torch.where(before == model.config.pad_token_id, token, before)
        if self.tokens is None:
            embedded, _ = model._embed(token[:, None], None, position, pitch, previous[:, None], None)
            return embedded[:, 0], rotation
        states = functional.embedding(token, self.tokens)
        if self.of_waves is not None:
            waves = torch.view_as_real(turns).flatten(1).to(self.tokens.dtype)
            states = states + functional.linear(waves, self.of_waves)
        if self.previous_proj is not None:
            states = states + self.previous_proj(functional.embedding(previous, self.tokens))
        return states, rotation

    def _turn(self, states: torch.Tensor, rotation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn queries and keys of `(F, 3 C)`; returns queries `(F, H, D)`, and keys and values `(F, 2, H, D)`."""
        size = self.head_dim
        states = states.view(states.shape[0], 3, -1, size)
        if self.is_turned:
            padded = functional.pad(states, (0, 1)) if size % 2 else states
            turned = torch.view_as_complex(padded.float().unflatten(-1, (-1, 2))) * rotation
            states = torch.view_as_real(turned).flatten(-2)[..., :size].to(states.dtype)
        return states[:, 0], states[:, 1:]

    def _attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, embeddings: torch.Tensor
    ) -> torch.Tensor:
        """Attend from queries `(F, H, D)` to all keys and values so far, by distance as well; returns `(F, C)`."""
        by_distance = torch.bmm(query.transpose(0, 1), embeddings).transpose(0, 1)[:, :, None]  # (F, H, 1, S)
        if self.filled is not None:
            query, by_distance = query[: self.num_rows], by_distance[: self.num_rows]
        if self.padding is not None:
            by_distance[..., : self.padding.shape[-1]] += self.padding
        attended = functional.scaled_dot_product_attention(
            query[:, :, None], keys, values, attn_mask=by_distance, scale=1.0
        )
        return attended.flatten(1) if self.filled is None else attended.flatten(1)[self.filled]

    def _feed_forward(self, layer: LayerFunctions, states: torch.Tensor) -> torch.Tensor:
        """Compute what the feed-forward block adds to `states` `(F, C)`."""
        return layer.down_proj(functional.gelu(layer.up_proj(layer.feed_forward_norm(states))))
