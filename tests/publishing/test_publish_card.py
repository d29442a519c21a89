"""The model's card: every number from results/ or a log, every section whether measured or not."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.repocard_data import EvalResult

from command import UserError
from documents import model_card
from publishing import dataset

ROOT = Path(__file__).parents[2]
NAME = "tester/melody"
CONDITIONS = {"key": ["C major", "A minor"], "tempo": ["slow", "fast"]}
LOG = {"arguments": {"dataset": "data/lakh"}, "seconds": 3600, "cpu_threads": 1, "device": "cpu", "melodies_seen": 1009}


def evaluation(name: str = "melody-vae-16bar", parameters: int = 5003, **more: Any) -> dict[str, Any]:
    """Make what `evaluate_model.py` writes of a model, with numbers that are nowhere else."""
    steps = {"accuracy": 0.7919, "floor": 0.6067, "exact": 0.0131, "interval": [0.7817, 0.8011]}
    return {
        "model": f"release/{name}",
        "parameters": parameters,
        "split": "test",
        "melodies": 251,
        "bars": 16,
        "seed": 3,
        "likelihood": {
            "bits_per_note": 6.123,
            "importance_weighted_bits_per_note": 5.917,
            "importance_samples": 11,
            "kl_nats": 233.1,
            "active_units": 31,
        },
        "likelihood_floors": {"uniform": {"bits_per_note": 19.71}, "4-gram": {"bits_per_note": 8.317}, "melodies": 9},
        "free_running": {"step_accuracy": steps, "note_f1": {"f1": 0.5557}, "note_f1_floor": 0.0241},
        "teacher_forced_by_bar": {"step_accuracy": {"accuracy": 0.8167, "floor": 0.6067}},
        **more,
    }


def make_published(**changes: Any) -> model_card.Published:
    config = {"latent_size": 32, "max_bars": 16, "conditions": CONDITIONS, "num_prior_layers": 1, "attributes": None}
    return model_card.Published(
        **{
            "name": "melody-vae-16bar",
            "repo_id": NAME,
            "config": config,
            "parameters": 5003,
            "logs": {},
            "samples": ["sample-seed0"],
            "has_onnx": True,
            "metrics": ["note_f1"],
            "dataset_id": "tester/lines",
            **changes,
        }
    )


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d[\d,]*\.\d+", text))


def test_the_card_without_results_says_so_and_has_no_numbers_of_any():
    card, own, used = model_card.render(make_published(), {})
    assert own is None
    assert used == []
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL))
    for section, said in {
        "Training data": "Not known here",
        "Training procedure": "How the model was trained is not known here",
        "Evaluation": "This model has not been measured",
        "Limits": "has not been measured; look for a tune",
        "Environmental cost": "Training: not known",
    }.items():
        assert said in " ".join(sections[section].split()), section
    assert "Training of the prior: not known" in sections["Environmental cost"]
    assert "Operations and conditions" not in sections
    assert "how often conditions are obeyed" in sections["Evaluation"]
    assert numbers(card.split("## Quickstart")[1].split("## Limits")[0]) <= {"2.13", "5.23", "3.1", "0.6", "0.8"}
    assert not {"model-index", "metrics", "co2_eq_emissions"} & set(ModelCard(card).data.to_dict())
    assert "Lakh" not in card


@pytest.mark.parametrize("name", ["first_run", "model", "attention", "dataset"])
def test_the_card_is_written_from_each_result_alone(name):
    results = {name: json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))}
    card, _, used = model_card.render(make_published(), results)
    assert used == [f"{name}.json"]
    assert ModelCard(card).data.to_dict()["license"] == "apache-2.0"


def test_the_head_has_what_the_hub_checks():
    """As https://github.com/huggingface/hub-docs/blob/main/modelcard.md has it: what is required, and of which type."""
    logs = {"training": LOG, "prior": LOG}
    card, _, _ = model_card.render(make_published(logs=logs), {"release": evaluation()})
    head = yaml.safe_load(card.split("---\n")[1])
    assert (head["license"], head["library_name"], head["pipeline_tag"]) == ("apache-2.0", "transformers", "other")
    assert head["datasets"] == ["tester/lines"]
    for field in ("tags", "datasets", "metrics"):
        assert head[field]
        assert len(set(head[field])) == len(head[field])
        assert all(isinstance(each, str) for each in head[field])
    (model,) = head["model-index"]
    assert model["name"] == "melody"
    for result in model["results"]:
        assert result["task"]["type"]
        assert result["dataset"]["type"] == "tester/lines"
        assert result["dataset"]["name"]
        for metric in result["metrics"]:
            assert metric["type"] in head["metrics"]
            assert isinstance(metric["value"], int | float)
            assert metric["args"]["definition"]
    assert head["co2_eq_emissions"]["hardware_used"] == "1 CPU thread"


def test_the_models_own_numbers_are_in_card_and_head():
    values = evaluation()
    card, own, used = model_card.render(make_published(), {"release": values})
    assert own
    assert used == ["release.json"]
    table = card.split("## Evaluation")[1].split("## Limits")[0]
    for shown in ("6.12", "8.32", "5.92", "233", "0.792", "0.782 to 0.801", "0.607", "0.817", "0.556", "0.0241", "31"):
        assert f" {shown} |" in table, shown
    assert "251 windows of 16 bars in 4/4" in table
    assert "Other models" not in card
    results: list[EvalResult] = ModelCard(card).data.eval_results or []
    by_name = {result.metric_name: result for result in results}
    assert by_name["Note F1, free-running"].metric_value == 0.5557
    about = {name: result.metric_args or {} for name, result in by_name.items()}
    assert about["Step accuracy, free-running"]["floor"] == 0.6067
    assert all(each["definition"] and each["seed"] == 3 for each in about.values())
    assert {result.dataset_type for result in results} == {"tester/lines"}


def test_eval_results_are_those_of_the_data_sets_tasks():
    """Format: https://huggingface.co/docs/hub/eval-results; a task's id is one of the data set's eval.yaml."""
    told = {"sets": {"model": {"originality": {"copied": None}, "two_sample": {"auc": 0.711}}}}
    own = model_card.Evaluation("melody-vae-16bar", "release.json", evaluation(samples=told))
    entries = parse_eval_result_entries(yaml.safe_load(model_card.eval_results_yaml(own, make_published())))
    assert [entry.task_id for entry in entries] == list(dataset.TASKS)
    by_task = {entry.task_id: entry for entry in entries}
    assert by_task["bits_per_note"].value == 6.123
    assert by_task["note_f1_free_running"].value == 0.5557
    assert by_task["two_sample_auc"].value == 0.711
    for entry in entries:
        assert entry.dataset_id == "tester/lines"
        assert entry.source_url == "https://huggingface.co/tester/melody/blob/main/results/release.json"
        assert "test split, 251 windows, seed 3" in (entry.notes or "")


@pytest.mark.parametrize("other", [evaluation("another"), evaluation(parameters=4999)])
def test_numbers_of_another_model_are_shown_as_such_and_stay_out_of_the_head(other):
    card, own, _ = model_card.render(make_published(), {"baselines": {"models": [other]}})
    assert own is None
    assert "None of these rows is the model of this card." in card
    assert f"**{Path(other['model']).name}**, {other['parameters']:,} parameters, 251 windows" in card
    assert ModelCard(card).data.eval_results is None


def test_originality_is_said_where_it_was_measured():
    def found(copied: float, auc: float | None) -> dict[str, Any]:
        return {"originality": {"copied": copied}} | ({"two_sample": {"auc": auc}} if auc else {})

    sets = {"model": found(0.0317, 0.711), "floor: 4-gram": found(0.113, 0.909), "split": found(0.0523, None)}
    card, _, _ = model_card.render(make_published(), {"release": evaluation(samples={"sets": sets})})
    assert "| floor: 4-gram | 0.909 | 11.3% |" in card
    assert "3.2% occur in the training split" in card
    assert "has not been measured; look" not in card


def test_a_model_without_a_latent_has_a_card_too():
    config = {"latent_size": 0, "max_bars": 16, "conditions": None, "num_prior_layers": 0, "attributes": None}
    values = evaluation(free_running=None)
    values["likelihood"] |= {"kl_nats": None, "active_units": None, "importance_weighted_bits_per_note": None}
    card, _, _ = model_card.render(make_published(config=config), {"release": values})
    assert "latent_mean" not in card
    assert "conditions=" not in card
    assert "KL in nats" not in card


def test_energy_grows_with_hours_and_threads():
    once = model_card.energy(LOG)
    assert once
    assert once["kwh"] == pytest.approx(model_card.WATTS_PER_CPU_THREAD / 1000)
    for more in ({"seconds": 10800}, {"cpu_threads": 3}, {"num_processes": 3}):
        dearer = model_card.energy(LOG | more)
        assert dearer
        assert dearer["grams_co2"] == pytest.approx(3 * once["grams_co2"])
    by_gpu = model_card.energy(LOG | {"device": "cuda"})
    assert by_gpu
    assert by_gpu["kwh"] == pytest.approx(model_card.WATTS_PER_GPU / 1000)
    continued = model_card.energy(LOG | {"before": LOG | {"seconds": 7200, "before": LOG | {"device": "cuda"}}})
    assert continued
    assert continued["hours"] == 4
    assert continued["kwh"] == pytest.approx(3 * once["kwh"] + by_gpu["kwh"])
    assert continued["hardware"] == "1 GPU, 1 CPU thread"
    assert model_card.energy(LOG | {"before": {"arguments": {}}}) is None
    assert model_card.energy({"seconds": 3600, "arguments": {}}) is None
    assert model_card.energy({"cpu_threads": 3}) is None


def test_emissions_are_those_of_all_parts_or_not_given():
    once = model_card.energy(LOG)
    assert once
    both, _, _ = model_card.render(make_published(logs={"training": LOG, "prior": LOG}), {})
    assert ModelCard(both).data.to_dict()["co2_eq_emissions"]["emissions"] == round(2 * once["grams_co2"], 1)
    assert both.count(f"{once['kwh']:#.3g} kWh") == 2
    one, _, _ = model_card.render(make_published(logs={"prior": LOG}), {})
    assert one.count(f"{once['kwh']:#.3g} kWh") == 1
    assert "Training: not known" in one
    assert "co2_eq_emissions" not in ModelCard(one).data.to_dict()


def test_the_data_are_those_that_the_log_names(tmp_path):
    measured = json.loads((ROOT / "results" / "dataset.json").read_text(encoding="utf-8"))
    own = {name: measured[name] for name in ("files", "statistics", "steps_per_beat")} | {"input": "my tunes"}
    (tmp_path / "build.json").write_text(json.dumps(own), encoding="utf-8")
    log = LOG | {"arguments": {"dataset": str(tmp_path)}}
    card, _, used = model_card.render(make_published(logs={"training": log}), {"dataset": measured})
    assert "`my tunes`" in card
    assert used == []
    assert not re.search("Lakh|lmd_full|near-duplicates", card)
    (tmp_path / "build.json").write_text(json.dumps(own | {"input": measured["input"]}), encoding="utf-8")
    card, _, used = model_card.render(make_published(logs={"training": log}), {"dataset": measured})
    assert used == ["dataset.json"]
    assert "Western pop, mostly" in card
    assert "The Lakh MIDI Dataset is CC BY 4.0" in card


def test_broken_results_are_one_line(tmp_path):
    (tmp_path / "release.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"release\.json: no JSON"):
        model_card.read_results(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        model_card.read_results(tmp_path / "nowhere")
    incomplete = json.loads((ROOT / "results" / "model.json").read_text(encoding="utf-8"))
    del incomplete["validity"]
    with pytest.raises(UserError, match="lacks a figure"):
        model_card.render(make_published(), {"model": incomplete})


def test_links_lead_to_the_branch_and_the_hub_that_are_meant():
    published = make_published(revision="v2", endpoint="https://hub.example", space_id="tester/play")
    card, own, _ = model_card.render(published, {"release": evaluation()})
    assert own
    assert "https://hub.example/tester/melody/resolve/v2/samples/sample-seed0.mp3" in card
    assert 'AutoModel.from_pretrained("tester/melody", revision="v2", trust_remote_code=True)' in card
    assert "https://hub.example/spaces/tester/play" in card
    assert "https://hub.example/tester/melody/blob/v2/results/release.json" in model_card.eval_results_yaml(
        own, published
    )
