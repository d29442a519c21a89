"""Checkpoints that are whole or not there, and the state they keep beside weights, optimiser and random states."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from filelock import FileLock, Timeout

from command import UserError

MANIFEST = "manifest.json"  # written last: a checkpoint's files and their sizes
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
        """Return the state for `Accelerator.save_state`."""
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


def checkpoints(output_dir: Path) -> list[Path]:
    """List complete checkpoints, oldest first; what an interrupted copy or a full disk left incomplete is none."""
    found = [path for path in output_dir.glob("step_*") if re.fullmatch(r"step_\d+", path.name) and is_complete(path)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def is_complete(checkpoint: Path) -> bool:
    """Whether all files of a checkpoint are there at their full size."""
    try:
        sizes = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def save_checkpoint(accelerator: Accelerator, state: TrainingState, position, output_dir: Path, limit: int) -> None:
    """Write a checkpoint under another name, rename it when it is whole and on disk, and drop the oldest.

    Killed at any moment, it leaves the checkpoints that were there, and perhaps a `partial_*` folder.

    Args:
        accelerator: Of the run.
        state: Registered with it.
        position: Of this process in its data.
        output_dir: The run's folder.
        limit: Checkpoints to keep.
    """
    state.positions = gather_object([position])
    partial, final = output_dir / f"partial_step_{state.step}", output_dir / f"step_{state.step}"
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if (output_dir / WEIGHTS).is_file():
            link(output_dir / WEIGHTS, partial / KEPT_WEIGHTS)
        files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
        for path in files:
            with path.open("r+b") as file:  # Windows flushes only what may be written
                os.fsync(file.fileno())
        sizes = {path.relative_to(partial).as_posix(): path.stat().st_size for path in files}
        (partial / MANIFEST).write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")
        if final.exists():  # this run went back to an older checkpoint
            final.rename(output_dir / f"partial_old_step_{state.step}")
        partial.rename(final)
        for old in checkpoints(output_dir)[:-limit]:
            shutil.rmtree(old)
        remove_partial(output_dir)
    accelerator.wait_for_everyone()


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


def find_checkpoint(name: str, output_dir: Path) -> Path:
    """Resolve `--resume_from_checkpoint`.

    Raises:
        UserError: If there is no such checkpoint.
    """
    if name == "latest":
        if not (found := checkpoints(output_dir)):
            raise UserError(f"{output_dir}: no checkpoint to resume from; leave out --resume_from_checkpoint to start")
        return found[-1]
    if not is_complete(Path(name)):
        raise UserError(f"{name}: not a checkpoint, or not a whole one; give a folder step_N of an --output_dir")
    return Path(name)


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
        path.replace(output_dir / path.name)
    partial.rmdir()
