"""How like the test split's melodies a set of melodies is, and how much of it is copied from the training split."""

import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from evaluation.form import FEATURES, PARTS, form_features
from evaluation.intervals import ratio_interval
from evaluation.reconstruction import Line, fit_to_grid
from metrics.melody_statistics.melody_statistics import feature_vectors, melody_statistics
from metrics.originality.originality_index import OriginalityIndex
from metrics.overlapped_area.overlapped_area import interval_of, overlapped_area
from metrics.two_sample_auc.two_sample_auc import two_sample_auc

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
        self.form = [form_features(line, bars, num_steps // bars) for line in self.lines]
        self.groups: list[Hashable] = [line.get("group", object()) for line in self.lines]  # without one, its own

    def statistics(self) -> dict[str, Any]:
        """Return the means of the melody statistics."""
        return melody_statistics(self.lines, self.bars, self.num_steps // self.bars)

    def vectors(self, feature: str) -> list[list[float]]:
        """Return one feature of the melodies for which it is defined."""
        return [vector for of in self.features if (vector := of[feature]) is not None]

    def form_means(self) -> dict[str, list[float]]:
        """Return the mean of each feature of form over the melodies that have one."""
        means = {}
        for name in FEATURES:
            defined = [vector for of in self.form if (vector := of[name]) is not None]
            if defined:
                means[name] = np.mean(defined, axis=0).tolist()
        return means

    def rows(self, sizes: Mapping[str, int]) -> list[list[float | None]]:
        """Write features of each melody as one row; a feature that is not defined is missing in all its places."""
        return [
            [value for name, size in sizes.items() for value in (of[name] or [None] * size)]
            for of in self.features_and_form()
        ]

    def features_and_form(self) -> list[dict[str, list[float] | None]]:
        """Return all features of each melody."""
        return [{**features, **form} for features, form in zip(self.features, self.form, strict=True)]


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
    """Measure the two-sample AUC; None if there are fewer melodies, or songs of them, than folds.

    Returns:
        Of `two_sample_auc` over all features, those of form included; `parts`: the `auc` over some of them, which says
        what gives the melodies away: `statistics` (the features of the overlapped areas) and the parts of form.
    """
    if min(len(set(of.groups)) for of in (melodies, reference)) < FOLDS:
        return None
    sizes = {}
    for name in (*reference.features[0], *FEATURES):
        vectors = [of[name] for of in itertools.chain(*(each.features_and_form() for each in (reference, melodies)))]
        sizes[name] = next((len(vector) for vector in vectors if vector is not None), 1)
    groups = [*melodies.groups, *reference.groups]

    def measure(names: Iterable[str]) -> dict[str, Any]:
        chosen = {name: sizes[name] for name in names}
        return two_sample_auc(melodies.rows(chosen), reference.rows(chosen), FOLDS, seed, groups=groups)

    parts = {"statistics": tuple(reference.features[0]), **PARTS}
    return {**measure(sizes), "parts": {name: measure(names)["auc"] for name, names in parts.items()}}


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
        "form": melodies.form_means(),
        "overlap": overlaps(melodies, reference, seed, f"Features of {name}"),
        "two_sample": discernibility(melodies, reference, seed),
        "originality": copied(melodies, index, seed, f"Spans of {name}"),
    }
