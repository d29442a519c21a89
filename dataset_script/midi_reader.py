"""The notes, tempos and time signatures of a MIDI file, and nothing else of it.

symusic reads every event of a file; finding melodies needs a few kinds of them, and a million files make the difference
worth a compiled loop. symusic stays the authority: what `read_events` returns is what symusic 0.6 returns, and a file
with anything irregular in it is left to symusic (`None`).
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass

import numpy as np
from numba import njit

HEADER, CHUNK_HEADER_BYTES = b"MThd\0\0\0\6", 8
TRACK_TAG = int.from_bytes(b"MTrk", "big")
NOTE_ON, KEY_PRESSURE, PROGRAM_CHANGE, CHANNEL_PRESSURE = 0x90, 0xA0, 0xC0, 0xD0
SYSTEM, SYSTEM_EXCLUSIVE, META = 0xF0, 0xF0, 0xFF
TRACK_NAME, LYRIC, END_OF_TRACK, SET_TEMPO, TIME_SIGNATURE = 0x03, 0x05, 0x2F, 0x51, 0x58  # meta events
DRUM_CHANNEL = 9
LYRIC_CHANNEL = 15  # symusic takes any event's channel from its status byte, and that of a lyric is 0xFF
MAX_TICK = 2**31 - 1
MAX_PARTS = 1024  # a file with more is symusic's business
STABLE_SORT_EVENTS = 24  # from this number of events on, symusic's sort may exchange events of the same tick
NONE = -1

# Columns of the kernel's tables. A "part" is a track in symusic's sense: what one channel plays with one program in one
# track of the file; its key is channel << 7 | program. It is in use as soon as it has any event that symusic stores.
ONSET, DURATION, PITCH, PART, NEXT = range(5)  # of the notes; NEXT is the note of the same pitch that ends after it
KEY, IN_USE, NOTES, NAME_START, NAME_STOP, FILE_TRACK = range(6)  # of the parts
NOTE_COUNT, PART_COUNT, TEMPO_COUNT, SIGNATURE_COUNT = range(4)


@dataclass
class Events:
    """What finding melodies needs of a file; a "track" is one of symusic's.

    Attributes:
        ticks_per_quarter: unit of all times and durations.
        time: onsets of the notes of all pitched tracks that have notes, one track after the other, int32, shape (N,).
        duration: of the notes, int32, shape (N,).
        pitch: of the notes, uint8, shape (N,).
        track_notes: number of notes of each of these tracks, int64, shape (K,).
        track: index of each in symusic's `score.tracks`.
        file_track: index of the track of the file that each comes from.
        channel: MIDI channel of each.
        program: General MIDI program of each.
        names: name of each.
        dropped: number of tracks left out, by reason.
        open_notes: number of pitched notes that never end, which are left out.
        tempo_ticks: where tempos are set, in order, int32, shape (P,).
        mspq: microseconds per quarter note from there on, int32, shape (P,).
        signature_ticks: where time signatures are set, in order, int32, shape (Q,).
        numerators: of the time signatures, int32, shape (Q,).
        denominators: of the time signatures, int32, shape (Q,).
    """

    ticks_per_quarter: int
    time: np.ndarray
    duration: np.ndarray
    pitch: np.ndarray
    track_notes: np.ndarray
    track: list[int]
    file_track: list[int]
    channel: list[int]
    program: list[int]
    names: list[str]
    dropped: dict[str, int]
    open_notes: int
    tempo_ticks: np.ndarray
    mspq: np.ndarray
    signature_ticks: np.ndarray
    numerators: np.ndarray
    denominators: np.ndarray


def read_events(data: bytes, ends_notes: bool = False) -> Events | None:
    """Read the bytes of a MIDI file; None if something about the file is irregular and symusic has to decide.

    Args:
        data: content of the file.
        ends_notes: whether notes without an end, which symusic leaves out, are given the one that
            `midi_repair.repair_midi` gives them, unless there is more to repair.
    """
    if len(data) < 14 or data[:8] != HEADER:
        return None
    kind, midi_tracks, ticks_per_quarter = data[8] << 8 | data[9], data[10] << 8 | data[11], data[12] << 8 | data[13]
    if kind > 2 or not 0 < ticks_per_quarter < 0x8000:  # the high bit means frames per second
        return None
    understood, time, duration, pitch, tracks, drums, no_notes, open_notes, tempos, signatures = _read(
        np.frombuffer(data, np.uint8), 14, midi_tracks, ticks_per_quarter * (ends_notes and kind != 2)
    )
    if not understood:
        return None
    track, key, track_notes, name_start, name_stop, file_track = tracks
    spans = zip(name_start.tolist(), name_stop.tolist(), strict=True)
    names = [data[start:stop].decode(errors="replace_like_symusic") for start, stop in spans]
    dropped = {reason: count for reason, count in (("drums", drums), ("no notes", no_notes)) if count}
    notes = (time, duration, pitch, track_notes)
    about = (track.tolist(), file_track.tolist(), (key >> 7).tolist(), (key & 0x7F).tolist(), names)
    return Events(ticks_per_quarter, *notes, *about, dropped, open_notes, *tempos, *signatures)


def _replace_like_symusic(error: UnicodeError) -> tuple[str, int]:
    """Decode bytes that are not UTF-8 as symusic does: one mark for a broken sequence however long, or a stray byte."""
    assert isinstance(error, UnicodeDecodeError)
    text, stop = error.object, error.start + 1
    if 0xC0 <= text[error.start] < 0xF8:  # it begins a sequence: all that could continue one goes with it
        while stop < len(text) and 0x80 <= text[stop] < 0xC0:
            stop += 1
    return "\ufffd", stop


codecs.register_error("replace_like_symusic", _replace_like_symusic)


@njit(cache=True, nogil=True)
def _read(data, position, midi_tracks, ticks_per_quarter):
    """Read all tracks of a file, the first of which begins at `position`, and put their notes into symusic's order.

    Notes without an end are given one where `ticks_per_quarter` is not 0, see `_scan_file`.
    """
    # The shortest events take 3 bytes (a note), 7 (a tempo) and 6 (a time signature): no table can overflow.
    notes = np.empty((len(data) // 3 + 1, 5), np.int32)
    tempos = np.empty((2, len(data) // 7 + 1), np.int32)
    signatures = np.empty((3, len(data) // 6 + 1), np.int32)
    parts = np.empty((MAX_PARTS, 6), np.int64)
    counts = np.zeros(4, np.int64)
    order = np.empty(MAX_PARTS, np.int64)  # the parts as symusic orders them
    tables = notes, parts, tempos, signatures, counts
    stop = _scan_file(data, position, midi_tracks, tables, order, ticks_per_quarter)
    is_meaningful = tempos[1, : counts[TEMPO_COUNT]].all() and signatures[1, : counts[SIGNATURE_COUNT]].all()
    if ticks_per_quarter and (stop != len(data) or not is_meaningful):  # more is to be put right than ends of notes
        counts[:] = 0
        stop = _scan_file(data, position, midi_tracks, tables, order, 0)
    understood = stop > 0
    if not understood:
        counts[:] = 0

    # Tracks in symusic's order, without drums and those that have no notes.
    tracks = np.empty((6, counts[PART_COUNT]), np.int64)
    first_note = np.empty(counts[PART_COUNT], np.int64)  # where the notes of each part go
    index = kept = total = drums = no_notes = 0
    for part in order[: counts[PART_COUNT]]:
        if not parts[part, IN_USE]:
            continue
        if parts[part, KEY] >> 7 == DRUM_CHANNEL:
            drums += 1
        elif not parts[part, NOTES]:
            no_notes += 1
        else:
            tracks[0, kept], tracks[1, kept] = index, parts[part, KEY]
            tracks[2:, kept] = parts[part, NOTES:]
            first_note[part] = total
            total += parts[part, NOTES]
            kept += 1
        index += 1

    # Notes in the order of their tracks.
    time, duration, pitch = np.empty(total, np.int32), np.empty(total, np.int32), np.empty(total, np.uint8)
    open_notes = 0
    for note in range(counts[NOTE_COUNT]):
        open_notes += notes[note, DURATION] == NONE
        if notes[note, DURATION] != NONE:  # symusic leaves out notes that never end
            place = first_note[notes[note, PART]]
            first_note[notes[note, PART]] += 1
            time[place], duration[place], pitch[place] = notes[note, ONSET], notes[note, DURATION], notes[note, PITCH]
    tempos = tempos[:, : counts[TEMPO_COUNT]].copy()
    signatures = signatures[:, : counts[SIGNATURE_COUNT]].copy()
    understood = understood and _sort_by_time(tempos) and _sort_by_time(signatures)
    return understood, time, duration, pitch, tracks[:, :kept], drums, no_notes, open_notes, tempos, signatures


@njit(cache=True, nogil=True)
def _sort_by_time(events):
    """Sort columns by their first row; False if there are so many that symusic's order of equal times is unknown."""
    count = events.shape[1]
    for last in range(1, count):
        place = last
        while place and events[0, place - 1] > events[0, place]:
            if count >= STABLE_SORT_EVENTS:
                return False
            for row in events:
                row[place - 1], row[place] = row[place], row[place - 1]
            place -= 1
        tie = events[0, last - 1] == events[0, last]
        if tie and count >= STABLE_SORT_EVENTS and (events[:, last - 1] != events[:, last]).any():
            return False
    return True


@njit(cache=True, nogil=True)
def _scan_file(data, position, midi_tracks, tables, order, ticks_per_quarter):
    """Fill the tables from all tracks of a file.

    Args:
        data: the file.
        position: where its first track begins.
        midi_tracks: how many the header counts.
        tables: to fill.
        order: of the parts, to fill.
        ticks_per_quarter: if not 0, notes without an end are given one; one that the track ends with at once gets this
            length.

    Returns:
        Where the last track ends; 0 if something is irregular.
    """
    # Tables of the notes that are open by channel and pitch are made once for all tracks.
    parts, counts = tables[1], tables[4]
    part_of_key = np.full(16 * 128, NONE, np.int32)
    open_first, open_last = np.empty(16 * 128, np.int32), np.empty(16 * 128, np.int32)
    never_ends = np.zeros(16 * 128, np.bool_)
    file_track = 0
    while file_track < midi_tracks and position < len(data):
        start = position + CHUNK_HEADER_BYTES
        if start > len(data) or _big_endian(data, position, 4) != TRACK_TAG:
            return 0
        position = start + _big_endian(data, start - 4, 4)
        if position > len(data):
            return 0
        before, first_part = counts.copy(), counts[PART_COUNT]
        never_ends[:] = False
        for _ in range(2):  # once more where notes without an end are found
            part_of_channel, programs, waiting = np.full(16, NONE), np.zeros(16, np.int64), np.zeros(16, np.int64)
            open_first[:] = NONE
            state = part_of_channel, part_of_key, programs, waiting
            last_tick = _scan_track(data[:position], start, tables, state, open_first, open_last, never_ends)
            if last_tick == NONE:
                return 0
            is_open = open_first != NONE
            if not (ticks_per_quarter and is_open.any()):
                break
            if never_ends.any():
                if not _end_notes(tables, open_first[is_open], last_tick, ticks_per_quarter):
                    return 0
                break
            never_ends[:] = is_open
            part_of_key[parts[first_part : counts[PART_COUNT], KEY]] = NONE
            counts[:] = before
        for part in range(first_part, counts[PART_COUNT]):  # into the order of their keys
            parts[part, FILE_TRACK] = file_track
            part_of_key[parts[part, KEY]] = NONE
            place = part
            while place > first_part and parts[order[place - 1], KEY] > parts[part, KEY]:
                order[place] = order[place - 1]
                place -= 1
            order[place] = part
        file_track += 1
    return position


@njit(cache=True, nogil=True)
def _end_notes(tables, notes_left, last_tick, ticks_per_quarter):
    """End notes with their track; False if one would end too late. One that would have no length gets a quarter."""
    notes, parts = tables[0], tables[1]
    for note in notes_left:
        onset = np.int64(notes[note, ONSET])
        end = last_tick if last_tick > onset else onset + ticks_per_quarter
        if end > MAX_TICK:
            return False
        _end_note(notes, parts, note, end)
    return True


@njit(cache=True, nogil=True, inline="always")
def _end_note(notes, parts, note, tick):
    """End a note, which from now on counts in its part."""
    notes[note, DURATION] = tick - notes[note, ONSET]
    parts[notes[note, PART], NOTES] += 1


@njit(cache=True, nogil=True)
def _scan_track(data, position, tables, state, open_first, open_last, never_ends):
    """Fill the tables from one track, which begins at `position` and ends where `data` does.

    `open_first` and `open_last` hold, for each channel and pitch, the oldest and the newest note that still sounds.
    Where `never_ends`, the next note of the same channel and pitch ends the one that sounds.

    Returns:
        The tick at which the track ends; `NONE` if something is irregular.
    """
    # Events change the state of a channel; its parts are found by channel and program.
    notes, parts, _, _, counts = tables
    part_of_channel, part_of_key, programs, waiting = state
    note_count, first_part = counts[NOTE_COUNT], counts[PART_COUNT]
    name = np.zeros(2, np.int64)
    tick = status = 0
    while position < len(data):
        delta, position = _variable_length(data, position)
        tick += delta
        if position >= len(data):
            return NONE
        if data[position] >= SYSTEM:
            if data[position] == SYSTEM_EXCLUSIVE:
                status = 0  # symusic lets it be a running status, with strange effects
            position = _scan_system_event(data, position, tick, tables, state, name)
            continue
        status, first, last, position = _read_channel_event(data, position, status)
        if position > len(data):
            return NONE
        kind, channel = status & 0xF0, status & 0x0F
        # A note begins; others of its channel and pitch may still be open.
        key = channel << 7 | first
        if kind == NOTE_ON and last:
            part = part_of_channel[channel]
            if part == NONE:
                part = _begin_part(channel, parts, counts, state)
                if part == NONE:
                    return NONE
            parts[part, IN_USE] = True
            if channel == DRUM_CHANNEL:
                continue
            if open_first[key] != NONE and never_ends[key]:
                _end_note(notes, parts, open_first[key], tick)
                open_first[key] = NONE
            if open_first[key] == NONE:
                open_first[key] = note_count
            else:
                notes[open_last[key], NEXT] = note_count
            open_last[key] = note_count
            notes[note_count, ONSET], notes[note_count, DURATION] = tick, NONE
            notes[note_count, PITCH], notes[note_count, PART], notes[note_count, NEXT] = first, part, NONE
            note_count += 1
        elif kind <= NOTE_ON:  # the oldest note of this pitch ends, whatever the program has become since
            note = open_first[key]
            if note != NONE:
                open_first[key] = notes[note, NEXT]
                _end_note(notes, parts, note, tick)
        elif kind == PROGRAM_CHANGE:
            programs[channel], part_of_channel[channel] = first, part_of_key[key]
        elif kind != KEY_PRESSURE and kind != CHANNEL_PRESSURE:  # a control or pitch bend, which symusic stores
            if part_of_channel[channel] == NONE:
                waiting[channel] = True
            else:
                parts[part_of_channel[channel], IN_USE] = True

    parts[first_part : counts[PART_COUNT], NAME_START : NAME_STOP + 1] = name
    counts[NOTE_COUNT] = note_count
    return tick if position == len(data) and tick <= MAX_TICK else NONE


@njit(cache=True, nogil=True)
def _read_channel_event(data, position, status):
    """Read an event of a channel; returns its status, first and last data byte, and the place after it.

    The place is past the end of the data if the event is irregular. `status` is the running status, 0 for none.
    """
    if data[position] >= 0x80:
        status = np.int64(data[position])
        position += 1
    kind = status & 0xF0
    size = 1 if kind == PROGRAM_CHANGE or kind == CHANNEL_PRESSURE else 2  # noqa: SIM109 (compiles to less)
    if not status or position + size > len(data):
        return status, 0, 0, len(data) + 1
    first, last = np.int64(data[position]), np.int64(data[position + size - 1])
    return status, first, last, position + size if (first | last) < 0x80 else len(data) + 1


@njit(cache=True, nogil=True)
def _scan_system_event(data, position, tick, tables, state, name):
    """Take in a meta or system exclusive event; returns the place after it, past the end of the data if irregular."""
    # What it is, and where its content begins and ends.
    _, parts, tempos, signatures, counts = tables
    irregular = len(data) + 1
    kind = NONE
    if data[position] == META and position + 1 < len(data):
        position += 1
        kind = np.int64(data[position])
    elif data[position] != SYSTEM_EXCLUSIVE:
        return irregular
    length, start = _variable_length(data, position + 1)
    stop = start + length
    if stop > len(data):
        return irregular
    # symusic looks for numbers where they are after a length of one byte, and whether the length covers them or not.
    plain = start == position + 2

    if kind == END_OF_TRACK:
        return len(data)
    if kind == TRACK_NAME:  # the last one holds
        name[0], name[1] = start, stop
    elif kind == LYRIC:
        part = state[0][LYRIC_CHANNEL]
        if part == NONE:
            part = _begin_part(LYRIC_CHANNEL, parts, counts, state)
            if part == NONE:
                return irregular
        if length:
            parts[part, IN_USE] = True
    elif kind == SET_TEMPO:
        if length < 3 or not plain:
            return irregular
        tempos[0, counts[TEMPO_COUNT]], tempos[1, counts[TEMPO_COUNT]] = tick, _big_endian(data, start, 3)
        counts[TEMPO_COUNT] += 1
    elif kind == TIME_SIGNATURE:
        if length < 2 or not plain or data[start + 1] >= 8:
            return irregular
        place = counts[SIGNATURE_COUNT]
        signatures[0, place], signatures[1, place], signatures[2, place] = tick, data[start], 1 << data[start + 1]
        counts[SIGNATURE_COUNT] += 1
    return stop


@njit(cache=True, nogil=True)
def _begin_part(channel, parts, counts, state):
    """Begin the part of a channel and its program; returns its number, NONE if there are too many parts."""
    part_of_channel, part_of_key, programs, waiting = state
    if counts[PART_COUNT] == MAX_PARTS:
        return NONE
    part = counts[PART_COUNT]
    counts[PART_COUNT] += 1
    key = channel << 7 | programs[channel]
    part_of_key[key] = part_of_channel[channel] = part
    parts[part, KEY], parts[part, NOTES] = key, 0
    parts[part, IN_USE], waiting[channel] = waiting[channel], False  # what came before the part belongs to it
    return part


@njit(cache=True, nogil=True)
def _variable_length(data, position):
    """Read a number of up to four bytes, seven bits each; returns it and the place after it, past the end if broken."""
    if position < len(data) and data[position] < 0x80:
        return np.int64(data[position]), position + 1
    value = 0
    for place in range(position, position + 4):
        if place >= len(data):
            break
        byte = np.int64(data[place])
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + 1
    return 0, len(data) + 1


@njit(cache=True, nogil=True)
def _big_endian(data, position, length):
    """Read a number of a fixed number of bytes."""
    value = 0
    for byte in data[position : position + length]:
        value = value << 8 | np.int64(byte)
    return value
