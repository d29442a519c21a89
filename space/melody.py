"""A melody as it travels between browser, API and model: a plain dict, checked at every border.

The columns of a melody are those of the data set: `pitch` (MIDI), `start` and `duration` (grid steps from the first bar
line; a step is a `steps_per_beat`th of the beat, the beat being the note that the time signature's denominator names),
`time_signature`, `steps_per_beat`, `bars`, `tempo` (quarter notes per minute) and `program` (General MIDI). Beside them
a `title`, and `origin`: the settings that made it.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

from symusic import Note, Score, Tempo, TextMeta, TimeSignature, Track

Melody = dict[str, Any]

SHARP_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")  # of the pitch classes
FLAT_NAMES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")

CHOICES: dict[str, Any] = json.loads((Path(__file__).parent / "choices.json").read_text(encoding="utf-8"))
"""What one can ask for, in this Space and in the static one."""

MAX_BARS = 256
MAX_NOTES = 4096
MAX_TITLE = 60
MAX_NOTE_SECONDS = 900  # of all notes of what is played, summed: those that overlap cost as much as others
TEMPO_RANGE = (30.0, 300.0)
TICKS_PER_QUARTER = 480


class RefusedError(Exception):
    """What a user asked for cannot be done; the message says what and why in one line."""


def fifths_of(key: str) -> int:
    """Count the sharps of a key such as `D minor`; flats are negative."""
    tonic, mode = key.split()
    fifths = 7 * (SHARP_NAMES.index(tonic) + 3 * (mode == "minor")) % 12
    return fifths - 12 * (fifths > 6)


def pitch_names(fifths: int) -> tuple[str, ...]:
    """Return the names of the pitch classes in a key of so many sharps; flats are negative."""
    return FLAT_NAMES if fifths < 0 else SHARP_NAMES


def clean_text(text: Any, limit: int = MAX_TITLE) -> str:
    """Cut a text that a stranger wrote to one printable line."""
    printable = "".join(each if each.isprintable() else " " for each in str(text)[: 4 * limit])
    line = " ".join(printable.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def check_number(name: str, value: Any, low: float, high: float, *, whole: bool = False) -> float:
    """Return a number that lies within limits.

    Raises:
        RefusedError: If it is no number, not finite, not whole where it should be, or beyond the limits.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or (whole and value != int(value)) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise RefusedError(f"{name} must be {kind} from {low:g} to {high:g}, not {clean_text(value, 24)}")
    return int(value) if whole else float(value)


def check_melody(value: Any, name: str = "The melody") -> Melody:
    """Return a melody that is safe to use, with nothing in it but what a melody has.

    Args:
        value: What came from outside.
        name: What to call it in a refusal.

    Raises:
        RefusedError: If it is no melody, has no notes, or is too long.
    """
    if not isinstance(value, dict) or not value:
        raise RefusedError(
            f"{name} is missing: choose a tune, bring a MIDI file, or send a melody here from another tab"
        )
    # Three lists of one length, of some notes and not too many.
    columns: list[Any] = [value.get(column) for column in ("pitch", "start", "duration")]
    if not all(isinstance(column, list) for column in columns) or len({len(column) for column in columns}) != 1:
        raise RefusedError(f"{name} needs the lists pitch, start and duration, all of one length")
    if not columns[0]:
        raise RefusedError(f"{name} has no notes")
    if len(columns[0]) > MAX_NOTES:
        raise RefusedError(f"{name} has {len(columns[0])} notes; {MAX_NOTES} is the most")
    # The grid that they lie on.
    meter = re.fullmatch(r"([1-9]\d?)/(1|2|4|8|16)", str(value.get("time_signature")))
    if meter is None:
        raise RefusedError(
            f"{name} needs a time_signature such as 4/4, not {clean_text(value.get('time_signature'), 24)}"
        )
    steps_per_beat = check_number("steps_per_beat", value.get("steps_per_beat", 4), 1, 48, whole=True)
    bars = check_number("bars", value.get("bars"), 1, MAX_BARS, whole=True)
    end = int(meter[1]) * steps_per_beat * bars
    pitches, starts, durations = (
        [int(check_number(f"{name}: {what}", each, low, high, whole=True)) for each in column]
        for column, what, low, high in zip(
            columns, ("a pitch", "a start", "a duration"), (0, 0, 1), (127, end - 1, end), strict=True
        )
    )
    # Only what a melody has is kept; notes are in order and end with the last bar.
    notes = sorted(zip(starts, durations, pitches, strict=True))
    return {
        "title": clean_text(value.get("title") or "Melody"),
        "pitch": [pitch for _, _, pitch in notes],
        "start": [start for start, _, _ in notes],
        "duration": [min(duration, end - start) for start, duration, _ in notes],
        "time_signature": str(value["time_signature"]),
        "steps_per_beat": int(steps_per_beat),
        "bars": int(bars),
        "tempo": check_number("tempo", value.get("tempo", 120.0), *TEMPO_RANGE),
        "program": int(check_number("program", value.get("program", 0), 0, 127, whole=True)),
        **({"place": check_place(value["place"])} if value.get("place") else {}),
    }


def check_place(place: Any) -> dict[str, Any]:
    """Return a place in a MIDI file, see `song.find_place`.

    Raises:
        RefusedError: If it is none.
    """
    if not isinstance(place, dict) or not re.fullmatch(r"[0-9a-f]{32}", str(place.get("file"))):
        raise RefusedError("place must be as read_midi gives it")
    limits = {"chunk": 65535, "channel": 15, "tick": 2**31}
    return {
        "file": place["file"],
        **{name: int(check_number(name, place.get(name), 0, most, whole=True)) for name, most in limits.items()},
        "ticks_per_bar": check_number("ticks_per_bar", place.get("ticks_per_bar"), 1, 10**7),
    }


def steps_per_bar(melody: Melody) -> int:
    """Grid steps in each bar."""
    return int(melody["time_signature"].split("/")[0]) * melody["steps_per_beat"]


def pulse_of(melody: Melody) -> int:
    """Grid steps of the beat that is felt: 6/8 is felt in dotted quarters."""
    numerator, denominator = map(int, melody["time_signature"].split("/"))
    return melody["steps_per_beat"] * (3 if denominator >= 8 and numerator % 3 == 0 else 1)


def cut_bars(melody: Melody, first_bar: int, bars: int) -> Melody:
    """Cut bars out of a melody; notes that began earlier are left out, the last one ends with the last bar."""
    bar = steps_per_bar(melody)
    low, high = (min(edge, melody["bars"]) * bar for edge in (first_bar, first_bar + bars))
    kept = [index for index, start in enumerate(melody["start"]) if low <= start < high]
    place = melody.get("place")
    if place:
        place = {**place, "tick": round(place["tick"] + low // bar * place["ticks_per_bar"])}
    return {
        **melody,
        **({"place": place} if place else {}),
        "pitch": [melody["pitch"][index] for index in kept],
        "start": [melody["start"][index] - low for index in kept],
        "duration": [min(melody["duration"][index], high - melody["start"][index]) for index in kept],
        "bars": (high - low) // bar,
    }


def append(melody: Melody, more: Melody) -> Melody:
    """Put the bars of one melody after those of another of the same meter and grid."""
    offset = melody["bars"] * steps_per_bar(melody)
    return {
        **melody,
        "pitch": melody["pitch"] + more["pitch"],
        "start": melody["start"] + [start + offset for start in more["start"]],
        "duration": melody["duration"] + more["duration"],
        "bars": melody["bars"] + more["bars"],
    }


def transpose(melody: Melody, semitones: int) -> Melody:
    """Move a melody up, or down if `semitones` is negative."""
    return {**melody, "pitch": [pitch + semitones for pitch in melody["pitch"]]}


def seconds_per_step(melody: Melody) -> float:
    """Duration of a grid step."""
    denominator = int(melody["time_signature"].split("/")[1])
    return 60 / melody["tempo"] * 4 / (denominator * melody["steps_per_beat"])


def to_midi(melody: Melody, accompaniment: dict[str, Any] | None = None) -> bytes:
    """Write a melody as a MIDI file; notes, meter, tempo and instrument are the melody's.

    Args:
        melody: The first track.
        accompaniment: The second, as `harmony.harmonize` gives it; its chords are markers, too.
    """
    numerator, denominator = map(int, melody["time_signature"].split("/"))
    ticks_per_step = TICKS_PER_QUARTER * 4 // (denominator * melody["steps_per_beat"])
    score = Score(TICKS_PER_QUARTER)
    score.time_signatures.append(TimeSignature(0, numerator, denominator))
    score.tempos.append(Tempo(0, qpm=melody["tempo"]))
    played = [(melody, melody["title"], melody["program"], 100)]
    if accompaniment:
        played.append((accompaniment, "Chords", 0, 56))
        bar = steps_per_bar(melody) * ticks_per_step
        for index, chord in enumerate(accompaniment["chords"]):
            score.markers.append(TextMeta(index * bar, chord))
    for part, name, program, velocity in played:
        track = Track(name=name, program=program)
        for pitch, start, duration in zip(part["pitch"], part["start"], part["duration"], strict=True):
            track.notes.append(Note(start * ticks_per_step, duration * ticks_per_step, pitch, velocity))
        score.tracks.append(track)
    return score.dumps_midi()


def file_name(melody: Melody, suffix: str) -> str:
    """Name a file after a melody, in plain ASCII."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", melody["title"]).strip("-").lower()
    return f"{stem or 'melody'}.{suffix}"


def clamp_tempo(tempo: float) -> float:
    """Bring a file's tempo within what is played here; one that is no number becomes 120."""
    low, high = TEMPO_RANGE
    return min(max(tempo, low), high) if math.isfinite(tempo) else 120.0


def check_length(melody: Melody) -> None:
    """Make sure that a melody can be played in a moment, before any of it is.

    Raises:
        RefusedError: If its notes would last longer than `MAX_NOTE_SECONDS` one after the other.
    """
    if sum(melody["duration"]) * seconds_per_step(melody) > MAX_NOTE_SECONDS:
        raise RefusedError(f"The notes of this melody sound for more than {MAX_NOTE_SECONDS} seconds: cut it")
