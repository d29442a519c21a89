"""The Space in a process of its own, with a tiny model of random weights, as tests and the load test run it."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from modeling import MelodyProcessor
from modeling.processing_melody_vae import line_to_words
from tests.builders.models import make_model

ROOT = Path(__file__).parents[2]
BARS = 16
PATIENCE_SECONDS = 300.0  # of starting, or of an answer, on a machine that is busy with other tests
CONDITIONS = {
    "key": ["C major", "D minor", "A minor"],
    "tempo": ["slow", "medium", "fast"],
    "time_signature": ["4/4", "3/4"],
    "genre": ["Pop_Rock", "Folk"],
}
ATTRIBUTES = ["note_density", "pitch_range", "contour"]


def save_model(folder: Path) -> Path:
    """Save a tiny model that has everything that the Space asks for."""
    generator = random.Random(0)
    bars = 4
    lines = []
    for _ in range(60):
        starts = sorted(generator.sample(range(0, 16 * bars, 2), 17))
        ends = [*starts[1:], 16 * bars]
        lines.append(
            {
                "pitch": [generator.choice([60, 62, 64, 65, 67, 69, 71, 72]) for _ in starts],
                "start": starts,
                "duration": [min(end - start, 8) for start, end in zip(starts, ends, strict=True)],
                "time_signature": "4/4",
                "steps_per_beat": 4,
                "bars": bars,
            }
        )
    processor = MelodyProcessor.train([line_to_words(line) for line in lines], vocab_size=331, max_bars=BARS)
    model = make_model(
        processor,
        hidden_size=12,
        latent_size=3 * BARS,
        initializer_range=0.3,
        num_prior_layers=1,
        conditions=CONDITIONS,
        attributes=ATTRIBUTES,
    )
    model.set_grammar(processor.grammar_table(), processor.fingerprint())
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running_space(model: Path | str, folder: Path, workers: int = 2) -> Iterator[str]:
    """Run `space/app.py` from another folder and give its address.

    Its temporary files, votes, log and the id of its process group lie in `folder`. Nothing of it is left at the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_TOKEN")},
        "MODEL_ID": str(model),
        "WORKERS": str(workers),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folder / "gradio"),
        "VOTES_FOLDER": str(folder / "votes"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "space/app.py")],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    (folder / "pid").write_text(str(process.pid), encoding="utf-8")
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the Space did not start:\n{(folder / 'log.txt').read_text(encoding='utf-8')}")
            try:
                urllib.request.urlopen(f"{url}/gradio_api/startup-events", timeout=PATIENCE_SECONDS).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.25)
        yield url
    finally:
        end_group(process)


def end_group(process: subprocess.Popen) -> None:
    """End a process that leads a group, with its workers."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        for _ in range(80):
            process.poll()  # takes it off the list of processes
            if not members(process.pid):
                return
            time.sleep(0.25)
    raise RuntimeError(f"processes {members(process.pid)} of the Space do not end")


def members(group: int) -> list[int]:
    """List the processes of a group that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            state, _, of_group = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[:3]
            if int(of_group) == group and state != "Z":
                found.append(int(stat.parent.name))
    return found


def cpu_seconds(group: int) -> float:
    """Add up what a group's processes have computed."""
    total = 0
    for process in members(group):
        with suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])  # user and system time
    return total / os.sysconf("SC_CLK_TCK")


def resident_bytes(group: int) -> int:
    """Add up the memory of a group's processes, their shared pages once: proportional set sizes."""
    total = 0
    for process in members(group):
        with suppress(OSError):
            lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
            total += next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total
