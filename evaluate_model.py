"""Measure a trained model on held-out melodies; writes the JSON that every published number comes from."""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

import datasets
import torch
import transformers
from tqdm.auto import tqdm
from transformers import AutoModel, AutoProcessor

from dataset_script.build import machine
from dataset_script.windows import windows
from evaluation.bits_per_note.bits_per_note import bits_per_note
from evaluation.note_f1.note_f1 import note_f1
from evaluation.step_accuracy.step_accuracy import step_accuracy
from modeling.modeling_melody_vae import reconstruction_nats
from train import ACTIVE_UNIT_VARIANCE, LOG_NAME, UserError, load_lines, load_pretrained

BARS = 16
STEPS = 256  # 16 bars of 4/4 in sixteenths, MusicVAE's grid


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Measure how well a model reconstructs and predicts melodies that it has not been trained on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="folder or Hub id of the trained model")
    parser.add_argument("--dataset", required=True, help="folder or Hub id of the melodies")
    parser.add_argument("--output", required=True, help="JSON file to write")
    parser.add_argument("--split", default="test", help="split to measure on")
    parser.add_argument("--num_melodies", type=int, default=512, help="16-bar windows in 4/4 to measure on, at most")
    parser.add_argument("--importance_samples", type=int, default=16, help="latents per melody in the tighter bound")
    parser.add_argument("--batch_size", type=int, default=64, help="melodies at a time")
    parser.add_argument("--seed", type=int, default=0, help="chooses the melodies and the latents")
    return parser.parse_args(argv)


def choose_windows(dataset: str, split: str, count: int, seed: int) -> list[dict]:
    """Draw non-overlapping 16-bar windows in 4/4 from the lead lines of a split.

    Raises:
        UserError: If the split has none.
    """
    lines = load_lines(dataset, split, "lead")
    lines = lines.filter(
        lambda signature, bars, steps: signature == "4/4" and bars >= BARS and steps == STEPS // BARS // 4,
        input_columns=["time_signature", "bars", "steps_per_beat"],
        desc="Choosing lines",
    )
    chosen = [window for line in lines for window in windows(line, bars=BARS, stride=BARS)]
    if not chosen:
        raise UserError(f"{dataset}: no lead line of {BARS} bars in 4/4 in split '{split}'")
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return [chosen[index] for index in order]


def log_normal(value: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Log-density of a diagonal Gaussian, summed over the last dimension."""
    squared = (value - mean).square() / log_variance.exp()
    return -0.5 * (squared + log_variance + math.log(2 * math.pi)).sum(-1)


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
        self.melodies = melodies
        self.generator = torch.Generator(model.device).manual_seed(seed)
        melodies.sort(key=lambda melody: len(melody["pitch"]))  # like lengths pad little
        self.batches = []
        self.posteriors = []
        for first in range(0, len(melodies), batch_size):
            batch = processor(lines=melodies[first : first + batch_size], return_tensors="pt").to(model.device)
            self.batches.append(batch)
            self.posteriors.append(model.encode(**batch))
        self.notes = [len(melody["pitch"]) for melody in melodies]

    def nats(self, batch: dict, latent: torch.Tensor) -> torch.Tensor:
        """Return -log p(x|z) of each melody of a batch, `(B,)`."""
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return reconstruction_nats(self.model(**batch, latent=latent, use_cache=False).logits, labels)

    def likelihood(self, importance_samples: int) -> dict:
        """Measure the ELBO with one latent per melody, and the importance-weighted bound (arXiv:1509.00519)."""
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
        zeros = [0.0] * len(self.notes)
        measured = bits_per_note(torch.cat(reconstruction).tolist(), torch.cat(kl).tolist(), self.notes)
        tighter = bits_per_note(torch.cat(bound).tolist(), zeros, self.notes)
        means = torch.cat([posterior.latent_mean for posterior in self.posteriors])
        return {
            **measured,
            "importance_weighted_bits_per_note": tighter["bits_per_note"],
            "importance_samples": importance_samples,
            "reconstruction_nats": torch.cat(reconstruction).mean().item(),
            "kl_nats": torch.cat(kl).mean().item(),
            "active_units": int((means.var(0) > ACTIVE_UNIT_VARIANCE).sum()),
        }

    def free_running(self) -> dict:
        """Reconstruct from the posterior's mean and compare; note F1's floor is that of another melody's notes."""
        lines = []
        for posterior in tqdm(self.posteriors, desc="Reconstructing"):
            lines += self.processor.to_lines(self.model.decode(posterior.latent_mean, bars=BARS))
        others = lines[1:] + lines[:1]
        return {
            "step_accuracy": step_accuracy(lines, self.melodies, STEPS),
            "note_f1": note_f1(lines, self.melodies, STEPS),
            "note_f1_floor": note_f1(others, self.melodies, STEPS)["f1"],
        }

    def teacher_forced(self) -> dict:
        """Decode each bar from the latent and the true bars before it, and compare the steps."""
        lines = []
        progress = tqdm(total=len(self.melodies), desc="Teacher-forced")
        is_bar_token = self.model.is_bar_token
        for batch, posterior in zip(self.batches, self.posteriors, strict=True):
            for row, mean in zip(batch["input_ids"], posterior.latent_mean, strict=True):
                openings = is_bar_token[row].nonzero().flatten().tolist()
                prefixes = [row[:opening] for opening in openings]
                padded = torch.full((len(prefixes), openings[-1]), self.model.config.pad_token_id, device=row.device)
                for prefix, target in zip(prefixes, padded, strict=True):
                    target[len(target) - len(prefix) :] = prefix
                ids = self.model.generate(
                    padded,
                    attention_mask=(padded != self.model.config.pad_token_id).long(),
                    latent=mean.expand(len(prefixes), -1),
                    bars=torch.arange(1, len(prefixes) + 1, device=row.device),
                    do_sample=False,
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
        return {"step_accuracy": step_accuracy(lines, self.melodies, STEPS)}

    @staticmethod
    def join_bars(lines: list[dict]) -> dict:
        """Make one melody of the first line's first bar, the second line's second, and so on."""
        bar = STEPS // BARS
        notes = [
            (start, duration, pitch)
            for index, line in enumerate(lines)
            for pitch, start, duration in zip(line["pitch"], line["start"], line["duration"], strict=True)
            if index * bar <= start < (index + 1) * bar
        ]
        ends = [*(start for start, _, _ in notes), STEPS][1:]
        return {
            "pitch": [pitch for _, _, pitch in notes],
            "start": [start for start, _, _ in notes],
            "duration": [min(duration, end - start) for (start, duration, _), end in zip(notes, ends, strict=False)],
        }


def read_json(folder: str, name: str) -> dict | None:
    """Read a JSON file of a local folder, if there is one."""
    path = Path(folder) / name
    return json.loads(path.read_text()) if path.is_file() else None


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


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict:
    """Compute everything that the command writes."""
    clock = time.perf_counter()
    model, processor = load(args.model)
    melodies = choose_windows(args.dataset, args.split, args.num_melodies, args.seed)
    evaluation = Evaluation(model, processor, melodies, args.batch_size, args.seed)
    training = read_json(args.model, LOG_NAME)
    return {
        "model": args.model,
        "parameters": model.num_parameters(),
        "dataset": args.dataset,
        "split": args.split,
        "melodies": len(melodies),
        "bars": BARS,
        "seed": args.seed,
        "likelihood": evaluation.likelihood(args.importance_samples),
        "free_running": evaluation.free_running(),
        "teacher_forced_by_bar": evaluation.teacher_forced(),
        "training": training,
        "data": read_json(args.dataset, "build.json"),
        "machine": describe_machine(),
        "seconds": time.perf_counter() - clock,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_args(argv)
    torch.set_num_threads(os.cpu_count() or 1)
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        results = measure(args)
    except UserError as error:
        print(f"evaluate_model.py: {error}", file=sys.stderr)
        return 2
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1) + "\n")
    free, likelihood = results["free_running"], results["likelihood"]
    print(
        f"{results['melodies']} melodies: {likelihood['bits_per_note']:.2f} bits per note, "
        f"KL {likelihood['kl_nats']:.0f} nats; free-running step accuracy {free['step_accuracy']['accuracy']:.3f} "
        f"(floor {free['step_accuracy']['floor']:.3f}), note F1 {free['note_f1']['f1']:.3f}: {output}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
