"""Count and measure the chords of the Space: `python -m benchmarks.harmony --pop909 pop909.tar.gz`.

The songs of POP909 with one key and an odd number are counted for `space/chords.json`; those with an even number
measure it: the share of bars, of those with melody and chord, whose triad is the longest annotated one in that bar
(extensions and inversions aside), and the share of songs whose key is found. Beside them stand the tonic in every bar,
and the triad that most of the bar's notes are in. Suspended chords and those without a third count as major.
"""

import argparse
import io
import json
import sys
import tarfile
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from symusic import Score

from command import UserError, run_command

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "space"))  # whose modules import one another by their names alone

import harmony  # noqa: E402

OUTPUT = ROOT / "space/chords.json"
ROOTS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
MINOR = ("min", "dim", "hdim")
BEATS = (0.25, 0.5, 1.0, 2.0)  # weights of a beat's notes that are tried
SMOOTHING = 1.0  # counts added to each


class Song(NamedTuple):
    """Bars of a song: `weights` (bars, 12) of its melody, `chords` (bars,), -1 where there is none, and its key."""

    number: int
    weights: np.ndarray
    chords: np.ndarray
    tonic: int
    mode: str


def pitch_class(name: str) -> int:
    """Read a note's name such as `Bb`."""
    return (ROOTS[name[0]] + name.count("#") - name.count("b")) % 12


def read_chord(label: str) -> int:
    """Read a chord such as `Bb:min7/b3` as its root, plus 12 if its third is minor; -1 for none."""
    root, _, kind = label.partition(":")
    return -1 if root == "N" else pitch_class(root.split("/")[0]) + 12 * kind.startswith(MINOR)


def read_songs(path: Path) -> Iterator[Song]:
    """Read the songs of the archive that have one key.

    Raises:
        UserError: If it cannot be read.
    """
    files: dict[int, dict[str, bytes]] = defaultdict(dict)
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name)
                if member.isfile() and name.parent.name.isdigit() and name.suffix in (".mid", ".txt"):
                    content = archive.extractfile(member)
                    assert content is not None
                    files[int(name.parent.name)][name.suffix if name.suffix == ".mid" else name.name] = content.read()
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give POP909 as a tar archive") from error
    for number, own in sorted(files.items()):
        keys = own["key_audio.txt"].decode().split("\n")
        keys = [line.split("\t")[2] for line in keys if line.strip()]
        if len(keys) == 1:
            tonic, mode = keys[0].split(":")
            is_minor = mode.startswith("min")
            yield read_song(number, own, pitch_class(tonic), harmony.MODES[is_minor])


def read_song(number: int, own: dict[str, bytes], tonic: int, mode: str) -> Song:
    """Lay a song's melody and chords on its bars."""
    beats = np.loadtxt(io.BytesIO(own["beat_midi.txt"]))
    lines = beats[beats[:, 2] == 1, 0].tolist()
    bars = len(lines) - 1
    weights, held = np.zeros((bars, 12)), np.zeros((bars, 24))

    def spread(begin: float, end: float) -> Iterator[tuple[int, float]]:
        for bar in range(max(bisect_right(lines, begin) - 1, 0), bars):
            low, high = lines[bar], lines[bar + 1]
            if low >= end:
                break
            if (share := (min(end, high) - max(begin, low)) / (high - low)) > 0:
                yield bar, share

    seconds: Any = Score.from_midi(own[".mid"]).to("second")
    for note in next(track for track in seconds.tracks if track.name == "MELODY").notes:
        for bar, share in spread(note.start, note.end):
            weights[bar, note.pitch % 12] += 4 * share
    for line in own["chord_midi.txt"].decode().split("\n"):
        if line.strip():
            begin, end, label = line.split("\t")
            if (chord := read_chord(label.strip())) >= 0:
                for bar, share in spread(float(begin), float(end)):
                    held[bar, chord] += share
    chords = np.where(held.max(1) > 0.25, held.argmax(1), -1)
    return Song(number, weights, chords, tonic, mode)


def from_tonic(song: Song) -> np.ndarray:
    """Count a song's chords from its tonic."""
    return np.where(song.chords < 0, -1, (song.chords - song.tonic) % 12 + song.chords // 12 * 12)


def count(songs: list[Song], mode: str) -> dict[str, Any]:
    """Count the log probabilities of a mode."""
    first, then = np.full(24, SMOOTHING), np.full((24, 24), SMOOTHING / 4)
    notes, by_root = np.full((24, 12), 0.0), np.full((2, 12), SMOOTHING)
    for song in songs:
        if song.mode != mode:
            continue
        chords, weights = from_tonic(song), np.roll(song.weights, -song.tonic, axis=1)
        begun = chords[chords >= 0]
        first[begun[:1]] += 1
        for before, after in pairwise(chords):
            if before >= 0 and after >= 0:
                then[before, after] += 1
        for chord, row in zip(chords, weights, strict=True):
            if chord >= 0:
                notes[chord] += row
                by_root[chord // 12] += np.roll(row, -(chord % 12))
    by_root /= by_root.sum(1, keepdims=True)
    # A chord that is seldom played has the notes that other chords of its kind have above their roots.
    alike = np.array([np.roll(by_root[chord // 12], chord % 12) for chord in range(24)])
    notes += 40 * alike
    tables = {"first": first, "then": then, "notes": notes}
    return {name: np.log(table / table.sum(-1, keepdims=True)).round(2).tolist() for name, table in tables.items()}


def measure(songs: list[Song]) -> dict[str, Any]:
    """Measure the chords, in the annotated key and in the one that is found, beside two simple rules."""
    right: dict[str, int] = defaultdict(int)
    total = keys = 0
    for song in songs:
        heard = (song.weights.sum(1) > 0) & (song.chords >= 0)
        found = [
            (*harmony.chords_in_key(song.weights, tonic, mode), tonic, mode)
            for mode in harmony.MODES
            for tonic in range(12)
        ]
        best = max(found, key=lambda each: each[1])
        keys += (best[2], best[3]) == (song.tonic, song.mode)
        triads = np.zeros((24, 12))
        for chord in range(24):
            triads[chord, [(chord + degree) % 12 for degree in harmony.TRIADS[harmony.MODES[chord // 12]]]] = 1
        answers = {
            "key_found": np.array(best[0]),
            "key_given": np.array(harmony.chords_in_key(song.weights, song.tonic, song.mode)[0]),
            "tonic_always": np.full(len(song.chords), song.tonic + 12 * (song.mode == "minor")),
            "most_notes": (song.weights @ triads.T).argmax(1),
        }
        total += int(heard.sum())
        for name, chords in answers.items():
            right[name] += int((chords[heard] == song.chords[heard]).sum())
    shares = {name: round(count / total, 4) for name, count in right.items()}
    return {"songs": len(songs), "bars": total, "chord_is_right": shares, "key_is_right": round(keys / len(songs), 4)}


def fit(args: argparse.Namespace) -> None:
    """Count on songs of odd numbers, choose the weight of a beat on them, measure on the others, and write it all."""
    songs = list(read_songs(args.pop909))
    counted, held_out = ([song for song in songs if song.number % 2 == odd] for odd in (1, 0))
    model: dict[str, Any] = {mode: count(counted, mode) for mode in harmony.MODES}
    scores = {}
    for beat in BEATS:
        args.output.write_text(json.dumps(model | {"beat": beat}), encoding="utf-8")
        harmony.load_model.cache_clear()
        scores[beat] = measure(counted)["chord_is_right"]["key_found"]
    model["beat"] = max(scores, key=scores.__getitem__)
    args.output.write_text(json.dumps(model), encoding="utf-8")
    harmony.load_model.cache_clear()
    about = {"source": "POP909 (Wang et al. 2020, MIT): counts of songs of odd numbers", "measured": measure(held_out)}
    args.output.write_text(json.dumps(about | model) + "\n", encoding="utf-8")
    print(json.dumps({"chosen_on_counted_songs": scores, **about}, indent=1))


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pop909", type=Path, required=True, metavar="ARCHIVE", help="POP909 as a tar archive")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE", help="(%(default)s)")
    return run_command(fit, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
