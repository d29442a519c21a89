"""What each practice of train.py is worth: `python -m benchmarks.ablations --dataset DIR --output FILE.json --steps N`.

Every variant is the baseline's command with one option changed, at equal steps, seed and batch size, in a process
of its own. Bits per note are those of the model that train.py keeps, on the same validation windows for all. A variant
that is in the output file already is not run again, so the same command goes on where it was stopped. Several commands
with other variants (`--only`) may run beside each other on one output file.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from command import UserError, machine, run_command, write_json
from training.checkpoints import checkpoint_folders
from training.run_logger import LOG_NAME

ROOT = Path(__file__).parents[1]
OVERRIDES = "--config_overrides"
BASELINE = "baseline"
BASELINE_OPTIONS = {
    "--learning_rate": "1e-3",
    "--lr_scheduler_type": "cosine",
    "--optimizer": "adamw",
    OVERRIDES: "musical_time=false,musical_pitch=false,previous_token=false",
}
"""The usual, whatever train.py's defaults are by now."""
LATE_DECAY = {"--lr_scheduler_type": "warmup_stable_decay"}
MUSICAL = {OVERRIDES: "musical_time=true,musical_pitch=true,previous_token=true"}
MUON = {"--optimizer": "muon"}
BEST = {"--learning_rate": "4e-3", **LATE_DECAY, **MUSICAL}
VARIANTS: dict[str, dict[str, str]] = {
    "no transposition": {"--transpose": "0"},
    "notes of at most 4 beats": {"--max_duration": "4"},
    "dropout 0.1": {OVERRIDES: "dropout=0.1"},
    "dropout 0.3": {OVERRIDES: "dropout=0.3"},
    "token dropout 0.1": {OVERRIDES: "token_dropout=0.1"},
    "token dropout 0.3": {OVERRIDES: "token_dropout=0.3"},
    "label smoothing 0.1": {"--label_smoothing": "0.1"},
    "curriculum": {"--curriculum": "complexity"},
    "genre temperature 2": {"--genre_temperature": "2"},
    "averaged weights 0.999": {"--ema_decay": "0.999"},
    "linear": {"--lr_scheduler_type": "linear"},
    "cosine to a tenth": {"--min_lr_ratio": "0.1"},
    "inverse square root": {"--lr_scheduler_type": "inverse_sqrt"},
    "warm-up, stable, decay": LATE_DECAY,
    "learning rate 1e-4 (the guideline)": {"--learning_rate": "1e-4"},
    "learning rate 2e-3": {"--learning_rate": "2e-3"},
    "learning rate 4e-3": {"--learning_rate": "4e-3"},
    "learning rate 2e-3, warm-up, stable, decay": {"--learning_rate": "2e-3", **LATE_DECAY},
    "learning rate 4e-3, warm-up, stable, decay": {"--learning_rate": "4e-3", **LATE_DECAY},
    "musical time": {OVERRIDES: "musical_time=true"},
    "previous token": {OVERRIDES: "previous_token=true"},
    "pitch intervals": {OVERRIDES: "musical_pitch=true"},
    "musical time, pitch intervals, previous token": MUSICAL,
    "Muon": MUON,
    "Muon, learning rate 4e-3, warm-up, stable, decay": {**MUON, "--learning_rate": "4e-3", **LATE_DECAY},
    "all three, 4e-3, late decay": BEST,
    "all three, 4e-3, late decay, Muon": {**BEST, **MUON},
    "all three, 8e-3, late decay, Muon": {**BEST, **MUON, "--learning_rate": "8e-3"},
    "all three, 4e-3, late decay, label smoothing 0.1": {**BEST, "--label_smoothing": "0.1"},
    "all three, 4e-3, late decay, averaged weights 0.99": {**BEST, "--ema_decay": "0.99"},
    "initial weights of 0.05": {OVERRIDES: "initializer_range=0.05"},
    "initial weights of 0.1": {OVERRIDES: "initializer_range=0.1"},
}
"""Options that differ from the baseline's; overrides of the configuration come on top of the baseline's own."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="folder or Hub id of the melodies")
    parser.add_argument("--output", required=True, type=Path, help="JSON file with the results")
    parser.add_argument("--steps", type=int, required=True, help="of every variant")
    parser.add_argument("--runs", type=Path, default=Path("outputs/ablations"), help="folder of the runs")
    parser.add_argument("--only", nargs="+", choices=(*VARIANTS, "transfer"), help="these variants and the baseline")
    parser.add_argument(
        "--pretrain_dataset", help="adds transfer: as many steps on these melodies first, then on --dataset"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each variant is run with each of them")
    parser.add_argument("--options", default="", help="further options of train.py for all variants, in quotes")
    return parser.parse_args(argv)


def command(options: dict[str, str]) -> list[str]:
    """Write options as a command line."""
    return [sys.executable, str(ROOT / "train.py"), *(word for pair in options.items() for word in pair if word)]


def parse_options(text: str) -> dict[str, str]:
    """Read options of train.py as a dict; flags without a value have an empty one.

    Raises:
        UserError: If a value stands alone.
    """
    options: dict[str, str] = {}
    name = ""
    for word in shlex.split(text):
        if word.startswith("--"):
            name = word
            options[name] = ""
        elif name and not options[name]:
            options[name] = word
        else:
            raise UserError(f"--options {text}: {word} belongs to no option; write them as --name value")
    return options


def varied(base: dict[str, str], changes: dict[str, str]) -> dict[str, str]:
    """Change options; overrides of the configuration add up."""
    overrides = ",".join(each[OVERRIDES] for each in (base, changes) if each.get(OVERRIDES))
    return base | changes | ({OVERRIDES: overrides} if overrides else {})


def train(options: dict[str, str], output_dir: Path) -> dict:
    """Run train.py, from its latest checkpoint if it has one, and return its log.

    Raises:
        UserError: If it fails; names its log file.
    """
    options = options | {"--output_dir": str(output_dir)}
    if checkpoint_folders(output_dir):
        options["--resume_from_checkpoint"] = "latest"
    output_dir.mkdir(parents=True, exist_ok=True)
    log = output_dir / "train.log"
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run(command(options), stdout=file, stderr=file)
    if done.returncode:
        raise UserError(f"{log}: train.py ended with {done.returncode}; its last lines say why")
    return json.loads((output_dir / LOG_NAME).read_text(encoding="utf-8"))


def measure(log: dict) -> dict[str, float]:
    """The best evaluation of a run, which is the model that it keeps."""
    best = min(log["history"], key=lambda entry: entry["bits_per_note"])
    names = ("step", "bits_per_note", "reconstruction_nats", "kl_nats", "active_units")
    return {name: best[name] for name in names} | {
        "last_bits_per_note": log["history"][-1]["bits_per_note"],
        "melodies_seen": log["melodies_seen"],
        "melodies_per_second": log["melodies_per_second"],
    }


def options_of(args: argparse.Namespace, checkpoints: int) -> dict[str, str]:
    """Write the options of train.py that all runs share: a schedule in proportion to the steps, and `--options`."""

    def every(part: int) -> str:
        return str(max(args.steps // part, 1))

    return {
        "--dataset": args.dataset,
        "--max_train_steps": str(args.steps),
        "--evaluation_steps": every(8),
        "--checkpointing_steps": every(checkpoints),
        "--kl_warmup_steps": every(8),
        "--num_warmup_steps": every(25),
        "--listening_samples": "0",
        **parse_options(args.options),
    }


def run_all(args: argparse.Namespace) -> None:
    """Run what is not there yet, and write the results after each run."""
    base = varied(BASELINE_OPTIONS, options_of(args, checkpoints=4))
    wanted = {BASELINE: {}} | {name: VARIANTS[name] for name in VARIANTS if name in (args.only or VARIANTS)}
    if args.pretrain_dataset:
        wanted["transfer"] = {}
    todo = [(name, seed) for name in wanted for seed in args.seeds]
    for name, seed in tqdm(todo, desc="ablations", unit="run"):
        if str(seed) in read(args.output, base)["variants"].get(name, {}).get("seeds", {}):
            continue
        folder = args.runs / f"{name.replace(' ', '_')}-seed{seed}"
        options, changed = varied(base, wanted[name]) | {"--seed": str(seed)}, wanted[name]
        if name == "transfer":
            before = folder.with_name(f"{folder.name}-before")
            train(options | {"--dataset": args.pretrain_dataset}, before)
            options |= {"--init_from": str(before)}
            changed = {"--init_from": f"{args.steps} steps on {args.pretrain_dataset}"}
        found = measure(train(options, folder))
        results = read(args.output, base)  # again: other variants may have been run beside this one
        results["variants"].setdefault(name, {"options": changed, "seeds": {}})["seeds"][str(seed)] = found
        write({**results, "baseline_options": base, "machine": machine()}, args.output)
    print(table(read(args.output, base)))


def read(output: Path, base: dict[str, str]) -> dict:
    """Read the results so far.

    Raises:
        UserError: If they are of other options.
    """
    results = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {"variants": {}}
    if results.get("baseline_options", base) != base:
        raise UserError(f"{output}: results of other options; give another --output, or remove it")
    return results


def write(results: dict, output: Path) -> None:
    """Write the results at once, with each variant's mean and its difference from the baseline's."""
    for of_variant in results["variants"].values():
        of_variant["bits_per_note"] = mean_bits(of_variant)
    if baseline := results["variants"].get(BASELINE):
        for of_variant in results["variants"].values():
            of_variant["difference"] = of_variant["bits_per_note"] - baseline["bits_per_note"]
    write_json(results, output)


def mean_bits(of_variant: dict) -> float:
    """Mean over the seeds that have run."""
    bits = [run["bits_per_note"] for run in of_variant["seeds"].values()]
    return sum(bits) / len(bits)


def table(results: dict) -> str:
    """Tabulate the variants, the best first."""
    rows = sorted(results["variants"].items(), key=lambda item: item[1]["bits_per_note"])
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {row['bits_per_note']:7.3f}  {row.get('difference', 0):+7.3f}" for name, row in rows]
    return "\n".join([f"{'variant':<{width}}  bits per note, difference", *lines])


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(run_all, parse_args(argv), stopped="stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
