"""The metrics beside step accuracy, note F1 and bits per note: by hand, against muspy, scipy and sacrebleu."""

import inspect
import json
import math
import re
from fractions import Fraction
from pathlib import Path

import evaluate
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from evaluation import operations
from evaluation.intervals import ratio_interval
from metrics.melody_statistics import melody_statistics as statistics_file
from metrics.melody_statistics.melody_statistics import feature_vectors, melody_statistics, statistics_of
from metrics.note_bleu import note_bleu as bleu_file
from metrics.note_bleu.note_bleu import note_bleu, note_words
from metrics.originality import originality as originality_file
from metrics.overlapped_area.overlapped_area import (
    compare_distances,
    interval_of,
    overlapped_area,
    scott_bandwidth,
)
from metrics.perplexity.perplexity import perplexity
from metrics.step_accuracy import step_accuracy as step_accuracy_file
from metrics.two_sample_auc.two_sample_auc import area_under_curve, two_sample_auc
from modeling import melody_line_melody_vae as attributes

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads(Path(__file__).with_name("muspy_golden.json").read_text(encoding="utf-8"))
SILENCE = {"pitch": [], "start": [], "duration": []}
ONE_NOTE = {"pitch": [61], "start": [3], "duration": [2]}
# Two bars of seven steps; a beat has three: onsets on 0, 2, 5 and again, the last note a semitone higher.
TUNE = {"pitch": [60, 64, 67, 60, 64, 68], "start": [0, 2, 5, 7, 9, 12], "duration": [2, 3, 2, 2, 3, 1]}


def test_note_checks_are_copies():
    source = inspect.getsource(step_accuracy_file.checked_notes)
    for module in (statistics_file, bleu_file, originality_file):
        assert inspect.getsource(module.checked_notes) == source


class TestPerplexity:
    def test_by_hand(self):
        found = perplexity([3 * math.log(4), 4 * math.log(4)], [3, 4])
        assert found == {
            "perplexity": pytest.approx(4),
            "nats_per_token": pytest.approx(math.log(4)),
            "tokens": 7,
            "count": 2,
        }

    def test_too_large_is_infinite(self):
        assert perplexity([1e6], [1])["perplexity"] == math.inf

    @pytest.mark.parametrize(
        ("nats", "tokens", "message"),
        [
            ([1.0], [1, 2], "equally long, got 1 and 2"),
            ([-1.0], [1], "nats must be finite and not negative, got -1.0"),
            ([1.0], [1.5], "tokens must be whole numbers, got 1.5"),
            ([1.0], [0], "1 melodies without tokens is undefined"),
            ([], [], "0 melodies"),
        ],
    )
    def test_refusals(self, nats, tokens, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            perplexity(nats, tokens)


class TestNoteBleu:
    def test_by_hand(self):
        tune = {"pitch": [60, 62, 64, 65, 67], "start": [0, 2, 4, 6, 8], "duration": [2] * 5}
        less = {**tune, "pitch": [60, 62, 64, 65, 69]}
        assert note_words(tune, 16, 4) == "60@0+2 62@2+2 64@0+2 65@2+2 67@0+2"
        found = note_bleu([less], [tune], 16)
        precisions = [Fraction(4, 5), Fraction(3, 4), Fraction(2, 3), Fraction(1, 2)]
        assert found["precisions"] == pytest.approx([100 * float(share) for share in precisions])
        assert found["bleu"] == pytest.approx(100 * float(math.prod(precisions)) ** 0.25)
        assert re.fullmatch(r"nrefs:1\|case:mixed\|eff:no\|tok:none\|smooth:exp\|version:[\d.]+", found["signature"])

    def test_same_and_silent(self):
        tune = {"pitch": [60, 62, 64, 65], "start": [0, 2, 4, 6], "duration": [2] * 4}
        assert note_bleu([tune], [tune], 16)["bleu"] == pytest.approx(100)
        assert note_bleu([SILENCE], [SILENCE])["bleu"] == 100
        assert note_bleu([SILENCE], [tune], 16)["bleu"] == note_bleu([tune], [SILENCE], 16)["bleu"] == 0

    def test_a_later_bar_is_the_same_and_another_length_is_not(self):
        tune = {"pitch": [60, 62, 64, 65], "start": [0, 2, 4, 6], "duration": [2, 2, 2, 1]}
        later = {**tune, "start": [start + 8 for start in tune["start"]]}
        assert note_bleu([later], [tune], 16, steps_per_bar=8)["bleu"] == pytest.approx(100)
        assert note_bleu([{**tune, "duration": [2, 2, 2, 2]}], [tune], 16)["bleu"] < 100

    def test_refusals(self):
        for sides, message in ((([], []), "0 references"), (([TUNE], []), "got 1 for 0")):
            with pytest.raises(ValueError, match=message):
                note_bleu(*sides)
        with pytest.raises(ValueError, match="steps_per_bar must be at least 1, got 0"):
            note_bleu([TUNE], [TUNE], steps_per_bar=0)


class TestMelodyStatistics:
    @pytest.mark.parametrize("row", GOLDEN["rows"])
    def test_muspy(self, row):
        found = statistics_of(row["melody"], GOLDEN["bars"], GOLDEN["steps_per_bar"])
        hint = "if the definition changed on purpose, see tests/metrics/muspy_golden.py"
        for name, value in row["muspy"].items():
            assert found[name] == (None if value is None else pytest.approx(value, abs=1e-12)), f"{name}; {hint}"

    def test_by_hand(self):
        found = statistics_of(TUNE, num_bars=2, steps_per_bar=7, steps_per_beat=3)
        # Pitches 60 and 64 twice, 67 and 68 once; C E G and C E G# fit no scale together but for one note.
        bits = 2 * Fraction(1, 3) * Fraction(math.log2(3)) + 2 * Fraction(1, 6) * Fraction(math.log2(6))
        assert found["pitch_entropy"] == found["pitch_class_entropy"] == pytest.approx(float(bits))
        assert found["pitch_range"] == 8
        assert found["scale_consistency"] == pytest.approx(5 / 6)
        assert found["note_density"] == 3
        assert found["groove_consistency"] == 1
        assert found["bar_similarity_1"] == pytest.approx(2 / 4)  # (0, 60) and (2, 64) of the four pairs
        assert found["bar_similarity_2"] is None
        # Beats on 0, 3, 6, 9, 12: off the beat are 2 (sounds to 5), 5 (to 7) and 7 (until 9, where a note begins).
        assert found["syncopation"] == pytest.approx(2 / 6)

    def test_agrees_with_the_attributes_and_operations(self):
        generator = np.random.default_rng(3)
        for _ in range(7):
            start = np.sort(generator.choice(13 * 16, 53, replace=False))
            line = {
                "pitch": generator.integers(50, 70, 53).tolist(),
                "start": start.tolist(),
                "duration": np.diff(start, append=13 * 16).tolist(),
                "time_signature": "4/4",
                "steps_per_beat": 4,
                "bars": 13,
            }
            found = statistics_of(line, 13)
            assert found["syncopation"] == pytest.approx(attributes.syncopation(line))
            assert found["note_density"] == pytest.approx(attributes.note_density(line))
            assert found["pitch_range"] == attributes.pitch_range(line)
            likeness = operations.bar_similarity(line)
            for distance in (1, 2, 4, 8):
                assert found[f"bar_similarity_{distance}"] == pytest.approx(likeness[distance])

    def test_transposition_changes_nothing_but_the_pitches(self):
        higher = {**TUNE, "pitch": [pitch + 5 for pitch in TUNE["pitch"]]}
        assert statistics_of(TUNE, 2, 7) == pytest.approx(statistics_of(higher, 2, 7))
        one, other = feature_vectors(TUNE, 2, 7), feature_vectors(higher, 2, 7)
        assert {name for name in one if one[name] != other[name]} == {
            "pitch_class_histogram",
            "pitch_class_transitions",
        }

    def test_features_by_hand(self):
        found = feature_vectors(TUNE, num_bars=2, steps_per_bar=7, steps_per_quarter=2)
        histogram = np.zeros(12)
        histogram[[0, 4, 7, 8]] = [4 / 13, 6 / 13, 2 / 13, 1 / 13]
        assert found["pitch_class_histogram"] == pytest.approx(histogram)
        transitions = np.array(found["pitch_class_transitions"]).reshape(12, 12)
        assert transitions[0, 4] == 2
        assert transitions[4, 7] == transitions[7, 0] == transitions[4, 8] == 1
        assert transitions.sum() == 5
        assert found["pitch_interval"] == pytest.approx([(4 + 3 + 7 + 4 + 4) / 5])
        assert found["inter_onset_interval"] == pytest.approx([12 / 5 / 2])
        # Quarters 1, 1.5 and 0.5: a quarter thrice, dotted quarters twice, an eighth.
        lengths = np.zeros(12)
        lengths[[2, 6, 3]] = [3 / 6, 2 / 6, 1 / 6]
        assert found["note_length_histogram"] == pytest.approx(lengths)
        assert found["bar_pair_similarity"] == pytest.approx([0.5, 0, 0, 0])

    def test_too_few_notes(self):
        assert all(value is None for value in feature_vectors(SILENCE).values())
        undefined = {name for name, value in feature_vectors(ONE_NOTE).items() if value is None}
        assert undefined == {"pitch_class_transitions", "pitch_interval", "inter_onset_interval", "groove_consistency"}
        means = melody_statistics([SILENCE, ONE_NOTE])
        assert (means["pitch_class_entropy"], means["note_density"], means["count"]) == (0, 1 / 32, 2)
        assert melody_statistics([SILENCE])["scale_consistency"] is None

    def test_refusals(self):
        with pytest.raises(ValueError, match="got 0 predictions"):
            melody_statistics([])
        with pytest.raises(ValueError, match="num_bars must be at least 1, got 0"):
            statistics_of(TUNE, num_bars=0)
        with pytest.raises(ValueError, match="within the grid of 7 steps"):
            statistics_of(TUNE, num_bars=1, steps_per_bar=7)


class TestOverlappedArea:
    def test_equals_scipy_kernel_densities(self):
        generator = np.random.default_rng(1)
        intra, inter = generator.gamma(3, 1, 307), generator.gamma(4, 1.3, 503)
        grid = np.linspace(-10, 40, 20_001)
        p, q = (stats.gaussian_kde(samples)(grid) for samples in (intra, inter))
        step = grid[1] - grid[0]
        overlap, divergence = compare_distances(intra, inter)
        assert overlap == pytest.approx(np.minimum(p, q).sum() * step, abs=2e-3)
        assert divergence == pytest.approx(stats.entropy(p, np.maximum(q, 1e-12)), rel=2e-2)
        assert scott_bandwidth(intra) == pytest.approx(float(stats.gaussian_kde(intra).factor * intra.std(ddof=1)))

    def test_like_and_unlike(self):
        generator = np.random.default_rng(2)
        real, like = generator.normal(size=(2, 211, 3))
        near, far = overlapped_area(like, real), overlapped_area(like + 20, real)
        assert near["overlapped_area"] > 0.97
        assert near["kl_divergence"] < 0.01
        assert far["overlapped_area"] < 0.01
        assert far["kl_divergence"] > 5

    def test_does_not_depend_on_order_or_scale(self):
        generator = np.random.default_rng(4)
        ours, real = generator.normal(size=(31, 2)), generator.normal(size=(53, 2))
        first = overlapped_area(ours, real)
        again = overlapped_area(7 * ours[::-1], 7 * real[::-1])
        assert first == pytest.approx(again, rel=1e-6)

    def test_the_interval_is_as_wide_as_samples_differ(self):
        def draw(seed):
            generator = np.random.default_rng(seed)
            return generator.normal(0.7, 1, size=(67, 1)), generator.normal(size=(67, 1))

        values = [overlapped_area(*draw(seed))["overlapped_area"] for seed in range(60)]
        widths = [np.diff(interval_of(*draw(seed), rounds=60)["overlapped_area"])[0] for seed in range(7)]
        assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(values), rel=0.4)

    def test_degenerate(self):
        assert overlapped_area([[5.0]], [[5.0]] * 3)["overlapped_area"] == 1
        found = overlapped_area([[9.0]], [[5.0]] * 3)
        assert found["overlapped_area"] < 1e-6
        assert math.isfinite(found["kl_divergence"])

    @pytest.mark.parametrize(
        ("ours", "theirs", "message"),
        [
            ([], [[1.0]] * 3, "got 0 and 3"),
            ([[1.0]], [[1.0]] * 2, "got 1 and 2"),
            ([[1.0, 2.0]], [[1.0]] * 3, "got lengths [1, 2]"),
            ([[math.nan]], [[1.0]] * 3, "must be finite, got nan"),
        ],
    )
    def test_refusals(self, ours, theirs, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            overlapped_area(ours, theirs)


class TestTwoSampleAUC:
    def test_area_equals_scikit_learn(self):
        generator = np.random.default_rng(0)
        scores, truth = generator.integers(0, 7, 101).astype(float), generator.random(101) < 0.3
        assert area_under_curve(scores, truth) == pytest.approx(roc_auc_score(truth, scores))

    def test_same_and_different(self):
        generator = np.random.default_rng(1)
        real, same = generator.normal(size=(2, 101, 3))
        alike = two_sample_auc(same, real)
        assert alike["interval"][0] < 0.5 < alike["interval"][1]
        assert alike["p_value"] > 0.05
        apart = two_sample_auc(same + np.array([0, 2, 0]), real)
        assert apart["auc"] > 0.85
        assert apart["interval"][0] < apart["auc"] < apart["interval"][1]
        assert apart["p_value"] < 1e-6

    def test_songs_are_not_known_again(self):
        """Windows of a song are alike; training and test songs are not, although their windows are drawn alike."""
        generator = np.random.default_rng(2)
        songs = np.arange(400) // 4
        windows = generator.normal(size=(100, 3))[songs] + 0.01 * generator.normal(size=(400, 3))
        ours, theirs = windows[:200], windows[200:]
        assert two_sample_auc(ours, theirs)["auc"] > 0.85
        apart = two_sample_auc(ours, theirs, groups=songs.tolist())
        assert apart["interval"][0] < 0.6
        assert apart["auc"] < 0.65

    def test_missing_values_tell_too(self):
        real = [[float(number % 5)] for number in range(60)]
        assert two_sample_auc([[None]] * 60, real)["auc"] > 0.99

    @pytest.mark.parametrize(
        ("ours", "theirs", "message"),
        [
            ([[1.0]] * 4, [[1.0]] * 9, "got 4 predictions and 9 references"),
            ([], [], "got 0 predictions"),
            ([[1.0]] * 5, [[1.0, 2.0]] * 5, "got lengths [1, 2]"),
            ([[math.inf]] * 5, [[1.0]] * 5, "finite or missing, got inf"),
        ],
    )
    def test_refusals(self, ours, theirs, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            two_sample_auc(ours, theirs)

    @pytest.mark.parametrize(
        ("groups", "message"),
        [(["a"] * 9, "10 melodies need as many groups, got 9"), ([0, 1, 2, 3, 4, 5, 5, 5, 5, 6], "each side, got 2")],
    )
    def test_groups_that_do_not_fit(self, groups, message):
        with pytest.raises(ValueError, match=message):
            two_sample_auc([[1.0]] * 5, [[1.0]] * 5, groups=groups)


class TestRatioInterval:
    def test_covers_the_truth_as_often_as_it_says(self):
        generator = np.random.default_rng(0)
        hits = 0
        for _ in range(200):
            notes = generator.integers(5, 60, 61)
            low, high = ratio_interval(generator.binomial(notes, 0.3), notes, rounds=200)
            hits += low <= 0.3 <= high
        assert 0.88 <= hits / 200 <= 0.99

    def test_one_value_and_none(self):
        assert ratio_interval([3.0]) is None
        assert ratio_interval([2.0] * 5) == [2, 2]
        with pytest.raises(ValueError, match="got a sum of 0"):
            ratio_interval([1.0, 2.0], [0.0, 0.0])
        with pytest.raises(ValueError, match="got 1 for 2"):
            ratio_interval([1.0, 2.0], [1.0])


class TestEvaluateLoad:
    @pytest.mark.parametrize(
        "name", ["perplexity", "note_bleu", "melody_statistics", "overlapped_area", "two_sample_auc", "originality"]
    )
    def test_card_example_runs_and_shows_what_it_prints(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(evaluate, "load", lambda path, load=evaluate.load: load(path, cache_dir=str(tmp_path)))
        card = (ROOT / "metrics" / name / "README.md").read_text(encoding="utf-8")
        code, shown = re.search(r"```python\nimport evaluate\n(.*?)# (.*?)\n```", card, re.DOTALL).groups()
        *setup, call = code.strip().splitlines()
        scope = {"evaluate": evaluate}
        exec("\n".join(setup), scope)
        result = eval(call, scope)
        if shown.startswith("{"):
            assert shown == str(result)
        else:
            numbers = re.findall(r"(\w+) (\d[\d.]*?)\.\.\.", shown)
            assert numbers
            for key, digits in numbers:
                assert f"{result[key]}".startswith(digits) or f"{result[key]:.3f}".startswith(digits), key
