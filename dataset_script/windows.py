"""Windows and sections of a fixed number of bars, cut out of melody lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dataset_script import features


def windows(line: Mapping[str, Any], bars: int = 16, stride: int = 1) -> Iterator[dict[str, Any]]:
    """Cut the windows of `bars` whole bars out of a melody line.

    A window holds the notes that begin in it; one that sounds beyond its end is cut there. `start` counts from the
    window's first bar line, `melody_id` names its first bar, and `key`, `key_confidence` and `complexity` are those of
    the window; the other columns are the line's. Windows without a note are passed over, and a line with fewer bars
    has no window.

    Args:
        line: one row of the data set.
        bars: length of a window.
        stride: bars from one window's beginning to the next one's.

    Yields:
        A row with the same columns.

    Raises:
        ValueError: if `bars` or `stride` is below 1.
    """
    # The line's notes, and how its id says the bar that it begins with.
    if bars < 1 or stride < 1:
        raise ValueError(f"bars and stride must be at least 1, not {bars} and {stride}")
    pitch, start = np.asarray(line["pitch"], dtype=np.uint8), np.asarray(line["start"], dtype=np.int32)
    duration = np.asarray(line["duration"], dtype=np.int64)
    numerator, denominator = map(int, line["time_signature"].split("/"))
    steps_per_beat = int(line["steps_per_beat"])
    bar_steps = numerator * steps_per_beat
    song, bar_of_line = line["melody_id"].rsplit(":", 1)
    for first_bar in range(0, line["bars"] - bars + 1, stride):
        # Notes that begin in the window, counted from its first bar and cut at its end.
        origin, end = first_bar * bar_steps, (first_bar + bars) * bar_steps
        notes = slice(*np.searchsorted(start, [origin, end]))
        if notes.start == notes.stop:
            continue
        window_pitch, window_start = pitch[notes], start[notes] - origin
        window_duration = np.minimum(duration[notes], end - start[notes])
        offsets = np.array([0, len(window_pitch)])
        key, key_confidence = features.keys(window_pitch, window_duration, offsets)
        quarters = np.array([4 * bars * numerator / denominator])
        complexity = features.complexities(window_pitch, window_start, offsets, quarters, steps_per_beat)
        yield {
            **line,
            "melody_id": f"{song}:{int(bar_of_line) + first_bar}",
            "bars": bars,
            "pitch": window_pitch.tolist(),
            "start": window_start.tolist(),
            "duration": window_duration.tolist(),
            "key": features.KEY_NAMES[int(key[0])],
            "key_confidence": float(key_confidence[0]),
            "complexity": float(complexity[0]),
        }


def section_notes(line: Mapping[str, Any], bars: int = 1) -> list[set[tuple[int, int]]]:
    """Return the notes of each whole section of a line, so that equal sections are equal sets.

    Args:
        line: one row of the data set, or a line as the model's processor has it.
        bars: length of a section; they follow one another from the line's first bar, and a rest is left out.

    Returns:
        For each section the (onset in grid steps from its first bar line, MIDI pitch) of the notes that begin in it.
    """
    section_steps = bars * int(line["time_signature"].split("/")[0]) * line["steps_per_beat"]
    sections: list[set[tuple[int, int]]] = [set() for _ in range(line["bars"] // bars)]
    for start, pitch in zip(line["start"], line["pitch"], strict=True):
        if start // section_steps < len(sections):
            sections[start // section_steps].add((start % section_steps, pitch))
    return sections


def window_rows(rows: Mapping[str, list], bars: int = 16, stride: int = 1) -> dict[str, list]:
    """Cut the windows out of a batch of rows: `dataset.map(window_rows, batched=True, fn_kwargs={"bars": 8})`.

    Args:
        rows: a batch as `datasets` gives it, a list for each column.
        bars: length of a window.
        stride: bars from one window's beginning to the next one's.

    Returns:
        A batch with the same columns and as many rows as there are windows.
    """
    lines = (dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True))
    found = [window for line in lines for window in windows(line, bars, stride)]
    return {name: [window[name] for window in found] for name in rows}
