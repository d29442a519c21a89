"""The model's card: `model_card.md` filled with what results/*.json and the model's own folder say, and nothing else.

A result belongs to the model that is published where its `model` has the folder's name and its `parameters` the
model's number; whatever else was measured is shown under the name of the model that it was measured on. A section whose
result is not there says so.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError

from command import UserError
from documents import versions

ROOT = Path(__file__).parents[1]
TEMPLATE = "model_card.md"
TASKS = (
    "bits_per_note",
    "bits_per_note_importance_weighted",
    "step_accuracy_free_running",
    "step_accuracy_true_bars_before",
    "note_f1_free_running",
    "exact_melodies",
    "two_sample_auc",
)
"""What models are measured by on the test split; `.eval_results/` of a model refers to these ids in eval.yaml."""
LOGS = {"training": "training_log.json", "prior": "prior_log.json", "critic": "critic_log.json"}
"""What the commands leave beside the weights."""

# A server's processor, memory and cooling, by thread in use: rather too much than too little.
WATTS_PER_CPU_THREAD = 10.0
WATTS_PER_GPU = 700.0  # the largest draw of an H100 SXM by its data sheet
GRAMS_CO2_PER_KWH = 475.0  # the world's average, IEA, Global Energy & CO2 Status Report 2019


@dataclass(frozen=True)
class Published:
    """The model that a card is for.

    Args:
        name: Of its folder.
        repo_id: `owner/name`.
        config: What its config.json holds.
        parameters: How many it has.
        logs: `training`, `prior` and `critic` where there are such logs.
        samples: Names of the melodies in samples/, without ending.
        has_onnx: Whether ONNX graphs come with it.
        metrics: Names of the `evaluate` modules that come with it.
        revision: Branch.
        endpoint: Address of the Hub.
        dataset_id: Of the data set it was trained on, if that is published.
        space_id: Of a Space to play with it.
    """

    name: str
    repo_id: str
    config: Mapping[str, Any]
    parameters: int
    logs: Mapping[str, Mapping[str, Any]]
    samples: Sequence[str]
    has_onnx: bool
    metrics: Sequence[str]
    revision: str = "main"
    endpoint: str = "https://huggingface.co"
    dataset_id: str | None = None
    space_id: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_model.py` measured of one model.

    Args:
        name: Of the model.
        file: In results/.
        values: As the command wrote them.
    """

    name: str
    file: str
    values: Mapping[str, Any]

    @property
    def parameters(self) -> int | None:
        """Return how many parameters the model had, where that is written down."""
        return self.values.get("parameters")


def read_results(folder: Path) -> dict[str, Any]:
    """Read every JSON file of a folder by its name without ending.

    Raises:
        UserError: If one is broken, or there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name with --results one that holds what evaluate_model.py wrote")
    results = {}
    for file in sorted(folder.glob("*.json")):
        try:
            results[file.stem] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{file}: no JSON ({error}); measure it again") from error
    return results


def find_evaluations(value: Any, file: str, name: str) -> Iterator[Evaluation]:
    """Find what `evaluate_model.py` wrote, at whatever depth: a file may hold one model or several."""
    if isinstance(value, Mapping):
        if "split" in value and ("free_running" in value or "likelihood" in value):
            yield Evaluation(Path(value.get("model", name)).name, file, value)
        else:
            for key, inner in value.items():
                yield from find_evaluations(inner, file, key)
    elif isinstance(value, list):
        for inner in value:
            yield from find_evaluations(inner, file, name)


def own_evaluation(evaluations: Sequence[Evaluation], published: Published) -> Evaluation | None:
    """Find the one that was measured on the model which is published."""
    for each in evaluations:
        if (each.name, each.parameters) == (published.name, published.parameters):
            return each
    return None


def table_of_metrics(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the numbers of an evaluation that are there.

    Returns:
        For each its `name`, `task` (its id in .eval_results/), `type` (the Hub's word), `value`, `interval` (95%) and
        `floor`, None where there is none, and `definition`.
    """
    rows: list[dict[str, Any]] = []

    def add(
        name: str, kind: str, value: float | None, definition: str, interval: Any = None, floor: Any = None
    ) -> None:
        if value is not None:
            task = re.sub(r"\W+", "_", name.lower()).strip("_")
            about = {"name": name, "task": task, "type": kind, "value": value, "definition": definition}
            rows.append({**about, "interval": interval, "floor": floor})

    # Likelihood: the bound, a tighter one, and the decoder as a language model.
    likelihood, free, forced = (values.get(part) for part in ("likelihood", "free_running", "teacher_forced_by_bar"))
    if likelihood:
        floors = values.get("likelihood_floors") or {}
        prices = {name: each["bits_per_note"] for name, each in floors.items() if isinstance(each, Mapping)}
        best = min(prices, key=prices.__getitem__, default=None)
        what = "the negative ELBO, (reconstruction nats + KL nats) / ln 2 / notes; lower is better"
        what += f"; the floor is the {best} model of the same tokens" if best else ""
        bits, floor = likelihood["bits_per_note"], prices.get(best) if best else None
        add("Bits per note", "bits_per_note", bits, what, likelihood.get("interval"), floor)
        tighter = f"a tighter bound on the same, by {likelihood.get('importance_samples')} importance samples"
        for name, key, what in (
            ("importance-weighted", "importance_weighted", tighter),
            ("without a latent", "without_latent", "the melody decoder as a language model, at noise level 1"),
        ):
            bits, interval = likelihood.get(f"{key}_bits_per_note"), likelihood.get(f"{key}_interval")
            add(f"Bits per note, {name}", f"bits_per_note_{key}", bits, what, interval)
    # What comes back: steps, notes, whole melodies.
    count = values.get("bars", 16) * 16
    grid = f"share of {count} sixteenth steps whose class of 90 (88 pitches, note-off, no event) comes back"
    for name, found, how in (
        ("Step accuracy, free-running", free, "decoded greedily from the posterior mean alone"),
        ("Step accuracy, true bars before", forced, "each bar decoded after the true ones before it"),
    ):
        if steps := (found or {}).get("step_accuracy"):
            what = f"{grid}, {how}; the floor is silence"
            add(name, "accuracy", steps["accuracy"], what, steps.get("interval"), steps["floor"])
    if free:
        notes, what = free["note_f1"], "a note counts where onset step and pitch both come back, micro-averaged"
        what += "; the floor is another melody's reconstruction"
        add("Note F1, free-running", "f1", notes["f1"], what, notes.get("interval"), free.get("note_f1_floor"))
        what = "share of melodies that come back without one wrong step"
        add("Exact melodies", "exact_match", free["step_accuracy"]["exact"], what)
    # The latent, and how samples are told from melodies.
    if likelihood:
        what = "KL(q(z|x) || N(0, 1)) of a melody, summed over the latent"
        add("KL in nats", "kl_nats", likelihood["kl_nats"], what, likelihood.get("kl_interval"))
        what = "latent dimensions whose posterior mean varies by more than 0.01 over the split"
        add("Active units", "active_units", likelihood["active_units"], what)
    if two_sample := ((values.get("samples") or {}).get("sets", {}).get("model") or {}).get("two_sample"):
        what = "of a classifier that separates samples from melodies of the split; 0.5 is chance"
        add("Two-sample AUC", "two_sample_auc", two_sample["auc"], what)
    return rows


def eval_results(own: Evaluation, dataset_id: str | None) -> list[EvalResult]:
    """Write the model's numbers as the Hub's `model-index` has them, each with its definition."""
    values = own.values
    data = dataset_id or Path(values.get("dataset", "melodies")).name
    return [
        EvalResult(
            task_type="other",
            task_name="Melody modelling",
            dataset_type=data,
            dataset_name=f"{data.split('/')[-1]}, {values['bars']} bars of 4/4 from leads",
            dataset_config="lines",
            dataset_split=values["split"],
            metric_type=row["type"],
            metric_name=row["name"],
            metric_value=row["value"],
            metric_args={"definition": row["definition"], "melodies": values["melodies"], "seed": values["seed"]}
            | ({} if row["floor"] is None else {"floor": row["floor"]}),
        )
        for row in table_of_metrics(values)
    ]


def eval_results_yaml(own: Evaluation, published: Published) -> str:
    """Write the model's numbers as a file for `.eval_results/`, each under a task of the data set's eval.yaml.

    Format: https://huggingface.co/docs/hub/eval-results. It needs a published data set to refer to.
    """
    assert published.dataset_id is not None
    source = f"{published.endpoint}/{published.repo_id}/blob/{published.revision}/results/{own.file}"
    entries = [
        EvalResultEntry(
            dataset_id=published.dataset_id,
            task_id=row["task"],
            value=row["value"],
            source_url=source,
            source_name="evaluate_model.py",
            notes=f"{row['definition']}. {own.values['split']} split, {own.values['melodies']} windows, "
            f"seed {own.values['seed']}" + ("" if row["floor"] is None else f", floor {row['floor']:.4f}"),
        )
        for row in table_of_metrics(own.values)
        if row["task"] in TASKS
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True, width=120)


def energy(log: Mapping[str, Any]) -> dict[str, Any] | None:
    """Estimate what a training took from its log, and what those took that it went on from.

    The log says how long it ran and on what; the power is an assumption, and named as one.

    Returns:
        `hours`, `hardware`, `assumed` (the power), `kwh` and `grams_co2`; None if the log does not say enough.
    """
    whole = energy_of_run(log)
    if whole is None or "before" not in log:
        return whole
    if (earlier := energy(log["before"])) is None:
        return None
    joined = {name: whole[name] + earlier[name] for name in ("hours", "kwh", "grams_co2")}
    for name in ("hardware", "assumed"):
        joined[name] = ", ".join(dict.fromkeys([*earlier[name].split(", "), whole[name]]))
    return joined


def energy_of_run(log: Mapping[str, Any]) -> dict[str, Any] | None:
    """Estimate what one run took from its own log, as [`energy`]."""
    threads = log.get("cpu_threads") or log.get("arguments", {}).get("cpu_threads")
    count, unit, watts = log.get("num_processes", 1), "GPU", WATTS_PER_GPU
    if not log.get("device", "cpu").startswith("cuda"):
        count, unit, watts = count * (threads or 0), "CPU thread", WATTS_PER_CPU_THREAD
    if not count or "seconds" not in log:
        return None
    hours = log["seconds"] / 3600
    kwh = hours * count * watts / 1000
    hardware = f"{count} {unit}{'' if count == 1 else 's'}"
    about = {"hours": hours, "hardware": hardware, "assumed": f"{hardware} at {watts:.0f} W" + " each" * (count > 1)}
    return {**about, "kwh": kwh, "grams_co2": kwh * GRAMS_CO2_PER_KWH}


def costs_of(published: Published, logs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any] | None]:
    """Estimate what each part of a model took to train; None where that is not known."""
    parts = ["training", *(["prior"] if published.config.get("num_prior_layers") else [])]
    return {part: energy(logs.get(part, {})) for part in parts}


def emissions(costs: Mapping[str, dict[str, Any] | None]) -> dict[str, Any] | None:
    """Write the field `co2_eq_emissions` of a card's head; None where a part's share is not known."""
    known = [cost for cost in costs.values() if cost]
    if len(known) < len(costs):
        return None
    return {
        "emissions": round(sum(cost["grams_co2"] for cost in known), 1),
        "source": "training log's hours, with the power and the carbon intensity that the card assumes",
        "training_type": "pre-training",
        "hardware_used": ", ".join(dict.fromkeys(cost["hardware"] for cost in known)),
    }


def report_on_data(logs: Mapping[str, Mapping[str, Any]], results: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Find the report on the data that a model was trained on.

    Returns:
        That of results/, unless the folder that the log names lies here and was built from another input.
    """
    measured = results.get("dataset")
    for log in logs.values():
        report = Path(log.get("arguments", {}).get("dataset") or "") / "build.json"
        if report.is_file():
            built = json.loads(report.read_text(encoding="utf-8"))
            return measured if measured and measured["input"] == built["input"] else built
    return measured


def figure(value: Any) -> str:
    """Write a number for people: counts with commas, others with three digits that count."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:#.3g}".rstrip(".")


def bibtex() -> str:
    """Write the entries to cite, the program's and its two sources', from CITATION.cff."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))

    def entry(kind: str, key: str, work: Mapping[str, Any], year: object) -> str:
        names = [
            f"{{{one['name']}}}" if "name" in one else f"{one['family-names']}, {one['given-names']}"
            for one in work["authors"]
        ]
        others = ["others"] if kind == "article" and len(names) == 1 else []
        fields = {"title": f"{{{work['title']}}}", "author": " and ".join(names + others), "year": year}
        fields |= {name: work[name] for name in ("version", "url") if name in work}
        return f"@{kind}{{{key},\n" + "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items()) + "}"

    entries = [entry("software", "melody_vae", citation, str(citation["date-released"])[:4])]
    for work in citation["references"]:
        key = f"{work['authors'][0]['family-names'].lower()}{work['year']}"
        entries.append(entry("article", key, work, work["year"]))
    return "\n\n".join(entries)


def head(published: Published, own: Evaluation | None, costs: Mapping[str, dict[str, Any] | None]) -> ModelCardData:
    """Describe the model for the Hub's search and lists."""
    return ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        # The Hub has no task for notes: those of audio give audio, and text-generation's example code would not run.
        pipeline_tag="other",
        tags=["music", "midi", "melody", "symbolic-music", "music-generation", "vae", "music-transformer"]
        + ["relative-attention", "custom_code"]
        + (["onnx"] if published.has_onnx else []),
        datasets=[published.dataset_id] if published.dataset_id else None,
        metrics=list(dict.fromkeys(row["type"] for row in table_of_metrics(own.values))) if own else None,
        model_name=published.repo_id.split("/")[-1],
        eval_results=eval_results(own, published.dataset_id) if own else None,
        co2_eq_emissions=emissions(costs),
    )


def template_values(
    published: Published, results: Mapping[str, Any], logs: Mapping[str, Any], evaluations: Sequence[Evaluation]
) -> dict[str, Any]:
    """Gather what the card's template shows.

    Args:
        published: What is published.
        results: As in [`render`].
        logs: Of training, by stage.
        evaluations: All that `results` hold.
    """
    own, data = own_evaluation(evaluations, published), report_on_data(logs, results)
    shown = {"likelihood", "likelihood_floors", "free_running", "teacher_forced_by_bar", "samples"}
    shown |= {"training", "data", "machine", "not_measured"}
    return {
        "published": published,
        "config": published.config,
        "own": own,
        "metrics": table_of_metrics(own.values) if own else [],
        "more": [
            name for name, value in own.values.items() if isinstance(value, Mapping) and value and name not in shown
        ]
        if own
        else [],
        "sets": (own.values.get("samples") or {}).get("sets") if own else None,
        "others": [each for each in evaluations if each is not own],
        "metrics_of": table_of_metrics,
        "training": logs.get("training"),
        "prior": logs.get("prior"),
        "critic": logs.get("critic"),
        "costs": costs_of(published, logs),
        "grams_co2_per_kwh": GRAMS_CO2_PER_KWH,
        "data": data,
        "is_lakh": data is not None and data["input"].startswith("lmd_"),
        "is_measured_data": data is not None and data is results.get("dataset"),
        "abilities": results.get("model"),
        "attention": results.get("attention"),
        "bibtex": bibtex(),
        "requirements": versions.ranges(),
    }


def render(published: Published, results: Mapping[str, Any]) -> tuple[str, Evaluation | None, list[str]]:
    """Write the card.

    Args:
        published: What is published.
        results: Content of each file of results/ by its name, see [`read_results`].

    Returns:
        The card, the evaluation that is the model's own if there is one, and the files of results/ that were used.

    Raises:
        UserError: If a result lacks what its section needs.
    """
    evaluations = [found for name, value in results.items() for found in find_evaluations(value, f"{name}.json", name)]
    own = own_evaluation(evaluations, published)
    logs = dict(published.logs)
    if own and "training" not in logs and own.values.get("training"):
        logs["training"] = own.values["training"]
    about = template_values(published, results, logs, evaluations)
    environment = Environment(
        loader=FileSystemLoader(ROOT),
        undefined=StrictUndefined,
        autoescape=False,  # Markdown, of our own files
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"figure": figure, "percent": lambda share: f"{share:.1%}"}
    try:
        body = environment.get_template(TEMPLATE).render(about)
    except (UndefinedError, KeyError) as error:
        raise UserError(f"results/ lacks a figure that {TEMPLATE} needs ({error}); measure it again") from error
    pieces = {"dataset": "is_measured_data", "model": "abilities", "attention": "attention"}
    used = {each.file for each in evaluations} | {f"{name}.json" for name, of in pieces.items() if about[of]}
    yaml_head = head(published, own, about["costs"]).to_yaml()
    return f"---\n{yaml_head}\n---\n{body}", own, sorted(used)
