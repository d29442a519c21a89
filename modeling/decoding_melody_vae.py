"""The decoding loop of every operation, and decoders that compute one token after another.

Dimension key: B melodies asked for, A melodies still being written, T tokens, S tokens so far, H heads, D head size,
K decoder layers, C hidden size, V vocabulary.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList, TopPLogitsWarper
from transformers.cache_utils import DynamicCache

from .arguments_melody_vae import draw_uniform
from .cache_melody_vae import CACHE_NAME
from .logits_process_melody_vae import BarCountLogitsProcessor, MelodyLogitsProcessor
from .prior_melody_vae import FEWEST_ROWS
from .relative_attention import rotate
from .token_grammar_melody_vae import NO_ONSET, TokenColumn

LOOP_OPTIONS = {"do_sample", "temperature", "top_k", "top_p", "max_length", "max_new_tokens", "logits_processor"}
LOOP_OPTIONS |= {"bars", "scale", "time_signature", "lowest_pitch", "highest_pitch", "noise_level", "generator"}
LOOP_OPTIONS |= {"max_rest", "conditions", "attention_mask", "begin_suppress_tokens", "inputs"}
"""Options of `generate` that the decoding loop knows; for others it is transformers' own."""

NUMBERS_AT_ONCE = 64
CACHE_BLOCK = 128  # tokens by which the cache grows
LIKELY_TOKENS = 64  # that top-p looks at before it sorts the whole vocabulary


def choose(weights: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Find where the running sum of weights exceeds a share of the whole.

    Args:
        weights: `(B, V)`, none negative.
        share: `(B,)`, from 0 to just under 1; uniform ones choose each index as often as its weight says.

    Returns:
        `(B,)` indices; never one without weight.
    """
    sums = weights.cumsum(-1)
    return torch.searchsorted(sums, share[:, None].to(sums) * sums[:, -1:], right=True).squeeze(1)


def keep_most_likely(scores: torch.Tensor, top_p: float, warper: TopPLogitsWarper) -> torch.Tensor:
    """Rule out all but the most probable tokens that together have `top_p`, as transformers' warper does.

    The vocabulary is sorted only where `LIKELY_TOKENS` do not have as much.
    """
    likely = scores.topk(min(LIKELY_TOKENS, scores.shape[-1])).values  # (A, L), descending
    shares = (likely - scores.logsumexp(-1, keepdim=True)).exp().cumsum(-1)
    count = (shares < top_p).sum(-1, keepdim=True)  # tokens before the one that reaches top_p
    if int(count.max()) >= likely.shape[-1]:
        return warper(None, scores)  # pyright: ignore[reportArgumentType] - it reads no ids
    return scores.masked_fill(scores < likely.gather(-1, count), -torch.inf)


class ForwardDecoder:
    """Logits of one token after another by the model's own `forward`, with transformers' cache.

    Args:
        model: Any model that `generate` takes.
        model_kwargs: Of `forward`, as `generate` prepares them.
    """

    def __init__(self, model, model_kwargs: dict[str, Any]):
        self.model, self.model_kwargs, self.is_first = model, model_kwargs, True

    def __call__(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Compute the logits after `input_ids` `(A, T)`, one token longer each time, `(A, V)`."""
        new = 1 if not self.is_first and self.model_kwargs.get("use_cache") else None
        inputs = self.model.prepare_inputs_for_generation(input_ids, next_sequence_length=new, **self.model_kwargs)
        output = self.model(**inputs, return_dict=True)
        self.model_kwargs = self.model._update_model_kwargs_for_generation(output, self.model_kwargs)
        self.is_first = False
        return output.logits[:, -1]

    def can_keep(self) -> bool:
        """Whether melodies that are done can leave."""
        return isinstance(self.model_kwargs.get(CACHE_NAME), DynamicCache)

    def keep(self, rows: torch.Tensor, num_rows: int) -> None:
        """Go on with some of `num_rows` melodies only."""
        self.model_kwargs[CACHE_NAME].batch_select_indices(rows)
        for name, value in self.model_kwargs.items():
            if isinstance(value, torch.Tensor) and len(value) == num_rows:
                self.model_kwargs[name] = value[rows]


class StepDecoder(ForwardDecoder):
    """The same logits, computed step by step: nothing is read over the whole sequence again.

    Musical position, pitch and the previous token are carried on from token to token; keys and values are written into
    a cache that is there already; the rows of E (see [`RelativeAttention`]) lie in the order of the keys. The first
    call, over a primer, is `forward`'s.
    """

    def __init__(self, model, model_kwargs: dict[str, Any]):
        super().__init__(model, model_kwargs)
        self.conditions = model_kwargs.get("bar_conditions")  # (A, N + 1, K, C)
        self.keys: list[torch.Tensor] = []  # of each layer, (A, H, capacity, D)
        self.values: list[torch.Tensor] = []
        self.length = self.capacity = 0

    @staticmethod
    def is_for(model, model_kwargs: dict[str, Any]) -> bool:
        """Whether a model can be decoded so: one of plain layers, whole on one device all the time, an empty cache."""
        mask, cache = model_kwargs.get("attention_mask"), model_kwargs.get(CACHE_NAME)
        return (
            model._has_plain_layers
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

    def can_keep(self) -> bool:
        """Whether melodies that are done can leave."""
        return True

    def keep(self, rows: torch.Tensor, num_rows: int) -> None:
        """Go on with some of `num_rows` melodies only."""
        self.keys, self.values = [part[rows] for part in self.keys], [part[rows] for part in self.values]
        self.bars, self.reached, self.steps, self.pitch = (
            part[rows] for part in (self.bars, self.reached, self.steps, self.pitch)
        )
        if self.conditions is not None:
            self.conditions = self.conditions[rows]
        if self.padding is not None:
            self.padding = self.padding[rows]

    def _take_over(self, input_ids: torch.Tensor) -> None:
        """Read from `forward`'s cache, and from the primer `(A, T)`, what is carried on."""
        model, config, cache = self.model, self.model.config, self.model_kwargs.pop(CACHE_NAME)
        self.length = input_ids.shape[1]
        # In training with mixed precision `forward` alone computes in bfloat16.
        keys, values = [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]
        self._grow([part.to(model.dtype) for part in keys], [part.to(model.dtype) for part in values])
        mask = self.model_kwargs.get("attention_mask")
        self.padding = None
        if mask is not None and not mask[:, : self.length].all():
            padding = mask[:, None, None, : self.length] == 0  # (A, 1, 1, T)
            self.padding = torch.zeros(padding.shape, dtype=model.dtype, device=model.device).masked_fill(
                padding, torch.finfo(model.dtype).min
            )
        is_bar = model.is_bar_token[input_ids]
        bars = is_bar.cumsum(-1) - 1
        zeros = torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
        self.bars, self.reached, self.steps, self.pitch = bars[:, -1], zeros, zeros, zeros.float()
        if config.musical_time:
            rows = model._grammar()[input_ids]
            onset, steps = rows[..., TokenColumn.LAST_ONSET], rows[..., TokenColumn.BAR_STEPS]
            self.reached = (bars * NO_ONSET + onset + 1).amax(-1)
            latest = torch.where(steps > 0, torch.arange(self.length, device=input_ids.device), 0).amax(-1)
            self.steps = steps.gather(1, latest[:, None]).squeeze(1).long()
        if config.musical_pitch:
            self.pitch = model.musical_pitch(input_ids)[:, -1]

    def _grow(self, keys: list[torch.Tensor], values: list[torch.Tensor]) -> None:
        """Copy keys and values `(A, H, S, D)` of each layer into a larger cache."""
        before, self.capacity = keys[0].shape[2], -(-(self.length + 1) // CACHE_BLOCK) * CACHE_BLOCK
        grown = []
        for part in (*keys, *values):
            room = part.new_empty(part.shape[0], part.shape[1], self.capacity, part.shape[3])
            room[:, :, :before] = part
            grown.append(room)
        self.keys, self.values = grown[: len(keys)], grown[len(keys) :]
        # Of the distances 1 - capacity to 0: the keys of a query end with its own.
        self.embeddings = [
            layer.attention.embedding_of_distances(self.capacity, 1).transpose(1, 2) for layer in self.model.layers
        ]  # (H, D, capacity)

    def _step(self, token: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Compute the logits after one more token `(A,)`; `before` is the one before it."""
        model, config = self.model, self.model.config
        if self.length == self.capacity:
            self._grow(self.keys, self.values)
        position, pitch = self._advance(token)
        previous = torch.where(before == config.pad_token_id, token, before)[:, None]
        hidden_states, rotation = model._embed(token[:, None], None, position[:, None], pitch, previous, None)
        conditions = None
        if self.conditions is not None:
            rows = (self.bars + 1).clamp(0, config.max_bars)
            conditions = self.conditions[torch.arange(len(token), device=token.device), rows][:, None]  # (A, 1, K, C)
        for index, layer in enumerate(model.layers):
            if conditions is not None:
                hidden_states = hidden_states + conditions[:, :, index]
            hidden_states = hidden_states + self._attend(index, layer, layer.attention_norm(hidden_states), rotation)
            hidden_states = hidden_states + layer.feed_forward(hidden_states)
        self.length += 1
        return model.lm_head(model.norm(hidden_states))[:, 0]

    def _advance(self, token: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Carry on to one more token `(A,)`; returns its musical position `(A,)` and pitch `(A, 1)`."""
        model, config = self.model, self.model.config
        self.bars = self.bars + model.is_bar_token[token]
        if not (config.musical_time or config.musical_pitch):
            return self.bars.float(), None
        row = model.token_grammar[token].T  # (columns, A)
        position, pitch = self.bars.float(), None
        if config.musical_time:
            steps = row[TokenColumn.BAR_STEPS]
            self.steps = torch.where(steps > 0, steps, self.steps)
            self.reached = torch.maximum(self.reached, self.bars * NO_ONSET + row[TokenColumn.LAST_ONSET] + 1)
            onset = (self.reached % NO_ONSET - 1).clamp_min(0)
            position = self.bars + (onset / self.steps.clamp_min(1)).clamp_max(0.999)
        if config.musical_pitch:
            highest = row[TokenColumn.HIGHEST_PITCH]
            self.pitch = torch.where(highest > 0, (row[TokenColumn.LOWEST_PITCH] + highest) / 2, self.pitch)
            pitch = self.pitch[:, None]
        return position, pitch

    def _attend(self, index: int, layer, hidden_states: torch.Tensor, rotation: torch.Tensor | None) -> torch.Tensor:
        """Attend from one token `(A, 1, C)` to all so far; identical to [`RelativeAttention.forward`]."""
        attention, now = layer.attention, self.length
        rows, heads = len(hidden_states), attention.num_heads
        states = attention.qkv_proj(hidden_states).view(rows, 3 * heads, 1, attention.head_dim)
        query_key, value = states.split([2 * heads, heads], dim=1)
        if rotation is not None:
            query_key = rotate(query_key, rotation)
        query, key = query_key.split(heads, dim=1)  # (A, H, 1, D)
        self.keys[index][:, :, now : now + 1], self.values[index][:, :, now : now + 1] = key, value
        embedding = self.embeddings[index][:, :, self.capacity - now - 1 :]  # (H, D, S)
        bias = torch.bmm(query[:, :, 0].transpose(0, 1), embedding).transpose(0, 1)[:, :, None]  # (A, H, 1, S)
        if self.padding is not None:
            bias = bias.contiguous()
            bias[..., : self.padding.shape[-1]] += self.padding
        attended = scaled_dot_product_attention(
            query,
            self.keys[index][:, :, : now + 1],
            self.values[index][:, :, : now + 1],
            attn_mask=bias,
            scale=attention.scaling,
        )
        return attention.o_proj(attended.view(rows, 1, -1))


def sample_with_generators(
    model,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    generator: Sequence[torch.Generator] | None = None,
    temperatures: torch.Tensor | None = None,
    **model_kwargs,
) -> torch.Tensor:
    """Decode as transformers' sampling does, with one generator per melody, or greedily.

    A decoding loop for `generate(custom_generate=...)`. A token takes one number from 0 to 1, and a melody one number
    of its generator, from which all of these come: what else is in the batch, and for how long, makes no difference.
    Melodies that are done leave the batch once they are an eighth of the rest; logits processors see those that are
    left, in their order.

    Args:
        model: A [`MelodyVAEModel`].
        input_ids: `(B, T)`.
        logits_processor: As `generate` prepares it, like the three that follow and `model_kwargs`.
        stopping_criteria: When a melody is done.
        generation_config: Names the token that pads.
        generator: One for each melody; without, the most likely token is taken.
        temperatures: `(B,)`, of the softmax over tokens, beside the one temperature of `generation_config`.
        model_kwargs: Of `forward`.

    Returns:
        `(B, T')` ids, padded at the end.
    """
    num_melodies, pad = len(input_ids), generation_config.pad_token_id
    sources = [
        torch.Generator(source.device).manual_seed(
            int(torch.randint(2**62, (), generator=source, device=source.device))
        )
        for source in generator or ()
    ]
    rows = list(range(num_melodies))  # (A,) the melodies that are still being written
    copies = None  # of the rows, where the model computes more
    if sources and num_melodies < FEWEST_ROWS:
        copies = torch.arange(FEWEST_ROWS, device=input_ids.device) % num_melodies
        model_kwargs = {
            name: value[copies] if isinstance(value, torch.Tensor) and len(value) == num_melodies else value
            for name, value in model_kwargs.items()
        }
    decoder = (StepDecoder if StepDecoder.is_for(model, model_kwargs) else ForwardDecoder)(model, model_kwargs)
    finished, processors = {}, list(logits_processor)
    top_p = processors.pop() if processors and isinstance(processors[-1], TopPLogitsWarper) else None
    is_done = torch.zeros(num_melodies, dtype=torch.bool, device=input_ids.device)
    numbers = torch.empty(0)
    for step in itertools.count():
        scores = decoder(input_ids if copies is None else input_ids[copies])[: len(rows)].float()  # (A, V)
        for processor in processors:
            scores = processor(input_ids, scores)
        if temperatures is not None:
            scores = scores / temperatures[:, None]
        if top_p is not None:
            scores = keep_most_likely(scores, top_p.top_p, top_p)
        if sources:
            if step % NUMBERS_AT_ONCE == 0:
                numbers = draw_uniform((NUMBERS_AT_ONCE,), [sources[row] for row in rows], scores.device)
            token = choose(scores.softmax(-1), numbers[:, step % NUMBERS_AT_ONCE])
        else:
            token = scores.argmax(-1)
        input_ids = torch.cat([input_ids, token.masked_fill(is_done, pad)[:, None]], dim=-1)
        is_done = is_done | stopping_criteria(input_ids, scores)
        num_left = len(rows) - int(is_done.sum())
        if not num_left:
            break
        if FEWEST_ROWS <= num_left <= 8 / 9 * len(rows) and decoder.can_keep():
            left = (~is_done).nonzero().squeeze(1)
            kept = left.tolist()
            finished |= {rows[at]: input_ids[at] for at in set(range(len(rows))).difference(kept)}
            decoder.keep(left, len(rows))
            for processor in processors:
                if isinstance(processor, MelodyLogitsProcessor | BarCountLogitsProcessor):
                    processor.keep(left, len(is_done))
            input_ids, rows, is_done = input_ids[left], [rows[at] for at in kept], is_done[left]
            temperatures = temperatures if temperatures is None else temperatures[left]
            numbers = numbers[left] if sources else numbers
    finished |= dict(zip(rows, input_ids, strict=True))
    return torch.nn.utils.rnn.pad_sequence(
        [finished[row] for row in range(num_melodies)], batch_first=True, padding_value=pad
    )
