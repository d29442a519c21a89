"""From how many melodies MusicVAE learns: `python -m benchmarks.music_vae --dataset DIR --output FILE.json`.

The 2-bar model first, as published (magenta's `cat-mel_2bar_big`): 512 windows a step, the learning rate from 1e-3 by
0.9999 a step, beta rising to 0.5 by 1 - 0.99999 ^ step, no free bits, and scheduled sampling by an inverse sigmoid,
here in parallel (Duckworth et al. 2019, arXiv:1906.04331): steps are predicted once with true ones before them, some
of those are replaced by draws from what was predicted, and all are predicted again. The widths are those of
[`benchmarks.baselines`]. At each point of the curve held-out windows are decoded greedily from their latents.
"""

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from baselines import MusicVAEConfig, MusicVAEModel, StepCollator
from baselines.processing_music_vae import STEPS_PER_BAR, TIME_SIGNATURE, steps_to_line
from command import UserError, check_output, machine, run_command, write_json
from evaluation.reconstruction import summary
from training.data import load_lines, words_of

LEARNING_RATE, DECAY = 1e-3, 0.9999
MAX_BETA, BETA_RATE = 0.5, 0.99999
SAMPLING_RATE = 1000  # k of k / (k + exp(step / k)), the chance that a step is the true one
RAREST_DRAWS = 0.01  # below this chance of a draw none are made: predicting twice costs a third more
FIRST_POINT = 12_800  # windows; each point of the curve is twice the one before
FEWEST_NOTES = 3


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="folder or Hub id of the melodies")
    parser.add_argument("--output", required=True, type=Path, help="JSON file of the curve")
    parser.add_argument("--bars", type=int, default=2, help="of a window (default: 2)")
    parser.add_argument("--steps", type=int, default=2000, help="of training (default: 2000)")
    parser.add_argument("--batch_size", type=int, default=512, help="windows a step (default: 512)")
    parser.add_argument("--encoder_size", type=int, default=136, help="width of the encoder (default: 136)")
    parser.add_argument("--decoder_size", type=int, default=68, help="width of the decoder (default: 68)")
    parser.add_argument("--held_out", type=int, default=512, help="validation windows (default: 512)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def windows_of(dataset: str, split: str, bars: int, collator: StepCollator) -> torch.Tensor:
    """Cut the leads in 4/4 into windows, one after the other; those of fewer notes than three are left out.

    Returns:
        `(W, 1 + 16 bars)` ids.
    """
    texts = []
    for line in tqdm(load_lines(dataset, split, "lead", TIME_SIGNATURE), desc=f"Cutting {split}"):
        words = words_of(dict(line))["words"]
        texts += [" ".join(words[bar : bar + bars]) for bar in range(0, len(words) - bars + 1, bars)]
    batch = collator(texts)
    return batch["input_ids"][batch["num_notes"] >= FEWEST_NOTES]


def scheduled(model: MusicVAEModel, ids: torch.Tensor, latent: torch.Tensor, step: int) -> torch.Tensor:
    """Replace some of the true steps before each step by draws, with a chance that rises; returns `(B, N S)`."""
    before = ids[:, :-1]
    share = 1 - SAMPLING_RATE / (SAMPLING_RATE + math.exp(step / SAMPLING_RATE))
    if share < RAREST_DRAWS:
        return before
    with torch.no_grad():
        drawn = torch.distributions.Categorical(logits=model.predict_steps(before, latent)).sample()[:, :-1]
    is_drawn = torch.rand(drawn.shape) < share
    return torch.cat([before[:, :1], torch.where(is_drawn, drawn, before[:, 1:])], dim=1)


def measure(model: MusicVAEModel, ids: torch.Tensor, bars: int) -> dict[str, Any]:
    """Decode held-out windows greedily from the means of their latents, and compare."""
    model.eval()
    with torch.no_grad():
        output = model(ids, labels=ids)
        decoded = model.decode(output.latent_mean, bars)
    lines, originals = ([steps_to_line(row[1:]) for row in of.tolist()] for of in (decoded, ids))
    found, others = (summary(of, originals, STEPS_PER_BAR * bars) for of in (lines, lines[1:] + lines[:1]))
    notes = sum(len(line["pitch"]) for line in originals) / len(originals)
    nats = {"reconstruction_nats": float(output.reconstruction_nats), "kl_nats": float(output.kl_nats)}
    return {
        **nats,
        "bits_per_note": sum(nats.values()) / notes / math.log(2),
        "step_accuracy": found["step_accuracy"],
        "note_f1": found["note_f1"],
        "note_f1_of_another": others["note_f1"],
        "step_accuracy_of_silence": found["step_accuracy_floor"],
    }


def train_on_batch(model: MusicVAEModel, optimizer: torch.optim.Optimizer, ids: torch.Tensor, step: int) -> float:
    """Take a step, counted from 1, on windows `(B, 1 + N S)`; returns its beta."""
    model.train()
    posterior = model.encode(ids)
    latent = posterior.sample()
    logits = model.predict_steps(scheduled(model, ids, latent, step), latent)
    nats = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").sum(-1).mean()
    beta = MAX_BETA * (1 - BETA_RATE**step)
    loss = nats + beta * posterior.kl_nats().mean()
    optimizer.param_groups[0]["lr"] = LEARNING_RATE * DECAY**step
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return beta


def train(args: argparse.Namespace) -> None:
    """Train, measure at each point of the curve, and write it.

    Raises:
        UserError: If there are fewer windows than one batch has, or the output cannot be written.
    """
    # Windows of the data set as grids of steps.
    check_output(args.output)
    torch.manual_seed(args.seed)
    collator = StepCollator(args.bars)
    ids, unseen = (windows_of(args.dataset, split, args.bars, collator) for split in ("train", "validation"))
    if len(ids) < args.batch_size or not len(unseen):
        raise UserError(f"{args.dataset}: {len(ids)} windows of {args.bars} bars are too few; take a larger data set")
    unseen = unseen[torch.randperm(len(unseen))[: args.held_out]]
    config = MusicVAEConfig(
        max_bars=args.bars, encoder_size=args.encoder_size, decoder_size=args.decoder_size, free_bits=0
    )
    model = MusicVAEModel(config)
    about = {"model": config.to_diff_dict(), "parameters": model.num_parameters(), "machine": machine()}
    about["options"] = {name: str(value) for name, value in vars(args).items()}
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    points, seconds, order = [], 0.0, torch.empty(0, dtype=torch.long)
    # Train, and measure whenever twice as many windows were seen.
    with tqdm(total=args.steps, desc="Training") as progress:
        for step in range(1, args.steps + 1):
            began = time.perf_counter()
            if len(order) < args.batch_size:
                order = torch.randperm(len(ids))
            batch, order = ids[order[: args.batch_size]], order[args.batch_size :]
            beta = train_on_batch(model, optimizer, batch, step)
            seconds += time.perf_counter() - began
            progress.update()
            windows, next_point = step * args.batch_size, FIRST_POINT * 2 ** len(points)
            if windows >= next_point or step == args.steps:
                at = {"windows": windows, "beta": beta, "seconds": seconds}
                points.append(at | measure(model, unseen, args.bars))
                write_json({"points": points, **about}, args.output)
                progress.write(f"{windows} windows: " + ", ".join(f"{k} {v:.3f}" for k, v in points[-1].items()))


def main() -> int:
    """Run the command and return its exit code."""
    return run_command(train, parse_args())


if __name__ == "__main__":
    sys.exit(main())
