"""Take away, in processes that have this folder on PYTHONPATH, what Windows lacks.

Processes are spawned, there is no `os.fork`, and a file that is only read cannot be flushed. For code that is of no
library there is no `fcntl` and no `resource` either, and text without an encoding is cp1252: libraries have ways of
their own on Windows, which they do not take here.
"""

import builtins
import errno
import fcntl
import io
import multiprocessing
import os
import sys
from pathlib import Path

LIBRARIES = {"site-packages", "dist-packages", f"python{sys.version_info.major}.{sys.version_info.minor}"}
MISSING = {"fcntl", "resource"}

multiprocessing.context._concrete_contexts["fork"] = multiprocessing.get_context("spawn")
multiprocessing.set_start_method("spawn")
del os.fork
import_module, open_file, flush = builtins.__import__, io.open, os.fsync


def is_of_library(file):
    """Whether code is of a library, Python's own included; `python -c` has the file <string>."""
    return file.startswith("<frozen") or not LIBRARIES.isdisjoint(Path(file).parts)


def import_as_on_windows(name, globals=None, *args, **kwargs):
    """Refuse the modules that Windows lacks."""
    if name in MISSING and not is_of_library((globals or {}).get("__file__", "<string>")):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return import_module(name, globals, *args, **kwargs)


def open_as_on_windows(file, mode="r", buffering=-1, encoding=None, *args, **kwargs):
    """Open text without an encoding as cp1252; `pathlib` opens it for its caller."""
    frame = sys._getframe(1)
    while frame.f_back and "pathlib" in frame.f_code.co_filename:
        frame = frame.f_back
    if "b" not in mode and encoding in (None, "locale") and not is_of_library(frame.f_code.co_filename):
        encoding = "cp1252"
    return open_file(file, mode, buffering, encoding, *args, **kwargs)


def flush_as_on_windows(file):
    """Refuse a descriptor that is open for reading only."""
    if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    flush(file)


builtins.__import__ = import_as_on_windows
builtins.open = io.open = open_as_on_windows
os.fsync = flush_as_on_windows
