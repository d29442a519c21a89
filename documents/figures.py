"""Draw results: `python -m documents.figures results/*.json --output results/figures`.

Of every file of evaluate_model.py: rate and distortion, the way between melodies, the distribution of each feature, the
course of training, and, where `--examples` was given, piano rolls. Each in a light and a dark theme.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from command import UserError, run_command
from documents.compare import Results, find, read_results
from modeling.line_writing_melody_vae import line_to_score
from rendering.curves import write_curves
from rendering.distributions import write_distributions
from rendering.piano_roll import write_piano_roll

Draw = Callable[..., None]
FEATURE_TITLES = {
    "pitch_count": "Different pitches",
    "pitch_range": "Range, semitones",
    "pitch_interval": "Mean interval, semitones",
    "inter_onset_interval": "Between onsets, quarters",
    "groove_consistency": "Groove consistency",
    "scale_consistency": "Scale consistency",
}
SET_NAMES = {"model": "model", "floor: 4-gram": "4-gram", "ceiling: train": "train", "split": "test"}


def rate_distortion(models: Mapping[str, Results]) -> Draw | None:
    """Draw the curve of each decoder over beta, and the points of models trained with other weights."""
    series = {}
    for name, results in models.items():
        points = find(results, "rate_distortion/decoder") or []
        kept = [point for point in points if point["rate_nats"] > 0]  # the prior's own distortion would hide the rest
        if kept:
            series[name] = ([point["rate_nats"] for point in kept], [point["distortion_nats"] for point in kept])
        trained = sorted(find(results, "rate_distortion/models") or [], key=lambda point: point["rate_nats"])
        if trained:
            label = (
                f"{name}: trained with \N{GREEK SMALL LETTER BETA} {', '.join(str(p['kl_weight']) for p in trained)}"
            )
            series[label] = (
                [point["rate_nats"] for point in trained],
                [point["distortion_nats"] for point in trained],
            )
    if not series:
        return None
    return partial(
        write_curves,
        series=series,
        title="Rate and distortion on the test split",
        x_label="rate: KL, nats per melody",
        y_label="distortion: reconstruction, nats per melody",
    )


def training(results: Results) -> Draw | None:
    """Draw the validation bits per note over training steps."""
    history = find(results, "training/history")
    if not history:
        return None
    curve = ([entry["step"] for entry in history], [entry["bits_per_note"] for entry in history])
    return partial(write_curves, series={"bits per note": curve}, title="Validation split", y_label="bits per note")


def interpolation(results: Results) -> Draw | None:
    """Draw how a melody becomes another, through the latent and by mixing steps."""
    found = results.get("interpolation")
    if not found:
        return None
    places = list(range(1, found["points"] + 1))
    series = {
        f"{title}, from the {end}": (places, found[way][f"from_{key}"])
        for way, title in (("latent", "latent"), ("mix", "mixed steps"))
        for key, end in (("start", "first"), ("end", "last"))
    }
    return partial(
        write_curves,
        series=series,
        title="From one melody to another",
        x_label="point on the way",
        y_label="distance: 1 - note F1",
    )


def interpolation_price(results: Results) -> Draw | None:
    """Draw what the points between melodies cost a 4-gram model."""
    found = results.get("interpolation")
    if not found:
        return None
    places = list(range(1, found["points"] + 1))
    if any(price is None for way in ("latent", "mix") for price in found[way]["bits_per_note"]):
        return None  # a point without a note has no price
    series = {
        title: (places, found[way]["bits_per_note"]) for way, title in (("latent", "latent"), ("mix", "mixed steps"))
    }
    return partial(
        write_curves,
        series=series,
        title="How usual the melodies between are",
        x_label="point on the way",
        y_label="bits per note under a 4-gram model",
    )


def features(results: Results) -> Draw | None:
    """Draw how each feature is distributed in samples, test, training and 4-gram melodies."""
    found = find(results, "samples/distributions")
    if not found:
        return None
    panels = {
        FEATURE_TITLES[name]: (of["edges"], {SET_NAMES[label]: counts for label, counts in of["counts"].items()})
        for name, of in found.items()
    }
    return partial(write_distributions, panels=panels, title="Features of samples and of melodies")


def reconstructions(results: Results, number: int) -> Draw | None:
    """Draw a melody above its reconstruction."""
    found = find(results, "examples/reconstructions") or []
    if number >= len(found):
        return None
    scores = [line_to_score(found[number][side]) for side in ("original", "decoded")]
    return partial(write_piano_roll, scores=scores, bars=found[number]["original"]["bars"], compare=True)


def strip(results: Results) -> Draw | None:
    """Draw the melodies on the way from one to another below one another."""
    found: list[dict[str, Any]] = find(results, "examples/interpolation") or []
    if not found:
        return None
    titles = [f"{index / (len(found) - 1):.0%}" for index in range(len(found))]
    return partial(
        write_piano_roll,
        scores=[line_to_score(line) for line in found],
        titles=titles,
        bars=max(line["bars"] for line in found),
    )


OF_EACH: dict[str, Callable[[Results], Draw | None]] = {
    "training": training,
    "interpolation": interpolation,
    "interpolation-price": interpolation_price,
    "features": features,
    "reconstruction-1": partial(reconstructions, number=0),
    "reconstruction-2": partial(reconstructions, number=1),
    "strip": strip,
}


def draw(models: Mapping[str, Results], folder: Path) -> list[Path]:
    """Draw everything that the results hold.

    Returns:
        The pictures that were written, the light ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = {"rate-distortion": rate_distortion(models)}
    for name, results in models.items():
        jobs |= {f"{name}-{kind}": make(results) for kind, make in OF_EACH.items()}
    written = []
    for name, job in tqdm(jobs.items(), desc="Drawing", unit=" pictures"):
        if job is not None:
            for theme, ending in (("light", ""), ("dark", "-dark")):
                job(folder / f"{name}{ending}.png", theme=theme)
            written.append(folder / f"{name}.png")
    return written


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m documents.figures", description=__doc__)
    parser.add_argument("results", nargs="+", help="files of evaluate_model.py; others are passed over")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    return run_command(draw_files, parser.parse_args(argv))


def draw_files(args: argparse.Namespace) -> None:
    """Draw the results of the files that hold some.

    Raises:
        UserError: If a file cannot be read, none holds results, or the pictures cannot be written.
    """
    models = {}
    for path in args.results:
        try:
            if "free_running" not in json.loads(Path(path).read_text(encoding="utf-8")):
                continue
            models |= read_results([path], None)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}: cannot be read ({error}); give files of results") from error
    if not models:
        raise UserError("none of these is a file of evaluate_model.py; give files of results")
    try:
        written = draw(models, args.output)
    except OSError as error:
        raise UserError(f"{args.output}: {error.strerror}; choose another --output") from error
    print(f"{len(written)} pictures: {args.output}")


if __name__ == "__main__":
    sys.exit(main())
