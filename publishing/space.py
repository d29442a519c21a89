"""The Space's repository: the folder of the app as it is, its card knowing the model and the data set."""

import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from huggingface_hub import RepoCard

from command import UserError, first_line
from publishing.staging import files_below

NEEDED = ("README.md", "app.py", "requirements.txt")
FIELDS = ("title", "sdk", "sdk_version", "app_file", "license")
PINNED = re.compile(r"[\w.-]+(\[[\w,.-]+\])?\s*==\s*[\w.+!-]+(\s*;.*)?")


def check_requirements(file: Path) -> None:
    """Check that each requirement names the one version that was tested.

    Raises:
        UserError: With the first that does not.
    """
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        requirement = line.split(" #")[0].strip()
        if requirement and not requirement.startswith(("#", "--")) and not PINNED.fullmatch(requirement):
            raise UserError(
                f"{file}:{number}: {requirement} is not pinned; write NAME==VERSION with the version that was tested"
            )


def load_card(file: Path) -> RepoCard:
    """Read a Space's card.

    Raises:
        UserError: If it lacks what the Hub needs to start the app.
    """
    try:
        card = RepoCard.load(file, ignore_metadata_errors=False)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file}: its head is no valid YAML ({first_line(error)})") from error
    head = card.data.to_dict()
    if missing := [name for name in FIELDS if not head.get(name)]:
        raise UserError(f"{file}: the field {missing[0]} is missing in its head, between the lines of ---")
    if head["sdk"] != "gradio":
        raise UserError(f"{file}: sdk is {head['sdk']}, and publish.py publishes gradio Spaces")
    if not (file.parent / head["app_file"]).is_file():
        raise UserError(f"{file}: app_file is {head['app_file']}, which {file.parent} does not have")
    return card


def stage(folder: Path, repo_id: str, model_id: str, datasets: Sequence[str], staging: Path) -> dict[str, Path]:
    """Gather what the Space's repository is to hold.

    Args:
        folder: With app.py, requirements.txt and README.md, the card.
        repo_id: Of the Space; the card's example for `gradio_client` gets it.
        model_id: Of the model that the app loads.
        datasets: Ids of data sets that the card links to.
        staging: Folder for the card.

    Returns:
        Local file of each path in the repository.

    Raises:
        UserError: If the folder is no Space, or a requirement is not pinned.
    """
    for name in NEEDED:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing; give the folder of a Gradio Space")
    check_requirements(folder / "requirements.txt")
    card = load_card(folder / "README.md")
    card.data["models"], card.data["preload_from_hub"] = [model_id], [model_id]
    if datasets:
        card.data["datasets"] = list(datasets)
    card.text = re.sub(r'Client\("[^"]*"\)', f'Client("{repo_id}")', card.text)
    staging.mkdir(parents=True, exist_ok=True)
    card.save(staging / "README.md")
    files = {
        name: file  # without what a Space that has run here leaves: gradio's stubs, votes
        for name, file in files_below(folder).items()
        if not name.endswith(".pyi") and not name.startswith("votes/")
    }
    return files | {"README.md": staging / "README.md"}
