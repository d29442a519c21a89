"""What is made for publishing and takes its time is kept, under the name of what it was made from."""

import shutil
from collections.abc import Callable
from pathlib import Path


def keep(folder: Path, key: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that `make(folder)` has filled, in this run or in an earlier one with the same key.

    A run that is stopped leaves nothing that a later one could take for whole; a new key replaces the old one's folder.

    Args:
        folder: Where the folder lies, alone.
        key: Of what it is made from.
        make: Writes the content.
    """
    whole = folder / key
    if not whole.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        part = folder / f"{key}.part"
        part.mkdir(parents=True)
        make(part)
        part.rename(whole)
    return whole


def files_below(folder: Path, prefix: str = "") -> dict[str, Path]:
    """Map every file below a folder by its path in the repository, hidden ones and caches aside."""
    found = {}
    for file in sorted(folder.rglob("*")):
        inner = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in inner.parts):
            found[f"{prefix}{inner.as_posix()}"] = file
    return found
