"""Files that players take are read: each damage by itself, then random damage, in time linear in the file."""

import io
import random
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symusic import Score

from modeling import midi_repair_melody_vae as midi_repair
from modeling.midi_repair_melody_vae import repair_midi, unpack_zip
from tests.builders.clock import processor_seconds

PITCHES = [60, 64, 67, 62, 65, 59, 61, 72, 70, 69, 57]
END = b"\0\xff\x2f\0"


def number(value: int) -> bytes:
    """Write a number of variable length."""
    return bytes([value >> shift & 0x7F | 0x80 for shift in (21, 14, 7) if value >> shift]) + bytes([value & 0x7F])


def chunk(tag: bytes, body: bytes) -> bytes:
    return tag + len(body).to_bytes(4, "big") + body


def melody(channel: int = 0, pitches: list[int] = PITCHES, length: int = 96) -> bytes:
    """Write a track's events: note after note, each with its own status."""
    return b"".join(
        bytes([0, 0x90 | channel, pitch, 90]) + number(length) + bytes([0x80 | channel, pitch, 0]) for pitch in pitches
    )


def midi_file(*bodies: bytes, kind: int = 1, declared: int | None = None, division: int = 96) -> bytes:
    numbers = (kind, len(bodies) if declared is None else declared, division)
    header = chunk(b"MThd", b"".join(value.to_bytes(2, "big") for value in numbers))
    return header + b"".join(chunk(b"MTrk", body) for body in bodies)


GOOD = midi_file(melody() + END, melody(1) + END)
TRACK = melody() + END


def notes_of(data: bytes) -> list[tuple[int, int, int]]:
    """Read all notes with symusic: start, duration, pitch."""
    return [(note.start, note.duration, note.pitch) for track in Score.from_midi(data).tracks for note in track.notes]


TUNE = [(96 * place, 96, pitch) for place, pitch in enumerate(PITCHES)]


def test_a_file_in_order_is_left_alone():
    assert repair_midi(GOOD)[0] is GOOD
    assert repair_midi(GOOD, has_open_notes=True) == (GOOD, [])


def riff(kind: bytes, content: bytes) -> bytes:
    inner = kind + b"INFO" + (2).to_bytes(4, "little") + b"ab" + b"data" + len(content).to_bytes(4, "little") + content
    return b"RIFF" + len(inner).to_bytes(4, "little") + inner


LONG_HEADER = b"MThd" + (9).to_bytes(4, "big") + GOOD[8:14] + b"abc" + GOOD[14:]
SHORT_TRACK = midi_file(TRACK)
SWALLOWING = GOOD[:18] + (len(GOOD) - 30).to_bytes(4, "big") + GOOD[22:]  # the first track claims most of the second


@pytest.mark.parametrize(
    ("data", "tracks", "phrase"),
    [
        (riff(b"RMID", GOOD), 2, "RIFF container"),
        (bytes(range(128)) + GOOD, 2, "128 bytes before the header"),
        (LONG_HEADER, 2, "header of 9 bytes"),
        (midi_file(TRACK, declared=7), 1, "counts 7 tracks where 1 are"),
        (midi_file(TRACK, TRACK, TRACK, declared=1), 3, "counts 1 tracks where 3 are"),
        (midi_file(TRACK, TRACK, kind=0), 2, "format 0 before 2 tracks"),
        (midi_file(TRACK, kind=9), 1, "format 9"),
        (midi_file(TRACK) + chunk(b"XFIH", b"anything") + chunk(b"MTrk", TRACK), 2, "1 chunk of an unknown kind"),
        (midi_file(TRACK) + b"\0\1\2\3junk!" + chunk(b"MTrk", TRACK), 2, "9 bytes between the tracks"),
        (SWALLOWING, 2, "1 track of another length"),
        (midi_file(melody()), 1, "1 track without an end"),
        (midi_file(b"\0\xb0\x07\xc8" + TRACK), 1, "1 event with data bytes above 127"),
        (midi_file(b"\0\x90\xbc\x50" + TRACK), 1, "1 event with data bytes above 127"),
        (midi_file(b"\0\xf8" + b"\0\xf2\1\2" + TRACK), 1, "2 events without a meaning"),
        (midi_file(b"\0\xff\x51\3\0\0\0" + TRACK), 1, "1 event without a meaning"),
        (midi_file(b"\0\xff\x58\4\0\2\x18\x08" + TRACK), 1, "1 event without a meaning"),
        (midi_file(b"\0\xff\x51\x80\3\7\xa1\x20" + TRACK), 1, "1 event in an unusual spelling"),
        (midi_file(TRACK, division=0), 1, "0 ticks per quarter note"),
    ],
)
def test_what_players_read_is_read(data, tracks, phrase):
    repaired, repairs = repair_midi(data)
    assert notes_of(repaired) == TUNE * tracks
    assert any(phrase in line for line in repairs), repairs
    assert repair_midi(repaired, has_open_notes=True) == (repaired, [])
    assert Score.from_midi(repaired).ticks_per_quarter in (96, midi_repair.DEFAULT_TICKS_PER_QUARTER)


@pytest.mark.parametrize("end", [1, 5, 50])
def test_a_file_cut_short_is_read_up_to_there(end):
    repaired, repairs = repair_midi(SHORT_TRACK[:-end])
    found = notes_of(repaired)
    assert found[:-1] == TUNE[: len(found) - 1]
    assert found[-1][::2] == TUNE[len(found) - 1][::2]  # the last may have lost its end
    assert len(found) >= len(TUNE) - 1 - end // 8
    assert "an end that is cut off" in repairs


def test_running_status_goes_on_through_meta_and_exclusive_events():
    between = [b"\0\xff\1\2hi", b"\0\xf0\3\x41\x10\xf7"]
    for event in between:
        body = b"\0\x90\x3c\x50" + event + b"\x60\x3c\0" + b"\0\x3e\x50" + event + b"\x60\x3e\0" + END
        repaired, _ = repair_midi(midi_file(body))
        assert notes_of(repaired) == [(0, 96, 60), (96, 96, 62)]


@pytest.mark.parametrize("escaped", [b"", b"\x43", b"\x90\x40\x40", b"\x01\x02\x03\x04\xf7", bytes(200)])
def test_escaped_bytes_are_no_events(escaped):
    """Packets of a divided exclusive event, and bytes that a file hands on: symusic takes them for events."""
    length = bytes([len(escaped)]) if len(escaped) < 128 else bytes([0x80 | len(escaped) >> 7, len(escaped) & 0x7F])
    packets = b"\0\xf0\3\x43\x12\0" + b"\x05\xf7" + length + escaped
    body = packets + b"\x13\x90\x3c\x50" + b"\x60\x80\x3c\0" + packets + b"\0\x90\x3e\x50" + b"\x60\x80\x3e\0" + END
    repaired, repairs = repair_midi(midi_file(body))
    assert notes_of(repaired) == [(24, 96, 60), (125, 96, 62)]
    assert repairs == ["2 events of escaped bytes"]


def test_notes_without_an_end_last_to_the_next_of_their_pitch_or_to_the_end():
    body = b"\0\x90\x3c\x50" + b"\x60\x90\x3c\x50" + b"\x60\x80\x3c\0" + b"\0\x90\x40\x50" + b"\x83\0\xff\1\0" + END
    data = midi_file(body)
    assert len(notes_of(data)) == 1, "symusic ends them, so nothing is tested"
    repaired, repairs = repair_midi(data, has_open_notes=True)
    assert notes_of(repaired) == [(0, 96, 60), (96, 96, 60), (192, 384, 64)]
    assert repairs == ["2 notes without an end"]
    at_the_end = midi_file(TRACK[:-4] + b"\0\x90\x40\x50" + END)
    repaired, repairs = repair_midi(at_the_end, has_open_notes=True)
    assert notes_of(repaired) == [*TUNE, (96 * len(TUNE), 96, 64)]
    assert repairs == ["1 note without an end"]


def test_drums_need_no_end():
    data = midi_file(b"\0\x99\x24\x50" + TRACK)
    assert repair_midi(data, has_open_notes=True) == (data, [])


@pytest.mark.parametrize(("frames", "per_second"), [(24, 24), (25, 25), (29, 30_000 / 1001), (30, 30)])
@pytest.mark.parametrize("mspq", [500_000, 600_000])
def test_frames_become_quarter_notes_of_the_first_tempo(frames, per_second, mspq):
    tempos = b"\0\xff\x51\3" + mspq.to_bytes(3, "big"), b"\0\xff\x51\3" + (250_000).to_bytes(3, "big")
    repaired, repairs = repair_midi(
        midi_file(tempos[0] + melody() + tempos[1] + END, division=(256 - frames) << 8 | 40)
    )
    score = Score.from_midi(repaired)
    assert notes_of(repaired) == TUNE
    assert [tempo.mspq for tempo in score.tempos] == [mspq]
    seconds = 96 / score.ticks_per_quarter * mspq / 1e6
    assert seconds == pytest.approx(96 / (40 * per_second), rel=2e-3)
    assert any("frames per second" in line for line in repairs)
    with pytest.raises(ValueError, match="frames per second"):
        repair_midi(midi_file(TRACK, division=(256 - 25) << 8))


def test_sequences_follow_each_other():
    repaired, repairs = repair_midi(midi_file(TRACK, TRACK, kind=2))
    bar, end = 4 * 96, 96 * len(PITCHES)
    start = -(-end // bar) * bar
    assert notes_of(repaired) == TUNE + [(start + onset, length, pitch) for onset, length, pitch in TUNE]
    assert "2 sequences, put one after the other" in repairs


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"MThd\0\0", "ends within its header"),
        (b"  <!DOCTYPE html><html>", "a page or a document"),
        (riff(b"WAVE", bytes(60)), "a RIFF file without MIDI"),
        (b"PK\3\4" + bytes(40), "a ZIP archive; unpack it"),
        (b"Rar!\x1a\7" + GOOD, "a RAR archive; unpack it"),
        (b"ID3\4" + bytes(99), "recorded sound"),
        (bytes(99), "not a MIDI file, or a broken one; export it again"),
        (GOOD[:14], "a header and no track"),
    ],
)
def test_what_is_no_midi_file_is_named(data, reason):
    with pytest.raises(ValueError, match=reason):
        repair_midi(data)


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_damage_never_breaks_the_repair(data):
    generator = data.draw(st.randoms(use_true_random=False))
    content = bytearray(GOOD)
    for _ in range(generator.randint(1, 6)):
        place = generator.randrange(len(content))
        how = generator.randrange(3)
        if how == 0:
            content[place] = generator.choice([generator.randrange(256), 0xF0, 0xF7, 0xFF])
        elif how == 1:
            del content[place : place + generator.randint(1, 9)]
        else:
            content[place:place] = generator.randbytes(generator.randint(1, 9))
    try:
        repaired, repairs = repair_midi(bytes(content), has_open_notes=True)
    except ValueError:
        return
    Score.from_midi(repaired)
    assert bool(repairs) == (repaired is not content and repaired != bytes(content))
    assert repair_midi(repaired, has_open_notes=True) == (repaired, [])


def growing(kind: str, size: int) -> bytes:
    """Write a hostile file of about `size` times 16 bytes."""
    if kind == "tracks":
        return GOOD[:10] + size.to_bytes(2, "big") + GOOD[12:14] + chunk(b"MTrk", b"\0\x90\x3c\x50") * size
    if kind == "garbage":
        return midi_file(TRACK) + (b"MTr\0" * 4) * size + chunk(b"MTrk", TRACK)
    if kind == "headers":
        return b"MThd\1\0\0\0........" * size + GOOD
    if kind == "open":
        return midi_file(b"\0\x90\x3c\x50" * (4 * size) + END)
    return midi_file(b"\x80" * (16 * size) + END)  # one endless number


@pytest.mark.parametrize("kind", ["tracks", "garbage", "headers", "open", "number"])
def test_costs_grow_with_the_file_and_not_faster(kind):
    def seconds(size: int) -> float:
        data = growing(kind, size)
        return processor_seconds(lambda: repair_midi(data, has_open_notes=True))

    assert seconds(4000) < 24 * seconds(500) + 0.02  # eight times the file; quadratic would be 64 times


def test_midi_files_are_taken_out_of_an_archive():
    names = {"a/tune.mid": GOOD, "readme.txt": b"hello", "SONG.KAR": SHORT_TRACK, "__MACOSX/tune.mid": b"x"}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    assert unpack_zip(file.getvalue()) == [("a/tune.mid", GOOD), ("SONG.KAR", SHORT_TRACK)]
    damaged = bytearray(file.getvalue())
    damaged[50:60] = bytes(10)
    for content in (bytes(damaged), file.getvalue()[:80], b"PK\3\4"):
        with pytest.raises(ValueError, match="cannot be unpacked"):
            unpack_zip(content)


def test_an_archive_that_grows_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(midi_repair, "MAX_ZIP_FILE_BYTES", 4096)
    monkeypatch.setattr(midi_repair, "MAX_ZIP_BYTES", 3 * 4096)
    for sizes, is_refused in (([4096] * 3, False), ([4097], True), ([4096] * 4, True)):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for index, size in enumerate(sizes):
                archive.writestr(f"{index}.mid", bytes(size))
        if is_refused:
            with pytest.raises(ValueError, match="too much in it"):
                unpack_zip(file.getvalue())
        else:
            assert len(unpack_zip(file.getvalue())) == len(sizes)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", b"")
    with pytest.raises(ValueError, match="without MIDI files"):
        unpack_zip(file.getvalue())


def test_random_bytes_are_refused_in_words():
    generator = random.Random(5)
    for _ in range(50):
        with pytest.raises(ValueError, match="not a MIDI file"):
            repair_midi(generator.randbytes(99))
