"""Overlapped area and KL divergence of a feature: are melodies like the reference's as those are like one another?

This file stands alone, so that `evaluate.load("metrics/overlapped_area")` can copy it.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import norm

GRID_POINTS = 2000
MARGIN_BANDWIDTHS = 4  # by how much the grid goes beyond the distances
SMALLEST_BANDWIDTH = 4  # points of the grid: distances that hardly vary would have none, and narrower ones alias
SMALLEST_MASS = 1e-12  # of a grid point, so that the divergence is finite

_CITATION = """@article{yang2020evaluation,
  title = {On the evaluation of generative models in music}, author = {Yang, Li-Chia and Lerch, Alexander},
  journal = {Neural Computing and Applications}, year = {2020}, url = {https://doi.org/10.1007/s00521-018-3849-7}
}"""


def checked_vectors(predictions: Sequence, references: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Return both sets as float64 arrays (melodies, size), or say what is wrong with them.

    Raises:
        ValueError: If there are fewer than 3 references (they have at least two distances then) or no predictions,
            vectors differ in length, or a value is not finite.
    """
    if len(predictions) < 1 or len(references) < 3:
        raise ValueError(
            f"need at least 1 prediction and 3 references, got {len(predictions)} and {len(references)} vectors"
        )
    sizes = {len(vector) for vectors in (predictions, references) for vector in vectors}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"vectors must be equally long and not empty, got lengths {sorted(sizes)}")
    first, second = (np.asarray(vectors, dtype=np.float64) for vectors in (predictions, references))
    for values in (first, second):
        for value in values[~np.isfinite(values)]:
            raise ValueError(f"values must be finite, got {value}")
    return first, second


def smoothed(samples: np.ndarray, low: float, step: float, bandwidth: float) -> np.ndarray:
    """Estimate a density by Gaussian kernels, as masses of `GRID_POINTS` grid points from `low`, `step` apart.

    Each sample is divided between the two points next to it, and the grid is convolved once, by FFT: the result of
    `scipy.stats.gaussian_kde` without a kernel for each of a million distances.
    """
    place = (samples - low) / step
    left = np.clip(place.astype(np.int64), 0, GRID_POINTS - 2)
    share = place - left
    masses = np.bincount(left, 1 - share, GRID_POINTS) + np.bincount(left + 1, share, GRID_POINTS)
    frequency = np.fft.rfftfreq(2 * GRID_POINTS)  # twice the grid, so that one end does not leak into the other
    kernel = np.exp(-2 * (np.pi * frequency * bandwidth / step) ** 2)
    masses = np.fft.irfft(np.fft.rfft(masses, 2 * GRID_POINTS) * kernel)[:GRID_POINTS]
    masses = np.maximum(masses, 0)  # rounding
    return masses / masses.sum()


def scott_bandwidth(samples: np.ndarray) -> float:
    """Return Scott's rule for one dimension, which is `scipy.stats.gaussian_kde`'s: n^(-1/5) standard deviations."""
    return float(samples.std(ddof=1) * len(samples) ** -0.2) if len(samples) > 1 else 0.0


def compare_distances(intra: np.ndarray, inter: np.ndarray) -> tuple[float, float]:
    """Return overlapped area and KL(intra || inter) in nats of two sets of distances, shape (n,) each."""
    low, high = float(min(intra.min(), inter.min())), float(max(intra.max(), inter.max()))
    if high == low:  # all distances are one and the same
        return 1.0, 0.0
    widths = [scott_bandwidth(intra), scott_bandwidth(inter)]
    floor = SMALLEST_BANDWIDTH * (high - low) / GRID_POINTS
    widths = [max(width, floor) for width in widths]
    margin = MARGIN_BANDWIDTHS * max(widths)
    step = (high - low + 2 * margin) / (GRID_POINTS - 1)
    p, q = (smoothed(samples, low - margin, step, width) for samples, width in zip((intra, inter), widths, strict=True))
    overlap = float(np.minimum(p, q).sum())
    p, q = (np.maximum(masses, SMALLEST_MASS) for masses in (p, q))
    return overlap, max(float((p * np.log(p / q)).sum() / p.sum()), 0.0)


def overlapped_area(predictions: Sequence[Sequence[float]], references: Sequence[Sequence[float]]) -> dict:
    """Compare a feature of two sets of melodies, as Yang and Lerch (2020, section 3.3) do.

    Two densities are estimated by Gaussian kernels with Scott's bandwidth: of the distances between any two references
    (intra-set), and of those between any prediction and any reference (inter-set); distances are Euclidean. If the
    predictions are like the references, the two agree.

    Their code integrates from the smallest to the largest distance, and takes the divergence at places that differ
    between the two densities; here both are taken over one grid that holds all of their mass.

    Args:
        predictions: One vector for each melody.
        references: One vector for each melody; not one for each prediction.

    Returns:
        `overlapped_area`: 0 to 1, 1 is best. `kl_divergence`: of the inter-set from the intra-set distances, in nats,
        0 is best. `predictions`, `references`: numbers of vectors.

    Raises:
        ValueError: See `checked_vectors`.
    """
    first, second = checked_vectors(predictions, references)
    intra = cdist(second, second)[np.triu_indices(len(second), 1)]
    overlap, divergence = compare_distances(intra, cdist(first, second).ravel())
    return {
        "overlapped_area": overlap,
        "kl_divergence": divergence,
        "predictions": len(first),
        "references": len(second),
    }


def interval_of(
    predictions: Sequence[Sequence[float]],
    references: Sequence[Sequence[float]],
    rounds: int = 100,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Estimate how much `overlapped_area` depends on which melodies were drawn.

    Halves of both sets are drawn without replacement (the delete-half jackknife, Shao and Wu 1989): the result varies
    over halves as it varies over samples of the full size. A bootstrap would draw a melody twice, and its distance from
    itself is 0, which no two melodies' is.

    Returns:
        `overlapped_area` and `kl_divergence`: the ends of the interval around the value of all melodies.

    Raises:
        ValueError: See `checked_vectors`; both sets need 6 vectors at least.
    """
    first, second = checked_vectors(predictions, references)
    if min(len(first), len(second)) < 6:
        raise ValueError(f"an interval needs 6 vectors on each side, got {len(first)} and {len(second)}")
    generator = np.random.default_rng(seed)
    intra, inter = cdist(second, second), cdist(first, second)
    whole = compare_distances(intra[np.triu_indices(len(second), 1)], inter.ravel())
    found = []
    for _ in range(rounds):
        rows = generator.permutation(len(first))[: len(first) // 2]
        columns = generator.permutation(len(second))[: len(second) // 2]
        half = intra[np.ix_(columns, columns)][np.triu_indices(len(columns), 1)]
        found.append(compare_distances(half, inter[np.ix_(rows, columns)].ravel()))
    spread = np.array(found).std(0)
    reach = norm.ppf((1 + level) / 2) * spread
    return {
        "overlapped_area": [max(whole[0] - reach[0], 0.0), min(whole[0] + reach[0], 1.0)],
        "kl_divergence": [max(whole[1] - reach[1], 0.0), whole[1] + float(reach[1])],
    }


class OverlappedArea(evaluate.Metric):
    """Overlapped area and KL divergence of a feature's distances within and between two sets."""

    def _info(self) -> evaluate.MetricInfo:
        vectors = datasets.List(datasets.List(datasets.Value("float64")))
        return evaluate.MetricInfo(
            description=overlapped_area.__doc__ or "",
            citation=_CITATION,
            inputs_description="predictions, references: a list (one row) of vectors, one for each melody",
            features=datasets.Features({"predictions": vectors, "references": vectors}),
            reference_urls=["https://doi.org/10.1007/s00521-018-3849-7"],
        )

    def _compute(self, predictions, references):
        ours, theirs = ([vector for row in rows for vector in row] for rows in (predictions, references))
        return overlapped_area(ours, theirs)
