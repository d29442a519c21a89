"""Write what an exported model does, for `web/tests` to compare: `python -m publishing.onnx.golden --model DIR`.

`DIR` is a folder of `export_onnx.py`; `golden.json` is put beside the graphs.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from command import run_command
from publishing.onnx.onnx_melody_vae import OnnxMelodyVAE
from publishing.onnx.onnx_melody_vae.decoding import draw_tokens
from publishing.onnx.onnx_melody_vae.grammar_state_melody_vae import GrammarState, Wanted
from publishing.onnx.onnx_melody_vae.latents import make_generators
from publishing.onnx.onnx_melody_vae.melody_line_melody_vae import ATTRIBUTES, key_of
from publishing.onnx.onnx_melody_vae.token_grammar_melody_vae import scale_mask

NUM_MELODIES = 100
NUM_STATES = 10_000
MOST_TOKENS = 64  # of a melody that is walked through the grammar
NUM_DRAWS = 500
SEEDS = (0, 1, 7, 2**32, 2**53 - 1)


def trimmed(runtime: OnnxMelodyVAE, ids: np.ndarray) -> list[list[int]]:
    """Write ids `(B, T)` as lists without padding."""
    return [[token for token in row if token != runtime.config["pad_token_id"]] for row in ids.tolist()]


def random_numbers() -> list[dict[str, Any]]:
    """Draw what a generator of each seed gives."""
    found = []
    for seed in SEEDS:
        *_, generator = make_generators(3, seed)
        found.append(
            {
                "seed": seed,
                "random": [generator.random() for _ in range(3)],
                "float32": [float(generator.random(dtype=np.float32)) for _ in range(3)],
                "normal": generator.standard_normal(2000, dtype=np.float32).tolist(),
            }
        )
    return found


def greedy(runtime: OnnxMelodyVAE, draw: random.Random) -> dict[str, Any]:
    """Decode latents greedily, and encode what came out."""
    size, most = runtime.config["latent_size"], runtime.config["max_bars"]
    latent = np.random.default_rng(0).standard_normal((NUM_MELODIES, size), dtype=np.float32)
    options = {  # so that a model that has learned few melodies writes different ones
        "bars": [draw.randint(1, most) for _ in latent],
        "scale": [draw.choice([None, "D dorian", "Bb major", "E blues"]) for _ in latent],
        "lowest_pitch": [draw.randint(48, 64) for _ in latent],
        "time_signature": [draw.choice([None, "3/4", "6/8"]) for _ in latent],
    }
    ids = runtime.decode(latent, **options)
    mean, log_variance = runtime.encode(ids)
    lines = runtime.read_lines(ids)
    return {
        "latents": latent.tolist(),
        "options": options,
        "ids": trimmed(runtime, ids),
        "latent_mean": mean.tolist(),
        "latent_log_variance": log_variance.tolist(),
        "lines": lines,
        "keys": [key_of(line) for line in lines],
        "attributes": [[function(line) for function in ATTRIBUTES.values()] for line in lines],
    }


def operations(runtime: OnnxMelodyVAE, latents: np.ndarray, ids: np.ndarray) -> Iterator[dict[str, Any]]:
    """Do what can be done with melodies, with seeds.

    Args:
        runtime: The exported model.
        latents: `(3, Z)`.
        ids: `(3, T)` of melodies with fewer bars than a latent holds.
    """
    # What is asked for only where the model knows it.
    config, melodies = runtime.config, trimmed(runtime, ids)
    most = config["max_bars"]
    asked: dict[str, Any] = {"key": "D minor", "time_signature": "3/4"} if config["num_prior_layers"] else {}
    attributes = {"note_density": [1.0, None]} if config["num_prior_layers"] else {}
    choices: dict[str, dict[str, Any]] = {
        "chosen": {"n": 3, "seed": 11, "temperature": 2.0, "candidates": 3},
        "chosen in a key": {
            "n": 2,
            "seed": 12,
            "bars": [2, most],
            "candidates": 4,
            "conditions": {"key": ["D major", None]},
        },
    }
    # Sampling, in each way that it may be asked for.
    for name, options in {
        "plain": {"n": 3, "seed": 0},
        "hot": {"n": 2, "seed": 2, "temperature": [1.0, 2.5], "bars": [2, most], "top_p": 0.8},
        "asked": {"n": 2, "seed": 3, "bars": 4, "conditions": asked, "guidance_scale": 2.0 if asked else 1.0},
        "limited": {"n": 2, "seed": 4, "scale": "D dorian", "lowest_pitch": 57, "time_signature": ["6/8", None]},
        "measured": {"n": 2, "seed": 5, "conditions": attributes, "highest_pitch": 70},
        "long": {"n": 2, "seed": 6, "bars": 2 * most + 1},
        **(choices if config["critic_size"] else {}),
    }.items():
        found = runtime.sample(**options)
        yield {"name": f"sample {name}", "method": "sample", "options": options, "ids": trimmed(runtime, found)}
    # What starts from latents.
    for similarity in (0.3, 1.0):
        options = {"n": 3, "similarity": similarity, "seed": 7, "bars": 3}
        found = trimmed(runtime, runtime.vary(latents[0], **options))
        yield {"name": f"vary {similarity}", "method": "vary", "latents": 1, "options": options, "ids": found}
    for seed in (None, 8):
        options = {"steps": 5, "bars": most} | ({} if seed is None else {"seed": seed})
        found = trimmed(runtime, runtime.interpolate(latents[0], latents[1], **options))
        yield {"name": f"interpolate {seed}", "method": "interpolate", "latents": 2, "options": options, "ids": found}
    # What starts from melodies.
    for candidates in (1, 4):
        options = {"bars": [0], "seed": 9, "temperature": 2.0, "candidates": candidates}
        found = trimmed(runtime, runtime.infill(ids, **options))
        yield {
            "name": f"infill {candidates}",
            "method": "infill",
            "melodies": melodies,
            "options": options,
            "ids": found,
        }
    options = {"bars": [most, most - 1, most], "seed": 10}
    found = trimmed(runtime, runtime.continue_melody(ids, **options))
    yield {"name": "continue", "method": "continueMelody", "melodies": melodies, "options": options, "ids": found}
    found = trimmed(runtime, runtime.reconstruct(ids))
    yield {"name": "reconstruct", "method": "reconstruct", "melodies": melodies, "options": {}, "ids": found}


def draw_wanted(runtime: OnnxMelodyVAE, draw: random.Random) -> Wanted:
    """Draw what a melody is to be."""
    signatures = sorted({row[10] for row in runtime.table.rows if row[10]})
    number = draw.choice([0, *signatures])
    signature = (0, 0) if not number else runtime.table.time_signature("{}/{}".format(*divmod(number, 64)))
    pitches = draw.choice([(0xFFF, 0, 127), (scale_mask("D dorian"), 0, 127), (0xFFF, 60, 72)])
    bars = draw.randint(1, runtime.config["max_bars"])
    wanted = Wanted(bars, draw.random() < 0.3, signature, pitches, draw.choice([None, 1.0, 0.5]))
    if draw.random() < 0.4:
        latent = np.random.default_rng(draw.getrandbits(32)).standard_normal((1, runtime.config["latent_size"]))
        template = runtime.decode(latent.astype(np.float32), bars=bars)
        runtime._keep_template([wanted], template, [draw.randrange(bars)], True)
    return wanted


def walk_grammar(runtime: OnnxMelodyVAE, draw: random.Random) -> list[dict[str, Any]]:
    """Walk through the grammar at random; masks are bits, as hexadecimal numbers."""
    walks: list[dict[str, Any]] = []
    count, eos = 0, runtime.config["eos_token_id"]
    while count < NUM_STATES:
        wanted = draw_wanted(runtime, draw)
        state = GrammarState(runtime.table, wanted)
        state.advance(runtime.config["bos_token_id"])
        masks, flags = [], []
        while len(state.tokens) < MOST_TOKENS and count < NUM_STATES:
            is_primer = len(state.tokens) == 1
            offer = state.offer(is_primer)
            count += 1
            allowed = offer.allowed if offer.only is None else np.zeros_like(offer.allowed)
            masks.append(np.packbits(allowed).tobytes().hex())
            flags.append([int(offer.bar_may_end), int(offer.must_end), int(offer.may_end), offer.only, offer.next_kept])
            choices = np.flatnonzero(allowed).tolist()
            if offer.only is not None:
                token = offer.only
            elif offer.must_end or (offer.may_end and draw.random() < 0.1) or not choices:
                token = eos
            else:
                token = choices[draw.randrange(len(choices))] if offer.next_kept is None else offer.next_kept
            state.advance(token)
            if token == eos:
                break
        asked = {"bars": wanted.bars, "modelEnds": wanted.model_ends, "signature": wanted.signature}
        asked |= {"pitches": wanted.pitches, "maxRest": wanted.max_rest, "kept": sorted(wanted.kept.items())}
        walks.append({"wanted": asked, "tokens": state.tokens, "masks": masks, "flags": flags})
    return walks


def draws() -> dict[str, Any]:
    """Draw tokens of a distribution, with shares that are spread evenly: what counts of samples would be."""
    scores = np.random.default_rng(1).standard_normal((1, 97), dtype=np.float32) * 3
    share = (np.arange(NUM_DRAWS) + 0.5) / NUM_DRAWS
    tokens = {
        str(top_p): draw_tokens(scores.repeat(NUM_DRAWS, axis=0), share, top_p).tolist() for top_p in (0.3, 0.9, 1.0)
    }
    return {"scores": scores[0].tolist(), "shares": share.tolist(), "tokens": tokens}


def write_golden(folder: Path) -> None:
    """Write `golden.json` for the model in a folder."""
    draw, runtime = random.Random(0), OnnxMelodyVAE(folder, threads=1)
    about = greedy(runtime, draw)
    ids = runtime.decode(np.array(about["latents"][:3], np.float32), bars=[1, 2, 3])
    golden = {
        "random": random_numbers(),
        "greedy": about,
        "operations": list(operations(runtime, np.array(about["latents"], np.float32), ids)),
        "grammar": walk_grammar(runtime, draw),
        "draws": draws(),
    }
    (folder / "golden.json").write_text(json.dumps(golden), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Write what an exported model does, for web/tests to compare.")
    parser.add_argument("--model", required=True, metavar="DIR", type=Path, help="folder that export_onnx.py wrote")
    return run_command(write_golden, parser.parse_args(argv).model)


if __name__ == "__main__":
    sys.exit(main())
