"""Scores, and folders and archives of MIDI files, to build a data set from."""

import io
import tarfile

import numpy as np
import pyarrow.parquet as pq
from symusic import Note, Score, Tempo, TimeSignature, Track

from dataset_script.schema import SPLITS

TPQ = 120  # ticks per quarter note of the scores below


def write_score(tracks, signatures=((0, 4, 4),), tempos=((0, 120),), tpq=TPQ):
    """Return a score: `tracks` are lists of (start, duration, pitch) in ticks, or dicts with such a list as `notes`."""
    score = Score(tpq)
    for time, numerator, denominator in signatures:
        score.time_signatures.append(TimeSignature(time, numerator, denominator))
    for time, qpm in tempos:
        score.tempos.append(Tempo(time, qpm))
    for number, track in enumerate(tracks):
        track = track if isinstance(track, dict) else {"notes": track}
        part = Track(track.get("name", ""), track.get("program", number), track.get("is_drum", False))
        for time, duration, pitch in track["notes"]:
            part.notes.append(Note(time, duration, pitch, 90))
        score.tracks.append(part)
    return score


def midi_bytes(*arguments, **keywords):
    return write_score(*arguments, **keywords).dumps_midi()


def tune(bars=4, seed=0, bar_ticks=4 * TPQ, begin=0, low=60):
    """Return a tune of eighth notes with all pitches of an octave about it, different for each seed."""
    pitches = np.random.default_rng(seed).integers(low, low + 13, size=bars * bar_ticks // (TPQ // 2))
    pitches[:3] = low, low + 4, low + 7
    return [(begin + index * TPQ // 2, TPQ // 2, int(pitch)) for index, pitch in enumerate(pitches)]


BROKEN = {
    "broken/empty.mid": (b"", "empty file"),
    "broken/page.mid": (b"<!DOCTYPE html><html>gone</html>", "web page"),
    "broken/riff.mid": (b"RIFF\x10\x00\x00\x00RMIDdata", "RIFF container"),
    "broken/text.MID": (b"not music at all", "no MThd header"),
    "broken/short.kar": (midi_bytes([tune()])[:20], "truncated"),
    "broken/silent.midi": (midi_bytes([[]]), "no notes"),
    "broken/drums.mid": (midi_bytes([{"notes": tune(), "is_drum": True}]), "only drums"),
    "broken/brief.mid": (midi_bytes([tune(2)]), "no melody line"),
}


def corpus():
    """Return name and content of 45 files: 40 tunes, a near-duplicate, an equal line, the same file again, others."""
    files = {
        f"5/{number:02d}.mid": midi_bytes([tune(16, seed=number), tune(9, seed=900 + number, low=40)])
        for number in range(40)
    }
    files["5/transposed.mid"] = midi_bytes([tune(16, seed=7, low=65)])
    files["5/equal.mid"] = midi_bytes([{"notes": tune(16, seed=3), "name": "another name"}])
    files["6/again.mid"] = files["5/05.mid"]
    return files | {name: content for name, (content, _) in BROKEN.items()} | {"readme.txt": b"no MIDI file"}


def write_folder(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_archive(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in reversed(files.items()):
            member = tarfile.TarInfo(f"lmd_full/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def all_rows(folder):
    return {
        split: [row for path in sorted(folder.glob(f"data/{split}-*")) for row in pq.read_table(path).to_pylist()]
        for split in SPLITS
    }


def all_lines(folder):
    return [row for split in all_rows(folder).values() for row in split]
