"""Average trained models: `python -m training.average_models --models runs/lakh runs/short --output_dir runs/mean`.

Runs of which each went on from the one before it (`train.py --init_from`) lie close together, and their mean is often
better than any of them. It has no prior; `train_prior.py` fits it one.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from command import UserError, run_command, write_json
from modeling import MelodyProcessor, MelodyVAEModel
from training.models import depth_of, load_model, load_pretrained
from training.run_logger import LOG_NAME


@torch.no_grad()
def mean_of_models(sources: Sequence[str]) -> tuple[MelodyVAEModel, MelodyProcessor]:
    """Average the weights of melody VAEs, all alike, and all in float32.

    Args:
        sources: Folders or Hub ids. Everything but weights is the last one's; those before it may have fewer layers,
            and get such as change nothing ([`training.models.deepen`]).

    Raises:
        UserError: If one is no melody VAE, or its tokens or weights are not like the last one's.

    Source: model soups (https://arxiv.org/abs/2203.05482).
    """
    processor = load_pretrained(MelodyProcessor, sources[-1])
    mean = load_model(sources[-1], "", processor)
    weights = mean.state_dict()
    shapes = {name: weight.shape for name, weight in weights.items()}
    layers = ",".join(f"{name}={count}" for name, count in depth_of(mean.config).items())
    for number, source in enumerate(sources[:-1], 1):
        theirs = load_pretrained(MelodyProcessor, source)
        others = load_model(source, layers, theirs).state_dict()
        is_alike = {name: weight.shape for name, weight in others.items()} == shapes
        if not is_alike or theirs.tokenizer.get_vocab() != processor.tokenizer.get_vocab():
            raise UserError(f"{source}: its weights or its tokens are not like those of {sources[-1]}")
        share = 1 / (number + 1)
        weights = {  # the grammar's table has bits, which are all the same
            name: weight.lerp(others[name], share) if weight.is_floating_point() else weight
            for name, weight in weights.items()
        }
    mean.load_state_dict(weights)
    return mean, processor


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.average_models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", required=True, metavar="MODEL", help="folders or Hub ids, two or more")
    parser.add_argument("--output_dir", type=Path, required=True, help="a new folder, for the mean")
    args = parser.parse_args(argv)
    if len(args.models) < 2:
        parser.error("--models: give two or more")
    return run_command(average, args)


def average(args: argparse.Namespace) -> None:
    """Write the mean of the models into a new folder.

    Raises:
        UserError: If the folder is there already, or the models have no mean.
    """
    if args.output_dir.exists():
        raise UserError(f"{args.output_dir}: is there already; choose another --output_dir")
    mean, processor = mean_of_models(args.models)
    mean.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)
    if (log := Path(args.models[-1]) / LOG_NAME).is_file():
        last = json.loads(log.read_text(encoding="utf-8"))
        write_json({**last, "mean_of": args.models}, args.output_dir / LOG_NAME)
    print(f"{args.output_dir}: the mean of {len(args.models)} models")


if __name__ == "__main__":
    sys.exit(main())
