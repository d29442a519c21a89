"""What votes between pairs of melodies tell: tests with correction, and ranks with intervals.

A vote is a preference from -2 (the first melody by far) to 2 (the second by far), 0 being a tie. A trial has two
systems.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import norm, rankdata, wilcoxon

LEVEL = 0.05
SHUFFLES = 2000
ROUNDS = 500
VOTES_OF_DOUBT = 0.5  # wins that each of two compared systems gets for nothing: no strength is infinite


class Votes:
    """Votes with the systems that they were about.

    Args:
        rows: Each with `first`, `second` (systems), `preference` (-2 to 2) and `voter`.

    Raises:
        ValueError: If there are no votes, a trial is of one system only, or a preference is out of range.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]):
        if not rows:
            raise ValueError("no votes to analyse")
        for row in rows:
            if row["preference"] not in (-2, -1, 0, 1, 2):
                raise ValueError(f"a preference is -2, -1, 0, 1 or 2, got {row['preference']!r}")
            if row["first"] == row["second"]:
                raise ValueError(f"a trial compares two systems, got {row['first']!r} twice")
        self.systems = sorted({row[side] for row in rows for side in ("first", "second")})
        number = {system: index for index, system in enumerate(self.systems)}
        self.first = np.array([number[row["first"]] for row in rows])
        self.second = np.array([number[row["second"]] for row in rows])
        self.preference = np.array([row["preference"] for row in rows], dtype=np.int64)
        self.voters = np.unique([str(row["voter"]) for row in rows], return_inverse=True)[1]

    def __len__(self) -> int:
        return len(self.preference)

    def between(self, one: int, other: int) -> np.ndarray:
        """Return the votes between two systems; positive ones are for `other`."""
        forward = self.preference[(self.first == one) & (self.second == other)]
        return np.concatenate([forward, -self.preference[(self.first == other) & (self.second == one)]])

    def wins(self, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Count wins, (systems, systems): row over column; a tie is half a win for each."""
        count = len(self.systems)
        share = (np.sign(self.preference[chosen]) + 1) / 2  # of the second system
        table = np.zeros((count, count))
        np.add.at(table, (self.second[chosen], self.first[chosen]), share)
        np.add.at(table, (self.first[chosen], self.second[chosen]), 1 - share)
        return table


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that among all of them none is wrongly below the level more often than it says (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min((len(p_values) - rank) * p_values[index], 1.0))
        adjusted[index] = largest
    return adjusted.tolist()


def kruskal_wallis(votes: Votes, seed: int = 0, shuffles: int = SHUFFLES) -> dict[str, float]:
    """Test whether any system is liked more or less than the others.

    Each vote rates two systems, x the one and -x the other, and Kruskal and Wallis's H (1952) compares the systems'
    ratings. The two ratings of a vote are not independent, for which the chi-squared distribution would find
    differences too often: so p comes from the same votes with their signs drawn by lot.

    Returns:
        `statistic`, and `p_value`: the share of draws (and the votes themselves) with a statistic as large.
    """
    system = np.concatenate([votes.second, votes.first])
    sizes = np.bincount(system, minlength=len(votes.systems))
    ratings = np.concatenate([votes.preference, -votes.preference])
    deviation = np.zeros(5)  # of the rank of each rating from the middle; drawing signs leaves the ratings in all alike
    deviation[ratings + 2] = rankdata(ratings) - (len(ratings) + 1) / 2
    total = (deviation[ratings + 2] ** 2).sum()

    def statistic(preference: np.ndarray) -> float:
        rated = deviation[np.concatenate([preference, -preference]) + 2]
        sums = np.bincount(system, weights=rated, minlength=len(sizes))
        return float((len(rated) - 1) * (sums**2 / sizes).sum() / total) if total else 0.0

    generator = np.random.default_rng(seed)
    observed = statistic(votes.preference)
    drawn = [statistic(votes.preference * generator.choice([-1, 1], len(votes))) for _ in range(shuffles)]
    as_large = sum(value >= observed - 1e-9 for value in drawn)
    return {"statistic": observed, "p_value": (as_large + 1) / (shuffles + 1)}


def pairwise(votes: Votes) -> list[dict[str, Any]]:
    """Compare each two systems by Wilcoxon's signed-rank test (ties ranked as Pratt 1959), corrected by Holm."""
    compared = []
    for one, other in combinations(range(len(votes.systems)), 2):
        preference = votes.between(one, other)
        if not len(preference):
            continue
        p_value = 1.0
        if preference.any():
            p_value = float(wilcoxon(preference, zero_method="pratt", method="asymptotic").pvalue)
        compared.append(
            {
                "systems": [votes.systems[one], votes.systems[other]],
                "votes": len(preference),
                "wins": [int((preference < 0).sum()), int((preference > 0).sum())],
                "ties": int((preference == 0).sum()),
                "mean_preference": float(preference.mean()),
                "p_value": p_value,
            }
        )
    for row, adjusted in zip(compared, holm([row["p_value"] for row in compared]), strict=True):
        row["p_value_holm"] = adjusted
    return compared


def bradley_terry(wins: np.ndarray, tolerance: float = 1e-9, most_rounds: int = 10_000) -> np.ndarray:
    """Fit strengths to wins, P(i beats j) = 1 / (1 + exp(s_j - s_i)), by Hunter's (2004) MM algorithm.

    Args:
        wins: (systems, systems), row over column.
        tolerance: Of the largest change in a round.
        most_rounds: Of the algorithm.

    Returns:
        Strengths s, mean 0, shape (systems,). `VOTES_OF_DOUBT` are added between systems that were compared.
    """
    wins = wins + VOTES_OF_DOUBT * ((wins + wins.T) > 0)
    played = wins + wins.T
    strength = np.ones(len(wins))
    for _ in range(most_rounds):
        weights = played / (strength[:, None] + strength[None, :])
        updated = wins.sum(1) / np.where(weights.sum(1) > 0, weights.sum(1), 1)
        updated = np.where(wins.sum(1) > 0, updated, 1.0)
        updated /= np.exp(np.log(updated).mean())
        change = np.abs(np.log(updated / strength)).max()
        strength = updated
        if change < tolerance:
            break
    return np.log(strength)


def ranks(votes: Votes, seed: int = 0, rounds: int = ROUNDS, level: float = 1 - LEVEL) -> list[dict[str, Any]]:
    """Rank the systems by Bradley-Terry strength, with intervals by bootstrap over voters (over votes for one voter).

    Returns:
        The strongest first: `system`, `strength` (logits, mean 0), `interval`, `win_share`: of its votes, ties half.
    """
    wins = votes.wins()
    strength = bradley_terry(wins)
    generator = np.random.default_rng(seed)
    count = int(votes.voters.max()) + 1
    unit = votes.voters if count > 1 else np.arange(len(votes))
    members = [np.flatnonzero(unit == each) for each in range(int(unit.max()) + 1)]
    drawn = []
    for _ in range(rounds):
        chosen = np.concatenate([members[each] for each in generator.integers(0, len(members), len(members))])
        drawn.append(bradley_terry(votes.wins(chosen), tolerance=1e-6))
    ends = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    share = wins.sum(1) / (wins + wins.T).sum(1)
    return [
        {
            "system": votes.systems[index],
            "strength": float(strength[index]),
            "interval": [float(ends[0, index]), float(ends[1, index])],
            "win_share": float(share[index]),
        }
        for index in np.argsort(-strength, kind="stable")
    ]


def analyse(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Compute everything of this module.

    Raises:
        ValueError: See [`Votes`].
    """
    votes = Votes(rows)
    return {
        "votes": len(votes),
        "voters": int(votes.voters.max()) + 1,
        "seed": seed,
        "kruskal_wallis": kruskal_wallis(votes, seed),
        "pairwise": pairwise(votes),
        "bradley_terry": ranks(votes, seed),
    }


def promised_power(votes_per_pair: int, win_share: float, pairs: int, level: float = LEVEL) -> float:
    """Say how often a difference between two systems is found.

    The signed-rank test of votes without degrees is the sign test; this is its power by the normal approximation, with
    the level divided by all pairs, which is Holm's correction at its strictest. Degrees can only help.

    Args:
        votes_per_pair: Votes between the two systems, ties aside.
        win_share: Of the better one, 0.5 to 1.
        pairs: Of systems that are compared.
        level: Of the corrected tests.
    """
    if not 0.5 <= win_share <= 1 or votes_per_pair < 1 or pairs < 1:
        raise ValueError(f"need a share of 0.5 to 1, votes and pairs, got {win_share}, {votes_per_pair} and {pairs}")
    if win_share == 1:
        return 1.0 if 2 * 0.5**votes_per_pair <= level / pairs else 0.0
    critical = norm.isf(level / pairs / 2) / 2  # in standard deviations of votes by lot
    shift = (win_share - 0.5) * votes_per_pair**0.5
    deviation = (win_share * (1 - win_share)) ** 0.5
    return float(norm.cdf((shift - critical) / deviation) + norm.cdf((-shift - critical) / deviation))
