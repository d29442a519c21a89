"""A melody as WAV: by FluidSynth where it and a sound font are installed, else by a synthesiser like the page's own.

`static/instruments.json` holds the tones of both: partials, and an envelope that rises in a straight line, falls
towards `sustain` with the time constant `decay`, and towards silence with a quarter of `release`, all in seconds.
"""

import io
import json
import os
import threading
import wave
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from melody import Melody, RefusedError, seconds_per_step

try:
    import fluidsynth  # pyright: ignore[reportMissingImports] - optional; needs libfluidsynth, which Debian has
except (ImportError, OSError):
    fluidsynth = None

SAMPLE_RATE = 32000
MAX_SECONDS = 300
PEAK = 0.85
ECHO_SECONDS = 1.1
ECHO_LEVEL = 0.16
VIBRATO_SEMITONES = 0.12
INSTRUMENTS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "static/instruments.json").read_text(encoding="utf-8")
)
SOUND_FONTS = ("/usr/share/sounds/sf2", "/usr/share/sounds/sf3")
_lock = threading.Lock()  # a FluidSynth is one instrument


def instrument_of(program: int) -> dict[str, Any]:
    """Find the tone for a General MIDI program: its own, else one of its family, else the piano."""
    families = {instrument["program"] // 8: instrument for instrument in reversed(INSTRUMENTS)}
    exact = [instrument for instrument in INSTRUMENTS if instrument["program"] == program]
    return (exact or [families.get(program // 8, INSTRUMENTS[0])])[0]


@lru_cache
def sound_font() -> str | None:
    """Find a sound font: the file that `SOUNDFONT` names, else the smallest that the system has."""
    named = os.environ.get("SOUNDFONT")
    if named:
        return named
    files = [file for folder in SOUND_FONTS for file in Path(folder).glob("*.sf[23]")]
    return str(min(files, key=lambda file: file.stat().st_size)) if files else None


def to_wav(melody: Melody) -> bytes:
    """Play a melody.

    Returns:
        A WAV file, 16 bits, mono.

    Raises:
        RefusedError: If it would last longer than `MAX_SECONDS`.
    """
    last = max(start + duration for start, duration in zip(melody["start"], melody["duration"], strict=True))
    if last * seconds_per_step(melody) > MAX_SECONDS:
        raise RefusedError(f"This melody lasts longer than {MAX_SECONDS // 60} minutes: raise the tempo or cut it")
    font = sound_font() if fluidsynth else None
    audio = play_sound_font(melody, font) if font else synthesise(melody)
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.rint(audio * 32767).astype("<i2").tobytes())
    return content.getvalue()


def synthesise(melody: Melody) -> np.ndarray:
    """Play a melody by adding sines, with a short echo.

    Returns:
        Mono float of shape (samples,), peak `PEAK`.
    """
    tone = instrument_of(melody["program"])
    step = seconds_per_step(melody) * SAMPLE_RATE
    tail = round((tone["release"] + ECHO_SECONDS) * SAMPLE_RATE)
    notes = list(zip(melody["pitch"], melody["start"], melody["duration"], strict=True))
    audio = np.zeros(round(max(start + duration for _, start, duration in notes) * step) + tail)
    for pitch, start, duration in notes:
        first, samples = round(start * step), round(duration * step)
        sound = _note(tone, pitch, samples)
        audio[first : first + len(sound)] += sound
    size = 1 << (len(audio) + _echo().size - 1).bit_length()
    spectrum = np.fft.rfft(audio, size) * (1 + np.fft.rfft(_echo(), size))
    audio = np.fft.irfft(spectrum, size)[: len(audio)]
    return audio * (PEAK / max(np.abs(audio).max(), 1e-9))


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


def play_sound_font(melody: Melody, font: str) -> np.ndarray:
    """Play a melody by FluidSynth; mono float of shape (samples,), peak `PEAK`."""
    step = seconds_per_step(melody) * SAMPLE_RATE
    events = []
    for pitch, start, duration in zip(melody["pitch"], melody["start"], melody["duration"], strict=True):
        events += [(round(start * step), 1, pitch), (round((start + duration) * step), 0, pitch)]
    with _lock:
        synth, font_id = _fluid_synth(font)
        synth.system_reset()
        synth.program_select(0, font_id, 0, melody["program"])
        parts, now = [], 0
        for at, is_on, pitch in sorted(events):
            parts.append(synth.get_samples(at - now))
            now = at
            if is_on:
                synth.noteon(0, pitch, 100)
            else:
                synth.noteoff(0, pitch)
        parts.append(synth.get_samples(round(1.5 * SAMPLE_RATE)))
    stereo = np.concatenate([np.asarray(part, dtype=float) for part in parts]).reshape(-1, 2)
    audio = stereo.mean(1)
    return audio * (PEAK / max(np.abs(audio).max(), 1e-9))


@lru_cache
def _fluid_synth(font: str) -> tuple[Any, int]:
    """Load a sound font once."""
    assert fluidsynth is not None
    synth = fluidsynth.Synth(samplerate=float(SAMPLE_RATE), gain=0.6)
    font_id = synth.sfload(font)
    if font_id < 0:
        raise RefusedError("The sound font of this server cannot be read")
    return synth, font_id
