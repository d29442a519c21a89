"""Which windows of which lines make up each batch: a function of the seed and the batch's number alone."""

import math
from collections.abc import Callable, Iterator
from itertools import islice

import datasets
import numpy as np
import torch
from torch.utils.data import Sampler

from modeling.processing_melody_vae import MAX_PITCH, MIN_PITCH

POOL_ROUNDS = 50  # so many rounds of batches are sorted by length together

Pacing = Callable[[torch.Tensor], torch.Tensor]
"""The share of the data, from the easiest on, that each round of batches draws from."""


class WindowBatches(Sampler):
    """Batches of windows of like length, drawn anew in each epoch.

    Each line gives as many windows as it takes to cover it; in an epoch each window begins at a random bar and is
    transposed by a random interval that keeps it in range. One that would be longer than `max_tokens` ends some bars
    earlier, since the longest few would cost more than all the rest (attention is quadratic).

    A round is one batch for every process. Windows are sorted by length within 50 rounds' worth of a random order, and
    the rounds shuffled again, so that padding is short, lengths come mixed, and processes have equal work. Fewer
    windows than a round are repeated; a rest smaller than a round is left out. Nothing but seed and epoch decides.

    With a curriculum or genre balance, windows are drawn with replacement, so an epoch need not hold all of them.

    Args:
        lines: Columns `bars`, `num_tokens` (of each bar), `low` and `high`; `complexity` for a pacing, `genre` for a
            temperature.
        bars: Length of a window.
        max_tokens: Length of a window in tokens, in the line's own key.
        transpose: Up to so many semitones up or down.
        batch_size: Windows per batch.
        num_batches_multiple: Batches in a round: the number of processes.
        seed: Of everything drawn.
        short_windows: Share of the windows that have a random number of bars, from 1 to `bars`.
        pacing: Of a curriculum from simple lines to complex ones (Hacohen & Weinshall 2019, arXiv:1904.03626).
        genre_temperature: T in p(genre) ~ windows^(1 / T): 1 leaves genres as they are, more brings rare ones forward.
            Lines without a genre count as one more.
    """

    drop_last = True

    def __init__(
        self,
        lines: datasets.Dataset,
        bars: int,
        max_tokens: int,
        transpose: int,
        batch_size: int,
        num_batches_multiple: int,
        seed: int,
        short_windows: float = 0.0,
        pacing: Pacing | None = None,
        genre_temperature: float = 1.0,
    ):
        self.bars = bars
        self.max_tokens = max_tokens
        self.batch_size = batch_size
        self.num_batches_multiple = num_batches_multiple
        self.seed = seed
        self.short_windows = short_windows
        self.pacing = pacing
        self.epoch = 0
        # Bars and tokens of each line, counted up: a window's size is a difference.
        self.num_bars = torch.tensor(lines["bars"][:])
        self.first_bar = cumulate(self.num_bars)  # of each line among the bars of all
        num_tokens = lines.with_format("numpy")["num_tokens"][:]
        self.tokens_before = cumulate(torch.from_numpy(np.concatenate(num_tokens)))  # each bar of all
        self.lowest, self.highest = transposition_limits(lines, transpose)
        # Windows of each line, in the order of complexity for a curriculum.
        windows_per_line = (self.num_bars / bars).ceil().long()
        self.line = torch.arange(len(lines)).repeat_interleave(windows_per_line)  # of each window
        if pacing is not None:
            self.line = self.line[torch.tensor(lines["complexity"][:])[self.line].argsort(stable=True)]
        self.weight = None
        if genre_temperature != 1:
            self.weight = genre_weights(lines["genre"][:], self.line, genre_temperature)
        per_round = batch_size * num_batches_multiple
        self.repeats = math.ceil(per_round / len(self.line))
        self.num_rounds = len(self.line) * self.repeats // per_round

    @property
    def num_windows(self) -> int:
        """Windows in an epoch, before any repetition."""
        return len(self.line)

    @property
    def tokens_per_window(self) -> float:
        """Mean length of a window in tokens."""
        return self.tokens_before[-1].item() / self.num_windows

    def __len__(self) -> int:
        return self.num_rounds * self.num_batches_multiple

    def draw_windows(self, generator: torch.Generator) -> torch.Tensor:
        """Choose the windows of an epoch, in a random order."""
        count = len(self) * self.batch_size
        share = torch.ones(self.num_rounds)
        if self.pacing is not None:
            share = self.pacing(self.epoch * self.num_rounds + torch.arange(self.num_rounds))
        if self.weight is None and bool((share >= 1).all()):
            every = torch.arange(self.num_windows).repeat(self.repeats)
            return every[torch.randperm(len(every), generator=generator)][:count]
        weight = torch.ones(self.num_windows, dtype=torch.float64) if self.weight is None else self.weight
        mass = cumulate(weight)
        limit = mass[(share.double() * self.num_windows).ceil().long().clamp(1, self.num_windows)]  # of each round
        limit = limit.repeat_interleave(self.batch_size * self.num_batches_multiple)
        place = torch.rand(count, generator=generator, dtype=torch.float64) * limit
        return (torch.searchsorted(mass, place, right=True) - 1).clamp_max(self.num_windows - 1)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        """Yield lists of keys of [`MelodyWindows`], round by round."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        line = self.line[self.draw_windows(generator)]
        bars, num_bars = torch.full_like(line, self.bars), self.num_bars[line]
        if self.short_windows:
            is_short = torch.rand(len(line), generator=generator) < self.short_windows
            bars = torch.where(is_short, uniform_integers(torch.ones_like(line), bars, generator), bars)
        first_bar = uniform_integers(torch.zeros_like(line), (num_bars - bars).clamp_min(0), generator)
        semitones = uniform_integers(self.lowest[line], self.highest[line], generator)
        begin = self.first_bar[line] + first_bar
        end = torch.minimum(begin + bars, self.first_bar[line + 1])
        fitting = torch.searchsorted(self.tokens_before, self.tokens_before[begin] + self.max_tokens, right=True) - 1
        end = torch.minimum(end, torch.maximum(fitting, begin + 1))  # one bar at least
        length = self.tokens_before[end] - self.tokens_before[begin]
        per_round = self.batch_size * self.num_batches_multiple
        order = []
        for pool in torch.arange(len(line)).split(POOL_ROUNDS * per_round):
            rounds = pool[length[pool].argsort(stable=True)].view(-1, per_round)
            order.append(rounds[torch.randperm(len(rounds), generator=generator)])
        keys = torch.stack([line, first_bar, first_bar + end - begin, semitones], dim=1)
        for batch in torch.cat(order).view(-1, self.batch_size):
            yield [tuple(key) for key in keys[batch].tolist()]


class EndlessBatches(Sampler):
    """One process's batches of all epochs, from any of them on.

    Args:
        batches: Of all processes.
        rank: Of this process.
        first: The first batch to give, counted over all epochs.
    """

    def __init__(self, batches: WindowBatches, rank: int, first: int):
        self.batches = batches
        self.rank = rank
        self.first = first

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        """Yield keys without end."""
        world = self.batches.num_batches_multiple
        self.batches.epoch, skipped = divmod(self.first, self.batches.num_rounds)
        while True:
            yield from islice(self.batches, skipped * world + self.rank, None, world)
            self.batches.epoch += 1
            skipped = 0


def cumulate(counts: torch.Tensor) -> torch.Tensor:
    """Sum what comes before each of `(N,)` counts, and all of them, `(N + 1,)`."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def transposition_limits(lines: datasets.Dataset, transpose: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Semitones, at most `transpose`, by which each line can go down (not above 0) and up and stay in range, `(N,)`."""
    lowest = (MIN_PITCH - torch.tensor(lines["low"][:])).clamp_min(-transpose)
    highest = (MAX_PITCH - torch.tensor(lines["high"][:])).clamp_max(transpose)
    return lowest, highest


def uniform_integers(low: torch.Tensor, high: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw integers from `low` to `high`, both included, elementwise; the arguments and the result have one shape."""
    return low + (torch.rand(low.shape, generator=generator, dtype=torch.float64) * (high - low + 1)).long()


def genre_weights(genres: list[str | None], line: torch.Tensor, temperature: float) -> torch.Tensor:
    """Weigh windows so that a genre with n of them is drawn in proportion to n^(1 / temperature).

    Args:
        genres: Of each line; None is a genre of its own.
        line: Of each window, `(W,)`.
        temperature: Positive.

    Returns:
        `(W,)`, float64, mean 1.
    """
    _, genre = np.unique([name or "" for name in genres], return_inverse=True)
    genre = torch.from_numpy(genre)[line]
    count = torch.bincount(genre).double()[genre]
    weight = count ** (1 / temperature - 1)
    return weight / weight.mean()
