"""What one does with train.py: own MIDI files, adapters, other model types, a run to watch, several processes."""

import json
import random
import re
import shutil
from functools import partial
from pathlib import Path

import datasets
import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from command import UserError
from modeling.line_writing_melody_vae import line_to_score
from tests.builders.commands import finish, launch
from tests.builders.training import TINY, arguments, melody, run
from training import average_models, models, own_midi, report, run_logger
from training.data import load_lines
from training.monitoring import Means, Rates, Stopwatch, trackers_of
from training.run_logger import LOG_NAME

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("without_histograms")


def write_songs(folder: Path, count: int) -> Path:
    """Write so many MIDI files, each a different tune."""
    generator = random.Random(count)
    folder.mkdir()
    for number in range(count):
        score = line_to_score(melody(generator, 8) | {"program": 0})
        score.dump_midi(str(folder / f"song {number}.mid"))
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def test_midi_files_are_told_from_data_sets(dataset, tmp_path):
    songs = write_songs(tmp_path / "songs", 1)
    assert own_midi.is_midi(str(songs))
    assert own_midi.is_midi(str(songs / "song 0.mid"))
    assert not own_midi.is_midi(str(dataset))
    assert not own_midi.is_midi(str(tmp_path / "missing"))
    assert not own_midi.is_midi("owner/name")


def test_own_files_are_built_once_for_their_content(cache, tmp_path, monkeypatch):
    songs = write_songs(tmp_path / "songs", 5)
    built = own_midi.build_own(str(songs), 4, 1)
    assert "validation" in built.summary
    copied = Path(shutil.copytree(songs, tmp_path / "elsewhere"))
    with monkeypatch.context() as patch:
        patch.setattr(own_midi, "build_dataset", lambda *_, **__: pytest.fail("built again"))
        assert own_midi.build_own(str(copied), 4, 1).folder == built.folder
    (copied / "song 0.mid").write_bytes((songs / "song 1.mid").read_bytes())
    assert own_midi.build_own(str(copied), 4, 1).folder != built.folder


@pytest.mark.parametrize(("count", "fewest"), [(2, 1), pytest.param(21, 5, marks=pytest.mark.slow)])
def test_several_songs_are_held_out(cache, tmp_path, count, fewest):
    built = own_midi.build_own(str(write_songs(tmp_path / "songs", count)), 4, 1)
    groups = {split: set(load_lines(str(built.folder), split, "lead")["group"][:]) for split in ("train", "validation")}
    assert groups["train"]
    assert len(groups["validation"]) >= fewest
    assert not groups["train"] & groups["validation"]
    if built.folder.name.endswith("_held_out"):
        assert len(groups["train"] | groups["validation"]) == count
        assert "held out" in built.summary


def test_one_song_is_not_enough(cache, tmp_path):
    with pytest.raises(UserError, match="melodies of one song only; give two or more"):
        own_midi.build_own(str(write_songs(tmp_path / "songs", 1)), 4, 1)


def test_few_songs_call_for_a_trained_model(cache, tmp_path, capsys):
    songs = write_songs(tmp_path / "songs", 2)
    built = own_midi.build_own(str(songs), 4, 1)
    assert built.is_small
    run(arguments(songs, tmp_path / "new", "--max_train_steps", "1"))
    assert "--init_from MODEL" in capsys.readouterr().out


def test_a_mistyped_model_is_told_at_once(monkeypatch):
    nobody = partial(HfApi, endpoint="http://127.0.0.1:9")  # the port that discards: nothing listens there
    monkeypatch.setattr(models, "HfApi", nobody)
    assert not models.is_hub_there("runs/lakhh")
    asked = []

    class Auto:
        @staticmethod
        def from_pretrained(source, **options):
            asked.append((source, options))

    with pytest.raises(UserError, match="runs/lakhh: no such folder, and the Hub cannot be reached"):
        models.load_pretrained(Auto, "runs/lakhh")
    monkeypatch.setattr(models, "try_to_load_from_cache", lambda *_: "config.json")  # as if it had been loaded before
    models.load_pretrained(Auto, "owner/model")
    assert asked == [("owner/model", {"trust_remote_code": True, "local_files_only": True})]


def test_own_files_with_adapters_in_one_command(trained, cache, tmp_path, capsys):
    """The model is saved with its adapters merged: it loads as any other, and only linear layers have changed."""
    songs = write_songs(tmp_path / "songs", 7)
    output = tmp_path / "mine"
    argv = ["--dataset", str(songs), "--init_from", str(trained), "--output_dir", str(output), "--lora_rank", "3"]
    argv += ["--max_train_steps", "4", "--evaluation_steps", "2", "--checkpointing_steps", "2", "--cpu_threads", "1"]
    run([*argv, "--num_proc", "1", "--listening_samples", "0", "--learning_rate", "0.01", "--keep", "last"])
    assert "songs" in capsys.readouterr().out
    before, after = load_file(trained / "model.safetensors"), load_file(output / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("layers.0" in name for name in changed)
    assert not {
        name for name in changed if before[name].ndim != 2 or name.endswith(("embed_tokens.weight", "_embedding"))
    }
    model = AutoModel.from_pretrained(output, trust_remote_code=True)
    assert model.sample(1, seed=0, bars=2).shape[0] == 1
    assert (output / "tokenizer.json").read_bytes() == (trained / "tokenizer.json").read_bytes()
    run([*argv, "--num_proc", "1", "--listening_samples", "0", "--resume_from_checkpoint", "latest"])


def test_a_personal_model_keeps_its_prior(trained_with_prior, cache, tmp_path, capsys):
    """Fitted to its own latents, under the conditions and the scale of attributes that it began with; or left out."""
    songs = write_songs(tmp_path / "songs", 7)
    sizes = TINY.replace("dropout=0.1", "dropout=0.0")
    for name, more in (("kept", []), ("dropped", ["--prior", "drop"])):
        options = ["--init_from", str(trained_with_prior), "--max_train_steps", "2", "--keep", "last", *more]
        run([*arguments(songs, tmp_path / name, *options, "--config_overrides", sizes)])
    began, kept, dropped = (
        AutoModel.from_pretrained(folder, trust_remote_code=True)
        for folder in (trained_with_prior, tmp_path / "kept", tmp_path / "dropped")
    )
    assert not dropped.config.num_prior_layers
    assert kept.config.conditions == began.config.conditions
    assert kept.config.section_returns == began.config.section_returns
    assert torch.equal(kept.prior.attribute_scale, began.prior.attribute_scale)
    weights = kept.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in dropped.state_dict().items())
    assert kept.sample(1, seed=0, bars=2, conditions={"key": "D minor"}).shape[0] == 1
    history = json.loads((tmp_path / "kept" / "prior_log.json").read_text(encoding="utf-8"))["history"]
    is_better = min(entry["validation_loss"] for entry in history) < history[0]["validation_loss"]
    assert torch.equal(kept.prior.bar_embedding, began.prior.bar_embedding) != is_better
    assert re.search(r"prior refitted in \d+ s: validation loss", capsys.readouterr().out)

    argv = arguments(songs, tmp_path / "stream", "--init_from", str(trained_with_prior), "--streaming")
    with pytest.raises(UserError, match="cannot be refitted with --streaming or FSDP; add --prior drop"):
        run(argv)


def test_a_model_and_its_tokenizer_must_be_of_one_another(dataset, trained, tmp_path):
    mixed = Path(shutil.copytree(trained, tmp_path / "mixed", ignore=shutil.ignore_patterns("step_*")))
    run(arguments(dataset, tmp_path / "other", "--vocab_size", "280", "--max_train_steps", "1"))
    shutil.copy(tmp_path / "other" / "tokenizer.json", mixed)
    with pytest.raises(UserError, match="its files are of different models"):
        run(arguments(dataset, tmp_path / "new", "--init_from", str(mixed)))
    for overrides, reason in (
        ("hidden_size=24", "has no weights of this shape for"),
        ("num_encoder_layers=0", "more layers"),
    ):
        with pytest.raises(UserError, match=reason):
            run(arguments(dataset, tmp_path / "new", "--init_from", str(trained), "--config_overrides", overrides))


def test_a_mean_of_models(dataset, trained, tmp_path, capsys):
    """Of one that has become deeper, and of the one that it began as: all weights lie half way."""
    overrides = f"{TINY},num_hidden_layers=2"
    further = arguments(dataset, tmp_path / "further", "--init_from", str(trained), "--config_overrides", overrides)
    run([*further, "--max_train_steps", "2", "--learning_rate", "0.05"])
    argv = ["--models", str(trained), str(tmp_path / "further"), "--output_dir", str(tmp_path / "mean")]
    assert average_models.main(argv) == 0
    begun, ended = load_file(trained / "model.safetensors"), load_file(tmp_path / "further" / "model.safetensors")
    for name, weight in load_file(tmp_path / "mean" / "model.safetensors").items():
        if name in begun and begun[name].shape == ended[name].shape and weight.is_floating_point():
            torch.testing.assert_close(weight, (begun[name] + ended[name]) / 2)
        elif name.endswith("layers.1.mlp.down_proj.weight"):
            torch.testing.assert_close(weight, ended[name] / 2)
    assert AutoModel.from_pretrained(tmp_path / "mean", trust_remote_code=True).config.num_hidden_layers == 2
    AutoProcessor.from_pretrained(tmp_path / "mean", trust_remote_code=True)
    log = json.loads((tmp_path / "mean" / LOG_NAME).read_text(encoding="utf-8"))
    assert log["arguments"]["max_train_steps"] == 2
    assert log["mean_of"] == [str(trained), str(tmp_path / "further")]

    assert average_models.main(argv) == 2
    assert "is there already" in capsys.readouterr().err
    run(arguments(dataset, tmp_path / "other", "--vocab_size", "280", "--max_train_steps", "1"))
    argv = ["--models", str(tmp_path / "other"), str(trained), "--output_dir", str(tmp_path / "new")]
    assert average_models.main(argv) == 2
    assert "not like those of" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("model_type", ["music_vae", pytest.param("rnn", marks=pytest.mark.slow)])
def test_baselines_take_the_same_way(dataset, tmp_path, model_type):
    options = ["--model_type", model_type, "--max_train_steps", "2", "--checkpointing_steps", "1"]
    overrides = {"music_vae": "encoder_size=11,decoder_size=7,latent_size=13", "rnn": "hidden_size=12"}[model_type]
    run(arguments(dataset, tmp_path, *options, "--config_overrides", overrides))
    run(arguments(dataset, tmp_path, *options, "--config_overrides", overrides, "--resume_from_checkpoint", "latest"))
    model = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert len(processor.to_scores(model.sample(2, seed=0, bars=3))) == 2
    log = json.loads((tmp_path / LOG_NAME).read_text(encoding="utf-8"))
    assert log["history"][-1]["bits_per_note"] > 0


def test_a_run_leaves_a_report_with_sounds(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "CURVES", report.CURVES[:1])
    more = [
        "--listening_samples",
        "1",
        "--max_train_steps",
        "2",
        "--evaluation_steps",
        "1",
        "--checkpointing_steps",
        "9",
    ]
    run(arguments(dataset, tmp_path, *more), report=True)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in ("bits per note", "Reconstruction 1", "Original", "--learning_rate", "listening/step_2/sample-1.wav"):
        assert text in page, text
    for step in (1, 2):
        for ending in ("mid", "wav", "png"):
            assert (tmp_path / "listening" / f"step_{step}" / f"reconstruction-1.{ending}").stat().st_size
    assert (tmp_path / "report" / "bits_per_note-dark.png").is_file()


@pytest.mark.slow
def test_trackers_get_curves_sounds_and_pictures(dataset, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = [
        "--report_to",
        "tensorboard",
        "--logging_steps",
        "2",
        "--max_train_steps",
        "4",
        "--evaluation_steps",
        "2",
    ]
    run(arguments(dataset, tmp_path, *options, "--listening_samples", "1"))
    events = EventAccumulator(str(tmp_path / "logs" / "melody-vae"), size_guidance={"audio": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    names = {"loss", "reconstruction_nats", "kl_nats", "kl_weight", "learning_rate", "grad_norm"}
    names |= {"melodies_per_second", "waiting_for_data"}
    assert {f"train/{name}" for name in names} <= set(tags["scalars"])
    assert {f"validation/{name}" for name in ("bits_per_note", "active_units", "kl_nats")} <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4]
    assert {"sample-1", "reconstruction-1"} <= set(tags["audio"])
    assert {"sample-1", "reconstruction-1"} <= set(tags["images"])


def test_a_tracker_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert trackers_of("none") == trackers_of("all") == []
    with pytest.raises(UserError, match="pip install trackio"):
        trackers_of("trackio")


def test_the_stopwatch_leaves_out_pauses_and_knows_waiting(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def batches():
        for number in range(3):
            now[0] += 2  # to make the batch
            yield number

    stopwatch = Stopwatch(1000.0)
    rates = Rates(stopwatch, 100)
    for number, _ in zip(range(3), stopwatch.watch(batches()), strict=True):
        now[0] += 6  # the step
        if number == 1:
            with stopwatch.paused():
                now[0] += 50
    assert stopwatch.training == 1000 + 3 * 8
    assert rates.take(148) == {"melodies_per_second": 2.0, "waiting_for_data": 0.25}


def test_means_of_steps():
    means = Means()
    means.add(a=torch.tensor(1.0), b=None)
    means.add(a=torch.tensor(2.0), b=None)
    assert means.take() == {"a": 1.5}
    means.add(a=torch.tensor(5.0))
    assert means.take() == {"a": 5.0}


def test_a_run_that_diverges_ends_with_a_line(dataset, tmp_path, monkeypatch):
    evaluate = run_logger.evaluate
    monkeypatch.setattr(run_logger, "evaluate", lambda *args: evaluate(*args) | {"bits_per_note": float("nan")})
    with pytest.raises(UserError, match="step 4: training has diverged"):
        run(arguments(dataset, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    "launching",
    [
        ["--config_file", "configs/cpu.yaml", "--num_processes", "3"],
        ["--multi_gpu", "--num_processes", "2"],
    ],
)
def test_documented_commands_start_as_many_processes(dataset, tmp_path, launching):
    options = ["--max_train_steps", "3", "--config_overrides", f"{TINY},noise_probability=0.5"]
    log = tmp_path / "log"
    printed = finish(launch(launching, ["train.py", *arguments(dataset, tmp_path, *options)], ROOT, log), log)
    assert f"{launching[-1]} process(es) on cpu" in printed
    history = json.loads((tmp_path / LOG_NAME).read_text(encoding="utf-8"))["history"]
    assert history[-1]["bits_per_note_without_latent"] > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch 2.13's own compiler
def test_a_compiled_model_learns_the_same(dataset, tmp_path, monkeypatch):
    # Graphs are traced and differentiated as always; only the C++ compiler, which takes minutes, is left out.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    histories = []
    for options in ([], ["--torch_compile"]):
        folder = tmp_path / str(len(options))
        run(arguments(dataset, folder, "--max_train_steps", "3", "--config_overrides", TINY + ",dropout=0.0", *options))
        histories.append(json.loads((folder / LOG_NAME).read_text(encoding="utf-8"))["history"][-1])
    assert histories[0]["bits_per_note"] == pytest.approx(histories[1]["bits_per_note"], rel=1e-3)


def test_a_deeper_model_goes_on_as_the_trained_one_was(trained):
    processor = models.load_tokenizing_processor(str(trained))
    overrides = ("", "num_encoder_layers=2,num_hidden_layers=3")
    plain, deeper = (models.load_model(str(trained), text, processor).eval() for text in overrides)
    assert (len(deeper.melody_encoder.layers), len(deeper.layers)) == (2, 3)
    ids = plain.sample(3, bars=2, seed=0)
    assert torch.equal(plain(ids).logits, deeper(ids).logits)
    deeper.train()(ids, labels=ids).loss.backward()
    new = {
        name: weight
        for name, weight in deeper.named_parameters()
        if "layers.2" in name and name.endswith("o_proj.weight")
    }
    assert new
    assert all(weight.grad.any() for weight in new.values())


@pytest.mark.parametrize("conditions", [["key"], ["attributes"], ["key", "attributes"]])
def test_a_trained_model_goes_on_as_it_was_with_any_conditions(trained_with_prior, conditions):
    processor = models.load_tokenizing_processor(str(trained_with_prior))
    plain, conditional = (
        models.load_model(str(trained_with_prior), "", processor, names).eval() for names in ([], conditions)
    )
    ids = plain.sample(3, bars=2, seed=0)
    asked = conditional.conditions_of(conditional.read_lines(ids))
    assert set(asked) == ({*conditional.config.attributes} if "attributes" in conditions else set()) | (
        {"key"} & set(conditions)
    )
    latent = torch.randn(3, plain.config.latent_size, generator=torch.Generator().manual_seed(1))
    assert conditional.decode(latent, bars=2, conditions=asked).tolist() == plain.decode(latent, bars=2).tolist()
    if "attributes" in conditions:
        prior = AutoModel.from_pretrained(trained_with_prior, trust_remote_code=True).prior
        assert torch.equal(conditional.bar_conditioner.condition_embedding.attribute_mean, prior.attribute_mean)


def test_a_trained_model_goes_on_as_it_was_and_hears_of_noise(trained):
    processor = models.load_tokenizing_processor(str(trained))
    plain, noisy = (models.load_model(str(trained), text, processor).eval() for text in ("", "noise_probability=0.5"))
    assert not noisy.bar_conditioner.noise_proj.weight.any()
    latent = torch.randn(2, plain.config.latent_size, generator=torch.Generator().manual_seed(1))
    assert noisy.decode(latent, bars=2).tolist() == plain.decode(latent, bars=2).tolist()
