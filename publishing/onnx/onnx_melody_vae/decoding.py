"""The melody decoder, one token after another, and the choice of each.

Dimension key: A melodies still being written, T tokens, S places in the cache, K decoder layers, H heads, D head size,
N bars, C hidden size, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .grammar_state_melody_vae import GrammarState, TokenTable, allowed_scores
from .musical_state_melody_vae import MusicalState

CACHE_BLOCK = 32  # tokens by which the cache grows
LOWEST = np.finfo(np.float32).min


def draw_tokens(scores: np.ndarray, share: np.ndarray, top_p: float) -> np.ndarray:
    """Draw from the most probable tokens that together have `top_p`.

    Args:
        scores: `(A, V)`, logits.
        share: `(A,)`, from 0 to just under 1; uniform ones draw each token as often as its probability says.
        top_p: From 0 to 1; 1 is all.

    Returns:
        `(A,)` tokens.
    """
    probabilities = np.exp(scores - scores.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    # What is less probable than this has no more than `1 - top_p` together, so top-p leaves it out: few are sorted.
    rows, tokens = np.nonzero(probabilities > (1 - top_p) / scores.shape[-1])
    chances = probabilities[rows, tokens].astype(np.float64)
    order = np.lexsort((-chances, rows))
    chances, first = chances[order], np.searchsorted(rows, np.arange(len(scores)))
    running = chances.cumsum()
    running -= (running - chances)[first][rows]
    kept = np.where(running - chances < top_p, running, 0)
    is_before = running <= (share * np.maximum.reduceat(kept, first))[rows]
    return tokens[order][first + np.add.reduceat(is_before.astype(np.int64), first)]


class StepDecoder:
    """Logits of melodies, one token after another; what is carried on lies here.

    Args:
        session: Of `decoder.onnx`.
        config: Of the model.
        table: Of the vocabulary.
        count: Melodies.
        bar_conditions: `(A, N + 1, K, C)`; none for a model without a latent.
    """

    def __init__(
        self, session: Any, config: dict[str, Any], table: TokenTable, count: int, bar_conditions: np.ndarray | None
    ):
        self.session, self.config, self.bar_conditions = session, config, bar_conditions
        heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
        self.names = {each.name for each in session.get_inputs()}  # an input that is never read is left out
        # Keys and values of each layer after each other.
        self.cache = np.zeros((2 * layers, heads, count, 0, config["hidden_size"] // heads), np.float32)
        self.mask = np.zeros((count, 0), np.float32)
        self.length = 0
        self.before: np.ndarray | None = None  # (A,) the token before
        self.music = MusicalState(count, table.opens_bar, table.table, config["musical_time"])

    def __call__(self, token: np.ndarray, is_padding: np.ndarray | None = None) -> np.ndarray:
        """Compute the logits `(A, V)` after one more token `(A,)`; padding is never attended to."""
        if self.length == self.cache.shape[3]:
            self._grow()
        config, now = self.config, self.length
        farthest = config["max_relative_distance"]
        distance = np.clip(np.arange(self.mask.shape[1]) - now + farthest, 0, farthest)
        self.music.advance(token)
        feeds = {"input_ids": token, "distance": distance, "mask": self.mask}
        feeds |= {"musical_position": self.music.position(), "pitch": self.music.pitch}
        before = token if self.before is None else self.before
        feeds["previous_ids"] = np.where(before == config["pad_token_id"], token, before)
        if self.bar_conditions is not None:
            feeds["condition"] = self.bar_conditions[
                np.arange(len(token)), np.clip(self.music.bars + 1, 0, config["max_bars"])
            ]
        for index in range(config["num_hidden_layers"]):
            feeds[f"keys.{index}"], feeds[f"values.{index}"] = self.cache[2 * index], self.cache[2 * index + 1]
        feeds = {name: value for name, value in feeds.items() if name in self.names}
        logits, present = self.session.run(None, feeds)
        self.cache[:, :, :, now] = present
        self.mask[:, now] = 0 if is_padding is None else np.where(is_padding, LOWEST, 0)
        self.length, self.before = now + 1, token
        return logits

    def keep(self, rows: np.ndarray) -> None:
        """Go on with some melodies only."""
        self.cache = np.take(self.cache, rows, axis=2)
        self.mask, self.before = self.mask[rows], None if self.before is None else self.before[rows]
        self.music.keep(rows)
        if self.bar_conditions is not None:
            self.bar_conditions = self.bar_conditions[rows]

    def _grow(self) -> None:
        """Copy the cache into a larger one; its new places are ruled out until they are written."""
        layers, heads, count, capacity, size = self.cache.shape
        cache = np.zeros((layers, heads, count, capacity + CACHE_BLOCK, size), np.float32)
        cache[:, :, :, :capacity] = self.cache
        self.cache = cache
        self.mask = np.concatenate([self.mask, np.full((count, CACHE_BLOCK), LOWEST, np.float32)], axis=1)


def write_melodies(
    decoder: StepDecoder,
    states: list[GrammarState],
    primer: np.ndarray,
    max_length: int,
    generator: Sequence[np.random.Generator] | None = None,
    temperature: np.ndarray | None = None,
    top_p: float = 1.0,
    is_first: np.ndarray | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[list[int]]:
    """Write melodies to their ends, greedily or with a source of random numbers for each.

    Args:
        decoder: Of these melodies.
        states: At their beginning, one for each.
        primer: `(A, T)` the beginnings, padded on the left.
        max_length: Tokens to stop at, the beginning's included.
        generator: One for each melody; without, the most likely token is taken.
        temperature: `(A,)`, of the softmax over tokens.
        top_p: Share of the probability that tokens are drawn from.
        is_first: `(V,)` whether a token may be the first new one; any by default.
        progress: Called before each token with the number of bars that all melodies have begun.

    Returns:
        The ids of each melody, padding included.
    """
    pad, eos = decoder.config["pad_token_id"], decoder.config["eos_token_id"]
    rows, logits = np.arange(len(states)), np.empty(0)
    is_padding = np.logical_and.accumulate(primer == pad, axis=1)
    # Read the primer, a token of all melodies at a time.
    for place, token in enumerate(primer.T):
        logits = decoder(np.ascontiguousarray(token), is_padding[:, place])
        for state, each in zip(states, token.tolist(), strict=True):
            state.advance(each)
    is_done, length, is_primer = np.zeros(len(rows), dtype=bool), primer.shape[1], True
    while length < max_length:
        if progress is not None:
            progress(min(state.begun for state in states))
        if is_primer and is_first is not None:
            logits = np.where(is_first, logits, np.float32(-np.inf))
        # Choose the next token of those that are not done.
        active = np.flatnonzero(~is_done)
        scores = allowed_scores(logits[active], [states[rows[at]] for at in active], is_primer)
        if generator is None:
            token = scores.argmax(-1)
        else:
            scores = scores if temperature is None else scores / temperature[rows[active], None]
            share = np.array([generator[rows[at]].random(dtype=np.float32) for at in active], dtype=np.float64)
            token = draw_tokens(scores, share, top_p)
        # Go on by it; finished melodies get padding.
        for at, each in zip(active, token.tolist(), strict=True):
            states[rows[at]].advance(each)
        following = np.full(len(rows), pad)
        following[active] = token
        is_done[active] = token == eos
        length, is_primer = length + 1, False
        left = len(rows) - int(is_done.sum())
        if not left or length == max_length:
            break
        # Once a ninth is done, rows are dropped: a step costs by its rows.
        if left <= 8 / 9 * len(rows):
            kept = np.flatnonzero(~is_done)
            decoder.keep(kept)
            rows, following, is_done = rows[kept], following[kept], is_done[kept]
        logits = decoder(following)
    return [state.tokens for state in states]
