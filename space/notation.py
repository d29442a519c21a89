"""Sheet music of a melody: ABC, which the page engraves, and MusicXML.

Both are written from the same symbols: each bar is cut into notes and rests that notation has signs for, tied where one
sign is not enough. Lengths are counted in grid steps; a beat is the note that the time signature names.
"""

from fractions import Fraction
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

from melody import SHARP_NAMES, Melody, fifths_of, pitch_names, pulse_of, steps_per_bar

# A whole note is 1; the second is the name in MusicXML, the third the dots.
SIGNS = [(3 / 2, "whole", 1), (1.0, "whole", 0), (3 / 4, "half", 1), (1 / 2, "half", 0), (3 / 8, "quarter", 1)]
SIGNS += [(1 / 4, "quarter", 0), (3 / 16, "eighth", 1), (1 / 8, "eighth", 0), (3 / 32, "16th", 1), (1 / 16, "16th", 0)]
SIGNS += [(3 / 64, "32nd", 1), (1 / 32, "32nd", 0), (1 / 64, "64th", 0)]
SHARP_ORDER, FLAT_ORDER = "FCGDAEB", "BEADGCF"
ABC_ACCIDENTALS = {"#": "^", "b": "_", "": "="}


class Symbol(NamedTuple):
    """A sign of notation: a rest where `pitch` is None; `is_tied` to the next one; `steps` long."""

    pitch: int | None
    steps: int
    is_tied: bool


def spell(pitch: int, fifths: int) -> tuple[str, str, int]:
    """Spell a pitch in a key: letter, accidental and octave."""
    name = pitch_names(fifths)[pitch % 12]
    letter, accidental = name[0], name[1:]
    # Keys with six sharps or five flats and more have an E sharp or a C flat.
    if fifths >= 6 and pitch % 12 == 5:
        letter, accidental = "E", "#"
    if fifths <= -6 and pitch % 12 == 11:
        return "C", "b", pitch // 12
    return letter, accidental, pitch // 12 - 1


def split_length(steps: int, whole: int) -> list[int]:
    """Split a length into those that one sign has, the longest first."""
    lengths = [round(part * whole) for part, _, _ in SIGNS if (part * whole).is_integer()]
    split = []
    while steps:
        split.append(next((length for length in lengths if length <= steps), steps))
        steps -= split[-1]
    return split


def bars_of(melody: Melody) -> list[list[Symbol]]:
    """Write each bar of a melody as symbols; notes that overlap end where the next begins."""
    bar = steps_per_bar(melody)
    whole = int(melody["time_signature"].split("/")[1]) * melody["steps_per_beat"]
    end = bar * melody["bars"]
    bars: list[list[Symbol]] = [[] for _ in range(melody["bars"])]

    def write(pitch: int | None, start: int, stop: int) -> None:
        while start < stop:
            inside = min(stop, (start // bar + 1) * bar)
            for length in split_length(inside - start, whole):
                start += length
                bars[(start - 1) // bar].append(Symbol(pitch, length, pitch is not None and start < stop))

    now = 0
    notes = list(zip(melody["start"], melody["duration"], melody["pitch"], strict=True))
    for index, (start, duration, pitch) in enumerate(notes):
        limit = notes[index + 1][0] if index + 1 < len(notes) else end
        if start < now or limit == start:  # of a chord the last is written
            continue
        write(None, now, start)
        now = min(start + duration, limit)
        write(pitch, start, now)
    write(None, now, end)
    return bars


def clef_of(melody: Melody) -> str:
    """Choose the clef, `treble` or `bass`, that needs fewer ledger lines."""
    return "bass" if sum(melody["pitch"]) < 57 * len(melody["pitch"]) else "treble"


def to_abc(melody: Melody, key: str, chords: list[str] | None = None) -> str:
    """Write a melody in ABC notation (standard 2.1), four bars to a line.

    Args:
        melody: Of which meter and grid it may be.
        key: Such as `D minor`.
        chords: One for each bar, above the staff.
    """
    numerator, denominator = map(int, melody["time_signature"].split("/"))
    whole, fifths = denominator * melody["steps_per_beat"], fifths_of(key)
    unit = max(whole // 16, 1)  # steps of the sixteenth, in which lengths are written
    tonic, mode = key.split()
    names = pitch_names(fifths)
    lines = ["X:1", f"T:{melody['title']}", f"M:{numerator}/{denominator}", f"L:{Fraction(unit, whole)}"]
    lines += [f"Q:1/4={round(melody['tempo'])}"]
    lines += [f"K:{names[SHARP_NAMES.index(tonic)]}{'m' if mode == 'minor' else ''} clef={clef_of(melody)}"]
    written = []
    for index, symbols in enumerate(bars_of(melody)):
        held = dict.fromkeys("ABCDEFG", "")
        held |= dict.fromkeys(SHARP_ORDER[:fifths] if fifths > 0 else FLAT_ORDER[:-fifths], "#" if fifths > 0 else "b")
        accidentals: dict[tuple[str, int], str] = {}
        change = chords is not None and (index == 0 or chords[index] != chords[index - 1])
        text = f'"{chords[index]}"' if chords and change else ""
        at = 0
        pulse = pulse_of(melody)
        for symbol in symbols:
            text += " " if at and at % pulse == 0 else ""  # a beam ends with the beat
            text += _abc_note(symbol, fifths, held, accidentals) + _abc_length(symbol.steps, unit)
            text += "-" if symbol.is_tied else ""
            at += symbol.steps
        written.append(text)
    rows = [written[first : first + 4] for first in range(0, len(written), 4)]
    lines += [" | ".join(row) + (" |]" if last is rows[-1] else " |") for row in rows for last in [row]]
    return "\n".join(lines) + "\n"


def _abc_note(symbol: Symbol, fifths: int, held: dict[str, str], accidentals: dict[tuple[str, int], str]) -> str:
    """Write a note's name with the accidental that it needs after those of its bar."""
    if symbol.pitch is None:
        return "z"
    letter, accidental, octave = spell(symbol.pitch, fifths)
    sign = "" if accidentals.get((letter, octave), held[letter]) == accidental else ABC_ACCIDENTALS[accidental]
    accidentals[letter, octave] = accidental
    name = letter.lower() + "'" * (octave - 5) if octave >= 5 else letter + "," * (4 - octave)
    return sign + name


def _abc_length(steps: int, unit: int) -> str:
    """Write a length as a multiple of the unit."""
    if steps % unit == 0:
        return "" if steps == unit else str(steps // unit)
    return f"{steps}/{unit}"


def to_musicxml(melody: Melody, key: str, chords: list[str] | None = None) -> bytes:
    """Write a melody as MusicXML (4.0, partwise); arguments as of [`to_abc`]."""
    numerator, denominator = map(int, melody["time_signature"].split("/"))
    whole, fifths = denominator * melody["steps_per_beat"], fifths_of(key)
    # Title, part and instrument.
    root = ET.Element("score-partwise", version="4.0")
    ET.SubElement(ET.SubElement(root, "work"), "work-title").text = melody["title"]
    part_list = ET.SubElement(root, "part-list")
    score_part = ET.SubElement(part_list, "score-part", id="P1")
    ET.SubElement(score_part, "part-name").text = "Melody"
    ET.SubElement(ET.SubElement(score_part, "midi-instrument", id="P1-I1"), "midi-program").text = str(
        melody["program"] + 1
    )
    score_part.insert(1, _element("score-instrument", {"id": "P1-I1"}, _element("instrument-name", {}, text="Melody")))
    part, tied = ET.SubElement(root, "part", id="P1"), False
    # Bar by bar: what holds from there on, then notes and rests.
    for index, symbols in enumerate(bars_of(melody)):
        measure = ET.SubElement(part, "measure", number=str(index + 1))
        if index == 0:
            measure.append(_attributes(whole, fifths, key, (numerator, denominator), clef_of(melody)))
            measure.append(_tempo(melody["tempo"]))
        if chords and (index == 0 or chords[index] != chords[index - 1]):
            measure.append(_harmony(chords[index]))
        for symbol in symbols:
            measure.append(_note(symbol, whole, fifths, tied))
            tied = symbol.is_tied
        if index == melody["bars"] - 1:
            bar_line = ET.SubElement(measure, "barline", location="right")
            ET.SubElement(bar_line, "bar-style").text = "light-heavy"
    ET.indent(root)
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE score-partwise PUBLIC "-//Recordare//DTD MusicXML 4.0 '
    head += 'Partwise//EN" "http://www.musicxml.org/dtds/partwise.dtd">\n'
    return (head + ET.tostring(root, encoding="unicode") + "\n").encode()


def _element(name: str, attributes: dict[str, str], *children: ET.Element, text: Any = None) -> ET.Element:
    element = ET.Element(name, attributes)
    element.text = None if text is None else str(text)
    element.extend(children)
    return element


def _attributes(whole: int, fifths: int, key: str, meter: tuple[int, int], clef: str) -> ET.Element:
    """Write what stands at the beginning of the staff; a division is a quarter of a grid step."""
    signs = {"treble": ("G", 2), "bass": ("F", 4)}
    key_element = _element("key", {}, _element("fifths", {}, text=fifths), _element("mode", {}, text=key.split()[1]))
    beats, beat_type = (
        _element(name, {}, text=value) for name, value in zip(("beats", "beat-type"), meter, strict=True)
    )
    sign, line = (_element(name, {}, text=value) for name, value in zip(("sign", "line"), signs[clef], strict=True))
    divisions = _element("divisions", {}, text=whole)  # of a quarter: four for each step, so that any grid is whole
    time = _element("time", {}, beats, beat_type)
    return _element("attributes", {}, divisions, key_element, time, _element("clef", {}, sign, line))


def _tempo(quarters_per_minute: float) -> ET.Element:
    metronome = _element(
        "metronome", {}, _element("beat-unit", {}, text="quarter"),
        _element("per-minute", {}, text=round(quarters_per_minute)),
    )  # fmt: skip
    sound = _element("sound", {"tempo": f"{quarters_per_minute:g}"})
    return _element("direction", {"placement": "above"}, _element("direction-type", {}, metronome), sound)


def _harmony(chord: str) -> ET.Element:
    """Write a chord such as `Bbm`."""
    is_minor = chord.endswith("m")
    name = chord.removesuffix("m")
    root = _element("root", {}, _element("root-step", {}, text=name[0]))
    if len(name) > 1:
        root.append(_element("root-alter", {}, text=1 if name[1] == "#" else -1))
    return _element("harmony", {}, root, _element("kind", {}, text="minor" if is_minor else "major"))


def _note(symbol: Symbol, whole: int, fifths: int, is_tied_before: bool) -> ET.Element:
    """Write a note or a rest."""
    note = _element("note", {})
    if symbol.pitch is None:
        note.append(_element("rest", {}))
    else:
        letter, accidental, octave = spell(symbol.pitch, fifths)
        pitch = _element("pitch", {}, _element("step", {}, text=letter))
        if accidental:
            pitch.append(_element("alter", {}, text=1 if accidental == "#" else -1))
        pitch.append(_element("octave", {}, text=octave))
        note.append(pitch)
    note.append(_element("duration", {}, text=4 * symbol.steps))
    ties = [kind for kind, is_so in (("stop", is_tied_before), ("start", symbol.is_tied)) if is_so]
    note.extend(_element("tie", {"type": kind}) for kind in ties)
    if sign := next(((name, dots) for part, name, dots in SIGNS if part * whole == symbol.steps), None):
        note.append(_element("type", {}, text=sign[0]))
        note.extend(_element("dot", {}) for _ in range(sign[1]))
    if ties:
        note.append(_element("notations", {}, *(_element("tied", {"type": kind}) for kind in ties)))
    return note
