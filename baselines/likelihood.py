"""Bits per note of any model of melodies, whatever it reads.

Tokens and MusicVAE's steps write the same windows: which notes, where and how long, on the same grid of sixteenths. So
bits per note compare, with these caveats:

- It is an upper bound for each. A model with a latent pays the ELBO; a language model pays for the token sequence that
  BPE writes, which is one of several that decode to the melody.
- Note lengths: in steps a note's end and an onset that touches it are one event; in tokens they are written twice, by a
  Duration and by the next Position. The second follows from the first only where lines are legato.
- Quantisation: both have the data set's grid, and steps are read from the tokens' own text, so what the grid or the
  longest Duration took from a melody is missing in both. A length past the window's end is cut in steps.
- Steps are always 4/4, and how many bars there are is given; tokens name the time signature in every bar and say where
  the melody ends, which costs a trained model a few bits per melody.
"""

from collections.abc import Callable, Sequence

import torch

from metrics.bits_per_note.bits_per_note import bits_per_note
from modeling.modeling_melody_vae import reconstruction_nats


@torch.no_grad()
def melody_nats(
    model, batch: dict[str, torch.Tensor], generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute both terms of the negative ELBO of each melody, with one latent from its posterior.

    Args:
        model: [`MelodyVAEModel`] or any of the baselines.
        batch: `input_ids`, `attention_mask` and `labels`, `(B, T)`.
        generator: Of the latents.

    Returns:
        Reconstruction and KL, `(B,)` nats each; the KL is 0 where there is no latent.
    """
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    labels = batch["labels"].to(model.device)
    latent, kl_nats = None, torch.zeros(len(labels), device=model.device)
    if model.config.latent_size:
        posterior = model.encode(**inputs)
        latent, kl_nats = posterior.sample(generator), posterior.kl_nats()
    return reconstruction_nats(model(**inputs, latent=latent, use_cache=False).logits, labels), kl_nats


def measure_bits_per_note(
    model,
    texts: Sequence[str],
    collator: Callable[[list[str]], dict[str, torch.Tensor]],
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, float | int]:
    """Measure bits per note on windows.

    Args:
        model: [`MelodyVAEModel`] or any of the baselines.
        texts: Words of each window, as training has them; in 4/4 for MusicVAE, so for all that are compared with it.
        collator: Makes a batch of texts, `num_notes` `(B,)` included: train.py's, or [`StepCollator`].
        batch_size: Windows at a time.
        seed: Of the latents.

    Returns:
        See `evaluation.bits_per_note`.
    """
    was_training = model.training
    model.eval()
    generator = torch.Generator(model.device).manual_seed(seed)
    ordered = sorted(texts, key=len)  # like lengths pad little
    reconstruction, kl, notes = [], [], []
    for first in range(0, len(ordered), batch_size):
        batch = collator(ordered[first : first + batch_size])
        reconstruction_part, kl_part = melody_nats(model, batch, generator)
        reconstruction += reconstruction_part.tolist()
        kl += kl_part.tolist()
        notes += batch["num_notes"].tolist()
    model.train(was_training)
    return bits_per_note(reconstruction, kl, notes)
