"""A model measured on held-out melodies: likelihood, rate and distortion, reconstruction, samples."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from evaluation.held_out import BARS, STEPS
from evaluation.intervals import ratio_interval
from evaluation.reconstruction import Line, by_group, compare, density_groups, openings_of, summary
from metrics.bits_per_note.bits_per_note import bits_per_note
from metrics.note_f1.note_f1 import note_f1
from metrics.perplexity.perplexity import perplexity
from metrics.step_accuracy.step_accuracy import step_accuracy
from modeling.melody_line_melody_vae import steps_per_bar
from modeling.modeling_melody_vae import reconstruction_nats
from training.validation import ACTIVE_UNIT_VARIANCE, nats_without_latent

STEPS_PER_BAR = STEPS // BARS
TEMPERINGS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)  # 1 / beta
SHORTER_BARS = (1, 2, 4, 8)
Way = Callable[[Sequence[Line], int], list[dict]]
"""Gives melodies of so many bars back, or of their first ones."""


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
        return reconstruction_nats(self.model(**batch, latent=latent, use_cache=False).logits, self.labels_of(batch))

    def labels_of(self, batch: dict) -> torch.Tensor:
        """Return the tokens to predict, `(B, T)`: -100 at padding, and in bars that the grammar copies."""
        ids = batch["input_ids"]
        labels = ids.masked_fill(batch["attention_mask"] == 0, -100)
        if getattr(self.model.config, "repeat_token_ids", None):  # a baseline copies none
            labels = labels.masked_fill(self.model._copied_tokens(ids), -100)
        return labels

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
            nats.append(nats_without_latent(self.model, batch, self.labels_of(batch)))
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
        """The melodies decoded greedily from their posterior's mean alone, without a teacher."""
        lines = []
        for posterior in tqdm(self.posteriors, desc="Decoding"):
            lines += self.processor.to_lines(self.model.decode(posterior.latent_mean, bars=BARS))
        return lines

    @cached_property
    def reconstructed(self) -> list[dict]:
        """The melodies decoded under their own conditions as well, as `reconstruct` does without refinement."""
        lines = []
        for batch in tqdm(self.batches, desc="Reconstructing"):
            lines += self.processor.to_lines(self.model.reconstruct(**batch, refinement_steps=0))
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

    def own_conditions(self) -> dict:
        """Reconstruct as `reconstruct` does without refinement, under the melodies' own conditions, and compare."""
        return compare(self.reconstructed, self.melodies, STEPS, self.seed)

    def refined(self) -> dict:
        """Reconstruct from refined latents, as `reconstruct` does by default, and compare."""
        lines = []
        for batch in tqdm(self.batches, desc="Refining"):
            lines += self.processor.to_lines(self.model.reconstruct(**batch))
        by_density = by_group(lines, self.melodies, density_groups(self.melodies), STEPS)
        return {**compare(lines, self.melodies, STEPS, self.seed), "by_density": by_density}

    def reconstruct(self, lines: Sequence[Line], bars: int) -> list[dict]:
        """Reconstruct melodies of `bars` bars, or their first `bars`, under their own conditions."""
        decoded = []
        for part in self.divide(lines):
            batch = self.prepare(part, bars=bars)
            decoded += self.processor.to_lines(self.model.reconstruct(**batch, refinement_steps=0))
        return decoded

    def decode(self, lines: Sequence[Line], bars: int) -> list[dict]:
        """Decode melodies likewise from their posterior's mean alone."""
        decoded = []
        for part in self.divide(lines):
            latent = self.model.encode(**self.prepare(part, bars=bars)).latent_mean
            own_bars = torch.tensor([min(line["bars"], bars) for line in part], device=latent.device)
            decoded += self.processor.to_lines(self.model.decode(latent, bars=own_bars))
        return decoded

    def divide(self, lines: Sequence[Line]) -> list[Sequence[Line]]:
        """Divide lines into batches."""
        return [lines[first : first + self.batch_size] for first in range(0, len(lines), self.batch_size)]

    def each(self, kinds: dict[str, list[dict]], way: Way, description: str) -> dict[str, Any]:
        """Measure a way of giving back kinds of windows: 16 bars or fewer, those of a kind in one meter."""
        found = {}
        for kind, lines in tqdm(kinds.items(), desc=description):
            steps = max(line["bars"] for line in lines) * steps_per_bar(lines[0])
            found[kind] = summary(way(lines, BARS), lines, steps, self.seed)
        return found

    def groups(
        self, by_meter: dict[str, list[dict]], others: dict[str, list[dict]], own_conditions: bool = False
    ) -> dict[str, Any]:
        """Measure reconstruction by length, density, genre, meter and origin, free-running.

        Args:
            by_meter: Windows of each time signature, of 16 bars or fewer.
            others: Windows of other data sets, likewise.
            own_conditions: Whether the melody decoder is conditioned on what the melodies are like, as in
                `reconstruct`, or reads latents alone.
        """
        way, given = (self.reconstruct, self.reconstructed) if own_conditions else (self.decode, self.decoded)
        lengths = {}
        for bars in tqdm(SHORTER_BARS, desc="Lengths"):
            steps = bars * STEPS_PER_BAR
            if openings := openings_of(self.melodies, bars, steps):
                lengths[str(bars)] = summary(way(openings, bars), openings, steps, self.seed)
        lengths[str(BARS)] = summary(given, self.melodies, STEPS, self.seed)
        return {
            "by_bars": lengths,
            "by_density": by_group(given, self.melodies, density_groups(self.melodies), STEPS),
            "by_genre": by_group(given, self.melodies, lambda line: line["genre"], STEPS),
            "by_time_signature": self.each(by_meter, way, "Time signatures"),
            "by_data_set": self.each(others, way, "Other data"),
        }

    def teacher_forced(self) -> dict:
        """Decode each bar from the latent, if there is one, and the true bars before it, and compare the steps.

        Whether a bar repeats an earlier one is the model's to find: the token that says so belongs to the bar.
        """
        lines = []
        progress = tqdm(total=len(self.melodies), desc="Teacher-forced")
        is_bar_token, repeats = self.model.is_bar_token, getattr(self.model.config, "repeat_token_ids", [])
        means = [posterior.latent_mean for posterior in self.posteriors] or [
            [None] * len(b["input_ids"]) for b in self.batches
        ]
        # Each bar is a row of its own, with the true bars before it as a prefix.
        for batch, latents in zip(self.batches, means, strict=True):
            for padded_row, mask, mean in zip(batch["input_ids"], batch["attention_mask"], latents, strict=True):
                row = padded_row[mask.bool()]
                openings = is_bar_token[row].nonzero().flatten().tolist()
                beginnings = [place - (int(row[place - 1]) in repeats) for place in openings]
                prefixes = [row[:beginning] for beginning in beginnings]
                padded = torch.full((len(prefixes), openings[-1]), self.model.config.pad_token_id, device=row.device)
                for prefix, target in zip(prefixes, padded, strict=True):
                    target[len(target) - len(prefix) :] = prefix
                given = {} if mean is None else {"latent": mean.expand(len(prefixes), -1)}
                ids = self.model.generate(
                    padded,
                    attention_mask=(padded != self.model.config.pad_token_id).long(),
                    bars=torch.arange(1, len(prefixes) + 1, device=row.device),
                    do_sample=False,
                    **given,
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
        # Means and intervals over melodies.
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
