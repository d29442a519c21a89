"""What users of a published model do, on every version that pyproject.toml allows.

`make test-oldest` and `make test-newest` run what is marked `compatibility`, here and elsewhere. Golden ids are written
anew by `python -m tests.test_compatibility`, which is right only where another melody for the same seed is meant.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from datasets import load_dataset

ROOT = Path(__file__).parents[1]
RELEASE = ROOT / "release" / "melody-vae-16bar"
GOLDEN = Path(__file__).with_name("golden_ids.json")
pytestmark = [pytest.mark.compatibility, pytest.mark.slow]

USE = """
import json, sys
import torch
from transformers import AutoModel, AutoProcessor, pipeline
from transformers.generation.streamers import BaseStreamer

class Streamer(BaseStreamer):
    def __init__(self):
        self.ids, self.ended = [], False
    def put(self, value):
        self.ids += value.flatten().tolist()
    def end(self):
        self.ended = True

name = sys.argv[1]
model = AutoModel.from_pretrained(name, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
melodies = {"sample": model.sample(2, seed=0, bars=4)}
midi = processor.to_midi_bytes(melodies["sample"])
batch = processor(midi=midi, return_tensors="pt")
with torch.no_grad():
    latent = model.encode(**batch).latent_mean
melodies["dorian"] = model.sample(1, seed=0, bars=4, scale="D dorian", time_signature="3/4")
melodies["interpolate"] = model.interpolate(latent[0], latent[1], steps=3, bars=4)
melodies["vary"] = model.vary(latent[0], n=2, similarity=0.8, seed=0, bars=4)
melodies["infill"] = model.infill(**batch, bars=[1], seed=0)
greedy = {"latent": latent, "bars": 4, "do_sample": False}
melodies["generate"] = model.generate(**greedy)
assert torch.equal(melodies["generate"], model.generate(**greedy, use_cache=False))
melodies["beams"] = model.generate(**greedy, num_beams=3)
streamer = Streamer()
streamed = model.generate(**greedy | {"latent": latent[:1]}, streamer=streamer)
assert streamer.ended and streamer.ids == streamed.flatten().tolist()
pipe = pipeline(model=name, trust_remote_code=True, device="cpu")
assert [melody["midi"] for melody in pipe(2, seed=0, bars=4)] == midi
print(json.dumps({name: ids.tolist() for name, ids in melodies.items()}))
"""


def run(*command: object, cwd: Path) -> str:
    """Run a command to its end, in which transformers deprecates nothing; returns its output."""
    result = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, encoding="utf-8")
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    warned = [line for line in result.stderr.splitlines() if "deprecat" in line and "transformers" in line]
    assert not warned, warned
    return result.stdout


def ids_of_the_release(cwd: Path) -> dict[str, list[list[int]]]:
    """Let the release write melodies without this repository on the path."""
    return json.loads(run(sys.executable, "-W", "error", "-c", USE, RELEASE, cwd=cwd).splitlines()[-1])


def test_the_same_seed_gives_the_same_ids_on_every_version(tmp_path):
    golden, found = json.loads(GOLDEN.read_text(encoding="utf-8")), ids_of_the_release(tmp_path)
    assert found == golden, "If this is meant, run python -m tests.test_compatibility"


TINY = (
    "hidden_size=16,intermediate_size=16,num_attention_heads=2,num_encoder_layers=1,num_hidden_layers=1,latent_size=32"
)


def test_from_midi_files_to_a_published_model(tmp_path):
    """Build a data set, load it, train 20 steps on it, load what measures it, and list what would be published."""
    data, trained = tmp_path / "data", tmp_path / "runs"
    run(sys.executable, "-m", "dataset_script.build", "--output", data, cwd=ROOT)
    loaded = load_dataset(str(data), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "validation", "test"}
    assert min(len(line["pitch"]) for line in loaded["train"]) > 0
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--mixed_precision", "no", "--cpu"]
    training = ["--max_train_steps", "20", "--evaluation_steps", "20", "--per_device_train_batch_size", "4"]
    training += ["--max_tokens", "112", "--vocab_size", "300", "--config_overrides", TINY, "--listening_samples", "0"]
    run(sys.executable, *launch, "train.py", "--dataset", data, "--output_dir", trained, *training, cwd=ROOT)
    history = json.loads((trained / "training_log.json").read_text(encoding="utf-8"))["history"]
    assert history[-1]["step"] == 20
    metrics = sorted(path.parent for path in (ROOT / "metrics").glob("*/README.md"))
    assert len(metrics) == 9
    load = "import evaluate, sys\nfor name in sys.argv[1:]: print(evaluate.load(name).name)"
    assert len(run(sys.executable, "-c", load, *metrics, cwd=tmp_path).split()) == 9
    publish = [ROOT / "publish.py", "all", "--repo_id", "tester/melody", "--model", trained, "--dataset", data]
    listed = run(sys.executable, *publish, "--dry_run", "--staging", tmp_path / "staging", cwd=ROOT)
    for file in ("model.safetensors", "onnx/decoder.onnx", "train-00000-of-00001.parquet", "app.py"):
        assert file in listed


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(ids_of_the_release(Path(folder))) + "\n", encoding="utf-8")
