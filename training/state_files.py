"""State as JSON and safetensors: any nest of dicts, lists and tensors; to read it runs no code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a tensor that FSDP has sharded; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def write_state(state: Any, path: Path) -> None:
    """Write a nest as `path`.json and its tensors as `path`.safetensors, of sharded ones this process's part.

    Raises:
        TypeError: If it holds anything but None, numbers, strings, tensors, arrays, dicts, lists and tuples.
    """
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(encode(state, tensors, ""))
    save_file(tensors, path.with_name(f"{path.name}.safetensors"))
    path.with_name(f"{path.name}.json").write_text(text + "\n", encoding="utf-8")


def read_state(path: Path) -> Any:
    """Read what `write_state` wrote, tensors on the CPU.

    Raises:
        ValueError: If it is anything else.
    """
    try:
        tensors = load_file(path.with_name(f"{path.name}.safetensors"))
        return decode(json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8")), tensors)
    except (OSError, SafetensorError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path.name}: no state of a run ({type(error).__name__})") from error


def encode(value: Any, tensors: dict[str, torch.Tensor], name: str) -> Any:
    """Turn a nest into what JSON holds; its tensors go into `tensors`, named after their place."""
    if isinstance(value, torch.Tensor):
        # A copy: safetensors refuses tied weights that share their memory.
        tensors[name] = local(value.detach()).to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        return {"array": encode(torch.from_numpy(value), tensors, name)}
    if isinstance(value, dict):  # JSON's own keys are strings only
        pairs = [[key, encode(item, tensors, f"{name}.{key}" if name else str(key))] for key, item in value.items()]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        items = [encode(item, tensors, f"{name}.{index}") for index, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name}: {type(value).__name__} cannot be kept in a checkpoint")


def decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Undo `encode`."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "array":
            return decode(content, tensors).numpy()
        case "dict":
            return {key: decode(item, tensors) for key, item in content}
        case "tuple":
            return tuple(decode(item, tensors) for item in content)
    raise KeyError(kind)
