"""Where the beats of freely played music are: dynamic programming over its onsets (Ellis, 2007).

Ellis, Beat Tracking by Dynamic Programming, Journal of New Music Research 36(1): an onset strength, one tempo from its
autocorrelation, and the beats that gather most strength while their distances stay near that tempo.
"""

from __future__ import annotations

import numpy as np
from numba import njit

FRAMES = 100  # a second
SMOOTHING_FRAMES = 2.0  # standard deviation of the window that an onset fills
USUAL_BEAT, BEAT_OCTAVES = 0.75, 0.7  # seconds, and the width of the prior of the tempo about it
FASTEST_BEAT, SLOWEST_BEAT = 0.3, 1.2  # seconds
TIGHTNESS = 100.0  # weight of the squared logarithm of a distance over the usual one
LONG_NOTE = 0.5  # seconds; onsets weigh by the length of their note up to here
TOLERANCE = 0.07  # seconds, as in mir_eval
FEWEST_ONSETS = 16


def onset_strength(begin: np.ndarray, length: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """Return the strength of onsets, by frame: notes that begin together add up, long and low ones count more.

    Args:
        begin: onsets in seconds, shape (N,).
        length: of the notes in seconds, shape (N,).
        pitch: MIDI pitches, shape (N,).
    """
    frames = np.rint(begin * FRAMES).astype(np.int64)
    weight = 0.5 + np.minimum(length, LONG_NOTE) / LONG_NOTE + (pitch < 52)
    strength = np.bincount(frames, weight, minlength=int(frames.max()) + FRAMES)
    reach = np.arange(-4 * int(SMOOTHING_FRAMES), 4 * int(SMOOTHING_FRAMES) + 1)
    window = np.exp(-0.5 * (reach / SMOOTHING_FRAMES) ** 2)
    return np.convolve(np.sqrt(strength), window, mode="same")


def beat_frames(strength: np.ndarray) -> int:
    """Return the length of a beat in frames: the highest autocorrelation, weighted by a prior of the tempo."""
    centred = strength - strength.mean()
    size = 1 << (2 * len(centred) - 1).bit_length()
    spectrum = np.fft.rfft(centred, size)
    correlation = np.fft.irfft(spectrum * spectrum.conj(), size)[: int(4 * SLOWEST_BEAT * FRAMES) + 1]
    lags = np.arange(int(FASTEST_BEAT * FRAMES), int(SLOWEST_BEAT * FRAMES) + 1)
    # A beat's multiples are periods too: two and four beats speak for it.
    score = correlation[lags] + 0.5 * correlation[2 * lags] + 0.25 * correlation[4 * lags]
    prior = np.exp(-0.5 * (np.log2(lags / FRAMES / USUAL_BEAT) / BEAT_OCTAVES) ** 2)
    return int(lags[np.argmax(score * prior)])


@njit(cache=True)
def best_path(strength: np.ndarray, period: int, tightness: float) -> np.ndarray:
    """Return the frames of the beats that gather most strength at distances near a period, rising."""
    frames = len(strength)
    total, before = strength.copy(), np.full(frames, -1)
    for frame in range(frames):
        best = 0.0
        for distance in range(period // 2, min(2 * period, frame) + 1):
            bend = np.log(distance / period)
            value = total[frame - distance] - tightness * bend * bend
            if value > best:
                best, before[frame] = value, frame - distance
        total[frame] += best
    last = frames - 1 - np.argmax(total[::-1][: 2 * period])
    path = np.empty(frames, dtype=np.int64)
    count = 0
    while last >= 0:
        path[count] = last
        count += 1
        last = before[last]
    return path[:count][::-1].copy()


def track_beats(begin: np.ndarray, length: np.ndarray, pitch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the beats of music.

    Args:
        begin: onsets in seconds, shape (N,).
        length: of the notes in seconds, shape (N,).
        pitch: MIDI pitches, shape (N,).

    Returns:
        `(K,)` seconds of the beats, rising, and `(K,)` which of them begin a bar of four, as far as strength tells.

    Raises:
        ValueError: If there are too few onsets.
    """
    if len(begin) < FEWEST_ONSETS:
        raise ValueError(f"{len(begin)} onsets, {FEWEST_ONSETS} are needed to find beats")
    strength = onset_strength(begin, length, pitch)
    strength = strength / strength.std()
    path = best_path(strength, beat_frames(strength), TIGHTNESS)
    # Of the four ways to count, the one whose first beats are strongest.
    first = max(range(4), key=lambda phase: strength[path[phase::4]].mean() if len(path) > phase else 0.0)
    return path / FRAMES, np.arange(len(path)) % 4 == first


def beat_f_measure(found: np.ndarray, annotated: np.ndarray) -> float:
    """Return the F-measure of beats: hits lie within `TOLERANCE` of an annotated beat, each of which counts once.

    Args:
        found: seconds, rising, shape (K,).
        annotated: seconds, rising, shape (L,).
    """
    hits = place = 0
    for beat in annotated:
        while place < len(found) and found[place] < beat - TOLERANCE:
            place += 1
        if place < len(found) and found[place] <= beat + TOLERANCE:
            hits, place = hits + 1, place + 1
    return 2 * hits / max(len(found) + len(annotated), 1)
