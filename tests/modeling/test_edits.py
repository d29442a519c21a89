"""Edits of melodies: they stay melodies, each does what it says, and a search by them ends nearer to the wish."""

import copy
import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling import MelodyVAEModel
from modeling import note_editing_melody_vae as edits
from modeling.melody_line_melody_vae import read_line, steps_per_bar, write_line
from modeling.token_grammar_melody_vae import TokenWriter
from tests.builders.lines import GRIDS, lines, processor_for
from tests.builders.models import model_for

CONTEXT = edits.EditContext(
    4, 16, 4, 40, 90, 64, [pitch for pitch in range(40, 91) if pitch % 12 in (0, 2, 4, 5, 7, 9, 11)]
)
TUNE = [(at, 4, pitch) for at, pitch in zip(range(0, 64, 4), [60, 62, 64, 65, 67, 69, 71, 72] * 2, strict=True)]


@st.composite
def notes_and_context(draw) -> tuple[edits.Notes, edits.EditContext]:
    line = draw(lines(4, (CONTEXT.lowest, CONTEXT.highest), min_notes=1))
    context = CONTEXT._replace(bars=line["bars"], bar=steps_per_bar(line))
    return list(zip(line["start"], line["duration"], line["pitch"], strict=True)), context


def told_model(steps_per_beat: int) -> MelodyVAEModel:
    model = copy.deepcopy(model_for(steps_per_beat))  # the one that others use knows no grammar
    model.set_grammar(processor_for(steps_per_beat).grammar_table())
    return model


@GRIDS
@given(data=st.data())
def test_lines_are_written_as_the_tokenizer_writes_them(data, steps_per_beat):
    line = data.draw(lines(steps_per_beat))
    model, processor = told_model(steps_per_beat), processor_for(steps_per_beat)
    written = model.write_lines([line])[0].tolist()
    assert written == processor(lines=[line])["input_ids"][0][: len(written)]
    assert model.read_lines(torch.tensor([written]))[0] == line
    assert read_line((piece for bar in write_line(line) for piece in bar), steps_per_beat) == line


def test_several_lines_are_padded():
    model = told_model(4)
    line = {"start": [0], "duration": [4], "pitch": [60], "time_signature": "4/4", "steps_per_beat": 4, "bars": 1}
    ids = model.write_lines([line, {**line, "bars": 3}])
    assert ids.shape[0] == 2
    assert ids[0, -1] == model.config.pad_token_id != ids[1, -1] == model.config.eos_token_id


def test_what_the_vocabulary_lacks_is_named():
    line = {"start": [0], "duration": [4], "pitch": [3], "time_signature": "4/4", "steps_per_beat": 4, "bars": 1}
    with pytest.raises(ValueError, match="the vocabulary has no Pitch of 3"):
        told_model(4).write_lines([line])


@pytest.mark.parametrize("edit", edits.EDITS)
@given(given_notes=notes_and_context(), seed=st.integers(0, 10**6))
def test_an_edited_melody_is_one(edit, given_notes, seed):
    notes, context = given_notes
    edited = edits.normalize_notes(edit(notes, context, random.Random(seed)), context)
    assert all(start + duration <= after for (start, duration, _), (after, _, _) in pairwise(edited))
    assert edited[0][0] >= 0
    assert sum(edited[-1][:2]) <= context.bars * context.bar
    assert all(0 < duration <= context.longest for _, duration, _ in edited)
    assert all(context.lowest <= pitch <= context.highest for _, _, pitch in edited)
    assert edited == edits.normalize_notes(edit(notes, context, random.Random(seed)), context)


def drawn(edit, count: int = 30) -> list[edits.Notes]:
    """Edit the tune in many ways."""
    return [edits.normalize_notes(edit(TUNE, CONTEXT, random.Random(seed)), CONTEXT) for seed in range(count)]


def changed_pitches(edited: edits.Notes) -> list[int]:
    """The pitches that are other ones, in a tune whose onsets have stayed."""
    assert [note[:2] for note in edited] == [note[:2] for note in TUNE]
    return [new for (_, _, new), (_, _, old) in zip(edited, TUNE, strict=True) if new != old]


def test_each_edit_does_what_it_says():
    for edited in drawn(edits.transpose):
        assert len({new - old for (_, _, new), (_, _, old) in zip(edited, TUNE, strict=True)}) == 1
    for edit in (edits.move_bars, edits.move_notes_in_scale, edits.stretch):
        moved = [changed_pitches(edited) for edited in drawn(edit)]
        assert any(moved)
        assert {pitch % 12 for pitches in moved for pitch in pitches} <= {pitch % 12 for pitch in CONTEXT.scale}
    assert {len(changed_pitches(edited)) for edited in drawn(edits.move_notes_in_scale, 99)} == {1, 2, 3, 4}
    assert {len(edited) - len(TUNE) for edited in drawn(edits.split, 99)} == {1, 2, 3, 4}
    assert {len(TUNE) - len(edited) for edited in drawn(edits.leave_out, 99)} == {1, 2, 3, 4}
    for edit in (edits.move_notes_in_scale, edits.split):  # what is edited stands at one place of its bar
        assert all(len({start % 16 for start, *_ in set(TUNE) - set(edited)}) == 1 for edited in drawn(edit))
    assert drawn(edits.fill_rest) == [TUNE] * 30  # there is no rest
    holes = [note for note in TUNE if note[0] != 20]
    filled = [edits.fill_rest(holes, CONTEXT, random.Random(seed)) for seed in range(99)]
    assert any((20, 4, 67) in edited for edited in filled)
    for edited in drawn(edits.shift_onset):
        ends = [start + duration for start, duration, _ in edited]
        assert sum(new != old for new, old in zip(edited, TUNE, strict=True)) <= 8  # each, and the one before it
        assert ends[-1] == 64
    bars = [
        [[(start % 16, *rest) for start, *rest in notes if start // 16 == bar] for bar in range(4)]
        for notes in [TUNE, *drawn(edits.repeat_bars)]
    ]
    assert all(bar in bars[0] for repeated in bars for bar in repeated)
    assert any(repeated != bars[0] for repeated in bars)


def test_steps_of_the_scale():
    assert [CONTEXT.step(60, steps) for steps in (-1, 0, 1, 7)] == [59, 60, 62, 72]
    assert [CONTEXT.step(61, steps) for steps in (-1, 0, 1)] == [60, 61, 62]
    assert CONTEXT.step(90, 3) == 89
    assert CONTEXT.step(89, 1) == 89


@given(pitch=st.floats(0, 127) | st.integers(0, 254).map(lambda half: half / 2))
def test_the_nearest_pitch_of_the_scale(pitch):
    assert CONTEXT.nearest(pitch) == min(CONTEXT.scale, key=lambda each: abs(each - pitch))


def test_a_search_comes_nearer_and_changes_nothing_for_nothing():
    asked: list[edits.Notes] = []

    def errors_of(proposals: Sequence[edits.Notes]) -> list[float]:
        asked.extend(proposals)
        return [(len(notes) - 20) ** 2 for notes in proposals]

    found = edits.search(TUNE, CONTEXT, errors_of, seed=0)
    assert len(found) == 20
    assert len(asked) == len(set(map(tuple, asked)))  # each measured once
    assert found == edits.search(TUNE, CONTEXT, errors_of, seed=0)
    assert edits.search(TUNE, CONTEXT, lambda proposals: [0.0] * len(proposals), seed=0) == TUNE
    assert edits.search([], CONTEXT, errors_of, seed=0) == []


def test_a_vocabulary_tells_what_can_be_written():
    writer = TokenWriter(told_model(4).token_grammar)
    assert writer.values("Pitch") == list(range(21, 109))
    assert writer.values("Duration") == list(range(1, 65))
