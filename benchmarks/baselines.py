"""Equal budgets for all models: `python -m benchmarks.baselines --dataset DIR --output FILE.json --steps N`.

Every model type is trained by train.py on as many of the same melodies, with the same tokens, batches, schedule and
seed, at sizes within a fifth of each other, and measured by evaluate_model.py on the same test windows. What is in the
output file already is not run again, and a stopped training goes on from its checkpoint. Several commands with other
model types (`--only`) may run beside each other on one output file.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from benchmarks.ablations import OVERRIDES, ROOT, options_of, parse_options, train, varied
from command import UserError, machine, run_command, write_json
from documents.blocks import budget

OBJECTIVE = "kl_weight=0.2,free_bits=256"  # MusicVAE's for 16 bars, for both VAEs
SHAPES = {
    "melody_vae": "hidden_size=96,intermediate_size=384,num_attention_heads=4,num_encoder_layers=2,num_hidden_layers=4,"
    "musical_time=false,musical_pitch=false,previous_token=false",  # like Music Transformer, whose decoder it has
    "music_vae": "encoder_size=136,decoder_size=68",
    "lstm": "hidden_size=128,recurrent_size=288,attention_size=64",
    "rnn": "hidden_size=192,recurrent_size=480",
    "music_transformer": "hidden_size=96,intermediate_size=384,num_attention_heads=4,num_hidden_layers=8",
    "music_transformer_absolute": "hidden_size=96,intermediate_size=384,num_attention_heads=4,num_hidden_layers=9",
}
"""Sizes of the model types, for CPUs: parameters within a fifth of each other at a vocabulary of 2,048. MusicVAE's
widths (2,048 and 1,024 as published) are divided by 15, its latent of 512 and its layers are kept."""

PARTS = ("likelihood", "reconstruction", "samples")
WIDEST = 1.2  # largest model to smallest, in parameters


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="folder or Hub id of the melodies")
    parser.add_argument("--output", required=True, type=Path, help="JSON file with the results")
    parser.add_argument("--steps", type=int, required=True, help="of every model; 64 melodies each by default")
    parser.add_argument("--runs", type=Path, default=Path("outputs/baselines"), help="folder of the runs")
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=list(SHAPES), help="these model types")
    parser.add_argument("--options", default="", help="further options of train.py for all models, in quotes")
    parser.add_argument("--evaluate", default="", help="further options of evaluate_model.py, in quotes")
    return parser.parse_args(argv)


def evaluate(model: Path, options: dict[str, str]) -> dict:
    """Run evaluate_model.py and return what it found, without what only pictures need.

    Raises:
        UserError: If it fails; names its log file.
    """
    output, log = model / "evaluation.json", model / "evaluate.log"
    options = {"--model": str(model), "--output": str(output), **options}
    words = [word for name, text in options.items() for word in (name, *text.split())]
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run(
            [sys.executable, str(ROOT / "evaluate_model.py"), *words], stdout=file, stderr=file, check=False
        )
    if done.returncode:
        raise UserError(f"{log}: evaluate_model.py ended with {done.returncode}; its last lines say why")
    found = json.loads(output.read_text(encoding="utf-8"))
    if "samples" in found:
        del found["samples"]["distributions"]
    return found


def run_all(args: argparse.Namespace) -> None:
    """Train and measure what is not there yet, and write the results after each model.

    Raises:
        UserError: If the results are of other options, the models differ too much in size, or a command fails.
    """
    base = {"--lr_scheduler_type": "cosine"} | options_of(args, checkpoints=16)
    measured = {"--dataset": args.dataset, "--parts": " ".join(PARTS), **parse_options(args.evaluate)}
    settings = {"options": base, "evaluation": measured}
    for model_type in tqdm(args.only, desc="models", unit="model"):
        if model_type in read(args.output, settings)["models"]:
            continue
        shape = ",".join([SHAPES[model_type], "dropout=0.0", *([OBJECTIVE] if model_type.endswith("_vae") else [])])
        folder = args.runs / model_type
        train(varied(base, {OVERRIDES: shape}) | {"--model_type": model_type}, folder)
        found = {"shape": shape, **evaluate(folder, measured)}
        results = read(args.output, settings)  # again: other model types may have been trained beside this one
        results["models"][model_type] = found
        write({**results, **settings, "machine": machine()}, args.output)
    print(budget(read(args.output, settings)))


def read(output: Path, settings: dict) -> dict:
    """Read the results so far.

    Raises:
        UserError: If they are of other options.
    """
    results = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {"models": {}}
    if {name: results.get(name, settings[name]) for name in settings} != settings:
        raise UserError(f"{output}: results of other options; give another --output, or remove it")
    return results


def write(results: dict, output: Path) -> None:
    """Write the results at once.

    Raises:
        UserError: If the sizes of the models are too different for a comparison.
    """
    sizes = {name: found["parameters"] for name, found in results["models"].items()}
    if max(sizes.values()) > WIDEST * min(sizes.values()):
        raise UserError(f"parameters differ by more than {WIDEST - 1:.0%}: {sizes}; change SHAPES")
    write_json(results, output)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(run_all, parse_args(argv), stopped="stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
