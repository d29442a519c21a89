"""Blocks of README and the model card that come from the results of evaluate_model.py."""

import json
from pathlib import Path

from evaluation.compare import comparison, groups, read_results

MODELS = {  # the table's columns: a name, and the file in results/ that evaluate_model.py wrote
    "Melody VAE": "melody_vae.json",
    "Music Transformer": "music_transformer.json",
    "LSTM": "lstm.json",
    "MusicVAE": "music_vae.json",
}


def models_table(results: Path) -> str:
    """Write the table of the models of `MODELS` that have been measured; a sentence where none has."""
    present = {name: results / file for name, file in MODELS.items() if (results / file).is_file()}
    if not present:
        return "No model has been measured yet; `evaluate_model.py` writes the results that this table comes from.\n"
    models = read_results([str(path) for path in present.values()], list(present))
    files = ", ".join(f"`results/{path.name}`" for path in present.values())
    return comparison(models) + f"\nWritten by `make report` from {files}.\n"


def groups_table(results: Path) -> str:
    """Write the first measured model's reconstruction by groups of melodies."""
    for name, file in MODELS.items():
        if (results / file).is_file() and (table := groups(json.loads((results / file).read_text()))):
            return f"{name}, free-running, by groups of test melodies:\n\n{table}"
    return "No model's groups have been measured yet.\n"


def originality_index(results: Path) -> str:
    """Say how large and how fast the originality index is, from `results/originality.json`."""
    path = results / "originality.json"
    if not path.is_file():
        return "The index has not been measured yet: `python -m evaluation.originality benchmark`.\n"
    found = json.loads(path.read_text())
    times = found["query_milliseconds"]
    return (
        f"An index of {found['windows']:,} windows of 16 bars ({found['bars']:,} bars that repeat nothing) takes "
        f"{found['megabytes']:.0f} MB and {found['build_seconds']:.0f} s to build, and answers in "
        f"{times['mean']:.1f} ms (at most {times['most']:.1f}), on {found['machine']['processor']}.\n"
    )
