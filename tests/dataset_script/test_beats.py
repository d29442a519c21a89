"""MIDI files written anew with their bars where annotated beats are."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import symusic

from dataset_script import beats
from dataset_script.beat_tracking import beat_f_measure, track_beats

PITCHES = list(range(60, 84))


def write_song(folder: Path, seconds: np.ndarray, downbeats: list[int], at: np.ndarray) -> Path:
    """Write a MIDI file with a note at each of some times, and its beats, as POP909 has them."""
    folder.mkdir(parents=True)
    score = symusic.Score(480)
    score.tempos.append(symusic.Tempo(0, 97.0))  # not the music's: the recording decides
    track = symusic.Track("MELODY", 3)
    per_second = 480 * 97 / 60
    for time, pitch in zip(at, PITCHES, strict=False):
        track.notes.append(symusic.Note(round(time * per_second), round(0.1 * per_second), pitch, 80))
    score.tracks.append(track)
    score.dump_midi(str(folder / f"{folder.name}.mid"))
    lines = [f"{time} {place % 2} {float(place in downbeats)}" for place, time in enumerate(seconds)]
    (folder / beats.BEATS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def onsets(path: Path) -> list[float]:
    """Return onsets in beats of a file written by the program."""
    return [note.start / beats.TICKS for note in symusic.Score(path).tracks[0].notes]


def test_notes_lie_where_the_beats_are_in_any_tempo(tmp_path):
    """A recording that slows down, with an offset: notes on and between beats come out on and between beats."""
    seconds = 0.37 + np.cumsum(np.linspace(0.4, 0.8, 24))
    places = np.array([0.0, 1.0, 2.5, 7.25, 12.0, 20.5])
    write_song(tmp_path / "in" / "001", seconds, list(range(0, 24, 4)), np.interp(places, np.arange(24), seconds))
    assert beats.main(["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 0
    score = symusic.Score(tmp_path / "out" / "001.mid")
    assert onsets(tmp_path / "out" / "001.mid") == pytest.approx(places, abs=0.01)
    assert score.tracks[0].name == "MELODY"
    assert score.tracks[0].program == 3
    assert [note.pitch for note in score.tracks[0].notes] == PITCHES[:6]
    assert score.tempos[0].qpm == pytest.approx(60 / np.median(np.diff(seconds)), rel=1e-3)
    assert [(each.time, each.numerator, each.denominator) for each in score.time_signatures] == [(0, 4, 4)]


def test_a_pick_up_stands_before_the_first_downbeat(tmp_path):
    seconds = 1 + 0.5 * np.arange(20)
    write_song(tmp_path / "in" / "002", seconds, list(range(3, 20, 4)), seconds[[0, 3, 7]])
    beats.run(tmp_path / "in", tmp_path / "out", beats.BEATS)
    assert onsets(tmp_path / "out" / "002.mid") == [1, 4, 8]  # three beats of a bar of four, then its downbeats


@pytest.mark.parametrize(
    ("downbeats", "bars", "denominator", "offset"),
    [
        (range(0, 24, 4), [4] * 6, 4, 0),
        (range(0, 24, 3), [3] * 8, 4, 0),
        (range(0, 36, 6), [6] * 6, 8, 0),  # so many beats in most bars are eighths
        ([0, 4, 10, 14, 18], [4, 4, 2, 4, 4, 4], 4, 0),  # a bar of six among fours is one of four and one of two
        ([2, 6, 8, 12, 16], [4, 4, 2, 4, 4, 4], 4, 2),
        ([5, 8, 11, 14], [3, 3, 3, 3, 3, 3], 4, 1),
        ([3], [4, 4], 4, 1),
    ],
)
def test_bars(downbeats, bars, denominator, offset):
    is_first = np.zeros(40, dtype=bool)
    is_first[list(downbeats)] = True
    assert beats.bars_of(is_first) == (bars, denominator, offset)


def test_changing_bars_are_time_signatures(tmp_path):
    seconds = 0.5 * np.arange(24)
    write_song(tmp_path / "in" / "003", seconds, [0, 4, 6, 10, 14, 18], seconds[:6])
    beats.run(tmp_path / "in", tmp_path / "out", beats.BEATS)
    signatures = symusic.Score(tmp_path / "out" / "003.mid").time_signatures
    assert [(each.time // beats.TICKS, each.numerator) for each in signatures] == [(0, 4), (4, 2), (6, 4)]


def test_an_archive_with_other_versions_and_broken_songs(tmp_path, capsys):
    seconds = 0.5 * np.arange(16)
    good = write_song(tmp_path / "in" / "POP909" / "004", seconds, [0, 4, 8, 12], seconds[:3])
    (good / "versions").mkdir()
    (good / "versions" / "004-v1.mid").write_bytes(b"not looked at")
    broken = write_song(tmp_path / "in" / "POP909" / "005", seconds, [0, 4, 8, 12], seconds[:3])
    (broken / "005.mid").write_bytes(b"MThd, they said")
    for name, text in (("006", "one two three\n"), ("007", "0.5 0 1\n0.4 0 0\n"), ("008", "1 0 0\n2 0 0\n" * 4)):
        (write_song(tmp_path / "in" / "POP909" / name, seconds, [0], seconds[:3]) / beats.BEATS).write_text(
            text, encoding="utf-8"
        )
    with tarfile.open(tmp_path / "songs.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "in" / "POP909", "./POP909")
    assert beats.main(["--input", str(tmp_path / "songs.tar.gz"), "--output", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert "1 MIDI files with bars as annotated, 4 left out" in told.out
    assert all(f"{name}: " in told.err for name in ("005", "006", "007", "008"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["004.mid"]


def test_bad_input_is_told_in_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tar").write_text("no archive", encoding="utf-8")
    for given, said in (("empty", "no folder with a MIDI file"), ("text.tar", "neither a folder nor a tar archive")):
        assert beats.main(["--input", str(tmp_path / given), "--output", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert beats.main(["--input", str(tmp_path), "--output", str(tmp_path / "empty")]) == 2
    assert "exists; give a new folder" in capsys.readouterr().err


def test_beats_are_tracked_through_a_tempo_that_drifts():
    random = np.random.default_rng(3)
    annotated = 1.0 + np.cumsum(0.6 + 0.03 * np.sin(np.arange(120) / 11))
    off_beats = (annotated[1:] + annotated[:-1]) / 2
    begin = np.concatenate([annotated + random.normal(0, 0.01, len(annotated)), off_beats])
    length = np.concatenate([np.full(len(annotated), 0.5), np.full(len(off_beats), 0.1)])
    pitch = np.concatenate([np.full(len(annotated), 40), np.full(len(off_beats), 72)])
    order = np.argsort(begin)
    found, is_first = track_beats(begin[order], length[order], pitch[order])
    assert beat_f_measure(found, annotated) > 0.95
    assert beat_f_measure(found + 0.3, annotated) < 0.2
    assert np.diff(np.flatnonzero(is_first)).tolist() == [4] * (is_first.sum() - 1)


def test_f_measure_counts_each_beat_once():
    annotated = np.arange(10.0)
    assert beat_f_measure(annotated + 0.069, annotated) == 1
    assert beat_f_measure(annotated + 0.071, annotated) == 0
    assert beat_f_measure(annotated[:5], annotated) == pytest.approx(2 * 5 / 15)
    assert beat_f_measure(np.sort(np.r_[annotated, annotated + 0.01]), annotated) == pytest.approx(2 * 10 / 30)


def test_freely_played_files_get_beats_of_their_own(tmp_path, capsys):
    played = 1.0 + np.cumsum(0.6 + 0.05 * np.sin(np.arange(60) / 7))
    write_song(tmp_path / "in" / "song", played, [], played[: len(PITCHES)])
    assert beats.main(["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--track"]) == 0
    (path,) = (tmp_path / "out").iterdir()
    score = symusic.Score(str(path))
    place = np.array([note.start for note in score.tracks[0].notes]) / score.ticks_per_quarter
    assert abs(place - np.rint(place)).max() < 0.1
    assert beats.main(["--input", str(tmp_path / "out" / "none"), "--output", str(tmp_path / "x"), "--track"]) == 2
