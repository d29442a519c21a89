"""Which track of a file is the tune that one would hum: features of every track, and a calibrated score from 0 to 1.

The weights are fitted by `dataset_script.fit_lead_score` and lie beside this file in `lead_score.json`.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
from numba import njit

from dataset_script.melody_rules import (
    BAR_SLOTS,
    DOUBLED,
    HASH_FACTOR,
    INTERVAL_QUARTERS,
    LARGEST_DEVIATION,
    LARGEST_LOG_ODDS,
    LEAP,
    LENGTH_FLOOR,
    LONGEST_QUARTERS,
    MIN_DOUBLED_NOTES,
    OCTAVE,
    PHRASE_REST_QUARTERS,
    REST_QUARTERS,
    UTILITY_DECIMALS,
    VOCAL_HIGH,
    VOCAL_LOW,
)
from dataset_script.midi_notes import MAX_STEPS
from dataset_script.track_names import name_hint as name_hint

WEIGHTS_PATH = Path(__file__).with_name("lead_score.json")

TRACK_FEATURES = (
    "log_notes",  # natural logarithm of the number of skyline notes
    "skyline",  # share of the track's notes that are on its skyline
    "monophony",  # share of the track's notes that are on the skyline and that no other note overlaps
    "mean_pitch",
    "vocal_range",  # share of notes from `VOCAL_LOW` to `VOCAL_HIGH`
    "log_pitches",  # natural logarithm of the number of different pitches
    "steps",  # share of intervals of one or two semitones
    "leaps",  # share of intervals of `LEAP` semitones or more
    "mean_interval",  # in semitones, an octave at most
    "log_density",  # natural logarithm of the notes per quarter note, over the bars with an onset
    "log_duration",  # natural logarithm of the mean length in quarter notes
    "rests",  # share of notes that half a quarter note of silence or more follows
    "phrase_end",  # natural logarithm of how much longer than the mean the last notes of phrases are
    "same_rhythm",  # share of bars that have the onsets of the bar before
    "new_bars",  # share of bars with notes that the track has not played before
    "coverage",  # share of the file's bars with onsets in which the track has one
    "highest",  # share of its bars in which no track has a higher mean pitch
    "lowest",  # share of its bars in which no track has a lower mean pitch
    "shared_onsets",  # share of its onsets at which another track has one too
)
RELATIONS = ("coverage", "highest", "lowest", "shared_onsets")  # those that depend on the file's other tracks
(
    LOG_NOTES, SKYLINE, MONOPHONY, MEAN_PITCH, VOCAL_RANGE, LOG_PITCHES, STEPS, LEAPS, MEAN_INTERVAL, LOG_DENSITY,
    LOG_DURATION, RESTS, PHRASE_END, SAME_RHYTHM, NEW_BARS, COVERAGE, HIGHEST, LOWEST, SHARED_ONSETS,
) = range(len(TRACK_FEATURES))  # fmt: skip

ENDLESS_STEPS = 1 << 40  # from a track's last note to none
MAX_BARS = 1 << 16  # bars of longer files share their place with bars that many later

PROGRAM_FAMILIES = (
    "piano", "chromatic percussion", "organ", "guitar", "bass", "strings", "ensemble", "brass",
    "reed", "pipe", "synth lead", "synth pad", "synth effects", "ethnic", "percussive", "sound effects",
)  # fmt: skip
"""General MIDI's families, of eight programs each."""


@njit(cache=True, inline="always")
def count_bits(word):
    """Return the number of ones in a uint64."""
    word -= (word >> np.uint64(1)) & np.uint64(0x5555555555555555)
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(cache=True)
def track_features(
    track_first, file_first, bar, position, bar_steps, beat_steps, pitch, duration, is_alone, notes
):  # fmt: skip
    """Describe every track of a batch of files: by itself, and beside the others of its file.

    Linear in the number of notes, but for the sorting of each track's bars. A track without notes has zeros everywhere
    and does not count in its file.

    Args:
        track_first: index of each track's first skyline note, and the number of all, shape (K + 1,).
        file_first: index of each file's first track, and the number of all, shape (files + 1,).
        bar: bars of the file before each skyline note's, shape (N,) like the following; sorted by track, then by time.
        position: onset in steps from the bar line.
        bar_steps: steps in that bar.
        beat_steps: steps in a quarter note.
        pitch: MIDI pitch.
        duration: length in steps, cut at the track's next onset.
        is_alone: whether no other note of the track overlaps it.
        notes: number of notes of each track before the skyline, shape (K,).

    Returns:
        The features in the order of `TRACK_FEATURES`, float64, shape (K, F).
    """
    found = np.zeros((len(notes), len(TRACK_FEATURES)))
    first, number, mean_pitch, onsets, content = find_bars(track_first, bar, position, bar_steps, pitch)
    for track in range(len(notes)):
        begin, end = track_first[track], track_first[track + 1]
        if begin < end:
            row = found[track]
            row[SKYLINE], row[MONOPHONY] = (end - begin) / notes[track], is_alone[begin:end].sum() / notes[track]
            describe_pitches(pitch[begin:end], row)
            describe_rhythm(
                bar[begin:end],
                position[begin:end],
                bar_steps[begin:end],
                beat_steps[begin:end],
                pitch[begin:end],
                duration[begin:end],
                row,
            )
            describe_bars(onsets[first[track] : first[track + 1]], content[first[track] : first[track + 1]], row)
    for file in range(len(file_first) - 1):
        begin, end = file_first[file], file_first[file + 1]
        compare_tracks(first[begin : end + 1], number, mean_pitch, onsets, found[begin:end])
    return found


@njit(cache=True)
def find_bars(track_first, bar, position, bar_steps, pitch):
    """Sum up each bar in which a track has an onset, in the order of the notes.

    Returns:
        Index of each track's first such bar, and the number of all, shape (K + 1,); then of each, shape (R,): the bars
        of the file before it, its mean pitch, its onsets as bits, and a hash of its notes' onsets and pitches.
    """
    first = np.zeros(len(track_first), np.int64)
    number, mean_pitch = np.empty(len(bar), np.int64), np.empty(len(bar))
    onsets, content = np.zeros(len(bar), np.uint64), np.zeros(len(bar), np.uint64)
    found = 0
    for track in range(len(track_first) - 1):
        begin, end, pitch_sum = track_first[track], track_first[track + 1], 0
        for note in range(begin, end):
            height, at, size = np.int64(pitch[note]), np.int64(position[note]), np.int64(bar_steps[note])
            pitch_sum += height
            onsets[found] |= np.uint64(1) << np.uint64(at if size <= BAR_SLOTS else at * BAR_SLOTS // size)
            content[found] = content[found] * np.uint64(HASH_FACTOR) + np.uint64((at << 7 | height) + 1)
            if note + 1 == end or bar[note + 1] != bar[note]:
                number[found], mean_pitch[found] = bar[note], pitch_sum / (note + 1 - begin)
                begin, pitch_sum = note + 1, 0
                found += 1
        first[track + 1] = found
    return first, number[:found], mean_pitch[:found], onsets[:found], content[:found]


@njit(cache=True)
def describe_pitches(pitch, row):
    """Write what the pitches of a track say into its row of features."""
    is_used = np.zeros(128, np.bool_)
    pitch_sum = vocal = 0
    for value in pitch:
        is_used[value] = True
        pitch_sum += np.int64(value)
        vocal += (value >= VOCAL_LOW) & (value <= VOCAL_HIGH)
    row[MEAN_PITCH], row[VOCAL_RANGE] = pitch_sum / len(pitch), vocal / len(pitch)
    row[LOG_NOTES], row[LOG_PITCHES] = np.log(len(pitch)), np.log(is_used.sum())


@njit(cache=True)
def describe_rhythm(bar, position, bar_steps, beat_steps, pitch, duration, row):
    """Write what a track's lengths, rests and intervals say into its row of features; far onsets make no interval."""
    notes = len(pitch)
    steps = leaps = intervals = interval_sum = rests = phrases = 0
    length_sum = phrase_end_sum = quarters = 0.0
    for note in range(notes):
        beat, length = beat_steps[note], min(duration[note] / beat_steps[note], LONGEST_QUARTERS)
        length_sum += length
        gap, is_bar_end = ENDLESS_STEPS, True
        if note + 1 < notes:
            gap = position[note + 1] - position[note] + (bar[note + 1] - bar[note]) * bar_steps[note]
            is_bar_end = bar[note + 1] != bar[note]
        quarters += bar_steps[note] / beat if is_bar_end else 0.0
        rests += gap - duration[note] >= REST_QUARTERS * beat
        if gap - duration[note] >= PHRASE_REST_QUARTERS * beat:
            phrases += 1
            phrase_end_sum += length
        if gap <= INTERVAL_QUARTERS * beat:
            interval = abs(np.int64(pitch[note + 1]) - np.int64(pitch[note]))
            intervals += 1
            interval_sum += min(interval, OCTAVE)
            steps += (interval == 1) | (interval == 2)
            leaps += interval >= LEAP
    if intervals > 0:
        row[STEPS], row[LEAPS], row[MEAN_INTERVAL] = steps / intervals, leaps / intervals, interval_sum / intervals
    row[LOG_DENSITY], row[LOG_DURATION] = np.log(notes / quarters), np.log(length_sum / notes)
    row[RESTS] = rests / notes
    row[PHRASE_END] = np.log((phrase_end_sum / phrases + LENGTH_FLOOR) / (length_sum / notes + LENGTH_FLOOR))


@njit(cache=True)
def describe_bars(onsets, content, row):
    """Write how much a track repeats its bars, those of `find_bars`, into its row of features."""
    ordered = np.sort(content)
    row[SAME_RHYTHM] = (onsets[1:] == onsets[:-1]).sum() / max(len(onsets) - 1, 1)
    row[NEW_BARS] = (1 + (ordered[1:] != ordered[:-1]).sum()) / len(ordered)


@njit(cache=True)
def compare_tracks(first, number, mean_pitch, onsets, rows):
    """Write how each track of a file lies beside the others, bar by bar, into its row of features.

    Args:
        first: index of each track's first bar with an onset, and of the first after the file, shape (tracks + 1,).
        number: of `find_bars`, like the next two.
        mean_pitch: of each bar.
        onsets: of each bar.
        rows: of the file's tracks, shape (tracks, F).
    """
    if first[0] == first[-1]:
        return
    slots = min(number[first[0] : first[-1]].max() + 1, MAX_BARS)
    is_played = np.zeros(slots, np.bool_)
    top, bottom = np.full(slots, -np.inf), np.full(slots, np.inf)  # of the tracks' mean pitches
    once, twice = np.zeros(slots, np.uint64), np.zeros(slots, np.uint64)  # onsets of at least one and two tracks
    for at in range(first[0], first[-1]):
        slot = number[at] % slots
        is_played[slot] = True
        top[slot], bottom[slot] = max(top[slot], mean_pitch[at]), min(bottom[slot], mean_pitch[at])
        twice[slot] |= once[slot] & onsets[at]
        once[slot] |= onsets[at]
    file_bars = is_played.sum()
    for track in range(len(rows)):
        bars, highest, lowest, shared, onset_sum = first[track + 1] - first[track], 0, 0, 0, 0
        for at in range(first[track], first[track + 1]):
            slot = number[at] % slots
            highest += mean_pitch[at] >= top[slot]
            lowest += mean_pitch[at] <= bottom[slot]
            shared += count_bits(onsets[at] & twice[slot])
            onset_sum += count_bits(onsets[at])
        if bars > 0:
            row = rows[track]
            row[COVERAGE], row[HIGHEST], row[LOWEST] = bars / file_bars, highest / bars, lowest / bars
            row[SHARED_ONSETS] = shared / onset_sum


@lru_cache(maxsize=1)
def read_weights() -> dict[str, np.ndarray]:
    """Read the fitted weights.

    Returns:
        Those of each column of `design` (shape (D,)), of a bias and of two kinds of names; the three numbers of the
        calibration, see `lead_scores`; and the floor, the score below which the best track of a file is no lead.
    """
    stored = json.loads(WEIGHTS_PATH.read_text(encoding="utf-8"))
    assert tuple(stored["features"]) == TRACK_FEATURES, f"{WEIGHTS_PATH} is of other features; fit it again"
    of_features = stored["features"].values()
    columns = {key: np.array([weights[key] for weights in of_features]) for key in ("mean", "scale")}
    linear, square = ([weights[key] for weights in of_features] for key in ("linear", "square"))
    program = [stored["program"][family] for family in PROGRAM_FAMILIES]
    return {
        **columns,
        "design": np.array([*linear, *square, *program]),
        **{key: np.array(stored[key]) for key in ("bias", "tune_name", "other_name", "floor")},
        "calibration": np.array([stored["calibration"][key] for key in ("utility", "rivals", "bias")]),
    }


def design(features: np.ndarray, program: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return what the utility is linear in: standardised features, their squares, and the family of the program.

    Args:
        features: of each track, shape (K, F).
        program: General MIDI programs, shape (K,).
        mean: of each feature, shape (F,).
        scale: standard deviation of each feature, shape (F,).

    Returns:
        Shape (K, D), D = 2 F + 16.
    """
    standard = ((features - mean) / scale).clip(-LARGEST_DEVIATION, LARGEST_DEVIATION)
    families = np.eye(len(PROGRAM_FAMILIES))[program // (128 // len(PROGRAM_FAMILIES))]
    return np.concatenate([standard, standard**2 / 2, families], axis=1)


def utilities(features: np.ndarray, program: np.ndarray, hints: np.ndarray) -> np.ndarray:
    """Rate each track by itself: the logarithm of its odds to be the tune of its file.

    Args:
        features: what `track_features` gave, shape (K, F).
        program: General MIDI program of each track, shape (K,); all 0 where they are unknown.
        hints: `name_hint` of the track's name, shape (K,).

    Returns:
        Shape (K,). The best track of a file is the first of those with the highest utility.
    """
    weights = read_weights()
    utility = weights["bias"] + design(features, program, weights["mean"], weights["scale"]) @ weights["design"]
    utility = utility + np.where(hints > 0, weights["tune_name"], weights["other_name"]) * hints
    return utility.round(UTILITY_DECIMALS)


def rival_odds(utility: np.ndarray, competes: np.ndarray, file_tracks: np.ndarray) -> np.ndarray:
    """Return log(1 + sum of the odds of the file's other tracks that compete), shape (K,).

    Args:
        utility: of each track, shape (K,).
        competes: whether it can be the lead, shape (K,).
        file_tracks: where each file's tracks begin and the last ends, shape (F + 1,).
    """
    file = np.repeat(np.arange(len(file_tracks) - 1), np.diff(file_tracks))
    odds = np.exp(utility.clip(-LARGEST_LOG_ODDS, LARGEST_LOG_ODDS)) * competes
    return np.log1p((np.bincount(file, odds, len(file_tracks) - 1)[file] - odds).clip(0.0))


def lead_scores(utility: np.ndarray, competes: np.ndarray, file_tracks: np.ndarray) -> np.ndarray:
    """Return the probability of each track to be the tune of its file, given what competes with it.

    Args:
        utility: what `utilities` gave, shape (K,).
        competes: whether the track has a melody line, shape (K,).
        file_tracks: where each file's tracks begin and the last ends, shape (F + 1,).

    Returns:
        Scores from 0 to 1, shape (K,), calibrated by `fit_lead_score`. In a file they are in the order of the utility.
    """
    of_utility, of_rivals, bias = read_weights()["calibration"]
    log_odds = of_utility * utility - of_rivals * rival_odds(utility, competes, file_tracks) + bias
    return 1 / (1 + np.exp(-log_odds.round(UTILITY_DECIMALS)))


def has_highest(utility: np.ndarray, file_tracks: np.ndarray) -> np.ndarray:
    """Tell which tracks have the highest utility of their file, shape (K,); several where it is equal."""
    if not len(utility):
        return np.zeros(0, dtype=bool)
    file = np.repeat(np.arange(len(file_tracks) - 1), np.diff(file_tracks))
    highest = np.full(len(file_tracks) - 1, -np.inf)
    np.maximum.at(highest, file, utility)
    return utility == highest[file]


@njit(cache=True)
def find_doubles(
    track_first: np.ndarray,
    file_tracks: np.ndarray,
    file_strands: np.ndarray,
    strand: np.ndarray,
    step: np.ndarray,
    pitch: np.ndarray,
    utility: np.ndarray,
) -> np.ndarray:
    """Find tracks that double another of their file: nearly all of their notes at its onsets, octaves apart or not.

    Args:
        track_first: index of each track's first skyline note, and the number of all, shape (K + 1,).
        file_tracks: where each file's tracks begin and the last ends, shape (F + 1,).
        file_strands: where each file's strands begin and the last ends, shape (F + 1,).
        strand: of each note, shape (N,).
        step: onset of each note in its strand, shape (N,).
        pitch: of each note, shape (N,).
        utility: of each track; of two that double each other the lower one is the double, else the later, shape (K,).

    Returns:
        For each track the one that it doubles, itself where it doubles none, shape (K,).
    """
    double_of = np.arange(len(utility))
    for file in range(len(file_tracks) - 1):
        first, last = file_tracks[file], file_tracks[file + 1]
        if last - first < 2:
            continue
        strands = (file_strands[file + 1] - file_strands[file]) // (last - first)  # of each track
        for one in range(first, last):
            if track_first[one + 1] - track_first[one] < MIN_DOUBLED_NOTES:
                continue  # thousands of tracks of a note are not compared with each other
            for other in range(one + 1, last):
                notes = min(track_first[one + 1] - track_first[one], track_first[other + 1] - track_first[other])
                most = max(track_first[one + 1] - track_first[one], track_first[other + 1] - track_first[other])
                if notes < MIN_DOUBLED_NOTES or notes < DOUBLED * most:
                    continue
                # Go through the notes of both tracks side by side, and count those that are equal but for octaves.
                left, right, shared = track_first[one], track_first[other], 0
                apart = (other - one) * strands
                while left < track_first[one + 1] and right < track_first[other + 1]:
                    later = (strand[left] + apart - strand[right]) * MAX_STEPS + step[left] - step[right]
                    if later == 0:
                        shared += (np.int64(pitch[left]) - np.int64(pitch[right])) % OCTAVE == 0
                    left += later <= 0
                    right += later >= 0
                if shared >= DOUBLED * most:
                    if utility[other] > utility[one]:
                        double_of[one] = other
                    else:
                        double_of[other] = one
    return double_of
