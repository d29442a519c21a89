"""The Space without a browser: melodies at the border, sound, votes, actions, and strangers at the API.

`PYTHONPATH=. python tests/space/test_space.py` writes `space/tunes.json` anew from the data set's tunes.
"""

import asyncio
import base64
import html
import io
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import wave
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
from gradio.blocks import BlocksConfig
from gradio.state_holder import SessionState
from hypothesis import given, settings
from hypothesis import strategies as st
from symusic import Note, Score, Tempo, TimeSignature, Track, types

from benchmarks.space_process import PATIENCE_SECONDS, running_space
from modeling.melody_line_melody_vae import TEMPO_CLASSES
from modeling.melody_line_melody_vae import tempo_class as model_class
from tests.builders.space_server import ATTRIBUTES, BARS, ROOT, save_model

sys.path.append(str(ROOT / "space"))

import interface
import listening
import sampler
import sound
from actions import GRID_SIDE, MAX_FILE_BYTES, OPENING_SEEDS, PATH_POINTS, Actions, tempo_class
from checks import ANY, TEMPOS
from composer import Composer
from engine import Engine, answer
from harmony import harmonize
from listening import MAX_PENDING, Ballot, ListeningTest
from melody import (
    MAX_NOTES,
    RefusedError,
    append,
    check_melody,
    clean_text,
    cut_bars,
    steps_per_bar,
    to_midi,
    transpose,
)
from originality import judge
from originality_index import OriginalityIndex
from ranking import Ranking

TUNES = ROOT / "space/tunes.json"
MELODY = {
    "title": "A tune",
    "pitch": [60, 62, 64, 67, 65],
    "start": [0, 4, 8, 16, 24],
    "duration": [4, 4, 8, 8, 8],
    "time_signature": "4/4",
    "steps_per_beat": 4,
    "bars": 2,
    "tempo": 97.0,
    "program": 40,
}


def tunes_of_the_data_set() -> list[dict]:
    """Read the data set's public-domain tunes that lie on the grid of a quarter of the beat."""
    from dataset_script.tunes import embedded_tunes

    tunes = []
    for tune in embedded_tunes():
        steps_per_whole = 4 * tune.meter[1]
        starts, durations = (
            [getattr(note, name) * steps_per_whole for note in tune.notes] for name in ("start", "duration")
        )
        if all(each.denominator == 1 for each in starts + durations):
            tunes.append(
                {
                    "title": tune.title,
                    "composer": tune.source,
                    "pitch": [note.pitch for note in tune.notes],
                    "start": list(map(int, starts)),
                    "duration": list(map(int, durations)),
                    "time_signature": "{}/{}".format(*tune.meter),
                    "steps_per_beat": 4,
                    "bars": tune.bars,
                    "tempo": round(tune.quarters_per_minute),
                    "program": tune.program,
                }
            )
    return sorted(tunes, key=lambda tune: tune["title"])


class InProcess(Engine):
    """An engine without workers."""

    def __init__(self, folder: Path):
        self.model_id = str(folder)
        self.workers = 1
        self.composer = Composer(str(folder))

    def __call__(self, action: str, **arguments: Any) -> Any:
        ((is_done, result),) = answer(self.composer, action, [arguments])
        if not is_done:
            raise RefusedError(result)
        return result


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def actions(model_folder, tmp_path_factory) -> Actions:
    return Actions(InProcess(model_folder), tmp_path_factory.mktemp("votes"))


def notes_of(melody: dict) -> list[tuple[int, int, int]]:
    return sorted(zip(melody["start"], melody["duration"], melody["pitch"], strict=True))


def read(content: bytes) -> list[tuple[int, int, int]]:
    score = Score.from_midi(content)
    step = score.ticks_per_quarter / 4
    return sorted((round(note.start / step), round(note.duration / step), note.pitch) for note in score.tracks[0].notes)


# Melodies


def test_tunes_are_those_of_the_data_set():
    assert json.loads(TUNES.read_text(encoding="utf-8")) == tunes_of_the_data_set(), (
        "run PYTHONPATH=. python tests/space/test_space.py"
    )


def test_midi_says_what_the_melody_says():
    score = Score.from_midi(to_midi(check_melody(MELODY)))
    assert read(to_midi(check_melody(MELODY))) == notes_of(MELODY)
    assert round(score.tempos[0].qpm) == 97
    assert score.tracks[0].program == 40
    assert score.tracks[0].name == "A tune"


melodies = st.integers(1, 5).flatmap(
    lambda bars: st.lists(
        st.tuples(st.integers(0, 16 * bars - 1), st.integers(1, 16), st.integers(0, 127)),
        min_size=1,
        unique_by=lambda note: note[0],
    ).map(
        lambda notes: {
            **MELODY,
            "bars": bars,
            **dict(zip(("start", "duration", "pitch"), map(list, zip(*notes, strict=True)), strict=True)),
        }
    )
)


@settings(max_examples=50)
@given(melodies, st.integers(0, 5))
def test_cutting_and_appending_are_inverse(melody, at):
    whole = check_melody(melody)
    head, tail = cut_bars(whole, 0, at), cut_bars(whole, at, 99)
    again = append(head, tail)
    assert again["bars"] == whole["bars"]
    edge = min(at, whole["bars"]) * steps_per_bar(whole)
    expected = [
        (start, min(duration, edge - start) if start < edge else duration, pitch)
        for start, duration, pitch in notes_of(whole)
    ]
    assert notes_of(again) == expected
    assert transpose(transpose(whole, 3), -3) == whole
    assert check_melody(whole) == whole


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (None, "is missing"),
        ("<script>", "is missing"),
        ({**MELODY, "pitch": []}, "all of one length"),
        ({**MELODY, "pitch": [], "start": [], "duration": []}, "has no notes"),
        ({**MELODY, "start": [-4, 4, 8, 16, 24]}, "a start must be a whole number from 0"),
        ({**MELODY, "start": [32, 4, 8, 16, 24]}, "a start must be a whole number from 0 to 31"),
        ({**MELODY, "pitch": [60, 62, 64, 67, 128]}, "a pitch must be a whole number from 0 to 127"),
        ({**MELODY, "pitch": [60, 62, 64, 67, math.nan]}, "a pitch"),
        ({**MELODY, "pitch": [60, 62, 64, 67, True]}, "a pitch"),
        ({**MELODY, "duration": [0, 4, 8, 8, 8]}, "a duration must be a whole number from 1"),
        ({**MELODY, "bars": 10**9}, "bars must be a whole number from 1 to 256"),
        ({**MELODY, "tempo": math.inf}, "tempo must be a number"),
        ({**MELODY, "tempo": "fast"}, "tempo must be a number"),
        ({**MELODY, "program": 128}, "program must be"),
        ({**MELODY, "steps_per_beat": 0}, "steps_per_beat must be"),
        ({**MELODY, "time_signature": "4/0"}, "time_signature"),
        ({**MELODY, "time_signature": "9" * 10**6}, "time_signature"),
        ({**MELODY, **{name: [1] * (MAX_NOTES + 1) for name in ("pitch", "start", "duration")}}, "is the most"),
    ],
)
def test_what_is_no_melody_is_refused_in_a_line(broken, message):
    with pytest.raises(RefusedError, match=message) as caught:
        check_melody(broken)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_text_of_strangers_becomes_one_short_line():
    assert clean_text("a\n\x00b\x1b[31m\u202ec\td") == "a b [31m c d"
    assert len(clean_text("x" * 10**6)) == 60


# Sound


def tuned_to(audio: np.ndarray, hertz: float) -> bool:
    """Whether the strongest frequency is a low multiple of one."""
    spectrum = np.abs(np.fft.rfft(audio[: sound.SAMPLE_RATE]))
    strongest = np.fft.rfftfreq(len(audio[: sound.SAMPLE_RATE]), 1 / sound.SAMPLE_RATE)[spectrum.argmax()]
    return min(abs(strongest / (multiple * hertz) - 1) for multiple in (0.25, 0.5, 1, 2, 3, 4, 5)) < 0.012


@pytest.mark.parametrize("way", ["samples", "oscillators"])
@pytest.mark.parametrize("instrument", sound.INSTRUMENTS, ids=lambda instrument: instrument["name"])
def test_every_instrument_plays_the_pitch(instrument, way, monkeypatch):
    monkeypatch.setattr(sampler, "is_available", lambda: way == "samples")
    for pitch in (57, 69, 80):
        melody = {**MELODY, "pitch": [pitch], "start": [0], "duration": [16], "program": instrument["program"]}
        audio = sound.play(sound.parts(check_melody(melody)))
        assert np.isfinite(audio).all()
        assert math.isclose(np.abs(audio).max(), sound.PEAK)
        assert abs(audio[-200:]).max() < 0.02
        # A music box has partials of its own, an organ octaves below, a clarinet uneven partials.
        assert instrument["program"] == 10 or tuned_to(audio, 440 * 2 ** ((pitch - 69) / 12)), pitch


def test_samples_are_there_for_all_instruments_of_the_page():
    samples = sampler.load_samples()
    assert set(samples) == {instrument["program"] for instrument in sound.INSTRUMENTS}
    for program, own in samples.items():
        audio, rate = sampler.load_sound(program)
        assert [sample["root"] for sample in own] == sorted(sample["root"] for sample in own)
        for sample in own:
            assert sample["at"] + sample["seconds"] <= len(audio) / rate
            if "loop" in sample:
                assert 0 <= sample["loop"][0] < sample["loop"][1] <= sample["seconds"]


def test_an_envelope_rises_falls_and_ends():
    sample = {"attack": 0.1, "decay": 2.0, "sustain": 0.1, "release": 0.3}
    level = sampler.envelope(sample, np.array([0.0, 0.05, 0.1, 0.5, 5.0, 5.3]), held=5.0)
    # 20 dB, a tenth, are 0.4 of the 2 seconds in which it falls by 100 dB; 60 dB are a thousandth.
    assert level == pytest.approx([0, 0.5, 1, 0.1, 0.1, 0.0001], abs=1e-9)


def test_wav_lasts_as_long_as_the_melody_and_has_the_chords():
    with wave.open(io.BytesIO(sound.to_wav(check_melody(MELODY)))) as file:
        seconds = file.getnframes() / file.getframerate()
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
    played = 32 * 60 / 97 / 4
    assert played < seconds < played + 2
    alone, under = sound.parts(check_melody(MELODY)), sound.parts(check_melody(MELODY), harmonize(check_melody(MELODY)))
    assert under[: len(alone)] == alone
    assert {note.program for note in under[len(alone) :]} == {sound.ACCOMPANIMENT_PROGRAM}
    with pytest.raises(RefusedError, match="lasts longer than 5 minutes"):
        sound.to_wav(check_melody({**MELODY, "bars": 256, "start": [0, 4, 8, 16, 4095], "tempo": 30}))


def test_a_program_gets_its_family():
    for find in (lambda program: sound.instrument_of(program)["program"], sampler.nearest_program):
        assert [find(program) for program in (73, 2, 41, 127)] == [73, 0, 40, 0]


# What the page opens with


def test_a_ranking_prefers_tunes_to_the_same_notes_in_disorder():
    """Each tune, held out, lies nearer than its own notes shuffled; the nearest of all comes first."""
    tunes = [cut_bars(tune, 0, 8) for tune in json.loads(TUNES.read_text(encoding="utf-8"))]
    shuffle = random.Random(0)
    disorder = [
        {
            **tune,
            "pitch": shuffle.sample(
                [pitch + shuffle.choice((-3, 0, 4)) for pitch in tune["pitch"]], len(tune["pitch"])
            ),
        }
        for tune in tunes
    ]
    rankings = [Ranking([other for other in tunes if other is not tune]) for tune in tunes]
    pairs = zip(rankings, tunes, disorder, strict=True)
    assert sum(ranking.distance(tune) < ranking.distance(other) for ranking, tune, other in pairs) > 0.95 * len(tunes)
    first = Ranking(tunes).best(disorder + tunes, 5)
    assert all(each in tunes for each in first)
    assert Ranking(tunes).distance({**tunes[0], "pitch": [], "start": [], "duration": []}) == math.inf


def test_the_page_opens_with_the_best_ranked_seeds(actions):
    opening = actions.opening(3)
    ranking = Ranking([cut_bars(tune, 0, 8) for tune in actions.tunes.values()])
    every = [actions.make(count=1, bars=8, seed=seed)[0] for seed in range(OPENING_SEEDS)]
    assert [each["origin"]["seed"] for each in opening] == [each["origin"]["seed"] for each in ranking.best(every, 3)]
    assert [each["title"] for each in opening] == ["Melody 1", "Melody 2", "Melody 3"]


# Actions


def test_the_same_seed_gives_the_same_melodies(actions):
    asked = {
        "count": 2,
        "bars": 3,
        "scale": "D minor",
        "time_signature": "3/4",
        "tempo": "fast",
        "voice": "alto",
        "seed": 5,
    }
    first = actions.make(**asked)
    actions._make.cache_clear()
    assert actions.make(**asked) == first
    assert [melody["title"] for melody in first] == ["Melody 1", "Melody 2"]
    origin = {**asked, "key": "any", "genre": "any", "temperature": 1.0, "pick": 2, "tab": "make"}
    assert first[1]["origin"] == origin
    for melody in first:
        assert (melody["bars"], melody["time_signature"], melody["tempo"]) == (3, "3/4", TEMPOS["fast"])
        assert {pitch % 12 for pitch in melody["pitch"]} <= {2, 4, 5, 7, 9, 10, 0}
        assert all(53 <= pitch <= 74 for pitch in melody["pitch"])
    assert [notes_of(each) for each in actions.make(**{**asked, "seed": 6})] != [notes_of(each) for each in first]


def test_what_is_asked_for_reaches_the_model(actions, monkeypatch):
    asked = {}
    make = type(actions.engine).__call__

    def watched(engine, action, **arguments):
        asked.update(arguments)
        return make(engine, action, **arguments)

    monkeypatch.setattr(type(actions.engine), "__call__", watched)
    wanted = {"key": "D minor", "tempo": 97, "attributes": {"contour": 1.5, "note_density": 0}}
    (melody,) = actions.make(count=1, bars=2, scale="A minor pentatonic", seed=4, **wanted)
    assert asked["conditions"] == {"key": "D minor", "tempo": "medium", "contour": 1.5}
    assert asked["constraints"] == {"scale": "A minor pentatonic"}
    assert melody["tempo"] == 97  # the tempo that is asked for is the melody's own
    assert melody["origin"]["contour"] == 1.5
    assert "note_density" not in melody["origin"]


def test_flats_and_sharps_are_one_scale(actions):
    assert (
        actions.make(count=1, bars=2, scale="Bb major", seed=3)[0]["pitch"]
        == actions.make(count=1, bars=2, scale="A# major", seed=3)[0]["pitch"]
    )


def test_blends_begin_and_end_with_what_was_given(actions):
    ends = [actions.tune(title) for title in ("Ode to Joy", "Frère Jacques", "Korobeiniki", "Yankee Doodle")]
    cut = [notes_of(cut_bars(end, 0, BARS)) for end in ends]
    path = actions.blend(ends[:2])
    assert len(path) == PATH_POINTS
    assert [notes_of(path[0]), notes_of(path[-1])] == cut[:2]
    square = actions.blend(ends)
    assert len(square) == GRID_SIDE**2
    corners = [square[place] for place in (0, GRID_SIDE - 1, GRID_SIDE * (GRID_SIDE - 1), GRID_SIDE**2 - 1)]
    assert [notes_of(corner) for corner in corners] == cut
    with pytest.raises(RefusedError, match="differ in meter"):
        actions.blend([ends[0], actions.tune("Greensleeves")])
    with pytest.raises(RefusedError, match="two melodies, or four"):
        actions.blend(ends[:3])


def test_what_is_kept_is_kept(actions):
    tune = cut_bars(actions.tune("Ode to Joy"), 0, 8)
    before = notes_of(tune)
    for made in actions.fill(tune, [2, 3], count=2, seed=1):
        assert made["bars"] == 8
        assert [note for note in notes_of(made) if not 16 <= note[0] < 48] == [
            note for note in before if not 16 <= note[0] < 48
        ]
    for made in actions.extend(tune, bars=5, count=2, seed=1):
        assert made["bars"] == 13
        assert notes_of(made)[: len(before)] == before
        assert all(start >= 128 for start, _, _ in notes_of(made)[len(before) :])
    whole = actions.tune("Minuet in G")  # longer than the model holds at once
    assert whole["bars"] > BARS
    (made,) = actions.extend(whole, bars=2, count=1)
    assert notes_of(made)[: len(whole["pitch"])] == notes_of(whole)
    assert made["bars"] == whole["bars"] + 2


def test_changes_go_through_the_latent(actions, monkeypatch):
    tune = cut_bars(actions.tune("Ode to Joy"), 0, 4)
    (at_rest,) = actions.change(tune)
    assert actions.change(tune, {ATTRIBUTES[0]: 0.0}) == [at_rest]
    model = actions.engine.composer.model
    asked = []

    def shift(latent, attribute, amount, bars):
        asked.append((attribute, amount, bars))
        return -latent

    monkeypatch.setattr(model, "shift", shift)
    (moved,) = actions.change(tune, {ATTRIBUTES[1]: -3.0, ATTRIBUTES[0]: 2.0, ATTRIBUTES[2]: 0.5})
    assert asked == [(ATTRIBUTES[1], -3.0, 4), (ATTRIBUTES[0], 2.0, 4), (ATTRIBUTES[2], 0.5, 4)]
    latent = actions.engine.composer._encode([tune])
    ids = model.decode(-latent, bars=4, time_signature="4/4")
    assert notes_of(moved) == notes_of(actions.engine.composer.processor.to_lines(ids)[0])
    assert len(actions.change(tune, similarity=0.5, count=3, seed=2)) == 3


def file_of(*tracks: types.Track) -> bytes:
    score = Score(480)
    score.time_signatures.append(TimeSignature(0, 4, 4))
    for track in tracks:
        score.tracks.append(track)
    return score.dumps_midi()


def tune_track(name: str, program: int = 0, is_drum: bool = False, high: int = 67) -> types.Track:
    track = Track(name, program, is_drum)
    for step in range(40):
        track.notes.append(Note(480 * step, 480, high + (5 * step) % 9, 100))
    return track


def test_every_track_is_offered_and_the_tune_comes_first(actions):
    chords = Track("Chords")
    for bar in range(10):
        for pitch in (40, 43, 47):
            chords.notes.append(Note(1920 * bar, 1920, pitch, 90))
    content = file_of(chords, tune_track("Drums", is_drum=True), tune_track("Sung\n<b>melody</b>", 53))
    found = actions.read_midi(base64.b64encode(content).decode())
    assert [track["name"] for track in found["tracks"]] == ["Chords", "Sung <b>melody</b>"]
    assert found["best"] == 1
    assert found["tracks"][1]["found"].startswith('the tune is track=2 "Sung <b>melody</b>" of 3 (lead score ')
    assert "bars 1 to 10" in found["tracks"][1]["found"]
    assert found["is_certain"] == (float(re.findall(r"lead score ([\d.]+)", found["tracks"][1]["found"])[0]) >= 0.8)
    assert check_melody(found["tracks"][1]["melody"])["program"] == 53
    assert notes_of(found["tracks"][1]["melody"]) == read(file_of(tune_track("alone")))


def zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(10**8))
    return buffer.getvalue()


def many_notes() -> bytes:
    """Write 10^6 notes in running status: three bytes for each event, and none for its time."""
    events = b"\x00\x90" + b"\x3c\x40\x00\x3c\x00\x00" * 340_000 + b"\x3c\x40\x00\xff\x2f\x00"
    return b"MThd" + bytes([0, 0, 0, 6, 0, 0, 0, 1, 1, 224]) + b"MTrk" + len(events).to_bytes(4, "big") + events


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a MIDI file"),
        (zip_bomb(), "not a MIDI file"),
        (b"<html><script>alert(1)</script>", "not a MIDI file"),
        (b"MThd" + bytes(range(256)), "damaged|No tune"),
        (b"MThd" + b"\xff" * 1000, "damaged|No tune"),
        (file_of(tune_track("Melody"))[:40], "damaged|No tune"),
        (file_of(tune_track("Drums", is_drum=True)), "No tune to be found"),
        (many_notes(), "at most 2 MB|notes"),
        (bytes(MAX_FILE_BYTES + 1), "at most 2 MB"),
    ],
    ids=["empty", "zip bomb", "web page", "noise", "ones", "cut off", "drums", "a million events", "too large"],
)
def test_hostile_files_get_one_line(actions, content, message):
    with pytest.raises(RefusedError, match=message) as caught:
        actions.read_midi_bytes(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"count": 10**9}, "count must be a whole number from 1 to 8"),
        ({"count": -1}, "count must be"),
        ({"count": 1.5}, "count must be"),
        ({"bars": 10**9}, "bars must be a whole number from 1 to 32"),
        ({"temperature": math.nan}, "temperature must be a number"),
        ({"temperature": 0}, "temperature must be a number from 0.1"),
        ({"seed": -1}, "seed must be"),
        ({"seed": "<script>"}, "seed must be a whole number .* not <script>"),
        ({"scale": "H major"}, "unknown scale H major"),
        ({"scale": "C " + "x" * 10**6}, "unknown scale"),
        ({"time_signature": "99/4"}, "unknown time_signature 99/4"),
        ({"key": "D dorian"}, "unknown key D dorian: .* modes: major, minor"),
        ({"tempo": 10**9}, "tempo must be a number from 30 to 300"),
        ({"attributes": {"mood": 1}}, "unknown attribute mood"),
        ({"attributes": {"contour": 9}}, "contour must be a number from -3 to 3"),
        ({"genre": {"a": 1}}, "unknown genre"),
        ({"tempo": ["fast"]}, "unknown tempo"),
        ({"voice": "__class__"}, "unknown voice"),
    ],
)
def test_absurd_wishes_are_refused(actions, asked, message):
    with pytest.raises(RefusedError, match=message):
        actions.make(**asked)


def test_absurd_changes_are_refused(actions):
    for asked, message in (
        ({"amounts": {"charm": 1}}, "unknown attribute charm"),
        ({"amounts": {ATTRIBUTES[0]: 1e9}}, "from -3 to 3"),
        ({"amounts": [1]}, "amounts must name"),
        ({"similarity": 2}, "similarity must be"),
    ):
        with pytest.raises(RefusedError, match=message):
            actions.change(MELODY, **asked)
    with pytest.raises(RefusedError, match="Choose at least one bar"):
        actions.fill(MELODY, [])
    with pytest.raises(RefusedError, match="a bar must be a whole number from 1 to 2"):
        actions.fill(MELODY, [3])
    with pytest.raises(RefusedError, match="this model reads"):
        actions.extend({**MELODY, "time_signature": "13/4"})
    with pytest.raises(RefusedError, match="steps_per_beat=4"):
        actions.extend({**MELODY, "steps_per_beat": 12})


def test_originality_is_told_where_there_is_an_index(actions, monkeypatch):
    made, own = ROOT / "metrics/originality/originality_index.py", ROOT / "space/originality_index.py"
    assert own.read_text(encoding="utf-8") == made.read_text(encoding="utf-8"), f"copy {made} to {own}"
    assert actions.index is None
    assert "originality" not in actions.make(count=1, bars=4, seed=1)[0]
    tune = cut_bars(actions.tune("Ode to Joy"), 0, 8)
    index = OriginalityIndex.build([{**transpose(tune, 5), "melody_id": "ode"}])
    assert judge(index, tune).startswith("5 of 5 spans of 4 bars are in")
    assert judge(index, cut_bars(actions.tune("Korobeiniki"), 0, 8)).startswith("No 4 bars in common")
    monkeypatch.setattr(actions, "index", index)
    actions._make.cache_clear()
    assert "training melodies" in actions.fill(tune, [8], count=1)[0]["originality"]


# The listening test


def test_a_vote_is_kept_once_and_the_secret_until_then(model_folder, tmp_path):
    actions = Actions(InProcess(model_folder), tmp_path)
    pair = actions.listening_pair()
    assert set(pair) == {"pair", "a", "b"}
    assert pair["a"].keys() == pair["b"].keys()
    assert [pair[side]["title"] for side in "ab"] == ["Melody A", "Melody B"]
    for column in ("time_signature", "bars", "tempo", "program", "steps_per_beat"):
        assert pair["a"][column] == pair["b"][column]
    judged = actions.listening_vote(pair["pair"], "a")
    assert judged["is_right"] == (judged["person_is"] == "a")
    with pytest.raises(RefusedError, match="voted on"):
        actions.listening_vote(pair["pair"], "b")
    with pytest.raises(RefusedError, match="Choose a or b"):
        actions.listening_vote(pair["pair"], "c")
    (file,) = tmp_path.iterdir()
    (vote,) = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert vote["tune"] == judged["tune"]
    assert (vote["choice"], vote["is_right"]) == ("a", judged["is_right"])
    person = actions.tunes[vote["tune"]]
    written = pair[vote["person_is"]]
    assert notes_of(written) == notes_of(transpose(cut_bars(person, 0, 8), vote["transposed_semitones"]))


def test_person_and_model_change_sides(tmp_path):
    tune = {**MELODY, "bars": 8}
    test = ListeningTest([tune], lambda bars, meter, tempo, seed: tune, Ballot(tmp_path), "model")
    for _ in range(40):
        test.pair()
    assert {secret["person_is"] for secret in test.pending.values()} == {"a", "b"}
    for _ in range(MAX_PENDING):
        test.pair()
    assert len(test.pending) == MAX_PENDING  # what nobody votes on does not pile up


def test_votes_of_many_are_whole_lines(tmp_path):
    ballot = Ballot(tmp_path)
    with ThreadPoolExecutor(7) as pool:
        list(pool.map(lambda number: ballot.write({"number": number, "text": "x" * 500}), range(101)))
    votes = [json.loads(line) for line in ballot.file.read_text(encoding="utf-8").splitlines()]
    assert sorted(vote["number"] for vote in votes) == list(range(101))


def test_votes_say_no_path_and_their_file_is_bounded(model_folder, tmp_path, monkeypatch):
    actions = Actions(InProcess(model_folder), tmp_path)
    monkeypatch.setattr(listening, "MAX_FILE_BYTES", 1500)
    for _ in range(30):
        actions.listening_vote(actions.listening_pair()["pair"], "a")
    (file,) = tmp_path.iterdir()
    votes = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert 1 < len(votes) < 30
    assert file.stat().st_size <= 1500
    assert {vote["model"] for vote in votes} == {model_folder.name}
    assert str(model_folder.parent) not in file.read_text(encoding="utf-8")


# What strangers send


def test_a_refusal_is_text_in_a_toast():
    def refuse():
        raise RefusedError("unknown scale <img src=x onerror=alert(1)> & 'more'")

    with pytest.raises(gr.Error) as caught:
        interface.friendly(refuse)()
    assert html.unescape(caught.value.message) == "unknown scale <img src=x onerror=alert(1)> & 'more'"
    assert not set("<>") & set(caught.value.message)


def test_too_few_arguments_get_a_line():
    add = SimpleNamespace(api_name="add", inputs=["one", "two"])
    interface.Page.validate_inputs(None, add, [1, 2])
    with pytest.raises(gr.Error, match=r"add takes 2 arguments, not 1; see the API's description"):
        interface.Page.validate_inputs(None, add, [1])


def build_page(actions) -> gr.Blocks:
    async def build() -> gr.Blocks:
        return interface.Interface(actions, workers=2).build()

    return asyncio.run(build())  # gradio would leave a loop of its own open


def test_a_visit_is_described_as_gradio_does_and_keeps_its_values_to_itself(actions):
    page = build_page(actions)
    plain = {number: BlocksConfig.config_for_block(number, [], block) for number, block in page.blocks.items()}
    one, other = SessionState(page), SessionState(page)
    assert one.config_values == other.config_values == plain
    number = next(number for number, block in page.blocks.items() if isinstance(block, gr.Slider))
    one._update_value_in_config(number, "own")
    assert one.config_values[number]["props"]["value"] == "own"
    one[number] = gr.Slider(0, 3, render=False)
    one._update_config(number)
    assert one.config_values[number]["props"]["maximum"] == 3
    assert other.config_values == SessionState(page).config_values == plain


def test_what_needs_the_model_waits_in_one_line(actions):
    """In the engine's, in the order in which people came: not in several, of which one might stand still."""
    page = build_page(actions)
    names = ("make", "change", "blend", "extend", "fill", "listening_pair")
    lines = {(each.concurrency_id, each.concurrency_limit) for each in page.fns.values() if each.api_name in names}
    assert lines == {("model", 2 * interface.PEOPLE_PER_WORKER)}


def test_sound_that_would_take_hours_is_refused_before_it_is_begun(actions, monkeypatch):
    monkeypatch.setattr(actions.engine.composer, "wav", lambda **_: pytest.fail("it was begun"))
    notes = 4096
    melody = {**MELODY, "bars": 256, "pitch": [60] * notes, "start": [0] * notes, "duration": [4096] * notes}
    with pytest.raises(RefusedError, match="sound for more than 900 seconds"):
        actions.wav(melody)


@pytest.mark.parametrize(("written", "played"), [(10, 30), (29.5, 30), (90, 90), (299, 299), (500, 300)])
def test_a_files_tempo_is_brought_within_what_is_played(actions, written, played):
    score = Score.from_midi(file_of(tune_track("Melody")))
    score.tempos.clear()
    score.tempos.append(Tempo(0, qpm=written))
    read_back = actions.read_midi_bytes(score.dumps_midi())
    assert read_back["tracks"][read_back["best"]]["melody"]["tempo"] == pytest.approx(played, abs=0.1)


# The Space as a process


@pytest.mark.parametrize("is_of_model", [False, True])
def test_links_that_git_wrote_as_text_are_named_in_a_line(tmp_path, is_of_model):
    shutil.copytree(ROOT / "space", tmp_path / "space")
    (tmp_path / "model").mkdir()
    link = tmp_path / ("model/modeling.py" if is_of_model else "space/originality_index.py")
    link.write_text("../../metrics/originality/originality_index.py", encoding="utf-8")
    result = subprocess.run(
        [sys.executable, str(tmp_path / "space" / "app.py")],
        env={**os.environ, "MODEL_ID": str(tmp_path / "model")},
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE_SECONDS,
    )
    assert result.returncode == 2
    assert re.fullmatch(rf"{re.escape(str(link))}: a link that git wrote as text; run .*\n", result.stderr)


@pytest.mark.slow
def test_a_model_that_is_not_there_is_named_in_a_line(tmp_path):
    result = subprocess.run(
        [sys.executable, str(ROOT / "space/app.py")],
        env={**os.environ, "MODEL_ID": str(tmp_path / "none"), "WORKERS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE_SECONDS,
    )
    assert result.returncode == 2
    assert f"MODEL_ID={tmp_path / 'none'} cannot be loaded" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def space(model_folder, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("space") / "run"
    with running_space(model_folder, folder, workers=2) as (url, _):
        yield url, folder


def connect(url: str):
    from gradio_client import Client

    return Client(url, verbose=False)


@pytest.mark.compatibility
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_action_is_an_endpoint(space):
    client = connect(space[0])
    schema: Any = client.view_api(return_format="dict")
    endpoints = schema["named_endpoints"]
    names = {"make", "change", "blend", "extend", "fill", "read_midi", "tune", "harmonize", "midi", "wav", "sheet"}
    names |= {"put_back", "about", "listening_pair", "listening_vote"}
    assert {f"/{name}" for name in names} == set(endpoints)
    dorian = client.predict(count=2, bars=4, scale="D dorian", seed=7, api_name="/make")
    assert {pitch % 12 for melody in dorian for pitch in melody["pitch"]} <= {2, 4, 5, 7, 9, 11, 0}
    tune = client.predict(title="Greensleeves", api_name="/tune")
    (changed,) = client.predict(melody=tune, amounts={ATTRIBUTES[0]: 1.5}, api_name="/change")
    assert changed["time_signature"] == "6/8"
    path = client.predict(melodies=dorian, api_name="/blend")
    assert notes_of(path[0]) == notes_of(dorian[0])
    longer = client.predict(melody=dorian[0], bars=4, seed=1, api_name="/extend")
    assert longer[0]["bars"] == 8
    filled = client.predict(melody=dorian[0], bars=[3, 4], seed=1, api_name="/fill")
    assert filled[0]["bars"] == 4
    file = client.predict(melody=path[4], api_name="/midi")
    assert read(base64.b64decode(file["base64"])) == notes_of(path[4])
    assert base64.b64decode(client.predict(melody=tune, api_name="/wav")["base64"])[:4] == b"RIFF"
    assert client.predict(api_name="/about")["max_bars"] == BARS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_strangers_at_the_api_get_a_line_and_leave_nothing(space):
    import httpx

    url, folder = space
    client = connect(url)
    for asked, name, message in (
        ({"count": 10**9}, "/make", "count must be"),
        (
            {"melody": {"pitch": [1], "start": [-1], "duration": [1], "bars": 1}},
            "/midi",
            "time_signature|a start must be",
        ),
        ({"midi_base64": "!!"}, "/read_midi", "not base64"),
        ({"midi_base64": base64.b64encode(b"PK\x03\x04" * 1000).decode()}, "/read_midi", "not a MIDI file"),
    ):
        with pytest.raises(Exception, match=message):
            client.predict(**asked, api_name=name)
    event = httpx.post(f"{url}/gradio_api/call/make", json={"data": [1]}, timeout=PATIENCE_SECONDS).json()["event_id"]
    assert (
        "make takes 11 arguments, not 1"
        in httpx.get(f"{url}/gradio_api/call/make/{event}", timeout=PATIENCE_SECONDS).text
    )
    answer = httpx.post(
        f"{url}/gradio_api/upload", files={"files": ("big.mid", bytes(100 * 2**20))}, timeout=PATIENCE_SECONDS
    )
    assert answer.status_code == 413
    for path in ("/etc/passwd", str(ROOT / "pyproject.toml"), str(ROOT / "space/app.py"), str(folder / "log.txt")):
        assert httpx.get(f"{url}/gradio_api/file={path}").status_code in (403, 404)
    assert "Traceback" not in (folder / "log.txt").read_text(encoding="utf-8")
    left = [file for file in (folder / "gradio").rglob("*") if file.is_file() and file.stat().st_size > MAX_FILE_BYTES]
    assert left == []


@pytest.mark.slow
def test_actions_are_mcp_tools(space):
    import httpx

    headers = {"Accept": "application/json, text/event-stream"}
    request = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    answer = httpx.post(f"{space[0]}/gradio_api/mcp/", json=request, headers=headers, timeout=PATIENCE_SECONDS)
    assert answer.status_code == 200
    data = next(line for line in answer.text.splitlines() if line.startswith(("data:", "{"))).removeprefix("data:")
    tools = {
        tool["name"].split("_", 1)[-1] if "space" in tool["name"] else tool["name"]: tool
        for tool in json.loads(data)["result"]["tools"]
    }
    make = next(tool for name, tool in tools.items() if name.endswith("make"))
    assert "Sample new melodies" in make["description"]
    assert "temperature" in make["inputSchema"]["properties"]


if __name__ == "__main__":
    lines = [json.dumps(tune, ensure_ascii=False) for tune in tunes_of_the_data_set()]
    TUNES.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def test_tempos_are_those_of_the_models_classes():
    assert {name: tempo for name, tempo in TEMPOS.items() if name != ANY} == {
        name: tempo for name, (_, _, tempo) in TEMPO_CLASSES.items()
    }
    assert TEMPOS[ANY] == TEMPOS["medium"]
    assert all(tempo_class(tempo) == model_class(tempo) for tempo in range(30, 300))
