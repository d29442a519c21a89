"""How well melodies come back from a latent: counts per melody, their sums, intervals, and groups of melodies."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.intervals import ratio_interval
from metrics.note_bleu.note_bleu import note_bleu
from metrics.note_f1.note_f1 import note_f1
from metrics.step_accuracy.step_accuracy import step_accuracy
from modeling.melody_line_melody_vae import steps_per_bar

FEWEST_IN_GROUP = 8  # melodies; a smaller group says nothing
Line = Mapping[str, Any]


def fit_to_grid(line: Line, num_steps: int) -> dict[str, list[int]]:
    """Cut a decoded line to a grid: a model may write more bars than asked for."""
    kept = [index for index, start in enumerate(line["start"]) if start < num_steps]
    return {
        "pitch": [line["pitch"][index] for index in kept],
        "start": [line["start"][index] for index in kept],
        "duration": [min(line["duration"][index], num_steps - line["start"][index]) for index in kept],
    }


def openings_of(melodies: Sequence[Line], bars: int, num_steps: int) -> list[dict[str, Any]]:
    """Cut melodies to their first `bars`, which have `num_steps`; those without a note there are left out."""
    openings = [{**melody, **fit_to_grid(melody, num_steps), "bars": bars} for melody in melodies]
    return [opening for opening in openings if opening["pitch"]]


def compare(decoded: Sequence[Line], originals: Sequence[Line], num_steps: int, seed: int = 0) -> dict[str, Any]:
    """Compare melodies with their originals, all on one grid.

    Args:
        decoded: One for each original.
        originals: Lines or windows.
        num_steps: Length of the grid.
        seed: Of the bootstrap.

    Returns:
        `step_accuracy`, `note_f1`, `note_bleu` of the metrics of these names, the first two with the `interval` of
        their main number over melodies.
    """
    fitted = [fit_to_grid(line, num_steps) for line in decoded]
    steps, notes = step_accuracy(fitted, originals, num_steps), note_f1(fitted, originals, num_steps)
    each_steps, each_notes = [], []
    for one, other in zip(fitted, originals, strict=True):
        each_steps.append(step_accuracy([one], [other], num_steps)["accuracy"])
        each_notes.append(note_f1([one], [other], num_steps))
    sizes = [found["predicted"] + found["expected"] for found in each_notes]
    f1_interval = ratio_interval([2 * found["matched"] for found in each_notes], sizes, seed) if any(sizes) else None
    return {
        "step_accuracy": {**steps, "interval": ratio_interval(each_steps, seed=seed)},
        "note_f1": {**notes, "interval": f1_interval},
        "note_bleu": note_bleu(fitted, originals, num_steps, steps_per_bar(originals[0])),
    }


def summary(decoded: Sequence[Line], originals: Sequence[Line], num_steps: int, seed: int = 0) -> dict[str, Any]:
    """Give the main numbers of `compare`, for one row of a table."""
    found = compare(decoded, originals, num_steps, seed)
    return {
        "melodies": len(originals),
        "note_f1": found["note_f1"]["f1"],
        "note_f1_interval": found["note_f1"]["interval"],
        "step_accuracy": found["step_accuracy"]["accuracy"],
        "step_accuracy_floor": found["step_accuracy"]["floor"],
        "exact": found["step_accuracy"]["exact"],
    }


def by_group(
    decoded: Sequence[Line], originals: Sequence[Line], group_of: Callable[[Line], str | None], num_steps: int
) -> dict[str, dict]:
    """Summarise groups of melodies.

    Args:
        decoded: One for each original.
        originals: Lines or windows.
        group_of: Names an original's group; None is none.
        num_steps: Length of the grid.

    Returns:
        A `summary` of each group of `FEWEST_IN_GROUP` melodies or more, in the order of their names.
    """
    groups: dict[str, list[int]] = {}
    for index, line in enumerate(originals):
        if (name := group_of(line)) is not None:
            groups.setdefault(name, []).append(index)
    return {
        name: summary([decoded[index] for index in members], [originals[index] for index in members], num_steps)
        for name, members in sorted(groups.items())
        if len(members) >= FEWEST_IN_GROUP
    }


def density_groups(originals: Sequence[Line]) -> Callable[[Line], str]:
    """Divide melodies in three by notes per bar; the names give the limits."""
    density = [len(line["pitch"]) / line["bars"] for line in originals]
    low, high = np.quantile(density, [1 / 3, 2 / 3])

    def group_of(line: Line) -> str:
        value = len(line["pitch"]) / line["bars"]
        if value <= low:
            return f"1: up to {low:.1f} notes a bar"
        return f"2: up to {high:.1f} notes a bar" if value <= high else f"3: more than {high:.1f} notes a bar"

    return group_of
