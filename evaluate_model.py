"""Measure a trained model on held-out melodies; writes the JSON that every published number comes from."""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from tqdm.auto import tqdm
from transformers import AutoModel, AutoProcessor

from benchmarks.near_duplicates import InputError, measure_leak
from command import UserError, check_output, machine, run_command, write_json
from evaluation.held_out import BARS, STEPS, choose_windows, windows_by_meter
from evaluation.intervals import ratio_interval
from evaluation.latent_space import LatentSpace
from evaluation.ngram import NgramModel
from evaluation.originality import index_split
from evaluation.reconstruction import FEWEST_IN_GROUP, Line, by_group, compare, density_groups, summary
from evaluation.sample_quality import MelodySet, copied, distributions, quality
from metrics.bits_per_note.bits_per_note import bits_per_note
from metrics.note_f1.note_f1 import note_f1
from metrics.originality.originality_index import OriginalityIndex
from metrics.perplexity.perplexity import perplexity
from metrics.step_accuracy.step_accuracy import step_accuracy
from modeling.melody_line_melody_vae import steps_per_bar
from modeling.modeling_melody_vae import reconstruction_nats
from training.models import load_pretrained
from training.run_logger import LOG_NAME
from training.validation import ACTIVE_UNIT_VARIANCE, nats_without_latent

STEPS_PER_BAR = STEPS // BARS
TEMPERINGS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)  # 1 / beta
ORDERS = {"unigram": 1, "4-gram": 4}
SHORTER_BARS = (1, 2, 4, 8)
POINTS = 9  # of an interpolation
EXAMPLES, PICTURED_POINTS = 64, 5
SAMPLES_PER_WINDOW = 4  # at most, of the reference's windows: more tell nothing new against so few
PARTS = ("likelihood", "reconstruction", "teacher_forced", "rate_distortion", "groups", "latent_space")
PARTS += ("samples", "leak")
LIMITS = {"melodies": 2, "samples": 1, "importance_samples": 1, "batch_size": 1, "ngram_melodies": 1, "pairs": 1}
NO_LATENT = "this model has no latent"
NO_BARS = "this model reads steps and not bars of tokens"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Measure how well a model reconstructs, predicts and writes melodies that it has not been trained "
        "on, beside floors and ceilings; what does not apply to a model is null, with the reason.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="folder or Hub id of the trained model")
    parser.add_argument("--dataset", required=True, help="folder or Hub id of the melodies")
    parser.add_argument("--output", required=True, help="JSON file to write")
    parser.add_argument("--split", default="test", help="split to measure on")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument(
        "--melodies", "--num_melodies", type=int, default=256, help="16-bar windows in 4/4 to measure on, at most"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=1024,
        help="melodies to sample, and windows to compare them with, at most; samples are at most "
        f"{SAMPLES_PER_WINDOW} times as many as the split has windows",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="of the samples")
    parser.add_argument(
        "--sampling_noise",
        type=float,
        help="how much of its latent a sample leaves to the melody decoder; left out: as the model has it",
    )
    parser.add_argument("--importance_samples", type=int, default=16, help="latents per melody in the tighter bound")
    parser.add_argument("--pairs", type=int, default=32, help="pairs of melodies to interpolate between")
    parser.add_argument("--ngram_melodies", type=int, default=20_000, help="training windows for the n-gram models")
    parser.add_argument("--originality_index", help="file of evaluation.originality build; made anew by default")
    parser.add_argument(
        "--rate_distortion", nargs="+", default=[], metavar="MODEL", help="models trained with other kl_weights"
    )
    parser.add_argument(
        "--other_data", nargs="+", default=[], metavar="DATASET", help="reconstruct melodies of other origin as well"
    )
    parser.add_argument(
        "--examples", metavar="DATASET", help="melodies free to be shown, to be pictured from the results"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="melodies at a time")
    parser.add_argument("--seed", type=int, default=0, help="chooses the melodies, the latents and the samples")
    return parser.parse_args(argv)


def log_normal(value: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Log-density of a diagonal Gaussian, summed over the last dimension."""
    squared = (value - mean).square() / log_variance.exp()
    return -0.5 * (squared + log_variance + math.log(2 * math.pi)).sum(-1)


def temper(posterior, power: float):
    """Go from the prior N(0, I) to a Gaussian posterior and beyond: q_t(z) proportional to p(z) (q(z) / p(z))^t.

    If the posterior were exact, p(z) p(x|z)^t would be just that, the optimum of distortion + beta rate at
    beta = 1 / t for this decoder (Huang et al. 2020, arXiv:2008.06653). A dimension whose variance is above 1 stays as
    it is for t above 1, where the product may not be a density.

    Args:
        posterior: A `MelodyVAEPosterior`.
        power: t; 0 is the prior, 1 the posterior.
    """
    mean, log_variance = posterior.latent_mean, posterior.latent_log_variance
    precision = 1 + power * ((-log_variance).exp() - 1)
    is_kept = (log_variance > 0) & (power > 1)
    return type(posterior)(
        latent_mean=torch.where(is_kept, mean, power * mean * (-log_variance).exp() / precision),
        latent_log_variance=torch.where(is_kept, log_variance, -precision.log()),
    )


class Evaluation:
    """A model, its processor and the melodies to measure it on.

    Args:
        model: From `AutoModel`.
        processor: From `AutoProcessor`.
        melodies: Windows, as dicts of the data set's columns.
        batch_size: Melodies at a time.
        seed: Of the latents.
    """

    def __init__(self, model, processor, melodies: list[dict], batch_size: int, seed: int):
        self.model = model
        self.processor = processor
        self.melodies = sorted(melodies, key=lambda melody: len(melody["pitch"]))  # like lengths pad little
        self.batch_size = batch_size
        self.seed = seed
        self.generator = torch.Generator(model.device).manual_seed(seed)
        self.batches = []
        self.posteriors = []
        for first in range(0, len(melodies), batch_size):
            batch = self.prepare(self.melodies[first : first + batch_size])
            self.batches.append(batch)
            if self.has_latent:
                self.posteriors.append(model.encode(**batch))
        self.notes = [len(melody["pitch"]) for melody in self.melodies]
        self.tokens = [count - 1 for batch in self.batches for count in batch["attention_mask"].sum(1).tolist()]

    @property
    def has_latent(self) -> bool:
        """Whether the model is a VAE."""
        return bool(self.model.config.latent_size)

    @property
    def reads_bars(self) -> bool:
        """Whether the model reads tokens of which some open a bar, and not MusicVAE's steps."""
        return bool(self.processor.bar_token_ids)

    def prepare(self, lines: Sequence[Line], **options):
        """Tokenise lines onto the model's device."""
        return self.processor(lines=lines, return_tensors="pt", **options).to(self.model.device)

    def nats(self, batch: dict, latent: torch.Tensor | None) -> torch.Tensor:
        """Return -log p(x|z) of each melody of a batch, or without a latent -log p(x), `(B,)`."""
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return reconstruction_nats(self.model(**batch, latent=latent, use_cache=False).logits, labels)

    def per_note(self, nats: Sequence[float]) -> dict[str, Any]:
        """Divide the melodies' nats by their notes, with an interval, and by their tokens."""
        measured = bits_per_note(nats, [0.0] * len(nats), self.notes)
        bits = [each / math.log(2) for each in nats]
        return {
            "bits_per_note": measured["bits_per_note"],
            "interval": ratio_interval(bits, self.notes, self.seed),
            "perplexity": perplexity(nats, self.tokens)["perplexity"],
        }

    def likelihood(self, importance_samples: int) -> dict:
        """Measure the ELBO with one latent per melody, and the importance-weighted bound (arXiv:1509.00519).

        A model without a latent gives the likelihood itself; what a latent's is then null.
        """
        if not self.has_latent:
            nats = torch.cat([self.nats(batch, None) for batch in tqdm(self.batches, desc="Likelihood")]).tolist()
            return {
                **bits_per_note(nats, [0.0] * len(nats), self.notes),
                **self.per_note(nats),
                "importance_weighted_bits_per_note": None,
                "importance_samples": None,
                "reconstruction_nats": float(np.mean(nats)),
                "kl_nats": None,
                "active_units": None,
            }
        reconstruction, kl, bound = [], [], []
        for batch, posterior in zip(self.batches, tqdm(self.posteriors, desc="Likelihood"), strict=True):
            mean, log_variance = posterior.latent_mean, posterior.latent_log_variance
            log_weights = []
            for index in range(importance_samples):
                latent = posterior.sample(self.generator)
                nats = self.nats(batch, latent)
                if index == 0:
                    reconstruction.append(nats)
                prior = log_normal(latent, torch.zeros_like(mean), torch.zeros_like(mean))
                log_weights.append(prior - nats - log_normal(latent, mean, log_variance))
            bound.append(math.log(importance_samples) - torch.stack(log_weights).logsumexp(0))
            kl.append(posterior.kl_nats())
        nats, kl_nats, bounds = (torch.cat(parts).tolist() for parts in (reconstruction, kl, bound))
        tighter, alone = self.per_note(bounds), {}
        if getattr(self.model.config, "noise_probability", 0):
            alone = self.without_latent(bounds)
        return {
            **bits_per_note(nats, kl_nats, self.notes),
            **self.per_note([sum(both) for both in zip(nats, kl_nats, strict=True)]),
            "importance_weighted_bits_per_note": tighter["bits_per_note"],
            "importance_weighted_interval": tighter["interval"],
            "importance_weighted_perplexity": tighter["perplexity"],
            "importance_samples": importance_samples,
            **alone,
            "reconstruction_nats": float(np.mean(nats)),
            "kl_nats": float(np.mean(kl_nats)),
            "kl_interval": ratio_interval(kl_nats, seed=self.seed),
            "active_units": int((self.latent_mean.var(0) > ACTIVE_UNIT_VARIANCE).sum()),
        }

    def without_latent(self, bounds: Sequence[float]) -> dict[str, Any]:
        """Measure the melody decoder as a language model, and the even mixture of it and the VAE as one model.

        Args:
            bounds: Of -log p(x) of the VAE, in nats, one for each melody.
        """
        nats = []
        for batch in tqdm(self.batches, desc="Likelihood without a latent"):
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            nats.append(nats_without_latent(self.model, batch, labels))
        alone = torch.cat(nats).double()
        mixed = math.log(2) - torch.logaddexp(-alone, -torch.tensor(bounds).to(alone))
        found = {}
        for name, measured in (
            ("without_latent", self.per_note(alone.tolist())),
            ("mixture", self.per_note(mixed.tolist())),
        ):
            found |= {f"{name}_{key}": value for key, value in measured.items()}
        return found

    @cached_property
    def latent_mean(self) -> torch.Tensor:
        """Posterior means of all melodies, `(M, Z)`."""
        return torch.cat([posterior.latent_mean for posterior in self.posteriors])

    def rate_and_distortion(self, power: float = 1.0) -> dict[str, float]:
        """Measure both of [`temper`]'s posterior, nats per melody, one latent each."""
        rate, distortion = [], []
        for batch, posterior in zip(self.batches, self.posteriors, strict=True):
            tempered = temper(posterior, power)
            rate.append(tempered.kl_nats())
            distortion.append(self.nats(batch, tempered.sample(self.generator)))
        rates, distortions = (torch.cat(parts).double() for parts in (rate, distortion))
        total = (rates + distortions).sum().item()
        return {
            "rate_nats": rates.mean().item(),
            "distortion_nats": distortions.mean().item(),
            "bits_per_note": total / math.log(2) / sum(self.notes),
        }

    def rate_distortion(self) -> list[dict[str, float | None]]:
        """Trace the rate-distortion curve of this decoder over beta; null is infinite."""
        return [
            {"beta": 1 / power if power else None, **self.rate_and_distortion(power)}
            for power in tqdm(TEMPERINGS, desc="Rate and distortion")
        ]

    @cached_property
    def decoded(self) -> list[dict]:
        """The melodies decoded greedily from their posterior's mean, without a teacher."""
        lines = []
        for posterior in tqdm(self.posteriors, desc="Reconstructing"):
            lines += self.processor.to_lines(self.model.decode(posterior.latent_mean, bars=BARS))
        return lines

    def free_running(self) -> dict:
        """Reconstruct from the posterior's mean and compare; the floors are of another melody's reconstruction."""
        found = compare(self.decoded, self.melodies, STEPS, self.seed)
        others = compare(self.decoded[1:] + self.decoded[:1], self.melodies, STEPS, self.seed)
        return {
            **found,
            "note_f1_floor": others["note_f1"]["f1"],
            "note_bleu_floor": others["note_bleu"]["bleu"],
            "step_accuracy_of_another_melody": others["step_accuracy"]["accuracy"],
        }

    def reconstruct(self, lines: Sequence[dict], bars: int) -> list[dict]:
        """Decode other melodies of `bars` bars, or their first `bars`, from their posterior's mean."""
        decoded = []
        for first in range(0, len(lines), self.batch_size):
            batch = self.prepare(lines[first : first + self.batch_size], bars=bars)
            decoded += self.processor.to_lines(self.model.reconstruct(**batch))
        return decoded

    def each(self, kinds: dict[str, list[dict]], description: str) -> dict[str, Any]:
        """Measure reconstruction, free-running, of kinds of windows: 16 bars or fewer, those of a kind in one meter."""
        found = {}
        for kind, lines in tqdm(kinds.items(), desc=description):
            steps = max(line["bars"] for line in lines) * steps_per_bar(lines[0])
            found[kind] = summary(self.reconstruct(lines, BARS), lines, steps, self.seed)
        return found

    def groups(self, by_meter: dict[str, list[dict]], others: dict[str, list[dict]]) -> dict[str, Any]:
        """Measure reconstruction by length, density, genre, meter and origin, free-running.

        Args:
            by_meter: Windows of each time signature, of 16 bars or fewer.
            others: Windows of other data sets, likewise.
        """
        lengths = {}
        for bars in tqdm(SHORTER_BARS, desc="Lengths"):
            steps = bars * STEPS_PER_BAR
            openings = [opening(melody, bars) for melody in self.melodies]
            kept = [melody for melody in openings if melody["pitch"]]
            if kept:
                lengths[str(bars)] = summary(self.reconstruct(kept, bars), kept, steps, self.seed)
        lengths[str(BARS)] = summary(self.decoded, self.melodies, STEPS, self.seed)
        return {
            "by_bars": lengths,
            "by_density": by_group(self.decoded, self.melodies, density_groups(self.melodies), STEPS),
            "by_genre": by_group(self.decoded, self.melodies, lambda line: line["genre"], STEPS),
            "by_time_signature": self.each(by_meter, "Time signatures"),
            "by_data_set": self.each(others, "Other data"),
        }

    def teacher_forced(self) -> dict:
        """Decode each bar from the latent, if there is one, and the true bars before it, and compare the steps."""
        lines = []
        progress = tqdm(total=len(self.melodies), desc="Teacher-forced")
        is_bar_token = self.model.is_bar_token
        means = [posterior.latent_mean for posterior in self.posteriors] or [
            [None] * len(b["input_ids"]) for b in self.batches
        ]
        for batch, latents in zip(self.batches, means, strict=True):
            for padded_row, mask, mean in zip(batch["input_ids"], batch["attention_mask"], latents, strict=True):
                row = padded_row[mask.bool()]
                openings = is_bar_token[row].nonzero().flatten().tolist()
                prefixes = [row[:opening] for opening in openings]
                padded = torch.full((len(prefixes), openings[-1]), self.model.config.pad_token_id, device=row.device)
                for prefix, target in zip(prefixes, padded, strict=True):
                    target[len(target) - len(prefix) :] = prefix
                told = {} if mean is None else {"latent": mean.expand(len(prefixes), -1)}
                ids = self.model.generate(
                    padded,
                    attention_mask=(padded != self.model.config.pad_token_id).long(),
                    bars=torch.arange(1, len(prefixes) + 1, device=row.device),
                    do_sample=False,
                    **told,
                )
                # With the true bars after it, a note that the bar's end would cut keeps its length.
                special = (self.model.config.pad_token_id, self.model.config.eos_token_id)
                completed = [
                    [token for token in decoded if token not in special] + row[following:].tolist()
                    for decoded, following in zip(ids.tolist(), [*openings[1:], len(row)], strict=True)
                ]
                lines.append(self.join_bars(self.processor.to_lines(completed)))
                progress.update()
        progress.close()
        each = [
            step_accuracy([one], [other], STEPS)["accuracy"] for one, other in zip(lines, self.melodies, strict=True)
        ]
        return {
            "step_accuracy": {
                **step_accuracy(lines, self.melodies, STEPS),
                "interval": ratio_interval(each, seed=self.seed),
            },
            "note_f1": note_f1(lines, self.melodies, STEPS),
        }

    @staticmethod
    def join_bars(lines: list[dict]) -> dict:
        """Make one melody of the first line's first bar, the second line's second, and so on."""
        notes = [
            (start, duration, pitch)
            for index, line in enumerate(lines)
            for pitch, start, duration in zip(line["pitch"], line["start"], line["duration"], strict=True)
            if index * STEPS_PER_BAR <= start < (index + 1) * STEPS_PER_BAR
        ]
        ends = [*(start for start, _, _ in notes), STEPS][1:]
        return {
            "pitch": [pitch for _, _, pitch in notes],
            "start": [start for start, _, _ in notes],
            "duration": [min(duration, end - start) for (start, duration, _), end in zip(notes, ends, strict=False)],
        }

    def sample(self, count: int, temperature: float = 1.0) -> list[dict]:
        """Sample melodies of 16 bars in 4/4."""
        asked = {"bars": BARS, "temperature": temperature} | ({"time_signature": "4/4"} if self.reads_bars else {})
        lines = []
        for first in tqdm(range(0, count, self.batch_size), desc="Sampling", unit=" batches"):
            ids = self.model.sample(min(self.batch_size, count - first), seed=self.seed + first, **asked)
            lines += self.processor.to_lines(ids)
        return lines


def opening(melody: dict, bars: int) -> dict:
    """Cut a melody in 4/4 to its first bars."""
    end = bars * STEPS_PER_BAR
    kept = [index for index, start in enumerate(melody["start"]) if start < end]
    columns = {name: [melody[name][index] for index in kept] for name in ("pitch", "start", "duration")}
    columns["duration"] = [
        min(duration, end - start) for start, duration in zip(columns["start"], columns["duration"], strict=True)
    ]
    return {**melody, **columns, "bars": bars}


class Floors:
    """N-gram models of the training split over the model's own tokens: their nats compare with the model's.

    Args:
        processor: The model's.
        windows: Of the training split.
    """

    def __init__(self, processor, windows: Sequence[dict]):
        self.processor = processor
        tokenizer = processor.tokenizer
        sequences = []
        for first in tqdm(range(0, len(windows), 100), desc="Tokenising for n-grams", unit="00 windows"):
            sequences += self.tokenise(windows[first : first + 100])
        self.models = {name: NgramModel(sequences, order, len(tokenizer)) for name, order in ORDERS.items()}
        self.melodies = len(sequences)

    def tokenise(self, lines: Sequence[Line]) -> list[list[int]]:
        """Return the ids of melodies without padding."""
        batch = self.processor(lines=list(lines), return_tensors="pt")
        return [
            row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]

    def nats(self, name: str, lines: Sequence[Line]) -> list[float]:
        """Return -log p of melodies under one of the models."""
        return [self.models[name].nats(sequence) for sequence in self.tokenise(lines)]

    def price(self, lines: Sequence[Line]) -> float | None:
        """Return the 4-gram model's bits per note of melodies; None if they have no note in all."""
        notes = [len(line["pitch"]) for line in lines]
        if not sum(notes):
            return None
        return bits_per_note(self.nats("4-gram", lines), [0.0] * len(notes), notes)["bits_per_note"]

    def likelihood(self, evaluation: Evaluation) -> dict[str, Any]:
        """Measure each model on the evaluation's melodies, and the guess that all tokens are equally likely."""
        uniform = [count * math.log(len(self.processor.tokenizer)) for count in evaluation.tokens]
        return {
            "uniform": evaluation.per_note(uniform),
            **{name: evaluation.per_note(self.nats(name, evaluation.melodies)) for name in self.models},
            "training_melodies": self.melodies,
        }

    def sample(self, count: int, seed: int) -> list[dict]:
        """Sample melodies of 16 bars from the 4-gram model."""
        is_bar_token = np.zeros(len(self.processor.tokenizer), dtype=bool)
        is_bar_token[self.processor.bar_token_ids] = True
        tokenizer = self.processor.tokenizer
        ids = self.models["4-gram"].sample(
            count, tokenizer.bos_token_id, tokenizer.eos_token_id, is_bar_token, BARS, seed
        )
        return self.processor.to_lines(ids)


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


def other_models(paths: Sequence[str], melodies: list[dict], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure rate and distortion of models that were trained with other weights of the KL term.

    Raises:
        UserError: If one is no trained model with a latent.
    """
    points = []
    for path in paths:
        model, processor = load(path)
        if not model.config.latent_size:
            raise UserError(f"--rate_distortion {path}: this model has no latent (latent_size=0); leave it out")
        evaluation = Evaluation(model, processor, melodies, args.batch_size, args.seed)
        points.append({"model": path, "kl_weight": model.config.kl_weight, **evaluation.rate_and_distortion()})
    return points


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict:
    """Compute everything that the command writes."""
    clock = time.perf_counter()
    model, processor = load(args.model)
    if args.sampling_noise is not None:
        if not (getattr(model.config, "noise_probability", 0) and 0 <= args.sampling_noise <= 1):
            raise UserError(
                f"--sampling_noise {args.sampling_noise}: from 0 to 1, for models trained with noise_probability"
            )
        model.config.sampling_noise = args.sampling_noise
    windows = choose_windows(args.dataset, args.split, max(args.melodies, args.samples), args.seed)
    if len(windows) < LIMITS["melodies"]:
        raise UserError(f"{args.dataset}: 1 window of {BARS} bars in split '{args.split}'; two are needed to compare")
    index = None
    if args.originality_index:
        try:
            index = OriginalityIndex.load(args.originality_index)
        except (ValueError, OSError) as error:
            raise UserError(str(error)) from error
    evaluation = Evaluation(model, processor, windows[: args.melodies], args.batch_size, args.seed)
    parts = set(args.parts)
    skipped: dict[str, str] = {}
    if not evaluation.has_latent:
        names = ("free_running", "rate_distortion", "groups", "interpolation", "locality", "noise")
        skipped = dict.fromkeys(names, NO_LATENT)
        parts -= {"reconstruction", "rate_distortion", "groups", "latent_space"}
    if not evaluation.reads_bars:
        skipped |= dict.fromkeys(("teacher_forced_by_bar", "locality", "samples of a 4-gram model"), NO_BARS)
        parts -= {"teacher_forced"}
    results: dict[str, Any] = {
        "model": args.model,
        "model_type": model.config.model_type,
        "parameters": model.num_parameters(),
        "kl_weight": model.config.kl_weight if evaluation.has_latent else None,
        "latent_size": model.config.latent_size,
        "dataset": args.dataset,
        "split": args.split,
        "melodies": len(evaluation.melodies),
        "bars": BARS,
        "seed": args.seed,
    }
    floors = None
    if parts & {"likelihood", "latent_space", "samples"}:
        training_windows = choose_windows(args.dataset, "train", max(args.ngram_melodies, args.samples), args.seed)
        floors = Floors(processor, training_windows[: args.ngram_melodies])
    if "likelihood" in parts:
        results["likelihood"] = evaluation.likelihood(args.importance_samples)
        results["likelihood_floors"] = floors.likelihood(evaluation)
    if "reconstruction" in parts:
        results["free_running"] = evaluation.free_running()
    if "teacher_forced" in parts:
        results["teacher_forced_by_bar"] = evaluation.teacher_forced()
    if "rate_distortion" in parts:
        results["rate_distortion"] = {
            "decoder": evaluation.rate_distortion(),
            "models": other_models(args.rate_distortion, windows[: args.melodies], args),
        }
    if "groups" in parts:
        by_meter, *of_others = (
            windows_by_meter(dataset, args.split, args.melodies, args.seed, FEWEST_IN_GROUP, processor.can_read)
            for dataset in (args.dataset, *args.other_data)
        )
        others = {
            f"{Path(dataset).name}, {meter}": lines
            for dataset, found in zip(args.other_data, of_others, strict=True)
            for meter, lines in found.items()
        }
        results["groups"] = evaluation.groups(by_meter, others)
    if "latent_space" in parts:
        results.update(measure_latent_space(evaluation, floors, args))
    if "samples" in parts:
        index = index or index_split(args.dataset, "train", "lead")
        results["samples"] = measure_samples(evaluation, floors, index, windows, training_windows, args)
    if args.examples and evaluation.has_latent:
        results["examples"] = examples(evaluation, args.examples, "train", args.seed)
    if "leak" in parts:
        results["leak"] = leak(args.dataset, args.split)
        if results["leak"] is None:
            skipped["leak"] = "the data set is not a folder that dataset_script.build made"
    return {
        **results,
        **dict.fromkeys(set(skipped) - set(results)),
        "not_measured": skipped,
        "training": read_json(args.model, LOG_NAME),
        "data": read_json(args.dataset, "build.json"),
        "machine": describe_machine(),
        "seconds": time.perf_counter() - clock,
    }


def measure_latent_space(evaluation: Evaluation, floors: Floors, args: argparse.Namespace) -> dict[str, Any]:
    """Measure interpolation and locality, on pairs of melodies as they were drawn, not as they were sorted."""
    order = torch.randperm(len(evaluation.melodies), generator=torch.Generator().manual_seed(args.seed))
    space = LatentSpace(
        evaluation.model,
        evaluation.processor,
        evaluation.latent_mean[order],
        torch.cat([posterior.latent_log_variance for posterior in evaluation.posteriors])[order],
        bars=BARS,
        num_steps=STEPS,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    return {
        "interpolation": space.interpolation(args.pairs, POINTS, floors.price),
        "noise": space.noise(args.pairs),
        "locality": space.locality(max(args.pairs // 2, 2)) if evaluation.reads_bars else None,
    }


def measure_samples(
    evaluation: Evaluation,
    floors: Floors,
    index: OriginalityIndex,
    windows: list[dict],
    training_windows: list[dict],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Compare samples with the split's windows, beside a 4-gram model's (floor) and training windows (ceiling)."""
    reference = MelodySet(windows[: args.samples], BARS, STEPS)
    count = min(args.samples, SAMPLES_PER_WINDOW * len(reference.lines))
    lines = {
        "model": evaluation.sample(count, args.temperature),
        **({"floor: 4-gram": floors.sample(count, args.seed)} if evaluation.reads_bars else {}),
        "ceiling: train": training_windows[: args.samples],
    }
    sets = {name: MelodySet(each, BARS, STEPS) for name, each in lines.items()}
    found: dict[str, Any] = {
        name: quality(melodies, reference, index, args.seed, name) for name, melodies in sets.items()
    }
    # The split itself cannot be told from itself: only what does not compare it with itself is of use.
    found["split"] = {
        "melodies": len(reference.lines),
        "statistics": reference.statistics(),
        "form": reference.form_means(),
        "originality": copied(reference, index, args.seed, "Spans of the split"),
    }
    return {
        "sets": found,
        "distributions": distributions({**sets, "split": reference}),
        "index": index.about,
        "temperature": args.temperature,
        "sampling_noise": getattr(evaluation.model.config, "sampling_noise", None),
        "sampling_top_p": getattr(evaluation.model.config, "sampling_top_p", None),
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


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_args(argv)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    return run_command(evaluate, args)


def evaluate(args: argparse.Namespace) -> None:
    """Measure, write the results and sum them up.

    Raises:
        UserError: If an option is of no use.
    """
    for name, least in LIMITS.items():
        if vars(args)[name] < least:
            raise UserError(f"--{name} {vars(args)[name]}: must be at least {least}")
    output = Path(args.output)
    check_output(output)
    results = measure(args)
    write_json(results, output)
    print(f"{results['melodies']} melodies in {results['seconds'] / 60:.1f} minutes: {headline(results)}: {output}")


def headline(results: dict[str, Any]) -> str:
    """Sum up in one line what was measured."""
    said = []
    if likelihood := results.get("likelihood"):
        said.append(f"{likelihood['bits_per_note']:.2f} bits per note")
        if likelihood["kl_nats"] is not None:
            said.append(f"KL {likelihood['kl_nats']:.0f} nats")
    if free := results.get("free_running"):
        accuracy = free["step_accuracy"]
        said.append(f"free-running step accuracy {accuracy['accuracy']:.3f} (floor {accuracy['floor']:.3f})")
        said.append(f"note F1 {free['note_f1']['f1']:.3f}")
    if (samples := results.get("samples")) and (told := samples["sets"]["model"]["two_sample"]):
        said.append(f"samples told from melodies with AUC {told['auc']:.3f}")
    return ", ".join(said) or "done"


if __name__ == "__main__":
    sys.exit(main())
