"""What one sees and hears of a run while it goes on: trackers, the clock, samples and reconstructions."""

import argparse
import importlib.util
import time
import wave
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator

from command import UserError
from rendering.piano_roll import agreement, describe, write_piano_roll
from rendering.sound import play, write_wav

T = TypeVar("T")

PROJECT = "melody-vae"
LISTENING = "listening"  # folder of samples and reconstructions in the run's


class Stopwatch:
    """Measures what training takes, evaluations and checkpoints left out, and how much of it is waiting for data.

    Args:
        seconds: That an earlier part of the run took.

    Attributes:
        waiting: Seconds that `watch` waited for batches.
    """

    def __init__(self, seconds: float = 0.0):
        self.before = seconds
        self.began = time.perf_counter()
        self.waiting = 0.0

    @property
    def training(self) -> float:
        """Seconds of training so far, waiting included."""
        return self.before + time.perf_counter() - self.began

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """Hand on batches, and measure how long each is waited for."""
        began = time.perf_counter()
        for batch in batches:
            self.waiting += time.perf_counter() - began
            yield batch
            began = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens inside."""
        self.before = self.training
        yield
        self.began = time.perf_counter()


class Means:
    """Means of what steps return, without waiting for a GPU at each of them."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}
        self.count = 0

    def add(self, **values: torch.Tensor | None) -> None:
        """Add the scalars of a batch; None is left out."""
        for name, value in values.items():
            if value is not None:
                self.sums[name] = self.sums.get(name, 0) + value.detach().float()
        self.count += 1

    def take(self) -> dict[str, float]:
        """Return the means, and begin anew."""
        means = {name: total.item() / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


class Rates:
    """Melodies per second and the share of time waiting for data, since the last time they were asked for.

    Args:
        stopwatch: Of the run.
        melodies: Seen so far.
    """

    def __init__(self, stopwatch: Stopwatch, melodies: int):
        self.stopwatch = stopwatch
        self.before = stopwatch.training, stopwatch.waiting, melodies

    def take(self, melodies: int) -> dict[str, float]:
        """Return the rates, given the melodies seen so far."""
        now = self.stopwatch.training, self.stopwatch.waiting, melodies
        seconds, waiting, seen = (new - old for new, old in zip(now, self.before, strict=True))
        self.before = now
        return {"melodies_per_second": seen / max(seconds, 1e-9), "waiting_for_data": waiting / max(seconds, 1e-9)}


@dataclass(frozen=True)
class Take:
    """A melody on disk: a sample, or an original with its reconstruction.

    Attributes:
        name: Such as `sample-1`.
        sound: WAV file; a reconstruction's is the reconstruction.
        picture: PNG file, a comparison for reconstructions.
        text: What there is to see.
    """

    name: str
    sound: Path
    picture: Path
    text: str


def trackers_of(report_to: str) -> list[str]:
    """Names of the trackers to start.

    Raises:
        UserError: If one was asked for by name and is not installed.
    """
    names = {"none": (), "all": ("tensorboard", "trackio")}.get(report_to, (report_to,))
    installed = [name for name in names if importlib.util.find_spec(name)]
    if report_to not in ("none", "all") and not installed:
        raise UserError(f"--report_to {report_to}: not installed; pip install {report_to}")
    return installed


def start_trackers(accelerator: Accelerator, args: argparse.Namespace) -> None:
    """Start the trackers that the accelerator was made with; a run that is resumed goes on in the same curves."""
    config = {name: value for name, value in vars(args).items() if isinstance(value, bool | int | float | str)}
    run = Path(args.output_dir).resolve().name
    accelerator.init_trackers(
        PROJECT, config, init_kwargs={"trackio": {"name": run, "resume": "allow", "embed": False}}
    )


def show(accelerator: Accelerator, takes: list[Take], step: int) -> None:
    """Hand sounds and pictures to the trackers."""
    for tracker in accelerator.trackers:
        for take in takes:
            if tracker.name == "tensorboard":
                from matplotlib.image import imread

                writer: Any = tracker.tracker
                samples, rate = read_wav(take.sound)
                writer.add_audio(take.name, samples[None], step, rate)
                writer.add_image(take.name, imread(take.picture)[..., :3], step, dataformats="HWC")
            elif tracker.name == "trackio":
                import trackio

                media = {
                    f"{take.name}/sound": trackio.Audio(take.sound, caption=take.text),
                    f"{take.name}/picture": trackio.Image(take.picture, caption=take.text),
                }
                tracker.log(media, step=step)


def read_wav(path: Path) -> tuple[np.ndarray, int]:
    """Read mono 16-bit PCM as float32 within [-1, 1], and its sample rate."""
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
        return (samples / 32768).astype(np.float32), file.getframerate()


@torch.no_grad()
def listen(model, processor, originals: dict[str, torch.Tensor], folder: Path, seed: int) -> list[Take]:
    """Write samples and reconstructions, the same ones at each evaluation, so that one hears the model learn.

    Args:
        model: In any mode; training's random state is left alone.
        processor: Writes scores.
        originals: `input_ids` and `attention_mask` `(B, T)` of melodies to reconstruct; as many samples are drawn.
        folder: Made if it is not there.
        seed: Of the samples.
    """
    was_training = model.training
    model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    count = len(originals["input_ids"])
    takes = [
        record(folder, f"sample-{number}", [score])
        for number, score in enumerate(processor.to_scores(model.sample(count, seed=seed)), start=1)
    ]
    if model.config.latent_size:
        pairs = zip(
            processor.to_scores(originals["input_ids"]),
            processor.to_scores(model.reconstruct(**originals, refinement_steps=0)),
            strict=True,
        )
        takes += [record(folder, f"reconstruction-{number}", list(pair)) for number, pair in enumerate(pairs, start=1)]
    model.train(was_training)
    return takes


def record(folder: Path, name: str, scores: list) -> Take:
    """Write the last of one or two scores as MIDI and WAV, and a piano roll of it, or of both compared."""
    score = scores[-1]
    score.dump_midi(str(folder / f"{name}.mid"))
    write_wav(folder / f"{name}.wav", play(score))
    text = describe(score)
    if len(scores) == 2:
        scores[0].dump_midi(str(folder / f"{name}-original.mid"))
        write_wav(folder / f"{name}-original.wav", play(scores[0]))
        verdicts = agreement(*scores)
        text = f"{sum(verdicts[0])} of {len(verdicts[0])} notes came back with the same onset and pitch"
    write_piano_roll(folder / f"{name}.png", scores, compare=len(scores) == 2)
    return Take(name, folder / f"{name}.wav", folder / f"{name}.png", text)
