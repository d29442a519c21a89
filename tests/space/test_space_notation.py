"""Chords under melodies, and sheet music: what is written is read back, by other readers than the writers."""

import itertools
import json
import random
import sys
from fractions import Fraction
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symusic import Score

from tests.builders.space_server import ROOT

sys.path.append(str(ROOT / "space"))

from harmony import TRIADS, chord_name, find_chords, harmonize, viterbi
from melody import check_melody, fifths_of, steps_per_bar, to_midi, transpose
from notation import bars_of, to_abc, to_musicxml

TUNES = {tune["title"]: tune for tune in json.loads((ROOT / "space/tunes.json").read_text(encoding="utf-8"))}
CHORDS = json.loads((ROOT / "space/chords.json").read_text(encoding="utf-8"))


def triad(chord: int) -> set[int]:
    return {(chord + degree) % 12 for degree in TRIADS["minor" if chord >= 12 else "major"]}


def test_the_best_path_is_the_best_of_all():
    generator = np.random.default_rng(0)
    seen, first, then = generator.normal(size=(5, 3)), generator.normal(size=3), generator.normal(size=(3, 3))

    def likelihood(path: tuple[int, ...]) -> float:
        moves = sum(then[a, b] for a, b in itertools.pairwise(path))
        return float(first[path[0]] + moves + sum(seen[bar, state] for bar, state in enumerate(path)))

    best = max(itertools.product(range(3), repeat=5), key=likelihood)
    path, score = viterbi(seen, first, then)
    assert tuple(path) == best
    assert score == pytest.approx(likelihood(best))


def test_keys_and_chords_move_with_the_melody():
    for title in ("Ode to Joy", "Korobeiniki", "Greensleeves"):
        key, chords = find_chords(TUNES[title])
        for semitones in (-5, 1, 6):
            moved_key, moved = find_chords(transpose(TUNES[title], semitones))
            assert moved == [(chord + semitones) % 12 + chord // 12 * 12 for chord in chords]
            assert (moved_key.split()[1], key.split()[1]) in {("major", "major"), ("minor", "minor")}
    assert [find_chords(TUNES[title])[0] for title in ("Ode to Joy", "Korobeiniki")] == ["C major", "A minor"]


def test_most_bars_have_notes_of_their_chord():
    """In tunes that nothing was counted on; of chords in another order it holds less often."""
    shuffle, own, other = random.Random(0), [], []
    for tune in TUNES.values():
        _, chords = find_chords(tune)
        mixed = shuffle.sample(chords, len(chords))
        for start, duration, pitch in zip(tune["start"], tune["duration"], tune["pitch"], strict=True):
            bar = start // steps_per_bar(tune)
            own += [pitch % 12 in triad(chords[bar])] * duration
            other += [pitch % 12 in triad(mixed[bar])] * duration
    assert sum(own) / len(own) > 0.7
    assert sum(own) / len(own) > sum(other) / len(other) + 0.1


def test_chords_were_measured_and_beat_simple_rules():
    right = CHORDS["measured"]["chord_is_right"]
    assert right["key_found"] > max(right["tonic_always"], right["most_notes"]) + 0.05
    assert CHORDS["measured"]["key_is_right"] > 0.75


@pytest.mark.parametrize("title", ["Ode to Joy", "Greensleeves", "Minuet in G"])
def test_an_accompaniment_is_a_second_track_of_the_chords(title):
    tune = check_melody(TUNES[title])
    found = harmonize(tune)
    score = Score.from_midi(to_midi(tune, found))
    melody, chords = score.tracks
    assert [note.pitch for note in melody.notes] == tune["pitch"]
    assert (chords.name, chords.program) == ("Chords", 0)
    assert [marker.text for marker in score.markers] == found["chords"]
    step = score.ticks_per_quarter * 4 // (int(tune["time_signature"].split("/")[1]) * tune["steps_per_beat"])
    bar = steps_per_bar(tune) * step
    key, numbers = find_chords(tune)
    assert [chord_name(chord, key) for chord in numbers] == found["chords"]
    for note in chords.notes:
        assert note.pitch % 12 in triad(numbers[note.start // bar])
        assert note.start // bar == (note.end - 1) // bar  # no chord sounds into the next
    assert {note.start // bar for note in chords.notes} == set(range(tune["bars"]))
    assert len(Score.from_midi(to_midi(tune)).tracks) == 1


def notes_of_musicxml(content: bytes, tune: dict) -> list[tuple[int, int, int]]:
    """Read the notes of MusicXML in grid steps, tied ones as one, and check that each bar is full."""
    root = ET.fromstring(content)
    divisions = int(root.findtext(".//divisions") or 0)
    denominator = int(root.findtext(".//beat-type") or 0)
    step = Fraction(4 * divisions, denominator * tune["steps_per_beat"])
    names = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
    notes, now = [], Fraction(0)
    for measure in root.iter("measure"):
        begun = now
        for note in measure.iter("note"):
            length = int(note.findtext("duration") or 0) / step
            if (pitch := note.find("pitch")) is not None:
                number = 12 * (int(pitch.findtext("octave") or 0) + 1) + names[pitch.findtext("step") or ""]
                number += int(pitch.findtext("alter") or 0)
                if "stop" in [tie.get("type") for tie in note.iter("tie")]:
                    start, duration, before = notes.pop()
                    assert before == number
                    notes.append((start, duration + length, number))
                else:
                    notes.append((now, length, number))
            now += length
        assert now - begun == steps_per_bar(tune)
    return [(int(start), int(duration), pitch) for start, duration, pitch in notes]


def notes_of_abc(text: str, tune: dict) -> list[tuple[int, int, int]]:
    """Read ABC by symusic, in grid steps."""
    score = Score.from_abc(text)
    step = score.ticks_per_quarter * 4 / (int(tune["time_signature"].split("/")[1]) * tune["steps_per_beat"])
    return [(round(note.start / step), round(note.duration / step), note.pitch) for note in score.tracks[0].notes]


def written(tune: dict) -> list[tuple[int, int, int]]:
    return list(zip(tune["start"], tune["duration"], tune["pitch"], strict=True))


@pytest.mark.parametrize("title", TUNES)
def test_sheet_music_has_the_notes_of_the_tune(title):
    tune = check_melody(TUNES[title])
    found = harmonize(tune)
    assert notes_of_musicxml(to_musicxml(tune, found["key"], found["chords"]), tune) == written(tune)
    assert notes_of_abc(to_abc(tune, found["key"]), tune) == written(tune)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_sheet_music_of_any_melody_is_whole(data):
    meter = data.draw(st.sampled_from(["4/4", "3/4", "6/8", "5/4", "7/8", "2/2"]))
    melody = {"title": "Any", "time_signature": meter, "steps_per_beat": data.draw(st.sampled_from([2, 4]))}
    melody |= {"bars": data.draw(st.integers(1, 4)), "tempo": 97.0, "program": 3}
    end = melody["bars"] * steps_per_bar(melody)
    starts = sorted(data.draw(st.sets(st.integers(0, end - 1), min_size=1, max_size=12)))
    notes = [
        (start, data.draw(st.integers(1, stop - start)), data.draw(st.integers(21, 108)))
        for start, stop in itertools.pairwise([*starts, end])
    ]
    start, duration, pitch = map(list, zip(*notes, strict=True))
    tune = check_melody({**melody, "start": start, "duration": duration, "pitch": pitch})
    key = data.draw(st.sampled_from(["C major", "F# major", "D# minor", "C# major", "G minor"]))
    assert notes_of_musicxml(to_musicxml(tune, key), tune) == written(tune)
    bar = steps_per_bar(tune)
    assert all(sum(symbol.steps for symbol in symbols) == bar for symbols in bars_of(tune))


def test_keys_have_their_signatures():
    keys = {"C major": 0, "A minor": 0, "G major": 1, "D minor": -1, "A# major": -2, "F# minor": 3, "D# minor": 6}
    assert {key: fifths_of(key) for key in keys} == keys
    # Chords are named with the signature's accidentals.
    assert {key: chord_name(10, key) for key in ("F major", "B major", "D# minor")} == {
        "F major": "Bb",
        "B major": "A#",
        "D# minor": "A#",
    }


def test_other_readers_find_the_same_notes(tmp_path):
    music21 = pytest.importorskip("music21")
    tune = check_melody(TUNES["Greensleeves"])
    found = harmonize(tune)
    path = tmp_path / "tune.musicxml"
    path.write_bytes(to_musicxml(tune, found["key"], found["chords"]))
    score = music21.converter.parse(path)
    notes = [note for note in score.stripTies().flatten().notes if isinstance(note, music21.note.Note)]
    assert [note.pitch.midi for note in notes] == tune["pitch"]
    assert len(score.flatten().getElementsByClass("ChordSymbol")) > 3
