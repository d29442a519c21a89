"""Which track of a file is the tune that one would hum: features of every track, and a calibrated score from 0 to 1.

The weights are fitted by `dataset_script.fit_lead_score` and lie beside this file in `lead_score.json`.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
from numba import njit

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

VOCAL_LOW, VOCAL_HIGH = 55, 79  # G3 to G5, where most tunes lie as they are written down for singers
LEAP, OCTAVE = 8, 12
LONGEST_QUARTERS = 8.0  # longer notes count as this long
INTERVAL_QUARTERS = 4.0  # onsets further apart make no interval
REST_QUARTERS, PHRASE_REST_QUARTERS = 0.5, 1.0  # silence that is a rest, and that ends a phrase
LENGTH_FLOOR = 0.1  # quarter notes, added to both lengths that `phrase_end` compares
BAR_SLOTS = 64  # onsets of a bar are bits of one word: longer bars have a coarser grid
MAX_BARS = 1 << 16  # bars of longer files share their place with bars that many later
HASH_FACTOR = 0x9E3779B97F4A7C15  # odd, bits well mixed: 2**64 over the golden ratio

PROGRAM_FAMILIES = (
    "piano", "chromatic percussion", "organ", "guitar", "bass", "strings", "ensemble", "brass",
    "reed", "pipe", "synth lead", "synth pad", "synth effects", "ethnic", "percussive", "sound effects",
)  # fmt: skip
"""General MIDI's families, of eight programs each."""
UTILITY_DECIMALS = 6  # coarser than what the order of summation changes, so that every machine finds the same ties
LARGEST_LOG_ODDS = 50.0  # utilities further from 0 count as that far among rivals
DOUBLED, MIN_DOUBLED_NOTES = 0.9, 16  # a share of the notes that two tracks have in common, and the fewest to tell it
LARGEST_DEVIATION = 4.0  # features further from their mean, in standard deviations, count as that far


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

    Linear in the number of notes: one pass over the notes describes each track and sums up each of its bars, two more
    over these bars compare the tracks. A track without notes has zeros everywhere and does not count in its file.

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
    tracks = len(track_first) - 1
    found = np.zeros((tracks, len(TRACK_FEATURES)))
    # One record for each bar in which a track has an onset, in the order of the notes.
    record_first = np.zeros(tracks + 1, np.int64)
    record_bar, record_mean = np.empty(len(bar), np.int64), np.empty(len(bar))
    record_onsets, record_hash = np.empty(len(bar), np.uint64), np.empty(len(bar), np.uint64)
    used_by = np.full(128, -1)  # the last track that had the pitch
    records = longest = last_bar = 0
    for track in range(tracks):
        record_first[track] = records
        begin, end = track_first[track], track_first[track + 1]
        if begin == end:
            continue
        alone = pitches = vocal = steps = leaps = intervals = rests = phrases = 0
        pitch_sum = interval_sum = bar_sum = 0
        length_sum = phrase_end_sum = quarters = 0.0
        onsets, content = np.uint64(0), np.uint64(0)
        bar_begin = begin
        for note in range(begin, end):
            height, at, size = np.int64(pitch[note]), np.int64(position[note]), np.int64(bar_steps[note])
            beat = beat_steps[note]
            if used_by[height] != track:
                used_by[height] = track
                pitches += 1
            alone += is_alone[note]
            vocal += (height >= VOCAL_LOW) & (height <= VOCAL_HIGH)
            bar_sum += height
            onsets |= np.uint64(1) << np.uint64(at if size <= BAR_SLOTS else at * BAR_SLOTS // size)
            content = content * np.uint64(HASH_FACTOR) + np.uint64((at << 7 | height) + 1)
            length = min(duration[note] / beat, LONGEST_QUARTERS)
            length_sum += length
            is_last = note + 1 == end
            is_bar_end = is_last or bar[note + 1] != bar[note]
            if is_last:
                rests += 1
                phrases += 1
                phrase_end_sum += length
            else:
                gap = position[note + 1] - at
                if is_bar_end:
                    gap += (bar[note + 1] - bar[note]) * size
                silence = gap - duration[note]
                rests += silence >= REST_QUARTERS * beat
                if silence >= PHRASE_REST_QUARTERS * beat:
                    phrases += 1
                    phrase_end_sum += length
                if gap <= INTERVAL_QUARTERS * beat:
                    interval = abs(np.int64(pitch[note + 1]) - height)
                    intervals += 1
                    interval_sum += min(interval, OCTAVE)
                    steps += (interval == 1) | (interval == 2)
                    leaps += interval >= LEAP
            if is_bar_end:
                record_bar[records], record_mean[records] = bar[note], bar_sum / (note + 1 - bar_begin)
                record_onsets[records], record_hash[records] = onsets, content
                records += 1
                quarters += size / beat
                pitch_sum += bar_sum
                bar_sum, bar_begin = 0, note + 1
                onsets, content = np.uint64(0), np.uint64(0)
        kept = end - begin
        row = found[track]
        row[LOG_NOTES] = np.log(kept)
        row[SKYLINE], row[MONOPHONY] = kept / notes[track], alone / notes[track]
        row[MEAN_PITCH], row[VOCAL_RANGE], row[LOG_PITCHES] = pitch_sum / kept, vocal / kept, np.log(pitches)
        if intervals > 0:
            row[STEPS], row[LEAPS], row[MEAN_INTERVAL] = steps / intervals, leaps / intervals, interval_sum / intervals
        row[LOG_DENSITY], row[LOG_DURATION] = np.log(kept / quarters), np.log(length_sum / kept)
        row[RESTS] = rests / kept
        row[PHRASE_END] = np.log((phrase_end_sum / phrases + LENGTH_FLOOR) / (length_sum / kept + LENGTH_FLOOR))
        longest = max(longest, records - record_first[track])
        last_bar = max(last_bar, bar[end - 1])
    record_first[tracks] = records

    slots = min(last_bar + 1, MAX_BARS)
    playing = np.zeros(slots, np.int64)  # tracks with an onset in the bar
    top, bottom = np.full(slots, -np.inf), np.full(slots, np.inf)  # of their mean pitches
    once, twice = np.zeros(slots, np.uint64), np.zeros(slots, np.uint64)  # onsets of at least one and two tracks
    table_bits = 1
    while 1 << table_bits < 2 * longest:
        table_bits += 1
    # A hash table with linear probing of the bars of one track; the entries of earlier tracks count as free.
    table, owner = np.empty(1 << table_bits, np.uint64), np.full(1 << table_bits, -1)
    for file in range(len(file_first) - 1):
        first, last = record_first[file_first[file]], record_first[file_first[file + 1]]
        file_bars = 0
        for record in range(first, last):
            slot = record_bar[record] % slots
            file_bars += playing[slot] == 0
            playing[slot] += 1
            top[slot], bottom[slot] = max(top[slot], record_mean[record]), min(bottom[slot], record_mean[record])
            twice[slot] |= once[slot] & record_onsets[record]
            once[slot] |= record_onsets[record]
        for track in range(file_first[file], file_first[file + 1]):
            begin, end = record_first[track], record_first[track + 1]
            if begin == end:
                continue
            same = new = highest = lowest = shared = onset_sum = 0
            for record in range(begin, end):
                slot, onsets, content = record_bar[record] % slots, record_onsets[record], record_hash[record]
                highest += record_mean[record] >= top[slot]
                lowest += record_mean[record] <= bottom[slot]
                shared += count_bits(onsets & twice[slot])
                onset_sum += count_bits(onsets)
                if record > begin:
                    same += onsets == record_onsets[record - 1]
                place = np.int64((content * np.uint64(HASH_FACTOR)) >> np.uint64(64 - table_bits))
                while owner[place] == track and table[place] != content:
                    place = (place + 1) & (len(table) - 1)
                if owner[place] != track:
                    owner[place], table[place] = track, content
                    new += 1
            bars = end - begin
            row = found[track]
            row[SAME_RHYTHM], row[NEW_BARS] = same / max(bars - 1, 1), new / bars
            row[COVERAGE], row[HIGHEST], row[LOWEST] = bars / file_bars, highest / bars, lowest / bars
            row[SHARED_ONSETS] = shared / onset_sum
        for record in range(first, last):
            slot = record_bar[record] % slots
            playing[slot], top[slot], bottom[slot] = 0, -np.inf, np.inf
            once[slot], twice[slot] = np.uint64(0), np.uint64(0)
    return found


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
            for other in range(one + 1, last):
                notes = min(track_first[one + 1] - track_first[one], track_first[other + 1] - track_first[other])
                most = max(track_first[one + 1] - track_first[one], track_first[other + 1] - track_first[other])
                if notes < MIN_DOUBLED_NOTES or notes < DOUBLED * most:
                    continue
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
