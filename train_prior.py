"""Train the prior of a melody VAE that is trained already: `python train_prior.py --model DIR --dataset DIR`.

The melody encoder reads windows of the data once, in several keys; the prior learns to draw latents like theirs, with
any bars given, under conditions (key, tempo, time signature, genre) and attributes (note density, ...). How often long
melodies repeat a section is counted. The model's other weights stay as they are.
"""

import argparse
import copy
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import datasets
import torch
from torch import nn
from tqdm.auto import tqdm

from command import UserError, run_command, write_json
from dataset_script.windows import section_notes
from modeling import MelodyProcessor, MelodyVAEConfig, MelodyVAEModel
from modeling.melody_line_melody_vae import ATTRIBUTES, KEY_NAMES, TEMPO_CLASSES, key_of, measure, tempo_class
from modeling.prior_melody_vae import LatentPrior
from training.batches import WindowBatches
from training.data import Collator, MelodyWindows, count_tokens, load_lines, write_words
from training.models import load_pretrained
from training.monitoring import Means
from training.optimizers import OPTIMIZERS, build_optimizer
from training.run_logger import LOG_NAME

RAREST = 200  # windows that a value needs to become one that can be asked for
ENCODED_AT_ONCE = 64
EMA_DECAY = 0.999

SAME_SECTION = 0.5  # Jaccard index of the notes from which on a section is another one over again
LONGEST_RETURN = 8  # sections

Encoded = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]
"""Means and log-variances `(M, Z)` of posteriors, and labels as [`LatentPrior.forward`] takes them."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of the trained model")
    parser.add_argument("--dataset", required=True, help="folder or Hub id of the data set")
    parser.add_argument("--output_dir", type=Path, help="where to write the model with its prior; --model if left out")
    parser.add_argument("--lines", choices=("lead", "all"), default="lead", help="which lines to learn from")
    parser.add_argument("--num_prior_layers", type=int, default=6, help="layers of the prior")
    parser.add_argument(
        "--epochs_of_windows", type=int, default=4, help="how often the data are encoded, in other keys"
    )
    parser.add_argument("--max_train_steps", type=int, default=6000, help="steps")
    parser.add_argument("--batch_size", type=int, default=256, help="latents in a step")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="as of train.py")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="highest learning rate, after a twentieth")
    parser.add_argument(
        "--sampling_noise",
        type=float,
        default=0.0,
        help="how much of its latent a sample leaves to the melody decoder, for models trained with noise_probability",
    )
    parser.add_argument(
        "--sampling_top_p", type=float, default=1.0, help="share of the probability that samples draw tokens from"
    )
    parser.add_argument("--max_tokens", type=int, default=256, help="longest window, in tokens")
    parser.add_argument("--transpose", type=int, default=6, help="semitones up and down")
    parser.add_argument("--num_proc", type=int, default=4, help="processes that tokenise")
    parser.add_argument("--cpu_threads", type=int, help="threads of a CPU run")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    return parser.parse_args(argv)


def count_returns(lines: Iterable[dict], bars: int) -> list[float]:
    """Return the probability that a section is the one before over again, or else the one before that, and so on.

    Args:
        lines: Melody lines; those of two sections or more count.
        bars: Length of a section. Sections are counted from each line's first bar.

    Returns:
        For 1 to `LONGEST_RETURN` sections back, estimated where a line goes back so far; they sum to 1 at most.
    """
    found, possible = [0] * LONGEST_RETURN, [0] * LONGEST_RETURN
    for line in lines:
        sections = section_notes(line, bars)
        for index, section in enumerate(sections):
            for lag in range(1, min(index, LONGEST_RETURN) + 1):
                possible[lag - 1] += 1
                other = sections[index - lag]
                if section and len(section & other) >= SAME_SECTION * len(section | other):
                    found[lag - 1] += 1
                    break
    hazards = [hits / max(count, 1) for hits, count in zip(found, possible, strict=True)]
    returns, new = [], 1.0
    for hazard in hazards:
        returns.append(new * hazard)
        new *= 1 - hazard
    return returns


@torch.no_grad()
def encode_windows(
    model: MelodyVAEModel, processor, whole: datasets.Dataset, args: argparse.Namespace, epochs: int
) -> tuple[torch.Tensor, torch.Tensor, dict[str, list[str]], torch.Tensor, torch.Tensor]:
    """Encode windows of lines, each epoch at other bars and in other keys.

    Returns:
        Posterior means and log-variances `(M, Z)`, for each condition the value of each window, its bars `(M,)` and
        attributes `(M, A)`. Tempo, time signature and genre are those of its line, the others its own.
    """
    lines = count_tokens(write_words(whole, args.num_proc), processor.tokenizer, args.num_proc)
    batch_size = min(ENCODED_AT_ONCE, len(lines))
    sampler = WindowBatches(lines, model.config.max_bars, args.max_tokens, args.transpose, batch_size, 1, args.seed)
    windows, collate = MelodyWindows(lines), Collator(processor.tokenizer)
    of_line = {name: whole[name][:] for name in ("tempo", "time_signature", "genre")}
    means, log_variances, attributes, lengths = [], [], [], []
    values: dict[str, list[str]] = {"key": [], "tempo": [], "time_signature": [], "genre": []}
    with tqdm(total=epochs * len(sampler), desc="encoding", unit=" batches", mininterval=1) as progress:
        for epoch in range(epochs):
            sampler.epoch = epoch
            for keys in sampler:
                batch = collate([windows[key] for key in keys])
                posterior = model.encode(batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device))
                means.append(posterior.latent_mean.cpu())
                log_variances.append(posterior.latent_log_variance.cpu())
                notes = model.read_lines(batch["input_ids"])
                attributes.append(measure(notes))
                lengths += [each["bars"] for each in notes]
                values["key"] += [key_of(each) for each in notes]
                for line, *_ in keys:
                    values["tempo"].append(tempo_class(of_line["tempo"][line]))
                    values["time_signature"].append(of_line["time_signature"][line])
                    values["genre"].append(of_line["genre"][line] or "")
                progress.update()
    return torch.cat(means), torch.cat(log_variances), values, torch.tensor(lengths), torch.cat(attributes)


def choose_conditions(values: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the values of each condition that can be asked for; of meters and genres the frequent ones."""
    chosen = {"key": list(KEY_NAMES), "tempo": list(TEMPO_CLASSES)}
    for name in ("time_signature", "genre"):
        counts = Counter(value for value in values[name] if value)
        chosen[name] = [value for value, count in counts.most_common() if count >= RAREST]
    return {name: known for name, known in chosen.items() if known}


def labels_of(values: dict[str, list[str]], conditions: dict[str, list[str]]) -> dict[str, torch.Tensor]:
    """Return the index of each value; one past the last where it is none that can be asked for."""
    found = {}
    for name, known in conditions.items():
        place = {value: index for index, value in enumerate(known)}
        found[name] = torch.tensor([place.get(value, len(known)) for value in values[name]])
    return found


def fit(prior: LatentPrior, train: Encoded, validation: Encoded, args: argparse.Namespace) -> list[dict[str, float]]:
    """Train the prior on samples of the posteriors; it ends as the moving average of its weights.

    Args:
        prior: To be trained in place.
        train: What it learns from.
        validation: Posteriors of other lines.
        args: The command line's.

    Returns:
        The losses along the way.
    """
    torch.manual_seed(args.seed)
    device = prior.mean.device
    average = copy.deepcopy(prior).requires_grad_(False)
    optimizer = build_optimizer(prior, args.optimizer, args.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=args.max_train_steps, pct_start=0.05
    )

    def loss_of(network: LatentPrior, data: Encoded, chosen: torch.Tensor) -> torch.Tensor:
        mean, log_variance, labels = data
        latent = mean[chosen] + torch.randn(mean[chosen].shape) * (0.5 * log_variance[chosen]).exp()
        return network.loss(latent.to(device), {name: of[chosen].to(device) for name, of in labels.items()})

    history, means = [], Means()
    for step in tqdm(range(1, args.max_train_steps + 1), desc="training", unit=" steps", mininterval=1):
        loss = loss_of(prior, train, torch.randint(len(train[0]), (args.batch_size,)))
        loss.backward()
        nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        means.add(loss=loss)
        decay = min(EMA_DECAY, step / (step + 10))
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), prior.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        if step % max(1, args.max_train_steps // 20) == 0 or step == args.max_train_steps:
            with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(args.seed)  # the same noise each time
                parts = torch.arange(len(validation[0])).split(1024)
                total = sum(loss_of(average, validation, part).item() * len(part) for part in parts)
            entry = {"step": step, **means.take(), "validation_loss": total / len(validation[0])}
            tqdm.write(f"step {step}: loss {entry['loss']:.4f}, validation {entry['validation_loss']:.4f}")
            history.append(entry)
    prior.load_state_dict(average.state_dict())
    return history


def training_function(args: argparse.Namespace) -> None:
    """Encode, train, and save the model with its prior."""
    if args.cpu_threads:
        torch.set_num_threads(args.cpu_threads)
    output_dir = args.output_dir or Path(args.model)
    # This program's own classes: the folder may come with the code of an older version.
    old = load_pretrained(MelodyVAEModel, args.model).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    processor = load_pretrained(MelodyProcessor, args.model)
    if not old.config.latent_size:
        raise UserError(f"{args.model} has no latent, hence no prior; train one with latent_size")
    sampling = {"sampling_noise": args.sampling_noise, "sampling_top_p": args.sampling_top_p}
    try:
        config = MelodyVAEConfig(**old.config.to_dict() | sampling)
    except ValueError as error:
        raise UserError(f"{args.model}: {error}") from error
    old.set_grammar(processor.grammar_table(), processor.fingerprint())
    began = time.perf_counter()
    encoded = {}
    for split, epochs in (("train", args.epochs_of_windows), ("validation", 1)):
        lines = load_lines(args.dataset, split, args.lines)
        if missing := {"tempo", "genre"} - set(lines.column_names):
            raise UserError(f"{args.dataset}: the column {min(missing)} is missing; build it with dataset_script.build")
        encoded[split] = encode_windows(old, processor, lines, args, epochs)
        if split == "train":
            returns = count_returns(tqdm(lines, desc="looking for returns"), max(1, old.config.max_bars // 2))
    conditions = choose_conditions(encoded["train"][2])
    train_attributes = encoded["train"][-1]
    attribute_mean, attribute_scale = train_attributes.mean(0), train_attributes.std(0).clamp_min(1e-6)
    train, validation = (
        (
            mean,
            log_variance,
            labels_of(values, conditions) | {"bars": bars, "attributes": (own - attribute_mean) / attribute_scale},
        )
        for mean, log_variance, values, bars, own in encoded.values()
    )

    config.num_prior_layers, config.conditions = args.num_prior_layers, conditions
    config.attributes, config.section_returns = list(ATTRIBUTES), [round(chance, 4) for chance in returns]
    torch.manual_seed(args.seed)
    model = MelodyVAEModel(config)
    prior: LatentPrior = model.prior
    kept = {name: value for name, value in old.state_dict().items() if not name.startswith("prior.")}
    model.load_state_dict(model.state_dict() | kept)
    model.to(old.device)
    if not config.noise_probability:  # else the melody decoder reads latents on their way, mixed with noise as they are
        prior.mean.copy_(train[0].mean(0))
        prior.scale.copy_((train[0].var(0) + train[1].exp().mean(0)).sqrt())
    prior.attribute_mean.copy_(attribute_mean)
    prior.attribute_scale.copy_(attribute_scale)
    history = fit(prior, train, validation, args)

    model.generation_config = old.generation_config
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
    log = {
        "latents": len(train[0]),
        "parameters": sum(each.numel() for each in prior.parameters()),
        "conditions": {name: len(values) for name, values in conditions.items()},
        "attribute_mean": dict(zip(ATTRIBUTES, attribute_mean.tolist(), strict=True)),
        "attribute_standard_deviation": dict(zip(ATTRIBUTES, attribute_scale.tolist(), strict=True)),
        "section_returns": config.section_returns,
        "seconds": round(time.perf_counter() - began, 1),
        "history": history,
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
    }
    if (trained := Path(args.model) / LOG_NAME).is_file() and not (output_dir / LOG_NAME).exists():
        shutil.copy(trained, output_dir)  # the release's card tells of both trainings
    write_json(log, output_dir / "prior_log.json")


def main() -> int:
    """Run the command and return its exit code."""
    return run_command(training_function, parse_args())


if __name__ == "__main__":
    sys.exit(main())
