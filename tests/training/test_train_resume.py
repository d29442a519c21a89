"""Exact resume: whatever is killed and started again ends with the weights of a run that was left alone."""

import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import train
from command import UserError
from tests.builders.commands import become, finish, fork, kill_all, launch, redirect
from tests.builders.training import TINY, arguments, assert_same_run, history, run
from training import checkpoints as rooms
from training.state_files import read_state, write_state

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
    """Write a checkpoint as the run's files are, but for what is in them."""
    folder.mkdir(parents=True)
    for name in ("weights.safetensors", "training.json", "random_states_0.json"):
        (folder / name).write_bytes(f"{name} of {folder.name}".encode())
    rooms.write_manifest(folder)


def flip_bit(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_incomplete_checkpoints_are_skipped(tmp_path):
    for step in (3, 20, 100):
        whole_checkpoint(tmp_path / f"step_{step}")
    whole_checkpoint(tmp_path / "step_x")
    (tmp_path / "partial_step_101").mkdir()
    assert rooms.find_checkpoint("latest", tmp_path).name == "step_100"
    (tmp_path / "step_100" / "weights.safetensors").write_bytes(b"123")
    assert rooms.find_checkpoint("latest", tmp_path).name == "step_20"
    (tmp_path / "step_20" / rooms.MANIFEST).unlink()
    assert [path.name for path in rooms.checkpoints(tmp_path)] == ["step_3"]
    with pytest.raises(UserError, match="not a checkpoint"):
        rooms.find_checkpoint(str(tmp_path / "step_20"), tmp_path)


@pytest.mark.parametrize("file", ["weights.safetensors", "training.json", "random_states_0.json", rooms.MANIFEST])
def test_any_flipped_bit_makes_a_checkpoint_incomplete(tmp_path, file):
    whole_checkpoint(tmp_path / "step_3")
    whole_checkpoint(tmp_path / "step_4")
    generator, size = random.Random(file), (tmp_path / "step_4" / file).stat().st_size
    said: list[str] = []
    middle = [generator.randrange(8 * size - 8) for _ in range(40)]
    for bit in {0, 8 * size - 9, *middle}:  # the last line's end means nothing
        flip_bit(tmp_path / "step_4" / file, bit)
        assert rooms.find_checkpoint("latest", tmp_path, said.append).name == "step_3", bit
        assert len(said) == 1
        assert said.pop().startswith("not complete: step_4 (")
        flip_bit(tmp_path / "step_4" / file, bit)
        assert rooms.find_checkpoint("latest", tmp_path, said.append).name == "step_4"
        assert not said


MANIFESTS = ["", "{", "{}", "[]", "null", "7", '{"weights.safetensors": 31}', '{"training.json": {"size": "many"}}']


@pytest.mark.parametrize("manifest", [*MANIFESTS, "[" * 100_000, '{"training.json": {"size": 24, "sha256": null}}'])
def test_a_manifest_of_anything_else_makes_a_checkpoint_incomplete(tmp_path, manifest):
    whole_checkpoint(tmp_path / "step_3")
    whole_checkpoint(tmp_path / "step_4")
    (tmp_path / "step_4" / rooms.MANIFEST).write_text(manifest, encoding="utf-8")
    assert rooms.find_checkpoint("latest", tmp_path).name == "step_3"
    (tmp_path / "step_3" / rooms.MANIFEST).write_text(manifest, encoding="utf-8")
    with pytest.raises(UserError, match=r"no complete checkpoint: step_4 \(.*step_3 \(.*begin again"):
        rooms.find_checkpoint("latest", tmp_path)


def test_resume_goes_on_from_before_the_damage(dataset, tmp_path, monkeypatch, capsys):
    """One bit of the newest checkpoint's optimizer is another: the run is the one that was left alone."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ["--checkpointing_steps", "3"]
    run(arguments(dataset, whole, *options))
    run_and_kill(arguments(dataset, killed, *options), 8, monkeypatch)
    flip_bit(killed / "step_6" / "optimizer.safetensors", 80_001)
    run(arguments(dataset, killed, *options, "--resume_from_checkpoint", "latest"))
    assert "step_6 (optimizer.safetensors is altered); going on from step_3" in capsys.readouterr().out
    assert_same_run(killed, whole)


def test_latest_begins_where_there_is_none_yet(dataset, tmp_path, capsys):
    options = ["--max_train_steps", "4"]
    run(arguments(dataset, tmp_path / "begun", *options))
    run(arguments(dataset, tmp_path / "latest", *options, "--resume_from_checkpoint", "latest"))
    assert "no checkpoint yet; training begins" in capsys.readouterr().out
    assert_same_run(tmp_path / "latest", tmp_path / "begun")


def test_checkpoints_by_time(dataset, tmp_path):
    options = ["--checkpointing_steps", "1000", "--max_train_steps", "6"]
    run(arguments(dataset, tmp_path / "soon", *options, "--checkpointing_minutes", "1e-6"))
    assert [path.name for path in rooms.checkpoints(tmp_path / "soon")] == ["step_5", "step_6"]
    run(arguments(dataset, tmp_path / "late", *options, "--checkpointing_minutes", "100"))
    assert not rooms.checkpoints(tmp_path / "late")


@pytest.mark.parametrize("what", ["loss", "gradient", "weights"])
def test_a_diverged_run_saves_nothing(dataset, tmp_path, monkeypatch, what):
    """Step 6 is of a checkpoint; each of the three alone must keep the one before."""
    loss_of, calls = train.training_loss, iter(range(1, 100))

    def diverge(output, *rest):
        loss = loss_of(output, *rest)
        if next(calls) != 6:
            return loss
        if what == "gradient":
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss * float("inf") if what == "loss" else loss

    monkeypatch.setattr(train, "training_loss", diverge)
    if what == "weights":

        def break_weights(self, step):
            if step == 6:
                with torch.no_grad():
                    next(iter(self.weights)).view(-1)[0] = float("nan")

        monkeypatch.setattr(train.AveragedWeights, "update", break_weights)
    argv = arguments(dataset, tmp_path, "--checkpointing_steps", "3", "--ema_decay", "0.9")
    with pytest.raises(UserError, match=r"step 6: training has diverged \(.* is not finite\), nothing is saved"):
        run(argv)
    assert [path.name for path in tmp_path.glob("*step_*")] == ["step_3"]
    for file in (tmp_path / "step_3").glob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values() if tensor.is_floating_point())


class Canary:
    """Pickled, it is code: reading it makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_foreign_checkpoint_runs_no_code(dataset, tmp_path):
    """Every file that this or an earlier version reads, as a pickle with a valid manifest beside it."""
    run(arguments(dataset, tmp_path, "--max_train_steps", "7"))
    checkpoint, canary = tmp_path / "step_7", tmp_path / "canary"
    hostile = pickle.dumps(Canary(canary))
    resume = arguments(dataset, tmp_path, "--max_train_steps", "8", "--resume_from_checkpoint", str(checkpoint))
    earlier = [f"custom_checkpoint_{number}.pkl" for number in range(3)]
    for name in [*earlier, "random_states_0.pkl", "optimizer.bin", "scheduler.bin", "scaler.pt", ".metadata"]:
        (checkpoint / name).write_bytes(hostile)
        torch.save(Canary(canary), tmp_path / "zipped")
    rooms.write_manifest(checkpoint)
    run(resume)
    own = sorted(path for path in checkpoint.iterdir() if path.suffix in (".json", ".safetensors"))
    assert len(own) >= 8
    for file in own:
        if file.name in (rooms.MANIFEST, rooms.KEPT_WEIGHTS):
            continue
        content = file.read_bytes()
        for attack in (hostile, (tmp_path / "zipped").read_bytes()):
            file.write_bytes(attack)
            rooms.write_manifest(checkpoint)
            with pytest.raises(UserError, match="a checkpoint of another model"):
                run(resume)
        file.write_bytes(content)
    assert not canary.exists()
    pickle.loads(hostile)
    assert canary.is_dir(), "the canary is alive"


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TENSORS = st.builds(torch.tensor, st.lists(st.floats(width=32, allow_nan=False))) | st.builds(
    lambda values: torch.tensor(values, dtype=torch.uint8), st.integers(0, 255)
)
KEYS = st.integers() | st.text(st.characters(exclude_categories=["Cs"]))
STATES = st.recursive(
    SCALARS | TENSORS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner),
    max_leaves=9,
)


def is_same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(is_same, one, other))
    return type(one) is type(other) and one == other


@given(STATES)
def test_state_files_give_back_what_was_written(state):
    with tempfile.TemporaryDirectory() as folder:
        write_state(state, Path(folder) / "state")
        assert is_same(read_state(Path(folder) / "state"), state)


def test_state_files_hold_no_objects(tmp_path):
    with pytest.raises(TypeError, match=r"a: \w*Path cannot be kept"):
        write_state({"a": tmp_path}, tmp_path / "state")


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


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on a file's size")
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "training.json"])
def test_a_full_disk_is_one_line_and_loses_nothing(dataset, tmp_path, monkeypatch, file):
    """A limit on files stops the second checkpoint at this file of it; with room again, the run is as it would be."""
    whole, full = tmp_path / "whole", tmp_path / "full"
    options = ["--checkpointing_steps", "3", "--keep", "last", "--max_train_steps", "6"]
    run(arguments(dataset, whole, *options))
    run_and_kill(arguments(dataset, full, *options), 4, monkeypatch)
    resume = arguments(dataset, full, *options, "--resume_from_checkpoint", "latest")
    log, limit = tmp_path / "log", (full / "step_3" / file).stat().st_size // 2
    process = fork(train_on_a_full_disk, resume, log, limit)
    process.join()
    lines = log.read_text(encoding="utf-8").strip().splitlines()
    assert process.exitcode == 2, lines
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert error.endswith("free some space; stopped; the same command with --resume_from_checkpoint latest goes on")
    assert not any("Traceback" in line for line in lines)
    assert [path.name for path in full.glob("*step_*")] == ["step_3"]
    assert rooms.damage(full / "step_3") is None
    run(resume)
    assert_same_run(full, whole)


def train_on_a_full_disk(argv: list[str], output: Path, limit: int) -> None:
    """Train in this process, which has no other use, where a file of a checkpoint may have `limit` bytes."""
    import resource

    write = rooms.Checkpointer.write

    def limited(self, partial: Path) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            write(self, partial)
        finally:  # what is printed goes to a file too
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    rooms.Checkpointer.write = limited
    redirect(output)
    sys.argv = ["train.py", *argv]
    sys.exit(train.main())


def start(argv: list[str], processes: int, output: Path) -> BaseProcess:
    """Start the command as README does."""
    if processes == 1:
        return fork(become, ["train.py", *argv], ROOT, output)
    options = ["--config_file", "configs/cpu.yaml", "--num_processes", str(processes)]
    return launch(options, ["train.py", *argv], ROOT, output)


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
    log = tmp_path / "whole.log"
    printed = finish(start(arguments(dataset, whole, *options), processes, log), log)
    assert f"{processes} process(es) on cpu" in printed
    generator = random.Random(processes)
    for kill in range(kills + 1):
        resume = ["--resume_from_checkpoint", "latest"] if newest(killed) else []
        argv, log = arguments(dataset, killed, *options, *resume), tmp_path / "killed.log"
        process = start(argv, processes, log)
        if kill < kills:
            target = newest(killed) + generator.choice([3, 6])
            while newest(killed) < target:
                assert process.exitcode is None, log.read_text(encoding="utf-8")[-3000:]
                time.sleep(0.005)
            time.sleep(generator.uniform(0, 0.1))
            kill_all(process)
        process.join()
        assert process.exitcode == (-signal.SIGKILL if kill < kills else 0), log.read_text(encoding="utf-8")[-3000:]
    assert_same_run(killed, whole)
