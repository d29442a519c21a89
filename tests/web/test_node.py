"""`web/` does in node what Python does."""

import base64
import json
import random
import re
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import pytest

from generation.loading import load_model
from modeling.line_writing_melody_vae import line_to_score
from modeling.tune_finding_melody_vae import find_melody, find_tunes
from publishing.onnx import golden
from tests.builders.lines import random_line
from tests.builders.midi_files import TPQ, midi_bytes, tune
from tests.builders.node import WEB, install_packages, needs_node, run_in_web
from tests.builders.onnx_models import LINES, export_plain, export_rich

READ_AND_WRITE = """
import { readFileSync } from "node:fs"
import { readMidi, writeMidi } from "./src/index.js"
const files = JSON.parse(readFileSync(0, "utf-8")).map((file) => readMidi(Buffer.from(file, "base64")))
const scores = ({ tracks, leadScores }) => leadScores.filter((_, at) => !tracks[at].isDrum)
const write = (file) => Buffer.from(writeMidi(file.melody, { tempo: file.tempo })).toString("base64")
console.log(JSON.stringify(files.map((file) => ({ ...file.melody, scores: scores(file), written: write(file) }))))
"""


DECODE_MAP = """
import { openModel } from "./tests/golden.js"
const { folder, corners, points } = JSON.parse(process.argv[1])
const model = await openModel(folder)
const ends = await model.bringTogether(corners.map((corner) => Float32Array.from(corner)), { bars: 3 })
console.log(JSON.stringify(await model.decodeBetween(ends, points, { bars: 3 })))
"""


@pytest.fixture(scope="module")
def exported(shared) -> list[Path]:
    """Folders with graphs and what Python does with them."""
    folders = [shared("onnx-plain", export_plain) / "onnx", shared("onnx-rich", export_rich) / "onnx"]
    for folder in folders:
        assert golden.main(["--model", str(folder)]) == 0
    return folders


@pytest.mark.long
@needs_node
def test_node_passes_its_own_tests(exported):
    install_packages()
    tests = sorted(str(file.relative_to(WEB)) for file in WEB.glob("tests/*.test.js"))
    command = ["node", "--test", "--test-reporter=tap", *tests]
    result = run_in_web(*command, timeout=300, MELODY_VAE_GOLDEN=":".join(map(str, exported)))
    assert result.returncode == 0, "\n".join(re.findall(r"^not ok (?:.*\n){15}", result.stdout, flags=re.MULTILINE))
    counts = dict(re.findall(r"^# (\w+) (\d+)$", result.stdout, flags=re.MULTILINE))
    assert int(counts["pass"]) == int(counts["tests"]) > 40


@needs_node
@pytest.mark.parametrize("kind", ["plain", "rich"])
def test_points_between_four_melodies_are_torchs(exported, kind):
    install_packages()
    (folder,) = (each for each in exported if each.parent.name == f"onnx-{kind}")
    processor, model = load_model(str(folder.parent))
    latent = model.encode(**processor(lines=LINES[:4], return_tensors="pt")).latent_mean.detach()
    expected = model.interpolate_grid(latent, size=4, bars=3)
    weight = [0, 1 / 3, 2 / 3, 1]
    points = [[right, down] for down in weight for right in weight]
    about = json.dumps({"folder": str(folder), "corners": latent.tolist(), "points": points})
    command = ("node", "--input-type=module", "-e", DECODE_MAP, about)
    result = run_in_web(*command, timeout=60, MELODY_VAE_GOLDEN=str(folder))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [[token for token in row if token] for row in expected.tolist()]
    assert len({tuple(row) for row in json.loads(result.stdout)}) > 3


def read_in_both(contents: list[bytes]) -> Iterator[tuple[dict, list[dict]]]:
    """Read MIDI files in node and in Python: the melody and the lead scores, and the tunes, best first."""
    encoded = json.dumps([base64.b64encode(content).decode() for content in contents])
    result = run_in_web("node", "--input-type=module", "-e", READ_AND_WRITE, timeout=60, given=encoded)
    assert result.returncode == 0, result.stderr
    return zip(json.loads(result.stdout), map(find_tunes, contents), strict=True)


def make_song(generator: random.Random) -> bytes:
    """Make a file of several tracks: tunes, one of them twice, chords, drums, of any names, meters and instruments."""
    tunes = [
        tune(generator.randint(3, 20), seed=generator.randrange(1000), low=generator.randint(30, 80)) for _ in range(3)
    ]
    chords = [(time, 2 * TPQ, pitch + up) for time, _, pitch in tunes[0][::4] for up in (0, 4, 7)]
    late = [(time + generator.randrange(20), duration + 5, pitch) for time, duration, pitch in tunes[1]]
    drums = {"notes": [(time, 30, 38 + index % 5) for index, (time, *_) in enumerate(tunes[2])], "is_drum": True}
    names = ["Melody", "Bass", "Voz", "String pad", "", "PIANO_R", "歌", "Fl\u00fbte"]
    tracks = [
        {"notes": notes, "name": generator.choice(names), "program": generator.randrange(112)}
        for notes in (*tunes, chords, late, tunes[0])
    ]
    tracks = [*generator.sample(tracks, generator.randint(1, 6)), drums]
    meters = generator.choice([[(0, 4, 4)], [(0, 3, 4), (1800, 6, 8)], [(0, 2, 2), (960, 7, 16), (2400, 4, 4)]])
    return midi_bytes(tracks, signatures=meters)


@needs_node
def test_tunes_are_found_as_by_python():
    generator = random.Random(0)
    tracks = set()
    for found, tunes in read_in_both([make_song(generator) for _ in range(200)]):
        assert found["scores"] == pytest.approx(
            [line["lead_score"] for line in sorted(tunes, key=itemgetter("track"))], abs=1e-5
        )
        best = tunes[0]
        for column in ("pitch", "start", "duration"):
            assert [note[column] for note in found["notes"]] == best[column]
        assert "{}/{}".format(*found["meter"]) == best["time_signature"]
        tracks.add(best["track"])
    assert len(tracks) > 3


@needs_node
def test_midi_files_are_read_and_written_as_by_python():
    generator = random.Random(0)
    contents = [line_to_score(random_line(generator, 4)).dumps_midi() for _ in range(50)]
    for found, tunes in read_in_both(contents):
        (line,) = tunes
        numerator, denominator = map(int, line["time_signature"].split("/"))
        assert (found["meter"], found["bars"]) == ([numerator, denominator], line["bars"])
        again = find_melody(base64.b64decode(found["written"]))
        for column in ("pitch", "start", "duration"):
            assert [note[column] for note in found["notes"]] == line[column] == again[column]
        assert (again["time_signature"], again["tempo"]) == (line["time_signature"], line["tempo"])


def test_the_lock_file_names_no_addresses():
    packages = json.loads((WEB / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert len(packages) > 10
    assert not re.search(r"https?:", json.dumps(packages))
