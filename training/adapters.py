"""LoRA: train small matrices beside the weights, and add them in at the end (Hu et al. 2021, arXiv:2106.09685)."""

import copy
import warnings

import torch
from torch import nn
from transformers import PreTrainedModel

from command import UserError

ALPHA = 2  # of the adapters, in ranks


def add_adapters(model: PreTrainedModel, rank: int) -> nn.Module:
    """Put an adapter beside every linear layer inside the model's blocks, in place, and freeze everything else.

    Returns:
        peft's wrapper, whose `base_model.model` is `model`.

    Raises:
        UserError: If peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("--lora_rank needs peft: pip install peft") from error
    head = model.get_output_embeddings()
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    with warnings.catch_warnings():  # peft 0.21 asks transformers for a property that is about to be renamed
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, LoraConfig(r=rank, lora_alpha=ALPHA * rank, target_modules=linear))


def merged(model: PreTrainedModel, adapted: nn.Module | None) -> PreTrainedModel:
    """The model as it is saved: a copy with the adapters added in, so that it loads without peft."""
    if adapted is None:
        return model
    with torch.no_grad():
        return copy.deepcopy(adapted).merge_and_unload()  # pyright: ignore[reportCallIssue] - peft's method
