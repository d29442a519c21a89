"""The commands run where there is no `fcntl`, no `resource` and no UTF-8 by default, as on Windows."""

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModel

from command import UserError, check_links
from dataset_script.parquet_files import split_of
from dataset_script.tunes import embedded_scores
from generation.loading import load_model
from publishing.model import check_code
from tests.builders.midi_files import write_folder
from tests.builders.training import arguments
from training.checkpoints import find_checkpoint
from training.models import load_pretrained

ROOT = Path(__file__).parents[1]
LISTED = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
CODE = sorted(path for path in map(ROOT.joinpath, LISTED.split()) if path.is_file() and not path.is_symlink())
NOT_TEXT = (
    "os",
    "tarfile",
    "wave",
    "webbrowser",
    "igzip_threaded",
    "archive",
    "opened",
    "bench",
)  # objects whose `open` is of another kind


def without_encoding(source: str) -> list[int]:
    """Return the lines that use text in the platform's encoding; ruff's PLW1514 knows a path only as `Path(...)`."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute | ast.Name):
            continue
        given = {word.arg: word.value for word in call.keywords}
        name, owner = (
            (call.func.attr, ast.unparse(call.func.value))
            if isinstance(call.func, ast.Attribute)
            else (call.func.id, "")
        )
        positional = {"read_text": 0, "write_text": 1}
        if name in positional:
            is_text = len(call.args) <= positional[name]
        elif name == "open" and owner not in NOT_TEXT:
            place = 0 if owner else 1
            mode = call.args[place] if len(call.args) > place else given.get("mode", ast.Constant("r"))
            is_text = not any("b" in node.value for node in ast.walk(mode) if isinstance(node, ast.Constant))
        else:
            is_text = getattr(given.get("text"), "value", None) is True  # of subprocess
        if is_text and "encoding" not in given:
            found.append(call.lineno)
    return found


@pytest.mark.parametrize(
    "line",
    ["path.read_text()", "path.write_text(x)", "path.open()", "path.open('a')", "open(x)", "run(x, text=True)"],
)
def test_text_without_encoding_is_found(line):
    assert without_encoding(line) == [1]
    assert (
        without_encoding(line[:-1] + ", encoding='utf-8')" if "(x" in line or "'" in line else "path.open('rb')") == []
    )


def test_text_is_read_and_written_with_an_encoding():
    found = {str(path.relative_to(ROOT)): without_encoding(path.read_text(encoding="utf-8")) for path in CODE}
    assert len(found) > 100
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_links_that_git_wrote_as_text_are_named(tmp_path):
    release = ROOT / "release" / "melody-vae-16bar"
    check_links(release)
    folder = tmp_path / release.name
    folder.mkdir()
    for path in release.iterdir():
        if path.is_symlink():
            (folder / path.name).write_bytes(str(path.readlink()).encode())
        elif path.is_file():
            shutil.copyfile(path, folder / path.name)
    for load in (
        load_model,
        lambda source: load_pretrained(AutoModel, source),
        lambda source: check_code(Path(source)),
    ):
        with pytest.raises(
            UserError, match=r"^[^\n]*a link that git wrote as text; run `git config core.symlinks true`.*$"
        ):
            load(str(folder))


def test_the_build_names_its_link_that_git_wrote_as_text(tmp_path):
    shutil.copyfile(ROOT / "command.py", tmp_path / "command.py")
    shutil.copytree(ROOT / "dataset_script", tmp_path / "dataset_script")
    link = tmp_path / "dataset_script" / "track_names.py"
    link.write_text("../modeling/track_names_melody_vae.py", encoding="utf-8")
    command = [sys.executable, "-m", "dataset_script.build", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.returncode == 2
    assert re.fullmatch(rf"error: {re.escape(str(link))}: a link that git wrote as text; run .*\n", done.stderr)


COMMANDS = sorted(
    path
    for path in CODE
    if ROOT / "tests" not in path.parents
    and "__main__" in path.read_text(encoding="utf-8")
    and path.name not in ("app.py", "note_seq_melodies.py")  # no options; for an interpreter that has note_seq
)


def as_on_windows(*command: str) -> str:
    """Run Python without what Windows lacks (tests/windows_like), and return what it prints, in cp1252."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "tests" / "windows_like"),
        "PYTHONIOENCODING": "cp1252",
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, encoding="cp1252")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_is_less_than_on_unix(tmp_path):
    (tmp_path / "text").write_text("é", encoding="utf-8")
    program = (
        "import multiprocessing, os, pathlib, psutil, sys\n"
        "try: import fcntl\n"
        "except ImportError: print('no fcntl')\n"
        "try: import resource\n"
        "except ImportError: print('no resource')\n"
        "print(hasattr(os, 'fork'), multiprocessing.get_start_method(), multiprocessing.get_context('fork')._name)\n"
        "print(open(sys.argv[1]).read(), pathlib.Path(sys.argv[1]).read_text())\n"
        "with open(sys.argv[1], 'rb') as file:\n"
        "    try: os.fsync(file.fileno())\n"
        "    except OSError: print('no fsync')\n"
    )
    said = as_on_windows("-c", program, str(tmp_path / "text"))
    assert said.splitlines() == ["no fcntl", "no resource", "False spawn spawn", "Ã© Ã©", "no fsync"]


def test_what_windows_cannot_show_ends_no_command():
    program = "from command import run_command; run_command(print, 'Dvořák: Été')"
    assert as_on_windows("-c", program) == "Dvo?ák: Été\n"


@pytest.mark.slow
def test_help_of_every_command():
    """In one process: each loads the same libraries."""
    program = (
        "import runpy, sys\n"
        "sys.path.insert(0, '.')\n"
        "for path in sys.argv[1:]:\n"
        "    sys.argv = [path, '--help']\n"
        "    try: runpy.run_path(path, run_name='__main__')\n"
        "    except SystemExit as end: assert not end.code, (path, end.code)\n"
        "    else: raise AssertionError(path)\n"
    )
    paths = [str(path.relative_to(ROOT)) for path in COMMANDS]
    assert {"train.py", "generate.py", "publish.py", "evaluate_model.py"} <= {*paths}
    assert as_on_windows("-c", program, *paths).count("usage:") == len(paths)


@pytest.mark.slow
def test_a_small_build_and_five_training_steps(tmp_path):
    """Of three tunes, one of them for validation."""
    tunes = dict(embedded_scores())
    by_split = {split_of(hashlib.md5(content).hexdigest()): name for name, content in tunes.items()}
    chosen = {by_split["train"], by_split["validation"], next(iter(tunes))}
    write_folder(tmp_path / "midi", {f"{name}.mid": tunes[name] for name in chosen})
    data, model = tmp_path / "data", tmp_path / "model"
    as_on_windows("-m", "dataset_script.build", "--input", str(tmp_path / "midi"), "--output", str(data))
    options = arguments(data, model, "--max_train_steps", "5", "--evaluation_steps", "5", "--checkpointing_steps", "5")
    as_on_windows("train.py", *options)
    assert find_checkpoint("latest", model).name == "step_5"
    load_model(str(model))
