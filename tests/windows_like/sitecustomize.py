"""Take away, in processes that have this folder on PYTHONPATH, what Windows lacks.

There is no `fcntl`, `resource` or `os.fork`, processes are spawned, and text without an encoding is cp1252: as on
Windows, but for our own files alone, since libraries' are their own.
"""

import builtins
import io
import multiprocessing
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("site-packages", "dist-packages", f"python{sys.version_info.major}.{sys.version_info.minor}")
MISSING = ("fcntl", "resource")


class WithoutUnix:
    """Finder that knows no module of Unix."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Refuse the modules that Windows lacks."""
        if name in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


for name in MISSING:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, WithoutUnix)
multiprocessing.context._concrete_contexts["fork"] = multiprocessing.get_context("spawn")
multiprocessing.set_start_method("spawn")
del os.fork
text_encoding = io.text_encoding
open_file = io.open


def is_ours(depth):
    """Whether the code that reads or writes is of this repository; `pathlib` in between is not counted."""
    frame = sys._getframe(depth + 1)
    while frame and "pathlib" in frame.f_code.co_filename:
        frame = frame.f_back
    path = Path(frame.f_code.co_filename) if frame else Path()
    return ROOT in path.parents and not set(LIBRARIES) & set(path.parts)


def open_as_on_windows(file, mode="r", buffering=-1, encoding=None, *args, **kwargs):
    """Open text without an encoding as cp1252 where the code is ours."""
    if "b" not in mode and encoding in (None, "locale") and is_ours(1):
        encoding = "cp1252"
    return open_file(file, mode, buffering, encoding, *args, **kwargs)


builtins.open = io.open = open_as_on_windows
