"""Try what strangers, machines and accidents do: `make torture`, which writes results/reliability.json.

Mutated MIDI files go through builder, processor and the Space's upload, a process for each batch, so that a crash of a
C++ reader is seen. Hostile files grow, and their cost with them. Files of a model's folder are damaged; training is
killed, gets a full disk, diverges, or loses one of two processes; clients send the Space nonsense among others'
requests; one seed's melodies are compared across batches, threads, processes and precisions. Sizes are arguments.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModel, AutoProcessor

from benchmarks.accidents import (
    diverge,
    fill_disks,
    fill_disks_of_commands,
    kill_training,
    lose_processes,
    run,
    training,
    write_dataset,
)
from benchmarks.clients import besiege
from benchmarks.hostile_files import KINDS, LARGEST, hostile_file, mutate
from benchmarks.reports import report_to, rounded, versions
from command import UserError, machine, write_json
from dataset_script.extraction import extract_lines
from dataset_script.midi_notes import UnreadableMidiError, read_notes
from modeling import MelodyProcessor
from training.checkpoints import digest

ROOT = Path(__file__).parents[1]
RELEASE = ROOT / "release" / "melody-vae-16bar"
# What reads MIDI files, and the code of it.
READERS = {
    "builder": "dataset_script",
    "processor": "modeling",
    "upload": "modeling space/composer.py space/melody.py space/song.py",
}
TRAINING = "train.py training modeling command.py"
OTHER_COMMANDS = (
    "train_prior.py generate.py generation evaluate_model.py evaluation export_onnx.py publishing dataset_script"
)
GRID = 4
BATCH = 4000  # mutations in a process
KILLS = 10  # in a stage
MOST_SECONDS = 20.0  # that one file may take


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "reliability.json", help="the report")
    parser.add_argument(
        "--parts",
        type=Path,
        default=ROOT / "outputs" / "torture",
        help="what is done of a run; delete it to begin anew",
    )
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
    parser.add_argument("--pause_seconds", type=float, default=5.0, help="that one of them listens, on average")
    parser.add_argument("--melodies", type=int, default=64, help="of one seed, to compare")
    parser.add_argument("--read_batch", nargs=3, metavar=("READER", "FIRST", "COUNT"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# Files


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
    """Read all mutations by one reader, a process for each batch; batches that were read before are not read again."""
    total = {"files": args.mutations, "read": 0, "refused": 0, "error": 0, "crash": 0, "slowest_seconds": 0.0}
    errors: dict[str, Any] = {}
    for first in tqdm(range(0, args.mutations, BATCH), desc=f"mutations, {reader}"):
        count = min(BATCH, args.mutations - first)
        read = partial(start_batch, args, reader, first, count)
        found = stage(args, f"mutations_{reader}_{first}", count, READERS[reader], read)
        for outcome, number in found["outcomes"].items():
            total[outcome] += number
        errors |= found["errors"]
        total["slowest_seconds"] = max(total["slowest_seconds"], found["slowest_seconds"])
    return {**total, "errors": errors}


def start_batch(args: argparse.Namespace, reader: str, first: int, count: int) -> dict[str, Any]:
    """Read mutations in a process of their own."""
    batch = ["--read_batch", reader, str(first), str(count), "--model", str(args.model), "--midi", str(args.midi)]
    done = run([sys.executable, "-m", "benchmarks.reliability", *batch], seconds=600 + count * MOST_SECONDS)
    if not done.returncode:
        return json.loads(done.stdout.splitlines()[-1])
    errors = {f"batch from {first}: exit code {done.returncode}": done.stderr.strip()[-200:]}
    return {"outcomes": {"crash": 1}, "errors": errors, "slowest_seconds": 0.0}


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


# One seed


def compare_seeds(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Sample by the same generators otherwise; returns the share of melodies that are equal.

    ONNX Runtime draws by numpy's generators, so it is compared by what it decodes greedily from the same latents.
    """
    model = original = AutoModel.from_pretrained(args.model, trust_remote_code=True).eval()

    def without_padding(ids: Any) -> list[list[int]]:
        return [[token for token in row if token != model.config.pad_token_id] for row in ids.tolist()]

    def melodies(size: int, threads: int = 1) -> list[list[int]]:
        torch.set_num_threads(threads)
        found = []
        for first in range(0, args.melodies, size):
            seeds = range(first, min(first + size, args.melodies))
            generator = [torch.Generator().manual_seed(seed) for seed in seeds]
            found += without_padding(model.sample(len(seeds), generator=generator, bars=4))
        return found

    # In other batches, threads and processes.
    before = torch.get_num_threads()
    reference = melodies(args.melodies)
    others = {
        "one at a time": (reference, melodies(1)),
        "seven at a time": (reference, melodies(7)),
        "two threads": (reference, melodies(args.melodies, threads=2)),
        "another process": (reference, sample_elsewhere(args)),
    }
    # By ONNX Runtime, and in other precisions.
    latent = model.sample_latent(args.melodies, seed=0)
    ids = run_onnx(args, folder, latent)
    others["ONNX Runtime, greedily"] = (without_padding(model.decode(latent, bars=4)), without_padding(ids))
    for dtype in ("float64", "float16", "bfloat16"):
        model = copy.deepcopy(original).to(getattr(torch, dtype))
        others[dtype] = (reference, melodies(args.melodies))
    torch.set_num_threads(before)
    return {
        name: float(np.mean([one == other for one, other in zip(*pair, strict=True)])) for name, pair in others.items()
    }


def sample_elsewhere(args: argparse.Namespace) -> list[list[int]]:
    """Sample in another process."""
    program = f"""import json, torch; from transformers import AutoModel; torch.set_num_threads(1)
model = AutoModel.from_pretrained({str(args.model)!r}, trust_remote_code=True).eval()
generator = [torch.Generator().manual_seed(seed) for seed in range({args.melodies})]
ids = model.sample(len(generator), generator=generator, bars=4)
print(json.dumps([[token for token in row if token != model.config.pad_token_id] for row in ids.tolist()]))"""
    return json.loads(run([sys.executable, "-c", program]).stdout.splitlines()[-1])


def run_onnx(args: argparse.Namespace, folder: Path, latent: torch.Tensor) -> np.ndarray:
    """Export the model, and decode latents by ONNX Runtime."""
    run([sys.executable, "export_onnx.py", "--model", str(args.model), "--output", str(folder)]).check_returncode()
    sys.path.append(str(folder))
    from onnx_melody_vae import OnnxMelodyVAE  # pyright: ignore[reportMissingImports] - the export's own

    return OnnxMelodyVAE(folder).decode(latent.numpy(), bars=4)


def stage(args: argparse.Namespace, name: str, size: Any, tested: str, measure: Callable[[], Any]) -> Any:
    """Try something, or take what came of it in a run that was stopped later, if it tried the same.

    Args:
        args: Of the command; `load_averages` takes how many programs of the machine wanted a core before it began, the
            most where a name has several numbers.
        name: Of the file that keeps what comes of it.
        size: How much is tried.
        tested: Files and folders of the code that is tried.
        measure: Tries it.
    """
    file = args.parts / f"{name}.json"
    asked = {"model": digest(args.model / "model.safetensors"), "code": code_digest(tested), "size": size}
    part = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if part.get("asked") != asked:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # not on Windows
        part = {"asked": asked, "load_average": load, "found": measure()}
        write_json(part, file)
    if part["load_average"] is not None:
        name = name.rstrip("_0123456789")
        args.load_averages[name] = max(args.load_averages.get(name, 0.0), part["load_average"])
    return part["found"]


@lru_cache
def code_digest(tested: str) -> str:
    """Hash the Python files of some files and folders of the repository."""
    content = hashlib.sha256()
    for name in tested.split():
        for file in sorted((ROOT / name).rglob("*.py")) if (ROOT / name).is_dir() else [ROOT / name]:
            content.update(file.read_bytes())
    return content.hexdigest()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Try everything, what takes longest last."""
    if not list(args.midi.glob("*.mid")):
        raise UserError(f"{args.midi}: no .mid file to mutate; give another --midi")
    args.model, args.load_averages = args.model.resolve(), {}
    sizes = {name: value for name, value in vars(args).items() if isinstance(value, int | float)}
    report: dict[str, Any] = {"sizes": sizes, "machine": machine(), "versions": versions(["torch", "transformers"])}
    report["growing_files"] = {
        reader: stage(args, f"growing_{reader}", args.growth, code, lambda: grow_files(args, reader))  # noqa: B023
        for reader, code in READERS.items()
    }
    with TemporaryDirectory() as name:
        folder = Path(name)
        report["damaged_folders"] = stage(
            args, "damaged", 0, "modeling", lambda: damage_folders(args, folder / "damaged")
        )
        report["same_seed"] = stage(
            args, "same_seed", args.melodies, "modeling publishing", lambda: compare_seeds(args, folder / "onnx")
        )
        report |= befall(args, folder)
        if args.clients:
            size = [args.clients, args.client_seconds, args.pause_seconds]
            visits = partial(besiege, args.model, *size, folder / "space")
            report["clients"] = stage(args, "clients", size, "modeling space", visits)
    report["mutations"] = {reader: try_mutations(args, reader) for reader in READERS}
    report["load_averages"] = args.load_averages
    report["faults"] = faults(report)
    return rounded(report)


def befall(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Let accidents befall commands; stages of size 0 are left out."""

    @lru_cache
    def trained() -> tuple[Path, Path]:
        """Write a data set and train on it, once and where something is left to do."""
        data, whole = folder / "data", folder / "whole"
        write_dataset(data)
        run([sys.executable, *training(data, whole)]).check_returncode()
        return data, whole

    if not (args.kills or args.full_disks or args.lost_processes):
        return {}
    # Each accident with the code that it depends on: measured again only where that has changed.
    stages: dict[str, tuple[int, str, Callable[[], Any]]] = {
        "diverged": (1, TRAINING, lambda: diverge(trained()[0], folder / "diverged")),
        "full_disks": (args.full_disks, TRAINING, lambda: fill_disks(args.full_disks, *trained(), folder / "full")),
        "full_disks_of_commands": (
            args.full_disks,
            f"{TRAINING} {OTHER_COMMANDS}",
            lambda: fill_disks_of_commands(*trained(), folder),
        ),
        "lost_processes": (
            args.lost_processes,
            TRAINING,
            lambda: lose_processes(args.lost_processes, trained()[0], folder / "lost"),
        ),
    }
    found = {name: stage(args, name, size, code, work) for name, (size, code, work) in stages.items() if size}
    if args.kills:
        found["kills"] = Counter()
    # Kills in portions, so that an interruption loses one of them.
    for first in range(0, args.kills, KILLS):
        count = min(KILLS, args.kills - first)
        found["kills"].update(
            stage(
                args,
                f"kills_{first}",
                count,
                TRAINING,
                lambda: kill_training(count, first, *trained(), folder / "killed"),  # noqa: B023
            )
        )
    return found


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
    if kills := report.get("kills"):
        if kills["ends_with_the_same_weights"] < kills["runs"]:
            found.append("kills: a run does not end with the same weights")
        if kills["incomplete_checkpoints"]:
            found.append("kills: a checkpoint that is listed is not whole")
    if commands := report.get("full_disks_of_commands"):
        found += [f"full_disks: {name}: {reason}" for name, reason in commands["errors"].items()]
    disks = report.get("full_disks")
    if disks and not disks["ends_with_the_same_weights"]:
        found.append("full_disks: the run does not end with the same weights")
    if disks and (disks["checkpoints_lost"] or disks["one_line"] + disks["room_enough"] < len(disks["limits_bytes"])):
        found.append("full_disks: not one line and exit code 2, or a checkpoint is lost")
    diverged = report.get("diverged")
    if diverged and not (diverged["is_one_line"] and diverged["saved_is_finite"]):
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
