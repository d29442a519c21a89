"""What anybody hands in: voices of several channels, pedals, keys and programs of other tracks, archives, limits."""

import base64
import bz2
import contextlib
import gzip
import io
import lzma
import zipfile
from pathlib import Path

import pytest

from modeling.tune_finding_melody_vae import find_melody, find_tunes
from tests.builders.clock import processor_seconds
from tests.builders.lines import LINE, processor_for

PITCHES = [60, 64, 67, 62, 65, 59, 61, 72] * 4
END = b"\0\xff\x2f\0"


def number(value: int) -> bytes:
    return bytes([value >> shift & 0x7F | 0x80 for shift in (21, 14, 7) if value >> shift]) + bytes([value & 0x7F])


def track(*events: tuple[int, bytes]) -> bytes:
    """Write (tick, event) pairs as a chunk."""
    body, now = b"", 0
    for tick, event in sorted(events, key=lambda pair: pair[0]):
        body, now = body + number(tick - now) + event, tick
    return b"MTrk" + (len(body) + 4).to_bytes(4, "big") + body + END


def midi_file(*tracks: bytes) -> bytes:
    return b"MThd\0\0\0\6\0\1" + len(tracks).to_bytes(2, "big") + (96).to_bytes(2, "big") + b"".join(tracks)


def notes(channels: list[int], start: int = 0, length: int = 96, pitches: list[int] = PITCHES) -> list:
    """Write one note after the other, each on the next of some channels."""
    events = []
    for place, pitch in enumerate(pitches):
        begin, channel = start + 96 * place, channels[place % len(channels)]
        events += [(begin, bytes([0x90 | channel, pitch, 90])), (begin + length, bytes([0x80 | channel, pitch, 0]))]
    return events


@pytest.mark.parametrize("channels", [[0, 1], [1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 0, 3]])
def test_one_voice_on_several_channels_is_one_line(channels):
    (line,) = find_tunes(midi_file(track(*notes(channels))))
    assert line["pitch"] == PITCHES


def test_a_change_of_program_tears_no_voice_apart():
    changes = [(0, b"\xc0\x49"), (96 * 10, b"\xc0\x41")]
    (line,) = find_tunes(midi_file(track(*changes, *notes([0]))))
    assert (line["pitch"], line["program"]) == (PITCHES, 0x41)


def test_what_sounds_together_or_shares_nothing_stays_apart():
    below = [pitch - 12 for pitch in PITCHES]
    assert len(find_tunes(midi_file(track(*notes([0]), *notes([1], pitches=below))))) == 2
    other = [(0, b"\xc1\x20"), *notes([1], start=96 * len(PITCHES))]
    assert len(find_tunes(midi_file(track(*notes([0]), *other)))) == 2


def test_the_pedal_holds_notes_up_to_the_next():
    pedal = [(0, b"\xb0\x40\x7f"), (96 * 40, b"\xb0\x40\0")]
    held = find_melody(midi_file(track(*pedal, *notes([0], length=24))))
    assert held["duration"][:-1] == [4] * (len(PITCHES) - 1)
    assert find_melody(midi_file(track(*notes([0], length=24))))["duration"] == [1] * len(PITCHES)


@pytest.mark.parametrize(("sharps", "minor", "key"), [(1, 0, "G major"), (0, 1, "A minor"), (-1, 0, "F major")])
def test_a_key_signature_that_the_notes_are_in_is_the_key(sharps, minor, key):
    signature = (0, b"\xff\x59\2" + bytes([sharps & 0xFF, minor]))
    common = [60, 62, 64, 67, 69, 67, 64, 62]  # in all of these keys
    assert find_melody(midi_file(track(signature, *notes([0], pitches=common))))["key"] == key
    strange = [61, 63, 66, 68, 70] * 3
    assert find_melody(midi_file(track(signature, *notes([0], pitches=strange))))["key"] != key


def test_a_program_that_another_track_sets_is_heeded():
    assert find_melody(midi_file(track((0, b"\xc3\x49")), track(*notes([3]))))["program"] == 0x49
    own = track((0, b"\xc3\x30"), *notes([3]))
    assert find_melody(midi_file(track((0, b"\xc3\x49")), own))["program"] == 0x30


def test_names_in_other_encodings_are_read():
    name = "Mélodie".encode("latin-1")
    line = find_melody(midi_file(track((0, b"\xff\3" + number(len(name)) + name), *notes([0]))))
    assert line["track_name"] == "Mélodie"


def test_drums_on_another_channel_are_no_tune():
    beat = notes([2], pitches=[36, 42, 38, 42] * 40)
    (line,) = find_tunes(midi_file(track(*beat), track(*notes([0]))))
    assert line["pitch"] == PITCHES
    with pytest.raises(ValueError, match="no notes outside the drums"):
        find_tunes(midi_file(track(*beat)))


def test_the_description_says_what_was_put_right():
    said = processor_for(4).describe(midi_file(track((0, b"\xb0\x07\xc8"), *notes([0]))))
    assert said.endswith("put right in the file: 1 event with data bytes above 127")


GOOD = midi_file(track(*notes([0])))


def test_every_way_of_handing_in_gives_the_same(tmp_path):
    processor = processor_for(4)
    path = tmp_path / "tune.kar"
    path.write_bytes(GOOD)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.mid", GOOD)
        file.writestr("b.mid", GOOD)
    expected = processor(midi=GOOD)["input_ids"]
    ways = [path, str(path), bytearray(GOOD), memoryview(GOOD), io.BytesIO(GOOD), iter([GOOD])]
    assert [processor(midi=way)["input_ids"] for way in ways] == [expected] * len(ways)
    assert processor(midi=archive.getvalue())["input_ids"] == expected * 2
    with path.open("rb") as file:
        assert processor(midi=file)["input_ids"] == expected
    with pytest.raises(ValueError, match="2 MIDI files"):
        processor.tunes(archive.getvalue())


@pytest.mark.parametrize(
    ("content", "what"),
    [(gzip.compress(GOOD), "gzip archive"), (bz2.compress(GOOD), "bzip2 archive"), (lzma.compress(GOOD), "xz archive"),
     (base64.b64encode(GOOD), "base64"), (b"data:audio/midi;base64," + base64.b64encode(GOOD), "base64"),
     (b"SMF2CLIP" + bytes(64), "MIDI 2.0"), (b"FORM\0\0\0\x0eXDIRINFO" + bytes(60), "XMIDI"), (b"XMF_1.00", "XMF"),
     (b"X:1\nT:Tune\nK:C\nCDEF|", "ABC"), (b"%PDF-1.7", "document")],
)  # fmt: skip
def test_a_file_of_another_kind_is_called_what_it_is(content, what):
    with pytest.raises(ValueError, match=f"not a MIDI file.*{what}"):
        processor_for(4)(midi=content)


def test_names_of_strangers_stay_within_the_sentence():
    name = b"\x1b[2J\nerror: \xe2\x80\xaeall is lost" + b"!" * 90
    said = processor_for(4).describe(midi_file(track((0, b"\xff\3" + number(len(name)) + name), *notes([0]))))
    assert said.isprintable()
    assert "[2J error:" in said
    assert len(said) < 400


@pytest.mark.parametrize(
    ("midi", "reason"),
    [(7, "a int is no MIDI"), ({}, "lines= takes"), ([], "is empty"), ([None], "is no MIDI"),
     (io.StringIO("x"), "'rb'"), (Path("/"), "cannot be read")],
)  # fmt: skip
def test_what_is_no_midi_is_refused_in_words(midi, reason):
    with pytest.raises(ValueError, match=reason):
        processor_for(4)(midi=midi)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"pitch": [300] * 6}, "pitches from 300"), ({"bars": 1}, "after its 1 bars"),
     ({"start": [0] * 6}, "not in order"),
     ({"pitch": [60]}, "1 pitches, 6 starts"), ({"time_signature": "four"}, "is not such as"),
     ({"bars": 2.5}, "whole")],
)  # fmt: skip
def test_lines_that_are_none_are_refused(change, reason):
    with pytest.raises(ValueError, match=rf"melody 0.*{reason}"):
        processor_for(4)(lines={**LINE, **change})


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [({"program": 128}, "program=128"), ({"program": -1}, "program=-1"), ({"tempo": 3}, "tempo=3"),
     ({"tempo": float("nan")}, "tempo=nan")],
)  # fmt: skip
def test_what_midi_cannot_hold_is_not_written(kwargs, reason):
    processor = processor_for(4)
    with pytest.raises(ValueError, match=reason):
        processor.to_midi_bytes(processor(lines=LINE)["input_ids"], **kwargs)


def hostile(kind: str, size: int) -> bytes:
    if kind == "meters":  # changes of the time signature, closer together than the grid
        return midi_file(track(*[(t, b"\xff\x58\4" + bytes([1 + t % 7, 5, 24, 8])) for t in range(size)], *notes([0])))
    if kind == "one step":
        return midi_file(track(*[(0, bytes([0x90, 40 + t % 60, 90])) for t in range(size)], *notes([0])))
    return midi_file(*[track((0, b"\x90\x3c\x50"), (9, b"\x80\x3c\0"))] * size)


@pytest.mark.parametrize("kind", ["meters", "one step", "tracks"])
def test_costs_are_linear_or_refused(kind):
    def seconds(size: int) -> float:
        data = hostile(kind, size)

        def read() -> None:
            with contextlib.suppress(ValueError):  # the limits are a test of their own
                find_tunes(data)

        return processor_seconds(read)

    assert seconds(16_000) < 24 * seconds(2_000) + 0.2


def test_more_than_a_file_may_have_is_refused():
    with pytest.raises(ValueError, match="5000 tracks; give 4096 at most, leave some out and export it again"):
        find_tunes(hostile("tracks", 5000))
    with pytest.raises(ValueError, match="300 tracks with notes; give 256 at most"):
        find_tunes(hostile("tracks", 300))
