"""On a GPU that is not there: no tensor is made on the wrong device, and no training step makes the host wait.

The device is torch's `meta`, which computes shapes alone, refuses to mix with another one as CUDA does, and has no
value for a host that asks for one.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.builders.models import IDS, make_latent
from tests.modeling.test_prior import make_prior_model

ASKED = torch.ops.aten._local_scalar_dense.default
MOST_ASKED = 12
MODELS = [{}, {"musical_time": True, "musical_pitch": True}, {"noise_probability": 0.5}, {"dropout": 0.1}]


class ZeroAnswers(TorchDispatchMode):
    """Answer 0 where the host asks for a value, and after some questions that all melodies are done."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is ASKED and args[0].is_meta:
            self.asked += 1
            return args[0].new_full((), len(IDS) * (self.asked > MOST_ASKED), device="cpu").item()
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("overrides", MODELS)
def test_a_training_step(overrides):
    model = make_prior_model(**overrides).train().to("meta")
    ids = IDS.to("meta")
    output = model(ids, attention_mask=torch.ones_like(ids), labels=ids, kl_weight=0.5, tokens_per_melody=7.0)
    output.loss.backward()
    assert output.loss.is_meta
    assert output.logits.is_meta
    assert all(each.grad.is_meta for each in model.parameters() if each.grad is not None)


def test_a_training_step_of_the_prior():
    model = make_prior_model().train().to("meta")
    loss = model.prior.loss(make_latent().to("meta"), model.prior.null_labels(3))
    loss.backward()
    assert loss.is_meta


def test_sampling_from_the_prior():
    model = make_prior_model().to("meta")
    with ZeroAnswers() as answers:
        assert model.sample_latent(3).is_meta
    assert answers.asked == 0


@pytest.mark.parametrize("options", [{}, {"do_sample": True}])
def test_the_decoding_loop(options):
    model = make_prior_model().to("meta")
    with ZeroAnswers() as answers:
        ids = model.decode(make_latent().to("meta"), max_new_tokens=5, **options)
    assert ids.is_meta
    assert answers.asked


def test_a_wait_and_a_wrong_device_would_be_found():
    model = make_prior_model().eval().to("meta")
    ids = IDS.to("meta")
    with pytest.raises(RuntimeError, match="meta"):
        model.encode(ids)  # outside training it looks at the number of bars
    with pytest.raises(RuntimeError, match="device"):
        ids + torch.zeros_like(IDS)
