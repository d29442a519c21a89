"""What pyproject.toml asks for, which installed packages that brings, and a folder that holds these only."""

import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def asked_for(*extras: str) -> list[str]:
    """List what a user of the project gets with these extras: the requirements of pyproject.toml, its own resolved."""
    found, wanted = list(PROJECT["dependencies"]), list(extras)
    while wanted:
        for line in PROJECT["optional-dependencies"][wanted.pop()]:
            requirement = Requirement(line)
            if requirement.name == PROJECT["name"]:
                wanted += requirement.extras
            else:
                found.append(line)
    return found


@cache
def needs_of(name: str) -> list[Requirement]:
    """List what an installed package needs, under whatever markers."""
    return [Requirement(line) for line in requires(name) or []]


def installed_by(requirements: Iterable[str], besides: Iterable[str] = ()) -> set[str]:
    """Name the installed packages that these requirements bring, with what those need; `besides` are not followed."""
    found, wanted = set(), [(Requirement(line).name, Requirement(line).extras) for line in requirements]
    while wanted:
        name, extras = wanted.pop()
        if name in besides or (canonicalize_name(name), frozenset(extras)) in found:
            continue
        try:
            needs = needs_of(name)
        except PackageNotFoundError:
            continue
        found.add((canonicalize_name(name), frozenset(extras)))
        for need in needs:
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                wanted.append((need.name, need.extras))
    return {name for name, _ in found}


def link_packages(names: Iterable[str], folder: Path) -> Path:
    """Make a folder of installed packages that has these only."""
    folder.mkdir()
    for name in names:
        package = distribution(name)
        for entry in {Path(file).parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            if not (folder / entry).exists():
                (folder / entry).symlink_to(str(package.locate_file(entry)))
    return folder
