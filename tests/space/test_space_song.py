"""The way back into a song: what a melody replaces in a MIDI file, and what stays."""

import base64
import random
import struct
import sys

import pytest
from symusic import Note, Score, Tempo, TimeSignature, Track

from tests.builders.space_server import ROOT

sys.path.append(str(ROOT / "space"))

from melody import RefusedError, check_melody, cut_bars
from song import Event, find_place, put_back, read_events, read_tracks, split_chunks, write_events


def song(bars: int = 12, first_bar: int = 2, jitter: int = 0) -> tuple[bytes, dict]:
    """Write a song of three tracks; and the melody of the second, which begins in the third bar."""
    draw = random.Random(1)
    score = Score(480)
    score.time_signatures.append(TimeSignature(0, 4, 4))
    score.tempos.append(Tempo(0, 100))
    score.tempos.append(Tempo(7680, 90))
    bass, tune, drums = Track("Bass", 33), Track("Tune", 40), Track("Drums", 0, True)
    notes = []
    for beat in range(4 * bars):
        bass.notes.append(Note(480 * beat, 400, 36 + beat % 5, 80))
        drums.notes.append(Note(480 * beat, 100, 38, 90))
        if beat >= 4 * first_bar:
            pitch = 60 + draw.randrange(14)
            tune.notes.append(Note(480 * beat + draw.randint(0, jitter), 450, pitch, 70 + beat % 9))
            notes.append((4 * (beat - 4 * first_bar), 4, pitch))
    for track in (bass, tune, drums):
        score.tracks.append(track)
    start, duration, pitch = map(list, zip(*notes, strict=True))
    columns = {"start": start, "duration": duration, "pitch": pitch, "bars": bars - first_bar}
    melody = {**columns, "title": "Tune", "time_signature": "4/4", "steps_per_beat": 4, "tempo": 100.0, "program": 40}
    return score.dumps_midi(), check_melody(melody)


def onsets(track: Track) -> list[tuple[int, int]]:
    return [(note.start, note.pitch) for note in track.notes]


@pytest.mark.parametrize("jitter", [0, 25])
def test_a_melody_takes_its_own_place_and_nothing_else_changes(jitter):
    content, melody = song(jitter=jitter)
    place = find_place(content, melody)
    assert place is not None
    assert abs(place["tick"] - 2 * 1920) <= 30
    whole = check_melody({**melody, "place": place})
    window = cut_bars(whole, 3, 4)
    changed = {**window, "pitch": [pitch + 12 for pitch in window["pitch"]]}
    written = put_back(content, check_melody(changed))
    chunks, before = split_chunks(written), split_chunks(content)
    differing = [index for index, (a, b) in enumerate(zip(chunks, before, strict=True)) if a != b]
    assert differing == [place["chunk"]]
    old, new = Score.from_midi(content), Score.from_midi(written)
    assert [onsets(old.tracks[i]) for i in (0, 2)] == [onsets(new.tracks[i]) for i in (0, 2)]
    low, high = place["tick"] + 3 * 1920 - 60, place["tick"] + 7 * 1920 - 60
    outside = [note for note in onsets(old.tracks[1]) if not low <= note[0] < high]
    assert [note for note in onsets(new.tracks[1]) if not low <= note[0] < high] == outside
    inside = [note for note in onsets(new.tracks[1]) if low <= note[0] < high]
    assert [pitch for _, pitch in inside] == changed["pitch"]
    assert all(
        abs(ticks - (low + 60) - 120 * start) <= 1 for (ticks, _), start in zip(inside, changed["start"], strict=True)
    )
    assert [tempo.qpm for tempo in new.tempos] == pytest.approx([tempo.qpm for tempo in old.tempos])


def test_other_events_keep_their_order_at_one_time():
    """A note may end in the tick in which it begins, and a sound changes before the note that is to have it."""
    content, melody = song()
    place = find_place(content, melody)
    assert place is not None
    chunks, tracks, _ = read_tracks(content)
    at = place["tick"] + 480
    own = bytes([0xC0 | place["channel"], 41])
    added = [Event(at, bytes([0x9E, 36, 100])), Event(at, bytes([0x8E, 36, 0])), Event(at, own)]
    events = sorted([*tracks[place["chunk"]], *added], key=lambda event: event.ticks)
    chunks[place["chunk"]] = (b"MTrk", write_events(events))
    content = b"".join(kind + struct.pack(">I", len(data)) + data for kind, data in chunks)
    place = find_place(content, melody)
    assert place is not None
    written = put_back(content, check_melody({**melody, "place": place}))
    after = read_tracks(written)[1][place["chunk"]]
    assert [event for event in after if event in added] == added
    begins = [index for index, event in enumerate(after) if event.ticks == at and event.is_note_on]
    assert after.index(added[2]) < begins[-1]
    ends = [index for index, event in enumerate(after) if event.ticks == at and event.is_note_off]
    assert ends[0] < after.index(added[0])


def test_a_melody_goes_back_as_it_was():
    content, melody = song()
    whole = check_melody({**melody, "place": find_place(content, melody)})
    again = Score.from_midi(put_back(content, whole))
    assert onsets(again.tracks[1]) == onsets(Score.from_midi(content).tracks[1])


def test_events_are_read_and_written_with_running_status_and_without():
    running = b"\x00\x90\x3c\x40\x60\x3c\x00\x00\xff\x03\x01A\x81\x00\xf0\x02\x01\xf7\x00\xc1\x05\x00\xff\x2f\x00"
    events = read_events(running)
    assert [event.ticks for event in events] == [0, 96, 96, 224, 224, 224]
    assert [event.data[0] for event in events] == [0x90, 0x90, 0xFF, 0xF0, 0xC1, 0xFF]
    assert read_events(write_events(events)) == events


def test_what_does_not_belong_is_refused():
    content, melody = song()
    place = find_place(content, melody)
    with pytest.raises(RefusedError, match="comes from no MIDI file"):
        put_back(content, melody)
    with pytest.raises(RefusedError, match="not the file"):
        put_back(content[:-1] + b"\x01", {**melody, "place": place})
    for wrong in ({**place, "file": "x"}, {**place, "channel": 16}, {**place, "tick": -1}, "here", {"file": "a" * 32}):
        with pytest.raises(RefusedError):
            check_melody({**melody, "place": wrong})
    other = {**melody, "pitch": [21 + index % 3 for index in range(len(melody["pitch"]))]}
    assert find_place(content, other) is None
    assert find_place(b"MThd" + struct.pack(">IHHH", 6, 0, 1, 480) + b"MTrk\0\0\0\2\x80\x80", melody) is None
    with pytest.raises((ValueError, IndexError)):
        read_tracks(b"MThd" + struct.pack(">IHHH", 6, 0, 1, 0x8000 | 480))


def test_a_track_that_ends_anywhere_and_a_header_without_ticks_have_no_place():
    content, melody = song()
    (_, header), *_, (_, track) = split_chunks(content)[:3]
    head, whole = b"MThd" + struct.pack(">I", 6) + header, len(read_events(track))
    assert find_place(head + b"MTrk" + struct.pack(">I", len(track)) + track, melody) is not None
    unlike = 0
    for size in range(len(track)):
        cut = head + b"MTrk" + struct.pack(">I", size) + track[:size]
        place = find_place(cut, melody)
        try:
            assert len(read_events(track[:size])) < whole
        except (ValueError, IndexError):
            unlike += 1
            assert place is None
    assert unlike > len(track) / 2
    without_ticks = b"MThd" + struct.pack(">IHHH", 6, 0, 1, 0) + b"MTrk" + struct.pack(">I", len(track)) + track
    assert find_place(without_ticks, melody) is None


def test_uploads_are_given_their_place_and_changes_keep_it(tmp_path):
    from actions import Actions

    from tests.builders.space_server import save_model
    from tests.space.test_space import InProcess

    content, _ = song()
    actions = Actions(InProcess(save_model(tmp_path / "model")), tmp_path / "votes")
    found = actions.read_midi(base64.b64encode(content).decode())
    tune = next(track["melody"] for track in found["tracks"] if track["name"] == "Tune")
    assert tune["place"]["tick"] == 2 * 1920
    (filled,) = actions.fill(cut_bars(tune, 2, 6), [2], count=1)
    assert filled["place"]["tick"] == 4 * 1920
    file = actions.put_back(filled, base64.b64encode(content).decode())
    again = Score.from_midi(base64.b64decode(file["base64"]))
    kept = [note for note in onsets(again.tracks[1]) if not 5 * 1920 <= note[0] < 6 * 1920]
    assert kept == [note for note in onsets(Score.from_midi(content).tracks[1]) if not 5 * 1920 <= note[0] < 6 * 1920]
