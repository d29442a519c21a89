"""The model as users of the Hub meet it: auto classes, pipeline, re-saving, pushing, placing, adapting.

What must work without this repository runs in a process of its own, in another folder, with an empty cache.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from symusic import Note, Score, Track
from transformers import GenerationConfig, pipeline

from modeling import MelodyGenerationPipeline, MelodyProcessor, MelodyVAEModel
from modeling.line_writing_melody_vae import line_to_words
from modeling.melody_line_melody_vae import TEMPO_CLASSES, tempo_class
from tests.builders.fake_hub import running_hub
from tests.builders.models import make_model

ROOT = Path(__file__).parents[2]
Z, N = 14, 7
LINE = {
    "pitch": [60, 62, 64, 65, 67],
    "start": [0, 4, 16, 24, 32],
    "duration": [4, 4, 8, 8, 16],
    "time_signature": "4/4",
    "steps_per_beat": 4,
    "bars": 3,
}
CODE = {file.name for file in (ROOT / "modeling").glob("*.py")} - {"__init__.py"}
DATA = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
PIPELINES = {"melody-generation": {"impl": "pipeline_melody_vae.MelodyGenerationPipeline", "pt": ["AutoModel"]}}


def make_processor() -> MelodyProcessor:
    generator = random.Random(0)
    lines = [{**LINE, "pitch": [generator.randint(55, 80) for _ in LINE["pitch"]]} for _ in range(20)]
    return MelodyProcessor.train([line_to_words(line) for line in [LINE, *lines]], vocab_size=307, max_bars=N)


@pytest.fixture(scope="module")
def processor() -> MelodyProcessor:
    return make_processor()


@pytest.fixture(scope="module")
def model(processor) -> MelodyVAEModel:
    return make_model(
        processor, num_prior_layers=1, conditions={"key": ["C major", "A minor"], "tempo": ["slow", "fast"]}
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model, processor) -> Path:
    """Save model and processor, with what they compute."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(tmp_path_factory, model, processor) -> Path:
    """Write down what the model computes."""
    ids = processor(lines=LINE, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits
    file = tmp_path_factory.mktemp("expected") / "expected.pt"
    sampled = model.sample(2, seed=1, bars=2, conditions={"key": "A minor"})
    torch.save({"ids": ids, "logits": logits, "sampled": sampled, "text": " ".join(line_to_words(LINE))}, file)
    return file


def run_alone(code: str, folder: Path, *arguments: object, **environment: str) -> str:
    """Run code in `folder` with an empty cache, without this repository and with warnings as errors."""
    folder.mkdir(exist_ok=True)
    cleared = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        cwd=folder,
        env=cleared | {"HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"} | environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


# --- What is saved --------------------------------------------------------------------------------------------------


def test_a_saved_folder_is_complete(saved):
    assert {file.name for file in saved.iterdir()} == CODE | DATA
    config = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    assert config["custom_pipelines"] == PIPELINES
    generation = GenerationConfig.from_pretrained(saved)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 0)
    assert generation.max_length == 64 * N + 2


CHECK = """
import json, sys
from pathlib import Path
from typing import Any
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer, pipeline

def check(name, expected):
    expected = torch.load(expected)
    config = AutoConfig.from_pretrained(name, trust_remote_code=True)
    assert (config.model_type, config.latent_size) == ("melody_vae", 14)
    tokenizer = AutoTokenizer.from_pretrained(name)
    assert tokenizer(expected["text"])["input_ids"] == expected["ids"][0].tolist()
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
    model = AutoModel.from_pretrained(name, trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(model(expected["ids"]).logits, expected["logits"])
    assert model.generation_config.max_length == 64 * 7 + 2
    assert torch.equal(model.sample(2, seed=1, bars=2, conditions={"key": "A minor"}), expected["sampled"])
    midi = processor.to_midi_bytes(expected["ids"])
    for task in (None, "melody-generation"):
        pipe = pipeline(task, model=name, trust_remote_code=True, device="cpu")
        assert (type(pipe).__name__, pipe.task) == ("MelodyGenerationPipeline", "melody-generation")
        (melody, _) = pipe(2, bars=2, seed=1, conditions={"key": "A minor"})
        assert melody["midi"] == processor.to_midi_bytes(expected["sampled"])[0]
        assert pipe(midi, mode="vary", similarity=1.0)[0][0]["midi"] == pipe(midi[0])[0]["midi"]
    return model, processor, pipe
"""

LOAD = (
    CHECK
    + """
name, expected, again, piped = sys.argv[1:]
model, processor, pipe = check(name, expected)
for typo in ({"hiddn_size": 3}, {"latent": 3}):
    try:
        type(model.config)(**typo)
    except ValueError as error:
        assert str(error).startswith("unknown field " + next(iter(typo))), error
    else:
        raise AssertionError(typo)
model.save_pretrained(again)
processor.save_pretrained(again)
pipe.save_pretrained(piped)
"""
)
LOAD_AGAIN = CHECK + "for name in sys.argv[2:]: check(name, sys.argv[1])"


@pytest.mark.compatibility
@pytest.mark.slow
def test_everything_loads_from_a_folder_and_what_it_saves_loads_again(saved, expected, tmp_path):
    again, piped = tmp_path / "again", tmp_path / "piped"
    run_alone(LOAD, tmp_path / "first", saved, expected, again, piped, HF_HUB_OFFLINE="1")
    for folder in (again, piped):
        assert {file.name for file in folder.iterdir()} == CODE | DATA
        assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["custom_pipelines"] == PIPELINES
        for file in CODE:
            assert (folder / file).read_bytes() == (ROOT / "modeling" / file).read_bytes()
    run_alone(LOAD_AGAIN, tmp_path / "second", expected, again, piped, HF_HUB_OFFLINE="1")


PUSH = """
import sys
from transformers import AutoModel, AutoProcessor

folder, name = sys.argv[1:]
AutoModel.from_pretrained(folder, trust_remote_code=True).push_to_hub(name)
AutoProcessor.from_pretrained(folder, trust_remote_code=True).push_to_hub(name)
"""


@pytest.mark.slow
def test_what_is_pushed_to_the_hub_loads_by_its_id(saved, expected, tmp_path):
    with running_hub() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0"}
        run_alone(PUSH, tmp_path / "pusher", saved, "tester/melody", **environment)
        files = hub.repositories["tester/melody"]
        assert set(files.commits[files.head]) >= CODE | DATA
        del hub.log[:]
        run_alone(LOAD_AGAIN, tmp_path / "puller", expected, "tester/melody", **environment)
        assert any(path.endswith("pipeline_melody_vae.py") and status == 200 for _, path, status in hub.log)


PLACE = """
import sys, warnings
import torch
from transformers import AutoModel, pipeline

name = sys.argv[1]
placed = AutoModel.from_pretrained(name, trust_remote_code=True, device_map="auto", dtype=torch.bfloat16)
assert placed.device == torch.device("cpu") and placed.dtype == torch.bfloat16
assert {parameter.dtype for parameter in placed.parameters()} == {torch.bfloat16}
assert placed.is_bar_token.dtype == torch.bool and placed.is_bar_token.any()
assert (placed.is_bar_token[placed.sample(3, seed=1, bars=2)].sum(-1) == 2).all()
pipe = pipeline(model=name, trust_remote_code=True, device_map="auto", dtype=torch.bfloat16)
assert pipe.dtype == torch.bfloat16 and len(pipe(3, bars=1)) == 3

whole = AutoModel.from_pretrained(name, trust_remote_code=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # accelerate's, of parameters that are no modules
    split = AutoModel.from_pretrained(
        name, trust_remote_code=True, device_map="auto", max_memory={"cpu": "25KB", "disk": "1GB"}, offload_folder="."
    )
assert set(split.hf_device_map.values()) == {"cpu", "disk"}
assert torch.equal(split.sample(2, seed=1, bars=2), whole.sample(2, seed=1, bars=2))
"""


@pytest.mark.slow
def test_the_model_can_be_placed_and_cast(saved, tmp_path):
    run_alone(PLACE, tmp_path / "place", saved, HF_HUB_OFFLINE="1")


# --- The pipeline ---------------------------------------------------------------------------------------------------


def make_pipeline(model: MelodyVAEModel, processor: MelodyProcessor, **options) -> Any:
    return pipeline("melody-generation", model=model, processor=processor, device="cpu", **options)  # pyright: ignore


@pytest.fixture(scope="module")
def pipe(model, processor) -> MelodyGenerationPipeline:
    return make_pipeline(model, processor)


@pytest.mark.compatibility
def test_the_pipeline_samples(pipe, model, processor):
    assert isinstance(pipe, MelodyGenerationPipeline)
    melodies = pipe(3, bars=2, seed=5, tempo=90, program=40)
    ids = model.sample(3, seed=5, bars=2)  # it knows slow and fast alone
    assert [each["midi"] for each in melodies] == processor.to_midi_bytes(ids, tempo=90.0, program=40)
    assert melodies[0]["line"] == {**processor.to_lines(ids)[0], "tempo": 90.0, "program": 40}
    assert len(pipe()) == 1
    asked = {"tempo": ["fast", "slow"]}
    assert [tempo_class(melody["line"]["tempo"]) for melody in pipe(2, bars=1, conditions=asked)] == asked["tempo"]
    assert pipe(1, bars=1, conditions={"tempo": "slow"}, tempo=100.0)[0]["line"]["tempo"] == 100.0


def test_the_pipeline_takes_conditions_by_their_names(processor, monkeypatch):
    model = make_model(processor, num_prior_layers=1, conditions={"key": ["A minor"], "tempo": ["slow", "fast"]})
    model.set_grammar(processor.grammar_table())
    pipe, asked = make_pipeline(model, processor), {}
    sample = type(model).sample

    def watched(self, n, **options):
        asked.update(options)
        return sample(self, n, **options)

    monkeypatch.setattr(type(model), "sample", watched)
    (melody,) = pipe(1, bars=2, seed=1, key="A minor", tempo="slow", time_signature="3/4", scale="A minor")
    assert asked["conditions"] == {"key": "A minor", "tempo": "slow"}
    assert (asked["scale"], asked["time_signature"]) == ("A minor", "3/4")
    assert melody["line"]["time_signature"] == "3/4"
    assert melody["line"]["tempo"] == TEMPO_CLASSES["slow"][-1]
    assert round(Score.from_midi(melody["midi"]).tempos[0].qpm) == TEMPO_CLASSES["slow"][-1]
    same = {"conditions": asked["conditions"], "scale": "A minor", "time_signature": "3/4"}
    assert pipe(1, bars=2, seed=1, **same) == [melody]
    pipe(1, bars=2, tempo=170)
    assert asked["conditions"] == {"tempo": "fast"}
    with pytest.raises(ValueError, match="tempo='quick' is neither a number nor one of slow, medium, fast"):
        pipe(1, tempo="quick")


def test_the_pipeline_says_what_it_read_and_how_sure_it_is(pipe, processor, logged):
    score = Score(480)
    for name, pitches in (("Bass", (36, 36, 43, 36)), ("Pad", (60, 60, 60, 60))):
        track = Track(name, 32)
        for index in range(32):
            track.notes.append(Note(480 * index, 480, pitches[index % 4], 90))
        score.tracks.append(track)
    (melody,) = pipe(score, track=1)
    assert logged == []  # it was asked for
    pipe(score)
    assert ["below 0.8, so it may be another track" in message for message in logged] == [True]
    assert 'the tune is track=1 "Pad" of 2 (lead score 0.' in melody["source"]
    assert "bars 1 to 8" in melody["source"]
    assert "source" not in pipe(LINE)[0]


def test_the_pipeline_reads_paths_bytes_scores_and_lines(pipe, model, processor, tmp_path):
    ids = processor(lines=LINE, return_tensors="pt")["input_ids"]
    (midi,), (score,) = processor.to_midi_bytes(ids, program=7), processor.to_scores(ids, program=7)
    path = tmp_path / "tune.mid"
    path.write_bytes(midi)
    line = {**LINE, "tempo": 120.0, "program": 7}
    (wanted,) = processor.to_midi_bytes(model.reconstruct(ids), program=7)
    for melody in (path, str(path), midi, score, line):
        (written,) = pipe(melody)
        assert written["midi"] == wanted


@pytest.mark.parametrize("mode", ["reconstruct", "vary", "continue"])
def test_a_list_gives_a_list_for_each_melody_in_order(pipe, processor, mode):
    lines = [{**LINE, "tempo": tempo, "program": 0} for tempo in (60.0, 90.0, 110.0)]
    options = {"mode": mode, "num": 2, "bars": 3, "primer_bars": 1, "seed": 3, "max_length": 40}
    batch = pipe(lines, **options)
    assert [len(melodies) for melodies in batch] == [2, 2, 2]
    assert [[melody["line"]["tempo"] for melody in melodies] for melodies in batch] == [
        [line["tempo"]] * 2 for line in lines
    ]
    state = torch.random.get_rng_state()
    assert pipe(lines, **options) == batch
    assert torch.equal(torch.random.get_rng_state(), state)
    assert pipe([], mode=mode) == []


def test_a_continuation_begins_with_its_primer(pipe):
    for melody in pipe(LINE, mode="continue", primer_bars=2, bars=4, num=3, seed=1):
        kept = [start for start in melody["line"]["start"] if start < 32]
        assert kept[:4] == LINE["start"][:4]
        assert melody["line"]["pitch"][:4] == LINE["pitch"][:4]


@pytest.mark.compatibility
def test_an_infill_keeps_the_other_bars_and_a_shift_is_the_models(processor):
    plain = make_model(processor, num_prior_layers=1, attributes=["mean_pitch"])
    plain.set_grammar(processor.grammar_table())
    with torch.no_grad():
        plain.prior.direction_proj.weight.normal_(std=0.3)
    able = make_pipeline(plain, processor)
    filled = able([LINE], mode="infill", fill=[1], num=3, seed=2)[0]
    for melody in filled:
        notes = zip(melody["line"]["start"], melody["line"]["pitch"], strict=True)
        assert [note for note in notes if note[0] // 16 != 1] == [(0, 60), (4, 62), (32, 67)]
    assert len({melody["midi"] for melody in filled}) > 1
    batch = processor(lines=LINE, return_tensors="pt")
    with torch.no_grad():
        latent = plain.refine(plain.encode(**batch).latent_mean, batch["input_ids"])
        latent = plain.shift(latent, "mean_pitch", -1.0, bars=3)
    (shifted,) = able(LINE, mode="shift", attribute="mean_pitch", amount=-1.0, tempo=120, program=0)
    assert shifted["midi"] == processor.to_midi_bytes(plain.decode(latent, bars=3))[0]
    assert len(able(1, bars=2 * N + 1)[0]["line"]["pitch"]) > 0
    assert able(1, bars=2 * N + 1)[0]["line"]["bars"] == 2 * N + 1


def test_parameters_of_the_pipeline_are_defaults_of_its_calls(model, processor):
    mine = make_pipeline(model, processor, seed=3, bars=2, tempo=77)
    assert mine(2) == mine(2, seed=3)
    assert mine(2) != mine(2, seed=4)
    assert mine(1)[0]["line"]["tempo"] == 77
    assert mine(1, tempo=78)[0]["line"]["tempo"] == 78


@pytest.mark.parametrize(
    ("inputs", "options", "reason"),
    [
        (1, {"mode": "wave"}, "mode='wave' is none of sample, reconstruct, vary, shift, infill, continue"),
        (1, {"mode": "vary"}, "mode='vary' needs a melody .* not int"),
        (LINE, {"mode": "sample"}, "mode='sample' needs the number of melodies, not dict"),
        (0, {}, "0 melodies"),
        (LINE, {"num": -1}, "-1 melodies"),
        (LINE, {"bars": N + 1}, f"bars={N + 1}: this model reads 1 to {N} at a time"),
        (1, {"bars": 0}, "bars=0: "),
        (LINE, {"mode": "shift", "attribute": "mood"}, "unknown attribute 'mood'; this model has none"),
        (LINE, {"mode": "infill", "fill": [3]}, "bar 3 cannot be filled: bars count from 0 to 2 here"),
        (LINE, {"mode": "continue", "primer_bars": 3, "bars": 3}, "primer_bars=3: must leave"),
        (LINE, {"conditions": {"key": "A minor"}}, "conditions: mode='reconstruct' has none"),
        (1, {"conditions": {"key": "H"}}, "unknown key 'H'"),
        ("absent.mid", {}, "absent.mid: cannot be read"),
        ([LINE], {"batch_size": 2}, "a list is one batch"),
        (1, {"temprature": 2.0}, "temprature"),
    ],
)
def test_the_pipeline_refuses_what_it_cannot_do(pipe, inputs, options, reason):
    with pytest.raises(ValueError, match=reason):
        pipe(inputs, **options)


def test_the_pipeline_of_a_music_transformer_samples_and_continues(processor):
    plain = make_model(processor, latent_size=0)
    pipe = make_pipeline(plain, processor)
    assert len(pipe(2, bars=2)) == 2
    assert len(pipe(LINE, mode="continue", primer_bars=1, bars=2)) == 1
    for mode in ("reconstruct", "vary"):
        with pytest.raises(ValueError, match="no latent"):
            pipe(LINE, mode=mode)
    with pytest.raises(ValueError, match="no learned prior"):
        pipe(1, conditions={"key": "C major"})


# --- Adapters -------------------------------------------------------------------------------------------------------


@pytest.mark.compatibility
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft 0.21 asks for it
def test_lora_trains_merges_saves_and_loads(processor, tmp_path):
    ids = processor(lines=[LINE, {**LINE, "pitch": [72, 71, 69, 67, 65]}], return_tensors="pt")["input_ids"]
    base = make_model(processor, free_bits=1e3, num_hidden_layers=2)
    with torch.no_grad():
        before = base(ids).logits
    targets = ["qkv_proj", "o_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert (
        len(trained) == 2 * len(targets) * 4
    )  # two matrices for each module of one encoder, one bar, two decoder layers
    assert all("lora_" in name for name in trained)
    optimizer = torch.optim.AdamW([each for each in adapted.parameters() if each.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = adapted(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0], losses
    adapted.eval()
    adapted.save_pretrained(tmp_path)
    with torch.no_grad():
        after = adapted(ids).logits
        assert not torch.allclose(after, before, atol=0.1)
        loaded = PeftModel.from_pretrained(make_model(processor, free_bits=1e3, num_hidden_layers=2), tmp_path)
        assert torch.equal(loaded(ids).logits, after)
        merged = adapted.merge_and_unload()
        assert isinstance(merged, MelodyVAEModel)
        torch.testing.assert_close(merged(ids).logits, after, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = MelodyVAEModel.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        assert torch.equal(again(ids).logits, merged(ids).logits)
