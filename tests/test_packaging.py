"""Only what one needs: which packages a model, a command and a room of the repository need, and what git ignores."""

import ast
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from documents import versions
from tests.builders.installed import ROOT, asked_for, installed_by, link_packages

DISTRIBUTIONS = packages_distributions()
RELEASE = ROOT / "release" / "melody-vae-16bar"
# Files, the extras that they need to be imported, and those that something in them needs when it is called.
ROOMS = [
    ("modeling/*.py", [], []),
    ("rendering/*.py", ["rendering"], []),
    ("generate.py", ["rendering"], ["data"]),
    ("dataset_script/[!p]*.py", ["data"], []),
    ("dataset_script/p*.py", ["cluster"], []),  # pipeline.py
    ("train*.py", ["training"], ["tracking", "lora"]),
    ("training/*.py", ["training"], ["tracking", "lora"]),
    ("baselines/*.py", ["evaluation"], []),
    ("evaluate_model.py", ["evaluation"], ["tracking", "lora"]),
    ("evaluation/*.py", ["evaluation"], ["tracking", "lora", "space"]),
    ("metrics/**/*.py", ["evaluation"], []),
    ("documents/*.py", ["evaluation"], []),
    ("export_onnx.py", ["onnx"], ["rendering", "data"]),
    ("publishing/onnx/onnx_*/*.py", ["onnx"], []),
    ("publish.py", ["data"], ["rendering", "onnx"]),
    ("publishing/*.py", ["data"], ["rendering", "onnx", "training", "tracking", "lora"]),
    ("space/*.py", ["space"], []),
]


@cache
def imported_by(file: Path, also_in_functions: bool) -> list[str]:
    """Name what a file imports, but what it tries to import and can do without."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    left_out = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) or (isinstance(node, ast.FunctionDef) and not also_in_functions):
            left_out |= {id(inner) for statement in node.body for inner in ast.walk(statement)}
    names = []
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            room = [*file.relative_to(ROOT).parts[:-1]] if node.level else []
            module = ".".join([*room, *filter(None, [node.module])])
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


@cache
def find_module(name: str, beside: Path) -> Path | None:
    """Find the file of this repository that a name, or the longest part of it, is the module of."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        for folder in (ROOT, beside.parent, ROOT / "space"):  # as sys.path has them
            path = folder.joinpath(*parts[:length])
            for file in (path.with_suffix(".py"), path / "__init__.py"):
                if file.is_file():
                    return file
    return None


def needed_by(files: list[Path], *, also_in_functions: bool) -> dict[str, Path]:
    """Walk the imports of files through the repository; returns which file imports each package from outside."""
    seen, wanted, needed = set(), list(files), {}
    while wanted:
        file = wanted.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in imported_by(file, also_in_functions):
            module = find_module(name, file)
            if module:
                wanted.append(module)
            elif name.split(".")[0] not in sys.stdlib_module_names:
                needed.setdefault(name.split(".")[0], file.relative_to(ROOT))
    return needed


@pytest.mark.parametrize(("pattern", "extras", "extras_when_called"), ROOMS, ids=[room[0] for room in ROOMS])
def test_each_room_imports_only_what_its_extras_bring(pattern, extras, extras_when_called):
    files = sorted(ROOT.glob(pattern))
    assert files
    for also_in_functions, given in ((False, extras), (True, [*extras, *extras_when_called])):
        brought = installed_by(asked_for(*given))
        for package, file in needed_by(files, also_in_functions=also_in_functions).items():
            names = {canonicalize_name(name) for name in DISTRIBUTIONS[package]}
            assert names & brought, f"{file} imports {package}, which {given or 'a model alone'} does not bring"


def test_every_extra_is_needed():
    """Each requirement of a room's extra is imported by what needs it, `evaluate_model.py` for instance."""
    brought_by_name = {"data": "dataset_script/*.py", "training": "train*.py", "evaluation": "[em]*/**/*.py"}
    for extra, pattern in brought_by_name.items():
        imported = needed_by(sorted(ROOT.glob(pattern)), also_in_functions=True)
        names = {canonicalize_name(name) for package in imported for name in DISTRIBUTIONS[package]}
        brought = set(asked_for(extra)) - set(asked_for())
        assert {canonicalize_name(Requirement(line).name) for line in brought} <= names, extra


USE = """
import sys
sys.path[:0] = sys.argv[1:3]
from modeling import MelodyProcessor, MelodyVAEModel
model, processor = (
    each.from_pretrained(sys.argv[3], trust_remote_code=True) for each in (MelodyVAEModel, MelodyProcessor)
)
print(len(processor.to_midi_bytes(model.sample(2, seed=0, bars=2))))
"""


def test_a_model_needs_torch_transformers_miditok_and_symusic(tmp_path):
    """With nothing installed but these and what they bring, the release loads, samples and writes MIDI."""
    names = installed_by(asked_for())
    assert not names & {"datasets", "accelerate", "evaluate", "numba", "isal", "scikit-learn", "scipy", "matplotlib"}
    packages = link_packages(names, tmp_path / "packages")
    command = [sys.executable, "-I", "-S", "-c", USE, str(packages), str(ROOT), str(RELEASE)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip() == "2"


def test_constraints_name_an_exact_version_within_the_range_for_all_that_is_installed():
    locked = versions.locked()
    names = {canonicalize_name(name): version for name, version in locked.items()}
    assert len(names) == len(locked)
    assert all(re.fullmatch(r"[\w.]+", version) for version in names.values()), "no address, no local version"
    for line in asked_for("dev"):
        requirement = Requirement(line)
        if requirement.name != "torch":
            assert requirement.specifier.contains(names[canonicalize_name(requirement.name)]), line
    # A torch for GPUs brings packages of its own, and Python 3.13 one for a module that it has no more.
    assert installed_by(asked_for("dev"), besides={"torch", "audioop-lts"}) - {"setuptools", "pip"} <= set(names)


def test_the_files_that_repeat_versions_say_the_same():
    for file, text in versions.written().items():
        assert file.read_text(encoding="utf-8") == text, f"{file}: run make lock"
    (torch,) = re.findall(r"^TORCH \?= (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    pinned = (ROOT / "space/requirements.txt").read_text(encoding="utf-8").split()
    assert torch in pinned
    assert {f"{name}=={versions.locked()[name]}" for name in ("transformers", "miditok", "symusic", "numpy")} <= set(
        pinned
    )


def test_a_newer_version_is_told(monkeypatch, capsys):
    newest = versions.locked() | {"transformers": "99.0.0", "not-named-in-pyproject": "1.0"}
    monkeypatch.setattr(versions, "resolve", lambda python: newest)
    assert versions.main(["moved"]) == 1
    assert capsys.readouterr().out == "newest: transformers 99.0.0\n"
    del newest["transformers"]
    assert versions.main(["moved"]) == 0


def test_the_lowest_versions_are_those_of_the_ranges():
    lowest = versions.lowest()
    for line in asked_for("test"):
        requirement = Requirement(line)
        if requirement.name != "torch":
            assert requirement.specifier.contains(lowest[requirement.name])
            assert lowest[requirement.name] in line
    assert "torch" not in lowest


def test_ranges_end_below_the_next_major_version():
    for line in asked_for("test"):
        specifiers = {each.operator: each.version for each in Requirement(line).specifier}
        if "==" not in specifiers:  # tools of the tests
            major = int(specifiers[">="].split(".")[0])
            assert specifiers == {">=": specifiers[">="], "<": str(major + 1)}, line


def test_git_ignores_what_the_commands_make():
    paths = ["data/lmd_full.tar.gz", "runs/lakh/config.json", "outputs/demo/index.html", ".venv-oldest/bin/python"]
    ignored = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert ignored.stdout.split() == paths
