"""What lies between and around latents: is the way from one melody to another smooth, is the latent local?"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from tqdm.auto import tqdm

from evaluation.reconstruction import Line, fit_to_grid
from metrics.note_f1.note_f1 import note_f1
from modeling.interpolation_melody_vae import slerp
from modeling.melody_line_melody_vae import steps_per_bar

AMOUNTS = (0.5, 1.0, 2.0, 4.0, 8.0)  # of the posterior's standard deviation


def distance(one: Line, other: Line, num_steps: int) -> float:
    """Return 1 - note F1 of two melodies: 0 for the same onsets and pitches, 1 for none in common."""
    return 1 - note_f1([one], [other], num_steps)["f1"]


def describe_path(path: Sequence[Line], num_steps: int) -> dict[str, Any]:
    """Measure one way from a melody to another.

    Returns:
        `from_start`, `from_end`: distance of each point from the two ends. `steps`: from each point to the next.
        `largest_share`: the largest step's share of all steps together (1 over their number if they are even, 1 if
        there is one jump); None if nothing moves. `order`: Spearman's correlation of the place on the way with
        `from_start` - `from_end`; 1 if every step leads on. None where these are all equal.
    """
    from_start = [distance(point, path[0], num_steps) for point in path]
    from_end = [distance(point, path[-1], num_steps) for point in path]
    steps = [distance(one, other, num_steps) for one, other in pairwise(path)]
    progress = np.subtract(from_start, from_end)
    moves = np.ptp(progress) > 0
    return {
        "from_start": from_start,
        "from_end": from_end,
        "steps": steps,
        "largest_share": max(steps) / sum(steps) if sum(steps) else None,
        "order": float(spearmanr(np.arange(len(path)), progress).statistic) if moves else None,
    }


def mixed_path(start: Line, end: Line, steps: int, num_steps: int, generator: np.random.Generator) -> list[dict]:
    """Go from one melody to another without a model: each grid step is the one's or the other's.

    The share of the other's grows from point to point (MusicVAE's baseline, Roberts et al. 2018, section 5.2, with one
    draw for the whole way, so that no step goes back).
    """
    threshold = generator.random(num_steps)
    events = [
        dict(zip(line["start"], zip(line["pitch"], line["duration"], strict=True), strict=True))
        for line in (start, end)
    ]
    path = []
    for weight in np.linspace(0, 1, steps):
        choice = [events[int(threshold[at] < weight)] for at in range(num_steps)]
        taken = {at: notes[at] for at, notes in enumerate(choice) if at in notes}
        onsets = list(taken)
        limits = [*onsets[1:], num_steps]
        path.append(
            {
                "pitch": [taken[at][0] for at in onsets],
                "start": onsets,
                "duration": [min(taken[at][1], limit - at) for at, limit in zip(onsets, limits, strict=False)],
            }
        )
    return path


def average(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Average the descriptions of paths, each value over the paths that have it."""
    found = {}
    for name in rows[0]:
        values = [row[name] for row in rows if row[name] is not None]
        found[name] = np.mean(values, axis=0).tolist() if values else None
    return found


class LatentSpace:
    """A model with a latent, the posteriors of some melodies, and a way to price melodies.

    Args:
        model: From `AutoModel`.
        processor: Its processor.
        latent_mean: Posterior means of the melodies, shape (M, Z).
        latent_log_variance: Shape (M, Z).
        bars: Of each melody.
        num_steps: Length of their grid.
        batch_size: Melodies decoded at a time.
        seed: Of everything drawn.
    """

    def __init__(
        self, model, processor, latent_mean, latent_log_variance, bars: int, num_steps: int, batch_size: int, seed: int
    ):
        self.model = model
        self.processor = processor
        self.mean = latent_mean
        self.deviation = (0.5 * latent_log_variance).exp()
        self.bars = bars
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.seed = seed

    def decode(self, latents: torch.Tensor, description: str) -> list[dict]:
        """Decode latents (M, Z) greedily into lines on the grid."""
        lines = []
        for part in tqdm(latents.split(self.batch_size), desc=description, unit=" batches"):
            decoded = self.processor.to_lines(self.model.decode(part, bars=self.bars))
            lines += [{**line, **fit_to_grid(line, self.num_steps)} for line in decoded]
        return lines

    def interpolation(self, pairs: int, steps: int, price: Callable[[Sequence[Line]], float | None]) -> dict[str, Any]:
        """Walk between melodies on the great circle, and compare with a way through the data.

        Args:
            pairs: Of melodies: the first and the second, the third and the fourth, and so on.
            steps: Points on each way, ends included.
            price: Bits per note of melodies under a model that knows nothing of this one; None without notes.

        Returns:
            `latent`, `mix`: averages of `describe_path`, and `bits_per_note` at each point (the curve of MusicVAE's
            figure on interpolation); both ways begin and end at the same melodies, the decoded ends. `even_share`: what
            `largest_share` is of a way with even steps. `pairs`, `points`.
        """
        pairs = min(pairs, len(self.mean) // 2)
        weight = torch.linspace(0, 1, steps, device=self.mean.device, dtype=self.mean.dtype)
        latents = torch.cat([slerp(self.mean[2 * pair], self.mean[2 * pair + 1], weight) for pair in range(pairs)])
        lines = self.decode(latents, "Interpolating")
        generator = np.random.default_rng(self.seed)
        paths: dict[str, list[list]] = {"latent": [], "mix": []}
        for pair in range(pairs):
            path = lines[pair * steps : (pair + 1) * steps]
            paths["latent"].append(path)
            mixed = mixed_path(path[0], path[-1], steps, self.num_steps, generator)
            paths["mix"].append([{**path[0], **point} for point in mixed])
        return {
            "pairs": pairs,
            "points": steps,
            "even_share": 1 / (steps - 1),
            **{
                name: {
                    **average([describe_path(path, self.num_steps) for path in way]),
                    "bits_per_note": [price([path[point] for path in way]) for point in range(steps)],
                }
                for name, way in paths.items()
            },
        }

    def noise(self, melodies: int) -> dict[str, Any]:
        """Move latents in a random direction by so many of the posterior's standard deviations, and see what changes.

        Returns:
            For each of `AMOUNTS` the mean distance of what is decoded from what the mean decodes to.
        """
        mean, deviation = self.mean[:melodies], self.deviation[:melodies]
        generator = torch.Generator().manual_seed(self.seed)
        direction = torch.randn(mean.shape, generator=generator).to(mean)
        moved = [mean, *(mean + amount * deviation * direction for amount in AMOUNTS)]
        lines = self.decode(torch.cat(moved), "Moving latents")
        groups = [lines[at : at + len(mean)] for at in range(0, len(lines), len(mean))]
        return {
            "melodies": len(mean),
            "distance": {
                str(amount): float(
                    np.mean([distance(*both, self.num_steps) for both in zip(groups[0], group, strict=True)])
                )
                for amount, group in zip(AMOUNTS, groups[1:], strict=True)
            },
        }

    def locality(self, melodies: int) -> dict[str, Any] | None:
        """Exchange the share of the latent that is one bar's for another melody's, and see which bars change.

        Returns:
            `change`: mean distance of a bar from what it was, by how many bars it lies from the exchanged one (bars
            that are silent before and after count as unchanged); `melodies`. None for fewer than two melodies.
        """
        count, bars = min(melodies, len(self.mean)), self.bars
        if count < 2:
            return None
        shares = self.mean[:count].unflatten(-1, (self.model.config.max_bars, -1))  # (M, N, Z / N)
        changed = shares[:, None].repeat(1, bars, 1, 1)  # (M, exchanged bar, N, Z / N)
        each = torch.arange(bars)
        changed[:, each, each] = shares.roll(1, 0)[:, :bars]
        lines = self.decode(torch.cat([shares.flatten(1), changed.flatten(0, 1).flatten(1)]), "Exchanging bars")
        before, after = lines[:count], lines[count:]
        by_distance: list[list[float]] = [[] for _ in range(bars)]
        for melody in range(count):
            original = bars_of(before[melody], bars)
            for exchanged in range(bars):
                now = bars_of(after[melody * bars + exchanged], bars)
                for bar in range(bars):
                    union = len(original[bar]) + len(now[bar])
                    change = 1 - 2 * len(original[bar] & now[bar]) / union if union else 0.0
                    by_distance[abs(bar - exchanged)].append(change)
        return {"melodies": count, "change": [float(np.mean(changes)) for changes in by_distance]}


def bars_of(line: Line, bars: int) -> list[set[tuple[int, int]]]:
    """Return the (onset, pitch) pairs of each bar."""
    size = steps_per_bar(line)
    found: list[set[tuple[int, int]]] = [set() for _ in range(bars)]
    for start, pitch in zip(line["start"], line["pitch"], strict=True):
        if start // size < bars:
            found[start // size].add((start % size, pitch))
    return found
