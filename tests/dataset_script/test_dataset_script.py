"""The data set builder: what a melody line is, what is left out and why, and what lies on disk in the end."""

import errno
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_script import chunks, configs, features, line_quality
from dataset_script.build import main, unfinished_build
from dataset_script.chunks import lines_table, process_all
from dataset_script.extraction import extract_lines
from dataset_script.lead_score import read_weights
from dataset_script.midi_notes import UnreadableMidiError, canonical_time_signature, drop_ornaments, read_notes
from dataset_script.midi_sources import TOO_LARGE, Fault, open_sources
from dataset_script.parquet_files import split_of
from dataset_script.schema import FEATURES, SPLITS
from dataset_script.windows import section_notes, window_rows, windows
from tests.builders.midi_files import (
    BROKEN,
    TPQ,
    all_lines,
    all_rows,
    corpus,
    midi_bytes,
    tune,
    write_archive,
    write_folder,
    write_score,
)
from training.checkpoints import only_run

pytestmark = pytest.mark.usefixtures("without_histograms")


def rows(midi, steps_per_beat=4):
    """Return the melody lines of one file, without what only the whole data set determines."""
    lines = extract_lines([read_notes(midi, steps_per_beat)], steps_per_beat)
    return lines_table(lines, ["0" * 32], steps_per_beat).to_pylist()


def notes_of(row):
    return list(zip(row["start"], row["duration"], row["pitch"], strict=True))


STEP = TPQ // 4

steps = st.lists(
    st.tuples(st.integers(1, 7), st.integers(0, 3), st.integers(21, 108)), min_size=40, max_size=60
).filter(lambda notes: len({pitch for *_, pitch in notes}) >= 3)
"""Melodies as (duration, rest after it, pitch), in sixteenths: 10 quarters or more without a bar of silence."""


def timed(melody, first=0):
    time, notes = first, []
    for duration, rest, pitch in melody:
        notes.append((time, duration, pitch))
        time += duration + rest
    return notes


@settings(max_examples=60)
@given(melody=steps, first=st.integers(0, 15), bars_before=st.integers(0, 3))
def test_round_trip(melody, first, bars_before):
    notes = timed(melody, first)
    if notes[-1][0] + notes[-1][1] <= 48:
        melody[-1] = (100, 0, melody[-1][2])
        notes = timed(melody, first)
    played = [(16 * bars_before * STEP + start * STEP, length * STEP, pitch) for start, length, pitch in notes]
    (row,) = rows(midi_bytes([played]))
    assert notes_of(row) == notes
    assert row["bars"] == -(-(notes[-1][0] + notes[-1][1]) // 16)
    assert row["melody_id"] == f"{'0' * 32}:0:{bars_before}"
    again = write_score([[(start * STEP, length * STEP, pitch) for start, length, pitch in notes_of(row)]])
    assert notes_of(rows(again)[0]) == notes


@settings(max_examples=40)
@given(
    notes=st.lists(
        st.tuples(st.integers(0, 8000), st.integers(1, 900), st.integers(40, 80)), min_size=1, max_size=90, unique=True
    ),
    shift=st.integers(-12, 12),
)
def test_extraction_commutes_with_transposition(notes, shift):
    def extract(by):
        return rows(write_score([[(start, length, pitch + by) for start, length, pitch in notes]]))

    moved, plain = extract(shift), extract(0)
    assert [(row["start"], row["duration"], row["bars"]) for row in moved] == [
        (row["start"], row["duration"], row["bars"]) for row in plain
    ]
    assert [row["pitch"] for row in moved] == [[pitch + shift for pitch in row["pitch"]] for row in plain]
    assert [row["complexity"] for row in moved] == [row["complexity"] for row in plain]


@settings(max_examples=40)
@given(notes=st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 900), st.integers(0, 127)), max_size=90))
def test_lines_are_monophonic_and_long_enough(notes):
    score = write_score([notes, tune(5, low=48)], signatures=[(0, 4, 4), (3000, 6, 8), (5000, 5, 4)])
    for row in rows(score):
        start, duration, pitch = (np.array(row[name]) for name in ("start", "duration", "pitch"))
        assert (duration >= 1).all()
        assert (start[1:] >= (start + duration)[:-1]).all()
        assert row["bars"] >= 4
        assert len(set(pitch)) >= 3
        assert 21 <= pitch.min() <= pitch.max() <= 108
        assert 0 <= start[0] < {"4/4": 16, "6/8": 24, "5/4": 20}[row["time_signature"]]


def test_grid_of_six_eight():
    eighth = TPQ // 2
    score = write_score([[(index * eighth, eighth, 60 + index % 5) for index in range(24)]], signatures=[(0, 6, 8)])
    (row,) = rows(score)
    assert (row["time_signature"], row["bars"]) == ("6/8", 4)
    assert row["start"] == [4 * index for index in range(24)]
    assert row["duration"] == [4] * 24


def test_grid_of_two_two_is_that_of_four_four():
    (row,) = rows(write_score([tune()], signatures=[(0, 2, 2)]))
    (same,) = rows(write_score([tune()]))
    assert row == same
    assert row["start"][:3] == [0, 2, 4]


@pytest.mark.parametrize(
    ("written", "read"),
    [((3, 2), (6, 4)), ((2, 1), (8, 4)), ((6, 16), (3, 8)), ((5, 16), (5, 16)), ((12, 32), (3, 8)), ((7, 8), (7, 8))],
)
def test_canonical_time_signature(written, read):
    assert canonical_time_signature(*written) == read


def test_halves_are_rounded_up_and_triplets_kept_on_a_fine_grid():
    triplets = [(index * TPQ // 3, TPQ // 3, 60 + index % 4) for index in range(48)]
    assert rows(write_score([triplets]), 12)[0]["start"] == [4 * index for index in range(48)]
    late = [(start + STEP // 2, length, pitch) for start, length, pitch in tune()]
    early = [(start + STEP // 2 - 1, length, pitch) for start, length, pitch in tune()]
    assert rows(write_score([late]))[0]["start"] == [2 * index + 1 for index in range(32)]
    assert rows(write_score([early]))[0]["start"] == [2 * index for index in range(32)]


def test_a_bar_of_silence_does_not_split_and_more_does():
    def with_silence(ticks):
        return rows(write_score([tune(4) + tune(4, seed=1, begin=16 * TPQ + ticks)]))

    assert [row["bars"] for row in with_silence(4 * TPQ)] == [9]
    halves = with_silence(4 * TPQ + STEP)
    assert [(row["bars"], row["start"][0]) for row in halves] == [(4, 0), (5, 1)]
    assert [row["melody_id"].split(":")[2] for row in halves] == ["0", "5"]


def test_time_signature_splits_and_bars_count_from_it():
    # 4/4 for four bars and a half, then 3/4: the half bar counts as a bar, and a note held over the change ends there.
    first, change = tune(4), 18 * TPQ
    held = [(16 * TPQ, 4 * TPQ, 67)]
    second = [(start + change, length, pitch) for start, length, pitch in tune(4, seed=3, bar_ticks=3 * TPQ)]
    four, three = rows(write_score([first + held + second], signatures=[(0, 4, 4), (change, 3, 4)]))
    assert (four["time_signature"], four["bars"], four["duration"][-1]) == ("4/4", 5, 8)
    assert (three["time_signature"], three["bars"], three["start"][0]) == ("3/4", 4, 0)
    assert three["melody_id"].endswith(":0:5")


def test_a_time_signature_stated_again_on_a_bar_line_changes_nothing():
    again = rows(write_score([tune(8)], signatures=[(0, 4, 4), (16 * TPQ, 4, 4)]))
    assert again == rows(write_score([tune(8)]))
    inside_a_bar = rows(write_score([tune(8)], signatures=[(0, 4, 4), (18 * TPQ, 4, 4)]))
    assert [row["bars"] for row in inside_a_bar] == [5, 4]


def test_an_onset_nearest_to_a_change_belongs_to_the_new_time_signature():
    notes = tune(4) + [(start + 16 * TPQ - 3, length, pitch) for start, length, pitch in tune(4, bar_ticks=3 * TPQ)]
    four, three = rows(write_score([notes], signatures=[(0, 4, 4), (16 * TPQ, 3, 4)]))
    assert (len(four["pitch"]), len(three["pitch"])) == (32, 24)
    assert three["start"] == [2 * index for index in range(24)]


def test_without_time_signature_and_tempo():
    (row,) = rows(write_score([tune()], signatures=(), tempos=()))
    assert (row["time_signature"], row["tempo"], row["bars"]) == ("4/4", 120.0, 4)


def test_tempo_is_that_of_the_first_note():
    score = write_score([tune(4) + tune(4, begin=32 * TPQ)], tempos=[(0, 100), (20 * TPQ, 50), (40 * TPQ, 200)])
    assert [round(row["tempo"]) for row in rows(score)] == [100, 50]


def test_skyline_keeps_the_highest_and_cuts_at_the_next_onset():
    notes = [*tune(4), (0, 4 * TPQ, 84), (TPQ, TPQ, 40)]
    (row,) = rows(write_score([notes]))
    assert row["pitch"][0] == 84
    assert row["duration"][0] == 2
    assert 40 not in row["pitch"]
    assert row["start"] == [2 * index for index in range(32)]


def test_chords_are_dropped_beyond_half():
    melody = tune(4)
    second = [(start, length, pitch - 5) for start, length, pitch in melody]
    third = [(0, TPQ, 30)]
    assert len(rows(write_score([melody + second]))) == 1
    lines = extract_lines([read_notes(write_score([melody + second + third, tune(4, seed=2)]), 4)], 4)
    assert lines.tracks == {"melody": 1, "chords": 1, "doubles another": 0, "no line left": 0}
    assert lines.track.tolist() == [1]


def test_the_top_voice_of_chords_is_a_line_where_nothing_else_is_likelier_to_be_the_tune():
    melody = tune(8)
    chords = melody + [(start, length, pitch - by) for start, length, pitch in melody for by in (5, 9)]
    low = [(16 * bar * TPQ // 4, 4 * TPQ, 36 + 5 * (bar % 2)) for bar in range(8)]
    (row,) = rows(write_score([sorted(chords), low]))
    assert row["pitch"] == [pitch for *_, pitch in melody]


def test_a_voice_doubled_in_another_track_counts_once():
    melody = tune(8)
    octave = [(start, length // 2, pitch - 12) for start, length, pitch in melody]
    found = rows(write_score([melody, octave, tune(8, seed=3)]))
    assert len({row["track"] for row in found}) == 2
    different = [
        (start, length, pitch - 12 + (number % 4 == 0)) for number, (start, length, pitch) in enumerate(melody)
    ]
    assert len({row["track"] for row in rows(write_score([melody, different, tune(8, seed=3)]))}) == 3


def test_an_ornament_does_not_take_the_step_of_its_note():
    plain = tune(8)

    def played(grace_ticks):
        pairs = [((at, grace_ticks, pitch + 1), (at + 7, length - 7, pitch)) for at, length, pitch in plain]
        return rows(write_score([[note for pair in pairs for note in pair]]))[0]["pitch"]

    assert played(7) == [pitch for *_, pitch in plain]
    assert played(30) == [pitch + 1 for *_, pitch in plain]  # they overlap: a strummed chord


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(1, 13)), min_size=1, max_size=13))
def test_ornaments_are_what_their_definition_says(played):
    played.sort(key=lambda one: one[0])
    begin, length = (np.array(values) for values in zip(*played, strict=True))
    end = begin + length
    stays = [
        one
        for one, _ in enumerate(played)
        if not any(
            length[other] > length[one] or (length[other] == length[one] and begin[other] < begin[one])
            for other, _ in enumerate(played)
            if end[other] <= begin[one] or end[one] <= begin[other]
        )
    ]
    notes = np.arange(len(played))
    assert notes[: drop_ornaments(notes, begin, end, 0, len(played))].tolist() == stays


def test_many_ornaments_take_no_longer_than_as_many_notes():
    begin = np.arange(300_000)
    notes, end = begin.copy(), begin + 1
    drop_ornaments(notes[:2], begin[:2], end[:2], 0, 2)  # compile
    began = time.perf_counter()
    assert drop_ornaments(notes, begin.copy(), end, 0, len(notes)) == 1
    assert time.perf_counter() - began < 5  # pair by pair it would be minutes


def test_grid_fit_is_the_mean_cosine_of_the_phases():
    def fit(*late_ticks):
        late = np.resize(late_ticks, len(tune(8))).tolist()
        notes = [(at + by, length, pitch) for by, (at, length, pitch) in zip(late, tune(8), strict=True)]
        return rows(write_score([notes]))[0]["grid_fit"]

    assert fit(0) == 1
    assert fit(0, 0, 0, 15) == 0.5  # half a step of 30 ticks: the other side of the circle
    assert fit(0, 15) == 0
    assert fit(0, 10, 20) < 0.1  # anywhere


@pytest.mark.parametrize("channels", [8, 1], ids=["MPE", "a change of program"])
def test_parts_that_complement_each_other_are_one_voice(channels):
    pitches = [60, 62, 64, 65, 67, 65, 64, 62] * 8
    notes = []
    for place, pitch in enumerate(pitches):
        if channels == 1 and place % 32 == 0:
            notes.append(bytes([0, 0xC0, 73 if place else 71]))
        channel = place % channels
        notes += [bytes([0, 0x90 | channel, pitch, 90]), bytes([120, 0x80 | channel, pitch, 0])]
    body = b"".join(notes) + b"\0\xff\x2f\0"
    header = b"MThd\0\0\0\6\0\0\0\1" + TPQ.to_bytes(2, "big")
    (row,) = rows(header + b"MTrk" + len(body).to_bytes(4, "big") + body)
    assert row["pitch"] == pitches


def test_drums_never():
    with pytest.raises(UnreadableMidiError, match="only drums"):
        read_notes(midi_bytes([{"notes": tune(), "is_drum": True}]), 4)
    both = midi_bytes([{"notes": tune(), "is_drum": True}, {"notes": tune(seed=1), "is_drum": False}])
    pitches = [row["pitch"] for row in rows(both)]
    assert pitches == [[pitch for *_, pitch in tune(seed=1)]]


@pytest.mark.parametrize(
    ("notes", "reason"),
    [
        (tune(3), "shorter than 4 bars"),
        ([*tune(4)[:-1], (16 * TPQ - TPQ // 2, TPQ // 2, 109)], "pitch outside 21-108"),
        ([*tune(4)[:-1], (16 * TPQ - TPQ // 2, TPQ // 2, 20)], "pitch outside 21-108"),
        ([(start, length, 60 + index % 2) for index, (start, length, _) in enumerate(tune())], "fewer than 3 pitches"),
    ],
)
def test_lines_dropped_by_reason(notes, reason):
    lines = extract_lines([read_notes(write_score([notes]), 4)], 4)
    assert +lines.dropped == {reason: 1}
    assert len(lines.bars) == 0


def test_lead_is_one_track_of_each_file_and_named_tunes_win():
    floor = read_weights()["floor"]
    assert 0.5 < floor < 1

    def leads(*names):
        tracks = [{"notes": tune(8, seed=number), "name": name} for number, name in enumerate(names)]
        found = rows(write_score(tracks))
        best = max(row["lead_score"] for row in found)
        for row in found:
            assert row["is_lead"] == (row["lead_score"] == best >= floor)
        return [row["lead_score"] == best for row in found]

    assert leads("", "Melody", "") == [False, True, False]
    assert leads("bass", "strings", "") == [False, False, True]
    low = [(start, length, pitch - 30) for start, length, pitch in tune(8)]
    scores = {row["track"]: row["lead_score"] for row in rows(write_score([low, tune(8)]))}
    assert 0 <= scores[0] < scores[1] <= 1


def test_batches_give_the_same_lines_as_single_files():
    scores = [
        write_score([tune(5), tune(6, seed=1)], signatures=[(0, 4, 4), (8 * TPQ, 3, 4)]),
        write_score([tune(3)]),
        write_score([{"notes": tune(7, seed=2), "program": 73}], tempos=[(0, 90), (TPQ, 70)]),
    ]
    files = [read_notes(score, 4) for score in scores]
    together = lines_table(extract_lines(files, 4), ["0" * 32] * 3, 4).to_pylist()
    assert together == [row for score in scores for row in rows(score)]


def test_key_of_scales_and_of_nothing():
    def key(pitches):
        pitches = np.array(pitches)
        name, confidence = features.keys(pitches, np.ones(len(pitches)), np.array([0, len(pitches)]))
        return features.KEY_NAMES[name[0]], confidence[0]

    major = [60, 62, 64, 65, 67, 69, 71, 60, 67, 64]
    minor = [57, 59, 60, 62, 64, 65, 67, 57, 64, 60]
    assert key(major)[0] == "C major"
    assert key([pitch + 7 for pitch in major])[0] == "G major"
    assert key([pitch + 2 for pitch in minor])[0] == "B minor"
    assert key(major)[1] > 0.8
    assert key(range(60, 72))[1] == 0


def test_complexity_rises_with_each_of_its_terms():
    def complexity(pitch, start, quarters=16.0):
        offsets = np.array([0, len(pitch)])
        return features.complexities(np.array(pitch), np.array(start), offsets, np.array([quarters]), 4)[0]

    even, still = list(range(0, 64, 4)), [60] * 16
    plain = complexity(still, even)
    assert plain == pytest.approx(1 / (1 + features.DENSITY_HALF) / 3)
    assert complexity(still * 2, list(range(0, 64, 2))) > plain
    assert complexity([60, 62] * 8, even) > plain
    assert complexity([60, 62, 65, 61] * 4, even) > complexity([60, 62] * 8, even)
    assert complexity(still, [0, 3, *even[2:]]) > plain


def test_splits_are_80_10_10():
    names = [hashlib.md5(str(number).encode()).hexdigest() for number in range(5000)]
    counts = [sum(split_of(name) == split for name in names) for split in SPLITS]
    assert np.allclose(np.array(counts) / 5000, [0.8, 0.1, 0.1], atol=0.02)


# --- the whole command -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    source = write_folder(folder / "midi", corpus())
    md5 = hashlib.md5(corpus()["5/00.mid"]).hexdigest()
    metadata = folder / "metadata.csv"
    metadata.write_text(
        f"md5,artist,topmagd,masd,tagtraum\n{md5},Nobody,,Folk_Old,Folk\n{'0' * 32},Nobody,Rock,,\n", encoding="utf-8"
    )
    assert main(["--input", str(source), "--output", str(folder / "out"), "--metadata", str(metadata)]) == 0
    return folder


def data_files(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "data").iterdir())}


def test_columns_and_types(built):
    expected = {
        "melody_id": "string",
        "md5": "string",
        "track": "int16",
        "program": "uint8",
        "lead_score": "float",
        "is_lead": "bool",
        "time_signature": "string",
        "tempo": "float",
        "key": "string",
        "key_confidence": "float",
        "genre": "string",
        "bars": "uint16",
        "pitch": "list<uint8>",
        "start": "list<int32>",
        "duration": "list<uint16>",
        "steps_per_beat": "uint8",
        "complexity": "float",
        "group": "string",
        "grid_fit": "float",
        "file_grid_fit": "float",
        "has_time_signature": "bool",
        "silence": "float",
        "distinct_bars": "float",
        "repeated_pitches": "float",
        "arpeggio": "float",
        "quality": "float",
        "title": "string",
        "artist": "string",
        "msd_id": "string",
    }
    for path in sorted((built / "out" / "data").iterdir()):
        schema = pq.read_schema(path)
        found = {field.name: str(field.type) for field in schema}
        assert {name: kind.replace("item: ", "").replace("element: ", "") for name, kind in found.items()} == expected


def test_rows_are_sound(built):
    splits = all_rows(built / "out")
    assert all(splits.values())
    for group_rows in splits.values():
        assert [row["melody_id"] for row in group_rows] == sorted(row["melody_id"] for row in group_rows)
    for column in ("md5", "group", "melody_id"):
        sets = [{row[column] for row in group_rows} for group_rows in splits.values()]
        assert len(set().union(*sets)) == sum(map(len, sets)), f"{column} stands in two splits"
    for row in all_lines(built / "out"):
        assert row["melody_id"].startswith(row["md5"])
        for name in ("lead_score", "complexity", "key_confidence", "quality", *line_quality.FIGURES):
            assert 0 <= row[name] <= 1, name
        assert row["key"] in features.KEY_NAMES
        assert row["group"] <= row["md5"]
        assert len(row["pitch"]) == len(row["start"]) == len(row["duration"])
        end = row["start"][-1] + row["duration"][-1]
        assert 16 * (row["bars"] - 1) < end <= 16 * row["bars"]


def test_near_duplicates_share_a_group_and_equal_lines_are_kept_once(built):
    files = {name: hashlib.md5(content).hexdigest() for name, content in corpus().items()}
    found = all_lines(built / "out")
    groups_of = {row["md5"]: row["group"] for row in found}
    one, other = files["5/07.mid"], files["5/transposed.mid"]
    assert groups_of[one] == groups_of[other] == min(one, other)
    assert len(set(groups_of.values())) == len(groups_of) - 1
    melody = [pitch for *_, pitch in tune(16, seed=3)]
    copies = [row for row in found if row["pitch"] == melody]
    assert [row["md5"] for row in copies] == [min(files["5/03.mid"], files["5/equal.mid"])]
    report = json.loads((built / "out" / "build.json").read_text(encoding="utf-8"))
    assert report["lines"]["dropped"]["same as another line"] == 1
    assert report["statistics"]["all"]["groups"] == len(set(groups_of.values()))


def test_report_counts_add_up(built):
    report = json.loads((built / "out" / "build.json").read_text(encoding="utf-8"))
    reasons = {reason: 1 for _, reason in BROKEN.values()} | {"same content as another file": 1}
    assert report["files"]["dropped"] == reasons
    assert report["files"]["read"] == 43 + len(BROKEN) == report["files"]["with_melody"] + len(reasons)
    for unit, out in (("tracks", "with_melody"), ("lines", "kept")):
        assert report[unit]["read"] == report[unit][out] + sum(report[unit]["dropped"].values())
    found = all_lines(built / "out")
    statistics = report["statistics"]
    assert report["lines"]["kept"] == len(found) == sum(part["lines"] for part in statistics["splits"].values())
    assert statistics["all"]["notes"] == sum(len(row["pitch"]) for row in found)
    assert statistics["all"]["bars"] == sum(row["bars"] for row in found)
    assert report["lines"]["lead"] == sum(row["is_lead"] for row in found)
    assert report["quantisation"]["mean_displacement_steps"] == 0
    named = [name for name, (_, reason) in BROKEN.items() if reason != "no melody line"]
    assert [line.split(": ")[0] for line in report["unreadable_files"]] == sorted(named)


def test_excluded_files_are_left_out(built, tmp_path, capsys):
    md5 = hashlib.md5(corpus()["5/07.mid"]).hexdigest()
    excluded = tmp_path / "removed.txt"
    excluded.write_text(f"# by request\n{md5.upper()}  # of the transcriber\n\n", encoding="utf-8")
    arguments = ["--input", str(built / "midi"), "--output", str(tmp_path / "out"), "--exclude", str(excluded)]
    assert main(arguments) == 0
    expected = {row["melody_id"] for row in all_lines(built / "out") if row["md5"] != md5}
    assert {row["melody_id"] for row in all_lines(tmp_path / "out")} == expected
    report = json.loads((tmp_path / "out" / "build.json").read_text(encoding="utf-8"))
    assert report["lines"]["dropped"]["excluded on request"] == len(all_lines(built / "out")) - len(expected) == 2
    excluded.write_text("song.mid", encoding="utf-8")
    assert main([*arguments, "--overwrite"]) == 2
    assert "'song.mid', which is no md5" in capsys.readouterr().err


def test_genre_is_the_first_that_is_not_empty(built):
    md5 = hashlib.md5(corpus()["5/00.mid"]).hexdigest()
    for row in all_lines(built / "out"):
        assert row["genre"] == ("Folk_Old" if row["md5"] == md5 else None)


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_bytes_do_not_depend_on_form_and_processes(built, tmp_path, form, monkeypatch):
    monkeypatch.setattr("dataset_script.chunks.CHUNK_FILES", 7)
    source = built / "midi" if form == "folder" else write_archive(tmp_path / "lmd.tar.gz", corpus())
    arguments = ["--input", str(source), "--output", str(tmp_path / "out"), "--metadata", str(built / "metadata.csv")]
    assert main([*arguments, "--num_proc", "2"]) == 0
    assert data_files(tmp_path / "out") == data_files(built / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        {"README.md", "build.json", "card", "data", *configs.DESCRIPTIONS} - {"lines"}
    )


def test_bytes_do_not_depend_on_what_is_in_memory_at_a_time(built, tmp_path, monkeypatch):
    for name, value in (("LINES_PER_ROW_GROUP", 7), ("LINES_PER_FILE", 21)):
        monkeypatch.setattr(f"dataset_script.parquet_files.{name}", value)
    written = []
    for at_once in (1 << 20, 3):
        for place in ("grouping.PART_HASHES", "kept_lines.LINES_AT_ONCE", "parquet_files.SHELF_FILES"):
            monkeypatch.setattr(f"dataset_script.{place}", at_once)
        monkeypatch.setattr("dataset_script.grouping.LARGE_BYTES", 0 if at_once == 3 else 1 << 30)
        output = tmp_path / str(at_once)
        metadata = ["--metadata", str(built / "metadata.csv")]
        assert main(["--input", str(built / "midi"), "--output", str(output), *metadata]) == 0
        written.append(data_files(output))
        assert all_lines(output) == all_lines(built / "out")
    assert written[0] == written[1]
    assert len(written[0]) > 3
    assert pq.ParquetFile(tmp_path / "3" / "data" / min(written[0])).metadata.num_row_groups > 1


def hang():
    while True:
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux's")
@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda: os._exit(1), "brings the parser down"),
        (hang, "takes more than 0.5 seconds"),
        (lambda: np.ones(1 << 30), "needs more than 300 MiB of memory"),
    ],
)
def test_a_file_that_kills_hangs_or_swells_costs_only_itself(tmp_path, monkeypatch, act, reason):
    def deadly(midi, steps_per_beat):
        return act() if midi == b"deadly" else read_notes(midi, steps_per_beat)

    monkeypatch.setattr("dataset_script.chunks.read_notes", deadly)  # processes inherit it
    monkeypatch.setattr("dataset_script.chunks.CHUNK_FILES", 3)
    files = {f"{number}.mid": midi_bytes([tune(seed=number)]) for number in range(10)} | {"4x.mid": b"deadly"}
    source = write_folder(tmp_path / "midi", files)
    limits = ["--max_seconds_per_file", "0.5", "--max_memory", "300"]
    assert main(["--input", str(source), "--output", str(tmp_path / "out"), "--num_proc", "2", *limits]) == 0
    report = json.loads((tmp_path / "out" / "build.json").read_text(encoding="utf-8"))
    assert report["files"] == {"read": 11, "with_melody": 10, "dropped": {reason: 1}}
    assert report["unreadable_files"] == [f"4x.mid: {reason}"]


@pytest.mark.skipif(sys.platform != "linux", reason="processes inherit what is patched on Linux alone")
@pytest.mark.parametrize("when", ["while each file is tried", "when the chunk is done again"])
def test_a_disk_that_fills_while_a_killer_is_looked_for_loses_nothing(tmp_path, monkeypatch, capsys, when):
    """A file that cannot be written is not taken for a killer, nor its chunk for done."""
    killed, write = tmp_path / "killed", chunks.write_arrow

    def deadly(midi, steps_per_beat):
        if midi != b"deadly":
            return read_notes(midi, steps_per_beat)
        killed.touch()
        os._exit(1)

    def full(table, path):
        if killed.exists() and ("-alone" in path.name) == (when == "while each file is tried"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(table, path)

    monkeypatch.setattr("dataset_script.chunks.read_notes", deadly)
    monkeypatch.setattr("dataset_script.chunks.CHUNK_FILES", 3)
    files = {f"{number}.mid": midi_bytes([tune(seed=number)]) for number in range(10)} | {"4x.mid": b"deadly"}
    arguments = ["--input", str(write_folder(tmp_path / "midi", files)), "--output", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr("dataset_script.chunks.write_arrow", full)
        assert main(arguments) == 2
    assert_a_fault_of_the_output(tmp_path / "out", capsys, os.strerror(errno.ENOSPC))
    assert main(arguments) == 0
    report = json.loads((tmp_path / "out" / "build.json").read_text(encoding="utf-8"))
    assert report["files"] == {"read": 11, "with_melody": 10, "dropped": {"brings the parser down": 1}}


KILLED_BUILD = """
import os, signal, sys
import dataset_script.chunks as chunks
from dataset_script.build import main

process_all, chunks.CHUNK_FILES = chunks.process_all, 3

def dying(*arguments):
    for count, files in enumerate(process_all(*arguments)):
        yield files
        if count == 5:
            os.killpg(0, signal.SIGKILL)

import dataset_script.build
dataset_script.build.process_all = dying
main(sys.argv[1:])
"""


def test_a_killed_build_goes_on_and_gives_the_same_bytes(built, tmp_path, monkeypatch):
    monkeypatch.setattr("dataset_script.chunks.CHUNK_FILES", 3)
    arguments = ["--input", str(built / "midi"), "--output", str(tmp_path / "out"), "--num_proc", "2"]
    arguments += ["--metadata", str(built / "metadata.csv")]
    killed = subprocess.run([sys.executable, "-c", KILLED_BUILD, *arguments], start_new_session=True, timeout=120)
    assert killed.returncode == -9
    assert not (tmp_path / "out").exists()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.files.arrow")}
    assert 6 <= len(done) < 17
    read = []

    def reading(midi, steps_per_beat):
        read.append(midi)
        return read_notes(midi, steps_per_beat)

    def in_this_process(*arguments):
        pool = ThreadPoolExecutor(1)
        monkeypatch.setattr("dataset_script.chunks.new_pool", lambda num_proc, limits: pool)
        monkeypatch.setattr("dataset_script.chunks.set_alarm", lambda seconds: None)
        monkeypatch.setattr("dataset_script.chunks.read_notes", reading)
        return process_all(*arguments)

    monkeypatch.setattr("dataset_script.build.process_all", in_this_process)
    assert main(arguments) == 0
    assert len(read) == len(corpus()) - 1 - 3 * len(done)  # readme.txt is not read
    assert data_files(tmp_path / "out") == data_files(built / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


HELD = """
import multiprocessing, pathlib, sys, time
from dataset_script.build import unfinished_build
from dataset_script.chunks import Limits, begin_worker
from dataset_script.midi_sources import TOO_LARGE, Fault, open_sources
from training.checkpoints import only_run

def work(ends_with_parent):
    if ends_with_parent:
        begin_worker(Limits())
    print("at work", flush=True)
    time.sleep(600)

midi, output, ends_with_parent = sys.argv[1:]
with unfinished_build(pathlib.Path(output), open_sources(midi), 4), only_run(pathlib.Path(output).parent):
    multiprocessing.get_context("fork").Process(target=work, args=(bool(ends_with_parent),)).start()
    time.sleep(600)
"""


def killed_beside_its_worker(midi, output, ends_with_parent):
    """Kill a process that builds and trains, and return its worker."""
    command = [sys.executable, "-c", HELD, str(midi), str(output), "yes" if ends_with_parent else ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as build:
        assert build.stdout is not None
        assert build.stdout.readline() == b"at work\n"
        (worker,) = psutil.Process(build.pid).children()
        build.kill()
    return worker


@pytest.mark.skipif(sys.platform != "linux", reason="only forked workers inherit files")
def test_a_worker_that_outlives_its_parent_holds_no_lock(built, tmp_path):
    worker = killed_beside_its_worker(built / "midi", tmp_path / "out", ends_with_parent=False)
    try:
        with unfinished_build(tmp_path / "out", open_sources(str(built / "midi")), 4), only_run(tmp_path):
            assert worker.is_running()
    finally:
        worker.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="the program forks")
def test_a_worker_ends_with_its_parent(built, tmp_path):
    worker = killed_beside_its_worker(built / "midi", tmp_path / "out", ends_with_parent=True)
    assert psutil.wait_procs([worker], timeout=20)[1] == []


def test_an_unfinished_build_of_other_files_is_not_used(built, tmp_path):
    unfinished = tmp_path / ".out.unfinished"
    (unfinished / "work").mkdir(parents=True)
    (unfinished / "plan.json").write_text("{}", encoding="utf-8")
    (unfinished / "work" / "000000.files.arrow").write_bytes(b"something else")
    arguments = ["--input", str(built / "midi"), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--metadata", str(built / "metadata.csv")]) == 0
    assert data_files(tmp_path / "out") == data_files(built / "out")


def test_two_builds_of_one_output_at_a_time_are_refused(built, tmp_path, capsys):
    sources = open_sources(str(built / "midi"))
    with unfinished_build(tmp_path / "out", sources, 4):
        assert main(["--input", str(built / "midi"), "--output", str(tmp_path / "out")]) == 2
    assert "another process is building" in capsys.readouterr().err


def test_load_dataset(built, tmp_path):
    from datasets import load_dataset

    loaded = load_dataset(str(built / "out"), cache_dir=str(tmp_path))
    expected = all_rows(built / "out")
    assert {name: list(split) for name, split in loaded.items()} == expected
    assert loaded["train"].features == FEATURES
    stream = load_dataset(str(built / "out"), split="test", streaming=True)
    assert list(stream) == expected["test"]


def test_a_split_without_lines_has_no_file(tmp_path):
    from datasets import load_dataset

    source = tmp_path / "one.mid"
    source.write_bytes(midi_bytes([tune()]))
    assert main(["--input", str(source), "--output", str(tmp_path / "out")]) == 0
    split = split_of(hashlib.md5(source.read_bytes()).hexdigest())
    assert list(data_files(tmp_path / "out")) == [f"{split}-00000-of-00001.parquet"]
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(part) for name, part in loaded.items()} == {split: 1}


def test_a_replaced_data_set_is_not_served_from_the_cache(tmp_path):
    from datasets import load_dataset

    def pitches(seed):
        (tmp_path / "one.mid").write_bytes(midi_bytes([tune(seed=seed)]))
        output = str(tmp_path / "out")
        assert main(["--input", str(tmp_path / "one.mid"), "--output", output, "--overwrite"]) == 0
        return [
            row["pitch"] for part in load_dataset(output, cache_dir=str(tmp_path / "cache")).values() for row in part
        ]

    # Seeds chosen for equal splits: only the content tells the two data sets apart.
    splits = {seed: split_of(hashlib.md5(midi_bytes([tune(seed=seed)])).hexdigest()) for seed in range(9)}
    one, other = [seed for seed, split in splits.items() if split == "train"][:2]
    assert pitches(one) == [[pitch for *_, pitch in tune(seed=one)]]
    assert pitches(other) == [[pitch for *_, pitch in tune(seed=other)]]


def test_glob(tmp_path):
    write_folder(tmp_path, {"a/x.mid": midi_bytes([tune()]), "b/y.mid": midi_bytes([tune(seed=1)]), "b/z.txt": b""})
    assert main(["--input", str(tmp_path / "**" / "*"), "--output", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "build.json").read_text(encoding="utf-8"))["files"]["read"] == 2


def test_a_zip_archive_is_its_folder(tmp_path):
    files = {
        "a/x.mid": midi_bytes([tune()]),
        "b/y.RMI": midi_bytes([tune(seed=1)]),
        "c.smf": midi_bytes([tune(seed=2)]),
    }
    write_folder(tmp_path / "folder", files | {"notes.txt": b"no music"})
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in [*files.items(), ("__MACOSX/a/x.mid", b"x"), ("notes.txt", b"no music")]:
            archive.writestr(name, content)
    for name in ("folder", "all.zip"):
        assert main(["--input", str(tmp_path / name), "--output", str(tmp_path / f"of {name}")]) == 0
    assert len([row for rows in all_rows(tmp_path / "of folder").values() for row in rows]) == len(files)
    assert all_rows(tmp_path / "of all.zip") == all_rows(tmp_path / "of folder")


def empty_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", b"no music")
    return path


def damaged_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.mid", midi_bytes([tune()]))
    content = path.read_bytes()
    path.write_bytes(content[:60] + bytes(9) + content[69:])
    return path


def truncated_archive(path):
    whole = write_archive(path, corpus()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def empty_archive(path):
    return write_archive(path, {"notes.txt": b"no music"})


def gzipped_text(path):
    path.write_bytes(gzip.compress(b"no archive" * 200))
    return path


def text_file(path):
    path.write_text("no archive", encoding="utf-8")
    return path


def empty_folder(path):
    path.mkdir()
    return path


def silent_folder(path):
    return write_folder(path, {name: content for name, (content, _) in BROKEN.items()})


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda path: path, "does not exist"),
        (lambda path: path / "*.mid", "no MIDI file matches"),
        (empty_folder, "no .mid, .midi, .kar, .rmi or .smf file"),
        (silent_folder, "no melody found"),
        (truncated_archive, "download it again"),
        (empty_archive, "no .mid, .midi, .kar, .rmi or .smf file"),
        (empty_zip, "no .mid, .midi, .kar, .rmi or .smf file"),
        (damaged_zip, "is damaged or locked"),
        (gzipped_text, "is no tar or ZIP archive"),
        (text_file, "is no tar or ZIP archive"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, make, remedy):
    source = make(tmp_path / "input")
    assert main(["--input", str(source), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert source.name in error
    assert remedy in error
    assert [path.name for path in tmp_path.iterdir() if path.name != "input"] == []


def test_a_member_of_a_gigabyte_and_a_bomb_cost_only_themselves(tmp_path):
    """One member has a gigabyte of zeros, of which the compressed archive has a megabyte."""
    archive = tmp_path / "bomb.tar.gz"
    zeros = bytes(1 << 20)

    class Zeros(io.RawIOBase):
        def readinto(self, buffer):
            buffer[:] = zeros[: len(buffer)]
            return len(buffer)

        def readable(self):
            return True

    with tarfile.open(archive, "w:gz", compresslevel=1) as made:
        for name, size, content in (
            ("a.mid", len(midi_bytes([tune()])), io.BytesIO(midi_bytes([tune()]))),
            ("bomb.mid", 1 << 30, io.BufferedReader(Zeros())),
            ("z.mid", len(midi_bytes([tune(seed=1)])), io.BytesIO(midi_bytes([tune(seed=1)]))),
        ):
            member = tarfile.TarInfo(name)
            member.size = size
            made.addfile(member, content)
    assert archive.stat().st_size < 1 << 23
    tracemalloc.start()
    names = {
        name: content if isinstance(content, Fault) else len(content) for name, content in open_sources(str(archive))
    }
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert names == {
        "a.mid": len(midi_bytes([tune()])),
        "bomb.mid": TOO_LARGE,
        "z.mid": len(midi_bytes([tune(seed=1)])),
    }
    assert peak < 64 << 20
    assert main(["--input", str(archive), "--output", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "build.json").read_text(encoding="utf-8"))
    assert report["files"] == {"read": 3, "with_melody": 2, "dropped": {TOO_LARGE: 1}}
    (row,) = [row for row in pq.read_table(tmp_path / "out" / "files").to_pylist() if row["name"] == "bomb.mid"]
    assert row["reason"] == TOO_LARGE


def assert_a_fault_of_the_output(output, capsys, words):
    """The one line, the remedy, and what is done are there, the data set is not."""
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {output} cannot be written ({words}")
    assert error.endswith("make room there, or give another --output: the same command goes on with what is done")
    assert not output.exists()


@pytest.mark.parametrize("written", ["work", "dataset"])
def test_a_read_only_output_is_one_line_and_keeps_what_is_done(built, tmp_path, monkeypatch, capsys, written):
    arguments = ["--input", str(built / "midi"), "--output", str(tmp_path / "out")]
    arguments += ["--metadata", str(built / "metadata.csv")]
    monkeypatch.setattr("dataset_script.chunks.CHUNK_FILES", 7)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def some_then_refuse(*arguments):
        for count, files in enumerate(process_all(*arguments)):
            if count == 2:
                refuse()
            yield files

    place, replacement = {
        "work": ("dataset_script.build.process_all", some_then_refuse),
        "dataset": ("dataset_script.parquet_files.write_splits", refuse),
    }[written]
    with monkeypatch.context() as patch:
        patch.setattr(place, replacement)
        assert main(arguments) == 2
    assert_a_fault_of_the_output(tmp_path / "out", capsys, os.strerror(errno.EROFS))
    assert len(list(tmp_path.rglob("*.files.arrow"))) >= 2
    assert main(arguments) == 0
    assert data_files(tmp_path / "out") == data_files(built / "out")
    assert json.loads((tmp_path / "out" / "build.json").read_text(encoding="utf-8"))["is_resumed"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on a file's size")
@pytest.mark.parametrize(
    "stage",
    [
        "build.process_all",
        "parquet_files.write_splits",
        "configs.write_files",
        "configs.write_configs",
        "build.write_report",
        "card.write_card",
    ],
)
def test_a_disk_that_fills_at_a_stage_is_one_line_and_keeps_what_is_done(built, tmp_path, monkeypatch, capsys, stage):
    """A limit on files is reached by what the stage writes; grouping, between the first two, writes nothing."""
    import resource

    arguments = ["--input", str(built / "midi"), "--output", str(tmp_path / "out")]
    arguments += ["--metadata", str(built / "metadata.csv")]
    module, name = stage.split(".")
    work = getattr(import_module(f"dataset_script.{module}"), name)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def without_room(*arguments, **options):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            done = work(*arguments, **options)
            return iter(list(done)) if stage == "build.process_all" else done
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    with monkeypatch.context() as patch:
        patch.setattr(f"dataset_script.{stage}", without_room)
        assert main(arguments) == 2
    assert_a_fault_of_the_output(tmp_path / "out", capsys, "")
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.files.arrow")}
    assert bool(done) == (stage != "build.process_all")
    kept = []

    def see(*arguments):
        kept.extend(path for path, time in done.items() if path.stat().st_mtime_ns == time)
        yield from process_all(*arguments)

    monkeypatch.setattr("dataset_script.build.process_all", see)
    assert main(arguments) == 0
    assert len(kept) == len(done)
    assert data_files(tmp_path / "out") == data_files(built / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_output_is_never_overwritten_unasked(built, tmp_path, capsys):
    source, output = str(built / "midi" / "5" / "00.mid"), tmp_path / "out"
    output.mkdir()
    (output / "thesis.txt").write_text("years of work", encoding="utf-8")
    assert main(["--input", source, "--output", str(output)]) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert main(["--input", source, "--output", str(output), "--overwrite"]) == 2
    assert "holds no data set" in capsys.readouterr().err
    assert (output / "thesis.txt").read_text(encoding="utf-8") == "years of work"
    assert main(["--input", source, "--output", str(output / "new")]) == 0
    assert main(["--input", source, "--output", str(output / "new")]) == 2
    assert main(["--input", source, "--output", str(output / "new"), "--overwrite", "--steps_per_beat", "12"]) == 0
    assert json.loads((output / "new" / "build.json").read_text(encoding="utf-8"))["steps_per_beat"] == 12


def test_bad_metadata_is_one_line(built, tmp_path, capsys):
    metadata = tmp_path / "genres.csv"
    arguments = ["--input", str(built / "midi"), "--output", str(tmp_path / "out"), "--metadata", str(metadata)]
    assert main(arguments) == 2
    assert "genres.csv cannot be read" in capsys.readouterr().err
    metadata.write_text("a,b\n1,2\n", encoding="utf-8")
    assert main(arguments) == 2
    assert "genres.csv needs a column md5" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--num_proc", "0"], ["--steps_per_beat", "49"]])
def test_numbers_out_of_range(tmp_path, capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        main(["--output", str(tmp_path / "out"), *arguments])
    assert arguments[0] in capsys.readouterr().err


# --- windows ---------------------------------------------------------------------------------------------------------


def test_windows_are_whole_bars_of_the_line():
    (line,) = rows(write_score([[*tune(4)[:-1], (15 * TPQ + TPQ // 2, 5 * TPQ, 72), *tune(2, begin=21 * TPQ)]]))
    line |= {"genre": None, "group": "g"}
    cut = list(windows(line, bars=4, stride=2))
    assert [row["melody_id"].rsplit(":", 1)[1] for row in cut] == ["0", "2", "4"]
    assert all(row.keys() == line.keys() and row["bars"] == 4 for row in cut)
    assert cut[0]["start"] == line["start"][:32]
    assert cut[0]["duration"] == [2] * 32  # the note held over the last bar line is cut there
    inside = [note for note in notes_of(line) if 32 <= note[0] < 96]
    assert notes_of(cut[1]) == [(start - 32, length, pitch) for start, length, pitch in inside]
    assert max(length for _, length, _ in inside) == 20


def test_windows_of_the_whole_line_are_the_line():
    (line,) = rows(write_score([tune(5)]))
    (whole,) = windows(line, bars=5)
    assert notes_of(whole) == notes_of(line)
    assert (whole["key"], whole["melody_id"]) == (line["key"], line["melody_id"])
    assert whole["complexity"] == pytest.approx(line["complexity"])
    assert list(windows(line, bars=6)) == []
    with pytest.raises(ValueError, match="at least 1, not 0"):
        next(windows(line, bars=0))


@pytest.mark.parametrize("bars", [1, 2, 3])
def test_sections_are_the_windows_one_after_the_other(bars):
    (line,) = rows(write_score([[*tune(3), *tune(4, seed=1, begin=16 * TPQ)]]))  # a bar of silence, 8 bars in all
    sections = section_notes(line, bars)
    assert len(sections) == 8 // bars
    cut = [set(zip(row["start"], row["pitch"], strict=True)) for row in windows(line, bars, stride=bars)]
    assert [section for section in sections if section] == cut
    assert section_notes(line | {"bars": 0}, bars) == []


def test_windows_by_map(built):
    from datasets import load_dataset

    lines = load_dataset(str(built / "out"), split="train")
    cut = lines.map(window_rows, batched=True, fn_kwargs={"bars": 8, "stride": 4})
    assert cut.features == lines.features
    assert cut["melody_id"][:] == [row["melody_id"] for line in lines for row in windows(line, 8, 4)]
