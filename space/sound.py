"""A melody as WAV, played by the page's own instruments: the samples where soundfile is installed, else oscillators.

`static/instruments.json` holds the tones of the oscillators, in the browser too: partials, and an envelope that rises
in a straight line, falls towards `sustain` with the time constant `decay`, and towards silence with a quarter of
`release`, all in seconds.
"""

import io
import json
import wave
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import sampler
from melody import Melody, RefusedError, seconds_per_step
from sampler import Sounding

SAMPLE_RATE = 32000
MAX_SECONDS = 300
PEAK = 0.85
ECHO_SECONDS = 1.1
ECHO_LEVEL = 0.16
VIBRATO_SEMITONES = 0.12
INSTRUMENTS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "static/instruments.json").read_text(encoding="utf-8")
)
ACCOMPANIMENT_PROGRAM = 0
ACCOMPANIMENT_LEVEL = 0.4  # of the melody's


def instrument_of(program: int) -> dict[str, Any]:
    """Find the tone for a General MIDI program: its own, else one of its family, else the piano."""
    families = {instrument["program"] // 8: instrument for instrument in reversed(INSTRUMENTS)}
    exact = [instrument for instrument in INSTRUMENTS if instrument["program"] == program]
    return (exact or [families.get(program // 8, INSTRUMENTS[0])])[0]


def parts(melody: Melody, accompaniment: dict[str, Any] | None = None) -> list[Sounding]:
    """List the notes of a melody and of the chords under it, in seconds."""
    step = seconds_per_step(melody)
    played = [(melody, melody["program"], 1.0)]
    played += [(accompaniment, ACCOMPANIMENT_PROGRAM, ACCOMPANIMENT_LEVEL)] if accompaniment else []
    return [
        Sounding(start * step, duration * step, pitch, program, level)
        for part, program, level in played
        for pitch, start, duration in zip(part["pitch"], part["start"], part["duration"], strict=True)
    ]


def to_wav(melody: Melody, accompaniment: dict[str, Any] | None = None) -> bytes:
    """Play a melody, and the chords under it where they are given.

    Returns:
        A WAV file, 16 bits, mono.

    Raises:
        RefusedError: If it would last longer than `MAX_SECONDS`.
    """
    notes = parts(melody, accompaniment)
    if max(note.start + note.duration for note in notes) > MAX_SECONDS:
        raise RefusedError(f"This melody lasts longer than {MAX_SECONDS // 60} minutes: raise the tempo or cut it")
    audio = play(notes)
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.rint(audio * 32767).astype("<i2").tobytes())
    return content.getvalue()


def play(notes: list[Sounding]) -> np.ndarray:
    """Play notes with a short echo; mono float of shape (samples,), peak `PEAK`."""
    seconds = max(note.start + note.duration for note in notes) + ECHO_SECONDS
    audio = sampler.play(notes, seconds, SAMPLE_RATE) if sampler.is_available() else oscillate(notes, seconds)
    size = 1 << (len(audio) + _echo().size - 1).bit_length()
    spectrum = np.fft.rfft(audio, size) * (1 + np.fft.rfft(_echo(), size))
    audio = np.fft.irfft(spectrum, size)[: len(audio)]
    fade = round(0.05 * SAMPLE_RATE)
    audio[-fade:] *= np.linspace(1, 0, fade)
    return audio * (PEAK / max(np.abs(audio).max(), 1e-9))


def oscillate(notes: list[Sounding], seconds: float) -> np.ndarray:
    """Play notes by adding sines; mono float of shape (samples,)."""
    audio = np.zeros(round(seconds * SAMPLE_RATE))
    for note in notes:
        first = round(note.start * SAMPLE_RATE)
        sound = _note(instrument_of(note.program), note.pitch, round(note.duration * SAMPLE_RATE))[: len(audio) - first]
        audio[first : first + len(sound)] += note.level * sound
    return audio


def _note(tone: dict[str, Any], pitch: int, samples: int) -> np.ndarray:
    """Play one note, held for `samples` and released."""
    time = np.arange(samples + round(tone["release"] * SAMPLE_RATE)) / SAMPLE_RATE
    hertz = 440.0 * 2.0 ** ((pitch - 69) / 12)
    phase = 2 * np.pi * hertz * time
    if tone["vibrato"]:
        depth = hertz * (2 ** (VIBRATO_SEMITONES / 12) - 1) / tone["vibrato"]
        phase += depth * np.minimum(time / 0.4, 1) * np.sin(2 * np.pi * tone["vibrato"] * time)
    sound = np.zeros_like(time)
    for number, level in enumerate(tone["partials"], start=1):
        if level and number * hertz < SAMPLE_RATE / 2:
            sound += level * np.sin(number * phase)
    held = samples / SAMPLE_RATE
    envelope = np.minimum(time / tone["attack"], 1)
    falling = np.maximum(time - tone["attack"], 0)
    envelope *= tone["sustain"] + (1 - tone["sustain"]) * np.exp(-falling / tone["decay"])
    envelope *= np.exp(-np.maximum(time - held, 0) * 4 / tone["release"])
    fade = min(64, len(envelope))
    envelope[-fade:] *= np.linspace(1, 0, fade)
    return tone["level"] * envelope * sound


@lru_cache
def _echo() -> np.ndarray:
    """Make the impulse response of a small room, without the direct sound."""
    samples = round(ECHO_SECONDS * SAMPLE_RATE)
    noise = np.random.default_rng(0).standard_normal(samples)
    noise *= np.exp(-6 * np.arange(samples) / samples) / np.sqrt(samples / 12)
    return ECHO_LEVEL * noise
