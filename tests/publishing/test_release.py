"""The release: what a stranger downloads, as it lies in the repo."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from symusic import Score

from dataset_script.tunes import embedded_scores
from evaluation.reconstruction import fit_to_grid, summary
from modeling import MelodyProcessor, MelodyVAEConfig, MelodyVAEModel
from modeling.configuration_melody_vae import COMMON_ARGUMENTS
from publishing.release import link_code

ROOT = Path(__file__).parents[2]
RELEASE = ROOT / "release" / "melody-vae-16bar"
STEPS = 256  # of 16 bars in 4/4
LARGEST_WEIGHTS = 25_000_000  # bytes
OTHERS = ("note_density", "rhythmic_complexity", "pitch_range", "mean_pitch", "contour", "repetition")
HIGHEST_START = 1.75  # standard deviations of an attribute; folk tunes repeat themselves more than what was trained on
LOWEST_F1 = 0.85  # of public-domain tunes, free-running; they are simpler than Lakh's

NOT_DEFAULTS = {
    "sizes of a model that trains in hours on a CPU": (
        *("hidden_size", "intermediate_size", "num_attention_heads", "num_encoder_layers"),
    ),
    "train.py sets them in new models; the default is that of checkpoints before them": (
        *("musical_time", "musical_pitch", "previous_token"),
    ),
    "--config_overrides of the stages in configs/release.yaml": ("kl_weight", "free_bits", "noise_probability"),
    "read from the tokenizer": (
        *("vocab_size", "bar_token_ids", "repeat_token_ids", "repeat_lags", "grammar_columns", "fingerprint"),
    ),
    "read from the training data, or measured on it": (
        *("conditions", "attributes", "decoder_conditions", "average_attributes", "key_shares", "section_returns"),
    ),
    "later stages: the prior, the critic, and how they sample": (
        *("num_prior_layers", "critic_size", "sampling_candidates"),
        *("sampling_noise", "sampling_top_p", "variation_levels"),
    ),
}
"""Fields of the release's configuration that differ from their defaults, by reason."""


@pytest.fixture(scope="module")
def release() -> tuple[MelodyVAEModel, MelodyProcessor]:
    return MelodyVAEModel.from_pretrained(RELEASE).eval(), MelodyProcessor.from_pretrained(RELEASE)


def test_its_code_is_this_repositorys():
    code = {file.name: file.read_bytes() for file in RELEASE.glob("*.py")}
    assert "modeling_melody_vae.py" in code
    for name, text in code.items():
        assert text == (ROOT / "modeling" / name).read_bytes(), f"{name}: run python -m publishing.release again"


def test_a_release_in_this_repository_links_to_its_code(tmp_path):
    for output, is_linked in ((RELEASE, True), (tmp_path / "elsewhere", False)):
        folder = tmp_path / str(is_linked)
        folder.mkdir()
        (folder / "modeling_melody_vae.py").write_text("", encoding="utf-8")
        link_code(folder, output)
        assert (folder / "modeling_melody_vae.py").is_symlink() == is_linked
    assert (tmp_path / "True" / "modeling_melody_vae.py").readlink() == (RELEASE / "modeling_melody_vae.py").readlink()


def test_it_is_small_and_whole():
    assert (RELEASE / "model.safetensors").stat().st_size < LARGEST_WEIGHTS
    config = json.loads((RELEASE / "config.json").read_text(encoding="utf-8"))
    assert config["latent_size"] <= 512
    assert config["max_bars"] == 16
    assert config["num_prior_layers"] > 0
    for seed in range(16):
        score = Score(RELEASE / "samples" / f"sample-seed{seed}.mid")
        assert score.note_num() > 8
        for ending in ("mp3", "png"):
            assert (RELEASE / "samples" / f"sample-seed{seed}.{ending}").stat().st_size > 1000
    assert "sample-seed15.mp3" in (RELEASE / "samples" / "index.html").read_text(encoding="utf-8")


def test_its_configuration_is_the_default_but_for_what_has_a_reason():
    written = json.loads((RELEASE / "config.json").read_text(encoding="utf-8"))
    default = MelodyVAEConfig().to_dict()
    assert [name for name in written if not hasattr(MelodyVAEConfig(), name) and name not in COMMON_ARGUMENTS] == []
    different = {name for name in MelodyVAEConfig.__annotations__ if written.get(name) != default[name]}
    assert different == set(itertools.chain(*NOT_DEFAULTS.values()))


def test_its_results_are_of_this_model(release):
    results = json.loads((ROOT / "results" / "release.json").read_text(encoding="utf-8"))
    assert Path(results["model"]).name == RELEASE.name
    assert results["parameters"] == sum(weight.numel() for weight in release[0].parameters())
    assert results["training"] == json.loads((RELEASE / "training_log.json").read_text(encoding="utf-8"))


def test_tunes_come_back(release):
    model, processor = release
    batch = processor(midi=[content for _, content in embedded_scores()], return_tensors="pt")
    originals = [{**line, **fit_to_grid(line, STEPS)} for line in processor.to_lines(batch["input_ids"])]
    decoded = processor.to_lines(model.reconstruct(**batch))
    assert summary(decoded, originals, STEPS)["note_f1"] > LOWEST_F1


@pytest.mark.parametrize("attribute", ["syncopation", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_a_shift_moves_what_is_asked_for_and_little_else(release, attribute):
    """By one standard deviation, in the mean over tunes that do not have a great deal of it already."""
    model, processor = release
    itself = model.config.attributes.index(attribute)

    def attributes_of(latents, bars):
        return model.attributes_of(model.read_lines(model.decode(latents, bars=bars)))

    tunes = [content for _, content in itertools.islice(embedded_scores(), 12)]
    batch = processor(midi=tunes, return_tensors="pt")
    latents = model.encode(**batch).latent_mean.detach()
    bars = model._known_bars(batch["input_ids"]).sum(-1)
    chosen = (attributes_of(latents, bars)[:, itself] < HIGHEST_START).nonzero().flatten()[:8]
    latents, bars = latents[chosen], bars[chosen]
    shifted = model.shift(latents, attribute, 1.0, bars=bars)
    moved = (attributes_of(shifted, bars) - attributes_of(latents, bars)).mean(0)
    assert 0.8 <= moved[itself] <= 1.2
    assert moved.abs().masked_fill(torch.arange(len(moved)) == itself, 0).max() <= 0.3


def test_a_sample_is_a_melody_without_this_repository(tmp_path):
    """What README promises: AutoModel, AutoProcessor, a seed, a MIDI file."""
    code = f"""
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained({str(RELEASE)!r}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({str(RELEASE)!r}, trust_remote_code=True)
ids = model.sample(2, seed=0, bars=16)
for index, score in enumerate(processor.to_scores(ids)):
    score.dump_midi(f"{{index}}.mid")
print([line["bars"] for line in processor.to_lines(ids)])
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip().endswith("[16, 16]")
    assert all(Score(tmp_path / f"{index}.mid").note_num() > 8 for index in range(2))
