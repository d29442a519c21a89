"""Estimate what the release's recipe takes on all of Lakh: windows, steps, hours, memory and money.

Counted on this machine: the floating-point operations and the memory of a training step at the release's size. Read
from results/: windows that the release's training saw, windows a second of its stages and of its loader on a CPU, files
of the data set. A GPU's rate is its data sheet's peak times a stated utilisation, which was not measured, or the rate
of the loader's processes beside it if that is lower; prices are options.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reports import rounded, versions
from command import check_output, machine, run_command, write_json
from modeling import MelodyVAEModel

ROOT = Path(__file__).parents[1]
LAKH_FILES = 178_561  # of lmd_full
H100_PEAK = 989.4e12  # bf16 without sparsity, operations a second: NVIDIA's data sheet of the H100 SXM
MACHINES = {  # devices, melodies of each in a step
    "rented CPU": (16, 4),
    "one H100": (1, 512),
    "eight H100": (8, 64),
}
BYTES_PER_PARAMETER = 4 * 5  # fp32: the weight, its gradient, two moments at most, the average
COUNTED_MELODIES = 8
WORKERS_PER_GPU = 2  # processes that prepare batches, train.py's default


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.compute", description="Estimate what the release's recipe takes on all of Lakh."
    )
    parser.add_argument("--model", type=Path, default=ROOT / "release" / "melody-vae-16bar", help="folder of the model")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder with what was measured")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of a window, padding included")
    parser.add_argument("--utilisation", type=float, default=0.05, help="share of a GPU's peak that training reaches")
    parser.add_argument("--gpu_price", type=float, default=3.0, help="US dollars for an hour of an H100")
    parser.add_argument("--core_price", type=float, default=0.05, help="US dollars for an hour of a CPU core")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "compute.json", help="the report to write")
    return parser.parse_args(argv)


def count_step(model: MelodyVAEModel, tokens: int) -> dict[str, float]:
    """Count operations, and bytes kept for the backward pass, of a training step; for each melody."""
    bars = model.config.max_bars
    opens_bar = model.is_bar_token.nonzero().flatten()
    ids = torch.full((COUNTED_MELODIES, tokens), int((~model.is_bar_token).nonzero()[-1]))
    ids[:, :: -(-tokens // bars)] = opens_bar[0]
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        model(ids, labels=ids).loss.backward()
    kept_bytes = sum(size for place, size in kept.items() if place not in weights)
    return {
        "operations": counter.get_total_flops() / COUNTED_MELODIES,
        "activation_bytes": kept_bytes / COUNTED_MELODIES,
    }


def stages(training: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Go through the stages of a training, the last first."""
    while training:
        yield training
        training = training.get("before")


def windows_per_core(training: dict[str, Any]) -> float:
    """Return the windows a second of one core, from the stage at the last one's size that ran on most processes."""
    same_size = [stage for stage in stages(training) if stage["parameters"] > 0.99 * training["parameters"]]
    widest = max(same_size, key=lambda stage: stage["num_processes"])
    return widest["melodies_per_second"] / widest["num_processes"] / widest["cpu_threads"]


def windows_per_loader(training: dict[str, Any]) -> float:
    """Return the windows a second that a core prepares, from the time for which the last stage waited for them."""
    last = training["history"][-1]  # on a CPU the training process prepares them itself
    return last["melodies_per_second"] / last["waiting_for_data"]


def estimate(step: dict[str, float], parameters: int, results: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Put together what each machine takes, see `MACHINES`."""
    # Rates that were measured in training and building.
    training, dataset, speed = (
        json.loads((results / name).read_text(encoding="utf-8"))
        for name in ("release.json", "dataset.json", "dataset_speed.json")
    )
    training, files = training["training"], dataset["files"]["read"]
    windows = sum(stage["melodies_seen"] for stage in stages(training)) * LAKH_FILES / files
    core = windows_per_core(training)
    loader = windows_per_loader(training)
    # A GPU waits for its arithmetic or for those that prepare its windows.
    gpu = min(H100_PEAK * args.utilisation / step["operations"], WORKERS_PER_GPU * loader)
    found = {}
    for name, (devices, batch) in MACHINES.items():
        rate, price = (core, args.core_price) if "CPU" in name else (gpu, args.gpu_price)
        hours = windows / (rate * devices) / 3600
        found[name] = {
            "devices": devices,
            "melodies_per_step_and_device": batch,
            "steps": round(windows / (devices * batch)),
            "windows_per_second": rate * devices,
            "hours": hours,
            "gib_per_device": (parameters * BYTES_PER_PARAMETER + batch * step["activation_bytes"]) / 2**30,
            "dollars": hours * devices * price,
        }
    return {
        "windows": round(windows),
        "files": {"lakh": LAKH_FILES, "of_the_release": files},
        "dataset_minutes_on_one_core": speed["lakh_minutes"]["1"],
        "windows_per_second_and_core": core,
        "windows_per_second_and_loader": loader,
        "operations_per_second_and_core": core * step["operations"],
        "machines": found,
    }


def measure(args: argparse.Namespace) -> None:
    """Count, estimate, write."""
    check_output(args.output)
    torch.manual_seed(0)
    model = MelodyVAEModel.from_pretrained(args.model).train()
    parameters = sum(weight.numel() for name, weight in model.named_parameters() if not name.startswith("prior."))
    step = count_step(model, args.tokens)
    options = {name: getattr(args, name) for name in ("tokens", "utilisation", "gpu_price", "core_price")}
    report: dict[str, Any] = {
        "options": options,
        "parameters": parameters,
        "step_of_one_melody": step,
        **estimate(step, parameters, args.results, args),
        "gpu_peak_operations_per_second": H100_PEAK,
        "machine": machine(),
        "versions": versions(["torch", "transformers"]),
    }
    write_json(rounded(report), args.output)
    for name, row in report["machines"].items():
        print(f"{name}: {row['steps']:,} steps, {row['hours']:.1f} h, {row['dollars']:.0f} dollars")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(measure, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
