"""Attributes of melodies by hand-made examples, and how far a model moves them when asked."""

import copy
import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataset_script import features
from evaluation import attribute_control, operations
from modeling import MelodyVAEModel
from modeling import melody_line_melody_vae as measured
from modeling.modeling_melody_vae import MelodyVAEPosterior
from modeling.note_editing_melody_vae import OWN_WEIGHT, measure
from tests.builders.lines import processor_for
from tests.builders.models import make_bare_model, model_for


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
    assert measured.note_density(PLAIN) == 4
    assert measured.rhythmic_complexity(PLAIN) == 0
    assert measured.rhythmic_complexity(line([0, 1, 3, 4, 6], [60] * 5)) == 1  # intervals 1, 2, 1, 2
    assert measured.pitch_range(line([0, 4, 8], [62, 55, 67])) == 12
    assert measured.mean_pitch(line([0, 4], [60, 67])) == 63.5
    assert measured.contour(line([0, 1, 2, 3], [60, 62, 64, 65])) == 1
    assert measured.contour(line([0, 1, 2, 3], [65, 64, 62, 60])) == -1
    assert measured.contour(line([0, 1, 2], [60, 62, 60])) == 0
    assert measured.repetition(PLAIN) == 0.5
    assert measured.repetition(line([0, 4, 16, 20], [60, 64, 65, 69])) == 0.5  # transposed
    assert measured.repetition(line([0, 4, 16, 22], [60, 64, 65, 69])) == 0
    assert measured.syncopation(PLAIN) == 0
    assert measured.syncopation(line([0, 2, 6, 8], [60] * 4, [2, 4, 2, 2])) == 0.25  # only the one across beat 2
    assert measured.syncopation(line([0, 2, 4, 6], [60] * 4, [2, 2, 2, 2])) == 0


@pytest.mark.parametrize("melody", [line([], []), line([0], [60])])
def test_few_notes_have_values(melody):
    assert measure([melody]).isfinite().all()


def test_attributes_do_not_depend_on_the_key_but_mean_pitch():
    low, high = line([0, 2, 4, 9, 16], [60, 64, 62, 67, 60]), line([0, 2, 4, 9, 16], [65, 69, 67, 72, 65])
    changed = (measure([high]) - measure([low]))[0].tolist()
    assert dict(zip(measured.ATTRIBUTES, changed, strict=True)) == {
        **dict.fromkeys(measured.ATTRIBUTES, 0.0),
        "mean_pitch": 5.0,
    }


@given(st.lists(st.tuples(st.integers(21, 108), st.integers(1, 40)), max_size=12).map(lambda notes: notes or [(60, 1)]))
def test_the_key_is_the_data_sets(notes):
    pitch, duration = np.array(notes, dtype=np.int64).T
    (index,), _ = features.keys(pitch, duration, np.array([0, len(pitch)]))
    assert measured.key_of({"pitch": pitch.tolist(), "duration": duration.tolist()}) == features.KEY_NAMES[index]


def test_names_of_keys_and_profiles_are_the_data_sets():
    assert measured.KEY_NAMES == features.KEY_NAMES
    np.testing.assert_allclose(measured.KEY_PROFILES, features.CENTRED_PROFILES)


# --- The probe and the shifts ---------------------------------------------------------------------------------------


def test_a_probe_finds_what_is_linear_and_only_that():
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 701, 13, generator=random, dtype=torch.double)
    truth = torch.randn(13, 1, generator=random, dtype=torch.double)
    noise = torch.randn(3, 701, 1, generator=random, dtype=torch.double)
    values = torch.cat([latents @ truth + 5, noise, latents @ truth + noise * truth.norm()], dim=-1)
    explained = attribute_control.probe(*zip(latents, values, strict=True))
    assert explained[0] > 0.999
    assert -0.05 < explained[1] < 0.05
    assert 0.4 < explained[2] < 0.6  # half of the variance is noise
    weights, bias = attribute_control.ridge_regression(latents[0], values[0][:, :1], 1e-9)
    torch.testing.assert_close(weights, truth, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(bias, torch.tensor([5.0], dtype=torch.double), atol=1e-6, rtol=1e-6)


@pytest.fixture(scope="module")
def processor():
    return processor_for(4)


@pytest.fixture(scope="module")
def model(processor) -> MelodyVAEModel:
    plain = model_for(4)
    names = ["mean_pitch", "note_density"]
    config = copy.deepcopy(plain.config)
    config.num_prior_layers, config.attributes, config.conditions = 1, names, {"key": list(measured.KEY_NAMES)}
    torch.manual_seed(0)
    model = MelodyVAEModel(config).eval()
    model.load_state_dict(model.state_dict() | plain.state_dict())
    model.set_grammar(processor.grammar_table())
    with torch.no_grad():
        model.prior.direction_proj.weight.normal_(std=0.3)
        model.prior.attribute_mean.copy_(torch.tensor([60.0, 4.0]))
        model.prior.attribute_scale.copy_(torch.tensor([10.0, 3.0]))
    return model


def test_a_model_measures_its_attributes_in_standard_deviations(model):
    asked = model.attributes_of([line([0, 4], [70, 90]), PLAIN])
    torch.testing.assert_close(asked, torch.tensor([[2.0, -1.0], [0.0, 0.0]]))


def test_a_shift_never_ends_farther_from_the_wish_than_it_began(model):
    latent = torch.randn(5, model.config.latent_size, generator=torch.Generator().manual_seed(3))

    def attributes_of(latents):
        return model.attributes_of(model.read_lines(model.decode(latents, bars=2)))

    before = attributes_of(latent)
    for index, name in enumerate(model.config.attributes):
        wish, weight = before.clone(), torch.ones(2)
        wish[:, index] += 1.5
        weight[index] = OWN_WEIGHT
        error = (weight * (attributes_of(model.shift(latent, name, amount=1.5, bars=2)) - wish).square()).sum(-1)
        assert (error <= OWN_WEIGHT * 1.5**2 + 1e-4).all()  # of a latent that stays where it is
    torch.testing.assert_close(model.shift(latent, "mean_pitch", 0.0, bars=2), latent)
    torch.testing.assert_close(model.shift(latent[0], "mean_pitch", 1.5, bars=2).shape, latent[0].shape)


def test_a_shift_does_as_it_is_told_where_latents_hold_all_of_a_melody(model, monkeypatch):
    melodies: list[torch.Tensor] = []

    def encode(ids, attention_mask=None):
        latents = torch.zeros(len(ids), model.config.latent_size)
        latents[:, 0] = torch.arange(len(melodies), len(melodies) + len(ids))
        melodies.extend(ids)
        return MelodyVAEPosterior(latent_mean=latents)

    def decode(latents, bars=None):
        return torch.nn.utils.rnn.pad_sequence([melodies[int(each)] for each in latents[:, 0]], batch_first=True)

    monkeypatch.setattr(model, "encode", encode)
    monkeypatch.setattr(model, "decode", decode)
    tunes = [PLAIN, line(list(range(0, 32, 2)), [60, 64, 67, 65] * 4, [2] * 16)]
    latent = model.encode(model.write_lines(tunes)).latent_mean
    for index, name in enumerate(model.config.attributes):
        for amount in (-1.0, 1.0):
            shifted = model.shift(latent, name, amount, bars=2)
            moved = model.attributes_of(model.read_lines(decode(shifted))) - model.attributes_of(tunes)
            torch.testing.assert_close(moved[:, index], torch.full((2,), amount), atol=0.35, rtol=0)
            assert moved[:, 1 - index].abs().max() < 0.35


def test_a_shift_of_an_unknown_attribute_is_refused(model):
    with pytest.raises(ValueError, match="unknown attribute 'mood'; this model has mean_pitch, note_density"):
        model.shift(torch.zeros(1, model.config.latent_size), attribute="mood")
    with pytest.raises(ValueError, match="this model has none"):
        make_bare_model().shift(torch.zeros(1, 7), attribute="mood")


def test_responses_are_differences_in_standard_deviations(model, monkeypatch):
    monkeypatch.setattr(attribute_control, "BARS", 2)
    latents = torch.randn(3, model.config.latent_size, generator=torch.Generator().manual_seed(4))
    moved = attribute_control.responses(model, latents, 1.0)
    assert moved.shape == (2, 3, 2)
    assert torch.equal(attribute_control.responses(model, latents, 0.0), torch.zeros(2, 3, 2))


def test_a_wrong_model_is_one_line(capsys):
    assert attribute_control.main(["--model", "nowhere/at-all", "--dataset", "nowhere"]) == 2
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


def test_what_is_measured_is_kept_part_by_part(trained, dataset, tmp_path, monkeypatch, capsys):
    output, attention = tmp_path / "model.json", tmp_path / "attention.json"
    names = ("worst_ratio", "largest_difference", "memory_mib", "targets", "machine")
    attention.write_text(json.dumps(dict.fromkeys(names, 1.0)), encoding="utf-8")
    command = ["--model", str(trained), "--dataset", str(dataset), "--output", str(output), "--melodies", "2"]
    command += ["--probe_melodies", "16", "--attention", str(attention)]
    assert operations.main([*command, "--parts", "infill"]) == 0
    first = json.loads(output.read_text(encoding="utf-8"))
    assert "variations" not in first
    monkeypatch.setattr(operations.Operations, "infills", lambda *_: pytest.fail("measured again"))
    assert operations.main([*command, "--parts", "variations", "infill", "speed"]) == 0
    second = json.loads(output.read_text(encoding="utf-8"))
    assert second["speed"]["melodies"] == 2
    assert 0 < second["speed"]["sample_seconds"] < 60
    assert {name: second[name] for name in first} == first
    assert second["variations"]["1.0"] == 0
    assert operations.main([*command, "--bars", "3"]) == 2
    assert f"{output}: of another model or other options" in capsys.readouterr().err
    assert json.loads(output.read_text(encoding="utf-8")) == second
