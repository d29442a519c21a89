"""Numbers that describe melody lines: key and complexity. Compiled loops over flat arrays."""

from __future__ import annotations

import numpy as np
from numba import njit

from dataset_script.melody_rules import KEY_NAMES as KEY_NAMES
from dataset_script.melody_rules import MAJOR_PROFILE, MINOR_PROFILE

KEY_PROFILES = np.array([np.roll(profile, tonic) for profile in (MAJOR_PROFILE, MINOR_PROFILE) for tonic in range(12)])

CENTRED_PROFILES = KEY_PROFILES - KEY_PROFILES.mean(axis=1, keepdims=True)
CENTRED_PROFILES /= np.linalg.norm(CENTRED_PROFILES, axis=1, keepdims=True)

DENSITY_HALF = 2.0  # notes per quarter note at which the density term of the complexity is one half
RHYTHM_BITS, INTERVAL_BITS = 3.0, 4.0  # entropies that count as full complexity
LONGEST_GAP_BEATS = 8  # inter-onset intervals beyond this are one class
WIDEST_INTERVAL = 24  # semitones; wider intervals are one class in each direction


@njit(cache=True)
def keys(pitch: np.ndarray, duration: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the key of each line by the Krumhansl-Schmuckler algorithm.

    Args:
        pitch: MIDI pitches of all notes, lines one after the other, shape (N,).
        duration: their lengths in steps, shape (N,).
        offsets: where each line's notes begin and the last ends, shape (L + 1,).

    Returns:
        Index into `KEY_NAMES` and confidence, shape (L,) each. The confidence is the Pearson correlation of the
        duration-weighted pitch classes with the key's profile, clipped to 0..1; 0 where all classes weigh the same.
    """
    lines = len(offsets) - 1
    found, confidence = np.zeros(lines, dtype=np.int64), np.zeros(lines)
    weight = np.empty(12)
    for line in range(lines):
        weight[:] = 0.0
        for note in range(offsets[line], offsets[line + 1]):
            weight[pitch[note] % 12] += duration[note]
        weight -= weight.mean()
        scale = np.sqrt((weight * weight).sum())
        if scale < 1e-9:
            continue
        best = -2.0
        for key in range(24):
            correlation = 0.0
            for pitch_class in range(12):
                correlation += weight[pitch_class] * CENTRED_PROFILES[key, pitch_class]
            correlation /= scale
            if correlation > best + 1e-9:  # a tie goes to the first key whatever the rounding
                best, found[line] = correlation, key
        confidence[line] = min(max(best, 0.0), 1.0)
    return found, confidence


@njit(cache=True)
def entropy_bits(counts: np.ndarray, total: int) -> float:
    """Return the entropy in bits of a distribution given by counts that sum to `total`; 0 where that is 0."""
    bits = 0.0
    for count in counts:
        if count:
            bits -= count / total * np.log2(count / total)
    return bits


@njit(cache=True)
def complexities(
    pitch: np.ndarray, start: np.ndarray, offsets: np.ndarray, quarters: np.ndarray, steps_per_beat: int
) -> np.ndarray:
    """Rate each line from 0 (one repeated note) to 1.

    The mean of three terms, each between 0 and 1: note density d / (d + `DENSITY_HALF`) with d in notes per quarter
    note, entropy of the inter-onset intervals over `RHYTHM_BITS`, entropy of the pitch intervals over `INTERVAL_BITS`,
    both clipped at 1. It never falls when one of the three grows.

    Args:
        pitch: MIDI pitches of all notes, lines one after the other, shape (N,).
        start: their onsets in steps, shape (N,).
        offsets: where each line's notes begin and the last ends, shape (L + 1,).
        quarters: length of each line in quarter notes, shape (L,).
        steps_per_beat: grid steps in a beat.

    Returns:
        Complexity of each line, shape (L,).
    """
    lines = len(quarters)
    complexity = np.empty(lines)
    longest = LONGEST_GAP_BEATS * steps_per_beat
    gaps, intervals = np.empty(longest + 1, dtype=np.int64), np.empty(2 * WIDEST_INTERVAL + 1, dtype=np.int64)
    for line in range(lines):
        first, end = offsets[line], offsets[line + 1]
        gaps[:] = 0
        intervals[:] = 0
        for note in range(first + 1, end):
            gaps[min(np.int64(start[note]) - start[note - 1], longest)] += 1
            interval = np.int64(pitch[note]) - pitch[note - 1]
            intervals[min(max(interval, -WIDEST_INTERVAL), WIDEST_INTERVAL) + WIDEST_INTERVAL] += 1
        density = (end - first) / quarters[line]
        rhythm = entropy_bits(gaps, end - first - 1) / RHYTHM_BITS
        interval_variety = entropy_bits(intervals, end - first - 1) / INTERVAL_BITS
        complexity[line] = (density / (density + DENSITY_HALF) + min(rhythm, 1.0) + min(interval_variety, 1.0)) / 3
    return complexity
