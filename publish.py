"""Publish model, data set and Space on the Hub: `python publish.py model|dataset|space|all --repo_id OWNER/NAME`.

Each goes up as one commit or not at all. The same command again uploads nothing; after an interruption it goes on.
`--dry_run` makes everything, lists what would go up with sizes, and touches no network.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from command import run_command

KINDS = {
    "model": "weights, code, processor, ONNX graphs, samples, metrics, results and card",
    "dataset": "the lines, windows of 16 bars cut from them, and the card",
    "space": "the folder of the app, with its card",
    "all": "data set, model and Space, in this order, each linking to the others",
}
RESULTS = Path(__file__).parent / "results"
ENDINGS = {"dataset": "data", "space": "space"}  # of names that are made from the model's


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        description="Publish a trained model, its data set and its Space on the Hugging Face Hub. "
        "Log in first: hf auth login, with a token that may write."
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, text in KINDS.items():
        command = kinds.add_parser(kind, help=text, description=f"Publish {text}.")
        what = "model; the others are called by it, see below" if kind == "all" else kind.replace("dataset", "data set")
        command.add_argument(
            "--repo_id", required=True, metavar="NAME", help=f"OWNER/NAME of the {what}; NAME alone is of your account"
        )
        if kind != "dataset":
            default, use = "release/melody-vae-16bar", "; with --static" if kind == "space" else ""
            command.add_argument(
                "--model", type=Path, default=default, metavar="DIR", help=f"trained (%(default)s){use}"
            )
        if kind in ("model", "all"):
            help_ = "of measured numbers, for the card (this repository's results)"
            command.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help=help_)
        if kind in ("dataset", "all"):
            help_ = "as dataset_script.build wrote it"
            command.add_argument("--dataset", type=Path, required=True, metavar="DIR", help=help_)
        if kind in ("space", "all"):
            command.add_argument("--space", type=Path, default="space", metavar="DIR", help="of the app (%(default)s)")
        if kind == "space":
            help_ = "publish the page that runs the model in the browser instead, which needs no server"
            command.add_argument("--static", action="store_true", help=help_)
        for name, of in (("dataset", "data set"), ("model", "model"), ("space", "Space")):
            if kind == "all" and name != "model":
                default = f"the model's with -{ENDINGS[name]}"
                command.add_argument(f"--{name}_id", metavar="NAME", help=f"of the {of} ({default})")
            elif kind not in (name, "all"):
                needed = kind == "space" and name == "model"
                help_ = "of the model that the app loads" if needed else f"of the {of} that the card links to"
                command.add_argument(f"--{name}_id", metavar="NAME", required=needed, help=help_)
        command.add_argument("--private", action="store_true", help="make a new repository for your eyes only")
        command.add_argument("--revision", default="main", metavar="BRANCH", help="made if needed (%(default)s)")
        command.add_argument("--dry_run", action="store_true", help="list what would go up; no network is touched")
        command.add_argument(
            "--staging",
            type=Path,
            default="outputs/publish",
            metavar="DIR",
            help="folder for what is made on the way, kept for the next time (%(default)s)",
        )
    return parser


def complete_ids(args: argparse.Namespace, owner: str | None) -> dict[str, str | None]:
    """Work out the id of each of the three; None for one that is neither published nor named.

    Args:
        args: Of the command line.
        owner: Put before a name without one; None leaves it as it is.

    Raises:
        UserError: If one cannot be an id on the Hub.
    """
    from publishing.hub import check_repo_id

    named = {name: vars(args).get(f"{name}_id") for name in ("model", "dataset", "space")}
    if args.kind == "all":
        named["model"] = args.repo_id
        named |= {name: named[name] or f"{args.repo_id}-{ending}" for name, ending in ENDINGS.items()}
    else:
        named[args.kind] = args.repo_id
    ids = {name: f"{owner}/{given}" if owner and given and "/" not in given else given for name, given in named.items()}
    for each in filter(None, ids.values()):
        check_repo_id(each)
    return ids


def stage(args: argparse.Namespace, ids: Mapping[str, str | None], endpoint: str) -> list[tuple]:
    """Make everything that is to go up; returns for each repository its target and its files.

    Raises:
        UserError: For whatever cannot be published as it is.
    """
    from publishing import dataset, model, space, static_space
    from publishing.hub import Target

    # What can be refused is refused first.
    kinds = ("dataset", "model", "space") if args.kind == "all" else (args.kind,)
    if "model" in kinds:
        model.check_folder(args.model)  # before minutes of work on the data
    staged = []
    for kind in kinds:
        repo_id = ids[kind]
        assert repo_id is not None
        folder = args.staging / kind / repo_id
        folder.mkdir(parents=True, exist_ok=True)
        variables, sdk = None, "gradio"
        if kind == "dataset":
            files = dataset.stage(args.dataset, repo_id, ids["model"], folder, endpoint)
        elif kind == "model":
            files = model.stage(
                args.model,
                repo_id,
                folder,
                args.results,
                revision=args.revision,
                endpoint=endpoint,
                dataset_id=ids["dataset"],
                space_id=ids["space"],
            )
        elif args.kind == "space" and args.static:
            datasets, sdk = [ids["dataset"]] if ids["dataset"] else [], "static"
            files = static_space.stage(args.model, repo_id, ids["model"] or "", datasets, folder)
        else:
            datasets = [ids["dataset"]] if ids["dataset"] else []
            files = space.stage(args.space, repo_id, ids["model"] or "", datasets, folder)
            variables = {"MODEL_ID": ids["model"] or ""}
        staged.append((Target(kind, repo_id, args.revision, args.private, variables, sdk), files))
    return staged


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = make_parser().parse_args(argv)
    if args.dry_run:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: nothing below may even try
    return run_command(publish, args, stopped="stopped; nothing half is published, and the same command goes on")


def publish(args: argparse.Namespace) -> None:
    """Do what the command line says.

    Raises:
        UserError: For the first thing that cannot be done.
    """
    import huggingface_hub

    from publishing import hub

    huggingface_hub.utils.logging.set_verbosity_error()  # of each try publish.py itself says a line
    api = huggingface_hub.HfApi(library_name="melody-vae")
    owner = None
    if not args.dry_run:
        hub.limit_waiting()
        owner = hub.log_in(api)  # before minutes of work
    staged = stage(args, complete_ids(args, owner), api.endpoint)
    if args.dry_run:
        for target, files in staged:
            print(hub.list_files(target, files))
        print("dry run: nothing was sent, and nobody was asked what is there already")
        if "/" not in args.repo_id:
            print("the account's name, which only the Hub tells, will be put before the names and into the cards")
        return
    for target, files in staged:
        change = hub.push(api, target, files, f"Publish {hub.NAMES[target.kind]}")
        what = f"{hub.NAMES[target.kind]} {target.repo_id}"
        if change.url is None:
            print(f"{what}: nothing to upload, all {len(files)} files are there: {target.url(api.endpoint)}")
        else:
            gone = f", {change.deleted} old ones removed" if change.deleted else ""
            size = hub.describe_size(change.uploaded_bytes)
            print(f"{what}: {change.uploaded} of {len(files)} files, {size}{gone}, in one commit: {change.url}")


if __name__ == "__main__":
    sys.exit(main())
