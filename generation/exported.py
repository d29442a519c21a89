"""An exported model in the place of torch's: tensors in and out, as the sections of generate.py have them.

torch, numpy and onnxruntime are imported inside functions, so that `--help` and a wrong option answer at once.
"""

import sys
from functools import partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FOLDER = "onnx"  # of a model, where export_onnx.py or publish.py has put its graphs
PACKAGE = "onnx_melody_vae"
REFINING = ("reconstruct", "vary", "interpolate", "tour")
"""Commands that move latents by torch's gradients to where the melody comes back; without these they make do."""

OPERATIONS = ("sample", "reconstruct", "continue_melody", "vary", "infill", "interpolate")


def why_not(model: str, command: str, runtime: str) -> str | None:
    """Say why a command does not use onnxruntime; None if it does.

    Args:
        model: Folder or Hub id.
        command: Of generate.py.
        runtime: `auto`, or `onnx` where it is asked for.
    """
    folder = Path(model) / FOLDER
    if not (folder / PACKAGE).is_dir():
        return f"{folder}: no graphs there; write them with export_onnx.py"
    if find_spec("onnxruntime") is None:
        return 'onnxruntime is not installed; run pip install -e ".[onnx]"'
    if command == "shift" or (command in REFINING and runtime == "auto"):
        return f"{command} takes torch's gradients"
    return None


class ExportedModel:
    """What the commands need of a model, by onnxruntime.

    Args:
        folder: Of the model.
        config: Of the model.

    Raises:
        FileNotFoundError: If a file is missing.
    """

    def __init__(self, folder: str, config: Any):
        place = Path(folder) / FOLDER
        init = place / PACKAGE / "__init__.py"
        # Each model's own code, under a name that no other model's has.
        spec = spec_from_file_location(f"{PACKAGE}_{abs(hash(init.resolve()))}", init)
        if spec is None or spec.loader is None:
            raise FileNotFoundError(f"{init} is missing; write it with export_onnx.py")
        module = sys.modules[spec.name] = module_from_spec(spec)
        spec.loader.exec_module(module)
        self.runtime, self.config = module.OnnxMelodyVAE(place), config
        for name in OPERATIONS:
            setattr(self, name, partial(self._run, name))

    def num_parameters(self) -> int:
        """Count the parameters."""
        return self.runtime.config["num_parameters"]

    def encode(self, input_ids: Any, attention_mask: Any = None) -> Any:
        """Encode melodies `(B, T)`; padding is known by its token."""
        import torch

        mean, log_variance = map(torch.from_numpy, self.runtime.encode(input_ids.numpy()))
        return SimpleNamespace(latent_mean=mean, latent_log_variance=log_variance)

    def _run(self, operation: str, *given: Any, attention_mask: Any = None, **options: Any) -> Any:
        """Do what the runtime calls by the same name; returns ids `(B, T)`."""
        import torch

        def as_array(value: Any) -> Any:
            return value.numpy() if isinstance(value, torch.Tensor) else value

        options = {name: as_array(value) for name, value in options.items()}
        return torch.from_numpy(getattr(self.runtime, operation)(*map(as_array, given), **options))
