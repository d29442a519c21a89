"""The index finds what a search through all melodies finds, bit for bit, and says so in time."""

import json
import re
import struct

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from evaluation import originality as command
from metrics.originality.originality import originality, spans
from metrics.originality.originality_index import (
    DEPTH,
    FEWEST_NOTES,
    OriginalityIndex,
    bar_hashes,
    describe,
    line_columns,
    steps_per_bar,
)

METERS = ("4/4", "3/4", "6/8")


def make_line(notes, bars, name="tune", meter="4/4"):
    """A line of (onset, pitch) pairs."""
    starts, pitches = [start for start, _ in notes], [pitch for _, pitch in notes]
    return {
        "melody_id": name,
        "pitch": pitches,
        "start": starts,
        "duration": [1] * len(notes),
        "time_signature": meter,
        "steps_per_beat": 4,
        "bars": bars,
        "is_lead": True,
        "tempo": 120.0,
    }


@st.composite
def lines(draw, name="tune", most_bars=5):
    """Few onsets and few pitches, so that spans are shared; silent bars, also at the ends."""
    meter = draw(st.sampled_from(METERS[:2]))
    bars, notes = draw(st.integers(1, most_bars)), []
    size = steps_per_bar({"time_signature": meter, "steps_per_beat": 4})
    for bar in range(bars):
        onsets = draw(st.sets(st.sampled_from([0, 4, 6]), max_size=2))
        notes += [(bar * size + onset, draw(st.integers(60, 62))) for onset in sorted(onsets)]
    return make_line(notes, bars, name, meter)


def bar_of(note, line):
    return note[0] // steps_per_bar(line)


def span_key(line, first, bars):
    """A span as plain notes: the slow truth; None where a span must not begin or end."""
    size = steps_per_bar(line)
    notes = [
        (start - first * size, pitch)
        for start, pitch in zip(line["start"], line["pitch"], strict=True)
        if first <= start // size < first + bars
    ]
    if len(notes) < FEWEST_NOTES or notes[0][0] >= size or first + bars > line["bars"]:
        return None
    return line["time_signature"], bars, *((onset, pitch - notes[0][1]) for onset, pitch in notes)


def ends_with_notes(line, first, bars):
    size = steps_per_bar(line)
    return any((first + bars - 1) * size <= start < (first + bars) * size for start in line["start"])


def slow_report(line, known, span_bars):
    places = {}
    for other in known:
        for first in range(other["bars"]):
            for bars in range(1, other["bars"] - first + 1):
                key = span_key(other, first, bars)
                if key is not None:
                    places.setdefault(key, []).append((other["melody_id"], first))
    keys = [key for first in range(line["bars"]) if (key := span_key(line, first, span_bars)) is not None]
    best = None
    for first in range(line["bars"]):
        for bars in range(1, line["bars"] - first + 1):
            key = span_key(line, first, bars)
            if key in places and ends_with_notes(line, first, bars):
                notes = len(key) - 2
                if best is None or (bars, notes) > best[:2]:
                    best = (bars, notes, first, places[key])
    return len(keys), sum(key in places for key in keys), best


@settings(max_examples=60)
@given(st.data())
def test_index_equals_search_through_all_melodies(data):
    known = [data.draw(lines(f"m{number}")) for number in range(data.draw(st.integers(1, 5)))]
    line, span_bars = data.draw(lines()), data.draw(st.integers(1, 5))
    report = OriginalityIndex.build(known, at_once=2).report(line, span_bars)
    total, copied, best = slow_report(line, known, span_bars)
    assert (report["spans"], report["copied_spans"]) == (total, copied)
    if best is None:
        assert report["longest_bars"] == report["occurrences"] == 0
        assert report["melody_id"] is None
    else:
        assert (report["longest_bars"], report["longest_notes"], report["first_bar"]) == best[:3]
        assert (report["melody_id"], report["melody_bar"]) in best[3]
        assert report["occurrences"] == len(best[3])


@settings(max_examples=20)
@given(st.data())
def test_index_equals_metric(data):
    known = [data.draw(lines(f"m{number}").filter(lambda line: line["time_signature"] == "4/4")) for number in range(3)]
    asked = [data.draw(lines().filter(lambda line: line["time_signature"] == "4/4")) for _ in range(3)]
    # The metric's grid is as long as the longest melody: spans may reach beyond a shorter one, into silence.
    grid = max(line["bars"] for line in [*known, *asked])
    each = [originality([line], known, span_bars=2, num_steps=16 * grid) for line in asked]
    longer = OriginalityIndex.build([{**line, "bars": grid} for line in known])
    reports = [longer.report({**line, "bars": grid}, span_bars=2) for line in asked]
    for report, found in zip(reports, each, strict=True):
        assert (report["spans"], report["copied_spans"]) == (found["spans"], found["copied_spans"])


def random_line(generator, bars, name, low=48):
    notes = []
    for bar in range(bars):
        onsets = np.sort(generator.choice(16, size=generator.integers(2, 7), replace=False))
        notes += [(int(16 * bar + onset), int(generator.integers(low, low + 24))) for onset in onsets]
    return make_line(notes, bars, name)


@pytest.fixture(scope="module")
def known():
    generator = np.random.default_rng(5)
    return [random_line(generator, int(generator.integers(4, 41)), f"line{number}") for number in range(101)]


def test_a_transposed_excerpt_is_found(known):
    index = OriginalityIndex.build(known)
    for number, first, bars, semitones in ((3, 0, 4, 0), (17, 2, 11, 5), (100, 1, 3, -7)):
        source = known[number]
        assert source["bars"] >= first + bars
        notes = [
            (start - 16 * first, pitch + semitones)
            for start, pitch in zip(source["start"], source["pitch"], strict=True)
            if first <= start // 16 < first + bars
        ]
        before = random_line(np.random.default_rng(number), 2, "new")
        shifted = [(start + 32, pitch) for start, pitch in notes]
        mine = make_line([*zip(before["start"], before["pitch"], strict=True), *shifted], bars + 2)
        report = index.report(mine)
        assert (report["longest_bars"], report["first_bar"], report["longest_notes"]) == (bars, 2, len(notes))
        assert (report["melody_id"], report["melody_bar"]) == (f"line{number}", first)
        assert report["copied_spans"] == max(bars - 3, 0)
        assert f"bars 3 to {bars + 2}" in describe(report)


def test_every_indexed_melody_is_wholly_copied(known):
    index = OriginalityIndex.build(known)
    for line in known:
        report = index.report(line)
        assert report["copied_spans"] == report["spans"] == max(line["bars"] - 3, 0)
        assert report["longest_bars"] == min(line["bars"], DEPTH)


def test_meters_are_told_apart():
    notes = [(0, 60), (4, 62), (12, 64), (16, 65)]
    index = OriginalityIndex.build([make_line(notes, 2, meter="3/4")])
    assert index.report(make_line(notes, 2, meter="3/4"), 2)["copied_spans"] == 1
    for meter in ("4/4", "6/8"):
        assert index.report(make_line(notes, 2, meter=meter), 1)["longest_bars"] == 0


@pytest.mark.parametrize("notes", [[], [(3, 60)]])
def test_nothing_to_copy(known, notes):
    report = OriginalityIndex.build(known).report(make_line(notes, 4))
    assert (report["spans"], report["copied_spans"], report["longest_bars"]) == (0, 0, 0)
    assert describe(report) == "Nothing in common with the training melodies, not even a bar."


def test_an_index_of_silence_has_nothing(known):
    index = OriginalityIndex.build([make_line([], 4)])
    assert index.report(known[0])["longest_bars"] == 0


def test_saved_is_loaded_and_is_safetensors(known, tmp_path):
    index = OriginalityIndex.build(known, {"split": "train"})
    index.save(tmp_path / "index.safetensors")
    mapped = OriginalityIndex.load(tmp_path / "index.safetensors")
    assert isinstance(mapped.rows, np.memmap)
    assert mapped.about == {"split": "train", "lines": "101", "bars": str(sum(line["bars"] for line in known))}
    assert [mapped.name(line) for line in (0, 1, 100)] == ["line0", "line1", "line100"]
    for line in known[::13]:
        assert mapped.report(line) == index.report(line)
    for name, tensor in load_file(tmp_path / "index.safetensors").items():
        assert np.array_equal(tensor, getattr(index, name))


def test_hashes_do_not_depend_on_the_batch(known):
    together = bar_hashes(**line_columns(known))
    apart = [bar_hashes(**line_columns([line])) for line in known]
    for column, parts in zip(together, zip(*apart, strict=True), strict=True):
        assert np.array_equal(column, np.concatenate(parts))


def test_no_lines_are_refused():
    with pytest.raises(ValueError, match="got 0 lines"):
        OriginalityIndex.build([])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an index at all",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 30) + b'{"__metadata__":{"format":1}}  ',
    ],
)
def test_a_foreign_file_is_named(tmp_path, content):
    path = tmp_path / "index.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"index\.safetensors: not an originality index; make one with python -m"):
        OriginalityIndex.load(path)


class TestMetric:
    def test_by_hand(self):
        tune = make_line([(0, 60), (4, 62), (16, 64), (32, 60), (36, 62)], 3)
        # Spans of one bar: bars 1 and 3 are alike; bar 2 has one note only.
        assert spans(tune, 1, 16, 48) == [((0, 0), (4, 2))] * 2
        assert spans(tune, 2, 16, 48) == [((0, 0), (4, 2), (16, 4)), ((0, 0), (16, -4), (20, -2))]
        higher = make_line([(start, pitch + 7) for start, pitch in [(0, 60), (4, 62), (16, 64)]], 3)
        found = originality([tune], [higher], span_bars=2, num_steps=48)
        assert found == {"copied": 1 / 2, "spans": 2, "copied_spans": 1, "melodies_with_copies": 1.0, "count": 1}

    def test_undefined(self):
        tune, silence = make_line([(0, 60), (4, 62)], 4), make_line([], 4)
        assert originality([silence], [tune], num_steps=64)["copied"] is None
        assert originality([tune], [silence], num_steps=64)["copied"] == 0
        for sides in (([], [tune]), ([tune], [])):
            with pytest.raises(ValueError, match="needs melodies on both sides"):
                originality(*sides)
        with pytest.raises(ValueError, match="span_bars and steps_per_bar must be at least 1, got 0 and 16"):
            originality([tune], [tune], span_bars=0)


class TestCommand:
    @pytest.fixture(scope="class")
    @staticmethod
    def dataset(tmp_path_factory, known):
        folder = tmp_path_factory.mktemp("data")
        datasets.Dataset.from_list(known).to_parquet(folder / "train-00000-of-00001.parquet")
        datasets.Dataset.from_list(known[7:9]).to_parquet(folder / "test-00000-of-00001.parquet")
        return folder

    def test_build_and_check(self, dataset, tmp_path, capsys):
        index = tmp_path / "new" / "index.safetensors"
        assert command.main(["build", "--dataset", str(dataset), "--output", str(index)]) == 0
        assert "101 melody lines" in capsys.readouterr().out
        assert command.main(["check", "--index", str(index), "--dataset", str(dataset), "--json"]) == 0
        reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [report["melody_id"] for report in reports] == ["line7", "line8"]
        assert all(report["copied_spans"] == report["spans"] for report in reports)

    def test_refusals(self, dataset, tmp_path, capsys):
        (tmp_path / "file").touch()
        for argv, message in (
            (["build", "--dataset", str(tmp_path), "--output", "x"], "no data set with a split 'train'"),
            (["build", "--dataset", str(dataset), "--output", str(tmp_path / "file" / "x")], "cannot be written"),
            (["check", "--index", str(tmp_path / "none"), "--dataset", str(dataset)], "none"),
            (["check", "--index", str(tmp_path / "file"), "--dataset", str(dataset)], "file: not an originality index"),
        ):
            assert command.main(argv) == 2
            error = capsys.readouterr().err.strip().splitlines()[-1]
            assert error.startswith("error: ")
            assert re.search(re.escape(message), error)


@pytest.mark.slow
def test_500_000_windows_are_asked_in_under_50_ms(tmp_path):
    found = command.measure(500_000, 100, tmp_path / "index.safetensors")
    assert found["query_milliseconds"]["mean"] < 50
    assert found["megabytes"] < 14 * found["bars"] / 1e6


def test_measuring_asks_about_what_is_there_and_what_is_not(tmp_path):
    found = command.measure(101, 6, tmp_path / "index.safetensors")
    assert (found["windows"], found["bars"], found["queries"]) == (101, 1616, 6)
    assert 0 < found["query_milliseconds"]["mean"] <= found["query_milliseconds"]["most"]
    index = OriginalityIndex.load(tmp_path / "index.safetensors")
    (line,) = command.made_up_windows(1, 16, 0)
    assert index.report(line)["longest_bars"] == 16
