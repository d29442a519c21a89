"""Calibration: a similarity that is asked for is the share of the notes that stays."""

import copy
import json
from functools import partial

import numpy as np
import pytest

from evaluation import calibration
from modeling import MelodyVAEModel
from tests.builders.lines import processor_for
from tests.builders.models import make_model


@pytest.mark.parametrize("fall", [lambda level: 1 - level, lambda level: (1 - level) ** 3, lambda level: 1 - level**4])
def test_levels_give_the_similarities_that_were_measured(fall):
    levels = calibration.invert([fall(level) for level in calibration.LEVELS])
    assert levels == sorted(levels, reverse=True)
    assert (levels[0], levels[-1]) == (1.0, 0.0)
    wanted = np.linspace(0, 1, len(levels))
    assert [fall(level) for level in levels] == pytest.approx(wanted, abs=0.05)


def test_a_measurement_that_rises_by_chance_is_no_way_back():
    noisy = [1 - level for level in calibration.LEVELS]
    noisy[4], noisy[5] = noisy[5], noisy[4]
    levels = calibration.invert(noisy)
    assert levels == sorted(levels, reverse=True)


def test_variations_follow_the_levels(monkeypatch):
    processor = processor_for(4)
    model, asked = make_model(processor, noise_probability=0.5, max_bars=16), []
    model.set_grammar(processor.grammar_table())
    monkeypatch.setattr(MelodyVAEModel, "decode", lambda self, latents, **options: asked.append(options))
    latent = model.encode(**processor(lines=LINE, return_tensors="pt")).latent_mean
    model.config.variation_levels = [1.0, 0.5, 0.4, 0.0]
    for similarity, level in ((0.0, 1.0), (1 / 3, 0.5), (0.5, 0.45), (5 / 6, 0.2)):
        model.vary(latent, n=1, similarity=similarity, seed=0)
        assert asked[-1]["noise_level"].unique().tolist() == pytest.approx([level], abs=1e-5)


LINE = {
    "pitch": [60 + index % 7 for index in range(128)],
    "start": list(range(0, 256, 2)),
    "duration": [2] * 128,
    "time_signature": "4/4",
    "steps_per_beat": 4,
    "bars": 16,
}


def test_the_command_writes_the_configuration(tmp_path, monkeypatch):
    processor = copy.deepcopy(processor_for(4))
    model = make_model(processor, noise_probability=0.5, max_bars=16)
    model.set_grammar(processor.grammar_table())
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    monkeypatch.setattr(calibration, "choose_windows", lambda *arguments: [LINE])
    monkeypatch.setattr("sys.argv", ["calibration", "--model", str(tmp_path), "--dataset", "none", "--melodies", "1"])
    assert calibration.main() == 0
    levels = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["variation_levels"]
    assert len(levels) == calibration.SIMILARITIES
    assert levels == sorted(levels, reverse=True)


def test_average_attributes_are_chosen_where_more_notes_come_back(monkeypatch):
    processor = processor_for(4)
    conditions = {"attributes": ["note_density"], "decoder_conditions": ["attributes"], "num_prior_layers": 1}
    model = make_model(processor, noise_probability=0.5, max_bars=16, **conditions)
    model.set_grammar(processor.grammar_table())
    choose = partial(calibration.choose_average_attributes, model, processor, [LINE])
    for better in (True, False):

        def f1(*_, better=better):
            return {"note_f1": 0.6 if model.config.average_attributes is better else 0.5}

        monkeypatch.setattr(calibration, "summary", f1)
        assert choose() is better
        assert model.config.average_attributes is False
    model.config.decoder_conditions = ["key"]
    assert choose() is False


def test_a_model_without_noise_has_nothing_to_calibrate(tmp_path, monkeypatch, capsys):
    processor = processor_for(4)
    make_model(processor).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    monkeypatch.setattr("sys.argv", ["calibration", "--model", str(tmp_path), "--dataset", "none"])
    assert calibration.main() == 2
    assert "nothing to calibrate" in capsys.readouterr().err
