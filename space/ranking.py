"""Which of many melodies to show first: those that measure most like tunes that people have kept.

A melody's distance is the mean, over `MEASURES`, of how far it lies from the mean of the reference tunes, in their
standard deviations. That favours the ordinary; it judges neither beauty nor originality.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from melody import Melody, cut_bars, steps_per_bar

OPENING_SEEDS, OPENING_BARS = 32, 8  # from 0 on, of which a page opens with the best
MAJOR_SCALE = (0, 2, 4, 5, 7, 9, 11)


def notes_per_beat(melody: Melody) -> float:
    """Return how many notes begin in a beat."""
    return len(melody["pitch"]) * melody["steps_per_beat"] / (melody["bars"] * steps_per_bar(melody))


def steps(melody: Melody) -> float:
    """Return the share of intervals, repeated notes left out, that are of one or two semitones."""
    intervals = [abs(after - before) for before, after in pairwise(melody["pitch"]) if after != before]
    return sum(each <= 2 for each in intervals) / len(intervals) if intervals else 0.0


def largest_leap(melody: Melody) -> float:
    """Return the largest interval in semitones."""
    return float(max((abs(after - before) for before, after in pairwise(melody["pitch"])), default=0))


def pitch_range(melody: Melody) -> float:
    """Return the semitones from the lowest to the highest note."""
    return float(max(melody["pitch"]) - min(melody["pitch"])) if melody["pitch"] else 0.0


def in_scale(melody: Melody) -> float:
    """Return the share of the sounding time in the diatonic scale that has most of it."""
    time = [0] * 12
    for pitch, duration in zip(melody["pitch"], melody["duration"], strict=True):
        time[pitch % 12] += duration
    best = max(sum(time[(tonic + degree) % 12] for degree in MAJOR_SCALE) for tonic in range(12))
    return best / max(sum(time), 1)


def repeated_rhythms(melody: Melody) -> float:
    """Return the share of bars whose onsets an earlier bar has too; a bar without onsets does not count."""
    bar = steps_per_bar(melody)
    rhythms: dict[int, tuple[int, ...]] = {}
    for start in melody["start"]:
        rhythms[start // bar] = (*rhythms.get(start // bar, ()), start % bar)
    return 1 - len(set(rhythms.values())) / len(rhythms) if rhythms else 0.0


def silence(melody: Melody) -> float:
    """Return the share of the melody's length in which nothing sounds."""
    return 1 - sum(melody["duration"]) / (melody["bars"] * steps_per_bar(melody))


def last_note(melody: Melody) -> float:
    """Return the share of a bar for which the last note sounds."""
    return melody["duration"][-1] / steps_per_bar(melody) if melody["duration"] else 0.0


MEASURES: tuple[Callable[[Melody], float], ...] = (
    notes_per_beat,
    steps,
    largest_leap,
    pitch_range,
    in_scale,
    repeated_rhythms,
    silence,
    last_note,
)


class Ranking:
    """Ranks melodies by their distance from reference tunes.

    Args:
        tunes: Two or more.
    """

    def __init__(self, tunes: Sequence[Melody]):
        columns = [[measure(tune) for tune in tunes] for measure in MEASURES]
        # What all tunes have in common, such as all notes in the scale, would weigh endlessly much.
        self.scales = [(statistics.fmean(column), max(statistics.stdev(column), 0.05)) for column in columns]

    def distance(self, melody: Melody) -> float:
        """Return a melody's distance, in standard deviations; a melody without notes is infinitely far."""
        if not melody["pitch"]:
            return float("inf")
        measured = zip(MEASURES, self.scales, strict=True)
        return statistics.fmean(abs(measure(melody) - mean) / deviation for measure, (mean, deviation) in measured)

    def best(self, melodies: Sequence[Melody], count: int) -> list[Melody]:
        """Return the `count` nearest, the nearest first."""
        return sorted(melodies, key=self.distance)[:count]


def choose_opening(melodies: Sequence[Melody], tunes: Iterable[Melody], count: int) -> list[Melody]:
    """Return the melodies that a page opens with: of many equally long ones, the nearest to the tunes."""
    ranking = Ranking([cut_bars(tune, 0, melodies[0]["bars"]) for tune in tunes])
    best = ranking.best(melodies, count)
    return [{**melody, "title": f"Melody {number}"} for number, melody in enumerate(best, start=1)]
