"""Melodies and a model that has learnt to write notes, to try the commands on."""

from modeling import MelodyProcessor
from modeling.line_writing_melody_vae import line_to_words
from tests.builders.models import learn, make_model

BARS = 5  # the tiny model's
STEPS = 16  # of a bar


def make_line(number, bars=7):
    """A melody of four to seven notes a bar, all of which differ with the number."""
    onsets = [start for start in range(bars * STEPS) if (start * (number + 3)) % 11 in (0, 4, 7) or start % STEPS == 0]
    return {
        "melody_id": f"tune{number}:0:0",
        "is_lead": number % 4 != 3,
        "pitch": [55 + (5 * number + 7 * index + index * index) % 24 for index in range(len(onsets))],
        "start": onsets,
        "duration": [end - start for start, end in zip(onsets, [*onsets[1:], bars * STEPS], strict=True)],
        "time_signature": "4/4",
        "tempo": 90.0 + number,
        "program": 10 + number,
        "steps_per_beat": 4,
        "bars": bars,
    }


LINES = [make_line(number, bars=4 if number == 6 else 7) for number in range(12)]


def save_model(folder, steps, **overrides):
    """Save a tiny model that has learned to write notes, though hardly which."""
    processor = MelodyProcessor.train([line_to_words(line) for line in LINES], vocab_size=300, max_bars=BARS)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "latent_size": 4 * BARS, "initializer_range": 0.02}
    model = make_model(processor, **(sizes | overrides))
    model.set_grammar(processor.grammar_table())  # as train.py does
    learn(model, processor(lines=LINES, return_tensors="pt"), steps, learning_rate=1e-2, kl_weight=0.0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
