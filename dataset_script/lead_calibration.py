"""From utilities to probabilities: how often the likeliest track of a file is the tune, and the floor for a lead.

Everything is cross-validated by group of near-duplicates: utilities come from weights, and probabilities from a
calibration, that were fitted without the file's group.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from dataset_script.labelled_tracks import Tracks
from dataset_script.lead_score import UTILITY_DECIMALS, rival_odds

FOLDS = 5
BINS = 10  # of equal width, for the calibration error
NEWTON_STEPS = 30
RIDGE = 1e-3
FLOORS = tuple(step / 20 for step in range(20))
WANTED_ACCURACY = 0.932  # of the files that keep their lead: the floor is the lowest that reaches it


def fold_of(groups: np.ndarray) -> np.ndarray:
    """Return the fold of each file by a hash of its group, shape (M,)."""
    return np.array(
        [hashlib.blake2b(group.encode(), digest_size=1, key=b"fold").digest()[0] % FOLDS for group in groups]
    )


def lead_of_files(utility: np.ndarray, tracks: Tracks) -> np.ndarray:
    """Return the first track with the highest utility of each file, shape (M,)."""
    order = np.lexsort((np.arange(len(utility)), -utility.round(UTILITY_DECIMALS), tracks.file))
    return order[np.append(True, np.diff(tracks.file[order]) > 0)]


def evidence(utility: np.ndarray, tracks: Tracks) -> tuple[np.ndarray, np.ndarray]:
    """Return what the probability of each file's lead is made from, and whether it is the tune.

    Args:
        utility: of each track, shape (K,); all tracks compete.
        tracks: labelled files.

    Returns:
        Utility, minus the log-odds of the rivals, and 1, shape (M, 3); and shape (M,).
    """
    rivals = rival_odds(utility, np.ones(len(utility), dtype=bool), tracks.file_tracks())
    lead = lead_of_files(utility, tracks)
    columns = np.stack([utility[lead], -rivals[lead], np.ones(len(lead))], axis=1)
    return columns, tracks.is_label[lead]


def fit_logistic(columns: np.ndarray, is_true: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Fit a logistic regression by Newton's method, shape (D,)."""
    fitted = np.zeros(columns.shape[1])
    for _ in range(NEWTON_STEPS):
        chance = 1 / (1 + np.exp(-columns @ fitted))
        gradient = columns.T @ (weight * (chance - is_true)) + RIDGE * fitted
        curvature = (columns.T * (weight * chance * (1 - chance))) @ columns + RIDGE * np.eye(len(fitted))
        fitted = fitted - np.linalg.solve(curvature, gradient)
    return fitted


def probability(columns: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Return the probabilities that a logistic regression gives, shape (M,)."""
    return 1 / (1 + np.exp(-columns @ fitted))


def cross_fitted(columns: np.ndarray, is_true: np.ndarray, weight: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return probabilities, each by a calibration that was fitted to the other folds, shape (M,)."""
    found = np.zeros(len(columns))
    for one in range(FOLDS):
        is_out = fold == one
        found[is_out] = probability(columns[is_out], fit_logistic(columns[~is_out], is_true[~is_out], weight[~is_out]))
    return found


def calibration_error(score: np.ndarray, is_true: np.ndarray) -> float:
    """Return the expected calibration error: the mean over files of |mean score - rate| of their bin of the score."""
    place = np.minimum((score * BINS).astype(np.int64), BINS - 1)
    size = np.bincount(place, minlength=BINS)
    gap = np.abs(np.bincount(place, score, BINS) - np.bincount(place, is_true, BINS))
    return float(gap[size > 0].sum() / len(score))


def reliability(score: np.ndarray, is_true: np.ndarray) -> list[dict[str, float]]:
    """Compare mean score and rate of tunes of the leads in each bin of the score."""
    place = np.minimum((score * BINS).astype(np.int64), BINS - 1)
    return [
        {
            "from": round(one / BINS, 2),
            "files": int(is_in.sum()),
            "mean_score": round(float(score[is_in].mean()), 4),
            "is_tune": round(float(is_true[is_in].mean()), 4),
        }
        for one in range(BINS)
        if (is_in := place == one).any()
    ]


def above_floor(score: np.ndarray, is_true: np.ndarray, floor: float) -> dict[str, Any]:
    """Say how many files have no lead at a floor, and how often the lead of the others is the tune."""
    is_kept = score >= floor
    return {
        "files": len(score),
        "without_lead": round(float((~is_kept).mean()), 4),
        "lead_is_tune": round(float(is_true[is_kept].mean()), 4) if is_kept.any() else None,
    }


def choose_floor(score: np.ndarray, is_true: np.ndarray) -> float:
    """Return the lowest floor at which the lead is the tune in `WANTED_ACCURACY` of the files that keep one."""
    for floor in FLOORS:
        kept = above_floor(score, is_true, floor)["lead_is_tune"]
        if kept is not None and kept >= WANTED_ACCURACY:
            return floor
    return FLOORS[-1]


def describe(score: np.ndarray, is_true: np.ndarray, floor: float) -> dict[str, Any]:
    """Report on the leads of one set of files."""
    return {
        **above_floor(score, is_true, floor),
        "lead_is_tune_without_floor": round(float(is_true.mean()), 4),
        "calibration_error": round(calibration_error(score, is_true), 4),
        "reliability": reliability(score, is_true),
    }
