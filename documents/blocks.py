"""Blocks of README and the model card that come from the results of evaluate_model.py."""

import json
from pathlib import Path

from documents.compare import comparison, groups

NAMES = {
    "melody_vae": "Melody VAE",
    "music_vae": "MusicVAE",
    "lstm": "attention LSTM",
    "rnn": "RNN",
    "music_transformer": "Music Transformer",
    "music_transformer_absolute": "its absolute twin",
}
"""What the model types of train.py are called in tables."""


def baselines(results: Path) -> str:
    """Write the table of `results/baselines.json`: all model types, trained with one budget."""
    path = results / "baselines.json"
    if not path.is_file():
        return "Not measured yet: `python -m benchmarks.baselines`.\n"
    found = json.loads(path.read_text(encoding="utf-8"))
    missing = [name for kind, name in NAMES.items() if kind not in found["models"]]
    return (
        budget(found)
        + (f"\nNot trained yet: {', '.join(missing)}.\n" if missing else "")
        + "\n![Validation bits per note over melodies seen](results/baselines.png)\n"
        + "\nWritten by `make report` from `results/baselines.json`.\n"
    )


def budget(found: dict) -> str:
    """Write the table of models that were trained with one budget, and what the budget was.

    Raises:
        ValueError: If they have seen different numbers of melodies.
    """
    models = {name: found["models"][kind] for kind, name in NAMES.items() if kind in found["models"]}
    seen = {name: results["training"]["melodies_seen"] for name, results in models.items()}
    if len(set(seen.values())) > 1:
        raise ValueError(f"not one budget: {seen}")
    minutes = ", ".join(f"{name} {results['training']['seconds'] / 60:.0f}" for name, results in models.items())
    threads = {results["training"]["cpu_threads"] for results in models.values()}
    return (
        f"{comparison(models)}\nEach model saw {next(iter(seen.values())):,} windows of the training split. Minutes of "
        f"training on {' or '.join(map(str, sorted(threads)))} threads of {found['machine']['processor']}: {minutes}.\n"
    )


def ablations(results: Path) -> str:
    """Write what each practice was worth in `results/ablations.json`, and transfer the other way round."""
    path = results / "ablations.json"
    if not path.is_file():
        return "Not measured yet: `python -m benchmarks.ablations`.\n"
    found = json.loads(path.read_text(encoding="utf-8"))
    baseline, seen = found["baseline_options"], found["variants"]["baseline"]["seeds"]["0"]["melodies_seen"]
    rows = [
        f"| {name} | {row['bits_per_note']:.2f} | {row['difference']:+.2f} |"
        for name, row in sorted(found["variants"].items(), key=lambda item: item[1]["bits_per_note"])
    ]
    table = "\n".join(["| variant | bits per note | difference |", "| --- | --- | --- |", *rows])
    text = (
        f"{table}\n\nA small VAE, {baseline['--max_train_steps']} steps of 64 windows ({seen:,} in all), one seed; the "
        f"baseline's learning rate of {baseline['--learning_rate']} is on a {baseline['--lr_scheduler_type']}, and it "
        "has distances in tokens only. What train.py does by default follows from this. A few hundredths "
        "say nothing, and what pays in long trainings (dropout, say) may not pay here. "
        "Transfer is as many steps on folk tunes and POP909 first, tokenizer included."
    )
    path = results / "transfer_to_folk.json"
    if path.is_file():
        other = json.loads(path.read_text(encoding="utf-8"))["variants"]
        text += (
            f" The other way round, from Lakh to folk tunes and POP909: {other['transfer']['bits_per_note']:.2f} "
            f"instead of {other['baseline']['bits_per_note']:.2f}."
        )
    return f"{text}\n\nWritten by `make report` from `results/ablations.json`.\n"


def release(results: Path) -> str:
    """Write the numbers of `results/release.json`, with reconstruction by groups of melodies."""
    path = results / "release.json"
    if not path.is_file():
        return "Not measured yet: `make evaluate`.\n"
    found = json.loads(path.read_text(encoding="utf-8"))
    table = groups(found)
    return (
        comparison({NAMES["melody_vae"]: found})
        + (f"\nFree-running, by groups of test melodies:\n\n{table}" if table else "")
        + "\n![Five melodies from one tune to another, as piano rolls](results/figures/release-strip.png)\n"
        + "\nFrom one tune of ours to another along the great circle. Below: rate against distortion, and what samples "
        "are like beside melodies; `make figures` draws them and more.\n"
        + "\n| ![Rate against distortion](results/figures/rate-distortion.png) "
        "| ![Features of samples and of melodies](results/figures/release-features.png) |\n| --- | --- |\n"
        + "\nWritten by `make report` from `results/release.json`.\n"
    )


def originality_index(results: Path) -> str:
    """Say how large and how fast the originality index is, from `results/originality.json`."""
    path = results / "originality.json"
    if not path.is_file():
        return "The index has not been measured yet: `python -m evaluation.originality benchmark`.\n"
    found = json.loads(path.read_text(encoding="utf-8"))
    times = found["query_milliseconds"]
    return (
        f"An index of {found['windows']:,} windows of 16 bars ({found['bars']:,} bars that repeat nothing) takes "
        f"{found['megabytes']:.0f} MB and {found['build_seconds']:.0f} s to build, and answers in "
        f"{times['mean']:.1f} ms (at most {times['most']:.1f}), on {found['machine']['processor']}.\n"
    )
