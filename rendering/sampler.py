"""Play notes with the sampled instruments that the Space's page plays too: the same samples, levels and envelopes.

`space/static/instruments/` has them, cut out of a sound font by `rendering/make_instruments.py`. A note takes the
sample whose root is nearest, read faster or slower by linear interpolation, as browsers do; it rises in a straight
line for `attack` seconds, falls exponentially, 100 dB in `decay` seconds, to `sustain`, and 60 dB in `release` seconds.
"""

import json
import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

try:
    import soundfile
except (ImportError, OSError):  # optional; it brings libsndfile, which reads FLAC
    soundfile = None

HERE = Path(__file__).resolve().parent
FOLDER = next(
    (folder for folder in (HERE.parent / "space/static/instruments", Path(__file__).parent / "static/instruments")
     if folder.is_dir()),
    None,
)  # fmt: skip
DECAY_DECIBELS = 100.0
RELEASE_FALL = math.log(1000)  # 60 dB


class Sounding(NamedTuple):
    """A note in seconds; `program` is a General MIDI program, `level` its loudness from 0 to 1."""

    start: float
    duration: float
    pitch: int
    program: int
    level: float = 1.0


def is_available() -> bool:
    """Whether the samples and what reads them are installed."""
    return soundfile is not None and FOLDER is not None


@lru_cache
def load_samples() -> dict[int, list[dict[str, Any]]]:
    """Read what is said of each program's samples."""
    assert FOLDER is not None
    read = json.loads((FOLDER / "samples.json").read_text(encoding="utf-8"))
    return {int(program): samples for program, samples in read.items()}


@lru_cache
def load_sound(program: int) -> tuple[np.ndarray, int]:
    """Read a program's samples, one after the other; and their rate in hertz."""
    assert soundfile is not None
    assert FOLDER is not None
    return soundfile.read(FOLDER / f"{program}.flac", dtype="float64")


def nearest_program(program: int) -> int:
    """Find the instrument for a General MIDI program: its own, else one of its family, else the piano."""
    programs = sorted(load_samples())
    return next((each for each in [program, *programs] if each in programs and each // 8 == program // 8), 0)


def play_note(note: Sounding, sample_rate: int) -> np.ndarray:
    """Play one note, held and released; mono."""
    program = nearest_program(note.program)
    sample = min(load_samples()[program], key=lambda each: abs(each["root"] - note.pitch))
    sound, rate = load_sound(program)
    time = np.arange(math.ceil((note.duration + sample["release"]) * sample_rate)) / sample_rate
    place = time * 2 ** ((note.pitch - sample["root"]) / 12)  # seconds of the sample
    if "loop" in sample:
        low, high = sample["loop"]
        place = np.where(place < high, place, low + (place - high) % (high - low))
    else:
        place, time = place[place < sample["seconds"]], time[: np.count_nonzero(place < sample["seconds"])]
    audio = np.interp((sample["at"] + place) * rate, np.arange(len(sound)), sound)
    return audio * envelope(sample, time, note.duration) * sample["level"] * note.level


def envelope(sample: dict[str, Any], time: np.ndarray, held: float) -> np.ndarray:
    """Return the loudness at each time, in seconds, of a note that is held for so long."""
    falling = np.maximum(time - sample["attack"], 0)
    fall = DECAY_DECIBELS / 20 * math.log(10) / sample["decay"]
    level = np.minimum(time / sample["attack"], 1) * np.maximum(np.exp(-fall * falling), sample["sustain"])
    return level * np.exp(-np.maximum(time - held, 0) * RELEASE_FALL / sample["release"])


def play(notes: Iterable[Sounding], seconds: float, sample_rate: int) -> np.ndarray:
    """Play notes together; mono float of shape (samples,), cut after `seconds`."""
    audio = np.zeros(round(seconds * sample_rate))
    for note in notes:
        sound = play_note(note, sample_rate)
        first = round(note.start * sample_rate)
        sound = sound[: max(len(audio) - first, 0)]
        audio[first : first + len(sound)] += sound
    return audio
