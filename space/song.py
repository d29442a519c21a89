"""The way back into a song: a melody takes the place of the bars of a MIDI file that it came from.

Only the events of one channel of one track are touched, from the melody's first bar to its last: every other track
stays as it is, byte for byte, and so do all other events of that one.
"""

import hashlib
import struct
from collections import Counter
from functools import lru_cache
from typing import Any, NamedTuple

from melody import Melody, RefusedError, steps_per_bar

MAX_EVENTS = 400_000
DATA_BYTES = {0x8: 2, 0x9: 2, 0xA: 2, 0xB: 2, 0xC: 1, 0xD: 1, 0xE: 2}  # of the kinds of channel messages
FEWEST_FOUND = 0.5  # share of a melody's notes that a track must have at their place


class Event(NamedTuple):
    """A MIDI event at a time in ticks; `data` has its status byte, whether the file has it or not."""

    ticks: int
    data: bytes

    @property
    def is_note_on(self) -> bool:
        """Whether it begins a note."""
        return self.data[0] >> 4 == 9 and self.data[2] > 0

    @property
    def is_note_off(self) -> bool:
        """Whether it ends a note."""
        return self.data[0] >> 4 == 8 or (self.data[0] >> 4 == 9 and self.data[2] == 0)


def split_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """Split a MIDI file into its chunks: type and content."""
    found, at = [], 0
    while at + 8 <= len(content):
        size = struct.unpack(">I", content[at + 4 : at + 8])[0]
        found.append((content[at : at + 4], content[at + 8 : at + 8 + size]))
        at += 8 + size
    return found


def read_number(data: bytes, at: int) -> tuple[int, int]:
    """Read a number of variable length; and where it ends."""
    number = 0
    for end in range(at, at + 4):
        number = number << 7 | data[end] & 127
        if data[end] < 128:
            return number, end + 1
    raise ValueError("a number of more than four bytes")


def write_number(number: int) -> bytes:
    """Write a number of variable length."""
    written = [number & 127]
    while number := number >> 7:
        written.append(number & 127 | 128)
    return bytes(reversed(written))


def read_events(data: bytes) -> list[Event]:
    """Read the events of a track.

    Raises:
        ValueError, IndexError: If it is damaged or has too many.
    """
    events: list[Event] = []
    at = ticks = status = 0
    while at < len(data):
        delta, at = read_number(data, at)
        ticks += delta
        first = data[at]
        if first in (0xF0, 0xF7, 0xFF):
            size, end = read_number(data, at + 1 + (first == 0xFF))
            events.append(Event(ticks, data[at : end + size]))
            at = end + size
        else:
            if first & 128:
                status, at = first, at + 1
            size = DATA_BYTES[status >> 4]
            events.append(Event(ticks, bytes([status]) + data[at : at + size]))
            at += size
        if at > len(data):
            raise ValueError("its last event is cut off")
        if len(events) > MAX_EVENTS:
            raise ValueError("too many events")
    return events


def write_events(events: list[Event]) -> bytes:
    """Write the events of a track, with a status byte each."""
    parts, now = [], 0
    for event in events:
        parts += [write_number(event.ticks - now), event.data]
        now = event.ticks
    return b"".join(parts)


@lru_cache(maxsize=2)
def read_tracks(content: bytes) -> tuple[list[tuple[bytes, bytes]], dict[int, list[Event]], int]:
    """Read a file: its chunks, the events of those that are tracks, and ticks per quarter.

    Raises:
        ValueError, IndexError, KeyError, struct.error: If it is damaged.
    """
    chunks = split_chunks(content)
    division = struct.unpack(">H", chunks[0][1][4:6])[0]
    if division == 0 or division & 0x8000:
        raise ValueError("no ticks per quarter, or times in frames")
    return chunks, {index: read_events(data) for index, (kind, data) in enumerate(chunks) if kind == b"MTrk"}, division


def find_place(content: bytes, melody: Melody) -> dict[str, Any] | None:
    """Find where in a file a melody is that was read from it.

    Returns:
        `file`, the file's MD5; `chunk` and `channel`; `tick`, where its first bar begins; and `ticks_per_bar`. None if
        most of its notes are not found at their place, as where notes were repaired.
    """
    try:
        _, tracks, division = read_tracks(content)
    except (ValueError, IndexError, KeyError, struct.error):
        return None
    step = ticks_per_step(melody, division)
    best: tuple[int, dict[str, Any]] = (0, {})
    # Each channel of each track is tried; of all places the one with most of the notes counts.
    for chunk, events in tracks.items():
        for channel in range(16):
            own = [event for event in events if event.is_note_on and event.data[0] & 15 == channel]
            onsets = [(event.ticks, event.data[1]) for event in own]
            if not onsets:
                continue
            known: dict[int, list[int]] = {}
            for ticks, pitch in onsets:
                known.setdefault(pitch, []).append(ticks)
            # Where would the first bar begin, if this note were one of the melody's first ones?
            votes: Counter[int] = Counter()
            for start, pitch in list(zip(melody["start"], melody["pitch"], strict=True))[:12]:
                votes.update(round((ticks - start * step) / step) for ticks in known.get(pitch, ()))
            for place, count in votes.most_common(3):
                if count < FEWEST_FOUND * min(12, len(melody["pitch"])):
                    break
                tick = round(place * step)
                near = {(round((ticks - tick) / step), pitch) for ticks, pitch in onsets}
                hits = sum(each in near for each in zip(melody["start"], melody["pitch"], strict=True))
                if tick >= 0 and hits > best[0]:
                    best = hits, {"chunk": chunk, "channel": channel, "tick": tick}
    if best[0] < FEWEST_FOUND * len(melody["pitch"]):
        return None
    bar = steps_per_bar(melody) * step
    return {"file": hashlib.md5(content, usedforsecurity=False).hexdigest(), **best[1], "ticks_per_bar": bar}


def ticks_per_step(melody: Melody, division: int) -> float:
    """Return the ticks of a grid step in a file of so many ticks per quarter."""
    return 4 * division / (int(melody["time_signature"].split("/")[1]) * melody["steps_per_beat"])


def put_back(content: bytes, melody: Melody) -> bytes:
    """Put a melody in the place of the notes that it was made from; the rest of the file stays.

    Args:
        content: The file.
        melody: With a `place`, see [`find_place`], moved by the bars that were cut off before it.

    Raises:
        RefusedError: If the melody has none, or in another file.
    """
    place = melody.get("place")
    # Only the file itself will do.
    if not place:
        raise RefusedError("This melody comes from no MIDI file")
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != place["file"]:
        raise RefusedError("This is not the file that the melody comes from")
    try:
        chunks, tracks, division = read_tracks(content)
        chunks = list(chunks)
        events = tracks[place["chunk"]]
    except (ValueError, IndexError, KeyError, struct.error) as error:
        raise RefusedError("This MIDI file is damaged. Export it again.") from error
    step, low = ticks_per_step(melody, division), place["tick"]
    high = low + melody["bars"] * steps_per_bar(melody) * step
    half = step / 2  # a note that was played a little early is of this bar all the same
    # Leave out the notes of that channel in those bars.
    kept, sounding, velocities = [], Counter[int](), []
    for event in events:
        is_own = event.data[0] < 0xF0 and event.data[0] & 15 == place["channel"]
        if is_own and event.is_note_on and low - half <= event.ticks < high - half:
            sounding[event.data[1]] += 1
            velocities.append(event.data[2])
        elif is_own and event.is_note_off and sounding[event.data[1]]:
            sounding[event.data[1]] -= 1
        else:
            kept.append(event)
    # The melody's notes, as loud as those that it replaces.
    velocity = sorted(velocities)[len(velocities) // 2] if velocities else 100
    notes = []
    for pitch, start, duration in zip(melody["pitch"], melody["start"], melody["duration"], strict=True):
        begin, end = (round(low + at * step) for at in (start, start + duration))
        notes.append(Event(begin, bytes([0x90 | place["channel"], pitch, velocity])))
        notes.append(Event(max(end, begin + 1), bytes([0x80 | place["channel"], pitch, 0])))
    last = max(event.ticks for event in [*kept, *notes])
    end_of_track = [event for event in kept if event.data[:2] == b"\xff\x2f"]
    body = [event for event in kept if event.data[:2] != b"\xff\x2f"]
    # At one time, the melody's notes end before what the file has there, such as a change of sound, and begin after it.
    own = [(event, 2 if event.is_note_on else 0) for event in notes]
    placed = sorted([*((event, 1) for event in body), *own], key=lambda each: (each[0].ticks, each[1]))
    merged = [event for event, _ in placed]
    merged += [Event(last, event.data) for event in end_of_track[:1]]
    chunks[place["chunk"]] = (b"MTrk", write_events(merged))
    return b"".join(kind + struct.pack(">I", len(data)) + data for kind, data in chunks)
