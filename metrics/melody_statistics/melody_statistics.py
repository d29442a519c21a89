"""Melody statistics: what a melody is like, by numbers that are known from the literature.

A melody is a mapping with `pitch` (MIDI numbers), `start` and `duration` (grid steps from the first bar line): lists of
ints, sorted, not overlapping. It has `num_bars` bars of `steps_per_bar` steps: 16 of 16 for 4/4 in sixteenths.

It imports nothing but what its own folder has: `evaluate.load("metrics/melody_statistics")` copies that alone.
"""

from collections.abc import Mapping, Sequence

import datasets
import evaluate
import numpy as np

from .checked_notes import checked_notes

MAJOR = np.array([1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1])  # natural minor has the notes of its relative major
DISTANCES = (1, 2, 4, 8)  # bars between two bars that are compared
NOTE_LENGTHS = np.array([96, 48, 24, 12, 6, 72, 36, 18, 9, 32, 16, 8]) / 24  # quarters: plain, dotted, triplets

Melody = Mapping[str, Sequence[int]]

_CITATION = """@inproceedings{dong2020muspy,
  title = {{MusPy}: A Toolkit for Symbolic Music Generation}, author = {Dong, Hao-Wen and others},
  booktitle = {ISMIR}, year = {2020}, url = {https://arxiv.org/abs/2008.01951}
}
@article{yang2020evaluation,
  title = {On the evaluation of generative models in music}, author = {Yang, Li-Chia and Lerch, Alexander},
  journal = {Neural Computing and Applications}, year = {2020}, url = {https://doi.org/10.1007/s00521-018-3849-7}
}"""


def entropy_bits(values: np.ndarray) -> float:
    """Return the entropy of the values' frequencies, in bits."""
    _, counts = np.unique(values, return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum()) + 0.0  # no negative zero


def bar_pair_similarity(start: np.ndarray, pitch: np.ndarray, num_bars: int, steps_per_bar: int) -> list[float | None]:
    """Compare bars at each of `DISTANCES`.

    The likeness of two bars is the share of their (onset, pitch) pairs that both have (Jaccard). Two bars without
    onsets are not compared.

    Returns:
        For each distance the mean over all pairs of bars so far apart; None where there is no pair to compare.
    """
    bars = [set() for _ in range(num_bars)]
    for onset, value in zip(start.tolist(), pitch.tolist(), strict=True):
        bars[onset // steps_per_bar].add((onset % steps_per_bar, value))
    found: list[float | None] = []
    for distance in DISTANCES:
        pairs = [(one, other) for one, other in zip(bars, bars[distance:], strict=False) if one or other]
        likeness = [len(one & other) / len(one | other) for one, other in pairs]
        found.append(sum(likeness) / len(likeness) if likeness else None)
    return found


def statistics_of(
    melody: Melody, num_bars: int = 16, steps_per_bar: int = 16, steps_per_beat: int = 4
) -> dict[str, float | None]:
    """Describe one melody.

    Args:
        melody: See the module.
        num_bars: Its bars.
        steps_per_bar: Grid steps of a bar.
        steps_per_beat: Grid steps of a beat.

    Returns:
        As muspy defines them (Dong et al. 2020):

        - `pitch_range`: semitones from the lowest to the highest note; 0 without notes.
        - `pitches_used`, `pitch_classes_used`: how many different ones.
        - `pitch_entropy`, `pitch_class_entropy`: bits, of their frequencies among notes; None without notes.
        - `scale_consistency`: the largest share of notes in one major or natural minor scale; None without notes.
        - `groove_consistency`: 1 - the share of steps on which neighbouring bars differ in having an onset; like muspy
          over the bars up to the one in which the last note's end lies, which is a bar more where it ends on a bar
          line. None where that is less than two bars.
        - `empty_bar_rate`: share of the same bars in which nothing sounds; a note that ends on a bar line counts as
          sounding in the bar that begins there, as in muspy. None without notes.

        Ours:

        - `note_density`: notes per bar.
        - `syncopation`: share of notes that begin off the beat and sound into the next beat, on which no note begins
          (after Longuet-Higgins and Lee 1984); None without notes.
        - `bar_similarity_1`, `_2`, `_4`, `_8`: see `bar_pair_similarity`.

    Raises:
        ValueError: If it is not a melody on this grid (see `checked_notes`), or a size is below 1.
    """
    for name, value in (("num_bars", num_bars), ("steps_per_bar", steps_per_bar), ("steps_per_beat", steps_per_beat)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    pitch, start, duration = checked_notes(
        melody["pitch"], melody["start"], melody["duration"], num_bars * steps_per_bar
    )
    similarity = bar_pair_similarity(start, pitch, num_bars, steps_per_bar)
    statistics: dict[str, float | None] = {
        "pitch_range": float(np.ptp(pitch)) if len(pitch) else 0.0,
        "pitches_used": float(len(np.unique(pitch))),
        "pitch_classes_used": float(len(np.unique(pitch % 12))),
        "pitch_entropy": None,
        "pitch_class_entropy": None,
        "scale_consistency": None,
        "groove_consistency": None,
        "empty_bar_rate": None,
        "note_density": len(pitch) / num_bars,
        "syncopation": None,
        **{f"bar_similarity_{distance}": value for distance, value in zip(DISTANCES, similarity, strict=True)},
    }
    if not len(pitch):
        return statistics
    # Onsets of each measure, and measures in which something sounds.
    ends = start + duration
    measures = int(ends.max()) // steps_per_bar + 1
    onsets = np.zeros(measures * steps_per_bar, dtype=bool)
    onsets[start] = True
    grooves = onsets.reshape(measures, steps_per_bar)
    is_sounding = np.zeros(measures, dtype=bool)
    for first, last in zip(start // steps_per_bar, ends // steps_per_bar, strict=True):
        is_sounding[first : last + 1] = True
    # How much of it is in each major scale, and what is held over a beat from between two.
    in_scale = [MAJOR[(pitch - tonic) % 12].mean() for tonic in range(12)]
    coming = (start // steps_per_beat + 1) * steps_per_beat
    is_syncopated = (start % steps_per_beat != 0) & ~np.isin(coming, start) & (ends > coming)
    return statistics | {
        "pitch_entropy": entropy_bits(pitch),
        "pitch_class_entropy": entropy_bits(pitch % 12),
        "scale_consistency": float(max(in_scale)),
        "groove_consistency": 1 - float((grooves[:-1] != grooves[1:]).mean()) if measures > 1 else None,
        "empty_bar_rate": 1 - float(is_sounding.mean()),
        "syncopation": float(is_syncopated.mean()),
    }


def feature_vectors(
    melody: Melody, num_bars: int = 16, steps_per_bar: int = 16, steps_per_quarter: int = 4
) -> dict[str, list[float] | None]:
    """Write a melody as the features by which sets of melodies are compared (Yang and Lerch 2020, section 3.2).

    Args:
        melody: See the module.
        num_bars: Its bars.
        steps_per_bar: Grid steps of a bar.
        steps_per_quarter: Grid steps of a quarter note.

    Returns:
        None where a melody has too few notes for a feature to be defined.

        - `pitch_count`: different pitches. `pitch_range`: semitones.
        - `pitch_class_histogram`: 12 shares of the time that sounds.
        - `pitch_class_transitions`: 144 counts of one pitch class following another.
        - `pitch_interval`: mean size of the step from a note to the next, in semitones.
        - `note_length_histogram`: 12 shares of notes, by the nearest of `NOTE_LENGTHS` (the first of two as near).
        - `inter_onset_interval`: mean, in quarter notes.
        - `groove_consistency`, `scale_consistency`: of `statistics_of`.
        - `bar_pair_similarity`: at each of `DISTANCES`; a distance without pairs counts as 0.

    Raises:
        ValueError: As in `statistics_of`.
    """
    statistics = statistics_of(melody, num_bars, steps_per_bar)
    pitch, start, duration = (np.asarray(melody[name], dtype=np.int64) for name in ("pitch", "start", "duration"))
    similarity = [statistics[f"bar_similarity_{distance}"] for distance in DISTANCES]

    def scalar(value: float | None) -> list[float] | None:
        return None if value is None else [float(value)]

    # What a melody lacks is none: means leave it out.
    features = {
        "pitch_count": scalar(statistics["pitches_used"] if len(pitch) else None),
        "pitch_range": scalar(statistics["pitch_range"] if len(pitch) else None),
        "pitch_class_histogram": None,
        "pitch_class_transitions": None,
        "pitch_interval": None,
        "note_length_histogram": None,
        "inter_onset_interval": None,
        "groove_consistency": scalar(statistics["groove_consistency"]),
        "scale_consistency": scalar(statistics["scale_consistency"]),
        "bar_pair_similarity": [value or 0.0 for value in similarity] if len(pitch) else None,
    }
    # Histograms need a note, intervals two.
    if len(pitch):
        histogram = np.bincount(pitch % 12, weights=duration, minlength=12)
        features["pitch_class_histogram"] = (histogram / histogram.sum()).tolist()
        nearest = np.abs(duration[:, None] / steps_per_quarter - NOTE_LENGTHS).argmin(1)
        features["note_length_histogram"] = (np.bincount(nearest, minlength=12) / len(pitch)).tolist()
    if len(pitch) > 1:
        transitions = np.bincount(pitch[:-1] % 12 * 12 + pitch[1:] % 12, minlength=144)
        features["pitch_class_transitions"] = transitions.astype(float).tolist()
        features["pitch_interval"] = scalar(float(np.abs(np.diff(pitch)).mean()))
        features["inter_onset_interval"] = scalar(float(np.diff(start).mean() / steps_per_quarter))
    return features


def melody_statistics(
    predictions: Sequence[Melody], num_bars: int = 16, steps_per_bar: int = 16, steps_per_beat: int = 4
) -> dict[str, float | int | None]:
    """Average `statistics_of` over melodies.

    Returns:
        The mean of each statistic over the melodies for which it is defined, None if there is no such melody; `notes`
        and `count`: notes and melodies.

    Raises:
        ValueError: If there are no melodies, or something is not a melody on this grid.
    """
    if len(predictions) == 0:
        raise ValueError("statistics of no melodies are undefined, got 0 predictions")
    rows = [statistics_of(melody, num_bars, steps_per_bar, steps_per_beat) for melody in predictions]
    means: dict[str, float | int | None] = {}
    for name in rows[0]:
        defined = [value for row in rows if (value := row[name]) is not None]
        means[name] = sum(defined) / len(defined) if defined else None
    return {**means, "notes": sum(len(melody["pitch"]) for melody in predictions), "count": len(predictions)}


class MelodyStatistics(evaluate.Metric):
    """Means of statistics of melodies."""

    def _info(self) -> evaluate.MetricInfo:
        steps = datasets.List(datasets.Value("int32"))
        melody = {"pitch": steps, "start": steps, "duration": steps}
        return evaluate.MetricInfo(
            description=melody_statistics.__doc__ or "",
            citation=_CITATION,
            inputs_description="predictions: melodies {'pitch': [...], 'start': [...], 'duration': [...]}",
            features=datasets.Features({"predictions": melody}),
            reference_urls=["https://arxiv.org/abs/2008.01951", "https://doi.org/10.1007/s00521-018-3849-7"],
        )

    def _compute(self, predictions, num_bars: int = 16, steps_per_bar: int = 16, steps_per_beat: int = 4):
        return melody_statistics(predictions, num_bars, steps_per_bar, steps_per_beat)
