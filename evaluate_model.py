"""Measure a trained model on held-out melodies; writes the JSON that every published number comes from."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

from command import UserError, check_output, run_command, write_json
from evaluation.measurement import FEWEST_MELODIES, PARTS, SAMPLES_PER_WINDOW, Options, measure

LIMITS = {"melodies": FEWEST_MELODIES, "samples": 1, "importance_samples": 1}
LIMITS |= {"batch_size": 1, "ngram_melodies": 1, "pairs": 1}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Measure how well a model reconstructs, predicts and writes melodies that it has not been trained "
        "on, beside floors and ceilings; what does not apply to a model is null, with the reason.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="folder or Hub id of the trained model")
    parser.add_argument("--dataset", required=True, help="folder or Hub id of the melodies")
    parser.add_argument("--output", required=True, help="JSON file to write")
    parser.add_argument("--split", default="test", help="split to measure on")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument(
        "--melodies", "--num_melodies", type=int, default=256, help="16-bar windows in 4/4 to measure on, at most"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=1024,
        help="melodies to sample, and windows to compare them with, at most; samples are at most "
        f"{SAMPLES_PER_WINDOW} times as many as the split has windows",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="of the samples")
    parser.add_argument(
        "--sampling_noise",
        type=float,
        help="how much of its latent a sample leaves to the melody decoder; left out: as the model has it",
    )
    parser.add_argument("--importance_samples", type=int, default=16, help="latents per melody in the tighter bound")
    parser.add_argument("--pairs", type=int, default=32, help="pairs of melodies to interpolate between")
    parser.add_argument("--ngram_melodies", type=int, default=20_000, help="training windows for the n-gram models")
    parser.add_argument("--originality_index", help="file of evaluation.originality build; made anew by default")
    parser.add_argument(
        "--rate_distortion", nargs="+", default=[], metavar="MODEL", help="models trained with other kl_weights"
    )
    parser.add_argument(
        "--other_data", nargs="+", default=[], metavar="DATASET", help="reconstruct melodies of other origin as well"
    )
    parser.add_argument(
        "--examples", metavar="DATASET", help="melodies free to be shown, to be pictured from the results"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="melodies at a time")
    parser.add_argument("--seed", type=int, default=0, help="chooses the melodies, the latents and the samples")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_args(argv)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    return run_command(evaluate, args)


def evaluate(args: argparse.Namespace) -> None:
    """Measure, write the results and sum them up.

    Raises:
        UserError: If an option is of no use.
    """
    for name, least in LIMITS.items():
        if vars(args)[name] < least:
            raise UserError(f"--{name} {vars(args)[name]}: must be at least {least}")
    output = Path(args.output)
    check_output(output)
    results = measure(Options(**{name: value for name, value in vars(args).items() if name != "output"}))
    write_json(results, output)
    print(f"{results['melodies']} melodies in {results['seconds'] / 60:.1f} minutes: {headline(results)}: {output}")


def headline(results: dict[str, Any]) -> str:
    """Sum up in one line what was measured."""
    said = []
    if likelihood := results.get("likelihood"):
        said.append(f"{likelihood['bits_per_note']:.2f} bits per note")
        if likelihood["kl_nats"] is not None:
            said.append(f"KL {likelihood['kl_nats']:.0f} nats")
    if free := results.get("free_running"):
        accuracy = free["step_accuracy"]
        said.append(f"free-running step accuracy {accuracy['accuracy']:.3f} (floor {accuracy['floor']:.3f})")
        said.append(f"note F1 {free['note_f1']['f1']:.3f}")
    if (samples := results.get("samples")) and (two_sample := samples["sets"]["model"]["two_sample"]):
        said.append(f"samples separated from melodies with AUC {two_sample['auc']:.3f}")
    return ", ".join(said) or "done"


if __name__ == "__main__":
    sys.exit(main())
