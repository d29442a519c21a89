"""A tiny model of random weights for the Space."""

import random
from pathlib import Path

from modeling import MelodyProcessor
from modeling.line_writing_melody_vae import line_to_words
from tests.builders.models import make_model

ROOT = Path(__file__).parents[2]
BARS = 16
CONDITIONS = {
    "key": ["C major", "D minor", "A minor"],
    "tempo": ["slow", "medium", "fast"],
    "time_signature": ["4/4", "3/4"],
    "genre": ["Pop_Rock", "Folk"],
}
ATTRIBUTES = ["note_density", "pitch_range", "contour"]


def save_model(folder: Path) -> Path:
    """Save a tiny model that has everything that the Space asks for."""
    generator = random.Random(0)
    bars = 4
    lines = []
    for _ in range(60):
        starts = sorted(generator.sample(range(0, 16 * bars, 2), 17))
        ends = [*starts[1:], 16 * bars]
        lines.append(
            {
                "pitch": [generator.choice([60, 62, 64, 65, 67, 69, 71, 72]) for _ in starts],
                "start": starts,
                "duration": [min(end - start, 8) for start, end in zip(starts, ends, strict=True)],
                "time_signature": "4/4",
                "steps_per_beat": 4,
                "bars": bars,
            }
        )
    processor = MelodyProcessor.train([line_to_words(line) for line in lines], vocab_size=331, max_bars=BARS)
    model = make_model(
        processor,
        hidden_size=12,
        latent_size=3 * BARS,
        initializer_range=0.3,
        num_prior_layers=1,
        conditions=CONDITIONS,
        attributes=ATTRIBUTES,
    )
    model.set_grammar(processor.grammar_table(), processor.fingerprint())
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
