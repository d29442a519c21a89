"""Voices: the parts of one track of a file that complement each other in time are one melody.

A reader of MIDI files divides a track by channel and program. A change of the program, a guitar's second channel and
MPE, which gives each note a channel of its own, thereby tear a tune apart; here it is put together again.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numba import njit

from dataset_script.midi_reader import Events

MAX_OVERLAP = 0.1  # of the shorter part's played time: what legato playing holds over, not a second voice


@njit(cache=True)
def overlap_ticks(begin: np.ndarray, end: np.ndarray, other_begin: np.ndarray, other_end: np.ndarray) -> int:
    """Return for how many ticks two parts sound together, given their sounding stretches in order."""
    ticks = one = other = 0
    while one < len(begin) and other < len(other_begin):
        ticks += max(min(end[one], other_end[other]) - max(begin[one], other_begin[other]), 0)
        if end[one] <= other_end[other]:
            one += 1
        else:
            other += 1
    return ticks


@njit(cache=True)
def find_voices(
    time: np.ndarray,
    duration: np.ndarray,
    offsets: np.ndarray,
    file_track: np.ndarray,
    channel: np.ndarray,
    program: np.ndarray,
) -> np.ndarray:
    """Assign each part to a voice, named by its first part.

    A part joins the first voice of its file track in which it shares channel or program with a part, and sounds
    together with the voice for at most `MAX_OVERLAP` of the shorter one's played time.

    Args:
        time: onsets in ticks, rising in each part, shape (N,).
        duration: lengths in ticks, shape (N,).
        offsets: where each part's notes begin and the last ends, shape (K + 1,).
        file_track: track of the file of each part, rising, shape (K,).
        channel: of each part, shape (K,).
        program: of each part, shape (K,).

    Returns:
        The first part of each part's voice, shape (K,).
    """
    parts = len(file_track)
    voice = np.arange(parts)
    # The stretches in which each part sounds: its notes, those that overlap put together.
    begin, end = np.empty(len(time), dtype=np.int64), np.empty(len(time), dtype=np.int64)
    bounds, played = np.zeros(parts + 1, dtype=np.int64), np.zeros(parts, dtype=np.int64)
    for part in range(parts):
        first = last = bounds[part]
        for note in range(offsets[part], offsets[part + 1]):
            stop = np.int64(time[note]) + max(duration[note], 1)
            if last > first and time[note] <= end[last - 1]:
                end[last - 1] = max(end[last - 1], stop)
            else:
                begin[last], end[last] = time[note], stop
                last += 1
        bounds[part + 1] = last
        played[part] = (end[first:last] - begin[first:last]).sum()

    # A part joins the first earlier voice of its file track that has its channel or program and rarely sounds with it.
    for part in range(1, parts):
        for candidate in range(part):
            if file_track[candidate] != file_track[part] or voice[candidate] != candidate:
                continue
            is_related, together, of_voice = False, 0, 0
            for member in range(candidate, part):
                if voice[member] == candidate:
                    is_related |= channel[member] == channel[part] or program[member] == program[part]
                    of_voice += played[member]
                    together += overlap_ticks(
                        begin[bounds[member] : bounds[member + 1]],
                        end[bounds[member] : bounds[member + 1]],
                        begin[bounds[part] : bounds[part + 1]],
                        end[bounds[part] : bounds[part + 1]],
                    )
            if is_related and together <= MAX_OVERLAP * min(of_voice, played[part]):
                voice[part] = candidate
                break
    return voice


@njit(cache=True)
def is_in_order(time: np.ndarray, offsets: np.ndarray) -> bool:
    """Tell whether the onsets of each part rise."""
    for part in range(len(offsets) - 1):
        for note in range(offsets[part] + 1, offsets[part + 1]):
            if time[note] < time[note - 1]:
                return False
    return True


def join_voices(events: Events) -> Events:
    """Join the parts of each track of a file that complement each other in time, see `find_voices`.

    A voice has the index and the name of its first part, and the program of the part with the most notes. The notes of
    each voice are in order of their onsets.
    """
    offsets = np.append(0, np.cumsum(events.track_notes))
    if not is_in_order(events.time, offsets):  # symusic keeps a file's order where times are equal
        events = reorder(events, np.lexsort((events.time, part_of_notes(events))))
    if len(set(events.file_track)) == len(events.track):
        return events
    about = (np.array(values, dtype=np.int64) for values in (events.file_track, events.channel, events.program))
    voice = find_voices(events.time, events.duration, offsets, *about)
    firsts = np.flatnonzero(voice == np.arange(len(voice)))
    if len(firsts) == len(voice):
        return events
    largest = [max(np.flatnonzero(voice == first), key=lambda part: events.track_notes[part]) for first in firsts]
    return replace(
        reorder(events, np.lexsort((events.time, voice[part_of_notes(events)]))),
        track_notes=np.bincount(voice, events.track_notes, len(voice)).astype(np.int64)[firsts],
        track=[events.track[first] for first in firsts],
        file_track=[events.file_track[first] for first in firsts],
        channel=[events.channel[first] for first in firsts],
        program=[events.program[part] for part in largest],
        names=[events.names[first] for first in firsts],
    )


def part_of_notes(events: Events) -> np.ndarray:
    """Return the part of each note, shape (N,)."""
    return np.repeat(np.arange(len(events.track)), events.track_notes)


def reorder(events: Events, order: np.ndarray) -> Events:
    """Bring the notes into another order."""
    return replace(events, time=events.time[order], duration=events.duration[order], pitch=events.pitch[order])
