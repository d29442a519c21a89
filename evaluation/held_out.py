"""The melodies that models are measured on: windows of lead lines that do not overlap."""

from collections.abc import Callable

import torch

from command import UserError
from dataset_script.windows import windows
from training.data import load_lines

BARS = 16
STEPS = 256  # 16 bars of 4/4 in sixteenths, MusicVAE's grid


def draw(chosen: list[dict], count: int, seed: int) -> list[dict]:
    """Draw `count` windows, or all if there are fewer, in an order that the seed decides."""
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return [chosen[index] for index in order]


def choose_windows(dataset: str, split: str, count: int, seed: int) -> list[dict]:
    """Draw non-overlapping 16-bar windows in 4/4 from the lead lines of a split.

    Raises:
        UserError: If the split has none.
    """
    lines = load_lines(dataset, split, "lead")
    lines = lines.filter(
        lambda signature, bars, steps: signature == "4/4" and bars >= BARS and steps == STEPS // BARS // 4,
        input_columns=["time_signature", "bars", "steps_per_beat"],
        desc="Choosing lines",
    )
    chosen = [window for line in lines for window in windows(line, bars=BARS, stride=BARS)]
    if not chosen:
        raise UserError(f"{dataset}: no lead line of {BARS} bars in 4/4 in split '{split}'")
    return draw(chosen, count, seed)


def windows_by_meter(
    dataset: str, split: str, count: int, seed: int, fewest: int, can_read: Callable[[str, int], bool]
) -> dict[str, list[dict]]:
    """Draw windows of each time signature: 16 bars each, or whole lines that are shorter.

    Args:
        dataset: Folder or Hub id.
        split: Of it.
        count: Windows per time signature, at most.
        seed: Of the draw.
        fewest: Time signatures with fewer windows are left out.
        can_read: Whether the model's vocabulary has a time signature and a grid.

    Returns:
        Windows by time signature, the commonest first.
    """
    found: dict[str, list[dict]] = {}
    for row in load_lines(dataset, split, "lead"):
        line = dict(row)
        if can_read(line["time_signature"], line["steps_per_beat"]):
            cut = windows(line, bars=min(BARS, line["bars"]), stride=BARS)
            found.setdefault(line["time_signature"], []).extend(cut)
    kept = {meter: chosen for meter, chosen in found.items() if len(chosen) >= fewest}
    return {
        meter: draw(kept[meter], count, seed) for meter in sorted(kept, key=lambda meter: (-len(kept[meter]), meter))
    }
