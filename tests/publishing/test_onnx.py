"""The exported model writes the same tokens as torch, with numpy and onnxruntime alone."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import export_onnx
from command import UserError
from generation.loading import load_model
from modeling import MelodyProcessor, MelodyVAEModel
from modeling.processing_melody_vae import line_to_words
from publishing.onnx import export as onnx_export
from publishing.onnx.onnx_melody_vae import OnnxMelodyVAE
from tests.builders.models import learn, make_model

Z, N = 14, 7
PITCHES = [60, 62, 64, 65, 67, 69, 71, 72]


def make_line(seed: int, bars: int) -> dict:
    generator = random.Random(seed)
    starts = sorted(generator.sample(range(16 * bars), 5 * bars))
    return {
        "pitch": [generator.choice(PITCHES) for _ in starts],
        "start": starts,
        "duration": [1] * len(starts),
        "time_signature": "4/4",
        "steps_per_beat": 4,
        "bars": bars,
    }


LINES = [make_line(seed, bars) for seed, bars in enumerate([3, 1, 7, 2, 5])]


def save_model(folder: Path, learnt: bool = True, **overrides) -> Path:
    """Save a tiny model with its processor."""
    processor = MelodyProcessor.train([line_to_words(line) for line in LINES], vocab_size=331, max_bars=N)
    sizes = {"hidden_size": 26, "intermediate_size": 53, "num_encoder_layers": 2, "num_hidden_layers": 3}
    fields = {**sizes, "latent_size": Z, "free_bits": 1e3, "initializer_range": 0.1, **overrides}
    model = make_model(processor, **fields)
    if model.config.musical_time:
        model.set_grammar(processor.grammar_table())
    if learnt:
        learn(model, processor(lines=LINES, return_tensors="pt"), steps=100, learning_rate=5e-3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, MelodyVAEModel, MelodyProcessor]:
    folder = save_model(tmp_path_factory.mktemp("onnx") / "model")
    assert export_onnx.main(["--model", str(folder), "--output", str(folder / "onnx")]) == 0
    processor, model = load_model(str(folder))
    return folder / "onnx", model.eval(), processor


def make_latent(batch: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, Z, generator=torch.Generator().manual_seed(seed))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("bars", [None, 1, 5, "each"])
@pytest.mark.parametrize("max_length", [2, 17, 67])
def test_greedy_tokens_equal_torchs(exported, batch, bars, max_length):
    folder, model, _ = exported
    counts = [7, 1, 3][:batch] if bars == "each" else bars
    bars = torch.tensor(counts) if bars == "each" else bars
    for seed in (2, 3, 5):
        latent = make_latent(batch, seed)
        expected = model.decode(latent, bars=bars, max_length=max_length)
        ids = OnnxMelodyVAE(folder).generate(latent.numpy(), bars=counts, max_length=max_length)
        assert ids.tolist() == expected.tolist()


@pytest.mark.slow
def test_different_latents_write_different_melodies(exported):
    rows = OnnxMelodyVAE(exported[0]).generate(make_latent(5).numpy(), max_length=31).tolist()
    assert len({tuple(row) for row in rows}) == 5
    assert len({token for row in rows for token in row}) > 20


@pytest.mark.slow
def test_a_melody_goes_on_to_its_end_as_torchs_does(exported):
    folder, model, _ = exported
    latent = make_latent(3, seed=7)
    expected = model.decode(latent, bars=torch.tensor([1, 2, 3]))
    ids = OnnxMelodyVAE(folder).generate(latent.numpy(), bars=np.array([1, 2, 3]))
    assert ids.tolist() == expected.tolist()
    assert (ids == model.config.eos_token_id).sum(-1).tolist() == [1, 1, 1]


@pytest.mark.slow
def test_padded_beginnings_are_continued_as_by_torch(exported):
    folder, model, processor = exported
    batch = processor(lines=LINES[:3], bars=3, primer=True, return_tensors="pt")
    assert (batch["attention_mask"] == 0).any()
    latent = make_latent(3, seed=11)
    expected = model.decode(latent, **batch, bars=6, max_length=97)
    ids = OnnxMelodyVAE(folder).generate(
        latent.numpy(), batch["input_ids"].numpy(), batch["attention_mask"].numpy(), bars=6, max_length=97
    )
    assert ids.tolist() == expected.tolist()


@pytest.mark.slow
def test_encoder_equals_torchs(exported):
    folder, model, processor = exported
    runtime = OnnxMelodyVAE(folder)
    for lines in (LINES[:1], LINES):
        batch = processor(lines=lines, return_tensors="pt")
        with torch.no_grad():
            posterior = model.encode(**batch)
        mean, log_variance = runtime.encode(batch["input_ids"].numpy(), batch["attention_mask"].numpy())
        np.testing.assert_allclose(mean, posterior.latent_mean, atol=1e-4)
        np.testing.assert_allclose(log_variance, posterior.latent_log_variance, atol=1e-4)
    ids = processor(lines=LINES[:1], return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(runtime.encode(ids)[0], runtime.encode(ids, np.ones_like(ids))[0])


@pytest.mark.slow
def test_the_runtime_refuses_what_torch_refuses(exported):
    runtime = OnnxMelodyVAE(exported[0])
    bar = runtime.config["bar_token_ids"][0]
    with pytest.raises(ValueError, match=f"{N + 1} bars does not fit a latent of {N}"):
        runtime.encode(np.full((1, N + 1), bar))
    with pytest.raises(ValueError, match=f"latent_size={Z}, and no latent"):
        runtime.generate()


ALONE = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
import numpy as np
from onnx_melody_vae import OnnxMelodyVAE
model = OnnxMelodyVAE(".", threads=1)
print(model.generate(np.array([eval(sys.argv[1])]), bars=2).tolist())
"""


@pytest.mark.slow
def test_the_folder_runs_without_torch_and_without_the_repository(exported):
    folder, model, _ = exported
    latent = make_latent(1, seed=13)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", ALONE, str(latent[0].tolist())],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout) == model.decode(latent, bars=2).tolist()


@pytest.mark.slow
def test_musical_time_and_previous_tokens_are_read_as_by_torch(tmp_path, capsys):
    """From left-padded beginnings too, and by the encoder."""
    folder = save_model(tmp_path / "model", musical_time=True, musical_pitch=True, previous_token=True, hidden_size=32)
    assert export_onnx.main(["--model", str(folder), "--output", str(folder / "onnx")]) == 0
    processor, model = load_model(str(folder))
    runtime = OnnxMelodyVAE(folder / "onnx")
    batch = processor(lines=LINES, return_tensors="pt")
    assert np.array_equal(
        runtime.musical_position(batch["input_ids"].numpy()), model.musical_position(batch["input_ids"])
    )
    assert np.array_equal(runtime.musical_pitch(batch["input_ids"].numpy()), model.musical_pitch(batch["input_ids"]))
    assert (model.musical_position(batch["input_ids"]) % 1).unique().numel() > 4
    mean, _ = runtime.encode(batch["input_ids"].numpy(), batch["attention_mask"].numpy())
    assert np.allclose(mean, model.encode(**batch).latent_mean.detach(), atol=1e-4)
    model.config.grammar_columns = 0
    primer = batch["input_ids"][:, :6]
    padded = torch.nn.functional.pad(primer, (2, 0), value=model.config.pad_token_id)
    mask = (padded != model.config.pad_token_id).long()
    latent = make_latent(len(primer))
    expected = model.generate(padded, attention_mask=mask, latent=latent, bars=N, do_sample=False)
    found = runtime.generate(latent.numpy(), padded.numpy(), mask.numpy(), bars=N)
    assert found.tolist() == expected.tolist()
    alone = model.generate(primer[:1], latent=latent[:1], bars=N, do_sample=False)[0]
    assert expected[0, 2:][: len(alone)].tolist() == alone.tolist()


@pytest.mark.slow
def test_a_music_transformer_has_a_decoder_only(tmp_path, capsys):
    folder = save_model(tmp_path / "model", latent_size=0, num_hidden_layers=2)
    assert export_onnx.main(["--model", str(folder), "--output", str(folder / "onnx")]) == 0
    names = {file.name for file in (folder / "onnx").iterdir()}
    assert names == {"decoder.onnx", "onnx_config.json", "onnx_melody_vae.py"}
    _, model = load_model(str(folder))
    primer = torch.tensor([[1, model.config.bar_token_ids[0], 19], [1, model.config.bar_token_ids[1], 23]])
    expected = model.generate(primer, attention_mask=torch.ones_like(primer), bars=3, do_sample=False)
    runtime = OnnxMelodyVAE(folder / "onnx")
    assert runtime.generate(input_ids=primer.numpy(), bars=3).tolist() == expected.tolist()
    with pytest.raises(ValueError, match="latent_size=0"):
        runtime.encode(primer.numpy())
    with pytest.raises(ValueError, match="latent_size=0, and a latent"):
        runtime.generate(np.zeros((1, Z)))


@pytest.mark.slow
def test_a_model_with_a_grammar_is_compared_without(exported):
    folder, _, _ = exported
    processor, model = load_model(str(folder.parent))
    model.set_grammar(processor.grammar_table())
    assert onnx_export.compare(model, folder) > N


def test_a_difference_from_torch_ends_with_a_warning(tmp_path, monkeypatch):
    _, model = load_model(str(save_model(tmp_path / "model", learnt=False)))
    monkeypatch.setattr(OnnxMelodyVAE, "__init__", lambda self, folder: None)
    monkeypatch.setattr(OnnxMelodyVAE, "generate", lambda self, latent, bars: np.array([[1, 2]]))
    with pytest.raises(UserError, match="another melody than torch"):
        onnx_export.compare(model, tmp_path)


def test_a_folder_without_graphs_is_refused(tmp_path):
    (tmp_path / "onnx_config.json").write_text('{"latent_size": 0}', encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"decoder\.onnx is missing; write it with export_onnx\.py"):
        OnnxMelodyVAE(tmp_path)


@pytest.mark.parametrize("case", ["no model", "empty folder", "output is a file", "onnx is not installed"])
def test_bad_input_is_one_line_and_exit_code_2(case, tmp_path, capsys, monkeypatch):
    model, output = tmp_path / "model", tmp_path / "onnx"
    if case == "empty folder":
        model.mkdir()
    elif case == "output is a file":
        save_model(model, learnt=False)
        output.write_text("", encoding="utf-8")
    elif case == "onnx is not installed":
        monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    capsys.readouterr()
    assert export_onnx.main(["--model", str(model), "--output", str(output)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    reason = {
        "no model": "no such folder",
        "empty folder": "config.json is missing",
        "output is a file": "choose another --output",
        "onnx is not installed": 'run pip install -e ".[onnx]"',
    }
    assert line.startswith("error: ")
    assert reason[case] in line
