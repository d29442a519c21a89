"""What a model does with melodies once it knows its tokens: scales, infill, pieces longer than a latent."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import StoppingCriteria, TopPLogitsWarper

from evaluation.operations import is_valid
from modeling import MelodyVAEModel, decoding_melody_vae
from modeling.decoding_melody_vae import CloseCallError, sample_categorical, sample_top_p, sample_with_generators
from modeling.melody_line_melody_vae import KEY_NAMES, MAX_PITCH, MIN_PITCH, key_of
from modeling.options_melody_vae import FREE_DRAWS
from tests.builders.lines import processor_for
from tests.builders.models import make_model, model_for

BAR_STEPS = 16


@pytest.fixture(scope="module")
def processor():
    return processor_for(4)


@pytest.fixture(scope="module")
def model(processor) -> MelodyVAEModel:
    model = copy.deepcopy(model_for(4))
    model.set_grammar(processor.grammar_table())
    return model


def notes(line, bars):
    return [
        note
        for note in zip(line["start"], line["duration"], line["pitch"], strict=True)
        if note[0] // BAR_STEPS in bars
    ]


def test_a_sample_is_in_the_scale_range_and_time_signature_asked_for(model, processor):
    asked = {"scale": "Bb mixolydian", "time_signature": "3/4", "lowest_pitch": 55, "highest_pitch": 79}
    lines = processor.to_lines(model.sample(5, seed=0, bars=3, temperature=1.5, **asked))
    assert {pitch % 12 for line in lines for pitch in line["pitch"]} <= {10, 0, 2, 3, 5, 7, 8}
    assert {line["time_signature"] for line in lines} == {"3/4"}
    assert all(55 <= pitch <= 79 for line in lines for pitch in line["pitch"])
    assert [line["bars"] for line in lines] == [3] * 5


def test_what_is_sampled_can_be_trained_on(model):
    ids = model.sample(2, seed=0, bars=2)
    assert not ids.is_inference()
    model(ids, labels=ids).loss.backward()
    assert model.embed_tokens.weight.grad is not None
    model.zero_grad()


def test_refined_latents_give_their_melodies_back_more_likely(processor, monkeypatch):
    model = make_model(processor, max_bars=2, noise_probability=0.5)
    model.set_grammar(processor.grammar_table())
    lines = [{"pitch": [60, 64, 67], "start": [0, 4, 8], "duration": [4, 4, 8]}]
    lines.append({"pitch": [62, 65], "start": [0, 8], "duration": [8, 8]})
    lines = [{**line, "time_signature": "4/4", "steps_per_beat": 4, "bars": 1} for line in lines]
    ids = processor(lines=lines, return_tensors="pt")["input_ids"]
    latent = model.encode(ids).latent_mean.detach()

    def nats(latent):
        with torch.no_grad():
            logits = model(ids, latent=latent, noise_level=torch.zeros(2, 2)).logits
        lost = torch.nn.functional.cross_entropy(logits[:, :-1].mT, ids[:, 1:], ignore_index=0, reduction="none")
        return lost.sum(-1)

    assert torch.equal(model.refine(latent, ids, steps=0), latent)
    few = model.refine(latent, ids, steps=5)
    assert (nats(few) < nats(latent)).all()
    torch.testing.assert_close(model.refine(latent[1:], ids[1:], steps=5), few[1:], rtol=1e-3, atol=1e-4)
    left = torch.nn.functional.pad(ids, (3, 0))
    torch.testing.assert_close(model.refine(latent, left, steps=5), few, rtol=1e-3, atol=1e-4)  # padding on either side
    assert torch.equal(model.reconstruct(ids), model.decode(model.refine(latent, ids), bars=1))
    assert torch.equal(model.reconstruct(ids, refinement_steps=0), model.decode(latent, bars=1))
    forward = model.forward

    def knows_the_first(input_ids, **inputs):
        output, is_first = forward(input_ids, **inputs), (input_ids == ids[0]).all(-1)
        following = torch.nn.functional.one_hot(input_ids.roll(-1, 1), output.logits.shape[-1])
        output.logits = output.logits + 100 * following * is_first[:, None, None]
        return output

    monkeypatch.setattr(model, "forward", knows_the_first)
    with torch.inference_mode():
        both = model.refine(latent, ids, steps=5)
    assert torch.equal(both[0], latent[0])  # it came back to begin with
    assert not torch.equal(both[1], latent[1])
    assert all(weight.grad is None for weight in model.parameters())
    with pytest.raises(ValueError, match="latent"):
        model.refine(latent[:1], ids)


def test_infill_gives_the_other_bars_back_as_they_are(model, processor):
    ids = model.sample(4, seed=1, bars=6, time_signature="4/4")
    filled = model.infill(ids, ids.ne(0).long(), bars=[1, 4], seed=2)
    again = model.infill(ids, ids.ne(0).long(), bars=[1, 4], seed=2)
    assert torch.equal(filled, again)
    kept = [0, 2, 3, 5]
    for before, after in zip(processor.to_lines(ids), processor.to_lines(filled), strict=True):
        assert notes(after, kept) == notes(before, kept)
        assert after["bars"] == 6
    before, after = ([notes(line, [1, 4]) for line in processor.to_lines(each)] for each in (ids, filled))
    assert before != after
    with pytest.raises(ValueError, match="bar 6 cannot be filled: bars count from 0 to 5 here"):
        model.infill(ids, bars=[6])


def test_the_infill_is_the_candidate_that_leads_best_to_what_follows(processor, monkeypatch):
    model = make_model(processor, max_bars=model_for(4).config.max_bars, noise_probability=0.5, sampling_noise=0.4)
    model.set_grammar(processor.grammar_table())
    ids = model.sample(3, seed=1, bars=6, time_signature="4/4")
    kept = [bar for bar in range(6) if bar not in (1, 4)]

    candidates, choose = [], type(model)._best_candidates
    monkeypatch.setattr(type(model), "_best_candidates", lambda *args: candidates.append(args[1]) or choose(*args))
    chosen = model.infill(ids, bars=[1, 4], seed=2, candidates=5)
    drawn = candidates[0].unflatten(0, (3, 5))
    padding = (0, drawn.shape[-1] - chosen.shape[-1])
    is_chosen = (torch.nn.functional.pad(chosen, padding)[:, None] == drawn).all(-1)
    assert is_chosen.any(-1).all()
    assert len({tuple(row) for row in drawn.flatten(0, 1).tolist()}) > 3
    for melody, which in zip(drawn, is_chosen.int().argmax(-1), strict=True):
        nats = []
        for row in melody:
            each, bar, total = model._unconditional_nats(row[None])[0].tolist(), -1, 0.0
            for token, value in zip(row[1:].tolist(), each, strict=True):
                bar += int(model.is_bar_token[token])
                total += value if bar > 1 and bar in kept else 0.0
            silent = sum(not notes(line, [b]) for line in processor.to_lines(row[None]) for b in (1, 4))
            nats.append((silent, total))
        assert nats[which] == min(nats)


def test_with_noise_the_other_bars_stay_and_long_pieces_go_on(processor):
    noisy = make_model(processor, max_bars=model_for(4).config.max_bars, noise_probability=0.5, sampling_noise=0.4)
    noisy.set_grammar(processor.grammar_table())
    ids = noisy.sample(3, seed=1, bars=6, time_signature="4/4")
    filled = noisy.infill(ids, bars=[1, 4], seed=2)
    assert not torch.equal(filled, noisy.infill(ids, bars=[1, 4], seed=2, noise_level=0.0))
    for before, after in zip(processor.to_lines(ids), processor.to_lines(filled), strict=True):
        assert notes(after, [0, 2, 3, 5]) == notes(before, [0, 2, 3, 5])
    bars = 2 * noisy.config.max_bars
    pieces = [noisy.sample(2, seed=3, bars=bars, **options) for options in ({}, {"noise_level": 0.0})]
    assert all(line["bars"] == bars for piece in pieces for line in processor.to_lines(piece))
    assert not torch.equal(*pieces)


def test_a_piece_longer_than_a_latent_is_carried_on_from_its_second_half(model, processor):
    bars = 3 * model.config.max_bars + 1
    ids = model.sample(2, seed=3, bars=bars, time_signature="4/4")
    assert [line["bars"] for line in processor.to_lines(ids)] == [bars, bars]
    assert torch.equal(ids, model.sample(2, seed=3, bars=bars, time_signature="4/4"))
    parts = model._split_bars(ids)
    assert [len(part) for part in parts] == [bars, bars]
    assert torch.equal(model._join_bars(parts), ids)


def test_open_bars_are_padded_before_and_have_no_end(model):
    joined = model._join_bars([[[7, 8]], [[7], [9, 10]]], is_open=True)
    pad, bos = model.config.pad_token_id, model.config.bos_token_id
    assert joined.tolist() == [[pad, bos, 7, 8], [bos, 7, 9, 10]]


def test_without_the_grammar_constraints_are_refused(processor):
    plain = model_for(4)
    with pytest.raises(ValueError, match="does not know its tokens"):
        plain.sample(1, scale="C major")


def test_the_grammar_is_saved_and_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = MelodyVAEModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.token_grammar, model.token_grammar)
    assert torch.equal(loaded.sample(2, seed=4, bars=2), model.sample(2, seed=4, bars=2))


# --- Reading, conditions, sections ----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps_per_beat", [4, 12])
def test_the_model_reads_its_melodies_as_the_processor_does(steps_per_beat):
    processor, model = processor_for(steps_per_beat), copy.deepcopy(model_for(steps_per_beat))
    model.set_grammar(processor.grammar_table())
    for bars in (1, 4):
        ids = model.sample(23, seed=bars, bars=bars, temperature=1.5)
        assert model.read_lines(ids) == processor.to_lines(ids)
    (silent,) = model.read_lines(torch.tensor([[model.config.bos_token_id, model.config.eos_token_id]]))
    assert (silent["pitch"], silent["bars"]) == ([], 0)


def test_each_melody_can_have_a_time_signature_of_its_own(model, processor):
    signatures = ["3/4", "6/8", "4/4", "3/4"]
    bos = torch.full((4, 1), model.config.bos_token_id)
    ids = model.generate(bos, bars=2, do_sample=True, top_k=0, time_signature=signatures)
    assert [line["time_signature"] for line in processor.to_lines(ids)] == signatures
    with pytest.raises(ValueError, match="3 time signatures for 4 melodies"):
        model.generate(bos, bars=torch.tensor([2] * 4), time_signature=signatures[:3])


@pytest.fixture(scope="module")
def told(model) -> MelodyVAEModel:
    """Add a prior that knows keys and time signatures, untrained."""
    config = copy.deepcopy(model.config)
    config.num_prior_layers = 1
    config.conditions = {"key": list(KEY_NAMES), "time_signature": ["4/4", "3/4"]}
    told = MelodyVAEModel(config).eval()
    told.load_state_dict(told.state_dict() | model.state_dict())
    return told


def test_melodies_in_another_key_are_drawn_again(told, processor):
    drawn = Counter(key_of(line) for line in processor.to_lines(told.sample(97, seed=4, bars=2)))
    (first_key, _), (second_key, _) = drawn.most_common(2)
    asked = {"key": [first_key, second_key, first_key], "time_signature": ["3/4", "4/4", "3/4"]}
    first = told.sample(3, seed=5, bars=2, conditions=asked, max_attempts=1)
    ids = told.sample(3, seed=5, bars=2, conditions=asked, max_attempts=97)
    lines = processor.to_lines(ids)
    assert [key_of(line) for line in lines] == asked["key"]
    assert [line["time_signature"] for line in lines] == asked["time_signature"]
    kept = [row for row, line in enumerate(processor.to_lines(first)) if key_of(line) == asked["key"][row]]
    assert len(kept) < 3
    for row in kept:
        assert processor.to_lines(first)[row] == lines[row]
    assert torch.equal(ids, told.sample(3, seed=5, bars=2, conditions=asked, max_attempts=97))


def test_a_melody_of_the_same_mode_is_transposed_to_the_key(told, processor):
    asked = {"bars": 2, "seed": 5}
    drawn = processor.to_lines(told.sample(24, **asked))
    asked_for = told.sample(24, conditions={"key": "D minor"}, noise_level=0.0, max_attempts=1, **asked)
    free = told.sample(24, conditions={"key": "D minor"}, noise_level=0.0, max_attempts=1, lowest_pitch=21, **asked)
    moved = 0
    for line, before in zip(processor.to_lines(asked_for), processor.to_lines(free), strict=True):
        up = {a - b for a, b in zip(line["pitch"], before["pitch"], strict=True)}
        can_move = all(MIN_PITCH + 6 <= pitch <= MAX_PITCH - 6 for pitch in before["pitch"])
        if not key_of(before).endswith("minor"):
            assert line == before
        elif can_move:
            assert key_of(line) == "D minor"
        assert len(up) <= 1
        assert all(-6 <= semitones <= 5 for semitones in up)
        moved += bool(up - {0})
        assert {**line, "pitch": []} == {**before, "pitch": []}
    assert moved > 3
    assert {key_of(line) for line in drawn} > {"D minor"}


def test_after_some_free_draws_nothing_lies_outside_the_key(told, processor):
    asked = {"conditions": {"key": "D minor"}, "bars": 2, "seed": 5}
    freely, strictly = (
        processor.to_lines(told.sample(48, max_attempts=max_attempts, **asked))
        for max_attempts in (FREE_DRAWS, FREE_DRAWS + 1)
    )
    again = [new for old, new in zip(freely, strictly, strict=True) if key_of(old) != "D minor"]
    assert again
    assert {pitch % 12 for line in again for pitch in line["pitch"]} <= {2, 4, 5, 7, 9, 10, 0}
    scale = told.sample(24, max_attempts=3, scale="C major pentatonic", **asked)  # a scale that is asked for stays
    assert {pitch % 12 for line in processor.to_lines(scale) for pitch in line["pitch"]} <= {0, 2, 4, 7, 9}


def test_sections_return_as_often_as_the_configuration_says(told, processor):
    model = copy.deepcopy(told)
    size = model.config.max_bars // 2
    model.config.section_returns = [0.0, 1.0]
    parts = model._split_bars(model.sample(3, seed=6, bars=5 * size, conditions={"time_signature": "3/4"}))
    for bars in parts:
        sections = [bars[at : at + size] for at in range(0, 5 * size, size)]
        assert sections[0] != sections[1]
        assert sections[2] == sections[4] == sections[0]
        assert sections[3] == sections[1]
    model.config.section_returns = [0.5]
    ids = model.sample(29, seed=7, bars=3 * size)
    same = [bars[:size] == bars[size : 2 * size] for bars in model._split_bars(ids)]
    assert 5 <= sum(same) <= 24  # 14.5 expected, 3.5 standard deviations
    for row, line in zip(ids.tolist(), processor.to_lines(ids), strict=True):
        assert is_valid(processor, row, line, 3 * size)


def test_the_prior_hears_of_the_time_signature_that_the_grammar_enforces(told, monkeypatch):
    model, heard = copy.deepcopy(told), []
    forward = model.prior.forward
    monkeypatch.setattr(
        model.prior, "forward", lambda *args: heard.append(args[-1]["time_signature"][:3].tolist()) or forward(*args)
    )
    known = model.config.conditions["time_signature"]
    model.sample(3, seed=0, bars=2, time_signature="3/4")
    assert heard[-1] == [known.index("3/4")] * 3
    model.sample(3, seed=0, bars=2, time_signature=["4/4", None, "5/4"])
    assert heard[-1] == [known.index("4/4"), len(known), len(known)]
    model.sample(3, seed=0, bars=2)
    assert heard[-1] == [len(known)] * 3


# --- Random numbers of each melody's own ----------------------------------------------------------------------------


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 * seed + number) for number in range(count)]


@pytest.fixture(scope="module")
def exact(told) -> MelodyVAEModel:
    """Compute in double precision, in which no rounding decides on a token, however many rows there are."""
    return copy.deepcopy(told).double()


ASKED = {
    "bars": [1, 4, 2, 6, 3],
    "temperature": [1.0, 1.7, 0.6],
    "scale": ["D dorian", None, "Bb major", None],
    "lowest_pitch": [None, 60],
    "highest_pitch": [None, None, 72],
    "time_signature": ["3/4", None, "4/4", "6/8", None],
}


def asked_of(rows) -> dict:
    return {name: [values[row % len(values)] for row in rows] for name, values in ASKED.items()}


def test_a_melody_depends_on_its_own_generator_alone(exact, processor):
    """Sixty-four melodies, of different bars and wishes: the same all together, by sevens, and by themselves."""
    keys = [None, "C major", "A minor"]

    def sample(rows):
        own = [generators(64)[row] for row in rows]
        conditions = {"key": [keys[row % 3] for row in rows]}
        ids = exact.sample(len(rows), generator=own, conditions=conditions, max_attempts=2, **asked_of(rows))
        return processor.to_lines(ids)

    together = sample(range(64))
    assert [line for at in range(0, 64, 7) for line in sample(range(at, min(at + 7, 64)))] == together
    for row in (0, 13, 63):
        assert sample([row]) == [together[row]]
    assert len({str(line) for line in together}) > 50


def test_each_melody_gets_what_it_is_asked_for(told, processor):
    rows = range(60)
    asked = asked_of(rows)
    lines = processor.to_lines(told.sample(60, generator=generators(60), **asked))
    dorian, flat = {2, 4, 5, 7, 9, 11, 0}, {10, 0, 2, 3, 5, 7, 9}
    for row, line in zip(rows, lines, strict=True):
        assert line["bars"] == asked["bars"][row]
        assert asked["time_signature"][row] in (None, line["time_signature"])
        assert asked["scale"][row] is None or {p % 12 for p in line["pitch"]} <= (flat, dorian)[row % 4 == 0]
        assert all(pitch >= (asked["lowest_pitch"][row] or 0) for pitch in line["pitch"])
        assert all(pitch <= (asked["highest_pitch"][row] or 127) for pitch in line["pitch"])
    free = [line for row, line in zip(rows, lines, strict=True) if row % 4 == 1 and row % 3]
    assert min(min(line["pitch"], default=127) for line in free) >= 60
    assert max(max(line["pitch"], default=0) for line in free) > 72
    assert any({pitch % 12 for pitch in line["pitch"]} - dorian - flat for line in free)


def test_variations_fillings_and_long_pieces_have_their_own_numbers_too(exact, processor):
    latent = exact.encode(exact.sample(1, seed=1, bars=4)).latent_mean
    ids = exact.sample(1, seed=3, bars=4, time_signature="4/4")
    for one, all_of_them in (
        (
            lambda own: exact.vary(latent, n=len(own), similarity=0.5, generator=own, bars=4),
            generators(11, 1),
        ),
        (
            lambda own: exact.infill(ids.repeat(len(own), 1), bars=[1, 2], generator=own),
            generators(11, 2),
        ),
        (
            lambda own: exact.sample(len(own), generator=own, bars=3 * exact.config.max_bars),
            generators(5, 3),
        ),
    ):
        states = [each.get_state() for each in all_of_them]
        together = processor.to_lines(one(all_of_them))
        assert len({str(line) for line in together}) > 2
        for row in (2, 4):
            again = torch.Generator()
            again.set_state(states[row])
            assert processor.to_lines(one([again])) == [together[row]]


def test_the_global_random_state_is_left_alone(told):
    before = torch.random.get_rng_state()
    told.sample(3, generator=generators(3), bars=2)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_index_is_chosen_as_often_as_its_weight_says():
    weights = torch.tensor([[0.0, 3.0, 0.0, 1.0, 7.0, 0.0]]).expand(1100, -1)
    share = (torch.arange(1100) + 0.5) / 1100
    assert sample_categorical(weights, share).bincount(minlength=6).tolist() == [0, 300, 0, 100, 700, 0]
    edges = sample_categorical(
        weights[:2], torch.tensor([0.0, 1 - 2**-24])
    )  # the least and the greatest that are ever drawn
    assert edges.tolist() == [1, 4]


def test_numbers_of_ones_own_follow_the_model(told):
    """The first tokens of 2000 melodies, against the probabilities that transformers' sampling draws from."""
    kept: list[torch.Tensor] = []

    def note(ids, scores):
        kept.append(scores.softmax(-1)[0])
        return scores

    bos = torch.full((2000, 1), told.config.bos_token_id)
    latent = torch.zeros(2000, told.config.latent_size)
    options = {"latent": latent, "bars": 2, "max_new_tokens": 1, "logits_processor": [note], "do_sample": True}
    options |= {"top_k": 0, "temperature": 0.8}
    drawn = told.generate(bos, custom_generate=sample_with_generators, generator=generators(2000), **options)[:, 1]
    expected = (2000 * kept[0].pow(1 / 0.8) / kept[0].pow(1 / 0.8).sum()).numpy()
    counts = drawn.bincount(minlength=len(expected)).numpy()
    assert counts[expected == 0].sum() == 0
    common = expected >= 5
    chi_square = ((counts - expected)[common] ** 2 / expected[common]).sum()
    assert common.sum() > 2
    assert chi_square < common.sum() + 5 * (2 * common.sum()) ** 0.5


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"generator": generators(2)}, "2 generators for 3 melodies"),
        ({"generator": generators(3), "seed": 1}, "seed=1 and generator: give one of them"),
        ({"generator": generators(3), "bars": [2, 3]}, "2 values of bars for 3 melodies"),
        ({"generator": generators(3), "scale": ["C major"] * 4}, "4 values of scale for 3 melodies"),
        ({"generator": generators(3), "bars": [2, 3, 99]}, "bars=99: a latent holds at most max_bars="),
        ({"generator": generators(3), "lowest_pitch": [None, 60, 99], "highest_pitch": 72}, "from lowest_pitch=99 to"),
        ({"temperature": [1.0, 1.0]}, "2 values of temperature for 3 melodies"),
    ],
)
def test_what_is_not_one_for_each_melody_is_refused(told, asked, message):
    with pytest.raises(ValueError, match=message):
        told.sample(3, **asked)


@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.965, 0.9999])
def test_likely_tokens_are_those_that_transformers_keeps(top_p):
    generator = torch.Generator().manual_seed(3)
    scores = 3 * torch.randn(61, 53, generator=generator)
    scores[::2, 7:40] = -torch.inf
    scores[5, 1:] = -torch.inf
    scores[11] = 0.0  # all alike
    share = torch.rand(61, generator=generator)
    kept = TopPLogitsWarper(top_p)(None, scores)
    kept = torch.where(scores >= kept.masked_fill(kept.isinf(), torch.inf).amin(-1, keepdim=True), scores, -torch.inf)
    drawn = sample_top_p(scores.softmax(-1).numpy(), share.numpy(), top_p)
    assert drawn.tolist() == sample_categorical(kept.softmax(-1), share).tolist()


@pytest.mark.parametrize(
    ("share", "top_p", "is_close"),
    [(0.25, 0.9, False), (0.5 / 0.95, 0.9, True), (0.5 / 0.95 + 1e-3, 0.9, False),
     (0.25, 0.8, False), (0.62, 0.8, True), (0.625, 0.8, True), (0.8, 0.8, False), (0.9, 0.8, True)],
)  # fmt: skip
def test_a_draw_that_rounding_decides_is_a_close_call(share, top_p, is_close):
    arguments = np.array([[0.5, 0.3, 0.15, 0.05]]), np.array([share]), top_p  # with 0.8, two are kept, or three
    if is_close:
        with pytest.raises(CloseCallError):
            sample_top_p(*arguments, 1e-4)
    else:
        assert sample_top_p(*arguments, 1e-4) == sample_top_p(*arguments)


@pytest.mark.parametrize(
    ("probabilities", "top_p"),
    [([0.5, 0.3, 0.1 + 1e-9, 0.1 - 1e-9], 0.85), ([0.4 + 1e-9, 0.4 - 1e-9, 0.2], 0.3), ([0.4, 0.4, 0.2], 0.0)],
)
def test_tokens_as_likely_as_the_last_one_kept_are_a_close_call(probabilities, top_p):
    with pytest.raises(CloseCallError):
        sample_top_p(np.array([probabilities]), np.array([0.95]), top_p, 1e-5)
    assert sample_top_p(np.array([probabilities]), np.array([0.95]), top_p).shape == (1,)


def test_what_has_a_memory_sees_every_token_once(told, monkeypatch):
    monkeypatch.setattr(decoding_melody_vae, "ROUNDING", 2.0)  # everything is close
    seen = []

    class Count(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            seen.append(input_ids.shape[1])
            return torch.zeros(len(input_ids), dtype=torch.bool)

    ids = told.generate(
        torch.full((1, 1), told.config.bos_token_id), latent=torch.zeros(1, told.config.latent_size), bars=3,
        do_sample=True, top_k=0, custom_generate=sample_with_generators, generator=generators(1),
        stopping_criteria=[Count()],
    )  # fmt: skip
    assert seen == list(range(2, ids.shape[1] + 1))


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_few_melodies_are_computed_as_few_unless_rounding_decides(told, monkeypatch, top_p):
    rows, decode = [], decoding_melody_vae.decode
    monkeypatch.setattr(
        decoding_melody_vae, "decode", lambda decoder, *args: rows.append(decoder.fewest_rows) or decode(decoder, *args)
    )
    options = {"bars": 3, "top_p": top_p, "candidates": 1}
    batch = told.sample(6, generator=generators(6), **options)
    assert rows == [decoding_melody_vae.FEWEST_ROWS]
    rows.clear()
    few = [told.sample(1, generator=[each], **options)[0] for each in generators(6)]
    assert set(rows[:1]) == {1}
    assert rows.count(1) == 6
    monkeypatch.setattr(decoding_melody_vae, "ROUNDING", 2.0)  # everything is close
    rows.clear()
    again = [told.sample(1, generator=[each], **options)[0] for each in generators(6)]
    assert rows == [1, decoding_melody_vae.FEWEST_ROWS] * 6
    for whole, one, other in zip(batch, few, again, strict=True):
        ends = torch.nn.utils.rnn.pad_sequence([whole, one, other], True, told.config.pad_token_id)
        assert (ends == ends[0]).all()
