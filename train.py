"""Train a melody VAE: `accelerate launch train.py --dataset DIR --output_dir OUT`.

The rooms of `training/` hold what each step needs: data, batches and loaders; schedules, objective and averaging;
validation and checkpoints; monitoring and the report. This file says in which order.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin, ProjectConfiguration, send_to_device, set_seed
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from baselines import processor_for
from command import UserError, run_command
from modeling import MelodyProcessor
from training import processes
from training.adapters import add_adapters
from training.averaging import AveragedWeights
from training.batches import WindowBatches
from training.checkpoints import (
    Checkpointer,
    TrainingState,
    checkpoints,
    find_checkpoint,
    only_run,
    position_in,
    remove_partial,
    restore_kept_weights,
)
from training.data import (
    COLUMNS,
    MelodyWindows,
    check_grid,
    count_tokens,
    evaluation_windows,
    is_wanted,
    load_lines,
    load_split,
    train_tokenizer,
    words_of,
    write_words,
)
from training.loaders import StreamLoader, WindowLoader
from training.models import (
    build_model,
    collator_for,
    load_tokenizing_processor,
    save_processors,
    train_only,
)
from training.monitoring import Means, Rates, Stopwatch, start_trackers, trackers_of
from training.objective import read_conditions, training_loss
from training.optimizers import build_optimizer
from training.options import MUSIC_VAE, parse_args
from training.own_midi import build_own, is_midi
from training.prior import check_refit, refit_prior
from training.run_logger import RunLogger
from training.schedules import curriculum_pacing, kl_weight_at, learning_rate_schedule
from training.validation import is_time_to_stop

DEFAULT_STEPS_PER_BEAT = 4
SPLITS = ("train", "validation")


def start_accelerator(args: argparse.Namespace) -> Accelerator:
    """Join the processes that `accelerate launch` or torchrun has started.

    Raises:
        UserError: If there are several that do not know of each other.
    """
    output_dir = Path(args.output_dir)
    accelerator = processes.start_accelerator(
        args.mixed_precision,
        args.cpu_threads,
        # Epochs have no ends here: every optimiser step has as many batches as any other.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=args.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=trackers_of(args.report_to) or None,
        project_config=ProjectConfiguration(project_dir=str(output_dir), logging_dir=str(output_dir / "logs")),
    )
    if accelerator.distributed_type == DistributedType.FSDP and (
        args.ema_decay or args.lora_rank or args.optimizer == "muon"
    ):
        raise UserError(
            "--ema_decay, --lora_rank and --optimizer muon need whole weights in each process; leave them out with FSDP"
        )
    return accelerator


def get_dataloaders(
    args: argparse.Namespace, accelerator: Accelerator, pretrained: str | None
) -> tuple[MelodyProcessor, WindowLoader | StreamLoader, DataLoader]:
    """Load the data and the tokenizer, and build what training and validation read."""
    time_signature = "4/4" if args.model_type == MUSIC_VAE else None  # its steps are sixteenths of that
    is_trained_on = partial(is_wanted, which=args.lines, time_signature=time_signature)
    processor, lines, unseen, stream = load_melodies(args, accelerator, pretrained, is_trained_on)
    collator = collator_for(args.model_type, processor)
    loader = build_loader(args, accelerator, processor, lines, stream, is_trained_on, collator)
    texts = evaluation_windows(unseen, processor.max_bars, args.max_eval_samples, None if args.streaming else args.seed)
    eval_loader = DataLoader(
        texts,  # pyright: ignore[reportArgumentType] - a list is a data set
        batch_size=args.per_device_eval_batch_size,
        collate_fn=collator,
        generator=torch.Generator(),  # else each pass draws from the global random state
    )
    return processor, loader, eval_loader


def load_melodies(
    args: argparse.Namespace, accelerator: Accelerator, pretrained: str | None, is_trained_on: partial[bool]
) -> tuple[MelodyProcessor, datasets.Dataset, Any, datasets.IterableDataset | None]:
    """Load the tokenizer from `pretrained` or train it, and write the data in its words.

    The main process goes first; the others find its caches filled, and its tokenizer in the output folder.

    Returns:
        The processor; the lines to train on (of a stream, its beginning); those to validate with; and the stream.
    """
    stream = None
    with accelerator.main_process_first():
        # A folder of MIDI files becomes a data set first.
        processor = load_tokenizing_processor(pretrained) if pretrained else None
        dataset = args.dataset
        if is_midi(dataset):
            own = build_own(dataset, processor.steps_per_beat if processor else DEFAULT_STEPS_PER_BEAT, args.num_proc)
            dataset = str(own.folder)
            accelerator.print(own.summary)
            if own.is_small and not pretrained:
                accelerator.print("few songs for a new model; go on from a trained one: --init_from MODEL, for minutes")
        # Lines in words: from a stream as they come, or all at once.
        if args.streaming:
            stream = load_split(dataset, "train", args.lines, streaming=True).select_columns(sorted(COLUMNS))
            lines = read_ahead(filter(is_trained_on, stream.take(args.streaming_buffer)), args)
            held_out = load_split(dataset, "validation", args.lines, streaming=True)
            unseen = (words_of(line) for line in held_out if is_trained_on(line))
        else:
            time_signature = is_trained_on.keywords["time_signature"]
            lines, unseen = (load_lines(dataset, split, args.lines, time_signature) for split in SPLITS)
            lines = write_words(lines, args.num_proc, args.max_duration)
            unseen = write_words(unseen, args.num_proc)
        # The tokenizer is the trained model's, or trained now and saved for the other processes.
        if processor is None and not accelerator.is_main_process:
            processor = load_tokenizing_processor(args.output_dir)
        processor = processor or train_tokenizer(lines, args.vocab_size, args.transpose, args.seed)
        processor.add_repeats(args.repeat_lags)
        check_grid(args.dataset, lines, processor)
        if accelerator.is_main_process:
            save_processors(args.model_type, processor, args.output_dir)
        lines = count_tokens(lines, processor.tokenizer, args.num_proc)
    return processor, lines, unseen, stream


def build_loader(
    args: argparse.Namespace,
    accelerator: Accelerator,
    processor: MelodyProcessor,
    lines: datasets.Dataset,
    stream: datasets.IterableDataset | None,
    is_trained_on: Callable[[dict], bool],
    collator: Any,
) -> WindowLoader | StreamLoader:
    """Build what gives this process its batches of windows, from the lines or from the stream."""
    windows = {
        "bars": processor.max_bars,
        "max_tokens": args.max_tokens,
        "transpose": args.transpose,
        "batch_size": args.per_device_train_batch_size,
        "short_windows": args.short_windows,
        "seed": args.seed,
    }
    # Batches of windows, of about as many tokens.
    batches = WindowBatches(
        lines,
        num_batches_multiple=accelerator.num_processes,
        pacing=pacing_of(args, lines),
        genre_temperature=args.genre_temperature,
        **windows,
    )
    workers = args.dataloader_num_workers
    if workers is None:
        workers = 2 if accelerator.device.type != "cpu" else int(args.streaming)
    if workers:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are processes, and each has one core
    if stream is None:
        return WindowLoader(MelodyWindows(lines), batches, collator, accelerator.process_index, workers)
    return StreamLoader(
        stream,
        collator,
        accelerator.process_index,
        accelerator.num_processes,
        workers,
        tokens_per_window=batches.tokens_per_window,
        tokenizer=processor.tokenizer,
        is_wanted=is_trained_on,
        buffer_lines=args.streaming_buffer,
        max_duration=args.max_duration,
        **windows,
    )


def read_ahead(rows: Iterable[dict], args: argparse.Namespace) -> datasets.Dataset:
    """Keep the beginning of a stream, to train the tokenizer on and to know how long windows are.

    Raises:
        UserError: If there is no melody in it.
    """
    lines = [
        {"bars": row["bars"], "steps_per_beat": row["steps_per_beat"], **words_of(row, args.max_duration)}
        for row in rows
    ]
    if not lines:
        raise UserError(f"{args.dataset}: no melody in {args.streaming_buffer} lines; raise --streaming_buffer")
    return datasets.Dataset.from_list(lines)


def pacing_of(args: argparse.Namespace, lines: datasets.Dataset):
    """The curriculum's pacing, or None.

    Raises:
        UserError: If the data lack the column that a curriculum or genre balance goes by.
    """
    wanted = {"complexity": args.curriculum == "complexity", "genre": args.genre_temperature != 1}
    for column, is_needed in wanted.items():
        if is_needed and column not in lines.column_names:
            option = "--curriculum complexity" if column == "complexity" else "--genre_temperature"
            raise UserError(f"{args.dataset}: {option} needs the column {column}; build it with dataset_script.build")
    if args.curriculum == "none":
        return None
    steps = args.max_train_steps // 4 if args.curriculum_steps is None else args.curriculum_steps
    return curriculum_pacing(args.curriculum_start, steps, args.gradient_accumulation_steps)


def training_function(args: argparse.Namespace) -> None:
    """Train from the command line's arguments."""
    output_dir = Path(args.output_dir)
    if not args.resume_from_checkpoint and checkpoints(output_dir):
        raise UserError(
            f"{output_dir}: has checkpoints already; add --resume_from_checkpoint latest, or choose another"
        )
    accelerator = start_accelerator(args)
    checkpoint = None
    if args.resume_from_checkpoint:
        checkpoint = find_checkpoint(args.resume_from_checkpoint, output_dir, accelerator.print)
        if checkpoint is None:
            accelerator.print(f"{output_dir}: no checkpoint yet; training begins")
    with only_run(output_dir) if accelerator.is_main_process else nullcontext():
        fit(args, accelerator, checkpoint)


def fit(args: argparse.Namespace, accelerator: Accelerator, checkpoint: Path | None) -> None:
    """Prepare data and model, go on from a checkpoint if there is one, train, and leave model and report."""
    output_dir = Path(args.output_dir)
    if accelerator.is_main_process:
        remove_partial(output_dir)
    else:
        datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what it would warn of is checked, and ends in one line
    set_seed(args.seed, device_specific=False)

    # What is trained, and on what.
    is_refitted = check_refit(args, accelerator)
    pretrained = str(checkpoint.parent) if checkpoint else args.init_from
    processor, loader, eval_loader = get_dataloaders(args, accelerator, pretrained)
    model, adapted, optimizer, eval_loader = prepare_model(args, accelerator, processor, eval_loader)
    whole = accelerator.unwrap_model(model)
    scheduler = learning_rate_schedule(
        args.lr_scheduler_type, optimizer, args.num_warmup_steps, args.max_train_steps, args.min_lr_ratio
    )
    average = AveragedWeights(whole, args.ema_decay)
    state = TrainingState()
    others = {"scheduler": scheduler, "average": average}
    # A checkpoint holds all of this, so that resuming is exact.
    checkpointer = Checkpointer(
        accelerator, model, optimizer, others, state, output_dir, args.save_total_limit, args.checkpointing_minutes
    )
    set_seed(args.seed, device_specific=True)  # each process draws noise of its own
    if checkpoint:
        checkpointer.load(checkpoint)
        loader.position = position_in(state, accelerator.process_index, accelerator.num_processes)
        if accelerator.is_main_process:
            restore_kept_weights(checkpoint, output_dir)
    start_trackers(accelerator, args)
    accelerator.print(
        f"{loader.description}, vocabulary {len(processor.tokenizer)}, {whole.num_parameters() / 1e6:.1f} M parameters"
        f"{f', {whole.num_parameters(only_trainable=True) / 1e6:.2f} M of them trained' if adapted else ''}, "
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}, {accelerator.mixed_precision} precision"
    )

    shipped = processor_for(args.model_type, processor)
    run_logger = RunLogger(args, accelerator, model, adapted, shipped, eval_loader, average, state)
    # Closed whatever happens: an error's one line is a line of its own.
    is_silent = not accelerator.is_main_process
    with tqdm(
        desc="Training", total=args.max_train_steps, disable=is_silent, initial=state.step, smoothing=0.05
    ) as progress:
        train(
            args, accelerator, model, optimizer, scheduler, average, loader, state, run_logger, checkpointer, progress
        )
    run_logger.finish()
    if is_refitted:
        refit_prior(args, accelerator)
    accelerator.end_training()


def prepare_model(
    args: argparse.Namespace, accelerator: Accelerator, processor: MelodyProcessor, eval_loader: DataLoader
) -> tuple[torch.nn.Module, torch.nn.Module | None, torch.optim.Optimizer, DataLoader]:
    """Build the model, its adapters if there are any, and the optimizer, and prepare them for all processes."""
    model = build_model(args, processor)
    if args.train_only:
        train_only(model, args.train_only)
    adapted = add_adapters(model, args.lora_rank) if args.lora_rank else None
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if accelerator.distributed_type == DistributedType.FSDP:  # which of its layers are sharded, the model says itself
        present = {type(module).__name__ for module in model.modules()} & {*(model._no_split_modules or ())}
        accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(present)
    optimizer = build_optimizer(model, args.optimizer, args.learning_rate, args.weight_decay)
    model, optimizer, eval_loader = accelerator.prepare(model, optimizer, eval_loader)
    whole = accelerator.unwrap_model(model)
    if args.torch_compile:
        whole.compile()
    if accelerator.distributed_type == DistributedType.FSDP:
        register_fsdp_forward_method(whole, "encode")
    return model, adapted, optimizer, eval_loader


def train(
    args: argparse.Namespace,
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LambdaLR,
    average: AveragedWeights,
    loader: WindowLoader | StreamLoader,
    state: TrainingState,
    run_logger: RunLogger,
    checkpointer: Checkpointer,
    progress: tqdm,
) -> None:
    """Take steps from where `state` stands to the last, or until validation has stopped improving."""
    stopwatch, means, is_stopped = Stopwatch(state.seconds), Means(), False
    logging_rates, evaluation_rates = (Rates(stopwatch, run_logger.melodies_seen) for _ in range(2))
    whole = accelerator.unwrap_model(model)
    model.train()
    # One step of the optimiser; `grad_norm` is none while gradients are accumulated.
    for batch in stopwatch.watch(loader) if state.step < args.max_train_steps else ():
        kl_weight = kl_weight_at(state.step, whole.config.kl_weight, args.kl_warmup_steps)
        loss, grad_norm = train_on_batch(
            args, accelerator, model, optimizer, batch, kl_weight, loader.tokens_per_window, means
        )
        if grad_norm is None:
            continue
        scheduler.step()
        state.step += 1
        average.update(state.step)
        progress.update()
        # Log, evaluate, save: each at its own intervals.
        schedule = {"learning_rate": scheduler.get_last_lr()[0], "kl_weight": kl_weight}
        is_logged = state.step % args.logging_steps == 0
        if is_logged:
            rates = logging_rates.take(run_logger.melodies_seen)
            figures = means.take() | schedule | {"grad_norm": float(grad_norm)} | rates
            progress.set_postfix(loss=f"{figures['loss']:.3f}", kl=f"{figures.get('kl_nats', 0):.0f}")
            accelerator.log({f"train/{name}": value for name, value in figures.items()}, step=state.step)
        is_last = state.step == args.max_train_steps
        if state.step % args.evaluation_steps == 0 or is_last:
            state.seconds = stopwatch.training
            entry = {"step": state.step, "melodies": run_logger.melodies_seen, "train_loss": loss.item()}
            entry |= {"grad_norm": float(grad_norm)} | schedule | evaluation_rates.take(run_logger.melodies_seen)
            with stopwatch.paused():
                for line in run_logger.evaluate(entry):
                    accelerator.print(line) if progress.disable else progress.write(line)
            is_stopped = is_time_to_stop(state.history, args.early_stopping_patience)
        if state.step % args.checkpointing_steps == 0 or checkpointer.is_time(is_cheap=is_logged):
            state.seconds = stopwatch.training
            # A step that overflowed in fp16 was left out, and its gradient with it.
            figures = {"loss": loss.detach()} | ({} if optimizer.step_was_skipped else {"gradient": grad_norm})
            with stopwatch.paused():
                checkpointer.save(loader.position, figures)
        if is_last or is_stopped:
            break
    state.seconds = stopwatch.training
    if is_stopped:
        patience = args.early_stopping_patience
        accelerator.print(f"stopped at step {state.step}: {patience} evaluations brought nothing better")
    accelerator.wait_for_everyone()


def train_on_batch(
    args: argparse.Namespace,
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, torch.Tensor],
    kl_weight: float,
    tokens_per_melody: float,
    means: Means,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute the gradient of a batch, and step when enough are accumulated; returns its loss and the gradient's norm.

    The norm is None as long as gradients are accumulated. What is to be logged is added to `means`.
    """
    batch = dict(send_to_device(batch, accelerator.device, non_blocking=True))
    batch.pop("num_notes")
    conditions = read_conditions(accelerator.unwrap_model(model), batch["input_ids"])
    grad_norm = None
    with accelerator.accumulate(model):
        output = model(**batch, **conditions, kl_weight=kl_weight, tokens_per_melody=tokens_per_melody)
        loss = training_loss(output, batch["labels"], tokens_per_melody, args.label_smoothing)
        accelerator.backward(loss)
        means.add(loss=loss, reconstruction_nats=output.reconstruction_nats, kl_nats=output.kl_nats)
        if accelerator.sync_gradients:
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return loss, grad_norm


def main() -> int:
    """Run the command; returns its exit code."""
    stopped = "stopped; the same command with --resume_from_checkpoint latest goes on"
    return run_command(lambda: training_function(parse_args()), stopped=stopped)


if __name__ == "__main__":
    sys.exit(main())
