"""What a run leaves in its folder: the model that is kept, the log, samples and reconstructions, the report."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from command import UserError, write_json
from training.adapters import merged
from training.averaging import AveragedWeights
from training.checkpoints import TrainingState, save_model
from training.monitoring import LISTENING, Take, listen, show
from training.report import write_report
from training.validation import evaluate, is_best, warnings_of

LOG_NAME = "training_log.json"


def earlier_log(source: str) -> dict | None:
    """Read the log of the model that a run goes on from, without its curves; None if it has none that can be read."""
    path = cached_file(source, LOG_NAME, _raise_exceptions_for_missing_entries=False, local_files_only=True)
    if path is None:
        return None
    try:
        log = json.loads(Path(path).read_text(encoding="utf-8"))
        return {name: value for name, value in log.items() if name != "history"}
    except (ValueError, AttributeError):
        return None


def unsharded(model: PreTrainedModel) -> PreTrainedModel:
    """Make a model like one that FSDP2 has sharded, without weights: sharding makes a class of torch's of the model's.

    Saved from that class, code and `auto_map` would be torch's own.
    """
    kind = next(each for each in type(model).__mro__ if not issubclass(each, FSDPModule))
    with torch.device("meta"):
        return kind(model.config)


class RunLogger:
    """Evaluates a model in training, keeps the best of it, and writes down how it went.

    Args:
        args: The command line's arguments.
        accelerator: Of the run.
        model: As the accelerator prepared it.
        adapted: peft's wrapper of it, where adapters are trained.
        processor: Saved beside the model.
        eval_loader: As the accelerator prepared it.
        average: Of the weights; it is what is evaluated and kept.
        state: Of the run.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        accelerator: Accelerator,
        model: nn.Module,
        adapted: nn.Module | None,
        processor,
        eval_loader: DataLoader,
        average: AveragedWeights,
        state: TrainingState,
    ):
        self.args = args
        self.accelerator = accelerator
        self.model = model
        self.whole: PreTrainedModel = accelerator.unwrap_model(model)
        self.adapted = adapted
        self.processor = processor
        self.eval_loader = eval_loader
        self.average = average
        self.state = state
        self.output_dir = Path(args.output_dir)
        self.is_sharded = accelerator.distributed_type == DistributedType.FSDP
        self.melodies_per_step = (
            args.per_device_train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
        )
        self.takes: list[Take] = []
        # Read before this run's own log is written: it may be for the same folder.
        self.before = earlier_log(args.init_from) if args.init_from else None

    @property
    def melodies_seen(self) -> int:
        """By all processes, from the first step on."""
        return self.state.step * self.melodies_per_step

    def evaluate(self, entry: dict) -> list[str]:
        """Evaluate, add the figures to the log's new entry, keep the model if it is the best, and listen to it.

        Returns:
            What there is to tell: the figures, and warnings.

        Raises:
            UserError: If training has diverged.
        """
        state = self.state
        with self.average.applied():
            entry |= evaluate(self.accelerator, self.model, self.eval_loader, self.args.seed)
            if not math.isfinite(entry["bits_per_note"]):
                raise UserError(f"step {state.step}: training has diverged; begin again with a lower --learning_rate")
            state.history.append(entry)
            if self.args.keep == "best" and is_best(state.history):
                self.save_model()
            self.listen()
        figures = {f"validation/{name}": entry[name] for name in entry if name not in ("step", "melodies")}
        self.accelerator.log(figures, step=state.step)
        self.write_log()
        return [
            f"step {state.step}: {entry['bits_per_note']:.3f} bits per note, "
            f"reconstruction {entry['reconstruction_nats']:.1f} nats, KL {entry['kl_nats']:.1f} nats, "
            f"{entry['active_units']} active units",
            *(f"warning: {message}" for message in self.warnings_at(len(state.history))),
        ]

    def warnings_at(self, evaluations: int) -> list[str]:
        """What an evaluation, counted from 1, warned of."""
        return warnings_of(
            self.state.history[:evaluations],
            self.whole.config.latent_size,
            self.args.min_active_units,
            self.args.kl_warmup_steps,
        )

    def save_model(self) -> None:
        """Write the model as it is now, so that it loads through `AutoModel`."""
        model, state_dict = self.whole, None
        if self.is_sharded:
            state_dict = self.accelerator.get_state_dict(self.model)
            model = unsharded(self.whole)
            for tied in model.all_tied_weights_keys:
                state_dict.pop(tied, None)
        if self.accelerator.is_main_process:
            save_model(merged(model, self.adapted), self.processor, self.output_dir, state_dict)
        self.accelerator.wait_for_everyone()

    def listen(self) -> None:
        """Write samples, and reconstructions of longer validation melodies; not of weights that are in parts."""
        if not self.args.listening_samples or self.is_sharded:
            return
        if self.accelerator.is_main_process:
            texts: Any = self.eval_loader.dataset
            batch: Any = self.eval_loader.collate_fn(texts[3 * len(texts) // 4 :][: self.args.listening_samples])
            originals = {name: batch[name].to(self.accelerator.device) for name in ("input_ids", "attention_mask")}
            folder = self.output_dir / LISTENING / f"step_{self.state.step}"
            self.takes = listen(self.whole, self.processor, originals, folder, self.args.seed)
            show(self.accelerator, self.takes, self.state.step)
        self.accelerator.wait_for_everyone()

    def log(self) -> dict:
        """What `training_log.json` holds: of a run that goes on from a trained model, that model's log as well."""
        state = self.state
        return {
            **({"before": self.before} if self.before else {}),
            "arguments": vars(self.args),
            "parameters": self.whole.num_parameters(),
            "melodies_per_second": self.melodies_seen / max(state.seconds, 1e-9),
            "seconds": state.seconds,
            "melodies_seen": self.melodies_seen,
            "cpu_threads": torch.get_num_threads(),
            "num_processes": self.accelerator.num_processes,
            "device": self.accelerator.device.type,
            "history": state.history,
        }

    def write_log(self) -> None:
        """Write the log, at once."""
        if self.accelerator.is_main_process:
            write_json(self.log(), self.output_dir / LOG_NAME)

    def finish(self) -> None:
        """Save the last model if that is the one to keep, and write log and report."""
        if self.args.keep == "last":
            with self.average.applied():
                self.save_model()
        self.write_log()
        if self.accelerator.is_main_process and self.state.history:
            evaluations = range(1, len(self.state.history) + 1)
            warnings = [message for number in evaluations for message in self.warnings_at(number)]
            write_report(self.output_dir, self.log(), self.takes, warnings)
