import inspect
import math
import re
from fractions import Fraction
from pathlib import Path

import evaluate
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics.bits_per_note.bits_per_note import bits_per_note
from metrics.note_f1 import note_f1 as note_f1_file
from metrics.note_f1.note_f1 import note_f1
from metrics.step_accuracy import step_accuracy as step_accuracy_file
from metrics.step_accuracy.step_accuracy import step_accuracy, step_classes

ROOT = Path(__file__).parents[2]
STEPS = 11

SILENCE = {"pitch": [], "start": [], "duration": []}
# classes 41 0 0 43 1 0 0 45 0 0 0: a repeat-free tune with a gap, the last note held to the end of the grid
TUNE = {"pitch": [60, 62, 64], "start": [0, 3, 7], "duration": [3, 1, 4]}
# classes 41 0 0 43 0 1 0 46 0 0 0: the second note longer, the third a semitone higher
OTHER = {"pitch": [60, 62, 65], "start": [0, 3, 7], "duration": [3, 2, 4]}


@st.composite
def melodies(draw: st.DrawFn) -> dict[str, list[int]]:
    pitch, start, duration, step = [], [], [], 0
    while step < STEPS and draw(st.booleans()):
        first = draw(st.integers(step, STEPS - 1))
        length = draw(st.integers(1, STEPS - first))
        pitch.append(draw(st.integers(21, 108)))
        start.append(first)
        duration.append(length)
        step = first + length
    return {"pitch": pitch, "start": start, "duration": duration}


pairs = st.lists(st.tuples(melodies(), melodies()), min_size=1, max_size=5)


def decode(classes: np.ndarray) -> dict[str, list[int]]:
    """The slow inverse of step_classes: read the steps one by one."""
    pitch, start, duration = [], [], []
    is_sounding = False
    for step, value in enumerate(classes.tolist()):
        if value and is_sounding:
            duration.append(step - start[-1])
            is_sounding = False
        if value >= 2:
            pitch.append(value + 19)
            start.append(step)
            is_sounding = True
    if is_sounding:
        duration.append(len(classes) - start[-1])
    return {"pitch": pitch, "start": start, "duration": duration}


class TestStepClasses:
    def test_by_hand(self):
        assert step_classes(**TUNE, num_steps=STEPS).tolist() == [41, 0, 0, 43, 1, 0, 0, 45, 0, 0, 0]

    def test_leading_silence_is_no_event_and_the_extreme_pitches_are_2_and_89(self):
        assert step_classes([21, 108], [2, 3], [1, 1], num_steps=5).tolist() == [0, 0, 2, 89, 1]

    def test_repeated_note_has_no_note_off_between(self):
        assert step_classes([60, 60], [0, 2], [2, 2], num_steps=5).tolist() == [41, 0, 41, 0, 1]

    def test_silence(self):
        classes = step_classes(**SILENCE)
        assert classes.shape == (256,)
        assert not classes.any()

    @given(melodies())
    def test_loses_nothing(self, melody):
        assert decode(step_classes(**melody, num_steps=STEPS)) == melody


class TestStepAccuracy:
    def test_by_hand(self):
        # TUNE and OTHER differ at the steps 4, 5 and 7; 7 of TUNE's 11 steps are no-event
        scores = step_accuracy([OTHER, TUNE, SILENCE], [TUNE, TUNE, SILENCE], STEPS)
        assert scores == {
            "accuracy": pytest.approx(float(Fraction(8 + 11 + 11, 33)), abs=1e-15),
            "floor": pytest.approx(float(Fraction(7 + 7 + 11, 33)), abs=1e-15),
            "exact": pytest.approx(float(Fraction(2, 3)), abs=1e-15),
            "count": 3,
        }

    def test_floor_is_the_accuracy_of_silence_and_of_the_references_only(self):
        assert step_accuracy([SILENCE], [TUNE], STEPS)["accuracy"] == step_accuracy([OTHER], [TUNE], STEPS)["floor"]
        assert step_accuracy([TUNE], [SILENCE], STEPS)["floor"] == 1.0

    @given(pairs)
    def test_bounds_and_agreement_with_the_slow_count(self, both):
        predictions, references = zip(*both, strict=True)
        scores = step_accuracy(predictions, references, STEPS)
        equal = sum(
            step_classes(**prediction, num_steps=STEPS)[step] == step_classes(**reference, num_steps=STEPS)[step]
            for prediction, reference in both
            for step in range(STEPS)
        )
        assert scores["accuracy"] == pytest.approx(equal / STEPS / len(both))
        assert 0 <= scores["exact"] <= scores["accuracy"] <= 1
        assert (scores["accuracy"] == 1) == (list(predictions) == list(references)) == (scores["exact"] == 1)

    @given(st.lists(melodies(), min_size=1, max_size=5))
    def test_a_perfect_reconstruction_scores_1(self, references):
        scores = step_accuracy(references, references, STEPS)
        assert (scores["accuracy"], scores["exact"]) == (1, 1)

    def test_no_melodies(self):
        with pytest.raises(ValueError, match="undefined, got 0 references"):
            step_accuracy([], [])

    def test_unequal_numbers(self):
        with pytest.raises(ValueError, match="got 2 for 1"):
            step_accuracy([TUNE, TUNE], [TUNE])


class TestNoteF1:
    def test_by_hand(self):
        # OTHER keeps two of TUNE's three notes (a changed length is no error); the last melody is invented
        invented = {"pitch": [60, 62], "start": [1, 2], "duration": [1, 1]}
        scores = note_f1([OTHER, TUNE, invented], [TUNE, TUNE, SILENCE], STEPS)
        assert scores == {
            "precision": float(Fraction(5, 8)),
            "recall": float(Fraction(5, 6)),
            "f1": float(Fraction(5, 7)),
            "matched": 5,
            "predicted": 8,
            "expected": 6,
            "count": 3,
        }

    def test_micro_average_weighs_by_notes(self):
        one_note = {"pitch": [60], "start": [0], "duration": [1]}
        wrong = {"pitch": [61], "start": [0], "duration": [1]}
        assert note_f1([TUNE, wrong], [TUNE, one_note], STEPS)["f1"] == 0.75  # not the mean of 1 and 0

    @pytest.mark.parametrize(
        ("prediction", "reference", "expected"), [(SILENCE, SILENCE, 1), (SILENCE, TUNE, 0), (TUNE, SILENCE, 0)]
    )
    def test_silence(self, prediction, reference, expected):
        scores = note_f1([prediction], [reference], STEPS)
        assert [scores[name] for name in ("precision", "recall", "f1")] == [expected] * 3

    @given(pairs)
    def test_symmetric_and_bounded(self, both):
        predictions, references = zip(*both, strict=True)
        scores, swapped = note_f1(predictions, references, STEPS), note_f1(references, predictions, STEPS)
        assert scores["f1"] == swapped["f1"]
        assert scores["precision"] == swapped["recall"]
        low, high = sorted([scores["precision"], scores["recall"]])
        assert 0 <= low <= scores["f1"] + 1e-12
        assert scores["f1"] <= high + 1e-12
        assert high <= 1

    @given(st.lists(melodies(), min_size=1, max_size=5))
    def test_a_perfect_reconstruction_scores_1(self, references):
        scores = note_f1(references, references, STEPS)
        assert (scores["precision"], scores["recall"], scores["f1"]) == (1, 1, 1)

    def test_no_melodies(self):
        with pytest.raises(ValueError, match="undefined, got 0 references"):
            note_f1([], [])

    def test_unequal_numbers(self):
        with pytest.raises(ValueError, match="got 0 for 1"):
            note_f1([], [TUNE])


@pytest.mark.parametrize("metric", [step_accuracy, note_f1])
@pytest.mark.parametrize(
    ("pitch", "start", "duration", "message"),
    [
        ([60, 62], [0], [1, 1], "equally long, got 2, 1 and 2 values"),
        ([20], [0], [1], "pitch must be 21 to 108, got 20"),
        ([60, 109], [0, 1], [1, 1], "pitch must be 21 to 108, got 109"),
        ([60], [0], [0], "duration must be at least 1 step, got 0"),
        ([60], [-2], [1], "start must not be negative, got -2"),
        ([60, 62], [5, 3], [1, 1], "start must rise, got 5 before 3"),
        ([60, 62], [3, 3], [1, 1], "start must rise, got 3 before 3"),
        ([60, 62], [0, 3], [4, 1], "must not overlap, got one until step 4 and one from 3"),
        ([60], [9], [3], "within the grid of 11 steps, got one until step 12"),
        ([60.5], [0], [1], "pitch must be a flat list of integers, got [60.5]"),
        ([60], [[0]], [1], "start must be a flat list of integers, got [[0]]"),
    ],
)
def test_what_is_not_a_melody_is_refused_on_either_side(metric, pitch, start, duration, message):
    bad = {"pitch": pitch, "start": start, "duration": duration}
    for predictions, references in (([bad], [TUNE]), ([TUNE], [bad])):
        with pytest.raises(ValueError, match=re.escape(message)):
            metric(predictions, references, STEPS)


@pytest.mark.parametrize("metric", [step_accuracy, note_f1])
def test_grid_without_steps(metric):
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        metric([SILENCE], [SILENCE], 0)


def test_both_files_check_melodies_alike():
    assert inspect.getsource(note_f1_file.checked_notes) == inspect.getsource(step_accuracy_file.checked_notes)


class TestBitsPerNote:
    def test_by_hand(self):
        # 35 ln 2 nats are 35 bits: 28 of reconstruction and 7 of KL on 7 notes
        scores = bits_per_note([11 * math.log(2), 17 * math.log(2)], [2 * math.log(2), 5 * math.log(2)], [3, 4])
        assert scores == {
            "bits_per_note": pytest.approx(5, abs=1e-12),
            "reconstruction_bits_per_note": pytest.approx(4, abs=1e-12),
            "kl_bits_per_note": pytest.approx(1, abs=1e-12),
            "notes": 7,
            "count": 2,
        }

    def test_empty_melody_costs_its_nats(self):
        assert bits_per_note([math.log(2), math.log(2)], [0, 0], [1, 0])["bits_per_note"] == pytest.approx(2)

    def test_float32_sums_do_not_lose_precision(self):
        nats = np.full(100_003, 123.4567, dtype=np.float32)
        scores = bits_per_note(nats, np.zeros_like(nats), np.full(len(nats), 53))
        assert scores["bits_per_note"] == pytest.approx(float(nats[0]) / math.log(2) / 53, rel=1e-12)

    @given(
        st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e4), st.integers(1, 97)), min_size=1, max_size=7),
        st.integers(2, 5),
    )
    def test_scale_and_order(self, rows, factor):
        bits = bits_per_note(*zip(*rows, strict=True))["bits_per_note"]
        assert bits >= 0
        assert bits_per_note(*zip(*reversed(rows), strict=True))["bits_per_note"] == pytest.approx(bits)
        scaled = [(factor * nats, factor * kl, notes) for nats, kl, notes in rows]
        assert bits_per_note(*zip(*scaled, strict=True))["bits_per_note"] == pytest.approx(factor * bits)

    @pytest.mark.parametrize(
        ("reconstruction", "kl", "notes", "message"),
        [
            ([1.0], [1.0, 2.0], [3], "equally long, got 1, 2 and 1 values"),
            ([-1.0], [1.0], [3], "reconstruction_nats must be finite and not negative, got -1.0"),
            ([1.0], [float("nan")], [3], "kl_nats must be finite and not negative, got nan"),
            ([float("inf")], [1.0], [3], "reconstruction_nats must be finite and not negative, got inf"),
            ([1.0], [1.0], [-1], "notes must be finite and not negative, got -1"),
            ([1.0], [1.0], [1.5], "notes must be whole numbers, got 1.5"),
            ([1.0], [1.0], [0], "1 melodies without notes are undefined"),
            ([], [], [], "0 melodies without notes are undefined"),
        ],
    )
    def test_refusals(self, reconstruction, kl, notes, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            bits_per_note(reconstruction, kl, notes)

    def test_rounding_below_zero_is_no_error(self):
        assert bits_per_note([math.log(2)], [-1e-6], [1])["bits_per_note"] == pytest.approx(1, abs=1e-5)


class TestEvaluateLoad:
    @pytest.fixture
    def load(self, tmp_path, monkeypatch):
        monkeypatch.chdir(ROOT)
        return lambda name: evaluate.load(f"metrics/{name}", cache_dir=str(tmp_path))

    @pytest.mark.parametrize(("name", "function"), [("step_accuracy", step_accuracy), ("note_f1", note_f1)])
    def test_melody_metrics(self, load, name, function):
        metric = load(name)
        expected = function([OTHER, SILENCE], [TUNE, TUNE], STEPS)
        assert metric.compute(predictions=[OTHER, SILENCE], references=[TUNE, TUNE], num_steps=STEPS) == expected
        metric.add(prediction=OTHER, reference=TUNE)
        metric.add_batch(predictions=[SILENCE], references=[TUNE])
        assert metric.compute(num_steps=STEPS) == expected

    def test_bits_per_note(self, load):
        metric = load("bits_per_note")
        columns = {"reconstruction_nats": [11.0, 17.0], "kl_nats": [2.0, 5.0], "notes": [3, 4]}
        expected = bits_per_note(**columns)
        assert metric.compute(**columns) == expected
        metric.add_batch(**columns)
        assert metric.compute() == expected

    @pytest.mark.parametrize("name", ["step_accuracy", "note_f1"])
    def test_numpy_melodies(self, load, name):
        as_arrays = {key: np.array(values, dtype=np.int32) for key, values in TUNE.items()}
        scores = load(name).compute(predictions=[as_arrays], references=[TUNE], num_steps=STEPS)
        assert scores["accuracy" if name == "step_accuracy" else "f1"] == 1

    @pytest.mark.parametrize("name", ["step_accuracy", "note_f1", "bits_per_note"])
    def test_card_example_runs_and_shows_what_it_prints(self, load, name):
        card = (ROOT / "metrics" / name / "README.md").read_text(encoding="utf-8")
        code, shown = re.search(r"```python\nimport evaluate\n(.*?)(# .*?)\n```", card, re.DOTALL).groups()
        *setup, call = code.strip().splitlines()
        scope = {"evaluate": evaluate}
        exec("\n".join(setup), scope)
        result = eval(call, scope)
        if name == "bits_per_note":
            shown_numbers = re.findall(r"(\w+) ([\d.]+?)\.\.\.", shown)
            assert len(shown_numbers) == 2
            for key, digits in shown_numbers:
                assert str(result[key]).startswith(digits)
        else:
            assert shown == f"# {result}"
