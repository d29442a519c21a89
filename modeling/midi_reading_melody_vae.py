"""What anybody may hand in as MIDI -> the notes of its voices: paths, bytes, files, archives and scores.

N notes · K voices. A *part* is a track as symusic has it: what one channel plays with one program in one track of the
file. A *voice* is one part, or several of one track of the file that complement each other in time.
"""

from __future__ import annotations  # symusic's Score is a factory, no class

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from symusic import Score, types

from .midi_repair_melody_vae import repair_midi, scan_channels, split_tracks, unpack_zip, walk_channels
from .track_names_melody_vae import decode_name, is_percussion

MidiInput = str | os.PathLike | bytes | bytearray | memoryview | BinaryIO | types.Score

MAX_FILE_BYTES, MAX_TRACKS, MAX_VOICES, MAX_NOTES = 1 << 25, 1 << 12, 256, 1 << 18  # of one file
MAX_JOINED = 64  # parts of one track of a file; of more, each stays a voice
MAX_OVERLAP = 0.1  # of the shorter part's played time: what legato playing holds over, not a second voice
MAX_HELD_QUARTERS = 4  # the sustain pedal lengthens a note by so much at most
# After the last event of a track, out of reach of its notes, the end of every note: what lasts until then had none.
FAR_TICKS = 1 << 27
FAR = b"\xff\1\0" + b"\xc0\x80\x80\0"
ALL_NOTES_OFF = [
    bytes([0x80 | channel, 0, 0]) + b"".join(bytes([0, pitch, 0]) for pitch in range(1, 128)) for channel in range(16)
]
DRUM_CHANNEL = 9


class Part(NamedTuple):
    """One part of a file: its place among all, where it comes from, what plays it, and its notes, shape (n,) each."""

    index: int
    file_track: int
    channel: int
    program: int
    name: str
    time: np.ndarray
    duration: np.ndarray
    held: np.ndarray
    pitch: np.ndarray


@dataclass
class MidiNotes:
    """The pitched notes of a file.

    Attributes:
        file: What it is called in messages.
        parts: How many parts the file has, of drums and without notes too.
        ticks_per_quarter: Unit of all times.
        index: Of each voice's first part, shape (K,).
        program: General MIDI program of each voice, shape (K,), as its track says.
        sound: General MIDI program that a player plays it with: another track may set it, shape (K,).
        name: Of each voice, shape (K,).
        voice: Voice of each note, int64, shape (N,), like the next four.
        time: Onset.
        duration: Length as it is played.
        held: Length with the sustain pedal.
        pitch: MIDI pitch.
        time_signatures: Tick, numerator and denominator of each.
        tempos: Tick and microseconds per quarter note of each.
        key_signatures: Tick, sharps (flats if negative), and whether it is minor.
        repairs: What was put right, a few words each.
    """

    file: str
    parts: int
    ticks_per_quarter: int
    index: list[int]
    program: list[int]
    sound: list[int]
    name: list[str]
    voice: np.ndarray
    time: np.ndarray
    duration: np.ndarray
    held: np.ndarray
    pitch: np.ndarray
    time_signatures: list[tuple[int, int, int]]
    tempos: list[tuple[int, int]]
    key_signatures: list[tuple[int, int, bool]]
    repairs: list[str] = field(default_factory=list)


def name_of(midi: MidiInput) -> str:
    """Name an input in an error message."""
    if isinstance(midi, str | os.PathLike):
        return os.fsdecode(midi).encode("utf-8", "backslashreplace").decode()
    if isinstance(midi, bytes | bytearray | memoryview):
        return f"{memoryview(midi).nbytes} bytes"
    if isinstance(midi, Score):
        return f"a score of {len(midi.tracks)} tracks"
    named = getattr(midi, "name", None)
    return named if isinstance(named, str) else f"a {type(midi).__name__}"


def read_content(midi: MidiInput) -> bytes:
    """Read what is no score.

    Raises:
        ValueError: If it cannot be read, or is nothing to read; names it.
    """
    name = name_of(midi)
    try:
        if isinstance(midi, str | os.PathLike):
            with Path(midi).open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        elif isinstance(midi, bytes | bytearray | memoryview):
            content = bytes(midi)
        elif hasattr(midi, "read"):
            content = midi.read(MAX_FILE_BYTES + 1)
        else:
            raise ValueError(f"{name} is no MIDI; give a path, the bytes of a file, an open file, or a symusic Score")
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror or error}); give the path of a MIDI file") from error
    if not isinstance(content, bytes):
        raise ValueError(f"{name}: reads {type(content).__name__} instead of bytes; open it with mode 'rb'")
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{name}: more than {MAX_FILE_BYTES >> 20} MiB; cut it in an editor and export it again")
    return content


def each_file(midi: MidiInput | Iterable[MidiInput]) -> Iterator[tuple[str, bytes | types.Score]]:
    """Go through what was handed in, one MIDI file after the other, those of ZIP archives too.

    Args:
        midi: One input, or any number of them in a list, generator, ...

    Yields:
        What each is called, and its content or score.

    Raises:
        ValueError: If one cannot be read; names it.
    """
    if isinstance(midi, Mapping):
        raise ValueError("a dict is no MIDI; lines= takes melody lines")
    is_one = isinstance(midi, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(midi, "read")
    if not is_one and isinstance(midi, Iterable):
        for item in midi:
            yield from each_file(item)
        return
    if isinstance(midi, Score):
        yield name_of(midi), midi  # pyright: ignore[reportReturnType] - a factory narrows nothing
        return
    content, name = read_content(midi), name_of(midi)
    if not content.startswith(b"PK\3\4"):
        yield name, content
        return
    try:
        members = unpack_zip(content)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    yield from ((f"{name}/{member}", content) for member, content in members)


def read_midi(midi: MidiInput, file: str | None = None) -> MidiNotes:
    """Read the pitched notes of one MIDI file.

    Args:
        midi: Path, content of a MIDI file or of a ZIP archive with one in it, open file, or score.
        file: What to call it.

    Raises:
        ValueError: If it cannot be read, is no MIDI file, has no notes or too much of something; names it.
    """
    files = list(each_file(midi))
    if len(files) != 1:
        raise ValueError(f"{name_of(midi)}: {len(files)} MIDI files; give one here, or all of them to read()")
    ((name, content),) = files
    name = file or name
    try:
        return _read(name, content)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _read(file: str, content: bytes | types.Score) -> MidiNotes:
    """Read one file; messages do not name it."""
    # Notes without an end are seen only once the file is read; then it is put right again, with ends.
    if isinstance(content, bytes):
        data, repairs = repair_midi(content)
        tracks = _read_tracks(data)
        if any(_has_open_notes(score) for score, _ in tracks):
            data, repairs = repair_midi(content, has_open_notes=True)
            tracks = _read_tracks(data)
    else:
        repairs, tracks = [], [(content.to("tick"), b"")]
    scores = [score for score, _ in tracks]
    ticks_per_quarter = scores[0].ticks_per_quarter
    if ticks_per_quarter < 1:
        raise ValueError("its time is in frames per second; export it in ticks per quarter note")
    if (notes := sum(score.note_num() for score in scores)) > MAX_NOTES:
        raise ValueError(f"{notes} notes; give {MAX_NOTES} at most, cut it in an editor and export it again")
    # A part is what one channel plays with one program; drums are no melody.
    parts = list(_take_parts(tracks))
    is_drums = _play_drums(parts)
    parts = [part for part, drums in zip(parts, is_drums, strict=True) if not drums]
    if not parts:
        raise ValueError("no notes outside the drums; give a MIDI file that has a melody")
    # Parts that complement each other are one voice.
    voice, count = _join_voices(parts)
    if count > MAX_VOICES:
        raise ValueError(f"{count} tracks with notes; give {MAX_VOICES} at most, leave some out and export it again")
    members = [[part for part, own in zip(parts, voice, strict=True) if own == number] for number in range(count)]
    largest = [max(own, key=lambda part: len(part.time)) for own in members]
    set_elsewhere = _programs_set_elsewhere(tracks)
    lengths = [len(part.time) for part in parts]
    return MidiNotes(
        file=file,
        parts=sum(len(score.tracks) for score in scores),
        ticks_per_quarter=ticks_per_quarter,
        index=[own[0].index for own in members],
        program=[part.program for part in largest],
        sound=[set_elsewhere.get((part.file_track, part.channel), part.program) for part in largest],
        name=[own[0].name for own in members],
        voice=np.repeat(np.array(voice, np.int64), lengths),
        time=np.concatenate([part.time for part in parts]),
        duration=np.concatenate([part.duration for part in parts]),
        held=np.concatenate([part.held for part in parts]),
        pitch=np.concatenate([part.pitch for part in parts]),
        time_signatures=[
            (each.time, each.numerator, each.denominator) for score in scores for each in score.time_signatures
        ],
        tempos=[(each.time, each.mspq) for score in scores for each in score.tempos],
        key_signatures=[(each.time, each.key, each.tonality == 1) for score in scores for each in score.key_signatures],
        repairs=repairs,
    )


def _read_tracks(data: bytes) -> list[tuple[types.Score, bytes]]:
    """Read the tracks of a repaired file one by one: a score of each, with `FAR` ends for notes without one."""
    bodies = split_tracks(data)
    if len(bodies) > MAX_TRACKS:
        raise ValueError(f"{len(bodies)} tracks; give {MAX_TRACKS} at most, leave some out and export it again")
    tracks = []
    for body in bodies:
        is_used = [channel != DRUM_CHANNEL and bytes([0x90 | channel]) in body for channel in range(16)]
        ends = [ALL_NOTES_OFF[channel] for channel in range(16) if is_used[channel]]
        content = b"\0".join([body[:-3] + FAR + ends[0], *ends[1:], b"\xff\x2f\0"]) if ends else body
        chunk = b"MTrk" + len(content).to_bytes(4, "big") + content
        try:
            tracks.append((Score.from_midi(data[:8] + b"\0\0\0\1" + data[12:14] + chunk), body))
        except Exception as error:  # symusic raises plain RuntimeError, and others, on what it cannot parse
            raise ValueError("not a MIDI file, or a broken one; export it again as standard MIDI") from error
    return tracks


def _has_open_notes(score: types.Score) -> bool:
    return score.end() >= FAR_TICKS and any(
        len(track.notes) and track.notes.numpy()["duration"].max() >= FAR_TICKS for track in score.tracks
    )


def _take_parts(tracks: list[tuple[types.Score, bytes]]) -> Iterator[Part]:
    """Go through the parts that are no drums and have notes."""
    before = 0
    for file_track, (score, body) in enumerate(tracks):
        pitched = [(index, track) for index, track in enumerate(score.tracks) if not track.is_drum and len(track.notes)]
        # A score says nothing of tracks of a file and channels: each of its tracks is a voice.
        origins = [(file_track if body else index, 0 if body else index) for index, _ in pitched]
        if body and len(pitched) > 1:
            played = [channel for channel, _ in scan_channels(body)[0] if channel != DRUM_CHANNEL]
            if len(played) == len(pitched):
                origins = [(file_track, channel) for channel in played]
        for (index, track), origin in zip(pitched, origins, strict=True):
            columns = track.notes.numpy()
            time, duration, pitch = (columns[name].astype(np.int64) for name in ("time", "duration", "pitch"))
            name = _decoded(track.name, body)
            held = _hold(time, duration, track, MAX_HELD_QUARTERS * score.ticks_per_quarter)
            yield Part(before + index, *origin, track.program, name, time, duration, held, pitch)
        before += len(score.tracks)


def _decoded(name: str, body: bytes) -> str:
    """Decode the name of a track anew where symusic, which takes it for UTF-8, had to replace bytes."""
    if "\ufffd" not in name:
        return name
    names = [body[found.end() : found.end() + found[1][0]] for found in re.finditer(rb"\xff\x03([\x01-\x7f])", body)]
    names = [raw for raw in names if raw.decode("utf-8", "ignore") != raw.decode("utf-8", "replace")]
    return decode_name(names[-1]) if names else name


def _hold(time: np.ndarray, duration: np.ndarray, track: types.Track, longest: int) -> np.ndarray:
    """Lengthen the notes that end while the sustain pedal is down to its release, by `longest` ticks at most."""
    if not len(track.pedals):
        return duration
    columns = track.pedals.numpy()
    order = columns["time"].argsort(kind="stable")
    begin = columns["time"][order].astype(np.int64)
    release, end = begin + columns["duration"][order], time + duration
    last = begin.searchsorted(end, side="right") - 1
    return np.maximum(np.where(last >= 0, np.minimum(release[last], end + longest), end), end) - time


def _play_drums(parts: list[Part]) -> list[bool]:
    """Tell which parts play drums on another channel than that of drums."""
    found = []
    for part in parts:
        counts = np.bincount(np.maximum(part.pitch, 0)).tolist()
        found.append(
            is_percussion(part.name, part.program, {pitch: count for pitch, count in enumerate(counts) if count})
        )
    return found


def _sounding(part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Return begin and end of the stretches in which a part sounds, in order."""
    order = part.time.argsort(kind="stable")
    begin = part.time[order]
    end = np.maximum.accumulate(begin + np.maximum(part.duration[order], 1))
    is_apart = begin[1:] > end[:-1]
    return begin[np.append(True, is_apart)], end[np.append(is_apart, True)]


def _overlap(begin: np.ndarray, end: np.ndarray, part: tuple[np.ndarray, np.ndarray]) -> int:
    """Return for how many ticks a part sounds together with others, given all their stretches in any order."""

    def elapsed(time: np.ndarray, since: np.ndarray) -> np.ndarray:
        since = np.sort(since)
        before = since.searchsorted(time)
        return before * time - np.append(0, since.cumsum())[before]

    played = [elapsed(time, begin) - elapsed(time, end) for time in part]  # by the others until then
    return int((played[1] - played[0]).sum())


def _join_voices(parts: list[Part]) -> tuple[list[int], int]:
    """Join the parts of each track of the file that complement each other in time, as the data set does.

    A part joins the first voice of its track in which it shares channel or program with a part, and sounds together
    with the voice for at most `MAX_OVERLAP` of the shorter one's played time.

    Returns:
        The voice of each part, counted in order of their first parts, and their number.
    """
    of_track: dict[int, list[int]] = {}
    for place, part in enumerate(parts):
        of_track.setdefault(part.file_track, []).append(place)
    first = list(range(len(parts)))
    for places in of_track.values():
        own = [parts[place] for place in places]
        is_related = len({part.channel for part in own}) < len(own) or len({part.program for part in own}) < len(own)
        if not is_related or len(own) > MAX_JOINED:
            continue
        voices: list[list[int]] = []
        stretches = {place: _sounding(parts[place]) for place in places}
        played = {place: int((end - begin).sum()) for place, (begin, end) in stretches.items()}
        for place in places:
            for voice in voices:
                keys = {(part.channel, -1) for part in map(parts.__getitem__, voice)}
                keys |= {(-1, part.program) for part in map(parts.__getitem__, voice)}
                if not keys & {(parts[place].channel, -1), (-1, parts[place].program)}:
                    continue
                begin, end = (np.concatenate([stretches[member][side] for member in voice]) for side in (0, 1))
                shorter = min(sum(played[member] for member in voice), played[place])
                if _overlap(begin, end, stretches[place]) <= MAX_OVERLAP * shorter:
                    voice.append(place)
                    first[place] = voice[0]
                    break
            else:
                voices.append([place])
    numbers = {place: number for number, place in enumerate(sorted(set(first)))}
    return [numbers[place] for place in first], len(numbers)


def _programs_set_elsewhere(tracks: list[tuple[types.Score, bytes]]) -> dict[tuple[int, int], int]:
    """Find the programs that one track sets for the channel of another, which sets none itself.

    Returns:
        Program by track of the file and channel.
    """
    may_set = [bool(body) and re.search(rb"[\xc0-\xcf][\0-\x7f]", body) is not None for _, body in tracks]
    has_notes = [score.note_num() > 0 for score, _ in tracks]
    unset = [index for index, is_set in enumerate(may_set) if not is_set and has_notes[index] and tracks[index][1]]
    if not unset or not any(may_set):
        return {}
    bodies = [body for (_, body), is_set in zip(tracks, may_set, strict=True) if is_set]
    changes = [change for body in bodies for change in scan_channels(body)[1]]
    if not changes:
        return {}
    if len({channel for channel, _ in changes}) < len(changes):  # the first one in time counts
        changes = [change[1:] for change in sorted(change for body in bodies for change in walk_channels(body)[1])]
    program = dict(reversed(changes))
    found = {}
    for index in unset:
        channels = [channel for channel, _ in scan_channels(tracks[index][1])[0] if channel != DRUM_CHANNEL]
        for channel in channels:
            if channel in program:  # the channel of a track's only part is not told apart, see `_take_parts`
                found[index, channel if len(channels) > 1 else 0] = program[channel]
    return found
