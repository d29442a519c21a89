"""Two-sample AUC: can a classifier tell generated melodies from real ones?

This file stands alone, so that `evaluate.load("metrics/two_sample_auc")` can copy it.
"""

from collections.abc import Hashable, Sequence

import datasets
import evaluate
import numpy as np
from scipy.stats import norm, rankdata
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedGroupKFold

SMALLEST_LEAF = 5  # melodies; with scikit-learn's 20, sets of a few dozens would never be divided

_CITATION = """@inproceedings{lopezpaz2017revisiting,
  title = {Revisiting Classifier Two-Sample Tests}, author = {Lopez-Paz, David and Oquab, Maxime},
  booktitle = {ICLR}, year = {2017}, url = {https://arxiv.org/abs/1610.06545}
}"""


def area_under_curve(scores: np.ndarray, is_prediction: np.ndarray) -> float:
    """Return the share of (prediction, reference) pairs in which the prediction scores higher; a tie is a half."""
    ranks = rankdata(scores)
    positive = int(is_prediction.sum())
    negative = len(scores) - positive
    return float((ranks[is_prediction].sum() - positive * (positive + 1) / 2) / (positive * negative))


def checked_vectors(
    predictions: Sequence[Sequence[float | None]],
    references: Sequence[Sequence[float | None]],
    folds: int,
    groups: Sequence[Hashable] | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the features of all melodies `(N, F)`, which are predictions `(N,)`, and the number of each one's group.

    Raises:
        ValueError: See [`two_sample_auc`].
    """
    smallest = min(len(predictions), len(references))
    if folds < 2 or smallest < folds:
        raise ValueError(
            f"{folds} folds need 2 or more folds and as many melodies on each side, "
            f"got {len(predictions)} predictions and {len(references)} references"
        )
    sizes = {len(vector) for vectors in (predictions, references) for vector in vectors}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"vectors must be equally long and not empty, got lengths {sorted(sizes)}")
    features = np.array([*predictions, *references], dtype=np.float64)  # None becomes NaN
    for value in features[np.isinf(features)]:
        raise ValueError(f"values must be finite or missing, got {value}")
    is_prediction = np.arange(len(features)) < len(predictions)
    groups = range(len(features)) if groups is None else groups
    if len(groups) != len(features):
        raise ValueError(f"{len(features)} melodies need as many groups, got {len(groups)}")
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    group_of = np.array([numbers[group] for group in groups])
    fewest = min(len(set(group_of[side])) for side in (is_prediction, ~is_prediction))
    if fewest < folds:
        raise ValueError(f"{folds} folds need as many groups of melodies on each side, got {fewest}")
    return features, is_prediction, group_of


def two_sample_auc(
    predictions: Sequence[Sequence[float | None]],
    references: Sequence[Sequence[float | None]],
    folds: int = 5,
    seed: int = 0,
    rounds: int = 1000,
    level: float = 0.95,
    groups: Sequence[Hashable] | None = None,
) -> dict[str, float | int | list[float]]:
    """Train a classifier to tell two sets apart, and measure it on melodies that it has not been trained on.

    Gradient-boosted trees (scikit-learn's, with leaves of `SMALLEST_LEAF` melodies or more) are trained on all folds
    but one and asked about that one, fold by fold (the classifier two-sample test of Lopez-Paz and Oquab 2017, with the
    area under the curve for its accuracy, so that the sets may differ in size). The curve is drawn within each fold,
    and the areas are averaged: scores of different classifiers are not on one scale.

    Args:
        predictions: One vector of features for each generated melody; None or NaN where one is undefined.
        references: One vector for each real melody; not one for each prediction.
        folds: Of the cross-validation.
        seed: Of the folds and the bootstrap.
        rounds: Of the bootstrap over melodies, within each fold.
        level: Of the interval.
        groups: Of the predictions, then of the references: melodies of one group, such as the windows of a song, are
            always in one fold, or a classifier would know songs again; each melody is its own group by default.

    Returns:
        `auc`: 0.5 if the sets cannot be told apart, 1 if always; `interval`: for melodies drawn again, the classifiers
        kept. `p_value`: of the Mann-Whitney test that scores are alike, folds combined by Stouffer's rule (one-sided).
        `predictions`, `references`: melodies.

    Raises:
        ValueError: If a side has fewer melodies or groups than there are folds, vectors differ in length, a value is
            infinite, or `groups` is of another length.
    """
    features, is_prediction, group_of = checked_vectors(predictions, references, folds, groups)
    generator = np.random.default_rng(seed)
    areas, deviations, drawn = [], [], np.zeros(rounds)
    splits = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    # Melodies of a group are never on both sides of a fold.
    for train, test in splits.split(features, is_prediction, group_of):
        classifier = HistGradientBoostingClassifier(
            min_samples_leaf=SMALLEST_LEAF, early_stopping=False, random_state=seed
        )
        classifier.fit(features[train], is_prediction[train])
        scores, truth = classifier.predict_proba(features[test])[:, 1], is_prediction[test]
        ours, theirs = scores[truth], scores[~truth]
        areas.append(area_under_curve(scores, truth))
        # How far the area is from chance, in standard deviations of the rank-sum test.
        variance = (len(scores) + 1) / (12 * len(ours) * len(theirs))
        deviations.append((areas[-1] - 0.5) / variance**0.5)
        # The bootstrap draws melodies of both sets again, as weights of who wins against whom.
        wins = (ours[:, None] > theirs[None, :]) + 0.5 * (ours[:, None] == theirs[None, :])
        weights = [generator.multinomial(count, np.full(count, 1 / count), size=rounds) / count for count in wins.shape]
        drawn += np.einsum("ri,ij,rj->r", weights[0], wins, weights[1], optimize=True) / folds
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return {
        "auc": float(np.mean(areas)),
        "interval": [float(low), float(high)],
        "p_value": float(norm.sf(sum(deviations) / folds**0.5)),
        "predictions": len(predictions),
        "references": len(references),
    }


class TwoSampleAUC(evaluate.Metric):
    """Cross-validated AUC of a classifier between two sets of melodies."""

    def _info(self) -> evaluate.MetricInfo:
        vectors = datasets.List(datasets.List(datasets.Value("float64")))
        return evaluate.MetricInfo(
            description=two_sample_auc.__doc__ or "",
            citation=_CITATION,
            inputs_description="predictions, references: a list (one row) of vectors, one for each melody",
            features=datasets.Features({"predictions": vectors, "references": vectors}),
            reference_urls=["https://arxiv.org/abs/1610.06545"],
        )

    def _compute(self, predictions, references, folds: int = 5, seed: int = 0, groups=None):
        ours, theirs = ([vector for row in rows for vector in row] for rows in (predictions, references))
        return two_sample_auc(ours, theirs, folds=folds, seed=seed, groups=groups)
