"""What is published: cards, configurations, folders; and from the Hub back in processes that know the id alone."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset, load_dataset
from fake_hub import Fault, Hub, running_hub
from huggingface_hub import ModelCard, RepoCard
from huggingface_hub.repocard_data import EvalResult
from packaging.requirements import Requirement

import publish
from dataset_script import build
from dataset_script.windows import windows
from generate import UserError
from modeling import MelodyProcessor, MelodyVAEConfig, MelodyVAEModel
from modeling.processing_melody_vae import line_to_words
from publishing import dataset, model_card, space
from publishing.staging import files_below, keep

ROOT = Path(__file__).parents[1]
CONSUMER = ROOT / "tests" / "consumer"
NAME = "tester/melody"
CONDITIONS = {"key": ["C major", "A minor"], "tempo": ["slow", "fast"]}


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> Path:
    """Build the data set of the embedded tunes."""
    folder = tmp_path_factory.mktemp("lines") / "melodies"
    assert build.main(["--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, lines) -> Path:
    """Save a small model as training does, checkpoints and log beside it."""
    rows = load_dataset(str(lines), split="train", cache_dir=str(tmp_path_factory.mktemp("cache")))
    processor = MelodyProcessor.train([line_to_words(row) for row in rows], vocab_size=401, max_bars=16)
    torch.manual_seed(0)
    config = MelodyVAEConfig(
        vocab_size=len(processor.tokenizer),
        bar_token_ids=processor.bar_token_ids,
        hidden_size=12,
        intermediate_size=13,
        num_encoder_layers=1,
        num_hidden_layers=2,
        num_attention_heads=2,
        latent_size=32,
        max_bars=16,
        max_relative_distance=11,
        num_prior_layers=1,
        conditions=CONDITIONS,
        initializer_range=0.3,
    )
    melody_vae = MelodyVAEModel(config).eval()
    melody_vae.set_grammar(processor.grammar_table())
    folder = tmp_path_factory.mktemp("trained") / "melody-vae-16bar"
    melody_vae.save_pretrained(folder)
    processor.save_pretrained(folder)
    log = {"arguments": {"dataset": "data/lakh", "learning_rate": 1e-3}, "seconds": 5400.0, "cpu_threads": 3}
    (folder / "training_log.json").write_text(json.dumps(log | {"device": "cpu", "melodies_seen": 1009, "history": []}))
    (folder / "step_7").mkdir()
    (folder / "step_7" / "model.safetensors").write_bytes(b"a checkpoint")
    return folder


@pytest.fixture
def app(tmp_path) -> Path:
    """Make the folder of a Space."""
    folder = tmp_path / "app"
    (folder / "static").mkdir(parents=True)
    head = {"title": "Play", "sdk": "gradio", "sdk_version": "6.31.0", "app_file": "app.py", "license": "apache-2.0"}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(head, sort_keys=False)}---\nPlay with melodies.\n")
    (folder / "requirements.txt").write_text("torch==2.13.0  # CPU\n\n# the model's\ntransformers==5.23.0\n")
    (folder / "app.py").write_text("import gradio\n")
    (folder / "static" / "roll.js").write_text("'use strict'\n")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "app.pyc").write_bytes(b"")
    return folder


# --- The data set ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def staged_lines(lines, tmp_path_factory) -> dict[str, Path]:
    return dataset.stage(lines, "tester/lines", NAME, tmp_path_factory.mktemp("staging"))


def lay_out(files: dict[str, Path], folder: Path) -> Path:
    """Copy files to where they lie in the repository."""
    for path, file in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / path)
    return folder


def cut_up(rows: Dataset) -> list[dict]:
    """Cut lines into windows, their floats as short as Parquet has them."""
    found = [window for line in rows for window in windows(line, bars=16, stride=16)]
    return Dataset.from_list(found, features=rows.features).to_list()


def test_both_configurations_load(lines, staged_lines, tmp_path):
    folder = str(lay_out(staged_lines, tmp_path / "repository"))
    original = load_dataset(str(lines), cache_dir=str(tmp_path / "cache"))
    whole = load_dataset(folder, cache_dir=str(tmp_path / "cache"))
    cut = load_dataset(folder, "16bar", streaming=True)
    assert set(whole) == set(cut) == set(original)
    for split, rows in original.items():
        assert whole[split].to_list() == rows.to_list()
        assert list(cut[split]) == cut_up(rows)
    assert load_dataset(folder, "lines", cache_dir=str(tmp_path / "cache"))["test"].features == whole["test"].features
    assert next(iter(cut["train"])).keys() == original["train"].features.keys()


def test_the_windows_hold_each_note_once_at_most(lines, staged_lines, tmp_path):
    cut = load_dataset(str(lay_out(staged_lines, tmp_path / "repository")), "16bar", cache_dir=str(tmp_path / "cache"))
    whole = load_dataset(str(lines), cache_dir=str(tmp_path / "cache"))
    for split in whole:
        notes = sum(map(len, whole[split]["pitch"]))
        assert 0.5 * notes < sum(map(len, cut[split]["pitch"])) <= notes
        assert len(set(cut[split]["melody_id"])) == len(cut[split])


def test_the_data_sets_card_names_both_and_the_model(staged_lines):
    card = RepoCard.load(staged_lines["README.md"])
    configs = card.data.to_dict()["configs"]
    assert [(config["config_name"], config.get("default")) for config in configs] == [("lines", True), ("16bar", None)]
    assert f"[{NAME}](https://huggingface.co/{NAME})" in card.text
    assert '"melodies"' not in card.text
    assert card.text.count("## Configurations") == 1
    for path in re.findall(r'(?:src|srcset)="([^"]+)"', card.text):
        assert path in staged_lines


def test_windows_are_made_once_and_equal(lines, staged_lines, tmp_path, monkeypatch):
    again = dataset.stage(lines, "tester/lines", NAME, tmp_path)
    for path, file in again.items():
        assert file.read_bytes() == staged_lines[path].read_bytes(), path
    monkeypatch.setattr(dataset, "write_windows", None)
    assert dataset.stage(lines, "tester/lines", NAME, tmp_path) == again


def test_what_is_no_data_set_is_refused(lines, tmp_path):
    with pytest.raises(UserError, match=r"README\.md is missing"):
        dataset.stage(tmp_path, "tester/lines", None, tmp_path / "staging")
    broken = tmp_path / "broken"
    shutil.copytree(lines, broken)
    for file in (broken / "data").glob("*.parquet"):
        file.write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match="cannot be read as melody lines"):
        dataset.stage(broken, "tester/lines", None, tmp_path / "staging")


def test_what_is_made_halfway_is_made_again(tmp_path):
    def stop(part: Path) -> None:
        (part / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path, "one", stop)
    whole = keep(tmp_path, "one", lambda part: (part / "whole").write_text("whole"))
    assert set(files_below(whole)) == {"whole"}
    assert set(files_below(keep(tmp_path, "two", lambda part: None))) == set()
    assert [folder.name for folder in tmp_path.iterdir()] == ["two"]


# --- The Space ------------------------------------------------------------------------------------------------------


def test_a_space_is_its_folder_with_links(app, tmp_path):
    files = space.stage(app, NAME, ["tester/lines"], tmp_path / "staging")
    assert set(files) == {"README.md", "app.py", "requirements.txt", "static/roll.js"}
    card = RepoCard.load(files["README.md"]).data.to_dict()
    assert (card["models"], card["datasets"], card["title"]) == ([NAME], ["tester/lines"], "Play")
    assert {path for path, file in files.items() if file.parent != app and file.parent != app / "static"} == {
        "README.md"
    }
    assert "models" not in RepoCard.load(app / "README.md").data.to_dict()


@pytest.mark.parametrize("line", ["torch", "torch>=2", "git+https://example.org/x.git", "torch==2.*"])
def test_a_requirement_that_is_not_pinned_is_refused(app, tmp_path, line):
    (app / "requirements.txt").write_text(f"miditok==3.1.0\n{line}\n")
    with pytest.raises(UserError, match=rf"requirements.txt:2: {re.escape(line)} is not pinned"):
        space.stage(app, NAME, [], tmp_path / "staging")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: Play", "titel: Play", "the field title is missing"),
        ("sdk: gradio", "sdk: docker", "sdk is docker"),
        ("app_file: app.py", "app_file: main.py", "app_file is main.py"),
        ("title: Play", "title: 'Play", "no valid YAML"),
    ],
)
def test_a_head_that_the_hub_would_not_start_is_refused(app, tmp_path, old, new, message):
    card = app / "README.md"
    card.write_text(card.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        space.stage(app, NAME, [], tmp_path / "staging")


# --- The model's card -----------------------------------------------------------------------------------------------


def evaluation(name: str = "melody-vae-16bar", parameters: int = 5003, **more: Any) -> dict[str, Any]:
    """Make what `evaluate_model.py` writes of a model, with numbers that are nowhere else."""
    steps = {"accuracy": 0.7919, "floor": 0.6067, "exact": 0.0131, "interval": [0.7817, 0.8011]}
    return {
        "model": f"release/{name}",
        "parameters": parameters,
        "split": "test",
        "melodies": 251,
        "bars": 16,
        "seed": 3,
        "likelihood": {
            "bits_per_note": 6.123,
            "importance_weighted_bits_per_note": 5.917,
            "importance_samples": 11,
            "kl_nats": 233.1,
            "active_units": 31,
        },
        "likelihood_floors": {"uniform": {"bits_per_note": 19.71}, "4-gram": {"bits_per_note": 8.317}, "melodies": 9},
        "free_running": {"step_accuracy": steps, "note_f1": {"f1": 0.5557}, "note_f1_floor": 0.0241},
        "teacher_forced_by_bar": {"step_accuracy": {"accuracy": 0.8167, "floor": 0.6067}},
        **more,
    }


def make_published(**changes: Any) -> model_card.Published:
    config = {"latent_size": 32, "max_bars": 16, "conditions": CONDITIONS, "num_prior_layers": 1, "attributes": None}
    return model_card.Published(
        **{
            "name": "melody-vae-16bar",
            "repo_id": NAME,
            "config": config,
            "parameters": 5003,
            "logs": {},
            "samples": ["sample-seed0-1"],
            "has_onnx": True,
            "metrics": ["note_f1"],
            "dataset_id": "tester/lines",
            **changes,
        }
    )


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d[\d,]*\.\d+", text))


def test_the_card_without_results_has_no_numbers_of_any():
    card, own, used = model_card.render(make_published(), {})
    assert own is None
    assert used == []
    assert "This model has not been measured" in card
    for section in ("Training data", "Training procedure", "Environmental cost", "What can be asked"):
        assert f"## {section}" not in card
    assert numbers(card.split("## Quickstart")[1].split("## Limits")[0]) <= {"5.23", "3.1", "0.6", "0.8"}
    assert "model-index" not in card


@pytest.mark.parametrize("name", ["first_run", "model", "attention", "dataset", "near_duplicates"])
def test_the_card_is_written_from_each_result_alone(name):
    results = {name: json.loads((ROOT / "results" / f"{name}.json").read_text())}
    card, _, used = model_card.render(make_published(), results)
    assert used == [f"{name}.json"]
    assert ModelCard(card).data.to_dict()["license"] == "apache-2.0"


def test_the_models_own_numbers_are_in_card_and_head():
    values = evaluation()
    card, own, used = model_card.render(make_published(), {"release": values})
    assert own
    assert used == ["release.json"]
    table = card.split("## Evaluation")[1].split("## Limits")[0]
    for shown in ("6.12", "8.32", "5.92", "233", "0.792", "0.782 to 0.801", "0.607", "0.817", "0.556", "0.0241", "31"):
        assert f" {shown} |" in table, shown
    assert "251 windows of 16 bars in 4/4" in table
    assert "Other models" not in card
    results: list[EvalResult] = ModelCard(card).data.eval_results or []
    by_name = {result.metric_name: result for result in results}
    assert by_name["Note F1, free-running"].metric_value == 0.5557
    about = {name: result.metric_args or {} for name, result in by_name.items()}
    assert about["Step accuracy, free-running"]["floor"] == 0.6067
    assert all(each["definition"] and each["seed"] == 3 for each in about.values())
    assert {result.dataset_type for result in results} == {"tester/lines"}
    entries = yaml.safe_load(model_card.eval_results_yaml(own, make_published()))
    assert [entry["value"] for entry in entries] == [result.metric_value for result in results]
    assert len({entry["dataset"]["task_id"] for entry in entries}) == len(entries)


@pytest.mark.parametrize("other", [evaluation("another"), evaluation(parameters=4999)])
def test_numbers_of_another_model_are_shown_as_such_and_stay_out_of_the_head(other):
    card, own, _ = model_card.render(make_published(), {"baselines": {"models": [other]}})
    assert own is None
    assert "None of these rows is the model of this card." in card
    assert f"**{Path(other['model']).name}**, {other['parameters']:,} parameters, 251 windows" in card
    assert ModelCard(card).data.eval_results is None


def test_originality_is_said_where_it_was_measured():
    def found(copied: float, auc: float | None) -> dict[str, Any]:
        return {"originality": {"copied": copied}} | ({"two_sample": {"auc": auc}} if auc else {})

    sets = {"model": found(0.0317, 0.711), "floor: 4-gram": found(0.113, 0.909), "split": found(0.0523, None)}
    card, _, _ = model_card.render(make_published(), {"release": evaluation(samples={"sets": sets})})
    assert "| floor: 4-gram | 0.909 | 11.3% |" in card
    assert "3.2% occur in the training split" in card
    assert "has not been measured; look" not in card


def test_a_model_without_a_latent_has_a_card_too():
    config = {"latent_size": 0, "max_bars": 16, "conditions": None, "num_prior_layers": 0, "attributes": None}
    values = evaluation(free_running=None)
    values["likelihood"] |= {"kl_nats": None, "active_units": None, "importance_weighted_bits_per_note": None}
    card, _, _ = model_card.render(make_published(config=config), {"release": values})
    assert "latent_mean" not in card
    assert "conditions=" not in card
    assert "KL in nats" not in card


def test_energy_grows_with_hours_and_threads():
    log = {"seconds": 3600, "cpu_threads": 1, "device": "cpu"}
    once = model_card.energy(log)
    assert once["kwh"] == pytest.approx(model_card.WATTS_PER_CPU_THREAD / 1000)
    for more in ({"seconds": 10800}, {"cpu_threads": 3}, {"num_processes": 3}):
        assert model_card.energy(log | more)["grams_co2"] == pytest.approx(3 * float(once["grams_co2"]))
    assert model_card.energy(log | {"device": "cuda"})["watts"] == model_card.WATTS_PER_GPU
    card, _, _ = model_card.render(make_published(logs={"training": log | {"arguments": {"dataset": "x"}}}), {})
    assert f"{once['kwh']:#.3g} kWh" in card
    assert ModelCard(card).data.to_dict()["co2_eq_emissions"]["emissions"] == round(float(once["grams_co2"]), 1)


def test_broken_results_are_one_line(tmp_path):
    (tmp_path / "release.json").write_text("{")
    with pytest.raises(UserError, match=r"release\.json: no JSON"):
        model_card.read_results(tmp_path)
    incomplete = json.loads((ROOT / "results" / "model.json").read_text())
    del incomplete["validity"]
    with pytest.raises(UserError, match="lacks a figure"):
        model_card.render(make_published(), {"model": incomplete})


def test_links_lead_to_the_branch_and_the_hub_that_are_meant():
    published = make_published(revision="v2", endpoint="https://hub.example", space_id="tester/play")
    card, own, _ = model_card.render(published, {"release": evaluation()})
    assert own
    assert "https://hub.example/tester/melody/resolve/v2/samples/sample-seed0-1.wav" in card
    assert 'AutoModel.from_pretrained("tester/melody", revision="v2", trust_remote_code=True)' in card
    assert "https://hub.example/spaces/tester/play" in card
    assert "https://hub.example/tester/melody/blob/v2/results/release.json" in model_card.eval_results_yaml(
        own, published
    )


# --- The command ----------------------------------------------------------------------------------------------------


def test_a_dry_run_lists_everything_and_touches_no_network(lines, app, tmp_path, monkeypatch, capsys):
    def connect(*_) -> None:
        raise AssertionError("a dry run reached for the network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    common = ["--dry_run", "--staging", str(tmp_path / "staging"), "--private"]
    assert publish.main(["dataset", "--repo_id", "tester/lines", "--dataset", str(lines), *common]) == 0
    shown = capsys.readouterr().out
    staged = dataset.stage(lines, "tester/lines", None, tmp_path / "staging" / "dataset" / "tester/lines")
    listed = re.findall(r"^ +[\d.]+ k?M?B  (\S+)$", shown, re.MULTILINE)
    assert listed == sorted(staged)
    assert shown.startswith(f"data set tester/lines, private: {len(staged)} files")
    assert publish.main(["space", "--repo_id", "tester/play", "--model_id", NAME, "--space", str(app), *common]) == 0
    assert f"variable MODEL_ID={NAME}" in capsys.readouterr().out


def test_ids_are_made_from_the_models(tmp_path):
    args = publish.make_parser().parse_args(["all", "--repo_id", "melody", "--dataset", "x", "--space_id", "us/play"])
    assert publish.complete_ids(args, "tester") == {
        "model": "tester/melody",
        "dataset": "tester/melody-data",
        "space": "us/play",
    }
    assert publish.complete_ids(args, None)["dataset"] == "melody-data"


def test_bad_input_is_one_line_and_exit_code_2(trained, tmp_path, capsys):
    common = ["--repo_id", NAME, "--dry_run", "--staging", str(tmp_path / "staging")]
    old = tmp_path / "old"
    shutil.copytree(trained, old)
    (old / "modeling_melody_vae.py").write_text("# older\n")
    for folder, message in (
        (tmp_path / "nowhere", "no such folder"),
        (old, "not what modeling/modeling_melody_vae.py is"),
    ):
        assert publish.main(["model", "--model", str(folder), *common]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("publish.py: ")
        assert error.count("\n") == 1
    assert publish.main(["dataset", "--dataset", str(tmp_path), "--repo_id", "a/b/c", "--dry_run"]) == 2
    assert "no name for a repository" in capsys.readouterr().err


def test_help_says_what_each_does(capsys):
    for kind in publish.KINDS:
        with pytest.raises(SystemExit) as end:
            publish.main([kind, "--help"])
        assert end.value.code == 0
        assert "--dry_run" in capsys.readouterr().out


# --- To the Hub and back --------------------------------------------------------------------------------------------


def run_alone(command: list[str], folder: Path, hub: Hub | None = None, code: int = 0, **environment: str) -> str:
    """Run a command in a folder of its own with an empty cache, without this repository."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
    online = (
        {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"} if hub else {"HF_HUB_OFFLINE": "1"}
    )
    result = subprocess.run(
        command,
        cwd=folder,
        env=kept | {"HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"} | online | environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == code, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def hub():
    with running_hub((".safetensors", ".onnx", ".wav", ".png", ".mid", ".parquet")) as server:
        yield server


@pytest.fixture(scope="module")
def publish_all(trained, lines, tmp_path_factory) -> list[str]:
    """Give the command that publishes all three."""
    app = tmp_path_factory.mktemp("space") / "app"
    app.mkdir()
    head = "title: Play\nsdk: gradio\nsdk_version: 6.31.0\napp_file: app.py\nlicense: apache-2.0\n"
    (app / "README.md").write_text(f"---\n{head}---\n")
    (app / "requirements.txt").write_text("torch==2.13.0\n")
    (app / "app.py").write_text("import gradio\n")
    folders = ["--model", str(trained), "--dataset", str(lines), "--space", str(app)]
    staging = str(tmp_path_factory.mktemp("staging"))
    return [sys.executable, str(ROOT / "publish.py"), "all", "--repo_id", "melody", *folders, "--staging", staging]


@pytest.fixture(scope="module")
def published(hub, publish_all, tmp_path_factory) -> Hub:
    """Publish all three, the Hub being moody."""
    hub.faults += [
        Fault("PUT", r"/lfs/", 500, times=2),
        Fault("POST", r"/datasets/tester/melody-data/commit/", "lose"),
        Fault("POST", r"/models/tester/melody/commit/", "drop"),
        Fault("POST", r"/spaces/tester/melody-space/preupload/", "wait", seconds=1.0),
    ]
    said = run_alone(publish_all, tmp_path_factory.mktemp("publisher"), hub)
    assert all(not fault.times for fault in hub.faults)
    assert "Space tester/melody-space: 3 of 3 files" in said
    return hub


@pytest.mark.slow
def test_each_repository_has_all_of_its_files_in_one_commit(published, trained, lines):
    names = ("tester/melody", "datasets/tester/melody-data", "spaces/tester/melody-space")
    assert set(published.repositories) == set(names)
    assert {len(published.repositories[name].commits) for name in names} == {2}
    files = published.files("tester/melody")
    for file in trained.iterdir():
        if file.is_file():
            assert files[file.name] == file.read_bytes()
    for pattern in ("onnx/decoder.onnx", "samples/*.mid", "samples/*.wav", "samples/*.png", "evaluation/note_f1/*.py"):
        assert any(Path(path).match(pattern) for path in files), pattern
    assert not any(path.startswith("step_") for path in files)
    traces = [path for path, content in files.items() if str(ROOT).encode() in content]
    assert traces == []
    assert published.repositories["spaces/tester/melody-space"].variables == {"MODEL_ID": "tester/melody"}


@pytest.mark.slow
def test_publishing_again_uploads_nothing(published, publish_all, tmp_path):
    del published.log[:]
    said = run_alone(publish_all, tmp_path / "again", published)
    assert said.count("nothing to upload") == 3
    assert {method for method, _, _ in published.log} <= {"GET", "HEAD"}


LOAD = """
import sys
import torch
from datasets import load_dataset
from transformers import AutoModel, AutoProcessor, AutoTokenizer, pipeline

name, data, expected = sys.argv[1], sys.argv[2], torch.load(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(name)
assert tokenizer(expected["text"])["input_ids"] == expected["ids"][0].tolist()
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
model = AutoModel.from_pretrained(name, trust_remote_code=True)
with torch.no_grad():
    assert torch.equal(model(expected["ids"]).logits, expected["logits"])
assert torch.equal(model.sample(3, seed=7, bars=4), expected["sampled"])
pipe = pipeline(model=name, trust_remote_code=True, device="cpu")
assert [each["midi"] for each in pipe(3, bars=4, seed=7)] == processor.to_midi_bytes(expected["sampled"])
for config in ("lines", "16bar"):
    stream = load_dataset(data, config, streaming=True)
    assert {split: list(rows) for split, rows in stream.items()} == expected[config]
assert load_dataset(data)["train"].to_list() == expected["lines"]["train"]
assert not any("modeling" == module or module.startswith("modeling.") for module in sys.modules)
"""


@pytest.mark.slow
def test_what_is_published_comes_back(published, trained, lines, tmp_path):
    whole = load_dataset(str(lines), cache_dir=str(tmp_path / "cache"))
    rows = {split: part.to_list() for split, part in whole.items()}
    melody_vae, processor = MelodyVAEModel.from_pretrained(trained), MelodyProcessor.from_pretrained(trained)
    ids = processor(lines=rows["train"][:3], bars=16, return_tensors="pt")["input_ids"][:1]
    ids = ids[:, : int((ids != 0).sum())]
    with torch.no_grad():
        logits = melody_vae(ids).logits
    expected = {
        "ids": ids,
        "text": processor.tokenizer.decode(ids[0], skip_special_tokens=True),
        "logits": logits,
        "sampled": melody_vae.sample(3, seed=7, bars=4),
        "lines": rows,
        "16bar": {split: cut_up(part) for split, part in whole.items()},
    }
    torch.save(expected, tmp_path / "expected.pt")
    command = [sys.executable, "-c", LOAD, NAME, "tester/melody-data", str(tmp_path / "expected.pt")]
    run_alone(command, tmp_path / "puller", published)


@pytest.mark.slow
def test_every_block_of_the_cards_runs(published, tmp_path):
    """The model's quickstart and metrics, and how to load the data set, as a reader would run them."""
    cards = [published.files(name)["README.md"].decode() for name in ("tester/melody", "datasets/tester/melody-data")]
    first, second = (re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE) for card in cards)
    assert len(first) == 2
    check = (
        "\nassert metric.compute(predictions=[{'pitch': [60], 'start': [0], 'duration': [4]}], "
        "references=[{'pitch': [60], 'start': [0], 'duration': [2]}])['f1'] == 1.0\n"
        "for name in ('bits_per_note', 'step_accuracy'):\n    evaluate.load(f'{folder}/evaluation/{name}')\n"
        "assert len(path) == 7 and (latent.shape, len(asked)) == ((2, 32), 2)\n"
    )
    (tmp_path / "quickstart.py").write_text("\n".join(first) + check)
    run_alone([sys.executable, str(tmp_path / "quickstart.py")], tmp_path / "reader", published)
    assert (tmp_path / "reader" / "melody-1.mid").read_bytes().startswith(b"MThd")
    blocks = [block for block in second if "dataset_script" not in block]
    assert len(blocks) >= 2
    (tmp_path / "data.py").write_text("\n".join(blocks) + "\nassert next(iter(windows))['bars'] == 16\n")
    run_alone([sys.executable, str(tmp_path / "data.py")], tmp_path / "data_reader", published)


@pytest.mark.slow
def test_the_cards_link_to_one_another_and_to_what_is_there(published):
    heads = {}
    for name in ("tester/melody", "datasets/tester/melody-data", "spaces/tester/melody-space"):
        card = RepoCard(published.files(name)["README.md"].decode())
        heads[name] = card.data.to_dict()
        for link in re.findall(rf"{re.escape(published.url)}/([\w./-]+)", card.text):
            owner, _, path = link.partition("/resolve/main/")
            if path:
                assert path in published.files(owner), link
            else:
                assert re.sub(r"/(tree|blob)/main/.*", "", link) in published.repositories, link
        for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", card.text):
            assert path in published.files(name), path
    assert heads["tester/melody"]["datasets"] == ["tester/melody-data"]
    assert heads["spaces/tester/melody-space"]["models"] == ["tester/melody"]
    assert heads["spaces/tester/melody-space"]["datasets"] == ["tester/melody-data"]


@pytest.mark.slow
def test_a_hub_that_fails_leaves_nothing_that_loads(publish_all, tmp_path):
    """The first of the three goes up; the model's commit is refused for good, so there is no model, nor a Space."""
    with running_hub() as server:
        server.faults.append(Fault("POST", r"/models/tester/melody/commit/", 403, times=99))
        said = run_alone(publish_all, tmp_path / "publisher", server, code=2)
        assert "publish.py: model tester/melody: the token has no right to write there" in said
        assert "Traceback" not in said
        assert set(server.repositories) == {"datasets/tester/melody-data", "tester/melody"}
        assert server.files("tester/melody") == {}
        load = "from transformers import AutoModel; AutoModel.from_pretrained('tester/melody', trust_remote_code=True)"
        assert "tester/melody" in run_alone([sys.executable, "-c", load], tmp_path / "puller", server, code=1)
        server.faults.clear()
        said = run_alone(publish_all, tmp_path / "publisher", server)
        assert "data set tester/melody-data: nothing to upload" in said
        assert "model.safetensors" in server.files("tester/melody")


ONLY = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def installed_by(requirements: list[str]) -> set[str]:
    """Name the distributions that these requirements bring, extras aside."""
    found, wanted = set(), [Requirement(line).name.lower().replace("_", "-") for line in requirements]
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        try:
            needs = requires(name) or []
        except PackageNotFoundError:
            continue
        found.add(name)
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                wanted.append(need.name.lower().replace("_", "-"))
    return found


def link_packages(names: set[str], folder: Path) -> Path:
    """Make a folder of installed packages that has these only."""
    folder.mkdir()
    for name in names:
        package = distribution(name)
        for entry in {Path(file).parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            if not (folder / entry).exists():
                (folder / entry).symlink_to(str(package.locate_file(entry)))
    return folder


@pytest.mark.slow
def test_another_project_needs_what_it_says_and_nothing_of_ours(published, tmp_path):
    """`tests/consumer` runs as its README says, in isolated mode, seeing only what its requirements bring."""
    project = tmp_path / "consumer"
    shutil.copytree(CONSUMER, project)
    folder = tmp_path / "model"
    for path, content in published.files("tester/melody").items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    midi = sorted(path for path in published.files("tester/melody") if path.endswith(".mid"))[:2]
    for name, path in zip(("one.mid", "other.mid"), midi, strict=True):
        (project / name).write_bytes((folder / path).read_bytes())
    names = installed_by((project / "requirements.txt").read_text().split())
    assert {"torch", "transformers", "miditok", "symusic"} <= names
    assert not names & {"datasets", "evaluate", "accelerate", "numba", "matplotlib"}
    packages = link_packages(names, tmp_path / "packages")
    (command,) = [line for line in (project / "README.md").read_text().splitlines() if line.startswith("python ")]
    words = command.replace("OWNER/NAME", str(folder)).split()
    isolated = [sys.executable, "-I", "-S", "-c", ONLY, str(packages), *words[1:]]
    assert "5 melodies in blended" in run_alone(isolated, project)
    assert len(list((project / "blended").glob("*.mid"))) == 5
    assert (project / "blended" / "3.mid").read_bytes().startswith(b"MThd")


def test_our_own_space_can_be_published_and_needs_what_was_tested(tmp_path):
    files = space.stage(ROOT / "space", "owner/model", [], tmp_path)
    assert {"app.py", "static/player.js"} <= set(files)
    assert not [name for name in files if name.endswith((".pyi", ".pyc"))]
    assert RepoCard.load(files["README.md"]).data["preload_from_hub"] == ["owner/model"]
    for line in (ROOT / "space" / "requirements.txt").read_text().splitlines():
        name, _, pinned = line.partition("==")
        if not line.startswith("#") and name != "pyfluidsynth":  # that one needs a library of the system's
            assert version(name).split("+")[0] == pinned, line
    card = (ROOT / "space" / "README.md").read_text()
    assert f"sdk_version: {version('gradio')}" in card
