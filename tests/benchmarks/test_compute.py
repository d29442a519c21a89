"""What the estimate of benchmarks.compute has to hold."""

import json

import pytest

from benchmarks import compute
from modeling import MelodyVAEModel


@pytest.fixture(scope="module")
def step():
    model = MelodyVAEModel.from_pretrained(compute.ROOT / "release" / "melody-vae-16bar").train()
    return {tokens: compute.count_step(model, tokens) for tokens in (32, 64)} | {"model": model}


def test_operations_are_those_of_the_weights_and_more(step):
    """A weight of a layer of the melody decoder is multiplied and added once forward and twice backward."""
    layers = sum(weight.numel() for weight in step["model"].layers.parameters() if weight.dim() == 2)
    more = step[64]["operations"] - step[32]["operations"]
    assert 6 * 32 * layers < more < 3 * 6 * 32 * layers
    assert step[64]["activation_bytes"] > 1.5 * step[32]["activation_bytes"]


def test_hours_and_money_follow_from_rates(step):
    args = compute.parse_args(["--core_price", "1", "--gpu_price", "1", "--utilisation", "0.001"])
    found = compute.estimate(step[64], 7, args.results, args)
    for row in found["machines"].values():
        assert row["hours"] * 3600 * row["windows_per_second"] == pytest.approx(found["windows"], rel=1e-4)
        assert row["dollars"] == pytest.approx(row["hours"] * row["devices"])
    one, eight = (found["machines"][name] for name in ("one H100", "eight H100"))
    assert eight["windows_per_second"] == pytest.approx(8 * one["windows_per_second"])
    assert one["windows_per_second"] == pytest.approx(0.001 * compute.H100_PEAK / step[64]["operations"])
    files = json.loads((args.results / "dataset.json").read_text(encoding="utf-8"))["files"]["read"]
    assert found["files"] == {"lakh": 178561, "of_the_release": files}
