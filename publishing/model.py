"""The model's repository: its folder, ONNX graphs, samples to hear, the metrics and results, and the card."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from command import UserError, check_links, first_line
from documents import model_card
from generation.loading import check_model, load_model
from generation.sections import sample
from generation.session import Options, Session
from publishing.hub import digest
from publishing.onnx import export as onnx_export
from publishing.staging import files_below, keep

ROOT = Path(__file__).parents[1]
PARTS = ("*.json", "*.py", "*.safetensors")  # of the model's folder; checkpoints below it stay at home
NUM_SAMPLES, SEED = 16, 0


def check_folder(folder: Path) -> None:
    """Check that a folder holds a whole model.

    Raises:
        UserError: If it does not.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name with --model one that train.py or train_prior.py wrote")
    check_model(str(folder))


def check_code(folder: Path) -> None:
    """Check that a model carries the code of this repository.

    Raises:
        UserError: If a file is missing or another: what is tested here would not be what is published.
    """
    check_links(folder)
    for file in sorted((ROOT / "modeling").glob("*.py")):
        if file.name != "__init__.py" and (
            not (folder / file.name).is_file() or (folder / file.name).read_bytes() != file.read_bytes()
        ):
            raise UserError(
                f"{folder}/{file.name}: not what modeling/{file.name} is now; load the model with "
                "modeling.MelodyVAEModel.from_pretrained, its processor with modeling.MelodyProcessor, "
                "and save_pretrained both again"
            )


def write_onnx(model: Any, folder: Path) -> None:
    """Export a model, and see that onnxruntime writes what torch writes."""
    onnx_export.export(model, folder)
    onnx_export.compare(model, folder)


def own_files(folder: Path) -> dict[str, Path]:
    """Map the files of a model's folder that are published."""
    return {file.name: file for pattern in PARTS for file in sorted(folder.glob(pattern))}


def keep_onnx(folder: Path, model: Any, staging: Path) -> Path:
    """Return a folder of a model's ONNX graphs, exported in this run or in an earlier one.

    Args:
        folder: Of the model.
        model: The same, loaded.
        staging: Where the graphs are kept.

    Raises:
        UserError: If a library is missing.
    """
    program = [Path(onnx_export.__file__), *sorted(onnx_export.RUNTIME.glob("*.py")), Path(__file__)]
    try:
        versions = [version(package) for package in ("torch", "transformers", *onnx_export.NEEDED)]
    except ImportError as error:
        raise UserError(f'{first_line(error)} is needed for the ONNX graphs; run pip install -e ".[onnx]"') from error
    key = digest([*own_files(folder).values(), *program], *versions)
    return keep(staging / "onnx", key, lambda part: write_onnx(model, part))


def write_samples(folder: Path, name: str, output: Path) -> None:
    """Write samples as MIDI, sound and picture, and a page of them."""
    session = Session(Options(str(folder), str(output), num=NUM_SAMPLES, seed=SEED, audio="mp3", runtime="torch"))
    section = sample(session)
    seeds = f"{SEED} to {SEED + NUM_SAMPLES - 1}"
    introduction = f"Samples of {name}, seeds {seeds}. Not picked by hand, not edited."
    session.output_page.publish(f"Melodies of {name}", introduction, [section], f"{name}, seeds {seeds}")


def metric_files() -> dict[str, Path]:
    """Map the `evaluate` modules and their cards by their paths in the repository."""
    folders = [file.parent for file in sorted((ROOT / "metrics").glob("*/README.md"))]
    modules = [folder for folder in folders if (folder / f"{folder.name}.py").is_file()]
    return {path: file for each in modules for path, file in files_below(each, f"metrics/{each.name}/").items()}


def read_log(file: Path) -> Mapping[str, Any] | None:
    """Read a training log, if there is one.

    Raises:
        UserError: If it is broken.
    """
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: no log of a training ({first_line(error)}); take it away") from error


def describe(
    folder: Path,
    repo_id: str,
    model: Any,
    samples: Path,
    revision: str = "main",
    endpoint: str = "https://huggingface.co",
    dataset_id: str | None = None,
    space_id: str | None = None,
) -> model_card.Published:
    """Gather what the card says of a model beside its results; arguments as of [`stage`].

    Raises:
        UserError: If a log is broken.
    """
    return model_card.Published(
        name=folder.resolve().name,
        repo_id=repo_id,
        config=model.config.to_dict(),
        parameters=model.num_parameters(),
        logs={part: log for part, file in model_card.LOGS.items() if (log := read_log(folder / file))},
        samples=sorted(file.stem for file in samples.glob("*.mid")),
        has_onnx=True,
        metrics=sorted({Path(path).parts[1] for path in metric_files()}),
        revision=revision,
        endpoint=endpoint,
        dataset_id=dataset_id,
        space_id=space_id,
    )


def stage(
    folder: Path,
    repo_id: str,
    staging: Path,
    results: Path = ROOT / "results",
    revision: str = "main",
    endpoint: str = "https://huggingface.co",
    dataset_id: str | None = None,
    space_id: str | None = None,
) -> dict[str, Path]:
    """Gather what the model's repository is to hold.

    Args:
        folder: As `train.py` and `save_pretrained` write it.
        repo_id: Of the model.
        staging: Folder for what is made here: ONNX graphs, samples, card.
        results: Folder of the measured numbers.
        revision: Branch that the card's links lead to.
        endpoint: Address of the Hub that they lead to.
        dataset_id: Of the data set that it was trained on, if that is published.
        space_id: Of a Space that plays it.

    Returns:
        Local file of each path in the repository.

    Raises:
        UserError: If the folder is no whole model of ours, or a result is broken.
    """
    check_folder(folder)
    check_code(folder)
    name = repo_id.split("/")[-1]
    own = own_files(folder)
    _, model = load_model(str(folder))

    # Samples and graphs take minutes: they are kept for as long as nothing that makes them changes.
    sources = list(own.values())
    program = [file for room in ("generation", "rendering") for file in sorted((ROOT / room).glob("*.py"))]
    versions = [version(package) for package in ("torch", "transformers", "matplotlib", "symusic")]
    key = digest([*sources, *program, Path(__file__)], name, *versions)
    samples = folder / "samples"
    if not samples.is_dir():  # a release brings its own
        samples = keep(staging / "samples", key, lambda part: write_samples(folder, name, part))
    onnx = keep_onnx(folder, model, staging)

    # The card, from measured results.
    metrics = metric_files()
    published = describe(folder, repo_id, model, samples, revision, endpoint, dataset_id, space_id)
    card, evaluation, used = model_card.render(published, model_card.read_results(results))
    (staging / "README.md").write_text(card, encoding="utf-8", newline="\n")
    files = own | {"README.md": staging / "README.md", "LICENSE": ROOT / "LICENSE"}
    files |= files_below(onnx, "onnx/") | files_below(samples, "samples/") | metrics
    files |= {f"results/{file}": results / file for file in used}
    if evaluation and dataset_id:
        entries = staging / "eval_results.yaml"
        entries.write_text(model_card.eval_results_yaml(evaluation, published), encoding="utf-8", newline="\n")
        files[".eval_results/melody_lines.yaml"] = entries
    return files
