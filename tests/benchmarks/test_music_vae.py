"""The curve of MusicVAE: a short training writes its points, and the report shows them."""

import json

import pytest

from benchmarks import music_vae
from command import UserError
from documents.blocks import music_vae_curve

TINY = ["--encoder_size", "16", "--decoder_size", "8", "--batch_size", "8", "--held_out", "4"]


def test_the_curve(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(music_vae, "FIRST_POINT", 8)
    monkeypatch.setattr(music_vae, "SAMPLING_RATE", 0.5)  # from the first steps on some are drawn
    output = tmp_path / "music_vae.json"
    argv = ["--dataset", str(dataset), "--output", str(output), "--steps", "3", *TINY]
    music_vae.train(music_vae.parse_args(argv))
    points = json.loads(output.read_text(encoding="utf-8"))["points"]
    assert [point["windows"] for point in points] == [8, 16, 24]
    assert points[-1]["reconstruction_nats"] < points[0]["reconstruction_nats"]
    assert 0 < points[-1]["step_accuracy_of_silence"] < 1
    assert "| 24 | " in music_vae_curve(tmp_path)
    assert not music_vae_curve(tmp_path / "elsewhere")


def test_too_few_windows_are_refused(dataset, tmp_path):
    argv = ["--dataset", str(dataset), "--output", str(tmp_path / "x.json"), "--batch_size", "1000000"]
    with pytest.raises(UserError, match="take a larger data set"):
        music_vae.train(music_vae.parse_args(argv))
