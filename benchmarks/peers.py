"""What the model's speed is compared with: transformers' GPT-2 and Llama of its size, and the bare matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS, LLAMA_INTERMEDIATE_SIZE = 256, 9, 4, 704
"""With the release's vocabulary both have its number of parameters, within 2 %."""
LONGEST = 4096  # tokens that GPT-2 reads


def make_peers(config: Any, longest: int = 512) -> dict[str, Any]:
    """Make a GPT-2 and a Llama with random weights and the special tokens of a model's configuration."""
    shared = {name: getattr(config, name) for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
    gpt2 = GPT2Config(n_embd=HIDDEN_SIZE, n_layer=NUM_LAYERS, n_head=NUM_HEADS, n_positions=longest, **shared)
    llama = LlamaConfig(
        hidden_size=HIDDEN_SIZE,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        intermediate_size=LLAMA_INTERMEDIATE_SIZE,
        max_position_embeddings=longest,
        tie_word_embeddings=True,
        **shared,
    )
    torch.manual_seed(0)
    return {"GPT-2": GPT2LMHeadModel(gpt2).eval(), "Llama": LlamaForCausalLM(llama).eval()}


def generation(peer: Any, rows: int, tokens: int) -> Callable[[], int]:
    """Return the work of generating `rows` times `tokens` tokens with `generate`, sampled from the whole softmax."""
    ids = torch.full((rows, 1), peer.config.bos_token_id)
    options = {"do_sample": True, "top_k": 0, "min_new_tokens": tokens, "max_new_tokens": tokens}

    def work() -> int:
        return peer.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, 1:].numel()

    return work


def decoder_weights(model: Any) -> list[torch.Tensor]:
    """List the matrices that every new token of a melody VAE is multiplied with."""
    layers = [module for layer in model.layers for module in layer.modules()]
    modules = [*layers, model.lm_head, *([model.previous_proj] if model.config.previous_token else [])]
    return [module.weight.detach() for module in modules if isinstance(module, torch.nn.Linear)]


def products(model: Any, rows: int, tokens: int) -> Callable[[], int]:
    """Return the work of nothing but a token's matrix products, for `rows` melodies at once.

    With one row that is reading the decoder's weights once, from memory or whichever cache they fit into.
    """
    weights = decoder_weights(model)
    inputs = {size: torch.randn(rows, size) for size in {weight.shape[1] for weight in weights}}

    def work() -> int:
        for _ in range(tokens):
            for weight in weights:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)
        return rows * tokens

    return work


def matrix_rate(dtype: torch.dtype, size: int = 1024) -> Callable[[], int]:
    """Return the work of one large product of square matrices; its units are a million operations."""
    one, other = torch.randn(2, size, size).to(dtype)

    def work() -> int:
        torch.mm(one, other)
        return 2 * size**3 // 1_000_000

    return work
