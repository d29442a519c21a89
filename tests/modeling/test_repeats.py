"""Bars that come back: written as a choice, copied by the grammar, read by the melody decoder alone; and long rests."""

import copy
import random
from itertools import pairwise

import pytest
import torch
from transformers import LogitsProcessorList

from evaluation.model_evaluation import Evaluation
from modeling import MelodyProcessor, MelodyVAEModel
from modeling.logits_process_melody_vae import MelodyLogitsProcessor
from modeling.modeling_melody_vae import reconstruction_nats
from modeling.processing_melody_vae import steps_per_bar
from modeling.token_grammar_melody_vae import copied_tokens, mark_repeats
from tests.builders.lines import is_same, processor_for, random_line
from tests.builders.models import make_model

PAD, BOS, EOS = 0, 1, 2
LAGS = (1, 2, 4)
N = 8  # bars


@pytest.fixture(scope="module")
def processor() -> MelodyProcessor:
    processor = copy.deepcopy(processor_for(4))
    processor.max_bars = N
    processor.add_repeats(LAGS)
    return processor


@pytest.fixture(scope="module")
def model(processor) -> MelodyVAEModel:
    repeats = {"repeat_lags": list(processor.repeats), "repeat_token_ids": list(processor.repeats.values())}
    model = make_model(processor, **repeats, musical_time=True, musical_pitch=True, previous_token=True)
    model.set_grammar(processor.grammar_table())
    return model


def line_of_bars(order: str, seed: int = 0) -> dict:
    """A line in 4/4 with a bar for each letter, equal where the letters are; a full stop is a silent bar."""
    draw = random.Random(seed)
    bars = {letter: sorted(draw.sample(range(16), 4)) for letter in sorted({*order} - {"."})}
    pitches = {letter: [draw.randint(55, 80) for _ in starts] for letter, starts in bars.items()}
    line = {"time_signature": "4/4", "steps_per_beat": 4, "bars": len(order), "pitch": [], "start": [], "duration": []}
    for index, letter in enumerate(order):
        for start, pitch in zip(bars.get(letter, ()), pitches.get(letter, ()), strict=True):
            line["start"].append(16 * index + start)
            line["pitch"].append(pitch)
            line["duration"].append(1)
    return line


def bars_of(line: dict) -> list[list[tuple[int, int, int]]]:
    """The notes of each bar, from its bar line."""
    steps, bars = steps_per_bar(line), [[] for _ in range(line["bars"])]
    for note in zip(line["start"], line["duration"], line["pitch"], strict=True):
        bars[note[0] // steps].append((note[0] % steps, *note[1:]))
    return bars


def lags_named(processor: MelodyProcessor, ids: list[int]) -> list[int]:
    """Of each bar the number of bars back that the token before it names, 0 for none."""
    lag_of, opens = {token: lag for lag, token in processor.repeats.items()}, {*processor.bar_token_ids}
    return [lag_of.get(before, 0) for before, token in pairwise(ids) if token in opens]


@pytest.mark.parametrize(
    ("order", "lags"),
    [
        ("ABAB", [0, 0, 2, 2]),
        ("AAAA", [0, 1, 1, 1]),
        ("ABCDABCE", [0, 0, 0, 0, 4, 4, 4, 0]),
        ("A..A", [0, 0, 0, 0]),  # silence repeats nothing, and three bars back has no token
        ("ABCA", [0, 0, 0, 0]),
    ],
)
def test_bars_that_come_back_are_named_and_read_back_as_they_were(processor, order, lags):
    line = line_of_bars(order)
    ids = processor(lines=line).input_ids
    assert lags_named(processor, ids[0]) == lags
    assert is_same(processor.to_lines(ids)[0], line)
    plain = [token for token in ids[0] if token not in processor.repeats.values()]
    assert plain == processor_for(4)(lines=line).input_ids[0]


def test_a_saved_processor_keeps_the_tokens(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = MelodyProcessor.from_pretrained(tmp_path)
    assert again.repeats == processor.repeats == {lag: processor.repeats[lag] for lag in LAGS}
    again.add_repeats(LAGS)
    assert len(again.tokenizer) == len(processor.tokenizer)


def test_the_encoder_reads_notes_whatever_bars_are_called(processor, model):
    lines = [line_of_bars("ABABCCCC"), line_of_bars("ABCD", 1), line_of_bars("AAAA", 2)]
    marked = processor(lines=lines, return_tensors="pt")
    plain = processor_for(4)(lines=lines, return_tensors="pt")
    assert marked.input_ids.shape != plain.input_ids.shape
    torch.testing.assert_close(model.encode(**marked).latent_mean, model.encode(**plain).latent_mean)


def test_a_bar_that_is_named_costs_nothing_more(processor, model):
    batch = processor(lines=line_of_bars("ABAB"), return_tensors="pt")
    ids, repeats = batch.input_ids, [*processor.repeats.values()]
    copied = model._copied_tokens(ids)[0].tolist()
    # The third and fourth bars' tokens, but neither the tokens that name them nor the end.
    at = [place for place, token in enumerate(ids[0].tolist()) if token in repeats]
    expected = [at[0] < place < len(copied) - 1 and place != at[1] for place in range(len(copied))]
    assert copied == expected
    output = model(**batch, labels=ids)
    logits = output.logits.clone()
    logits[:, :-1][torch.tensor([copied])[:, 1:]] = torch.randn(logits.shape[-1])
    again = reconstruction_nats(logits, ids.masked_fill(torch.tensor([copied]), -100))
    torch.testing.assert_close(output.reconstruction_nats, again.mean())
    assert output.reconstruction_nats < reconstruction_nats(output.logits, ids).mean()


def test_evaluation_counts_no_copied_tokens(processor, model):
    lines = [line_of_bars("ABAB"), line_of_bars("ABCD", 1)]
    evaluation = Evaluation(model, processor, lines, batch_size=2, seed=0)
    ((batch, posterior),) = zip(evaluation.batches, evaluation.posteriors, strict=True)
    nats = evaluation.nats(batch, posterior.latent_mean)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    output = model(**batch, latent=posterior.latent_mean, labels=labels)
    assert model._copied_tokens(batch["input_ids"]).any()
    torch.testing.assert_close(nats.mean(), output.reconstruction_nats)


def test_copied_tokens_end_with_their_bar():
    opens = torch.tensor([False, False, False, True, False, False])
    ids = torch.tensor([[1, 3, 4, 5, 3, 4, 3, 4, 2, 0]])  # 5 names the bar after it
    copied = copied_tokens(ids, opens, ids == 5, eos_token_id=2)
    assert copied.int().tolist() == [[0, 0, 0, 0, 1, 1, 0, 0, 0, 0]]


def test_the_nearest_equal_bar_is_named():
    assert mark_repeats(["a", "b", "a", "a", "."], {1: "x", 2: "y"}, lambda bar: bar != ".") == [
        ["a"], ["b"], ["y", "a"], ["x", "a"], ["."]
    ]  # fmt: skip


@pytest.mark.parametrize("asked", [{}, {"scale": "D dorian"}, {"time_signature": "6/8"}, {"lowest_pitch": 60}])
def test_generated_bars_are_what_they_are_called(processor, model, asked):
    bias = torch.zeros(model.config.vocab_size)
    bias[[*processor.repeats.values()]] = 6.0  # such bars are many
    add = LogitsProcessorList([lambda ids, scores: scores + bias])
    named = 0
    for seed in range(6):
        latent = torch.randn(8, model.config.latent_size, generator=torch.Generator().manual_seed(seed))
        ids = model.decode(latent, seed=seed, do_sample=True, bars=N, logits_processor=add, **asked)
        for row, line in zip(ids.tolist(), processor.to_lines(ids), strict=True):
            assert line["bars"] == N
            bars, ends = bars_of(line), [*line["start"], steps_per_bar(line) * N]
            assert all(
                start + duration <= following
                for start, duration, following in zip(line["start"], line["duration"], ends[1:], strict=True)
            )
            for index, lag in enumerate(lags_named(processor, row)):
                assert not lag or (bars[index] and bars[index] == bars[index - lag])
                named += lag > 0
    assert named > 30


def test_a_bar_that_is_filled_by_an_earlier_one_is_copied_whole(processor, model):
    lines = [line_of_bars("ABCDEFGH", seed) for seed in range(16)]
    ids = processor(lines=lines, return_tensors="pt")["input_ids"]
    regenerate = torch.zeros(len(ids), N, dtype=torch.bool)
    regenerate[:, 3] = True
    bias = torch.zeros(model.config.vocab_size)
    bias[processor.repeats[1]] = 100.0
    wish = LogitsProcessorList([lambda _, scores: scores + bias])
    generator = [torch.Generator().manual_seed(seed) for seed in range(len(ids))]
    filled = model.generate(
        template=ids,
        regenerate=regenerate,
        do_sample=True,
        logits_processor=wish,
        **model._generation_kwargs({"generator": generator}),
    )
    for before, after in zip(lines, processor.to_lines(filled), strict=True):
        wanted = bars_of(before)
        wanted[3] = wanted[2]
        assert bars_of(after) == wanted


def test_states_are_the_same_in_one_call_or_step_by_step(processor, model):
    latent = torch.randn(4, model.config.latent_size, generator=torch.Generator().manual_seed(0))
    bias = torch.zeros(model.config.vocab_size)
    bias[[*processor.repeats.values()]] = 6.0
    add = LogitsProcessorList([lambda ids, scores: scores + bias])
    ids = model.decode(latent, seed=0, do_sample=True, bars=N, logits_processor=add)
    make = {"bars": torch.tensor([N]), "repeats": processor.repeats, "max_rest": 1.0}
    stepwise = MelodyLogitsProcessor(processor.grammar_table(), EOS, **make)
    for length in range(1, ids.shape[1] + 1):
        states = stepwise.states_of(ids[:, :length])
    at_once = MelodyLogitsProcessor(processor.grammar_table(), EOS, **make)
    assert [vars(state) for state in states] == [vars(state) for state in at_once.states_of(ids)]


def test_a_trained_model_goes_on_as_it_was(processor):
    plain = make_model(processor_for(4), max_bars=N, musical_time=True)
    plain.set_grammar(processor_for(4).grammar_table())
    taught = copy.deepcopy(plain)
    taught.add_repeats(processor.repeats)
    taught.set_grammar(processor.grammar_table())
    ids = processor_for(4)(lines=line_of_bars("ABCD"), return_tensors="pt").input_ids
    torch.testing.assert_close(taught(ids).logits[..., : plain.config.vocab_size], plain(ids).logits)
    with pytest.raises(ValueError, match="has a token"):
        taught.add_repeats(processor.repeats)


def longest_rest(line: dict) -> float:
    """The longest rest before a note, in bars."""
    ends = [0, *(start + duration for start, duration in zip(line["start"], line["duration"], strict=True))]
    return max((start - end for start, end in zip(line["start"], ends, strict=False)), default=0) / steps_per_bar(line)


@pytest.mark.parametrize("bars", [4, N])
def test_samples_rest_for_a_bar_at_most(processor, model, bars):
    silence = torch.zeros(model.config.vocab_size)
    silence[[token for token in processor.bar_token_ids if token not in processor.repeats.values()]] = 4.0
    add = LogitsProcessorList([lambda ids, scores: scores + silence])  # bars end as soon as they may
    latent = torch.randn(48, model.config.latent_size, generator=torch.Generator().manual_seed(1))
    free = model.decode(latent, seed=1, do_sample=True, bars=bars, logits_processor=add)
    short = model.decode(latent, seed=1, do_sample=True, bars=bars, logits_processor=add, max_rest=1.0)
    assert max(map(longest_rest, processor.to_lines(free))) > 1
    assert max(map(longest_rest, processor.to_lines(short))) <= 1
    assert all(line["bars"] == bars for line in processor.to_lines(short))


def test_what_rests_too_long_already_goes_on_with_a_note(processor, model):
    line = {**line_of_bars("A..."), "bars": 4}
    primer = processor(lines=line, return_tensors="pt", primer=True).input_ids
    ids = model.continue_melody(primer, bars=6, seed=0)
    after = processor.to_lines(ids)[0]
    assert bars_of(after)[:4] == bars_of(line)
    assert after["bars"] == 6


def test_random_lines_come_back_through_the_tokens(processor):
    draw = random.Random(3)
    for _ in range(50):
        line = random_line(draw, 4)
        line = {**line, "bars": min(line["bars"], N)}
        whole = [place for place, start in enumerate(line["start"]) if start < line["bars"] * steps_per_bar(line)]
        line |= {name: [line[name][place] for place in whole] for name in ("pitch", "start", "duration")}
        if line["pitch"]:
            assert is_same(
                processor.to_lines(processor(lines=line).input_ids)[0],
                processor_for(4).to_lines(processor_for(4)(lines=line).input_ids)[0],
            )
