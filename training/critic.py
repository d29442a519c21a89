"""Train the critic that chooses among candidates: `python -m training.critic --model DIR --dataset DIR`.

It learns to tell training melodies from the model's own samples, of as many bars and in the same time signatures, by
their latents. From then on `sample` draws `config.sampling_candidates` for each melody and keeps the best. The model's
other weights stay as they are.
"""

import argparse
import copy
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm

from command import UserError, run_command, write_json
from modeling import MelodyProcessor, MelodyVAEModel
from modeling.critic_melody_vae import MelodyCritic
from training.checkpoints import save_model
from training.models import load_pretrained
from training.prior import encode_windows, load_labelled_lines, with_parts
from training.processes import start_accelerator

CRITIC_LOG_NAME = "critic_log.json"
SIZE = 64
BATCH_SIZE = 256
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.03
STEPS_BETWEEN_VALIDATIONS = 50
MAX_STEPS = 600
HELD_OUT = 4  # a share of one in so many samples and melodies decides which step is kept

Melodies = tuple[torch.Tensor, torch.Tensor]
"""Latents `(M, Z)` and bars `(M,)`."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the trained model, which is written")
    parser.add_argument("--dataset", required=True, help="folder or Hub id of the data set")
    parser.add_argument("--melodies", type=int, default=4096, help="training melodies, and as many samples")
    parser.add_argument("--candidates", type=int, default=4, help="drawn for each melody when the model is used")
    parser.add_argument("--max_tokens", type=int, default=400, help="longest window, in tokens")
    parser.add_argument("--num_proc", type=int, default=2, help="processes that tokenise")
    parser.add_argument("--cpu_threads", type=int, help="threads on a CPU")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    return parser.parse_args(argv)


def roc_auc(positive: torch.Tensor, negative: torch.Tensor) -> float:
    """Return how often a positive score is above a negative one; ties count half."""
    above = (positive[:, None] > negative).double().mean() + (positive[:, None] == negative).double().mean() / 2
    return float(above)


@torch.no_grad()
def draw_samples(model: MelodyVAEModel, bars: list[int], meters: list[str], seed: int) -> Melodies:
    """Encode a sample of each number of bars and time signature; those that are no condition are left out."""
    known = set((model.config.conditions or {}).get("time_signature", ()))
    asked = sorted((count, meter) for count, meter in zip(bars, meters, strict=True) if not known or meter in known)
    latents, lengths = [], []
    for first in tqdm(range(0, len(asked), 64), desc="Sampling", unit=" batches"):
        batch = asked[first : first + 64]
        ids = model.sample(
            len(batch),
            seed=seed + first,
            bars=[count for count, _ in batch],
            time_signature=[meter for _, meter in batch],
            candidates=1,
        )
        latents.append(model.encode(ids).latent_mean.float().cpu())
        lengths.append(model.is_bar_token[ids].sum(-1).cpu())
    order = torch.randperm(len(asked), generator=torch.Generator().manual_seed(seed))
    return torch.cat(latents)[order], torch.cat(lengths)[order]


def fit(critic: MelodyCritic, real: Melodies, samples: Melodies, validation: Melodies, seed: int) -> list[dict]:
    """Train a critic in place; it ends with its weights of the best validation.

    Args:
        critic: On the CPU.
        real: Training melodies.
        samples: Of the model; a share of them is held out.
        validation: Melodies of the validation split.
        seed: Of the batches.

    Returns:
        Loss and validation AUC along the way.
    """
    critic.mean.copy_(real[0].mean(0))
    critic.scale.copy_(real[0].std(0).clamp_min(1e-3))
    features = critic.features(*samples)
    held_out, learned = features.tensor_split([len(features) // HELD_OUT])
    learned_from, validation_features = critic.features(*real), critic.features(*validation)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    torch.manual_seed(seed)
    history, best = [], copy.deepcopy(critic.state_dict())
    for step in tqdm(range(1, MAX_STEPS + 1), desc="Training the critic"):
        batch = [of[torch.randint(len(of), (BATCH_SIZE // 2,))] for of in (learned_from, learned)]
        logits = critic.train().score(torch.cat(batch))
        target = torch.cat([torch.ones(BATCH_SIZE // 2), torch.zeros(BATCH_SIZE // 2)])
        loss = nn.functional.binary_cross_entropy_with_logits(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % STEPS_BETWEEN_VALIDATIONS == 0:
            with torch.no_grad():
                critic.eval()
                auc = roc_auc(critic.score(validation_features), critic.score(held_out))
            if not history or auc > max(entry["validation_auc"] for entry in history):
                best = copy.deepcopy(critic.state_dict())
            history.append({"step": step, "loss": loss.item(), "validation_auc": auc})
    critic.load_state_dict(best)
    return history


def encode_split(
    model: MelodyVAEModel, processor: MelodyProcessor, name: str, args: argparse.Namespace, accelerator: Accelerator
) -> tuple[Melodies, list[str]]:
    """Encode windows of lead lines, in their own keys; returns their time signatures too."""
    count = args.melodies if name == "train" else max(1, args.melodies // HELD_OUT)
    lines = load_labelled_lines(args.dataset, name, "lead").shuffle(seed=args.seed)
    lines = lines.select(range(min(count, len(lines))))
    options = argparse.Namespace(**vars(args) | {"transpose": 0})
    windows = encode_windows(model, processor, lines, options, 1, accelerator)
    order = torch.randperm(len(windows.bars), generator=torch.Generator().manual_seed(args.seed))[:count]
    meters = [windows.values["time_signature"][index] for index in order.tolist()]
    return (windows.mean[order], windows.bars[order]), meters


def train_critic(args: argparse.Namespace) -> None:
    """Encode, sample, train, and write the model with its critic.

    Raises:
        UserError: If the model has no latent, or `--candidates` is not positive.
    """
    accelerator = start_accelerator(None, args.cpu_threads)
    processor = load_pretrained(MelodyProcessor, str(args.model))
    model = load_pretrained(MelodyVAEModel, str(args.model)).to(accelerator.device).eval()
    if not model.config.latent_size:
        raise UserError(f"{args.model} has no latent for a critic to read; train one with latent_size")
    try:
        model = with_parts(
            model, args.seed, new=("critic.",), critic_size=SIZE, sampling_candidates=args.candidates
        ).eval()
    except ValueError as error:
        raise UserError(f"{args.model}: {error}") from error
    real, meters = encode_split(model, processor, "train", args, accelerator)
    validation, _ = encode_split(model, processor, "validation", args, accelerator)
    samples = draw_samples(model, real[1].tolist(), meters, args.seed)
    critic = model.critic.cpu()
    history = fit(critic, real, samples, validation, args.seed)
    model.to(accelerator.device)
    save_model(model, processor, args.model)
    best = max(history, key=lambda entry: entry["validation_auc"])
    log = {"melodies": len(real[1]), "samples": len(samples[1]), "best": best, "history": history}
    write_json(log, args.model / CRITIC_LOG_NAME)
    print(f"{args.model}: a critic that tells samples from validation melodies at AUC {best['validation_auc']:.3f}")


def main() -> int:
    """Run the command and return its exit code."""
    return run_command(train_critic, parse_args())


if __name__ == "__main__":
    sys.exit(main())
