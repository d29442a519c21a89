"""The training loss: the model's own, and label smoothing on top."""

import torch
from torch import nn

from modeling import MelodyVAEModel


def read_conditions(model: MelodyVAEModel, input_ids: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    """Read the conditions of the melody decoder from melodies.

    Returns:
        `conditions` for [`MelodyVAEModel.forward`]; nothing for an unconditional melody decoder.
    """
    if not getattr(model.config, "decoder_conditions", None):
        return {}
    embedding, conditions = model.bar_conditioner.condition_embedding, model.conditions_of(model.read_lines(input_ids))
    return {"conditions": model._condition_labels(embedding, conditions, len(input_ids))}


def smoothing_nats(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How much more a uniform label would cost than the true one, summed over each melody's tokens.

    With smoothing e the target is (1 - e) of the true token and e of the uniform distribution (Szegedy et al. 2016,
    arXiv:1512.00567), so the loss becomes nll + e (uniform - nll). In the difference the softmax's normaliser cancels:
    what is left is the true token's logit less the mean logit.

    Args:
        logits: `(B, T, V)`.
        labels: `(B, T)`, aligned with the input (position t is predicted from t - 1); -100 is not counted.

    Returns:
        `(B,)` nats.
    """
    labels = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    is_counted = labels != -100
    true = logits.gather(-1, labels.clamp_min(0)[..., None]).squeeze(-1).float()
    return ((true - logits.float().mean(-1)) * is_counted).sum(-1)


def training_loss(output, labels: torch.Tensor, tokens_per_melody: float, label_smoothing: float) -> torch.Tensor:
    """The loss to descend: the model's, its cross-entropy against smoothed labels if asked for."""
    if not label_smoothing:
        return output.loss
    return output.loss + label_smoothing * smoothing_nats(output.logits, labels).mean() / tokens_per_melody
