"""The Space in a process group of its own, and what it costs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 300.0  # with a start or an answer, on a machine that may be busy
END_SECONDS = 20.0  # between SIGTERM and SIGKILL
POLL_SECONDS = 0.25


@contextmanager
def running_space(model: Path | str, folder: Path, workers: int | None = None) -> Iterator[tuple[str, int]]:
    """Run `space/app.py` from another folder, without network; gives its address and the id of its process group.

    Its temporary files, votes and log lie in `folder`. None of its processes is left at the end.

    Args:
        model: Folder or Hub id.
        folder: Where it runs.
        workers: Processes with a model; by default as many as the Space chooses.

    Raises:
        RuntimeError: If it does not start, or its processes do not end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # An environment without this repository, tokens and network.
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_TOKEN")},
        "MODEL_ID": str(model),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folder / "gradio"),
        "VOTES_FOLDER": str(folder / "votes"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        **({} if workers is None else {"WORKERS": str(workers)}),
    }
    log_file = folder / "log.txt"
    with log_file.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "space/app.py")],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    # Wait until it answers.
    try:
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the Space did not start:\n{log_file.read_text(encoding='utf-8')}")
            with suppress(OSError):
                urllib.request.urlopen(f"{url}/gradio_api/startup-events", timeout=PATIENCE_SECONDS).close()
                break
            time.sleep(POLL_SECONDS)
        yield url, process.pid
    finally:
        end_group(process)


def end_group(process: subprocess.Popen) -> None:
    """End a process that leads a group, and the group.

    Raises:
        RuntimeError: If some of them do not end.
    """
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        until = time.monotonic() + END_SECONDS
        while time.monotonic() < until:
            process.poll()  # takes it off the list of processes
            if not members(process.pid):
                return
            time.sleep(POLL_SECONDS)
    raise RuntimeError(f"processes {members(process.pid)} of the Space do not end")


def members(group: int) -> list[psutil.Process]:
    """List the processes of a group that run."""
    running = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):  # it has just ended
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                running.append(process)
    return running


def memory_of(processes: Iterable[psutil.Process]) -> int:
    """Add up the memory of processes in bytes, shared pages once."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):  # it has just ended
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.uss)  # pss: on Linux alone
    return total
