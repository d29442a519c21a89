"""How like the test split's melodies a set of melodies is, and how much of it is copied from the training split."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from evaluation.intervals import ratio_interval
from evaluation.melody_statistics.melody_statistics import feature_vectors, melody_statistics
from evaluation.originality.originality_index import OriginalityIndex
from evaluation.overlapped_area.overlapped_area import interval_of, overlapped_area
from evaluation.reconstruction import Line, fit_to_grid
from evaluation.two_sample_auc.two_sample_auc import two_sample_auc

FOLDS = 5
FEWEST_FOR_INTERVAL = 6
BINS = 16  # of a feature's histogram
ROUNDS = 50  # of an interval: each is a pass over all pairs of melodies


class MelodySet:
    """Melodies with what is computed of each once.

    Args:
        lines: Melodies in 4/4 on a grid of sixteenths; those of a data set with the `group` of their song.
        bars: Of each.
        num_steps: Length of their grid.
    """

    def __init__(self, lines: Sequence[Line], bars: int, num_steps: int):
        self.bars = bars
        self.num_steps = num_steps
        self.lines = [{**line, **fit_to_grid(line, num_steps), "bars": bars} for line in lines]
        self.features = [feature_vectors(line, bars, num_steps // bars) for line in self.lines]
        self.groups: list[Hashable] = [line.get("group", object()) for line in self.lines]  # without one, its own

    def statistics(self) -> dict[str, Any]:
        """Return the means of the melody statistics."""
        return melody_statistics(self.lines, self.bars, self.num_steps // self.bars)

    def vectors(self, feature: str) -> list[list[float]]:
        """Return one feature of the melodies for which it is defined."""
        return [vector for of in self.features if (vector := of[feature]) is not None]

    def rows(self, sizes: Mapping[str, int]) -> list[list[float | None]]:
        """Write all features of each melody as one row; a feature that is not defined is missing in all its places."""
        return [
            [value for name, size in sizes.items() for value in (of[name] or [None] * size)] for of in self.features
        ]


def overlaps(melodies: MelodySet, reference: MelodySet, seed: int, description: str) -> dict[str, Any]:
    """Compare each feature's distances, as `overlapped_area` does; None where too few melodies have the feature.

    Returns:
        By feature, and as `mean` over the features that could be compared.
    """
    found: dict[str, Any] = {}
    for name in tqdm(reference.features[0], desc=description, leave=False):
        ours, theirs = melodies.vectors(name), reference.vectors(name)
        if min(len(ours), len(theirs)) < FEWEST_FOR_INTERVAL:
            found[name] = None
            continue
        intervals = interval_of(ours, theirs, ROUNDS, seed=seed)
        compared = overlapped_area(ours, theirs)
        found[name] = {**compared, **{f"{key}_interval": ends for key, ends in intervals.items()}}
    compared = [value for value in found.values() if value is not None]
    mean = {
        key: float(np.mean([value[key] for value in compared])) if compared else None
        for key in ("overlapped_area", "kl_divergence")
    }
    return {"features": found, "mean": mean}


def distributions(sets: Mapping[str, MelodySet]) -> dict[str, Any]:
    """Count the values of each feature that is one number, in bins that all sets share.

    Returns:
        By feature, `edges` and the `counts` of each set; the bins reach over the middle 98 % of all values, and what
        lies outside counts in the outermost.
    """
    found = {}
    for name in next(iter(sets.values())).features[0]:
        values = {label: [vector[0] for vector in of.vectors(name) if len(vector) == 1] for label, of in sets.items()}
        pooled = [value for each in values.values() for value in each]
        if not pooled:
            continue
        low, high = np.quantile(pooled, [0.01, 0.99])
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
        counts = {
            label: np.histogram(np.clip(each, edges[0], edges[-1]), edges)[0].tolist() for label, each in values.items()
        }
        found[name] = {"edges": edges.tolist(), "counts": counts}
    return found


def discernibility(melodies: MelodySet, reference: MelodySet, seed: int) -> dict[str, Any] | None:
    """Measure the two-sample AUC over all features; None if there are fewer melodies, or songs of them, than folds."""
    if min(len(set(of.groups)) for of in (melodies, reference)) < FOLDS:
        return None
    sizes = {}
    for name in reference.features[0]:
        vectors = [*reference.vectors(name), *melodies.vectors(name)]
        sizes[name] = len(vectors[0]) if vectors else 1
    groups = [*melodies.groups, *reference.groups]
    return two_sample_auc(melodies.rows(sizes), reference.rows(sizes), FOLDS, seed, groups=groups)


def copied(melodies: MelodySet, index: OriginalityIndex, seed: int, description: str) -> dict[str, Any]:
    """Count what a set has in common with the training split.

    Returns:
        `copied`: share of 4-bar spans that occur there, over all melodies, None if they have no spans; its `interval`;
        `spans`; `melodies_with_copies`: share of them; `longest_bars`: mean and largest number of bars in common.
    """
    reports = [index.report(line) for line in tqdm(melodies.lines, desc=description, leave=False)]
    spans = [report["spans"] for report in reports]
    taken = [report["copied_spans"] for report in reports]
    longest = [report["longest_bars"] for report in reports]
    return {
        "copied": sum(taken) / sum(spans) if sum(spans) else None,
        "interval": ratio_interval(taken, spans, seed) if sum(spans) else None,
        "spans": sum(spans),
        "melodies_with_copies": float(np.mean([count > 0 for count in taken])),
        "longest_bars": {"mean": float(np.mean(longest)), "most": max(longest)},
    }


def quality(melodies: MelodySet, reference: MelodySet, index: OriginalityIndex, seed: int, name: str) -> dict[str, Any]:
    """Compute everything of this module for one set of melodies against the test split's and the training split's."""
    return {
        "melodies": len(melodies.lines),
        "statistics": melodies.statistics(),
        "overlap": overlaps(melodies, reference, seed, f"Features of {name}"),
        "two_sample": discernibility(melodies, reference, seed),
        "originality": copied(melodies, index, seed, f"Spans of {name}"),
    }
