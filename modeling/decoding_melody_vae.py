"""The decoding loop of every operation.

Dimension key: B melodies asked for, A melodies still being written, T tokens, S tokens so far, H heads, D head size,
K decoder layers, C hidden size, V vocabulary.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from .arguments_melody_vae import draw_uniform
from .cache_melody_vae import CACHE_NAME
from .decoders_melody_vae import ForwardDecoder, StepDecoder
from .logits_process_melody_vae import BarCountLogitsProcessor, MelodyLogitsProcessor
from .prior_melody_vae import FEWEST_ROWS

LOOP_OPTIONS = {"do_sample", "temperature", "top_k", "top_p", "max_length", "max_new_tokens", "logits_processor"}
LOOP_OPTIONS |= {"bars", "scale", "time_signature", "lowest_pitch", "highest_pitch", "noise_level", "generator"}
LOOP_OPTIONS |= {"max_rest", "conditions", "attention_mask", "begin_suppress_tokens", "inputs"}
"""Options of `generate` that the decoding loop knows; for others it is transformers' own."""

NUMBERS_AT_ONCE = 64
ROUNDING = 1e-5  # of sums of probabilities in single precision: three times what the released model showed


class CloseCallError(ArithmeticError):
    """A draw that rounding might decide otherwise."""


def sample_categorical(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Draw from categorical distributions by inverse transform sampling.

    Args:
        weights: `(B, V)`, none negative.
        uniform: `(B,)` uniform numbers, from 0 to just under 1.

    Returns:
        `(B,)` indices; never one without weight.
    """
    sums = weights.cumsum(-1)
    return torch.searchsorted(sums, uniform[:, None].to(sums) * sums[:, -1:], right=True).squeeze(1)


def sample_top_p(probabilities: np.ndarray, uniform: np.ndarray, top_p: float, rounding: float = 0.0) -> np.ndarray:
    """Draw as [`sample_categorical`] does, from the tokens that top-p keeps in transformers.

    Args:
        probabilities: `(A, V)`.
        uniform: `(A,)` uniform numbers, from 0 to just under 1.
        top_p: From 0 to 1.
        rounding: How exact the probabilities are; 0 for exact.

    Returns:
        `(A,)` tokens.

    Raises:
        CloseCallError: If other tokens might be drawn, were the probabilities rounded otherwise.
    """
    # What is less probable than this has no more than `1 - top_p` together, so top-p leaves it out: few are sorted.
    least = np.minimum((1 - top_p) / probabilities.shape[-1], probabilities.max(-1, keepdims=True))
    rows, tokens = np.nonzero(probabilities >= least)
    first = np.searchsorted(rows, np.arange(len(probabilities)))

    def sums_within_rows(values: np.ndarray) -> np.ndarray:
        sums = values.cumsum()
        return sums - (sums - values)[first][rows]

    # Of each kept token, the probability of those of its row that are more probable.
    chances = probabilities[rows, tokens].astype(np.float64)
    falling = chances[np.lexsort((-chances, rows))]
    before = sums_within_rows(falling) - falling

    def draw(top_p: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        is_kept = before < max(top_p, 1e-6)  # the most probable one at least
        lowest = np.minimum.reduceat(np.where(is_kept, falling, 1.0), first)  # (A,); equal ones are kept as well
        kept = np.where(chances >= lowest[rows], chances, 0.0)
        beyond = sums_within_rows(kept) - (uniform * np.add.reduceat(kept, first))[rows]
        return first + np.add.reduceat((beyond <= 0).astype(np.int64), first), beyond, lowest[rows]

    # A draw that other rounding might change is refused.
    drawn, beyond, lowest = draw(top_p)
    if rounding:
        is_like_last = np.abs(chances - lowest) < rounding * lowest
        if (np.abs(beyond) < rounding).any() or np.add.reduceat(is_like_last.astype(np.int64), first).max() > 1:
            raise CloseCallError
        is_cut_close = (np.abs(before - top_p) < rounding).any()
        if is_cut_close and any((draw(top_p + other)[0] != drawn).any() for other in (-rounding, rounding)):
            raise CloseCallError
    return tokens[drawn]


class TokenSampler:
    """How tokens are chosen: the most likely one, or drawn by a number from each melody's own source.

    Args:
        sources: One for each melody; none for the most likely token.
        temperatures: `(A,)`, of the softmax over tokens.
        top_p: Share of the probability that tokens are drawn from; all by default.
        rounding: As in [`sample_top_p`].
    """

    def __init__(
        self,
        sources: Sequence[torch.Generator],
        temperatures: torch.Tensor | None,
        top_p: float | None,
        rounding: float = 0.0,
    ):
        self.temperatures, self.top_p, self.rounding, self.count = temperatures, top_p, rounding, 0
        self.sources = list(sources)
        self.numbers = torch.empty(0)

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """Choose from `scores` `(A, V)`; returns tokens `(A,)`."""
        if not self.sources:
            return scores.argmax(-1)
        if self.temperatures is not None:
            scores = scores / self.temperatures[:, None]
        place, self.count = self.count % NUMBERS_AT_ONCE, self.count + 1
        if place == 0:
            self.numbers = draw_uniform((NUMBERS_AT_ONCE,), self.sources, scores.device)
        probabilities, uniform = scores.softmax(-1), self.numbers[:, place]
        if self.top_p is None:
            drawn = sample_categorical(probabilities, uniform)
            ways = (-self.rounding, self.rounding) if self.rounding else ()
            if any((sample_categorical(probabilities, uniform + way) != drawn).any() for way in ways):
                raise CloseCallError
            return drawn
        uniforms = uniform.cpu().numpy().astype(np.float64)
        drawn = sample_top_p(probabilities.cpu().numpy(), uniforms, self.top_p, self.rounding)
        return torch.from_numpy(drawn).to(scores.device)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with some melodies only."""
        self.temperatures = self.temperatures if self.temperatures is None else self.temperatures[rows]
        if self.sources:
            self.sources, self.numbers = [self.sources[row] for row in rows.tolist()], self.numbers[rows]


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
    Products of fewer than `FEWEST_ROWS` rows round otherwise, and are several times faster: where that may decide which
    token is drawn, the melodies are drawn anew with as many rows. How much it is was measured with a released model
    (`ROUNDING`); one whose weights are many times larger rounds more, and a melody of it may differ in a batch.

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
    processors, pad = list(logits_processor), generation_config.pad_token_id
    top_p = processors.pop().top_p if processors and isinstance(processors[-1], TopPLogitsWarper) else None
    seeds = [int(torch.randint(2**62, (), generator=source, device=source.device)) for source in generator or ()]

    decoder_class = StepDecoder if StepDecoder.is_for(model, model_kwargs) else ForwardDecoder

    def draw(fewest_rows: int, rounding: float = 0.0) -> torch.Tensor:
        inputs = {**model_kwargs, CACHE_NAME: copy.deepcopy(model_kwargs.get(CACHE_NAME))} if rounding else model_kwargs
        decoder = decoder_class(model, inputs, len(input_ids), fewest_rows)
        sources = [
            torch.Generator(source.device).manual_seed(seed)
            for source, seed in zip(generator or (), seeds, strict=True)
        ]
        own = [copy.copy(each) for each in processors] if rounding else processors
        sampler = TokenSampler(sources, temperatures, top_p, rounding)
        # A seventh less time for one melody; what `forward` calls may have hooks that do not know inference mode.
        with torch.inference_mode() if decoder_class is StepDecoder else torch.no_grad():
            ids = decode(decoder, input_ids, own, stopping_criteria, sampler, pad)
        return ids.clone()  # a tensor of the caller's mode

    is_few = generator and len(input_ids) < FEWEST_ROWS and decoder_class is StepDecoder
    parts = [*processors, *stopping_criteria]
    if is_few and (rounding := rounding_of(model, parts, generation_config, temperatures)):
        try:
            return draw(1, rounding)
        except CloseCallError:
            pass
    return draw(FEWEST_ROWS if generator else 1)


def rounding_of(model, parts: Sequence[Any], generation_config: GenerationConfig, temperatures: Any) -> float:
    """Tell by how much probabilities may differ with the number of rows; 0 where melodies cannot be drawn twice.

    They cannot where one of `parts`, which look at each token, may have a memory, or precision is another one.
    """
    known = {MelodyLogitsProcessor, BarCountLogitsProcessor, TemperatureLogitsWarper}
    if not {type(part) for part in parts} <= known | {MaxLengthCriteria, EosTokenCriteria}:
        return 0.0
    if model.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return 0.0
    if any(each.dtype != torch.float32 or type(each) is not torch.nn.Parameter for each in model.parameters()):
        return 0.0
    lowest = (generation_config.temperature or 1.0) * (1.0 if temperatures is None else float(temperatures.min()))
    return ROUNDING / min(lowest, 1.0)


def decode(
    decoder: ForwardDecoder,
    input_ids: torch.Tensor,
    processors: Sequence[Any],
    stopping_criteria: StoppingCriteriaList,
    sampler: TokenSampler,
    pad: int,
) -> torch.Tensor:
    """Choose one token after another until all melodies are done, see [`sample_with_generators`].

    Melodies that are done leave the batch once they are an eighth of the rest; logits processors see those that are
    left, in their order.
    """
    rows = list(range(len(input_ids)))  # (A,) the melodies that are still being written
    finished, is_done = {}, torch.zeros(len(rows), dtype=torch.bool, device=input_ids.device)
    while True:
        scores = decoder(input_ids).float()  # (A, V)
        for processor in processors:
            scores = processor(input_ids, scores)
        token = sampler(scores).masked_fill(is_done, pad)
        input_ids = torch.cat([input_ids, token[:, None]], dim=-1)
        is_done = is_done | stopping_criteria(input_ids, scores)
        num_left = len(rows) - int(is_done.sum())
        if not num_left:
            break
        if num_left <= 8 / 9 * len(rows) and decoder.can_keep(num_left):
            left = (~is_done).nonzero().squeeze(1)
            kept = left.tolist()
            finished |= {rows[at]: input_ids[at] for at in set(range(len(rows))).difference(kept)}
            for part in (decoder, *processors):
                if isinstance(part, ForwardDecoder | MelodyLogitsProcessor | BarCountLogitsProcessor):
                    part.keep(left, len(rows))
            sampler.keep(left)
            input_ids, rows, is_done = input_ids[left], [rows[at] for at in kept], is_done[left]
    finished |= dict(zip(rows, input_ids, strict=True))
    in_order = [finished[row] for row in range(len(finished))]
    return torch.nn.utils.rnn.pad_sequence(in_order, batch_first=True, padding_value=pad)
