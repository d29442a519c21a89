"""What all commands share: errors of one line with exit code 2, JSON files, and a description of the machine.

It imports nothing but the standard library, so that `--help` answers at once.
"""

import errno
import io
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FULL_DISK = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quota of its own


class UserError(Exception):
    """Something the user can put right; ends the command with one line and exit code 2."""


def run_command(work: Callable[..., object], *arguments: Any, stopped: str = "stopped") -> int:
    """Do a command's work and return its exit code.

    Args:
        work: Called with `arguments`; may return an exit code of its own, None is 0.
        *arguments: For `work`.
        stopped: Said when the user interrupts it.

    Returns:
        0, 2 after one line about a `UserError` or a full disk, 130 when stopped.
    """
    for stream in (sys.stdout, sys.stderr):  # titles and names of files have letters that Windows' code pages lack
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = work(*arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if (reason := full_disk(error)) is None:
            raise
        print(f"error: {reason}; free some space; {stopped}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
    return code if isinstance(code, int) else 0


def full_disk(error: BaseException) -> str | None:
    """Return one line if a full disk, or a limit on files, is why something failed; None for other errors.

    Libraries written in Rust or C++ hand on the system's words only.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in FULL_DISK:
            return f"{cause.filename or 'the disk'}: {os.strerror(cause.errno)}"
        if any(f"os error {number}" in str(cause) or os.strerror(number) in str(cause) for number in FULL_DISK):
            return first_line(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def first_line(error: BaseException) -> str:
    """Cut an error's message to what fits one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_links(folder: str | Path) -> None:
    """Refuse a folder whose links to code are text: so git writes them on Windows by default.

    Raises:
        UserError: If a Python file holds nothing but a path.
    """
    otherwise = ", or download the model from the Hub" if Path(folder, "config.json").is_file() else ""
    for file in sorted(Path(folder).glob("*.py")):
        if file.read_bytes().startswith(b"../"):
            raise UserError(
                f"{file}: a link that git wrote as text; run `git config core.symlinks true` and "
                f"`git checkout -- {file.parent}` (Windows: as administrator or in developer mode){otherwise}"
            )


def make_folder(folder: Path) -> None:
    """Make the folder that a command writes to, if it is not there.

    Raises:
        UserError: If that cannot be done.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: not a folder, nor can one be made ({error.strerror}); choose another --output"
        ) from error


def check_output(output: Path) -> None:
    """Make the folder that a file goes to, before hours go into its content.

    Raises:
        UserError: If that cannot be done, or the file is a folder.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output.parent} cannot be made ({error.strerror}); give another --output") from error
    if output.is_dir():
        raise UserError(f"{output} is a folder; give --output the name of a file")


def write_json(content: Any, output: Path) -> None:
    """Write a JSON file at once: whoever is stopped leaves the old one or the new one.

    Raises:
        UserError: If it cannot be written; the content is then printed, since hours may have gone into it.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = output.with_name(f"partial_{output.name}")
        partial.write_text(text, encoding="utf-8")
        partial.replace(output)
    except OSError as error:
        print(text)
        raise UserError(f"{output} cannot be written ({error.strerror}); its content is printed above") from error


def machine() -> dict[str, Any]:
    """Describe the computer: cores that may be used, and the processor's name."""
    information = Path("/proc/cpuinfo")  # platform.processor() starts a process
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    processor = names[0] if names else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cores": cores, "processor": processor}
