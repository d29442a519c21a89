"""The data set's repository: the lines as they were built, windows of 16 bars cut from them, and the card."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as pq
import yaml
from huggingface_hub import DatasetCard
from tqdm.auto import tqdm

from command import UserError
from dataset_script import features, windows
from dataset_script.card import content_version, number
from dataset_script.schema import FEATURES, SPLITS
from publishing.hub import digest
from publishing.staging import files_below, keep

BARS = 16
CONFIG = f"{BARS}bar"
LINES_AT_A_TIME = 1000
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

PARQUET = "*.parquet"


def write_windows(data: Path, folder: Path) -> None:
    """Cut every line into windows of [`BARS`] bars, one after the other, and write them as Parquet.

    A note is in one window at most, so the windows of a split are as independent as its lines allow; whoever wants
    them a bar apart cuts them with `dataset_script.windows`. A file of lines becomes a file of windows.

    Args:
        data: Folder with the Parquet files of the lines.
        folder: Where to write.
    """
    sources = sorted(data.glob(PARQUET))
    schema = FEATURES.arrow_schema
    with tqdm(total=sum(pq.read_metadata(file).num_rows for file in sources), unit=" lines", desc=CONFIG) as progress:
        for file in sources:
            with pq.ParquetWriter(folder / file.name, schema, compression="zstd") as writer:
                for batch in pq.ParquetFile(file).iter_batches(LINES_AT_A_TIME):
                    rows = windows.window_rows(batch.to_pydict(), BARS, BARS)
                    writer.write_table(pyarrow.table({name: rows[name] for name in schema.names}, schema=schema))
                    progress.update(batch.num_rows)
    drop_empty(folder)


def drop_empty(folder: Path) -> None:
    """Remove files without a row, and number those that stay anew: `datasets` expects no empty split."""
    files = sorted(folder.glob(PARQUET))
    full = [file for file in files if pq.read_metadata(file).num_rows]
    counts = Counter(file.name.split("-")[0] for file in full)
    seen: Counter[str] = Counter()
    for file in files:
        split = file.name.split("-")[0]
        if file in full:
            file.rename(folder / f"{split}-{seen[split]:05d}-of-{counts[split]:05d}.parquet")
            seen[split] += 1
        else:
            file.unlink()


def config_of(name: str, path: str, folder: Path, version: str, is_default: bool) -> dict[str, Any]:
    """Describe a configuration for the card's head: its splits and where they lie."""
    present = {file.name.split("-")[0] for file in folder.glob(PARQUET)}
    splits = [{"split": split, "path": f"{path}/{split}-*.parquet"} for split in SPLITS if split in present]
    return {"config_name": name, "version": version, "data_files": splits} | ({"default": True} if is_default else {})


def count_rows(folder: Path, pattern: str) -> int:
    """Count the rows of the Parquet files of a pattern."""
    return sum(pq.read_metadata(file).num_rows for file in folder.glob(pattern))


def describe_configs(repo_id: str, configs: list[dict[str, Any]], folders: Mapping[str, Path], trained: str) -> str:
    """Write the card's section on the configurations that it has."""
    meanings = {
        "lines": "whole melody lines, 4 bars and more",
        CONFIG: f"windows of {BARS} bars cut from them, one after the other: a note is in one at most",
    }
    rows, examples = [], []
    for config in configs:
        name, split = config["config_name"], config["data_files"][0]["split"]
        counts = [count_rows(folders[name], f"{each}-{PARQUET}") for each in SPLITS]
        rows.append(f"| `{name}` | {meanings[name]} | {' | '.join(map(number, [*counts, sum(counts)]))} |")
        streaming = "" if name == "lines" else ", streaming=True"
        variable = "lines" if name == "lines" else "windows"
        examples.append(f'{variable} = load_dataset("{repo_id}", "{name}", split="{split}"{streaming})')
    columns = ["name", "a row is", *SPLITS, "rows"]
    return "\n".join(
        [
            f"## Configurations\n\n| {' | '.join(columns)} |\n| --- | --- |{' ---: |' * len(columns[2:])}",
            *rows,
            "\n```python\nfrom datasets import load_dataset\n",
            *examples,
            "```\n\nAll have the same columns. In a window `start` counts from its first bar line, `melody_id` names "
            "its first bar,\nand `key`, `key_confidence` and `complexity` are its own.\n",
            trained,
        ]
    )


def render_card(folder: Path, repo_id: str, cut: Path, model_id: str | None, endpoint: str) -> str:
    """Write the card for the Hub: the build's own, with both configurations and the id to load them by."""
    card = DatasetCard((folder / "README.md").read_text(encoding="utf-8"))
    report = json.loads((folder / "build.json").read_text(encoding="utf-8"))
    configs = [config_of("lines", "data", folder / "data", report["version"], is_default=True)]
    if any(cut.iterdir()):
        configs.append(config_of(CONFIG, CONFIG, cut, content_version(cut), is_default=False))
    card.data["configs"] = configs
    card.data["task_categories"] = ["other"]  # the Hub has no task for notes
    trained = f"A model that was trained on it: [{model_id}]({endpoint}/{model_id}).\n\n" if model_id else ""
    section = describe_configs(repo_id, configs, {"lines": folder / "data", CONFIG: cut}, trained)
    body = card.text.replace('load_dataset("melodies", ', f'load_dataset("{repo_id}", "lines", ')
    body = re.sub(r"^## ", lambda _: f"{section}## ", body, count=1, flags=re.MULTILINE)
    return f"---\n{card.data.to_yaml()}\n---\n{body}"


def describe_benchmark(card: str) -> str:
    """Write eval.yaml, by which the Hub knows the tasks that models' `.eval_results/` refer to.

    Format: https://huggingface.co/docs/hub/eval-results. `evaluation_framework` is left out: it must be one of the
    Hub's list, and evaluate_model.py is not on it.
    """
    about = {
        "name": DatasetCard(card).data["pretty_name"],
        "description": f"Windows of {BARS} bars in 4/4 from lead lines: to compress, to bring back from a latent, and "
        "to write new ones like them. evaluate_model.py measures it; the model's card defines every number.",
        "tasks": [{"id": task, "config": "lines", "split": "test"} for task in TASKS],
    }
    return yaml.safe_dump(about, sort_keys=False, allow_unicode=True, width=120)


def stage(
    folder: Path, repo_id: str, model_id: str | None, staging: Path, endpoint: str = "https://huggingface.co"
) -> dict[str, Path]:
    """Gather what the data set's repository is to hold.

    Args:
        folder: As `dataset_script.build` writes it.
        repo_id: Of the data set.
        model_id: Of a model that the card links to.
        staging: Folder for the windows and the card.
        endpoint: Address of the Hub that the card's links lead to.

    Returns:
        Local file of each path in the repository.

    Raises:
        UserError: If the folder is no data set of ours.
    """
    for name in ("README.md", "build.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing; give a folder that python -m dataset_script.build wrote")
    sources = sorted((folder / "data").glob(PARQUET))
    if not sources:
        raise UserError(f"{folder}/data: no Parquet file; build the data set again")
    try:
        key = digest([*sources, Path(windows.__file__), Path(features.__file__)], pyarrow.__version__)
        cut = keep(staging / CONFIG, key, lambda part: write_windows(folder / "data", part))
    except (pyarrow.ArrowInvalid, OSError, KeyError) as error:
        raise UserError(f"{folder}/data: cannot be read as melody lines ({error}); build the data set again") from error
    card = render_card(folder, repo_id, cut, model_id, endpoint)
    (staging / "README.md").write_text(card, encoding="utf-8", newline="\n")
    files = {"README.md": staging / "README.md", "build.json": folder / "build.json"}
    if any(file.name.startswith("test-") for file in sources):
        files["eval.yaml"] = staging / "eval.yaml"
        files["eval.yaml"].write_text(describe_benchmark(card), encoding="utf-8", newline="\n")
    files |= {f"data/{file.name}": file for file in sources}
    return files | files_below(cut, f"{CONFIG}/") | files_below(folder / "card", "card/")
