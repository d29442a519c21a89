"""The static Space: a page, its module, onnxruntime-web and a model's graphs; it needs no server but for its files.

`python -m publishing.static_space --output DIR` lays it out in a folder, for a web server or a page with the element.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import RepoCard

from command import UserError, first_line, run_command
from generation.loading import load_model
from publishing.hub import digest
from publishing.model import check_folder, keep_onnx
from publishing.staging import files_below, keep

ROOT = Path(__file__).parents[1]
WEB = ROOT / "web"
PAGE = WEB / "static_space"
SPACE_FILES = (
    *("space.css", "header.html", "pad.html", "instruments.json"),
    *("player.js", "roll.js", "melody.js", "hum.js", "edit.js", "stage.js", "dock.js", "vendor/pitchy.js"),
)
"""What the page shares with the Gradio Space, of its folder `static`; beside them fonts, instruments and tunes."""

RUNTIME = "onnxruntime-web"
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
OPENING_COUNT = 3
GRAPH_FILES = ("*.json", "*.npz", "*.onnx")  # of an exported model; what runs them in Python stays at home


def runtime_files(web: Path = WEB) -> dict[str, Path]:
    """Map the files of onnxruntime-web that the page needs, in the version that `package-lock.json` names.

    Raises:
        UserError: If npm has not installed that version.
    """
    lock = json.loads((web / "package-lock.json").read_text(encoding="utf-8"))
    pinned = lock["packages"][f"node_modules/{RUNTIME}"]["version"]
    folder = web / "node_modules" / RUNTIME
    remedy = f"run npm ci --prefix {web}"
    try:
        installed = json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"]
    except OSError as error:
        raise UserError(f"{folder}: {RUNTIME} is not installed; {remedy}") from error
    except (ValueError, KeyError) as error:
        raise UserError(f"{folder}/package.json: broken ({first_line(error)}); {remedy}") from error
    if installed != pinned:
        raise UserError(f"{folder}: version {installed}, and {pinned} is tested; {remedy}")
    files = {f"ort/{name}": folder / "dist" / name for name in RUNTIME_FILES}
    if missing := [file for file in files.values() if not file.is_file()]:
        raise UserError(f"{missing[0]}: no such file; {remedy}")
    return files


def page_files() -> dict[str, Path]:
    """Map the files of the page by their paths in the repository: all but runtime, graphs and card."""
    shared = ROOT / "space"
    files = {path: file for path, file in files_below(PAGE).items() if path != "README.md"}
    files |= {f"src/{file.name}": file for file in sorted((WEB / "src").glob("*.js"))}
    files["melody-vae.d.ts"] = WEB / "melody-vae.d.ts"
    files |= {f"space/{name}": shared / "static" / name for name in SPACE_FILES}
    files |= {f"space/{name}": shared / name for name in ("tunes.json", "choices.json")}
    for folder in ("fonts", "instruments"):
        files |= files_below(shared / "static" / folder, f"space/{folder}/")
    return files


def write_opening(graphs: Path, file: Path) -> None:
    """Write the melodies that the page opens with, as the page has them: there to be played before the model has come.

    As in the Gradio Space, those of many seeds' that measure most like the tunes of the Space.
    """
    from publishing.onnx.onnx_melody_vae import OnnxMelodyVAE
    from publishing.onnx.onnx_melody_vae.latents import make_generators

    sys.path.append(str(ROOT / "space"))  # whose modules import one another by their names alone
    from melody import CHOICES
    from ranking import OPENING_BARS, OPENING_SEEDS, choose_opening

    runtime = OnnxMelodyVAE(graphs)
    generators = [make_generators(1, seed)[0] for seed in range(OPENING_SEEDS)]
    bars = min(OPENING_BARS, runtime.config["max_bars"])
    lines = runtime.read_lines(runtime.sample(OPENING_SEEDS, generator=generators, bars=bars))
    open_ = dict.fromkeys(("scale", "time_signature", "tempo", "genre", "voice"), "any")
    origin = {"tab": "make", "count": 1, "bars": bars, **open_, "temperature": 1, "pick": 1}
    columns = ("pitch", "start", "duration", "time_signature", "steps_per_beat", "bars")
    more = {"tempo": CHOICES["tempos"]["any"], "program": 0}
    melodies = [
        {column: line[column] for column in columns} | {"origin": origin | {"seed": seed}, **more}
        for seed, line in enumerate(lines)
    ]
    tunes = json.loads((ROOT / "space/tunes.json").read_text(encoding="utf-8"))
    file.write_text(json.dumps(choose_opening(melodies, tunes, OPENING_COUNT)) + "\n", encoding="utf-8")


def gather(graphs: Path, staging: Path) -> dict[str, Path]:
    """Gather a page and what it needs, the card aside.

    Args:
        graphs: Folder of an exported model.
        staging: Folder for what is made here: first melodies, list of the files to keep in the browser.

    Returns:
        Local file of each path in the repository.

    Raises:
        UserError: If onnxruntime-web is not installed.
    """
    model = {f"model/{file.name}": file for pattern in GRAPH_FILES for file in sorted(graphs.glob(pattern))}
    sources = [*model.values(), Path(__file__), *(ROOT / "space" / name for name in ("ranking.py", "tunes.json"))]
    opening = keep(staging / "opening", digest(sources), lambda part: write_opening(graphs, part / "opening.json"))
    files = page_files() | runtime_files() | files_below(opening)
    kept = json.dumps({"files": sorted(files)}, indent=1)
    (staging / "files.json").write_text(f"{kept}\n", encoding="utf-8")
    return files | model | {"files.json": staging / "files.json"}


def export_and_gather(model_folder: Path, staging: Path) -> dict[str, Path]:
    """Export a model and gather a page that runs it; see [`gather`].

    Raises:
        UserError: If the model is not whole, or onnxruntime-web is not installed.
    """
    runtime_files()  # whether it is there, before a minute of work on the graphs
    check_folder(model_folder)
    _, model = load_model(str(model_folder))
    if not (model.config.latent_size and model.config.num_prior_layers):
        raise UserError(
            f"{model_folder}: a model without a learned prior, and the page samples; run train_prior.py on it"
        )
    staging.mkdir(parents=True, exist_ok=True)
    return gather(keep_onnx(model_folder, model, staging), staging)


def stage(model_folder: Path, repo_id: str, model_id: str, datasets: Sequence[str], staging: Path) -> dict[str, Path]:
    """Gather what the static Space's repository is to hold.

    Args:
        model_folder: Of the model whose graphs the page runs.
        repo_id: Of the Space.
        model_id: Of the model that the card links to.
        datasets: Ids of data sets that the card links to.
        staging: Folder for what is made here: graphs, first melodies, card, list of the files to keep in the browser.

    Returns:
        Local file of each path in the repository.

    Raises:
        UserError: If the model is not whole, or onnxruntime-web is not installed.
    """
    files = export_and_gather(model_folder, staging)
    card = RepoCard.load(PAGE / "README.md")
    card.data["models"] = [model_id]
    if datasets:
        card.data["datasets"] = list(datasets)
    card.save(staging / "README.md")
    return files | {"README.md": staging / "README.md", "LICENSE": ROOT / "LICENSE"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Lay out the static Space in a folder.")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="its files of these names are replaced"
    )
    release = ROOT / "release/melody-vae-16bar"
    parser.add_argument("--model", type=Path, default=release, metavar="DIR", help="trained (the release)")
    parser.add_argument(
        "--staging",
        type=Path,
        default="outputs/publish/static_space",
        metavar="DIR",
        help="folder for what is made on the way, kept for the next time (%(default)s)",
    )
    args = parser.parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    return run_command(lay_out, args)


def lay_out(args: argparse.Namespace) -> None:
    """Do what the command line says.

    Raises:
        UserError: If it cannot be done.
    """
    for path, file in export_and_gather(args.model, args.staging).items():
        (args.output / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, args.output / path)
    print(f"{args.output}: serve it, for instance with python -m http.server --directory {args.output}")


if __name__ == "__main__":
    sys.exit(main())
