"""The data set from real files: LAKH_ARCHIVE names an archive of the Lakh MIDI Dataset or a part of it."""

import hashlib
import json
import os
import random
import tarfile
from pathlib import Path

import pytest
from symusic.core import ScoreTick

from benchmarks import near_duplicates
from dataset_script import build
from dataset_script.midi_sources import open_sources
from tests.dataset_script.test_midi_reader import agrees_or_declines

ARCHIVE = Path(os.environ.get("LAKH_ARCHIVE", Path(__file__).parents[3] / "shared" / "data" / "lmd_full_subset.tar.gz"))
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not ARCHIVE.is_file(), reason="LAKH_ARCHIVE names no archive, and none lies beside the project"),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("lakh") / "built"
    assert build.main(["--input", str(ARCHIVE), "--output", str(output), "--num_proc", "2"]) == 0
    return output


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in sorted((folder / "data").iterdir())}


def test_the_same_bytes_from_a_folder_with_other_processes(built, tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "files", filter="data")
    again = tmp_path / "again"
    assert build.main(["--input", str(tmp_path / "files"), "--output", str(again), "--num_proc", "3"]) == 0
    assert digests(again) == digests(built)


def test_the_funnel_adds_up(built):
    report = json.loads((built / "build.json").read_text(encoding="utf-8"))
    for unit, out in (("files", "with_melody"), ("tracks", "with_melody"), ("lines", "kept")):
        assert report[unit]["read"] == report[unit][out] + sum(report[unit]["dropped"].values())
    assert report["files"]["with_melody"] > 0.9 * report["files"]["read"]
    assert report["lines"]["kept"] > 8 * report["files"]["with_melody"]
    shares = [part["lines"] / report["lines"]["kept"] for part in report["statistics"]["splits"].values()]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


def test_few_test_lines_have_a_near_duplicate_in_train(built, tmp_path):
    report = tmp_path / "report.json"
    options = ["--input", str(ARCHIVE), "--dataset", str(built), "--planted", "100", "--output", str(report)]
    assert near_duplicates.main(options) == 0
    measured = json.loads(report.read_text(encoding="utf-8"))
    assert measured["ours"]["share_of_pairs_grouped"] < 0.005
    assert measured["leak"]["test"]["all_lines"]["leak"] < 0.05
    recall = {kind: found["recall"] for kind, found in measured["ours"]["recall"].items()}
    assert min(value for kind, value in recall.items() if kind != "all_combined") > 0.95


def test_the_reader_agrees_with_symusic_on_every_file_and_on_damaged_ones():
    chance = random.Random(0)
    readable = taken = 0
    for name, data in open_sources(str(ARCHIVE)):
        assert isinstance(data, bytes), name
        if agrees_or_declines(data):
            readable, taken = readable + 1, taken + 1
        else:
            try:
                ScoreTick.from_midi(data)
                readable += 1
            except Exception:
                continue
        damaged = bytearray(data)
        for _ in range(chance.choice([1, 3, 10])):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        agrees_or_declines(bytes(damaged))
        agrees_or_declines(data[: chance.randrange(len(data))])
    assert taken >= 0.97 * readable
