"""Generated ids are melodies by construction: grammar, bars, one voice, range, scale; infill keeps the other bars."""

import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import LogitsProcessorList

from modeling.grammar_state_melody_vae import GrammarState
from modeling.line_writing_melody_vae import (
    FIRST_CHARACTER,
    WORD_PREFIX,
    line_to_words,
)
from modeling.logits_process_melody_vae import MelodyLogitsProcessor
from modeling.modeling_melody_vae import MelodyVAEModel
from modeling.processing_melody_vae import (
    MAX_PITCH,
    MIN_PITCH,
    MelodyProcessor,
    steps_per_bar,
)
from modeling.token_grammar_melody_vae import (
    AFTER_BAR,
    AFTER_PITCH,
    AFTER_POSITION,
    AFTER_PREFIX,
    GRAMMAR_COLUMNS,
    MAX_TOKENS_PER_BAR,
    MODES,
    RESTING,
    UNCHANGED,
    UNUSABLE,
    TokenColumn,
    scale_mask,
    summarise_token,
    time_signature_id,
)
from tests.builders.lines import GRIDS, LINE, processor_for, random_line
from tests.builders.models import model_for

PAD, BOS, EOS = 0, 1, 2
ROOT = Path(__file__).parents[2]
RELEASE = ROOT / "release" / "melody-vae-16bar"
N = 7  # max_bars


def base_tokens(processor: MelodyProcessor, ids: list[int]) -> list[str]:
    """Spell ids out as REMI tokens, special ones and the bars' prefixes included."""
    tokens = []
    for token in processor.tokenizer.convert_ids_to_tokens(ids):
        if token in processor.tokenizer.all_special_tokens:
            tokens.append(token)
            continue
        tokens += [
            "prefix" if character == WORD_PREFIX else processor.remi[ord(character) - FIRST_CHARACTER]
            for character in token
        ]
    return tokens


def find_violations(
    processor: MelodyProcessor,
    ids: list[int],
    bars: int | None = None,
    time_signature: str | None = None,
    pitches: set[int] | None = None,
    primer: int = 0,
) -> list[str]:
    """List what is wrong with ids, by a reader of its own: token by token, with no table.

    Args:
        processor: Whose ids they are.
        ids: One row of what `generate` returned.
        bars: Bars asked for.
        time_signature: Asked for.
        pitches: MIDI pitches asked for.
        primer: Bars at the beginning that were given, and need not keep to `pitches`.
    """
    wrong = []
    tokens = base_tokens(processor, ids)
    while tokens and tokens[0] == "<pad>":
        tokens.pop(0)
    while tokens[-2:-1] == ["<eos>"] or tokens[-1:] == ["<pad>"]:  # beam search takes a pad_token_id of 0 for none
        tokens.pop()
    if tokens[:1] != ["<bos>"] or tokens[-1:] != ["<eos>"]:
        wrong.append(f"begins with {tokens[:1]}, ends with {tokens[-1:]}")
    tokens = tokens[1:-1]
    line = {"steps_per_beat": processor.steps_per_beat, "time_signature": "4/4"}
    signatures = [token.split("_")[1] for token in tokens if token.startswith("TimeSig")]
    if len(set(signatures)) != 1 or (time_signature and signatures[0] != time_signature):
        return [*wrong, f"time signatures {set(signatures)}"]
    line["time_signature"] = signatures[0]
    steps = steps_per_bar(line)
    begun, notes, index = 0, [], 0
    while index < len(tokens):
        kinds = [token.split("_")[0] for token in tokens[index : index + 3]]
        values = [token.split("_")[-1] for token in tokens[index : index + 3]]
        if kinds == ["prefix", "Bar", "TimeSig"]:
            begun += 1
        elif kinds == ["Position", "Pitch", "Duration"] and begun:
            beats, parts, resolution = map(int, values[2].split("."))
            if resolution != processor.steps_per_beat:
                wrong.append(f"duration {values[2]}")
            if not 0 <= int(values[0]) < steps:
                wrong.append(f"position {values[0]} in {signatures[0]}")
            notes.append(((begun - 1) * steps + int(values[0]), beats * resolution + parts, int(values[1])))
        else:
            wrong.append(f"{tokens[index : index + 3]} at {index} of {len(tokens)}")
            break
        index += 3
    if begun != bars and bars is not None:
        wrong.append(f"{begun} bars, not {bars}")
    for (start, duration, _), (following, _, _) in pairwise(notes):
        if start + duration > following:
            wrong.append(f"the note at {start} lasts {duration}, the next begins at {following}")
    if notes and notes[-1][0] + notes[-1][1] > begun * steps:
        wrong.append(f"the last note ends at {notes[-1][0] + notes[-1][1]}, the melody at {begun * steps}")
    allowed = set(range(MIN_PITCH, MAX_PITCH + 1))
    for start, _, pitch in notes:
        if pitch not in (pitches or allowed if start >= primer * steps else allowed):
            wrong.append(f"pitch {pitch} at {start}")
    (read,) = processor.to_lines([ids])
    if list(zip(read["start"], read["duration"], read["pitch"], strict=True)) != notes:
        wrong.append("to_lines reads other notes")
    if (read["bars"], read["time_signature"]) != (begun, signatures[0]):
        wrong.append(f"to_lines reads {read['bars']} bars of {read['time_signature']}")
    return wrong


def words_of(processor: MelodyProcessor, ids: list[int]) -> list[str]:
    """Spell each bar out; what is before the first is left out."""
    text = " ".join(base_tokens(processor, [index for index in ids if index > EOS]))
    return [word.strip() for word in text.split("prefix")[1:]]


@torch.no_grad()
def generate(model: MelodyVAEModel, constraint: MelodyLogitsProcessor, inputs: torch.Tensor, **kwargs) -> torch.Tensor:
    """Generate with nothing but the constraint under test; the latents differ from row to row."""
    kwargs = {"do_sample": True, "temperature": 1.5, "top_k": 0, "max_length": N * MAX_TOKENS_PER_BAR * 2, **kwargs}
    latent = torch.randn(len(inputs), model.config.latent_size) if model.config.latent_size else None
    return model.generate(inputs, latent=latent, logits_processor=LogitsProcessorList([constraint]), **kwargs)


def starts(n: int) -> torch.Tensor:
    return torch.full((n, 1), BOS)


def pitches_of(scale: str | None, low: int = MIN_PITCH, high: int = MAX_PITCH) -> set[int]:
    mask = scale_mask(scale) if scale else 0xFFF
    return {pitch for pitch in range(low, high + 1) if mask >> pitch % 12 & 1}


# --- Scales ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "names"),
    [
        ("C major", "C D E F G A B"),
        ("D dorian", "C D E F G A B"),
        ("E phrygian", "C D E F G A B"),
        ("F lydian", "C D E F G A B"),
        ("G mixolydian", "C D E F G A B"),
        ("a minor", "C D E F G A B"),
        ("A Aeolian", "C D E F G A B"),
        ("B locrian", "C D E F G A B"),
        ("Bb ionian", "A# C D D# F G A"),
        ("F# harmonic minor", "F# G# A B C# D F"),
        ("G\u266d  melodic  minor", "F# G# A B C# D# F"),
        ("C\u266f major pentatonic", "C# D# F G# A#"),
        ("A minor pentatonic", "A C D E G"),
        ("E blues", "E G A A# B D"),
        ("Cb chromatic", "C C# D D# E F F# G G# A A# B"),
    ],
)
def test_scale_mask(scale, names):
    classes = ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"]
    assert [name for bit, name in enumerate(classes) if scale_mask(scale) >> bit & 1] == sorted(
        names.split(), key=classes.index
    )


@pytest.mark.parametrize("scale", ["H minor", "C", "D doric", "major", "", "C##major", "Cmajor"])
def test_unknown_scales_are_refused_with_the_known_ones(scale):
    with pytest.raises(ValueError, match=r"unknown scale .*major, ionian, dorian.*blues, chromatic"):
        scale_mask(scale)


# --- The table ------------------------------------------------------------------------------------------------------


@GRIDS
def test_grammar_table_has_each_remi_token_as_a_token_by_itself(steps_per_beat):
    """What the proof that there is always a token rests on."""
    processor = processor_for(steps_per_beat)
    vocabulary = processor.tokenizer.get_vocab()
    table = processor.grammar_table()
    assert len(table) == len(vocabulary)
    assert table[:, GRAMMAR_COLUMNS:].amax(0).all()  # no column that no token needs
    phases = {
        "Bar": (AFTER_PREFIX, AFTER_BAR),
        "TimeSig": (AFTER_BAR, RESTING),
        "Position": (RESTING, AFTER_POSITION),
        "Pitch": (AFTER_POSITION, AFTER_PITCH),
        "Duration": (AFTER_PITCH, RESTING),
    }
    for index in range(4, len(processor.remi)):
        token = processor.remi[index]
        row = table[vocabulary[chr(FIRST_CHARACTER + index)]]
        before, after = phases[token.split("_")[0]]
        assert row[TokenColumn.BEFORE] == (before if token != f"Pitch_{MAX_PITCH + 1}" else UNUSABLE)
        assert row[TokenColumn.AFTER] == after
        assert row[GRAMMAR_COLUMNS:].count_nonzero() == 1
    assert table[vocabulary[WORD_PREFIX]][[TokenColumn.BEFORE, TokenColumn.AFTER, TokenColumn.OPENS_BAR]].tolist() == [
        RESTING,
        AFTER_PREFIX,
        1,
    ]
    assert (table[:4, TokenColumn.AFTER] == UNCHANGED).all()
    assert not table[:4, GRAMMAR_COLUMNS:].any()
    assert (table[:4, TokenColumn.BEFORE] == UNUSABLE).all()
    assert sorted(table[:, TokenColumn.OPENS_BAR].nonzero().flatten().tolist()) == processor.bar_token_ids


@pytest.mark.parametrize(
    ("tokens", "opens_bar", "expected"),
    [
        ("Bar_None TimeSig_3/4 Position_2 Pitch_61", 1, [RESTING, AFTER_PITCH, 1, 0, 2, 2, 0, 61, 61, 2, 196, 12]),
        (
            "Duration_1.1.4 Position_5 Pitch_60 Duration_0.3.4 Position_8",
            0,
            [AFTER_PITCH, AFTER_POSITION, 0, 5, 5, 8, 8, 60, 60, 1, 0, 0],
        ),
        ("Pitch_64 Duration_2.0.4", 0, [AFTER_POSITION, RESTING, 0, 8, 1 << 14, -1, 0, 64, 64, 16, 0, 0]),
        ("", 1, [RESTING, AFTER_PREFIX, 1, 0, 1 << 14, -1, 0, 127, 0, 0, 0, 0]),
    ],
)
def test_summarise_token(tokens, opens_bar, expected):
    assert summarise_token(tokens.split(), bool(opens_bar), 4) == expected


@pytest.mark.parametrize(
    "tokens",
    [
        "Position_5 Pitch_60 Duration_0.3.4 Position_7",  # overlaps
        "Position_5 Pitch_60 Pitch_64",  # a chord
        "Duration_0.3.4 Position_5 Pitch_60 Duration_0.1.4 Position_5",  # does not rise
        "TimeSig_3/4 Position_12",  # outside the bar
        "Duration_0.3.4 TimeSig_3/4",
    ],
)
def test_what_no_melody_has_is_unusable(tokens):
    assert summarise_token(tokens.split(), False, 4)[TokenColumn.BEFORE] == UNUSABLE


def test_constraints_that_nothing_meets_are_refused():
    table = processor_for(4).grammar_table()
    with pytest.raises(ValueError, match=r"no pitch of the scale .* lowest_pitch=61 .*highest_pitch=61"):
        MelodyLogitsProcessor(table, EOS, pitch_classes=scale_mask("C major"), lowest_pitch=61, highest_pitch=61)
    with pytest.raises(ValueError, match=r"no pitch from lowest_pitch=70 to highest_pitch=60"):
        MelodyLogitsProcessor(table, EOS, lowest_pitch=70, highest_pitch=60)
    with pytest.raises(ValueError, match=r"time signature 13/8 is not in the vocabulary: 2/4, 3/4, 3/8"):
        MelodyLogitsProcessor(table, EOS, time_signature="13/8")
    with pytest.raises(ValueError, match="'waltz' is not of the form"):
        MelodyLogitsProcessor(table, EOS, time_signature="waltz")
    with pytest.raises(ValueError, match=r"bars=\[3, 0\]: a melody has at least one"):
        MelodyLogitsProcessor(table, EOS, bars=torch.tensor([3, 0]))
    with pytest.raises(ValueError, match="template and regenerate go together"):
        MelodyLogitsProcessor(table, EOS, template=starts(1))
    with pytest.raises(ValueError, match="the template has its own"):
        MelodyLogitsProcessor(table, EOS, template=starts(1), regenerate=starts(1) > 0, time_signature="4/4")


# --- Generation -----------------------------------------------------------------------------------------------------

ASKED = {
    "nothing": {},
    "bars": {"bars": True},
    "3/4": {"bars": True, "time_signature": "3/4"},
    "6/8 in a scale": {"bars": True, "time_signature": "6/8", "scale": "F# blues"},
    "a scale": {"bars": True, "scale": "D dorian", "lowest_pitch": 55, "highest_pitch": 67},
    "two notes": {"bars": True, "time_signature": "4/4", "scale": "Bb major", "lowest_pitch": 60, "highest_pitch": 63},
}


def constrain(processor: MelodyProcessor, bars: torch.Tensor, asked: dict, **kwargs) -> MelodyLogitsProcessor:
    asked = dict(asked)
    scale = asked.pop("scale", None)
    return MelodyLogitsProcessor(
        processor.grammar_table(),
        EOS,
        **{**asked, "bars": bars if asked.pop("bars", False) else None},
        pitch_classes=scale_mask(scale) if scale else None,
        max_bars=N,
        **kwargs,
    )


def check(processor, ids, bars, asked, primers=None) -> int:
    """Check each row, and that there is something in them; returns the number of rows."""
    pitches = pitches_of(
        asked.get("scale"), asked.get("lowest_pitch", MIN_PITCH), asked.get("highest_pitch", MAX_PITCH)
    )
    factor = len(ids) // len(bars)
    for index, row in enumerate(ids.tolist()):
        wanted = int(bars[index // factor]) if asked.get("bars") else None
        primer = 0 if primers is None else int(primers[index // factor])
        found = find_violations(processor, row, wanted, asked.get("time_signature"), pitches, primer)
        assert not found, (index, found)
    assert sum(len(line["pitch"]) for line in processor.to_lines(ids)) > len(ids) // 2
    return len(ids)


WAYS = {
    "sampling": {},
    "many each": {"num_return_sequences": 3},
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "sampled beams": {"num_beams": 3},
    "no cache": {"use_cache": False},
    "top_k": {"top_k": 2, "temperature": 0.7},
}


@GRIDS
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_random_models_generate_what_is_asked_for(steps_per_beat, asked):
    processor, model = processor_for(steps_per_beat), model_for(steps_per_beat)
    torch.manual_seed(1)
    bars = torch.randint(1, N + 1, (23,))
    check(processor, generate(model, constrain(processor, bars, asked), starts(23)), bars, asked)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_constraints_hold_however_one_generates(way):
    processor, model = processor_for(4), model_for(4)
    torch.manual_seed(2)
    bars = torch.tensor([3, 1, 5])
    for asked in (ASKED["nothing"], ASKED["6/8 in a scale"]):
        ids = generate(model, constrain(processor, bars, asked), starts(3), **way)
        assert len(ids) == 3 * way.get("num_return_sequences", 1)
        for index, row in enumerate(ids.tolist()):
            wanted = int(bars[index // (len(ids) // 3)]) if asked else None
            assert not find_violations(
                processor, row, wanted, asked.get("time_signature"), pitches_of(asked.get("scale"))
            )


def primer_of(processor: MelodyProcessor, lines: list[dict], cut: int = 0) -> torch.Tensor:
    """Make a primer, left-padded; `cut` takes tokens off its end, so that it may stop within a note."""
    rows = [row[: len(row) - cut] for row in processor(lines=lines, primer=True, padding=False)["input_ids"]]
    width = max(map(len, rows))
    return torch.tensor([[PAD] * (width - len(row)) + row for row in rows])


@GRIDS
@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_primer_is_continued_within_its_bars_and_notes(steps_per_beat, cut):
    processor, model = processor_for(steps_per_beat), model_for(steps_per_beat)
    generator = random.Random(cut)
    lines = [random_line(generator, steps_per_beat) for _ in range(29)]
    lines = [line for line in lines if line["bars"] <= 4]
    for line in lines:  # the last note rings on into what is generated
        line["duration"][-1] = 8 * steps_per_beat
    lines = [line for line in lines if line["start"][-1] + 8 * steps_per_beat <= N * steps_per_bar(line)]
    primer = primer_of(processor, lines, cut)
    given = torch.tensor([line["bars"] for line in lines])
    bars = torch.full((len(lines),), N)
    asked = {"bars": True, "scale": "E minor"}
    torch.manual_seed(3)
    ids = generate(model, constrain(processor, bars, asked), primer, attention_mask=(primer != PAD).long())
    assert torch.equal(ids[:, : primer.shape[1]], primer)
    # What lies in the last bar of a cut primer is partly its own, so the scale is asked of the bars after it.
    check(processor, ids, bars, asked, given)


def test_any_ids_can_be_gone_on_with():
    """However broken a beginning is, there is a token, and the melody comes to its end."""
    processor, model = processor_for(4), model_for(4)
    torch.manual_seed(4)
    broken = torch.randint(0, len(processor.tokenizer), (97, 17))
    broken[broken == EOS] = BOS
    broken[::2, ::4] = processor.tokenizer.get_vocab()[WORD_PREFIX]
    bars = torch.randint(1, N, (97,))
    for asked in (ASKED["nothing"], ASKED["two notes"], ASKED["6/8 in a scale"]):
        ids = generate(model, constrain(processor, bars, asked), broken)
        assert (ids == EOS).any(-1).all()


def make_templates(processor: MelodyProcessor, n: int, seed: int) -> tuple[list[dict], torch.Tensor, torch.Tensor]:
    """Make random lines, their ids and which of their bars to regenerate; none, all and everything between."""
    generator = random.Random(seed)
    lines = []
    while len(lines) < n:
        line = random_line(generator, processor.steps_per_beat)
        if line["bars"] <= N:
            lines.append(line)
    ids = torch.tensor(processor(lines=lines)["input_ids"])
    share = torch.linspace(0, 1, n)[:, None]
    return lines, ids, torch.rand(n, N) < share


INFILL_WAYS = {name: WAYS[name] for name in ("sampling", "many each", "greedy", "beams", "no cache")}


@GRIDS
@pytest.mark.parametrize("way", INFILL_WAYS.values(), ids=INFILL_WAYS)
def test_infill_leaves_the_other_bars_as_they_are(steps_per_beat, way):
    processor, model = processor_for(steps_per_beat), model_for(steps_per_beat)
    torch.manual_seed(5)
    lines, template, regenerate = make_templates(processor, 31, seed=5)
    regenerate[:, 0] |= regenerate.sum(-1) == 0  # beams need a choice
    constraint = constrain(processor, torch.tensor([]), {}, template=template, regenerate=regenerate)
    ids = generate(model, constraint, starts(31), **way)
    changed = check_infill(processor, ids, lines, template, regenerate)
    assert changed > 20


def check_infill(processor, ids, lines, template, regenerate, pitches=None) -> int:
    changed = 0
    factor = len(ids) // len(template)
    for index, row in enumerate(ids.tolist()):
        line, flags = lines[index // factor], regenerate[index // factor].tolist()
        found = find_violations(processor, row, line["bars"], line["time_signature"])
        assert not found, (index, found)
        old, new = words_of(processor, template[index // factor].tolist()), words_of(processor, row)
        for bar, (before, after) in enumerate(zip(old, new, strict=True)):
            if flags[bar]:
                changed += before != after
            else:
                assert before == after, (index, bar)
        (read,) = processor.to_lines([row])
        steps = steps_per_bar(line)
        kept = [
            [
                note
                for note in zip(each["start"], each["duration"], each["pitch"], strict=True)
                if not flags[note[0] // steps]
            ]
            for each in (line, read)
        ]
        assert kept[0] == kept[1], index
        fresh = {pitch for start, pitch in zip(read["start"], read["pitch"], strict=True) if flags[start // steps]}
        assert not pitches or fresh <= pitches
    return changed


def test_infill_in_a_scale_keeps_what_is_not_in_it():
    processor, model = processor_for(4), model_for(4)
    lines, template, regenerate = make_templates(processor, 31, seed=6)
    asked = {"scale": "C minor pentatonic", "lowest_pitch": 60}
    constraint = constrain(processor, torch.tensor([]), asked, template=template, regenerate=regenerate)
    torch.manual_seed(6)
    ids = generate(model, constraint, starts(31))
    check_infill(processor, ids, lines, template, regenerate, pitches_of("C minor pentatonic", 60))


def test_infill_of_no_bar_is_the_template_and_bars_past_it_are_free():
    processor, model = processor_for(4), model_for(4)
    _, template, _ = make_templates(processor, 5, seed=7)
    nothing = torch.zeros(5, N, dtype=torch.bool)
    constraint = constrain(processor, torch.tensor([]), {}, template=template, regenerate=nothing)
    ids = generate(model, constraint, starts(5))
    assert torch.equal(ids, template[:, : ids.shape[1]])
    longer = torch.full((5,), N)
    constraint = constrain(processor, torch.tensor([N]), {"bars": True}, template=template, regenerate=nothing)
    ids = generate(model, constraint, starts(5))
    check(processor, ids, longer, {"bars": True})
    for row, given in zip(ids.tolist(), template.tolist(), strict=True):
        old = words_of(processor, given)
        assert words_of(processor, row)[: len(old)] == old


def test_a_note_that_is_held_over_blocks_the_regenerated_bar():
    """A note of 20 steps from step 14 on leaves nothing of the next bar and two steps less of the one after."""
    processor, model = processor_for(4), model_for(4)
    line = {**LINE, "pitch": [60, 65], "start": [14, 48], "duration": [20, 4], "bars": 4}
    template = torch.tensor(processor(lines=line)["input_ids"])
    regenerate = torch.tensor([[False, True, True, False]])
    constraint = constrain(processor, torch.tensor([]), {}, template=template, regenerate=regenerate)
    torch.manual_seed(8)
    onsets = set()
    for read in processor.to_lines(generate(model, constraint, starts(1), num_return_sequences=101)):
        notes = list(zip(read["pitch"], read["start"], read["duration"], strict=True))
        assert notes[0] == (60, 14, 20)
        assert notes[-1] == (65, 48, 4)
        onsets |= set(read["start"][1:-1])
        assert max(start + duration for _, start, duration in notes[:-1]) <= 48
    assert min(onsets) == 34


# --- Probabilities --------------------------------------------------------------------------------------------------


def spell(processor: MelodyProcessor, *tokens: str) -> list[int]:
    """Write REMI tokens as ids, one each."""
    vocabulary = processor.tokenizer.get_vocab()
    return [
        vocabulary[WORD_PREFIX] if token == "prefix" else vocabulary[chr(FIRST_CHARACTER + processor.remi[token])]
        for token in tokens
    ]


BAR = ("prefix", "Bar_None", "TimeSig_4/4")


def test_the_mass_of_a_bars_end_goes_to_what_the_bars_call_for():
    processor = processor_for(4)
    table = processor.grammar_table()
    opens = table[:, TokenColumn.OPENS_BAR] == 1
    ids = torch.tensor([[BOS, *spell(processor, *BAR)]] * 3)
    torch.manual_seed(9)
    scores = torch.randn(3, len(table)).log_softmax(-1)
    legal = MelodyLogitsProcessor(table, EOS, bars=torch.tensor([2, 1, 5]))(ids, scores.clone())
    fits = opens & (legal[0] > -torch.inf)
    assert fits.sum() > 2
    mass = torch.logaddexp(scores[:, fits].logsumexp(-1), scores[:, EOS])
    for row, goes_on in enumerate([True, False, True]):
        new_bar = legal[row, fits].logsumexp(-1)
        if goes_on:
            torch.testing.assert_close(new_bar, mass[row])
            gain = legal[row, fits] - scores[row, fits]
            torch.testing.assert_close(gain, gain[:1].expand_as(gain))
            assert legal[row, EOS] == -torch.inf
        else:
            torch.testing.assert_close(legal[row, EOS], mass[row])
            assert new_bar == -torch.inf
        inner = ~opens & (legal[row] > -torch.inf)
        inner[EOS] = False
        assert inner.sum() > 3
        assert torch.equal(legal[row, inner], scores[row, inner])


def test_where_the_model_decides_nothing_is_moved():
    processor = processor_for(4)
    table = processor.grammar_table()
    ids = torch.tensor(
        [
            [BOS, *spell(processor, *BAR, "Position_8", "Pitch_60", "Duration_2.0.4")],
            [BOS, *spell(processor, *BAR, "Position_8", "Pitch_60", "Duration_3.0.4")],  # rings on: no end here
        ]
    )
    torch.manual_seed(10)
    scores = torch.randn(2, len(table))
    legal = MelodyLogitsProcessor(table, EOS, max_bars=3)(ids, scores.clone())
    allowed = legal[0] > -torch.inf
    assert allowed[EOS]
    assert torch.equal(legal[0, allowed], scores[0, allowed])
    assert legal[1, EOS] == -torch.inf
    ends = MelodyLogitsProcessor(table, EOS, max_bars=1)(ids[:1], scores[:1].clone())
    assert (ends > -torch.inf).nonzero().tolist()[0] == [0, EOS]


@pytest.fixture(scope="module")
def merged() -> MelodyProcessor:
    """Train on a few tunes, again and again, so that there are tokens of whole bars and several notes."""
    generator = random.Random(14)
    few = [{**random_line(generator, 4), "time_signature": "4/4"} for _ in range(9)]
    few = [{**line, "bars": line["start"][-1] // 16 + 1} for line in few]
    return MelodyProcessor.train([line_to_words(line) for line in few] * 3, vocab_size=997)


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize(
    ("bars", "tail"),
    [
        (1, ""),
        (1, "Position_6 Pitch_60 Duration_1.2.4"),  # ends at step 12 of 16
        (1, "Position_2"),
        (1, "Position_13"),
        (1, "Position_2 Pitch_60"),
        (1, "Position_13 Pitch_60"),
        (2, "Position_8 Pitch_60 Duration_3.0.4"),  # ends at step 4 of the next bar
        (3, "Position_8 Pitch_60 Duration_7.0.4"),  # ends at step 4 of the bar after the next
        (2, "prefix"),
        (2, "Position_8 Pitch_60 Duration_3.0.4 prefix Bar_None"),
        (2, "Position_8 Pitch_60 Duration_3.0.4 prefix Bar_None TimeSig_4/4"),
    ],
)
def test_exactly_the_tokens_that_fit_are_allowed(merged, tail, bars, more):
    """Against brute force: a token is allowed if and only if what it makes can still become a melody."""
    table = merged.grammar_table()
    bars += more
    ids = [BOS, *spell(merged, *BAR, *tail.split())]
    constraint = MelodyLogitsProcessor(table, EOS, bars=torch.tensor([bars]))
    legal = constraint(torch.tensor([ids]), torch.zeros(1, len(table)))[0] > -torch.inf
    finish = {
        RESTING: (),
        AFTER_POSITION: ("Pitch_60", "Duration_0.1.4"),
        AFTER_PITCH: ("Duration_0.1.4",),
        AFTER_PREFIX: ("Bar_None", "TimeSig_4/4"),
        AFTER_BAR: ("TimeSig_4/4",),
    }
    for token in range(4, len(table)):
        row = [*ids, token, *spell(merged, *finish[int(table[token, TokenColumn.AFTER])])]
        row += spell(merged, *BAR) * (bars - int(table[row, TokenColumn.OPENS_BAR].sum()))
        is_melody = not find_violations(merged, [*row, EOS], bars)
        assert legal[token] == is_melody, merged.tokenizer.convert_ids_to_tokens(token)
    assert legal[:4].tolist() == [False, False, not find_violations(merged, [*ids, EOS], bars), False]
    assert legal.any()


def test_no_bar_goes_on_for_ever():
    """A model that only ever wants the shortest notes ends each bar after MAX_TOKENS_PER_BAR tokens at most."""
    processor = processor_for(12)
    table = processor.grammar_table()
    wanted = spell(processor, *(f"Position_{step}" for step in range(48)), "Pitch_60", "Duration_0.1.12")
    scores = torch.zeros(1, len(table))
    scores[:, wanted] = 50.0 - torch.arange(len(wanted))
    constraint = MelodyLogitsProcessor(table, EOS, bars=torch.tensor([3]), time_signature="4/4")
    ids = starts(1)
    while ids[0, -1] != EOS:
        ids = torch.cat([ids, constraint(ids, scores.clone()).argmax(-1, keepdim=True)], dim=1)
    assert not find_violations(processor, ids[0].tolist(), 3, "4/4")
    opened = (table[ids[0], TokenColumn.OPENS_BAR] == 1).nonzero().flatten().tolist()
    lengths = [after - before for before, after in pairwise([*opened, ids.shape[1] - 1])]
    assert max(lengths) <= MAX_TOKENS_PER_BAR
    assert min(lengths) > MAX_TOKENS_PER_BAR - 3


def read_so_far(state: GrammarState) -> dict:
    """What a state holds of the melody so far."""
    return {name: value for name, value in vars(state).items() if name not in ("table", "wanted")}


def test_the_state_is_the_same_step_by_step_and_at_once():
    """Kept, reordered (beams) and recomputed states agree, and so do the scores."""
    processor = processor_for(4)
    table = processor.grammar_table()
    generator = random.Random(11)
    lines = [random_line(generator, 4) for _ in range(5)]
    ids = processor(lines=lines, return_tensors="pt")["input_ids"]
    stepwise = MelodyLogitsProcessor(table, EOS, bars=torch.tensor([16]))
    recomputed = 0
    torch.manual_seed(11)
    for length in range(1, 61):
        order = torch.randint(0, 5, (5,)) if length % 3 else torch.arange(5)
        ids = ids[order]
        recomputed += stepwise._parents(ids[:, :length].numpy()) is None
        scores = torch.randn(5, len(table))
        at_once = MelodyLogitsProcessor(table, EOS, bars=torch.tensor([16]))
        assert torch.equal(stepwise(ids[:, :length], scores.clone()), at_once(ids[:, :length], scores.clone()))
        assert [read_so_far(state) for state in stepwise.states] == [read_so_far(state) for state in at_once.states]
    assert recomputed == 1
    other = ids.flip(0)[:, 1:31]
    again = MelodyLogitsProcessor(table, EOS).states_of(other)
    assert [read_so_far(state) for state in stepwise.states_of(other)] == [read_so_far(state) for state in again]


def test_mode_and_time_signature_names_are_distinct():
    assert len({time_signature_id(name) for name in ("2/4", "4/4", "3/8", "6/8", "12/8")}) == 5
    assert all(intervals[0] == 0 and list(intervals) == sorted(set(intervals)) for intervals in MODES.values())


# --- Many -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@GRIDS
def test_none_of_ten_thousand_random_samples_is_invalid(steps_per_beat):
    processor, model = processor_for(steps_per_beat), model_for(steps_per_beat)
    torch.manual_seed(12)
    counted = 0
    for asked in ASKED.values():
        for _ in range(2):
            bars = torch.randint(1, N + 1, (425,))
            ids = generate(model, constrain(processor, bars, asked), starts(425))
            counted += check(processor, ids, bars, asked)
    assert counted == 5100


@pytest.mark.slow
def test_none_of_the_releases_samples_is_invalid():
    processor = MelodyProcessor.from_pretrained(RELEASE)
    model = MelodyVAEModel.from_pretrained(RELEASE)
    torch.manual_seed(13)
    counted = 0
    for asked in ASKED.values():
        bars = torch.randint(1, 9, (334,))
        ids = generate(model, constrain(processor, bars, asked), starts(334))
        counted += check(processor, ids, bars, asked)
    lines, template, regenerate = make_templates(processor, 100, seed=13)
    constraint = constrain(processor, torch.tensor([]), {}, template=template, regenerate=regenerate)
    check_infill(processor, generate(model, constraint, starts(100)), lines, template, regenerate)
    assert counted == 2004
