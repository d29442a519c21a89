"""What only a GPU can show: training in bf16, a compiled model, seeds, and the ids that the CPU gives."""

import json
from pathlib import Path

import pytest
import torch

from generation.loading import load_model
from tests.builders.training import TINY, arguments, run
from training.run_logger import LOG_NAME

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU on this machine"),
]
DEVICE = "cuda"
RELEASE = Path(__file__).parents[1] / "release" / "melody-vae-16bar"


@pytest.fixture(scope="module")
def model():
    return load_model(str(RELEASE))[1].eval().to(DEVICE)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch 2.13's own compiler
def test_twenty_steps_in_bf16_learn_compiled_and_not(dataset, tmp_path):
    options = ["--mixed_precision", "bf16", "--max_train_steps", "20", "--evaluation_steps", "5"]
    options += ["--kl_warmup_steps", "20", "--learning_rate", "3e-3", "--config_overrides", TINY + ",dropout=0.0"]
    last = []
    for more in ([], ["--torch_compile"]):
        folder = tmp_path / str(len(more))
        run(arguments(dataset, folder, *options, *more))
        log = json.loads((folder / LOG_NAME).read_text(encoding="utf-8"))
        assert log["device"] == DEVICE
        first, *_, end = [entry["bits_per_note"] for entry in log["history"]]
        assert end < first
        last.append(end)
    assert last[0] == pytest.approx(last[1], rel=0.05)


def test_a_seed_gives_the_same_melodies(model):
    one, again, other = (model.sample(3, bars=2, seed=seed) for seed in (0, 0, 1))
    assert one.device.type == DEVICE
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_greedy_ids_are_those_of_the_cpu(model):
    latent = torch.randn(5, model.config.latent_size, generator=torch.Generator().manual_seed(0))
    there = model.decode(latent.to(DEVICE), max_new_tokens=48).cpu()
    here = load_model(str(RELEASE))[1].eval().decode(latent, max_new_tokens=48)
    assert torch.equal(there, here)
