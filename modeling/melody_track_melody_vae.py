"""Which track of a MIDI file is its tune: the data set's lead score, for one file, from its notes on the bar grid.

The data set finds its leads with the same grid, skyline, features and weights, compiled for a million files; a test
asserts that both say the same. Here they are tensors, since this file ships to the Hub.

N notes · K tracks · G stretches of constant time signature · R bars of tracks that have an onset · F features
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

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

    track: torch.Tensor
    stretch: torch.Tensor
    step: torch.Tensor
    pitch: torch.Tensor
    duration: torch.Tensor


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

    track: torch.Tensor
    stretch: torch.Tensor
    step: torch.Tensor
    pitch: torch.Tensor
    duration: torch.Tensor
    to_next: torch.Tensor
    is_alone: torch.Tensor


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
    track: torch.Tensor,
    time: torch.Tensor,
    duration: torch.Tensor,
    pitch: torch.Tensor,
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
    whole = 4 * ticks_per_quarter
    start, length, _, denominator, _ = torch.tensor(grid).T.contiguous()
    up = denominator * steps_per_beat  # steps in a whole note
    stretch = torch.searchsorted(start, time, right=True) - 1
    if int(time.min()) < 0:
        raise ValueError("a note begins before the file does")
    step = nearest_step(time - start[stretch], up[stretch], whole)
    # What is nearest to a later stretch's first bar line begins there; stretches shorter than half a step have none.
    following = list(range(1, len(grid) + 1))
    for place in range(len(grid) - 2, -1, -1):
        if 2 * grid[place + 1].length_ticks * grid[place + 1].denominator * steps_per_beat <= whole:
            following[place] = following[place + 1]
    is_next = step * whole >= length[stretch] * up[stretch]
    stretch, step = torch.where(is_next, torch.tensor(following)[stretch], stretch), step.where(~is_next, 0)
    if int(step.max()) >= MAX_STEPS:
        raise ValueError("a note is a million grid steps and more from the beginning")
    end = nearest_step(time + duration.clamp(min=0) - start[stretch], up[stretch], whole)
    last = -(-length * up // whole)
    steps = (end.minimum(last[stretch]) - step).clamp(1, MAX_DURATION)
    stays = ~is_ornament((track * len(grid) + stretch) << 20 | step, time, time + duration.clamp(min=1))
    return GridNotes(track[stays], stretch[stays], step[stays], pitch[stays], steps[stays])


def is_ornament(voice: torch.Tensor, begin: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Tell which notes only decorate another of their grid step: only what overlaps in played time is a chord.

    Of two notes of which one ends before the other begins the longer one takes the step, the earlier one where they are
    equally long.

    Args:
        voice: One number for each voice and grid step, shape (N,).
        begin: Onset in ticks, shape (N,).
        end: End in ticks, later than the onset, shape (N,).

    Returns:
        Shape (N,).
    """
    _, place, notes = voice.unique(return_inverse=True, return_counts=True)
    is_shared = (notes > 1)[place]
    found = torch.zeros_like(is_shared)
    if not is_shared.any():
        return found
    place, begin, end = place[is_shared], begin[is_shared], end[is_shared]
    origin = int(begin.min())
    begin, end = begin - origin, end - origin
    span = int(end.max()) + 1
    length = end - begin

    def longest_before(time: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Return the greatest length of the notes of each place whose `time` is not after `at`, 0 for none."""
        key, order = (place * span + time).sort()
        longest = (place * span + length)[order].cummax(0).values
        last = torch.searchsorted(key, place * span + at, right=True) - 1
        return (longest[last.clamp(min=0)] - place * span).where(last >= 0, 0).clamp(min=0)

    # Time backwards is how to see the notes after.
    found[is_shared] = (longest_before(end, begin) >= length) | (
        longest_before(span - 1 - begin, span - 1 - end) > length
    )
    return found


def is_end(*columns: torch.Tensor) -> torch.Tensor:
    """Tell of each row whether the next one differs from it; the last row is an end too."""
    differs = torch.stack([column[1:] != column[:-1] for column in columns]).any(0)
    return torch.cat([differs, differs.new_ones(1)])


def skyline(notes: GridNotes, stretches: int) -> Skyline:
    """Make every track monophonic: of the notes with one onset the highest stays, and the next onset ends it."""
    strand = notes.track * stretches + notes.stretch
    order = (((strand << 20 | notes.step) << 7 | 127 - notes.pitch) << 16 | MAX_DURATION - notes.duration).argsort()
    order = order[is_end(strand[order], notes.step[order]).roll(1)]  # the first of each onset
    track, stretch, step, pitch, duration = (column[order] for column in notes)
    to_next = (step.roll(-1) - step).where(~is_end(track, stretch), MAX_STEPS)
    # Legato playing holds a note a little into the next one: a step, or a quarter of its length.
    is_alone = duration - (duration >> 2).clamp(min=1) <= to_next
    return Skyline(track, stretch, step, pitch, duration.minimum(to_next), to_next, is_alone)


def extreme(values: torch.Tensor, of: torch.Tensor, count: int, which: str) -> torch.Tensor:
    """Return the greatest (`amax`) or the smallest (`amin`) value of each group, shape (count,)."""
    return values.new_zeros(count).scatter_reduce(0, of, values, which, include_self=False)


def has_lines(sky: Skyline, tracks: int, grid: Sequence[Stretch], steps_per_beat: int) -> torch.Tensor:
    """Tell of each track whether a part of it, split at silences of more than a bar, is a melody line, shape (K,)."""
    size = torch.tensor(grid)[:, 2][sky.stretch] * steps_per_beat
    ends = (sky.to_next == MAX_STEPS) | (sky.to_next - sky.duration > size)
    line, lines = ends.cumsum(0) - ends.long(), int(ends.sum())
    before = (sky.step // size)[ends.roll(1)]
    bars = (-(-(sky.step + sky.duration) // size))[ends] - before
    pitches = ((line << 7 | sky.pitch).unique() >> 7).bincount()
    is_line = (bars >= MIN_BARS) & (bars <= MAX_BARS) & (pitches >= MIN_PITCHES)
    is_line &= extreme(sky.pitch, line, lines, "amin") >= MIN_PITCH
    is_line &= extreme(sky.pitch, line, lines, "amax") <= MAX_PITCH
    return sky.track[ends][is_line].bincount(minlength=tracks) > 0


def describe_tracks(sky: Skyline, found: torch.Tensor, grid: Sequence[Stretch], steps_per_beat: int) -> torch.Tensor:
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

    def total(values: torch.Tensor, of: torch.Tensor = track) -> torch.Tensor:
        return of.bincount(values.double(), minlength=len(found))

    numerator, denominator, first_bar = torch.tensor(grid)[sky.stretch, 2:].T
    size, beat = numerator * steps_per_beat, denominator.double() * steps_per_beat / 4  # steps in a bar, in a quarter
    bar, position = first_bar + sky.step // size, sky.step % size
    is_last, is_bar_end, kept = is_end(track), is_end(track, bar), track.bincount()
    gap = position.roll(-1) - position + (bar.roll(-1) - bar) * size  # to the next onset, where there is one
    is_phrase_end = is_last | (gap - duration >= PHRASE_REST_QUARTERS * beat)
    leads_on = ~is_last & (gap <= INTERVAL_QUARTERS * beat)
    interval, intervals = (pitch.roll(-1) - pitch).abs(), total(leads_on).clamp(min=1)
    length = (duration / beat).clamp(max=LONGEST_QUARTERS)
    mean_length, phrase_end = total(length) / kept, total(length * is_phrase_end) / total(is_phrase_end)

    # Records: the bars in which a track has an onset, by track and by time.
    record, owner = is_bar_end.cumsum(0) - is_bar_end.long(), track[is_bar_end]
    bars = owner.bincount()
    to_bar_end = is_bar_end.nonzero().flatten()[record] - torch.arange(len(record))
    powers = torch.full((int(to_bar_end.max()) + 1,), HASH_FACTOR - (1 << 64)).cumprod(0)
    content = torch.zeros_like(owner).index_add(0, record, ((position << 7 | pitch) + 1) * powers[to_bar_end])
    contents, content = content.unique(return_inverse=True)
    new_bars = ((owner * len(contents) + content).unique() // len(contents)).bincount()

    mean_pitch = record.bincount(pitch.double()) / record.bincount()
    file_bars, file_bar = bar[is_bar_end].unique(return_inverse=True)
    highest, lowest = (
        mean_pitch == extreme(mean_pitch, file_bar, len(file_bars), how)[file_bar] for how in ("amax", "amin")
    )

    slot = torch.where(size <= BAR_SLOTS, position, position * BAR_SLOTS // size)
    onset = (record * BAR_SLOTS + slot).unique()
    record, slot = onset // BAR_SLOTS, onset % BAR_SLOTS
    rhythm = torch.zeros_like(owner).index_add(0, record, 1 << slot)
    is_same = ~is_end(owner) & (rhythm.roll(-1) == rhythm)
    _, place, users = (file_bar[record] * BAR_SLOTS + slot).unique(return_inverse=True, return_counts=True)

    features = {
        "log_notes": kept.double().log(),
        "skyline": kept / found.double(),
        "monophony": total(sky.is_alone) / found,
        "mean_pitch": total(pitch) / kept,
        "vocal_range": total((pitch >= VOCAL_LOW) & (pitch <= VOCAL_HIGH)) / kept,
        "log_pitches": ((track << 7 | pitch).unique() >> 7).bincount().double().log(),
        "steps": total(leads_on & (interval >= 1) & (interval <= 2)) / intervals,
        "leaps": total(leads_on & (interval >= LEAP)) / intervals,
        "mean_interval": total(leads_on * interval.clamp(max=OCTAVE)) / intervals,
        "log_density": (kept / total((size / beat)[is_bar_end], owner)).log(),
        "log_duration": mean_length.log(),
        "rests": total(is_last | (gap - duration >= REST_QUARTERS * beat)) / kept,
        "phrase_end": ((phrase_end + LENGTH_FLOOR) / (mean_length + LENGTH_FLOOR)).log(),
        "same_rhythm": total(is_same, owner) / (bars - 1).clamp(min=1),
        "new_bars": new_bars / bars.double(),
        "coverage": bars.double() / len(file_bars),
        "highest": total(highest, owner) / bars,
        "lowest": total(lowest, owner) / bars,
        "shared_onsets": total(users[place] > 1, owner[record]) / owner[record].bincount(),
    }
    return torch.stack([features[name] for name in FEATURES], dim=1)


def weigh_name(name: str) -> float:
    """Return what a track's name adds: that of a tune (melody, vocal, lead, ...) or of an accompaniment."""
    hint = name_hint(name)
    return hint * (TUNE_NAME_WEIGHT if hint > 0 else OTHER_NAME_WEIGHT)


def is_double(sky: Skyline, utility: torch.Tensor, stretches: int) -> torch.Tensor:
    """Tell which tracks double a likelier one: nearly all notes at the same onsets, octaves apart or not, shape (K,).

    Args:
        sky: Of all tracks.
        utility: Of each track, shape (K,); of two that are equal the earlier one is likelier.
        stretches: Number of stretches.
    """
    tracks = len(utility)
    kept = sky.track.bincount(minlength=tracks)
    most, least = torch.maximum(kept[:, None], kept), torch.minimum(kept[:, None], kept)
    is_alike = (least >= MIN_DOUBLED_NOTES) & (least >= DOUBLED * most.double())
    if tracks < 2 or not is_alike.triu(1).any():
        return torch.zeros(tracks, dtype=torch.bool)
    # Count the notes that each two tracks share, as a product of matrices: tracks by places, some of them at a time.
    place = ((sky.stretch << 20 | sky.step) * OCTAVE + sky.pitch % OCTAVE).unique(return_inverse=True)[1]
    place, order = place.sort()
    shared = torch.zeros(tracks, tracks)
    for first in range(0, int(place[-1]) + 1, 4096):
        begin, end = torch.searchsorted(place, torch.tensor([first, first + 4096])).tolist()
        is_there = torch.zeros(4096, tracks)
        is_there[place[begin:end] - first, sky.track[order[begin:end]]] = 1.0
        shared += is_there.T @ is_there
    index = torch.arange(tracks)
    is_likelier = (utility > utility[:, None]) | ((utility == utility[:, None]) & (index < index[:, None]))
    return (is_alike & (shared >= DOUBLED * most.double()) & is_likelier).any(1)


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
    found, sky = notes.track.bincount(), skyline(notes, len(grid))
    features = describe_tracks(sky, found, grid, steps_per_beat)
    mean, scale, linear, square = torch.tensor(list(FEATURES.values()), dtype=torch.float64).T  # (F,) each
    standard = ((features - mean) / scale).clamp(-LARGEST_DEVIATION, LARGEST_DEVIATION)
    labels = [PROGRAMS[program // 8] + weigh_name(name) for program, name in zip(programs, names, strict=True)]
    utility = BIAS + standard @ linear + standard**2 / 2 @ square + torch.tensor(labels, dtype=torch.float64)
    utility = utility.round(decimals=UTILITY_DECIMALS)

    # Chords and doubles are left out; but the likeliest track of all may be chords, such as a piano's right hand.
    is_chords = (found - sky.track.bincount() > MAX_DISCARDED * found) & (utility != utility.max())
    is_left_out = is_chords | is_double(sky, utility, len(grid))
    is_melody = has_lines(sky, len(found), grid, steps_per_beat) & ~is_left_out

    # The odds of a track, beside those of its rivals.
    odds = utility.clamp(-LARGEST_LOG_ODDS, LARGEST_LOG_ODDS).exp() * is_melody
    rivals = (odds.sum() - odds).clamp(min=0).log1p()
    of_utility, of_rivals, bias = CALIBRATION
    log_odds = of_utility * utility - of_rivals * rivals + bias
    return log_odds.round(decimals=UTILITY_DECIMALS).sigmoid().tolist(), is_melody.tolist()
