"""What can be measured of a melody: its notes read from tokens, its key, and seven attributes.

A *line* is a dict as the processor has it: `pitch`, `start` and `duration` (lists; grid steps from the first bar line),
`time_signature`, `steps_per_beat` and `bars`. Nothing here needs torch: the ONNX graphs are run with this file too.
"""

import math
import operator
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from .melody_rules_melody_vae import KEY_NAMES, MAJOR_PROFILE, MINOR_PROFILE, PITCH_NAMES
from .melody_rules_melody_vae import MAX_PITCH as MAX_PITCH
from .melody_rules_melody_vae import MIN_PITCH as MIN_PITCH

# A REMI token as one integer: its kind times `BASE_TOKEN_VALUES`, and its value. 0 is none.
BASE_TOKEN_KINDS = {"Bar": 1, "TimeSig": 2, "Position": 3, "Pitch": 4, "Duration": 5}
BASE_TOKEN_VALUES = 1 << 12

NATURALS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
ACCIDENTALS = {"": 0, "#": 1, "\u266f": 1, "b": -1, "\u266d": -1}

MAX_NOTE_BEATS = 16
TIME_SIGNATURES = {4: [2, 3, 4, 5, 6, 7], 8: [3, 5, 6, 7, 9, 12]}  # denominator: numerators

# Quarter notes per minute: where a class begins and ends, and the median of the training data (Lakh) in it.
TEMPO_CLASSES = {"slow": (0.0, 90.0, 76.0), "medium": (90.0, 130.0, 115.0), "fast": (130.0, math.inf, 150.0)}


def tonic_of(name: str) -> int | None:
    """Read a tonic such as `C`, `F#` or `Bb` as a pitch class, C being 0; None if it is none."""
    natural, accidental = name[:1].upper(), name[1:]
    if natural not in NATURALS or accidental not in ACCIDENTALS:
        return None
    return (NATURALS[natural] + ACCIDENTALS[accidental]) % 12


def tempo_class(quarters_per_minute: float) -> str:
    """Return the name of a tempo's class."""
    return next(name for name, (low, high, _) in TEMPO_CLASSES.items() if low <= quarters_per_minute < high)


def is_supported(time_signature: str) -> bool:
    """Whether the vocabulary has a token for a time signature such as `6/8`."""
    numerator, denominator = map(int, time_signature.split("/"))
    return numerator in TIME_SIGNATURES.get(denominator, ())


def readable_time_signature(numerator: int, denominator: int) -> tuple[int, int]:
    """Find the time signature of the vocabulary that is nearest to another one.

    Bars are split into equal ones (8/4 into 4/4, 9/4 into 3/4), four of one beat are joined (1/4 to 4/4, which is what
    most of POP909 is written in), and eighths are counted as quarters (4/8 as 2/4). Of other bars, as many as are
    nearest in length take the place of one (12/8 of 11/8, two of 6/4 of 13/4).
    """
    if equal := [each for each in TIME_SIGNATURES.get(denominator, ()) if numerator % each == 0]:
        return max(equal), denominator
    if numerator == 1:
        return readable_time_signature(4, denominator)
    if numerator % 2 == 0 and denominator > 4:
        return readable_time_signature(numerator // 2, denominator // 2)
    beats = max(numerator * 8 / denominator if denominator > 8 else numerator, 1.0)
    denominator = min(denominator, 8)

    def misfit(each: int) -> float:
        return abs(beats - max(round(beats / each), 1) * each) / each

    return min(reversed(TIME_SIGNATURES[denominator]), key=misfit), denominator


def read_line(base_tokens: Iterable[int], steps_per_beat: int) -> dict[str, Any]:
    """Read the notes of a valid melody from its REMI tokens.

    Args:
        base_tokens: Tokens as integers, see `BASE_TOKEN_VALUES`.
        steps_per_beat: Grid steps per beat.

    Returns:
        A line; the time signature is that of its first bar, 4/4 if it has no bar.
    """
    signature, bar = 0, -1
    onset, pitch, duration = [], [], []
    for base_token in base_tokens:
        kind, value = divmod(base_token, BASE_TOKEN_VALUES)
        if kind == BASE_TOKEN_KINDS["Bar"]:
            bar += 1
        elif kind == BASE_TOKEN_KINDS["TimeSig"]:
            signature = signature or value
        elif kind == BASE_TOKEN_KINDS["Position"]:
            onset.append(bar * (signature // 64) * steps_per_beat + value)
        elif kind == BASE_TOKEN_KINDS["Pitch"]:
            pitch.append(value)
        elif kind == BASE_TOKEN_KINDS["Duration"]:
            duration.append(value)
    numerator, denominator = divmod(signature or 64 * 4 + 4, 64)
    whole = min(len(onset), len(pitch), len(duration))  # a melody that is cut short may end within a note
    return {
        "pitch": pitch[:whole],
        "start": onset[:whole],
        "duration": duration[:whole],
        "time_signature": f"{numerator}/{denominator}",
        "steps_per_beat": steps_per_beat,
        "bars": bar + 1,
    }


def write_line(line: Mapping[str, Any]) -> list[list[int]]:
    """Write a line as REMI tokens, those of each bar for itself: what [`read_line`] reads, joined.

    Args:
        line: Its notes are sorted, one at a time, and begin within its bars.

    Returns:
        `line["bars"]` lists of integers, see `BASE_TOKEN_VALUES`.
    """
    numerator, denominator = map(int, line["time_signature"].split("/"))
    steps = steps_per_bar(line)
    bar, signature, position, note, length = (number * BASE_TOKEN_VALUES for number in BASE_TOKEN_KINDS.values())
    bars = [[bar, signature + 64 * numerator + denominator] for _ in range(line["bars"])]
    for start, duration, pitch in zip(line["start"], line["duration"], line["pitch"], strict=True):
        bars[start // steps] += position + start % steps, note + pitch, length + duration
    return bars


def steps_per_bar(line: Mapping[str, Any]) -> int:
    """Grid steps in each bar of a line."""
    return int(line["time_signature"].split("/")[0]) * line["steps_per_beat"]


def key_of(line: Mapping[str, Any]) -> str:
    """Find the key of a line, see [`keys_of`]."""
    weight = [0.0] * 12
    for pitch, duration in zip(line["pitch"], line["duration"], strict=True):
        weight[pitch % 12] += duration
    return keys_of([weight])[0]


def keys_of(weights: Iterable[Sequence[float]]) -> list[str]:
    """Find keys by the Krumhansl-Schmuckler algorithm: of `KEY_NAMES`, for how long melodies are in each pitch class.

    `C major` where all pitch classes weigh the same; a tie goes to the first of `KEY_NAMES`.

    Args:
        weights: Twelve of each melody.
    """
    found = []
    for weight in weights:
        mean = sum(weight) / 12
        length = math.sqrt(sum((each - mean) ** 2 for each in weight))
        centred = [(each - mean) / length if length >= 1e-9 else 0.0 for each in weight]
        best, highest = 0, -math.inf
        for place, profile in enumerate(KEY_PROFILES):
            correlation = sum(map(operator.mul, centred, profile))
            if correlation > highest + 1e-9:
                best, highest = place, correlation
        found.append(KEY_NAMES[best])
    return found


def major_tonic(key: str) -> int:
    """Find the pitch class of the major key that has the key signature of a key such as `D minor`; 0 is C."""
    tonic, mode = key.split()
    return (PITCH_NAMES.index(tonic) + 3 * (mode == "minor")) % 12


def transpose_line(line: Mapping[str, Any], from_tonic: int, to_tonic: int, pitches: Sequence[int]) -> dict | None:
    """Transpose a line from one tonic to another, by six semitones at most.

    Args:
        line: With notes or without.
        from_tonic: Pitch class.
        to_tonic: Pitch class.
        pitches: That the vocabulary has, ascending.

    Returns:
        The line; None if it has no notes, or one that would leave the vocabulary.
    """
    up = (to_tonic - from_tonic + 6) % 12 - 6
    moved = [pitch + up for pitch in line["pitch"]]
    return {**line, "pitch": moved} if moved and pitches[0] <= min(moved) and max(moved) <= pitches[-1] else None


def _key_profiles() -> list[list[float]]:
    """Return the twelve ratings of each of `KEY_NAMES`, centred and of length 1."""
    profiles = []
    for ratings in (MAJOR_PROFILE, MINOR_PROFILE):
        mean = sum(ratings) / 12
        length = math.sqrt(sum((rating - mean) ** 2 for rating in ratings))
        centred = [(rating - mean) / length for rating in ratings]
        profiles += [[centred[(pitch - tonic) % 12] for pitch in range(12)] for tonic in range(12)]
    return profiles


KEY_PROFILES = _key_profiles()


def note_density(line: Mapping[str, Any]) -> float:
    """Return notes per bar."""
    return len(line["pitch"]) / line["bars"] if line["bars"] else 0.0


def rhythmic_complexity(line: Mapping[str, Any]) -> float:
    """Return the entropy, in bits, of the inter-onset intervals in steps; 0 for fewer than two notes."""
    counts = Counter(after - before for before, after in pairwise(line["start"]))
    total = max(counts.total(), 1)
    return -sum(count / total * math.log2(count / total) for count in counts.values()) if len(counts) > 1 else 0.0


def pitch_range(line: Mapping[str, Any]) -> float:
    """Return the semitones from the lowest to the highest note."""
    return float(max(line["pitch"]) - min(line["pitch"])) if len(line["pitch"]) else 0.0


def mean_pitch(line: Mapping[str, Any]) -> float:
    """Return the mean MIDI pitch of the notes; 60 for none."""
    return sum(map(int, line["pitch"])) / len(line["pitch"]) if len(line["pitch"]) else 60.0


def contour(line: Mapping[str, Any]) -> float:
    """Return Kendall's tau-a of onset and pitch: 1 for a line that only rises, -1 for one that only falls."""
    before: list[int] = []  # pitches, ascending
    rises = 0
    for pitch in line["pitch"]:
        rises += bisect_left(before, pitch) - (len(before) - bisect_right(before, pitch))
        insort(before, pitch)
    return rises / math.comb(len(before), 2) if len(before) > 1 else 0.0


def repetition(line: Mapping[str, Any]) -> float:
    """Return the share of bars whose onsets and intervals occurred in a bar before; empty bars do not count."""
    steps = steps_per_bar(line)
    bars: dict[int, list[tuple[int, int]]] = {}
    for start, pitch in zip(line["start"], line["pitch"], strict=True):
        bars.setdefault(start // steps, []).append((start % steps, pitch))
    shapes = [
        (*(start for start, _ in notes), None, *(after - before for (_, before), (_, after) in pairwise(notes)))
        for notes in bars.values()
    ]
    return 1 - len(set(shapes)) / len(shapes) if shapes else 0.0


def syncopation(line: Mapping[str, Any]) -> float:
    """Return the share of notes that begin off the beat and sound on, or into, the next beat's first half.

    After Longuet-Higgins and Lee (1984): an onset at a weak place whose next stronger place, the coming beat, has no
    onset of its own.
    """
    beat, onsets = line["steps_per_beat"], set(line["start"])
    found = 0
    for start, duration in zip(line["start"], line["duration"], strict=True):
        coming = (start // beat + 1) * beat
        found += start % beat != 0 and coming not in onsets and start + duration > coming
    return found / len(line["start"]) if len(line["start"]) else 0.0


def known_key(line: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """Find the key of a melody; None where it has no notes, or its key is none of `keys`."""
    key = key_of(line) if line["pitch"] else None
    return key if key in keys else None


def read_conditions(
    lines: Sequence[Mapping[str, Any]], known: Mapping[str, Sequence[str]], attributes: Mapping[str, Sequence[float]]
) -> dict[str, list]:
    """Read conditions from melodies, a list for each; None is what a melody does not say, or is not known.

    Args:
        lines: One for each melody.
        known: Values of conditions; key and time signature are read, genre and tempo no melody says.
        attributes: Measured, one for each melody; of a melody without notes they are left out.
    """
    found: dict[str, list] = {}
    if "key" in known:
        found["key"] = [known_key(line, known["key"]) for line in lines]
    if "time_signature" in known:
        signatures = [line["time_signature"] for line in lines]
        found["time_signature"] = [each if each in known["time_signature"] else None for each in signatures]
    for name, values in attributes.items():
        found[name] = [value if line["pitch"] else None for value, line in zip(values, lines, strict=True)]
    return found


ATTRIBUTES = {
    function.__name__: function
    for function in (note_density, rhythmic_complexity, pitch_range, mean_pitch, contour, repetition, syncopation)
}
