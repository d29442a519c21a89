"""The embedded data set: public-domain tunes in `tunes/*.abc`, read by a small strict ABC reader and given out as MIDI.

The reader knows the part of ABC 2.1 (https://abcnotation.com/wiki/abc:standard:v2.1) that one melody line needs, and
refuses the rest, so that a slip of the pen is an error and never a wrong note:

    header     X T M L Q K, `%%MIDI program n` (0 to 127), and C (composer) or O (origin); P where there are parts
    notes      C, C c c'  with ^ = _ (which last to the bar line, in all octaves), z for a rest
    lengths    A2 A/2 A/ A3/2, broken rhythm A>B A<B, triplets (3ABC, ties A-A (the accidental written again)
    bar lines  | || |] |: :| :: and the endings |1 :|2
    parts      a body line P:A starts part A; the header line P:AABA gives the order in which the parts are played

symusic's own reader (abcmidi) was tried first. It reads one tune of a file, moves every onset by one tick, shortens
every note by one, loses the mode of the key, and lets bars through that do not add up.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from symusic.core import KeySignatureTick, NoteTick, ScoreTick, TempoTick, TimeSignatureTick, TrackTick

TUNES = Path(__file__).with_name("tunes")
TICKS_PER_QUARTER = 480
VELOCITY = 90

PITCHES = {"C": 60, "D": 62, "E": 64, "F": 65, "G": 67, "A": 69, "B": 71}
FIFTHS = "FCGDAEB"  # the order in which sharps are added
MODES = {  # name -> (change in the number of sharps from the major key, intervals above the tonic in semitones)
    "": (0, (0, 2, 4, 5, 7, 9, 11)),
    "m": (-3, (0, 2, 3, 5, 7, 8, 10)),
    "dor": (-2, (0, 2, 3, 5, 7, 9, 10)),
    "phr": (-4, (0, 1, 3, 5, 7, 8, 10)),
    "lyd": (1, (0, 2, 4, 6, 7, 9, 11)),
    "mix": (-1, (0, 2, 4, 5, 7, 9, 10)),
}
MODE_NAMES = {"": "major", "m": "minor", "dor": "dorian", "phr": "phrygian", "lyd": "lydian", "mix": "mixolydian"}
SIGNS = {"^": 1, "#": 1, "=": 0, "_": -1, "b": -1, "": 0}

_BAR = re.compile(r"::|:\|[12]?|\|[:|\]12]?")
_TOKEN = re.compile(
    r"(?P<sign>[\^=_]?)(?P<letter>[A-Ga-gz])(?P<octave>(?:,+|'+)?)(?P<length>\d*(?:/\d*)?)(?P<tie>-?)"
    r"|(?P<triplet>\(3)|(?P<broken>[<>])|(?P<space>\s+)"
)


@dataclass(frozen=True)
class Note:
    """A note; onset and length in whole notes, onset from the start of the first (padded) bar."""

    pitch: int
    start: Fraction
    duration: Fraction


@dataclass(frozen=True)
class Tune:
    """One tune, repeats written out; `pickup` is the length of an incomplete first bar in whole notes, or 0."""

    title: str
    source: str
    meter: tuple[int, int]
    quarters_per_minute: float
    tonic: int  # pitch class
    mode: str  # a value of MODE_NAMES
    sharps: int  # negative: flats
    program: int
    pickup: Fraction
    bars: int
    notes: tuple[Note, ...]


@dataclass
class _Sound:
    """A note (or a rest, pitch None) that has no place in time yet."""

    pitch: int | None
    duration: Fraction
    is_tied: bool


def parse_abc(text: str) -> Iterator[Tune]:
    """Read tunes in the subset of ABC that the module's docstring lists.

    Args:
        text: one or more tunes; a blank line ends a tune.

    Yields:
        One `Tune` after the other.

    Raises:
        ValueError: whatever is not in the subset, and bars that do not add up; names the tune and the bar.
    """
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in block.splitlines() if not re.match(r"%(?!%MIDI)", line)]
        if lines:
            yield _parse_tune(lines)


def _parse_header(lines: list[str]) -> dict[str, str]:
    """Read the header lines of a tune, the last of which is its key (K).

    Raises:
        ValueError: If a line is unknown or comes twice, or one is missing.
    """
    header: dict[str, str] = {}
    for line in lines:
        match = re.fullmatch(r"(%%MIDI program|[A-Z]:)\s*(.*)", line)
        name = match[1].rstrip(":") if match else ""
        if not match or name not in {"X", "T", "C", "O", "M", "L", "Q", "K", "P", "%%MIDI program"} or name in header:
            raise ValueError(f"{header.get('T', '?')}: header line {line!r} is unknown or comes twice")
        header[name] = match[2]
        if name == "K":
            break
    title = header.get("T", "?")
    if missing := {"X", "T", "M", "L", "Q", "K", "%%MIDI program"} - header.keys():
        raise ValueError(f"{title}: header lacks {sorted(missing)}")
    if not ("C" in header or "O" in header):
        raise ValueError(f"{title}: header lacks a composer (C) or an origin (O)")
    return header


def _parse_tune(lines: list[str]) -> Tune:
    # The header: metre, tempo, unit length, instrument and key.
    header = _parse_header(lines)
    title = header["T"]
    try:
        numerator, denominator = map(int, header["M"].split("/"))
        beat, beats_per_minute = header["Q"].split("=")
        tempo = float(Fraction(beat) * 4 * int(beats_per_minute))
        unit, program = Fraction(header["L"]), int(header["%%MIDI program"])
    except ValueError as error:
        raise ValueError(f"{title}: M, L, Q or program is malformed ({error})") from None
    key = re.fullmatch(r"([A-G])([#b]?)(m|dor|phr|lyd|mix|)", header["K"])
    if not key or not 0 <= program <= 127:
        raise ValueError(f"{title}: key {header['K']!r} or program {program} is unknown")
    letter, sign, mode = key.groups()
    sharps = FIFTHS.index(letter) - 1 + 7 * SIGNS[sign] + MODES[mode][0]
    if abs(sharps) > 7:
        raise ValueError(f"{title}: key {header['K']!r} has more than 7 sharps or flats")

    # Bars in playing order, then their notes one after the other; ties join them.
    full = Fraction(numerator, denominator)
    written: list[tuple[int, list[_Sound]]] = []  # the bars in playing order, each with its number as written
    for text, first in _parts(title, header.get("P", ""), lines[len(header) :]):
        written += _unfold(title, text, first, lambda bar: _parse_bar(bar, unit, sharps))
    pickup = _check_bars(title, written, full)
    start, notes, tied = (full - pickup) % full, [], None
    for number, bar in written:
        for sound in bar:
            if tied is not None and sound.pitch != tied:
                raise ValueError(f"{title}: bar {number}: a tie leads to another pitch")
            if tied is not None:
                notes[-1] = replace(notes[-1], duration=notes[-1].duration + sound.duration)
            elif sound.pitch is not None:
                notes.append(Note(sound.pitch, start, sound.duration))
            tied = sound.pitch if sound.is_tied else None
            start += sound.duration
    if tied is not None:
        raise ValueError(f"{title}: bar {written[-1][0]}: a tie leads nowhere")
    return Tune(
        title=title,
        source=header.get("C", header.get("O", "")),
        meter=(numerator, denominator),
        quarters_per_minute=tempo,
        tonic=(PITCHES[letter] + SIGNS[sign]) % 12,
        mode=MODE_NAMES[mode],
        sharps=sharps,
        program=program,
        pickup=pickup,
        bars=-int(-start // full),
        notes=tuple(notes),
    )


def _parts(title: str, order: str, lines: list[str]) -> Iterator[tuple[str, int]]:
    """Give the parts in playing order, each with the number of its first bar as written."""
    parts: dict[str, tuple[str, int]] = {}
    name, bars = "", 0
    for line in lines:
        if match := re.fullmatch(r"P:([A-Z])", line):
            name = match[1]
            if name in parts:
                raise ValueError(f"{title}: bar {bars + 1}: part {name} comes twice")
            continue
        text, first = parts.get(name, ("", bars + 1))
        parts[name] = (text + line, first)
        bars += sum(1 for bar in _BAR.split(line) if bar.strip())
    if set(order) != set(parts) - {""} or (order and "" in parts) or not parts:
        raise ValueError(f"{title}: parts {sorted(parts)} do not fit the order P:{order}")
    for name in order or [""]:
        yield parts[name]


def _unfold(
    title: str, text: str, first: int, parse_bar: Callable[[str], list[_Sound]]
) -> list[tuple[int, list[_Sound]]]:
    """Write the repeats out.

    Args:
        title: for error messages.
        text: the body of one part.
        first: number of its first bar.
        parse_bar: str -> list of sounds.

    Returns:
        The bars in playing order, each with its number as written.
    """
    played: list[tuple[int, list[_Sound]]] = []
    section: list[tuple[int, list[_Sound]]] = []  # since the last |:
    common: int | None = None  # how many bars of the section come before its first ending
    number, position = first, 0
    while position < len(text):
        # A bar, up to the next bar line.
        bar_line = _BAR.search(text, position)
        if bar_line is None:
            bar, mark, position_after = text[position:], "", len(text)
        else:
            bar, mark, position_after = text[position : bar_line.start()], bar_line[0], bar_line.end()
        if bar.strip():
            try:
                section.append((number, parse_bar(bar)))
            except ValueError as error:
                raise ValueError(f"{title}: bar {number}: {error}") from None
            number += 1
        # What the bar line says of repeats and endings.
        if mark == "|1" and common is None:
            common = len(section)
        elif (mark == ":|2") != (common is not None) and mark in {":|", "::", ":|2", "|:", "|]"}:
            raise ValueError(f"{title}: bar {number}: {mark!r} does not fit the endings before it")
        elif mark in {":|", "::", ":|2"}:
            played += section + section[:common]
            section, common = [], None
        elif mark == "|:":
            played += section
            section = []
        elif mark in {"|1", "|2", ":|1"}:
            raise ValueError(f"{title}: bar {number}: {mark!r} is out of place")
        position = position_after
    if common is not None:
        raise ValueError(f"{title}: bar {number}: a first ending without a second")
    return played + section


def _parse_bar(text: str, unit: Fraction, sharps: int) -> list[_Sound]:
    """Read what stands between two bar lines; lengths are in whole notes."""
    # Signs of the key hold for the letter, in every octave.
    altered = FIFTHS[:sharps] if sharps >= 0 else FIFTHS[sharps:]
    signs = dict.fromkeys(altered, 1 if sharps >= 0 else -1)
    sounds: list[_Sound] = []
    triplet, broken, position = 0, "", 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"cannot read {text[position:]!r}")
        position = match.end()
        if match["triplet"]:
            if triplet or broken:
                raise ValueError(f"a triplet in a {'triplet' if triplet else 'broken rhythm'}")
            triplet = 3
        elif match["broken"]:
            if broken or not sounds or triplet:
                raise ValueError("a broken rhythm out of place")
            broken = match["broken"]
            sounds[-1].duration *= Fraction(3, 2) if broken == ">" else Fraction(1, 2)
        elif match["letter"]:
            sounds.append(_Sound(_pitch(match, signs), unit * _length(match["length"]), bool(match["tie"])))
            if triplet:
                triplet -= 1
                sounds[-1].duration *= Fraction(2, 3)
            if broken:
                sounds[-1].duration *= Fraction(1, 2) if broken == ">" else Fraction(3, 2)
                broken = ""
    if triplet or broken:
        raise ValueError("the bar ends in the middle of a triplet or a broken rhythm")
    return sounds


def _pitch(match: re.Match[str], signs: dict[str, int]) -> int | None:
    """Give the MIDI pitch of a note, None for a rest; an accidental is kept in `signs` for the rest of the bar."""
    letter = match["letter"].upper()
    if letter == "Z":
        if match["sign"] or match["octave"] or match["tie"]:
            raise ValueError("a rest with an accidental, an octave or a tie")
        return None
    if match["sign"]:
        signs[letter] = SIGNS[match["sign"]]
    octave = match["letter"].islower() + match["octave"].count("'") - match["octave"].count(",")
    return PITCHES[letter] + 12 * octave + signs.get(letter, 0)


def _length(text: str) -> Fraction:
    """Read a length as a multiple of the unit: "" is 1, "3/2" is 3/2, "/" is 1/2."""
    numerator, slash, denominator = text.partition("/")
    below = int(denominator or 2) if slash else 1
    if not below or numerator == "0":
        raise ValueError(f"length {text!r} is zero or endless")
    return Fraction(int(numerator or 1), below)


def _check_bars(title: str, bars: list[tuple[int, list[_Sound]]], full: Fraction) -> Fraction:
    """Check that the bars as played last `full` each, and give the length of the pick-up (0 without one).

    Only the first bar may be short on its own (the pick-up). Any later short bar, such as the last one before a repeat
    that has a pick-up, must be completed by the bar that is played after it; the last bar of all by the first pick-up.
    """
    if not bars:
        raise ValueError(f"{title}: bar 1: no notes")
    lengths = [sum((sound.duration for sound in bar), Fraction(0)) for _, bar in bars]
    pickup = lengths[0] if lengths[0] < full else Fraction(0)
    open_length = Fraction(0)  # how much stands of a bar that is not full yet
    for (number, _), length in list(zip(bars, lengths, strict=True))[1 if pickup else 0 :]:
        is_completion = open_length > 0
        open_length += length
        if open_length > full or (is_completion and open_length < full):
            raise ValueError(f"{title}: bar {number} lasts {open_length}, not {full}")
        open_length %= full
    if open_length and open_length + pickup != full:
        raise ValueError(
            f"{title}: bar {bars[-1][0]}: the last bar ({open_length}) does not complete the pick-up ({pickup})"
        )
    return pickup


def to_score(tune: Tune) -> ScoreTick:
    """Put a tune on one track, 480 ticks per quarter; the first full bar starts on a bar line.

    The MIDI key signature is `major` with the sharps or flats of the mode, and `minor` for the minor mode alone.
    """
    ticks = 4 * TICKS_PER_QUARTER
    score = ScoreTick(TICKS_PER_QUARTER)
    score.time_signatures.append(TimeSignatureTick(0, *tune.meter))
    score.key_signatures.append(KeySignatureTick(0, tune.sharps, int(tune.mode == "minor")))
    score.tempos.append(TempoTick(0, tune.quarters_per_minute))
    track = TrackTick(tune.title, tune.program, False)
    for note in tune.notes:
        start, end = note.start * ticks, (note.start + note.duration) * ticks
        assert start.denominator == end.denominator == 1, f"{tune.title}: {note} is not on the tick grid"
        track.notes.append(NoteTick(int(start), int(end - start), note.pitch, VELOCITY))
    score.tracks.append(track)
    return score


def embedded_tunes() -> list[Tune]:
    """Read all tunes of the embedded data set, file by file."""
    return [tune for path in sorted(TUNES.glob("*.abc")) for tune in parse_abc(path.read_text(encoding="utf-8"))]


def embedded_scores() -> Iterator[tuple[str, bytes]]:
    """Give the embedded data set as MIDI files.

    Yields:
        (name, MIDI bytes); the name is the title in lower case ASCII with hyphens, `frere-jacques`.
    """
    for tune in embedded_tunes():
        ascii_title = unicodedata.normalize("NFKD", tune.title).encode("ascii", "ignore").decode().lower()
        yield re.sub(r"[^a-z0-9]+", "-", ascii_title.replace("'", "")).strip("-"), to_score(tune).dumps_midi()
