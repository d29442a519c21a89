"""The tune of any file: found as the data set finds it, cut into windows, described, and written back in its place."""

from __future__ import annotations  # symusic's Score is a factory, no class

import json
import logging
import os
import random
import tarfile
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symusic import KeySignature, Note, Score, TimeSignature, Track

from dataset_script import lead_score
from dataset_script.extraction import extract_lines
from dataset_script.lead_score import WEIGHTS_PATH
from dataset_script.midi_notes import UnreadableMidiError, bar_grid, read_notes
from modeling import melody_track_melody_vae as melody_track
from modeling.line_writing_melody_vae import key_signature_of, line_to_words
from modeling.melody_line_melody_vae import readable_time_signature
from modeling.processing_melody_vae import cut_bars, steps_per_bar
from modeling.tune_finding_melody_vae import find_melody, find_tunes
from tests.builders.lines import LINE, QUARTER, accompaniment, is_same, processor_for, scale, score_of, track_of

ARCHIVE = Path(os.environ.get("LAKH_ARCHIVE", Path(__file__).parents[3] / "shared" / "data" / "lmd_full_subset.tar.gz"))
SIGNATURES = [(4, 4), (3, 4), (6, 8), (2, 2), (6, 16), (1, 4), (17, 4), (5, 8), (11, 16)]
NAMES = ["", "", "Melody", "LEAD", "bass", "Vocal back", "Strings", "lh", "Voice"]


# --- The data set's score -------------------------------------------------------------------------------------------


def test_the_weights_are_the_data_sets():
    stored = json.loads(WEIGHTS_PATH.read_text(encoding="utf-8"))
    remedy = f"copy the weights of {WEIGHTS_PATH.name} into {melody_track.__file__}: they were fitted anew"
    features = {
        name: tuple(each[key] for key in ("mean", "scale", "linear", "square"))
        for name, each in stored["features"].items()
    }
    assert features == melody_track.FEATURES, remedy
    assert tuple(features) == lead_score.TRACK_FEATURES
    families = tuple(stored["program"][family] for family in lead_score.PROGRAM_FAMILIES)
    assert families == melody_track.PROGRAMS, remedy
    rest = (
        melody_track.BIAS,
        melody_track.TUNE_NAME_WEIGHT,
        melody_track.OTHER_NAME_WEIGHT,
    )
    assert rest == (stored["bias"], stored["tune_name"], stored["other_name"]), remedy
    assert tuple(stored["calibration"].values()) == melody_track.CALIBRATION, remedy


def random_score(generator: random.Random, tracks: int, ticks_per_quarter: int, signatures: int) -> Score:
    """Make a score of tunes, chords and repeated bars, off the grid, with changes of the time signature anywhere."""
    score = Score(ticks_per_quarter)
    for change in range(signatures):
        time = generator.choice([0, 1, generator.randrange(40)]) * ticks_per_quarter + generator.choice([0, 0, 1, 7])
        score.time_signatures.append(TimeSignature(change and time, *generator.choice(SIGNATURES)))
    for _ in range(tracks):
        track = Track(generator.choice(NAMES), generator.randrange(128), generator.random() < 0.1)
        centre, time = generator.randint(30, 95), generator.randrange(12) * ticks_per_quarter
        motif = [
            (generator.choice([1, 1, 2, 3, 4, 8]), generator.randint(-7, 7)) for _ in range(generator.randint(1, 9))
        ]
        chord, jitter = generator.choice([1, 1, 2, 4]), generator.choice([0, ticks_per_quarter // 9])
        for index in range(generator.choice([0, 1, 5, 40, 150])):
            length, degree = motif[index % len(motif)]
            if generator.random() < 0.1:
                time += generator.choice([2, 8, 30]) * ticks_per_quarter // 2
            onset = time + generator.randint(-jitter, jitter)
            for voice in range(chord):
                held = generator.choice([1, 1, 2, 0]) * length * ticks_per_quarter // 4
                track.notes.append(Note(max(onset, 0), held, max(centre + degree - 4 * voice, 0), 90))
            time += length * ticks_per_quarter // 4
        score.tracks.append(track)
    return score


def agrees(midi: bytes | Score, steps_per_beat: int) -> bool:
    """Assert that processor and data set agree on a file; whether notes of lines could be compared."""
    try:
        notes = read_notes(midi, steps_per_beat)
    except UnreadableMidiError:
        with pytest.raises(ValueError, match=r"no notes outside the drums|not a MIDI file|grid steps"):
            find_tunes(midi, steps_per_beat)
        return False
    lines = extract_lines([notes], steps_per_beat)
    file_tracks = np.array([0, len(notes.track)])
    expected = lead_score.lead_scores(lines.track_utility, lines.track_has_lines, file_tracks)
    tunes = find_tunes(midi, steps_per_beat)
    of_track = dict(zip(notes.track, expected, strict=True))
    assert all(abs(of_track[line["track"]] - line["lead_score"]) < 1e-6 for line in tunes)
    if not len(lines.track):
        return False
    best = max(lines.lead_score)
    lead = min(lines.track[lines.lead_score == best].tolist())
    assert tunes[0]["track"] == lead
    # A line of the data set is a part of the processor's, which goes on where the time signature changes: where it does
    # so, the steps are others.
    signature = "{}/{}".format(*notes.grid[0, 2:4])
    if len(notes.grid) > 1 or signature != tunes[0]["time_signature"]:
        return False
    line = tunes[0]
    notes_of_line = set(zip(line["start"], line["duration"], line["pitch"], strict=True))
    for index in np.flatnonzero(lines.track == lead):
        part = slice(lines.offsets[index], lines.offsets[index + 1])
        moved = (int(lines.first_bar[index]) - line["first_bar"]) * steps_per_bar(line)
        columns = (lines.start[part] + moved, lines.duration[part], lines.pitch[part])
        notes_of_part = list(zip(*(column.tolist() for column in columns), strict=True))
        assert set(notes_of_part) <= notes_of_line, f"line {index} is not in the processor's"
        if notes_of_part[0][0] == line["start"][0]:
            assert line["tempo"] == pytest.approx(lines.tempo[index])
    return True


@pytest.mark.parametrize("steps_per_beat", [4, 12])
def test_random_files_score_as_in_the_data_set(steps_per_beat):
    generator = random.Random(7)
    compared = 0
    for _ in range(60):
        score = random_score(
            generator, generator.randint(1, 7), generator.choice([24, 96, 480]), generator.randint(0, 4)
        )
        compared += agrees(score, steps_per_beat)
    assert compared > 10


@given(data=st.data())
@settings(max_examples=13)
def test_any_score_scores_as_in_the_data_set(data):
    generator = data.draw(st.randoms(use_true_random=False))
    ticks = data.draw(st.sampled_from([1, 5, 96, 480]))
    agrees(random_score(generator, data.draw(st.integers(1, 4)), ticks, data.draw(st.integers(0, 5))), 4)


def test_the_score_does_not_depend_on_the_order_of_the_notes():
    generator = random.Random(11)
    score = random_score(generator, 5, 480, 2)
    tunes = find_tunes(score)
    for track in score.tracks:
        notes = list(track.notes)
        generator.shuffle(notes)
        track.notes = notes
    assert find_tunes(score) == tunes
    assert find_melody(score) == tunes[0]


@pytest.mark.parametrize(
    "signatures", [[], [(0, 4, 4)], [(0, 2, 2), (1920, 2, 2)], [(7, 3, 4), (7, 6, 16), (9999, 6, 16)]]
)
def test_the_bar_grid_is_the_data_sets(signatures):
    columns = [np.array([each[place] for each in signatures], dtype=np.int32) for place in range(3)]
    expected = bar_grid(*columns, 480, 4)[:, [0, 1, 2, 3, 5]].tolist()
    assert [list(stretch) for stretch in melody_track.bar_grid(signatures, 480)] == expected


@pytest.mark.real
@pytest.mark.skipif(not ARCHIVE.is_file(), reason="LAKH_ARCHIVE names no archive, and none lies beside the project")
def test_real_files_score_as_in_the_data_set():
    with tarfile.open(ARCHIVE) as archive:
        files = (archive.extractfile(member) for member in archive if member.name.endswith(".mid"))
        compared = sum(agrees(file.read(), 4) for file in islice(files, 400) if file)
    assert compared > 100


# --- Any user's file ------------------------------------------------------------------------------------------------

BAR = 4 * QUARTER


def pop_song(bars: int = 100, intro: int = 4) -> Score:
    """Make a song of nine tracks, the fifth of which has the tune; it begins after the intro."""
    generator = random.Random(5)
    tune, time = [], intro * BAR
    while time < (intro + bars) * BAR:
        length = generator.choice([1, 1, 2, 2, 4]) * QUARTER // 2
        if generator.random() < 0.9 or time == intro * BAR:
            tune.append((time, length, 69 + generator.choice([-5, -4, -2, 0, 0, 2, 3, 5, 7])))
        time += length
    tune[-1] = (tune[-1][0], (intro + bars) * BAR - tune[-1][0], tune[-1][2])
    drums, piano, bass = accompaniment(intro + bars)
    pad = track_of([(bar * BAR, BAR, pitch) for bar in range(intro + bars) for pitch in (57, 60)], "Pad", 89)
    riff = track_of([(bar * BAR + QUARTER * beat, 99, 64) for bar in range(bars) for beat in range(4)], "Riff", 27)
    vocals = track_of(tune, "Vocals", 53)
    empty, other = track_of([], "Notes"), track_of(scale(8), "Bell", 14)
    return score_of(drums, empty, piano, bass, vocals, pad, riff, other, empty)


def test_a_song_of_many_tracks_and_100_bars(tmp_path, caplog, logged):
    processor, path = processor_for(4), tmp_path / "song.mid"
    path.write_bytes(pop_song().dumps_midi())
    tunes = processor.tunes(path)
    assert [line["lead_score"] for line in tunes[:1]] == [max(line["lead_score"] for line in tunes)]
    assert len({line["track"] for line in tunes}) == len(tunes) == 6
    (line,) = processor.read(path)
    assert line == tunes[0]
    assert (line["track_name"], line["program"], line["bars"], line["first_bar"]) == ("Vocals", 53, 100, 4)
    assert line["lead_score"] > 0.9

    windows = processor.windows(line)
    assert [window["bars"] for window in windows] == [16] * 6 + [4]
    assert [window["first_bar"] for window in windows] == list(range(4, 104, 16))
    assert [pitch for window in windows for pitch in window["pitch"]] == line["pitch"]
    for first, window in zip(range(0, 100, 16), windows, strict=True):
        assert processor(midi=path, first_bar=first)["input_ids"] == processor(lines=window)["input_ids"]

    other = tunes[1]
    sentence = processor.describe(path)
    assert sentence == (
        f'{path}: the tune is track={line["track"]} "Vocals" of {line["tracks"]} (lead score {line["lead_score"]:.2f}, '
        f'next track={other["track"]} "{other["track_name"]}" {other["lead_score"]:.2f}); '
        f"bars 5 to 104 in 4/4 at 120 quarter notes a minute; {line['key']}; {len(line['pitch'])} notes; "
        "100 bars: 7 windows of up to 16"
    )
    with caplog.at_level(logging.INFO, logger="transformers"):
        processor(midi=path)
    assert sentence in logged


def test_another_track_can_be_taken(tmp_path):
    processor, song = processor_for(4), pop_song(20)
    for line in processor.tunes(song):
        assert processor.read(song, track=line["track"])[0] == find_melody(song, track=line["track"])
        assert find_melody(song, track=line["track"])["track_name"] == line["track_name"]
        expected = processor(lines=line)["input_ids"]
        assert processor(midi=song, track=line["track"])["input_ids"] == expected
        assert f"the tune is track={line['track']} " in processor.describe(song, track=line["track"])
    with pytest.raises(ValueError, match=r"^a score of 9 tracks: track=0 has no melody to read; these have: 2, 3, 4"):
        processor(midi=song, track=0)


def test_a_line_describes_itself():
    processor = processor_for(4)
    assert processor.describe(LINE) == "in 4/4; 6 notes; 5 bars: 1 window of up to 16"
    row = {**LINE, "track": 3, "program": 73, "lead_score": 0.5, "tempo": 90.0, "key": "D minor"}
    expected = "the tune is track=3 (Flute) (lead score 0.50); in 4/4 at 90 quarter notes a minute; D minor; 6 notes; "
    assert processor.describe(row).startswith(expected)


def test_a_hummed_tune_is_straightened():
    generator = random.Random(13)
    exact = [(index * QUARTER, QUARTER, pitch) for index, (_, _, pitch) in enumerate(scale(32))]
    played = [
        (max(0, start + generator.randint(-50, 50)), generator.randint(300, 560), pitch) for start, _, pitch in exact
    ]
    line = find_melody(score_of(track_of(played)))
    assert line["start"] == [4 * index for index in range(32)]
    assert line["pitch"] == [pitch for _, _, pitch in exact]
    assert set(line["duration"]) <= {2, 3, 4}
    assert line["bars"] == 8


def format_0_file(channels: list[list[tuple[int, int, int]]]) -> bytes:
    """Write notes (start, duration, pitch) of several channels as a MIDI file of one track."""
    events = []
    for channel, notes in enumerate(channels):
        for start, duration, pitch in notes:
            events += [(start, 0x90 | channel, pitch, 90), (start + duration, 0x80 | channel, pitch, 0)]
    content, now = b"", 0
    for time, *message in sorted(events):
        delta = time - now
        content += bytes([0x80 | delta >> 7, delta & 0x7F]) + bytes(message)
        now = time
    content += b"\x00\xff\x2f\x00"
    header = b"MThd" + (6).to_bytes(4, "big") + b"".join(each.to_bytes(2, "big") for each in (0, 1, QUARTER))
    return header + b"MTrk" + len(content).to_bytes(4, "big") + content


def test_the_channels_of_a_format_0_file_are_its_tracks():
    _, chords, bass = accompaniment(16)
    parts = [[(note.start, note.duration, note.pitch) for note in track.notes] for track in (bass, chords)]
    midi = format_0_file([parts[0], scale(64), parts[1]])
    line = find_melody(midi)
    assert line["pitch"] == [pitch for _, _, pitch in scale(64)]
    assert (line["track"], line["tracks"], line["bars"]) == (1, 3, 16)
    assert agrees(midi, 4)


def test_a_waltz_of_three_quarters():
    line = find_melody(score_of(track_of(scale(60)), *accompaniment(15)[1:], signatures=((0, 3, 4),)))
    assert (line["time_signature"], line["bars"], len(line["pitch"])) == ("3/4", 20, 60)


@pytest.mark.parametrize("pick_up", [((0, 1, 4), (QUARTER, 4, 4)), ((0, 2, 8), (QUARTER, 4, 4))])
def test_a_pick_up_bar_is_the_end_of_a_bar(pick_up):
    line = find_melody(score_of(track_of(scale(17)), signatures=pick_up))
    assert (line["time_signature"], line["bars"], line["first_bar"]) == ("4/4", 5, 0)
    assert line["start"] == list(range(12, 80, 4))
    plain = find_melody(score_of(track_of(scale(17, start=3 * QUARTER))))
    assert is_same(line, plain)


def test_a_pick_up_in_thirty_seconds_keeps_its_place():
    notes = [(0, 60, 72), (180, 60, 74), *scale(16, start=QUARTER)]
    line = find_melody(score_of(track_of(notes), signatures=((0, 1, 4), (QUARTER, 4, 4))), 12)
    assert line["start"][:3] == [36, 36 + 180 * 12 // QUARTER + 1, 48]  # 4.5 steps: halves go upwards


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ((1, 4), "4/4"), ((8, 4), "4/4"), ((9, 4), "3/4"), ((12, 4), "6/4"), ((24, 8), "12/8"), ((4, 8), "2/4"),
        ((10, 8), "5/8"), ((1, 8), "2/4"), ((4, 2), "4/4"), ((3, 4), "3/4"), ((12, 8), "12/8"),
    ],
)  # fmt: skip
def test_a_time_signature_outside_the_vocabulary_is_read_in_another(written, read):
    score = score_of(track_of(scale(72)), signatures=((0, *written),))
    line = find_melody(score)
    assert line["time_signature"] == read
    assert line["pitch"] == [pitch for _, _, pitch in scale(72)]
    quarter = 4 * int(read.split("/")[1]) // 4
    assert line["start"] == list(range(0, 72 * quarter, quarter))
    numerator, denominator = written if written[1] != 2 else (8, 4)
    said = f"(written as {numerator}/{denominator})" in processor_for(4).describe(score)
    assert said == (f"{numerator}/{denominator}" != read)


@pytest.mark.parametrize("written", [(11, 8), (13, 8), (11, 16), (17, 4), (7, 16), (19, 8), (23, 16), (1, 32)])
def test_any_time_signature_is_read_in_one_of_the_vocabulary(written):
    line = find_melody(score_of(track_of(scale(72)), signatures=((0, *written),)))
    assert line["pitch"] == [pitch for _, _, pitch in scale(72)]
    quarter = int(line["time_signature"].split("/")[1])
    assert line["start"] == list(range(0, 72 * quarter, quarter))
    assert line["bars"] == -(-72 * quarter // steps_per_bar(line))
    assert len(processor_for(4)(lines=processor_for(4).windows(line))["input_ids"]) == -(-line["bars"] // 16)


@pytest.mark.parametrize("numerator", range(11, 30, 2))
def test_the_nearest_time_signature_is_nearest_in_length(numerator):
    read, denominator = readable_time_signature(numerator, 8)
    length, written = read / denominator, numerator / 8

    def misfit(bar: float) -> float:
        return abs(written - max(round(written / bar), 1) * bar) / bar

    assert misfit(length) <= min(misfit(each / 8) for each in (3, 5, 6, 7, 9, 12)) + 1e-9


@pytest.mark.parametrize("odd", [(2, 4), (3, 4), (5, 8), (11, 8), (1, 4)])
@pytest.mark.parametrize("after", [8, 20])
def test_an_odd_bar_does_not_cut_a_tune(odd, after):
    begin = 8 * BAR
    end = begin + 4 * QUARTER * odd[0] // odd[1]
    score = score_of(track_of(scale(32 + 4 * after)), signatures=((0, 4, 4), (begin, *odd), (end, 4, 4)))
    (line,) = find_tunes(score)
    assert line["pitch"] == [pitch for _, _, pitch in scale(32 + 4 * after)]
    assert line["time_signature"] == "4/4"
    gaps = {later - earlier for earlier, later in pairwise(line["start"])}
    assert gaps == {4}, "the steps are those of the file"
    anchor = 0 if after == 8 else end  # the bar lines are right where most notes are
    assert (line["start"][0] * QUARTER // 4 + anchor) % BAR == 0
    said = processor_for(4).describe(score)
    assert f"(with notes written in {odd[0]}/{odd[1]}, barred anew)" in said


def test_a_tune_in_several_meters_is_read_whole_in_the_one_of_most_notes():
    score = score_of(track_of(scale(100)), signatures=((0, 4, 4), (16 * QUARTER, 2, 4), (18 * QUARTER, 3, 4)))
    (line,) = find_tunes(score)
    assert (line["time_signature"], line["first_bar"], len(line["pitch"])) == ("3/4", 0, 100)
    assert (line["start"][18] - line["start"][0]) == 18 * 4
    assert line["start"][18] % 12 == 0, "a bar of 3/4 begins where the file says"


# --- Back to where it came from -------------------------------------------------------------------------------------


@pytest.mark.parametrize("signature", [(4, 4), (3, 4), (6, 8)])
@pytest.mark.parametrize("upbeat", [0, 2 * QUARTER])
def test_the_melody_comes_back_at_its_place_tempo_and_key(signature, upbeat, tmp_path):
    processor, path = processor_for(4), tmp_path / "song.mid"
    tune = [(start, length - 60, pitch - 3) for start, length, pitch in scale(120, start=6 * BAR + upbeat)]
    chords = [(index * BAR, BAR, 50) for index in range(40)]
    score = score_of(
        track_of(chords, "Pad", 90), track_of(tune, "Melody", 73), signatures=((0, *signature),), tempos=((0, 87.0),)
    )
    path.write_bytes(score.dumps_midi())
    (line,) = processor.read(path)
    windows = processor.windows(line)
    ids = processor(lines=windows)["input_ids"]
    scores = processor.to_scores(ids, like=windows)
    returned = [(note.start, note.pitch) for score in scores for note in score.tracks[0].notes]
    assert returned == [(start, pitch) for start, _, pitch in tune]
    for score, midi in zip(scores, processor.to_midi_bytes(ids, like=windows), strict=True):
        assert [(each.time, each.numerator, each.denominator) for each in score.time_signatures] == [(0, *signature)]
        assert score.tempos[0].qpm == pytest.approx(87.0, abs=1e-3)
        assert [(each.key, each.tonality) for each in score.key_signatures] == [(4, 0)]  # E major
        again = find_melody(midi)
        assert (again["program"], again["tempo"]) == (73, pytest.approx(87.0, abs=1e-3))
    assert sum(find_melody(score)["first_bar"] for score in scores) == sum(window["first_bar"] for window in windows)


def test_what_is_asked_for_goes_before_what_the_line_says():
    processor = processor_for(4)
    source = {**LINE, "tempo": 70.0, "program": 5, "key": "A minor", "first_bar": 2}
    ids = processor(lines=[LINE, cut_bars(LINE, 0, 2)])["input_ids"]
    for score in processor.to_scores(ids, tempo=99.0, program=8, like=source):
        assert (score.tempos[0].qpm, score.tracks[0].program) == (pytest.approx(99.0, abs=1e-3), 8)
        assert score.tracks[0].notes[0].start == 2 * BAR
    (plain, _) = processor.to_scores(ids)
    assert (plain.tempos[0].qpm, plain.tracks[0].program, len(plain.key_signatures)) == (120.0, 0, 0)
    with pytest.raises(ValueError, match="like= has 1 lines for 2 melodies"):
        processor.to_scores(ids, like=[source])


def test_where_a_line_comes_from_changes_no_words():
    source = {**LINE, "tempo": 70.0, "program": 5, "key": "A minor", "first_bar": 2, "track": 1}
    assert line_to_words(source) == line_to_words(LINE)
    assert cut_bars(source, 3, 1)["first_bar"] == 5
    assert "first_bar" not in cut_bars(LINE, 3, 1)


@pytest.mark.parametrize(
    ("key", "sharps", "is_minor"),
    [("C major", 0, 0), ("A minor", 0, 1), ("G major", 1, 0), ("F major", -1, 0), ("D minor", -1, 1), ("B minor", 2, 1),
     ("F# major", 6, 0), ("C# major", -5, 0), ("D# minor", 6, 1), ("A# major", -2, 0), ("G# minor", 5, 1)],
)  # fmt: skip
def test_key_signatures(key, sharps, is_minor):
    assert key_signature_of(key) == KeySignature(0, sharps, is_minor)


# --- What is refused ------------------------------------------------------------------------------------------------


def test_windows_that_do_not_exist_are_refused():
    processor = processor_for(4)
    for first_bar in (-1, 1.5, "2"):
        with pytest.raises(ValueError, match=rf"^first_bar={first_bar!r} is not a whole number of 0 or more"):
            processor(lines=LINE, first_bar=first_bar)
    for bars in (0, -2, 0.5):
        with pytest.raises(ValueError, match=rf"^bars={bars} is not a whole number of 1 or more"):
            processor(midi=pop_song(8), bars=bars)


def test_notes_at_impossible_times_are_refused_by_name():
    for time, reason in ((-5, "a note begins before the file does"), (2**30, "a million grid steps")):
        with pytest.raises(ValueError, match=rf"^a score of 1 tracks: .*{reason}.*; cut it in an editor"):
            find_melody(score_of(track_of([(0, 9, 60), (time, 9, 60)])))


@pytest.mark.parametrize("midi", [score_of(), score_of(track_of([])), score_of(accompaniment()[0])])
def test_a_file_without_a_tune_has_no_tunes(midi):
    for read in (processor_for(4).tunes, processor_for(4).describe, processor_for(4).read):
        with pytest.raises(ValueError, match="no notes outside the drums"):
            read(midi)
