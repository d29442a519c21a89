"""MIDI to ids and back: the round trip, MidiTok's own ids, and the tune in a file of many tracks."""

import random
from itertools import pairwise
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miditok import TokSequence

from modeling.line_writing_melody_vae import (
    FIRST_CHARACTER,
    SPECIAL_TOKENS,
    line_to_score,
    line_to_words,
    make_monophonic,
    make_remi,
    transposition_table,
)
from modeling.melody_line_melody_vae import MAX_NOTE_BEATS, MAX_PITCH, MIN_PITCH, steps_per_bar
from modeling.processing_melody_vae import MelodyProcessor, cut_bars
from modeling.tune_finding_melody_vae import find_melody
from tests.builders.lines import (
    GRIDS,
    LINE,
    QUARTER,
    SIGNATURES,
    VOCABULARY,
    accompaniment,
    is_same,
    lines,
    processor_for,
    random_line,
    scale,
    score_of,
    track_of,
    training_words,
)

RELEASE = Path(__file__).parents[2] / "release" / "melody-vae-16bar"

# --- Lines, words, ids ----------------------------------------------------------------------------------------------


@GRIDS
@given(data=st.data())
@settings(max_examples=100)
def test_lines_to_ids_to_lines_is_the_identity(steps_per_beat, data):
    processor = processor_for(steps_per_beat)
    line = data.draw(lines(steps_per_beat))
    ids = processor(lines=line, return_tensors="pt")["input_ids"]
    assert ids.shape[0] == 1
    (read,) = processor.to_lines(ids)
    assert is_same(read, line)


@GRIDS
@pytest.mark.parametrize("signature", SIGNATURES)
def test_every_step_and_length_of_every_time_signature_survives(steps_per_beat, signature):
    processor = processor_for(steps_per_beat)
    line = {"time_signature": signature, "steps_per_beat": steps_per_beat, "bars": 16}
    bar = steps_per_bar(line)
    each = []
    for step in range(bar):  # one note in each line, as long as it may be, in the middle of silence
        longest = min(MAX_NOTE_BEATS * steps_per_beat, 14 * bar - step)
        duration = 1 + (step * longest) // bar if step else longest
        each.append({**line, "pitch": [MIN_PITCH + step % 88], "start": [2 * bar + step], "duration": [duration]})
    read = processor.to_lines(processor(lines=each)["input_ids"])
    assert all(is_same(a, b) for a, b in zip(read, each, strict=True))


@GRIDS
def test_ids_are_miditoks_own(steps_per_beat):
    processor = processor_for(steps_per_beat)
    remi = make_remi.__wrapped__(steps_per_beat)
    remi.train(vocab_size=VOCABULARY[steps_per_beat], iterator=training_words(steps_per_beat))
    special = {chr(FIRST_CHARACTER + index): f"<{token.lower()}>" for index, token in enumerate(SPECIAL_TOKENS)}
    vocabulary = {special.get(token, token): index for token, index in remi._model.get_vocab().items()}
    assert vocabulary == processor.tokenizer.get_vocab()
    generator = random.Random(1)
    merged = 0
    for _ in range(50):
        line = random_line(generator, steps_per_beat)
        line["bars"] = 1 + line["start"][-1] // steps_per_bar(line)  # MidiTok ends with the bar of the last onset
        (expected,) = remi.encode(line_to_score(line))
        words = line_to_words(line)
        ids = processor.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
        assert ids == expected.ids
        merged += len("".join(words)) > len(ids)
        decoded = remi.decode([TokSequence(ids=ids, are_ids_encoded=True)])  # and MidiTok reads them
        assert [note.pitch for note in decoded.tracks[0].notes] == line["pitch"]
    assert merged == 50, "no merges, so nothing was compared"


@GRIDS
@given(data=st.data())
@settings(max_examples=50)
def test_word_ids_are_bar_numbers_and_bar_tokens_open_bars(steps_per_beat, data):
    processor = processor_for(steps_per_beat)
    line = data.draw(lines(steps_per_beat))
    words = line_to_words(line)
    assert len(words) == line["bars"]
    encoded = processor.tokenizer(" ".join(words))
    ids, word_ids = encoded["input_ids"], encoded.word_ids()
    assert ids == processor(lines=line)["input_ids"][0]
    assert word_ids[0] is None
    assert word_ids[-1] is None
    bar_tokens = set(processor.bar_token_ids)
    begun = 0
    for index, word in zip(ids[1:-1], word_ids[1:-1], strict=True):
        begun += index in bar_tokens
        assert word == begun - 1
    assert begun == line["bars"]


@GRIDS
def test_bar_token_ids_are_the_tokens_that_begin_a_bar(steps_per_beat):
    processor = processor_for(steps_per_beat)
    bar = chr(FIRST_CHARACTER + processor.remi["Bar_None"])
    seen = set()
    for words in training_words(steps_per_beat):
        for word in words:
            seen.add(processor.tokenizer(word, add_special_tokens=False)["input_ids"][0])
    assert seen <= set(processor.bar_token_ids)
    assert len(seen) > 3
    inner = set(processor.tokenizer.get_vocab().values()) - set(processor.bar_token_ids)
    for token in processor.tokenizer.convert_ids_to_tokens(sorted(inner)):
        assert token == bar or bar not in token, "a bar would open unseen within a token"


def test_special_tokens_come_first():
    for steps_per_beat in VOCABULARY:
        tokenizer = processor_for(steps_per_beat).tokenizer
        assert len(tokenizer) == VOCABULARY[steps_per_beat]
        names = ("<pad>", "<bos>", "<eos>", "<mask>")
        assert tokenizer.convert_tokens_to_ids(list(names)) == [0, 1, 2, 3]
        assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
        assert tokenizer.mask_token_id == 3


@GRIDS
@given(data=st.data(), semitones=st.integers(-6, 6))
@settings(max_examples=50)
def test_transposing_words_is_transposing_notes(steps_per_beat, data, semitones):
    line = data.draw(lines(steps_per_beat, pitches=(MIN_PITCH + 6, MAX_PITCH - 6)))
    table = transposition_table(steps_per_beat, semitones)
    moved = {**line, "pitch": [pitch + semitones for pitch in line["pitch"]]}
    assert [word.translate(table) for word in line_to_words(line)] == line_to_words(moved)


def test_transposition_leaves_what_would_leave_the_range():
    line = {**LINE, "pitch": [MAX_PITCH, MAX_PITCH - 5, 60, 61, 62, MIN_PITCH]}
    expected = {**LINE, "pitch": [MAX_PITCH, MAX_PITCH, 65, 66, 67, MIN_PITCH + 5]}
    assert [word.translate(transposition_table(4, 5)) for word in line_to_words(line)] == line_to_words(expected)


@GRIDS
@given(data=st.data())
@settings(max_examples=150)
def test_any_ids_read_as_a_melody(steps_per_beat, data):
    processor = processor_for(steps_per_beat)
    any_id = st.integers(0, VOCABULARY[steps_per_beat] - 1)
    likely = st.sampled_from(processor.bar_token_ids) | any_id
    ids = data.draw(st.lists(st.lists(any_id, max_size=60) | st.lists(likely, max_size=60), min_size=1, max_size=3))
    read = processor.to_lines(ids)
    assert len(read) == len(ids)
    for line, row in zip(read, ids, strict=True):
        assert line["time_signature"] in SIGNATURES
        tokens = processor.tokenizer.convert_ids_to_tokens(row)
        bar = chr(FIRST_CHARACTER + processor.remi["Bar_None"])
        assert line["bars"] == sum(token.count(bar) for token in tokens)
        end = line["bars"] * steps_per_bar(line)
        ends = [start + duration for start, duration in zip(line["start"], line["duration"], strict=True)]
        assert all(start >= 0 for start in line["start"])
        assert all(duration >= 1 for duration in line["duration"])
        assert all(before <= after for before, after in zip(ends, [*line["start"][1:], end], strict=False))
        assert all(MIN_PITCH <= pitch <= MAX_PITCH for pitch in line["pitch"])
    assert len(processor.to_midi_bytes(ids)) == len(ids)


@pytest.mark.parametrize("ids", [[], [0, 0], [1, 2], [3, 3, 3]])
def test_ids_without_a_bar_read_as_silence(ids):
    (line,) = processor_for(4).to_lines([ids])
    silence = {"pitch": [], "start": [], "duration": []}
    assert line == {**silence, "time_signature": "4/4", "steps_per_beat": 4, "bars": 0}


def test_reading_ids_of_random_order_finds_some_notes():
    """The property above would hold of a reader that finds nothing."""
    generator = random.Random(2)
    processor = processor_for(4)
    ids = [[generator.randrange(4, VOCABULARY[4]) for _ in range(100)] for _ in range(20)]
    assert sum(len(line["pitch"]) for line in processor.to_lines(ids)) > 50


@GRIDS
@given(data=st.data())
@settings(max_examples=60)
def test_scores_and_midi_files_give_the_line_back(steps_per_beat, data):
    line = data.draw(lines(steps_per_beat, min_notes=1))
    bar = steps_per_bar(line)
    last = line["start"][-1] + line["duration"][-1]
    ids = processor_for(steps_per_beat)(lines=line)["input_ids"]
    processor = processor_for(steps_per_beat)
    first_bar = line["start"][0] // bar  # a file has no silence before its first and after its last note
    expected = cut_bars(line, first_bar, -(-last // bar) - first_bar)
    (score,) = processor.to_scores(ids, tempo=90.0, program=73)
    (midi,) = processor.to_midi_bytes(ids, tempo=90.0, program=73)
    assert processor.to_scores(ids, tempo="fast")[0].tempos[0].qpm == pytest.approx(150.0, abs=1e-3)
    with pytest.raises(ValueError, match="neither a number nor one of slow, medium, fast"):
        processor.to_scores(ids, tempo="allegro")
    assert midi[:4] == b"MThd"
    for source in (score, midi):
        found = find_melody(source, steps_per_beat)
        assert is_same(found, expected)
        assert found["tempo"] == pytest.approx(90.0, abs=1e-3)
        assert found["program"] == 73


def test_batches_are_padded_on_the_right():
    processor = processor_for(4)
    short = cut_bars(LINE, 0, 1)
    batch = processor(lines=[LINE, short], return_tensors="pt")
    ids, attention_mask = batch["input_ids"], batch["attention_mask"]
    assert set(batch) == {"input_ids", "attention_mask"}
    assert ids.shape == attention_mask.shape
    assert ((ids != 0) == (attention_mask == 1)).all()
    assert ids[:, 0].tolist() == [1, 1]
    assert ids[0, -1] == 2
    assert attention_mask[1].tolist() == sorted(attention_mask[1].tolist(), reverse=True)
    assert attention_mask[1].sum() < ids.shape[1]
    assert all(is_same(a, b) for a, b in zip(processor.to_lines(ids), [LINE, short], strict=True))


def test_a_primer_is_padded_on_the_left_and_open_at_the_end():
    processor = processor_for(4)
    short = cut_bars(LINE, 0, 1)
    whole = processor(lines=[LINE, short], return_tensors=None)["input_ids"]
    primer = processor(lines=[LINE, short], primer=True, return_tensors="pt")
    for row, mask, ids in zip(primer["input_ids"].tolist(), primer["attention_mask"].tolist(), whole, strict=True):
        expected = [index for index in ids if index not in (0, 2)]  # neither padding nor end
        assert row[-len(expected) :] == expected
        assert set(row[: -len(expected)]) <= {0}
        assert mask == [0] * (len(row) - len(expected)) + [1] * len(expected)
    assert processor(lines=[LINE, short])["input_ids"] == whole, "a primer changes the calls after it"


# --- Windows --------------------------------------------------------------------------------------------------------


def test_cut_bars_cuts_notes_at_the_end_and_drops_what_began_earlier():
    line = {**LINE, "start": [0, 4, 8, 14, 32, 40], "duration": [4, 4, 6, 18, 3, 30]}
    assert is_same(cut_bars(line, 0, 5), line)
    first = cut_bars(line, 0, 1)
    assert (first["start"], first["duration"], first["bars"]) == ([0, 4, 8, 14], [4, 4, 6, 2], 1)
    second = cut_bars(line, 1, 2)
    assert (second["pitch"], second["start"], second["duration"], second["bars"]) == ([67, 72], [16, 24], [3, 8], 2)
    assert cut_bars(line, 3, 16)["bars"] == 2
    assert cut_bars(line, 3, 16)["pitch"] == []


@given(line=lines(4), data=st.data())
@settings(max_examples=50)
def test_windows_hold_every_note_once(line, data):
    size = data.draw(st.integers(1, 16))
    bar = steps_per_bar(line)
    windows = [cut_bars(line, first, size) for first in range(0, line["bars"], size)]
    assert sum(window["bars"] for window in windows) == line["bars"]
    assert [pitch for window in windows for pitch in window["pitch"]] == line["pitch"]
    starts = [start + index * size * bar for index, window in enumerate(windows) for start in window["start"]]
    assert starts == line["start"]
    for window in windows:
        for start, duration in zip(window["start"], window["duration"], strict=True):
            assert 0 <= start < start + duration <= window["bars"] * bar


def test_the_processor_cuts_a_window():
    processor = processor_for(4)
    for kwargs, expected in (
        ({"first_bar": 2}, cut_bars(LINE, 2, 16)),
        ({"bars": 1}, cut_bars(LINE, 0, 1)),
        ({"first_bar": 2, "bars": 2}, cut_bars(LINE, 2, 2)),
    ):
        assert is_same(processor.to_lines(processor(lines=LINE, **kwargs)["input_ids"])[0], expected)
    long = {**LINE, "bars": 40}
    assert processor.to_lines(processor(lines=long, bars=30)["input_ids"])[0]["bars"] == processor.max_bars == 16


def test_make_monophonic_keeps_the_highest_note_and_cuts_overlaps():
    notes = [(4, 8, 60), (0, 2, 50), (4, 2, 67), (6, 90, 62), (0, 9, 55), (2, 1, 20), (3, 1, 109), (10, 1, 70)]
    assert make_monophonic(notes, 10) == ([0, 4, 6], [4, 2, 4], [55, 67, 62])
    assert make_monophonic([], 10) == ([], [], [])
    assert make_monophonic([(1, 0, 60)], 10) == ([1], [1], [60])


# --- The tune of a file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("name", ["", "Lead Vocal"])
def test_find_melody_finds_the_tune_among_drums_chords_and_bass(place, name):
    tune = scale(32)
    tracks = accompaniment()
    tracks.insert(place, track_of(tune, name, program=73))
    line = find_melody(score_of(*tracks))
    assert line["pitch"] == [pitch for _, _, pitch in tune]
    assert line["start"] == list(range(0, 128, 4))
    assert line["duration"] == [4] * 32
    assert (line["bars"], line["program"], line["time_signature"]) == (8, 73, "4/4")


def test_a_name_decides_between_equals():
    low, high = ([(start, duration, pitch - shift) for start, duration, pitch in scale(32)] for shift in (1, 0))
    for names in (("", "Melody"), ("VOICE", "Strings")):
        line = find_melody(score_of(track_of(low, names[0]), track_of(high, names[1])))
        assert line["pitch"][0] == (67 if names[1] == "Melody" else 66)


@pytest.mark.parametrize(
    ("signature", "expected", "beat"),
    [((3, 4), "3/4", QUARTER), ((6, 8), "6/8", QUARTER // 2), ((2, 2), "4/4", QUARTER), ((3, 2), "6/4", QUARTER)],
)
def test_find_melody_honours_the_time_signature(signature, expected, beat):
    beats = int(expected[0])
    line = find_melody(score_of(track_of(scale(4 * beats, beat)), signatures=((0, *signature),)))
    assert line["time_signature"] == expected
    assert line["bars"] == 4
    assert line["start"] == list(range(0, 16 * beats, 4))
    assert line["duration"] == [4] * (4 * beats)


def test_a_file_without_a_time_signature_is_in_4_4():
    line = find_melody(score_of(track_of(scale(8)), signatures=(), tempos=()))
    assert (line["time_signature"], line["bars"], line["tempo"]) == ("4/4", 2, 120.0)


@pytest.mark.parametrize("steps_per_beat", [4, 12])
def test_find_melody_begins_in_the_bar_of_the_first_note(steps_per_beat):
    upbeat = 3 * QUARTER
    line = find_melody(score_of(track_of(scale(9, start=5 * 4 * QUARTER + upbeat))), steps_per_beat)
    assert line["start"] == [steps_per_beat * beat for beat in range(3, 12)]
    assert line["bars"] == 3
    tempos = ((0, 60.0), (20 * QUARTER, 90.0), (30 * QUARTER, 180.0))
    late = find_melody(score_of(track_of(scale(9, start=20 * QUARTER)), tempos=tempos))
    assert late["tempo"] == pytest.approx(90.0)


def test_find_melody_counts_bars_from_the_time_signature():
    signatures = ((0, 4, 4), (4 * QUARTER, 3, 4))
    line = find_melody(score_of(track_of(scale(7, start=8 * QUARTER)), signatures=signatures))
    assert line["time_signature"] == "3/4"
    assert line["start"] == list(range(4, 32, 4))  # 4 quarters after the change: the second beat of the second bar
    assert line["bars"] == 3


@pytest.mark.parametrize(("before", "after"), [((3, 4), (4, 4)), ((2, 2), (3, 4)), ((6, 8), (2, 4))])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_find_melody_goes_on_through_a_change_of_time_signature(before, after, share):
    bar = before[0] * QUARTER * 4 // before[1]
    change = round(share * 60 * QUARTER / bar) * bar
    line = find_melody(score_of(track_of(scale(120, QUARTER // 2)), signatures=((0, *before), (change, *after))))
    assert line["pitch"] == [pitch for _, _, pitch in scale(120)]
    read = {(2, 2): "4/4"}.get(before, f"{before[0]}/{before[1]}") if share > 0.5 else f"{after[0]}/{after[1]}"
    assert line["time_signature"] == read
    eighth = int(read.split("/")[1]) // 2
    assert line["start"] == list(range(line["start"][0], line["start"][0] + 120 * eighth, eighth))
    bar_line = 0 if share > 0.5 else change
    assert (line["start"][0] + bar_line * 2 * eighth // QUARTER) % steps_per_bar(line) == 0


@pytest.mark.parametrize("signature", [(4, 4), (3, 4), (2, 2), (6, 8)])
def test_a_repeated_time_signature_is_no_change(signature):
    signatures = tuple((time * 12 * QUARTER, *signature) for time in range(3))
    assert len(find_melody(score_of(track_of(scale(36)), signatures=signatures))["pitch"]) == 36


@pytest.mark.parametrize("steps_per_beat", [4, 12])
def test_find_melody_quantises_what_was_played(steps_per_beat):
    generator = random.Random(3)
    grid = QUARTER // steps_per_beat
    exact = random_line(generator, steps_per_beat) | {"time_signature": "4/4", "bars": 16}
    exact["start"] = sorted(generator.sample(range(16 * 4 * steps_per_beat), 61))
    ends = [generator.randint(before + 1, after) for before, after in pairwise([*exact["start"], 64 * steps_per_beat])]
    exact["duration"] = [end - start for start, end in zip(exact["start"], ends, strict=True)]
    exact["pitch"] = [generator.randint(60, 80) for _ in ends]
    assert exact["start"][0] < steps_per_bar(exact), "the line would begin later than its first bar"
    jitter = [0, *(generator.randint(-grid // 2 + 1, grid // 2 - 1) for _ in range(60))]
    notes = [
        (start * grid + early, duration * grid + 1, pitch)
        for start, duration, pitch, early in zip(exact["start"], exact["duration"], exact["pitch"], jitter, strict=True)
    ]
    line = find_melody(score_of(track_of(notes)), steps_per_beat)
    assert line["start"] == exact["start"]
    assert line["pitch"] == exact["pitch"]
    assert all(abs(a - b) <= 1 for a, b in zip(line["duration"], exact["duration"], strict=True))


def test_chords_give_their_top_note_in_any_unit_of_time():
    notes = [(start, duration, pitch - below) for start, duration, pitch in scale(16) for below in (4, 0)]
    score = score_of(track_of(notes))
    line = find_melody(score)
    assert line["pitch"] == [pitch for _, _, pitch in scale(16)]
    assert is_same(find_melody(score.to("quarter")), line)


def test_the_processor_takes_paths_bytes_and_scores(tmp_path):
    processor = processor_for(4)
    score = score_of(track_of(scale(32)), *accompaniment())
    path = tmp_path / "tune.mid"
    path.write_bytes(score.dumps_midi())
    batch = processor(midi=[path, str(path), path.read_bytes(), score], return_tensors="pt")
    assert batch["input_ids"].shape[0] == 4
    expected = processor(lines=find_melody(score), return_tensors="pt")["input_ids"]
    assert (batch["input_ids"] == expected).all()
    for one in (path, str(path), path.read_bytes(), score):
        assert (processor(midi=one, return_tensors="pt")["input_ids"] == expected).all()


# --- What is refused ------------------------------------------------------------------------------------------------


def test_what_is_no_midi_file_is_refused_by_name(tmp_path):
    page = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    with pytest.raises(ValueError, match=rf"^{len(page)} bytes: not a MIDI file"):
        find_melody(page)
    path = tmp_path / "page.mid"
    path.write_bytes(page)
    with pytest.raises(ValueError, match=r"page\.mid: not a MIDI file"):
        find_melody(path)
    path.write_bytes(score_of(track_of(scale(32))).dumps_midi()[:13])
    with pytest.raises(ValueError, match=r"page\.mid: not a MIDI file, or a broken one: it ends within its header"):
        find_melody(str(path))
    with pytest.raises(ValueError, match=r"missing\.mid: cannot be read \(No such file"):
        find_melody(tmp_path / "missing.mid")
    with pytest.raises(ValueError, match=r"^0 bytes: not a MIDI file"):
        find_melody(b"")


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        (score_of(), "no notes outside the drums"),
        (score_of(track_of([])), "no notes outside the drums"),
        (score_of(accompaniment()[0]), "no notes outside the drums"),
        (score_of(track_of([(0, 480, MIN_PITCH - 1), (480, 480, MAX_PITCH + 1)])), "no note between .* 21 and 108"),
    ],
)
def test_a_file_without_a_usable_tune_is_refused_by_name_and_reason(score, reason, tmp_path):
    path = tmp_path / "odd.mid"
    path.write_bytes(score.dumps_midi())
    good = score_of(track_of(scale(16)))
    with pytest.raises(ValueError, match=rf"odd\.mid: {reason}"):
        processor_for(4)(midi=[good, path])
    with pytest.raises(ValueError, match=rf"^a score of \d+ tracks: {reason}"):
        find_melody(score)
    with pytest.raises(ValueError, match=rf"^{len(path.read_bytes())} bytes: {reason}"):
        find_melody(path.read_bytes())


def test_the_processor_refuses_what_it_cannot_read():
    processor = processor_for(4)
    for kwargs in ({}, {"midi": score_of(track_of(scale(8))), "lines": LINE}):
        with pytest.raises(ValueError, match="either midi= or lines="):
            processor(**kwargs)
    with pytest.raises(ValueError, match=r"melody 1 has 2 bars, so none from bar 3 on"):
        processor(lines=[LINE, cut_bars(LINE, 0, 2)], first_bar=3)
    with pytest.raises(ValueError, match=r"12 steps per beat; this processor has 4"):
        processor(lines={**LINE, "steps_per_beat": 12})
    with pytest.raises(ValueError, match=r"time signature 13/8 is not in the vocabulary"):
        processor(lines={**LINE, "time_signature": "13/8"})
    for nothing in ([], [[]]):
        with pytest.raises(ValueError, match="no bars to train"):
            MelodyProcessor.train(nothing)


def test_training_leaves_the_shared_tokenizer_untrained():
    processor_for(4)
    assert not make_remi(4).is_trained
    assert max(ord(character) for character in "".join(line_to_words(LINE))) < FIRST_CHARACTER + len(make_remi(4))


@GRIDS
def test_a_saved_processor_loads(steps_per_beat, tmp_path):
    processor = processor_for(steps_per_beat)
    processor.save_pretrained(tmp_path)
    loaded = MelodyProcessor.from_pretrained(tmp_path)
    assert (loaded.steps_per_beat, loaded.max_bars) == (steps_per_beat, 16)
    line = {**LINE, "steps_per_beat": steps_per_beat}
    for kwargs in ({}, {"primer": True}):
        assert loaded(lines=line, **kwargs)["input_ids"] == processor(lines=line, **kwargs)["input_ids"]
    assert loaded.bar_token_ids == processor.bar_token_ids


def test_a_published_processor_loads_without_a_question(monkeypatch):
    """Beside its configuration the tokenizer lies in a folder with remote code, about which transformers may ask."""
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "n")
    assert len(MelodyProcessor.from_pretrained(RELEASE).tokenizer) > 0
    assert asked == []


def test_rows_of_a_data_set_are_tokenised_by_map():
    processor = processor_for(4)
    lines = [LINE, random_line(random.Random(3), 4)]
    rows = datasets.Dataset.from_list([dict(line) for line in lines])
    mapped = rows.map(processor.map_rows, batched=True)
    expected = [processor(lines=line)["input_ids"][0] for line in lines]
    assert mapped["input_ids"][:] == expected
