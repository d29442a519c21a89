"""Interpolated Kneser-Ney n-gram models over a tokenizer's ids: the floor that a neural model has to beat.

    p_n(w | c) = max(count(c w) - D_n, 0) / count(c) + D_n kinds(c) / count(c) p_{n-1}(w | c without its first token)

with `kinds(c)` the number of different tokens seen after c. At the highest order counts are of tokens in the text; at a
lower one, of different tokens before the n-gram (Kneser and Ney 1995; Chen and Goodman 1999, section 2.8). Below the
unigrams is the uniform distribution, so that every token is possible. D_n = n_1 / (n_1 + 2 n_2), by the numbers of
n-grams counted once and twice (Ney, Essen and Kneser 1994).
"""

import math
from collections.abc import Sequence

import numpy as np
from tqdm.auto import tqdm

UNSEEN_DISCOUNT = 0.5  # where an order has no n-gram that was counted once or twice

Following = dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]]


class NgramModel:
    """An n-gram model of token sequences.

    Args:
        sequences: Ids of each melody, its first token the start of every melody and its last the end.
        order: n; 1 for unigrams.
        vocab_size: Number of ids.

    Raises:
        ValueError: If there is nothing to count, an id is outside the vocabulary, or `order` is below 1.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], order: int, vocab_size: int):
        if order < 1:
            raise ValueError(f"order must be at least 1, got {order}")
        if not any(len(sequence) > 1 for sequence in sequences):
            raise ValueError(f"an n-gram model of {len(sequences)} sequences without a token to predict")
        for token in {token for sequence in sequences for token in sequence}:
            if not 0 <= token < vocab_size:
                raise ValueError(f"ids must be 0 to {vocab_size - 1}, got {token}")
        self.order = order
        self.vocab_size = vocab_size
        counts: dict[tuple[int, ...], int] = {}
        for sequence in sequences:
            for gram in self.grams(sequence):
                counts[gram] = counts.get(gram, 0) + 1
        self.following: list[Following] = []  # of each order from 1
        self.discounts: list[float] = []
        for _ in range(order):
            self.following.insert(0, group_by_context(counts))
            self.discounts.insert(0, discount(counts))
            lower: dict[tuple[int, ...], int] = {}
            for gram in counts:
                lower[gram[1:]] = lower.get(gram[1:], 0) + 1
            counts = lower

    def grams(self, sequence: Sequence[int]) -> list[tuple[int, ...]]:
        """List the n-grams that end with each token but the first; before the first stand copies of it."""
        padded = [sequence[0]] * (self.order - 1) + list(sequence)[1:] if len(sequence) else []
        return [tuple(padded[at : at + self.order]) for at in range(len(padded) - self.order + 1)]

    def distribution(self, context: Sequence[int]) -> np.ndarray:
        """Return the probabilities of the next token, shape (vocab_size,), after a context of any length."""
        probabilities = np.full(self.vocab_size, 1 / self.vocab_size)
        for length in range(min(self.order - 1, len(context)) + 1):
            found = self.following[length].get(tuple(context[len(context) - length :]))
            if found is None:
                break  # what is longer has not been seen either
            tokens, counts = found
            total, reduction = counts.sum(), self.discounts[length]
            probabilities *= reduction * len(tokens) / total
            probabilities[tokens] += (counts - reduction) / total
        return probabilities

    def probability(self, context: tuple[int, ...], token: int) -> float:
        """Return one token's probability, as `distribution` does for all."""
        probability = 1 / self.vocab_size
        for length in range(min(self.order - 1, len(context)) + 1):
            found = self.following[length].get(context[len(context) - length :])
            if found is None:
                break
            tokens, counts = found
            total, reduction = int(counts.sum()), self.discounts[length]
            probability *= reduction * len(tokens) / total
            at = int(np.searchsorted(tokens, token))
            if at < len(tokens) and tokens[at] == token:
                probability += (int(counts[at]) - reduction) / total
        return probability

    def nats(self, sequence: Sequence[int]) -> float:
        """Return -log p of a sequence's tokens after its first, in nats."""
        return -math.fsum(math.log(self.probability(gram[:-1], gram[-1])) for gram in self.grams(sequence))

    def sample(
        self, count: int, start: int, end: int, is_bar_token: np.ndarray, bars: int, seed: int, most_tokens: int = 1024
    ) -> list[list[int]]:
        """Sample melodies of exactly `bars` bars.

        As in the neural model's generation, that a bar ends is one event: before the last bar the end's probability
        goes to the tokens that open a bar, and in it theirs to the end.

        Args:
            count: Melodies.
            start: First token of each.
            end: Last token of each.
            is_bar_token: Whether each token opens a bar, shape (vocab_size,).
            bars: Of each.
            seed: Of the draws.
            most_tokens: A melody ends here at the latest.

        Returns:
            Ids of each melody.
        """
        generator = np.random.default_rng(seed)
        melodies = []
        for _ in tqdm(range(count), desc=f"Sampling a {self.order}-gram model", leave=False):
            ids, begun = [start] * max(self.order - 1, 1), 0
            while len(ids) < most_tokens:
                probabilities = self.distribution(ids[len(ids) - self.order + 1 :])
                probabilities[start] = 0
                ending, opening = probabilities[end], probabilities[is_bar_token].sum()
                if begun == bars:
                    probabilities[is_bar_token] = 0
                    probabilities[end] = ending + opening
                else:
                    probabilities[end] = 0
                    probabilities[is_bar_token] *= (ending + opening) / opening
                token = int(generator.choice(self.vocab_size, p=probabilities / probabilities.sum()))
                ids.append(token)
                begun += bool(is_bar_token[token])
                if token == end:
                    break
            melodies.append(ids[max(self.order - 2, 0) :])
        return melodies


def group_by_context(counts: dict[tuple[int, ...], int]) -> Following:
    """Gather n-grams with one beginning: for each context its tokens, rising, and their counts."""
    grouped: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for gram, count in counts.items():
        grouped.setdefault(gram[:-1], []).append((gram[-1], count))
    return {
        context: tuple(np.array(column) for column in zip(*sorted(pairs), strict=True))  # pyright: ignore[reportReturnType] - always two columns
        for context, pairs in grouped.items()
    }


def discount(counts: dict[tuple[int, ...], int]) -> float:
    """Return what is taken off each count of one order."""
    values = np.fromiter(counts.values(), dtype=np.int64)
    once, twice = int((values == 1).sum()), int((values == 2).sum())
    return once / (once + 2 * twice) if once else UNSEEN_DISCOUNT
