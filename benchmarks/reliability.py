"""Try what strangers, machines and accidents do: `make torture`, which writes results/reliability.json.

Mutated MIDI files go through builder, processor and the Space's upload, a process for each batch, so that a crash of a
C++ reader is seen. Hostile files grow, and their cost with them. Files of a model's folder are damaged; training is
killed, gets a full disk, diverges, or loses one of two processes; clients send the Space nonsense among others'
requests; one seed's melodies are compared across batches, threads, processes and precisions. Sizes are arguments.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
import torch
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import AutoModel, AutoProcessor

from benchmarks.reports import report_to, rounded, versions
from command import UserError, machine
from dataset_script.extraction import extract_lines
from dataset_script.midi_notes import UnreadableMidiError, read_notes
from modeling import MelodyProcessor
from training.checkpoints import checkpoints, damage

ROOT = Path(__file__).parents[1]
RELEASE = ROOT / "release" / "melody-vae-16bar"
READERS = ("builder", "processor", "upload")
GRID = 4
BATCH = 500  # mutations in a process
MOST_SECONDS = 20.0  # that one file may take
TRAINED_STEPS = 40
TINY = (
    "hidden_size=20,intermediate_size=24,num_attention_heads=2,num_encoder_layers=1,num_hidden_layers=1,latent_size=32"
)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "reliability.json", help="the report")
    parser.add_argument("--model", type=Path, default=RELEASE, help="folder of the model")
    parser.add_argument("--midi", type=Path, default=RELEASE / "samples", help="folder of the files to mutate")
    parser.add_argument("--mutations", type=int, default=100_000, help="mutated files for each reader")
    parser.add_argument(
        "--growth", type=int, default=5, help="doublings of each hostile file, from 1/32 of the largest"
    )
    parser.add_argument("--kills", type=int, default=50, help="of a training run, at random moments")
    parser.add_argument("--full_disks", type=int, default=6, help="sizes of a file at which the disk is full")
    parser.add_argument("--lost_processes", type=int, default=3, help="runs of two processes of which one is killed")
    parser.add_argument("--clients", type=int, default=50, help="of the Space at once, one in twenty hostile")
    parser.add_argument("--client_seconds", type=float, default=600.0, help="for which they ask")
    parser.add_argument("--melodies", type=int, default=64, help="of one seed, to compare")
    parser.add_argument("--read_batch", nargs=3, metavar=("READER", "FIRST", "COUNT"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# Files


def mutate(content: bytes, generator: random.Random) -> bytes:
    """Alter a file: bytes, bits, pieces left out, doubled, exchanged, or cut off."""
    data = bytearray(content)
    for _ in range(generator.choice([1, 1, 2, 5, 20])):
        at, length = generator.randrange(len(data)), generator.choice([1, 2, 4, 16, 64])
        match generator.randrange(6):
            case 0:
                data[at] = generator.randrange(256)
            case 1:
                data[at] ^= 1 << generator.randrange(8)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data[at:at] = generator.randbytes(length)
            case 5:
                data[at : at + 4] = generator.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"MTrk"])
        if not data:
            return b""
    return bytes(data[: generator.randrange(len(data))] if generator.random() < 0.1 else data)


def make_reader(name: str, model: Path) -> tuple[Callable[[bytes], Any], tuple[type[Exception], ...]]:
    """Return what reads a file's content, and the exceptions by which it refuses one in words."""
    if name == "builder":
        return lambda content: extract_lines([read_notes(content, GRID)], GRID), (UnreadableMidiError,)
    if name == "processor":
        return MelodyProcessor.from_pretrained(model).read, (ValueError,)
    sys.path.append(str(ROOT / "space"))
    from composer import FileReader
    from melody import RefusedError

    return FileReader(str(model)).read_midi, (RefusedError,)


def read_batch(args: argparse.Namespace) -> None:
    """Read mutations, and print how many were read, refused, or ended in another error, and the slowest."""
    name, first, count = args.read_batch[0], int(args.read_batch[1]), int(args.read_batch[2])
    read, refusals = make_reader(name, args.model)
    files = [file.read_bytes() for file in sorted(args.midi.glob("*.mid"))]
    read(files[0])  # compiles what is compiled
    outcomes, errors, slowest = Counter(), Counter(), 0.0
    for number in range(first, first + count):
        generator = random.Random(number)
        content, began = mutate(generator.choice(files), generator), time.perf_counter()
        try:
            read(content)
            outcomes["read"] += 1
        except refusals:
            outcomes["refused"] += 1
        except Exception as error:  # what is looked for
            outcomes["error"] += 1
            errors[f"{type(error).__name__}: {str(error)[:80]} ({number})"] += 1
        slowest = max(slowest, time.perf_counter() - began)
    print(json.dumps({"outcomes": outcomes, "errors": dict(errors.most_common(5)), "slowest_seconds": slowest}))


def try_mutations(args: argparse.Namespace, reader: str) -> dict[str, Any]:
    """Read all mutations by one reader, a process for each batch."""
    outcomes, errors, slowest = Counter(read=0, refused=0, error=0, crash=0), {}, 0.0
    for first in tqdm(range(0, args.mutations, BATCH), desc=f"mutations, {reader}"):
        count = min(BATCH, args.mutations - first)
        batch = ["--read_batch", reader, str(first), str(count), "--model", str(args.model), "--midi", str(args.midi)]
        done = run([sys.executable, "-m", "benchmarks.reliability", *batch], seconds=600 + count * MOST_SECONDS)
        if done.returncode:
            outcomes["crash"] += 1
            errors[f"batch from {first}: exit code {done.returncode}"] = done.stderr.strip()[-200:]
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        outcomes.update(found["outcomes"])
        errors |= found["errors"]
        slowest = max(slowest, found["slowest_seconds"])
    return {"files": args.mutations, **outcomes, "slowest_seconds": slowest, "errors": errors}


def run(command: Sequence[str], seconds: float = 600.0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command from the repository's root, by one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=seconds,
        check=False,
        **options,
    )


def chunk(events: bytes) -> bytes:
    """Write a track."""
    return b"MTrk" + (len(events) + 4).to_bytes(4, "big") + events + b"\0\xff\x2f\0"


def on(status: int, size: int, ticks: int = 0) -> bytes:
    """Write as many events so many ticks apart, of all pitches in turn."""
    return b"".join(bytes([ticks, status, number % 128, 64]) for number in range(size))


def hostile_file(kind: str, size: int) -> bytes:
    """Write a file of about `size` of what its kind has too many of."""
    note = b"\0\x90\x3c\x40\x60\x80\x3c\0"
    tracks = {
        "tracks": lambda: [chunk(note)] * size,
        "notes": lambda: [chunk(note * size)],
        "chords": lambda: [chunk(on(0x90, size) + b"\x83\x60\x80\x00\0" + on(0x80, size))],
        "overlaps": lambda: [chunk(on(0x90, size, 7) + on(0x80, size, 7))],
        "lyrics": lambda: [chunk((b"\0\xff\x05\x02la" + note) * size)],
        "tempos": lambda: [chunk(b"\x10\xff\x51\x03\x07\xa1\x20" * size + note * 64)],
        "meters": lambda: [chunk(b"\x10\xff\x58\x04\x07\x03\x18\x08" * size + note * 64)],
        "programs": lambda: [chunk(b"".join(bytes([0, 0xC0, number % 128]) + note for number in range(size)))],
        "names": lambda: [chunk(b"\0\xff\x03\x04name" * size + note * 64)],
        "bars": lambda: [chunk((b"\x00\x90\x3c\x40\x83\x60\x80\x3c\0" + b"\xff\xff\x7f\xb0\x07\x40") * (size // 64))],
    }[kind]()
    return b"MThd\0\0\0\6" + bytes([0, 1]) + min(len(tracks), 65535).to_bytes(2, "big") + b"\1\xe0" + b"".join(tracks)


KINDS = ("tracks", "notes", "chords", "overlaps", "lyrics", "tempos", "meters", "programs", "names", "bars")
LARGEST = 32_000


def grow_files(args: argparse.Namespace, reader: str) -> dict[str, Any]:
    """Time hostile files as they grow; `exponent` is that of the cost over the last doublings, 1 where it is linear."""
    read, refusals = make_reader(reader, args.model)
    found = {}
    for kind in tqdm(KINDS, desc=f"growing files, {reader}"):
        sizes = [LARGEST >> step for step in range(args.growth, -1, -1)]
        seconds, outcome = [], ""
        for size in sizes:
            content, began = hostile_file(kind, size), time.process_time()
            try:
                read(content)
                outcome = "read"
            except refusals:
                outcome = "refused"
            except Exception as error:
                outcome = f"error: {type(error).__name__}"
            seconds.append(time.process_time() - began)
        slope = np.polyfit(np.log(sizes[-3:]), np.log(np.maximum(seconds[-3:], 1e-3)), 1)[0] if len(sizes) > 2 else 0.0
        found[kind] = {"size": sizes[-1], "outcome": outcome, "seconds": seconds[-1], "exponent": float(slope)}
    return found


def damage_folders(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Damage each file of a model's folder in four ways, and load it."""
    outcomes, errors = Counter(refused=0, loaded=0, unlike=0), {}
    reference = sample(args.model)
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "processor_config.json")
    for name in tqdm(names, desc="damaged folders"):
        whole = (args.model / name).read_bytes()
        damaged = {
            "cut off": whole[: len(whole) // 2],
            "empty": b"",
            "header": whole[:20] + bytes([whole[20] ^ 4]) + whole[21:],
            "missing": None,
        }
        for kind, content in damaged.items():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(args.model, folder, ignore=shutil.ignore_patterns("samples"))
            (folder / name).write_bytes(content) if content is not None else (folder / name).unlink()
            try:
                is_same = torch.equal(sample(folder), reference)
                outcomes["loaded" if is_same else "unlike"] += 1
                if not is_same:
                    errors[f"{name}, {kind}"] = "loads, and writes other melodies"
            except Exception as error:
                outcomes["refused"] += 1
                if not str(error).strip():
                    errors[f"{name}, {kind}"] = type(error).__name__
    return {"folders": sum(outcomes.values()), **outcomes, "errors": errors}


def sample(folder: Path) -> torch.Tensor:
    """Load a model and its processor, and sample by a seed."""
    AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    return AutoModel.from_pretrained(folder, trust_remote_code=True).eval().sample(2, seed=0, bars=2)


# Training


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


def kill_training(args: argparse.Namespace, data: Path, whole: Path, folder: Path) -> dict[str, Any]:
    """Kill a run by signals 9 and 15 at random moments until it has been killed often enough, and let it end."""
    generator, incomplete = random.Random(0), 0
    for _ in tqdm(range(args.kills), desc="kills"):
        before = [path.name for path in checkpoints(folder)[-1:]]
        with subprocess.Popen(
            [sys.executable, *training(data, folder)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            while process.poll() is None:
                found = [path.name for path in checkpoints(folder)[-1:]]
                if found and found != before:
                    break
                time.sleep(0.01)
            time.sleep(generator.uniform(0, 0.3))
            process.send_signal(generator.choice([signal.SIGKILL, signal.SIGTERM]))
        incomplete += any(damage(checkpoint) for checkpoint in checkpoints(folder))
    done = run([sys.executable, *training(data, folder)])
    same = done.returncode == 0 and is_same_model(folder, whole)
    return {"kills": args.kills, "incomplete_checkpoints": incomplete, "ends_with_the_same_weights": same}


def fill_disks(args: argparse.Namespace, data: Path, whole: Path, folder: Path) -> dict[str, Any]:
    """Train where no file may be larger than a limit, a larger one each time, and then without a limit."""
    import resource

    limits = [round(2000 * 4**step) for step in range(args.full_disks)]
    in_a_line = ended = lost = 0
    for limit in tqdm(limits, desc="full disks"):
        before = [path.name for path in checkpoints(folder)]
        done = run(
            [sys.executable, *training(data, folder)],
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        ended += done.returncode == 0
        in_a_line += done.returncode == 2 and len(said) == 1 and "Traceback" not in done.stderr
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
    return {"exit_code": done.returncode, "saved_is_finite": finite}


def lose_processes(args: argparse.Namespace, data: Path, folder: Path) -> dict[str, Any]:
    """Kill one of two processes of a run; the launcher has to end the other, and what was saved has to be whole."""
    import psutil

    ended = whole = 0
    launch = ["-m", "accelerate.commands.launch", "--config_file", "configs/cpu.yaml", "--num_processes", "2"]
    for number in range(args.lost_processes):
        output = folder / str(number)
        command = [sys.executable, *launch, "--main_process_port", "0", *training(data, output)]
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            while process.poll() is None and not checkpoints(output):
                time.sleep(0.05)
            workers = psutil.Process(process.pid).children() if process.poll() is None else []
            for worker in workers[-1:]:
                worker.kill()
            with suppress(subprocess.TimeoutExpired):
                ended += process.wait(120) != 0
            process.kill()
        whole += all(damage(checkpoint) is None for checkpoint in checkpoints(output))
    return {"runs": args.lost_processes, "launcher_ended": ended, "checkpoints_whole": whole}


# The Space


def ask(url: str, action: str, data: list[Any], seconds: float = 300.0) -> str:
    """Ask the API; returns `complete` or `error`."""
    body = json.dumps({"data": data}).encode()
    request = urllib.request.Request(f"{url}/gradio_api/call/{action}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=seconds) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}/gradio_api/call/{action}/{event}", timeout=seconds) as answer:
        kinds = [line[7:].strip() for line in answer.read().decode().splitlines() if line.startswith("event: ")]
    return kinds[-1] if kinds else "nothing"


HOSTILE: list[tuple[str, list[Any]]] = [
    ("make", [10**9]),
    ("make", []),
    ("read_midi", ["TVRoZA" * 1000]),
    (
        "wav",
        [{"pitch": [60] * 4096, "start": [0] * 4096, "duration": [4096] * 4096, "bars": 256, "time_signature": "4/4"}],
    ),
    ("tune", ["<img src=x onerror=alert(1)>"]),
    ("blend", [[{}, {}]]),
]


def besiege(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Have many clients use the Space at once, one in twenty of them with nonsense."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, environment = f"http://127.0.0.1:{port}", {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"MODEL_ID": str(args.model), "GRADIO_SERVER_PORT": str(port), "VOTES_FOLDER": str(folder / "votes")}
    waited: list[float] = []
    answers, hostile = Counter(), Counter()
    with (folder / "log").open("w", encoding="utf-8") as log:
        space = subprocess.Popen(
            [sys.executable, str(ROOT / "space/app.py")], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        while space.poll() is None:
            with suppress(OSError):
                urllib.request.urlopen(f"{url}/gradio_api/startup-events", timeout=1).close()
                break
            time.sleep(0.5)
        until = time.monotonic() + args.client_seconds

        def visit(number: int) -> None:
            generator, is_hostile = random.Random(number), number % 20 == 0
            while time.monotonic() < until:
                seed, began = generator.randrange(1000), time.monotonic()
                usual = ("make", [2, 4, *["any"] * 6, {}, 1.0, seed])
                action, data = generator.choice(HOSTILE) if is_hostile else generator.choice([usual, ("about", [])])
                try:
                    kind = ask(url, action, data)
                except OSError as error:
                    kind = type(error).__name__
                (hostile if is_hostile else answers)[kind] += 1
                if not is_hostile:
                    waited.append(time.monotonic() - began)

        with ThreadPoolExecutor(args.clients) as clients:
            list(clients.map(visit, range(args.clients)))
        is_alive = space.poll() is None and ask(url, "about", []) == "complete"
    finally:
        space.terminate()
        space.wait(30)
    return {
        "clients": args.clients,
        "seconds": args.client_seconds,
        "answered": answers["complete"],
        "not_answered": sum(answers.values()) - answers["complete"],
        "hostile_requests": sum(hostile.values()),
        "median_seconds": float(np.median(waited)) if waited else 0.0,
        "p95_seconds": float(np.percentile(waited, 95)) if waited else 0.0,
        "tracebacks": (folder / "log").read_text(encoding="utf-8").count("Traceback"),
        "alive_at_the_end": is_alive,
    }


# One seed


def compare_seeds(args: argparse.Namespace) -> dict[str, float]:
    """Sample by the same generators otherwise; returns the share of melodies that are equal."""
    model = AutoModel.from_pretrained(args.model, trust_remote_code=True).eval()

    def melodies(size: int, threads: int = 1) -> list[list[int]]:
        torch.set_num_threads(threads)
        found = []
        for first in range(0, args.melodies, size):
            seeds = range(first, min(first + size, args.melodies))
            ids = model.sample(len(seeds), generator=[torch.Generator().manual_seed(seed) for seed in seeds], bars=4)
            found += [[token for token in row if token != model.config.pad_token_id] for row in ids.tolist()]
        return found

    before = torch.get_num_threads()
    reference = melodies(args.melodies)
    program = "import sys, json, torch; from transformers import AutoModel; torch.set_num_threads(1)\n"
    program += (
        f"m = AutoModel.from_pretrained({str(args.model)!r}, trust_remote_code=True).eval(); n = {args.melodies}\n"
    )
    program += "g = [torch.Generator().manual_seed(seed) for seed in range(n)]\n"
    program += "print(json.dumps([[t for t in r if t != m.config.pad_token_id] for r in "
    program += "m.sample(n, generator=g, bars=4).tolist()]))"
    elsewhere = json.loads(run([sys.executable, "-c", program]).stdout.splitlines()[-1])
    others = {
        "one at a time": melodies(1),
        "seven at a time": melodies(7),
        "two threads": melodies(args.melodies, threads=2),
        "another process": elsewhere,
    }
    model.to(torch.bfloat16)
    others["bfloat16"] = melodies(args.melodies)
    torch.set_num_threads(before)
    return {
        name: float(np.mean([a == b for a, b in zip(reference, found, strict=True)])) for name, found in others.items()
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Try everything."""
    if not list(args.midi.glob("*.mid")):
        raise UserError(f"{args.midi}: no .mid file to mutate; give another --midi")
    args.model = args.model.resolve()
    sizes = {name: value for name, value in vars(args).items() if isinstance(value, int | float)}
    report: dict[str, Any] = {"sizes": sizes, "machine": machine(), "versions": versions(["torch", "transformers"])}
    report["mutations"] = {reader: try_mutations(args, reader) for reader in READERS}
    report["growing_files"] = {reader: grow_files(args, reader) for reader in READERS}
    with TemporaryDirectory() as name:
        folder = Path(name)
        report["damaged_folders"] = damage_folders(args, folder / "damaged")
        report["same_seed"] = compare_seeds(args)
        if args.kills or args.full_disks or args.lost_processes:
            data, whole = folder / "data", folder / "whole"
            write_dataset(data)
            run([sys.executable, *training(data, whole)])
            report["kills"] = kill_training(args, data, whole, folder / "killed")
            report["full_disks"] = fill_disks(args, data, whole, folder / "full")
            report["diverged"] = diverge(data, folder / "diverged")
            report["lost_processes"] = lose_processes(args, data, folder / "lost")
        if args.clients:
            report["clients"] = besiege(args, folder / "space")
    report["faults"] = faults(report)
    return rounded(report)


def faults(report: dict[str, Any]) -> list[str]:
    """List what a report shows that must not be."""
    found = []
    for reader, figures in report["mutations"].items():
        if figures["error"] or figures["crash"]:
            found.append(f"mutations, {reader}: {figures['error']} errors, {figures['crash']} crashes")
        if figures["slowest_seconds"] > MOST_SECONDS:
            found.append(f"mutations, {reader}: {figures['slowest_seconds']:.0f} s for one file")
    for reader, kinds in report["growing_files"].items():
        for kind, figures in kinds.items():
            if figures["seconds"] > MOST_SECONDS or figures["outcome"].startswith("error"):
                found.append(f"growing files, {reader}, {kind}: {figures['outcome']} in {figures['seconds']:.0f} s")
    found += [f"damaged folders: {name}: {reason}" for name, reason in report["damaged_folders"]["errors"].items()]
    for stage in ("kills", "full_disks"):
        if not report.get(stage, {}).get("ends_with_the_same_weights", True):
            found.append(f"{stage}: the run does not end with the same weights")
    disks = report.get("full_disks")
    if disks and (disks["checkpoints_lost"] or disks["one_line"] + disks["room_enough"] < len(disks["limits_bytes"])):
        found.append("full_disks: not one line and exit code 2, or a checkpoint is lost")
    if (diverged := report.get("diverged")) and (diverged["exit_code"] != 2 or not diverged["saved_is_finite"]):
        found.append("diverged: not one line and exit code 2, or something saved is not finite")
    lost = report.get("lost_processes")
    if lost and min(lost["launcher_ended"], lost["checkpoints_whole"]) < lost["runs"]:
        found.append("lost_processes: the launcher did not end, or a checkpoint is not whole")
    clients = report.get("clients")
    if clients and (clients["not_answered"] or clients["tracebacks"] or not clients["alive_at_the_end"]):
        found.append(f"clients: {clients['not_answered']} not answered, {clients['tracebacks']} tracebacks")
    return found


def summary(report: dict[str, Any]) -> str:
    """Say what was tried and what is wrong."""
    return "\n".join(report["faults"]) or "no fault"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_args(argv)
    if args.read_batch:
        read_batch(args)
        return 0
    return report_to(args.output, lambda: measure(args), summary)


if __name__ == "__main__":
    sys.exit(main())
