"""Extract melodies with note_seq, MusicVAE's way, and print how long it took.

Runs in an interpreter of its own that has note_seq: only note_seq and the standard library are imported here. What
MusicVAE's `OneHotMelodyConverter` does for its 16-bar models is done up to the melodies: parse, split at every change
of tempo or time signature, quantise to 4 steps per quarter, keep 4/4 and pitches 21 to 108, and take from each
instrument the melodies that end after a bar of silence, highest note of each onset. The windows and one-hot tensors
that it makes of them are left out, and so is all writing to disk.

Usage: python note_seq_melodies.py LIST, a text file with the path of one MIDI file in each line.
"""

# pyright: reportMissingImports=false
# It is another interpreter that has note_seq.

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import signal
import time
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path

STEPS_PER_QUARTER = 4
STEPS_PER_BAR = 16  # of 4/4
GAP_BARS = 1.0
MAX_BARS = 100  # longer melodies are cut there
LOWEST_PITCH, HIGHEST_PITCH = 21, 108
WARM_UP_FILES = 3  # read once before the clock starts
SECONDS_PER_FILE = 60.0  # longer counts as a failure, with the time it took
MEMORY_BYTES = 8 << 30  # address space: a file with a note far away makes pretty_midi allocate a table of all ticks
LIBRARIES = ("note-seq", "pretty_midi", "mido", "protobuf", "numpy")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pydub misses ffmpeg, which nothing here needs
    import note_seq
    from note_seq import sequences_lib


def instrument_melodies(sequence: note_seq.NoteSequence, instrument: int) -> list[note_seq.Melody]:
    """Take the melodies of one instrument of a quantised sequence, one after the other."""
    melodies: list[note_seq.Melody] = []
    from_step = 0
    while True:
        melody = note_seq.Melody()
        melody.from_quantized_sequence(
            sequence,
            search_start_step=from_step,
            instrument=instrument,
            gap_bars=GAP_BARS,
            ignore_polyphonic_notes=True,
            pad_end=True,
        )
        if not len(melody):
            return melodies
        from_step = melody.end_step + -melody.end_step % STEPS_PER_BAR
        if len(melody) > MAX_BARS * STEPS_PER_BAR:
            melody.set_length(MAX_BARS * STEPS_PER_BAR)
        melodies.append(melody)


def file_melodies(path: str) -> list[note_seq.Melody]:
    """Read one file and take its melodies; stretches that MusicVAE passes over give none.

    Raises:
        note_seq.MIDIConversionError: if it is no MIDI file or a damaged one.
    """
    melodies: list[note_seq.Melody] = []
    whole = note_seq.midi_to_note_sequence(Path(path).read_bytes())
    for part in sequences_lib.split_note_sequence_on_time_changes(whole):
        notes = [note for note in part.notes if LOWEST_PITCH <= note.pitch <= HIGHEST_PITCH]
        del part.notes[:]
        part.notes.extend(notes)
        try:
            sequence = note_seq.quantize_note_sequence(part, STEPS_PER_QUARTER)
        except (note_seq.BadTimeSignatureError, note_seq.NonIntegerStepsPerBarError, note_seq.NegativeTimeError):
            continue
        if note_seq.steps_per_bar_in_quantized_sequence(sequence) != STEPS_PER_BAR:
            continue
        for instrument in sorted({note.instrument for note in sequence.notes}):
            melodies += instrument_melodies(sequence, instrument)
    return melodies


def main() -> None:
    """Read the list, extract from each file, print one line of JSON."""
    import resource  # not on Windows, which can still show the help

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path, help="text file with one path in each line")
    paths = parser.parse_args().list.read_text(encoding="utf-8").splitlines()

    # Some files take note_seq minutes or all memory: both are limited.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    late = 0

    def interrupt(*_: object) -> None:
        nonlocal late
        late += 1
        raise TimeoutError  # inside the parser note_seq turns it into a MIDIConversionError

    signal.signal(signal.SIGALRM, interrupt)
    warnings.simplefilter("ignore")  # pretty_midi about tempos in odd places
    # Warm up, then extract under the clock.
    for path in paths[:WARM_UP_FILES]:
        signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_FILE)
        with contextlib.suppress(Exception):  # counted below
            file_melodies(path)
        signal.setitimer(signal.ITIMER_REAL, 0)
    melodies = bars = 0
    failures: Counter[str] = Counter()
    began = time.process_time()
    for path in paths:
        signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_FILE)
        try:
            found = file_melodies(path)
        except Exception as error:  # note_seq's own pipeline goes on after any of them as well
            failures[type(error).__name__] += 1
        else:
            melodies += len(found)
            bars += sum(len(melody) for melody in found) // STEPS_PER_BAR
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.process_time() - began
    report = {
        "seconds": seconds,
        "files": len(paths),
        "melodies": melodies,
        "bars": bars,
        "failures": dict(failures.most_common()),
        "seconds_per_file_limit": SECONDS_PER_FILE,
        "files_over_the_limit": late,
        "memory_limit_gib": MEMORY_BYTES >> 30,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
