"""Export a trained melody VAE as ONNX graphs, and see that onnxruntime writes what torch writes.

A model with a critic (`config.critic_size`) has a graph `critic.onnx`, which chooses among the candidates of `sample`:

- inputs `latent` `(B, Z)` float32, means of the candidates' posteriors (`latent_mean` of `encoder.onnx`), and `bars`
  `(B,)` int64, how many bars each candidate has;
- output `score` `(B,)` float32, higher for what looks more like a training melody.

`onnx_config.json` then says how many candidates are drawn for each melody, `sampling_candidates`. Those of one melody
stand after each other, the first of the highest score is kept, and one in another key than asked for loses 10,000.
Candidate j of melody i draws its random numbers from `SeedSequence(seed, spawn_key=(i, j))`; where a melody is sampled
again j counts on.

Where `config.key_shares` is there, a melody decoder that is conditioned on keys gets one for each melody: the one asked
for, else that of the notes that are there, else one drawn by these shares after the latent.
"""

import hashlib
import json
import logging
import shutil
import warnings
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from command import UserError, first_line, make_folder
from generation.loading import check_model, load_model
from modeling.conditioning_melody_vae import ConditionEmbedding
from modeling.relative_attention import RelativeAttention, rotate

RUNTIME = Path(__file__).with_name("onnx_melody_vae")
NEEDED = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20
NUM_COMPARED = 4  # melodies
CONFIG_FIELDS = (
    *("vocab_size", "bar_token_ids", "repeat_token_ids", "repeat_lags", "pad_token_id", "bos_token_id", "eos_token_id"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_prior_layers", "latent_size", "max_bars"),
    *("max_relative_distance", "musical_time", "musical_pitch", "previous_token", "conditions", "attributes"),
    *("decoder_conditions", "section_returns", "noise_probability", "sampling_noise", "variation_levels"),
    *("sampling_top_p", "critic_size", "sampling_candidates", "key_shares", "average_attributes"),
)
"""What the runtime needs of [`MelodyVAEConfig`]."""
BATCH, LENGTH, PAST = 3, 5, 7  # of the example that the graphs are traced with; each of them stays free


class Graph(NamedTuple):
    """One ONNX file to be.

    Args:
        module: What to trace.
        inputs: Of each input by its name an example, and the names of its free axes by their index; a list has one for
            each layer, a dict several by name.
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


class DecoderStepGraph(nn.Module):
    """One step of the melody decoder, as [`StepDecoder`] computes it, with a cache that the caller holds.

    Heads come first in the cache, `(H, B, S, D)`, so that rows of E are multiplied with all melodies at once. The keys
    of the step itself are put out instead of joined to it: joining would copy the whole cache for each token.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        musical_position: torch.Tensor,
        distance: torch.Tensor,
        mask: torch.Tensor,
        keys: list[torch.Tensor],
        values: list[torch.Tensor],
        pitch: torch.Tensor | None = None,
        previous_ids: torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict the tokens after one more token `(B,)`.

        Args:
            input_ids: `(B,)`.
            musical_position: `(B,)`, in bars.
            distance: `(S,)` row of E for each place in the cache.
            mask: `(B, S)`, added to the logits of attention: 0, or the lowest number where nothing is cached.
            keys: Of each layer, `(H, B, S, D)`.
            values: Likewise.
            pitch: `(B,)`, in semitones.
            previous_ids: `(B,)`.
            condition: `(B, K, C)`, the row of `bar_conditions` for the token's bar.

        Returns:
            Logits `(B, V)`, and keys and values of the step, those of a layer after each other, `(2 K, H, B, D)`.
        """
        # As in the model's own forward pass, but for one token, without an axis of time.
        model, presents = self.model, []
        pitch = None if pitch is None else pitch[:, None]
        previous_ids = None if previous_ids is None else previous_ids[:, None]
        hidden_states, rotation = model._embed(
            input_ids[:, None], None, musical_position[:, None], pitch, previous_ids, None
        )
        hidden_states = hidden_states[:, 0]  # (B, C)
        rotation = None if rotation is None else rotation[:, :, 0, 0]  # (2, B, P)
        for index, layer in enumerate(model.layers):
            if condition is not None:
                hidden_states = hidden_states + condition[:, index]
            states = layer.attention_norm(hidden_states)
            attended, present = self._attend(
                layer.attention, states, rotation, keys[index], values[index], distance, mask
            )
            presents += present
            hidden_states = hidden_states + attended
            hidden_states = hidden_states + layer.feed_forward(hidden_states)
        return model.lm_head(model.norm(hidden_states)), torch.stack(presents)

    @staticmethod
    def _attend(
        attention: RelativeAttention,
        states: torch.Tensor,
        rotation: torch.Tensor | None,
        keys: torch.Tensor,
        values: torch.Tensor,
        distance: torch.Tensor,
        mask: torch.Tensor,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Attend from one token `(B, C)` to those cached and to itself; returns `(B, C)`, and its key and value."""
        heads = attention.num_heads
        states = attention.qkv_proj(states).unflatten(-1, (3 * heads, attention.head_dim)).transpose(0, 1)
        query_key, value = states.split([2 * heads, heads])  # (2 H, B, D), (H, B, D)
        if rotation is not None:
            query_key = rotate(query_key, rotation)
        query, key = query_key.split(heads)
        query = query * attention.scaling
        by_distance = query @ attention.distance_embedding.transpose(1, 2)  # (H, B, M)
        cached = (query[:, :, None] @ keys.transpose(2, 3))[:, :, 0] + by_distance[:, :, distance] + mask  # (H, B, S)
        own = (query * key).sum(-1, keepdim=True) + by_distance[:, :, -1:]  # (H, B, 1)
        weights = torch.cat([cached, own], dim=-1).softmax(-1)
        attended = (weights[:, :, None, :-1] @ values)[:, :, 0] + weights[:, :, -1:] * value  # (H, B, D)
        return attention.o_proj(attended.transpose(0, 1).flatten(1)), [key, value]


def label_inputs(embedding: ConditionEmbedding) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, str]]]:
    """Give examples of labels, as an embedding takes them, and their free axes."""
    labels = embedding.null_labels(BATCH)
    return labels, {name: {0: "batch"} for name in labels}


def make_graphs(model: Any) -> dict[str, Graph]:
    """Describe the ONNX files of a model by their names; one without a latent has a decoder only."""
    config = model.config
    generator = torch.Generator().manual_seed(0)

    def example(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    # Examples of the axes: batch, length and capacity stay free.
    ids = torch.randint(config.vocab_size, (BATCH, LENGTH), generator=generator)
    cached = (config.num_attention_heads, BATCH, PAST, config.hidden_size // config.num_attention_heads)
    layers, batch = range(config.num_hidden_layers), {0: "batch"}
    free, free_cache = {0: "batch", 1: "length"}, [{1: "batch", 2: "capacity"} for _ in layers]
    inputs: dict[str, tuple[Any, Any]] = {  # in the order of the module's arguments
        "input_ids": (ids[:, 0], batch),
        "musical_position": (torch.zeros(BATCH), batch),
        "distance": (torch.arange(PAST), {0: "capacity"}),
        "mask": (torch.zeros(BATCH, PAST), {0: "batch", 1: "capacity"}),
        **{name: ([example(*cached) for _ in layers], free_cache) for name in ("keys", "values")},
    }
    if config.musical_pitch:
        inputs["pitch"] = (torch.zeros(BATCH), batch)
    if config.previous_token:
        inputs["previous_ids"] = (ids[:, 1], batch)
    if config.latent_size:
        inputs["condition"] = (example(BATCH, config.num_hidden_layers, config.hidden_size), batch)
    graphs = {"decoder": Graph(DecoderStepGraph(model), inputs, ["logits", "present"])}
    if not config.latent_size:
        return graphs
    # Encoder and conditioner read whole melodies and latents.
    places: dict[str, tuple[Any, Any]] = {"musical_position": (torch.zeros(ids.shape), free)}
    if config.musical_pitch:
        places["pitch"] = (torch.zeros(ids.shape), free)
    inputs = {"input_ids": (ids, free), "attention_mask": (torch.ones_like(ids), free), **places}
    graphs["encoder"] = Graph(EncoderGraph(model), inputs, ["latent_mean", "latent_log_variance"])
    inputs = {"latent": (example(BATCH, config.latent_size), batch)}
    if config.noise_probability:
        inputs["noise_level"] = (torch.full((BATCH, config.max_bars), 0.5), batch)
    if config.decoder_conditions:
        inputs["labels"] = label_inputs(model.bar_conditioner.condition_embedding)
    graphs["bar_conditioner"] = Graph(model.bar_conditioner, inputs, ["bar_conditions"])
    # What only some models have.
    if config.critic_size:
        inputs = {
            "latent": (example(BATCH, config.latent_size), batch),
            "bars": (torch.full((BATCH,), config.max_bars), batch),
        }
        graphs["critic"] = Graph(model.critic, inputs, ["score"])
    if config.num_prior_layers:
        shares = (BATCH, config.max_bars, config.latent_size // config.max_bars)
        inputs = {
            "noisy": (example(*shares), batch),
            "timestep": (torch.full((BATCH,), 0.5), batch),
            "known": (example(*shares), batch),
            "is_known": (torch.zeros(BATCH, config.max_bars, dtype=torch.bool), batch),
            "labels": label_inputs(model.prior),
        }
        graphs["prior"] = Graph(model.prior, inputs, ["velocity"])
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
        try:
            yield
        finally:
            logger.setLevel(level)


def write_graph(graph: Graph, path: Path) -> None:
    """Trace a module and write it as ONNX, weights included, without what only debuggers read.

    torch's exporter notes for each node the lines and folders of the program that it came from: those of this machine.
    """
    import onnx  # an extra; whether it is there is seen before

    from publishing.onnx.compact import compact

    # Lists and dicts are inputs of their own, one for each part.
    names: list[str] = []
    for name, value in graph.examples.items():
        if isinstance(value, list | dict):
            names += [f"{name}.{part}" for part in (range(len(value)) if isinstance(value, list) else value)]
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
    program = onnx.load(path)
    for part in (program, program.graph, *program.graph.node, *program.graph.value_info, *program.graph.initializer):
        del part.metadata_props[:]
    for node in program.graph.node:
        node.doc_string = ""
    compact(program)
    onnx.save(program, path)


def export(model: Any, folder: Path) -> None:
    """Write the graphs of a model, its configuration and tables, and what runs them.

    Args:
        model: A `MelodyVAEModel`; its attention is set to `eager`, whose operations ONNX has.
        folder: Where to; made if it is not there.

    Raises:
        ValueError: If the model does not know its tokens' grammar.
    """
    model.float().eval().set_attn_implementation("eager")
    config, tables = model.config, {"token_grammar": model._grammar().numpy()}
    if config.num_prior_layers:
        tables |= {name: getattr(model.prior, name).numpy() for name in ("mean", "scale")}
    if config.attributes:
        embedding = model._attribute_embedding()
        tables |= {name: getattr(embedding, name).numpy() for name in ("attribute_mean", "attribute_scale")}
    np.savez_compressed(folder / "onnx_tables.npz", **tables)
    # What runs the encoder leaves the tokens of repeated bars out itself.
    config.repeat_token_ids, repeat_token_ids = [], config.repeat_token_ids
    try:
        graphs = make_graphs(model)
        for name, graph in tqdm(graphs.items(), desc="Exporting", unit="graph"):
            write_graph(graph, folder / f"{name}.onnx")
    finally:
        config.repeat_token_ids = repeat_token_ids
    about = {name: getattr(config, name) for name in CONFIG_FIELDS}
    about |= {"max_length": model.generation_config.max_length, "num_parameters": model.num_parameters()}
    # By these a browser sees whether the graphs that it keeps are this model's.
    files = ["onnx_tables.npz", *(f"{name}.onnx" for name in graphs)]
    about["sha256"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    (folder / "onnx_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    (folder / RUNTIME.name).mkdir(exist_ok=True)
    for file in RUNTIME.glob("*.py"):
        shutil.copyfile(file, folder / RUNTIME.name / file.name)


def compare(model: Any, folder: Path) -> int:
    """Let torch and onnxruntime write the same melodies greedily; returns their number of tokens.

    Raises:
        UserError: If the two differ.
    """
    from publishing.onnx.onnx_melody_vae import OnnxMelodyVAE

    size, runtime = model.config.latent_size, OnnxMelodyVAE(folder)
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(NUM_COMPARED, size, generator=generator) if size else None
    if latent is None:
        expected = model.generate(bars=model.config.max_bars, do_sample=False)
        ids = runtime.generate(bars=model.config.max_bars)
    else:
        expected, ids = model.decode(latent), runtime.decode(latent.numpy())
    if not np.array_equal(ids, expected):
        raise UserError(f"{folder}: onnxruntime writes another melody than torch; do not use these files")
    return int((ids != model.config.pad_token_id).sum())


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
    make_folder(folder)
    try:
        export(model, folder)
    except ValueError as error:
        raise UserError(f"{name}: {first_line(error)}") from error
    count = compare(model, folder)
    print(f"Exported to {folder}; torch and onnxruntime wrote the same {count} tokens")
