"""Tiny models that have learned some melodies, exported to ONNX."""

import random
from pathlib import Path

import torch

import export_onnx
from modeling import MelodyProcessor
from modeling.line_writing_melody_vae import line_to_words
from modeling.melody_line_melody_vae import ATTRIBUTES, KEY_NAMES
from tests.builders.models import learn, make_model

Z, N = 14, 7
PITCHES = [60, 62, 64, 65, 67, 69, 71, 72]
RICH = {
    "hidden_size": 32,
    "musical_time": True,
    "musical_pitch": True,
    "previous_token": True,
    "noise_probability": 0.5,
    "sampling_noise": 0.8,
    "num_prior_layers": 1,
    "conditions": {"key": list(KEY_NAMES), "time_signature": ["4/4", "3/4"]},
    "attributes": list(ATTRIBUTES)[:3],
    "decoder_conditions": ["key", "time_signature", "attributes"],
    "average_attributes": True,
    "section_returns": [0.3, 0.2],
    "critic_size": 8,
}
"""All that a model may have beside the plain one's."""


def make_line(seed: int, bars: int) -> dict:
    """Make a line of which some bars are earlier ones over again."""
    generator = random.Random(seed)
    notes: list[list[tuple[int, int]]] = []
    for _ in range(bars):
        new = [(start, generator.choice(PITCHES)) for start in sorted(generator.sample(range(16), 5))]
        notes.append(generator.choice(notes) if notes and generator.random() < 0.4 else new)
    placed = [(16 * bar + start, pitch) for bar, own in enumerate(notes) for start, pitch in own]
    return {
        "pitch": [pitch for _, pitch in placed],
        "start": [start for start, _ in placed],
        "duration": [1] * len(placed),
        "time_signature": "4/4",
        "steps_per_beat": 4,
        "bars": bars,
    }


LINES = [make_line(seed, bars) for seed, bars in enumerate([3, 1, 7, 2, 5])]


def save_model(folder: Path, learnt: bool = True, repeats: tuple[int, ...] = (), **overrides) -> Path:
    """Save a tiny model with its processor."""
    processor = MelodyProcessor.train([line_to_words(line) for line in LINES], vocab_size=331, max_bars=N)
    processor.add_repeats(repeats)
    sizes = {"hidden_size": 26, "intermediate_size": 53, "num_hidden_layers": 2}
    fields = {**sizes, "latent_size": Z, "free_bits": 1e3, "initializer_range": 0.1, **overrides}
    lags = {"repeat_lags": list(processor.repeats), "repeat_token_ids": list(processor.repeats.values())}
    model = make_model(processor, **fields, **lags)
    model.set_grammar(processor.grammar_table())
    if learnt:
        learn(model, processor(lines=LINES, return_tensors="pt"), steps=100, learning_rate=5e-3)
    if model.config.num_prior_layers:
        with torch.no_grad():  # a prior and conditions that make a difference
            model.prior.direction_proj.weight.normal_(0, 0.3)
            told = model.bar_conditioner.condition_embedding
            told.attribute_proj.weight.normal_(0, 0.3)
            for name, size in told.condition_sizes.items():
                told.condition_embeddings[name].weight[:size].normal_(0, 0.3)
            model.prior.scale.fill_(0.7)
            mean = model.attributes_of(LINES).mean(0)
            for embedding in (model.prior, told):
                embedding.attribute_mean.copy_(mean)
                embedding.attribute_scale.fill_(3.0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def export_model(folder: Path, **overrides) -> None:
    """Save a tiny model, and its graphs in `onnx` below it."""
    save_model(folder, **overrides)
    assert export_onnx.main(["--model", str(folder), "--output", str(folder / "onnx")]) == 0


def export_plain(folder: Path) -> None:
    """Export a model with a latent and no more."""
    export_model(folder)


def export_rich(folder: Path) -> None:
    """Export a model with all that one may have."""
    export_model(folder, repeats=(1, 2, 3), **RICH)
