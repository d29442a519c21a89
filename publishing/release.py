"""Make the folder of a release: `python -m publishing.release --model runs/lakh --output release/melody-vae-16bar`.

It holds what a repository on the Hub does: weights in bfloat16 (loaded as float32 unless `dtype=` says otherwise),
this repository's code, processor, tokenizer, logs of the training, and samples by the seeds 0 to 15 with a page to hear
them. `publish.py` adds the card, ONNX graphs, metrics and results.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from generate import UserError
from publishing.hub import describe_size
from publishing.model import check_folder, write_samples
from publishing.model_card import LOGS


def write_release(source: Path, output: Path) -> None:
    """Write a trained model's release; a folder that is there already gives way to it once it is whole.

    Args:
        source: As train.py and train_prior.py wrote it.
        output: Of the release; its name is the model's.

    Raises:
        UserError: If there is no whole model, or the output is something else than an earlier release.
    """
    import torch

    from modeling import MelodyProcessor, MelodyVAEModel

    check_folder(source)
    if output.exists() and any(output.iterdir()) and not (output / "config.json").is_file():
        raise UserError(f"{output}: there is something else than a model; choose another --output")
    part = output.with_name(f"{output.name}.part") / output.name  # samples know the model by its folder's name
    shutil.rmtree(part.parent, ignore_errors=True)
    part.mkdir(parents=True)
    model = MelodyVAEModel.from_pretrained(source)
    model.to(torch.bfloat16).save_pretrained(part)  # pyright: ignore[reportArgumentType] - torch's own signature
    config = json.loads((part / "config.json").read_text(encoding="utf-8"))
    (part / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
    MelodyProcessor.from_pretrained(source).save_pretrained(part)
    for log in LOGS.values():
        if (source / log).is_file():
            shutil.copy(source / log, part)
    write_samples(part, output.name, part / "samples")
    shutil.rmtree(output, ignore_errors=True)
    part.rename(output)
    part.parent.rmdir()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m publishing.release"
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="trained, with its prior")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the release")
    args = parser.parse_args(argv)
    try:
        write_release(args.model, args.output)
    except UserError as error:
        print(f"publishing.release: {error}", file=sys.stderr)
        return 2
    size = sum(file.stat().st_size for file in args.output.rglob("*") if file.is_file())
    weights = (args.output / "model.safetensors").stat().st_size
    print(f"{args.output}: {describe_size(size)}, {describe_size(weights)} of them weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
