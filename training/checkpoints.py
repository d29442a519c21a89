"""Checkpoints that are whole or not there, in files that hold data and no code."""

import errno
import hashlib
import json
import math
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from filelock import FileLock, Timeout
from torch import nn
from torch.distributed.tensor import DTensor

from command import UserError
from training.state_files import local, read_state, write_state

MANIFEST = "manifest.json"  # written last: size and SHA-256 of a checkpoint's files
TRAINING = "training"  # where the run stands, schedule and running means
REQUIRED = {TRAINING, "random_states_0"}
WEIGHTS = "model.safetensors"
KEPT_WEIGHTS = "kept_model.safetensors"  # of the best evaluation so far, in a checkpoint


class TrainingState:
    """Where training stands.

    Attributes:
        step: Optimiser steps done.
        seconds: That they took.
        history: One entry for each evaluation.
        positions: Where each process stands in its data, as its loader describes it.
    """

    def __init__(self):
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict] = []
        self.positions: list = []

    def state_dict(self) -> dict:
        """Return the state for a checkpoint."""
        return dict(vars(self))

    def load_state_dict(self, state: dict) -> None:
        """Take over a state that `state_dict` made."""
        vars(self).update(state)


@contextmanager
def only_run(output_dir: Path) -> Iterator[None]:
    """Hold the run's folder, so that no other run writes there; a process that dies lets go of it.

    Raises:
        UserError: If another run holds it, such as processes that outlived their launcher.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output_dir / ".running", blocking=False)  # which forked workers do not inherit
    try:
        hold = lock.acquire()
    except Timeout as error:
        raise UserError(f"{output_dir}: another run is training there; end it, or choose another folder") from error
    with hold:
        yield


def checkpoint_folders(output_dir: Path) -> list[Path]:
    """List the folders of checkpoints, complete or not, oldest first."""
    folders = [path for path in output_dir.glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step_")))


def checkpoints(output_dir: Path) -> list[Path]:
    """List checkpoints whose files are all there at their full size, oldest first; `damage` also reads them."""
    return [path for path in checkpoint_folders(output_dir) if not damage(path, with_content=False)]


def digest(path: Path) -> str:
    """Return a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(checkpoint: Path, *, with_content: bool = True) -> str | None:
    """Say why a checkpoint is not complete: its manifest or a file is missing, cut off or altered.

    Args:
        checkpoint: Its folder.
        with_content: Compare the SHA-256 of each file too, which reads them.

    Returns:
        The reason, or None if it is complete.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in manifest.items()}
    except OSError:
        return f"no {MANIFEST}"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{MANIFEST} is damaged or of an earlier version"
    if missing := REQUIRED - {name.removesuffix(".json") for name in files}:
        return f"{MANIFEST} lacks {min(missing)}.json"
    for name, (size, sha256) in files.items():
        try:
            if (checkpoint / name).stat().st_size != size:
                return f"{name} is cut off"
            if with_content and digest(checkpoint / name) != sha256:
                return f"{name} is altered"
        except (OSError, ValueError):
            return f"{name} is missing or cannot be read"
    return None


def check_finite(accelerator: Accelerator, step: int, figures: dict[str, Any], model: nn.Module) -> None:
    """Refuse to save weights that hold a NaN or an infinity, or are about to.

    Args:
        accelerator: Of the run; what one process finds ends all.
        step: Optimiser steps done.
        figures: Loss and norm of the gradient of this step.
        model: With the weights.

    Raises:
        UserError: If training has diverged.
    """
    wrong = [name for name, value in figures.items() if not math.isfinite(float(value))]
    wrong += [name for name, weight in model.named_parameters() if not local(weight.detach()).isfinite().all()]
    if found := [name for names in gather_object([wrong[:1]]) for name in names]:
        raise UserError(
            f"step {step}: training has diverged ({found[0]} is not finite), nothing is saved of it; begin again with "
            "a lower --learning_rate"
        )


class Checkpointer:
    """Writes and reads all that a run needs to go on exactly: weights, optimizer, schedule, random states, position.

    Args:
        accelerator: Of the run.
        model: As the accelerator prepared it.
        optimizer: As the accelerator prepared it.
        others: What else has `state_dict` and `load_state_dict`, by name.
        state: Of the run.
        output_dir: The run's folder.
        limit: Checkpoints to keep.
        minutes: Since the last checkpoint, or the start, after which it is time for one.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        others: dict[str, Any],
        state: TrainingState,
        output_dir: Path,
        limit: int,
        minutes: float,
    ):
        self.accelerator = accelerator
        self.model: nn.Module = accelerator.unwrap_model(model)
        self.optimizer = optimizer
        self.others = others
        self.state = state
        self.output_dir = output_dir
        self.limit = limit
        self.seconds = 60 * minutes
        self.is_sharded = accelerator.distributed_type == DistributedType.FSDP
        self.saved_at = time.monotonic()

    def is_time(self, is_cheap: bool) -> bool:
        """Whether the last checkpoint is so long ago that the next is due, by the main process's clock.

        Args:
            is_cheap: Whether processes may wait for each other at this step.
        """
        is_due = time.monotonic() - self.saved_at >= self.seconds
        if self.accelerator.num_processes == 1:
            return is_due
        return is_cheap and bool(broadcast_object_list([is_due])[0])

    def save(self, position: Any, figures: dict[str, Any]) -> None:
        """Write a checkpoint under another name, rename it when it is whole and on disk, and drop the oldest.

        Killed at any moment, it leaves the checkpoints that were there, and perhaps a `partial_*` folder.

        Args:
            position: Of this process in its data.
            figures: Loss and norm of the gradient of this step.

        Raises:
            UserError: If training has diverged.
        """
        check_finite(self.accelerator, self.state.step, figures, self.model)
        self.state.positions = gather_object([position])
        partial = self.output_dir / f"partial_step_{self.state.step}"
        try:
            self.write(partial)
        except BaseException:
            if self.accelerator.is_main_process:  # a full disk has room again
                shutil.rmtree(partial, ignore_errors=True)
            raise
        self.accelerator.wait_for_everyone()
        self.saved_at = time.monotonic()

    def write(self, partial: Path) -> None:
        """Write each process's files, then, in the main process, the manifest, and put the checkpoint in its place."""
        rank, is_main = self.accelerator.process_index, self.accelerator.is_main_process
        partial.mkdir(exist_ok=True)
        of_process = f"_{rank}" if self.is_sharded else ""
        if is_main or self.is_sharded:
            write_state(self.model.state_dict(), partial / f"model{of_process}")
            write_state(self.optimizer.state_dict(), partial / f"optimizer{of_process}")
        write_state(random_states(), partial / f"random_states_{rank}")
        if is_main:
            others = {name: each.state_dict() for name, each in self.everything_else().items()}
            write_state({"accumulated": self.accelerator.step, **others}, partial / TRAINING)
        self.accelerator.wait_for_everyone()
        if not is_main:
            return
        if (self.output_dir / WEIGHTS).is_file():
            link(self.output_dir / WEIGHTS, partial / KEPT_WEIGHTS)
        write_manifest(partial)
        final = self.output_dir / f"step_{self.state.step}"
        if final.exists():  # this run went back to an older checkpoint
            final.rename(self.output_dir / f"partial_old_step_{self.state.step}")
        partial.rename(final)
        flush(self.output_dir)
        for old in checkpoints(self.output_dir)[: -self.limit]:
            shutil.rmtree(old)
        remove_partial(self.output_dir)

    def load(self, checkpoint: Path) -> None:
        """Go on from a checkpoint; it was found complete.

        Raises:
            UserError: If it is of another model, or of another number of processes.
        """
        rank = self.accelerator.process_index
        of_process = f"_{rank}" if self.is_sharded else ""
        try:
            training = read_state(checkpoint / TRAINING)
            self.state.load_state_dict(training["state"])
            position_in(self.state, rank, self.accelerator.num_processes)
            load_weights(self.model, read_state(checkpoint / f"model{of_process}"))
            load_optimizer(self.optimizer, read_state(checkpoint / f"optimizer{of_process}"))
            for name, each in self.everything_else().items():
                each.load_state_dict(training[name])
            self.accelerator.step = training["accumulated"]
            set_random_states(read_state(checkpoint / f"random_states_{rank}"))
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{checkpoint}: a checkpoint of another model; resume with the options it began with"
            ) from error

    def everything_else(self) -> dict[str, Any]:
        """What is neither weights nor optimizer, by the name it has in the file."""
        scaler = {"scaler": self.accelerator.scaler} if self.accelerator.scaler is not None else {}
        return {"state": self.state, **self.others, **scaler}


@torch.no_grad()
def load_weights(model: nn.Module, saved: dict[str, torch.Tensor]) -> None:
    """Copy weights into a model, in each process its part.

    Raises:
        ValueError: If names or shapes differ.
    """
    weights = {name: local(weight) for name, weight in model.state_dict().items()}
    if {name: each.shape for name, each in weights.items()} != {name: each.shape for name, each in saved.items()}:
        raise ValueError("weights of another model")
    for name, weight in weights.items():
        weight.copy_(saved[name])


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Give an optimizer its state back; moments of sharded weights become sharded tensors like them."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, entries in saved["state"].items():
        if isinstance(weight := weights[index], DTensor):
            for name, value in entries.items():
                if value.ndim == weight.ndim:
                    entries[name] = DTensor.from_local(
                        value.to(weight.device),
                        weight.device_mesh,
                        weight.placements,
                        shape=weight.shape,
                        stride=weight.stride(),
                    )
    optimizer.load_state_dict(saved)


def random_states() -> dict[str, Any]:
    """Return the states of all random number generators that training draws from."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Undo `random_states`."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])


def write_manifest(folder: Path) -> None:
    """Write down each file's size and SHA-256, and wait until all of it is on disk."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    entries = {path.name: {"size": path.stat().st_size, "sha256": digest(path)} for path in files}
    (folder / MANIFEST).write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    for path in [*files, folder / MANIFEST, folder]:
        flush(path)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    if path.is_dir():
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except PermissionError:  # Windows opens no folders
            return
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.EINVAL):  # some file systems flush no folders
                raise
        finally:
            os.close(descriptor)
        return
    with path.open("r+b") as file:  # Windows flushes only what may be written
        os.fsync(file.fileno())


def link(source: Path, target: Path) -> None:
    """Give a file a second name, which costs no space; where the file system has no links, copy it."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def remove_partial(output_dir: Path) -> None:
    """Remove what was half written when a run was killed."""
    for path in output_dir.glob("partial_*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def restore_kept_weights(checkpoint: Path, output_dir: Path) -> None:
    """Put back the weights that were kept when a checkpoint was written: later ones may have replaced them."""
    if (checkpoint / KEPT_WEIGHTS).is_file():
        partial = output_dir / "partial_weights"
        partial.unlink(missing_ok=True)
        link(checkpoint / KEPT_WEIGHTS, partial)
        partial.replace(output_dir / WEIGHTS)


def find_checkpoint(name: str, output_dir: Path, say: Callable[[str], object] = print) -> Path | None:
    """Resolve `--resume_from_checkpoint`.

    Args:
        name: A checkpoint's folder, or `latest`: the newest complete one in `output_dir`.
        output_dir: The run's folder.
        say: Called with one line where a newer checkpoint is left out because it is damaged.

    Returns:
        The checkpoint; None if it is to be the latest and there is none yet.

    Raises:
        UserError: If the one that is named is none, or those that there are cannot be read by this version.
    """
    if name != "latest":
        if reason := damage(Path(name)):
            raise UserError(f"{name}: not a checkpoint, or not a whole one ({reason}); give a folder step_N of a run")
        return Path(name)
    damaged = []
    for folder in reversed(checkpoint_folders(output_dir)):
        if not (reason := damage(folder)):
            if damaged:
                say(f"not complete: {', '.join(damaged)}; going on from {folder.name}")
            return folder
        damaged.append(f"{folder.name} ({reason})")
    if damaged:
        raise UserError(
            f"{output_dir}: no complete checkpoint: {', '.join(damaged)}; move them away to begin again, or resume "
            "with the version that wrote them"
        )
    return None


def position_in(state: TrainingState, rank: int, num_processes: int):
    """Where a process goes on in its data.

    Raises:
        UserError: If the checkpoint is of another number of processes: their data would overlap or be left out.
    """
    if len(state.positions) != num_processes:
        raise UserError(
            f"the checkpoint is of {len(state.positions)} process(es), this run has {num_processes}: start as many, or "
            "begin a new run from the trained weights with --init_from"
        )
    return state.positions[rank]


def save_model(model, processor, output_dir: Path, state_dict: dict | None = None) -> None:
    """Save a model that loads through `AutoModel`, weights last and each file at once: one can load it at any time.

    Args:
        model: With its configuration.
        processor: Saved beside it.
        output_dir: The run's folder.
        state_dict: The weights, where the model holds only a part of them.
    """
    partial = output_dir / "partial_model"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial, state_dict=state_dict)
    processor.save_pretrained(partial)
    for path in sorted(partial.iterdir(), key=lambda path: path.suffix == ".safetensors"):
        flush(path)
        path.replace(output_dir / path.name)
    partial.rmdir()
