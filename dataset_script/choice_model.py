"""Which track of a file is its tune: a conditional logit over its tracks, its calibration, and what names add."""

from __future__ import annotations

import numpy as np

from dataset_script.labelled_tracks import Tracks

RIDGE = 10.0  # chosen by cross-validation on the train files, like the form of the model and the features
NEWTON_STEPS = 50
HINTS = (-1.0, 0.0, 1.0)


def softmax(utility: np.ndarray, file: np.ndarray) -> np.ndarray:
    """Return the probability of each track to be the one chosen in its file, shape (K,)."""
    highest = np.full(file[-1] + 1, -np.inf)
    np.maximum.at(highest, file, utility)
    power = np.exp(utility - highest[file])
    return power / np.bincount(file, power)[file]


def fit_choice(
    columns: np.ndarray, is_label: np.ndarray, file: np.ndarray, weight: np.ndarray, ridge: float = RIDGE
) -> np.ndarray:
    """Fit a conditional logit (McFadden, 1974): the softmax in each file gives the labelled tracks its probability.

    Minimises -sum_m weight_m log(sum of the probabilities of the labelled tracks of file m) + ridge |w|^2 / 2 by
    Newton's method with halved steps.

    Args:
        columns: of each track, shape (K, D).
        is_label: whether the track is labelled, shape (K,); at least one in each file.
        file: file of each track, rising from 0 without gaps, shape (K,).
        weight: of each file, shape (M,).
        ridge: pulls the weights towards 0.

    Returns:
        The weights w of the columns, shape (D,).
    """

    def loss(fitted: np.ndarray) -> float:
        chosen = np.bincount(file, softmax(columns @ fitted, file) * is_label)
        return float(-(weight * np.log(chosen)).sum() + ridge * (fitted @ fitted) / 2)

    fitted = np.zeros(columns.shape[1])
    current = loss(fitted)
    for _ in range(NEWTON_STEPS):
        chance = softmax(columns @ fitted, file)
        wanted = chance * is_label / np.bincount(file, chance * is_label)[file]
        gradient = columns.T @ (weight[file] * (chance - wanted)) + ridge * fitted
        # Of the convex part of the loss only, so that every step goes down: two labels in one file add a concave one.
        mean = np.stack([np.bincount(file, chance * column) for column in columns.T], axis=1)
        curvature = (columns.T * (weight[file] * chance)) @ columns - (mean.T * weight) @ mean
        step = np.linalg.solve(curvature + ridge * np.eye(len(fitted)), gradient)
        before = current
        while (current := loss(fitted - step)) > before and np.abs(step).max() > 1e-9:
            step /= 2
        fitted = fitted - step
        if before - current < 1e-8:
            break
    return fitted


def calibrate(utility: np.ndarray, is_label: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Fit slope and bias (Platt, 1999) so that the logistic of slope * utility + bias is the rate of labels.

    Args:
        utility: of each track, shape (K,).
        is_label: whether it is labelled, shape (K,).
        weight: of each track, shape (K,).
    """
    # A logistic regression is a choice between "yes", of this utility, and "no", of utility 0.
    yes = np.stack([utility, np.ones_like(utility)], axis=1)
    slope, bias = fit_choice(
        np.stack([yes, np.zeros_like(yes)], axis=1).reshape(-1, 2),
        np.stack([is_label, ~is_label], axis=1).ravel(),
        np.repeat(np.arange(len(utility)), 2),
        weight,
        ridge=0.0,
    )
    return float(slope), float(bias)


def fit_names(utility: np.ndarray, tracks: Tracks) -> tuple[float, float]:
    """Estimate what the name of a tune and of an accompaniment add to the utility, in log-odds.

    Nobody has said of named tracks which are the tune, so the tune is a hidden variable: its prior is the softmax of
    the utility without names, and a hint has one distribution for tunes and one for other tracks. Both are found by
    expectation maximisation on the files in which some name hints at something.

    Args:
        utility: without names, shape (K,).
        tracks: the tracks.

    Returns:
        log P(hint | tune) / P(hint | other), less the same for no hint, of a hint of 1 and of -1.
    """
    is_class = tracks.hint[:, None] == np.array(HINTS)
    prior = softmax(utility, tracks.file)
    odds = np.zeros(len(HINTS))
    for _ in range(200):
        chance = softmax(np.log(np.maximum(prior, 1e-12)) + is_class @ odds, tracks.file)
        of_tune = chance @ is_class + 1  # one more of each: Laplace's rule
        of_other = (1 - chance) @ is_class + 1
        odds = np.log(of_tune / of_tune.sum()) - np.log(of_other / of_other.sum())
    return float(odds[2] - odds[1]), float(odds[0] - odds[1])
