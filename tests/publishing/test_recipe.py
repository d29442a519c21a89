"""The recipe of the release: stages that run once, again when they have to, and go on after a kill."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from publishing import recipe
from tests.builders.commands import run as run_command
from tests.builders.training import TINY

ROOT = Path(__file__).parents[2]
COPY = "import sys; from pathlib import Path; Path(sys.argv[4]).write_text(Path(sys.argv[2]).read_text() + sys.argv[6])"


@pytest.fixture
def small(tmp_path):
    """Write a recipe of three stages that append a letter each, and return it with what runs it."""
    (tmp_path / "seed text").write_text("s", encoding="utf-8")
    work = tmp_path / "work"
    stages = {
        "lost": {"cannot_run": "its beginning is gone", "seconds": 5400},
        "one": {"command": f"python -c '{COPY}'", "arguments": {"of": "{seed}", "to": "{output}", "add": "1"}},
        "two": {"command": f"python -c '{COPY}'", "arguments": {"of": "{one}", "to": "{output}", "add": "2"}},
        "side": {"command": f"python -c '{COPY}'", "arguments": {"of": "{seed}", "to": "{output}", "add": "x"}},
    }
    content = {"work": str(work), "inputs": {"seed": f"'{tmp_path / 'seed text'}'"}, "stages": stages}
    file, record = tmp_path / "recipe.yaml", tmp_path / "recipe.json"

    def run(*more: str, code: int = 0) -> None:
        work.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        assert recipe.main(["--recipe", str(file), "--record", str(record), *more]) == code

    return content, work, run


def ran(text: str) -> list[str]:
    """Return the stages that ran, by what was printed."""
    return re.findall(r"^(\w+): (?!finished)", text, re.MULTILINE)


def test_finished_stages_are_skipped(small, capfd):
    _, work, run = small
    run()
    assert ran(capfd.readouterr().out) == ["one", "two", "side"]
    assert (work / "two").read_text(encoding="utf-8") == "s12"
    run()
    assert ran(capfd.readouterr().out) == []


def test_changed_arguments_run_a_stage_and_all_that_come_from_it(small, capfd):
    content, work, run = small
    run()
    content["stages"]["one"]["arguments"]["add"] = "3"
    capfd.readouterr()
    run("--dry_run")
    told = capfd.readouterr().out
    assert "its arguments have changed" in told
    assert "one runs again" in told
    run("--until", "lost")
    assert ran(capfd.readouterr().out) == []
    run("--until", "one")
    assert ran(capfd.readouterr().out) == ["one"]
    assert (work / "one.old").read_text(encoding="utf-8") == "s1"
    run()
    assert ran(capfd.readouterr().out) == ["two"]
    assert (work / "two").read_text(encoding="utf-8") == "s32"


def test_what_is_gone_is_made_again(small, capfd):
    _, work, run = small
    run()
    (work / "side").unlink()
    capfd.readouterr()
    run()
    assert ran(capfd.readouterr().out) == ["side"]


def test_inputs_may_lie_elsewhere(small, tmp_path, capfd):
    _, work, run = small
    (tmp_path / "t").write_text("t", encoding="utf-8")
    run("--set", f"seed={tmp_path / 't'}")
    assert (work / "two").read_text(encoding="utf-8") == "t12"
    run("--set", "sed=x", code=2)
    assert "--set sed: no input of" in capfd.readouterr().err


def test_a_failing_stage_is_named_and_the_same_command_goes_on(small, capfd):
    content, work, run = small
    good = content["stages"]["two"]["command"]
    content["stages"]["two"]["command"] = "python -c 'import sys; sys.exit(3)'"
    run(code=2)
    assert "stage two: failed with exit code 3" in capfd.readouterr().err
    assert not (work / "side").exists()
    content["stages"]["two"]["command"] = good
    run()
    assert ran(capfd.readouterr().out) == ["two", "side"]


def test_a_dry_run_lists_times_and_what_cannot_run(small, capfd):
    _, work, run = small
    run("--dry_run")
    told = capfd.readouterr().out
    assert re.search(r"^lost +1\.5 h  cannot be run again: its beginning is gone$", told, re.MULTILINE)
    assert re.search(r"^one +-  not run yet$", told, re.MULTILINE)
    assert told.endswith("4 stages, 1.5 h in all; 3 to run\n")
    assert not (work / "one").exists()
    run()
    capfd.readouterr()
    run("--dry_run")
    told = capfd.readouterr().out
    assert re.search(r"^one +\d+ s  finished$", told, re.MULTILINE)
    assert told.endswith("; 0 to run\n")


def test_a_stage_that_was_run_by_hand_is_adopted_with_its_time(small, capfd):
    _, work, run = small
    run("--adopt", "one", code=2)
    assert "is not there" in capfd.readouterr().err
    (work / "one").mkdir(parents=True)
    (work / "one" / "training_log.json").write_text(json.dumps({"seconds": 600}), encoding="utf-8")
    run("--adopt", "one")
    assert re.search(r"^one +10 min  finished$", capfd.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"comand": "x"}, "stage two: unknown field 'comand'"),
        ({"after": ["three"]}, "stage two: 'three' is neither an input nor a stage before it"),
        ({"arguments": {"of": "{side}"}}, "stage two: 'side' is neither an input nor a stage before it"),
        ({"command": ""}, "stage two: has no command"),
    ],
)
def test_a_wrong_stage_is_one_line(small, capfd, change, reason):
    content, _, run = small
    content["stages"]["two"] |= change
    run(code=2)
    assert reason in capfd.readouterr().err


def test_arguments_become_options():
    options = {"lines": "all", "keep": True, "skip": False, "none": None, "models": ["a", "b"]}
    overrides = {"dropout": 0.0, "musical_time": True}
    assert recipe.option_words({**options, "config_overrides": overrides}) == (
        ["--lines", "all", "--keep", "--models", "a", "b", "--config_overrides", "dropout=0.0,musical_time=true"]
    )


@pytest.mark.slow
def test_the_releases_recipe_has_known_options():
    """Each stage's options are of its command."""
    file = ROOT / "configs" / "release.yaml"
    read = recipe.read_recipe(file, {})
    assert {"data", "release", "evaluation", "card"} <= read.stages.keys()
    helps = {}
    for stage in read.stages.values():
        found = re.search(r"(-m [\w.]+|\w+\.py) (.*)", " ".join(stage.words))
        if not found:
            continue
        command, options = found[1], re.findall(r"--\w+", found[2])
        if command not in helps:
            helps[command] = run_command([*command.split(), "--help"], ROOT)
        assert [option for option in options if not re.search(rf"{option}\b", helps[command])] == [], stage.name
    assert len(helps) > 3


def recipe_command(folder: Path, stages: dict) -> list[str]:
    """Write a recipe that works in a folder; returns the command that runs it."""
    folder.mkdir()
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({"work": str(folder / "work"), "stages": stages}, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "publishing.recipe", "--recipe", str(file)]
    return [*command, "--record", str(folder / "record.json")]


@pytest.fixture(scope="module")
def tiny_release(trained, dataset, tmp_path_factory) -> tuple[dict, Path]:
    """Give the stages of training, averaging and prior, and the folder of a run of them that nothing killed."""
    tuning = {
        **{"dataset": str(dataset), "init_from": str(trained), "output_dir": "{output}", "config_overrides": TINY},
        **{"per_device_train_batch_size": 5, "max_train_steps": 30, "evaluation_steps": 10, "checkpointing_steps": 2},
        **{"mixed_precision": "no", "cpu_threads": 1, "num_proc": 1, "listening_samples": 0, "keep": "last"},
    }
    prior = {
        **{"model": "{mean}", "dataset": str(dataset), "output_dir": "{output}", "num_prior_layers": 1},
        **{"max_train_steps": 40, "batch_size": 16, "num_proc": 1, "cpu_threads": 1},
    }
    stages = {
        "tuning": {"command": "accelerate launch --cpu --num_processes 1 train.py", "arguments": tuning},
        "mean": {
            "command": "python -m training.average_models",
            "arguments": {"models": [str(trained), "{tuning}"], "output_dir": "{output}"},
        },
        "prior": {"command": "python train_prior.py", "arguments": prior},
    }
    folder = tmp_path_factory.mktemp("recipes") / "whole"
    subprocess.run(recipe_command(folder, stages), check=True, cwd=ROOT, capture_output=True)
    return stages, folder


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["tuning", "prior"])
def test_a_tiny_release_killed_on_the_way(tiny_release, tmp_path, victim):
    """Killed in a stage, a recipe of training, averaging and prior ends with the weights of one that was not."""
    stages, whole = tiny_release
    killed = tmp_path / "killed"
    command, record = recipe_command(killed, stages), killed / "record.json"
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            entries = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
            if (killed / "work" / "tuning" / "step_4").exists() if victim == "tuning" else "prior" in entries:
                break
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, encoding="utf-8")
    lines = [line for line in done.stdout.splitlines() if line.startswith(("tuning: ", "mean: ", "prior: "))]
    assert [line.split(": ")[1] for line in lines].count("finished") == {"tuning": 0, "prior": 2}[victim]
    assert ("--resume_from_checkpoint" in done.stdout) == (victim == "tuning")
    for stage in ("tuning", "mean", "prior"):
        weights = [(folder / "work" / stage / "model.safetensors").read_bytes() for folder in (whole, killed)]
        assert weights[0] == weights[1], stage
