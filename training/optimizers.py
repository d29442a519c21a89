"""How the weights follow their gradients: AdamW, or Muon for the hidden matrices and AdamW for the rest."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import nn

OPTIMIZERS = ("adamw", "muon")
BETAS = (0.9, 0.98)
MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: singular values end between 0.7 and 1.2
NEWTON_SCHULZ_STEPS = 5
ADAMW_RMS = 0.2  # of AdamW's usual update, at learning rate 1


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """Bring all singular values of matrices near 1, by a Newton-Schulz iteration X <- (a + b X X^T + c (X X^T)^2) X.

    The factors of all steps are polynomials of the first X X^T, so they are multiplied with each other, at the size of
    the shorter side, and with the matrix once. That needs half the time, and single precision: in bfloat16 it diverges.

    Args:
        matrices: `(N, A, B)`.

    Returns:
        `(N, A, B)`, the same singular vectors.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    rows = matrices.mT if is_tall else matrices
    rows = rows / torch.linalg.matrix_norm(rows, keepdim=True).clamp_min(1e-7)
    gram = rows @ rows.mT
    factors: list[torch.Tensor] = []
    while len(factors) < NEWTON_SCHULZ_STEPS:
        if factors:
            gram = factors[-1] @ gram @ factors[-1]
        factors.append(torch.baddbmm(gram, gram, gram, beta=b, alpha=c))
        factors[-1].diagonal(dim1=-2, dim2=-1).add_(a)
    rows = reduce(torch.matmul, factors) @ rows
    return rows.mT if is_tall else rows


class Muon(torch.optim.AdamW):
    """Muon for parameter groups with `momentum`, AdamW for all others, by one learning rate.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) follows the momentum with its singular values
    made equal. Its update is brought to the root mean square of AdamW's, as in Liu et al. (2025, arXiv:2502.16982), so
    that learning rate and weight decay mean the same for all groups. torch.optim.Muon does the same matrix by matrix in
    bfloat16, which is slow on CPUs without it.

    Args:
        groups: Parameter groups; those with `momentum` hold matrices, whole ones.
        options: As of `torch.optim.AdamW`.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step."""
        groups = self.param_groups
        for group in groups:
            if "momentum" in group:
                self._step_matrices(group)
        self.param_groups = [group for group in groups if "momentum" not in group]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups

    def _step_matrices(self, group: dict[str, Any]) -> None:
        learning_rate, momentum = group["lr"], group["momentum"]
        by_shape: dict[torch.Size, list[torch.Tensor]] = {}
        for weight in group["params"]:
            if weight.grad is not None:
                by_shape.setdefault(weight.shape, []).append(weight)
        for shape, weights in by_shape.items():
            directions = []
            for weight in weights:
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                    state["step"] = torch.zeros(())  # AdamW asks for it when it loads a state
                state["momentum_buffer"].lerp_(weight.grad, 1 - momentum)
                directions.append(weight.grad.lerp(state["momentum_buffer"], momentum))  # Nesterov's
            updates = orthogonalised(torch.stack(directions))
            for weight, update in zip(weights, updates, strict=True):
                weight.mul_(1 - learning_rate * group["weight_decay"])
                weight.add_(update, alpha=-learning_rate * ADAMW_RMS * max(shape) ** 0.5)


def build_optimizer(model: nn.Module, name: str, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Build an optimizer of a model's weights, with weight decay on matrices only; frozen weights are left out.

    Args:
        model: With `get_output_embeddings`, as transformers' models.
        name: One of `OPTIMIZERS`. Muon takes the weights of linear layers, the output layer's aside.
        learning_rate: At its peak.
        weight_decay: Per step, times the learning rate.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not output]
    of_muon = {id(module.weight) for module in linear} if name == "muon" else set()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hidden = [each for each in trained if id(each) in of_muon]
    matrices = [each for each in trained if each.ndim >= 2 and id(each) not in of_muon]
    vectors = [each for each in trained if each.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
        {"params": hidden, "weight_decay": weight_decay, "momentum": MOMENTUM},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "muon":  # not fused: a fused AdamW would be told of overflow in fp16, and its sister not
        return Muon(groups, lr=learning_rate, betas=BETAS)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, fused=True)
