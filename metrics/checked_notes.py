"""Notes as the metrics read them, on a grid.

The folder of each metric that reads notes has a link to this file, since `evaluate.load` copies that folder alone.
"""

from collections.abc import Sequence

import numpy as np

LOWEST_PITCH, HIGHEST_PITCH = 21, 108  # the piano's 88 keys


def checked_notes(
    pitch: Sequence[int], start: Sequence[int], duration: Sequence[int], num_steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the three lists as int64 arrays of shape (notes,), or say what is wrong with them.

    Args:
        pitch: MIDI numbers, 21 to 108.
        start: Onset steps, rising.
        duration: In steps, at least 1; no note reaches into the next or beyond the grid.
        num_steps: Length of the grid.

    Raises:
        ValueError: With the offending value, if any of this does not hold.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    # Three flat lists of integers, equally long.
    columns = {}
    for name, values in (("pitch", pitch), ("start", start), ("duration", duration)):
        column = np.asarray(values)
        if column.ndim != 1 or (column.size and column.dtype.kind not in "iu"):
            raise ValueError(f"{name} must be a flat list of integers, got {values!r}")
        columns[name] = column.astype(np.int64)
    pitches, starts, durations = columns["pitch"], columns["start"], columns["duration"]
    if not len(pitches) == len(starts) == len(durations):
        raise ValueError(
            "pitch, start and duration must be equally long, "
            f"got {len(pitches)}, {len(starts)} and {len(durations)} values"
        )
    # The first value that is out of range is named.
    for value in pitches[(pitches < LOWEST_PITCH) | (pitches > HIGHEST_PITCH)]:
        raise ValueError(f"pitch must be {LOWEST_PITCH} to {HIGHEST_PITCH}, got {value}")
    for value in durations[durations < 1]:
        raise ValueError(f"duration must be at least 1 step, got {value}")
    for value in starts[starts < 0]:
        raise ValueError(f"start must not be negative, got {value}")
    # Notes rise, do not overlap, and lie on the grid.
    ends = starts + durations
    for index in np.flatnonzero(starts[1:] <= starts[:-1]):
        raise ValueError(f"start must rise, got {starts[index]} before {starts[index + 1]}")
    for index in np.flatnonzero(ends[:-1] > starts[1:]):
        raise ValueError(f"notes must not overlap, got one until step {ends[index]} and one from {starts[index + 1]}")
    for value in ends[ends > num_steps]:
        raise ValueError(f"a note must end within the grid of {num_steps} steps, got one until step {value}")
    return pitches, starts, durations
