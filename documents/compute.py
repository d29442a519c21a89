"""The block of docs/training.md that says what the release's recipe takes on all of Lakh."""

import json
from pathlib import Path

from documents.compare import markdown

LAUNCH = {  # of each machine: how accelerate starts it
    "rented CPU": "--config_file configs/cpu.yaml",
    "one H100": "--num_processes 1 --num_machines 1 --mixed_precision bf16 --dynamo_backend no",
    "eight H100": "--config_file configs/gpus.yaml",
}


def compute(results: Path) -> str:
    """Write windows, steps, hours, memory and money of each machine, the launch commands, and what is not measured."""
    found = json.loads((results / "compute.json").read_text(encoding="utf-8"))
    options, machines, files = found["options"], found["machines"], found["files"]
    seen = found["windows"] * files["of_the_release"] / files["lakh"]
    teraflops = found["gpu_peak_operations_per_second"] / 1e12
    rows, commands = [], []
    # A row for each machine, and the command that it would run.
    for name, row in machines.items():
        unit = "cores" if "CPU" in name else "GPUs"
        rows.append(
            [
                f"{name}, {row['devices']} {unit}" if row["devices"] > 1 and "CPU" in name else name,
                f"{row['steps']:,} of {row['devices'] * row['melodies_per_step_and_device']}",
                f"{row['windows_per_second']:,.0f}",
                f"{row['hours']:.1f}",
                f"{row['gib_per_device']:.1f} GiB",
                f"{row['dollars']:.0f} US dollars",
            ]
        )
        processes = "" if "--num_processes" in LAUNCH[name] else f" --num_processes {row['devices']}"
        commands.append(
            f"accelerate launch {LAUNCH[name]}{processes} train.py --dataset data/lakh --output_dir runs/lakh "
            f"--max_train_steps {row['steps']} --per_device_train_batch_size {row['melodies_per_step_and_device']}"
        )
    head = ["", "steps of windows", "windows a second", "hours", "memory of a process", "price"]
    return (
        f"The release's training saw {seen:,.0f} windows of {files['of_the_release']:,} files; as many passes over all "
        f"{files['lakh']:,} files of Lakh are {found['windows']:,} windows:\n\n"
        + markdown(head, rows)
        + "\n<!-- parsed only: hours, on rented machines -->\n```bash\n"
        + "\n".join(commands)
        + "\n```\n\n"
        + f"Counted: {found['step_of_one_melody']['operations'] / 1e9:.1f} billion floating-point operations a "
        f"window of {options['tokens']} tokens, forward and backward. Measured: "
        f"{found['windows_per_second_and_core']:.0f} windows a second on each core in the release's stage on most "
        f"processes, {found['windows_per_second_and_loader']:,.0f} prepared by a core, "
        f"{found['dataset_minutes_on_one_core']:.1f} minutes to build the data set on one. Assumed, not measured: "
        f"GPUs reach {options['utilisation']:.0%} of the {teraflops:.0f} teraflops "
        "that NVIDIA's data sheet gives for the H100 SXM (bf16, dense), or wait for two loader processes each; an H100 "
        f"costs {options['gpu_price']:g} and a core {options['core_price']:g} US dollars an hour; processes share the "
        "work without loss. Learning rates for batches above 64 were not tried. Written by `make report` from "
        "`results/compute.json` (`python -m benchmarks.compute`).\n"
    )
