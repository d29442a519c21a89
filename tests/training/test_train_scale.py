"""Ways to train what does not fit: accumulated and recomputed gradients change time and memory, not what is learned."""

import json
import random
from collections import Counter
from pathlib import Path

import datasets
import pytest

from command import UserError
from modeling.line_writing_melody_vae import make_remi
from modeling.relative_attention import RelativeAttention
from tests.builders.training import TINY, arguments, melody, run
from training.run_logger import LOG_NAME

CLOCKS = {"melodies_per_second", "waiting_for_data"}


def learned(folder: Path) -> list[dict]:
    """What a run's log says of each evaluation, without what depends on the clock or counts melodies."""
    history = json.loads((folder / LOG_NAME).read_text(encoding="utf-8"))["history"]
    return [{name: value for name, value in entry.items() if name not in CLOCKS | {"melodies"}} for entry in history]


@pytest.fixture(scope="module")
def one_melody(tmp_path_factory) -> Path:
    """A data set in which all batches are alike."""
    folder = tmp_path_factory.mktemp("one melody")
    for split in ("train", "validation"):
        rows = [melody(random.Random(0), 16) for _ in range(11)]
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_accumulated_gradients_are_means(one_melody, tmp_path):
    """Of batches that are alike, three are worth no more than one, and a step is a step of the schedule."""
    overrides = TINY.replace("latent_size=32", "latent_size=0").replace("dropout=0.1", "dropout=0.0")
    for count in (1, 3):
        options = ["--gradient_accumulation_steps", str(count), "--config_overrides", overrides, "--transpose", "0"]
        run(arguments(one_melody, tmp_path / str(count), *options))
    for one, three in zip(learned(tmp_path / "1"), learned(tmp_path / "3"), strict=True):
        assert three == pytest.approx(one, rel=1e-5)
    log = json.loads((tmp_path / "3" / LOG_NAME).read_text(encoding="utf-8"))
    assert log["melodies_seen"] == 3 * 12 * 5


def test_recomputed_gradients_are_the_same(dataset, tmp_path, monkeypatch):
    calls = Counter()
    forward = RelativeAttention.forward
    for name in ("kept", "recomputed"):

        def counted(self, *args, name=name, **kwargs):
            calls[name] += self.training
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(RelativeAttention, "forward", counted)
        run(arguments(dataset, tmp_path / name, *(["--gradient_checkpointing"] if name == "recomputed" else [])))
    assert learned(tmp_path / "recomputed") == learned(tmp_path / "kept")
    assert calls["recomputed"] > 1.5 * calls["kept"]


@pytest.mark.parametrize("model_type", ["music_vae", "lstm", "rnn"])
def test_recurrent_layers_are_not_recomputed(dataset, tmp_path, model_type):
    with pytest.raises(UserError, match=f"leave it out for {model_type}"):
        run(arguments(dataset, tmp_path, "--model_type", model_type, "--gradient_checkpointing"))


def test_a_vocabulary_has_room_for_its_tokens(dataset, tmp_path):
    smallest = len(make_remi(4))
    with pytest.raises(UserError, match=f"--vocab_size {smallest}: must be more than {smallest}"):
        run(arguments(dataset, tmp_path, "--vocab_size", str(smallest), "--max_train_steps", "1"))
    run(arguments(dataset, tmp_path, "--vocab_size", str(smallest + 1), "--max_train_steps", "1"))
