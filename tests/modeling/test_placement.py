"""Models that are not whole and in single precision: offloaded by Accelerate's hooks, or in bfloat16."""

import copy
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import pytest
import torch
from accelerate import cpu_offload, dispatch_model

from evaluation.operations import is_valid
from modeling import MelodyVAEModel
from modeling.decoders_melody_vae import StepDecoder, is_plain
from modeling.melody_line_melody_vae import ATTRIBUTES
from tests.builders.lines import processor_for
from tests.builders.models import make_model

BARS = 4
CONDITIONS = {"key": ["C major", "D minor"], "time_signature": ["4/4", "3/4"]}
FIRST_BARS = torch.tensor([[True, True, False, False]] * 3)
ASKED = {"seed": 3, "bars": 3, "conditions": {"key": "D minor", "time_signature": "4/4"}}


@pytest.fixture(scope="module")
def whole() -> MelodyVAEModel:
    """A model with all of the parts that one can have."""
    model = make_model(
        processor_for(4),
        max_bars=BARS,
        num_hidden_layers=2,
        num_prior_layers=1,
        musical_time=True,
        musical_pitch=True,
        previous_token=True,
        noise_probability=0.5,
        sampling_noise=0.8,
        conditions=CONDITIONS,
        attributes=list(ATTRIBUTES),
        decoder_conditions=["key", "attributes"],
        initializer_range=0.3,
    )
    model.set_grammar(processor_for(4).grammar_table())
    return model


def uses(model: MelodyVAEModel, melodies: torch.Tensor, latent: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """What each operation gives."""
    mask = melodies.ne(model.config.pad_token_id).long()
    return {
        "encode": lambda: model.encode(melodies, mask)[0],
        "forward": lambda: model(melodies, attention_mask=mask, labels=melodies).loss,
        "decode": lambda: model.decode(latent),
        "sample": lambda: model.sample(3, max_attempts=2, **ASKED),
        "prior": lambda: model.sample_latent(3, seed=5),
        "prior, some bars known": lambda: model.sample_latent(3, seed=5, known=latent, is_known=FIRST_BARS),
        "infill": lambda: model.infill(melodies, mask, bars=[1], seed=5, candidates=2),
        "continue": lambda: model.continue_melody(model.sample(3, seed=1, bars=2), bars=3, seed=5),
        "interpolate": lambda: model.interpolate(latent[0], latent[1], 3),
        "vary": lambda: model.vary(latent[0], 3, similarity=0.5, seed=5),
        "shift": lambda: model.shift(latent, "note_density", 1.0),
    }


def on_cpu_and_disk(model: MelodyVAEModel, folder, *, offload_buffers: bool = False) -> None:
    places = {name: "disk" for name, _ in model.named_children()} | {"is_bar_token": "cpu", "token_grammar": "cpu"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # accelerate's, of buffers that are no modules
        dispatch_model(
            model, places, offload_dir=folder, main_device="cpu", force_hooks=True, offload_buffers=offload_buffers
        )


@pytest.mark.parametrize(
    "offload",
    [lambda model, _: cpu_offload(model, torch.device("cpu")), on_cpu_and_disk],
    ids=["cpu_offload", "dispatch_model"],
)
def test_a_model_whose_weights_are_offloaded_does_what_the_whole_one_does(whole, tmp_path, offload):
    """Between a module's calls its weights lie on `meta`: what read them outside of its `forward` would fail."""
    melodies, latent = whole.sample(3, seed=1, bars=BARS), whole.sample_latent(3, seed=2)
    expected = {name: use() for name, use in uses(whole, melodies, latent).items()}
    model = copy.deepcopy(whole)
    offload(model, tmp_path)
    assert all(weight.is_meta for weight in model.prior.parameters())
    assert model.device == torch.device("cpu")
    for name, use in uses(model, melodies, latent).items():
        found = use()
        assert found.dtype == expected[name].dtype
        assert torch.allclose(found, expected[name], atol=1e-5), name


@pytest.mark.parametrize(
    "offload",
    [
        lambda model, _: cpu_offload(model, torch.device("cpu"), offload_buffers=True),
        partial(on_cpu_and_disk, offload_buffers=True),
    ],
    ids=["cpu_offload", "dispatch_model"],
)
def test_buffers_that_are_offloaded_are_refused_in_words_where_they_are_missed(whole, tmp_path, offload):
    melodies, latent = whole.sample(3, seed=1, bars=BARS), whole.sample_latent(3, seed=2)
    expected = {name: use() for name, use in uses(whole, melodies, latent).items()}
    model = copy.deepcopy(whole)
    offload(model, tmp_path)
    refused = set()
    for name, use in uses(model, melodies, latent).items():
        try:
            assert torch.allclose(use(), expected[name], atol=1e-5), name
        except ValueError as error:
            assert "without offload_buffers=True" in str(error)  # noqa: PT017 - some work
            refused.add(name)
    assert {"prior", "prior, some bars known", "sample", "infill", "vary"} <= refused
    assert "forward" not in refused


class Recorded(StepDecoder):
    """Keeps what it was asked and what it gave."""

    calls: ClassVar[list[tuple[torch.Tensor, torch.Tensor]]] = []
    dtypes: ClassVar[set[torch.dtype]] = set()

    def __call__(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits = super().__call__(input_ids)
        self.calls.append((input_ids.clone(), logits.float()))
        self.dtypes.update(part.dtype for part in self.cache)
        return logits


@pytest.fixture
def recorded(monkeypatch) -> type[Recorded]:
    monkeypatch.setattr("modeling.decoding_melody_vae.StepDecoder", Recorded)
    Recorded.calls, Recorded.dtypes = [], set()
    return Recorded


def check_against_forward(model: MelodyVAEModel, latent: torch.Tensor, recorded: type[Recorded], atol: float) -> None:
    """Each step's logits are `forward`'s over the whole sequence, and the cache is in the model's own precision."""
    model.decode(latent, bars=BARS, seed=1)
    assert recorded.dtypes == {model.dtype}
    assert len(recorded.calls) > 2 * BARS
    ids = recorded.calls[-1][0]
    with torch.no_grad():
        expected = model(ids, latent=latent[: len(ids)]).logits.float()
    for before, logits in recorded.calls:
        assert torch.equal(before, ids[:, : before.shape[1]])
        assert (logits - expected[:, before.shape[1] - 1]).abs().max() < atol * expected.abs().max()


def test_steps_in_bfloat16_are_forwards(whole, recorded):
    model = copy.deepcopy(whole).to(torch.bfloat16)
    latent = model.sample_latent(1, seed=2)
    assert latent.dtype == torch.bfloat16
    check_against_forward(model, latent, recorded, atol=0.05)


def test_keys_and_values_of_a_forward_in_mixed_precision_are_taken_over_in_the_models_own(whole, recorded):
    """So Accelerate prepares a model: `forward` alone computes in bfloat16, and what samples in training does not."""
    model = copy.deepcopy(whole)
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    check_against_forward(model, model.sample_latent(1, seed=2), recorded, atol=0.05)


DECODER = ("layers.", "embed_tokens", "time_embedding", "previous_proj", "norm", "lm_head")


def test_modules_with_hooks_are_called_and_give_what_plain_ones_give(whole, recorded):
    latent = whole.sample_latent(3, seed=2)
    whole.decode(latent, bars=BARS)
    plain, recorded.calls = recorded.calls, []
    model, called = copy.deepcopy(whole), Counter()
    hooked = [each for name, each in model.named_modules() if is_plain(each) and name.startswith(DECODER)]
    assert len(hooked) == 5 + 6 * len(model.layers)
    for module in hooked:
        module.register_forward_hook(lambda module, *_: called.update([module]))
    model.decode(latent, bars=BARS)
    assert min(called[module] for module in hooked) >= len(recorded.calls) > 2 * BARS
    for (ids, logits), (same_ids, same) in zip(plain, recorded.calls, strict=True):
        assert torch.equal(ids, same_ids)
        torch.testing.assert_close(same, logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("place", ["", "layers.1", "layers.0.attention"])
def test_hooks_of_what_has_parts_see_every_token(whole, recorded, place):
    model, latent, seen = copy.deepcopy(whole), whole.sample_latent(1, seed=2), []
    expected = whole.decode(latent, bars=BARS)
    recorded.calls = []
    model.get_submodule(place).register_forward_hook(lambda *_: seen.append(1))
    ids = model.decode(latent, bars=BARS)
    assert torch.equal(ids, expected)
    assert not recorded.calls
    assert len(seen) == ids.shape[1] - 1


class Doubled(torch.nn.Linear):
    """An adapter: what a layer of another kind computes is its own."""

    def forward(self, input):
        return 2 * super().forward(input)


def test_adapters_and_weights_that_change_between_calls(whole, recorded):
    model = copy.deepcopy(whole)
    latent = model.sample_latent(1, seed=2)
    check_against_forward(model, latent, recorded, atol=1e-4)
    recorded.calls = []
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    for module in (model.layers[0].attention.qkv_proj, model.layers[1].up_proj, model.previous_proj):
        module.__class__ = Doubled
    check_against_forward(model, latent, recorded, atol=1e-4)


def test_samples_and_the_prior_in_bfloat16(whole):
    processor, model = processor_for(4), copy.deepcopy(whole).to(torch.bfloat16)
    latent = model.sample_latent(3, seed=5)
    expected = whole.sample_latent(3, seed=5)
    assert latent.dtype == torch.bfloat16
    assert (latent.float() - expected).square().mean() < 0.01 * expected.square().mean()
    kept = model.sample_latent(3, seed=5, known=latent, is_known=FIRST_BARS)
    assert torch.equal(kept[:, : kept.shape[1] // 2], latent[:, : kept.shape[1] // 2])
    ids = model.sample(3, **ASKED)
    assert torch.equal(ids, model.sample(3, **ASKED))
    for row, line in zip(ids.tolist(), processor.to_lines(ids), strict=True):
        assert is_valid(processor, row, line, 3)
        assert line["time_signature"] == "4/4"
    again = model.encode(ids, ids.ne(model.config.pad_token_id).long())[0]
    assert again.dtype == torch.bfloat16
    assert again.isfinite().all()
