"""Calibrate what a model's users ask for: `python -m evaluation.calibration --model DIR --dataset DIR`.

How much of a melody its variations keep falls steeply with the noise level. The levels at which the mean note F1 is 0,
0.1, ..., 1, measured on the validation split, become `config.variation_levels`, by which `vary` turns a similarity into
a noise level. `config.average_attributes` says whether more notes come back from latents without noise when attributes
that are left open are those of an average melody.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from command import UserError, run_command
from evaluation.held_out import BARS, STEPS, choose_windows
from evaluation.latent_space import distance
from evaluation.reconstruction import fit_to_grid, openings_of, summary
from modeling import MelodyProcessor, MelodyVAEModel
from training.models import load_pretrained

LEVELS = (0.0, 0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9, 1.0)
SIMILARITIES = 11  # from 0 to 1
CALIBRATED_BARS = (BARS, 4)  # of the melodies whose latents are decoded with open and with average attributes


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the trained model; its config is written")
    parser.add_argument("--dataset", required=True, help="folder or Hub id of the data set")
    parser.add_argument("--melodies", type=int, default=48, help="windows of the validation split")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    return parser.parse_args(argv)


def measure_levels(
    model: MelodyVAEModel, processor: MelodyProcessor, melodies: Sequence[dict], seed: int
) -> list[float]:
    """Measure the mean note F1 of a variation with its melody, at each of `LEVELS`."""
    found = np.zeros(len(LEVELS))
    kept, model.config.variation_levels = model.config.variation_levels, None
    try:
        for index, melody in enumerate(tqdm(melodies, desc="Variations", unit=" melodies")):
            latent = model.encode(**processor(lines=melody, return_tensors="pt").to(model.device)).latent_mean
            for place, level in enumerate(LEVELS):
                ids = model.vary(latent, n=1, similarity=1 - level, seed=seed + index, bars=BARS)
                varied = fit_to_grid(processor.to_lines(ids)[0], STEPS)
                found[place] += 1 - distance(varied, melody, STEPS)
    finally:
        model.config.variation_levels = kept
    return (found / len(melodies)).tolist()


def choose_average_attributes(model: MelodyVAEModel, processor: MelodyProcessor, melodies: Sequence[dict]) -> bool:
    """Compare note F1 of decoded latents with open and with average attributes, of melodies and of their first bars."""
    if "attributes" not in (model.config.decoder_conditions or []):
        return False
    kept, total = model.config.average_attributes, {}
    try:
        for is_average in (False, True):
            model.config.average_attributes, total[is_average] = is_average, 0.0
            for bars in CALIBRATED_BARS:
                steps = bars * STEPS // BARS
                openings = openings_of(melodies, bars, steps)
                batch = processor(lines=openings, bars=bars, return_tensors="pt").to(model.device)
                decoded = processor.to_lines(model.decode(model.encode(**batch).latent_mean, bars=bars))
                f1 = summary(decoded, openings, steps)["note_f1"]
                print(f"{'average' if is_average else 'open'} attributes, {bars} bars: note F1 {f1:.3f}")
                total[is_average] += f1
    finally:
        model.config.average_attributes = kept
    return total[True] > total[False]


def invert(similarities: Sequence[float]) -> list[float]:
    """Find the levels at which variations are 0, 0.1, ..., 1 alike, given how alike they are at `LEVELS`.

    Returns:
        From 1 down to 0; what lies outside of what was measured has the nearest level.
    """
    falling = np.minimum.accumulate(similarities)
    wanted = np.linspace(0, 1, SIMILARITIES)
    levels = np.interp(wanted, falling[::-1], LEVELS[::-1])
    levels[0], levels[-1] = 1.0, 0.0
    return [round(float(level), 4) for level in levels]


def calibrate(args: argparse.Namespace) -> None:
    """Measure, and write the configuration.

    Raises:
        UserError: If the model was trained without noise.
    """
    model = load_pretrained(MelodyVAEModel, str(args.model)).eval()
    processor = load_pretrained(MelodyProcessor, str(args.model))
    if not model.config.noise_probability:
        raise UserError(f"{args.model}: trained without noise (noise_probability=0): there is nothing to calibrate")
    with torch.no_grad():
        melodies = choose_windows(args.dataset, "validation", args.melodies, args.seed)
        model.config.average_attributes = choose_average_attributes(model, processor, melodies)
        similarities = measure_levels(model, processor, melodies, args.seed)
    for level, similarity in zip(LEVELS, similarities, strict=True):
        print(f"noise level {level:.2f}: note F1 {similarity:.3f}")
    model.config.variation_levels = invert(similarities)
    model.config.save_pretrained(args.model)


def main() -> int:
    """Run the command and return its exit code."""
    return run_command(calibrate, parse_args())


if __name__ == "__main__":
    sys.exit(main())
