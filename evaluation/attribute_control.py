"""Measure how well a model controls attributes: `python -m evaluation.attribute_control --model DIR --dataset DIR`.

Two questions: how much of each attribute is in the latent (R² of a linear probe), and what a request of
`model.shift(latent, attribute, amount)` does to each attribute of the decoded melody; with the R² of what a melody
measures then against what was wished for.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoModel, AutoProcessor

from command import UserError, run_command, write_json
from evaluation.held_out import BARS, choose_windows
from modeling.note_editing_melody_vae import measure
from training.models import load_pretrained

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the latents' mean variance; the best on validation windows is taken
AT_ONCE = 64
AMOUNTS = (-1.0, 1.0)  # standard deviations


def encode_lines(model, processor, lines: Sequence[dict]) -> torch.Tensor:
    """Return the posterior means of melodies, shape (M, Z)."""
    means = []
    for at in tqdm(range(0, len(lines), AT_ONCE), desc="encoding", unit=" batches", leave=False):
        batch = processor(lines=lines[at : at + AT_ONCE], return_tensors="pt").to(model.device)
        with torch.no_grad():
            means.append(model.encode(**batch).latent_mean.cpu())
    return torch.cat(means)


def ridge_regression(latents: torch.Tensor, values: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit values `(M, A)` linearly to latents `(M, Z)`.

    Returns:
        Weights `(Z, A)` and intercepts `(A,)`.
    """
    mean, centre = latents.mean(0), values.mean(0)
    centred = latents - mean
    covariance = centred.T @ centred / len(latents)
    covariance += ridge * covariance.trace() / len(covariance) * torch.eye(len(covariance), dtype=latents.dtype)
    weights = torch.linalg.solve(covariance, centred.T @ (values - centre) / len(latents))
    return weights, centre - mean @ weights


def r_squared(predicted: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the coefficient of determination of each column `(A,)`; NaN where the values do not vary."""
    return 1 - (values - predicted).square().mean(0) / values.var(0, correction=0)


def probe(
    train: tuple[torch.Tensor, torch.Tensor],
    validation: tuple[torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Return R² on test melodies of a linear probe `(A,)`; its ridge is chosen per attribute on validation melodies.

    Args:
        train: Latents `(M, Z)` and values `(M, A)`.
        validation: Likewise.
        test: Likewise.
    """
    fits = [ridge_regression(*train, ridge) for ridge in RIDGES]
    scores = torch.stack([r_squared(validation[0] @ weights + bias, validation[1]) for weights, bias in fits])
    predicted = torch.stack([test[0] @ weights + bias for weights, bias in fits])  # (ridges, M, A)
    best = scores.nan_to_num(-torch.inf).argmax(0)  # (A,)
    return r_squared(predicted[best, :, torch.arange(len(best))].T, test[1])


def responses(model, latents: torch.Tensor, amount: float) -> torch.Tensor:
    """Measure how a request for each attribute changes all attributes of each melody, `(A, M, A)`.

    Args:
        model: A model with a learned prior that knows attributes.
        latents: `(M, Z)`.
        amount: What is asked for, in standard deviations, as is what is measured.
    """
    parts = latents.to(model.device).split(AT_ONCE // 4)
    with tqdm(total=len(parts) * len(model.config.attributes), desc=f"shifts by {amount:+}", leave=False) as progress:

        def attributes(part: torch.Tensor) -> torch.Tensor:
            return model.attributes_of(model.read_lines(model.decode(part, bars=BARS))).cpu()

        before = torch.cat([attributes(part) for part in parts])
        after = []
        for name in model.config.attributes:
            moved = []
            for part in parts:
                moved.append(attributes(model.shift(part, attribute=name, amount=amount, bars=BARS)))
                progress.update()
            after.append(torch.cat(moved))
    return torch.stack(after) - before


def control(model, processor, chosen: dict[str, Sequence[dict]], melodies: int) -> dict[str, Any]:
    """Measure the probe and the shifts.

    Args:
        model: The model.
        processor: Its processor.
        chosen: Windows of `train`, `validation` and `test`.
        melodies: Test windows to shift.

    Raises:
        UserError: If the model has no attributes.
    """
    names = model.config.attributes
    if not names:
        raise UserError("this model has no attributes to ask for; train its prior with train_prior.py")
    data = {
        split: (encode_lines(model, processor, lines).double(), measure(lines).double())
        for split, lines in chosen.items()
    }
    explained = probe(data["train"], data["validation"], data["test"])
    starts = data["test"][0][:melodies].float()
    report: dict[str, Any] = {
        "melodies": {split: len(lines) for split, lines in chosen.items()} | {"shifted": len(starts)},
        "r_squared": {name: round(value, 4) for name, value in zip(names, explained.tolist(), strict=True)},
        "mean_response": {},
    }
    has = model.attributes_of(model.read_lines(model.decode(starts.to(model.device), bars=BARS))).cpu()
    wished, found = [], []
    for amount in AMOUNTS:
        moved = responses(model, starts, amount)  # (A, M, A)
        wished.append(has + amount)
        found.append(has + moved.diagonal(dim1=0, dim2=2))
        report["mean_response"][f"{amount:+}"] = {
            asked: {name: round(value, 3) for name, value in zip(names, row.tolist(), strict=True)}
            for asked, row in zip(names, moved.mean(1), strict=True)
        }
    obeyed = r_squared(torch.cat(found), torch.cat(wished))
    report["r_squared_of_shifts"] = {name: round(value, 4) for name, value in zip(names, obeyed.tolist(), strict=True)}
    return report


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.attribute_control", description=__doc__)
    parser.add_argument("--model", required=True, help="folder or Hub id of the model")
    parser.add_argument("--dataset", required=True, help="folder or Hub id of the data set")
    parser.add_argument("--train_melodies", type=int, default=8000, help="windows for the probe (default: 8000)")
    parser.add_argument("--melodies", type=int, default=64, help="test windows to shift (default: 64)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of windows")
    parser.add_argument("--output", type=Path, help="where to write what was measured, as JSON")
    return run_command(report_control, parser.parse_args(arguments))


def report_control(options: argparse.Namespace) -> None:
    """Load model and melodies, measure, and write what was measured."""
    model = load_pretrained(AutoModel, options.model).eval()
    processor = load_pretrained(AutoProcessor, options.model)
    held_out = max(options.melodies, options.train_melodies // 8)
    sizes = {"train": options.train_melodies, "validation": held_out, "test": held_out}
    chosen = {name: choose_windows(options.dataset, name, size, options.seed) for name, size in sizes.items()}
    report = control(model, processor, chosen, options.melodies)
    print(json.dumps(report, indent=1))
    if options.output:
        write_json(report, options.output)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
