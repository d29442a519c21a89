"""The melody VAE: causal by gradient, fast equals slow, the loss as `forward` states it, saved equals loaded."""

import ast
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling import MelodyProcessor, MelodyVAEConfig, MelodyVAEModel, MelodyVAEPosterior
from modeling.cache_melody_vae import CACHE_NAME, CACHE_NAMES
from modeling.interpolation_melody_vae import slerp
from modeling.line_writing_melody_vae import line_to_words
from modeling.logits_process_melody_vae import BarCountLogitsProcessor
from modeling.melody_encoder_melody_vae import ENCODE_BATCH_SIZE
from modeling.modeling_melody_vae import reconstruction_nats
from modeling.token_grammar_melody_vae import MAX_TOKENS_PER_BAR
from tests.builders.models import (
    BAR_TOKENS,
    BOS,
    EOS,
    IDS,
    MASK,
    PAD,
    SHORT_IDS,
    B,
    D,
    H,
    N,
    T,
    V,
    Z,
    make_bare_model,
    make_config,
    make_latent,
)

ROOT = Path(__file__).parents[2]


KINDS = [
    pytest.param({}, id="plain"),
    pytest.param({"musical_time": True, "musical_pitch": True, "previous_token": True}, id="musical"),
]


@pytest.fixture(scope="module", params=KINDS)
def model(request) -> MelodyVAEModel:
    return make_bare_model(**request.param)


LEARNT_IDS = torch.cat([IDS, torch.nn.functional.pad(SHORT_IDS, (0, T - SHORT_IDS.shape[1]), value=PAD)])


@pytest.fixture(scope="module")
def learnt() -> tuple[MelodyVAEModel, list[float]]:
    """Let a model learn six melodies by heart; returns it with the losses on the way."""
    model = make_bare_model(
        hidden_size=32, intermediate_size=64, initializer_range=0.05, free_bits=1e3, latent_log_variance_init=-5.0
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    losses = []
    for _ in range(150):
        labels = LEARNT_IDS.masked_fill(LEARNT_IDS == PAD, -100)
        output = model(LEARNT_IDS, (LEARNT_IDS != PAD).long(), labels=labels)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
    return model.eval(), losses


def embedded_inputs(model: MelodyVAEModel) -> tuple[list[torch.Tensor], torch.utils.hooks.RemovableHandle]:
    """Collect what the embedding returns, call by call, to take gradients by."""
    collected: list[torch.Tensor] = []

    def keep(module, arguments, output):
        collected.append(output)

    return collected, model.embed_tokens.register_forward_hook(keep)


def without_padding(ids: torch.Tensor) -> list[list[int]]:
    return [[token for token in row if token != PAD] for row in ids.tolist()]


def up_to_end(ids: torch.Tensor) -> list[list[int]]:
    """Cut behind the first end: transformers' beams pad with the end where the padding's id is 0."""
    return [row[: row.index(EOS) + 1] for row in ids.tolist()]


def gradients(model: MelodyVAEModel) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


# --- What depends on what -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("latent_size", [Z, 0])
@pytest.mark.parametrize("musical_time", [False, True])
def test_decoder_is_causal_by_gradient_in_both_directions(latent_size, implementation, musical_time):
    model = make_bare_model(latent_size=latent_size, attn_implementation=implementation, musical_time=musical_time)
    (embedded, handle) = embedded_inputs(model)
    logits = model(IDS, latent=make_latent() if latent_size else None).logits
    handle.remove()
    assert len(embedded) == 1  # with a latent the melody encoder does not run
    for position in range(T):
        for row in range(B):
            # A random direction: the sum over the vocabulary could cancel.
            direction = torch.randn(V, generator=torch.Generator().manual_seed(position))
            (gradient,) = torch.autograd.grad(logits[row, position] @ direction, embedded[0], retain_graph=True)
            reached = gradient.abs().amax(-1) > 0  # (B, T)
            assert reached[row, : position + 1].all(), f"position {position} does not hear all before it"
            assert not reached[row, position + 1 :].any(), f"position {position} hears what comes after it"
            assert not reached[torch.arange(B) != row].any(), "melodies of a batch hear each other"


def test_melody_encoder_is_bidirectional(model):
    (embedded, handle) = embedded_inputs(model)
    posterior = model.encode(IDS)
    handle.remove()
    for name in ("latent_mean", "latent_log_variance"):
        for bar in range(3):  # of the first melody
            share = posterior[name][0].view(N, -1)[bar].sum()
            (gradient,) = torch.autograd.grad(share, embedded[0], retain_graph=True)
            reached = gradient.abs().amax(-1) > 0
            assert reached[0].all(), f"{name} of bar {bar} does not hear the whole melody"
            assert not reached[1:].any()


def test_each_share_of_the_latent_reaches_the_logits(model):
    latent = make_latent().requires_grad_()
    logits = model(IDS, latent=latent).logits
    for row in range(B):
        (gradient,) = torch.autograd.grad(logits[row].square().sum(), latent, retain_graph=True)
        assert (gradient[row] != 0).all()
        assert (gradient[torch.arange(B) != row] == 0).all()


def test_a_token_hears_its_own_bar_and_the_next():
    model = make_bare_model(num_bar_layers=0)  # bar layers would tell each bar of all the others
    latent = make_latent().requires_grad_()
    table = model.bar_conditioner(latent)
    assert table.shape == (B, N + 1, 3, H * D)
    for row in range(N + 1):
        (gradient,) = torch.autograd.grad(table[0, row].square().sum(), latent, retain_graph=True)
        heard = (gradient[0].view(N, -1) != 0).all(-1)
        assert heard.nonzero().flatten().tolist() == [bar for bar in (row - 1, row) if 0 <= bar < N]

    logits = model(IDS, latent=latent).logits
    positions = model.musical_position(IDS)
    assert positions[0].tolist() == [-1, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    for position in range(T):
        (gradient,) = torch.autograd.grad(logits[0, position].square().sum(), latent, retain_graph=True)
        heard = (gradient[0].view(N, -1) != 0).any(-1)
        assert heard.tolist() == [bar <= positions[0, position] + 1 for bar in range(N)]


@torch.no_grad()
def test_each_layer_is_told_its_row_of_the_table(model):
    told = []
    handles = [
        layer.register_forward_pre_hook(lambda module, arguments: told.append(arguments[1])) for layer in model.layers
    ]
    latent = make_latent()
    too_long = torch.tensor([[BOS, *[5] * (N + 3)]]).repeat(B, 1)
    for ids in (IDS, too_long):
        told.clear()
        model(ids, latent=latent)
        table = model.bar_conditioner(latent)
        for index, condition in enumerate(told):
            for row in range(B):
                for position in range(ids.shape[1]):
                    bars_begun = sum(token in BAR_TOKENS for token in ids[row, : position + 1].tolist())
                    expected = table[row, min(bars_begun, N), index]
                    assert torch.allclose(condition[row, position], expected, atol=1e-6)
    for handle in handles:
        handle.remove()


@torch.no_grad()
def test_musical_time_is_what_the_melody_says():
    """By its tokens: the bar's index, and how far into the bar the latest onset is."""
    lines = [
        {"pitch": [60, 62, 64], "start": [0, 5, 30], "duration": [2, 3, 9], "time_signature": "4/4", "bars": 3},
        {"pitch": [71, 70], "start": [13, 23], "duration": [4, 1], "time_signature": "3/4", "bars": 2},
    ]
    lines = [{**line, "steps_per_beat": 4} for line in lines]
    processor = MelodyProcessor.train([line_to_words(line) for line in lines], vocab_size=219, max_bars=N)
    tokens = processor.tokenizer
    model = make_bare_model(
        vocab_size=len(tokens), bar_token_ids=processor.bar_token_ids, musical_time=True, musical_pitch=True
    )
    with pytest.raises(ValueError, match="set_grammar"):
        MelodyVAEModel(model.config).musical_position(IDS)
    model.set_grammar(processor.grammar_table())
    ids = processor(lines=lines, return_tensors="pt")["input_ids"]
    positions = model.musical_position(ids)
    for line, row, found in zip(lines, ids, positions, strict=True):
        steps = 12 if line["time_signature"] == "3/4" else 16
        reached = [-1.0, *range(line["bars"]), *(start / steps for start in line["start"])]
        assert all(any(each == pytest.approx(other) for other in reached) for each in found.tolist())
        assert found.max().item() == pytest.approx(max(reached))
        assert found.diff().min() >= 0
        bars = model.is_bar_token[row].cumsum(-1) - 1
        assert torch.equal(found.floor().long(), bars)
    for line, found in zip(lines, model.musical_pitch(ids), strict=True):
        assert found[0] == 0
        assert [int(each) for each in found.unique_consecutive()][1:] == line["pitch"]
    plain = make_bare_model(vocab_size=len(tokens), bar_token_ids=processor.bar_token_ids)
    assert torch.equal(plain.musical_position(ids), positions.floor())
    assert plain.musical_pitch(ids) is None


def test_the_token_before_each():
    model = make_bare_model(previous_token=True)
    assert model.previous_ids(torch.tensor([[PAD, PAD, BOS, 5, 17], [BOS, 23, 6, EOS, PAD]])).tolist() == [
        [PAD, PAD, BOS, BOS, 5],
        [BOS, BOS, 23, 6, EOS],
    ]


# --- Fast equals slow -----------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_cached_logits_equal_uncached(implementation, kind):
    model = make_bare_model(attn_implementation=implementation, **kind)
    latent = make_latent()
    expected = model(IDS, latent=latent, use_cache=False)
    assert expected.get(CACHE_NAME) is None
    cache, logits = None, []
    wholes = {
        "musical_position": model.musical_position(IDS),
        "pitch": model.musical_pitch(IDS),
        "previous_ids": model.previous_ids(IDS),
    }
    for part, chunk in zip((slice(7), slice(7, 8), slice(8, T)), IDS.split([7, 1, 3], dim=1), strict=True):
        told = {name: None if whole is None else whole[:, part] for name, whole in wholes.items()}
        told["cache"] = cache
        output = model(chunk, latent=latent, use_cache=True, **told)
        cache = output[CACHE_NAME]
        logits.append(output.logits)
    assert cache.get_seq_length() == T
    assert torch.allclose(torch.cat(logits, dim=1), expected.logits, atol=1e-4)


GENERATE = [
    pytest.param({"do_sample": False}, id="greedy"),
    pytest.param({"do_sample": True, "top_k": 0}, id="sampled"),
    pytest.param({"do_sample": False, "num_beams": 3}, id="beams"),
    pytest.param({"do_sample": True, "top_k": 0, "num_return_sequences": 2}, id="num_return_sequences"),
]


WAYS_TO_DECODE = [
    pytest.param(lambda model: model.generate(latent=make_latent(), do_sample=False, bars=5), id="generate"),
    pytest.param(lambda model: model.generate(latent=make_latent(), num_beams=2, do_sample=False, bars=5), id="beams"),
    pytest.param(lambda model: model.sample(B, seed=0, bars=5), id="sample"),
    pytest.param(lambda model: model.sample(B, generator=make_generators(B), bars=5), id="generators"),
    pytest.param(lambda model: model.decode(make_latent(), bars=5), id="decode"),
]


def make_generators(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(n)]


@pytest.mark.parametrize("decode", WAYS_TO_DECODE)
def test_a_cached_step_reads_one_token(decode, model):
    """A cache that gets lost on the way makes no error: every step then begins without its past."""
    read = []
    projection = model.layers[0].attention.qkv_proj
    handle = projection.register_forward_pre_hook(lambda module, given: read.append(given[0].shape[1]))
    length = decode(model).shape[1]
    handle.remove()
    assert read == [1] * len(read)
    assert len(read) >= length - 1


@torch.no_grad()
def test_both_names_of_the_cache_are_the_cache(model):
    positions = model._musical_inputs(IDS)
    first, second = ({name: value[:, part] for name, value in positions.items()} for part in (slice(7), slice(7, T)))
    latent, logits = make_latent(), []
    for name in CACHE_NAMES:
        cache = model(IDS[:, :7], latent=latent, use_cache=True, **first)[CACHE_NAME]
        logits.append(model(IDS[:, 7:], latent=latent, **{name: cache}, **second).logits)
    assert torch.equal(*logits)
    with pytest.raises(ValueError, match="two names of one argument"):
        model(IDS[:, 7:], latent=latent, cache=cache, past_key_values=cache, **second)


@torch.no_grad()
def test_forward_refuses_what_it_does_not_know(model):
    with pytest.raises(TypeError, match="attention_maks"):
        model(IDS, attention_maks=torch.ones_like(IDS))
    with pytest.raises(ValueError, match="output_attentions"):
        model(IDS, output_attentions=True)
    with pytest.raises(ValueError, match="inputs_embeds"):
        model(IDS, inputs_embeds=torch.zeros(B, T, H * D))


@torch.no_grad()
def test_hidden_states_are_those_of_the_layers(model):
    output = model(IDS, output_hidden_states=True)
    assert len(output.hidden_states) == len(model.layers) + 1
    assert torch.allclose(model.lm_head(model.norm(output.hidden_states[-1])), output.logits, atol=1e-5)
    assert model(IDS).hidden_states is None


@pytest.mark.parametrize("kwargs", GENERATE)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("has_primer", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_generate_is_the_same_with_any_cache(kwargs, implementation, has_primer, kind):
    model = make_bare_model(attn_implementation=implementation, **kind)
    if has_primer:  # of different lengths, so padded on the left
        kwargs = {**kwargs, "input_ids": torch.tensor([[PAD, PAD, BOS, 5], [BOS, 23, 6, 7], [PAD, BOS, 31, 13]])}
    results = []
    for cache in ({"use_cache": False}, {"use_cache": True}, {"cache_implementation": "static"}):
        torch.manual_seed(2)
        results.append(model.generate(latent=make_latent(), bars=3, max_length=29, **kwargs, **cache))
    assert results[0].shape[0] == B * kwargs.get("num_return_sequences", 1)
    assert len({tuple(row) for row in results[0].tolist()}) > 1
    assert torch.equal(results[0], results[1]), "a dynamic cache changes the result"
    assert torch.equal(results[0], results[2]), "a static cache changes the result"


@pytest.mark.parametrize("kwargs", GENERATE)
def test_generate_belongs_to_the_latents_in_their_order(learnt, kwargs):
    model, _ = learnt
    latent = model.encode(IDS).latent_mean
    results = []
    for _ in range(2):
        torch.manual_seed(2)
        results.append(model.generate(latent=latent, bars=torch.tensor([2, 1, 5]), **kwargs))
    assert torch.equal(*results)
    bars = model.is_bar_token[results[0]].sum(-1).view(B, -1)
    assert (bars == torch.tensor([[2], [1], [5]])).all()
    copies = kwargs.get("num_return_sequences", 1)
    assert up_to_end(results[0])[copies : 2 * copies] == copies * [IDS[1].tolist()]
    if not kwargs["do_sample"]:
        alone = [model.generate(latent=latent[[row]], bars=bars, **kwargs) for row, bars in enumerate([2, 1, 5])]
        assert up_to_end(results[0]) == [up_to_end(row)[0] for row in alone]


def test_greedy_generate_is_a_loop_over_forward(model):
    latent = make_latent(1)
    ids = torch.tensor([[BOS]])
    with torch.no_grad():
        while ids.shape[1] < T:
            ids = torch.cat([ids, model(ids, latent=latent).logits[:, -1:].argmax(-1)], dim=1)
    generated = model.decode(latent, max_length=T, min_length=T)
    end = ids[0].tolist().index(EOS) if EOS in ids[0] else T
    assert end > 3, "too short a melody to compare"
    assert torch.equal(generated[:, :end], ids[:, :end])


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_nothing(model, side):
    room = 5
    padding = torch.full((B, room), PAD)
    at = slice(room, None) if side == "left" else slice(T)
    ids = torch.cat([padding, IDS] if side == "left" else [IDS, padding], dim=1)
    attention_mask = (ids != PAD).long()
    plain, padded = model(IDS), model(ids, attention_mask)
    assert padded.logits.isfinite().all()
    for name in ("latent_mean", "latent_log_variance"):
        assert torch.allclose(plain[name], padded[name], atol=1e-5)
    assert torch.allclose(plain.logits, padded.logits[:, at], atol=1e-4)
    unmasked = model(ids, torch.ones_like(ids))
    assert not torch.allclose(unmasked.latent_mean, padded.latent_mean, atol=1e-2)  # the mask is what does it
    assert torch.equal(model(ids).latent_mean, padded.latent_mean)  # which is read from the padding where none is given
    assert torch.equal(model(ids).logits, padded.logits)
    labels = ids.masked_fill(ids == PAD, -100)
    if side == "left":
        labels[:, : room + 1] = -100  # nothing predicts the first token
    expected, loss = model(IDS, labels=IDS), model(ids, attention_mask, labels=labels)
    for name in ("loss", "reconstruction_nats", "kl_nats"):
        assert loss[name].item() == pytest.approx(expected[name].item(), rel=1e-5)
    again = model.reconstruct(ids, attention_mask, max_length=40)
    assert torch.equal(again, model.reconstruct(IDS, torch.ones_like(IDS), max_length=40))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_encoded_by_length_and_each_melody_as_if_alone(model, side, monkeypatch):
    lengths = [T, 3, 5, 7, 2, T, 4, 6, 3, 10, 1]
    rows = [IDS[index % B, :length] for index, length in enumerate(lengths)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD, padding_side=side)
    widths, encode_rows = [], model._encode_rows
    monkeypatch.setattr(model, "_encode_rows", lambda *given: widths.append(given[0].shape) or encode_rows(*given))
    posterior = model.encode(ids)
    assert widths == [
        (ENCODE_BATCH_SIZE, sorted(lengths)[ENCODE_BATCH_SIZE - 1]),
        (len(lengths) - ENCODE_BATCH_SIZE, T),
    ]
    for index, row in enumerate(rows):
        alone = model.encode(row[None])
        for name in ("latent_mean", "latent_log_variance"):
            assert torch.allclose(alone[name][0], posterior[name][index], atol=1e-5)
    widths.clear()
    monkeypatch.setattr(model, "training", True)
    model.encode(ids)
    assert widths == [ids.shape]


@torch.no_grad()
def test_padded_primer_is_continued_as_if_alone(model):
    latent, primer = make_latent(1), torch.tensor([[BOS, 5, 17, 13]])
    padded = torch.nn.functional.pad(primer, (3, 0), value=PAD)
    alone = model.generate(primer, latent=latent, max_new_tokens=17, do_sample=False, bars=3)
    explicit = {"attention_mask": (padded != PAD).long()}
    for kwargs in ({}, explicit):
        assert torch.equal(
            model.generate(padded, latent=latent, max_new_tokens=17, do_sample=False, bars=3, **kwargs)[:, 3:], alone
        )
    assert torch.equal(alone[:, :4], primer)
    assert alone.shape[1] > 7


@torch.no_grad()
def test_a_batch_equals_its_melodies_one_by_one(model):
    attention_mask = (SHORT_IDS != PAD).long()
    batch = model(SHORT_IDS, attention_mask)
    for row, length in enumerate(attention_mask.sum(-1).tolist()):
        alone = model(SHORT_IDS[[row], :length])
        assert torch.allclose(alone.logits[0], batch.logits[row, :length], atol=1e-4)
        for name in ("latent_mean", "latent_log_variance"):
            assert torch.allclose(alone[name][0], batch[name][row], atol=1e-5)


@torch.no_grad()
def test_logits_to_keep_are_the_last_ones(model):
    latent = make_latent()
    logits = model(IDS, latent=latent).logits
    assert logits.shape == (B, T, V)
    assert torch.allclose(model(IDS, latent=latent, logits_to_keep=2).logits, logits[:, -2:], atol=1e-5)
    kept = torch.tensor([1, 7])
    assert torch.allclose(model(IDS, latent=latent, logits_to_keep=kept).logits, logits[:, kept], atol=1e-5)


@torch.no_grad()
def test_forward_uses_the_mean_or_in_training_a_sample(model):
    mean = model.encode(IDS).latent_mean
    assert torch.allclose(model(IDS).logits, model(IDS, latent=mean).logits, atol=1e-5)
    model.train()
    try:
        torch.manual_seed(3)
        sampled = model(IDS)
        torch.manual_seed(3)
        latent = model.encode(IDS).sample()
        assert torch.allclose(sampled.logits, model(IDS, latent=latent).logits, atol=1e-5)
        assert sampled.get(CACHE_NAME) is None
    finally:
        model.eval()
    assert not torch.allclose(latent, mean, atol=0.1)


@torch.no_grad()
def test_expanded_latent_equals_the_latent(model):
    latent = make_latent()
    by_table = model(IDS, bar_conditions=model.bar_conditioner(latent))
    assert torch.equal(by_table.logits, model(IDS, latent=latent).logits)


@torch.no_grad()
@pytest.mark.parametrize("is_training", [False, True])
def test_compiled_decoder_equals_eager(model, is_training):
    torch.compiler.reset()
    model.train(is_training)
    try:
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        latent = make_latent()
        assert torch.allclose(
            compiled(IDS, latent=latent, use_cache=False).logits, model(IDS, latent=latent).logits, atol=1e-5
        )
        encode = torch.compile(model.encode, fullgraph=True, backend="eager")
        assert torch.allclose(encode(IDS).latent_mean, model.encode(IDS).latent_mean, atol=1e-5)
    finally:
        model.eval()


# --- The loss -------------------------------------------------------------------------------------------------------


def make_posterior(batch: int = B, seed: int = 4) -> MelodyVAEPosterior:
    generator = torch.Generator().manual_seed(seed)
    mean, log_variance = torch.randn(2, batch, Z, generator=generator)
    return MelodyVAEPosterior(latent_mean=mean, latent_log_variance=log_variance)


def test_kl_equals_torch_distributions():
    posterior = make_posterior()
    q = torch.distributions.Normal(posterior.latent_mean, (posterior.latent_log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    assert posterior.kl_nats().shape == (B,)
    assert torch.allclose(posterior.kl_nats(), expected, rtol=1e-5)
    prior = MelodyVAEPosterior(latent_mean=torch.zeros(B, Z), latent_log_variance=torch.zeros(B, Z))
    assert (prior.kl_nats() == 0).all()


def test_posterior_sample_has_the_posteriors_mean_and_variance():
    n = 20_000
    one = make_posterior(1)
    many = MelodyVAEPosterior(*(tensor.expand(n, Z) for tensor in (one.latent_mean, one.latent_log_variance)))
    draws = [many.sample(torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    variance = one.latent_log_variance[0].exp()
    assert ((draws[0].mean(0) - one.latent_mean[0]).abs() < 5 * (variance / n).sqrt()).all()
    assert ((draws[0].var(0) / variance - 1).abs() < 5 * math.sqrt(2 / n)).all()
    correlation = torch.corrcoef(draws[0].T) - torch.eye(Z)
    assert correlation.abs().max() < 5 / math.sqrt(n), "the noise of two dimensions is not independent"


def test_posterior_sample_passes_gradients_to_both_parameters():
    posterior = make_posterior()
    posterior.latent_mean.requires_grad_()
    posterior.latent_log_variance.requires_grad_()
    posterior.sample(torch.Generator().manual_seed(0)).sum().backward()
    assert (posterior.latent_mean.grad == 1).all()
    assert (posterior.latent_log_variance.grad != 0).all()


def test_reconstruction_nats_equal_a_loop():
    logits = torch.randn(B, T, V, generator=torch.Generator().manual_seed(7))
    labels = IDS.clone()
    labels[0, 5:] = labels[1, 3] = -100
    expected = torch.zeros(B)
    for row in range(B):
        for position in range(1, T):
            if labels[row, position] != -100:
                expected[row] -= logits[row, position - 1].log_softmax(-1)[labels[row, position]]
    assert torch.allclose(reconstruction_nats(logits, labels), expected, rtol=1e-5)


@pytest.mark.parametrize("kl_weight", [None, 0.0, 0.3])
@pytest.mark.parametrize("tokens_per_melody", [None, 17.0])
@torch.no_grad()
def test_loss_is_what_the_docstring_says(kl_weight, tokens_per_melody):
    kl_nats = make_bare_model().encode(IDS).kl_nats()
    low, high = kl_nats.min().item(), kl_nats.max().item()
    free_nats = (low + high) / 2  # one melody at least pays, one at least does not
    model = make_bare_model(free_bits=free_nats / math.log(2), kl_weight=0.7)
    labels = IDS.clone()
    labels[0, 5:] = labels[1, 3] = -100
    output = model(IDS, labels=labels, kl_weight=kl_weight, tokens_per_melody=tokens_per_melody)
    nats = reconstruction_nats(output.logits, labels)
    counted = sum(label != -100 for row in labels[:, 1:].tolist() for label in row)
    weight = 0.7 if kl_weight is None else kl_weight
    paid = sum(max(nats_of_one - free_nats, 0) for nats_of_one in kl_nats.tolist()) / B
    expected = (nats.mean() + weight * paid) / (tokens_per_melody or counted / B)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert output.reconstruction_nats.item() == pytest.approx(nats.mean().item(), rel=1e-6)
    assert output.kl_nats.item() == pytest.approx(kl_nats.mean().item(), rel=1e-5)
    assert 0 < paid < high - free_nats


@torch.no_grad()
def test_loss_without_an_encoder_pass_has_no_kl(model):
    output = model(IDS, latent=make_latent(), labels=IDS)
    assert output.kl_nats is None
    assert output.latent_mean is None
    assert output.loss.item() == pytest.approx(output.reconstruction_nats.item() / (T - 1), rel=1e-6)
    assert model(IDS).loss is None
    assert model(IDS[:, :1], labels=torch.full((B, 1), -100)).loss.isfinite()  # nothing to count


def test_two_half_batches_give_the_gradient_of_the_whole():
    model = make_bare_model(free_bits=3.0)
    ids = torch.cat([IDS, IDS[[1]].flip(1)])
    labels = ids.clone()
    labels[0, 4:] = labels[3, 7:] = -100  # halves with different numbers of tokens
    model(ids, labels=labels, tokens_per_melody=13.0).loss.backward()
    whole = gradients(model)
    model.zero_grad()
    for half in (slice(0, 2), slice(2, 4)):
        (model(ids[half], labels=labels[half], tokens_per_melody=13.0).loss / 2).backward()
    halves = gradients(model)
    assert whole.keys() == halves.keys() == dict(model.named_parameters()).keys()
    for name, gradient in whole.items():
        assert torch.allclose(gradient, halves[name], rtol=1e-3, atol=1e-5 * gradient.abs().max().item()), name


def test_every_parameter_learns():
    model = make_bare_model()
    model(IDS, labels=IDS).loss.backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not idle
    assert not model.embed_tokens.weight.grad[MASK].equal(torch.zeros(H * D))  # as an output: the weights are tied


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_no_gradient(kind):
    results = []
    for is_checkpointed in (False, True):
        model = make_bare_model(dropout=0.3, token_dropout=0.3, **kind).train()
        if is_checkpointed:
            model.activation_checkpointing_enable()
        runs = []
        model.layers[0].attention.register_forward_pre_hook(lambda module, arguments, runs=runs: runs.append(module))
        torch.manual_seed(8)
        model(IDS, labels=IDS).loss.backward()
        assert len(runs) == 1 + is_checkpointed
        results.append(gradients(model))
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        assert torch.allclose(gradient, results[1][name], rtol=1e-4, atol=1e-6), name


def test_bfloat16_autocast_is_finite_and_near_single_precision(model):
    expected = model(IDS, labels=IDS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(IDS, labels=IDS)
        output.loss.backward()
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=0.1)
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    model.zero_grad()


def test_token_dropout_masks_the_decoder_and_only_in_training():
    model = make_bare_model(token_dropout=0.4)
    seen = []
    handle = model.embed_tokens.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    ids = IDS.repeat(40, 1)
    for is_training in (False, True):
        seen.clear()
        torch.manual_seed(9)
        with torch.no_grad():
            model.train(is_training)(ids, labels=ids)
        *encoder_ids, decoder_ids = seen  # of the whole batch, or of parts of it
        assert not any((part == MASK).any() for part in encoder_ids)
        assert sum(len(part) for part in encoder_ids) == len(ids)
        if not is_training:
            assert torch.equal(decoder_ids, ids)
    handle.remove()
    is_masked = decoder_ids == MASK
    assert torch.equal(decoder_ids[~is_masked], ids[~is_masked])
    assert is_masked.float().mean().item() == pytest.approx(0.4, abs=0.05)


def test_token_dropout_does_not_lose_the_bar_count():
    model = make_bare_model(token_dropout=1.0).train()
    told = []
    handle = model.layers[0].register_forward_pre_hook(lambda module, arguments: told.append(arguments[1]))
    latent = make_latent()
    with torch.no_grad():
        model(IDS, latent=latent)
        expected = model.bar_conditioner(latent)[0, model.musical_position(IDS)[0].long() + 1, 0]
    handle.remove()
    assert torch.allclose(told[0][0], expected, atol=1e-6)


def test_a_small_batch_can_be_learnt_by_heart(learnt):
    model, losses = learnt
    assert losses[0] > 3
    assert losses[-1] < 0.05
    ids, attention_mask = LEARNT_IDS, (LEARNT_IDS != PAD).long()
    assert without_padding(model.reconstruct(ids, attention_mask)) == without_padding(ids)
    # It is the latent that tells the melodies apart: by another's latent another melody comes out.
    latent = model.encode(ids, attention_mask).latent_mean
    assert without_padding(model.decode(latent.flip(0))) == without_padding(ids)[::-1]


# --- Latents and sampling -------------------------------------------------------------------------------------------


def test_sample_is_repeatable_and_leaves_the_global_state_alone(model):
    torch.manual_seed(10)
    state = torch.get_rng_state()
    first = model.sample(B, seed=11, bars=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert torch.equal(model.sample(B, seed=11, bars=3), first)
    assert without_padding(model.sample(B, seed=12, bars=3)) != without_padding(first)
    torch.set_rng_state(state)
    unseeded = model.sample(B, bars=3)
    assert not torch.equal(torch.get_rng_state(), state)
    assert without_padding(unseeded) != without_padding(first)


@pytest.mark.parametrize("latent_size", [Z, 0])
@pytest.mark.parametrize("bars", [1, 3, None])
def test_sample_has_exactly_so_many_bars_and_ends(latent_size, bars):
    model = make_bare_model(latent_size=latent_size)
    ids = model.sample(B, seed=13, bars=bars)
    assert (model.is_bar_token[ids].sum(-1) == (bars or N)).all()
    for row in without_padding(ids):
        assert row[0] == BOS
        assert row.count(EOS) == 1
        assert row[-1] == EOS


def test_bar_count_moves_the_probability_of_a_bars_end():
    is_bar_token = torch.zeros(V, dtype=torch.bool)
    is_bar_token[BAR_TOKENS] = True
    processor = BarCountLogitsProcessor(torch.tensor([3, 1, 5]), is_bar_token, EOS)
    scores = torch.randn(B, V, generator=torch.Generator().manual_seed(14)).log_softmax(-1)
    ids = torch.tensor([[BOS, 5, 17, 13], [BOS, 23, 6, 7], [BOS, 31, 13, 5]])  # 2 of 3, 1 of 1, 3 of 5 bars
    before, after = scores.exp(), processor(ids, scores.clone()).exp()
    assert torch.allclose(after.sum(-1), torch.ones(B), atol=1e-5)
    others = ~is_bar_token & (torch.arange(V) != EOS)
    assert torch.allclose(after[:, others], before[:, others])
    for row in (0, 2):
        assert after[row, EOS] == 0
        ratio = after[row, is_bar_token] / before[row, is_bar_token]
        assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-4)
    assert (after[1, is_bar_token] == 0).all()
    expected = before[1, EOS] + before[1, is_bar_token].sum()
    assert after[1, EOS].item() == pytest.approx(expected.item(), rel=1e-5)


def test_interpolation_begins_and_ends_with_its_ends(learnt):
    model, _ = learnt
    a, b = model.encode(IDS[:2]).latent_mean
    ids = without_padding(model.interpolate(a, b, steps=5, bars=3, max_length=60))
    assert len(ids) == 5
    for index, end in ((0, a), (-1, b)):
        assert ids[index] == without_padding(model.decode(end[None], bars=3, max_length=60))[0]
    assert ids[0] != ids[-1]
    assert without_padding(model.interpolate(a[None], b[None], steps=2, bars=3, max_length=60)) == [ids[0], ids[-1]]


def test_slerp_moves_on_the_great_circle():
    a, b = make_latent(2).double()
    b = 3 * b
    weight = torch.linspace(0, 1, 7, dtype=torch.float64)
    points = slerp(a, b, weight)
    assert torch.allclose(points[0], a)
    assert torch.allclose(points[-1], b)
    assert torch.allclose(points.norm(dim=-1), (1 - weight) * a.norm() + weight * b.norm())
    directions = points / points.norm(dim=-1, keepdim=True)
    steps = (directions[:-1] * directions[1:]).sum(-1).arccos()
    assert torch.allclose(steps, steps[0].expand(6)), "the angle does not grow evenly"
    plane, _ = torch.linalg.qr(torch.stack([a, b], dim=1))
    assert torch.allclose(points @ plane @ plane.T, points), "the path leaves the plane of its ends"
    assert torch.allclose(slerp(b, a, weight), points.flip(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1.0, 2.0, 1 + 1e-6, -1.0, 0.0])
def test_slerp_of_parallel_vectors_is_a_straight_line(factor, dtype):
    a = make_latent(1)[0].to(dtype)
    weight = torch.linspace(0, 1, 5, dtype=dtype)
    points = slerp(a, factor * a, weight)
    assert points.isfinite().all()
    assert torch.allclose(points[0], a, atol=1e-5)
    assert torch.allclose(points[-1], factor * a, atol=1e-5)
    if factor > 0:
        assert torch.allclose(points, a * (1 + weight * (factor - 1))[:, None], atol=1e-3)


@torch.no_grad()
def test_prior_sample_keeps_the_bars_that_are_known(model):
    primer = torch.tensor([[PAD, PAD, BOS, 5, 17, 13], [BOS, 23, 6, 7, 8, 9]])  # 2 bars and 1 bar
    mean = model.encode(primer, (primer != PAD).long()).latent_mean.view(2, N, -1)
    torch.manual_seed(15)
    is_known = model._known_bars(primer)
    known = model.encode(primer).latent_mean
    first, second = (model.sample_latent(2, known, is_known).view(2, N, -1) for _ in range(2))
    for row, bars in enumerate((2, 1)):
        assert torch.allclose(first[row, :bars], mean[row, :bars])
        assert (first[row, bars:] != mean[row, bars:]).all()
    assert (first != second).all(-1).tolist() == [[False] * 2 + [True] * 5, [False] + [True] * 6]


def test_prior_sample_is_standard_normal(model):
    torch.manual_seed(16)
    latent = model.sample_latent(5000)
    assert latent.shape == (5000, Z)
    assert latent.mean(0).abs().max() < 5 / math.sqrt(5000)
    assert (latent.var(0) - 1).abs().max() < 5 * math.sqrt(2 / 5000)


def test_continuation_starts_with_its_primer_and_draws_what_is_unknown(learnt):
    model, _ = learnt
    primer = torch.tensor([[BOS, 5, 17, 13]])
    results = []
    for seed in (17, 18):
        torch.manual_seed(seed)
        results.append(model.generate(input_ids=primer, do_sample=False, bars=N))
        assert torch.equal(results[-1][:, :4], primer)
        assert model.is_bar_token[results[-1]].sum() == N
    assert without_padding(results[0]) != without_padding(results[1]), "the prior was not drawn from"


# --- What is refused ------------------------------------------------------------------------------------------------


def test_a_music_transformer_has_no_latent():
    model = make_bare_model(latent_size=0)
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if "melody_encoder" in name or "bar_conditioner" in name]
    output = model(IDS, labels=IDS)
    assert output.kl_nats is None
    assert output.loss.item() == pytest.approx(output.reconstruction_nats.item() / (T - 1), rel=1e-6)
    continued = model.generate(IDS[:, :4], do_sample=False, max_length=T)
    assert torch.equal(continued[:, :4], IDS[:, :4])
    for call in (model.encode, model.reconstruct):
        with pytest.raises(ValueError, match=r"latent_size=0.*no latent"):
            call(IDS)


def test_too_many_bars_are_refused_with_both_numbers(model):
    ids = torch.tensor([[BOS, *[5] * (N + 1), EOS]])
    for call in (model.encode, model, model.reconstruct):
        with pytest.raises(ValueError, match=rf"{N + 1} bars .*max_bars={N}"):
            call(ids)
    assert model.encode(ids[:, 1 + 1 :]).latent_mean.shape == (1, Z)  # as many as fit


def test_config_refuses_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"hidden_size=10 .*num_attention_heads=3"):
        make_config(num_attention_heads=3)
    with pytest.raises(ValueError, match=r"latent_size=15 .*max_bars=7"):
        make_config(latent_size=15)
    assert make_config(latent_size=0).latent_size == 0


@pytest.mark.parametrize(
    ("field", "hint"),
    [("hiddn_size", "; did you mean hidden_size\\?"), ("dropuot", "; did you mean dropout\\?"), ("qqqqq", "$")],
)
def test_config_refuses_an_unknown_field(field, hint):
    with pytest.raises(ValueError, match=f"unknown field {field}=3{hint}"):
        make_config(**{field: 3})


def test_config_takes_and_keeps_what_transformers_adds(tmp_path):
    common = {
        "dtype": "bfloat16",
        "architectures": ["MelodyVAEModel"],
        "auto_map": {"AutoModel": "modeling_melody_vae.MelodyVAEModel"},
        "id2label": {0: "a", 1: "b", 2: "c"},
        "attn_implementation": "eager",
        "output_attentions": False,
        "name_or_path": "somewhere",
    }
    config = make_config(**common)
    config.note = "left by another library"
    config.save_pretrained(tmp_path)
    loaded = MelodyVAEConfig.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["transformers_version"]
    for name in (
        "dtype",
        "architectures",
        "auto_map",
        "id2label",
        "num_labels",
        "note",
        "bar_token_ids",
        "latent_size",
    ):
        assert getattr(loaded, name) == getattr(config, name), name
    assert loaded.to_dict().keys() == config.to_dict().keys()
    assert MelodyVAEConfig(**config.to_dict()).to_dict() == config.to_dict()
    assert MelodyVAEConfig.from_pretrained(tmp_path, hidden_size=12).hidden_size == 12


# --- Saved equals loaded --------------------------------------------------------------------------------------------

LOAD = """
import json, sys, warnings
warnings.simplefilter("error")
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer

folder, again = sys.argv[1:]
assert not [name for name in sys.modules if name.split(".")[0] == "modeling"]
expected = torch.load(folder + "/expected.pt")
line = json.load(open(folder + "/line.json"))

def check(path):
    config = AutoConfig.from_pretrained(path, trust_remote_code=True)
    assert config.bar_token_ids == expected["bar_token_ids"]
    model, loading = AutoModel.from_pretrained(path, trust_remote_code=True, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    assert not model.training
    assert model.lm_head.weight.data_ptr() == model.embed_tokens.weight.data_ptr()
    ids = expected["ids"]
    with torch.no_grad():
        output = model(ids)
        assert torch.equal(output.logits, expected["logits"])
        assert torch.equal(output.latent_mean, expected["latent_mean"])
        assert torch.equal(model.decode(expected["latent"], bars=3, max_length=60), expected["decoded"])
        assert model.generation_config.max_length == expected["max_length"]
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
    assert (processor.steps_per_beat, processor.max_bars) == (4, 7)
    assert torch.equal(processor(lines=[line], return_tensors="pt")["input_ids"], ids)
    assert processor.to_lines(ids)[0]["pitch"] == line["pitch"]
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer(expected["text"])["input_ids"] == ids[0].tolist()
    assert tokenizer.pad_token_id == 0
    return model, processor

model, processor = check(folder)
model.save_pretrained(again)
processor.save_pretrained(again)
check(again)
bfloat = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
assert bfloat.dtype == torch.bfloat16 and bfloat.is_bar_token.sum() == len(expected["bar_token_ids"])
print("loaded twice")
"""


def test_saved_equals_loaded_without_the_repository(tmp_path):
    line = {
        "pitch": [60, 62, 64, 65, 67],
        "start": [0, 4, 16, 24, 32],
        "duration": [4, 4, 8, 8, 16],
        "time_signature": "4/4",
        "steps_per_beat": 4,
        "bars": 3,
    }
    processor = MelodyProcessor.train([line_to_words(line)], vocab_size=300, max_bars=N)
    model = make_bare_model(vocab_size=len(processor.tokenizer), bar_token_ids=processor.bar_token_ids)
    ids = processor(lines=line, return_tensors="pt")["input_ids"]
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    with torch.no_grad():
        output = model(ids)
    expected = {
        "ids": ids,
        "logits": output.logits,
        "latent_mean": output.latent_mean,
        "latent": make_latent(),
        "decoded": model.decode(make_latent(), bars=3, max_length=60),
        "max_length": MAX_TOKENS_PER_BAR * N + 2,
        "bar_token_ids": processor.bar_token_ids,
        "text": " ".join(line_to_words(line)),
    }
    torch.save(expected, folder / "expected.pt")
    (folder / "line.json").write_text(json.dumps(line), encoding="utf-8")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), str(tmp_path / "again")],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "loaded twice" in result.stdout
    for name in ("model", "again"):
        code = {file.name for file in (tmp_path / name).glob("*.py")}
        assert code == {file.name for file in (ROOT / "modeling").glob("*.py")} - {"__init__.py"}
        auto_map = json.loads((tmp_path / name / "config.json").read_text(encoding="utf-8"))["auto_map"]
        assert auto_map == {
            "AutoConfig": "configuration_melody_vae.MelodyVAEConfig",
            "AutoModel": "modeling_melody_vae.MelodyVAEModel",
        }


def test_weights_are_tied(model):
    assert model.lm_head.weight is model.embed_tokens.weight


# --- Islands --------------------------------------------------------------------------------------------------------

STANDARD = set(sys.stdlib_module_names) | {"torch", "transformers"}
NUMPY = {"decoders", "decoding", "grammar_state", "logits_process", "melody_track", "musical_state"}
ALLOWED = {f"{name}_melody_vae.py": STANDARD | {"numpy"} for name in NUMPY} | {
    "processing_melody_vae.py": STANDARD | {"miditok", "symusic", "tokenizers"},
    "line_writing_melody_vae.py": STANDARD | {"miditok", "symusic"},
    "midi_reading_melody_vae.py": STANDARD | {"symusic", "numpy"},
    "tune_finding_melody_vae.py": STANDARD | {"miditok", "numpy"},
}


def imports(file: Path) -> list[tuple[int, str, list[str]]]:
    """List (dots, module, names) of every import statement, wherever it stands."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or "", [alias.name for alias in node.names]))
    return found


@pytest.mark.parametrize("file", sorted((ROOT / "modeling").glob("*.py")), ids=lambda file: file.name)
def test_modeling_imports_only_what_it_may(file):
    statements = imports(file)
    assert bool(statements) == (file.name != "melody_rules_melody_vae.py")  # numbers and names alone
    for dots, module, names in statements:
        if dots:
            assert dots == 1, "the files lie flat on the Hub"
            assert (ROOT / "modeling" / f"{module}.py").is_file(), f"from .{module} import {names}"
        else:
            assert module.split(".")[0] in ALLOWED.get(file.name, STANDARD), f"{file.name} imports {module}"


def test_the_data_set_builder_does_not_know_the_model():
    files = sorted((ROOT / "dataset_script").glob("*.py"))
    assert files
    for file in files:
        for _, module, names in imports(file):
            assert module.split(".")[0] != "modeling", f"{file.name} imports {module}"
            assert "modeling" not in names


def test_no_bar_goes_on_for_ever():
    """A model that only ever wants the same note ends each bar after MAX_TOKENS_PER_BAR tokens, and has all bars."""
    model = make_bare_model()
    wanted = next(token for token in range(V - 1, 0, -1) if not model.is_bar_token[token])

    insistent = torch.zeros(1, V).index_fill(1, torch.tensor([wanted]), 50.0)
    count = BarCountLogitsProcessor(torch.tensor([3]), model.is_bar_token, EOS)
    ids = torch.full((1, 1), BOS)
    opening = int(model.is_bar_token.nonzero()[0])
    ids = torch.cat([ids, torch.tensor([[opening]])], dim=1)
    while ids[0, -1] != EOS:
        ids = torch.cat([ids, count(ids, insistent.clone()).argmax(-1, keepdim=True)], dim=1)
    assert model.is_bar_token[ids].sum() == 3
    assert ids.shape[1] == 1 + 3 * MAX_TOKENS_PER_BAR + 1


def test_what_is_added_to_the_residual_stream_starts_small():
    """By the depth of all stacks together, in every layer; the library draws all other matrices alike."""
    model = make_bare_model(hidden_size=32, intermediate_size=64, initializer_range=0.02)
    depth = model.config.num_encoder_layers + model.config.num_bar_layers + model.config.num_hidden_layers
    weights = {name: each for name, each in model.named_parameters() if name.endswith("proj.weight")}
    added = {
        name: each for name, each in weights.items() if name.endswith(("attention.o_proj.weight", "down_proj.weight"))
    }
    assert len(added) == 2 * depth
    for name, weight in added.items():
        assert weight.std().item() == pytest.approx(0.02 / (2 * depth) ** 0.5, rel=0.15), name
    for name, weight in weights.items():
        if name.endswith(("qkv_proj.weight", "up_proj.weight")):
            assert weight.std().item() == pytest.approx(0.02, rel=0.15), name


def test_noise_of_none_and_of_all(model):
    """Without noise the latent is read as it is; with nothing but noise it does not matter, nor does the noise."""
    noisy = make_bare_model(noise_probability=0.5)
    noisy.load_state_dict(model.state_dict(), strict=False)  # all that a model trained without noise has
    latent, nothing = make_latent(), torch.zeros(B, N)
    torch.testing.assert_close(noisy.bar_conditioner(latent, nothing), model.bar_conditioner(latent), rtol=0, atol=1e-6)
    with torch.no_grad():
        noisy.bar_conditioner.noise_proj.weight.normal_()
    torch.testing.assert_close(noisy.bar_conditioner(latent, nothing), model.bar_conditioner(latent), rtol=0, atol=1e-6)
    everything = torch.ones(B, N)
    alone = noisy.bar_conditioner(latent, everything)
    assert torch.equal(alone, noisy.bar_conditioner(make_latent(seed=7), everything))
    assert not torch.allclose(alone, noisy.bar_conditioner(torch.zeros_like(latent), nothing))


def test_a_bar_without_latent_is_not_read():
    noisy = make_bare_model(noise_probability=0.5)
    latent, noise = make_latent().requires_grad_(), torch.zeros(B, N)
    noise[:, 2] = 1
    noisy.bar_conditioner(latent, noise).square().sum().backward()
    read = latent.grad.view(B, N, -1).abs().sum(-1) > 0
    assert torch.equal(read, noise == 0)


def test_noise_in_training():
    """As often as asked for, of each kind, and in units of the latent: variance (1 - a)^2 + a^2 of a unit latent."""
    conditioner = make_bare_model(noise_probability=0.6).bar_conditioner
    torch.manual_seed(0)
    noise = conditioner.draw_noise_level(20_000)
    assert noise.shape == (20_000, N)
    assert noise.min() == 0
    assert noise.max() == 1
    alike = (noise == noise[:, :1]).all(1)
    kinds = {
        "none": alike & (noise[:, 0] == 0),
        "all": alike & (noise[:, 0] == 1),
        "some of each bar": alike & (noise[:, 0] > 0) & (noise[:, 0] < 1),
    }
    # Bars hidden by a uniform chance are all hidden, or none, with 1 / (N + 1) each.
    expected = {"none": 0.4 + 0.2 / (N + 1), "all": 0.2 + 0.2 / (N + 1), "some of each bar": 0.2}
    for name, share in expected.items():
        assert kinds[name].float().mean().item() == pytest.approx(share, abs=0.02), name
    amounts = torch.full((20_000, N), 0.25)
    mixed = conditioner.add_noise(torch.randn(20_000, Z), amounts)
    assert mixed.var().item() == pytest.approx(0.75**2 + 0.25**2, rel=0.02)
    assert torch.equal(conditioner.add_noise(make_latent(), torch.zeros(B, N)), make_latent())


def test_a_frozen_decoder_reads_latents_without_noise(monkeypatch):
    noisy = make_bare_model(noise_probability=1.0).train()
    drawn = []
    draw = noisy.bar_conditioner.draw_noise_level
    monkeypatch.setattr(noisy.bar_conditioner, "draw_noise_level", lambda n: drawn.append(n) or draw(n))
    ids = IDS
    noisy(ids)
    noisy.layers.requires_grad_(False)
    noisy(ids)
    assert drawn == 2 * [len(ids)]  # what conditions the decoder is trained still
    noisy.bar_conditioner.requires_grad_(False)
    noisy(ids)
    assert drawn == 2 * [len(ids)]


def test_generate_with_noise(model):
    noisy = make_bare_model(noise_probability=0.5)
    latent = make_latent()
    same = {"do_sample": False, "bars": 2, "max_length": 40}
    assert torch.equal(noisy.generate(latent=latent, noise_level=0.0, **same), noisy.generate(latent=latent, **same))
    alone = noisy.generate(latent=latent, noise_level=1.0, **same)
    assert torch.equal(alone, noisy.generate(latent=make_latent(seed=9), noise_level=torch.ones(B, N), **same))
    with pytest.raises(ValueError, match="trained without"):
        model.generate(latent=latent, noise_level=0.5, **same)
    with pytest.raises(ValueError, match="noise_probability=2"):
        make_config(noise_probability=2)
