"""Everything that evaluate_model.py writes of a model, part by part."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoProcessor

from command import UserError, machine
from dataset_script.leak import measure_leak
from dataset_script.midi_sources import InputError
from evaluation.floors import Floors
from evaluation.held_out import BARS, STEPS, choose_windows, windows_by_meter
from evaluation.latent_space import LatentSpace
from evaluation.model_evaluation import Evaluation
from evaluation.originality import index_split
from evaluation.reconstruction import FEWEST_IN_GROUP, Line
from evaluation.sample_quality import MelodySet, copied, distributions, quality
from metrics.originality.originality_index import OriginalityIndex
from training.models import load_pretrained
from training.run_logger import LOG_NAME

PARTS = ("likelihood", "reconstruction", "teacher_forced", "rate_distortion", "groups", "latent_space")
PARTS += ("samples", "leak")
FEWEST_MELODIES = 2
POINTS = 9  # of an interpolation
EXAMPLES, PICTURED_POINTS = 64, 5
SAMPLES_PER_WINDOW = 4  # at most, of the reference's windows: more tell nothing new against so few
NO_LATENT = "this model has no latent"
NO_BARS = "this model reads steps and not bars of tokens"


@dataclass
class Options:
    """What to measure of which model on which melodies; the flags of `evaluate_model.py`.

    Attributes:
        model: Folder or Hub id.
        dataset: Folder or Hub id.
        split: To measure on.
        parts: Of `PARTS`.
        melodies: 16-bar windows in 4/4 to measure on, at most.
        samples: To draw, and windows to compare them with, at most.
        temperature: Of the samples.
        sampling_noise: How much of its latent a sample leaves to the melody decoder; None is as the model has it.
        importance_samples: Latents per melody in the tighter bound.
        pairs: Of melodies to interpolate between.
        ngram_melodies: Training windows for the n-gram models.
        originality_index: File of `evaluation.originality build`; made anew if None.
        rate_distortion: Models trained with other `kl_weight`s.
        other_data: Data sets to reconstruct as well.
        examples: Data set whose melodies may be pictured from the results.
        batch_size: Melodies at a time.
        seed: Chooses melodies, latents and samples.
    """

    model: str
    dataset: str
    split: str = "test"
    parts: Sequence[str] = PARTS
    melodies: int = 256
    samples: int = 1024
    temperature: float = 1.0
    sampling_noise: float | None = None
    importance_samples: int = 16
    pairs: int = 32
    ngram_melodies: int = 20_000
    originality_index: str | None = None
    rate_distortion: Sequence[str] = ()
    other_data: Sequence[str] = ()
    examples: str | None = None
    batch_size: int = 64
    seed: int = 0


@torch.no_grad()
def measure(options: Options) -> dict[str, Any]:
    """Compute everything that evaluate_model.py writes.

    Raises:
        UserError: If the model, the data or an index is of no use.
    """
    clock = time.perf_counter()

    # The model, and what it is measured on.
    model, processor = load(options.model)
    if options.sampling_noise is not None:
        set_sampling_noise(model, options.sampling_noise)
    windows = choose_windows(options.dataset, options.split, max(options.melodies, options.samples), options.seed)
    if len(windows) < FEWEST_MELODIES:
        raise UserError(
            f"{options.dataset}: 1 window of {BARS} bars in split '{options.split}'; two are needed to compare"
        )
    index = read_index(options.originality_index) if options.originality_index else None
    evaluation = Evaluation(model, processor, windows[: options.melodies], options.batch_size, options.seed)
    parts, skipped = choose_parts(evaluation, options.parts)

    # Each part by itself; n-gram models of training melodies are the floors of some.
    results: dict[str, Any] = {}
    floors, training_windows = None, []
    if parts & {"likelihood", "latent_space", "samples"}:
        count = max(options.ngram_melodies, options.samples)
        training_windows = choose_windows(options.dataset, "train", count, options.seed)
        floors = Floors(processor, training_windows[: options.ngram_melodies])
    if "likelihood" in parts:
        results["likelihood"] = evaluation.likelihood(options.importance_samples)
        results["likelihood_floors"] = likelihood_floors(evaluation, floors)
    if "reconstruction" in parts:
        results["free_running"] = evaluation.free_running()
        if hasattr(evaluation.model, "refine"):  # baselines cannot
            results["own_conditions"] = evaluation.own_conditions()
            results["refined"] = evaluation.refined()
    if "teacher_forced" in parts:
        results["teacher_forced_by_bar"] = evaluation.teacher_forced()
    if "rate_distortion" in parts:
        curve = evaluation.rate_distortion()
        results["rate_distortion"] = {"decoder": curve, "models": other_models(evaluation.melodies, options)}
    if "groups" in parts:
        results["groups"] = measure_groups(evaluation, options)
        results["groups_own_conditions"] = measure_groups(evaluation, options, own_conditions=True)
    if "latent_space" in parts:
        results |= measure_latent_space(evaluation, floors, options)
    if "samples" in parts:
        index = index or index_split(options.dataset, "train", "lead")
        results["samples"] = measure_samples(evaluation, floors, index, windows, training_windows, options)
    if options.examples and evaluation.has_latent:
        results["examples"] = examples(evaluation, options.examples, "train", options.seed)
    if "leak" in parts:
        results["leak"] = leak(options.dataset, options.split)
        if results["leak"] is None:
            skipped["leak"] = "the data set is not a folder that dataset_script.build made"

    # What was measured, beside what it was measured of and on.
    return {
        **describe_model(evaluation, options),
        **results,
        **dict.fromkeys(set(skipped) - set(results)),
        "not_measured": skipped,
        "training": read_json(options.model, LOG_NAME),
        "data": read_json(options.dataset, "build.json"),
        "machine": describe_machine(),
        "seconds": time.perf_counter() - clock,
    }


def likelihood_floors(evaluation: Evaluation, floors: Floors) -> dict[str, Any]:
    """Measure n-gram models on the evaluation's melodies, and the guess that all tokens are equally likely."""
    uniform = [count * math.log(len(evaluation.processor.tokenizer)) for count in evaluation.tokens]
    return {
        "uniform": evaluation.per_note(uniform),
        **{name: evaluation.per_note(floors.nats(name, evaluation.melodies)) for name in floors.models},
        "training_melodies": floors.melodies,
    }


def set_sampling_noise(model, sampling_noise: float) -> None:
    """Say how much of its latent a sample leaves to the melody decoder.

    Raises:
        UserError: If the model was not trained for that.
    """
    if not (getattr(model.config, "noise_probability", 0) and 0 <= sampling_noise <= 1):
        raise UserError(f"--sampling_noise {sampling_noise}: from 0 to 1, for models trained with noise_probability")
    model.config.sampling_noise = sampling_noise


def read_index(path: str) -> OriginalityIndex:
    """Load an index of training melodies.

    Raises:
        UserError: If there is none.
    """
    try:
        return OriginalityIndex.load(path)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


def choose_parts(evaluation: Evaluation, wanted: Sequence[str]) -> tuple[set[str], dict[str, str]]:
    """Leave out of the parts what does not apply to the model; returns them, and why others are not measured."""
    parts = set(wanted)
    skipped: dict[str, str] = {}
    if not evaluation.has_latent:
        names = ("free_running", "rate_distortion", "groups", "interpolation", "locality", "noise")
        skipped |= dict.fromkeys(names, NO_LATENT)
        parts -= {"reconstruction", "rate_distortion", "groups", "latent_space"}
    if not evaluation.reads_bars:
        skipped |= dict.fromkeys(("teacher_forced_by_bar", "locality", "samples of a 4-gram model"), NO_BARS)
        parts -= {"teacher_forced"}
    return parts, skipped


def describe_model(evaluation: Evaluation, options: Options) -> dict[str, Any]:
    """Say what is measured, and on what."""
    config = evaluation.model.config
    return {
        "model": options.model,
        "model_type": config.model_type,
        "parameters": evaluation.model.num_parameters(),
        "kl_weight": config.kl_weight if evaluation.has_latent else None,
        "latent_size": config.latent_size,
        "dataset": options.dataset,
        "split": options.split,
        "melodies": len(evaluation.melodies),
        "bars": BARS,
        "seed": options.seed,
    }


def measure_groups(evaluation: Evaluation, options: Options, own_conditions: bool = False) -> dict[str, Any]:
    """Measure reconstruction by groups of melodies, see [`Evaluation.groups`]: of this data set, and of others."""
    by_meter, *of_others = (
        windows_by_meter(
            dataset, options.split, options.melodies, options.seed, FEWEST_IN_GROUP, evaluation.processor.can_read
        )
        for dataset in (options.dataset, *options.other_data)
    )
    others = {
        f"{Path(dataset).name}, {meter}": lines
        for dataset, of_meter in zip(options.other_data, of_others, strict=True)
        for meter, lines in of_meter.items()
    }
    return evaluation.groups(by_meter, others, own_conditions)


def read_json(folder: str, name: str) -> dict | None:
    """Read a JSON file of a local folder, if there is one."""
    path = Path(folder) / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def describe_machine() -> dict:
    """Say what computes the numbers."""
    return {
        **machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }


def load(path: str):
    """Load model and processor.

    Raises:
        UserError: If there is no trained model.
    """
    folder = Path(path)
    if folder.is_dir():
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise UserError(f"{path}: no {name}, so no trained model; give a folder that train.py has finished")
    model, processor = (load_pretrained(auto_class, path) for auto_class in (AutoModel, AutoProcessor))
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), processor


def leak(dataset: str, split: str) -> dict | None:
    """Measure the share of lines with a near-duplicate in train; None where the data set is no local build."""
    try:
        return measure_leak(Path(dataset)).get(split)
    except InputError:
        return None


def other_models(melodies: list[dict], options: Options) -> list[dict[str, Any]]:
    """Measure rate and distortion of models that were trained with other weights of the KL term.

    Raises:
        UserError: If one is no trained model with a latent.
    """
    points = []
    for path in options.rate_distortion:
        model, processor = load(path)
        if not model.config.latent_size:
            raise UserError(f"--rate_distortion {path}: this model has no latent (latent_size=0); leave it out")
        evaluation = Evaluation(model, processor, melodies, options.batch_size, options.seed)
        points.append({"model": path, "kl_weight": model.config.kl_weight, **evaluation.rate_and_distortion()})
    return points


def measure_latent_space(evaluation: Evaluation, floors: Floors, options: Options) -> dict[str, Any]:
    """Measure interpolation and locality, on pairs of melodies as they were drawn, not as they were sorted."""
    order = torch.randperm(len(evaluation.melodies), generator=torch.Generator().manual_seed(options.seed))
    space = LatentSpace(
        evaluation.model,
        evaluation.processor,
        evaluation.latent_mean[order],
        torch.cat([posterior.latent_log_variance for posterior in evaluation.posteriors])[order],
        bars=BARS,
        num_steps=STEPS,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    return {
        "interpolation": space.interpolation(options.pairs, POINTS, floors.price),
        "noise": space.noise(options.pairs),
        "locality": space.locality(max(options.pairs // 2, 2)) if evaluation.reads_bars else None,
    }


def measure_samples(
    evaluation: Evaluation,
    floors: Floors,
    index: OriginalityIndex,
    windows: list[dict],
    training_windows: list[dict],
    options: Options,
) -> dict[str, Any]:
    """Compare samples with the split's windows, beside a 4-gram model's (floor) and training windows (ceiling)."""
    reference = MelodySet(windows[: options.samples], BARS, STEPS)
    count = min(options.samples, SAMPLES_PER_WINDOW * len(reference.lines))
    lines = {
        "model": evaluation.sample(count, options.temperature),
        **({"floor: 4-gram": floors.sample(count, options.seed)} if evaluation.reads_bars else {}),
        "ceiling: train": training_windows[: options.samples],
    }
    sets = {name: MelodySet(each, BARS, STEPS) for name, each in lines.items()}
    found: dict[str, Any] = {
        name: quality(melodies, reference, index, options.seed, name) for name, melodies in sets.items()
    }
    # Of the split itself, metrics that compare a set with the split are left out.
    found["split"] = {
        "melodies": len(reference.lines),
        "statistics": reference.statistics(),
        "form": reference.form_means(),
        "originality": copied(reference, index, options.seed, "Spans of the split"),
    }
    return {
        "sets": found,
        "distributions": distributions({**sets, "split": reference}),
        "index": index.about,
        "temperature": options.temperature,
        "sampling_noise": getattr(evaluation.model.config, "sampling_noise", None),
        "sampling_top_p": getattr(evaluation.model.config, "sampling_top_p", None),
        "sampling_candidates": getattr(evaluation.model.config, "sampling_candidates", None),
    }


def examples(evaluation: Evaluation, dataset: str, split: str, seed: int) -> dict[str, Any]:
    """Reconstruct melodies that may be published, and go from one to another, as notes for pictures.

    Raises:
        UserError: If there are no two melodies of one time signature and length that the model can read.
    """
    found = windows_by_meter(dataset, split, EXAMPLES, seed, 2, evaluation.processor.can_read)
    for lines in found.values():
        for bars in sorted({line["bars"] for line in lines}, reverse=True):
            pair = [line for line in lines if line["bars"] == bars]
            if len(pair) > 1:
                decoded = evaluation.reconstruct(pair[:2], bars)
                latents = evaluation.model.encode(**evaluation.prepare(pair[:2])).latent_mean
                path = evaluation.model.interpolate(*latents, steps=PICTURED_POINTS, bars=bars)
                return {
                    "reconstructions": [
                        {"name": one["melody_id"], "original": as_notes(one), "decoded": as_notes(other)}
                        for one, other in zip(pair, decoded, strict=False)
                    ],
                    "interpolation": [as_notes(line) for line in evaluation.processor.to_lines(path)],
                }
    raise UserError(
        f"--examples {dataset}: no two lead melodies of one length in split '{split}'; give another --split"
    )


def as_notes(line: Line) -> dict[str, Any]:
    """Leave of a line what a picture needs."""
    return {name: line[name] for name in ("pitch", "start", "duration", "time_signature", "steps_per_beat", "bars")}
