import math
from itertools import pairwise

import numpy as np
import pytest

from dataset_script import choice_model, fit_lead_score, lead_score
from dataset_script.labelled_tracks import Tracks, is_named_tune
from dataset_script.lead_score import TRACK_FEATURES, lead_scores, name_hint, read_weights, track_features, utilities
from modeling.tune_finding_melody_vae import LEAD_FLOOR

COLUMN = {name: place for place, name in enumerate(TRACK_FEATURES)}
RELATIONS = [COLUMN[name] for name in lead_score.RELATIONS]
BARS = ((16, 4.0), (12, 4.0), (24, 8.0), (144, 24.0))  # steps in a bar and in a quarter note; the last exceeds 64 slots


def random_track(rng, bars=29, meter=None):
    """Return one track's skyline as dicts, and its number of notes; some bars repeat, some are empty."""
    size, beat = BARS[rng.integers(len(BARS))] if meter is None else meter
    patterns = [sorted(rng.choice(size, rng.integers(0, 7), replace=False).tolist()) for _ in range(3)]
    tunes = [rng.integers(30, 100, len(pattern)).tolist() for pattern in patterns]
    onsets = []
    for bar in range(bars):
        kind = rng.integers(3)
        pitches = tunes[kind] if rng.random() < 0.5 else rng.integers(30, 100, len(tunes[kind])).tolist()
        onsets += [(bar, at, pitch) for at, pitch in zip(patterns[kind], pitches, strict=True)]
    track = []
    for place, (bar, at, pitch) in enumerate(onsets):
        room = (onsets[place + 1][0] - bar) * size + onsets[place + 1][1] - at if place + 1 < len(onsets) else 10 * size
        track.append({
            "bar": bar, "position": at, "bar_steps": size, "beat_steps": beat, "pitch": pitch,
            "duration": int(rng.integers(1, room + 1)), "is_alone": bool(rng.random() < 0.7),
        })  # fmt: skip
    return track, len(track) + int(rng.integers(0, 9))


def random_file(rng, tracks):
    """Return tracks in one metre; some may be empty."""
    meter = BARS[rng.integers(len(BARS))]
    return [random_track(rng, bars=int(rng.integers(0, 31)), meter=meter) for _ in range(tracks)]


def describe(files):
    """Call the kernel on files that are lists of tracks."""
    tracks = [track for file in files for track in file]
    notes = [note for track, _ in tracks for note in track]

    kinds = dict.fromkeys(("bar", "position", "bar_steps", "pitch", "duration"), np.int64)
    kinds |= {"beat_steps": np.float64, "is_alone": np.bool_}
    return track_features(
        track_first=np.append(0, np.cumsum([len(track) for track, _ in tracks])).astype(np.int64),
        file_first=np.append(0, np.cumsum([len(file) for file in files])).astype(np.int64),
        notes=np.array([count for _, count in tracks], dtype=np.int64),
        **{key: np.array([note[key] for note in notes], dtype=kind) for key, kind in kinds.items()},
    )


def slowly(file):
    """Describe the tracks of one file by the words of `TRACK_FEATURES`, with sets and dicts."""
    bars = [{} for _ in file]  # per track: bar -> its notes
    for track, by_bar in zip(file, bars, strict=True):
        for note in track[0]:
            by_bar.setdefault(note["bar"], []).append(note)

    def slots(notes):
        return {
            note["position"] if note["bar_steps"] <= 64 else note["position"] * 64 // note["bar_steps"]
            for note in notes
        }

    def mean(values):
        return sum(values) / len(values)

    rows = np.zeros((len(file), len(TRACK_FEATURES)))
    for row, (track, count), by_bar in zip(rows, file, bars, strict=True):
        if not track:
            continue
        others = [other for other in bars if other is not by_bar]
        means = {bar: mean([note["pitch"] for note in notes]) for bar, notes in by_bar.items()}
        rivals = {bar: [mean([n["pitch"] for n in o[bar]]) for o in others if bar in o] for bar in by_bar}
        quarters = [min(note["duration"] / note["beat_steps"], 8) for note in track]
        steps = [
            (after["bar"] - note["bar"]) * note["bar_steps"] + after["position"] - note["position"]
            for note, after in pairwise(track)
        ]
        gaps = [step / note["beat_steps"] for step, note in zip(steps, track[:-1], strict=True)]
        silences = [
            (step - note["duration"]) / note["beat_steps"] for step, note in zip(steps, track[:-1], strict=True)
        ]
        silences.append(math.inf)
        intervals = [
            abs(after["pitch"] - note["pitch"])
            for gap, (note, after) in zip(gaps, pairwise(track), strict=True)
            if gap <= 4
        ]
        ends = [length for length, silence in zip(quarters, silences, strict=True) if silence >= 1]
        order = sorted(by_bar)
        contents = {tuple((note["position"], note["pitch"]) for note in notes) for notes in by_bar.values()}
        onsets = {(bar, slot) for bar, notes in by_bar.items() for slot in slots(notes)}
        other_onsets = {(bar, slot) for other in others for bar, notes in other.items() for slot in slots(notes)}
        values = {
            "log_notes": math.log(len(track)),
            "skyline": len(track) / count,
            "monophony": sum(note["is_alone"] for note in track) / count,
            "mean_pitch": mean([note["pitch"] for note in track]),
            "vocal_range": mean([55 <= note["pitch"] <= 79 for note in track]),
            "log_pitches": math.log(len({note["pitch"] for note in track})),
            "steps": mean([interval in (1, 2) for interval in intervals]) if intervals else 0,
            "leaps": mean([interval >= 8 for interval in intervals]) if intervals else 0,
            "mean_interval": mean([min(interval, 12) for interval in intervals]) if intervals else 0,
            "log_density": math.log(len(track) / sum(n[0]["bar_steps"] / n[0]["beat_steps"] for n in by_bar.values())),
            "log_duration": math.log(mean(quarters)),
            "rests": mean([silence >= 0.5 for silence in silences]),
            "phrase_end": math.log((mean(ends) + 0.1) / (mean(quarters) + 0.1)),
            "same_rhythm": sum(slots(by_bar[a]) == slots(by_bar[b]) for a, b in pairwise(order))
            / max(len(order) - 1, 1),
            "new_bars": len(contents) / len(by_bar),
            "coverage": len(by_bar) / len(set().union(*bars)),
            "highest": mean([all(means[bar] >= rival for rival in rivals[bar]) for bar in by_bar]),
            "lowest": mean([all(means[bar] <= rival for rival in rivals[bar]) for bar in by_bar]),
            "shared_onsets": len(onsets & other_onsets) / len(onsets),
        }
        row[:] = [values[name] for name in TRACK_FEATURES]
    return rows


def line(pitches, length, start_bar=0, gap=None):
    """Return a monophonic track in 4/4: notes of equal length, `gap` steps apart."""
    gap = gap or length
    return [
        {"bar": start_bar + at // 16, "position": at % 16, "bar_steps": 16, "beat_steps": 4.0, "pitch": pitch,
         "duration": length, "is_alone": True}
        for at, pitch in zip(range(0, gap * len(pitches), gap), pitches, strict=True)
    ], len(pitches)  # fmt: skip


@pytest.fixture
def files():
    rng = np.random.default_rng(7)
    return [random_file(rng, tracks) for tracks in (5, 1, 3, 2, 11, 7, 1, 4)]


class TestTrackFeatures:
    def test_equal_the_slow_reference(self, files):
        expected = np.concatenate([slowly(file) for file in files])
        assert any(not track for file in files for track, _ in file), "a track without notes is part of the test"
        np.testing.assert_allclose(describe(files), expected, rtol=1e-12, atol=1e-12)

    def test_a_file_does_not_depend_on_the_others_of_its_batch(self, files):
        singly = np.concatenate([describe([file]) for file in files])
        np.testing.assert_array_equal(describe(files), singly)

    def test_order_of_tracks_changes_nothing(self, files):
        order = np.random.default_rng(3).permutation(11)
        shuffled = [files[4][place] for place in order]
        np.testing.assert_array_equal(describe([shuffled]), describe([files[4]])[order])

    @pytest.mark.parametrize("bars", [1, 65_536, 1_000_003])
    def test_silence_before_the_file_changes_nothing(self, files, bars):
        later = [[([n | {"bar": n["bar"] + bars} for n in track], count) for track, count in file] for file in files]
        np.testing.assert_array_equal(describe(later), describe(files))

    def test_only_relations_depend_on_the_other_tracks(self, files):
        together, alone = describe([files[4]]), np.concatenate([describe([[track]]) for track in files[4]])
        own = [place for place in COLUMN.values() if place not in RELATIONS]
        np.testing.assert_array_equal(together[:, own], alone[:, own])
        assert (together[:, RELATIONS] != alone[:, RELATIONS]).any(axis=0).all()

    def test_one_track_covers_its_file_and_shares_nothing(self):
        found = dict(zip(TRACK_FEATURES, describe([[line([60, 62, 64, 65] * 4, 4)]])[0].tolist(), strict=True))
        assert [found[name] for name in ("coverage", "highest", "lowest", "shared_onsets")] == [1, 1, 1, 0]
        assert (found["new_bars"], found["same_rhythm"], found["steps"]) == (0.25, 1.0, pytest.approx(12 / 15))

    def test_tracks_without_notes_have_zeros(self):
        assert describe([[([], 0), ([], 3)], [([], 0)]]).tolist() == np.zeros((3, len(TRACK_FEATURES))).tolist()

    def test_no_files(self):
        assert describe([]).shape == (0, len(TRACK_FEATURES))


class TestLeadScores:
    TUNE = line([67, 64, 65, 67, 69, 67, 65, 64, 62, 64, 65, 67, 64, 60] * 4, 3, gap=4)
    BASS = line([36, 36, 43, 43] * 20, 4)
    ARPEGGIO = line([48, 55, 60, 64, 67, 64, 60, 55] * 24, 2)
    HIGH_PAD = line([84, 86] * 8, 16)

    @pytest.mark.parametrize("turn", range(4))
    def test_finds_a_tune_among_bass_arpeggio_and_pad_wherever_it_is(self, turn):
        tracks = [self.TUNE, self.BASS, self.ARPEGGIO, self.HIGH_PAD]
        scores = utilities(describe([tracks[-turn:] + tracks[:-turn]]), np.zeros(4, dtype=np.int64), np.zeros(4))
        assert scores.argmax() == turn

    def test_names_raise_and_lower(self, files):
        features = describe(files)
        program = np.zeros(len(features), dtype=np.int64)
        lower, plain, higher = (utilities(features, program, np.full(len(features), hint)) for hint in (-1.0, 0.0, 1.0))
        assert (lower < plain).all()
        assert (plain < higher).all()

    def test_programs_count(self):
        features = np.repeat(describe([[self.TUNE]]), 2, axis=0)
        reed, guitar = utilities(features, np.array([65, 27]), np.zeros(2))
        assert reed > guitar

    def test_lie_between_0_and_1_whatever_the_features(self):
        rng = np.random.default_rng(5)
        features = rng.standard_cauchy((10_007, len(TRACK_FEATURES))) * 1_000
        utility = utilities(features, rng.integers(0, 128, 10_007), rng.integers(-1, 2, 10_007).astype(float))
        files = np.append(np.arange(0, 10_007, 3), 10_007)
        scores = lead_scores(utility, rng.random(10_007) < 0.7, files)
        assert ((scores >= 0) & (scores <= 1)).all()
        for first, last in pairwise(files):  # the order in a file is that of the utility
            order = np.argsort(utility[first:last])
            assert (np.diff(scores[first:last][order]) >= 0).all()

    def test_rivals_lower_a_score_and_those_without_lines_do_not(self):
        utility, files = np.array([0.7, -0.2, 0.4]), np.array([0, 3])
        alone, with_rivals, with_one = (
            lead_scores(utility, np.array(competes), files)[0]
            for competes in ([True, False, False], [True, True, True], [True, True, False])
        )
        assert alone > with_one > with_rivals

    def test_equal_tracks_have_equal_scores_in_any_batch(self, files):
        features = describe(files)
        program = np.arange(len(features)) % 128
        hints = np.zeros(len(features))
        together = utilities(np.repeat(features, 3, axis=0), np.repeat(program, 3), np.repeat(hints, 3))
        singly = [utilities(features[k : k + 1], program[k : k + 1], hints[k : k + 1])[0] for k in range(len(features))]
        assert together.tolist() == np.repeat(singly, 3).tolist()

    def test_no_tracks(self):
        empty = np.zeros(0)
        assert utilities(np.zeros((0, len(TRACK_FEATURES))), empty.astype(np.int64), empty).shape == (0,)
        assert lead_scores(empty, empty.astype(bool), np.zeros(1, dtype=np.int64)).shape == (0,)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("Lead Vocal", 1), ("MELODY", 1), ("Bass", -1), ("Piano", 0), ("", 0), ("Backing vocals", 0), ("Leader", 1)],
)
def test_name_hint(name, hint):
    assert name_hint(name) == hint


@pytest.mark.parametrize(
    ("name", "is_tune"),
    [("Melody", True), ("lead vocals\x00", True), ("Melody 2", False), ("Lead Guitar", False), ("SynVox", False),
     ("Backing Vocals", False), ("misleading", False), ("Voice", True), ("Voice Oohs", False)],
)  # fmt: skip
def test_names_that_label(name, is_tune):
    assert is_named_tune(name) == is_tune


class TestFit:
    def choices(self, files=2_003, weights=(1.5, -1.0, 0.0)):
        """Draw choices among 2 to 5 tracks by a conditional logit."""
        rng = np.random.default_rng(11)
        file = np.repeat(np.arange(files), rng.integers(2, 6, files))
        columns = rng.normal(size=(len(file), 3))
        utility = columns @ np.array(weights) + rng.gumbel(size=len(file))
        best = np.full(files, -np.inf)
        np.maximum.at(best, file, utility)
        return columns, utility == best[file], file

    def test_choice_finds_the_weights_it_was_drawn_by(self):
        columns, is_label, file = self.choices()
        fitted = choice_model.fit_choice(columns, is_label, file, np.ones(file[-1] + 1))
        np.testing.assert_allclose(fitted, [1.5, -1.0, 0.0], atol=0.12)

    def test_choice_is_at_the_bottom_with_two_labels_in_some_files(self):
        columns, is_label, file = self.choices(files=101)
        is_label[np.searchsorted(file, np.arange(0, 101, 3))] = True
        weight = np.linspace(0.5, 1.5, 101)

        def loss(fitted):
            power = np.exp(columns @ fitted)
            chosen = np.bincount(file, power * is_label) / np.bincount(file, power)
            return -(weight * np.log(chosen)).sum() + 10 * fitted @ fitted / 2

        fitted = choice_model.fit_choice(columns, is_label, file, weight)
        for direction in np.eye(3):
            slope = (loss(fitted + 1e-4 * direction) - loss(fitted - 1e-4 * direction)) / 2e-4
            assert abs(slope) < 1e-3

    def test_calibration_finds_slope_and_bias(self):
        rng = np.random.default_rng(2)
        utility = rng.normal(size=20_011)
        is_label = rng.random(20_011) < 1 / (1 + np.exp(-(2 * utility - 1)))
        found = choice_model.calibrate(utility, is_label, np.ones(20_011))
        np.testing.assert_allclose(found, (2, -1), atol=0.1)

    def tracks(self, **given):
        file = given.pop("file")
        zeros = np.zeros(len(file))
        values = {"features": np.zeros((len(file), 1)), "program": zeros, "hint": zeros, "is_label": zeros > 0,
                  "is_sung": zeros > 0, "has_lines": zeros == 0,
                  "group": np.arange(file[-1] + 1).astype(str)}  # fmt: skip
        return Tracks(**{**values, "file": file, **given})

    def test_names_weigh_what_their_frequencies_say(self):
        rng = np.random.default_rng(13)
        file = np.repeat(np.arange(6_007), 4)
        utility = rng.normal(scale=2.0, size=len(file))
        drawn = (utility + rng.gumbel(size=len(file))).reshape(-1, 4)
        is_tune = (drawn == drawn.max(axis=1, keepdims=True)).ravel()
        chance = np.where(is_tune[:, None], [0.1, 0.3, 0.6], [0.4, 0.5, 0.1])  # of the hints -1, 0 and 1
        hint = (rng.random(len(file))[:, None] > chance.cumsum(axis=1)).sum(axis=1) - 1.0
        found = choice_model.fit_names(utility, self.tracks(file=file, hint=hint))
        expected = np.log(0.6 / 0.1) - np.log(0.3 / 0.5), np.log(0.1 / 0.4) - np.log(0.3 / 0.5)
        np.testing.assert_allclose(found, expected, atol=0.2)

    def test_ties_are_broken_by_chance_and_not_by_order(self):
        tracks = self.tracks(file=np.array([0, 0, 1, 1, 1, 2, 2]), is_label=np.array([1, 0, 1, 1, 0, 0, 1]) > 0)
        utility = np.array([1, 1 + 1e-9, 2, 2, 1, 0, 1.0])
        assert fit_lead_score.chance_of_finding(utility, tracks).tolist() == [0.5, 1, 1]

    def test_labelled_files_have_one_or_two_labels_and_a_choice(self):
        tracks = self.tracks(
            file=np.array([0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4, 4]),
            is_label=np.array([1, 0, 1, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0]) > 0,
            has_lines=np.array([1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1]) > 0,
        )
        assert tracks.labelled("with_lines").group.tolist() == ["0"]
        assert tracks.labelled("pitched").group.tolist() == ["0", "4"]
        assert tracks.labelled("pitched").file.tolist() == [0, 0, 1, 1, 1]

    @pytest.mark.parametrize("missing", ["lakh", "pop909", "dataset"])
    def test_bad_input_is_one_line(self, missing, tmp_path, capsys):
        (tmp_path / "empty").mkdir()
        (tmp_path / "one.mid").write_bytes(b"MThd, and no more")
        given = {name: str(tmp_path / "one.mid") for name in ("lakh", "pop909")}
        given[missing] = str(tmp_path / "empty")
        arguments = [part for name, value in given.items() for part in (f"--{name}", value)]
        output = tmp_path / "lead_score.json"
        assert fit_lead_score.main([*arguments, "--output", str(output)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert not output.exists()


def test_the_floor_of_a_lead_is_the_same_for_the_data_set_and_the_processor():
    assert read_weights()["floor"] == LEAD_FLOOR
