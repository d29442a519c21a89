"""Measure how well beats are tracked: against those that POP909's authors annotated.

F-measure as in mir_eval, 70 ms either way. Beside it a floor, even beats at the tempo that the file states, and what is
lost to another metrical level: the F-measure when every other beat may be left out, or one be put between each two.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import symusic
from tqdm import tqdm

from benchmarks.reports import report_to, rounded, versions
from command import machine
from dataset_script.beat_tracking import TOLERANCE, beat_f_measure
from dataset_script.beats import BEATS, find_beats, pairs, read_beats
from dataset_script.midi_sources import InputError

RESAMPLES, SEED = 1000, 0  # of the interval
GOOD = 0.9


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.beats", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", required=True, type=Path, help="POP909: its archive, or the unpacked folder")
    parser.add_argument("--output", type=Path, default=Path("results/beats.json"), help="the report to write")
    return parser.parse_args(arguments)


def stated_beats(midi: bytes) -> np.ndarray:
    """Return the beats that a MIDI file's tempos state, in seconds."""
    score = symusic.Score.from_midi(midi)
    ticks = np.arange(0, score.end() + 1, score.ticks_per_quarter)
    tempos = sorted((tempo.time, tempo.mspq) for tempo in score.tempos) or [(0, 500_000)]
    begins, microseconds = (np.array(values) for values in zip(*tempos, strict=True))
    passed = np.append(0, np.cumsum(np.diff(begins) * microseconds[:-1]))
    place = np.maximum(np.searchsorted(begins, ticks, side="right") - 1, 0)
    return (passed[place] + (ticks - begins[place]) * microseconds[place]) / score.ticks_per_quarter / 1e6


def scores_of(midi: bytes, text: str) -> dict[str, float]:
    """Return the F-measures of one song, see the head of this file.

    Raises:
        ValueError: if the beats cannot be read or found.
    """
    annotated, is_first = read_beats(text)
    found, is_found_first = find_beats(symusic.Score.from_midi(midi).to("second"))
    between = np.sort(np.append(found, (found[1:] + found[:-1]) / 2))
    levels = [found, found[::2], found[1::2], between]
    return {
        "beats": beat_f_measure(found, annotated),
        "beats, any metrical level": max(beat_f_measure(level, annotated) for level in levels),
        "first beats of bars": beat_f_measure(found[is_found_first], annotated[is_first]),
        "floor: beats of the stated tempo": beat_f_measure(stated_beats(midi), annotated),
    }


def measure(source: Path) -> dict[str, Any]:
    """Track the beats of all songs.

    Raises:
        InputError: if there is no song.
    """
    songs, failed = [], []
    for name, midi, text in tqdm(list(pairs(source, BEATS)), desc="tracking", unit="song"):
        try:
            songs.append(scores_of(midi, text))
        except ValueError as error:
            failed.append(f"{name}: {error}")
    if not songs:
        raise InputError(f"{source}: no song's beats can be read; give POP909 as it is published")
    draws = np.random.default_rng(SEED).integers(len(songs), size=(RESAMPLES, len(songs)))
    report: dict[str, Any] = {}
    for name in songs[0]:
        values = np.array([song[name] for song in songs])
        report[name] = {
            "f_measure": float(values.mean()),
            "interval_95": np.quantile(values[draws].mean(axis=1), [0.025, 0.975]).tolist(),
            "median": float(np.median(values)),
            f"share of songs above {GOOD}": float((values > GOOD).mean()),
        }
    return {
        "input": source.name,
        "songs": len(songs),
        "failed": failed,
        "tolerance_seconds": TOLERANCE,
        "results": report,
        "machine": machine(),
        "versions": versions(["numpy", "symusic"]),
    }


def summary(report: dict[str, Any]) -> str:
    """Put the main figures into lines."""
    return "\n".join(f"{name:<34} {found['f_measure']:.3f}" for name, found in report["results"].items())


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 after one line about bad input."""
    options = parse_arguments(arguments)
    return report_to(options.output, lambda: rounded(measure(options.input)), summary)


if __name__ == "__main__":
    sys.exit(main())
