"""What SECURITY.md promises about remote code: it reaches no network, starts no process and writes nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.space_server import save_model

ROOT = Path(__file__).parents[1]

PROGRAM = """
import os, sys
import miditok, symusic, torch
from transformers import AutoModel, AutoProcessor, pipeline

NEVER = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "ctypes.dlopen")
WRITES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")

def is_write(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) and path != os.devnull
    # transformers makes sure that its own cache of the code is there.
    return event.startswith(WRITES) and os.environ["HF_HOME"] not in str(arguments[0])

def is_of_remote_code():
    frame = sys._getframe()
    while frame is not None:
        if "transformers_modules" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False

def watch(event, arguments):
    if event.startswith(NEVER) or (is_write(event, arguments) and is_of_remote_code()):
        print("SEEN", event, str(arguments)[:200], flush=True)

folder, is_watched = sys.argv[1], sys.argv[2] == "watch"
if is_watched:
    sys.addaudithook(watch)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
ids = model.sample(1, seed=0, bars=1)
processor(midi=processor.to_midi_bytes(model.sample(2, seed=1, bars=4)), return_tensors="pt")
pipeline(model=folder, trust_remote_code=True)
assert "transformers_modules" in type(model).__module__
print("LOADED", ids.shape[0])
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("remote") / "model")


def load(folder: Path, cache: Path, *, watched: bool) -> list[str]:
    """Load and use a model in a new process; returns what its code did that it must not."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), "watch" if watched else ""],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert "LOADED 1" in done.stdout, done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if line.startswith("SEEN")]


def test_remote_code_touches_nothing_outside(saved, tmp_path):
    """The first process lets transformers copy the code into its cache, which is transformers' own writing."""
    load(saved, tmp_path / "cache", watched=False)
    before = {path: path.stat().st_mtime_ns for path in saved.rglob("*")}
    assert load(saved, tmp_path / "cache", watched=True) == []
    assert {path: path.stat().st_mtime_ns for path in saved.rglob("*")} == before


def test_the_watch_sees_what_it_must(saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "hostile"))
    code = folder / "arguments_melody_vae.py"
    hostile = "import socket, subprocess\nsocket.getaddrinfo('localhost', 80)\nopen('canary', 'w').close()\n"
    hostile += "subprocess.run(['true'], check=False)\n"
    code.write_text(f"{code.read_text(encoding='utf-8')}\n{hostile}", encoding="utf-8")
    seen = load(folder, tmp_path / "cache", watched=True)
    for event in ("socket.getaddrinfo", "subprocess.Popen", "open"):
        assert any(line.startswith(f"SEEN {event}") for line in seen), event


def test_no_code_of_ours_reads_pickles():
    """Nothing that is shipped or run imports pickle, evaluates text, or loads tensors with code in them."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    for name in listed.stdout.split():
        if not name.startswith("tests/"):
            text = (ROOT / name).read_text(encoding="utf-8")
            for word in ("import pickle", "torch.load(", "weights_only=False", "shell=True", "os.system("):
                assert word not in text, f"{name}: {word}"
