"""README, docs/ and the notebook: every block runs, every number comes from results/, the tree is git's.

Blocks are run in a workspace: a folder where the repository's entries are links, and where data, runs and outputs of
the commands stay. A block under `<!-- parsed only: WHY -->` is not run; its options are parsed by the command itself.
"""

import argparse
import json
import re
import runpy
import shlex
import subprocess
import sys
import tarfile
import tomllib
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from dataset_script.tunes import embedded_scores
from documents import report
from tests.builders.commands import run

ROOT = Path(__file__).parents[1]
PAGES = report.DOCUMENTS
WALK = [
    "docs/data.md",
    "docs/training.md",
    "docs/generation.md",
    "docs/evaluation.md",
    "docs/publishing.md",
    "docs/reliability.md",
    "README.md",
]
BLOCK = re.compile(r"(?:^<!-- parsed only: ([^>]+) -->\n)?^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
MODEL_OPTIONS = (
    "--vocab_size 300 --config_overrides hidden_size=16,intermediate_size=16,num_attention_heads=2,"
    "num_encoder_layers=1,num_hidden_layers=1,latent_size=32"
)
STEPS = (
    "--max_train_steps 3 --per_device_train_batch_size 8 --evaluation_steps 3 --checkpointing_steps 2 "
    "--listening_samples 0"
)
SHORT = {  # what makes a command short; nothing else about it is changed
    "train_prior.py": "--max_train_steps 2 --num_prior_layers 1 --epochs_of_windows 1 --batch_size 8",
    "evaluate_model.py": "--melodies 4 --samples 8 --importance_samples 2 --pairs 1 --ngram_melodies 50",
    "evaluation.operations": "--parts variations infill --melodies 2",
    "evaluation.attribute_control": "--train_melodies 20 --melodies 1",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    code: str
    is_parsed_only: bool

    @property
    def commands(self) -> list[str]:
        return self.code.replace("\\\n", " ").strip().splitlines() if self.language == "bash" else []


def blocks(page: str) -> list[Block]:
    found = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    return [Block(language, code, bool(reason)) for reason, language, code in found]


def program_of(words: list[str]) -> tuple[str, list[str]]:
    """Return a command's script or module and its options."""
    if words[:2] == ["accelerate", "launch"]:
        start = next(place for place, word in enumerate(words) if word.endswith(".py"))
    else:
        assert words[0] == "python", words
        start = 2 if words[1] == "-m" else 1
    return words[start], words[start + 1 :]


def file_of(program: str) -> Path:
    """Return the file that `python PROGRAM` or `python -m PROGRAM` runs."""
    if program.endswith(".py"):
        return ROOT / program
    module = ROOT.joinpath(*program.split("."))
    return module / "__main__.py" if module.is_dir() else module.with_suffix(".py")


def test_documents_say_what_results_say():
    for name in report.DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert text == report.render(text), f"{name} is out of date: run make report"


def entries() -> set[str]:
    """The entries of README's tree, some of which share a row."""
    return {name for names in report.TOP_LEVEL for name in names.split(", ")}


def test_the_tree_names_every_room():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    top_level = {path.split("/")[0] for path in listed.splitlines()}
    files = {path for path in top_level if (ROOT / path).is_file() and not path.endswith(".py")}
    assert top_level - files - {".ci"} == entries()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{target}: no such file"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{target}#{anchor}: no such heading"


def test_every_page_is_walked():
    with_commands = {page for page in PAGES if any(block.language in ("bash", "python") for block in blocks(page))}
    assert with_commands == set(WALK)


class Parsed(BaseException):
    """Ends a command once it has parsed its options; no command catches it."""


@pytest.mark.parametrize("page", WALK)
def test_options_exist(page, monkeypatch):
    def parse(self, args=None, namespace=None):
        _, unknown = self.parse_known_args(args, namespace)
        assert not unknown, f"{self.prog} has no {unknown}"
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    for command in (command for block in blocks(page) for command in block.commands):
        if command.startswith("make "):
            subprocess.run(["make", "--dry-run", *command.split()[1:]], cwd=ROOT, capture_output=True, check=True)
        elif command.startswith("pip install -e "):
            (extras,) = re.findall(r"\[([\w,]+)\]", command)
            project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            assert set(extras.split(",")) <= set(project["optional-dependencies"]), command
        else:
            program, options = program_of(shlex.split(command))
            monkeypatch.setattr(sys, "argv", [program, *options])
            with torch.enable_grad(), pytest.raises(Parsed):  # gradients, which some commands turn off, are on again
                runpy.run_path(str(file_of(program)), run_name="__main__")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A folder that looks like a checkout, with some MIDI files and an archive in it."""
    for name in entries() - {"results"}:
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "results").mkdir()
    for path in (ROOT / "results").glob("*.json"):
        (tmp_path / "results" / path.name).symlink_to(path)
    for folder in ("data", "my_midi_files"):
        (tmp_path / folder).mkdir()
    songs = dict(embedded_scores())
    with tarfile.open(tmp_path / "data" / "lmd_full.tar.gz", "w:gz") as archive:
        for name, content in songs.items():
            path = tmp_path / "my_midi_files" / f"{name}.mid"
            path.write_bytes(content)
            archive.add(path, f"lmd_full/0/{name}.mid")
    for song, name in zip(songs, ("song.mid", "other.mid"), strict=False):
        (tmp_path / name).write_bytes(songs[song])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readme_quickstart_runs(workspace):
    (code,) = [block.code for block in blocks("README.md") if block.language == "python"]
    exec(compile(code, "README.md", "exec"), {})
    assert (workspace / "halfway.mid").read_bytes().startswith(b"MThd")


def test_notebook_runs(workspace, monkeypatch):
    """Its cells run in order with what is installed; IPython's player is replaced by one that keeps the sound."""
    played = []
    display = types.SimpleNamespace(Audio=lambda data, rate: played.append((data, rate)), display=lambda player: None)
    monkeypatch.setitem(
        sys.modules, "IPython", types.SimpleNamespace(display=display, get_ipython=lambda: None, version_info=(9, 0))
    )
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    (workspace / "notebook").mkdir()
    monkeypatch.chdir(workspace / "notebook")
    cells = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    namespace: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "clear the outputs before committing"
            code = "".join(line for line in cell["source"] if not line.startswith("%"))
            exec(compile(code, "docs/quickstart.ipynb", "exec"), namespace)
    assert len(played) >= 3
    assert all(rate == 22050 and abs(data).max() > 0.1 for data, rate in played)


@pytest.mark.slow
@pytest.mark.long
def test_every_block_runs(workspace):
    parsed_only = {
        command for page in WALK for block in blocks(page) if block.is_parsed_only for command in block.commands
    }
    done = set(parsed_only)
    for page in WALK:
        namespace: dict = {}
        for block in blocks(page):
            if block.language == "python":
                exec(compile(block.code, page, "exec"), namespace)
            for command in block.commands:
                if command in done or command.startswith(("make ", "pip ")):
                    continue
                done.add(command)
                words = shlex.split(command)
                program, options = program_of(words)
                words += shlex.split(SHORT.get(program, ""))
                if program == "train.py":
                    is_vae = not {"--init_from", "--model_type"} & set(options)
                    words += shlex.split(f"{STEPS} {MODEL_OPTIONS}" if is_vae else STEPS)
                if words[0] == "accelerate":
                    words.insert(1, "accelerate.commands.accelerate_cli")
                    words.insert(1, "-m")
                run(words[1:], workspace)
    assert (workspace / "outputs" / "interpolation" / "index.html").is_file()
    assert (workspace / "outputs" / "release" / "mine" / "model.safetensors").is_file()
