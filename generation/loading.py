"""Load a model as any other user does: from a folder or the Hub, with the code that comes with it.

torch and transformers are imported inside functions, so that `--help` and a wrong option answer at once.
"""

import re
from pathlib import Path
from typing import Any

from command import UserError, check_links, first_line
from generation.exported import ExportedModel

MODEL_FILES = ("config.json", "processor_config.json", "tokenizer.json")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def check_model(name: str) -> None:
    """Check that a folder holds a whole model, or that a name may be one on the Hub, before anything is imported.

    Raises:
        UserError: If not.
    """
    folder = Path(name)
    if folder.is_dir():
        missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
        if not any((folder / name).is_file() for name in WEIGHTS):
            missing.append(WEIGHTS[0])
        if missing:
            raise UserError(f"{folder}: {missing[0]} is missing; give a folder in which train.py has finished")
    elif folder.exists() or not HUB_ID.fullmatch(name) or ("/" in name and folder.parent.is_dir()):
        raise UserError(f"{folder}: no such folder; give a folder that train.py wrote, or an id on the Hub")


def load_originality(path: str):
    """Load an index of training melodies.

    Raises:
        UserError: If there is none.
    """
    from metrics.originality.originality_index import OriginalityIndex

    try:
        return OriginalityIndex.load(path)
    except OSError as error:
        raise UserError(
            f"--check_originality {path}: cannot be read ({error.strerror}); "
            "make an index with python -m evaluation.originality build"
        ) from error
    except ValueError as error:
        raise UserError(f"--check_originality {error}") from error


def load_model(name: str, runtime: str = "torch") -> tuple[Any, Any]:
    """Load a processor and a model from a folder or the Hub, with the code that lies there.

    Args:
        name: Folder or Hub id.
        runtime: `torch`, or `onnx` for an [`ExportedModel`].

    Raises:
        UserError: If there is none, or it is another kind of model.
    """
    import huggingface_hub
    import transformers

    huggingface_hub.utils.logging.set_verbosity_error()  # no network is one line, not a report of every try
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    check_links(name)
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=True)
        if config.model_type == "melody_vae":
            processor = transformers.AutoProcessor.from_pretrained(name, trust_remote_code=True)
            if runtime == "onnx":
                return processor, ExportedModel(name, config)
            return processor, transformers.AutoModel.from_pretrained(name, trust_remote_code=True)
    except Exception as error:  # no network, an unknown id, broken JSON or weights: each has its own class
        what = "broken" if Path(name).exists() else "neither a folder nor a model on the Hub that can be reached"
        raise UserError(f"{name}: {what} ({first_line(error)}); give a folder of train.py or a Hub id") from error
    raise UserError(f"{name}: a model of the kind {config.model_type}, no melody VAE; choose another --model")
