"""Attributes of melodies, and the directions in a model's latent along which each changes alone.

`python -m evaluation.attributes --model DIR --dataset DIR` fits the directions and writes them into the model, so that
`model.shift(latent, attribute=..., amount=...)` works. A melody is a line as the data set or the processor has it.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoModel, AutoProcessor

from evaluate_model import BARS, choose_windows
from modeling.processing_melody_vae import steps_per_bar
from train import UserError, load_pretrained

RIDGE = 1e-2  # of the latents' mean variance
LARGEST_CORRECTION = 3.0  # of a direction's length by what decoding makes of it
DECODED_AT_ONCE = 64


def note_density(line: Mapping[str, Any]) -> float:
    """Return notes per bar."""
    return len(line["pitch"]) / line["bars"]


def rhythmic_complexity(line: Mapping[str, Any]) -> float:
    """Return the entropy, in bits, of the inter-onset intervals in steps; 0 for fewer than two notes."""
    _, counts = np.unique(np.diff(line["start"]), return_counts=True)
    share = counts / max(counts.sum(), 1)
    return float(-(share * np.log2(share)).sum()) if len(counts) else 0.0


def pitch_range(line: Mapping[str, Any]) -> float:
    """Return the semitones from the lowest to the highest note."""
    return float(np.ptp(line["pitch"])) if len(line["pitch"]) else 0.0


def mean_pitch(line: Mapping[str, Any]) -> float:
    """Return the mean MIDI pitch of the notes; 60 for none."""
    return float(np.mean(line["pitch"])) if len(line["pitch"]) else 60.0


def contour(line: Mapping[str, Any]) -> float:
    """Return Kendall's tau-a of onset and pitch: 1 for a line that only rises, -1 for one that only falls."""
    pitch = np.asarray(line["pitch"], dtype=np.int64)
    pairs = len(pitch) * (len(pitch) - 1) / 2
    return float(np.sign(np.triu(pitch[None, :] - pitch[:, None], 1)).sum() / pairs) if pairs else 0.0


def repetition(line: Mapping[str, Any]) -> float:
    """Return the share of bars whose onsets and intervals occurred in a bar before; empty bars do not count."""
    bar_steps = steps_per_bar(line)
    start, pitch = np.asarray(line["start"]), np.asarray(line["pitch"], dtype=np.int64)
    bar = start // bar_steps
    seen: set[tuple] = set()
    repeated = bars = 0
    for number in np.unique(bar):
        inside = bar == number
        shape = (*(start[inside] % bar_steps).tolist(), None, *np.diff(pitch[inside]).tolist())
        repeated, bars = repeated + (shape in seen), bars + 1
        seen.add(shape)
    return repeated / bars if bars else 0.0


def syncopation(line: Mapping[str, Any]) -> float:
    """Return the share of notes that begin off the beat and sound on, or into, the next beat's first half.

    After Longuet-Higgins and Lee (1984): an onset at a weak place whose next stronger place, the coming beat, has no
    onset of its own.
    """
    if not len(line["pitch"]):
        return 0.0
    beat = line["steps_per_beat"]
    start = np.asarray(line["start"])
    coming = (start // beat + 1) * beat
    has_onset = np.isin(coming, start)
    return float(((start % beat != 0) & ~has_onset & (start + np.asarray(line["duration"]) > coming)).mean())


ATTRIBUTES = {
    function.__name__: function
    for function in (note_density, rhythmic_complexity, pitch_range, mean_pitch, contour, repetition, syncopation)
}


def measure(lines: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the attributes of melodies, shape (melodies, attributes)."""
    return np.array([[function(line) for function in ATTRIBUTES.values()] for line in lines])


def directions(latents: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit the attributes linearly, and find the way to each that leaves the others' predictions as they are.

    Args:
        latents: shape (M, Z).
        values: attributes in standard deviations, shape (M, A).

    Returns:
        Directions (A, Z), the regression's weights (Z, A) and its intercepts (A,). A direction is the point of least
        Mahalanobis length among those that change one prediction by 1 and the others by 0.
    """
    mean = latents.mean(0)
    centred = latents - mean
    covariance = centred.T @ centred / len(latents)
    covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    weights = np.linalg.solve(covariance, centred.T @ (values - values.mean(0)) / len(latents))  # (Z, A)
    spread = covariance @ weights
    return np.linalg.solve(weights.T @ spread, spread.T), weights, values.mean(0) - mean @ weights


def decode_lines(model, processor, latents: torch.Tensor, progress: tqdm) -> list[dict]:
    """Decode latents greedily into lines of 16 bars."""
    lines = []
    for part in latents.split(DECODED_AT_ONCE):
        lines += processor.to_lines(model.decode(part.to(model.device), bars=BARS))
        progress.update()
    return lines


def response(
    model, processor, latents: torch.Tensor, ways: np.ndarray, scale: np.ndarray, amount: float = 1.0
) -> np.ndarray:
    """Measure how far each way moves each attribute, in standard deviations, shape (ways, attributes).

    Args:
        model: The model.
        processor: Its processor.
        latents: Where to start from, shape (M, Z).
        ways: Steps in the latent, shape (W, Z).
        scale: Standard deviation of each attribute, shape (A,).
        amount: How far to go.
    """
    batches = -(-len(latents) // DECODED_AT_ONCE)
    with tqdm(total=(len(ways) + 1) * batches, desc="decoding", unit=" batches", leave=False) as progress:
        before = measure(decode_lines(model, processor, latents, progress))
        moved = [
            measure(decode_lines(model, processor, latents + amount * torch.from_numpy(way).float(), progress))
            for way in ways
        ]
    return np.array([(after - before).mean(0) / scale for after in moved])


def encode_lines(model, processor, lines: Sequence[dict]) -> torch.Tensor:
    """Return the posterior means of melodies, shape (M, Z)."""
    means = []
    for at in tqdm(range(0, len(lines), DECODED_AT_ONCE), desc="encoding", unit=" batches", leave=False):
        batch = processor(lines=lines[at : at + DECODED_AT_ONCE], return_tensors="pt").to(model.device)
        with torch.no_grad():
            means.append(model.encode(**batch).latent_mean.cpu())
    return torch.cat(means)


def fit(model, processor, train: Sequence[dict], validation: Sequence[dict], test: Sequence[dict]) -> dict[str, Any]:
    """Fit the directions, put them into the model and measure them on melodies that were not fitted to.

    Args:
        model: The model; its config and buffer are changed.
        processor: Its processor.
        train: Windows for the regression.
        validation: Windows to correct the directions on.
        test: Windows to measure on.

    Returns:
        R² of the regression on test windows, and how far a request of +1 moves the measured attributes there.
    """
    values = measure(train)
    scale = np.where(values.std(0) > 0, values.std(0), 1.0)
    latents = encode_lines(model, processor, train).numpy().astype(np.float64)
    ways, weights, intercepts = directions(latents, values / scale)
    starts = encode_lines(model, processor, validation)
    # The decoder is not linear: go as far as it takes to move the decoded attribute by 1. (Solving for 0 in the others
    # as well asks for steps so long that nothing linear is left of the decoder.)
    gain = np.diag(response(model, processor, starts, ways, scale))
    ways = ways / np.clip(gain, 1 / LARGEST_CORRECTION, LARGEST_CORRECTION)[:, None]
    test_latents = encode_lines(model, processor, test)
    test_values = measure(test) / scale
    predicted = test_latents.numpy() @ weights + intercepts
    variance = test_values.var(0)
    r_squared = 1 - ((test_values - predicted) ** 2).mean(0) / np.where(variance > 0, variance, np.inf)
    moved = response(model, processor, test_latents, ways, scale)
    model.config.attributes = list(ATTRIBUTES)
    model.register_buffer("attribute_directions", torch.from_numpy(ways).float().to(model.device))
    names = list(ATTRIBUTES)
    return {
        "melodies": {"train": len(train), "validation": len(validation), "test": len(test)},
        "standard_deviation": dict(zip(names, scale.round(4).tolist(), strict=True)),
        "r_squared": dict(zip(names, r_squared.round(4).tolist(), strict=True)),
        "response_to_plus_one": {
            name: dict(zip(names, row.round(3).tolist(), strict=True)) for name, row in zip(names, moved, strict=True)
        },
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.attributes", description=__doc__)
    parser.add_argument("--model", required=True, help="folder of the model, to which the directions are added")
    parser.add_argument("--dataset", required=True, help="folder or Hub id of the data set")
    parser.add_argument("--train_melodies", type=int, default=8000, help="windows for the regression (default: 8000)")
    parser.add_argument("--melodies", type=int, default=256, help="windows to decode, of validation and test each")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of windows")
    parser.add_argument("--report", type=Path, help="where to write what was measured, as JSON")
    options = parser.parse_args(arguments)
    try:
        model = load_pretrained(AutoModel, options.model).eval()
        processor = load_pretrained(AutoProcessor, options.model)
        sizes = {"train": options.train_melodies, "validation": options.melodies, "test": options.melodies}
        chosen = {name: choose_windows(options.dataset, name, size, options.seed) for name, size in sizes.items()}
        report = fit(model, processor, chosen["train"], chosen["validation"], chosen["test"])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    model.save_pretrained(options.model)
    text = json.dumps(report, indent=2) + "\n"
    print(text)
    if options.report:
        options.report.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
