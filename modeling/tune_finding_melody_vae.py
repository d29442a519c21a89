"""The tune of a MIDI file: its voices as lines, best first, and a sentence that says what was found.

N notes · K voices · G stretches of constant time signature
"""

from __future__ import annotations  # symusic's Score is a factory, no class

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from operator import itemgetter

import numpy as np
from miditok.constants import MIDI_INSTRUMENTS

from .melody_line_melody_vae import MAX_PITCH, MIN_PITCH, PITCH_NAMES, keys_of, readable_time_signature
from .melody_track_melody_vae import (
    MAX_DURATION,
    MAX_STEPS,
    GridNotes,
    Skyline,
    Stretch,
    bar_grid,
    is_end,
    leave_out_ornaments,
    nearest_step,
    quantise,
    score_tracks,
    skyline,
)
from .midi_reading_melody_vae import MidiInput, MidiNotes, read_midi

MAX_STRANDS = 1 << 20  # voices times stretches: what the sort key of a note has room for
SLOWEST, FASTEST = 4.0, 1000.0  # quarter notes per minute that are played and written; a file's are clamped to them
MAJOR_SCALE, MINOR_SCALE = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 9, 10, 11)  # minor: natural, harmonic, melodic
MAX_NAME = 60  # letters of a track's name in a sentence
LEAD_FLOOR = 0.8  # lead score below which the data set takes no track for a file's lead, see its card
IN_KEY = 0.85  # share of a melody's time in the scale of a key signature from which on that is its key


def find_tunes(midi: MidiInput, steps_per_beat: int = 4, file: str | None = None) -> list[dict]:
    """List what could be the tune of a MIDI file, best first, laid on the grid.

    Each voice that is not drums gives one line, in the order of the lead scores ([`score_tracks`]), those in which the
    data set finds no melody last. Choice and skyline are the data set's. Unlike there, a line is the whole of a voice,
    whatever rests and changes of the time signature are in it, it may be short or of chords, and notes out of range are
    left out of it. It has one time signature, that of most of its notes or the nearest of the vocabulary
    ([`readable_time_signature`]); its bars go on through what is written in others. The sustain pedal holds notes until
    the next one.

    Args:
        midi: Path, content of a MIDI file, open file, or score.
        steps_per_beat: Grid steps per beat.
        file: What to call it.

    Returns:
        Lines with more of the data set's columns, `track` (index in the file), `program`, `lead_score`, `is_lead` (the
        best, if its lead score reaches `LEAD_FLOOR`), `tempo` and `key`; and with `file`, `tracks` (how many the file
        has), `track_name`, `track_notes` (before any is left out), `out_of_range` (notes left out for their pitch),
        `written_time_signature` (in the file), `barred_anew` (other time signatures that some of its notes are written
        in), `first_bar` (bars of the file before the line), and `repairs` (what was put right in the file).

    Raises:
        ValueError: If the file cannot be read or has no notes; names it.
    """
    notes = read_midi(midi, file)
    try:
        return _find_tunes(notes, steps_per_beat)
    except ValueError as error:
        raise ValueError(f"{notes.file}: {error}") from error


def _find_tunes(notes: MidiNotes, steps_per_beat: int) -> list[dict]:
    """List the lines of a file; messages do not name it."""
    # Which voice is the tune is judged as in the data set: on the file's own bars.
    units, voices = (notes.ticks_per_quarter, steps_per_beat), len(notes.index)
    written = bar_grid(notes.time_signatures, notes.ticks_per_quarter)
    if voices * len(written) > MAX_STRANDS:
        raise ValueError(f"{len(written)} changes of the time signature; leave most out and export it again")
    try:
        on_grid = quantise(notes.voice, notes.time, notes.duration, notes.pitch, written, *units)
    except ValueError as error:
        raise ValueError(f"{error}; cut it in an editor and export it again") from error
    lead_scores, is_melody = score_tracks(on_grid, written, notes.program, notes.name, steps_per_beat)

    # The lines themselves lie on bars that the vocabulary has.
    is_in_range = (notes.pitch >= MIN_PITCH) & (notes.pitch <= MAX_PITCH)
    if not is_in_range.any():
        raise ValueError(f"no note between the MIDI pitches {MIN_PITCH} and {MAX_PITCH}")
    readable = [(each.start_ticks, *readable_time_signature(each.numerator, each.denominator)) for each in written]
    grid = bar_grid(readable, notes.ticks_per_quarter)
    voice, time, held, pitch = (column[is_in_range] for column in (notes.voice, notes.time, notes.held, notes.pitch))
    meters = _main_meters(notes.voice, notes.time, grid, voices)
    sky, first_steps = _lay_on_meters(voice, time, held, pitch, meters, *units)
    ends = (is_end(sky.track).nonzero()[0] + 1).tolist()
    owners, _, steps, pitches, durations = (column.tolist() for column in sky[:5])
    about = _describe_voices(notes, is_in_range, written, meters)
    tempos = sorted(notes.tempos, key=itemgetter(0))

    # One line for each voice that has notes, with what is known of it.
    lines, onsets = [], []
    for begin, end in pairwise([0, *ends]):
        owner = owners[begin]
        meter, first_step = meters[owner], first_steps[owner]
        bar = meter.numerator * steps_per_beat
        ticks_per_step = 4 * units[0] / (meter.denominator * steps_per_beat)
        onset = meter.start_ticks + (first_step + steps[begin]) * ticks_per_step
        line = {
            "pitch": pitches[begin:end],
            "start": steps[begin:end],
            "duration": durations[begin:end],
            "time_signature": f"{meter.numerator}/{meter.denominator}",
            "steps_per_beat": steps_per_beat,
            "bars": -(-(steps[end - 1] + durations[end - 1]) // bar),
            # Half a step of grace: a note quantised backwards still begins in the tempo that it was played in.
            "tempo": tempo_at(onset + ticks_per_step / 2, tempos),
            "lead_score": lead_scores[owner],
            "first_bar": _bar_at(grid, onset, units[0]),
            **about[owner],
        }
        onsets.append(onset)
        lines.append((not is_melody[owner], -lead_scores[owner], owner, line))
    # The key: how long the line is in each pitch class, and what the file states.
    weights = np.bincount(sky.track * 12 + sky.pitch % 12, sky.duration, 12 * voices).reshape(voices, 12)
    weights = weights[[owner for *_, owner, _ in lines]]
    for (*_, line), key in zip(lines, _keys_at(onsets, notes.key_signatures, weights), strict=True):
        line["key"] = key
    found = [line for *_, line in sorted(lines, key=lambda ranked: ranked[:3])]
    return [{**line, "is_lead": line is found[0] and line["lead_score"] >= LEAD_FLOOR} for line in found]


def _describe_voices(
    notes: MidiNotes, is_in_range: np.ndarray, written: Sequence[Stretch], meters: Sequence[Stretch]
) -> list[dict]:
    """Return what is known of each voice, whatever line is read from it: columns of its line, K dictionaries.

    Args:
        notes: Of the file.
        is_in_range: Whether a line may have each note, shape (N,).
        written: The file's own time signatures.
        meters: The one whose bar lines hold for each voice, shape (K,).
    """
    voices = len(notes.index)
    counts = np.bincount(notes.voice, minlength=voices).tolist()
    out_of_range = np.bincount(notes.voice[~is_in_range], minlength=voices).tolist()
    signatures = _written_in(notes.voice, notes.time, written, voices)
    described = []
    for voice, meter in enumerate(meters):
        stretch = _meter_at(written, meter.start_ticks)
        main = f"{stretch.numerator}/{stretch.denominator}"
        described.append(
            {
                "program": notes.sound[voice],
                "file": notes.file,
                "tracks": notes.parts,
                "track": notes.index[voice],
                "track_name": notes.name[voice],
                "track_notes": counts[voice],
                "out_of_range": out_of_range[voice],
                "written_time_signature": main,
                "barred_anew": [each for each in signatures[voice] if each != main],
                "repairs": notes.repairs,
            }
        )
    return described


def _meter_at(grid: Sequence[Stretch], ticks: float) -> Stretch:
    return grid[max(bisect_right(grid, ticks, key=itemgetter(0)) - 1, 0)]


def _bar_at(grid: Sequence[Stretch], ticks: float, ticks_per_quarter: int) -> int:
    """Count the bars of a file before the one at a time."""
    meter = _meter_at(grid, ticks)
    bars = (ticks - meter.start_ticks) * meter.denominator // (4 * ticks_per_quarter * meter.numerator)
    return meter.first_bar + int(max(bars, 0))


def _count_notes(voice: np.ndarray, time: np.ndarray, grid: Sequence[Stretch], voices: int) -> np.ndarray:
    """Count the notes of each voice in each stretch, shape (K, G)."""
    stretch = np.searchsorted([each.start_ticks for each in grid], time, side="right") - 1
    return np.bincount(voice * len(grid) + stretch, minlength=voices * len(grid)).reshape(voices, len(grid))


def _written_in(voice: np.ndarray, time: np.ndarray, grid: Sequence[Stretch], voices: int) -> list[list[str]]:
    """List the time signatures that the notes of each voice are written in."""
    found: list[dict[str, None]] = [{} for _ in range(voices)]
    for owner, stretch in np.argwhere(_count_notes(voice, time, grid, voices)).tolist():
        found[owner][f"{grid[stretch].numerator}/{grid[stretch].denominator}"] = None
    return [list(each) for each in found]


def _main_meters(voice: np.ndarray, time: np.ndarray, grid: Sequence[Stretch], voices: int) -> list[Stretch]:
    """Find the stretch whose bar lines hold for a whole voice: that of most notes, of the meter of most notes."""
    counts = _count_notes(voice, time, grid, voices)
    numbers: dict[tuple[int, int], int] = {}
    meter = np.array([numbers.setdefault((each.numerator, each.denominator), len(numbers)) for each in grid])
    of_meter = counts @ np.eye(len(numbers), dtype=np.int64)[meter]
    # Of equal counts the first.
    main = of_meter.argmax(1)
    return [grid[place] for place in np.where(meter == main[:, None], counts, -1).argmax(1).tolist()]


def _lay_on_meters(
    voice: np.ndarray,
    time: np.ndarray,
    duration: np.ndarray,
    pitch: np.ndarray,
    meters: Sequence[Stretch],
    ticks_per_quarter: int,
    steps_per_beat: int,
) -> tuple[Skyline, list[int]]:
    """Lay each voice on the bars of one meter, which begin with the bar of its first note, and make it monophonic.

    Args:
        voice: Of each note, shape (N,).
        time: Onset in ticks, shape (N,).
        duration: Length in ticks, shape (N,).
        pitch: MIDI pitch, shape (N,).
        meters: Of each voice, shape (K,).
        ticks_per_quarter: Resolution of the file.
        steps_per_beat: Grid steps in a beat.

    Returns:
        The notes that stay, and how many steps after the meter's own beginning each voice begins, shape (K,).
    """
    whole = 4 * ticks_per_quarter
    start, _, numerator, denominator, _ = np.array(meters).T
    bar, up = (numerator * steps_per_beat), (denominator * steps_per_beat)[voice]
    step = nearest_step(time - start[voice], up, whole)
    end = nearest_step(time + np.maximum(duration, 0) - start[voice], up, whole)
    first = np.zeros_like(bar)
    first[voice] = step
    np.minimum.at(first, voice, step)
    first = first // bar * bar
    length, step = np.clip(end - step, 1, MAX_DURATION), step - first[voice]
    if step.max() >= MAX_STEPS:
        raise ValueError("a note is a million grid steps and more from the first; cut the file in an editor")
    on_grid = GridNotes(voice, np.zeros_like(step), step, pitch, length)
    on_grid = leave_out_ornaments(on_grid, voice, time, time + np.maximum(duration, 1))
    return skyline(on_grid, 1), first.tolist()


def tempo_at(ticks: float, tempos: list[tuple[int, int]]) -> float:
    """Return the quarter notes per minute at a time, of sorted (ticks, microseconds per quarter); 120 before them.

    What cannot be played is clamped, and a tempo of no time at all is none.
    """
    place = bisect_right(tempos, ticks, key=itemgetter(0))
    mspq = next((mspq for _, mspq in reversed(tempos[:place]) if mspq > 0), 500_000)
    return min(max(60e6 / mspq, SLOWEST), FASTEST)


def _keys_at(ticks: Sequence[float], key_signatures: list[tuple[int, int, bool]], weights: np.ndarray) -> list[str]:
    """Return the keys that the file states at some times, where the lines' notes are in them, else the likeliest.

    Args:
        ticks: Where each line begins, shape (K,).
        key_signatures: Of the file.
        weights: How long each line is in each pitch class, float64, shape (K, 12).
    """
    keys, signatures = keys_of(weights.tolist()), sorted(key_signatures)
    for index, (onset, weight) in enumerate(zip(ticks, weights.tolist(), strict=True) if signatures else ()):
        _, sharps, is_minor = ([each for each in signatures if each[0] <= onset] or signatures[:1])[-1]
        tonic = (7 * sharps + 9 * is_minor) % 12
        in_key = sum(weight[(tonic + degree) % 12] for degree in (MINOR_SCALE if is_minor else MAJOR_SCALE))
        # C major is what programs write that know no keys.
        if (sharps or is_minor) and in_key >= IN_KEY * sum(weight):
            keys[index] = f"{PITCH_NAMES[tonic]} {'minor' if is_minor else 'major'}"
    return keys


def choose_tune(tunes: list[dict], track: int | None = None) -> dict:
    """Take the best of a file's lines ([`find_tunes`]), of all or of one track.

    Raises:
        ValueError: If the track has none; says which have.
    """
    own = [line for line in tunes if track in (None, line["track"])]
    if not own:
        others = ", ".join(map(str, sorted({line["track"] for line in tunes})))
        raise ValueError(f"{tunes[0]['file']}: track={track} has no melody to read; these have: {others}")
    return own[0]


def find_melody(midi: MidiInput, steps_per_beat: int = 4, track: int | None = None) -> dict:
    """Find the tune of a MIDI file and lay it on the grid: the first that [`find_tunes`] lists.

    Args:
        midi: Path, content of a MIDI file, open file, or score.
        steps_per_beat: Grid steps per beat.
        track: Index of the track to take, instead of the best.

    Raises:
        ValueError: If nothing can be read, or not from this track; names the file.
    """
    return choose_tune(find_tunes(midi, steps_per_beat), track)


def label_of(line: dict) -> str:
    """Name a line's track by its index and its name, or the instrument where it has none."""
    name = "".join(each if each.isprintable() else " " for each in line.get("track_name", "")[:MAX_NAME]).strip()
    return f"track={line['track']} " + (f'"{name}"' if name else f"({MIDI_INSTRUMENTS[line['program']]['name']})")


def describe_line(line: dict, max_bars: int, tunes: Iterable[dict] = ()) -> str:
    """Say in one sentence what a line is, where it comes from and how many windows it makes.

    Args:
        line: As [`find_tunes`] gives it; a row of the data set or any other line has less to say.
        max_bars: Bars of one window.
        tunes: The file's lines, of which the best of another track is named.
    """
    parts = []
    if "track" in line:
        of = f" of {line['tracks']}" if "tracks" in line else ""
        other = next((each for each in tunes if each["track"] != line["track"]), None)
        beside = f", next {label_of(other)} {other['lead_score']:.2f}" if other else ""
        is_doubtful = not line.get("is_lead", True) and line["lead_score"] < LEAD_FLOOR
        doubt = f"; below {LEAD_FLOOR}, so it may be another track" if is_doubtful else ""
        parts.append(f"the tune is {label_of(line)}{of} (lead score {line['lead_score']:.2f}{beside}{doubt})")
    place, written = f"in {line['time_signature']}", line.get("written_time_signature", line["time_signature"])
    place += f" (written as {written})" if written != line["time_signature"] else ""
    if line.get("barred_anew"):
        place += f" (with notes written in {', '.join(line['barred_anew'])}, barred anew)"
    if "first_bar" in line:
        place = f"bars {line['first_bar'] + 1} to {line['first_bar'] + line['bars']} {place}"
    parts.append(place + (f" at {line['tempo']:.4g} quarter notes a minute" if "tempo" in line else ""))
    parts += [line["key"]] if line.get("key") else []
    notes, outside = len(line["pitch"]), line.get("out_of_range", 0)
    beneath = line.get("track_notes", notes) - notes - outside
    left_out = [f"{beneath} beneath or beside others"] * (beneath > 0)
    left_out += [f"{outside} outside the pitches {MIN_PITCH} to {MAX_PITCH}"] * (outside > 0)
    parts.append(f"{notes} notes" + (f" ({' and '.join(left_out)} left out)" if left_out else ""))
    windows = -(-line["bars"] // max_bars)
    parts.append(f"{line['bars']} bars: {windows} window{'s' * (windows != 1)} of up to {max_bars}")
    parts += [f"put right in the file: {', '.join(line['repairs'])}"] if line.get("repairs") else []
    return (f"{line['file']}: " if "file" in line else "") + "; ".join(parts)
