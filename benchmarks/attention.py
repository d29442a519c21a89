"""Measure what relative attention costs: time of a training step, memory by length, and exactness.

(a) The seconds of a training step (forward, backward, AdamW) of the model at the size of the published run, against
    the same model with the relative term taken out. The two take turns, step by step, on whole batches and on batches
    padded as a batch of melodies is; what counts is the ratio, turn by turn, since both see the same machine.
(b) The memory that the forward and backward pass of one attention adds at its peak, each measurement in a process of
    its own (on Linux): ours, the same term as a bias of `scaled_dot_product_attention`, the textbook form, which looks
    up a vector for each pair of positions (L x L x D), and none.
(c) The largest difference to the textbook form written as a double loop, in single precision.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any
from unittest.mock import patch

import torch
from tqdm import tqdm
from transformers.cache_utils import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks.reports import report_to, rounded, versions
from command import UserError, machine
from modeling import MelodyVAEConfig, MelodyVAEModel
from modeling.relative_attention import QUERIES_PER_BLOCK, RelativeAttention

REPOSITORY = Path(__file__).parents[1]
MODEL = {  # the published run's
    "vocab_size": 2048,
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_attention_heads": 4,
    "num_encoder_layers": 2,
    "num_hidden_layers": 4,
    "latent_size": 512,
    "dropout": 0.0,
}
HEAD_SIZE = MODEL["hidden_size"] // MODEL["num_attention_heads"]
BAR_TOKENS = range(10, 20)
STEP_LENGTHS = (112, 144, 256)
MEMORY_LENGTHS = (512, 1024, 2048)
EXACT_LENGTHS = (1, 64, 65, 131)
PADDED_SHARE = 0.4  # of the length, at the end of the shortest melody in a padded batch
WARM_UP_STEPS = 3
WARM_UP_TOKENS = 2 * QUERIES_PER_BLOCK  # before memory is measured
TARGET_RATIO = 1.25
TARGET_DIFFERENCE = 1e-5
MIB = 1 << 20

FORMS = ("ours", "sdpa_with_bias", "textbook", "none")
KINDS = ("bidirectional", "causal")
NOTES = {
    "step": "quartiles of the ratios, turn by turn, of a step with the relative term to one without",
    "memory_mib": "what the resident set rises by, at its peak, over a forward and backward pass of one attention with "
    "one head, in single precision; sdpa_with_bias is the same term handed to scaled_dot_product_attention "
    "as a bias; one_tensor_ are the sizes of tensors",
    "exactness": "largest absolute difference; with_cache reads the sequence in pieces into a cache",
}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("results/attention.json"), help="the report to write")
    parser.add_argument("--repeats", type=int, default=30, help="turns for each length (default: 30)")
    parser.add_argument("--batch_size", type=int, default=16, help="melodies in a batch (default: 16)")
    parser.add_argument("--threads", type=int, default=2, help="threads that torch uses (default: 2)")
    parser.add_argument("--step_lengths", type=int, nargs="+", default=STEP_LENGTHS, help="tokens, for the time")
    parser.add_argument("--memory_lengths", type=int, nargs="+", default=MEMORY_LENGTHS, help="tokens, for the memory")
    # A measurement of memory starts this command again, in a process of its own; benchmarks.speed does so as well.
    parser.add_argument("--without_gradients", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory_of", nargs=3, metavar=("FORM", "KIND", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.repeats < 2:
        parser.error(f"--repeats must be at least 2, not {options.repeats}")
    for name in ("batch_size", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(options, name)}")
    for name in ("step_lengths", "memory_lengths"):
        if min(getattr(options, name)) < 2:
            parser.error(f"--{name} must be at least 2, not {min(getattr(options, name))}")
    return options


def attend_without_term(module, *tensors, position_bias, **kwargs):
    """Attend as any model does: `scaled_dot_product_attention` and no bias."""
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *tensors, **kwargs)


def attend_by_textbook(module, query, key, value, attention_mask, scaling, position_bias, **kwargs):
    """Attend by the textbook: E is looked up for each pair of positions, `(H, L, S, D)`."""
    length, num_keys = query.shape[2], key.shape[2]
    distances = torch.arange(num_keys) - torch.arange(length)[:, None]
    rows = distances.clamp(module.min_distance, module.max_distance) - module.min_distance
    embedding = module.distance_embedding[:, rows]  # (H, L, S, D)
    logits = (query @ key.transpose(2, 3) + torch.einsum("bhid,hijd->bhij", query, embedding)) * scaling
    if module.is_causal:
        logits = logits.masked_fill(distances > 0, torch.finfo(logits.dtype).min)
    return (logits.softmax(-1) @ value).transpose(1, 2), None


@contextmanager
def attention_form(form: str) -> Iterator[None]:
    """Let every relative attention be one of `FORMS`."""
    with ExitStack() as stack:
        if form != "ours":
            stack.enter_context(patch.object(RelativeAttention, "may_use_blocks", lambda *_: False))
        if form in ("textbook", "none"):
            attend = attend_by_textbook if form == "textbook" else attend_without_term
            stack.enter_context(patch.object(RelativeAttention, "position_bias", lambda *_: None))
            stack.enter_context(patch.object(ALL_ATTENTION_FUNCTIONS, "get_interface", lambda *_: attend))
        yield


def batch_of(length: int, size: int, is_padded: bool) -> dict[str, torch.Tensor]:
    """Make up a batch: random tokens, 16 bars, padding from none to `PADDED_SHARE` of the length."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(BAR_TOKENS.stop, MODEL["vocab_size"], (size, length), generator=generator)
    ids[:, :: length // 16 + 1] = BAR_TOKENS.start
    pads = torch.linspace(0, PADDED_SHARE * length, size).long() if is_padded else torch.zeros(size, dtype=torch.long)
    mask = (torch.arange(length) < length - pads[:, None]).long()
    ids = ids * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def quartiles(values: list[float]) -> dict[str, float]:
    """Return the quartiles of at least two values."""
    low, middle, high = quantiles(values, method="inclusive")
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


def measure_step(length: int, batch_size: int, is_padded: bool, repeats: int, bar: tqdm) -> dict[str, Any]:
    """Time training steps with and without the term, in turns."""
    torch.manual_seed(0)
    model = MelodyVAEModel(MelodyVAEConfig(**MODEL, bar_token_ids=list(BAR_TOKENS))).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = batch_of(length, batch_size, is_padded)
    seconds: dict[str, list[float]] = {"with_term": [], "without_term": []}
    for turn in range(WARM_UP_STEPS + repeats):
        names = list(seconds)
        for name in names[:: 1 if turn % 2 else -1]:  # neither is always first
            with attention_form("ours" if name == "with_term" else "none"):
                begin = time.perf_counter()
                model(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                seconds[name].append(time.perf_counter() - begin)
        bar.update()
    seconds = {name: values[WARM_UP_STEPS:] for name, values in seconds.items()}
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    medians = {name: quartiles(values)["median"] for name, values in seconds.items()}
    return {
        "tokens": length,
        "is_padded": is_padded,
        "seconds": {name: quartiles(values) for name, values in seconds.items()},
        "ratio": quartiles(ratios),
        "ratio_of_medians": medians["with_term"] / medians["without_term"],
    }


def make_attention(is_causal: bool, max_relative_distance: int, heads: int) -> RelativeAttention:
    """Make one attention with heads of the model's size, its weights large enough that each matters."""
    torch.manual_seed(0)
    sizes = {**MODEL, "hidden_size": heads * HEAD_SIZE, "num_attention_heads": heads}
    config = MelodyVAEConfig(**sizes, max_relative_distance=max_relative_distance)
    config._attn_implementation = "sdpa"
    attention = RelativeAttention(config, layer_idx=0, is_causal=is_causal)
    with torch.no_grad():
        for name, parameter in attention.named_parameters():
            parameter.normal_(std=0.3 if name == "distance_embedding" else 0.07)
    return attention


def resident_bytes(name: str) -> int:
    """Return what this process holds (VmRSS) or held at most (VmHWM), on Linux.

    getrusage's figure will not do: it begins at what the process held that started this one.
    """
    (line,) = (
        each
        for each in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        if each.startswith(f"{name}:")
    )
    return int(line.split()[1]) * 1024


def peak_mib_of(form: str, is_causal: bool, length: int, is_training: bool = True) -> float:
    """Return the memory that one pass adds, forward and in training backward; to be called in a fresh process.

    At inference the attention has all of the model's heads.
    """
    heads = 1 if is_training else MODEL["num_attention_heads"]
    attention = make_attention(is_causal, max_relative_distance=256, heads=heads)
    hidden_states = torch.randn(1, length, heads * HEAD_SIZE)

    def run(states: torch.Tensor) -> None:
        attended = attention(states).sum()
        if is_training:
            attended.backward()

    with attention_form(form), torch.set_grad_enabled(is_training):
        run(hidden_states[:, :WARM_UP_TOKENS])  # libraries that come with the first call
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the record of the peak begins here
        before = resident_bytes("VmRSS")
        run(hidden_states)
    return (resident_bytes("VmHWM") - before) / MIB


def measure_memory(length: int, threads: int, bar: tqdm) -> dict[str, Any]:
    """Measure the memory of each form at one length, each in a process of its own.

    Raises:
        UserError: if such a process fails; the textbook form may need more memory than there is.
    """
    found: dict[str, Any] = {
        "tokens": length,
        "one_tensor_l_l_d": length * length * HEAD_SIZE * 4 / MIB,
        "one_tensor_l_l": length * length * 4 / MIB,
        "one_tensor_l_d": length * HEAD_SIZE * 4 / MIB,
    }
    for kind in KINDS:
        found[kind] = {}
        for form in FORMS:
            command = [sys.executable, "-m", "benchmarks.attention", "--threads", str(threads)]
            command += ["--memory_of", form, kind, str(length)]
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=False)
            if done.returncode:
                why = (done.stderr.strip().splitlines() or ["no message; was there enough memory?"])[-1]
                raise UserError(f"memory of {form} at {length} tokens: exit code {done.returncode}, {why}")
            found[kind][form] = float(done.stdout)
            bar.update()
    return found


def by_double_loop(attention: RelativeAttention, hidden_states: torch.Tensor) -> torch.Tensor:
    """Attend from each query to each key with the one row of E that their distance names; `(B, L, C)` to the same."""
    batch, length, size = hidden_states.shape
    heads = attention.num_heads
    query, key, value = attention.qkv_proj(hidden_states).view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    attended = torch.zeros_like(query)  # (B, H, L, D)
    for i in range(length):
        logits = torch.full((batch, heads, length), -torch.inf)
        for j in range(i + 1 if attention.is_causal else length):
            distance = min(max(j - i, attention.min_distance), attention.max_distance)
            row = attention.distance_embedding[:, distance - attention.min_distance]
            logits[:, :, j] = (query[:, :, i] * (key[:, :, j] + row)).sum(-1) * attention.scaling
        attended[:, :, i] = (logits.softmax(-1)[..., None] * value).sum(2)
    return attention.o_proj(attended.transpose(1, 2).reshape(batch, length, size))


def in_pieces(attention: RelativeAttention, hidden_states: torch.Tensor) -> torch.Tensor:
    """Read a sequence in pieces of 1, 2, 4, ... tokens into a cache."""
    cache, pieces, past = DynamicCache(config=attention.config), [], 0
    while past < hidden_states.shape[1]:
        piece = hidden_states[:, past : 2 * past + 1]
        keys = torch.arange(past + piece.shape[1])
        mask = (keys <= keys[past:, None])[None, None]  # (1, 1, L, S)
        pieces.append(attention(piece, attention_mask=mask, cache=cache))
        past += piece.shape[1]
    return torch.cat(pieces, dim=1)


@torch.no_grad()
def measure_exactness(length: int, bar: tqdm) -> dict[str, Any]:
    """Compare with the double loop, with a limit to distances that counts; in training also block by block."""
    found: dict[str, Any] = {"tokens": length}
    for kind in KINDS:
        attention = make_attention(kind == "causal", max_relative_distance=max(2, length // 2), heads=4)
        hidden_states = torch.randn(2, length, MODEL["hidden_size"])
        expected = by_double_loop(attention, hidden_states)
        with torch.enable_grad():
            outputs = {"training": attention(hidden_states).detach()}
        outputs["inference"] = attention(hidden_states)
        if kind == "causal":
            outputs["with_cache"] = in_pieces(attention, hidden_states)
        found[kind] = {name: float((output - expected).abs().max()) for name, output in outputs.items()}
        found[kind]["largest_output"] = float(expected.abs().max())
        bar.update()
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything and return the report."""
    steps = 2 * len(options.step_lengths) * (WARM_UP_STEPS + options.repeats)
    processes = len(options.memory_lengths) * len(KINDS) * len(FORMS)
    with tqdm(total=steps + processes + len(EXACT_LENGTHS) * len(KINDS), unit="run", smoothing=0) as bar:
        exactness = [measure_exactness(length, bar) for length in EXACT_LENGTHS]
        memory = [measure_memory(length, options.threads, bar) for length in options.memory_lengths]
        step = [
            measure_step(length, options.batch_size, is_padded, options.repeats, bar)
            for length in options.step_lengths
            for is_padded in (False, True)
        ]
    # How far results lie from those in double precision.
    differences = [
        value
        for found in exactness
        for kind in KINDS
        for name, value in found[kind].items()
        if name != "largest_output"
    ]
    return {
        "model": MODEL,
        "batch_size": options.batch_size,
        "repeats": options.repeats,
        "threads": options.threads,
        "queries_per_block": QUERIES_PER_BLOCK,
        "step": step,
        "memory_mib": memory,
        "exactness": exactness,
        "worst_ratio": max(found["ratio"]["median"] for found in step),
        "largest_difference": max(differences),
        "targets": {"worst_ratio": TARGET_RATIO, "largest_difference": TARGET_DIFFERENCE},
        "notes": NOTES,
        "machine": machine(),
        "versions": versions(("torch", "transformers")),
    }


def summary(report: dict[str, Any]) -> str:
    """Put the main figures into lines."""
    lines = []
    for found in report["step"]:
        ratio, name = found["ratio"], f"{found['tokens']} tokens{', padded' * found['is_padded']}"
        spread = f"{ratio['lower_quartile']:.3f} to {ratio['upper_quartile']:.3f}"
        lines.append(f"{f'step, {name}':<28} {ratio['median']:>10.3f}   times a step without the term ({spread})")
    for found in report["memory_mib"]:
        for kind in KINDS:
            name = f"memory, {found['tokens']} {kind}"
            others = ", ".join(f"{form} {found[kind][form]:,.1f}" for form in FORMS[1:])
            lines.append(f"{name:<28} {found[kind]['ours']:>10.1f}   MiB ({others})")
    lines.append(f"{'largest difference':<28} {report['largest_difference']:>10.1e}   to the double loop")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 after one line about bad input."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    if options.memory_of:
        form, kind, length = options.memory_of
        print(peak_mib_of(form, kind == "causal", int(length), not options.without_gradients))
        return 0
    return report_to(options.output, lambda: rounded(measure(options)), summary)


if __name__ == "__main__":
    sys.exit(main())
