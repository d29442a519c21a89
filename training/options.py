"""The command line of train.py."""

import argparse
import os

from command import UserError
from training.optimizers import OPTIMIZERS
from training.own_midi import is_midi
from training.schedules import SCHEDULES

MELODY_VAE, MUSIC_VAE = "melody_vae", "music_vae"
MODEL_TYPES = (MELODY_VAE, "music_transformer", MUSIC_VAE, "lstm", "rnn", "music_transformer_absolute")
RECURRENT = (MUSIC_VAE, "lstm", "rnn")
TRACKERS = ("none", "tensorboard", "trackio", "all")

OWN_FILES = {
    "max_train_steps": 300,
    "per_device_train_batch_size": 16,
    "learning_rate": 3e-4,
    "num_warmup_steps": 20,
    "kl_warmup_steps": 0,
    "evaluation_steps": 25,
    "checkpointing_steps": 100,
    "early_stopping_patience": 4,
}
"""Defaults where a trained model goes on with MIDI files of one's own: minutes on a CPU."""

EXAMPLES = """\
examples:
  accelerate launch train.py --dataset data/lakh --output_dir runs/lakh
      train on a data set that dataset_script.build has made; stopped? the same with --resume_from_checkpoint latest
  python train.py --dataset my_midi_files --init_from runs/lakh --output_dir runs/mine
      go on from a trained model with your own MIDI files, some minutes on a CPU; add --lora_rank 8 to change less of it
  accelerate launch --config_file configs/cpu.yaml --num_processes 4 train.py ...
      four processes on a CPU (--cpu --num_processes 4 would start one); configs/ has files for several GPUs as well

The field's guideline is a good beginning where nothing was measured: --learning_rate 1e-4 with a schedule,
--per_device_train_batch_size 64, 6 to 12 layers and dropout 0.1 to 0.3, the last two with
--config_overrides. What each option is worth at equal steps, python -m benchmarks.ablations measures.
"""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults where there are any, and leaves the examples as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserError: If the options do not make sense.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.init_from and is_midi(args.dataset):
        parser.set_defaults(**OWN_FILES)  # what was given stays as it was given
        args = parser.parse_args(argv)
    check(args)
    return args


def make_parser() -> argparse.ArgumentParser:
    """Describe all options."""
    parser = argparse.ArgumentParser(
        usage="accelerate launch train.py --dataset DATA --output_dir DIR [options]",
        description="Train a melody VAE on a data set of melodies, or on your own MIDI files.",
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
    )
    add_data_options(parser.add_argument_group("data"))
    add_model_options(parser.add_argument_group("model"))
    add_schedule_options(parser.add_argument_group("schedule"))
    add_machine_options(parser.add_argument_group("machine"))
    add_output_options(parser.add_argument_group("output"))
    return parser


def add_data_options(data: argparse._ArgumentGroup) -> None:
    """What to train on, and in which order."""
    data.add_argument(
        "--dataset",
        required=True,
        help="folder or Hub id of the melodies; or MIDI files: a folder of them or a .tar.gz, from which a data set is "
        "built first and kept",
    )
    data.add_argument(
        "--lines", choices=["lead", "all"], default="lead", help="train on each file's tune, or on every line"
    )
    data.add_argument("--max_tokens", type=int, default=224, help="windows longer than this lose their last bars")
    data.add_argument("--transpose", type=int, default=6, help="transpose by up to so many semitones; 0: not at all")
    data.add_argument(
        "--short_windows",
        type=float,
        default=0.0,
        help="share of the windows that are cut to a random number of bars, so that beginnings are learned too",
    )
    data.add_argument(
        "--max_duration",
        type=int,
        help="in training, notes longer than so many beats are cut, so that keys held too long are not learned; "
        "left out: 16, the vocabulary's longest. Loudness is normalised in any case: tokens have no velocity. "
        "Validation melodies stay as they are, so that figures compare",
    )
    data.add_argument(
        "--curriculum",
        choices=["none", "complexity"],
        default="none",
        help="complexity: begin with the simplest melodies and let the others in little by little",
    )
    data.add_argument(
        "--curriculum_start", type=float, default=0.2, help="share of the melodies that a curriculum begins with"
    )
    data.add_argument(
        "--curriculum_steps", type=int, help="steps until it uses all of them; left out: a quarter of all steps"
    )
    data.add_argument(
        "--genre_temperature",
        type=float,
        default=1.0,
        help="T: a genre of n windows is heard in proportion to n^(1/T); 1: as often as it comes, 2: rare ones more "
        "often, 100: all alike",
    )
    data.add_argument(
        "--streaming",
        action="store_true",
        help="read the data set while training, without a copy on disk: for data from the Hub that do not fit",
    )
    data.add_argument(
        "--streaming_buffer", type=int, default=2048, help="lines that are shuffled together when streaming"
    )
    data.add_argument("--num_proc", type=int, default=min(4, os.cpu_count() or 1), help="processes for tokenisation")


def add_model_options(model: argparse._ArgumentGroup) -> None:
    """What to train."""
    model.add_argument(
        "--model_type",
        choices=MODEL_TYPES,
        default=MELODY_VAE,
        help="the melody VAE, or one of the systems that it is compared with; music_vae reads melodies in 4/4 only",
    )
    model.add_argument("--init_from", help="folder or Hub id of a trained model to go on from, tokenizer included")
    model.add_argument(
        "--prior",
        choices=["refit", "drop"],
        default="refit",
        help="with --init_from, of a model that has a prior: fit it to the trained model, which takes a minute or two "
        "for a few songs, or leave it out, for train_prior.py to fit a new one",
    )
    model.add_argument(
        "--lora_rank",
        type=int,
        default=0,
        help="with --init_from: train small adapters of this rank and leave the model's own weights alone (LoRA); "
        "they are merged in the end, so that the model loads as any other. 8 is usual, 0 trains all weights",
    )
    model.add_argument(
        "--train_only",
        default="",
        help="as in melody_encoder: train only the parameters whose names begin so, and freeze all others",
    )
    model.add_argument(
        "--vocab_size",
        type=int,
        default=1024,
        help="of the BPE tokenizer that is trained on the data; --init_from has one already",
    )
    model.add_argument(
        "--config_overrides",
        default="",
        help="fields of the model's configuration, as in hidden_size=384,num_hidden_layers=8,dropout=0.2; "
        "token_dropout=0.1 hides a tenth of the notes heard so far, so that the latent has to be read, kl_weight and "
        "free_bits say what the latent may cost; with --init_from, num_hidden_layers and num_encoder_layers may grow",
    )
    model.add_argument(
        "--repeat_lags",
        type=lag_list,
        default=[],
        help="as in 1,2,4,8: tokens that say that a bar is the one so many bars earlier over again, so that form is a "
        "choice; --init_from may add them",
    )
    model.add_argument(
        "--decoder_conditions",
        type=lambda names: [name for name in names.split(",") if name],
        default=[],
        help="with --init_from a model with a prior: as in key,time_signature,attributes, the conditions of the "
        "melody decoder, beside the latent",
    )
    model.add_argument("--gradient_checkpointing", action="store_true", help="save memory, lose a third of the speed")
    model.add_argument(
        "--torch_compile", action="store_true", help="compile the model: slow to begin, faster on GPUs afterwards"
    )


def lag_list(text: str) -> list[int]:
    """Read `1,2,4` as ascending numbers."""
    return sorted({int(lag) for lag in text.split(",") if lag})


def add_schedule_options(schedule: argparse._ArgumentGroup) -> None:
    """How to train."""
    schedule.add_argument("--max_train_steps", type=int, default=25_000, help="optimiser steps")
    schedule.add_argument("--per_device_train_batch_size", type=int, default=64, help="melodies per step and process")
    schedule.add_argument("--gradient_accumulation_steps", type=int, default=1, help="batches per optimiser step")
    schedule.add_argument(
        "--learning_rate",
        type=float,
        default=1e-3,
        help="at its peak, for the default hidden_size of 256; narrower models take more: 4e-3 measured best for 64",
    )
    schedule.add_argument(
        "--lr_scheduler_type",
        choices=SCHEDULES,
        default="warmup_stable_decay",
        help="how the learning rate falls after its peak; %(default)s (over the last fifth) measured best",
    )
    schedule.add_argument("--num_warmup_steps", type=int, default=200, help="steps to the peak learning rate")
    schedule.add_argument(
        "--min_lr_ratio", type=float, default=0.0, help="what the learning rate falls to, as a share of the peak"
    )
    schedule.add_argument("--weight_decay", type=float, default=0.01, help="times the learning rate, on matrices")
    schedule.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        default="adamw",
        help="muon: weights of linear layers follow gradients with all singular values made equal, the others AdamW",
    )
    schedule.add_argument("--max_grad_norm", type=float, default=1.0, help="gradients longer than this are shortened")
    schedule.add_argument(
        "--label_smoothing", type=float, default=0.0, help="share of each target that is spread over all tokens"
    )
    schedule.add_argument(
        "--ema_decay",
        type=float,
        default=0.0,
        help="evaluate and save a running mean of the weights, which keeps this share of itself in each step; 0.999 is "
        "usual, 0: no mean",
    )
    schedule.add_argument(
        "--kl_warmup_steps", type=int, default=1000, help="steps until the KL term has its full weight"
    )
    schedule.add_argument(
        "--early_stopping_patience",
        type=int,
        default=0,
        help="stop after so many evaluations in a row without fewer bits per note on validation melodies; 0: never",
    )
    schedule.add_argument("--seed", type=int, default=0, help="of everything random")


def add_machine_options(machine: argparse._ArgumentGroup) -> None:
    """On what to train; how many processes there are, `accelerate launch` says."""
    machine.add_argument(
        "--mixed_precision", choices=["no", "bf16", "fp16"], help="default: as accelerate is configured"
    )
    machine.add_argument(
        "--cpu_threads", type=int, help="threads per process on a CPU; default: its share of the cores"
    )
    machine.add_argument(
        "--dataloader_num_workers",
        type=int,
        help="processes that prepare batches ahead; default: 2 beside a GPU, 1 for a stream on a CPU, else "
        "none: they would take cores from the training",
    )


def add_output_options(output: argparse._ArgumentGroup) -> None:
    """What to leave behind."""
    output.add_argument("--output_dir", required=True, help="where checkpoints, the trained model and report.html go")
    output.add_argument("--evaluation_steps", type=int, default=500, help="steps between evaluations")
    output.add_argument(
        "--max_eval_samples",
        type=int,
        default=512,
        help="validation melodies per evaluation: chosen by the seed, or the first ones of a stream",
    )
    output.add_argument("--per_device_eval_batch_size", type=int, default=16, help="melodies per batch there")
    output.add_argument(
        "--keep",
        choices=["best", "last"],
        default="best",
        help="the model that is saved: of the evaluation with the fewest bits per note, or of the last step",
    )
    output.add_argument(
        "--min_active_units",
        type=float,
        default=0.05,
        help="warn when fewer of the latent's dimensions, as a share, are in use: the posterior collapses",
    )
    output.add_argument(
        "--listening_samples",
        type=int,
        default=2,
        help="at each evaluation, write so many samples and reconstructions as MIDI, WAV and piano roll",
    )
    output.add_argument("--checkpointing_steps", type=int, default=1000, help="steps between checkpoints")
    output.add_argument(
        "--checkpointing_minutes", type=float, default=5.0, help="minutes after which one is written before that"
    )
    output.add_argument("--save_total_limit", type=int, default=2, help="checkpoints to keep")
    output.add_argument(
        "--resume_from_checkpoint",
        help="a checkpoint folder, or 'latest' in --output_dir; where there is none yet, training begins",
    )
    output.add_argument(
        "--report_to",
        choices=TRACKERS,
        default="none",
        help="where to show curves, sounds and pictures while training goes on; training_log.json and report.html are "
        "written in any case",
    )
    output.add_argument("--logging_steps", type=int, default=10, help="steps between two points of those curves")


POSITIVE = (
    "max_tokens",
    "max_duration",
    "streaming_buffer",
    "max_train_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "evaluation_steps",
    "max_eval_samples",
    "per_device_eval_batch_size",
    "checkpointing_steps",
    "checkpointing_minutes",
    "save_total_limit",
    "logging_steps",
    "genre_temperature",
    "num_proc",
)
SHARES = ("short_windows", "curriculum_start", "min_lr_ratio", "label_smoothing", "ema_decay", "min_active_units")


def check(args: argparse.Namespace) -> None:
    """Refuse numbers out of range and options that exclude each other.

    Raises:
        UserError: Names the option and what it may be.
    """
    for name in POSITIVE:
        if (value := getattr(args, name)) is not None and value <= 0:
            raise UserError(f"--{name} {value}: must be more than 0")
    for name in SHARES:
        if not 0 <= (value := getattr(args, name)) <= 1:
            raise UserError(f"--{name} {value}: must be from 0 to 1")
    if args.curriculum_start == 0 or args.ema_decay == 1:
        raise UserError("--curriculum_start must be more than 0, --ema_decay less than 1")
    if args.init_from and args.model_type != MELODY_VAE:
        raise UserError(f"--model_type {args.model_type}: --init_from goes on from the melody VAE only")
    if args.lora_rank and not args.init_from:
        raise UserError(f"--lora_rank {args.lora_rank}: adapters need a trained model; add --init_from")
    if args.lora_rank and args.train_only:
        raise UserError(f"--train_only {args.train_only}: adapters already freeze the model; leave out --lora_rank")
    if args.gradient_checkpointing and args.model_type in RECURRENT:
        raise UserError(f"--gradient_checkpointing computes attention layers again; leave it out for {args.model_type}")
    if args.streaming and (args.curriculum != "none" or args.genre_temperature != 1):
        raise UserError("--streaming reads melodies as they come; leave out --curriculum and --genre_temperature")
