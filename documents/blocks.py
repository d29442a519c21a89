"""Blocks of README, docs/ and results/README.md that come from the results of evaluate_model.py."""

import ast
import json
import textwrap
from pathlib import Path

from documents.compare import DASH, comparison, groups, markdown

ROOT = Path(__file__).parents[1]

NAMES = {
    "melody_vae": "Melody VAE",
    "music_vae": "MusicVAE",
    "lstm": "attention LSTM",
    "rnn": "RNN",
    "music_transformer": "Music Transformer",
    "music_transformer_absolute": "its absolute twin",
}
"""What the model types of train.py are called in tables."""


def summary(results: Path) -> str:
    """Write README's table: six questions about the release, each answer beside its floor and its ceiling."""
    # Figures of three reports.
    release, asked, speed = (
        json.loads((results / name).read_text(encoding="utf-8"))
        for name in ("release.json", "model.json", "dataset_speed.json")
    )
    steps, notes = release["free_running"]["step_accuracy"], release["free_running"]["note_f1"]
    sets, rates = release["samples"]["sets"], speed["files_per_second"]
    ngram, train, test = sets["floor: 4-gram"], sets["ceiling: train"], sets["split"]
    weights = results.parent / release["model"] / "model.safetensors"
    candidates = release["samples"]["sampling_candidates"]
    chosen = f"each the one of {candidates} candidates that a critic keeps" if candidates > 1 else "none of them chosen"
    rows = [
        [
            "Notes that come back from the latent; by `reconstruct`, which refines it (note F1)",
            f"{notes['f1']:.3f}; {release['refined']['note_f1']['f1']:.3f}",
            f"{release['free_running']['note_f1_floor']:.3f}, another melody",
            "1",
        ],
        [
            "Sixteenths that come back (step accuracy)",
            f"{steps['accuracy']:.3f}",
            f"{steps['floor']:.3f}, silence",
            "1",
        ],
        [
            "A classifier tells samples from melodies (AUC, lower is better)",
            f"{sets['model']['two_sample']['auc']:.3f}",
            f"{ngram['two_sample']['auc']:.3f}, 4-gram model",
            f"{train['two_sample']['auc']:.3f}, real melodies",
        ],
        [
            "4-bar spans copied from the training data, in any key",
            f"{sets['model']['originality']['copied']:.2%}",
            f"{ngram['originality']['copied']:.2%}, 4-gram model",
            f"{test['originality']['copied']:.2%}, real melodies",
        ],
        [
            "MIDI files read into melodies a second, one core",
            f"{rates['ours']:,.0f}",
            f"{rates['note_seq_sample']:.0f}, note_seq",
            f"{rates['parsing']:,.0f}, parsing alone (symusic)",
        ],
        [
            f"Size; seconds for a new melody of {asked['speed']['bars']} bars, one core",
            f"{release['parameters'] / 1e6:.1f} M, {weights.stat().st_size / 1e6:.0f} MB; "
            f"{asked['speed']['sample_seconds']:.1f} s",
            DASH,
            DASH,
        ],
    ]
    return (
        markdown(["", "Melody VAE", "floor", "ceiling"], rows)
        + f"\nFrom {release['melodies']} melodies of {release['bars']} bars ({release['split']} split) and "
        f"{sets['model']['melodies']:,} samples, {chosen}; the *floor* is a simple\nbaseline, "
        "the *ceiling* is real melodies or perfection, and [Results](results/README.md) has all the numbers.\n"
    )


def training_time(results: Path) -> str:
    """Say how long the release was trained, and how long train.py takes by default at its speed."""
    from training.options import make_parser

    stage = json.loads((results / "release.json").read_text(encoding="utf-8"))["training"]
    last, seconds, processes = stage, 0.0, set()
    while stage:
        seconds += stage["seconds"]
        processes.add(stage.get("num_processes", 1))
        stage = stage.get("before")
    defaults = make_parser()
    steps, batch = (defaults.get_default(name) for name in ("max_train_steps", "per_device_train_batch_size"))
    hours = steps * batch / last["melodies_per_second"] / 3600
    last_cores = "one such core" if last["num_processes"] == 1 else f"{last['num_processes']} such cores"
    return (
        f"The release took {seconds / 3600:.1f} hours on up to {max(processes)} cores of a CPU, all stages together. "
        f"The default, {steps:,} steps of {batch} melodies, takes about {hours:.0f} hours on {last_cores}, "
        f"at the {last['melodies_per_second']:.0f} melodies a second of the release's last stage.\n"
    )


def architecture() -> str:
    """Copy the drawing at the top of the modelling file."""
    source = (ROOT / "modeling" / "modeling_melody_vae.py").read_text(encoding="utf-8")
    paragraphs = (ast.get_docstring(ast.parse(source), clean=True) or "").split("\n\n")
    drawing = next(paragraph for paragraph in paragraphs if paragraph.startswith("    "))
    return f"```text\n{textwrap.dedent(drawing)}\n```\n"


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
        + "\n![Validation bits per note over melodies seen](figures/baselines.png)\n"
        + music_vae_curve(results)
        + "\nWritten by `make report` from `results/baselines.json`.\n"
    )


def music_vae_curve(results: Path) -> str:
    """Write the table of `results/music_vae.json`: what the 2-bar MusicVAE has learned from how many windows."""
    path = results / "music_vae.json"
    if not path.is_file():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    bars, points = found["options"]["bars"], found["points"]
    formats = {"windows": ",", "reconstruction_nats": ".1f", "kl_nats": ".0f", "step_accuracy": ".3f", "note_f1": ".3f"}
    rows = [[format(point[name], form) for name, form in formats.items()] for point in points]
    return (
        f"\nMusicVAE as published for {bars} bars ([`benchmarks.music_vae`](../benchmarks/music_vae.py)), at the size "
        f"above, by windows of {bars} bars seen; step accuracy of silence is "
        f"{points[-1]['step_accuracy_of_silence']:.3f}. "
        f"{points[-1]['seconds'] / 60:.0f} minutes on one thread of {found['machine']['processor']}.\n\n"
        + markdown(["windows", "reconstruction nats", "KL nats", "step accuracy", "note F1"], rows)
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
        + "\n![Five melodies from one tune to another, as piano rolls](figures/release-strip.png)\n"
        + "\nInterpolation between two public-domain tunes (slerp). Below: rate against distortion, and what samples "
        "are like beside melodies; `make figures` draws them and more.\n"
        + "\n| ![Rate against distortion](figures/rate-distortion.png) "
        "| ![Features of samples and of melodies](figures/release-features.png) |\n| --- | --- |\n"
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
