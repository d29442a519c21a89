"""The command, and the way to the Hub and back, in processes that know an id alone."""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from datasets import load_dataset
from huggingface_hub import RepoCard
from packaging.requirements import Requirement
from safetensors.torch import load_file
from symusic import Score
from transformers import AutoModel

import publish
from dataset_script import build
from documents import model_card
from metrics.note_f1.note_f1 import note_f1
from modeling import MelodyProcessor, MelodyVAEModel
from modeling.line_writing_melody_vae import line_to_words
from publishing import hub as publishing_hub
from publishing import model as publishing_model
from publishing import release
from publishing.hub import describe_size
from tests.builders.fake_hub import Fault, Hub, running_hub
from tests.builders.installed import installed_by, link_packages
from tests.builders.models import make_model

ROOT = Path(__file__).parents[2]
CONSUMER = ROOT / "tests" / "consumer"
NAME = "tester/melody"
LARGE = (".safetensors", ".onnx", ".mp3", ".png", ".mid", ".parquet")


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Path:
    """Make the folder of a Space."""
    folder = tmp_path_factory.mktemp("space") / "app"
    folder.mkdir()
    head = {"title": "Play", "sdk": "gradio", "sdk_version": "6.31.0", "app_file": "app.py", "license": "apache-2.0"}
    (folder / "README.md").write_text(
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\nPlay with melodies.\n", encoding="utf-8"
    )
    (folder / "requirements.txt").write_text("torch==2.13.0\n", encoding="utf-8")
    (folder / "app.py").write_text("import gradio\n", encoding="utf-8")
    return folder


# --- The command ----------------------------------------------------------------------------------------------------


def listed(said: str) -> dict[str, str]:
    """Return size by path of a dry run's list."""
    return {path: size for size, path in re.findall(r"^ +([\d.]+ k?M?B)  (\S+)$", said, re.MULTILINE)}


def sizes(files: dict[str, bytes]) -> dict[str, str]:
    return {path: describe_size(len(content)) for path, content in files.items()}


@pytest.fixture
def online(monkeypatch):
    """Let the command, run in this process, speak to a Hub on the loopback."""
    with running_hub(users={"hf_right": "tester", "hf_reader": "reader"}) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(publishing_hub, "limit_waiting", lambda: None)  # it is for the whole process
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        yield server


def test_what_a_dry_run_lists_goes_up_and_it_touches_no_network(online, app, tmp_path, monkeypatch, capsys):
    def connect(*_) -> None:
        raise AssertionError("a dry run reached for the network")

    command = ["space", "--repo_id", "tester/play", "--model_id", NAME, "--space", str(app), "--private"]
    command += ["--revision", "v2", "--staging", str(tmp_path)]
    with monkeypatch.context() as offline:
        offline.setattr(socket.socket, "connect", connect)
        assert publish.main([*command, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Space tester/play, branch v2, private: 3 files, ")
    assert f"variable MODEL_ID={NAME}" in said
    assert online.log == []
    assert publish.main(command) == 0
    repository = online.repositories["spaces/tester/play"]
    assert repository.private
    assert repository.commits[repository.head] == {}, "only the branch was meant"
    there = {path: blob.content for path, blob in repository.commits[repository.branches["v2"]].items()}
    assert listed(said) == sizes(there)
    assert "3 of 3 files" in capsys.readouterr().out
    assert publish.main(command) == 0
    assert "nothing to upload, all 3 files are there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("token", "message"),
    [("hf_wrong", "does not accept the token"), ("hf_reader", "may only read"), ("", "no token; run hf auth login")],
)
def test_a_token_that_will_not_do_is_told_before_any_work(online, app, tmp_path, monkeypatch, capsys, token, message):
    monkeypatch.setenv("HF_TOKEN", token)
    command = ["space", "--repo_id", "play", "--model_id", NAME, "--space", str(app), "--staging", str(tmp_path)]
    assert publish.main(command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())
    assert not online.repositories


def test_a_dry_run_of_a_bare_name_says_what_it_cannot_know(app, tmp_path, capsys):
    command = ["space", "--repo_id", "play", "--model_id", NAME, "--space", str(app), "--staging", str(tmp_path)]
    assert publish.main([*command, "--dry_run"]) == 0
    assert "the account's name, which only the Hub tells" in capsys.readouterr().out


def test_ids_are_made_from_the_models():
    args = publish.make_parser().parse_args(["all", "--repo_id", "melody", "--dataset", "x", "--space_id", "us/play"])
    assert publish.complete_ids(args, "tester") == {
        "model": "tester/melody",
        "dataset": "tester/melody-data",
        "space": "us/play",
    }
    assert publish.complete_ids(args, None)["dataset"] == "melody-data"


@pytest.fixture
def old_model(tmp_path) -> Path:
    """Lay out a model with the code of another day; nobody looks at its weights."""
    folder = tmp_path / "old"
    folder.mkdir()
    for name in ("config.json", "processor_config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}", encoding="utf-8")
    for file in (ROOT / "modeling").glob("*_melody_vae.py"):
        shutil.copy(file, folder)
    (folder / "modeling_melody_vae.py").write_text("# older\n", encoding="utf-8")
    return folder


def test_bad_input_is_one_line_and_exit_code_2(old_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = ["--repo_id", NAME, "--dry_run", "--staging", "staging"]
    empty = tmp_path / "empty"
    empty.mkdir()
    for command, message in (
        (["model"], "release/melody-vae-16bar: no such folder; name with --model"),
        (["all", "--dataset", "nowhere"], "release/melody-vae-16bar: no such folder; name with --model"),
        (["model", "--model", str(empty)], "config.json is missing"),
        (["model", "--model", str(old_model)], "not what modeling/modeling_melody_vae.py is now"),
        (["dataset", "--dataset", str(empty)], "README.md is missing"),
        (["space", "--space", str(empty), "--model_id", "a/b"], "README.md is missing"),
        (["space", "--model_id", "a/b/c"], "no name for a repository"),
    ):
        assert publish.main([*command, *common]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1


def test_help_says_what_each_does(capsys):
    for kind in publish.KINDS:
        with pytest.raises(SystemExit) as end:
            publish.main([kind, "--help"])
        assert end.value.code == 0
        assert "--dry_run" in capsys.readouterr().out


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
    melody_vae = make_model(
        processor,
        hidden_size=12,
        num_hidden_layers=2,
        num_prior_layers=1,
        conditions={"key": ["C major", "A minor"], "tempo": ["slow", "fast"]},
        initializer_range=0.3,
    )
    melody_vae.set_grammar(processor.grammar_table())
    folder = tmp_path_factory.mktemp("trained") / "melody-vae-16bar"
    melody_vae.save_pretrained(folder)
    processor.save_pretrained(folder)
    log = {"arguments": {"dataset": "data/lakh", "learning_rate": 1e-3}, "seconds": 5400.0, "cpu_threads": 3}
    (folder / "training_log.json").write_text(
        json.dumps(log | {"device": "cpu", "melodies_seen": 1009, "history": []}), encoding="utf-8"
    )
    (folder / "step_7").mkdir()
    (folder / "step_7" / "model.safetensors").write_bytes(b"a checkpoint")
    return folder


# --- A release ------------------------------------------------------------------------------------------------------


def test_a_release_is_the_model_in_bfloat16_with_its_samples(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(publishing_model, "NUM_SAMPLES", 2)
    output = tmp_path / "release" / "melody-vae-16bar"
    for _ in range(2):  # a second one takes the first one's place
        assert release.main(["--model", str(trained), "--output", str(output), "--sampling_top_p", "0.9"]) == 0
        assert "of them weights" in capsys.readouterr().out
        assert release.main(["--check", "--output", str(output)]) == 0
        assert [folder.name for folder in output.parent.iterdir()] == [output.name]
        (output / "old").write_text("an earlier release's", encoding="utf-8")
    (output / "old").unlink()
    stored = load_file(output / "model.safetensors")
    whole = MelodyVAEModel.from_pretrained(trained).state_dict()
    loaded = AutoModel.from_pretrained(output, trust_remote_code=True)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    for name, weight in loaded.state_dict().items():
        if name in stored and weight.is_floating_point():
            assert stored[name].dtype == torch.bfloat16
            assert torch.equal(weight, whole[name].to(torch.bfloat16).float())
    written = json.loads((output / "config.json").read_text(encoding="utf-8"))
    assert (written["dtype"], written["sampling_top_p"]) == ("float32", 0.9)
    assert (output / "training_log.json").read_bytes() == (trained / "training_log.json").read_bytes()
    samples = {file.name for file in (output / "samples").iterdir()}
    assert samples >= {f"sample-seed{seed}.{ending}" for seed in (0, 1) for ending in ("mid", "mp3", "png")}
    generator = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    processor = MelodyProcessor.from_pretrained(output)
    again = processor.to_scores(loaded.sample(2, generator=generator, bars=16))
    for seed, score in enumerate(again):
        kept = Score(output / "samples" / f"sample-seed{seed}.mid")
        assert [(note.start, note.pitch) for note in kept.tracks[0].notes] == [
            (note.start, note.pitch) for note in score.tracks[0].notes
        ]
    monkeypatch.setattr(publishing_model, "write_onnx", lambda _, folder: None)
    staged = publishing_model.stage(output, NAME, tmp_path / "staging", tmp_path)
    assert staged["samples/index.html"] == output / "samples" / "index.html"
    assert staged["model.safetensors"] == output / "model.safetensors"

    card = (output / "README.md").read_text(encoding="utf-8")
    assert "samples/sample-seed0.mp3" in card
    (output / "README.md").write_text(card + "a number typed in", encoding="utf-8")
    assert release.main(["--check", "--output", str(output)]) == 2
    assert "run make report" in capsys.readouterr().err
    assert release.main(["--card", "--output", str(output)]) == 0
    assert (output / "README.md").read_text(encoding="utf-8") == card


def test_a_release_takes_no_other_folders_place(trained, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me", encoding="utf-8")
    assert release.main(["--model", str(trained), "--output", str(tmp_path / "mine")]) == 2
    assert "there is something else than a model" in capsys.readouterr().err
    assert (tmp_path / "mine" / "letter.txt").read_text(encoding="utf-8") == "keep me"
    new = ["--output", str(tmp_path / "new")]
    assert release.main(["--model", str(trained), *new, "--sampling_noise", "0.5"]) == 2
    assert "sampling_noise=0.5 must be from 0 to 1, and 0 without noise_probability" in capsys.readouterr().err
    assert release.main(["--model", str(tmp_path / "none"), *new]) == 2
    assert "no such folder" in capsys.readouterr().err


# --- To the Hub and back --------------------------------------------------------------------------------------------


def alone(folder: Path, hub: Hub | None) -> dict[str, str]:
    """Make the environment of a process that has nothing of this repository, nor of the user's caches."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
    online = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test"} if hub else {"HF_HUB_OFFLINE": "1"}
    own = {"HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_XET_XORB_COMPRESSION_POLICY": "none"}
    return kept | own | online


def run_alone(command: list[str], folder: Path, hub: Hub | None = None, code: int = 0, **environment: str) -> str:
    """Run a command in a folder of its own with an empty cache, without this repository."""
    folder.mkdir(parents=True, exist_ok=True)
    result = subprocess.run(
        command,
        cwd=folder,
        env=alone(folder, hub) | environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == code, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def hub():
    with running_hub(LARGE) as server:
        yield server


@pytest.fixture(scope="module")
def results(trained, tmp_path_factory) -> Path:
    """Measured numbers, some of them called the trained model's."""
    folder = tmp_path_factory.mktemp("results")
    for name in ("dataset", "model", "attention", "first_run"):
        shutil.copy(ROOT / "results" / f"{name}.json", folder)
    own = json.loads((folder / "first_run.json").read_text(encoding="utf-8"))
    own |= {"model": str(trained), "parameters": MelodyVAEModel.from_pretrained(trained).num_parameters()}
    (folder / "own.json").write_text(json.dumps(own), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def publish_all(trained, lines, app, results, tmp_path_factory) -> list[str]:
    """Give the command that publishes all three."""
    staging = str(tmp_path_factory.mktemp("staging"))
    folders = ["--model", str(trained), "--dataset", str(lines), "--space", str(app), "--results", str(results)]
    return [sys.executable, str(ROOT / "publish.py"), "all", "--repo_id", NAME, *folders, "--staging", staging]


@pytest.fixture(scope="module")
def dry(hub, publish_all, tmp_path_factory) -> str:
    """Say what would be published; the Hub's address is that of the real run, as the cards have it."""
    return run_alone([*publish_all, "--dry_run"], tmp_path_factory.mktemp("dry"), hub)


@pytest.fixture(scope="module")
def published(hub, publish_all, dry, tmp_path_factory) -> Hub:
    """Publish all three, the Hub being moody."""
    assert hub.log == [], "the dry run asked the Hub"
    hub.faults += [
        Fault("POST", r"/v1/xorbs/", 500, times=2),
        Fault("POST", r"/v1/shards", "drop"),
        Fault("POST", r"/datasets/tester/melody-data/commit/", "lose"),
        Fault("POST", r"/models/tester/melody/commit/", "cut"),
        Fault("POST", r"/spaces/tester/melody-space/preupload/", "wait", seconds=1.0),
    ]
    said = run_alone(publish_all, tmp_path_factory.mktemp("publisher"), hub)
    assert all(not fault.times for fault in hub.faults)
    assert "Space tester/melody-space: 3 of 3 files" in said
    return hub


@pytest.mark.slow
def test_a_dry_run_prints_exactly_what_goes_up(published, dry):
    parts = re.split(r"^(?=data set |model |Space )", dry, flags=re.MULTILINE)[1:]
    assert len(parts) == 3
    for part, name in zip(
        parts, ("datasets/tester/melody-data", "tester/melody", "spaces/tester/melody-space"), strict=True
    ):
        files = published.files(name)
        total = describe_size(sum(map(len, files.values())))
        assert listed(part) == sizes(files)
        assert f"{name.removeprefix('datasets/').removeprefix('spaces/')}: {len(files)} files, {total}" in part


@pytest.mark.slow
def test_each_repository_has_all_of_its_files_in_one_commit(published, trained, lines):
    names = ("tester/melody", "datasets/tester/melody-data", "spaces/tester/melody-space")
    assert set(published.repositories) == set(names)
    assert {len(published.repositories[name].commits) for name in names} == {2}
    files = published.files("tester/melody")
    for file in trained.iterdir():
        if file.is_file():
            assert files[file.name] == file.read_bytes()
    for pattern in ("onnx/decoder.onnx", "samples/*.mid", "samples/*.mp3", "samples/*.png", "metrics/note_f1/*.py"):
        assert any(Path(path).match(pattern) for path in files), pattern
    digests = json.loads(files["onnx/onnx_config.json"])["sha256"]
    assert {f"onnx/{name}" for name in digests} >= {path for path in files if path.endswith(".onnx")}
    assert digests == {name: hashlib.sha256(files[f"onnx/{name}"]).hexdigest() for name in digests}
    assert not any(path.startswith("step_") for path in files)
    traces = [path for path, content in files.items() if str(ROOT).encode() in content]
    assert traces == []
    assert published.repositories["spaces/tester/melody-space"].variables == {"MODEL_ID": "tester/melody"}
    assert any(path.startswith("/v1/xorbs/") for _, path, _ in published.log), "large files went up by Xet"
    assert {"results/own.json", "results/dataset.json", "training_log.json", "tokenizer.json"} <= set(files)
    assert {"generation_config.json", "processor_config.json"} <= set(files)


@pytest.mark.slow
def test_the_published_numbers_hang_together(published):
    """The head's, those of `.eval_results` and the file that they name; their tasks are in the data set's eval.yaml."""
    files = published.files("tester/melody")
    head = RepoCard(files["README.md"].decode()).data.to_dict()
    entries = yaml.safe_load(files[".eval_results/melody_lines.yaml"])
    tasks = yaml.safe_load(published.files("datasets/tester/melody-data")["eval.yaml"])["tasks"]
    assert {entry["dataset"]["task_id"] for entry in entries} <= {task["id"] for task in tasks}
    assert {entry["dataset"]["id"] for entry in entries} == {"tester/melody-data"}
    assert {entry["source"]["url"] for entry in entries} == {
        f"{published.url}/tester/melody/blob/main/results/own.json"
    }
    in_head = {metric["value"] for result in head["model-index"][0]["results"] for metric in result["metrics"]}
    assert {entry["value"] for entry in entries} <= in_head
    measured = json.loads(files["results/own.json"])
    assert measured["likelihood"]["bits_per_note"] in in_head
    assert in_head == {row["value"] for row in model_card.table_of_metrics(measured)}


@pytest.mark.slow
def test_publishing_again_uploads_nothing(published, publish_all, tmp_path):
    del published.log[:]
    said = run_alone(publish_all, tmp_path / "again", published)
    assert said.count("nothing to upload") == 3
    assert {method for method, _, _ in published.log} <= {"GET", "HEAD"}


LOAD = """
import importlib.util, os, sys
from pathlib import Path
import torch

home = Path(os.environ["HF_HOME"])
assert not home.exists(), "the cache is not empty"
for name in ("modeling", "publishing", "dataset_script", "evaluation", "publish"):
    assert importlib.util.find_spec(name) is None, f"{name} can be imported: this repository is on the path"

import evaluate
from datasets import load_dataset
from huggingface_hub import snapshot_download
from transformers import AutoModel, AutoProcessor, AutoTokenizer, pipeline

name, data, expected = sys.argv[1], sys.argv[2], torch.load(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(name)
assert tokenizer(expected["text"])["input_ids"] == expected["ids"][0].tolist()
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
model = AutoModel.from_pretrained(name, trust_remote_code=True)
assert Path(sys.modules[type(model).__module__].__file__).is_relative_to(home)
with torch.no_grad():
    assert torch.equal(model(expected["ids"]).logits, expected["logits"])
assert torch.equal(model.sample(3, seed=7, bars=4), expected["sampled"])
pipe = pipeline(model=name, trust_remote_code=True, device="cpu")
assert [each["midi"] for each in pipe(3, bars=4, seed=7)] == processor.to_midi_bytes(expected["sampled"])
for config in ("lines", "16bar"):
    stream = load_dataset(data, config, streaming=True)
    assert {split: list(rows) for split, rows in stream.items()} == expected[config]
assert load_dataset(data)["train"].to_list() == expected["lines"]["train"]
folder = snapshot_download(name, allow_patterns="metrics/*")
for metric in sorted(Path(folder, "metrics").iterdir()):
    evaluate.load(str(metric))
predictions, references = expected["notes"][:2], expected["notes"][1:]
told = evaluate.load(f"{folder}/metrics/note_f1").compute(predictions=predictions, references=references)
assert told == expected["note_f1"], told
"""


@pytest.mark.slow
def test_what_is_published_comes_back(published, trained, lines, tmp_path):
    whole = load_dataset(str(lines), cache_dir=str(tmp_path / "cache"))
    windows = load_dataset(str(lines), "16bar", cache_dir=str(tmp_path / "cache"))
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
        "16bar": {split: part.to_list() for split, part in windows.items()},
    }
    notes = [{name: row[name] for name in ("pitch", "start", "duration")} for row in expected["16bar"]["train"][:3]]
    expected |= {"notes": notes, "note_f1": note_f1(notes[:2], notes[1:])}
    torch.save(expected, tmp_path / "expected.pt")
    broken_off = Fault("GET", r"/resolve/[^/]+/model.safetensors", "half")
    published.faults.append(broken_off)
    command = [sys.executable, "-c", LOAD, NAME, "tester/melody-data", str(tmp_path / "expected.pt")]
    run_alone(command, tmp_path / "puller", published)
    assert not broken_off.times


@pytest.mark.slow
def test_every_block_of_the_cards_runs(published, tmp_path):
    """The model's quickstart and metrics, and how to load the data set, as a reader would run them."""
    cards = [published.files(name)["README.md"].decode() for name in ("tester/melody", "datasets/tester/melody-data")]
    first, second = (re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE) for card in cards)
    assert len(first) == 2
    check = (
        "\nassert metric.compute(predictions=[{'pitch': [60], 'start': [0], 'duration': [4]}], "
        "references=[{'pitch': [60], 'start': [0], 'duration': [2]}])['f1'] == 1.0\n"
        "for name in ('bits_per_note', 'step_accuracy'):\n    evaluate.load(f'{folder}/metrics/{name}')\n"
        "assert len(path) == 7 and (latent.shape, len(asked)) == ((2, 32), 2)\n"
    )
    (tmp_path / "quickstart.py").write_text("\n".join(first) + check, encoding="utf-8")
    run_alone([sys.executable, str(tmp_path / "quickstart.py")], tmp_path / "reader", published)
    assert (tmp_path / "reader" / "melody-1.mid").read_bytes().startswith(b"MThd")
    blocks = [block for block in second if "dataset_script" not in block]
    assert blocks
    (tmp_path / "data.py").write_text("\n".join(blocks) + "\nassert line['is_lead']\n", encoding="utf-8")
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
    """The first of the three goes up; the model's commit is refused for good, so there is no model, nor a Space.

    By Git LFS, for installations without hf_xet.
    """
    with running_hub(LARGE) as server:
        server.faults.append(Fault("POST", r"/models/tester/melody/commit/", 403, times=99))
        by_lfs = {"HF_HUB_DISABLE_XET": "1"}
        said = run_alone(publish_all, tmp_path / "publisher", server, code=2, **by_lfs)
        assert "error: model tester/melody: the token has no right to write there" in said
        assert "Traceback" not in said
        assert any(method == "PUT" and path.startswith("/lfs/") for method, path, _ in server.log)
        assert set(server.repositories) == {"datasets/tester/melody-data", "tester/melody"}
        assert server.files("tester/melody") == {}
        load = "from transformers import AutoModel; AutoModel.from_pretrained('tester/melody', trust_remote_code=True)"
        assert "tester/melody" in run_alone([sys.executable, "-c", load], tmp_path / "puller", server, code=1)
        server.faults.clear()
        del server.log[:]
        said = run_alone(publish_all, tmp_path / "publisher", server, **by_lfs)
        assert "data set tester/melody-data: nothing to upload" in said
        assert "model.safetensors" in server.files("tester/melody")
        assert not any(method == "PUT" for method, _, _ in server.log), "large files were there already"


@pytest.mark.slow
def test_a_run_that_is_stopped_leaves_nothing_and_the_next_goes_on(lines, tmp_path):
    """Ctrl-C while the Hub is slow to take the commit: one line, no commit; then no large file is sent again."""
    command = [
        sys.executable,
        str(ROOT / "publish.py"),
        "dataset",
        "--repo_id",
        "tester/lines",
        "--dataset",
        str(lines),
    ]
    command += ["--staging", str(tmp_path / "staging")]
    with running_hub(LARGE) as server:
        slow = Fault("POST", r"/commit/", "wait", seconds=3600.0)
        server.faults.append(slow)
        (tmp_path / "publisher").mkdir()
        environment = alone(tmp_path / "publisher", server)
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background ignore it
        )
        try:
            while slow.times and process.poll() is None:
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            _, error = process.communicate()
        finally:
            process.kill()
        assert process.returncode == 130, error
        assert "stopped; nothing half is published, and the same command goes on" in error
        assert "Traceback" not in error
        assert server.files("datasets/tester/lines") == {}
        assert any(path.startswith("/v1/xorbs/") for _, path, _ in server.log)
        del server.log[:]
        assert "in one commit" in run_alone(command, tmp_path / "publisher", server)
        assert not any(path.startswith("/v1/xorbs/") for _, path, _ in server.log)
        assert len(server.repositories["datasets/tester/lines"].commits) == 2


ONLY = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


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
    wanted = (project / "requirements.txt").read_text(encoding="utf-8").split()
    names = installed_by(wanted)
    assert all(Requirement(line).specifier.contains(version(Requirement(line).name)) for line in wanted)
    assert {"torch", "transformers", "miditok", "symusic"} <= names
    assert not names & {"datasets", "evaluate", "accelerate", "numba", "matplotlib"}
    packages = link_packages(names, tmp_path / "packages")
    (command,) = [
        line for line in (project / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("python ")
    ]
    words = command.replace("OWNER/NAME", str(folder)).split()
    isolated = [sys.executable, "-I", "-S", "-c", ONLY, str(packages), *words[1:]]
    assert "5 melodies in blended" in run_alone(isolated, project)
    assert len(list((project / "blended").glob("*.mid"))) == 5
    assert (project / "blended" / "3.mid").read_bytes().startswith(b"MThd")
