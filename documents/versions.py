"""The versions that are tested, and every file that names them.

pyproject.toml has the ranges: from the lowest version, which `make test-oldest` tests, to below the next major one.
constraints.txt has the exact versions of everything that `make install` installs. `make lock` writes it, and copies the
ranges into tests/consumer and the exact versions into the Space; the model's card takes the ranges from here.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSUMER, SPACE, SPACE_CARD = (
    ROOT / name for name in ("tests/consumer/requirements.txt", "space/requirements.txt", "space/README.md")
)
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[\w,-]+\])?(>=|==)(?P<lowest>[\w.]+)")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
SHOWN = ("torch", "transformers", "datasets", "accelerate", "gradio", "numpy", "numba")


def project() -> dict:
    """Read what pyproject.toml says of the project."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def ranges() -> list[str]:
    """List what a model needs that is used, each with the range that is tested."""
    return project()["dependencies"]


def lowest() -> dict[str, str]:
    """Return the lowest version of each package that pyproject.toml names, extras included; torch is the user's."""
    about = project()
    lines = [*about["dependencies"], *(line for extra in about["optional-dependencies"].values() for line in extra)]
    found = {match["name"]: match["lowest"] for match in map(REQUIREMENT.match, lines) if match}
    return {name: version for name, version in found.items() if name != "torch"}


def locked() -> dict[str, str]:
    """Return the exact version of each package in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def written() -> dict[Path, str]:
    """Return the text of each file that repeats these versions."""
    versions = locked()
    pinned = re.sub(
        r"^([\w-]+)==.*$",
        lambda line: f"{line[1]}=={versions[line[1]]}" if line[1] in versions else line[0],
        SPACE.read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    card = SPACE_CARD.read_text(encoding="utf-8")
    card = re.sub(r"^sdk_version: .*$", f"sdk_version: {versions['gradio']}", card, flags=re.MULTILINE)
    return {CONSUMER: "".join(f"{line}\n" for line in ranges()), SPACE: pinned, SPACE_CARD: card}


def resolve(python: str) -> dict[str, str]:
    """Resolve everything, tools aside, for a version of Python, from wheels alone; returns the version of each package.

    Raises:
        CalledProcessError: If nothing satisfies all ranges.
    """
    command = ["uv", "pip", "compile", "pyproject.toml", "--extra", "test", "--quiet", "--no-header", "--no-annotate"]
    command += ["--python-version", python, "--only-binary", ":all:"]
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8", check=True
    )
    return dict(line.split(" ")[0].split("==") for line in result.stdout.splitlines() if "==" in line)


def moved() -> dict[str, str]:
    """Return the newest version of each package of pyproject.toml of which constraints.txt has another one."""
    known, newest = locked(), resolve("{}.{}".format(*sys.version_info))
    return {name: newest[name] for name in lowest() if name in known and newest.get(name, known[name]) != known[name]}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m documents.versions")
    parser.add_argument(
        "what",
        choices=("lowest", "write", "resolve", "moved"),
        help="print, write, resolve for each Python, or say what has moved since `make lock`, with exit code 1",
    )
    what = parser.parse_args(argv).what
    if what == "lowest":
        print("\n".join(f"{name}=={version}" for name, version in sorted(lowest().items())))
    elif what == "write":
        for file, text in written().items():
            file.write_text(text, encoding="utf-8")
    elif what == "moved":
        newer = moved()
        print("newest:", ", ".join(f"{name} {version}" for name, version in newer.items()) or "as in constraints.txt")
        return int(bool(newer))
    else:
        for python in PYTHONS:
            found = resolve(python)
            print(f"Python {python}: {len(found)} packages,", ", ".join(f"{name} {found[name]}" for name in SHOWN))
    return 0


if __name__ == "__main__":
    sys.exit(main())
