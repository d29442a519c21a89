"""Files that belong together: what was exchanged, reordered or lost between saving and loading is refused in a line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

from modeling import MelodyProcessor, MelodyVAEConfig, MelodyVAEModel
from modeling.line_writing_melody_vae import line_to_words
from tests.builders.space_server import save_model

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def change(file: Path, **fields) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | fields), encoding="utf-8")


def other_processor(steps_per_beat: int = 4) -> MelodyProcessor:
    line = {"pitch": [60, 61] * 4, "start": list(range(8)), "duration": [1] * 8, "time_signature": "4/4"}
    line |= {"steps_per_beat": steps_per_beat, "bars": 1}
    return MelodyProcessor.train([line_to_words(line)] * 9, 331, steps_per_beat)


def another_tokenizer(folder: Path) -> None:
    other_processor().save_pretrained(folder)


def exchanged_ids(folder: Path) -> None:
    content = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    one, other = list(vocabulary)[20:22]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (folder / TOKENIZER).write_text(json.dumps(content), encoding="utf-8")


def other_merges(folder: Path) -> None:
    content = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))
    content["model"]["merges"].reverse()
    (folder / TOKENIZER).write_text(json.dumps(content), encoding="utf-8")


def another_grid(folder: Path) -> None:
    change(folder / "processor_config.json", steps_per_beat=12)


def other_windows(folder: Path) -> None:
    change(folder / "processor_config.json", max_bars=8)


@pytest.mark.parametrize("exchange", [another_tokenizer, exchanged_ids, other_merges, another_grid, other_windows])
def test_a_processor_of_another_model_is_refused(saved, folder, exchange):
    for loader in (MelodyProcessor, AutoProcessor):
        loader.from_pretrained(folder, trust_remote_code=True)
    exchange(folder)
    for loader in (MelodyProcessor, AutoProcessor):
        with pytest.raises(ValueError, match=r"model: a model of another tokenizer or grid: .* take the whole folder"):
            loader.from_pretrained(folder, trust_remote_code=True)
    change(folder / CONFIG, fingerprint=None)  # an earlier model
    processor = MelodyProcessor.from_pretrained(folder)
    with pytest.raises(ValueError, match="another tokenizer or grid"):
        pipeline(model=str(saved), processor=processor, trust_remote_code=True)
    new = MelodyVAEModel(MelodyVAEConfig.from_pretrained(saved))
    with pytest.raises(ValueError, match="a grammar of another tokenizer or grid"):
        new.set_grammar(new.token_grammar, processor.fingerprint())


def test_other_merges_of_the_same_vocabulary_give_other_ids(saved, folder):
    """Models whose fingerprint holds no merges yet load with any."""
    other_merges(folder)
    fingerprint = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["fingerprint"]
    change(folder / CONFIG, fingerprint={name: of for name, of in fingerprint.items() if name != "merges"})
    one, other = (MelodyProcessor.from_pretrained(path) for path in (saved, folder))
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    assert one.fingerprint()["tokens"] == other.fingerprint()["tokens"]
    line = {"pitch": [60, 62, 64, 65] * 8, "start": list(range(0, 128, 4)), "duration": [4] * 32, "bars": 8}
    line |= {"time_signature": "4/4", "steps_per_beat": 4}
    assert one(lines=line)["input_ids"] != other(lines=line)["input_ids"]


@pytest.mark.parametrize("field", ["attributes", "conditions"])
def test_reordered_fields_are_refused(folder, field):
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    value = config[field]
    other = list(reversed(value)) if field == "attributes" else {**value, "key": value["key"][::-1]}
    change(folder / CONFIG, **{field: other})
    for loader in (MelodyVAEModel, AutoModel):
        with pytest.raises(ValueError, match="other conditions or attributes, or in another order"):
            loader.from_pretrained(folder, trust_remote_code=True)
    change(folder / CONFIG, fingerprint=None)
    assert getattr(MelodyVAEModel.from_pretrained(folder).config, field) == other


def lose_weight(weights: dict[str, torch.Tensor]) -> None:
    del weights["norm.weight"]


def add_weight(weights: dict[str, torch.Tensor]) -> None:
    weights["norm.wait"] = torch.zeros(3)


def lose_grammar(weights: dict[str, torch.Tensor]) -> None:
    del weights["token_grammar"]


def exchange_grammar(weights: dict[str, torch.Tensor]) -> None:
    weights["token_grammar"] = weights["token_grammar"].flip(0)


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lose_weight, "no weights for norm.weight"),
        (add_weight, "no use for: norm.wait"),
        (lose_grammar, "no weights for token_grammar"),
        (exchange_grammar, "weights with another grammar"),
    ],
)
def test_weights_that_are_not_the_models_are_refused(folder, alter, message):
    weights = load_file(folder / WEIGHTS)
    alter(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    for loader in (MelodyVAEModel, AutoModel):
        with pytest.raises(ValueError, match=message):
            loader.from_pretrained(folder, trust_remote_code=True)


def test_a_flipped_bit_in_the_header_of_the_weights_is_refused(folder):
    """One letter of a tensor's name: transformers would initialise the tensor anew."""
    content = (folder / WEIGHTS).read_bytes()
    assert content.count(b'"norm.weight"') == 1
    (folder / WEIGHTS).write_bytes(content.replace(b'"norm.weight"', b'"norm.wehght"'))
    with pytest.raises(ValueError, match=r"no weights for norm\.weight"):
        MelodyVAEModel.from_pretrained(folder)


def test_who_asks_what_was_loaded_judges_it(folder):
    weights = load_file(folder / WEIGHTS)
    lose_weight(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    model, found = MelodyVAEModel.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, MelodyVAEModel)
    assert found["missing_keys"] == {"norm.weight"}


def test_the_fingerprint_follows_what_is_changed_and_saved(saved, tmp_path):
    model = MelodyVAEModel.from_pretrained(saved)
    first = dict(model.config.fingerprint)
    assert set(first) == {"tokens", "merges", "grammar", "conditions"}
    model.save_pretrained(tmp_path / "again")
    assert MelodyVAEModel.from_pretrained(tmp_path / "again").config.fingerprint == first
    model.resize_token_embeddings(model.config.vocab_size + 3)
    model.save_pretrained(tmp_path / "larger")
    larger = MelodyVAEModel.from_pretrained(tmp_path / "larger")
    assert larger.config.fingerprint["grammar"] != first["grammar"]
    assert torch.equal(larger.sample(2, seed=1, bars=3), model.sample(2, seed=1, bars=3))


def test_a_model_from_a_configuration_is_bound_by_its_grammar(saved):
    """Its own weights and table make it the model that was saved; until then it refuses to write."""
    config = AutoConfig.from_pretrained(saved, trust_remote_code=True)
    processor, model = MelodyProcessor.from_pretrained(saved), MelodyVAEModel.from_pretrained(saved).eval()
    new = AutoModel.from_config(config, trust_remote_code=True).eval()
    with pytest.raises(ValueError, match="does not know its tokens"):
        new.sample(1, seed=0, bars=1)
    weights = {name: weight for name, weight in model.state_dict().items() if name != "token_grammar"}
    new.load_state_dict(weights, strict=False)
    new.set_grammar(processor.grammar_table(), processor.fingerprint())
    assert torch.equal(new.sample(3, seed=5, bars=4), model.sample(3, seed=5, bars=4))
