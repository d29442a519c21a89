"""The baselines: causal by gradient, fast equals slow, padding changes nothing, saved equals loaded, steps and back."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, Trainer, TrainingArguments

import baselines
from baselines import (
    MODEL_TYPES,
    MusicVAEConfig,
    MusicVAEModel,
    StepCollator,
    StepProcessor,
    build,
    configure,
    processor_for,
)
from baselines.attention_lstm import AttentionLSTM
from baselines.configuration_baselines import MelodyLSTMConfig
from baselines.modeling_music_vae import StepEncoder
from baselines.processing_music_vae import NUM_CLASSES, PADDING, START, steps_to_line, texts_to_steps
from baselines.recurrence import Recurrence, RecurrentCache
from metrics.step_accuracy.step_accuracy import step_classes
from modeling import MelodyProcessor
from modeling.cache_melody_vae import CACHE_NAME
from modeling.line_writing_melody_vae import line_to_words, transposition_table
from modeling.modeling_melody_vae import NATS_PER_BIT
from tests.builders import models as tiny_models

B, T, N, Z = 3, 11, 5, 7  # N bars at most, Z latent size
ROOT = Path(__file__).parents[2]
LANGUAGE_MODELS = tuple(each for each in MODEL_TYPES if each != "music_vae")
RECURRENT = ("lstm", "rnn")
SIZES = {
    "music_vae": {"encoder_size": 13, "decoder_size": 11, "latent_size": Z, "free_bits": 0.0},
    "lstm": {"hidden_size": 11, "recurrent_size": 13, "attention_size": 5, "attention_length": 3},
    "rnn": {"hidden_size": 11, "recurrent_size": 13},
    "music_transformer": {"hidden_size": 10, "intermediate_size": 13, "num_attention_heads": 2, "num_hidden_layers": 3},
}
SIZES["music_transformer_absolute"] = SIZES["music_transformer"]


def make_line(generator: random.Random, bars: int, time_signature: str = "4/4") -> dict:
    """Make a line whose last note rings to its end, some notes touching and some not."""
    steps = int(time_signature.split("/")[0]) * 4 * bars
    start = sorted({0, steps - 3, *generator.sample(range(steps), 3 * bars)})
    return {
        "pitch": [generator.randint(55, 79) for _ in start],
        "start": start,
        "duration": [min(end - begin, 7) for begin, end in zip(start, [*start[1:], steps], strict=True)],
        "time_signature": time_signature,
        "steps_per_beat": 4,
        "bars": bars,
    }


LINES = [make_line(random.Random(seed), bars) for seed, bars in enumerate((N, 2, 3))]
TEXTS = [" ".join(line_to_words(line)) for line in LINES]


@pytest.fixture(scope="module")
def processor() -> MelodyProcessor:
    lines = [make_line(random.Random(seed), 4) for seed in range(30)]
    return MelodyProcessor.train([line_to_words(line) for line in lines], vocab_size=307, max_bars=N)


def make_model(model_type: str, processor: MelodyProcessor, **overrides):
    """Make a tiny baseline, with weights so large that every path makes a difference."""
    torch.manual_seed(0)
    large = {} if model_type == "music_vae" else {"initializer_range": 0.5}
    model = build(model_type, processor, **(SIZES[model_type] | large | {"dropout": 0.0} | overrides)).eval()
    with torch.no_grad():  # the base class leaves biases at zero, where a forgotten one would not show
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return model


@pytest.fixture(scope="module")
def models(processor) -> dict:
    return {model_type: make_model(model_type, processor) for model_type in MODEL_TYPES}


@pytest.fixture(scope="module")
def ids(processor) -> torch.Tensor:
    """Beginnings of melodies, no two of the same length before padding would be needed."""
    rows = processor.tokenizer(TEXTS)["input_ids"]
    return torch.tensor([row[:T] for row in rows])


def collate(processor: MelodyProcessor):
    """Make the collator of the language models, as train.py has it."""

    def collator(texts: list[str]) -> dict[str, torch.Tensor]:
        batch = dict(processor.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False))
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        batch["num_notes"] = torch.tensor([count_notes(text) for text in texts])
        return batch

    return collator


def count_notes(text: str) -> int:
    return sum(len(word) - 2 for word in text.split(" ")) // 3


def make_batch(model_type: str, processor: MelodyProcessor, texts: list[str]) -> dict[str, torch.Tensor]:
    collator = StepCollator(N) if model_type == "music_vae" else collate(processor)
    batch = collator(texts)
    batch.pop("num_notes")
    return batch


# --- The factory ----------------------------------------------------------------------------------------------------


def test_defaults_are_of_like_size(processor):
    models = {"music_vae": build("music_vae", processor)}
    for name, (_, model_class) in baselines.LANGUAGE_MODELS.items():
        models[name] = model_class(configure(name, processor, vocab_size=2048))  # of no processor, so without a grammar
    parameters = {name: model.num_parameters() for name, model in models.items()}
    assert set(parameters) == set(MODEL_TYPES)
    assert all(3.8e6 < count < 4.6e6 for count in parameters.values()), parameters
    assert max(parameters.values()) / min(parameters.values()) < 1.2, parameters


def test_music_transformers_differ_in_positions_alone(processor):
    relative, absolute = (build(each, processor) for each in ("music_transformer", "music_transformer_absolute"))
    start = dict(relative.named_parameters())
    for name, parameter in absolute.named_parameters():
        if name in start and parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(start[name].std().item(), rel=0.05), name
    own = {name for name, _ in relative.named_parameters()} ^ {name for name, _ in absolute.named_parameters()}
    assert {name.rsplit(".", 1)[1] for name in own} == {"distance_embedding", "scale"}


@pytest.mark.parametrize(
    ("model_type", "overrides", "message"),
    [
        ("gru", {}, "unknown model type 'gru': music_vae, lstm"),
        ("lstm", {"recurrent_sise": 3}, "no field recurrent_sise=3; did you mean recurrent_size"),
        ("music_vae", {"bar_token_ids": [3]}, r"music_vae has no field bar_token_ids=\[3\]"),
        ("rnn", {"latent_size": 16}, "latent_size=16: rnn is a language model without"),
        ("music_transformer_absolute", {"hidden_size": 13}, "hidden_size=13 is not a multiple"),
    ],
)
def test_the_factory_refuses_what_it_cannot_build(processor, model_type, overrides, message):
    with pytest.raises(ValueError, match=message):
        build(model_type, processor, **overrides)


def test_fields_come_from_the_processor_and_can_be_set_by_a_string(processor):
    """As train.py's --config_overrides does."""
    for model_type in MODEL_TYPES:
        config = configure(model_type, processor)
        assert config.max_bars == N
        assert config.bos_token_id == processor_for(model_type, processor).tokenizer.bos_token_id
        config.update_from_string("dropout=0.3")
        assert build(model_type, processor, **SIZES[model_type], dropout=config.dropout).config.dropout == 0.3


# --- What depends on what -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
def test_language_models_are_causal_by_gradient_in_both_directions(models, ids, model_type):
    model = models[model_type]
    collected = []
    handle = model.embed_tokens.register_forward_hook(lambda module, arguments, output: collected.append(output))
    logits = model(ids).logits
    handle.remove()
    direction = torch.randn(logits.shape[-1], generator=torch.Generator().manual_seed(0))
    for position in range(T):
        for row in range(B):
            (gradient,) = torch.autograd.grad(logits[row, position] @ direction, collected[0], retain_graph=True)
            reached = gradient.abs().amax(-1) > 0
            assert reached[row, : position + 1].all(), f"position {position} does not hear all before it"
            assert not reached[row, position + 1 :].any(), f"position {position} hears what comes after it"
            assert not reached[torch.arange(B) != row].any(), "melodies of a batch hear each other"


@torch.no_grad()
def test_music_vae_hears_within_a_bar_and_across_its_line_one_step(models):
    model = models["music_vae"]
    batch = StepCollator(N)([TEXTS[0]])
    latent = torch.randn(1, Z, generator=torch.Generator().manual_seed(0))
    logits = model(batch["input_ids"], latent=latent).logits
    for step in (0, 1, 14, 15, 16, 31, 32, 16 * N - 2):
        changed = batch["input_ids"].clone()
        changed[0, 1 + step] = (changed[0, 1 + step] + 7) % NUM_CLASSES
        heard = (model(changed, latent=latent).logits != logits).any(-1)[0]  # position t predicts step t
        following = step + 1
        end = 16 * (following // 16 + 1)
        assert heard.nonzero().flatten().tolist() == list(range(following, end))


def test_music_vae_gives_every_bar_the_whole_latent(models):
    model = models["music_vae"]
    latent = torch.randn(B, Z, generator=torch.Generator().manual_seed(0)).requires_grad_()
    bars = model.embed_bars(latent, N)
    for bar in range(N):
        (gradient,) = torch.autograd.grad(bars[1, bar].square().sum(), latent, retain_graph=True)
        assert (gradient[1] != 0).all()
        assert (gradient[[0, 2]] == 0).all()
    batch = StepCollator(N)(TEXTS[:1])
    assert (model(batch["input_ids"], latent=latent[:1]).logits[:, -1] == 0).all()  # it predicts nothing


@torch.no_grad()
def test_music_vae_encodes_all_of_a_melody_and_no_padding(models):
    model = models["music_vae"]
    batch = StepCollator(N)(TEXTS)
    posterior = model.encode(**batch)
    for row, bars in enumerate((N, 2, 3)):
        alone = batch["input_ids"][row : row + 1, : 1 + 16 * bars]
        expected = model.encode(alone)
        for name in ("latent_mean", "latent_log_variance"):
            assert torch.allclose(posterior[name][row], expected[name][0], atol=1e-5)
        for step in (1, 16 * bars):  # the first and the last
            changed = alone.clone()
            changed[0, step] = (changed[0, step] + 5) % NUM_CLASSES
            assert not torch.equal(model.encode(changed).latent_mean, expected.latent_mean)


# --- Fast equals slow -----------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
def test_cached_logits_equal_uncached(models, ids, model_type):
    model = models[model_type]
    expected = model(ids, use_cache=False)
    assert expected.get(CACHE_NAME) is None
    cache, logits = None, []
    for chunk in ids.split([7, 1, 3], dim=1):
        output = model(chunk, cache=cache, use_cache=True)
        cache = output[CACHE_NAME]
        logits.append(output.logits)
    assert cache.get_seq_length() == T
    assert torch.allclose(torch.cat(logits, dim=1), expected.logits, atol=1e-5)
    assert torch.allclose(model(ids, logits_to_keep=2).logits, expected.logits[:, -2:], atol=1e-5)


PADDED = {"left": [0, 0, 0], "right": [T, T, T], "anywhere": [2, 0, T]}  # before which token of each row


@torch.no_grad()
@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
@pytest.mark.parametrize("where", PADDED)
def test_padding_changes_nothing(models, ids, model_type, where):
    if model_type == "music_transformer" and where == "anywhere":
        pytest.skip("its distances count padding between tokens")
    model = models[model_type]
    padded = torch.zeros(B, T + 4, dtype=torch.long)
    mask = torch.zeros_like(padded)
    for row, begin in enumerate(PADDED[where]):
        places = [place if place < begin else place + 4 for place in range(T)]
        padded[row, places] = ids[row]
        mask[row, places] = 1
    output = model(padded, mask, use_cache=True)
    assert torch.allclose(output.logits[mask == 1].view(B, T, -1), model(ids).logits, atol=1e-5)
    if model_type == "music_transformer" and where == "right":
        return
    longer = torch.cat([mask, torch.ones(B, 2, dtype=torch.long)], dim=1)
    following = model(ids[:, :2], longer, cache=output[CACHE_NAME])
    assert torch.allclose(following.logits, model(torch.cat([ids, ids[:, :2]], 1)).logits[:, -2:], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("model_type", RECURRENT)
def test_a_chunk_of_padding_leaves_the_state(models, ids, model_type):
    model = models[model_type]
    cache = model(ids, use_cache=True)[CACHE_NAME]
    mask = torch.ones(B, T + 2, dtype=torch.long)
    mask[1, T:] = 0
    after = model(ids[:, :2], mask, cache=cache, use_cache=True)[CACHE_NAME]
    for new, old in zip(after.state, cache.state, strict=True):
        assert torch.equal(new[1], old[1])
        assert not torch.equal(new[0], old[0])


@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
def test_generation_is_the_same_without_a_cache(models, ids, model_type):
    model = models[model_type]
    for settings_ in ({"do_sample": False}, {"do_sample": True}, {"do_sample": False, "num_beams": 3}):
        made = []
        for use_cache in (True, False):
            torch.manual_seed(0)
            made.append(model.generate(ids[:, :5], bars=3, use_cache=use_cache, max_length=24, **settings_))
        assert torch.equal(*made), settings_
    padded = torch.nn.functional.pad(ids[:, :5], (3, 0))
    mask = torch.nn.functional.pad(torch.ones(B, 5, dtype=torch.long), (3, 0))
    from_padded = model.generate(padded, attention_mask=mask, bars=3, do_sample=False)
    assert torch.equal(from_padded[:, 3:], model.generate(ids[:, :5], bars=3, do_sample=False))


@pytest.mark.parametrize("model_type", RECURRENT)
def test_recurrent_generation_reads_each_token_once_and_keeps_a_state_of_one_size(models, ids, model_type):
    model = models[model_type]
    read = []
    handle = model.embed_tokens.register_forward_hook(lambda module, arguments, output: read.append(output.shape[1]))
    output = model.generate(ids[:1, :3], bars=4, do_sample=True, return_dict_in_generate=True)
    handle.remove()
    assert read == [3] + [1] * (output.sequences.shape[1] - 4)
    sizes = [[each.shape for each in model(ids[:, :n])[CACHE_NAME].state] for n in (1, T)]
    assert sizes[0] == sizes[1]


@torch.no_grad()
def test_the_cache_selects_and_repeats_rows(models, ids):
    model = models["lstm"]
    rows = torch.tensor([2, 0, 0])
    cache = model(ids, use_cache=True)[CACHE_NAME]
    cache.reorder_cache(rows)
    expected = model(torch.cat([ids[rows], ids[:, :1]], 1)).logits[:, -1]
    assert torch.allclose(model(ids[:, :1], cache=cache).logits[:, -1], expected, atol=1e-5)
    cache = model(ids, use_cache=True)[CACHE_NAME]
    assert isinstance(cache, RecurrentCache)
    cache.batch_repeat_interleave(2)
    twice = ids.repeat_interleave(2, dim=0)
    expected = model(torch.cat([twice, twice[:, :1]], 1)).logits[:, -1]
    assert torch.allclose(model(twice[:, :1], cache=cache).logits[:, -1], expected, atol=1e-5)


def test_attention_lstm_is_its_formula_and_so_are_its_gradients():
    torch.manual_seed(0)
    layer = AttentionLSTM(MelodyLSTMConfig(hidden_size=7, recurrent_size=5, attention_size=3, attention_length=4))
    layer = layer.double()
    inputs = torch.randn(B, T, 7, dtype=torch.double)
    shapes = (B, 5), (B, 5), (B, 3), (B, 4, 3)
    before = [torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in shapes]
    lengths = torch.tensor([T, 3, 1])
    hidden, cell, attended, window = before
    window, states = list(window.unbind(1)), []
    for step in range(T):
        hidden, cell = layer.cell(layer.input_proj(torch.cat([inputs[:, step], attended], -1)), (hidden, cell))
        query = layer.query_proj(torch.cat([cell, hidden], -1))
        scores = torch.cat([layer.score_proj((layer.key_proj(each) + query).tanh()) for each in window[-4:]], -1)
        weights = scores.softmax(-1)
        attended = sum(weights[:, index, None] * each for index, each in enumerate(window[-4:]))
        window.append(layer.output_proj(torch.cat([hidden, attended], -1)))
        states.append((hidden, cell, attended, torch.stack(window[-4:], 1)))
    is_token = (torch.arange(T) < lengths[:, None])[..., None]
    last = [torch.stack([states[n - 1][kind][row] for row, n in enumerate(lengths)]) for kind in range(4)]
    expected = [torch.stack(window[4:], 1) * is_token, *last]
    outputs, state = layer(inputs, tuple(before), lengths)
    got = [outputs * is_token, *state]
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-12)
    learned = [*before, *layer.parameters()]
    directions = [torch.randn_like(each) for each in expected]
    for one, other in zip(*(torch.autograd.grad(each, learned, directions) for each in (got, expected)), strict=True):
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_padded_melodies_are_read_as_a_packed_sequence(num_layers):
    torch.manual_seed(0)
    encoder = StepEncoder(MusicVAEConfig(encoder_size=13, latent_size=Z, num_layers=num_layers))
    steps, lengths = torch.randn(B, 31, NUM_CLASSES), torch.tensor([17, 31, 16])
    packed = torch.nn.utils.rnn.pack_padded_sequence(steps, lengths, batch_first=True, enforce_sorted=False)
    _, (hidden, _) = encoder.recurrent(packed)
    expected = torch.cat([hidden[-2], hidden[-1]], dim=-1)
    got = encoder.read_padded(steps, lengths)
    assert torch.allclose(got, expected, atol=1e-6)
    learned, direction = list(encoder.recurrent.parameters()), torch.randn_like(expected)
    for one, other in zip(*(torch.autograd.grad(each, learned, direction) for each in (got, expected)), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model_type", ["lstm", "music_vae"])
def test_the_graph_of_gradients_does_not_grow_with_the_length(models, processor, model_type):
    """Else training may take time that grows with its square: each step's gradient is as large as all of them."""

    def count_nodes(bars: int) -> int:
        lines = [make_line(random.Random(seed), bars - seed) for seed in range(2)]
        batch = make_batch(model_type, processor, [" ".join(line_to_words(line)) for line in lines])
        nodes, found = [models[model_type](**batch).loss.grad_fn], set()
        while nodes:
            node = nodes.pop()
            if node is not None and node not in found:
                found.add(node)
                nodes += [following for following, _ in node.next_functions]
        return len(found)

    assert count_nodes(2) == count_nodes(N)


@torch.no_grad()
@pytest.mark.parametrize("layer", [torch.nn.LSTM, torch.nn.RNN])
def test_recurrence_is_torchs_own_and_ends_with_the_last_token(layer):
    torch.manual_seed(0)
    recurrence = Recurrence(layer(7, 5, 2, batch_first=True))
    inputs, lengths = torch.randn(B, T, 7), torch.tensor([T, 3, 1])
    outputs, _ = recurrence(inputs, None, None)
    assert torch.equal(outputs, recurrence.recurrence(inputs)[0])
    short, ended = recurrence(inputs, None, lengths)
    for row, length in enumerate(lengths.tolist()):
        assert torch.allclose(short[row, :length], outputs[row, :length], atol=1e-6)
        _, expected = recurrence(inputs[row : row + 1, :length], None, None)
        for got, want in zip(ended, expected, strict=True):
            assert torch.allclose(got[row], want[0], atol=1e-6)


# --- Positions ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_absolute_positions_are_all_that_the_model_knows_of_order(processor, ids):
    model = make_model("music_transformer_absolute", processor)
    logits = model(ids).logits
    handle = model.positions.register_forward_pre_hook(lambda module, given: (given[0] + 3,))
    shifted = model(ids).logits
    handle.remove()
    assert not torch.allclose(logits, shifted, atol=1e-3)
    # Without them it is the relative model whose distances mean nothing.
    model.get_parameter("positions.scale").zero_()
    twin = make_model("music_transformer", processor)
    missing, unexpected = twin.load_state_dict(model.state_dict(), strict=False)
    assert unexpected == ["positions.scale"]
    assert {name.rsplit(".", 1)[1] for name in missing} == {"distance_embedding"}
    for name in missing:
        twin.get_parameter(name).zero_()
    assert torch.allclose(model(ids).logits, twin(ids).logits, atol=1e-5)


@torch.no_grad()
def test_sinusoids_turn_by_the_same_angle_at_every_position(models):
    """Their dot product depends on the distance alone, whatever the position; the scale is squared in it."""
    positions = models["music_transformer_absolute"].positions
    rows = positions(torch.tensor([[0, 4, 700, 704]]))[0]
    assert torch.allclose(rows[0] @ rows[1], rows[2] @ rows[3], atol=1e-4)
    assert torch.allclose(rows.norm(dim=1), positions.scale.abs() * 5**0.5, atol=1e-5)


# --- transformers' own Trainer ---------------------------------------------------------------------------------------


@pytest.mark.compatibility
@pytest.mark.parametrize("model_type", [*MODEL_TYPES, "melody_vae"])
def test_trainer_trains_evaluates_and_predicts(model_type, processor, tmp_path):
    model = tiny_models.make_model(processor) if model_type == "melody_vae" else make_model(model_type, processor)
    batch = (StepCollator(N) if model_type == "music_vae" else collate(processor))(TEXTS)
    rows = [{name: batch[name][row] for name in ("input_ids", "attention_mask", "labels")} for row in range(len(TEXTS))]
    arguments = TrainingArguments(tmp_path, max_steps=3, per_device_train_batch_size=3, report_to=[], use_cpu=True)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    predicted = trainer.predict(rows)
    assert predicted.metrics["test_loss"] < before
    assert predicted.predictions.shape[:2] == batch["input_ids"].shape  # the logits, and nothing beside them


# --- Loss and training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_loss_is_what_forward_says(models, processor, model_type):
    model = models[model_type]
    batch = make_batch(model_type, processor, TEXTS)
    output = model(**batch, kl_weight=0.3, tokens_per_melody=17.0)
    logits = model(batch["input_ids"], batch["attention_mask"], use_cache=False).logits
    likelihood = logits[:, :-1].log_softmax(-1)
    targets = batch["labels"][:, 1:]
    nats = -likelihood.gather(2, targets.clamp_min(0)[..., None])[..., 0].masked_fill(targets < 0, 0).sum(1)
    assert output.reconstruction_nats.item() == pytest.approx(nats.mean().item(), rel=1e-5)
    expected = nats.mean() / 17
    if model_type == "music_vae":
        kl_nats = model.encode(**batch).kl_nats()
        assert output.kl_nats.item() == pytest.approx(kl_nats.mean().item(), rel=1e-5)
        expected = expected + 0.3 * kl_nats.mean() / 17
        free = kl_nats.sort().values[1].item() / NATS_PER_BIT  # more than one melody's KL, less than another's
        model.config.free_bits = free
        paid = (kl_nats - free * NATS_PER_BIT).clamp_min(0).mean()
        assert 0 < paid < kl_nats.mean()
        with_free = model(**batch, kl_weight=0.3, tokens_per_melody=17.0).loss
        model.config.free_bits = 0.0
        assert with_free.item() == pytest.approx(((nats.mean() + 0.3 * paid) / 17).item(), rel=1e-5)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    own = model(**batch, kl_weight=0.0).loss
    assert own.item() == pytest.approx((nats.sum() / (targets >= 0).sum()).item(), rel=1e-5)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_weight_learns_and_the_loss_falls(processor, model_type):
    larger = {"encoder_size": 29, "decoder_size": 31} if model_type == "music_vae" else {}
    if model_type in RECURRENT:
        larger = {"hidden_size": 31, "recurrent_size": 37}
    if model_type.startswith("music_transformer"):
        larger = {"hidden_size": 32}
    torch.manual_seed(0)
    model = build(model_type, processor, **(SIZES[model_type] | {"dropout": 0.0} | larger)).train()
    batch = make_batch(model_type, processor, TEXTS[1:2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    losses = []
    for step in range(15):
        loss = model(**batch, kl_weight=0.01).loss
        loss.backward()
        if step == 1:
            still = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
            assert not [name for name in still if "weight_ih" not in name or "conductor" not in name]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_music_vae_learns_melodies_by_heart_from_their_latents():
    """What a bar begins with is in the latent alone: free-running, nothing else could tell the melodies apart."""
    texts = [" ".join(line_to_words(make_line(random.Random(seed), 1))) for seed in range(13)]
    batch = StepCollator(N)(texts)
    batch.pop("num_notes")
    torch.manual_seed(0)
    model = MusicVAEModel(MusicVAEConfig(encoder_size=48, decoder_size=48, latent_size=16, max_bars=N)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(1500):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    rebuilt = model.reconstruct(batch["input_ids"], batch["attention_mask"])
    assert (rebuilt == batch["input_ids"]).float().mean() > 0.95


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_training_works_under_autocast(models, processor, model_type):
    model = models[model_type]
    batch = make_batch(model_type, processor, TEXTS)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch, kl_weight=0.1)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(model(**batch, kl_weight=0.1).loss.item(), rel=0.05)
    model.zero_grad()


@torch.no_grad()
def test_recurrent_layers_start_as_published_with_open_forget_gates(processor):
    model = build("lstm", processor)
    size = model.config.recurrent_size
    for name in ("attentive.cell.bias_ih", "recurrent.recurrence.bias_ih_l0"):
        bias = model.get_parameter(name)
        assert (bias[size : 2 * size] == 1).all()
        assert bias.sum() == size
    for gate in model.get_parameter("attentive.cell.weight_hh").chunk(4):
        assert gate.std().item() == pytest.approx(size**-0.5, rel=0.02)
    vae = build("music_vae", processor)
    assert isinstance(vae, MusicVAEModel)
    assert (vae.get_parameter("melody_encoder.recurrent.bias_ih_l1_reverse")[280:560] == 1).all()
    posterior = vae.encode(StepCollator(N)(TEXTS)["input_ids"])
    assert posterior.latent_log_variance.mean().item() == pytest.approx(-3.0, abs=0.2)


# --- Sampling and reconstruction ------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_samples_are_repeatable_and_have_the_bars_asked_for(models, processor, model_type):
    model, reader = models[model_type], processor_for(model_type, processor)
    state = torch.get_rng_state()
    made = model.sample(B, seed=1, bars=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(made, model.sample(B, seed=1, bars=3))
    assert not torch.equal(made, model.sample(B, seed=2, bars=3))
    assert [line["bars"] for line in reader.to_lines(made)] == [3] * B
    assert reader.to_lines(model.sample(1, seed=1))[0]["bars"] == N
    cold = [model.sample(1, seed=seed, temperature=1e-4, bars=2) for seed in (0, 1)]
    if model_type != "music_vae":  # which draws a latent as well
        assert torch.equal(*cold)


@torch.no_grad()
def test_music_vae_decodes_what_it_predicts(models):
    model = models["music_vae"]
    latent = torch.randn(B, Z, generator=torch.Generator().manual_seed(0))
    ids = model.decode(latent, bars=torch.tensor([2, N, 1]))
    assert ids.shape == (B, 1 + 16 * N)
    assert (ids != PADDING).sum(1).tolist() == [1 + 16 * 2, 1 + 16 * N, 1 + 16]
    predicted = model(ids, latent=latent).logits.argmax(-1)[:, :-1]
    is_step = ids[:, 1:] != PADDING
    assert (predicted == ids[:, 1:])[is_step].all()
    assert torch.equal(model.decode(latent, bars=1), ids[:, :17])
    interpolated = model.interpolate(latent[0], latent[1], steps=3, bars=2)
    assert torch.equal(interpolated[[0, 2]], model.decode(latent[:2], bars=2))
    batch = StepCollator(N)(TEXTS)
    rebuilt = model.reconstruct(batch["input_ids"], batch["attention_mask"])
    assert torch.equal(rebuilt == PADDING, batch["input_ids"] == PADDING)


def test_music_vae_refuses_what_is_not_whole_bars(models):
    model = models["music_vae"]
    for length in (1, 16, 18, 2 + 16 * N, 1 + 16 * (N + 1)):
        with pytest.raises(ValueError, match=f"{length} ids are not the start and 1 to {N} bars of 16 steps"):
            model(torch.zeros(1, length, dtype=torch.long), latent=torch.zeros(1, Z))
    with pytest.raises(ValueError, match=rf"bars=\[{N + 1}\]: this model's melodies have 1 to {N} bars"):
        model.decode(torch.zeros(1, Z), bars=N + 1)


# --- Steps ----------------------------------------------------------------------------------------------------------


@st.composite
def lines(draw) -> dict:
    """Melodies of 4/4 on a grid of sixteenths; some silent, some legato, some with lengths past a bar."""
    bars = draw(st.integers(1, 16))
    start = sorted(draw(st.sets(st.integers(0, 16 * bars - 1), max_size=40)))
    room = [end - begin for begin, end in zip(start, [*start[1:], 16 * bars], strict=False)]
    return {
        "pitch": [draw(st.integers(21, 108)) for _ in start],
        "start": start,
        "duration": [draw(st.one_of(st.just(min(each, 64)), st.integers(1, min(each, 64)))) for each in room],
        "time_signature": "4/4",
        "steps_per_beat": 4,
        "bars": bars,
    }


@settings(max_examples=60)
@given(st.lists(lines(), min_size=1, max_size=4))
def test_steps_are_those_of_the_metric_and_read_back(melodies):
    steps = texts_to_steps([" ".join(line_to_words(line)) for line in melodies])
    assert steps.bars.tolist() == [line["bars"] for line in melodies]
    assert steps.num_notes.tolist() == [len(line["pitch"]) for line in melodies]
    for row, line in zip(steps.classes, melodies, strict=True):
        own, padding = row[: 16 * line["bars"]], row[16 * line["bars"] :]
        expected = step_classes(line["pitch"], line["start"], line["duration"], 16 * line["bars"])
        assert np.array_equal(own, expected)
        assert (padding == PADDING).all()
        assert steps_to_line(own.tolist()) == line


@settings(max_examples=30)
@given(st.lists(st.integers(0, NUM_CLASSES - 1), min_size=16, max_size=48).filter(lambda steps: len(steps) % 16 == 0))
def test_any_steps_are_a_melody_and_its_steps_are_stable(classes):
    line = steps_to_line(classes)
    again = step_classes(line["pitch"], line["start"], line["duration"], len(classes))
    onsets = np.array(classes) >= 2
    assert np.array_equal(again[onsets], np.array(classes)[onsets])
    assert steps_to_line(again.tolist()) == line


def test_transposed_words_are_transposed_steps():
    table = transposition_table(4, 5)
    before, after = texts_to_steps(TEXTS), texts_to_steps([text.translate(table) for text in TEXTS])
    is_onset = (before.classes >= 2) & (before.classes < NUM_CLASSES)
    assert np.array_equal(after.classes, before.classes + 5 * is_onset)


def test_step_batches_have_the_fields_of_training(processor):
    batch = StepCollator(N)(TEXTS)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "num_notes"}
    assert batch["input_ids"].shape == batch["labels"].shape == (B, 1 + 16 * N)
    assert (batch["input_ids"][:, 0] == START).all()
    assert batch["num_notes"].tolist() == [len(line["pitch"]) for line in LINES]
    assert torch.equal(batch["labels"] == -100, batch["attention_mask"] == 0)
    reader = processor_for("music_vae", processor)
    assert isinstance(reader, StepProcessor)
    same = reader(lines=LINES, return_tensors="pt")
    assert torch.equal(same["input_ids"], batch["input_ids"])
    assert reader.to_lines(same["input_ids"]) == LINES
    assert reader(lines=LINES[0])["input_ids"][0] == batch["input_ids"][0].tolist()
    cut = reader(lines=LINES[0], first_bar=2, bars=1, return_tensors="pt")["input_ids"]
    assert reader.to_lines(cut)[0]["bars"] == 1


def test_step_processor_reads_and_writes_midi(processor):
    reader = processor_for("music_vae", processor)
    ids = reader(lines=LINES, return_tensors="pt")["input_ids"]
    again = reader(midi=reader.to_midi_bytes(ids), return_tensors="pt")["input_ids"]
    assert torch.equal(again, ids)
    names = reader.tokenizer.decode(ids[1, :3])
    assert names.split()[0] == "<start>"
    assert names.split()[1] == f"note_{LINES[1]['pitch'][0]}"


def test_what_is_not_in_four_four_is_refused(processor):
    waltz = make_line(random.Random(0), 2, "3/4")
    with pytest.raises(ValueError, match=r"melody 1 of the batch is not in 4/4.*leave it out"):
        StepCollator(N)([TEXTS[0], " ".join(line_to_words(waltz)), TEXTS[1]])
    with pytest.raises(ValueError, match=f"a window of {N + 1} bars does not fit a latent of {N}"):
        StepCollator(N)([TEXTS[0], " ".join(line_to_words(make_line(random.Random(0), N + 1)))])
    reader = processor_for("music_vae", processor)
    with pytest.raises(ValueError, match="melody 0 is in 3/4 with 4 steps per beat; MusicVAE has 4/4 with 4 only"):
        reader(lines=waltz)
    with pytest.raises(ValueError, match="melody 0 has 2 bars, so none from bar 7 on"):
        reader(lines=LINES[1], first_bar=7)
    with pytest.raises(ValueError, match="either midi= or lines="):
        reader()
    assert reader.can_read("4/4", 4)
    assert not reader.can_read("4/4", 12)
    assert not reader.can_read("2/2", 4)


# --- Saved equals loaded --------------------------------------------------------------------------------------------

ALONE = """
import sys
from pathlib import Path
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer

for folder in sorted(Path(sys.argv[1]).iterdir()):
    expected = torch.load(folder.parent.parent / "expected" / f"{folder.name}.pt")
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__name__ == type(model.config).__name__
    assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size
    weights = model.state_dict()
    assert weights.keys() == expected["weights"].keys()
    assert all(torch.equal(weights[name], value) for name, value in expected["weights"].items()), folder.name
    for parameter in model.parameters():  # a file's weights lie at odd addresses, where kernels add in another order
        parameter.data = parameter.data.clone()
    ids = processor(lines=expected["lines"], return_tensors="pt")
    assert torch.equal(ids["input_ids"], expected["ids"]), folder.name
    with torch.no_grad():
        assert torch.equal(model(**ids).logits, expected["logits"]), folder.name
    made = model.sample(2, seed=1, bars=2)
    assert torch.equal(made, expected["sampled"]), folder.name
    assert len(processor.to_midi_bytes(made)) == 2
    again = Path("again") / folder.name
    model.save_pretrained(again)
    processor.save_pretrained(again)
    for file in folder.glob("*.py"):
        assert (again / file.name).read_text() == file.read_text(), file
assert not {name.split(".")[0] for name in sys.modules} & {"modeling", "baselines", "evaluation"}
print("loaded")
"""


def test_saved_models_load_without_this_repository_and_compute_the_same(tmp_path, models, processor):
    (tmp_path / "expected").mkdir()
    for model_type, model in models.items():
        reader = processor_for(model_type, processor)
        folder = tmp_path / "saved" / model_type
        model.save_pretrained(folder)
        reader.save_pretrained(folder)
        files = [*folder.glob("*.py")]
        assert files
        for file in files:
            original = next(
                each for each in ((ROOT / "baselines") / file.name, (ROOT / "modeling") / file.name) if each.is_file()
            )
            assert file.read_text(encoding="utf-8") == original.read_text(encoding="utf-8").replace(
                "\nfrom modeling.", "\nfrom ."
            )
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert set(config["auto_map"]) == {"AutoConfig", "AutoModel"}
        ids = reader(lines=LINES[1:], return_tensors="pt")
        with torch.no_grad():
            logits = model(**ids).logits
        expected = {
            "lines": LINES[1:],
            "weights": model.state_dict(),
            "ids": ids["input_ids"],
            "logits": logits,
            "sampled": model.sample(2, seed=1, bars=2),
        }
        torch.save(expected, tmp_path / "expected" / f"{model_type}.pt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE, str(tmp_path / "saved")],
        cwd=tmp_path,
        env=environment | {"HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout.endswith("loaded\n")


def test_a_configuration_saved_alone_loads_alone(tmp_path):
    for config_class in (MusicVAEConfig, MelodyLSTMConfig):
        folder = tmp_path / config_class.__name__
        config_class(max_bars=N).save_pretrained(folder)
        assert not [file for file in folder.glob("*.py") if "\nfrom modeling" in file.read_text(encoding="utf-8")]
        assert AutoConfig.from_pretrained(folder, trust_remote_code=True).max_bars == N
