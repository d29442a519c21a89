"""Run the recipe of the release, stage by stage: `python -m publishing.recipe [--dry_run]`, or `make release`.

`configs/release.yaml` names the stages and their arguments: data, training, averaging, prior, evaluation, card. A stage
that is finished is skipped; it runs again when its arguments have changed, its output is gone, or a stage that it reads
has run again. Stopped at any moment, the same command goes on; training goes on from its last checkpoint.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from command import UserError, machine, run_command, write_json

ROOT = Path(__file__).parents[1]
NAME = re.compile(r"\{(\w+)\}")
FIELDS = {"command", "arguments", "output", "after", "cannot_run", "seconds"}
INTERRUPTED = "was interrupted"
NOTED_EVERY = 60.0  # seconds: what a killed stage has taken is known to within so many


@dataclass(frozen=True)
class Stage:
    """One command of the recipe.

    Attributes:
        name: By which other stages name its output, in braces.
        words: The command; names in braces stand for inputs and for outputs of stages.
        output: File or folder that it makes.
        reads: Stages that must be finished before.
        cannot_run: Why it cannot be run again, where what it began from is gone.
        seconds: That such a stage took.
    """

    name: str
    words: tuple[str, ...]
    output: Path
    reads: tuple[str, ...] = ()
    cannot_run: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class Recipe:
    """The stages in their order.

    Attributes:
        work: Folder of the outputs that do not say where they lie.
        inputs: Paths that are not made here, by name; may be several in one.
        stages: By name.
    """

    work: Path
    inputs: Mapping[str, str] = field(default_factory=dict)
    stages: Mapping[str, Stage] = field(default_factory=dict)

    def command(self, stage: Stage) -> list[str]:
        """Return a stage's command with all names filled in."""
        outputs = {name: str(other.output) for name, other in self.stages.items()} | {"output": str(stage.output)}
        words = []
        for word in stage.words:
            whole = NAME.fullmatch(word)
            if whole and whole[1] in self.inputs:
                words += shlex.split(self.inputs[whole[1]])
            else:
                words.append(NAME.sub(lambda found: {**self.inputs, **outputs}[found[1]], word))
        return words


def read_recipe(file: Path, given: Mapping[str, str]) -> Recipe:
    """Read a recipe.

    Args:
        file: YAML; `configs/release.yaml` says of what form.
        given: Inputs that replace the file's.

    Raises:
        UserError: If it cannot be read, or a stage has an unknown field or names what is neither an input nor a stage
            before it.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        work, inputs, entries = Path(content["work"]), content.get("inputs") or {}, content["stages"]
        entries = {name: dict(entry) for name, entry in entries.items()}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).replace("\n", " ")
        raise UserError(f"{file}: no recipe ({reason}); it has `work`, `inputs` and `stages`") from error
    if unknown := sorted(given.keys() - inputs.keys()):
        raise UserError(f"--set {unknown[0]}: no input of {file}; it has {', '.join(inputs)}")
    stages: dict[str, Stage] = {}
    for name, entry in entries.items():
        stages[name] = read_stage(name, entry, work, stages.keys(), inputs.keys(), file)
    return Recipe(work, {**inputs, **given}, stages)


def read_stage(name: str, entry: Mapping[str, Any], work: Path, before, inputs, file: Path) -> Stage:
    """Read one stage of a recipe.

    Raises:
        UserError: As of `read_recipe`.
    """
    if unknown := sorted(entry.keys() - FIELDS):
        raise UserError(f"{file}: stage {name}: unknown field {unknown[0]!r}; there are {', '.join(sorted(FIELDS))}")
    if not (entry.get("command") or entry.get("cannot_run")):
        raise UserError(f"{file}: stage {name}: has no command")
    words = (*shlex.split(entry.get("command") or ""), *option_words(entry.get("arguments") or {}))
    named = {found for word in words for found in NAME.findall(word)} - {"output", *inputs}
    after = set(entry.get("after") or ())
    if unknown := sorted((named | after) - set(before)):
        raise UserError(f"{file}: stage {name}: {unknown[0]!r} is neither an input nor a stage before it")
    return Stage(
        name,
        words,
        Path(entry.get("output") or work / name),
        tuple(stage for stage in before if stage in named | after),
        entry.get("cannot_run") or "",
        entry.get("seconds"),
    )


def option_words(arguments: Mapping[str, Any]) -> list[str]:
    """Write arguments as options: a list as several values, a mapping as `name=value,...`, true as the option alone."""
    words = []
    for name, value in arguments.items():
        if value is None or value is False:
            continue
        words.append(f"--{name}")
        if isinstance(value, Mapping):
            words.append(",".join(f"{key}={plain(of)}" for key, of in value.items()))
        elif value is not True:
            words += [plain(each) for each in (value if isinstance(value, list) else [value])]
    return words


def plain(value: Any) -> str:
    """Write a value as options take it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class Record:
    """What has run, in `results/recipe.json`.

    Args:
        file: JSON; need not be there.

    Raises:
        UserError: If it is something else.
    """

    def __init__(self, file: Path):
        self.file = file
        try:
            self.stages = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            assert isinstance(self.stages, dict)
        except (ValueError, AssertionError) as error:
            raise UserError(f"{file}: no record of a recipe; remove it to begin anew") from error

    def seconds(self, stage: Stage) -> float | None:
        """Return what a stage took the last time that it ran."""
        return self.stages.get(stage.name, {}).get("seconds", stage.seconds)

    def plan(self, stage: Stage) -> dict:
        """Return what decides whether a stage has to run again: its command, and which runs it reads."""
        runs = {name: self.stages.get(name, {}).get("finished") for name in stage.reads}
        return {"command": shlex.join(stage.words), "reads": runs}

    def is_begun(self, stage: Stage) -> bool:
        """Whether a stage has begun as it would run now, finished or not."""
        entry = self.stages.get(stage.name, {})
        return {name: entry.get(name) for name in ("command", "reads")} == self.plan(stage)

    def why(self, stage: Stage, running: Sequence[str] = ()) -> str:
        """Say why a stage has to run; nothing where it is finished or cannot run.

        Args:
            stage: The stage.
            running: Stages that run before it.
        """
        entry = self.stages.get(stage.name)
        if stage.cannot_run:
            return ""
        if entry is None:
            return "not run yet"
        if entry["command"] != shlex.join(stage.words):
            return "its arguments have changed"
        if again := [name for name in stage.reads if name in running]:
            return f"{again[0]} runs again"
        if not self.is_begun(stage):
            return "a stage that it reads has run again"
        if not entry["finished"]:
            return INTERRUPTED
        return "" if stage.output.exists() else f"{stage.output} is gone"

    def note(self, stage: Stage, seconds: float | None, is_finished: bool) -> None:
        """Write down that a stage runs, or is finished."""
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        entry = {**self.plan(stage), "output": stage.output.as_posix(), "finished": now if is_finished else None}
        self.stages[stage.name] = {**entry, "seconds": seconds, "machine": machine()}
        write_json(self.stages, self.file)


def run(recipe: Recipe, stage: Stage, record: Record) -> None:
    """Run a stage and write down how long it took, with what it took before an interruption.

    Raises:
        UserError: If its command fails.
    """
    from training.checkpoints import checkpoints  # not at the top: it imports torch, and a dry run answers at once

    # An interrupted training goes on; of any other stage what is there is set aside.
    command, took = recipe.command(stage), 0.0
    is_interrupted = record.why(stage) == INTERRUPTED
    if is_interrupted:
        took = record.seconds(stage) or 0.0
    if is_interrupted and "train.py" in command and checkpoints(stage.output):
        command += ["--resume_from_checkpoint", "latest"]
    elif stage.output.exists() and recipe.work in stage.output.parents:
        set_aside(stage.output)
    # The time is noted as it passes, so that a kill loses none of it.
    print(f"{stage.name}: {shlex.join(command)}", flush=True)
    began = time.monotonic()
    record.note(stage, round(took, 1), is_finished=False)
    bin_folder = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": os.pathsep.join([bin_folder, os.environ.get("PATH", "")])}
    program = shutil.which(command[0], path=environment["PATH"])
    if program is None:
        raise UserError(f"stage {stage.name}: no program {command[0]!r}")
    with subprocess.Popen([program, *command[1:]], env=environment) as process:
        while process.poll() is None:
            try:
                process.wait(NOTED_EVERY)
            except subprocess.TimeoutExpired:
                record.note(stage, round(took + time.monotonic() - began, 1), is_finished=False)
    seconds = round(took + time.monotonic() - began, 1)
    # Only a stage that made its output is finished.
    if process.returncode or not stage.output.exists():
        record.note(stage, seconds, is_finished=False)
        reason = f"failed with exit code {process.returncode}" if process.returncode else f"made no {stage.output}"
        raise UserError(f"stage {stage.name}: {reason}; put it right, and the same command goes on there")
    record.note(stage, seconds, is_finished=True)


def set_aside(output: Path) -> None:
    """Make room for an output, and keep the older one beside it until the next time."""
    old = output.with_name(f"{output.name}.old")
    if old.is_dir():
        shutil.rmtree(old)
    output.replace(old)


def adopt(stage: Stage, record: Record) -> None:
    """Take a stage's output as it lies there, since its command was run by hand.

    Raises:
        UserError: If there is none.
    """
    if not stage.output.exists():
        raise UserError(f"--adopt {stage.name}: {stage.output} is not there; run the stage")
    from training.run_logger import LOG_NAME

    logs = [stage.output / name for name in ("prior_log.json", "build.json", LOG_NAME)]
    log = next((log for log in logs if log.is_file()), None)
    seconds = None
    if log:
        found = json.loads(log.read_text(encoding="utf-8"))
        if "mean_of" not in found:  # else the log is of the last of the models that were averaged
            seconds = found.get("seconds")
            seconds = max(seconds.values()) if isinstance(seconds, dict) else seconds
    record.note(stage, seconds, is_finished=True)


def describe(recipe: Recipe, record: Record) -> str:
    """List the stages: what each does, whether it is finished, and how long it took."""
    running, rows = [], []
    for stage in recipe.stages.values():
        if why := record.why(stage, running):
            running.append(stage.name)
        state = f"cannot be run again: {stage.cannot_run}" if stage.cannot_run else why or "finished"
        rows.append((stage.name, duration(record.seconds(stage)), state, shlex.join(recipe.command(stage))))
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:2]]
    lines = []
    for name, took, state, command in rows:
        lines.append(f"{name:{widths[0]}}  {took:>{widths[1]}}  {state}")
        lines += [f"{'':{sum(widths) + 4}}{command}"] if command else []
    took = [seconds for stage in recipe.stages.values() if (seconds := record.seconds(stage)) is not None]
    return "\n".join([*lines, f"{len(rows)} stages, {duration(sum(took))} in all; {len(running)} to run"])


def duration(seconds: float | None) -> str:
    """Write seconds as people say them; a dash where they are not known."""
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m publishing.recipe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, default=ROOT / "configs" / "release.yaml", help="YAML of the stages")
    parser.add_argument("--record", type=Path, default=ROOT / "results" / "recipe.json", help="JSON of what has run")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=PATHS", help="inputs that lie elsewhere")
    parser.add_argument("--until", metavar="STAGE", help="the last stage to run")
    parser.add_argument("--dry_run", action="store_true", help="print the stages, with the time each took, and stop")
    parser.add_argument(
        "--adopt", nargs="+", default=[], metavar="STAGE", help="take outputs as they are: they were made by hand"
    )
    args = parser.parse_args(argv)
    if wrong := [pair for pair in args.set if "=" not in pair]:
        parser.error(f"--set {wrong[0]}: give NAME=PATHS")
    return args


def follow(args: argparse.Namespace) -> None:
    """Run what has to run.

    Raises:
        UserError: If the recipe is wrong, or a stage fails.
    """
    recipe = read_recipe(args.recipe, dict(pair.split("=", 1) for pair in args.set))
    for name in [*args.adopt, *([args.until] if args.until else [])]:
        if name not in recipe.stages:
            raise UserError(f"{name}: no stage of {args.recipe}; it has {', '.join(recipe.stages)}")
    record = Record(args.record)
    for name in args.adopt:
        adopt(recipe.stages[name], record)
    if args.dry_run or args.adopt:
        print(describe(recipe, record))
        return
    for stage in recipe.stages.values():
        if record.why(stage):
            run(recipe, stage, record)
        elif not stage.cannot_run:
            print(f"{stage.name}: finished")
        if stage.name == args.until:
            break


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(follow, parse_args(argv), stopped="stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
