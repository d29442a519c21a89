"""The torture: mutations come again, hostile files are what they are called, faults are named, and a short run ends."""

import json
import random
import time
from pathlib import Path

import pytest
from symusic import Score

from benchmarks import clients, reliability
from documents.reliability import reliability as table
from tests.builders.clock import processor_seconds
from tests.builders.space_server import save_model

SAMPLES = sorted((reliability.RELEASE / "samples").glob("*.mid"))


def test_mutations_come_again_and_change_the_file():
    content = SAMPLES[0].read_bytes()
    mutations = [reliability.mutate(content, random.Random(number)) for number in range(200)]
    assert mutations == [reliability.mutate(content, random.Random(number)) for number in range(200)]
    assert sum(mutation != content for mutation in mutations) > 190
    assert len(set(mutations)) > 190


@pytest.mark.parametrize("kind", reliability.KINDS)
def test_hostile_files_grow_with_their_size(kind):
    small, large = (reliability.hostile_file(kind, size) for size in (64, 256))
    assert len(large) > 2 * len(small)
    assert Score.from_midi(small).note_num() > 0


@pytest.fixture(scope="module", params=["builder", "processor"])
def reader(request):
    """Measure how long reading a hostile file takes, in processor time, and whether it is read."""
    read, refusals = reliability.make_reader(request.param, reliability.RELEASE)
    read(reliability.hostile_file("notes", 64))  # compiles what is compiled

    def seconds(kind: str, size: int) -> tuple[float, str]:
        content, outcomes = reliability.hostile_file(kind, size), ["read"]

        def try_to_read() -> None:
            try:
                read(content)
            except refusals as refusal:
                outcomes.append(str(refusal))

        return processor_seconds(try_to_read), outcomes[-1]

    return request.param, seconds


@pytest.mark.parametrize("kind", reliability.KINDS)
def test_a_file_four_times_as_large_costs_about_four_times_as_much(reader, kind):
    """Where a cost grows with the square, it costs sixteen times as much. Too many tracks or bars are refused."""
    name, seconds = reader
    size = 64 if kind == "tracks" and name == "processor" else 4000  # it reads 256 tracks at most
    (small, before), (large, after) = seconds(kind, size), seconds(kind, 4 * size)
    assert large < 8 * small + 0.01
    if kind != "bars":
        assert (before, after) == ("read", "read")


def report() -> dict:
    """A report of a run in which everything is as it must be."""
    mutated = {"files": 9, "read": 7, "refused": 2, "error": 0, "crash": 0, "slowest_seconds": 0.1, "errors": {}}
    grown = {"tracks": {"size": 8, "outcome": "refused", "seconds": 0.5, "exponent": 1.0}}
    return {
        "sizes": {"melodies": 3},
        "machine": {"cores": 2, "processor": "a processor"},
        "load_averages": {"kills": 1.0, "clients": 4.0},
        "versions": {"torch": "2"},
        "mutations": {reader: dict(mutated) for reader in reliability.READERS},
        "growing_files": {reader: {"tracks": dict(grown["tracks"])} for reader in reliability.READERS},
        "damaged_folders": {"folders": 2, "refused": 2, "loaded": 0, "unlike": 0, "errors": {}},
        "same_seed": {"two threads": 1.0},
        "kills": {"kills": 5, "incomplete_checkpoints": 0, "runs": 2, "ends_with_the_same_weights": 2},
        "full_disks": {
            "limits_bytes": [1, 2],
            "one_line": 1,
            "room_enough": 1,
            "checkpoints_lost": 0,
            "ends_with_the_same_weights": True,
        },
        "diverged": {"exit_code": 2, "is_one_line": True, "saved_is_finite": True},
        "lost_processes": {"runs": 2, "launcher_ended": 2, "checkpoints_whole": 2},
        "clients": {
            "clients": 3,
            "seconds": 5.0,
            "answered": 11,
            "not_answered": 0,
            "hostile_requests": 2,
            "median_seconds": 1.0,
            "p95_seconds": 2.0,
            "pause_seconds": 2.0,
            "memory_growth": 0.02,
            "targets": clients.TARGETS,
            "tracebacks": 0,
            "alive_at_the_end": True,
        },
    }


@pytest.mark.parametrize(
    ("place", "value", "fault"),
    [
        (("mutations", "upload", "error"), 1, "mutations, upload: 1 errors"),
        (("mutations", "builder", "crash"), 1, "mutations, builder: 0 errors, 1 crashes"),
        (("mutations", "processor", "slowest_seconds"), 99.0, "99 s for one file"),
        (("growing_files", "upload", "tracks", "seconds"), 99.0, "growing files, upload, tracks"),
        (("damaged_folders", "errors"), {"config.json, empty": "KeyError"}, "damaged folders: config.json, empty"),
        (("kills", "ends_with_the_same_weights"), 1, "kills: a run does not end"),
        (("full_disks", "ends_with_the_same_weights"), False, "full_disks: the run does not end"),
        (("full_disks", "one_line"), 0, "full_disks: not one line"),
        (("full_disks", "checkpoints_lost"), 1, "full_disks: not one line"),
        (("diverged", "saved_is_finite"), False, "diverged"),
        (("diverged", "is_one_line"), False, "diverged"),
        (("lost_processes", "launcher_ended"), 1, "lost_processes"),
        (("clients", "not_answered"), 1, "clients: 1 not answered"),
        (("clients", "alive_at_the_end"), False, "clients"),
    ],
)
def test_each_fault_is_named(place, value, fault):
    found = report()
    assert reliability.faults(found) == []
    *path, last = place
    part = found
    for name in path:
        part = part[name]
    part[last] = value
    (named,) = reliability.faults(found)
    assert fault in named


def test_the_table_says_what_was_tried(tmp_path):
    assert "make torture" in table(tmp_path)
    found = report() | {"faults": []}
    (tmp_path / "reliability.json").write_text(json.dumps(found), encoding="utf-8")
    written = table(tmp_path)
    assert "No fault was found" in written
    assert "1 to 4 programs wanted a core" in written
    assert len([line for line in written.splitlines() if line.startswith("| ")]) == 2 + 3 + 3 + 1 + 1 + 4 + 1
    for left_out in ("kills", "full_disks", "lost_processes", "clients"):
        part = {name: value for name, value in found.items() if name != left_out}
        (tmp_path / "reliability.json").write_text(json.dumps(part), encoding="utf-8")
        assert len(table(tmp_path).splitlines()) == len(written.splitlines()) - 1
    (tmp_path / "reliability.json").write_text(json.dumps(found | {"faults": ["mutations"]}), encoding="utf-8")
    assert "Faults: `mutations`" in table(tmp_path)


@pytest.mark.slow
def test_a_short_run(tmp_path: Path):
    sizes = ["--mutations", "30", "--growth", "2", "--kills", "0", "--full_disks", "0", "--lost_processes", "0"]
    argv = [*sizes, "--clients", "0", "--melodies", "3", "--output", str(tmp_path / "reliability.json")]
    argv += ["--model", str(save_model(tmp_path / "model"))]
    assert reliability.main(argv) == 0
    found = json.loads((tmp_path / "reliability.json").read_text(encoding="utf-8"))
    for reader in reliability.READERS:
        assert found["mutations"][reader]["error"] == found["mutations"][reader]["crash"] == 0
    assert found["same_seed"]["one at a time"] == found["same_seed"]["another process"] == 1


@pytest.mark.slow
def test_clients_do_all_that_the_space_offers_and_are_answered(tmp_path: Path):
    """A few of them, of whom the first is hostile, at a tiny model."""
    found = clients.besiege(save_model(tmp_path / "model"), 4, 40.0, 0.1, tmp_path / "space")
    assert found["alive_at_the_end"]
    assert found["errors"] == {}
    assert found["tracebacks"] == 0
    assert found["answered"] == sum(found["requests_by_action"].values()) > 0
    assert found["hostile_requests"] > 0
    assert {"make", "midi"} <= found["requests_by_action"].keys() <= clients.WEIGHTS.keys()
    assert 0 < found["median_seconds"] <= found["p95_seconds"]
    assert found["memory_bytes"] > 0


def test_a_client_counts_what_is_no_answer_as_one(monkeypatch):
    """Whatever goes wrong, in the connection or in what comes, is told by action."""

    def ask(url, action, data):
        if action == "make":
            return [{"pitch": [60], "bars": 4}]
        raise {"midi": ConnectionResetError("gone"), "about": TypeError("no answer")}.get(action, ValueError("error"))

    monkeypatch.setattr(clients, "ask", ask)
    siege = clients.Siege("", time.monotonic() + 0.2, 0.0)
    siege.visit(1)
    siege.annoy(0)
    found = clients.summarize(siege, [100, 100, 100, 110, 120])
    assert found["answered"] == len(siege.waited["make"]) >= 2
    assert found["errors"] == {"midi: ConnectionResetError gone": found["not_answered"]}
    assert found["hostile_requests"] == sum(siege.hostile.values())
    assert found["memory_growth"] == pytest.approx(0.2)


def test_parts_are_measured_anew_where_the_code_the_model_or_the_size_is_another(tmp_path, monkeypatch):
    args = reliability.parse_args(["--parts", str(tmp_path / "parts")])
    args.load_averages, measured = {}, []

    def measure(size: int) -> int:
        return reliability.stage(args, "some_0", size, "modeling", lambda: measured.append(size) or size)

    assert [measure(1), measure(1), measure(2)] == [1, 1, 2]
    monkeypatch.setattr(reliability, "code_digest", lambda tested: f"another {tested}")
    assert [measure(2), measure(2)] == [2, 2]
    monkeypatch.setattr(reliability, "digest", lambda path: "other weights")
    assert measure(2) == 2
    assert measured == [1, 2, 2, 2]
    assert set(args.load_averages) == {"some"}
