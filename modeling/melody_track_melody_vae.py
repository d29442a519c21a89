"""Which track of a MIDI file is its tune: the data set's lead score, for one file, from its notes on the bar grid.

The data set finds its leads with the same grid, skyline, features and weights, compiled for a million files; a test
asserts that both say the same. Here they are NumPy arrays, since this file ships to the Hub.

N notes · K tracks · G stretches of constant time signature · R bars of tracks that have an onset · F features
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from .melody_rules_melody_vae import (
    BAR_SLOTS,
    DOUBLED,
    HASH_FACTOR,
    INTERVAL_QUARTERS,
    LARGEST_DEVIATION,
    LARGEST_LOG_ODDS,
    LEAP,
    LENGTH_FLOOR,
    LONGEST_QUARTERS,
    MAX_BARS,
    MAX_DISCARDED,
    MAX_PITCH,
    MIN_BARS,
    MIN_DOUBLED_NOTES,
    MIN_PITCH,
    MIN_PITCHES,
    OCTAVE,
    PHRASE_REST_QUARTERS,
    REST_QUARTERS,
    UTILITY_DECIMALS,
    VOCAL_HIGH,
    VOCAL_LOW,
)
from .track_names_melody_vae import name_hint

MAX_STEPS, MAX_DURATION = 1 << 20, (1 << 16) - 1  # what the sort key of a note has room for
ENDLESS_TICKS = 1 << 40

# The weights that dataset_script/lead_score.json has.
FEATURES = {  # mean, standard deviation, weight, weight of half the square
    "log_notes": (5.234943, 1.001761, 0.399539, -0.206405),
    "skyline": (0.87234, 0.176175, 0.402125, 0.602682),
    "monophony": (0.843155, 0.212059, 0.92878, 0.398459),
    "mean_pitch": (60.565218, 13.752188, 0.37845, -0.532943),
    "vocal_range": (0.637708, 0.402479, 0.854756, 0.000317),
    "log_pitches": (2.461592, 0.511541, -0.994348, -0.843353),
    "steps": (0.340538, 0.211274, 0.606412, -0.770845),
    "leaps": (0.092517, 0.145839, -0.066248, 0.477877),
    "mean_interval": (2.998166, 1.76359, -0.531075, -0.039957),
    "log_density": (0.018346, 0.517009, -0.027729, -0.062304),
    "log_duration": (-0.232934, 0.62751, -0.06566, -0.354975),
    "rests": (0.157592, 0.177412, -0.130202, -0.064166),
    "phrase_end": (0.579668, 0.622516, 0.543665, -0.16302),
    "same_rhythm": (0.273357, 0.299839, -0.809168, 0.318065),
    "new_bars": (0.484056, 0.270632, 0.216115, -0.293283),
    "coverage": (0.637685, 0.313908, 0.98263, -1.206905),
    "highest": (0.290373, 0.344457, 0.365612, -0.12249),
    "lowest": (0.232708, 0.392339, -0.347085, -0.563216),
    "shared_onsets": (0.855078, 0.180354, -0.239384, -0.123687),
}
PROGRAMS = (  # what each of General MIDI's families of eight programs adds
    -0.047498, 0.005628, -0.061629, -0.540721, -0.263963, -0.100888, -0.030393, -0.153507,
    0.224288, 0.221635, 0.83654, 0.196706, 0.083365, -0.31196, -0.056725, -0.000881,
)  # fmt: skip
WEIGHTS = np.array(list(FEATURES.values())).T.copy()  # shape (4, F)
BIAS, TUNE_NAME_WEIGHT, OTHER_NAME_WEIGHT = -1.307939, 2.294841, 1.955896
CALIBRATION = (0.852669, 1.803945, 2.766778)  # of the log-odds, of those of its rivals, and a bias


class Stretch(NamedTuple):
    """A part of a file with one time signature: where it begins and how long it is, and the file's bars before it."""

    start_ticks: int
    length_ticks: int
    numerator: int
    denominator: int
    first_bar: int


class GridNotes(NamedTuple):
    """The pitched notes of a file, on its bar grid; integers of shape (N,).

    Attributes:
        track: Position of the note's track among those with notes.
        stretch: Index of its stretch.
        step: Onset in grid steps from there.
        pitch: MIDI pitch.
        duration: Length in grid steps.
    """

    track: np.ndarray
    stretch: np.ndarray
    step: np.ndarray
    pitch: np.ndarray
    duration: np.ndarray


class Skyline(NamedTuple):
    """The notes of every track that stay when it is made monophonic, by track and by time; shape (M,).

    Attributes:
        track: As in `GridNotes`, like the next three.
        stretch: Index of its stretch.
        step: Onset.
        pitch: MIDI pitch.
        duration: Length, cut where the next note begins.
        to_next: Steps to the track's next onset in the stretch, `MAX_STEPS` where there is none.
        is_alone: Whether the next note begins no earlier than about the note's own end.
    """

    track: np.ndarray
    stretch: np.ndarray
    step: np.ndarray
    pitch: np.ndarray
    duration: np.ndarray
    to_next: np.ndarray
    is_alone: np.ndarray


def bar_grid(time_signatures: Iterable[tuple[int, int, int]], ticks_per_quarter: int) -> list[Stretch]:
    """Find the stretches of constant time signature; 4/4 holds until the first signature.

    Halves become quarters (2/2 is 4/4), sixteenths and shorter become eighths where the numerator allows. A signature
    that is stated again on a bar line changes nothing; inside a bar, it starts a new one.

    Args:
        time_signatures: (ticks, numerator, denominator) of each.
        ticks_per_quarter: Resolution of the file.
    """
    whole_note_ticks = 4 * ticks_per_quarter
    found = [(0, 4, 4)]
    for time, numerator, denominator in sorted(time_signatures, key=lambda signature: signature[0]):
        if numerator < 1 or denominator < 1:
            continue
        while denominator < 4:
            numerator, denominator = 2 * numerator, 2 * denominator
        while denominator > 8 and numerator % 2 == 0:
            numerator, denominator = numerator // 2, denominator // 2
        start = max(time, 0)
        if start == found[-1][0]:  # the last of several at one place holds
            found.pop()
        is_restated = (
            bool(found)
            and found[-1][1:] == (numerator, denominator)
            and (start - found[-1][0]) * denominator % (whole_note_ticks * numerator) == 0
        )
        if not is_restated:
            found.append((start, numerator, denominator))
    grid, bars = [], 0
    for (start, numerator, denominator), (end, *_) in zip(
        found, [*found[1:], (found[-1][0] + ENDLESS_TICKS,)], strict=True
    ):
        grid.append(Stretch(start, end - start, numerator, denominator, bars))
        bars -= -(end - start) * denominator // (whole_note_ticks * numerator)
    return grid


def nearest_step(ticks, steps_per_whole, whole_note_ticks: int):
    """Return the grid step nearest to a time from the start of a stretch, halves upwards."""
    return (2 * ticks * steps_per_whole + whole_note_ticks) // (2 * whole_note_ticks)


def quantise(
    track: np.ndarray,
    time: np.ndarray,
    duration: np.ndarray,
    pitch: np.ndarray,
    grid: Sequence[Stretch],
    ticks_per_quarter: int,
    steps_per_beat: int,
) -> GridNotes:
    """Move onsets and ends to the nearest grid step.

    An onset that is nearest to the next stretch's first bar line belongs to that stretch. A note ends with its stretch
    at the latest and is at least one step long. Ornaments are left out, see [`is_ornament`].

    Args:
        track: Position of each note's track, shape (N,).
        time: Onsets in ticks, shape (N,).
        duration: Lengths in ticks, shape (N,).
        pitch: MIDI pitches, shape (N,).
        grid: What `bar_grid` returned.
        ticks_per_quarter: Resolution of the file.
        steps_per_beat: Grid steps in a beat, the note that the time signature's denominator names.

    Raises:
        ValueError: If a note is before the beginning or too far from it.
    """
    # Onsets in steps, counted from the last change of the time signature.
    whole = 4 * ticks_per_quarter
    start, length, _, denominator, _ = np.array(grid).T
    up = denominator * steps_per_beat  # steps in a whole note
    stretch = start.searchsorted(time, side="right") - 1
    if time.min() < 0:
        raise ValueError("a note begins before the file does")
    step = nearest_step(time - start[stretch], up[stretch], whole)
    # What is nearest to a later stretch's first bar line begins there; stretches shorter than half a step have none.
    following = np.arange(1, len(grid) + 1)
    for place in range(len(grid) - 2, -1, -1):
        if 2 * grid[place + 1].length_ticks * grid[place + 1].denominator * steps_per_beat <= whole:
            following[place] = following[place + 1]
    is_next = step * whole >= length[stretch] * up[stretch]
    stretch, step = np.where(is_next, following[stretch], stretch), np.where(is_next, 0, step)
    if step.max() >= MAX_STEPS:
        raise ValueError("a note is a million grid steps and more from the beginning")
    # Ends likewise, cut where the time signature changes.
    end = nearest_step(time + np.maximum(duration, 0) - start[stretch], up[stretch], whole)
    last = -(-length * up // whole)
    steps = np.clip(np.minimum(end, last[stretch]) - step, 1, MAX_DURATION)
    notes = GridNotes(track, stretch, step, pitch, steps)
    return leave_out_ornaments(notes, track * len(grid) + stretch, time, time + np.maximum(duration, 1))


def leave_out_ornaments(notes: GridNotes, voice: np.ndarray, begin: np.ndarray, end: np.ndarray) -> GridNotes:
    """Leave out notes that only decorate another of their voice and grid step, see [`is_ornament`]."""
    ornaments = is_ornament(voice << 20 | notes.step, begin, end)
    return notes if ornaments is None else GridNotes(*(column[~ornaments] for column in notes))


def is_ornament(voice: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray | None:
    """Tell which notes only decorate another of their grid step: only what overlaps in played time is a chord.

    Of two notes of which one ends before the other begins the longer one takes the step, the earlier one where they are
    equally long.

    Args:
        voice: One number for each voice and grid step, shape (N,).
        begin: Onset in ticks, shape (N,).
        end: End in ticks, later than the onset, shape (N,).

    Returns:
        Shape (N,), or None where every note has its step for itself.
    """
    order = voice.argsort(kind="stable")
    is_first = is_begin(voice[order])
    if is_first.all():
        return None
    is_shared = ~(is_first & is_end(voice[order]))
    shared, place = order[is_shared], is_first[is_shared].cumsum(dtype=np.int64)
    begin, end = begin[shared], end[shared]
    origin = begin.min()
    begin, end = begin - origin, end - origin
    span, length = end.max() + 1, end - begin

    def longest_before(time: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Return the greatest length of the notes of each place whose `time` is not after `at`, 0 for none."""
        key = place * span + time
        order = key.argsort(kind="stable")
        longest = np.maximum.accumulate((place * span + length)[order])
        last = key[order].searchsorted(place * span + at, side="right") - 1
        return np.maximum(np.where(last >= 0, longest[last] - place * span, 0), 0)

    # Time backwards is how to see the notes after.
    found = np.zeros(len(voice), dtype=bool)
    found[shared] = (longest_before(end, begin) >= length) | (longest_before(span - 1 - begin, span - 1 - end) > length)
    return found


def is_end(*columns: np.ndarray) -> np.ndarray:
    """Tell of each row whether the next one differs from it; the last row is an end too."""
    found = np.ones(len(columns[0]), dtype=bool)
    found[:-1] = columns[0][1:] != columns[0][:-1]
    for column in columns[1:]:
        found[:-1] |= column[1:] != column[:-1]
    return found


def is_begin(*columns: np.ndarray) -> np.ndarray:
    """Tell of each row whether it differs from the one before; the first row is a beginning too."""
    return before(is_end(*columns))


def after(values: np.ndarray) -> np.ndarray:
    """Return the value that follows each value, the first one after the last."""
    return np.concatenate([values[1:], values[:1]])


def before(values: np.ndarray) -> np.ndarray:
    """Return the value before each value, the last one before the first."""
    return np.concatenate([values[-1:], values[:-1]])


def skyline(notes: GridNotes, stretches: int) -> Skyline:
    """Make every track monophonic: of the notes with one onset the highest stays, and the next onset ends it."""
    onset = (notes.track * stretches + notes.stretch) << 20 | notes.step
    order = ((onset << 7 | 127 - notes.pitch) << 16 | MAX_DURATION - notes.duration).argsort(kind="stable")
    order = order[is_begin(onset[order])]  # the first of each onset
    track, stretch, step, pitch, duration = (column[order] for column in notes)
    to_next = np.where(is_end(track, stretch), MAX_STEPS, after(step) - step)
    # Legato playing holds a note a little into the next one: a step, or a quarter of its length.
    is_alone = duration - np.maximum(duration >> 2, 1) <= to_next
    return Skyline(track, stretch, step, pitch, np.minimum(duration, to_next), to_next, is_alone)


def count_distinct(values: np.ndarray, of: np.ndarray, size: int) -> np.ndarray:
    """Count the different values, each from 0 to `size` - 1, of each group."""
    return np.bincount(np.unique(of * size + values) // size)


def has_lines(sky: Skyline, tracks: int, grid: Sequence[Stretch], steps_per_beat: int) -> np.ndarray:
    """Tell of each track whether a part of it, split at silences of more than a bar, is a melody line, shape (K,)."""
    size = np.array(grid)[sky.stretch, 2] * steps_per_beat
    ends = (sky.to_next == MAX_STEPS) | (sky.to_next - sky.duration > size)
    begins = before(ends)
    bars = (-(-(sky.step + sky.duration) // size))[ends] - (sky.step // size)[begins]
    pitches = count_distinct(sky.pitch, begins.cumsum() - 1, 128)
    first = begins.nonzero()[0]
    is_line = (bars >= MIN_BARS) & (bars <= MAX_BARS) & (pitches >= MIN_PITCHES)
    is_line &= np.minimum.reduceat(sky.pitch, first) >= MIN_PITCH
    is_line &= np.maximum.reduceat(sky.pitch, first) <= MAX_PITCH
    return np.bincount(sky.track[ends][is_line], minlength=tracks) > 0


def describe_tracks(sky: Skyline, found: np.ndarray, grid: Sequence[Stretch], steps_per_beat: int) -> np.ndarray:
    """Describe every track: by itself, and beside the others of its file.

    Args:
        sky: Of all tracks.
        found: Number of notes of each track before the skyline, shape (K,).
        grid: Of the notes.
        steps_per_beat: Grid steps in a beat.

    Returns:
        The `FEATURES`, float64, shape (K, F).
    """
    track, pitch, duration = sky.track, sky.pitch, sky.duration

    def total(values: np.ndarray, of: np.ndarray = track) -> np.ndarray:
        return np.bincount(of, values, len(found))

    # Where each note stands, and how far it is to the next one.
    numerator, denominator, first_bar = np.array(grid)[sky.stretch, 2:].T
    size, beat = numerator * steps_per_beat, denominator * steps_per_beat / 4  # steps in a bar, in a quarter
    in_stretch = sky.step // size
    bar, position = first_bar + in_stretch, sky.step - in_stretch * size
    is_last, is_bar_end, kept = is_end(track), is_end(track, bar), np.bincount(track)
    gap = after(position) - position + (after(bar) - bar) * size  # to the next onset, where there is one
    is_phrase_end = is_last | (gap - duration >= PHRASE_REST_QUARTERS * beat)
    leads_on = ~is_last & (gap <= INTERVAL_QUARTERS * beat)
    interval, intervals = abs(after(pitch) - pitch), np.maximum(total(leads_on), 1)
    length = np.minimum(duration / beat, LONGEST_QUARTERS)
    mean_length, phrase_end = total(length) / kept, total(length * is_phrase_end) / total(is_phrase_end)

    features = {
        "log_notes": np.log(kept),
        "skyline": kept / found,
        "monophony": total(sky.is_alone) / found,
        "mean_pitch": total(pitch) / kept,
        "vocal_range": total((pitch >= VOCAL_LOW) & (pitch <= VOCAL_HIGH)) / kept,
        "log_pitches": np.log(count_distinct(pitch, track, 128)),
        "steps": total(leads_on & (interval >= 1) & (interval <= 2)) / intervals,
        "leaps": total(leads_on & (interval >= LEAP)) / intervals,
        "mean_interval": total(leads_on * np.minimum(interval, OCTAVE)) / intervals,
        "log_density": np.log(kept / total((size / beat)[is_bar_end], track[is_bar_end])),
        "log_duration": np.log(mean_length),
        "rests": total(is_last | (gap - duration >= REST_QUARTERS * beat)) / kept,
        "phrase_end": np.log((phrase_end + LENGTH_FLOOR) / (mean_length + LENGTH_FLOOR)),
    } | describe_bars(sky, bar, position, size, is_bar_end)
    return np.stack([features[name] for name in FEATURES], axis=1)


def describe_bars(
    sky: Skyline, bar: np.ndarray, position: np.ndarray, size: np.ndarray, is_bar_end: np.ndarray
) -> dict[str, np.ndarray]:
    """Describe every track by the bars in which it has an onset: its records, by track and by time.

    Args:
        sky: Of all tracks.
        bar: Of each note, shape (M,).
        position: In the bar, in steps, shape (M,).
        size: Steps in the bar, shape (M,).
        is_bar_end: Whether a note is its track's last in the bar, shape (M,).

    Returns:
        Those of the `FEATURES` that compare bars, float64, shape (K,) each.
    """
    track, pitch = sky.track, sky.pitch
    # Bars with the same notes have the same hash: those that differ are counted.
    is_bar_begin = before(is_bar_end)
    record, owner, begin = is_bar_begin.cumsum() - 1, track[is_bar_end], is_bar_begin.nonzero()[0]
    bars, end = np.bincount(owner), is_bar_end.nonzero()[0]
    to_bar_end = end[record] - np.arange(len(record))
    powers = np.full(to_bar_end.max() + 1, HASH_FACTOR - (1 << 64)).cumprod()
    content = np.add.reduceat(((position << 7 | pitch) + 1) * powers[to_bar_end], begin)
    contents, content = np.unique(content, return_inverse=True)
    new_bars = count_distinct(content, owner, len(contents))

    # How high each bar is, beside those of the other tracks in the same bar.
    mean_pitch = np.bincount(record, pitch) / (end - begin + 1)
    file_bars, file_bar = np.unique(bar[is_bar_end], return_inverse=True)
    highest, lowest = np.empty(len(file_bars)), np.empty(len(file_bars))
    highest[file_bar] = lowest[file_bar] = mean_pitch  # of any track, to begin with
    np.maximum.at(highest, file_bar, mean_pitch)
    np.minimum.at(lowest, file_bar, mean_pitch)

    # The rhythm of a bar as bits, one for each slot; what follows compares it with the next bar's and other tracks'.
    slot = np.where(size <= BAR_SLOTS, position, position * BAR_SLOTS // size)
    onset = record * BAR_SLOTS + slot  # rising
    onset = onset[is_end(onset)]
    record, slot = onset // BAR_SLOTS, onset % BAR_SLOTS
    rhythm = np.add.reduceat(1 << slot, is_begin(record).nonzero()[0])
    is_same = ~is_end(owner) & (after(rhythm) == rhythm)
    _, place, users = np.unique(file_bar[record] * BAR_SLOTS + slot, return_inverse=True, return_counts=True)

    return {
        "same_rhythm": np.bincount(owner, is_same) / np.maximum(bars - 1, 1),
        "new_bars": new_bars / bars,
        "coverage": bars / len(file_bars),
        "highest": np.bincount(owner, mean_pitch == highest[file_bar]) / bars,
        "lowest": np.bincount(owner, mean_pitch == lowest[file_bar]) / bars,
        "shared_onsets": np.bincount(owner[record], users[place] > 1) / np.bincount(owner[record]),
    }


def weigh_name(name: str) -> float:
    """Return what a track's name adds: that of a tune (melody, vocal, lead, ...) or of an accompaniment."""
    hint = name_hint(name)
    return hint * (TUNE_NAME_WEIGHT if hint > 0 else OTHER_NAME_WEIGHT)


def is_double(sky: Skyline, utility: np.ndarray, stretches: int) -> np.ndarray:
    """Tell which tracks double a likelier one: nearly all notes at the same onsets, octaves apart or not, shape (K,).

    Args:
        sky: Of all tracks.
        utility: Of each track, shape (K,); of two that are equal the earlier one is likelier.
        stretches: Number of stretches.
    """
    tracks = len(utility)
    kept = np.bincount(sky.track, minlength=tracks)
    most, least = np.maximum(kept[:, None], kept), np.minimum(kept[:, None], kept)
    is_alike = (least >= MIN_DOUBLED_NOTES) & (least >= DOUBLED * most)
    if tracks < 2 or not np.triu(is_alike, 1).any():
        return np.zeros(tracks, dtype=bool)
    # Count the notes that each two tracks share, as a product of matrices: tracks by places, some of them at a time.
    place = np.unique((sky.stretch << 20 | sky.step) * OCTAVE + sky.pitch % OCTAVE, return_inverse=True)[1]
    order = place.argsort(kind="stable")
    place, shared = place[order], np.zeros((tracks, tracks), dtype=np.float32)
    for first in range(0, int(place[-1]) + 1, 4096):
        begin, end = place.searchsorted([first, first + 4096])
        is_there = np.zeros((4096, tracks), dtype=np.float32)
        is_there[place[begin:end] - first, sky.track[order[begin:end]]] = 1.0
        shared += is_there.T @ is_there
    index = np.arange(tracks)
    is_likelier = (utility > utility[:, None]) | ((utility == utility[:, None]) & (index < index[:, None]))
    return (is_alike & (shared >= DOUBLED * most) & is_likelier).any(1)


def score_tracks(
    notes: GridNotes, grid: Sequence[Stretch], programs: Sequence[int], names: Sequence[str], steps_per_beat: int
) -> tuple[list[float], list[bool]]:
    """Rate how much each track is the tune that one would hum.

    Args:
        notes: One or more of each track.
        grid: Of the notes.
        programs: General MIDI program of each track, shape (K,).
        names: Name of each track, shape (K,).
        steps_per_beat: Grid steps in a beat.

    Returns:
        The data set's lead score of each track, from 0 to 1, and whether the data set finds a melody line in it. The
        lead of a file is the first of the highest score of those that have a line.
    """
    found, sky = np.bincount(notes.track), skyline(notes, len(grid))
    features = describe_tracks(sky, found, grid, steps_per_beat)
    mean, scale, linear, square = WEIGHTS
    standard = np.clip((features - mean) / scale, -LARGEST_DEVIATION, LARGEST_DEVIATION)
    labels = [PROGRAMS[program // 8] + weigh_name(name) for program, name in zip(programs, names, strict=True)]
    utility = (BIAS + standard @ linear + standard**2 / 2 @ square + labels).round(UTILITY_DECIMALS)

    # Chords and doubles are left out; but the likeliest track of all may be chords, such as a piano's right hand.
    is_chords = (found - np.bincount(sky.track) > MAX_DISCARDED * found) & (utility != utility.max())
    is_left_out = is_chords | is_double(sky, utility, len(grid))
    is_melody = has_lines(sky, len(found), grid, steps_per_beat) & ~is_left_out

    # The odds of a track, beside those of its rivals.
    odds = np.exp(np.clip(utility, -LARGEST_LOG_ODDS, LARGEST_LOG_ODDS)) * is_melody
    rivals = np.log1p(np.maximum(odds.sum() - odds, 0))
    of_utility, of_rivals, bias = CALIBRATION
    log_odds = (of_utility * utility - of_rivals * rivals + bias).round(UTILITY_DECIMALS)
    return torch.as_tensor(log_odds).sigmoid().tolist(), is_melody.tolist()
