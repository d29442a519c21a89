"""Training: batches, tokens, checkpoints and resume, evaluation, and errors of the command line."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

import evaluate_model
import train
from evaluation.held_out import BARS, choose_windows
from evaluation.model_evaluation import Evaluation
from modeling.line_writing_melody_vae import line_to_words
from modeling.processing_melody_vae import MAX_PITCH, MIN_PITCH
from tests.builders.training import TINY, arguments, make_batches, run
from training.batches import WindowBatches
from training.data import MelodyWindows, count_notes, load_lines, write_words
from training.run_logger import LOG_NAME

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def batches(dataset) -> WindowBatches:
    return make_batches(dataset)


def test_batches_are_a_function_of_seed_and_epoch(batches):
    first = list(batches)
    assert first == list(batches)
    batches.epoch = 1
    second = list(batches)
    batches.epoch = 0
    assert first != second
    assert len(first) == len(second) == len(batches)
    assert all(len(batch) == 5 for batch in first)


def test_windows_lie_in_their_lines_and_in_range(dataset):
    batches = make_batches(dataset, transpose=60)
    low, high = batches.lowest, batches.highest
    lines = write_words(load_lines(str(dataset), "train", "lead"), 1)
    seen = set()
    for line, first_bar, end_bar, semitones in (key for batch in batches for key in batch):
        assert 0 <= first_bar < end_bar <= lines[line]["bars"]
        assert end_bar - first_bar == min(16, lines[line]["bars"])
        assert low[line] <= semitones <= high[line]
        assert lines[line]["low"] + semitones >= MIN_PITCH
        assert lines[line]["high"] + semitones <= MAX_PITCH
        seen.add(semitones)
    assert len(seen) > 10


def test_an_epoch_covers_every_line(batches):
    keys = [key for batch in batches for key in batch]
    left_out = batches.num_windows - len(keys)
    assert 0 <= left_out < 5
    assert len({line for line, *_ in keys}) >= len(batches.num_bars) - left_out


def test_long_windows_lose_their_last_bars(dataset):
    limit = 60
    batches = make_batches(dataset, max_tokens=limit)
    shortened = 0
    for line, first_bar, end_bar, _ in (key for batch in batches for key in batch):
        begin = batches.first_bar[line] + first_bar
        length = batches.tokens_before[begin + end_bar - first_bar] - batches.tokens_before[begin]
        assert length <= limit or end_bar == first_bar + 1
        if end_bar < min(first_bar + 16, int(batches.num_bars[line])):
            longer = batches.tokens_before[begin + end_bar - first_bar + 1] - batches.tokens_before[begin]
            assert longer > limit
            shortened += 1
    assert shortened


def test_few_windows_are_repeated_to_fill_a_batch(dataset):
    batches = make_batches(dataset, batch_size=101, num_batches_multiple=2)
    assert len(batches) % 2 == 0
    assert len(batches) > 0
    assert all(len(batch) == 101 for batch in batches)


def test_text_of_a_window_is_the_transposed_bars(dataset):
    rows = load_lines(str(dataset), "train", "lead")
    text = MelodyWindows(write_words(rows, 1))[2, 1, 4, -3]
    row = rows[2]
    moved = {**row, "pitch": [pitch - 3 for pitch in row["pitch"]]}
    assert text.split(" ") == line_to_words(moved)[1:4]


def test_notes_are_counted(dataset):
    rows = load_lines(str(dataset), "train", "lead")
    for row in rows:
        assert count_notes(" ".join(line_to_words(row))) == len(row["pitch"])


def test_training_writes_a_model_that_loads(trained):
    model = AutoModel.from_pretrained(trained, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(trained, trust_remote_code=True)
    assert model.config.hidden_size == 20
    assert len(processor.to_lines(model.sample(2, seed=0, bars=3))) == 2
    log = json.loads((trained / LOG_NAME).read_text(encoding="utf-8"))
    assert [entry["step"] for entry in log["history"]] == [4, 8, 12]
    assert log["melodies_seen"] == 60


def test_training_lowers_the_loss(trained):
    history = json.loads((trained / LOG_NAME).read_text(encoding="utf-8"))["history"]
    assert history[-1]["bits_per_note"] < history[0]["bits_per_note"]


def test_training_goes_on_from_a_model(dataset, trained, tmp_path):
    run(arguments(dataset, tmp_path, "--init_from", str(trained), "--max_train_steps", "1", "--learning_rate", "0"))
    before, after = (load_file(folder / "model.safetensors") for folder in (trained, tmp_path))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "tokenizer.json").read_bytes() == (trained / "tokenizer.json").read_bytes()
    log, earlier = (json.loads((folder / LOG_NAME).read_text(encoding="utf-8")) for folder in (tmp_path, trained))
    earlier.pop("history")
    assert log["before"] == earlier
    assert "before" not in earlier


def test_what_is_frozen_stays(dataset, trained, tmp_path):
    options = ("--init_from", str(trained), "--max_train_steps", "2", "--num_warmup_steps", "0")
    run(arguments(dataset, tmp_path / "out", *options, "--train_only", "melody_encoder"))
    before, after = (load_file(folder / "model.safetensors") for folder in (trained, tmp_path / "out"))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"melody_encoder"}


def test_evaluation_command(dataset, trained, tmp_path):
    output = tmp_path / "results" / "tiny.json"
    argv = ["--model", str(trained), "--dataset", str(dataset), "--output", str(output), "--importance_samples", "3"]
    assert evaluate_model.main(argv) == 0
    results = json.loads(output.read_text(encoding="utf-8"))
    assert results["melodies"] == results["free_running"]["step_accuracy"]["count"] > 0
    assert results["training"]["melodies_seen"] == 60
    likelihood = results["likelihood"]
    assert likelihood["bits_per_note"] == pytest.approx(
        likelihood["reconstruction_bits_per_note"] + likelihood["kl_bits_per_note"]
    )
    assert 0 < likelihood["importance_weighted_bits_per_note"] < likelihood["bits_per_note"] * 1.05


def test_evaluation_of_a_decoder_that_can_do_without_a_latent(dataset, trained, tmp_path, capsys):
    overrides = f"{TINY},noise_probability=0.5"
    argv = arguments(dataset, tmp_path / "noisy", "--init_from", str(trained), "--config_overrides", overrides)
    run([*argv, "--max_train_steps", "1"])
    output = tmp_path / "noisy.json"
    argv = ["--model", str(tmp_path / "noisy"), "--dataset", str(dataset), "--output", str(output)]
    assert evaluate_model.main([*argv, "--parts", "likelihood", "--importance_samples", "2"]) == 0
    found = json.loads(output.read_text(encoding="utf-8"))["likelihood"]
    alone, bound = found["without_latent_bits_per_note"], found["importance_weighted_bits_per_note"]
    bit = found["count"] / found["notes"]  # of a choice between two models, for each note of a melody
    assert found["mixture_bits_per_note"] <= min(alone, bound) + bit + 1e-6
    assert found["mixture_bits_per_note"] >= min(alone, bound) - 5 * bit
    history = json.loads((tmp_path / "noisy" / LOG_NAME).read_text(encoding="utf-8"))["history"]
    assert history[-1]["bits_per_note_without_latent"] > 0
    sampling = [*argv, "--parts", "samples", "--samples", "4", "--melodies", "2", "--ngram_melodies", "20"]
    sampling += ["--sampling_noise", "1", "--temperature", "0.7"]
    assert evaluate_model.main(sampling) == 0
    samples = json.loads(output.read_text(encoding="utf-8"))["samples"]
    assert (samples["sampling_noise"], samples["temperature"]) == (1, 0.7)
    wrong = [str(trained) if each == str(tmp_path / "noisy") else each for each in sampling]
    assert evaluate_model.main(wrong) == 2
    assert "--sampling_noise 1.0: from 0 to 1, for models trained with noise_probability" in capsys.readouterr().err


def test_a_perfect_decoder_scores_one_when_teacher_forced(dataset):
    windows = choose_windows(str(dataset), "test", 3, 0)
    for window in windows:
        joined = Evaluation.join_bars([window] * BARS)
        assert joined == {name: list(window[name]) for name in ("pitch", "start", "duration")}


def command(script: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments], capture_output=True, encoding="utf-8", cwd=ROOT
    )


def one_line_error(result: subprocess.CompletedProcess) -> str:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


def test_errors_name_the_input_and_the_remedy(dataset, trained, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "foreign").mkdir()
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "foreign" / "train.parquet")
    new = str(tmp_path / "new")
    cases = [
        (["--dataset", str(tmp_path / "empty"), "--output_dir", new], "empty: no data set"),
        (["--dataset", str(tmp_path / "missing"), "--output_dir", new], "missing: no data set"),
        (["--dataset", str(tmp_path / "foreign"), "--output_dir", new], "column bars is missing"),
        (["--dataset", str(dataset), "--output_dir", new, "--resume_from_checkpoint", "x"], "x: not a checkpoint"),
        (["--dataset", str(dataset), "--output_dir", str(trained)], "has checkpoints already"),
        (["--dataset", str(dataset), "--output_dir", new, "--config_overrides", "hidden_size=7"], "hidden_size=7"),
        (["--dataset", str(dataset), "--output_dir", new, "--train_only", "coder"], "coder: the model's parts are"),
        (["--dataset", str(dataset), "--output_dir", new, "--init_from", str(tmp_path / "empty")], "no trained model"),
        (
            ["--dataset", str(dataset), "--output_dir", str(trained), "--resume_from_checkpoint", "latest"],
            "step_7: a checkpoint of another model",
        ),
    ]
    for argv, message in cases:
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setattr(sys, "argv", ["train.py", *argv])
        assert train.main() == 2, argv
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert message in error
    for model, message in ((tmp_path / "empty", "no config.json"), (tmp_path / "half", "no model.safetensors")):
        argv = ["--model", str(model), "--dataset", str(dataset), "--output", str(tmp_path / "x.json")]
        assert evaluate_model.main(argv) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_the_command_itself_ends_with_2(tmp_path):
    result = command("train.py", "--dataset", str(tmp_path / "nothing"), "--output_dir", str(tmp_path))
    assert "nothing: no data set" in one_line_error(result)
