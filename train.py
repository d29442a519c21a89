"""Train a melody VAE: `accelerate launch train.py --dataset DIR --output_dir OUT`."""

import argparse
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm
from transformers import AutoModel, AutoProcessor, get_scheduler

from modeling import MelodyProcessor, MelodyVAEConfig, MelodyVAEModel
from modeling.modeling_melody_vae import NATS_PER_BIT, reconstruction_nats
from modeling.processing_melody_vae import MAX_PITCH, MIN_PITCH, is_supported, line_to_words, transposition_table

LOG_NAME = "training_log.json"
COLUMNS = {"pitch", "start", "duration", "time_signature", "steps_per_beat", "bars", "is_lead"}
ACTIVE_UNIT_VARIANCE = 0.01  # Burda et al. 2015, arXiv:1509.00519


class UserError(Exception):
    """Something the user can put right; ends the command with one line and exit code 2."""


class MelodyWindows(Dataset):
    """Windows of melody lines, as text for the tokenizer.

    MidiTok has written every bar as a word already; a window is a slice of words, a transposition a translation of
    characters.

    Args:
        lines: Columns `words`, a word per bar, and `steps_per_beat`.
    """

    def __init__(self, lines: datasets.Dataset):
        self.lines = lines

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, key: tuple[int, int, int, int]) -> str:
        """Return the text of a window; `key` is (line, first bar, bar after the last, semitones up)."""
        line, first_bar, end_bar, semitones = key
        row = self.lines[line]
        words = row["words"][first_bar:end_bar]
        return " ".join(words).translate(transposition_table(row["steps_per_beat"], semitones))


class WindowBatches(Sampler):
    """Batches of windows of like length, drawn anew in each epoch.

    Each line gives as many windows as it takes to cover it; in an epoch each window begins at a random bar and is
    transposed by a random interval that keeps it in range. One that would be longer than `max_tokens` ends some bars
    earlier, since the longest few would cost more than all the rest (attention is quadratic).

    Windows are sorted by length within 50 batches' worth of a random order, and the batches shuffled again, so that
    padding is short and lengths come mixed. Fewer windows than a batch are repeated; a rest smaller than a batch is
    left out. Nothing but the seed and the epoch decides.

    Args:
        lines: Columns `bars`, `num_tokens` (of each bar), `low` and `high`.
        bars: Length of a window.
        max_tokens: Length of a window in tokens, in the line's own key.
        transpose: Up to so many semitones up or down.
        batch_size: Windows per batch.
        num_batches_multiple: The number of batches is a multiple of this (the number of processes).
        seed: Of everything drawn.
    """

    drop_last = True

    def __init__(
        self,
        lines: datasets.Dataset,
        bars: int,
        max_tokens: int,
        transpose: int,
        batch_size: int,
        num_batches_multiple: int,
        seed: int,
    ):
        self.bars = bars
        self.max_tokens = max_tokens
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.num_bars = torch.tensor(lines["bars"][:])
        self.first_bar = cumulate(self.num_bars)  # of each line among the bars of all
        num_tokens = lines.with_format("numpy")["num_tokens"][:]
        self.tokens_before = cumulate(torch.from_numpy(np.concatenate(num_tokens)))  # each bar of all
        self.lowest, self.highest = transposition_limits(lines, transpose)
        windows_per_line = (self.num_bars / bars).ceil().long()
        self.line = torch.arange(len(lines)).repeat_interleave(windows_per_line)  # of each window
        per_round = batch_size * num_batches_multiple
        self.repeats = math.ceil(per_round / len(self.line))
        self.num_batches = len(self.line) * self.repeats // per_round * num_batches_multiple

    @property
    def num_windows(self) -> int:
        """Windows in an epoch, before any repetition."""
        return len(self.line)

    @property
    def tokens_per_window(self) -> float:
        """Mean length of a window in tokens."""
        return self.tokens_before[-1].item() / self.num_windows

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        """Yield lists of keys of [`MelodyWindows`]."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        line = self.line.repeat(self.repeats)
        line = line[torch.randperm(len(line), generator=generator)][: len(self) * self.batch_size]
        num_bars = self.num_bars[line]
        first_bar = uniform_integers(torch.zeros_like(line), (num_bars - self.bars).clamp_min(0), generator)
        semitones = uniform_integers(self.lowest[line], self.highest[line], generator)
        begin = self.first_bar[line] + first_bar
        end = torch.minimum(begin + self.bars, self.first_bar[line + 1])
        fitting = torch.searchsorted(self.tokens_before, self.tokens_before[begin] + self.max_tokens, right=True) - 1
        end = torch.minimum(end, torch.maximum(fitting, begin + 1))  # one bar at least
        length = self.tokens_before[end] - self.tokens_before[begin]
        positions = torch.arange(len(line)).split(50 * self.batch_size)
        order = torch.cat([pool[length[pool].argsort(stable=True)] for pool in positions])
        keys = torch.stack([line, first_bar, first_bar + end - begin, semitones], dim=1)[order].unflatten(
            0, (-1, self.batch_size)
        )
        for batch in keys[torch.randperm(len(keys), generator=generator)].tolist():
            yield [tuple(key) for key in batch]


def cumulate(counts: torch.Tensor) -> torch.Tensor:
    """Sum what comes before each of `(N,)` counts, and all of them, `(N + 1,)`."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def transposition_limits(lines: datasets.Dataset, transpose: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Semitones, at most `transpose`, by which each line can go down (not above 0) and up and stay in range, `(N,)`."""
    lowest = (MIN_PITCH - torch.tensor(lines["low"][:])).clamp_min(-transpose)
    highest = (MAX_PITCH - torch.tensor(lines["high"][:])).clamp_max(transpose)
    return lowest, highest


def uniform_integers(low: torch.Tensor, high: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw integers from `low` to `high`, both included, elementwise; the arguments and the result have one shape."""
    return low + (torch.rand(low.shape, generator=generator, dtype=torch.float64) * (high - low + 1)).long()


class Collator:
    """Tokenises texts and pads them to a multiple of 16: each new shape costs the CPU kernels a compilation."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask`, `labels` `(B, T)` and `num_notes` `(B,)`."""
        batch = self.tokenizer(
            texts, padding=True, pad_to_multiple_of=16, return_tensors="pt", return_token_type_ids=False
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return {**batch, "labels": labels, "num_notes": torch.tensor([count_notes(text) for text in texts])}


def count_notes(text: str) -> int:
    """Count the notes in a window's words: a bar is two characters, a note three, and spaces join the bars."""
    bars = text.count(" ") + 1
    return (len(text) - (bars - 1) - 2 * bars) // 3


class TrainingState:
    """Where training stands: what a checkpoint keeps beside weights, optimiser, schedule and random states."""

    def __init__(self):
        self.step = 0
        self.epoch = 0
        self.batches_in_epoch = 0
        self.seconds = 0.0
        self.history: list[dict] = []

    def state_dict(self) -> dict:
        """Return the state for `Accelerator.save_state`."""
        return dict(vars(self))

    def load_state_dict(self, state: dict) -> None:
        """Take over a state that `state_dict` made."""
        vars(self).update(state)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Train a melody VAE on a data set made by dataset_script.build (or one like it on the Hub).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", required=True, help="folder or Hub id of the melodies")
    data.add_argument(
        "--lines", choices=["lead", "all"], default="lead", help="train on each file's tune, or on every line"
    )
    data.add_argument("--max_tokens", type=int, default=224, help="windows longer than this lose their last bars")
    data.add_argument("--transpose", type=int, default=6, help="transpose by up to so many semitones; 0: not at all")
    data.add_argument("--num_proc", type=int, default=min(4, os.cpu_count() or 1), help="processes for tokenisation")
    model = parser.add_argument_group("model")
    model.add_argument("--init_from", help="folder or Hub id of a trained model to go on from, tokenizer included")
    model.add_argument("--vocab_size", type=int, default=1024, help="of the BPE tokenizer that is trained on the data")
    model.add_argument(
        "--config_overrides", default="", help="fields of MelodyVAEConfig, as in hidden_size=384,dropout=0.2"
    )
    model.add_argument("--gradient_checkpointing", action="store_true", help="save memory, lose a third of the speed")
    schedule = parser.add_argument_group("schedule")
    schedule.add_argument("--max_train_steps", type=int, default=25_000, help="optimiser steps")
    schedule.add_argument("--per_device_train_batch_size", type=int, default=64, help="melodies per step and process")
    schedule.add_argument("--gradient_accumulation_steps", type=int, default=1, help="batches per optimiser step")
    schedule.add_argument("--learning_rate", type=float, default=1e-3, help="at its peak")
    schedule.add_argument("--lr_scheduler_type", default="cosine", help="linear, cosine, constant_with_warmup, ...")
    schedule.add_argument("--num_warmup_steps", type=int, default=200, help="steps to the peak learning rate")
    schedule.add_argument("--weight_decay", type=float, default=0.01, help="of AdamW, on matrices")
    schedule.add_argument("--max_grad_norm", type=float, default=1.0, help="gradients longer than this are shortened")
    schedule.add_argument(
        "--kl_warmup_steps", type=int, default=1000, help="steps until the KL term has its full weight"
    )
    schedule.add_argument(
        "--mixed_precision", choices=["no", "bf16", "fp16"], help="default: as accelerate is configured"
    )
    schedule.add_argument(
        "--cpu_threads", type=int, help="threads per process on a CPU; default: its share of the cores"
    )
    schedule.add_argument("--seed", type=int, default=0, help="of everything random")
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", required=True, help="where checkpoints and the trained model go")
    output.add_argument("--evaluation_steps", type=int, default=500, help="steps between evaluations")
    output.add_argument("--max_eval_samples", type=int, default=512, help="validation melodies per evaluation")
    output.add_argument("--per_device_eval_batch_size", type=int, default=16, help="melodies per batch there")
    output.add_argument("--checkpointing_steps", type=int, default=1000, help="steps between checkpoints")
    output.add_argument("--save_total_limit", type=int, default=2, help="checkpoints to keep")
    output.add_argument("--resume_from_checkpoint", help="a checkpoint folder, or 'latest' in --output_dir")
    return parser.parse_args(argv)


def load_lines(dataset: str, split: str, which: str) -> datasets.Dataset:
    """Load the melody lines of a split.

    Raises:
        UserError: If there is no such data set, or it is none of melodies.
    """
    try:
        lines = datasets.load_dataset(dataset, split=split)
    except Exception as error:  # a folder without data, an unknown id, a missing split: each has its own class
        raise UserError(
            f"{dataset}: no data set with a split '{split}' there ({str(error).splitlines()[0]}); "
            "build one with python -m dataset_script.build --input ARCHIVE --output DIR"
        ) from error
    if missing := COLUMNS - set(lines.column_names):
        raise UserError(f"{dataset}: the column {sorted(missing)[0]} is missing; build it with dataset_script.build")
    kept = [
        index
        for index, (signature, is_lead) in enumerate(zip(lines["time_signature"][:], lines["is_lead"][:], strict=True))
        if is_supported(signature) and (is_lead or which == "all")
    ]
    if not kept:
        raise UserError(f"{dataset}: no melody in split '{split}' that the vocabulary can write")
    return lines.select(kept)


def write_words(lines: datasets.Dataset, num_proc: int) -> datasets.Dataset:
    """Write every bar as a word, once; `datasets` keeps the result in its cache."""

    def write(line: dict) -> dict:
        words = line_to_words(line)
        return {"words": words, "low": min(line["pitch"]), "high": max(line["pitch"])}

    return lines.map(
        write,
        remove_columns=[name for name in lines.column_names if name not in ("bars", "steps_per_beat")],
        num_proc=num_proc if len(lines) > 1000 else None,
        desc="Writing bars as words",
    )


def train_tokenizer(lines: datasets.Dataset, args: argparse.Namespace) -> MelodyProcessor:
    """Train the BPE on lines in the keys in which training will show them, one key a line."""
    generator = torch.Generator().manual_seed(args.seed)
    chosen = uniform_integers(*transposition_limits(lines, args.transpose), generator)
    steps_per_beat = lines[0]["steps_per_beat"]
    words = [
        [word.translate(transposition_table(steps_per_beat, semitones)) for word in line]
        for line, semitones in zip(lines["words"][:], chosen.tolist(), strict=True)
    ]
    return MelodyProcessor.train(words, args.vocab_size, steps_per_beat)


def count_tokens(lines: datasets.Dataset, tokenizer, num_proc: int) -> datasets.Dataset:
    """Add `num_tokens`, the tokens of each bar, by which windows are batched."""

    def count(batch: dict) -> dict:
        words = [word for words in batch["words"] for word in words]
        ids = iter(tokenizer(words, add_special_tokens=False, return_attention_mask=False)["input_ids"])
        return {"num_tokens": [[len(next(ids)) for _ in words] for words in batch["words"]]}

    return lines.map(
        count, batched=True, batch_size=100, num_proc=num_proc if len(lines) > 1000 else None, desc="Counting tokens"
    )


def build_model(args: argparse.Namespace, processor: MelodyProcessor) -> MelodyVAEModel:
    """Make a new model for a processor's vocabulary, or load the one to go on from."""
    if args.init_from:
        return load_pretrained(AutoModel, args.init_from)
    tokenizer = processor.tokenizer
    config = MelodyVAEConfig(
        vocab_size=len(tokenizer),
        bar_token_ids=processor.bar_token_ids,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        mask_token_id=tokenizer.mask_token_id,
        max_bars=processor.max_bars,
    )
    if args.config_overrides:
        try:
            config.update_from_string(args.config_overrides)
            config = MelodyVAEConfig(**config.to_dict())  # checks the sizes against each other
        except ValueError as error:
            raise UserError(f"--config_overrides {args.config_overrides}: {error}") from error
    model = MelodyVAEModel(config)
    model.set_grammar(processor.grammar_table())
    return model


def build_optimizer(model: torch.nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader, seed: int) -> dict[str, float]:
    """Measure the ELBO on a split.

    One latent is drawn from each posterior, by a generator of its own: training's random state is left alone.

    Returns:
        Means over melodies of `reconstruction_nats` and `kl_nats`, `bits_per_note`, and `active_units`.
    """
    was_training = model.training
    model.eval()
    generator = torch.Generator(accelerator.device).manual_seed(seed)
    rows, means = [], []
    config = accelerator.unwrap_model(model).config
    for batch in loader:
        num_notes, labels = batch.pop("num_notes"), batch.pop("labels")
        kl_nats, latent = torch.zeros(len(labels), device=labels.device), None
        if config.latent_size:
            posterior = accelerator.unwrap_model(model).encode(**batch)
            kl_nats, latent = posterior.kl_nats(), posterior.sample(generator)
            means.append(accelerator.gather_for_metrics(posterior.latent_mean))
        nats = reconstruction_nats(model(**batch, latent=latent, use_cache=False).logits, labels)
        rows.append(accelerator.gather_for_metrics(torch.stack([nats, kl_nats, num_notes.to(nats)], dim=1)))
    nats, kl_nats, notes = torch.cat(rows).double().unbind(1)
    active = (torch.cat(means).var(0) > ACTIVE_UNIT_VARIANCE).sum().item() if means else 0
    model.train(was_training)
    return {
        "reconstruction_nats": nats.mean().item(),
        "kl_nats": kl_nats.mean().item(),
        "bits_per_note": ((nats + kl_nats).sum() / notes.sum() / NATS_PER_BIT).item(),
        "active_units": active,
    }


def checkpoints(output_dir: Path) -> list[Path]:
    """List complete checkpoints, oldest first."""
    return sorted(output_dir.glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))


def save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int, limit: int) -> None:
    """Write a checkpoint under another name, rename it when it is whole, and drop the oldest."""
    partial = output_dir / f"partial_step_{step}"
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        final = output_dir / f"step_{step}"
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in checkpoints(output_dir)[:-limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def find_checkpoint(name: str, output_dir: Path) -> Path:
    """Resolve `--resume_from_checkpoint`.

    Raises:
        UserError: If there is no such checkpoint.
    """
    if name == "latest":
        if not (found := checkpoints(output_dir)):
            raise UserError(f"{output_dir}: no checkpoint to resume from; leave out --resume_from_checkpoint to start")
        return found[-1]
    if not (Path(name) / "model.safetensors").is_file():
        raise UserError(f"{name}: not a checkpoint (no model.safetensors); give a folder step_N of an --output_dir")
    return Path(name)


def load_pretrained(auto_class, source: str):
    """Load a model or a processor that train.py has written.

    Raises:
        UserError: If there is none.
    """
    try:
        return auto_class.from_pretrained(source, trust_remote_code=True)
    except Exception as error:  # no folder, no such id, missing or broken files: each has its own class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source}: no trained model ({reason}); give a folder that train.py wrote") from error


def get_dataloaders(
    args: argparse.Namespace, accelerator: Accelerator, pretrained: str | None
) -> tuple[MelodyProcessor, WindowBatches, DataLoader, DataLoader]:
    """Load the data, load the tokenizer (from `pretrained`) or train it, and build batches and both loaders."""
    with accelerator.main_process_first():  # the others then find the cache filled
        splits = {split: load_lines(args.dataset, split, args.lines) for split in ("train", "validation")}
        splits = {split: write_words(lines, args.num_proc) for split, lines in splits.items()}
    processor = load_pretrained(AutoProcessor, pretrained) if pretrained else train_tokenizer(splits["train"], args)
    splits["train"] = count_tokens(splits["train"], processor.tokenizer, args.num_proc)
    collator = Collator(processor.tokenizer)
    batches = WindowBatches(
        splits["train"],
        bars=processor.max_bars,
        max_tokens=args.max_tokens,
        transpose=args.transpose,
        batch_size=args.per_device_train_batch_size,
        num_batches_multiple=accelerator.num_processes,
        seed=args.seed,
    )
    train_loader = DataLoader(
        MelodyWindows(splits["train"]),
        batch_sampler=batches,
        collate_fn=collator,
        generator=torch.Generator(),  # else each pass draws from the global random state, and resume is not exact
    )
    validation = MelodyWindows(splits["validation"])
    keys = [
        (line, bar, bar + processor.max_bars, 0)
        for line, n in enumerate(validation.lines["bars"][:])
        for bar in range(0, n, processor.max_bars)
    ]
    chosen = torch.randperm(len(keys), generator=torch.Generator().manual_seed(args.seed))[: args.max_eval_samples]
    texts = sorted((validation[keys[index]] for index in chosen.tolist()), key=len)
    eval_loader = DataLoader(texts, batch_size=args.per_device_eval_batch_size, collate_fn=collator)
    return processor, batches, train_loader, eval_loader


def training_function(args: argparse.Namespace) -> None:
    """Train from the command line's arguments."""
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps, mixed_precision=args.mixed_precision
    )
    if accelerator.device.type == "cpu":  # accelerate launch leaves each process a single thread
        torch.set_num_threads(args.cpu_threads or max(1, (os.cpu_count() or 1) // accelerator.num_processes))
    output_dir = Path(args.output_dir)
    checkpoint = find_checkpoint(args.resume_from_checkpoint, output_dir) if args.resume_from_checkpoint else None
    if checkpoint is None and checkpoints(output_dir):
        raise UserError(
            f"{output_dir}: has checkpoints already; add --resume_from_checkpoint latest, or choose another"
        )
    if not accelerator.is_main_process:
        datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    set_seed(args.seed, device_specific=False)

    pretrained = str(checkpoint.parent) if checkpoint else args.init_from
    processor, batches, train_loader, eval_loader = get_dataloaders(args, accelerator, pretrained)
    if accelerator.is_main_process:
        processor.save_pretrained(output_dir)
    model = build_model(args, processor)
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    optimizer = build_optimizer(model, args.learning_rate, args.weight_decay)
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.num_warmup_steps * accelerator.num_processes,  # accelerate steps it once per process
        num_training_steps=args.max_train_steps * accelerator.num_processes,
    )
    model, optimizer, train_loader, eval_loader, scheduler = accelerator.prepare(
        model, optimizer, train_loader, eval_loader, scheduler
    )
    set_seed(args.seed, device_specific=True)  # each process draws noise of its own
    state = TrainingState()
    accelerator.register_for_checkpointing(state)
    if checkpoint:
        try:
            accelerator.load_state(str(checkpoint))
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"{checkpoint}: a checkpoint of another model; resume with the options it began with"
            ) from error
    config = accelerator.unwrap_model(model).config
    accelerator.print(
        f"{batches.num_windows} windows of up to {batches.bars} bars, vocabulary {len(processor.tokenizer)}, "
        f"{accelerator.unwrap_model(model).num_parameters() / 1e6:.1f} M parameters, "
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}, {accelerator.mixed_precision} precision"
    )
    melodies_per_step = args.per_device_train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps

    def write_log() -> None:
        if accelerator.is_main_process:
            output_dir.mkdir(parents=True, exist_ok=True)
            log = {
                "arguments": vars(args),
                "parameters": accelerator.unwrap_model(model).num_parameters(),
                "melodies_per_second": state.step * melodies_per_step / max(state.seconds, 1e-9),
                "seconds": state.seconds,
                "melodies_seen": state.step * melodies_per_step,
                "cpu_threads": torch.get_num_threads(),
                "device": accelerator.device.type,
                "history": state.history,
            }
            partial = output_dir / f"{LOG_NAME}.partial"
            partial.write_text(json.dumps(log, indent=1) + "\n")
            partial.replace(output_dir / LOG_NAME)

    progress = tqdm(
        total=args.max_train_steps, initial=state.step, disable=not accelerator.is_main_process, desc="Training"
    )
    model.train()
    clock = time.perf_counter()
    while state.step < args.max_train_steps:
        batches.epoch = state.epoch
        remaining = accelerator.skip_first_batches(train_loader, state.batches_in_epoch)
        for batch in remaining:
            batch.pop("num_notes")
            kl_weight = config.kl_weight * min((state.step + 1) / max(args.kl_warmup_steps, 1), 1.0)
            with accelerator.accumulate(model):
                output = model(**batch, kl_weight=kl_weight, tokens_per_melody=batches.tokens_per_window)
                accelerator.backward(output.loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            state.batches_in_epoch += 1
            if not accelerator.sync_gradients:
                continue
            state.step += 1
            progress.update()
            is_last = state.step == args.max_train_steps
            if state.step % 10 == 0:
                progress.set_postfix(
                    loss=f"{output.loss.item():.3f}",
                    kl=f"{output.kl_nats.item() if output.kl_nats is not None else 0:.0f}",
                )
            if state.step % args.evaluation_steps == 0 or is_last:
                state.seconds += time.perf_counter() - clock  # training alone
                entry = {
                    "step": state.step,
                    "melodies": state.step * melodies_per_step,
                    "train_loss": output.loss.item(),
                    "learning_rate": scheduler.get_last_lr()[0],
                    "kl_weight": kl_weight,
                    **evaluate(accelerator, model, eval_loader, args.seed),
                }
                state.history.append(entry)
                progress.write(
                    f"step {state.step}: {entry['bits_per_note']:.3f} bits per note, "
                    f"reconstruction {entry['reconstruction_nats']:.1f} nats, KL {entry['kl_nats']:.1f} nats, "
                    f"{entry['active_units']} active units"
                ) if accelerator.is_main_process else None
                write_log()
                clock = time.perf_counter()
            if state.step % args.checkpointing_steps == 0:
                state.seconds += time.perf_counter() - clock
                save_checkpoint(accelerator, output_dir, state.step, args.save_total_limit)
                clock = time.perf_counter()
            if is_last:
                break
        else:
            state.epoch += 1
            state.batches_in_epoch = 0
    progress.close()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(output_dir)
        write_log()
    accelerator.end_training()


def main() -> int:
    """Run the command; returns its exit code."""
    args = parse_args()
    try:
        training_function(args)
    except UserError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
