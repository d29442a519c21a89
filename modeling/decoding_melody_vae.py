"""The decoding loop of every operation.

Dimension key: B melodies asked for, A melodies still being written, T tokens, S tokens so far, H heads, D head size,
K decoder layers, C hidden size, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList, TopPLogitsWarper

from .arguments_melody_vae import draw_uniform
from .decoders_melody_vae import ForwardDecoder, StepDecoder
from .logits_process_melody_vae import BarCountLogitsProcessor, MelodyLogitsProcessor
from .prior_melody_vae import FEWEST_ROWS

LOOP_OPTIONS = {"do_sample", "temperature", "top_k", "top_p", "max_length", "max_new_tokens", "logits_processor"}
LOOP_OPTIONS |= {"bars", "scale", "time_signature", "lowest_pitch", "highest_pitch", "noise_level", "generator"}
LOOP_OPTIONS |= {"max_rest", "conditions", "attention_mask", "begin_suppress_tokens", "inputs"}
"""Options of `generate` that the decoding loop knows; for others it is transformers' own."""

NUMBERS_AT_ONCE = 64


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


def draw_likely(probabilities: np.ndarray, share: np.ndarray, top_p: float) -> np.ndarray:
    """Draw as [`choose`] does, from the most probable tokens that together have `top_p`, as transformers keeps them.

    Args:
        probabilities: `(A, V)`.
        share: `(A,)`, from 0 to just under 1.
        top_p: From 0 to 1.

    Returns:
        `(A,)` tokens.
    """
    # What is less probable than this has no more than `1 - top_p` together, so top-p leaves it out: few are sorted.
    least = np.minimum((1 - top_p) / probabilities.shape[-1], probabilities.max(-1, keepdims=True))
    rows, tokens = np.nonzero(probabilities >= least)
    first = np.searchsorted(rows, np.arange(len(probabilities)))

    def sums_within_rows(values: np.ndarray) -> np.ndarray:
        sums = values.cumsum()
        return sums - (sums - values)[first][rows]

    chances = probabilities[rows, tokens].astype(np.float64)
    falling = chances[np.lexsort((-chances, rows))]
    is_kept = sums_within_rows(falling) - falling < max(top_p, 1e-6)  # the most probable one at least
    lowest = np.minimum.reduceat(np.where(is_kept, falling, 1.0), first)  # (A,); equal ones are kept as well
    kept = np.where(chances >= lowest[rows], chances, 0.0)
    is_before = sums_within_rows(kept) <= (share * np.add.reduceat(kept, first))[rows]
    return tokens[first + np.add.reduceat(is_before.astype(np.int64), first)]


class Choice:
    """How tokens are chosen: the most likely one, or drawn by a number from each melody's own source.

    Args:
        generator: One for each melody; none for the most likely token.
        temperatures: `(A,)`, of the softmax over tokens.
        top_p: Share of the probability that tokens are drawn from; all by default.
    """

    def __init__(
        self, generator: Sequence[torch.Generator] | None, temperatures: torch.Tensor | None, top_p: float | None
    ):
        self.temperatures, self.top_p, self.count = temperatures, top_p, 0
        self.sources = [
            torch.Generator(source.device).manual_seed(
                int(torch.randint(2**62, (), generator=source, device=source.device))
            )
            for source in generator or ()
        ]
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
        probabilities, share = scores.softmax(-1), self.numbers[:, place]
        if self.top_p is None:
            return choose(probabilities, share)
        drawn = draw_likely(probabilities.cpu().numpy(), share.cpu().numpy().astype(np.float64), self.top_p)
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
    rows = list(range(num_melodies))  # (A,) the melodies that are still being written
    decoder_class = StepDecoder if StepDecoder.is_for(model, model_kwargs) else ForwardDecoder
    decoder = decoder_class(model, model_kwargs, num_melodies, FEWEST_ROWS if generator else 1)
    finished, processors = {}, list(logits_processor)
    top_p = processors.pop().top_p if processors and isinstance(processors[-1], TopPLogitsWarper) else None
    choice = Choice(generator, temperatures, top_p)
    is_done = torch.zeros(num_melodies, dtype=torch.bool, device=input_ids.device)
    while True:
        scores = decoder(input_ids).float()  # (A, V)
        for processor in processors:
            scores = processor(input_ids, scores)
        token = choice(scores).masked_fill(is_done, pad)
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
            choice.keep(left)
            input_ids, rows, is_done = input_ids[left], [rows[at] for at in kept], is_done[left]
    finished |= dict(zip(rows, input_ids, strict=True))
    return torch.nn.utils.rnn.pad_sequence(
        [finished[row] for row in range(num_melodies)], batch_first=True, padding_value=pad
    )
