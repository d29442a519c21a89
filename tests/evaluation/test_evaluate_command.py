"""The evaluation command on tiny models, and the tables and figures made of what it writes."""

import json
from pathlib import Path

import datasets
import pytest

import evaluate_model
import generate
from documents import blocks, compare, figures
from evaluation import measurement
from metrics.originality.originality_index import OriginalityIndex
from rendering import piano_roll
from rendering.distributions import draw_distributions
from tests.builders.generation import LINES
from tests.builders.training import arguments, run

SMALL = ["--melodies", "5", "--samples", "12", "--pairs", "2", "--importance_samples", "2", "--ngram_melodies", "20"]


@pytest.fixture(scope="module")
def music_transformer(dataset, tmp_path_factory):
    output = tmp_path_factory.mktemp("music_transformer")
    tiny = arguments(dataset, output)
    at = tiny.index("--config_overrides") + 1
    sizes = ",".join(size for size in tiny[at].split(",") if not size.startswith("latent_size"))
    run([*tiny[:at], f"{sizes},latent_size=0", *tiny[at + 1 :]])
    return output


@pytest.fixture(scope="module")
def music_vae(dataset, tmp_path_factory):
    output = tmp_path_factory.mktemp("music_vae")
    tiny = arguments(dataset, output, "--model_type", "music_vae")
    tiny[tiny.index("--config_overrides") + 1] = "encoder_size=11,decoder_size=7,num_layers=1,latent_size=13"
    run(tiny)
    return output


@pytest.fixture(scope="module")
def results(dataset, trained, tmp_path_factory):
    output = tmp_path_factory.mktemp("results") / "vae.json"
    argv = ["--model", str(trained), "--dataset", str(dataset), "--output", str(output), *SMALL]
    argv += ["--rate_distortion", str(trained), "--examples", str(dataset), "--other_data", str(dataset)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurement, "FEWEST_IN_GROUP", 2)
        assert evaluate_model.main(argv) == 0
    return output


@pytest.fixture(scope="module")
def results_without_latent(dataset, music_transformer, tmp_path_factory):
    output = tmp_path_factory.mktemp("results") / "music_transformer.json"
    argv = ["--model", str(music_transformer), "--dataset", str(dataset), "--output", str(output), *SMALL]
    assert evaluate_model.main(argv) == 0
    return output


def test_every_number_of_the_design_is_there(results):
    found = json.loads(results.read_text(encoding="utf-8"))
    free, likelihood = found["free_running"], found["likelihood"]
    for value in (free["step_accuracy"]["accuracy"], free["note_f1"]["f1"], free["step_accuracy"]["exact"]):
        assert 0 <= value <= 1
    low, high = likelihood["interval"]
    assert low <= likelihood["bits_per_note"] <= high
    assert likelihood["kl_nats"] > 0
    assert likelihood["active_units"] >= 0
    floors = found["likelihood_floors"]
    assert floors["4-gram"]["bits_per_note"] < floors["unigram"]["bits_per_note"] < floors["uniform"]["bits_per_note"]
    sets = found["samples"]["sets"]
    assert set(sets) == {"model", "floor: 4-gram", "ceiling: train", "split"}
    assert sets["model"]["melodies"] == 12
    assert len(sets["model"]["overlap"]["features"]) == 10
    assert sets["ceiling: train"]["originality"]["copied"] == 1
    assert len(found["rate_distortion"]["decoder"]) >= 4
    assert found["rate_distortion"]["models"][0]["kl_weight"] == found["kl_weight"]
    assert set(found["groups"]["by_bars"]) <= {"1", "2", "4", "8", "16"}
    assert found["groups"] == found["groups_own_conditions"]  # this melody decoder has none
    assert {name: free[name] for name in found["own_conditions"]} == found["own_conditions"]
    by_meter, name = found["groups"]["by_time_signature"], Path(found["dataset"]).name
    assert by_meter
    same = {f"{name}, {meter}": row for meter, row in by_meter.items()}
    assert found["groups"]["by_data_set"] == same  # the same data, as if they were others
    assert len(found["interpolation"]["latent"]["from_start"]) == found["interpolation"]["points"]
    assert len(found["locality"]["change"]) == 16
    assert found["not_measured"] == {"leak": "the data set is not a folder that dataset_script.build made"}
    assert found["leak"] is None


def test_rate_and_distortion_at_beta_one_is_the_elbo(results):
    found = json.loads(results.read_text(encoding="utf-8"))
    (one,) = [point for point in found["rate_distortion"]["decoder"] if point["beta"] == 1]
    assert one["rate_nats"] == pytest.approx(found["likelihood"]["kl_nats"], rel=1e-4)
    assert one["distortion_nats"] == pytest.approx(found["likelihood"]["reconstruction_nats"], rel=0.1)
    rates = [point["rate_nats"] for point in found["rate_distortion"]["decoder"]]
    assert rates == sorted(rates)
    assert rates[0] == 0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(dataset, trained, results, tmp_path):
    output = tmp_path / "again.json"
    argv = ["--model", str(trained), "--dataset", str(dataset), "--output", str(output), *SMALL]
    assert evaluate_model.main([*argv, "--parts", "likelihood", "reconstruction", "samples"]) == 0
    first, again = (json.loads(path.read_text(encoding="utf-8")) for path in (results, output))
    for part in ("likelihood", "likelihood_floors", "free_running", "samples"):
        assert first[part] == again[part], part
    assert "groups" not in again


def test_a_model_without_a_latent_is_measured_where_it_can_be(results_without_latent):
    found = json.loads(results_without_latent.read_text(encoding="utf-8"))
    for name in ("free_running", "rate_distortion", "groups", "interpolation", "locality", "noise"):
        assert found[name] is None
        assert found["not_measured"][name] == "this model has no latent"
    assert found["likelihood"]["kl_nats"] is None
    assert found["likelihood"]["bits_per_note"] > 0
    assert found["teacher_forced_by_bar"]["step_accuracy"]["count"] == found["melodies"]
    assert found["samples"]["sets"]["model"]["melodies"] > 0


def test_music_vae_is_measured_where_it_can_be(dataset, music_vae, tmp_path):
    output = tmp_path / "music_vae.json"
    argv = ["--model", str(music_vae), "--dataset", str(dataset), "--output", str(output), *SMALL]
    assert evaluate_model.main(argv) == 0
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["teacher_forced_by_bar"] is found["locality"] is None
    assert "reads steps" in found["not_measured"]["locality"]
    assert found["likelihood"]["kl_nats"] > 0
    assert found["interpolation"]["latent"]["from_start"][0] == 0
    assert set(found["samples"]["sets"]) == {"model", "ceiling: train", "split"}
    assert set(found["groups"]["by_time_signature"]) <= {"4/4"}
    assert "| samples: two-sample AUC |" in compare.comparison({"MusicVAE": found})


def test_table(results, results_without_latent, tmp_path, capsys):
    assert compare.main([str(results), str(results_without_latent), "--names", "VAE", "MT"]) == 0
    table = capsys.readouterr().out
    header, _, *rows = [line for line in table.splitlines() if line.startswith("|")]
    assert header == "|  | VAE | MT | floor | ceiling |"
    rows = {row.split(" | ")[0].removeprefix("| "): row.removesuffix(" |").split(" | ")[1:] for row in rows}
    likelihood = json.loads(results.read_text(encoding="utf-8"))["likelihood"]
    assert rows["bits per note"][0].startswith(f"{likelihood['bits_per_note']:.2f} (")
    assert rows["note F1, free-running"][1] == compare.DASH
    assert rows["KL, nats per melody"][1] == compare.DASH
    assert "seed 0" in table
    assert compare.main([str(results), "--groups", "--output", str(tmp_path / "groups.md")]) == 0
    assert (tmp_path / "groups.md").read_text(encoding="utf-8").startswith("| by | group | melodies |")


def test_how_samples_were_drawn_is_said_of_each_model_that_differs():
    """Once where it is the same for all."""
    one = compare.read_results(["results/release.json"], None)["release"]
    again = compare.comparison({"one": one, "other": one})
    assert again.count("the critic's best of") == again.count("training windows.") == 1
    plain = {**one, "samples": {**one["samples"], "sampling_candidates": 1}}
    both = compare.comparison({"one": one, "plain": plain})
    assert f"one: {compare.way_of_sampling(one)} plain: {compare.way_of_sampling(plain)}" in both
    assert both.count("the critic's best of") == 1


def test_older_results_are_still_read():
    models = compare.read_results(["results/first_run.json"], None)
    assert "| note F1, free-running | 0.637 |" in compare.comparison(models)


def test_blocks(results, tmp_path):
    assert "Not measured yet" in blocks.release(tmp_path)
    assert "Not measured yet" in blocks.baselines(tmp_path)
    assert "Not measured yet" in blocks.ablations(tmp_path)
    assert "has not been measured" in blocks.originality_index(tmp_path)
    (tmp_path / "release.json").write_text(results.read_text(encoding="utf-8"), encoding="utf-8")
    told = blocks.release(tmp_path)
    assert "`results/release.json`" in told
    assert told.count("\n|") > 20


@pytest.mark.slow
def test_figures(results, results_without_latent, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(piano_roll, "DPI", 40)
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    argv = [str(results), str(results_without_latent), str(tmp_path / "other.json"), "--output", str(tmp_path / "out")]
    assert figures.main(argv) == 0
    names = {path.stem for path in (tmp_path / "out").glob("*.png")}
    kinds = {"training", "interpolation", "interpolation-price", "features", "strip", "reconstruction-1"}
    assert {f"vae-{kind}" for kind in kinds} | {"rate-distortion", "music_transformer-features"} <= names
    assert all(f"{name}-dark" in names for name in names if not name.endswith("-dark"))
    assert "music_transformer-interpolation" not in names


def test_distributions_are_drawn():
    panels = {"a $b$": ([0, 1, 2], {"one": [1, 3], "other": [0, 0]})}
    figure = draw_distributions(panels, title="t")
    assert figure.axes[0].get_title(loc="left") == "a $b$"
    for wrong, message in (({}, "got no panels"), ({"a": ([0, 1], {"one": [1, 2]})}, "2 edges and 2 counts")):
        with pytest.raises(ValueError, match=message):
            draw_distributions(wrong)


def test_refusals(dataset, trained, results, tmp_path, capsys):
    (tmp_path / "file").write_text("{}", encoding="utf-8")
    base = ["--model", str(trained), "--dataset", str(dataset), "--output", str(tmp_path / "x.json")]
    cases = [
        (evaluate_model, [*base, "--samples", "0"], "--samples 0: must be at least 1"),
        (evaluate_model, [*base, "--melodies", "1"], "--melodies 1: must be at least 2"),
        (evaluate_model, [*base, "--originality_index", str(tmp_path / "file")], "file: not an originality index"),
        (evaluate_model, [*base, "--originality_index", str(tmp_path / "none")], "none"),
        (evaluate_model, [*base, "--split", "none"], "no data set with a split 'none'"),
        (compare, [str(tmp_path / "none")], "none: no results of evaluate_model.py"),
        (compare, [str(results), "--names", "a", "b"], "2 for 1 results"),
        (compare, [str(results), str(results)], "two results are called 'vae'"),
        (compare, [str(results), "results/first_run.json"], "results of different melodies do not compare"),
        (figures, [str(tmp_path / "file"), "--output", str(tmp_path / "out")], "none of these is a file of"),
        (figures, [str(tmp_path / "none"), "--output", str(tmp_path / "out")], "none: cannot be read"),
    ]
    for module, argv, message in cases:
        assert module.main(argv) == 2, argv
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert message in error
    assert not (tmp_path / "x.json").exists()


def test_generate_checks_originality(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(piano_roll, "DPI", 40)
    OriginalityIndex.build(LINES).save(tmp_path / "index.safetensors")
    argv = ["sample", "--model", str(trained), "--output", str(tmp_path / "out"), "--num", "2", "--bars", "4"]
    assert generate.main([*argv, "--check_originality", str(tmp_path / "index.safetensors")]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Sample ")]
    assert len(told) == 2
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert all("in common" in line and line.split(": ", 1)[1][:30] in page for line in told)
    for name, message in (("none", "cannot be read"), ("index.html", "not an originality index")):
        assert generate.main([*argv, "--check_originality", str(tmp_path / "out" / name)]) == 2
        assert message in capsys.readouterr().err


def test_two_windows_are_needed(trained, tmp_path, capsys):
    long = {**LINES[0], "bars": 16, "key": "C major", "genre": None}
    datasets.Dataset.from_list([long]).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    argv = ["--model", str(trained), "--dataset", str(tmp_path), "--output", str(tmp_path / "x.json")]
    assert evaluate_model.main(argv) == 2
    assert "two are needed to compare" in capsys.readouterr().err
