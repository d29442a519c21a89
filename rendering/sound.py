"""Melody to sound: the sampled instruments of the Space, or a small additive synthesiser where they cannot be read.

The synthesiser needs nothing but numpy. Its tone is a plucked electric piano: a few harmonics that fade the faster the
higher they are, a 5 ms attack, a damper that closes within `RELEASE_SECONDS`. Partials from the Nyquist frequency on
are left out.
"""

import wave
from pathlib import Path
from typing import Any, cast

import numpy as np
from symusic.types import Score

from rendering import sampler

RELEASE_SECONDS = 0.25
ATTACK_SECONDS = 0.005
PEAK = 0.89  # about -1 dBFS, the loudest sample of any sound that is not silent
A4_HERTZ = 440.0
PARTIAL_LEVELS = np.array([1.0, 0.40, 0.22, 0.11, 0.06, 0.03, 0.0, 0.02, 0.0, 0.025])  # the tenth is the "tine"
FADE_PER_SECOND = 0.5  # of every partial at middle C ...
PARTIAL_FADE_PER_SECOND = 0.9  # ... and this much more for each harmonic number
BLOCK_SAMPLES = 256


def synthesise(score: Score, sample_rate: int = 22050) -> np.ndarray:
    """Play a score. Tempo changes are honoured, velocity sets level and brightness, drum tracks are left out.

    Args:
        score: In any time unit and resolution; monophonic or not. Without a tempo it plays at 120 quarters per minute.
        sample_rate: In hertz.

    Returns:
        Mono float32 of shape (samples,), peak `PEAK`, lasting until the end of the last note plus `RELEASE_SECONDS`;
        a score without notes gives `RELEASE_SECONDS` of silence.

    Raises:
        ValueError: If `sample_rate` is not positive.
    """
    if sample_rate <= 0:
        raise ValueError(f"sample_rate must be positive, got {sample_rate}")
    seconds = cast(Any, score).to("second")  # symusic's stubs do not know the method
    notes = [note for track in seconds.tracks if not track.is_drum for note in track.notes]
    release = round(RELEASE_SECONDS * sample_rate)
    end = max((round(note.end * sample_rate) for note in notes), default=0)
    audio = np.zeros(end + release)
    for note in notes:
        first, last = round(note.start * sample_rate), round(note.end * sample_rate) + release
        audio[first:last] += _tone(note.pitch, note.velocity, last - first, release, sample_rate)
    loudest = np.abs(audio).max(initial=0.0)
    return (audio * (PEAK / loudest if loudest > 0 else 1.0)).astype(np.float32)


def play(score: Score, sample_rate: int = 22050) -> np.ndarray:
    """Play a score on the instruments that it names, as the Space does; by [`synthesise`] without soundfile.

    Args:
        score: As for [`synthesise`].
        sample_rate: In hertz.

    Returns:
        As [`synthesise`].
    """
    if not sampler.is_available():
        return synthesise(score, sample_rate)
    seconds = cast(Any, score).to("second")  # symusic's stubs do not know the method
    notes = [
        sampler.Sounding(note.start, note.end - note.start, note.pitch, track.program, note.velocity / 100)
        for track in seconds.tracks
        if not track.is_drum
        for note in track.notes
    ]
    release, end = round(RELEASE_SECONDS * sample_rate), max((note.start + note.duration for note in notes), default=0)
    audio = sampler.play(notes, (round(end * sample_rate) + release) / sample_rate, sample_rate)
    audio[-release:] *= 0.5 + 0.5 * np.cos(np.pi * np.arange(1, release + 1) / release)
    loudest = np.abs(audio).max(initial=0.0)
    return (audio * (PEAK / loudest if loudest > 0 else 1.0)).astype(np.float32)


def write_wav(path: str | Path, audio: np.ndarray, sample_rate: int = 22050) -> None:
    """Write mono 16-bit PCM.

    Args:
        path: Of the file; its folder must exist.
        audio: Shape (samples,), within [-1, 1].
        sample_rate: In hertz.

    Raises:
        ValueError: If `audio` has another shape, or a sample is not finite or beyond 1.
    """
    audio = _checked(audio)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(np.rint(audio * 32767).astype("<i2").tobytes())


def write_mp3(path: str | Path, audio: np.ndarray, sample_rate: int = 22050) -> None:
    """Write an MP3 of variable bit rate, about a twelfth of the WAV's size; arguments and errors of `write_wav`.

    Raises:
        ModuleNotFoundError: Without soundfile.
    """
    import soundfile

    soundfile.write(path, _checked(audio), sample_rate, format="MP3")


WRITERS = {"wav": write_wav, "mp3": write_mp3}
"""Of sound files, by their ending."""


def _checked(audio: np.ndarray) -> np.ndarray:
    audio = np.asarray(audio)
    if audio.ndim != 1:
        raise ValueError(f"audio must have the shape (samples,), got {audio.shape}")
    loudest = np.abs(audio).max(initial=0.0)
    if not loudest <= 1.0:  # so written that NaN fails too
        raise ValueError(f"audio must lie within [-1, 1], got a sample of {loudest}")
    return audio


def _tone(pitch: int, velocity: int, samples: int, release: int, sample_rate: int) -> np.ndarray:
    """Play one note with attack and release: Im of sum_k level_k z^k, z = exp((i omega - fade) t), by Horner's rule."""
    hertz = A4_HERTZ * 2.0 ** ((pitch - 69) / 12)
    audible = min(len(PARTIAL_LEVELS), int(np.ceil(sample_rate / 2 / hertz)) - 1)
    force = velocity / 127
    levels = PARTIAL_LEVELS[:audible] * (0.5 + 0.5 * force) ** np.arange(audible)  # a soft touch is a dull one
    shorter = 2.0 ** ((pitch - 60) / 30)  # high strings ring less long
    z = _powers(np.exp((2j * np.pi * hertz - PARTIAL_FADE_PER_SECOND * shorter) / sample_rate), samples)
    tone = np.zeros(samples, dtype=complex)
    for level in levels[::-1]:
        tone += level
        tone *= z
    envelope = _powers(np.exp(-FADE_PER_SECOND * shorter / sample_rate), samples)
    attack = min(max(round(ATTACK_SECONDS * sample_rate), 1), samples)
    envelope[:attack] *= 0.5 - 0.5 * np.cos(np.pi * np.arange(attack) / attack)
    if release:
        envelope[-release:] *= 0.5 + 0.5 * np.cos(np.pi * np.arange(1, release + 1) / release)
    loudness = force * (261.6 / hertz) ** 0.3  # the ear hears high notes louder
    return loudness * envelope * np.imag(tone)


def _powers(base: complex, count: int) -> np.ndarray:
    """Tabulate base ** arange(count) by multiplying two short tables: exact in phase, and no exp for every sample."""
    blocks = -(-count // BLOCK_SAMPLES)
    coarse = base ** (BLOCK_SAMPLES * np.arange(blocks))
    return np.multiply.outer(coarse, base ** np.arange(BLOCK_SAMPLES)).ravel()[:count]
