"""Ablations and the equal-budget comparison: what a variant is, that nothing runs twice, one run from end to end."""

import json

import pytest

from benchmarks import ablations, baselines
from command import UserError
from dataset_script.build import main as build

OVERRIDES = "--config_overrides"
TINY = "--per_device_train_batch_size 4 --vocab_size 256 --max_tokens 64 --max_eval_samples 4 --num_proc 1"


def test_overrides_add_up_and_options_replace():
    base = {"--learning_rate": "1e-3", OVERRIDES: "hidden_size=96,dropout=0.0"}
    assert ablations.varied(base, {"--learning_rate": "1e-4"}) == {**base, "--learning_rate": "1e-4"}
    assert ablations.varied(base, {OVERRIDES: "dropout=0.1"})[OVERRIDES] == "hidden_size=96,dropout=0.0,dropout=0.1"
    assert ablations.varied({}, {OVERRIDES: "dropout=0.1"}) == {OVERRIDES: "dropout=0.1"}
    assert ablations.varied({"--seed": "7"}, {}) == {"--seed": "7"}


def test_options_are_read_as_pairs_and_flags():
    read = ablations.parse_options("--streaming --config_overrides 'a=1,b=2' --seed 7")
    assert read == {"--streaming": "", OVERRIDES: "a=1,b=2", "--seed": "7"}
    words = ablations.command(read)[2:]
    assert words == ["--streaming", OVERRIDES, "a=1,b=2", "--seed", "7"]
    with pytest.raises(UserError, match="9 belongs to no option"):
        ablations.parse_options("--seed 7 9")


def test_a_variant_is_worth_its_difference_from_the_baseline(tmp_path):
    def runs(*bits: float) -> dict:
        return {"options": {}, "seeds": {str(seed): {"bits_per_note": each} for seed, each in enumerate(bits)}}

    results = {"variants": {"baseline": runs(8.0, 9.0), "dropout 0.1": runs(7.0, 9.0)}}
    ablations.write(results, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["variants"]
    assert found["dropout 0.1"] == {**runs(7.0, 9.0), "bits_per_note": 8.0, "difference": -0.5}
    assert found["baseline"]["difference"] == 0.0
    assert ablations.table(results).splitlines()[1].split() == ["dropout", "0.1", "8.000", "-0.500"]  # the best first


def test_models_of_other_sizes_do_not_compare(tmp_path):
    sizes = {"lstm": 100, "rnn": 119, "music_vae": 121}
    models = {name: {"parameters": size} for name, size in sizes.items()}
    with pytest.raises(UserError, match="differ by more than 20%"):
        baselines.write({"models": models}, tmp_path / "found.json")
    assert not (tmp_path / "found.json").exists()
    del models["music_vae"]
    baselines.write({"models": models}, tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["models"] == models


@pytest.mark.parametrize("benchmark", [ablations, baselines])
def test_results_of_other_options_are_kept(benchmark, tmp_path, capsys):
    output = tmp_path / "found.json"
    kept = json.dumps({"baseline_options": {"--seed": "1"}, "options": {"--seed": "1"}, "models": {}, "variants": {}})
    output.write_text(kept, encoding="utf-8")
    arguments = ["--dataset", "nothing", "--output", str(output), "--steps", "2", "--runs", str(tmp_path / "runs")]
    assert benchmark.main(arguments) == 2
    assert f"{output}: results of other options; give another --output" in capsys.readouterr().err
    assert output.read_text(encoding="utf-8") == kept


@pytest.mark.slow
def test_two_models_with_one_budget(tmp_path, monkeypatch, capsys):
    data, output, runs = tmp_path / "data", tmp_path / "found.json", tmp_path / "runs"
    assert build(["--output", str(data)]) == 0
    arguments = ["--dataset", str(data), "--output", str(output), "--runs", str(runs), "--steps", "3"]
    arguments += ["--options", TINY, "--evaluate", "--melodies 4 --samples 4 --ngram_melodies 20"]
    monkeypatch.setattr(baselines, "WIDEST", 2.0)  # SHAPES are for a vocabulary of 2,048
    monkeypatch.setattr(baselines, "OBJECTIVE", f"{baselines.OBJECTIVE},latent_size=32")
    assert baselines.main([*arguments, "--only", "rnn"]) == 0
    made = (runs / "rnn" / "model.safetensors").stat().st_mtime_ns
    assert baselines.main([*arguments, "--only", "rnn", "music_transformer"]) == 0  # goes on where it was
    assert (runs / "rnn" / "model.safetensors").stat().st_mtime_ns == made
    found = json.loads(output.read_text(encoding="utf-8"))["models"]
    assert list(found) == ["rnn", "music_transformer"]
    for results in found.values():
        assert results["training"]["melodies_seen"] == 12
        assert results["likelihood"]["bits_per_note"] > 0
        assert results["samples"]["sets"]["model"]["melodies"] > 0
    assert "Each model saw 12 windows of the training split." in capsys.readouterr().out
    assert baselines.main([*arguments, "--only", "lstm", "--options", f"{TINY} --seed 1"]) == 2
