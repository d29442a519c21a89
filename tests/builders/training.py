"""Data and arguments of tiny training runs, and what two runs must share."""

import json
import random
from pathlib import Path

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

import train
import train_prior
from training import prior, run_logger
from training.batches import WindowBatches
from training.data import load_lines, write_words
from training.run_logger import LOG_NAME

TINY = (
    "hidden_size=20,intermediate_size=24,num_attention_heads=2,num_encoder_layers=1,num_hidden_layers=1,"
    "latent_size=32,dropout=0.1"
)


def melody(generator: random.Random, bars: int, time_signature: str = "4/4") -> dict:
    steps = int(time_signature.split("/")[0]) * 4 * bars
    start = sorted({0, steps - 2, *generator.sample(range(steps), 3 * bars)})
    pitch = [generator.randint(55, 79) for _ in start]
    return {
        "melody_id": f"{generator.randrange(10**6):032x}:0:0",
        "pitch": pitch,
        "start": start,
        "duration": [min(end - begin, 8) for begin, end in zip(start, [*start[1:], steps], strict=True)],
        "time_signature": time_signature,
        "steps_per_beat": 4,
        "bars": bars,
        "is_lead": True,
        "tempo": 120.0,
        "key": "C major",
        "genre": None,
    }


def run(arguments: list[str], *, report: bool = False) -> None:
    """Train in this process, as the command would in a new one; drawing the report takes longer than the training."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    with pytest.MonkeyPatch.context() as patch:
        if not report:
            patch.setattr(run_logger, "write_report", lambda *_: None)
        train.training_function(train.parse_args(arguments))


def fit_prior(model: Path, dataset: Path, output: Path) -> None:
    """Fit a prior in this process, as the command would in a new one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    argv = ["--model", str(model), "--dataset", str(dataset), "--output_dir", str(output), "--cpu_threads", "1"]
    argv += ["--num_prior_layers", "1", "--max_train_steps", "40", "--batch_size", "16", "--num_proc", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior, "MIN_COUNT", 3)
        train_prior.training_function(train_prior.parse_args(argv))


def arguments(dataset: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--dataset", str(dataset), "--output_dir", str(output), "--config_overrides", TINY, "--vocab_size", "300"),
        *("--per_device_train_batch_size", "5", "--max_train_steps", "12", "--evaluation_steps", "4"),
        *("--checkpointing_steps", "7", "--num_warmup_steps", "3", "--mixed_precision", "no", "--cpu_threads", "1"),
        *("--num_proc", "1", "--listening_samples", "0", *more),
    ]


def make_batches(dataset: Path, **changes) -> WindowBatches:
    lines = write_words(load_lines(str(dataset), "train", "lead"), 1)
    lines = lines.map(lambda line: {"num_tokens": [len(word) for word in line["words"]]})
    options = {
        "bars": 16,
        "max_tokens": 10**6,
        "transpose": 6,
        "batch_size": 5,
        "num_batches_multiple": 1,
        "seed": 0,
    }
    return WindowBatches(lines, **{**options, **changes})


CLOCKS = {"melodies_per_second", "waiting_for_data"}  # of a log, what no two runs share


def history(folder: Path) -> list[dict]:
    log = json.loads((folder / LOG_NAME).read_text(encoding="utf-8"))
    return [{name: value for name, value in entry.items() if name not in CLOCKS} for entry in log["history"]]


def assert_same_run(one: Path, other: Path) -> None:
    resumed, whole = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert resumed.keys() == whole.keys()
    for name, tensor in resumed.items():
        assert torch.equal(tensor, whole[name]), name
    assert history(one) == history(other)


def write_dataset(folder: Path) -> None:
    """Write a data set of Contract 1's columns as far as training reads them."""
    folder.mkdir()
    generator = random.Random(0)
    for split, count in (("train", 24), ("validation", 6), ("test", 6)):
        rows = [melody(generator, generator.choice([4, 16, 16, 21])) for _ in range(count)]
        rows += [melody(generator, 7, "3/4"), melody(generator, 5, "6/8")]
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")
