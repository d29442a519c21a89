"""What the melody decoder is told of a melody beside its latent: key, time signature, attributes."""

import copy
from collections import Counter

import pytest
import torch

from modeling import MelodyVAEConfig, MelodyVAEModel
from modeling.arguments_melody_vae import make_generators
from modeling.melody_line_melody_vae import ATTRIBUTES, KEY_NAMES, key_of
from tests.builders.lines import processor_for
from tests.builders.models import make_model

CONDITIONS = {"key": list(KEY_NAMES), "time_signature": ["4/4", "3/4"]}
SHARES = [0.5 if name in ("D minor", "F major") else 0.0 for name in KEY_NAMES]


@pytest.fixture(scope="module")
def told() -> MelodyVAEModel:
    """A model that is told, and makes something of it."""
    model = make_model(
        processor_for(4),
        max_bars=4,
        num_prior_layers=1,
        noise_probability=0.5,
        sampling_noise=0.8,
        conditions=CONDITIONS,
        attributes=list(ATTRIBUTES),
        decoder_conditions=["key", "attributes"],
        key_shares=SHARES,
    )
    model.set_grammar(processor_for(4).grammar_table())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.bar_conditioner.condition_embedding.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
        for embedding in model.bar_conditioner.condition_embedding.condition_embeddings.values():
            embedding.weight[-1] = 0  # left open
    return model


def expand(model: MelodyVAEModel, conditions: dict) -> torch.Tensor:
    latent = torch.ones(2, model.config.latent_size)
    return model._bar_conditions(latent, None, model._conditions(conditions, 2))


def test_a_new_embedding_changes_nothing(told):
    fresh = MelodyVAEModel(told.config).eval()
    fresh.set_grammar(told.token_grammar)
    assert torch.equal(expand(fresh, {"key": "D minor", "note_density": 2.0}), expand(fresh, {}))


def test_what_is_told_makes_a_difference_and_what_is_open_makes_none(told):
    nothing = expand(told, {})
    for asked in ({"key": "D minor"}, {"note_density": 1.0}, {"note_density": 0.0}):
        assert not torch.allclose(expand(told, asked), nothing), asked
    assert not torch.allclose(expand(told, {"key": "D minor"}), expand(told, {"key": "E minor"}))
    for left_open in ({"key": None}, {"note_density": None}, {"time_signature": "3/4"}):  # the last is not told
        assert torch.equal(expand(told, left_open), nothing), left_open
    one = expand(told, {"key": ["D minor", None]})
    assert torch.equal(one[1], nothing[1])
    assert not torch.allclose(one[0], nothing[0])


def test_training_leaves_some_open(told):
    embedding, n = told.bar_conditioner.condition_embedding, 4000
    labels = told._condition_labels(embedding, {"key": ["D minor"] * n, **dict.fromkeys(ATTRIBUTES, [0.5] * n)}, n)
    torch.manual_seed(0)
    hidden = embedding.hide(labels, all_hidden=0.4, each_hidden=0.25)
    assert (hidden["key"] == len(KEY_NAMES)).float().mean().item() == pytest.approx(0.4 + 0.6 * 0.25, abs=0.03)
    is_open = hidden["attributes"].isnan()
    assert is_open.all(-1).float().mean().item() == pytest.approx(0.4 + 0.6 * 0.5, abs=0.03)
    assert (~is_open).all(-1).float().mean().item() == pytest.approx(0.6 * 0.25, abs=0.03)
    assert not labels["attributes"].isnan().any()  # those that were given are as they were


def test_a_key_is_drawn_where_none_is_asked_for(told, monkeypatch):
    heard = []
    expand_all = MelodyVAEModel._bar_conditions

    def listen(self, latent, noise_level, conditions):
        heard.extend(conditions.get("key", [None] * len(latent)))
        return expand_all(self, latent, noise_level, conditions)

    monkeypatch.setattr(MelodyVAEModel, "_bar_conditions", listen)
    told.sample(64, seed=0, bars=2)
    drawn = Counter(heard)
    assert set(drawn) == {"D minor", "F major"}
    assert min(drawn.values()) > 16
    first, heard[:] = list(heard), []
    told.sample(3, seed=0, bars=2)
    assert heard == first[:3]  # of a melody's own generator
    heard.clear()
    told.sample(4, seed=0, bars=2, conditions={"key": "E minor"}, max_attempts=1)
    assert set(heard) == {"E minor"}
    heard.clear()
    silent = copy.deepcopy(told)
    silent.config.key_shares = None
    silent.sample(4, seed=0, bars=2)
    assert set(heard) == {None}


def test_what_goes_on_is_told_its_own_key(told, monkeypatch):
    heard = []
    monkeypatch.setattr(
        MelodyVAEModel, "_bar_conditions", lambda self, latent, level, conditions: heard.append(conditions) or 1 / 0
    )
    processor = processor_for(4)
    line = {"pitch": [64, 66, 68, 69, 71], "start": [0, 4, 8, 12, 16], "duration": [4] * 5}
    line |= {"time_signature": "4/4", "steps_per_beat": 4, "bars": 2}
    batch = processor(lines=line, return_tensors="pt")
    for work in (
        lambda: told.continue_melody(batch.input_ids, bars=4, seed=0),
        lambda: told.infill(**batch, bars=[1], seed=0),
    ):
        with pytest.raises(ZeroDivisionError):
            work()
        assert set(heard.pop()["key"]) == {key_of(line)}


def test_conditions_that_there_are_not_cannot_be_told():
    with pytest.raises(ValueError, match="decoder_conditions: 'genre' is none of the conditions"):
        MelodyVAEConfig(decoder_conditions=["genre"], conditions=CONDITIONS)
    with pytest.raises(ValueError, match="key_shares: 2 shares of 24 keys"):
        MelodyVAEConfig(key_shares=[0.5, 0.5], conditions=CONDITIONS)


def test_melodies_in_keys_that_the_training_data_had_not_are_of_no_known_key(told):
    few = copy.deepcopy(told)
    melodies = few.sample(4, seed=1, bars=4)
    keys = [key_of(line) for line in few.read_lines(melodies)]
    few.config.conditions = {**CONDITIONS, "key": [next(key for key in KEY_NAMES if key not in keys)]}
    few.config.key_shares = [1.0]
    assert few._with_keys({}, melodies, make_generators(4, 0)) == {"key": [None] * 4}
    assert few._conditions_like(few.sample_latent(1, seed=2), {})["key"] is None


def test_open_attributes_of_a_latent_without_noise_may_be_those_of_an_average_melody(told):
    average = copy.deepcopy(told)
    average.config.average_attributes = True
    mean = dict.fromkeys(ATTRIBUTES, 0.0)
    assert torch.equal(expand(average, {}), expand(told, mean))
    assert torch.equal(expand(average, {"note_density": 2.0}), expand(told, mean | {"note_density": 2.0}))
    assert torch.equal(expand(average, {"key": "D minor"}), expand(told, mean | {"key": "D minor"}))
    latent, level = torch.ones(2, told.config.latent_size), torch.tensor([[0.0] * 4, [0.0, 0.0, 0.0, 0.5]])
    clean, noisy = average._bar_conditions(latent, level, {})
    assert torch.equal(clean, told._bar_conditions(latent, level, told._conditions(mean, 2))[0])
    assert torch.equal(noisy, told._bar_conditions(latent, level, {})[1])


def test_a_melody_is_reconstructed_under_its_own_conditions(told, monkeypatch):
    lines = told.read_lines(told.sample(3, seed=4, bars=[1, 3, 4]))
    lines[1] |= {"pitch": [], "start": [], "duration": []}
    conditions = told.conditions_of(lines)
    assert conditions.keys() == {"key", *ATTRIBUTES}
    assert conditions["key"] == [key_of(lines[0]), None, key_of(lines[2])]
    for column, name in enumerate(ATTRIBUTES):
        measured = told.attributes_of(lines)[:, column].tolist()
        assert conditions[name] == [measured[0], None, measured[2]]
    ids = told.write_lines(lines)
    latent, bars = told.encode(ids).latent_mean, told.is_bar_token[ids].sum(-1)
    own = {"conditions": conditions, "bars": bars}
    refined = told.refine(latent, ids, 3, conditions=conditions)
    assert not torch.equal(refined, told.refine(latent, ids, 3))
    assert torch.equal(told.reconstruct(ids, refinement_steps=3), told.decode(refined, **own))
    expanded, expand_all = [], MelodyVAEModel._bar_conditions
    monkeypatch.setattr(MelodyVAEModel, "_bar_conditions", lambda *args: expanded.append(args[3]) or expand_all(*args))
    told.reconstruct(ids, refinement_steps=0)
    told.reconstruct(ids, refinement_steps=0, conditions={"key": "D minor"})
    assert expanded == [conditions, {"key": ["D minor"] * 3}]
