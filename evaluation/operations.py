"""Measure what a model does when asked for something: `python -m evaluation.operations --model DIR --dataset DIR`.

Validity at a high temperature, conditions obeyed, variations against similarity, infill, seconds for a melody, pieces
of 64 bars, shifts of attributes; with them what `benchmarks.attention` measured of the model's attention. What is in
the output file already is not measured again, and several commands with other `--parts` may run beside each other on
one output file.
"""

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm
from transformers import AutoModel, AutoProcessor

from command import UserError, machine, run_command, write_json
from dataset_script.windows import section_notes
from evaluation.attribute_control import control, encode_lines
from evaluation.held_out import BARS, choose_windows
from modeling.line_writing_melody_vae import FIRST_CHARACTER, WORD_PREFIX
from modeling.melody_line_melody_vae import key_of, steps_per_bar, tempo_class
from modeling.note_editing_melody_vae import measure
from training.data import load_lines
from training.models import load_pretrained
from training.run_logger import LOG_NAME

AT_ONCE = 64
SIMILARITIES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
LONG_BARS = 64
TIMED = 8  # melodies
FEWEST_OF_GENRE = 15  # test melodies
PARTS = ("variations", "infill", "speed", "conditions", "genre", "long", "validity", "attributes")
OPTIONS = (
    "dataset",
    "samples",
    "bars",
    "melodies",
    "shifts",
    "guidance_scale",
    "probe_melodies",
)  # that figures depend on
DISTANCES = (1, 2, 4, 8, 16, 32)  # bars between two bars that are compared


def notes_of(line: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Return (onset, duration, pitch) of each note."""
    return list(zip(line["start"], line["duration"], line["pitch"], strict=True))


def is_valid(processor, ids: list[int], line: Mapping[str, Any], bars: int) -> bool:
    """Tell whether ids say exactly the notes of the line read from them, one at a time, in exactly so many bars."""
    tokens = processor.tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=True)
    named = [
        processor.remi[ord(character) - FIRST_CHARACTER]
        for token in tokens
        for character in token.removeprefix(WORD_PREFIX)
    ]
    ends = [start + duration for start, duration, _ in notes_of(line)]
    return (
        sum(token.startswith("Pitch") for token in named) == len(line["pitch"])
        and sum(token.startswith("Bar") for token in named) == line["bars"] == bars
        and all(end <= start for end, start in zip(ends, line["start"][1:], strict=False))
        and (not ends or ends[-1] <= bars * steps_per_bar(line))
    )


def note_distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Return 1 - F1 of the notes whose onset and pitch agree; 0 for two empty melodies."""
    first = {(start, pitch) for start, _, pitch in notes_of(one)}
    second = {(start, pitch) for start, _, pitch in notes_of(other)}
    total = len(first) + len(second)
    return 1 - 2 * len(first & second) / total if total else 0.0


def bar_similarity(line: Mapping[str, Any]) -> dict[int, float]:
    """Return, for each of `DISTANCES`, the mean share of onsets with equal pitch in two bars so far apart (Jaccard)."""
    bars, found = section_notes(line), {}
    for distance in DISTANCES:
        pairs = [(one, other) for one, other in zip(bars, bars[distance:], strict=False) if one or other]
        if pairs:
            found[distance] = float(np.mean([len(one & other) / len(one | other) for one, other in pairs]))
    return found


def mean_similarity(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return `bar_similarity` averaged over melodies."""
    each = [bar_similarity(line) for line in lines]
    return {
        str(distance): round(float(np.mean([of[distance] for of in each if distance in of])), 4)
        for distance in DISTANCES
        if any(distance in of for of in each)
    }


class Operations:
    """A model, its processor and what is measured of them.

    Args:
        model: From `AutoModel`.
        processor: From `AutoProcessor`.
    """

    def __init__(self, model, processor):
        self.model = model
        self.processor = processor

    def sample(self, count: int, seed: int, description: str, **asked) -> tuple[list[list[int]], list[dict]]:
        """Sample melodies in batches; returns ids and lines."""
        ids: list[list[int]] = []
        for at in tqdm(range(0, count, AT_ONCE), desc=description, unit=" batches", leave=False):
            ids += self.model.sample(min(AT_ONCE, count - at), seed=seed + at, **asked).tolist()
        return ids, self.processor.to_lines(ids)

    def validity(self, count: int, bars: int) -> dict[str, Any]:
        """Count invalid samples at temperature 1.5, and melodies outside a scale that was asked for."""
        ids, lines = self.sample(count, 0, "validity", bars=bars, temperature=1.5)
        valid = [is_valid(self.processor, row, line, bars) for row, line in zip(ids, lines, strict=True)]
        _, dorian = self.sample(count // 10, 1, "scale", bars=bars, temperature=1.5, scale="D dorian")
        outside = sum(any(pitch % 12 not in (2, 4, 5, 7, 9, 11, 0) for pitch in line["pitch"]) for line in dorian)
        return {
            "temperature": 1.5,
            "bars": bars,
            "samples": len(lines),
            "invalid": len(valid) - sum(valid),
            "samples_in_d_dorian": len(dorian),
            "outside_the_scale": outside,
        }

    def conditions(self, count: int, guidance_scale: float) -> dict[str, Any]:
        """Ask for keys and time signatures, which are read from the notes, for tempos and for numbers of bars."""
        found: dict[str, Any] = {"guidance_scale": guidance_scale}
        known = self.model.config.conditions
        # Keys and time signatures are read from the notes.
        for name, measured in (("key", key_of), ("time_signature", lambda line: line["time_signature"])):
            if name not in known:
                continue
            asked = [known[name][index % len(known[name])] for index in range(count)]
            found[name] = {"values": len(known[name]), "samples": count}
            for label, options in (("obeyed_at_once", {"max_attempts": 1}), ("obeyed", {})):
                obeyed = []
                for at in tqdm(range(0, count, AT_ONCE), desc=f"{name}, {label}", unit=" batches", leave=False):
                    values = asked[at : at + AT_ONCE]
                    ids = self.model.sample(
                        len(values), seed=at, conditions={name: values}, guidance_scale=guidance_scale, **options
                    )
                    lines = self.processor.to_lines(ids)
                    obeyed += [measured(line) == value for line, value in zip(lines, values, strict=True)]
                found[name][label] = round(float(np.mean(obeyed)), 4)
        tempos = [known["tempo"][index % len(known["tempo"])] for index in range(AT_ONCE)] if "tempo" in known else []
        if tempos:  # melodies have no tempo of their own: it is written into the score
            ids = self.model.sample(len(tempos), seed=0, conditions={"tempo": tempos}, guidance_scale=guidance_scale)
            scores = [
                self.processor.to_scores(row[None], tempo=tempo)[0] for row, tempo in zip(ids, tempos, strict=True)
            ]
            obeyed = [tempo_class(score.tempos[0].qpm) == tempo for score, tempo in zip(scores, tempos, strict=True)]
            found["tempo"] = {"values": len(known["tempo"]), "samples": len(tempos), "obeyed": float(np.mean(obeyed))}
        # Numbers of bars must be kept exactly.
        exact = [
            self.processor.to_lines(self.model.sample(4, seed=bars, bars=bars)) for bars in (1, 2, 5, 8, 16, 24, 32)
        ]
        counts = [line["bars"] for lines in exact for line in lines]
        wanted = [bars for bars in (1, 2, 5, 8, 16, 24, 32) for _ in range(4)]
        found["bars"] = {"samples": len(counts), "obeyed": float(np.mean(np.equal(counts, wanted)))}
        return found

    def genres(self, chosen: Mapping[str, Sequence[dict]], guidance_scale: float) -> dict[str, Any] | None:
        """Ask for genres, and let a classifier that knows the training melodies' attributes guess them.

        Genre is not in the notes as a key is: what the classifier makes of real test melodies is the ceiling.

        Args:
            chosen: Windows of `train` and `test`; those whose genre can be asked for and that the test split has
                `FEWEST_OF_GENRE` of count.
            guidance_scale: Of classifier-free guidance; 1 is none.

        Returns:
            Shares of melodies whose genre is guessed, as means over the genres; None where there are no two genres.
        """
        counts = Counter(line["genre"] for line in chosen["test"])
        names = [name for name in self.model.config.conditions.get("genre", []) if counts[name] >= FEWEST_OF_GENRE]
        if len(names) < 2:
            return None
        data = {split: [line for line in lines if line["genre"] in names] for split, lines in chosen.items()}
        classifier = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
        classifier.fit(measure(data["train"]).numpy(), [line["genre"] for line in data["train"]])

        def recall(lines: Sequence[Mapping[str, Any]], genres: Sequence[str]) -> float:
            return round(float(balanced_accuracy_score(genres, classifier.predict(measure(lines).numpy()))), 4)

        asked = [names[index % len(names)] for index in range(AT_ONCE * len(names))]
        lines = []
        for at in tqdm(range(0, len(asked), AT_ONCE), desc="genre", unit=" batches", leave=False):
            values = asked[at : at + AT_ONCE]
            ids = self.model.sample(len(values), seed=at, conditions={"genre": values}, guidance_scale=guidance_scale)
            lines += self.processor.to_lines(ids)
        return {
            "genres": names,
            "samples": len(asked),
            "guessed": recall(lines, asked),
            "guessed_of_test_melodies": recall(data["test"], [line["genre"] for line in data["test"]]),
            "test_melodies": len(data["test"]),
            "by_chance": round(1 / len(names), 4),
        }

    def variations(self, melodies: Sequence[dict], each: int) -> dict[str, float]:
        """Return the mean distance of variations from the reconstruction, by similarity."""
        latents = encode_lines(self.model, self.processor, melodies).to(self.model.device)
        found = {}
        originals = self.processor.to_lines(self.model.decode(latents, bars=BARS))
        for similarity in tqdm(SIMILARITIES, desc="variations", leave=False):
            distances = [
                note_distance(original, line)
                for latent, original in zip(latents, originals, strict=True)
                for line in self.processor.to_lines(
                    self.model.vary(latent, n=each, similarity=similarity, seed=0, bars=BARS)
                )
            ]
            found[str(similarity)] = round(float(np.mean(distances)), 4)
        return found

    def infills(self, melodies: Sequence[dict], bars: Sequence[int]) -> dict[str, Any]:
        """Fill bars; count the melodies whose other bars changed, and compare what was filled with what was there."""
        changed = same = 0
        seams: list[list[int]] = [[], []]
        notes, silent = [0, 0], 0
        for at in tqdm(range(0, len(melodies), AT_ONCE), desc="infill", leave=False):
            batch = self.processor(lines=melodies[at : at + AT_ONCE], return_tensors="pt").to(self.model.device)
            before = self.processor.to_lines(batch["input_ids"])
            after = self.processor.to_lines(self.model.infill(**batch, bars=list(bars), seed=at))
            for pair in zip(before, after, strict=True):
                kept, filled = [], []
                # Before and after: bars that stay, bars that are filled, jumps between the two.
                for which, line in enumerate(pair):
                    of_bar = [note[0] // steps_per_bar(line) for note in notes_of(line)]
                    kept.append([note for note, bar in zip(notes_of(line), of_bar, strict=True) if bar not in bars])
                    filled.append([bar for bar in of_bar if bar in bars])
                    notes[which] += len(filled[-1])
                    crosses = [(left in bars) != (right in bars) for left, right in pairwise(of_bar)]
                    jumps = [abs(right - left) for left, right in pairwise(line["pitch"])]
                    seams[which] += [jump for jump, at_seam in zip(jumps, crosses, strict=True) if at_seam]
                changed += kept[0] != kept[1]
                same += notes_of(pair[0]) == notes_of(pair[1])
                silent += len(set(filled[0]) - set(filled[1]))
        return {
            "melodies": len(melodies),
            "bars": list(bars),
            "other_bars_changed": changed,
            "nothing_changed": same,
            "silenced_bars": silent,
            "notes_per_note_replaced": round(notes[1] / max(1, notes[0]), 3),
            "semitones_at_seams": round(float(np.mean(seams[1])), 2) if seams[1] else None,
            "semitones_at_seams_before": round(float(np.mean(seams[0])), 2) if seams[0] else None,
        }

    def long_pieces(self, count: int, dataset: str) -> dict[str, Any]:
        """Sample pieces of 64 bars, and compare their bars' likeness against distance with that of the data's."""
        began = time.perf_counter()
        lines = self.processor.to_lines(self.model.sample(count, seed=0, bars=LONG_BARS, time_signature="4/4"))
        seconds = time.perf_counter() - began
        data = load_lines(dataset, "test", "lead").filter(
            lambda bars, signature: bars >= LONG_BARS and signature == "4/4", input_columns=["bars", "time_signature"]
        )
        return {
            "bars": LONG_BARS,
            "samples": len(lines),
            "seconds_each": round(seconds / count, 2),
            "bar_pair_similarity": mean_similarity(lines),
            "bar_pair_similarity_of_test_lines": mean_similarity([dict(line) for line in data]),
            "test_lines": len(data),
        }

    def speed(self, melodies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Time one new melody as long as a latent, and the way of others through the latent and back, one at a time."""
        bars = self.model.config.max_bars

        def reconstruct(index: int) -> None:
            batch = self.processor(lines=[melodies[index]], return_tensors="pt")
            self.processor.to_lines(self.model.reconstruct(**batch))

        tasks = {"sample": lambda index: self.model.sample(1, seed=index, bars=bars), "reconstruct": reconstruct}
        median = {}
        for name, task in tasks.items():
            task(0)  # warms up
            seconds = []
            for index in range(len(melodies)):
                began = time.perf_counter()
                task(index)
                seconds.append(time.perf_counter() - began)
            median[f"{name}_seconds"] = round(statistics.median(seconds), 3)
        return {"bars": bars, "melodies": len(melodies), "threads": torch.get_num_threads(), **median}


def read_log(model: str) -> dict[str, Any] | None:
    """Return what `train.py` noted of a model's training, its curve left out; None if it lies elsewhere."""
    path = Path(model) / LOG_NAME
    if not path.is_file():
        return None
    log = json.loads(path.read_text(encoding="utf-8"))
    return {name: log[name] for name in ("melodies_seen", "seconds", "arguments") if name in log}


def read_attention(path: Path) -> dict[str, Any]:
    """Return what a report of `benchmarks.attention` says of cost, memory and exactness."""
    report = json.loads(path.read_text(encoding="utf-8"))
    return {name: report[name] for name in ("worst_ratio", "largest_difference", "memory_mib", "targets", "machine")}


def fingerprint(model: torch.nn.Module) -> str:
    """Hash a model's weights: figures of other weights do not go into one report."""
    hashed = hashlib.blake2b(digest_size=8)
    for name, weights in sorted(model.state_dict().items()):
        hashed.update(name.encode() + weights.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what the report lacks, and write it after each part.

    Raises:
        UserError: If the report is of another model or other options, or the model cannot do what is measured.
    """
    # What is measured, and what its figures depend on.
    model = load_pretrained(AutoModel, options.model).eval()
    operations = Operations(model, load_pretrained(AutoProcessor, options.model))
    sizes = {"train": options.probe_melodies} | dict.fromkeys(("validation", "test"), options.probe_melodies // 8)
    chosen = {name: choose_windows(options.dataset, name, size, 0) for name, size in sizes.items()}
    melodies = chosen["test"][: options.melodies]
    settings = {
        "model": {
            "name": Path(options.model).name,
            "weights": fingerprint(model),
            "parameters": sum(each.numel() for each in model.parameters()),
            "num_prior_layers": model.config.num_prior_layers,
            "training": read_log(options.model),
        },
        "options": {name: getattr(options, name) for name in OPTIONS},
    }
    measures: dict[str, Callable[[], Any]] = {
        "variations": lambda: operations.variations(melodies[:16], 4),
        "infill": lambda: operations.infills(melodies, (4, 5, 10)),
        "speed": lambda: operations.speed(melodies[:TIMED]),
        "conditions": lambda: operations.conditions(3 * options.melodies, options.guidance_scale),
        "genre": lambda: operations.genres(
            {split: choose_windows(options.dataset, split, sys.maxsize, 0) for split in ("train", "test")},
            options.guidance_scale,
        ),
        "long": lambda: operations.long_pieces(64, options.dataset),
        "validity": lambda: operations.validity(options.samples, options.bars),
        "attributes": lambda: control(model, operations.processor, chosen, options.shifts),
    }
    # Only what is missing, each part written as soon as it is there.
    report = read_report(options.output, settings)
    for part in tqdm([part for part in options.parts if part not in report], desc="parts", unit="part"):
        found = measures[part]()
        report = read_report(options.output, settings)  # again: other parts may have been measured beside this one
        report |= {part: found} | settings | {"attention": read_attention(options.attention), "machine": machine()}
        write_json(report, options.output)
    return report


def read_report(output: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Read what was measured so far.

    Raises:
        UserError: If it was measured of another model, or with other options.
    """
    report = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    if report and {name: report.get(name) for name in settings} != settings:
        raise UserError(f"{output}: of another model or other options; give another --output, or remove it")
    return report


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.operations", description=__doc__)
    parser.add_argument("--model", required=True, help="folder or Hub id of the model")
    parser.add_argument("--dataset", required=True, help="folder or Hub id of the data set")
    parser.add_argument("--output", type=Path, default=Path("results/model.json"), help="the report to write")
    parser.add_argument("--samples", type=int, default=10_000, help="samples whose validity is checked")
    parser.add_argument("--bars", type=int, default=4, help="bars of these samples")
    parser.add_argument(
        "--melodies", type=int, default=64, help="test melodies to vary and fill, samples per condition"
    )
    parser.add_argument("--shifts", type=int, default=32, help="test melodies to shift by every attribute, both ways")
    parser.add_argument("--guidance_scale", type=float, default=2.0, help="of classifier-free guidance; 1 is none")
    parser.add_argument("--probe_melodies", type=int, default=8000, help="training windows for the attributes' probe")
    parser.add_argument(
        "--attention", type=Path, default=Path("results/attention.json"), help="report of benchmarks.attention"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    options = parser.parse_args(arguments)
    return run_command(lambda: print(json.dumps(measure_all(options), indent=1)))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
