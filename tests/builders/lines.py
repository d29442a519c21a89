"""Melody lines, the scores that hold them, and processors trained on them."""

import random
from itertools import pairwise

import pytest
from hypothesis import strategies as st
from symusic import Note, Score, Tempo, TimeSignature, Track

from modeling.line_writing_melody_vae import line_to_words
from modeling.melody_line_melody_vae import MAX_NOTE_BEATS, MAX_PITCH, MIN_PITCH, TIME_SIGNATURES, steps_per_bar
from modeling.processing_melody_vae import MelodyProcessor

SIGNATURES = [f"{numerator}/{denominator}" for denominator, all_ in TIME_SIGNATURES.items() for numerator in all_]
VOCABULARY = {4: 307, 12: 547}  # prime, and above the base vocabulary, so that there are merges
QUARTER = 480
COLUMNS = ("pitch", "start", "duration", "time_signature", "steps_per_beat", "bars")
LINE = {  # bars of 4/4: a tune, silence, a tune held into silence
    "pitch": [60, 62, 64, 65, 67, 72],
    "start": [0, 4, 8, 14, 32, 40],
    "duration": [4, 4, 6, 2, 3, 10],
    "time_signature": "4/4",
    "steps_per_beat": 4,
    "bars": 5,
}


def is_same(line: dict, other: dict) -> bool:
    return all(line[column] == other[column] for column in COLUMNS)


def random_line(generator: random.Random, steps_per_beat: int) -> dict:
    signature = generator.choice(SIGNATURES)
    line = {"time_signature": signature, "steps_per_beat": steps_per_beat, "bars": generator.randint(1, 16)}
    total = steps_per_bar(line) * line["bars"]
    starts = sorted(generator.sample(range(total), min(total, generator.randint(1, 50))))
    gaps = [after - before for before, after in pairwise([*starts, total])]
    return {
        **line,
        "pitch": [generator.randint(55, 80) for _ in starts],
        "start": starts,
        "duration": [generator.randint(1, min(gap, MAX_NOTE_BEATS * steps_per_beat)) for gap in gaps],
    }


@st.composite
def lines(draw, steps_per_beat: int, pitches: tuple[int, int] = (MIN_PITCH, MAX_PITCH), min_notes: int = 0) -> dict:
    """Draw a line; its notes lie in some of its bars, so any of the others may be silent."""
    line = {
        "time_signature": draw(st.sampled_from(SIGNATURES)),
        "steps_per_beat": steps_per_beat,
        "bars": draw(st.integers(1, 16)),
    }
    bar = steps_per_bar(line)
    sounding = draw(st.sets(st.integers(0, line["bars"] - 1), min_size=min(min_notes, 1), max_size=4))
    starts = set()
    for index in sounding:
        steps = draw(st.sets(st.integers(0, bar - 1), min_size=min_notes, max_size=7))
        starts |= {index * bar + step for step in steps}
    starts = sorted(starts)
    gaps = [after - before for before, after in pairwise([*starts, bar * line["bars"]])]
    longest = MAX_NOTE_BEATS * steps_per_beat
    return {
        **line,
        "pitch": [draw(st.integers(*pitches)) for _ in starts],
        "start": starts,
        "duration": [draw(st.integers(1, min(gap, longest)) | st.just(min(gap, longest))) for gap in gaps],
    }


def training_words(steps_per_beat: int) -> list[list[str]]:
    generator = random.Random(0)
    return [line_to_words(random_line(generator, steps_per_beat)) for _ in range(200)]


TRAINED: dict[int, MelodyProcessor] = {}


def processor_for(steps_per_beat: int) -> MelodyProcessor:
    """Train each processor once; hypothesis forbids fixtures that change."""
    if steps_per_beat not in TRAINED:
        words = training_words(steps_per_beat)
        TRAINED[steps_per_beat] = MelodyProcessor.train(words, VOCABULARY[steps_per_beat], steps_per_beat)
    return TRAINED[steps_per_beat]


GRIDS = pytest.mark.parametrize("steps_per_beat", [4, 12])


def score_of(
    *tracks: Track, signatures: tuple[tuple[int, int, int], ...] = ((0, 4, 4),), tempos: tuple = ((0, 120.0),)
) -> Score:
    score = Score(QUARTER)
    for time, numerator, denominator in signatures:
        score.time_signatures.append(TimeSignature(time, numerator, denominator))
    for time, qpm in tempos:
        score.tempos.append(Tempo(time, qpm=qpm))
    for track in tracks:
        score.tracks.append(track)
    return score


def track_of(notes: list[tuple[int, int, int]], name: str = "", program: int = 0, is_drum: bool = False) -> Track:
    """Make a track of (start, duration, pitch) in ticks."""
    track = Track(name=name, program=program, is_drum=is_drum)
    for start, duration, pitch in notes:
        track.notes.append(Note(start, duration, pitch, 90))
    return track


def scale(beats: int, beat: int = QUARTER, start: int = 0) -> list[tuple[int, int, int]]:
    """One note on each beat, up and down."""
    degrees = [0, 2, 4, 5, 7, 9, 11, 12, 11, 9, 7, 5, 4, 2]
    return [(start + index * beat, beat, 67 + degrees[index % len(degrees)]) for index in range(beats)]


def accompaniment(bars: int = 8) -> list[Track]:
    bar = 4 * QUARTER
    chords = [(bar * index, bar, pitch) for index in range(bars) for pitch in (60, 64, 67, 72)]
    bass = [(bar * index + half * 2 * QUARTER, QUARTER, 36 + 7 * half) for index in range(bars) for half in (0, 1)]
    drums = [(index * QUARTER // 2, 60, 42 + index % 5) for index in range(8 * bars)]
    return [
        track_of(drums, "Melody", is_drum=True),
        track_of(chords, "Piano"),
        track_of(bass, "Bass", program=33),
    ]
