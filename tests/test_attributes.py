"""Attributes of melodies by hand-made examples, and directions that change one and leave the others."""

import json
import sys

import numpy as np
import pytest
import torch
from test_modeling import make_latent, make_model
from test_train import arguments, dataset, run, trained  # noqa: F401 (fixtures)

from evaluation import attributes, operations
from modeling import MelodyVAEModel


def line(start, pitch, duration=None, bars=2):
    duration = duration or [1] * len(start)
    return {
        "start": start,
        "pitch": pitch,
        "duration": duration,
        "bars": bars,
        "steps_per_beat": 4,
        "time_signature": "4/4",
    }


PLAIN = line(list(range(0, 32, 4)), [60] * 8, [4] * 8)


def test_values_by_hand():
    assert attributes.note_density(PLAIN) == 4
    assert attributes.rhythmic_complexity(PLAIN) == 0
    assert attributes.rhythmic_complexity(line([0, 1, 3, 4, 6], [60] * 5)) == 1  # intervals 1, 2, 1, 2
    assert attributes.pitch_range(line([0, 4, 8], [62, 55, 67])) == 12
    assert attributes.mean_pitch(line([0, 4], [60, 67])) == 63.5
    assert attributes.contour(line([0, 1, 2, 3], [60, 62, 64, 65])) == 1
    assert attributes.contour(line([0, 1, 2, 3], [65, 64, 62, 60])) == -1
    assert attributes.contour(line([0, 1, 2], [60, 62, 60])) == 0
    assert attributes.repetition(PLAIN) == 0.5
    assert attributes.repetition(line([0, 4, 16, 20], [60, 64, 65, 69])) == 0.5  # transposed
    assert attributes.repetition(line([0, 4, 16, 22], [60, 64, 65, 69])) == 0
    assert attributes.syncopation(PLAIN) == 0
    assert attributes.syncopation(line([0, 2, 6, 8], [60] * 4, [2, 4, 2, 2])) == 0.25  # only the one across beat 2
    assert attributes.syncopation(line([0, 2, 4, 6], [60] * 4, [2, 2, 2, 2])) == 0


@pytest.mark.parametrize("melody", [line([], []), line([0], [60])])
def test_few_notes_have_values(melody):
    assert np.isfinite(attributes.measure([melody])).all()


def test_attributes_do_not_depend_on_the_key_but_mean_pitch():
    low, high = line([0, 2, 4, 9, 16], [60, 64, 62, 67, 60]), line([0, 2, 4, 9, 16], [65, 69, 67, 72, 65])
    changed = (attributes.measure([high]) - attributes.measure([low]))[0].round(9)
    assert dict(zip(attributes.ATTRIBUTES, changed, strict=True)) == {
        **dict.fromkeys(attributes.ATTRIBUTES, 0.0),
        "mean_pitch": 5.0,
    }


def test_directions_change_one_prediction_by_one():
    random = np.random.default_rng(0)
    latents = random.normal(size=(500, 13)) @ random.normal(size=(13, 13))
    truth = random.normal(size=(13, 3))
    ways, weights, intercepts = attributes.directions(latents, latents @ truth + 5)
    np.testing.assert_allclose(ways @ weights, np.eye(3), atol=1e-8)
    np.testing.assert_allclose(ways @ truth, np.eye(3), atol=0.05)  # the ridge is small
    np.testing.assert_allclose(latents @ weights + intercepts, latents @ truth + 5, atol=1.0)


def test_shift_moves_by_the_direction():
    model = make_model(attributes=["density", "range"])
    model.attribute_directions.normal_()
    latent = make_latent()
    moved = model.shift(latent, attribute="range", amount=-2.0)
    torch.testing.assert_close(moved, latent - 2 * model.attribute_directions[1])
    with pytest.raises(ValueError, match="unknown attribute 'mood'; this model has density, range"):
        model.shift(latent, attribute="mood")
    with pytest.raises(ValueError, match="this model has none"):
        make_model().shift(latent, attribute="mood")


def test_fitting_keeps_the_model_and_adds_directions(trained, dataset, tmp_path, monkeypatch, capsys):  # noqa: F811
    model = MelodyVAEModel.from_pretrained(trained)
    from modeling import MelodyProcessor

    folder = tmp_path / "model"
    model.save_pretrained(folder)
    MelodyProcessor.from_pretrained(trained).save_pretrained(folder)
    # The decoder of a model that has hardly been trained says the same whatever its latent: its response is made up.
    asked = []
    monkeypatch.setattr(attributes, "response", lambda *given: asked.append(given) or 2 * np.eye(7))
    command = ["--model", str(folder), "--dataset", str(dataset), "--train_melodies", "20", "--melodies", "4"]
    assert attributes.main([*command, "--report", str(tmp_path / "report.json")]) == 0
    fitted = MelodyVAEModel.from_pretrained(folder)
    assert fitted.config.attributes == list(attributes.ATTRIBUTES)
    for name, value in model.state_dict().items():
        assert torch.equal(fitted.state_dict()[name], value), name
    np.testing.assert_allclose(fitted.attribute_directions.numpy(), asked[0][3] / 2, rtol=1e-4)
    assert set(json.loads((tmp_path / "report.json").read_text())) >= {"r_squared", "response_to_plus_one"}


def test_a_wrong_model_is_one_line(capsys):
    assert attributes.main(["--model", "nowhere/at-all", "--dataset", "nowhere"]) == 2
    assert "nowhere/at-all" in capsys.readouterr().err
    assert sys.exc_info()[0] is None


def test_note_distance_and_bar_similarity_by_hand():
    one, other = line([0, 4, 16], [60, 62, 60]), line([0, 4, 16], [60, 62, 64])
    assert operations.note_distance(one, one) == 0
    assert operations.note_distance(one, other) == pytest.approx(1 / 3)
    assert operations.note_distance(line([], []), line([], [])) == 0
    assert operations.note_distance(line([], []), one) == 1
    assert operations.bar_similarity(one) == {1: 0.5}  # bar 0 has two notes, bar 1 one of them
    assert operations.bar_similarity(PLAIN) == {1: 1.0}
    assert operations.mean_similarity([one, PLAIN] * 2)["1"] == 0.75


def test_the_key_is_the_data_sets():
    assert operations.key_of(line([0, 4, 8, 12, 16, 20], [62, 66, 69, 67, 66, 62], [4] * 6)) == "D major"
