"""Stage 2: fit a prior over the latents of a trained model, or refit the one that a fine-tuned model began with."""

import argparse
import copy
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object, set_seed
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoConfig

from command import UserError, write_json
from dataset_script.windows import section_notes
from modeling import MelodyProcessor, MelodyVAEConfig, MelodyVAEModel
from modeling.melody_line_melody_vae import ATTRIBUTES, KEY_NAMES, TEMPO_CLASSES, key_of, tempo_class
from modeling.note_editing_melody_vae import measure
from modeling.prior_melody_vae import LatentPrior
from training.averaging import AveragedWeights
from training.batches import WindowBatches
from training.checkpoints import save_model
from training.data import Collator, MelodyWindows, count_tokens, load_lines, write_words
from training.models import load_model, load_pretrained
from training.monitoring import Means
from training.optimizers import build_optimizer
from training.own_midi import build_own, is_midi

PRIOR_LOG_NAME = "prior_log.json"
MIN_COUNT = 200  # windows that a value needs to become one that can be asked for
ENCODE_BATCH_SIZE = 64
EMA_DECAY = 0.999

SAME_SECTION = 0.5  # Jaccard index of the notes from which on a section is another one over again
LONGEST_RETURN = 8  # sections

REFIT = {"epochs_of_windows": 4, "max_train_steps": 300, "batch_size": 128, "learning_rate": 3e-4, "optimizer": "adamw"}
"""How a prior goes on, for as many steps as its model at most: a minute or two on a CPU, since latents move little."""

Encoded = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]
"""Means and log-variances `(M, Z)` of posteriors, and labels as [`LatentPrior.forward`] takes them."""


@dataclass(frozen=True)
class EncodedWindows:
    """What the melody encoder makes of windows.

    Attributes:
        mean: `(M, Z)` of the posteriors.
        log_variance: `(M, Z)`.
        values: For each condition the value of each window. Tempo, time signature and genre are those of its line.
        bars: `(M,)`.
        attributes: `(M, A)`, as measured.
    """

    mean: torch.Tensor
    log_variance: torch.Tensor
    values: dict[str, list[str]]
    bars: torch.Tensor
    attributes: torch.Tensor

    def labelled(self, prior: LatentPrior) -> Encoded:
        """Return the posteriors with the labels of a prior, which knows its conditions and the attributes' scale."""
        labels = labels_of(self.values, prior.config.conditions or {})
        attributes = (self.attributes - prior.attribute_mean.cpu()) / prior.attribute_scale.cpu()
        return self.mean, self.log_variance, labels | {"bars": self.bars, "attributes": attributes}


class FlowLoss(nn.Module):
    """The prior's loss as a forward pass, which is what several processes share gradients of."""

    def __init__(self, prior: LatentPrior):
        super().__init__()
        self.prior = prior

    def forward(self, latent: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return [`LatentPrior.loss`]."""
        return self.prior.loss(latent, labels)


def load_labelled_lines(dataset: str, split: str, which: str) -> datasets.Dataset:
    """Load the lines of a split with what conditions are read from.

    Raises:
        UserError: If there is no such data set, or it lacks a column.
    """
    lines = load_lines(dataset, split, which)
    if missing := {"tempo", "genre"} - set(lines.column_names):
        raise UserError(f"{dataset}: the column {min(missing)} is missing; build it with dataset_script.build")
    return lines


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
    model: MelodyVAEModel,
    processor: MelodyProcessor,
    whole: datasets.Dataset,
    args: argparse.Namespace,
    epochs: int,
    accelerator: Accelerator,
) -> EncodedWindows:
    """Encode windows of lines, each epoch at other bars and in other keys; processes share the work.

    Args:
        model: With the grammar of its tokens.
        processor: Of the model.
        whole: Lines with the columns `tempo`, `time_signature` and `genre`.
        args: `max_tokens`, `transpose`, `num_proc` and `seed`, as of train_prior.py.
        epochs: How often the lines are encoded.
        accelerator: Of the run.
    """
    # Windows are drawn as in training.
    lines = count_tokens(write_words(whole, args.num_proc), processor.tokenizer, args.num_proc)
    batch_size, rank, processes = (
        min(ENCODE_BATCH_SIZE, len(lines)),
        accelerator.process_index,
        accelerator.num_processes,
    )
    sampler = WindowBatches(
        lines, model.config.max_bars, args.max_tokens, args.transpose, batch_size, processes, args.seed
    )
    windows, collate = MelodyWindows(lines), Collator(processor.tokenizer)
    of_line = {name: whole[name][:] for name in ("tempo", "time_signature", "genre")}
    encoded = []
    progress = tqdm(
        total=epochs * len(sampler) // processes,
        desc="encoding",
        unit=" batches",
        mininterval=1,
        disable=not accelerator.is_main_process,
    )
    for epoch in range(epochs):
        sampler.epoch = epoch
        for number, keys in enumerate(sampler):
            if number % processes != rank:
                continue
            batch = collate([windows[key] for key in keys])
            # What is known of each window: its posterior, and what its notes and its line say.
            posterior = model.encode(batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device))
            notes = model.read_lines(batch["input_ids"])
            of_window = [{name: values[line] for name, values in of_line.items()} for line, *_ in keys]
            encoded.append(
                EncodedWindows(
                    posterior.latent_mean.float().cpu(),
                    posterior.latent_log_variance.float().cpu(),
                    {
                        "key": [key_of(each) for each in notes],
                        "tempo": [tempo_class(line["tempo"]) for line in of_window],
                        "time_signature": [line["time_signature"] for line in of_window],
                        "genre": [line["genre"] or "" for line in of_window],
                    },
                    torch.tensor([each["bars"] for each in notes]),
                    measure(notes),
                )
            )
            progress.update()
    progress.close()
    return joined(gather_object(encoded))


def joined(parts: list[EncodedWindows]) -> EncodedWindows:
    """Join encoded batches."""
    mean, log_variance = (torch.cat([getattr(part, name) for part in parts]) for name in ("mean", "log_variance"))
    values = {name: [value for part in parts for value in part.values[name]] for name in parts[0].values}
    bars, attributes = (torch.cat([getattr(part, name) for part in parts]) for name in ("bars", "attributes"))
    return EncodedWindows(mean, log_variance, values, bars, attributes)


def choose_conditions(values: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return the values of each condition that can be asked for; of meters and genres the frequent ones."""
    chosen = {"key": list(KEY_NAMES), "tempo": list(TEMPO_CLASSES)}
    for name in ("time_signature", "genre"):
        counts = Counter(value for value in values[name] if value)
        chosen[name] = [value for value, count in counts.most_common() if count >= MIN_COUNT]
    return {name: known for name, known in chosen.items() if known}


def key_shares(keys: list[str]) -> list[float]:
    """Return how often each of `KEY_NAMES` occurs."""
    counts = Counter(keys)
    return [round(counts[name] / len(keys), 5) for name in KEY_NAMES]


def labels_of(values: Mapping[str, list[str]], conditions: Mapping[str, list[str]]) -> dict[str, torch.Tensor]:
    """Return the index of each value; one past the last where it is none that can be asked for."""
    found = {}
    for name, known in conditions.items():
        place = {value: index for index, value in enumerate(known)}
        found[name] = torch.tensor([place.get(value, len(known)) for value in values[name]])
    return found


def with_parts(model: MelodyVAEModel, seed: int, new: tuple[str, ...] = (), **fields) -> MelodyVAEModel:
    """Return a model with the same weights and new parts: a prior, a critic.

    Args:
        model: With a latent.
        seed: Of the new weights.
        new: Prefixes of weights that are new even if the model has them.
        **fields: Of the configuration that differ: `num_prior_layers`, `conditions`, ...

    Raises:
        ValueError: If the configuration refuses them.
    """
    fingerprint = {name: of for name, of in (model.config.fingerprint or {}).items() if name != "conditions"}
    config = MelodyVAEConfig(**model.config.to_dict() | fields | {"fingerprint": fingerprint or None})
    set_seed(seed)
    larger = MelodyVAEModel(config)
    kept = {name: weight for name, weight in model.state_dict().items() if not name.startswith(new)}
    larger.load_state_dict(larger.state_dict() | kept)
    larger.generation_config = copy.deepcopy(model.generation_config)
    return larger.to(model.device)


def fit(
    prior: LatentPrior, train: Encoded, validation: Encoded, args: argparse.Namespace, accelerator: Accelerator
) -> list[dict[str, float]]:
    """Train the prior on samples of the posteriors; it ends as the moving average of its weights at its best.

    Args:
        prior: To be trained in place.
        train: What it learns from.
        validation: Posteriors of other lines.
        args: `optimizer`, `learning_rate`, `max_train_steps`, `batch_size` (latents of a process) and `seed`.
        accelerator: Of the run.

    Returns:
        The losses along the way; the entry of step 0 is of the prior as it was.
    """
    steps, device = args.max_train_steps, accelerator.device
    # Optimiser, schedule and a moving average of the weights.
    optimizer = build_optimizer(prior, args.optimizer, args.learning_rate, weight_decay=0.01)
    loss_of, optimizer = accelerator.prepare(FlowLoss(prior), optimizer)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer.optimizer,
        args.learning_rate,
        total_steps=steps,
        pct_start=0.0501,  # a bit more than a twentieth: of 20 steps, torch would divide by a rise of none
    )
    average = AveragedWeights(prior, EMA_DECAY)

    def batch_of(data: Encoded, chosen: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        mean, log_variance, labels = data
        latent = mean[chosen] + torch.randn(mean[chosen].shape) * (0.5 * log_variance[chosen]).exp()
        return latent.to(device), {name: of[chosen].to(device) for name, of in labels.items()}

    @torch.no_grad()
    def validation_loss() -> float:
        with average.applied(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(args.seed)  # the same noise each time
            parts = torch.arange(len(validation[0])).split(1024)
            total = sum(prior.loss(*batch_of(validation, part)).item() * len(part) for part in parts)
        return total / len(validation[0])

    # The best average by validation is kept.
    history: list[dict[str, float]] = [{"step": 0, "validation_loss": validation_loss()}]
    best, means = copy.deepcopy(average.mean), Means()
    set_seed(args.seed, device_specific=True)  # each process draws noise of its own
    bar = tqdm(
        range(1, steps + 1), desc="training", unit=" steps", mininterval=1, disable=not accelerator.is_main_process
    )
    for step in bar:
        loss = loss_of(*batch_of(train, torch.randint(len(train[0]), (args.batch_size,))))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(prior.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        means.add(loss=loss)
        average.update(step)
        if step % max(1, steps // 20) == 0 or step == steps:
            entry = {"step": step, **means.take(), "validation_loss": validation_loss()}
            if accelerator.is_main_process:
                bar.write(f"step {step}: loss {entry['loss']:.4f}, validation {entry['validation_loss']:.4f}")
            if entry["validation_loss"] < min(each["validation_loss"] for each in history):
                best = copy.deepcopy(average.mean)
            history.append(entry)
    with torch.no_grad():
        for weight, mean in zip(average.weights, best, strict=True):
            weight.copy_(mean)
    return history


def fit_new_prior(
    model: MelodyVAEModel, processor: MelodyProcessor, dataset: str, args: argparse.Namespace, accelerator: Accelerator
) -> tuple[MelodyVAEModel, dict]:
    """Fit a prior to a trained model.

    Args:
        model: Without a prior.
        processor: Of the model.
        dataset: Folder or Hub id.
        args: Of train_prior.py.
        accelerator: Of the run.

    Returns:
        The model with its prior, and the log.

    Raises:
        UserError: If the data lack a column, or the model cannot sample as the arguments say.
    """
    # Options that the model refuses are refused before anything is encoded.
    began = time.perf_counter()
    sampling = {"sampling_noise": args.sampling_noise, "sampling_top_p": args.sampling_top_p}
    try:
        MelodyVAEConfig(**model.config.to_dict() | sampling)
    except ValueError as error:
        raise UserError(f"{args.model}: {error}") from error
    lines = {split: load_labelled_lines(dataset, split, args.lines) for split in ("train", "validation")}
    encoded = {
        split: encode_windows(model, processor, lines[split], args, epochs, accelerator)
        for split, epochs in (("train", args.epochs_of_windows), ("validation", 1))
    }
    # Chances that a section returns, counted in the training lines.
    returns = count_returns(tqdm(lines["train"], desc="looking for returns"), max(1, model.config.max_bars // 2))
    train = encoded["train"]
    is_conditional = bool(model.config.decoder_conditions)  # whose conditions are rows of the melody decoder's weights
    model = with_parts(
        model,
        args.seed,
        num_prior_layers=args.num_prior_layers,
        conditions=model.config.conditions if is_conditional else choose_conditions(train.values),
        attributes=model.config.attributes if is_conditional else list(ATTRIBUTES),
        key_shares=key_shares(train.values["key"]),
        section_returns=[round(chance, 4) for chance in returns],
        **sampling,
    )
    prior: LatentPrior = model.prior
    # Latents and attributes are standardised by those of the training data.
    if not model.config.noise_probability:  # else the melody decoder reads latents mixed with noise as they are
        prior.mean.copy_(train.mean.mean(0))
        prior.scale.copy_((train.mean.var(0) + train.log_variance.exp().mean(0)).sqrt())
    mean, scale = train.attributes.mean(0), train.attributes.std(0).clamp_min(1e-6)
    if "attributes" in (model.config.decoder_conditions or []):  # the melody decoder measures them so already
        embedding = model.bar_conditioner.condition_embedding
        mean, scale = embedding.attribute_mean, embedding.attribute_scale
    prior.attribute_mean.copy_(mean)
    prior.attribute_scale.copy_(scale)
    history = fit(prior, train.labelled(prior), encoded["validation"].labelled(prior), args, accelerator)
    return model, log_of(model, train, history, began, args)


def log_of(model: MelodyVAEModel, train: EncodedWindows, history: list, began: float, args: argparse.Namespace) -> dict:
    """Write down what a prior learned from, and how it went."""
    prior: LatentPrior = model.prior
    scale = {"attribute_mean": prior.attribute_mean, "attribute_standard_deviation": prior.attribute_scale}
    return {
        "latents": len(train.mean),
        "parameters": sum(each.numel() for each in prior.parameters()),
        "conditions": {name: len(values) for name, values in (model.config.conditions or {}).items()},
        **{name: dict(zip(ATTRIBUTES, of.tolist(), strict=True)) for name, of in scale.items()},
        "section_returns": model.config.section_returns,
        "seconds": round(time.perf_counter() - began, 1),
        "history": history,
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
    }


def has_prior(source: str) -> bool:
    """Whether a model has a learned prior."""
    return bool(getattr(load_pretrained(AutoConfig, source), "num_prior_layers", 0))


def check_refit(args: argparse.Namespace, accelerator: Accelerator) -> bool:
    """Return whether train.py refits the prior of `--init_from` when it has trained.

    Raises:
        UserError: If it has one and that cannot be done.
    """
    if not args.init_from or args.prior == "drop" or not has_prior(args.init_from):
        return False
    if args.streaming or accelerator.distributed_type == DistributedType.FSDP:
        raise UserError(
            f"{args.init_from} has a prior, which cannot be refitted with --streaming or FSDP; add --prior drop, and "
            "fit one with train_prior.py afterwards"
        )
    return True


def refit_prior(args: argparse.Namespace, accelerator: Accelerator) -> None:
    """Give a fine-tuned model the prior that it began with, fitted to where its latents are now.

    Conditions, the attributes' scale and how often sections return stay those of the model that it began as: few songs
    do not tell. Where fitting brings nothing on validation melodies, the prior stays as it was.

    Args:
        args: Of train.py; the model in `output_dir` is replaced.
        accelerator: Of the run.
    """
    began = time.perf_counter()
    source = load_pretrained(MelodyVAEModel, args.init_from)
    processor = load_pretrained(MelodyProcessor, args.output_dir)
    model = load_model(args.output_dir, "", processor).to(accelerator.device).eval()
    dataset = args.dataset
    if is_midi(dataset):
        dataset = str(build_own(dataset, processor.steps_per_beat, args.num_proc).folder)
    steps = min(REFIT["max_train_steps"], args.max_train_steps)
    options = argparse.Namespace(**vars(args) | REFIT | {"max_train_steps": steps})
    # What the model can be asked for stays as it was.
    fields = (
        "num_prior_layers",
        "conditions",
        "attributes",
        "section_returns",
        "critic_size",
        "sampling_candidates",
    )
    train, validation = (
        encode_windows(model, processor, load_labelled_lines(dataset, split, args.lines), options, epochs, accelerator)
        for split, epochs in (("train", options.epochs_of_windows), ("validation", 1))
    )
    shares = source.config.key_shares or key_shares(train.values["key"])
    model = with_parts(model, args.seed, key_shares=shares, **{name: getattr(source.config, name) for name in fields})
    # The old prior is where training begins, its windows are those of the new latents.
    prior: LatentPrior = model.prior
    prior.load_state_dict(source.prior.state_dict())
    if source.config.critic_size:
        model.critic.load_state_dict(source.critic.state_dict())
    history = fit(prior, train.labelled(prior), validation.labelled(prior), options, accelerator)
    if accelerator.is_main_process:
        save_model(model, processor, Path(args.output_dir))
        log = log_of(model, train, history, began, options) | {"refitted_from": args.init_from}
        write_json(log, Path(args.output_dir) / PRIOR_LOG_NAME)
    accelerator.wait_for_everyone()
    losses = [entry["validation_loss"] for entry in history]
    accelerator.print(
        f"prior refitted in {time.perf_counter() - began:.0f} s: validation loss {losses[0]:.4f} to {min(losses):.4f}"
    )
