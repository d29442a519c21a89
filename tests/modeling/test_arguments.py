"""Callers: what an operation is given is used, or refused in one line that names it; nothing asked for is nothing."""

import pytest
import torch

from tests.builders.models import BAR_TOKENS, EOS, IDS, B, N, V, Z, make_bare_model, make_latent

NAN, INFINITE = make_latent(), make_latent()
NAN[1, 2], INFINITE[0, 3] = torch.nan, -torch.inf
PRIMER = torch.tensor([[1, BAR_TOKENS[0], 17, BAR_TOKENS[1], 29]])
SHORT = {"max_length": 40}


@pytest.fixture(scope="module")
def model():
    conditions = {"key": ["C major", "A# major"], "time_signature": ["4/4", "3/4"]}
    model = make_bare_model(num_prior_layers=1, conditions=conditions, attributes=["mean_pitch"])
    torch.nn.init.normal_(model.prior.direction_proj.weight)  # zeros, by which conditions would change nothing
    return model


REFUSED = {
    "count of half": (lambda model: model.sample(1.5), "n=1.5 is not a whole number"),
    "negative count": (lambda model: model.sample(-1), "n=-1 is not a whole number of 0 or more"),
    "fractional seed": (lambda model: model.sample(1, seed=0.5), "seed=0.5 is not a whole number"),
    "seed as text": (lambda model: model.sample(1, seed="a"), "seed='a' is not a whole number"),
    "seed too large": (lambda model: model.sample(1, seed=2**63), "seed=9223372036854775808 is more than"),
    "no bars": (lambda model: model.sample(1, bars=0), "bars=0 is not a whole number of 1 or more"),
    "bars of half": (lambda model: model.sample(1, bars=2.5), "bars=2.5 is not a whole number"),
    "bars beyond the latent": (lambda model: model.decode(make_latent(), bars=N + 1), f"bars={N + 1}: a latent holds"),
    "bars of others": (lambda model: model.decode(make_latent(), bars=torch.tensor([1, 2])), "2 values of bars for 3"),
    "no temperature": (lambda model: model.sample(1, temperature=0), "temperature=0: greedy decoding is do_sample"),
    "NaN temperature": (lambda model: model.sample(1, temperature=float("nan")), "temperature=nan is not a finite"),
    "NaN latent": (lambda model: model.decode(NAN, bars=1), "latent: has NaN or infinite numbers"),
    "infinite latent": (lambda model: model.generate(latent=INFINITE, bars=1), "latent: has NaN or infinite numbers"),
    "latent too short": (lambda model: model.decode(make_latent()[:, 1:]), rf"latent of shape \(3, {Z - 1}\)"),
    "latent as a list": (lambda model: model.decode([[0.0] * Z]), "latent: a tensor of floating point numbers"),
    "two latents to vary": (lambda model: model.vary(make_latent()), r"latent of shape \(3, "),
    "NaN at an end": (lambda model: model.interpolate(NAN[1], NAN[0]), "latent: has NaN or infinite numbers"),
    "similarity": (
        lambda model: model.vary(make_latent(1), similarity=2),
        "similarity=2 is not a finite number",
    ),
    "ids as numbers": (lambda model: model.continue_melody(IDS.float()), "input_ids: a tensor of whole numbers"),
    "ids of another model": (lambda model: model.generate(IDS + V), f"input_ids: from .*, of {V} tokens"),
    "nothing to write": (lambda model: model.continue_melody(PRIMER, bars=2), "2 bars cannot be continued to bars=2"),
    "nothing to keep": (lambda model: model.continue_melody(PRIMER[:, :1]), "0 bars cannot be continued"),
    "meter of a primer": (
        lambda model: model.continue_melody(PRIMER, bars=3, time_signature="3/4"),
        "the melody has its own",
    ),
    "unknown key": (lambda model: model.sample(1, conditions={"key": "H major"}), "unknown key 'H major'"),
    "attribute as text": (lambda model: model.sample(1, conditions={"mean_pitch": "high"}), "mean_pitch .*='high'"),
    "guidance_scale": (
        lambda model: model.sample(1, guidance_scale=float("inf")),
        "guidance_scale=inf is not a finite number",
    ),
    "max_attempts": (
        lambda model: model.sample(1, max_attempts=0),
        "max_attempts=0 is not a whole number of 1 or more",
    ),
    "known without which": (lambda model: model.sample_latent(3, make_latent()), "known and is_known go together"),
    "one generator for all": (
        lambda model: model.sample(3, generator=torch.Generator()),
        "1 generators for 3 melodies: give a list",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_argument_is_refused_in_words(model, name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call(model)


NOTHING = {
    "sample": lambda model: model.sample(0, seed=0, bars=1),
    "sample of conditions": lambda model: model.sample(0, seed=0, conditions={"key": []}),
    "vary": lambda model: model.vary(make_latent(1), n=0, seed=0),
    "decode": lambda model: model.decode(make_latent()[:0]),
    "decode by chance": lambda model: model.decode(make_latent()[:0], do_sample=True, seed=0),
    "interpolate": lambda model: model.interpolate(*make_latent()[:2], steps=0, bars=1),
    "interpolate_grid": lambda model: model.interpolate_grid(make_latent(4), size=0, bars=1),
    "reconstruct": lambda model: model.reconstruct(IDS[:0]),
    "continue": lambda model: model.continue_melody(IDS[:0], bars=3, seed=0),
    "latents": lambda model: model.sample_latent(0, seed=0),
}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_asked_for_is_nothing(model, name):
    assert len(NOTHING[name](model)) == 0


def test_flats_and_open_conditions_are_understood(model):
    options = {"seed": 1, "bars": 2, **SHORT}
    sharp = model.sample(2, conditions={"key": "A# major"}, **options)
    assert torch.equal(model.sample(2, conditions={"key": "Bb major"}, **options), sharp)
    free = model.sample(2, **options)
    assert not torch.equal(free, sharp)
    assert torch.equal(model.sample(2, conditions={"key": [None, None]}, **options), free)
    assert torch.equal(model.sample(2, conditions={"key": None}, **options), free)


@pytest.mark.parametrize("bars", [torch.tensor(2), torch.tensor([2, 2, 2]), [2], [2, 2, 2]])
def test_bars_are_a_number_a_list_or_a_tensor(model, bars):
    expected = model.sample(B, seed=3, bars=2)
    assert (model.is_bar_token[expected].sum(-1) == 2).all()
    assert torch.equal(model.sample(B, seed=3, bars=bars), expected)


def test_melody_i_of_a_seed_is_the_same_for_every_number_of_melodies(model):
    exact = make_bare_model().double()
    whole = [[token for token in row if token] for row in exact.sample(6, seed=5, bars=3).tolist()]
    part = [[token for token in row if token] for row in exact.sample(2, seed=5, bars=3).tolist()]
    assert part == whole[:2]
    assert whole[0] != whole[1]


def test_continuations_of_a_seed_leave_the_global_random_state_alone(model):
    state = torch.get_rng_state()
    one, again = (model.continue_melody(PRIMER.repeat(2, 1), bars=4, seed=2) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, again)
    assert (one[:, : PRIMER.shape[1]] == PRIMER).all()
    assert model.is_bar_token[one[:, PRIMER.shape[1]]].all()
    ended = torch.cat([PRIMER, torch.tensor([[EOS]])], dim=1)  # with an end, as a whole melody has it
    assert torch.equal(model.continue_melody(ended.repeat(2, 1), bars=4, seed=2), one)


def test_a_vocabulary_of_another_size_keeps_the_bars_and_the_grammar():
    model = make_bare_model(musical_time=True)
    before = model.musical_position(IDS)
    model.resize_token_embeddings(V + 3)
    assert torch.equal(model.musical_position(IDS), before)
    assert not model.is_bar_token[V:].any()
    assert model.musical_position(torch.full((1, 2), V + 1)).tolist() == [[-1, -1]]


def test_a_new_model_of_a_configuration_says_that_it_lacks_the_grammar():
    model = make_bare_model(musical_time=True)
    model.set_grammar(model.token_grammar)
    new = type(model)(model.config).eval()
    with pytest.raises(ValueError, match=r"set_grammar\(processor.grammar_table\(\)\)"):
        new(IDS)
    with pytest.raises(ValueError, match="is no grammar of"):
        new.set_grammar(model.token_grammar[1:])


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"musical_time": True},
        {"musical_pitch": True},
        {"previous_token": True},
        {"musical_time": True, "musical_pitch": True, "previous_token": True, "noise_probability": 0.5},
    ],
)
def test_the_decoding_loop_writes_what_transformers_writes(flags, implementation):
    """From latents and from padded primers; beyond the distances that have rows of their own, and cache blocks."""
    model = make_bare_model(attn_implementation=implementation, **flags).double()
    latent = make_latent().double()
    options = {"bars": torch.tensor([7, 2, 5]), "max_length": 150}
    loop = model.decode(latent, **options)
    assert torch.equal(loop, model.generate(latent=latent, do_sample=False, **options))
    primer = torch.tensor([[0, 0, 1, 5, 17, 13], [1, 23, 6, 7, 8, 9], [0, 1, 31, 15, 5, 5]])
    options |= {"attention_mask": primer.ne(0).long(), "bars": 6, "do_sample": False}
    kwargs = model._generation_kwargs(options)
    assert kwargs.keys() - options.keys() == {"custom_generate"}
    assert torch.equal(
        model.generate(primer, latent=latent, **kwargs), model.generate(primer, latent=latent, **options)
    )
