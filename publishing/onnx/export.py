"""Export a trained melody VAE as ONNX graphs, and see that onnxruntime writes what torch writes."""

import json
import logging
import shutil
import sys
import warnings
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers.cache_utils import DynamicCache

from command import UserError, first_line
from generation.loading import check_model, load_model

RUNTIME = Path(__file__).with_name("onnx_melody_vae.py")
NEEDED = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20
BATCH, LENGTH, PAST = 3, 5, 7  # of the example that the graphs are traced with; each of them stays free


class Graph(NamedTuple):
    """One ONNX file to be.

    Args:
        module: What to trace.
        inputs: Of each input by its name an example, and the names of its free axes by their index; lists are for all
            layers.
        outputs: Names of the outputs.
    """

    module: nn.Module
    inputs: dict[str, tuple[Any, Any]]
    outputs: list[str]

    @property
    def examples(self) -> dict[str, Any]:
        """The example of each input."""
        return {name: example for name, (example, _) in self.inputs.items()}


class EncoderGraph(nn.Module):
    """The melody encoder, embedding included."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        musical_position: torch.Tensor,
        pitch: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode melodies `(B, T)`; returns mean and log-variance, `(B, Z)` each."""
        posterior = self.model.encode(input_ids, attention_mask, musical_position, pitch)
        return posterior.latent_mean, posterior.latent_log_variance


class DecoderGraph(nn.Module):
    """The melody decoder, its cache being plain tensors."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        keys: list[torch.Tensor],
        values: list[torch.Tensor],
        musical_position: torch.Tensor,
        pitch: torch.Tensor | None = None,
        previous_ids: torch.Tensor | None = None,
        bar_conditions: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Predict the tokens after `input_ids` `(B, T)`; keys and values of P tokens before are `(B, H, P, D)`."""
        cache = DynamicCache(list(zip(keys, values, strict=True)))
        place = torch.arange(attention_mask.shape[1])
        is_seen = (place <= place[keys[0].shape[2] :, None]) & attention_mask[:, None, None].bool()  # (B, 1, T, P + T)
        output = self.model(
            input_ids,
            torch.where(is_seen, 0.0, torch.finfo(torch.float32).min),
            musical_position=musical_position,
            pitch=pitch,
            previous_ids=previous_ids,
            bar_conditions=bar_conditions,
            cache=cache,
            use_cache=True,
        )
        cached: list[Any] = [each for layer in cache.layers for each in (layer.keys, layer.values)]
        return output.logits, cached


def make_graphs(model: Any) -> dict[str, Graph]:
    """Describe the ONNX files of a model by their names; one without a latent has a decoder only."""
    config = model.config
    generator = torch.Generator().manual_seed(0)

    def example(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    ids = torch.randint(config.vocab_size, (BATCH, LENGTH), generator=generator)
    cached = (BATCH, config.num_attention_heads, PAST, config.hidden_size // config.num_attention_heads)
    layers = range(config.num_hidden_layers)
    free, free_cache = {0: "batch", 1: "length"}, [{0: "batch", 2: "past_length"} for _ in layers]
    places: dict[str, tuple[Any, Any]] = {"musical_position": (torch.zeros(ids.shape), free)}
    if config.musical_pitch:
        places["pitch"] = (torch.zeros(ids.shape), free)
    inputs = {  # in the order of the module's arguments
        "input_ids": (ids, free),
        "attention_mask": (torch.ones(BATCH, PAST + LENGTH, dtype=torch.long), {0: "batch", 1: "total_length"}),
        **{name: ([example(*cached) for _ in layers], free_cache) for name in ("keys", "values")},
        **places,
    }
    if config.previous_token:
        inputs["previous_ids"] = (ids.clone(), free)
    if config.latent_size:
        conditions = example(BATCH, config.max_bars + 1, config.num_hidden_layers, config.hidden_size)
        inputs["bar_conditions"] = (conditions, {0: "batch"})
    outputs = ["logits", *(f"present.{index}.{kind}" for index in layers for kind in ("key", "value"))]
    graphs = {"decoder": Graph(DecoderGraph(model), inputs, outputs)}
    if config.latent_size:
        inputs = {"input_ids": (ids, free), "attention_mask": (torch.ones_like(ids), free), **places}
        graphs["encoder"] = Graph(EncoderGraph(model), inputs, ["latent_mean", "latent_log_variance"])
        inputs = {"latent": (example(BATCH, config.latent_size), {0: "batch"})}
        graphs["bar_conditioner"] = Graph(model.bar_conditioner, inputs, ["bar_conditions"])
    return graphs


@contextmanager
def quiet_exporter():
    """Silence what torch's exporter says of itself."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)  # one name for axes of one size is meant
        yield
    logger.setLevel(level)


def write_graph(graph: Graph, path: Path) -> None:
    """Trace a module and write it as ONNX, weights included."""
    names: list[str] = []
    for name, value in graph.examples.items():
        if isinstance(value, list):
            names += [f"past_key_values.{index}.{name.removesuffix('s')}" for index in range(len(value))]
        else:
            names.append(name)
    with quiet_exporter():
        torch.onnx.export(
            graph.module.eval(),
            kwargs=graph.examples,
            f=path,
            input_names=names,
            output_names=graph.outputs,
            dynamic_shapes={name: axes for name, (_, axes) in graph.inputs.items()},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def export(model: Any, folder: Path) -> None:
    """Write the graphs of a model, their configuration and what runs them.

    Args:
        model: A `MelodyVAEModel`; its attention is set to `eager`, whose operations ONNX has.
        folder: Where to; made if it is not there.
    """
    model.float().eval().set_attn_implementation("eager")
    config = model.config
    for name, graph in tqdm(make_graphs(model).items(), desc="Exporting", unit="graph"):
        write_graph(graph, folder / f"{name}.onnx")
    names = ("latent_size", "max_bars", "vocab_size", "num_attention_heads")
    names += ("musical_time", "musical_pitch", "previous_token")
    names += ("bar_token_ids", "pad_token_id", "bos_token_id", "eos_token_id")
    constants = sys.modules[type(model).__module__]
    about = {name: getattr(config, name) for name in names} | {
        "head_size": config.hidden_size // config.num_attention_heads,
        "max_length": model.generation_config.max_length,
        "max_tokens_per_bar": constants.MAX_TOKENS_PER_BAR,
    }
    if config.musical_time or config.musical_pitch:
        for column in ("LAST_ONSET", "BAR_STEPS", "LOWEST_PITCH", "HIGHEST_PITCH"):
            about[column.lower()] = model.token_grammar[:, constants.TokenColumn[column]].tolist()
    (folder / "onnx_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    shutil.copy(RUNTIME, folder)


def compare(model: Any, folder: Path) -> int:
    """Let torch and onnxruntime write one melody greedily; returns its number of tokens.

    The model's grammar is switched off: `onnx_melody_vae.py` keeps to the number of bars and to nothing else.

    Raises:
        UserError: If the two differ.
    """
    from publishing.onnx.onnx_melody_vae import OnnxMelodyVAE

    size, bars = model.config.latent_size, model.config.max_bars
    latent = torch.randn(1, size, generator=torch.Generator().manual_seed(0)) if size else None
    model.config.grammar_columns = 0
    expected = model.generate(latent=latent, bars=bars, do_sample=False)
    ids = OnnxMelodyVAE(folder).generate(None if latent is None else latent.numpy(), bars=bars)
    if not np.array_equal(ids, expected):
        raise UserError(f"{folder}: onnxruntime writes another melody than torch; do not use these files")
    return ids.shape[1]


def export_and_compare(name: str, folder: Path) -> None:
    """Export a model, and let both forms of it write the same melody.

    Args:
        name: Folder or Hub id of the model.
        folder: Where to; made if it is not there.

    Raises:
        UserError: If a library is missing, or the model or the folder is of no use.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UserError(f'{missing[0]} is not installed; run pip install -e ".[onnx]"')
    check_model(name)
    _, model = load_model(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: not a folder, nor can one be made ({first_line(error)}); choose another --output"
        ) from error
    export(model, folder)
    count = compare(model, folder)
    print(f"Exported to {folder}; torch and onnxruntime wrote the same {count} tokens")
