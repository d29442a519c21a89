"""Form of a melody: what returns in it and when, its intervals, stray notes, rests, phrases and ending.

The features of `evaluation.melody_statistics` describe what a melody is made of; these describe how it is put together,
which is what tells generated melodies from real ones (Dai, Yu and Dannenberg 2022, arXiv:2209.00182). All of them are
the same for a melody in another key.

A melody is a mapping with `pitch` (MIDI numbers), `start` and `duration` (grid steps from the first bar line): lists of
ints, sorted, not overlapping.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

FIGURE_NOTES = 6  # of a figure: six notes, five intervals
LAGS = (1, 2, 3, 4, 6, 8, 12)  # bars between two bars that are compared
UNITS = (2, 4, 8)  # bars of the units that are compared
MAJOR = np.array([1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1], dtype=bool)
INTERVAL_EDGES = np.array([0, 1, 2, 3, 5, 8, 13])  # semitones: unison, second, second, third, fourth, sixth, beyond
ANSWER = 0.5  # likeness of bars from which one is an answer to the other

Melody = Mapping[str, Sequence[int]]
Bar = frozenset[tuple[int, int]]


def likeness(one: Bar, other: Bar) -> float:
    """Return the share of (onset, pitch) pairs that both bars have; two empty bars have nothing in common."""
    either = one | other
    return len(one & other) / len(either) if either else 0.0


def relative(bar: Bar) -> Bar:
    """Write a bar's pitches as distances from that of its first note."""
    first = min(bar)[1] if bar else 0
    return frozenset((onset, pitch - first) for onset, pitch in bar)


def split_into_bars(start: np.ndarray, pitch: np.ndarray, num_bars: int, steps_per_bar: int) -> list[Bar]:
    """Return the (onset within the bar, pitch) pairs of each bar."""
    bars: list[set[tuple[int, int]]] = [set() for _ in range(num_bars)]
    for onset, value in zip(start.tolist(), pitch.tolist(), strict=True):
        bars[onset // steps_per_bar].add((onset % steps_per_bar, value))
    return [frozenset(bar) for bar in bars]


def repetition_of_bars(bars: Sequence[Bar]) -> dict[str, list[float]]:
    """Describe which bars are like which.

    Returns:
        - `bar_likeness`: mean likeness at each of `LAGS`. `bar_rhythm_likeness`: the same of the onsets alone.
        - `bar_returns`: share of bars equal to the one so many bars before, at each of `LAGS`; `bar_returns_anywhere`:
          to any earlier one, and likewise in another register or key.
        - `distinct_bars`: share of bars that are no earlier bar. `longest_run_of_returns`: bars in a row that are equal
          to those some bars before.
        - `unit_likeness`: for each of `UNITS`, the mean likeness of neighbouring units, bar by bar, and the largest
          likeness of two units.
        - `period`: the mean likeness of bars 9 to 12 with bars 1 to 4, and whether bar 1 or 2 is answered.
    """
    rhythms = [frozenset((onset, 0) for onset, _ in bar) for bar in bars]

    def mean_likeness(of: Sequence[Bar], lag: int) -> float:
        values = [likeness(one, other) for one, other in zip(of, of[lag:], strict=False) if one or other]
        return float(np.mean(values)) if values else 0.0

    # Bars that are equal to one so many bars before, or to any before, transposed or not.
    returns = {lag: [bool(one) and one == other for one, other in zip(bars[lag:], bars, strict=False)] for lag in LAGS}
    shapes = [relative(bar) for bar in bars]
    count = max(1, sum(map(bool, bars)))
    again = sum(bool(bar) and bar in bars[:index] for index, bar in enumerate(bars))
    again_moved = sum(bool(bar) and shapes[index] in shapes[:index] for index, bar in enumerate(bars))
    longest = 0
    for of in returns.values():
        run = 0
        for is_return in of:
            run = run + 1 if is_return else 0
            longest = max(longest, run)
    # Units of 2, 4 and 8 bars: how alike neighbours are, and the two that are most alike.
    unit_likeness = []
    for size in UNITS:
        units = [bars[first : first + size] for first in range(0, len(bars) - size + 1, size)]
        pairs = {
            (i, j): float(np.mean([likeness(a, b) for a, b in zip(units[i], units[j], strict=True)]))
            for i in range(len(units))
            for j in range(i + 1, len(units))
        }
        neighbours = [value for (i, j), value in pairs.items() if j == i + 1]
        unit_likeness += [float(np.mean(neighbours)) if neighbours else 0.0, max(pairs.values(), default=0.0)]
    # A period: bars 9 to 12 answer bars 1 to 4.
    answers = [likeness(one, other) for one, other in zip(bars[:4], bars[8:12], strict=False)]
    return {
        "bar_likeness": [mean_likeness(bars, lag) for lag in LAGS],
        "bar_rhythm_likeness": [mean_likeness(rhythms, lag) for lag in LAGS],
        "bar_returns": [float(np.mean(of)) if of else 0.0 for of in returns.values()],
        "bar_returns_anywhere": [again / count, again_moved / count],
        "distinct_bars": [len({bar for bar in bars if bar}) / count],
        "longest_run_of_returns": [float(longest)],
        "unit_likeness": unit_likeness,
        "period": [float(np.mean(answers)) if answers else 0.0, float(max(answers[:2], default=0.0) >= ANSWER)],
    }


def repetition_of_figures(start: np.ndarray, pitch: np.ndarray) -> dict[str, list[float]]:
    """Describe how much of a melody was heard before, wherever in the bar.

    Returns:
        - `figures_heard_before`: share of the figures (`FIGURE_NOTES` notes) whose intervals and distances of onsets
          occurred before, without overlap; the same where the pitches are equal too, and of the intervals alone.
        - `figures_return`: whether any does.
    """
    intervals, gaps = np.diff(pitch), np.diff(start)
    count = len(pitch) - FIGURE_NOTES + 1
    if count < 1:
        return {"figures_heard_before": [0.0, 0.0, 0.0], "figures_return": [0.0]}
    shares = []
    for describe in (
        lambda i: (*intervals[i : i + FIGURE_NOTES - 1].tolist(), *gaps[i : i + FIGURE_NOTES - 1].tolist()),
        lambda i: (*pitch[i : i + FIGURE_NOTES].tolist(), *gaps[i : i + FIGURE_NOTES - 1].tolist()),
        lambda i: tuple(intervals[i : i + FIGURE_NOTES - 1].tolist()),
    ):
        first: dict[tuple[int, ...], int] = {}
        heard = [i - first.setdefault(describe(i), i) >= FIGURE_NOTES for i in range(count)]
        shares.append(float(np.mean(heard)))
    return {"figures_heard_before": shares, "figures_return": [float(shares[0] > 0)]}


def longest_run(flags: np.ndarray) -> int:
    """Return the length of the longest run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return int((edges[1::2] - edges[::2]).max()) if len(edges) else 0


def motion(pitch: np.ndarray) -> dict[str, list[float]]:
    """Describe the intervals of a melody of two notes or more.

    Returns:
        - `interval_histogram`: shares of the sizes from each of `INTERVAL_EDGES` on; `interval_mean`: semitones.
        - `hammering`: notes in the longest run on one pitch. `turns`: share of inner notes at which the direction
          turns. `leaps_resolved`: share of the leaps of a fourth or more that are followed by a step back.
        - `interval_entropy`, `interval_pair_entropy`: bits, of single intervals and of pairs in a row.
    """
    intervals = np.diff(pitch)
    sizes = np.abs(intervals)
    bins = np.bincount(np.searchsorted(INTERVAL_EDGES, sizes, side="right") - 1, minlength=len(INTERVAL_EDGES))
    moving = np.sign(intervals[intervals != 0])
    leaps = np.flatnonzero(sizes[:-1] >= 5)
    resolved = (sizes[leaps + 1] <= 2) & (np.sign(intervals[leaps + 1]) == -np.sign(intervals[leaps]))
    return {
        "interval_histogram": (bins / len(sizes)).tolist(),
        "interval_mean": [float(sizes.mean())],
        "hammering": [float(longest_run(intervals == 0) + 1)],
        "turns": [float((moving[1:] != moving[:-1]).mean()) if len(moving) > 1 else 0.0],
        "leaps_resolved": [float(resolved.mean()) if len(leaps) else 0.0],
        "interval_entropy": [
            entropy_bits(intervals.tolist()),
            entropy_bits(pairwise(intervals.tolist())),
        ],
    }


def entropy_bits(values: Iterable[Hashable]) -> float:
    """Return the entropy of the values' frequencies, in bits."""
    counts = np.array(list(Counter(values).values()), dtype=float)
    share = counts / counts.sum() if len(counts) else counts
    return float(-(share * np.log2(share)).sum()) + 0.0


def tonality(pitch: np.ndarray, duration: np.ndarray) -> dict[str, list[float]]:
    """Describe how a melody keeps to a scale and where it ends in it.

    Returns:
        - `stray_pitch_classes`: pitch classes that occur once; `out_of_scale`: share of the notes outside the best of
          the twelve major scales.
        - `ending_degree`: one-hot, the last note's distance from that scale's tonic in semitones.
        - `pitch_class_entropy`: bits, by time.
    """
    counts = np.bincount(pitch % 12, minlength=12)
    in_scale = np.array([counts[np.roll(MAJOR, tonic)].sum() for tonic in range(12)])
    candidates = (pitch[-1] - np.arange(12)) % 12  # of scales that fit as well, the one of any key alike
    tonic = int(candidates[in_scale[candidates].argmax()])
    weights = np.bincount(pitch % 12, weights=duration, minlength=12)
    share = weights[weights > 0] / weights.sum()
    return {
        "stray_pitch_classes": [float((counts == 1).sum())],
        "out_of_scale": [1 - float(in_scale[tonic] / len(pitch))],
        "ending_degree": np.eye(12)[(pitch[-1] - tonic) % 12].tolist(),
        "pitch_class_entropy": [float(-(share * np.log2(share)).sum()) + 0.0],
    }


def phrasing(start: np.ndarray, duration: np.ndarray, num_bars: int, steps_per_bar: int) -> dict[str, list[float]]:
    """Describe rests, phrases and the ending.

    Returns:
        - `rests`: longest one in bars, share of the time that is silent, rests of a bar or more.
        - `phrases`: phrases per bar, mean notes of one, mean length of its last note in beats, and the share of phrases
          that end in the last bar of a unit of 2 and of 4 bars. A phrase ends at a rest of a beat or a note of two.
        - `ending`: beats of the last note, and bars from its onset to the end of the melody.
        - `onset_histogram`: shares of the onsets in 16 parts of the bar.
        - `gap_entropy`: bits, of the distances of onsets, and of pairs of them.
        - `halves`: notes of the second half less those of the first, as a share of all.
    """
    end = num_bars * steps_per_bar
    ends = start + duration
    beat = max(1, steps_per_bar // 4)
    rests = np.concatenate([start[:1], start[1:] - ends[:-1], [end - ends[-1]]])
    is_end = np.concatenate([(start[1:] - ends[:-1] >= beat) | (duration[:-1] >= 2 * beat), [True]])
    last = np.flatnonzero(is_end)
    bars = start[last] // steps_per_bar
    gaps = np.diff(start).tolist()
    first_half = float((start < end / 2).mean())
    parts = np.bincount(start % steps_per_bar * 16 // steps_per_bar, minlength=16)
    return {
        "rests": [float(rests.max() / steps_per_bar), float(rests.sum() / end), float((rests >= steps_per_bar).sum())],
        "phrases": [
            len(last) / num_bars,
            len(start) / len(last),
            float(duration[last].mean() / beat),
            float((bars % 2 == 1).mean()),
            float((bars % 4 == 3).mean()),
        ],
        "ending": [float(duration[-1] / beat), float((end - start[-1]) / steps_per_bar)],
        "onset_histogram": (parts / len(start)).tolist(),
        "gap_entropy": [entropy_bits(gaps), entropy_bits(pairwise(gaps))],
        "halves": [1 - 2 * first_half],
    }


def form_features(melody: Melody, num_bars: int = 16, steps_per_bar: int = 16) -> dict[str, list[float] | None]:
    """Describe the form of one melody.

    Args:
        melody: See the module.
        num_bars: Its bars.
        steps_per_bar: Grid steps of a bar.

    Returns:
        The features of the functions above by their names; None where the melody has less than two notes.

    Raises:
        ValueError: If a note begins outside the bars, or a size is below 1.
    """
    for name, value in (("num_bars", num_bars), ("steps_per_bar", steps_per_bar)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    pitch, start, duration = (np.asarray(melody[name], dtype=np.int64) for name in ("pitch", "start", "duration"))
    if len(start) and not 0 <= start.min() <= start.max() < num_bars * steps_per_bar:
        raise ValueError(f"a note begins at step {start.max()}, outside {num_bars} bars of {steps_per_bar} steps")
    if len(pitch) < 2:
        return dict.fromkeys(FEATURES)
    return {
        **repetition_of_bars(split_into_bars(start, pitch, num_bars, steps_per_bar)),
        **repetition_of_figures(start, pitch),
        **motion(pitch),
        **tonality(pitch, duration),
        **phrasing(start, duration, num_bars, steps_per_bar),
    }


PARTS = {  # of a melody's form, by themselves in the two-sample test
    "repetition": (
        "bar_likeness",
        "bar_rhythm_likeness",
        "bar_returns",
        "bar_returns_anywhere",
        "distinct_bars",
        "longest_run_of_returns",
        "unit_likeness",
        "period",
        "figures_heard_before",
        "figures_return",
    ),
    "intervals": (
        "interval_histogram",
        "interval_mean",
        "hammering",
        "turns",
        "leaps_resolved",
        "interval_entropy",
    ),
    "tonality": ("stray_pitch_classes", "out_of_scale", "ending_degree", "pitch_class_entropy"),
    "phrases": ("rests", "phrases", "ending", "onset_histogram", "gap_entropy", "halves"),
}
FEATURES = tuple(form_features({"pitch": [60, 62], "start": [0, 1], "duration": [1, 1]}))
