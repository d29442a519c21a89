"""What befalls commands: kills, full disks, numbers that are not finite, and a process lost of two."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from training.checkpoints import checkpoints, damage

ROOT = Path(__file__).parents[1]
TRAINED_STEPS = 40
PATIENCE_SECONDS = 900.0  # with a process that was asked to end, on a machine that may be busy
FULL_DISK_BYTES = (100, 10_000, 1_000_000)  # sizes of a file at which the disk is full
TINY = (
    "hidden_size=20,intermediate_size=24,num_attention_heads=2,num_encoder_layers=1,num_hidden_layers=1,latent_size=32"
)


def run(command: Sequence[str], seconds: float = 3600.0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command from the repository's root, by one thread."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=seconds,
        check=False,
        **options,
    )


def environment(**more: str) -> dict[str, str]:
    """The environment of a command that has one thread and no network."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def run_where_files_end(command: Sequence[str], limit: int) -> subprocess.CompletedProcess[str]:
    """Run a Python command where no file may be larger than `limit` bytes, which it sees as a full disk."""
    import resource

    return run([sys.executable, *command], preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))


def is_one_line(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether a command ended with exit code 2 and one line that says why."""
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return done.returncode == 2 and len(said) == 1 and "Traceback" not in done.stderr


def write_dataset(folder: Path) -> None:
    """Write a data set of random melodies."""
    folder.mkdir()
    generator = random.Random(0)
    for split, count in (("train", 24), ("validation", 6)):
        rows = []
        for _ in range(count):
            start = sorted({0, *generator.sample(range(250), 40)})
            duration = [min(end - begin, 8) for begin, end in zip(start, [*start[1:], 256], strict=True)]
            row = {"pitch": [generator.randint(55, 79) for _ in start], "start": start, "duration": duration}
            row |= {"melody_id": f"{generator.randrange(10**9):032x}:0:0", "time_signature": "4/4", "steps_per_beat": 4}
            rows.append(row | {"bars": 16, "is_lead": True, "tempo": 120.0, "key": "C major", "genre": None})
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def training(data: Path, output: Path, *more: str) -> list[str]:
    """The command that trains a tiny model, from its latest checkpoint where there is one."""
    return [
        *("train.py", "--dataset", str(data), "--output_dir", str(output), "--config_overrides", TINY),
        *("--vocab_size", "300", "--per_device_train_batch_size", "5", "--max_train_steps", str(TRAINED_STEPS)),
        *(
            "--evaluation_steps",
            "10",
            "--checkpointing_steps",
            "4",
            "--num_warmup_steps",
            "3",
            "--mixed_precision",
            "no",
        ),
        *("--cpu_threads", "1", "--num_proc", "1", "--listening_samples", "0", "--resume_from_checkpoint", "latest"),
        *more,
    ]


def is_same_model(one: Path, other: Path) -> bool:
    """Whether two runs' weights are equal, bit for bit."""
    weights, others = (load_file(folder / "model.safetensors") for folder in (one, other))
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def kill_training(count: int, seed: int, data: Path, whole: Path, folder: Path) -> dict[str, int]:
    """Kill runs by signals 9 and 15, soon after each has written a checkpoint, and resume them until they end."""
    generator = random.Random(seed)
    kills = incomplete = runs = same = 0
    with tqdm(total=count, desc="kills") as progress:
        while kills < count or folder.is_dir():
            is_killed = kills < count and kill_once(training(data, folder), folder, generator)
            kills += is_killed
            progress.update(is_killed)
            incomplete += any(damage(checkpoint) for checkpoint in checkpoints(folder))
            if kills == count:
                run([sys.executable, *training(data, folder)])
            if not is_killed or kills == count:  # it has ended
                runs += 1
                same += is_same_model(folder, whole)
                shutil.rmtree(folder)
    return {
        "kills": kills,
        "incomplete_checkpoints": incomplete,
        "runs": runs,
        "ends_with_the_same_weights": same,
    }


def kill_once(command: Sequence[str], folder: Path, generator: random.Random) -> bool:
    """Start a run, and kill it soon after its next checkpoint; returns False where it ended before."""
    before = [path.name for path in checkpoints(folder)[-1:]]
    with start([sys.executable, *command]) as process:
        while process.poll() is None and [path.name for path in checkpoints(folder)[-1:]] in ([], before):
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.3))
        is_killed = process.poll() is None
        process.send_signal(generator.choice([signal.SIGKILL, signal.SIGTERM]))
        end(process)
    return is_killed


def start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a command whose words are not kept."""
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def end(process: subprocess.Popen[bytes]) -> int | None:
    """Wait for a process that was asked to end; returns its exit code, None where it had to be killed."""
    try:
        return process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return None


def fill_disks(count: int, data: Path, whole: Path, folder: Path) -> dict[str, Any]:
    """Train where no file may be larger than a limit, a larger one each time, and then without a limit."""
    limits = [round(2000 * 4**step) for step in range(count)]
    in_a_line = ended = lost = 0
    for limit in tqdm(limits, desc="full disks"):
        before = [path.name for path in checkpoints(folder)]
        done = run_where_files_end(training(data, folder), limit)
        ended += done.returncode == 0
        in_a_line += is_one_line(done)
        lost += any(name not in [path.name for path in checkpoints(folder)] for name in before[-1:])
    run([sys.executable, *training(data, folder)])
    return {
        "limits_bytes": limits,
        "one_line": in_a_line,
        "room_enough": ended,
        "checkpoints_lost": lost,
        "ends_with_the_same_weights": is_same_model(folder, whole),
    }


def diverge(data: Path, folder: Path) -> dict[str, Any]:
    """Train at a learning rate at which nothing is finite."""
    done = run([sys.executable, *training(data, folder, "--learning_rate", "1e30", "--checkpointing_steps", "1")])
    tensors = [tensor for file in folder.rglob("*.safetensors") for tensor in load_file(file).values()]
    finite = all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())
    return {"exit_code": done.returncode, "is_one_line": is_one_line(done), "saved_is_finite": finite}


def lose_processes(count: int, data: Path, folder: Path) -> dict[str, Any]:
    """Kill one of two processes of a run; the launcher has to end the other, and what was saved has to be whole."""
    import psutil

    ended = whole = 0
    launch = ["-m", "accelerate.commands.launch", "--config_file", "configs/cpu.yaml", "--num_processes", "2"]
    for number in range(count):
        output = folder / str(number)
        command = [sys.executable, *launch, "--main_process_port", "0", *training(data, output)]
        with start(command) as process:
            until = time.monotonic() + PATIENCE_SECONDS
            while process.poll() is None and not checkpoints(output) and time.monotonic() < until:
                time.sleep(0.05)
            workers = psutil.Process(process.pid).children() if process.poll() is None else []
            for worker in workers[-1:]:
                worker.kill()
            ended += end(process) not in (None, 0)
        whole += all(damage(checkpoint) is None for checkpoint in checkpoints(output))
    return {"runs": count, "launcher_ended": ended, "checkpoints_whole": whole}


def fill_disks_of_commands(data: Path, model: Path, folder: Path) -> dict[str, Any]:
    """Run the other commands where no file may be larger than a limit; each ends well, or with one line."""
    written = folder / "written"
    small = {
        "prior": "--num_prior_layers 1 --max_train_steps 3 --batch_size 5 --num_proc 1",
        "evaluate": "--split validation --samples 4 --melodies 4 --pairs 2",
    }
    of = ["--model", str(model)]
    commands = {
        "build": ["-m", "dataset_script.build", "--output", str(written)],
        "prior": ["train_prior.py", *of, "--dataset", str(data), "--output_dir", str(written), *small["prior"].split()],
        "sample": ["generate.py", "sample", *of, "--output", str(written), "--num", "2"],
        "evaluate": [
            "evaluate_model.py",
            *of,
            "--dataset",
            str(data),
            "--output",
            f"{written}/it.json",
            *small["evaluate"].split(),
        ],
        "export": ["export_onnx.py", *of, "--output", str(written)],
    }
    # Each command meets limits from nearly nothing to nearly enough.
    one_line, room_enough, errors = 0, 0, {}
    for name, command in tqdm(commands.items(), desc="full disks, other commands"):
        for limit in FULL_DISK_BYTES:
            shutil.rmtree(written, ignore_errors=True)
            done = run_where_files_end(command, limit)
            one_line += is_one_line(done)
            room_enough += done.returncode == 0
            if done.returncode and not is_one_line(done):
                errors[f"{name}, {limit} bytes"] = f"exit code {done.returncode}: {done.stderr.strip()[-200:]}"
    return {
        "runs": len(commands) * len(FULL_DISK_BYTES),
        "one_line": one_line,
        "room_enough": room_enough,
        "errors": errors,
    }
