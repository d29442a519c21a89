"""Make the folder of a release: `python -m publishing.release --model runs/lakh --output release/melody-vae-16bar`.

It holds what a repository on the Hub does: weights in bfloat16 (loaded as float32 unless `dtype=` says otherwise),
this repository's code, processor, tokenizer, logs of the training, samples by the seeds 0 to 15 with a page to hear
them, and the card. `publish.py` adds ONNX graphs, metrics and results, and writes the card for the name it publishes
under.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from command import UserError, run_command
from documents import model_card
from generation.loading import load_model
from publishing.hub import describe_size
from publishing.model import ROOT, check_folder, describe, write_samples

REPO_ID = "melody-vae/melody-vae-16bar"


def write_release(source: Path, output: Path, sampling: Mapping[str, float]) -> None:
    """Write a trained model's release; a folder that is there already gives way to it once it is whole.

    Args:
        source: As train.py and train_prior.py wrote it.
        output: Of the release; its name is the model's.
        sampling: Fields of the configuration that say how it samples, where they are not as trained.

    Raises:
        UserError: If there is no whole model, the model cannot sample like this, or the output is something else than
            an earlier release.
    """
    import torch

    from modeling import MelodyProcessor, MelodyVAEConfig, MelodyVAEModel

    check_folder(source)
    if output.exists() and any(output.iterdir()) and not (output / "config.json").is_file():
        raise UserError(f"{output}: there is something else than a model; choose another --output")
    try:
        config = MelodyVAEConfig.from_pretrained(source, **sampling)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error
    part = output.with_name(f"{output.name}.part") / output.name  # samples know the model by its folder's name
    shutil.rmtree(part.parent, ignore_errors=True)
    part.mkdir(parents=True)
    model = MelodyVAEModel.from_pretrained(source, config=config)
    model.to(torch.bfloat16).save_pretrained(part)  # pyright: ignore[reportArgumentType] - torch's own signature
    written = json.loads((part / "config.json").read_text(encoding="utf-8"))
    (part / "config.json").write_text(json.dumps(written | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
    MelodyProcessor.from_pretrained(source).save_pretrained(part)
    for log in model_card.LOGS.values():
        if (source / log).is_file():
            shutil.copy(source / log, part)
    write_samples(part, output.name, part / "samples")
    link_code(part, output)
    shutil.rmtree(output, ignore_errors=True)
    part.rename(output)
    part.parent.rmdir()


def link_code(folder: Path, output: Path) -> None:
    """Replace the code in a folder by links to this repository's, if its place `output` is in this repository."""
    if ROOT in output.resolve().parents:
        for file in folder.glob("*.py"):
            file.unlink()
            file.symlink_to(os.path.relpath(ROOT / "modeling" / file.name, output.resolve()))


def write_card(folder: Path, is_check: bool = False) -> None:
    """Write a release's card from results/, as it would be published under `REPO_ID`.

    Raises:
        UserError: If `is_check` and the card is another, or there is no whole model.
    """
    check_folder(folder)
    _, model = load_model(str(folder))
    published = describe(
        folder, REPO_ID, model, folder / "samples", dataset_id=f"{REPO_ID}-data", space_id=f"{REPO_ID}-space"
    )
    card, _, _ = model_card.render(published, model_card.read_results(ROOT / "results"))
    output = folder / "README.md"
    if is_check and (not output.is_file() or output.read_text(encoding="utf-8") != card):
        raise UserError(f"{output}: not what results/ says; run make report")
    if not is_check:
        output.write_text(card, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m publishing.release"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the release")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=Path, metavar="DIR", help="trained, with its prior: make the release of it")
    what.add_argument("--card", action="store_true", help="write the card of the release anew, from results/")
    what.add_argument("--check", action="store_true", help="fail if the card is not what results/ says")
    for name, meaning in (
        ("sampling_noise", "how much of its latent a sample leaves to the melody decoder"),
        ("sampling_top_p", "share of the probability that samples draw tokens from"),
    ):
        parser.add_argument(f"--{name}", type=float, metavar="SHARE", help=f"with --model: {meaning}; as trained")
    return run_command(release, parser.parse_args(argv))


def release(args: argparse.Namespace) -> None:
    """Make the release, or see to its card only."""
    sampling = {"sampling_noise": args.sampling_noise, "sampling_top_p": args.sampling_top_p}
    if args.model:
        write_release(args.model, args.output, {name: each for name, each in sampling.items() if each is not None})
    write_card(args.output, args.check)
    if args.model:
        size = sum(file.stat().st_size for file in args.output.rglob("*") if file.is_file())
        weights = (args.output / "model.safetensors").stat().st_size
        print(f"{args.output}: {describe_size(size)}, {describe_size(weights)} of them weights")


if __name__ == "__main__":
    sys.exit(main())
