"""What the speed benchmark compares, that it goes on where it stopped, and that no ratio fell against the committed."""

import json
from pathlib import Path

import pytest

from benchmarks import profile, speed
from benchmarks.peers import decoder_weights, generation, make_peers
from benchmarks.speed_parts import random_melodies
from benchmarks.timing import take_turns
from documents.speed import NOT_MEASURED
from documents.speed import profile as write_profile
from documents.speed import speed as write_speed
from documents.speed import summary as write_summary
from generation.loading import load_model
from publishing.onnx.onnx_melody_vae import OnnxMelodyVAE
from tests.builders.onnx_models import export_rich

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "results" / "benchmark.json"
TRIES = 3


@pytest.fixture(scope="module")
def model():
    return load_model(str(ROOT / "release" / "melody-vae-16bar"))[1].eval()


def test_turns_alternate_and_the_least_counts():
    order = []
    sides = {name: lambda name=name: order.append(name) or 7 for name in "ab"}
    found = take_turns(sides, 2)
    assert order == list("ab") + list("ba") + list("ab")
    for side in found.values():
        assert side["units"] == 7
        assert len(side["wall_seconds"]) == len(side["processor_seconds"]) == 2
        assert side["milliseconds"] == 1e3 * min(side["processor_seconds"]) / 7


def test_ratios_of_speed_and_of_cost():
    parts = {"one": {"sides": {"ours": {"milliseconds": 2.0}, "GPT-2": {"milliseconds": 5.0}}}}
    parts["midi_in"] = {"sides": {"ours": {"milliseconds": 3.0}, "MidiTok": {"milliseconds": 2.0}}}
    parts["memory"] = {"mib": {"ours, causal": 13.0, "plain, causal": 10.0}}
    parts["cold_start"] = {"sides": {"ONNX": {"milliseconds": 1500.0}}}
    rows = {(row["part"], row["side"]): (row["ratio"], row["is_met"]) for row in speed.compare(parts)}
    assert rows == {
        ("one", "ours"): (2.5, True),
        ("midi_in", "ours"): (1.5, False),
        ("memory", "ours, causal"): (1.3, True),
        ("cold_start", "ONNX"): (1.5, False),
    }
    assert speed.speeds(parts)["midi_in: ours beside MidiTok"] == pytest.approx(2 / 3)


def test_a_ratio_that_falls_by_more_than_a_third_is_named():
    committed = {"a": 3.0, "b": 3.0, "c": 3.0}
    assert speed.fallen(committed, {"a": 2.01, "b": 1.99}) == ["b: 1.99, was 3.00"]


def test_peers_have_the_models_number_of_parameters(model):
    size = sum(each.numel() for each in model.parameters())
    for peer in make_peers(model.config).values():
        assert sum(each.numel() for each in peer.parameters()) == pytest.approx(size, rel=0.02)
        assert generation(peer, 3, 5)() == 15


def test_a_token_is_multiplied_with_every_matrix_of_the_melody_decoder(model):
    matrices = [each for each in model.layers.parameters() if each.dim() == 2]
    assert len(decoder_weights(model)) == len(matrices) + 2  # the head, and the previous token's
    melodies = random_melodies(model.config, 3, 160)
    assert model.is_bar_token[melodies].sum(-1).unique().tolist() == [15]


def test_a_profile_times_every_part_and_leaves_the_code_as_it_was(model):
    def work() -> int:
        ids = model.sample(2, seed=0, candidates=1, bars=1)
        return int(ids.ne(model.config.pad_token_id).sum())

    before = work()
    found = profile.profile(model, profile.TOKEN, work, 1)
    assert list(found) == [*profile.TOKEN, profile.REST]
    assert all(value > 0 for value in found.values())
    assert work() == before


@pytest.mark.slow
def test_profiles_of_all_that_users_wait_for(tmp_path):
    assert profile.main(["--short", "--without_onnx", "--output", str(tmp_path / "profile.json")]) == 0
    found = json.loads((tmp_path / "profile.json").read_text(encoding="utf-8"))["milliseconds"]
    for parts, groups in zip(found.values(), [profile.TOKEN, profile.TOKEN, profile.MIDI], strict=True):
        assert list(parts) == [*groups, profile.REST]
        assert all(value > 0 for value in parts.values())
    assert write_profile(tmp_path).count("\n- ") == 3
    assert not write_profile(tmp_path / "nothing")


@pytest.mark.slow
def test_a_profile_of_onnxruntime(shared):
    runtime = OnnxMelodyVAE(shared("onnx-rich", export_rich) / "onnx")
    found = profile.profile(runtime, profile.ONNX_TOKEN, lambda: runtime.sample(2, seed=0, bars=1).size, 1)
    assert list(found) == [*profile.ONNX_TOKEN, profile.REST]
    assert all(value > 0 for value in found.values())


@pytest.mark.slow
def test_command_measures_what_is_missing_and_the_documents_tell_it(tmp_path, capsys):
    output = tmp_path / "benchmark.json"
    assert write_speed(tmp_path) == write_summary(tmp_path) == NOT_MEASURED
    options = ["--output", str(output), "--short", "--without_onnx", "--parts"]
    assert speed.main([*options, "midi_in"]) == 0
    first = json.loads(output.read_text(encoding="utf-8"))
    assert list(first["parts"]) == ["midi_in"]
    assert speed.main([*options, "one", "training", "growth_length"]) == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    assert report["parts"]["midi_in"] == first["parts"]["midi_in"]
    assert set(report["parts"]["one"]["sides"]) == {"ours", "GPT-2", "Llama", "limit"}
    assert 0 < report["parts"]["training"]["share_of_matrix_rate, fp32"] < 1
    assert "training step, tokens/s" in write_speed(tmp_path)
    capsys.readouterr()
    assert speed.main(["--output", str(output), "--parts", "midi_in"]) == 2
    assert "measured with other sizes; give another --output, or remove it" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not COMMITTED.is_file(), reason="results/benchmark.json is written by make benchmark")
def test_no_ratio_has_fallen_by_a_third():
    """Ratios of work done in turns, in processor time; the best of some tries, since other programs disturb them."""
    committed = json.loads(COMMITTED.read_text(encoding="utf-8"))["parts"]["guard"]
    best: dict[str, float] = {}
    for _ in range(TRIES):
        measured = speed.guard()
        best = {name: max(value, best.get(name, 0)) for name, value in measured.items()}
        if not (fallen := speed.fallen(committed, best)):
            break
    assert not fallen
    assert best.keys() >= committed.keys()
