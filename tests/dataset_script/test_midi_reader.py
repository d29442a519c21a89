"""read_events against symusic, which is the authority, and against streams whose reading is written out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symusic.core import ScoreTick

from dataset_script.midi_reader import MAX_PARTS, STABLE_SORT_EVENTS, read_events
from dataset_script.midi_repair import repair_midi

END = b"\x00\xff\x2f\x00"


def chunk(body, tag=b"MTrk"):
    return tag + len(body).to_bytes(4, "big") + body


def midi(*tracks, kind=1, count=None, division=96):
    fields = (kind, len(tracks) if count is None else count, division)
    return b"MThd\0\0\0\6" + b"".join(field.to_bytes(2, "big") for field in fields) + b"".join(map(chunk, tracks))


def meta(kind, payload, delta=0):
    return bytes([delta, 0xFF, kind, len(payload)]) + payload


def in_symusics_words(data):
    """What read_events should give, by way of symusic; notes of a track are sorted, as their order does not matter."""
    score = ScoreTick.from_midi(data)
    pitched = [(index, part) for index, part in enumerate(score.tracks) if not part.is_drum and len(part.notes)]
    drums = sum(part.is_drum for part in score.tracks)
    silent = len(score.tracks) - drums - len(pitched)
    return {
        "ticks_per_quarter": score.ticks_per_quarter,
        "tracks": [
            (index, part.program, part.name, sorted((note.time, note.duration, note.pitch) for note in part.notes))
            for index, part in pitched
        ],
        "dropped": {reason: count for reason, count in (("drums", drums), ("no notes", silent)) if count},
        "tempos": [(tempo.time, tempo.mspq) for tempo in score.tempos],
        "signatures": [(event.time, event.numerator, event.denominator) for event in score.time_signatures],
    }


def in_the_same_words(events):
    assert events is not None
    assert (events.time.dtype, events.duration.dtype, events.pitch.dtype) == (np.int32, np.int32, np.uint8)
    notes = list(zip(events.time.tolist(), events.duration.tolist(), events.pitch.tolist(), strict=True))
    stops = np.cumsum(events.track_notes).tolist()
    assert len(notes) == (stops or [0])[-1]
    return {
        "ticks_per_quarter": events.ticks_per_quarter,
        "tracks": [
            (index, program, name, sorted(notes[stop - count : stop]))
            for index, program, name, stop, count in zip(
                events.track, events.program, events.names, stops, events.track_notes.tolist(), strict=True
            )
        ],
        "dropped": events.dropped,
        "tempos": list(zip(events.tempo_ticks.tolist(), events.mspq.tolist(), strict=True)),
        "signatures": list(
            zip(events.signature_ticks.tolist(), events.numerators.tolist(), events.denominators.tolist(), strict=True)
        ),
    }


def read_as_symusic_does(data):
    words = in_the_same_words(read_events(data))
    assert words == in_symusics_words(data)
    return words


def agrees_or_declines(data):
    """Whether read_events takes the file; if so, exactly as symusic does."""
    events = read_events(data)
    if events is not None:
        assert in_the_same_words(events) == in_symusics_words(data)
    return events is not None


def notes_of(*tracks, **header):
    return [notes for _, _, _, notes in read_as_symusic_does(midi(*tracks, **header))["tracks"]]


def test_running_status_and_velocity_zero_as_note_off():
    assert notes_of(b"\x00\x90\x3c\x40\x0a\x3c\x00\x0a\x3e\x40\x0a\x3e\x00" + END) == [[(0, 10, 60), (20, 10, 62)]]


def test_meta_events_leave_the_running_status_alone():
    assert notes_of(b"\x00\x90\x3c\x40" + meta(1, b"text", delta=5) + b"\x05\x3c\x00" + END) == [[(0, 10, 60)]]


def test_deltas_of_several_bytes():
    assert notes_of(b"\x81\x00\x90\x3c\x40\x81\x80\x80\x00\x80\x3c\x40" + END) == [[(128, 1 << 21, 60)]]


def test_notes_of_one_pitch_end_in_the_order_in_which_they_began():
    overlapping = b"\x00\x90\x3c\x40\x0a\x3c\x41\x0a\x3c\x42\x0a\x3c\x00\x0a\x3c\x00\x14\x3c\x00"
    assert notes_of(overlapping + END) == [[(0, 30, 60), (10, 30, 60), (20, 40, 60)]]


def test_a_note_without_length_stays():
    assert notes_of(b"\x05\x90\x3c\x40\x00\x3c\x00" + END) == [[(5, 0, 60)]]


def test_missing_and_surplus_note_offs():
    surplus = b"\x00\x80\x3c\x00\x00\x90\x3c\x40\x0a\x80\x3c\x00\x0a\x3c\x00"
    assert notes_of(surplus + b"\x00\x90\x40\x40" + END) == [[(0, 10, 60)]]


def test_a_part_whose_notes_never_end_has_no_notes_but_counts():
    silent, sounding = b"\x00\x90\x3c\x40" + END, b"\x00\x91\x3c\x40\x0a\x3c\x00" + END
    words = read_as_symusic_does(midi(silent, sounding))
    assert words["dropped"] == {"no notes": 1}
    assert [index for index, *_ in words["tracks"]] == [1]


def test_a_track_ends_without_an_end_of_track_and_nothing_counts_after_one():
    note = b"\x00\x90\x3c\x40\x0a\x3c\x00"
    assert notes_of(note) == notes_of(note + END + note) == [[(0, 10, 60)]]


def test_parts_are_ordered_by_channel_and_program_within_a_track():
    body = b"\x00\xc2\x07\x00\x92\x3c\x40\x00\xc2\x05\x00\x92\x3e\x40\x00\x99\x24\x40\x00\x90\x40\x40"
    body += b"\x0a\x82\x3c\x00\x00\x3e\x00\x00\x80\x40\x00" + END  # both ends come after the change of program
    words = read_as_symusic_does(midi(body, b"\x00\x91\x3c\x40\x0a\x3c\x00" + END, kind=0, count=2))
    assert [(index, program) for index, program, *_ in words["tracks"]] == [(0, 0), (1, 5), (2, 7), (4, 0)]
    assert words["dropped"] == {"drums": 1}


def test_a_return_to_a_program_goes_on_with_its_part():
    body = b"".join(
        b"\x00\xc0%c\x00\x90%c\x40\x05%c\x00" % (program, 60 + place, 60 + place)
        for place, program in enumerate([1, 2, 1])
    )
    assert [len(notes) for notes in notes_of(body + END)] == [2, 1]


def test_one_pitch_across_a_change_of_program():
    body = b"\x00\x90\x3c\x40\x01\xc0\x05\x01\x90\x3c\x40\x03\x3c\x00\x05\x3c\x00"
    assert notes_of(body + END) == [[(0, 5, 60)], [(2, 8, 60)]]


@pytest.mark.parametrize(
    "before", [b"", b"\x00\xbf\x07\x40", b"\x00\xef\x00\x40", b"\x00\xcf\x03", b"\x00\xaf\x3c\x40"]
)
@pytest.mark.parametrize("after", [b"", b"\x00\xbf\x07\x40", b"\x00\xcf\x03\x00\xbf\x07\x40"])
@pytest.mark.parametrize("text", [b"", b"la"])
def test_lyrics_can_make_a_part(before, after, text):
    note = b"\x00\x90\x3c\x40\x0a\x3c\x00" + END
    read_as_symusic_does(midi(before + meta(5, text) + after + END, note))


def test_controls_alone_make_no_part():
    words = read_as_symusic_does(midi(b"\x00\xb0\x07\x40\x00\xe1\x00\x40" + END, b"\x00\x90\x3c\x40\x0a\x3c\x00" + END))
    assert [index for index, *_ in words["tracks"]] == [0]
    assert words["dropped"] == {}


def test_system_exclusive_messages_are_passed_over():
    exclusive = b"\x05\xf0\x03\x41\x10\xf7"
    assert notes_of(exclusive + b"\x00\x90\x3c\x40\x0a\x80\x3c\x00" + END) == [[(5, 10, 60)]]
    assert read_events(midi(b"\x00\x90\x3c\x40" + exclusive + b"\x0a\x3c\x00" + END)) is None  # running status after it


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (b"Piano", "Piano"),
        ("Flöte 笛".encode(), "Flöte 笛"),
        ("Flöte".encode("latin-1"), "Fl\ufffdte"),
        ("ピアノ".encode("shift-jis"), None),
        ("Gitarre électrique é".encode("latin-1"), None),
        (b"\xe3\x81", "\ufffd"),
        (b"\xf0\x80\x80", "\ufffd"),  # Python's own replacement puts three marks here
        (b"\xe3A\x80\x81B", None),
        (b"\xed\xa0\x80\xc0\xaf\xf8\x88\xff\xf5\x80\x80\x80\x80", None),
        (b"nul\0in it ", "nul\0in it "),
    ],
)
def test_names(name, read):
    words = read_as_symusic_does(midi(meta(3, b"first") + meta(3, name) + b"\x00\x90\x3c\x40\x0a\x3c\x00" + END))
    assert read in (None, words["tracks"][0][2])


@given(st.binary(max_size=12))
def test_names_of_any_bytes(name):
    read_as_symusic_does(midi(meta(3, name) + b"\x00\x90\x3c\x40\x0a\x3c\x00" + END))


def test_tempos_and_time_signatures_are_ordered_across_tracks():
    late = meta(0x51, b"\x07\xa1\x20", delta=90) + meta(0x58, b"\x03\x02\x18\x08") + END
    early = meta(0x51, b"\x06\x00\x00", delta=9) + meta(0x58, b"\x06\x03") + meta(0x51, b"\x05\x00\x00", delta=81) + END
    words = read_as_symusic_does(midi(late, early))
    assert words["tempos"] == [(9, 0x60000), (90, 500_000), (90, 0x50000)]
    assert words["signatures"] == [(9, 6, 8), (90, 3, 4)]


def test_many_events_at_one_tick_are_left_to_symusic():
    tempos = [meta(0x51, bytes([7, place, 0])) for place in range(STABLE_SORT_EVENTS)]
    read_as_symusic_does(midi(b"".join(tempos[1:]) + END))
    assert read_events(midi(b"".join(tempos) + END)) is None
    read_as_symusic_does(midi(tempos[0] * 100 + END))


TRACK = b"\x00\x90\x3c\x40\x0a\x3c\x00" + END


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MThd",
        b"RIFF" + midi(TRACK)[4:],
        midi(TRACK, kind=3),
        midi(TRACK, division=0),
        midi(TRACK, division=0xE728),  # SMPTE
        midi(TRACK).replace(b"MThd\0\0\0\6", b"MThd\0\0\0\7"),
        midi(TRACK)[:-1],
        midi(TRACK, count=2) + b"MTrk",
        midi(TRACK, count=2) + chunk(b"", b"XFIH"),
        midi(TRACK[:3]),
        midi(b"\x00"),
        midi(b"\xff\xff\xff\xff\xff\x00"),
        midi(b"\x00\x3c\x40" + END),  # running status of nothing
        midi(b"\x00\x90\x3c\x80" + END),
        midi(b"\x00\xc0\x80" + END),
        midi(b"\x00\xf7\x01\x00" + END),
        midi(b"\x00\xf4" + END),
        midi(b"\x00\xff"),
        midi(b"\x00\xff\x03\x7fname"),
        midi(meta(0x51, b"\x07") + END),
        midi(b"\x00\xff\x51\x80\x03\x07\xa1\x20" + END),
        midi(meta(0x58, b"\x04\x08\x18\x08") + END),
        midi(b"\xff\xff\xff\x7f\x90\x3c\x40" * 9 + END),  # ticks beyond 31 bits
        midi(*[b"".join(b"\x00\xc0%c\x00\x90\x3c\x40" % program for program in range(128))] * (MAX_PARTS // 128 + 1)),
    ],
)
def test_irregular_files_are_left_to_symusic(data):
    assert read_events(data) is None


def test_tracks_beyond_the_headers_number_are_not_read():
    assert len(notes_of(TRACK, TRACK, count=1)) == 1
    assert len(notes_of(TRACK, TRACK, count=9)) == 2
    assert notes_of() == []


SHORT = st.integers(0, 2)  # few values, so that events meet
CHANNELS = st.sampled_from([0, 0, 1, 9, 15, 15])
EVENT = st.one_of(
    st.builds(lambda channel, pitch, loud: bytes([0x90 | channel, 60 + pitch, loud]), CHANNELS, SHORT, SHORT),
    st.builds(lambda channel, pitch: bytes([0x80 | channel, 60 + pitch, 0]), CHANNELS, SHORT),
    st.builds(lambda channel, program: bytes([0xC0 | channel, program]), CHANNELS, SHORT),
    st.builds(
        lambda kind, channel, value: bytes([kind | channel, value, 0]),
        st.sampled_from([0xA0, 0xB0, 0xE0]),
        CHANNELS,
        SHORT,
    ),
    st.builds(lambda kind, text: meta(kind, text)[1:], st.sampled_from([1, 3, 5, 6]), st.binary(max_size=3)),
    st.builds(lambda tempo: meta(0x51, bytes([7, 0, tempo]))[1:], SHORT),
    st.builds(lambda values: meta(0x58, bytes([*values, 24, 8]))[1:], st.tuples(SHORT, SHORT)),
    st.binary(min_size=1, max_size=3).map(lambda data: bytes(byte & 0x7F for byte in data)),  # running status, or not
)
TRACKS = st.lists(st.lists(st.tuples(SHORT, EVENT), max_size=40), max_size=4)


@settings(max_examples=400)
@given(TRACKS)
def test_streams_of_events(tracks):
    agrees_or_declines(midi(*[b"".join(bytes([delta]) + event for delta, event in track) + END for track in tracks]))


@settings(max_examples=400)
@given(TRACKS)
def test_notes_without_an_end_get_the_one_that_the_repair_gives_them(tracks):
    bodies = [b"".join(bytes([delta]) + event for delta, event in track) + END for track in tracks]
    open_notes = b"\x01\x90\x3c\x40\x02\x3c\x40\x02\x3c\x00\x01\x3d\x40\x01\xff\x01\x00\x00\x3e\x40" + END
    data = midi(open_notes, *bodies)
    plain, ended = read_events(data), read_events(data, ends_notes=True)
    if plain is None or ended is None:
        assert plain is ended is None
    elif not plain.numerators.all():  # more is to be put right
        assert ended.open_notes == plain.open_notes > 0
    else:
        assert ended.open_notes == 0 < plain.open_notes
        repaired = read_events(repair_midi(data, has_open_notes=True)[0])
        assert in_the_same_words(ended) == in_the_same_words(repaired)


@settings(max_examples=400)
@given(TRACKS, st.data())
def test_damaged_files(tracks, data):
    file = bytearray(midi(*[b"".join(bytes([delta]) + event for delta, event in track) for track in tracks]))
    for _ in range(data.draw(st.integers(0, 3))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    agrees_or_declines(bytes(file[: data.draw(st.integers(0, len(file)))] if data.draw(st.booleans()) else file))
