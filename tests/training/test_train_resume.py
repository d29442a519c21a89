"""Exact resume: whatever is killed and started again ends with the weights of a run that was left alone."""

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

import train
from command import UserError
from tests.builders.training import TINY, arguments, assert_same_run, history, run
from training import checkpoints as rooms

ROOT = Path(__file__).parents[2]


NO_LATENT = TINY.replace("latent_size=32", "latent_size=0") + ",token_dropout=0.2"


class KilledError(Exception):
    pass


def run_and_kill(argv: list[str], step: int, monkeypatch) -> None:
    """Train in this process, and stop it in the middle of a step's forward pass."""
    schedule = train.kl_weight_at

    def kill(at: int, *rest) -> float:
        if at == step:
            raise KilledError
        return schedule(at, *rest)

    monkeypatch.setattr(train, "kl_weight_at", kill)
    with pytest.raises(KilledError):
        run(argv)
    monkeypatch.undo()


@pytest.mark.parametrize(
    "options",
    [
        ["--gradient_accumulation_steps", "2", "--mixed_precision", "bf16", "--ema_decay", "0.9", "--keep", "last"],
        ["--streaming", "--streaming_buffer", "11", "--lr_scheduler_type", "inverse_sqrt"],
        ["--dataloader_num_workers", "2", "--label_smoothing", "0.1", "--config_overrides", NO_LATENT],
    ],
    ids=["accumulation, bf16 and a mean", "streaming", "workers and no latent"],
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # where there is only one core
def test_resume_is_exact(dataset, tmp_path, monkeypatch, options):
    """Killed in the second epoch, four steps after the checkpoint, with evaluations on both sides."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(arguments(dataset, whole, *options))
    run_and_kill(arguments(dataset, killed, *options), 11, monkeypatch)
    assert [path.name for path in rooms.checkpoints(killed)] == ["step_7"]
    run(arguments(dataset, killed, *options, "--resume_from_checkpoint", "latest"))
    assert_same_run(killed, whole)


def test_resume_puts_back_what_was_best(dataset, tmp_path, monkeypatch):
    """The model on disk after a resume is the best up to the checkpoint, not of the steps that were lost."""
    run_and_kill(arguments(dataset, tmp_path), 11, monkeypatch)
    lost = load_file(tmp_path / "model.safetensors")  # of step 8, which was better than step 4
    assert [entry["step"] for entry in history(tmp_path)] == [4, 8]
    argv = arguments(dataset, tmp_path, "--resume_from_checkpoint", "latest", "--max_train_steps", "7")
    run(argv)
    kept = load_file(tmp_path / "step_7" / rooms.KEPT_WEIGHTS)
    restored = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(restored[name], kept[name]) for name in kept)
    assert not all(torch.equal(restored[name], lost[name]) for name in kept)


def test_another_number_of_processes_is_refused():
    state = rooms.TrainingState()
    state.positions = [3, 3]
    assert rooms.position_in(state, 1, 2) == 3
    with pytest.raises(UserError, match=r"of 2 process\(es\), this run has 3"):
        rooms.position_in(state, 1, 3)


def test_two_runs_in_one_folder_are_refused(tmp_path):
    program = "from pathlib import Path; from training.checkpoints import only_run\n"
    program += f"with only_run(Path({str(tmp_path)!r})): print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another run is training there"), rooms.only_run(tmp_path):
            pass
        other.kill()
    with rooms.only_run(tmp_path):
        pass


def whole_checkpoint(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"1234567")
    (folder / rooms.MANIFEST).write_text('{"weights": 7}', encoding="utf-8")


def test_incomplete_checkpoints_are_skipped(tmp_path):
    for step in (3, 20, 100):
        whole_checkpoint(tmp_path / f"step_{step}")
    whole_checkpoint(tmp_path / "step_x")
    (tmp_path / "partial_step_101").mkdir()
    assert rooms.find_checkpoint("latest", tmp_path).name == "step_100"
    (tmp_path / "step_100" / "weights").write_bytes(b"123")
    assert rooms.find_checkpoint("latest", tmp_path).name == "step_20"
    (tmp_path / "step_20" / rooms.MANIFEST).unlink()
    assert [path.name for path in rooms.checkpoints(tmp_path)] == ["step_3"]
    with pytest.raises(UserError, match="not a checkpoint"):
        rooms.find_checkpoint(str(tmp_path / "step_20"), tmp_path)


def test_what_is_half_written_is_removed(dataset, tmp_path):
    (tmp_path / "partial_step_7").mkdir()
    (tmp_path / "partial_step_7" / "weights").write_bytes(b"123")
    (tmp_path / "partial_training_log.json").write_text("{", encoding="utf-8")
    run(arguments(dataset, tmp_path, "--max_train_steps", "1"))
    assert not list(tmp_path.glob("partial_*"))


def test_only_the_newest_checkpoints_stay(dataset, tmp_path):
    run(arguments(dataset, tmp_path, "--checkpointing_steps", "3", "--save_total_limit", "2"))
    assert [path.name for path in rooms.checkpoints(tmp_path)] == ["step_9", "step_12"]
    assert sorted(path.name for path in tmp_path.glob("step_*")) == ["step_12", "step_9"]


def train_here(argv: list[str], output: Path) -> None:
    """Run the command in this process, which has no other use."""
    with output.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.argv = ["train.py", *argv]
    sys.exit(train.main())


def start(argv: list[str], processes: int, output: Path) -> subprocess.Popen:
    """Start the command as README does."""
    command = [sys.executable, "train.py"]
    if processes > 1:
        launch = ["--config_file", "configs/cpu.yaml", "--num_processes", str(processes), "--main_process_port", "0"]
        command = [sys.executable, "-m", "accelerate.commands.launch", *launch, "train.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with output.open("ab") as log:
        return subprocess.Popen([*command, *argv], cwd=ROOT, env=environment, stdout=log, stderr=log)


def fork(argv: list[str], output: Path) -> multiprocessing.Process:
    """Start the command in a process that begins with everything imported: that takes longer than the training."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=train_here, args=(argv, output))
    process.start()
    return process


def exit_code(process: subprocess.Popen | multiprocessing.Process) -> int | None:
    """None while it runs."""
    return process.poll() if isinstance(process, subprocess.Popen) else process.exitcode


def kill_all(process: subprocess.Popen | multiprocessing.Process) -> None:
    """Kill -9 a command and all that it has started; accelerate's processes are in groups of their own."""
    root = psutil.Process(process.pid)
    for each in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


def newest(folder: Path) -> int:
    """Step of the newest checkpoint; 0 if there is none."""
    found = rooms.checkpoints(folder)
    return int(found[-1].name.removeprefix("step_")) if found else 0


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("processes", "kills"), [(1, 10), (2, 3)])
def test_killed_at_random_moments(dataset, tmp_path, processes, kills):
    """kill -9 to all processes, in the middle of a step or a checkpoint, then the same command again."""
    options = ["--gradient_accumulation_steps", "2", "--mixed_precision", "bf16", "--ema_decay", "0.9"]
    options += ["--max_train_steps", "90", "--checkpointing_steps", "3", "--evaluation_steps", "7"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(arguments(dataset, whole, *options), processes, tmp_path / "whole.log").wait() == 0
    assert f"{processes} process(es) on cpu" in (tmp_path / "whole.log").read_text(encoding="utf-8")
    generator = random.Random(processes)
    for kill in range(kills + 1):
        resume = ["--resume_from_checkpoint", "latest"] if newest(killed) else []
        argv, log = arguments(dataset, killed, *options, *resume), tmp_path / "killed.log"
        process = fork(argv, log) if processes == 1 else start(argv, processes, log)
        if kill < kills:
            target = newest(killed) + generator.choice([3, 6])
            while newest(killed) < target:
                assert exit_code(process) is None, log.read_text(encoding="utf-8")[-3000:]
                time.sleep(0.005)
            time.sleep(generator.uniform(0, 0.1))
            kill_all(process)
        while exit_code(process) is None:
            time.sleep(0.01)
        assert exit_code(process) == (-signal.SIGKILL if kill < kills else 0), log.read_text(encoding="utf-8")[-3000:]
    assert_same_run(killed, whole)
