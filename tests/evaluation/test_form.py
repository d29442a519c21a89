"""Form of melodies: what returns is seen to return, in any key, and nowhere else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.form import FEATURES, FIGURE_NOTES, LAGS, form_features

BARS, STEPS = 16, 16
TUNE = [60, 62, 64, 65, 67, 65, 64, 62]


def melody_of(bars: list[list[tuple[int, int]]], length: int = 2) -> dict[str, list[int]]:
    """Write bars of (onset, pitch) pairs as one melody."""
    notes = [(STEPS * index + onset, pitch) for index, bar in enumerate(bars) for onset, pitch in bar]
    return {
        "start": [onset for onset, _ in notes],
        "pitch": [pitch for _, pitch in notes],
        "duration": [length] * len(notes),
    }


def bar_of(seed: int) -> list[tuple[int, int]]:
    """Draw a bar of eight notes that no other seed draws."""
    generator = np.random.default_rng(seed)
    return [(2 * step, int(pitch)) for step, pitch in enumerate(generator.integers(48, 84, 8))]


@given(st.lists(st.integers(0, 6), min_size=BARS, max_size=BARS), st.integers(-7, 7))
def test_form_is_the_same_in_another_key(order, interval):
    melody = melody_of([bar_of(number) for number in order])
    moved = {**melody, "pitch": [pitch + interval for pitch in melody["pitch"]]}
    expected, found = form_features(melody, BARS, STEPS), form_features(moved, BARS, STEPS)
    for name in FEATURES:
        assert found[name] == pytest.approx(expected[name]), name


@pytest.mark.parametrize("lag", [1, 2, 4, 8])
def test_bars_that_return_are_counted_at_their_distance(lag):
    features = form_features(melody_of([bar_of(index % lag) for index in range(BARS)]), BARS, STEPS)
    for number, other in enumerate(LAGS):
        assert features["bar_returns"][number] == (1.0 if other % lag == 0 else 0.0)
    assert features["distinct_bars"] == [lag / BARS]
    assert features["bar_returns_anywhere"][0] == (BARS - lag) / BARS
    assert features["longest_run_of_returns"] == [BARS - lag]


def test_nothing_returns_in_bars_that_differ():
    features = form_features(melody_of([bar_of(index) for index in range(BARS)]), BARS, STEPS)
    assert features["bar_returns"] == [0.0] * len(LAGS)
    assert features["figures_return"] == [0.0]
    assert features["period"][1] == 0.0
    assert features["distinct_bars"] == [1.0]


def test_a_period_is_answered_after_eight_bars():
    bars = [bar_of(index) for index in range(BARS)]
    bars[8:12] = bars[:4]
    assert form_features(melody_of(bars), BARS, STEPS)["period"] == [1.0, 1.0]


def test_a_figure_returns_across_bar_lines_and_in_another_key():
    pitch = [*TUNE, *(value + 5 for value in TUNE)]
    melody = {"pitch": pitch, "start": [3 * index for index in range(16)], "duration": [2] * 16}
    features = form_features(melody, BARS, STEPS)
    positions = len(pitch) - FIGURE_NOTES + 1
    expected = (len(TUNE) - FIGURE_NOTES + 1) / positions
    assert features["figures_heard_before"] == [expected, 0.0, expected]


def test_a_repeated_note_is_no_return_of_itself():
    """A figure must end before it begins again."""
    melody = {"pitch": [60] * FIGURE_NOTES + [62], "start": list(range(FIGURE_NOTES + 1)), "duration": [1] * 7}
    assert form_features(melody, BARS, STEPS)["figures_heard_before"][0] == 0.0


def test_intervals_stray_notes_and_rests_are_counted():
    melody = {
        "pitch": [60, 60, 60, 72, 71, 66, 60],
        "start": [0, 2, 4, 6, 8, 10, 40],
        "duration": [2, 2, 2, 2, 2, 2, 8],
    }
    features = form_features(melody, BARS, STEPS)
    assert features["interval_histogram"] == [2 / 6, 1 / 6, 0, 0, 2 / 6, 1 / 6, 0]
    assert features["interval_mean"] == [(12 + 1 + 5 + 6) / 6]
    assert features["hammering"] == [3]
    assert features["leaps_resolved"] == [0.5]  # the octave is, the fourth goes on
    assert features["stray_pitch_classes"] == [2]
    assert features["rests"] == [(256 - 48) / 16, (28 + 208) / 256, 2]
    assert features["phrases"][:2] == [2 / 16, 3.5]


def test_too_few_notes_have_no_form_and_wrong_sizes_are_refused():
    alone = {"pitch": [60], "start": [0], "duration": [4]}
    assert form_features(alone) == dict.fromkeys(FEATURES)
    with pytest.raises(ValueError, match="step 300"):
        form_features({"pitch": [60, 62], "start": [0, 300], "duration": [1, 1]})
    with pytest.raises(ValueError, match="num_bars"):
        form_features(alone, num_bars=0)
