"""Numbers that describe melody lines and tracks: key, complexity, lead score. Pure functions on flat arrays."""

from __future__ import annotations

import re

import numpy as np

PITCH_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
KEY_NAMES = tuple(f"{name} {mode}" for mode in ("major", "minor") for name in PITCH_NAMES)

# Krumhansl and Kessler's probe-tone ratings (Krumhansl, Cognitive Foundations of Musical Pitch, 1990, table 2.1).
MAJOR_PROFILE = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR_PROFILE = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)
KEY_PROFILES = np.array([np.roll(profile, tonic) for profile in (MAJOR_PROFILE, MINOR_PROFILE) for tonic in range(12)])

DENSITY_HALF = 2.0  # notes per quarter note at which the density term of the complexity is one half
RHYTHM_BITS, INTERVAL_BITS = 3.0, 4.0  # entropies that count as full complexity
LONGEST_GAP_BEATS = 8  # inter-onset intervals beyond this are one class
WIDEST_INTERVAL = 24  # semitones; wider intervals are one class in each direction


def keys(pitch: np.ndarray, duration: np.ndarray, line: np.ndarray, lines: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the key of each line by the Krumhansl-Schmuckler algorithm.

    Args:
        pitch: MIDI pitches of all notes, shape (N,).
        duration: their lengths in steps, shape (N,).
        line: index of each note's line, shape (N,).
        lines: number of lines, L.

    Returns:
        Index into `KEY_NAMES` and confidence, shape (L,) each. The confidence is the Pearson correlation of the
        duration-weighted pitch classes with the key's profile, clipped to 0..1; 0 where all classes weigh the same.
    """
    weight = np.bincount(line * 12 + pitch % 12, weights=duration, minlength=lines * 12).reshape(lines, 12)
    weight = weight - weight.mean(axis=1, keepdims=True)  # not in place: bincount of nothing is of integers
    profiles = KEY_PROFILES - KEY_PROFILES.mean(axis=1, keepdims=True)
    scale = np.linalg.norm(weight, axis=1)[:, None] * np.linalg.norm(profiles, axis=1)
    correlation = weight @ profiles.T / np.where(scale > 0, scale, 1.0)
    # Rounded before the maximum, so that a tie goes to the first key whatever the order of summation was.
    best = correlation.round(9).argmax(axis=1)
    return best, correlation[np.arange(lines), best].clip(0.0, 1.0)


def entropy_bits(classes: np.ndarray, line: np.ndarray, lines: int, number_of_classes: int) -> np.ndarray:
    """Return the entropy in bits, shape (L,), of each line's distribution over classes (0 for a line without any)."""
    counts = np.bincount(line * number_of_classes + classes, minlength=lines * number_of_classes)
    counts = counts.reshape(lines, number_of_classes)
    total = np.maximum(counts.sum(axis=1), 1)
    used_line, used_class = np.nonzero(counts)
    share = counts[used_line, used_class] / total[used_line]
    return np.bincount(used_line, weights=-share * np.log2(share), minlength=lines)


def complexities(
    pitch: np.ndarray,
    start: np.ndarray,
    line: np.ndarray,
    quarters: np.ndarray,
    steps_per_beat: int,
) -> np.ndarray:
    """Rate each line from 0 (one repeated note) to 1.

    The mean of three terms, each between 0 and 1: note density d / (d + `DENSITY_HALF`) with d in notes per quarter
    note, entropy of the inter-onset intervals over `RHYTHM_BITS`, entropy of the pitch intervals over `INTERVAL_BITS`,
    both clipped at 1. It never falls when one of the three grows.

    Args:
        pitch: MIDI pitches of all notes, lines one after the other, shape (N,).
        start: their onsets in steps, shape (N,).
        line: index of each note's line, rising, shape (N,).
        quarters: length of each line in quarter notes, shape (L,).
        steps_per_beat: grid steps in a beat.

    Returns:
        Complexity of each line, shape (L,).
    """
    lines = len(quarters)
    within = line[1:] == line[:-1]
    of = line[1:][within]
    longest = LONGEST_GAP_BEATS * steps_per_beat
    gaps = np.minimum(np.diff(start)[within], longest)
    intervals = np.diff(pitch.astype(np.int64))[within].clip(-WIDEST_INTERVAL, WIDEST_INTERVAL) + WIDEST_INTERVAL
    density = np.bincount(line, minlength=lines) / quarters
    rhythm = entropy_bits(gaps, of, lines, longest + 1) / RHYTHM_BITS
    interval = entropy_bits(intervals, of, lines, 2 * WIDEST_INTERVAL + 1) / INTERVAL_BITS
    return (density / (density + DENSITY_HALF) + np.minimum(rhythm, 1) + np.minimum(interval, 1)) / 3


TUNE_NAME = re.compile(r"melod|vocal|\blead|voice|\bvox|\bsolo|sing(er|ing)\b|\btune\b|\bcanto\b|gesang|\bvoc\b", re.I)
OTHER_NAME = re.compile(
    r"bass|\bpad|chord|string|drum|perc|back|\bbgv|\brhy|accomp|harmon[yi]|choir|\bl\.?h\.?\b|left", re.I
)

# Fitted to tracks that their authors named melody, vocal, voice or singer, against the others in the same files
# (softmax within each file, names hidden), then scaled and rounded by hand; the weight of the name itself was chosen.
LEAD_WEIGHTS = {
    "bias": -7.5,
    "register": 2.4,
    "monophony": 2.7,
    "coverage": 1.8,
    "variety": 0.3,
    "density": 1.2,
    "program": 0.6,
    "name": 2.0,
}


def ramp(value: np.ndarray, zero: float, one: float) -> np.ndarray:
    """Rise (or fall) linearly from 0 at `zero` to 1 at `one`, flat outside."""
    return ((value - zero) / (one - zero)).clip(0.0, 1.0)


def name_hint(name: str) -> float:
    """Return 1 for the name of a tune (melody, vocal, lead, ...), -1 for one of an accompaniment, else 0."""
    return float(bool(TUNE_NAME.search(name))) - float(bool(OTHER_NAME.search(name)))


PROGRAM_HINT = np.zeros(128)
PROGRAM_HINT[32:40] = -1.0  # basses
PROGRAM_HINT[47:56] = -0.5  # timpani, ensembles, choirs, orchestra hit
PROGRAM_HINT[88:104] = -0.5  # pads and effects
PROGRAM_HINT[112:128] = -1.0  # percussion and sound effects
PROGRAM_HINT[40:42] = 0.5  # violin, viola
PROGRAM_HINT[64:80] = 1.0  # reeds and pipes
PROGRAM_HINT[80:88] = 0.5  # synthesizer leads
PROGRAM_HINT[22] = 0.5  # harmonica
PROGRAM_HINT[110:112] = 0.5  # fiddle, shanai


def lead_features(
    mean_pitch: np.ndarray,
    monophony: np.ndarray,
    coverage: np.ndarray,
    pitches: np.ndarray,
    density: np.ndarray,
    program: np.ndarray,
    hints: np.ndarray,
) -> dict[str, np.ndarray]:
    """Bring what is known of each track to the scale of `LEAD_WEIGHTS`; every argument and result has shape (K,).

    Args:
        mean_pitch: mean MIDI pitch.
        monophony: share of the track's notes that no other note of it overlaps.
        coverage: share of the file's bars in which the track has an onset.
        pitches: number of different pitches.
        density: notes per quarter note, over the bars with an onset.
        program: General MIDI program.
        hints: `name_hint` of the track's name.
    """
    return {
        "register": np.minimum(ramp(mean_pitch, 43, 62), ramp(mean_pitch, 98, 82)),
        "monophony": monophony,
        "coverage": ramp(coverage, 0.0, 0.6),
        "variety": ramp(pitches, 2, 6),
        "density": np.minimum(ramp(density, 0.1, 0.7), ramp(density, 5.0, 2.5)),
        "program": PROGRAM_HINT[program],
        "name": hints,
    }


def lead_scores(features: dict[str, np.ndarray]) -> np.ndarray:
    """Rate each track from 0 to 1: the logistic function of the weighted sum of its features, shape (K,)."""
    total = LEAD_WEIGHTS["bias"] + sum(LEAD_WEIGHTS[name] * value for name, value in features.items())
    return 1 / (1 + np.exp(-total))
