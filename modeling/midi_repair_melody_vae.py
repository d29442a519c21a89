"""MIDI files as they are found, put right: containers, headers, chunks and events that players take and readers refuse.

The standard library is all that is needed here: bytes in, bytes out. A file in order costs one pass of a regular
expression and comes back as it is.
"""

import io
import re
import zipfile
import zlib
from collections import Counter

HEADER_TAG, TRACK_TAG = b"MThd", b"MTrk"
MAX_TICK = 2**31 - 1  # what readers hold a time in
DEFAULT_TICKS_PER_QUARTER = 480  # where the header says 0
DEFAULT_MSPQ = 500_000  # microseconds per quarter note where no tempo is set
DRUM_CHANNEL = 9
SYSTEM_EXCLUSIVE, META = 0xF0, 0xFF
ESCAPE = 0xF7  # goes on with a system exclusive event, or is any bytes; readers take these for events of their own
SET_TEMPO, TIME_SIGNATURE, KEY_SIGNATURE = 0x51, 0x58, 0x59  # meta events
END_MARK, SET_TEMPO_EVENT = b"\xff\x2f\0", bytes([META, SET_TEMPO])
LARGEST_NUMBER = (1 << 28) - 1  # of variable length
COMMON_LENGTHS = {0xF1: 1, 0xF2: 2, 0xF3: 1}  # data bytes of system common messages; the others have none

MIDI_SUFFIXES = (".mid", ".midi", ".kar", ".rmi", ".smf")
MAX_ZIP_FILES, MAX_ZIP_FILE_BYTES, MAX_ZIP_BYTES = 10_000, 1 << 25, 1 << 28  # of MIDI in one archive, unpacked

# What begins a file that is no MIDI file, and what it is.
SIGNATURES = {
    b"PK\3\4": "a ZIP archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"BZh": "a bzip2 archive; unpack it",
    b"\xfd7zXZ": "an xz archive; unpack it",
    b"RIFF": "a RIFF file without MIDI in it, such as recorded sound",
    b"ID3": "recorded sound",
    b"OggS": "recorded sound",
    b"fLaC": "recorded sound",
    b"FORM": "an IFF file, such as recorded sound or XMIDI",
    b"XMF_": "an XMF file; take the MIDI file out of it",
    b"SMF2CLIP": "a clip of MIDI 2.0",
    b"data:": "text: a file written as base64; decode it",
    b"TVRoZA": "text: a file written as base64; decode it",
    b"X:": "text in ABC notation; convert it with abc2midi",
    b"%PDF": "a page or a document",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file that it stands for",
    b"<": "a page or a document",
}


# Parts of regular expressions. A block of up to 127 bytes is one of 128 alternatives: they cannot count.
DELTA, DATA = rb"[\x80-\xff]{0,3}+[\x00-\x7f]", rb"[\x00-\x7f]"
BLOCK = b"(?:" + b"|".join(re.escape(bytes([n])) + b".{%d}" % n for n in range(128)) + b")"


def _regular_track() -> re.Pattern[bytes]:
    """Write the grammar of a track that every reader takes as a regular expression without backtracking."""
    delta, data, block = DELTA, DATA, BLOCK
    meta = (
        rb"\xff(?:\x51\x03(?!\0\0\0).{3}|\x58\x04[\x01-\xff][\x00-\x07]..|\x59\x02..|[\x00-\x2e\x30-\x50\x52-\x57\x5a-\x7f]"
        + block
        + b")"
    )
    channel = rb"[\x80-\xbf\xe0-\xef]%b{2}(?:%b%b{2})*+|[\xc0-\xdf]%b(?:%b%b)*+" % (
        data,
        delta,
        data,
        data,
        delta,
        data,
    )
    event = b"%b(?:%b|%b|\xf0%b)" % (delta, channel, meta, block)
    return re.compile(b"(?:%b)*+%b\xff\x2f\x00" % (event, delta), re.DOTALL)


REGULAR_TRACK = _regular_track()


def _channels() -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """Write what finds notes of one channel, or a change of program, and what is neither, before them."""
    system = rb"%b(?:\xff.|[\xf0\xf7])%b" % (DELTA, BLOCK)
    again = b"(?:%b)*+%b" % (system, DELTA)  # an event whose status is the last one's
    others = rb"[\x80-\x8f\xa0-\xbf\xe0-\xef]%b{2}(?:%b%b{2})*+|[\xd0-\xdf]%b(?:%b%b)*+" % (
        *(DATA, again, DATA),
        *(DATA, again, DATA),
    )
    ends = rb"[\x90-\x9f]%b\0(?:%b%b\0)*+(?!%b%b)" % (DATA, again, DATA, again, DATA)  # all of a run
    silence = b"(?:%b|%b(?:%b|%b))*+" % (system, DELTA, others, ends)
    notes = rb"([\x90-\x9f])%b{2}(?:%b(?:%b{2}|%b|\1%b{2})|%b)*+" % (DATA, DELTA, DATA, others, DATA, system)
    found = rb"%b%b(?:%b|([\xc0-\xcf]%b)(?!%b%b))" % (silence, DELTA, notes, DATA, again, DATA)
    return re.compile(found, re.DOTALL), re.compile(silence, re.DOTALL)


CHANNELS, SILENCE = _channels()


def repair_midi(data: bytes, has_open_notes: bool = False) -> tuple[bytes, list[str]]:
    """Put a MIDI file right, so that any reader reads what a player plays.

    Args:
        data: Content of the file, in whatever container.
        has_open_notes: Whether some of its notes have no end. A reader finds that out sooner than this function, which
            otherwise looks no further into tracks that are in order.

    Returns:
        A MIDI file, `data` itself where nothing was to be done, and what was put right, a few words each.

    Raises:
        ValueError: If there is no MIDI in it; says what it is.
    """
    # The header: its length, format and number of tracks are often wrong, and none is needed.
    header, repairs = _find_header(data)
    length = int.from_bytes(data[header + 4 : header + 8], "big")
    kind, declared, division = (int.from_bytes(data[header + at : header + at + 2], "big") for at in (8, 10, 12))
    first = header + 8 + length
    if length != 6:
        repairs.append(f"a header of {length} bytes instead of 6")
        first = first if length > 6 and first < len(data) else header + 14
    bodies = _find_tracks(data, first, repairs)
    if not bodies:
        raise ValueError("not a MIDI file, or a broken one: it has a header and no track; export it again")
    if declared != len(bodies):
        repairs.append(f"a header that counts {declared} tracks where {len(bodies)} are")
    if kind > 2 or (kind == 0 and len(bodies) > 1):
        repairs.append(f"a header of format {kind} before {_count(len(bodies), 'track')}")
    frames = 256 - (division >> 8) if division >> 15 else 0
    if not division:
        repairs.append(f"0 ticks per quarter note, read as {DEFAULT_TICKS_PER_QUARTER}")
    # What is in order stays as it is, but where times change or notes get ends.
    needs_events = has_open_notes or frames or kind == 2
    found = [_Track(body) if needs_events or not REGULAR_TRACK.fullmatch(body) else None for body in bodies]
    tracks = [track for track in found if track]
    repairs += _phrases(sum((track.faults for track in tracks), Counter()))
    # Frames become ticks, open notes get ends, independent sequences follow each other.
    if frames:
        division = _leave_frames(tracks, frames, division & 0xFF)
        repairs.append("time in frames per second, read in quarter notes")
    division = division or DEFAULT_TICKS_PER_QUARTER
    if opened := sum(track.end_notes(division) for track in tracks):
        repairs.append(f"{_count(opened, 'note')} without an end")
    if kind == 2 and len(tracks) > 1:
        _put_in_sequence(tracks, 4 * division)
        repairs.append(f"{len(tracks)} sequences, put one after the other")
    if not repairs:
        return data, []
    # Only what has changed is written anew.
    chunks = [track.to_bytes() if track else _chunk(body) for track, body in zip(found, bodies, strict=True)]
    content, header_numbers = b"".join(chunks), (min(len(chunks) - 1, 1), len(chunks), division)
    return b"MThd\0\0\0\6" + b"".join(number.to_bytes(2, "big") for number in header_numbers) + content, repairs


def unpack_zip(data: bytes) -> list[tuple[str, bytes]]:
    """Take the MIDI files out of a ZIP archive.

    Args:
        data: Content of the archive.

    Returns:
        Name and content of each, in the archive's order.

    Raises:
        ValueError: If the archive is broken, locked, or larger than a collection of MIDI files is.
    """
    files, total = [], 0
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.infolist():
                name = member.filename
                if not name.lower().endswith(MIDI_SUFFIXES) or name.startswith("__MACOSX/"):
                    continue
                with archive.open(member) as file:  # never more than the limit, whatever the archive says of its size
                    content = file.read(MAX_ZIP_FILE_BYTES + 1)
                files.append((name, content))
                total += len(content)
                if len(content) > MAX_ZIP_FILE_BYTES or total > MAX_ZIP_BYTES or len(files) > MAX_ZIP_FILES:
                    raise ValueError(f"a ZIP archive with too much in it ({name}); give its files a few at a time")
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"a ZIP archive that cannot be unpacked ({error}); unpack it yourself") from error
    if not files:
        raise ValueError(f"a ZIP archive without MIDI files ({', '.join(MIDI_SUFFIXES)})")
    return files


def _find_header(data: bytes) -> tuple[int, list[str]]:
    """Return where the header begins, and what stands before it."""
    if data.startswith(HEADER_TAG) and len(data) >= 14:
        return 0, []
    header = data.find(HEADER_TAG)
    while header >= 0 and header + 14 <= len(data) and data[header + 4 : header + 6] != b"\0\0":
        header = data.find(HEADER_TAG, header + 4)  # the letters by chance
    is_found = header >= 0 and header + 14 <= len(data)
    if is_found and data.startswith(b"RIFF"):
        return header, ["a RIFF container"]
    if is_found and not data.startswith((b"PK\3\4", b"Rar!")):
        return header, [f"{_count(header, 'byte')} before the header"]
    start = data[:64].lstrip()
    what = next((what for signature, what in SIGNATURES.items() if start.startswith(signature)), "")
    if not data:
        what = "it is empty"
    elif what:
        what = f"it is {what}"
    elif header >= 0 or HEADER_TAG.startswith(data[:4]):
        what = "it ends within its header"
    raise ValueError(f"not a MIDI file, or a broken one{': ' * bool(what)}{what}; export it again as standard MIDI")


def _find_tracks(data: bytes, position: int, repairs: list[str]) -> list[bytes]:
    """Cut out the tracks, wherever they begin and end."""
    bodies: list[bytes] = []
    skipped = unknown = misplaced = 0
    between = 0, 0  # bytes and chunks since the last track, which matter where another track follows
    while position + 8 <= len(data):
        tag, start = data[position : position + 4], position + 8
        stop = start + int.from_bytes(data[start - 4 : start], "big")
        if tag == TRACK_TAG:
            # A length is right where the file or the track ends, or another track begins.
            ends_there = data[stop : stop + 4] == TRACK_TAG or data[stop - 3 : stop] == END_MARK
            if stop > len(data) or not (ends_there or stop == len(data)):
                following = data.find(TRACK_TAG, start)
                is_cut_short = following < 0 and stop > len(data)
                stop = following if following >= 0 else len(data)
                misplaced += not is_cut_short
                repairs += ["an end that is cut off"] * is_cut_short
            bodies.append(data[start:stop])
            skipped, unknown, between = skipped + between[0], unknown + between[1], (0, 0)
        elif stop <= len(data) and tag.isalnum():
            between = between[0], between[1] + 1
        else:
            stop = data.find(TRACK_TAG, position + 1)
            if stop < 0:
                break
            between = between[0] + stop - position, between[1]
        position = stop
    if skipped:
        repairs.append(f"{_count(skipped, 'byte')} between the tracks")
    if unknown:
        repairs.append(f"{_count(unknown, 'chunk')} of an unknown kind")
    if misplaced:
        repairs.append(f"{_count(misplaced, 'track')} of another length than stated")
    return bodies


def _leave_frames(tracks: list["_Track"], frames: int, ticks_per_frame: int) -> int:
    """Return the ticks of a quarter note at the first tempo, which becomes the only one: frames know no tempo."""
    tempos = [(tick, event) for track in tracks for tick, event in track.events if event[:2] == SET_TEMPO_EVENT]
    _, tempo = min(tempos, default=(0, SET_TEMPO_EVENT + b"\3" + DEFAULT_MSPQ.to_bytes(3, "big")))
    ticks_per_second = ticks_per_frame * (30_000 / 1001 if frames == 29 else frames)
    division = round(ticks_per_second * int.from_bytes(tempo[3:6], "big") / 1e6)
    if not 1 <= division < 1 << 15:
        raise ValueError(
            f"its time is in frames per second ({ticks_per_frame} ticks in each of {frames}), which are no quarter "
            "notes; export it in ticks per quarter note"
        )
    for track in tracks:
        track.events = [(tick, event) for tick, event in track.events if event[:2] != SET_TEMPO_EVENT]
    tracks[0].events.insert(0, (0, tempo))
    return division


def _put_in_sequence(tracks: list["_Track"], bar: int) -> None:
    """Let each track begin in the bar after the one before it has ended."""
    start = 0
    for track in tracks:
        track.events = [(start + tick, event) for tick, event in track.events]
        track.tick += start
        start = -(-track.tick // bar) * bar
    if start > MAX_TICK:
        raise ValueError("its sequences are too long to follow each other; export each to a file of its own")


class _Track:
    """The events of one track, as far as they can be read.

    Attributes:
        events: Ticks and bytes of each, the status byte always among them; without the end of the track.
        tick: Where the track ends.
        faults: What was wrong, see `_phrases`.
    """

    def __init__(self, body: bytes):
        self.events: list[tuple[int, bytes]] = []
        self.tick = 0
        self.faults: Counter[str] = Counter()
        self._open: Counter[int] = Counter()  # notes that sound, by channel and pitch
        self._read(body)

    def _read(self, body: bytes) -> None:
        position = status = 0
        is_after_exclusive = False  # where some readers take the next event for another exclusive one
        while position < len(body):
            delta, position = _read_number(body, position)
            if position >= len(body) or self.tick + delta > MAX_TICK:
                break
            self.tick += delta
            byte = body[position]
            if byte >= SYSTEM_EXCLUSIVE:
                if body[position : position + 2] == END_MARK[:2]:
                    self.faults["trailing"] += body[position:] != END_MARK
                    return
                position = self._read_system_event(body, position)
                is_after_exclusive |= byte == SYSTEM_EXCLUSIVE
                continue
            if byte >= 0x80:
                status, position = byte, position + 1
            else:
                self.faults["running"] += is_after_exclusive
            is_after_exclusive = False
            stop = position + (1 if 0xC0 <= status < 0xE0 else 2)
            if not status or stop > len(body):
                position = len(body) + 1
                break
            self._read_channel_event(status, body[position:stop])
            position = stop
        self.faults["endless" if position == len(body) else "damaged"] += 1

    def _read_system_event(self, body: bytes, position: int) -> int:
        """Take in a meta or system event; returns the place after it, past the end of the track if it is damaged."""
        kind = body[position]
        if kind not in (SYSTEM_EXCLUSIVE, ESCAPE, META):  # belongs to cables, not into files
            self.faults["dropped"] += 1
            return position + 1 + COMMON_LENGTHS.get(kind, 0)
        length_at = position + 1 + (kind == META)
        length, start = _read_number(body, length_at)
        stop = start + length
        if stop > len(body):
            return len(body) + 1
        if kind == ESCAPE:
            self.faults["escaped"] += 1
            return stop
        event, content = body[position:length_at], body[start:stop]
        if kind == META:
            if event[1] >= 0x80 or not _is_meaningful(event[1], content):
                self.faults["dropped"] += 1
                return stop
            self.faults["spelling"] += start > length_at + 1 and event[1] in (SET_TEMPO, TIME_SIGNATURE, KEY_SIGNATURE)
        self.events.append((self.tick, event + _write_number(length) + content))
        return stop

    def _read_channel_event(self, status: int, data: bytes) -> None:
        kind = status & 0xF0
        if max(data) > 127:
            self.faults["high"] += 1
            if kind <= 0xA0 and data[0] > 127:
                return  # a note without a pitch
            data = bytes(min(byte, 127) for byte in data)
        if kind <= 0x90 and status & 0x0F != DRUM_CHANNEL:
            key = (status & 0x0F) << 7 | data[0]
            if kind == 0x90 and data[1]:
                self._open[key] += 1
            elif self._open[key]:
                self._open[key] -= 1
        self.events.append((self.tick, bytes([status]) + data))

    def end_notes(self, ticks_per_quarter: int) -> int:
        """End notes that have no end where the next note of their pitch begins, or with the track.

        Returns:
            How many there were.
        """
        open_keys = {key for key, count in self._open.items() if count}
        if not open_keys:
            return 0
        ended, events, sounding = 0, [], {}
        for tick, event in self.events:
            key = (event[0] & 0x0F) << 7 | event[1]
            if event[0] < 0xA0 and key in open_keys:
                onset = sounding.pop(key, None)
                if event[0] >= 0x90 and event[2]:
                    if onset is not None:
                        events.append((tick, _note_off(key)))
                        ended += 1
                    sounding[key] = tick
            events.append((tick, event))
        # A note that the track ends with at once lasts a quarter.
        closing = sorted(
            (max(self.tick, onset + ticks_per_quarter * (onset == self.tick)), key) for key, onset in sounding.items()
        )
        self.events = events + [(tick, _note_off(key)) for tick, key in closing]
        self.tick = max(self.tick, closing[-1][0]) if closing else self.tick
        self._open.clear()
        return ended + len(closing)

    def to_bytes(self) -> bytes:
        """Write the track as a chunk."""
        parts, now = [], 0
        for tick, event in [*self.events, (self.tick, END_MARK)]:
            while tick - now > LARGEST_NUMBER:  # an empty text on the way
                parts.append(_write_number(LARGEST_NUMBER) + b"\xff\1\0")
                now += LARGEST_NUMBER
            parts += [_write_number(tick - now), event]
            now = tick
        return _chunk(b"".join(parts))


def _chunk(body: bytes) -> bytes:
    return TRACK_TAG + len(body).to_bytes(4, "big") + body


def _is_meaningful(kind: int, content: bytes) -> bool:
    """Tell whether a tempo or a signature says what it should; other meta events always do."""
    if kind == SET_TEMPO:
        return len(content) >= 3 and any(content[:3])
    if kind == TIME_SIGNATURE:
        return len(content) >= 2 and content[0] > 0 and content[1] < 8
    return kind != KEY_SIGNATURE or len(content) >= 2


def _phrases(faults: Counter[str]) -> list[str]:
    """Say what was wrong with events."""
    say = {
        "high": "{} with data bytes above 127",
        "dropped": "{} without a meaning",
        "escaped": "{} of escaped bytes",
        "running": "{} without a status after a system exclusive one",
        "spelling": "{} in an unusual spelling",
        "damaged": "{} damaged and read up to there",
        "endless": "{} without an end",
        "trailing": "{} with something after the end",
    }
    return [
        phrase.format(_count(faults[fault], "track" if fault in ("damaged", "endless", "trailing") else "event"))
        for fault, phrase in say.items()
        if faults[fault]
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _note_off(key: int) -> bytes:
    return bytes([0x80 | key >> 7, key & 0x7F, 0])


def _read_number(data: bytes, position: int) -> tuple[int, int]:
    """Read a number of variable length; returns it and the place after it, past the end where it is cut short."""
    value = 0
    while position < len(data):
        byte = data[position]
        position += 1
        value = (value << 7 | byte & 0x7F) & 0xFFFFFFFFFF
        if byte < 0x80:
            return value, position
    return 0, len(data) + 1


def _write_number(value: int) -> bytes:
    """Write a number of up to four bytes of seven bits."""
    content = bytes([value & 0x7F])
    while value := value >> 7:
        content = bytes([value & 0x7F | 0x80]) + content
    return content


def split_tracks(data: bytes) -> list[bytes]:
    """Cut the tracks out of a file that [`repair_midi`] returned: each without the chunk's own header."""
    return _find_tracks(data, 14, [])


def scan_channels(body: bytes) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Find out which channels and programs a track plays.

    Args:
        body: A track of a file that [`repair_midi`] returned.

    Returns:
        Channel and program of its notes, each once, in order; and its changes of program: channel and program.
    """
    parts, changes, programs, position = set(), [], [0] * 16, 0
    while found := CHANNELS.match(body, position):
        position, status = found.end(), found[found.lastindex or 0][0]
        channel = status & 0x0F
        if status >= 0xC0:
            programs[channel] = found[2][1]
            changes.append((channel, programs[channel]))
        else:
            parts.add((channel, programs[channel]))
    if SILENCE.fullmatch(body, position):
        return sorted(parts), changes
    parts, timed = walk_channels(body)
    return parts, [change[1:] for change in timed]


def walk_channels(body: bytes) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
    """Find out the same as [`scan_channels`] event by event, with the tick of each change of program before it."""
    parts, changes, programs = set(), [], [0] * 16
    position = tick = status = 0
    while position < len(body):
        byte = body[position]
        delta, position = (byte, position + 1) if byte < 0x80 else _read_number(body, position)
        tick += delta
        byte = body[position]
        if byte >= SYSTEM_EXCLUSIVE:
            length, start = _read_number(body, position + 1 + (byte == META))
            position = start + length
            continue
        if byte >= 0x80:
            status, position = byte, position + 1
        kind = status & 0xF0
        if kind == 0x90 and body[position + 1]:
            parts.add((status & 0x0F, programs[status & 0x0F]))
        elif kind == 0xC0:
            programs[status & 0x0F] = body[position]
            changes.append((tick, status & 0x0F, body[position]))
        position += 1 if 0xC0 <= status < 0xE0 else 2
    return sorted(parts), changes
