"""The decoding loop of every operation.

Dimension key: B melodies asked for, A melodies still being written, T tokens, S tokens so far, H heads, D head size,
K decoder layers, C hidden size, V vocabulary.
"""

import itertools
from collections.abc import Sequence

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
