"""Tiny models for the vocabulary of a processor, with random weights or taught a few melodies."""

import torch

from modeling import MelodyProcessor, MelodyVAEConfig, MelodyVAEModel


def make_model(processor: MelodyProcessor, **overrides) -> MelodyVAEModel:
    """Make a model of random weights, the same each time, so large that any token may be likely anywhere.

    Args:
        processor: Whose vocabulary it has, and by default whose bars.
        overrides: Fields of the configuration; the latent is twice as large as there are bars if it is not among them.
    """
    bars = overrides.get("max_bars", processor.max_bars)
    fields = {
        "vocab_size": len(processor.tokenizer),
        "bar_token_ids": processor.bar_token_ids,
        "hidden_size": 10,
        "intermediate_size": 13,
        "num_encoder_layers": 1,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "latent_size": 2 * bars,
        "max_bars": bars,
        "max_relative_distance": 11,
        "dropout": 0.0,
        "initializer_range": 0.5,
    }
    torch.manual_seed(0)
    return MelodyVAEModel(MelodyVAEConfig(**{**fields, **overrides})).eval()


def learn(model: MelodyVAEModel, batch, steps: int, learning_rate: float, **options) -> None:
    """Let a model learn melodies by heart: one with random weights repeats a token for ever.

    Args:
        model: To be trained in place.
        batch: What its processor makes of the melodies, `input_ids` and `attention_mask`.
        steps: Steps of AdamW, each on the whole batch.
        learning_rate: The same in each step.
        options: Further arguments of `forward`.
    """
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=learning_rate)
    for _ in range(steps):
        model(**batch, labels=labels, **options).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
