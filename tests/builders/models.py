"""Tiny models: for a processor's vocabulary, and with prime sizes for no processor at all."""

import torch

from modeling import MelodyProcessor, MelodyVAEConfig, MelodyVAEModel
from modeling.token_grammar_melody_vae import SPECIAL_ROW, TokenColumn
from tests.builders.lines import processor_for


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


B, T, H, D, V, N, Z = 3, 11, 2, 5, 53, 7, 14  # N bars at most, Z latent size
PAD, BOS, EOS, MASK = range(4)
BAR_TOKENS = [5, 13, 23, 31, 43]
IDS = torch.tensor(  # 3, 1 and 5 bars
    [
        [BOS, 5, 17, 19, 13, 29, 37, 41, 43, 47, EOS],
        [BOS, 23, 6, 7, 8, 9, 10, 11, 12, 14, EOS],
        [BOS, 31, 15, 5, 5, 16, 13, 18, 20, 23, EOS],
    ]
)
SHORT_IDS = torch.tensor([[BOS, 5, 17, 13, EOS], [BOS, 23, 6, EOS, PAD], [BOS, 31, EOS, PAD, PAD]])


def make_config(**overrides) -> MelodyVAEConfig:
    """Make a tiny configuration, with weights so large that every path makes a difference."""
    fields = {
        "vocab_size": V,
        "bar_token_ids": BAR_TOKENS,
        "hidden_size": H * D,
        "intermediate_size": 13,
        "num_encoder_layers": 2,
        "num_bar_layers": 1,
        "num_hidden_layers": 3,
        "num_attention_heads": H,
        "latent_size": Z,
        "max_bars": N,
        "max_relative_distance": 7,
        "dropout": 0.0,
        "free_bits": 0.0,
        "latent_log_variance_init": -1.0,
        "initializer_range": 0.5,
    }
    return MelodyVAEConfig(**{**fields, **overrides})


def make_bare_model(**overrides) -> MelodyVAEModel:
    torch.manual_seed(0)
    model = MelodyVAEModel(make_config(**overrides)).eval()
    with torch.no_grad():  # the base class leaves biases at zero, where a forgotten one would not show
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and not name.endswith("log_variance_proj.bias"):
                parameter.normal_(std=0.1)
            if name in ("time_embedding.proj.weight", "previous_proj.weight"):  # zeros too
                parameter.normal_(std=0.5)
    if model.config.musical_time or model.config.musical_pitch:
        model.register_buffer("token_grammar", make_grammar())
    return model


def make_grammar() -> torch.Tensor:
    """Say of each token what musical time needs to know: bars of 12 and 16 steps, onsets in most tokens."""
    table = torch.tensor([SPECIAL_ROW] * V, dtype=torch.int32)
    table[BAR_TOKENS, TokenColumn.BAR_STEPS] = torch.tensor([12, 16, 0, 16, 12], dtype=torch.int32)  # one is told later
    others = [token for token in range(MASK + 1, V) if token not in BAR_TOKENS]
    table[others, TokenColumn.HIGHEST_PITCH] = torch.tensor(
        [token * 5 % 31 + 40 for token in others], dtype=torch.int32
    )
    table[others, TokenColumn.LOWEST_PITCH] = table[others, TokenColumn.HIGHEST_PITCH]
    table[others, TokenColumn.LAST_ONSET] = torch.tensor([token * 7 % 13 - 1 for token in others], dtype=torch.int32)
    return table


def make_latent(batch: int = B, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, Z, generator=torch.Generator().manual_seed(seed))


MODELS: dict[int, MelodyVAEModel] = {}


def model_for(steps_per_beat: int) -> MelodyVAEModel:
    """Make a model that knows nothing: any token may be likely anywhere."""
    if steps_per_beat not in MODELS:
        MODELS[steps_per_beat] = make_model(processor_for(steps_per_beat), max_bars=N)
    return MODELS[steps_per_beat]
