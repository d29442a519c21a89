"""What is gathered for the data set's repository and the Space's: files, configurations, cards."""

import ast
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from datasets import get_dataset_config_names, load_dataset
from huggingface_hub import RepoCard

from command import UserError
from dataset_script import build
from documents import versions
from publishing import dataset, space
from publishing.staging import files_below, keep

ROOT = Path(__file__).parents[2]
NAME = "tester/melody"
CONFIGS = ("lines", "leads", "16bar", "songs", "files", "sample")


@pytest.fixture(scope="module")
def lines(shared) -> Path:
    """Build the data set of the embedded tunes."""
    return shared("embedded_tunes", lambda folder: build.main(["--output", str(folder), "--overwrite"]))


@pytest.fixture
def app(tmp_path) -> Path:
    """Make the folder of a Space."""
    folder = tmp_path / "app"
    (folder / "static").mkdir(parents=True)
    head = {"title": "Play", "sdk": "gradio", "sdk_version": "6.31.0", "app_file": "app.py", "license": "apache-2.0"}
    (folder / "README.md").write_text(
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\nPlay with melodies.\n", encoding="utf-8"
    )
    (folder / "requirements.txt").write_text(
        "torch==2.13.0  # CPU\n\n# the model's\ntransformers==5.23.0\n", encoding="utf-8"
    )
    (folder / "app.py").write_text("import gradio\n", encoding="utf-8")
    (folder / "static" / "roll.js").write_text("'use strict'\n", encoding="utf-8")
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


def test_every_configuration_loads(lines, staged_lines, tmp_path):
    folder = str(lay_out(staged_lines, tmp_path / "repository"))
    assert tuple(get_dataset_config_names(folder)) == CONFIGS
    for config in CONFIGS:
        built = load_dataset(str(lines), config, cache_dir=str(tmp_path / "cache"))
        published = load_dataset(folder, config, streaming=True)
        assert {split: list(rows) for split, rows in published.items()} == {
            split: rows.to_list() for split, rows in built.items()
        }


def test_the_data_sets_card_names_its_configurations_and_the_model(staged_lines):
    card = RepoCard.load(staged_lines["README.md"])
    configs = card.data.to_dict()["configs"]
    assert [config["config_name"] for config in configs if config.get("default")] == ["lines"]
    assert f"[{NAME}](https://huggingface.co/{NAME})" in card.text
    assert '"melodies"' not in card.text
    assert 'load_dataset("tester/lines", ' in card.text
    assert card.text.count("## Configurations") == 1
    for path in re.findall(r'(?:src|srcset)="([^"]+)"', card.text):
        assert path in staged_lines


def test_the_data_sets_card_has_what_the_hub_and_a_reader_look_for(staged_lines):
    card = RepoCard.load(staged_lines["README.md"])
    head = card.data.to_dict()
    assert (head["license"], head["task_categories"]) == (
        "apache-2.0",
        ["other"],
    )  # the tunes that are part of the repo
    assert RepoCard.load(ROOT / "dataset_script" / "README.md").data["license"] == "cc-by-4.0"
    assert head["pretty_name"]
    assert re.fullmatch(r"n<1K|\d+[KM]?<n<\d+[KM]", head["size_categories"][0])
    for section in (
        "Splits",
        "Near-duplicates and leak",
        "Limits and biases",
        "Licence and attribution",
        "How to rebuild",
    ):
        assert f"\n## {section}\n" in card.text
    for each in head["configs"]:
        for files in each["data_files"]:
            assert any(Path(path).match(files["path"]) for path in staged_lines), files


def test_eval_yaml_names_the_tasks_of_the_test_split(staged_lines):
    """Format: https://huggingface.co/docs/hub/eval-results; a framework must be on the Hub's list, and none fits."""
    about = yaml.safe_load(staged_lines["eval.yaml"].read_text(encoding="utf-8"))
    assert set(about) == {"name", "description", "tasks"}
    assert about["name"] == RepoCard.load(staged_lines["README.md"]).data["pretty_name"]
    assert [task["id"] for task in about["tasks"]] == list(dataset.TASKS)
    assert {(task["config"], task["split"]) for task in about["tasks"]} == {("lines", "test")}


def test_what_is_no_data_set_is_refused(lines, tmp_path):
    with pytest.raises(UserError, match=r"README\.md is missing"):
        dataset.stage(tmp_path, "tester/lines", None, tmp_path / "staging")
    broken = tmp_path / "broken"
    shutil.copytree(lines, broken)
    for file in (broken / "leads").glob("*.parquet"):
        file.write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        dataset.stage(broken, "tester/lines", None, tmp_path / "staging")
    for file in (broken / "leads").glob("*.parquet"):
        file.unlink()
    with pytest.raises(UserError, match=r"no file leads/train-\*\.parquet"):
        dataset.stage(broken, "tester/lines", None, tmp_path / "staging")


def test_what_is_made_halfway_is_made_again(tmp_path):
    def stop(part: Path) -> None:
        (part / "half").write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path, "one", stop)
    whole = keep(tmp_path, "one", lambda part: (part / "whole").write_text("whole", encoding="utf-8"))
    assert set(files_below(whole)) == {"whole"}
    assert set(files_below(keep(tmp_path, "two", lambda part: None))) == set()
    assert [folder.name for folder in tmp_path.iterdir()] == ["two"]


# --- The Space ------------------------------------------------------------------------------------------------------


def test_a_space_is_its_folder_with_links(app, tmp_path):
    files = space.stage(app, "tester/play", NAME, ["tester/lines"], tmp_path / "staging")
    assert set(files) == {"README.md", "app.py", "requirements.txt", "static/roll.js"}
    card = RepoCard.load(files["README.md"]).data.to_dict()
    assert (card["models"], card["datasets"], card["title"]) == ([NAME], ["tester/lines"], "Play")
    assert {path for path, file in files.items() if file.parent != app and file.parent != app / "static"} == {
        "README.md"
    }
    assert "models" not in RepoCard.load(app / "README.md").data.to_dict()


@pytest.mark.parametrize("line", ["torch", "torch>=2", "git+https://example.org/x.git", "torch==2.*"])
def test_a_requirement_that_is_not_pinned_is_refused(app, tmp_path, line):
    (app / "requirements.txt").write_text(f"miditok==3.1.0\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"requirements.txt:2: {re.escape(line)} is not pinned"):
        space.stage(app, "tester/play", NAME, [], tmp_path / "staging")


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
    card.write_text(card.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        space.stage(app, "tester/play", NAME, [], tmp_path / "staging")


# --- Our own Space --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_space(tmp_path_factory) -> dict[str, Path]:
    return space.stage(ROOT / "space", "owner/play", "owner/model", ["owner/lines"], tmp_path_factory.mktemp("own"))


def test_our_own_space_has_a_whole_card(own_space):
    assert {"app.py", "requirements.txt", "static/player.js"} <= set(own_space)
    assert not [name for name in own_space if name.endswith((".pyi", ".pyc"))]
    text = own_space["README.md"].read_text(encoding="utf-8")
    card = RepoCard(text)
    head = card.data.to_dict()
    assert head["models"] == head["preload_from_hub"] == ["owner/model"]
    assert head["datasets"] == ["owner/lines"]
    assert (head["sdk"], head["sdk_version"], head["app_file"]) == ("gradio", versions.locked()["gradio"], "app.py")
    assert f"Python {head['python_version']};" in (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert len(head["short_description"]) <= 60, "the Hub takes no more"
    assert "&id" not in text
    assert 'Client("owner/play")' in card.text


def test_our_own_space_needs_no_file_outside_and_no_package_that_it_does_not_name(own_space):
    """Every import is of the standard library, of the folder, or of a package that its files name."""
    pinned = (ROOT / "space" / "requirements.txt").read_text(encoding="utf-8")
    given = {*re.findall(r"^([\w-]+)==", pinned, re.MULTILINE), *sys.stdlib_module_names}
    given |= {"gradio", "gradio_client", "huggingface_hub", "yaml"}  # gradio's own needs
    given |= {Path(path).stem for path in own_space if path.endswith(".py")}
    for path, file in own_space.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8") if path.endswith(".py") else "")):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= given, path
