"""The exported model writes the same tokens as torch, with numpy and onnxruntime alone."""

import json
import os
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
from modeling.melody_line_melody_vae import key_of
from publishing.onnx import export as onnx_export
from publishing.onnx.golden import trimmed
from publishing.onnx.onnx_melody_vae import OnnxMelodyVAE
from tests.builders.models import make_bare_model
from tests.builders.onnx_models import LINES, N, Z, export_model, export_plain, export_rich, save_model

Exported = tuple[OnnxMelodyVAE, MelodyVAEModel, MelodyProcessor]


def open_exported(folder: Path) -> Exported:
    processor, model = load_model(str(folder))
    return OnnxMelodyVAE(folder / "onnx", threads=1), model.eval(), processor


@pytest.fixture(scope="module")
def plain(shared) -> Exported:
    return open_exported(shared("onnx-plain", export_plain))


@pytest.fixture(scope="module")
def rich(shared) -> Exported:
    return open_exported(shared("onnx-rich", export_rich))


@pytest.fixture(params=["plain", "rich"])
def exported(request) -> Exported:
    return request.getfixturevalue(request.param)


def make_latent(batch: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, Z, generator=torch.Generator().manual_seed(seed))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("bars", [None, 1, 5, [7, 1, 3]])
@pytest.mark.parametrize("max_length", [2, 17, None])
def test_greedy_tokens_equal_torchs(exported, batch, bars, max_length):
    runtime, model, _ = exported
    bars = bars[:batch] if isinstance(bars, list) else bars
    limit = {} if max_length is None else {"max_length": max_length}
    for seed in (2, 3, 5, 7):
        latent = make_latent(batch, seed)
        expected = model.decode(latent, bars=bars, **limit)
        assert runtime.decode(latent.numpy(), bars=bars, **limit).tolist() == expected.tolist()


@pytest.mark.slow
def test_different_melodies_are_reconstructed_as_by_torch(exported):
    runtime, model, processor = exported
    batch = processor(lines=LINES, return_tensors="pt")
    rows = runtime.reconstruct(batch["input_ids"].numpy()).tolist()
    assert rows == model.reconstruct(**batch, refinement_steps=0).tolist()
    assert len({tuple(row) for row in rows}) == len(LINES)
    assert len({token for row in rows for token in row}) > 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"scale": "D dorian", "lowest_pitch": [None, 55, 60], "highest_pitch": 79},
        {"time_signature": ["3/4", None, "6/8"], "bars": [2, 3, 7], "max_rest": 0.5},
    ],
)
def test_constraints_hold_as_in_torch(exported, options):
    runtime, model, _ = exported
    for seed in (11, 13):
        latent = make_latent(3, seed)
        expected = model.decode(latent, **options)
        assert runtime.decode(latent.numpy(), **options).tolist() == expected.tolist()


@pytest.mark.slow
def test_bars_are_repeated_as_by_torch(rich):
    runtime, model, processor = rich
    batch = processor(lines=LINES, return_tensors="pt")
    assert model._is_repeat(batch["input_ids"]).any()
    found = runtime.reconstruct(batch["input_ids"].numpy())
    expected = model.reconstruct(**batch, refinement_steps=0)
    assert model._is_repeat(expected).any()
    assert found.tolist() == expected.tolist()


@pytest.mark.slow
def test_noise_and_conditions_reach_the_decoder_as_in_torch(rich):
    runtime, model, _ = rich
    latent, bars = make_latent(5), N
    conditions = {"key": ["D minor", None, "C major", "A# major", "F minor"], "note_density": [1.0, None, -1.0, 2.0, 0]}
    found = {}
    for name, options in {
        "plain": {},
        "noisy": {"noise_level": 0.7},
        "asked": {"noise_level": 0.7, "conditions": conditions},
    }.items():
        found[name] = runtime.decode(latent.numpy(), bars=bars, **options).tolist()
        assert found[name] == model.decode(latent, bars=bars, **options).tolist()
    assert found["plain"] != found["noisy"] != found["asked"]


@pytest.mark.slow
def test_beginnings_are_continued_and_templates_filled_as_by_torch(exported):
    runtime, model, processor = exported
    latent = make_latent(3, seed=11)
    batch = processor(lines=[LINES[0], LINES[2], LINES[4]], bars=3, primer=True, return_tensors="pt")
    batch = {name: torch.nn.functional.pad(values, (2, 0)) for name, values in batch.items()}
    expected = model.decode(latent, **batch, bars=6)
    found = runtime.decode(latent.numpy(), input_ids=batch["input_ids"].numpy(), bars=6)
    assert found.tolist() == expected.tolist()
    ids = processor(lines=[LINES[0], LINES[2], LINES[4]], return_tensors="pt")["input_ids"]
    regenerate = torch.zeros(3, N, dtype=torch.bool)
    regenerate[:, [0, 2]] = True
    expected = model.generate(latent=latent, template=ids, regenerate=regenerate, do_sample=False)
    found = runtime.generate(latent.numpy(), template=ids.numpy(), regenerate=[0, 2])
    assert found.tolist() == expected.tolist()


@pytest.mark.slow
def test_encoder_equals_torchs(exported):
    runtime, model, processor = exported
    for lines in (LINES[:1], LINES):
        batch = processor(lines=lines, return_tensors="pt")
        ids = batch["input_ids"].numpy()
        assert np.array_equal(runtime.musical_position(ids), model.musical_position(batch["input_ids"]))
        with torch.no_grad():
            posterior = model.encode(**batch)
        mean, log_variance = runtime.encode(ids)
        np.testing.assert_allclose(mean, posterior.latent_mean, atol=1e-4)
        np.testing.assert_allclose(log_variance, posterior.latent_log_variance, atol=1e-4)


@pytest.mark.slow
def test_lines_are_read_and_written_as_by_the_processor(exported):
    runtime, _, processor = exported
    ids = processor(lines=LINES, return_tensors="np")["input_ids"]
    written = runtime.write_lines(LINES)
    assert written.tolist() == ids[:, : written.shape[1]].tolist()
    assert (ids[:, written.shape[1] :] == 0).all()
    assert runtime.read_lines(written) == LINES


def counts_differ(one: np.ndarray, other: np.ndarray) -> float:
    """Compare how often tokens occur at each place of two samples `(n, T)`.

    Returns:
        How far chi-square is from its mean if both are of one distribution, in standard deviations.
    """
    width = min(one.shape[1], other.shape[1])
    statistic, freedom = 0.0, 0
    for place in range(1, width):
        counts = np.array([np.bincount(each[:, place], minlength=400) for each in (one, other)])
        counts = counts[:, counts.sum(0) >= 10]
        statistic += ((counts[0] - counts[1]) ** 2 / counts.sum(0)).sum()
        freedom += max(counts.shape[1] - 1, 0)
    assert freedom > 10
    return (statistic - freedom) / (2 * freedom) ** 0.5


@pytest.mark.slow
def test_tokens_are_drawn_from_torchs_distribution(exported):
    runtime, model, _ = exported
    latent, options = make_latent(1).expand(1500, -1), {"bars": 2, "temperature": 3.0, "top_p": 0.7, "max_length": 12}
    expected = model.decode(latent, seed=0, do_sample=True, top_k=0, **options).numpy()
    assert abs(counts_differ(expected, runtime.decode(latent.numpy(), seed=0, **options))) < 5
    for other in ({"temperature": 1.0}, {"top_p": 1.0}, {"scale": "C major pentatonic"}):
        assert counts_differ(expected, runtime.decode(latent.numpy(), seed=0, **{**options, **other})) > 10


@pytest.mark.slow
def test_latents_are_drawn_from_torchs_prior(rich):
    runtime, model, _ = rich
    n, conditions = 2000, {"key": "D minor", "pitch_range": 2.0}
    found = {}
    for guidance_scale in (1.0, 4.0):
        options = {"noise_level": 0.2, "bars": 5, "guidance_scale": guidance_scale}
        expected = model.sample_latent(n, seed=0, conditions=conditions, **options).numpy()
        sources = [np.random.default_rng(number) for number in range(n)]
        found[guidance_scale] = runtime.sample_latent(
            sources, conditions=runtime.check_conditions(conditions, n), **options
        )
        error = expected.std(0) * (2 / n) ** 0.5
        assert (np.abs(found[guidance_scale].mean(0) - expected.mean(0)) < 5 * error).all()
        np.testing.assert_allclose(np.cov(found[guidance_scale].T), np.cov(expected.T), atol=0.2 * expected.var())
    assert np.abs(found[1.0].mean(0) - found[4.0].mean(0)).max() > 10 * error.max()


@pytest.mark.slow
def test_the_prior_denoises_as_in_torch(rich):
    runtime, model, _ = rich
    latent, noise = make_latent(5), make_latent(5, seed=2)
    is_known = torch.arange(N).expand(5, -1) < torch.tensor([[0], [2], [7], [1], [3]])
    expected = model._complete(latent, is_known, model.prior.null_labels(5), 0.3, 0.9, noise=noise)
    labels = runtime._labels({}, 5)
    found = runtime.complete(latent.numpy(), is_known.numpy(), labels, (), 0.3, 0.9, noise=noise.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_samples_are_melodies_and_do_not_depend_on_their_number(exported):
    runtime, _, processor = exported
    ids = runtime.sample(5, seed=3, bars=[1, 2, 3, 4, 5])
    assert ids.tolist() == runtime.sample(5, seed=3, bars=[1, 2, 3, 4, 5]).tolist()
    assert ids.tolist() != runtime.sample(5, seed=4, bars=[1, 2, 3, 4, 5]).tolist()
    assert (
        runtime.sample(2, seed=3, bars=[1, 2]).tolist()
        == runtime._pad([[token for token in row if token] for row in ids[:2].tolist()]).tolist()
    )
    assert [line["bars"] for line in runtime.read_lines(ids)] == [1, 2, 3, 4, 5]
    assert runtime.read_lines(ids) == processor.to_lines(ids)
    long = runtime.sample(3, seed=0, bars=2 * N + 1, time_signature="3/4")
    for line in runtime.read_lines(long):
        assert (line["bars"], line["time_signature"]) == (2 * N + 1, "3/4")
    assert runtime.sample(0).shape == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("conditions", [{}, {"key": ["D major", None, "F# major", "Bb major"]}])
def test_the_critic_chooses_as_in_torch(rich, monkeypatch, conditions):
    runtime, model, _ = rich
    count, n = 5, 4
    drawn = model.sample(n * count, seed=0, bars=[1, 3, 5, 6, 7] * n, temperature=2.0)
    monkeypatch.setattr(model, "_sample_batch", lambda *_: drawn)
    monkeypatch.setattr(runtime, "_sample_batch", lambda *_: drawn.numpy())
    options = {"n": n, "candidates": count, "conditions": conditions, "max_attempts": 1}
    kept = runtime.sample(**options)
    assert kept.tolist() == model.sample(**options).tolist()
    assert len(set(runtime.num_bars(kept).tolist())) > 1  # not the same place among the candidates of each
    with torch.no_grad():
        score = model.critic(model.encode(drawn, drawn.ne(0).long()).latent_mean, model.is_bar_token[drawn].sum(-1))
    feeds = {"latent": runtime.encode(drawn.numpy())[0], "bars": runtime.num_bars(drawn.numpy())}
    np.testing.assert_allclose(runtime._run("critic", feeds)[0], score, atol=1e-4)


@pytest.mark.slow
def test_the_best_of_several_candidates_does_not_depend_on_its_batch(rich, plain, monkeypatch):
    runtime, _, _ = rich
    count, scored = 3, []
    choose = runtime._choose
    monkeypatch.setattr(runtime, "_choose", lambda ids, *rest: scored.append(ids) or choose(ids, *rest))
    options = {"seed": 3, "temperature": 2.0, "bars": 3}
    many = runtime.sample(3, candidates=count, **options)
    assert len(scored[0]) == 3 * count
    assert len({tuple(row) for row in scored[0].tolist()}) == 3 * count
    assert trimmed(runtime, runtime.sample(1, candidates=count, **options)) == trimmed(runtime, many)[:1]
    monkeypatch.setitem(runtime.config, "sampling_candidates", count)
    assert runtime.sample(3, **options).tolist() == many.tolist()
    assert runtime.sample(1, candidates=1, **options).tolist() != many[:1].tolist()
    runtime.sample(1, bars=N + 1)  # which no latent holds, so one is drawn
    with pytest.raises(ValueError, match=f"candidates=2 of bars={N + 1}: the critic reads {N} bars at most"):
        runtime.sample(1, candidates=2, bars=N + 1)
    with pytest.raises(ValueError, match="candidates=2: this model has no critic"):
        plain[0].sample(1, candidates=2)
    with pytest.raises(ValueError, match="candidates=0"):
        runtime.sample(1, candidates=0)


@pytest.mark.slow
def test_samples_are_in_the_key_asked_for(rich):
    runtime, _, _ = rich
    keys = ["D major", None, "F# major", "Bb major"]
    lines = runtime.read_lines(
        runtime.sample(4, seed=0, conditions={"key": keys, "note_density": 1.0}, max_attempts=20)
    )
    assert [key_of(line) for line, key in zip(lines, keys, strict=True) if key] == ["D major", "F# major", "A# major"]
    with pytest.raises(ValueError, match="unknown condition 'mood'; this model has key, time_signature, note_density"):
        runtime.sample(1, conditions={"mood": "sad"})


@pytest.mark.slow
def test_bars_are_filled_and_melodies_continued(exported):
    runtime, _, _ = exported
    ids = runtime.write_lines([LINES[2], LINES[4]])
    filled = runtime.infill(ids, bars=[1, 3], seed=0, temperature=5.0)
    for before, after in zip(runtime._split_bars(ids), runtime._split_bars(filled), strict=True):
        assert [bar for place, bar in enumerate(after) if place not in (1, 3)] == [
            bar for place, bar in enumerate(before) if place not in (1, 3)
        ]
        assert before != after
    with pytest.raises(ValueError, match="bar 5 cannot be filled: bars count from 0 to 4 here"):
        runtime.infill(ids, bars=[5])
    begun = runtime.write_lines([LINES[0], LINES[1], LINES[3]])
    continued = runtime.continue_melody(begun, bars=[6, 5, 7], seed=0)
    for before, after, bars in zip(runtime._split_bars(begun), runtime._split_bars(continued), [6, 5, 7], strict=True):
        assert (after[: len(before)], len(after)) == (before, bars)
    with pytest.raises(ValueError, match="3 bars cannot be continued to bars=3"):
        runtime.continue_melody(begun[:1], bars=3)


@pytest.mark.slow
def test_the_filling_is_kept_that_torch_keeps(rich, monkeypatch):
    runtime, model, processor = rich
    originals, count = processor(lines=[LINES[2], LINES[4]], return_tensors="pt")["input_ids"], 7
    templates = originals.numpy().repeat(count, axis=0)
    drawn = torch.tensor(runtime.infill(templates, bars=[1, 3], seed=0, temperature=3.0, candidates=1))
    assert model._is_repeat(drawn).any()
    nats = model._unconditional_nats(drawn)
    np.testing.assert_allclose(runtime.unconditional_nats(drawn.numpy()), nats, atol=1e-3)
    assert (nats == 0).any()
    monkeypatch.setattr(model, "generate", lambda *_, **__: drawn)
    monkeypatch.setattr(runtime, "generate", lambda *_, **__: drawn.numpy())
    kept = runtime.infill(originals.numpy(), bars=[1, 3], candidates=count)
    assert kept.tolist() == model.infill(originals, bars=[1, 3], candidates=count).tolist()
    places = [[row[: kept.shape[1]] for row in drawn.tolist()].index(row) for row in kept.tolist()]
    assert places[0] % count != places[1] % count


@pytest.mark.slow
def test_keys_are_told_as_by_torch(rich, monkeypatch):
    runtime, model, processor = rich
    shares, n = [0.6, 0.0, 0.3, *[0.1 / 21] * 21], 600
    monkeypatch.setattr(model.config, "key_shares", shares)
    monkeypatch.setitem(runtime.config, "key_shares", shares)
    sources = [np.random.default_rng(number) for number in range(n)]
    ids, keys = np.full((n, 1), 1), runtime.config["conditions"]["key"]
    told = runtime._with_keys({}, ids, sources)["key"]
    counts = np.array([told.count(key) for key in keys])
    assert ((counts - n * np.array(shares)) ** 2 <= 25 * n * np.array(shares)).all()  # five standard deviations
    melodies = processor(lines=LINES, return_tensors="pt")["input_ids"]
    for conditions in ({}, {"key": ["D minor", None, None, "C major", None]}):
        expected = model._with_keys(conditions, melodies, [torch.Generator() for _ in LINES])
        assert runtime._with_keys(conditions, melodies.numpy(), sources[: len(LINES)]) == expected


@pytest.mark.slow
def test_paths_and_variations_begin_at_the_melody(exported):
    runtime, model, _ = exported
    latent = make_latent(2, seed=5)
    expected = model.interpolate(latent[0], latent[1], steps=5, bars=4)
    assert runtime.interpolate(latent[0].numpy(), latent[1].numpy(), steps=5, bars=4).tolist() == expected.tolist()
    own = runtime.decode(latent[:1].numpy(), bars=N)
    assert runtime.vary(latent[0].numpy(), n=2, similarity=1.0, bars=N).tolist() == own.repeat(2, axis=0).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["sample", "vary"])
def test_whole_operations_have_torchs_distribution(exported, operation):
    """Latents, noise and conditions included."""
    runtime, model, _ = exported
    given, options, other = (), {"n": 1000, "bars": 2, "max_length": 12, "seed": 0}, {"time_signature": "3/4"}
    if operation == "vary":
        given, other = (make_latent(1, seed=5),), {"similarity": 0.9}
        options["similarity"] = 0.2
    else:
        options["temperature"] = 2.0
    if model.config.num_prior_layers:
        other = {"conditions": {"note_density": -3.0}}
        options |= {"conditions": {"note_density": 2.0}} if operation == "sample" else {}
    expected = getattr(model, operation)(*given, **options).numpy()
    arrays = [part.numpy() for part in given]
    assert abs(counts_differ(expected, getattr(runtime, operation)(*arrays, **options))) < 5
    assert counts_differ(expected, getattr(runtime, operation)(*arrays, **{**options, **other})) > 10


@pytest.mark.slow
def test_the_runtime_refuses_what_torch_refuses(exported):
    runtime, _, _ = exported
    bar, latent = runtime.config["bar_token_ids"][0], make_latent(1).numpy()
    with pytest.raises(ValueError, match=f"{N + 1} bars does not fit a latent of max_bars={N}"):
        runtime.encode(np.full((1, N + 1), bar))
    with pytest.raises(ValueError, match=f"latent_size={Z}, and no latent"):
        runtime.generate()
    with pytest.raises(ValueError, match=f"bars={N + 1}: a latent holds at most max_bars={N}"):
        runtime.decode(latent, bars=N + 1)
    with pytest.raises(ValueError, match="no pitch"):
        runtime.decode(latent, lowest_pitch=61, highest_pitch=61, scale="C major")
    with pytest.raises(ValueError, match=r"time signature 8/8 is not in the vocabulary: .*4/4"):
        runtime.decode(latent, time_signature="8/8")
    with pytest.raises(ValueError, match="2 values of bars for 1 melodies"):
        runtime.decode(latent, bars=[1, 2])


ALONE = """
import sys
for name in ("torch", "transformers", "miditok"):
    sys.modules[name] = None
import numpy as np
from onnx_melody_vae import OnnxMelodyVAE
model = OnnxMelodyVAE(".", threads=1)
model.sample(2, seed=0)
print(model.decode(np.array([eval(sys.argv[1])], np.float32), bars=2).tolist())
"""


@pytest.mark.slow
def test_the_folder_runs_without_torch_and_without_the_repository(rich):
    runtime, model, _ = rich
    latent = make_latent(1, seed=13)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", ALONE, str(latent[0].tolist())],
        cwd=runtime.folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout) == model.decode(latent, bars=2).tolist()


@pytest.mark.slow
def test_a_music_transformer_has_a_decoder_only(tmp_path, capsys):
    export_model(tmp_path / "model", latent_size=0, num_hidden_layers=1)
    runtime, model, _ = open_exported(tmp_path / "model")
    names = {file.name for file in runtime.folder.iterdir()}
    assert names == {"decoder.onnx", "onnx_config.json", "onnx_tables.npz", "onnx_melody_vae"}
    opens_bar = runtime.config["bar_token_ids"]
    primer = torch.tensor([[1, opens_bar[0]], [1, opens_bar[1]]])
    expected = model.generate(primer, attention_mask=torch.ones_like(primer), bars=3, do_sample=False)
    assert runtime.generate(input_ids=primer.numpy(), bars=3).tolist() == expected.tolist()
    with pytest.raises(ValueError, match="latent_size=0"):
        runtime.encode(primer.numpy())
    with pytest.raises(ValueError, match="latent_size=0, and a latent"):
        runtime.generate(np.zeros((1, Z)))


def test_a_difference_from_torch_ends_with_a_warning(tmp_path, monkeypatch):
    _, model = load_model(str(save_model(tmp_path / "model", learnt=False)))
    monkeypatch.setattr(OnnxMelodyVAE, "__init__", lambda self, folder: None)
    monkeypatch.setattr(OnnxMelodyVAE, "decode", lambda self, latent: np.array([[1, 2]]))
    with pytest.raises(UserError, match="another melody than torch"):
        onnx_export.compare(model, tmp_path)


def test_a_folder_without_graphs_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"onnx_config\.json is missing; write it with export_onnx\.py"):
        OnnxMelodyVAE(tmp_path)


def test_a_model_without_a_grammar_is_refused(tmp_path, capsys, monkeypatch):
    folder = save_model(tmp_path / "model", learnt=False)
    monkeypatch.setattr(onnx_export, "load_model", lambda name: (None, make_bare_model()))
    assert export_onnx.main(["--model", str(folder), "--output", str(tmp_path / "onnx")]) == 2
    assert "set_grammar" in capsys.readouterr().err


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
