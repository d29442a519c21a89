"""Imports run downwards, floor by floor; commands are verbs, which nothing but the tests imports."""

import ast
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERBS = {"train", "train_prior", "generate", "evaluate_model", "publish", "export_onnx"}
FLOORS = [  # a room imports from the floors below its own
    {"command"},
    {"modeling", "rendering"},
    {"metrics", "dataset_script"},
    {"baselines"},
    {"training"},
    {"evaluation", "generation"},
    {"documents"},
    {"publishing"},
    {"benchmarks"},
    VERBS,
]
ISLANDS = {"space": set(), "modeling": set(), "metrics": set()}
"""Rooms that are used without the repository, and what they may import from it."""
MOST_ROOMS = 7  # in a chain of imports


def imported(file: Path) -> set[str]:
    """Return the first names of all modules that a file imports from outside its own folder, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.fixture(scope="module")
def rooms() -> dict[str, set[str]]:
    """The rooms that each room imports, folders and files of the top level alike."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    files = [name for name in listed.stdout.split() if not name.startswith(("tests/", "release/"))]
    found: dict[str, set[str]] = {name.split("/")[0].removesuffix(".py"): set() for name in files}
    for name in files:
        room = name.split("/")[0].removesuffix(".py")
        found[room] |= (imported(ROOT / name) & found.keys()) - {room}
    return found


def upwards(rooms: dict[str, set[str]]) -> list[tuple[str, str]]:
    """List the imports that do not run downwards."""
    floor = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    return [(room, other) for room in floor for other in sorted(rooms[room]) if floor[other] >= floor[room]]


def longest_chain(rooms: dict[str, set[str]]) -> list[str]:
    """Return the longest chain of rooms of which each imports the next."""

    @cache
    def below(room: str) -> tuple[str, ...]:
        return (room, *max((below(other) for other in rooms[room]), key=len, default=()))

    return list(max(map(below, sorted(rooms)), key=len))


def test_every_room_has_a_floor(rooms):
    assert set().union(*FLOORS, ISLANDS) == rooms.keys()


def test_no_import_runs_upwards(rooms):
    assert upwards(rooms) == []
    assert upwards(rooms | {"training": {"modeling", "evaluation"}}) == [("training", "evaluation")]


def test_chains_of_imports_are_short(rooms):
    chain = longest_chain(rooms)
    assert len(chain) == MOST_ROOMS, " > ".join(chain)


@pytest.mark.parametrize("room", ISLANDS)
def test_what_is_used_elsewhere_needs_nothing_of_the_repository(rooms, room):
    assert rooms[room] == ISLANDS[room]


def test_nothing_imports_a_verb(rooms, tmp_path):
    assert rooms.keys() >= VERBS
    assert {room: used & VERBS for room, used in rooms.items() if used & VERBS} == {}
    (tmp_path / "upwards.py").write_text("def late():\n    from generate import main\n", encoding="utf-8")
    assert imported(tmp_path / "upwards.py") == {"generate"}
