"""The data set's repository: every configuration as it was built, and the card."""

import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as pq
import yaml
from huggingface_hub import DatasetCard

from command import UserError
from documents.model_card import TASKS
from publishing.staging import files_below

BARS = 16


def config_files(folder: Path, config: dict[str, Any]) -> dict[str, Path]:
    """Map the files of a configuration, as the card names it, by their paths in the repository.

    Raises:
        UserError: If a split has no file, or a file cannot be read.
    """
    files = {}
    for split in config["data_files"]:
        matching = sorted(folder.glob(split["path"]))
        if not matching:
            raise UserError(f"{folder}: no file {split['path']}, which its README.md names; build the data set again")
        for file in matching:
            try:
                pq.read_metadata(file)
            except (pyarrow.ArrowInvalid, OSError) as error:
                raise UserError(f"{file}: cannot be read as Parquet ({error}); build the data set again") from error
            files[file.relative_to(folder).as_posix()] = file
    return files


def render_card(card: DatasetCard, repo_id: str, model_id: str | None, endpoint: str) -> str:
    """Write the card for the Hub: the build's own, with the id to load it by and the model that was trained on it."""
    body = card.text.replace('load_dataset("melodies", ', f'load_dataset("{repo_id}", ')
    if model_id:
        trained = f"A model that was trained on it: [{model_id}]({endpoint}/{model_id}).\n\n"
        body = re.sub(r"^## ", lambda _: f"{trained}## ", body, count=1, flags=re.MULTILINE)
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
        staging: Folder for the card.
        endpoint: Address of the Hub that the card's links lead to.

    Returns:
        Local file of each path in the repository.

    Raises:
        UserError: If the folder is no data set of ours.
    """
    for name in ("README.md", "build.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing; give a folder that python -m dataset_script.build wrote")
    card = DatasetCard((folder / "README.md").read_text(encoding="utf-8"))
    data = {}
    for config in card.data["configs"]:
        data |= config_files(folder, config)
    text = render_card(card, repo_id, model_id, endpoint)
    staging.mkdir(parents=True, exist_ok=True)
    (staging / "README.md").write_text(text, encoding="utf-8", newline="\n")
    files = {"README.md": staging / "README.md", "build.json": folder / "build.json"}
    if any(path.startswith("data/test-") for path in data):
        files["eval.yaml"] = staging / "eval.yaml"
        files["eval.yaml"].write_text(describe_benchmark(text), encoding="utf-8", newline="\n")
    return files | data | files_below(folder / "card", "card/")
