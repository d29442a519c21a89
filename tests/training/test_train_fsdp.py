"""FSDP2: parts of a model in two processes learn what two whole models learn, resume, and load as any other.

Beside `configs/fsdp2.yaml` itself, on a CPU; see `fsdp_on_cpu.py` for what that takes.
"""

import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from tests.builders.commands import finish, launch
from tests.builders.training import TINY, arguments, assert_same_run, history

ROOT = Path(__file__).parents[2]
NO_DROPOUT = TINY.replace("dropout=0.1", "dropout=0.0")
MODELS = {
    "melody_vae": ["--config_overrides", NO_DROPOUT, "--gradient_accumulation_steps", "2", "--gradient_checkpointing"],
    "music_vae": ["--model_type", "music_vae", "--config_overrides", "encoder_size=12,decoder_size=10,latent_size=32"],
}


def train(config: str, script: str, argv: list[str]) -> None:
    """Train in two processes."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        assert "2 process(es) on cpu" in finish(launch(["--config_file", config], [script, *argv], ROOT, log), log)


def shard(argv: list[str]) -> None:
    """Train with FSDP2."""
    train("configs/fsdp2.yaml", "tests/training/fsdp_on_cpu.py", argv)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODELS)
def test_sharded_training_is_that_of_whole_models(dataset, tmp_path, model_type):
    options = [*MODELS[model_type], "--max_train_steps", "9"]
    copied, sharded, resumed = tmp_path / "copied", tmp_path / "sharded", tmp_path / "resumed"
    train("configs/cpu.yaml", "train.py", arguments(dataset, copied, *options))
    shard(arguments(dataset, sharded, *options))
    for one, other in zip(history(sharded), history(copied), strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    weights, expected = (load_file(folder / "model.safetensors") for folder in (sharded, copied))
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert torch.allclose(tensor, expected[name], atol=1e-5), name
    assert (sharded / "config.json").read_text(encoding="utf-8") == (copied / "config.json").read_text(encoding="utf-8")
    assert {path.name for path in sharded.glob("*.py")} == {path.name for path in copied.glob("*.py")}

    parts = [path.stat().st_size for path in (sharded / "step_7").glob("optimizer_*.safetensors")]
    assert len(parts) == 2, "the checkpoint is not in parts"
    assert max(parts) < 0.7 * sum(parts)

    shutil.copytree(sharded, resumed)  # as if it had ended after its checkpoint, and what it kept were torn
    (resumed / "model.safetensors").write_bytes(b"")
    shard(arguments(dataset, resumed, *options, "--resume_from_checkpoint", "latest"))
    assert_same_run(resumed, sharded)

    model = AutoModel.from_pretrained(resumed, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(resumed, trust_remote_code=True)
    assert len(processor.to_scores(model.sample(3, seed=0, bars=2))) == 3


@pytest.mark.slow
def test_parts_are_computed_in_bfloat16_and_kept_in_single_precision(dataset, tmp_path):
    options = ["--config_overrides", NO_DROPOUT, "--max_train_steps", "4"]
    copied, sharded = tmp_path / "copied", tmp_path / "sharded"
    train("configs/cpu.yaml", "train.py", arguments(dataset, copied, *options))
    shard(arguments(dataset, sharded, *options, "--mixed_precision", "bf16"))
    for name in ("train_loss", "reconstruction_nats", "kl_nats"):
        assert history(sharded)[-1][name] == pytest.approx(history(copied)[-1][name], rel=0.02)
        assert history(sharded)[-1][name] != history(copied)[-1][name]
    weights, expected = (load_file(folder / "model.safetensors") for folder in (sharded, copied))
    assert {name: tensor.dtype for name, tensor in weights.items()} == {
        name: tensor.dtype for name, tensor in expected.items()
    }
