"""What a model's likelihood is compared with: n-gram models of the training split over the model's own tokens."""

from collections.abc import Sequence

import numpy as np
from tqdm.auto import tqdm

from evaluation.held_out import BARS
from evaluation.ngram import NgramModel
from evaluation.reconstruction import Line
from metrics.bits_per_note.bits_per_note import bits_per_note

ORDERS = {"unigram": 1, "4-gram": 4}


class Floors:
    """N-gram models of the training split over the model's own tokens: their nats compare with the model's.

    Args:
        processor: The model's.
        windows: Of the training split.
    """

    def __init__(self, processor, windows: Sequence[dict]):
        self.processor = processor
        tokenizer = processor.tokenizer
        sequences = []
        for first in tqdm(range(0, len(windows), 100), desc="Tokenising for n-grams", unit="00 windows"):
            sequences += self.tokenise(windows[first : first + 100])
        self.models = {name: NgramModel(sequences, order, len(tokenizer)) for name, order in ORDERS.items()}
        self.melodies = len(sequences)

    def tokenise(self, lines: Sequence[Line]) -> list[list[int]]:
        """Return the ids of melodies without padding."""
        batch = self.processor(lines=list(lines), return_tensors="pt")
        return [
            row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]

    def nats(self, name: str, lines: Sequence[Line]) -> list[float]:
        """Return -log p of melodies under one of the models."""
        return [self.models[name].nats(sequence) for sequence in self.tokenise(lines)]

    def price(self, lines: Sequence[Line]) -> float | None:
        """Return the 4-gram model's bits per note of melodies; None if they have no note in all."""
        notes = [len(line["pitch"]) for line in lines]
        if not sum(notes):
            return None
        return bits_per_note(self.nats("4-gram", lines), [0.0] * len(notes), notes)["bits_per_note"]

    def sample(self, count: int, seed: int) -> list[dict]:
        """Sample melodies of 16 bars from the 4-gram model."""
        is_bar_token = np.zeros(len(self.processor.tokenizer), dtype=bool)
        is_bar_token[self.processor.bar_token_ids] = True
        tokenizer = self.processor.tokenizer
        ids = self.models["4-gram"].sample(
            count, tokenizer.bos_token_id, tokenizer.eos_token_id, is_bar_token, BARS, seed
        )
        return self.processor.to_lines(ids)
