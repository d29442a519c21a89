"""Chords under a melody: the likeliest key, and in it the likeliest major or minor triad for each bar.

A hidden Markov model: the states are the 24 triads, counted from the tonic; a bar's notes, weighted by their length,
are what is seen of it. The Viterbi algorithm finds the best chords of each of the 24 keys, and the key whose
chords explain the notes best wins; harmonising a melody with an HMM of chords per bar follows Simon, Morris and Basu
(2008, MySong). Probabilities are in `chords.json`, counted and measured by `benchmarks/harmony.py` on POP909's chords.
"""

import json
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from melody import SHARP_NAMES, Melody, fifths_of, pitch_names, pulse_of, steps_per_bar

MODES = ("major", "minor")
TRIADS = {"major": (0, 4, 7), "minor": (0, 3, 7)}
CHORDS = 24  # major triads on the twelve degrees, then minor ones
LOWEST_BASS, LOWEST_CHORD = 36, 52  # MIDI pitches: the octaves of the bass and of the triad above it


@lru_cache
def load_model() -> dict[str, dict[str, np.ndarray]]:
    """Read the log probabilities: of each mode `first` (24,), `then` (24, 24) and `notes` (24, 12)."""
    read = json.loads((Path(__file__).parent / "chords.json").read_text(encoding="utf-8"))
    return {
        mode: {name: np.array(read[mode][name]) for name in ("first", "then", "notes")}
        | {"beat": np.array(read["beat"])}
        for mode in MODES
    }


def bar_weights(melody: Melody) -> np.ndarray:
    """Weigh the pitch classes of each bar by how long they sound, in beats of a bar of four; shape (bars, 12)."""
    bar = steps_per_bar(melody)
    weights = np.zeros((melody["bars"], 12))
    for pitch, start, duration in zip(melody["pitch"], melody["start"], melody["duration"], strict=True):
        while duration > 0:  # a note that goes on over a bar line sounds in both bars
            inside = min(duration, bar - start % bar)
            weights[start // bar, pitch % 12] += 4 * inside / bar
            start, duration = start + inside, duration - inside
    return weights


def viterbi(seen: np.ndarray, first: np.ndarray, then: np.ndarray) -> tuple[list[int], float]:
    """Find the likeliest states.

    Args:
        seen: Log likelihood of what is seen in each state, shape (bars, states).
        first: Log probabilities of the first state, shape (states,).
        then: Of each state after each, shape (states before, states).

    Returns:
        The states, and the log probability of their path.
    """
    score, before = first + seen[0], []
    for row in seen[1:]:
        paths = score[:, None] + then
        before.append(paths.argmax(0))
        score = paths.max(0) + row
    path = [int(score.argmax())]
    for choices in reversed(before):
        path.append(int(choices[path[-1]]))
    return path[::-1], float(score.max())


def chords_in_key(weights: np.ndarray, tonic: int, mode: str) -> tuple[list[int], float]:
    """Find the likeliest chords in a key, counted from C: root, plus 12 for minor; and how likely they are."""
    model = load_model()[mode]
    seen = model["beat"] * np.roll(weights, -tonic, axis=1) @ model["notes"].T
    path, score = viterbi(seen, model["first"], model["then"])
    return [(chord + tonic) % 12 + chord // 12 * 12 for chord in path], score


def find_chords(melody: Melody) -> tuple[str, list[int]]:
    """Find the key of a melody, such as `D minor`, and a chord for each bar: its root, plus 12 for a minor triad."""
    weights = bar_weights(melody)
    found = [(*chords_in_key(weights, tonic, mode), tonic, mode) for mode in MODES for tonic in range(12)]
    chords, _, tonic, mode = max(found, key=lambda each: each[1])
    return f"{SHARP_NAMES[tonic]} {mode}", chords


def chord_name(chord: int, key: str) -> str:
    """Name a chord as lead sheets do, with flats in keys that have them."""
    return pitch_names(fifths_of(key))[chord % 12] + ("m" if chord >= 12 else "")


def voicing(chord: int, before: list[int] | None) -> list[int]:
    """Put a triad's notes as near to the notes before as they can be; pitches, lowest first."""
    root, triad = chord % 12, TRIADS[MODES[chord // 12]]
    choices = []
    for lowest in range(3):
        order = [*triad[lowest:], *triad[:lowest]]
        pitches = [LOWEST_CHORD + (root + order[0] - LOWEST_CHORD) % 12]
        for degree in order[1:]:
            pitches.append(pitches[-1] + (root + degree - pitches[-1]) % 12)
        choices.append(pitches)
    if before is None:
        return choices[0]
    return min(choices, key=lambda pitches: sum(abs(a - b) for a, b in zip(pitches, before, strict=True)))


def harmonize(melody: Melody) -> dict[str, Any]:
    """Write an accompaniment: the bass with the first beat of each bar, the triad with the others.

    Args:
        melody: With notes.

    Returns:
        `key`, such as `D minor`; `chords`, one name for each bar; and the accompaniment's `pitch`, `start` and
        `duration` in the melody's grid steps, sorted by start.
    """
    key, chords = find_chords(melody)
    bar, pulse = steps_per_bar(melody), pulse_of(melody)
    notes, last = [], None
    for index, chord in enumerate(chords):
        begin, last = index * bar, voicing(chord, last)
        notes.append((begin, bar, LOWEST_BASS + (chord % 12 - LOWEST_BASS) % 12))
        strokes = [*range(0, bar, pulse), bar]
        # Off the first beat, which is the bass's, as accompanists play; a bar of one pulse has both together.
        for start, end in pairwise(strokes[1:] if len(strokes) > 2 else strokes):
            notes += [(begin + start, end - start, pitch) for pitch in last]
    notes.sort()
    return {
        "key": key,
        "chords": [chord_name(chord, key) for chord in chords],
        "pitch": [pitch for _, _, pitch in notes],
        "start": [start for start, _, _ in notes],
        "duration": [duration for _, duration, _ in notes],
    }
