"""Checks of tensors among the arguments, and random numbers: one for each kind, used by every operation.

Each returns its argument in the one form that the operations work with. Dimension key: B batch, T tokens,
Z latent size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch

from .options_melody_vae import check_count, is_list

Generators = Sequence[torch.Generator]
"""A source of random numbers for each melody, which then depends on its own alone, not on what else is in the batch."""

LARGEST_SEED = 2**63 - 1


def check_bars(value: Any, n: int, most: int | None = None) -> int | list[int]:
    """Return the bars of `n` melodies as one number for all, or a list with one for each.

    Args:
        value: A number, a list, or a tensor of either.
        n: Melodies.
        most: Bars that one melody may have; any number by default.

    Raises:
        ValueError: If a number is not whole, less than 1 or more than `most`, or there are not `n`.
    """
    value = value.tolist() if isinstance(value, torch.Tensor) else value
    if not is_list(value):
        numbers: int | list[int] = check_count("bars", value, 1)
        largest = numbers
    else:
        numbers = [check_count("bars", bars, 1) for bars in value]
        if len(numbers) == 1:
            numbers *= n
        if len(numbers) != n:
            raise ValueError(f"{len(numbers)} values of bars for {n} melodies")
        largest = max(numbers, default=1)
    if most is not None and largest > most:
        raise ValueError(f"bars={largest}: a latent holds at most max_bars={most}; sample(bars=...) writes longer ones")
    return numbers


def check_latent(value: Any, size: int, rows: int | None = None) -> torch.Tensor:
    """Return latents `(B, Z)`; one without a batch gets a batch of one.

    Raises:
        ValueError: If they have another shape, or a number that is not finite.
    """
    if not size:
        raise ValueError("latent: this model has none (latent_size=0)")
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        raise ValueError(f"latent: a tensor of floating point numbers is needed, not {type(value).__name__}")
    latent = value[None] if value.dim() == 1 else value
    if latent.dim() != 2 or latent.shape[1] != size or (rows is not None and len(latent) != rows):
        expected = f"({'B' if rows is None else rows}, {size})"
        raise ValueError(f"latent of shape {tuple(value.shape)}: this model's have {expected}")
    if not (latent.is_meta or latent.isfinite().all()):
        raise ValueError("latent: has NaN or infinite numbers")
    return latent


def check_ids(input_ids: Any, vocab_size: int) -> torch.Tensor:
    """Return token ids `(B, T)`.

    Raises:
        ValueError: If they have another shape or type, or one is not in the vocabulary.
    """
    if not isinstance(input_ids, torch.Tensor) or input_ids.is_floating_point() or input_ids.dim() != 2:
        what = tuple(input_ids.shape) if isinstance(input_ids, torch.Tensor) else type(input_ids).__name__
        raise ValueError(f"input_ids: a tensor of whole numbers (B, T) is needed, not {what}")
    if input_ids.numel() and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < vocab_size:
        raise ValueError(f"input_ids: from {int(input_ids.min())} to {int(input_ids.max())}, of {vocab_size} tokens")
    return input_ids


def check_buffers(module: torch.nn.Module) -> None:
    """Refuse a module without its buffers: Accelerate's hooks hand them out within `forward`, and others read them too.

    Raises:
        ValueError: If they are offloaded.
    """
    if hasattr(module, "_hf_hook") and any(buffer.is_meta for buffer in module.buffers(recurse=False)):
        raise ValueError("the model's buffers are offloaded; offload it without offload_buffers=True: they are small")


def make_generators(n: int, seed: Any = None, generator: Generators | None = None) -> Generators:
    """Return a generator for each of `n` melodies.

    Those of a seed come from it one after the other: melody i of a seed is the same for every `n`. Without a seed they
    come from one number of the global random state.

    Raises:
        ValueError: If there is a seed as well as generators, the seed is no whole number, or there are not `n`.
    """
    if generator is not None:
        if seed is not None:
            raise ValueError(f"seed={seed} and generator: give one of them")
        if isinstance(generator, torch.Generator) or len(generator) != n:
            count = 1 if isinstance(generator, torch.Generator) else len(generator)
            raise ValueError(f"{count} generators for {n} melodies: give a list with one for each")
        return generator
    seed = int(torch.randint(LARGEST_SEED, ())) if seed is None else check_count("seed", seed)
    if seed > LARGEST_SEED:
        raise ValueError(f"seed={seed} is more than {LARGEST_SEED}")
    return spawn_generators(torch.Generator().manual_seed(seed), n)


def spawn_generators(root: torch.Generator, n: int) -> list[torch.Generator]:
    """Seed `n` generators from one, each with its next number."""
    seeds = [int(torch.randint(2**62, (), generator=root, device=root.device)) for _ in range(n)]
    return [torch.Generator(root.device).manual_seed(seed) for seed in seeds]


def draw_normal(like: torch.Tensor, generator: Sequence[torch.Generator]) -> torch.Tensor:
    """Draw from N(0, I) as many as `like` `(B, ...)` has, each row from its own generator."""
    rows = [torch.randn(like.shape[1:], generator=source, device=source.device) for source in generator]
    return torch.stack(rows).to(like) if rows else torch.empty_like(like)


def draw_uniform(
    shape: tuple[int, ...], generator: Sequence[torch.Generator], device: torch.device | None = None
) -> torch.Tensor:
    """Draw from 0 to 1 `(B, *shape)`, each row from its own generator."""
    return torch.stack([torch.rand(shape, generator=source, device=source.device) for source in generator]).to(device)
