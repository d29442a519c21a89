"""Commands in processes that begin with everything imported: that takes longer than what most of them do here.

A fork server imports it once; `python ...` is a fork of it, with arguments, folder and output of its own.
"""

import contextlib
import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import accelerate  # noqa: F401
import datasets  # noqa: F401
import evaluate  # noqa: F401
import psutil

import modeling  # noqa: F401

ROOT = Path(__file__).parents[2]


def redirect(output: Path) -> None:
    """Add what this process prints to a file."""
    with output.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def become(words: Sequence[str], cwd: Path, output: Path) -> None:
    """Do in a folder what `python WORDS` does; this process has no other use, and its modules are the repository's."""
    redirect(output)
    os.chdir(cwd)
    os.environ.update({"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"})
    if words[0] == "-m":
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")


def fork(target: Callable, *args: object) -> BaseProcess:
    """Call a function in a fork of the server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=target, args=args)
    process.start()
    return process


def launch(options: Sequence[str], words: Sequence[str], cwd: Path, output: Path) -> BaseProcess:
    """Start `accelerate launch OPTIONS WORDS` on a free port."""
    command = ["-m", "accelerate.commands.launch", *options, "--main_process_port", "0", *words]
    return fork(become, command, cwd, output)


def finish(process: BaseProcess, output: Path) -> str:
    """Wait for a command, whose end must be a good one; returns what it has printed."""
    process.join()
    printed = output.read_text(encoding="utf-8")
    assert process.exitcode == 0, printed[-6000:]
    return printed


def run(words: Sequence[str], cwd: Path) -> str:
    """Run `python WORDS` to its end, which must be a good one; returns what it prints."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        output.write_text(f"python {' '.join(words)}\n", encoding="utf-8")
        return finish(fork(become, words, cwd, output), output)


def kill_all(process: BaseProcess) -> None:
    """Kill -9 a command and all that it has started; accelerate's processes are in groups of their own."""
    assert process.pid
    root = psutil.Process(process.pid)
    for each in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
