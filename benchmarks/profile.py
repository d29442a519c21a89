"""Where the time goes of what users wait for: `python -m benchmarks.profile`, a part of `make benchmark`.

A stopwatch around the parts of the work, in processor time; what a part calls of another counts for the other. The work
is that of `benchmarks.speed`: a token of one melody and of many side by side, by torch and by onnxruntime, and a MIDI
file with one melody into ids.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tqdm import tqdm

from benchmarks.reports import rounded, versions
from benchmarks.speed_parts import FULL, SHORT, SpeedParts
from benchmarks.timing import Work, one_core
from command import check_output, machine, run_command, write_json

LIBRARIES = ("torch", "transformers", "miditok", "onnxruntime")
REST = "the rest"
Groups = Mapping[str, tuple[tuple[str, str], ...]]
"""Functions and methods of each part, with their modules, some of which are relative to the package of the work."""
TOKEN: Groups = {
    "attention": ((".decoders_melody_vae", "StepDecoder._attend"),),
    "feed-forward": ((".decoders_melody_vae", "StepDecoder._feed_forward"),),
    "decoder's other steps (embedding, norms, head)": ((".decoders_melody_vae", "StepDecoder._step"),),
    "grammar": (
        (".logits_process_melody_vae", "MelodyLogitsProcessor.__call__"),
        (".logits_process_melody_vae", "BarCountLogitsProcessor.__call__"),
    ),
    "choice of the token": ((".decoding_melody_vae", "TokenSampler.__call__"),),
    "latent (prior)": ((".prior_melody_vae", "LatentSamplingMixin.sample_latent"),),
}
ONNX_TOKEN: Groups = {
    "graphs": (("onnxruntime", "InferenceSession.run"),),
    "what the decoder's graph is given (cache, musical time)": ((".decoding", "StepDecoder.__call__"),),
    "grammar": ((".decoding", "allowed_scores"), (".grammar_state_melody_vae", "GrammarState.advance")),
    "choice of the token": ((".decoding", "draw_tokens"),),
    "latent (prior)": ((".latents", "LatentModel.sample_latent"),),
}
MIDI: Groups = {
    "parsing and repair": ((".tune_finding_melody_vae", "read_midi"),),
    "which voice is the tune": ((".tune_finding_melody_vae", "score_tracks"),),
    "grid and skyline": ((".tune_finding_melody_vae", "quantise"), (".tune_finding_melody_vae", "_lay_on_meters")),
    "lines (key, tempo, metre)": ((".tune_finding_melody_vae", "_find_tunes"),),
    "words": ((".processing_melody_vae", "line_to_words"), (".processing_melody_vae", "words_to_text")),
    "transformers' tokenizer": (("transformers.tokenization_utils_base", "PreTrainedTokenizerBase.__call__"),),
}


class Stopwatch:
    """Sums up processor seconds by part, each without what other parts do within it."""

    def __init__(self, groups: Groups):
        self.seconds = dict.fromkeys((*groups, REST), 0.0)
        self.running = [REST]
        self.since = time.process_time()

    def lap(self) -> None:
        """Give the time since the last lap to the innermost part that runs."""
        now = time.process_time()
        self.seconds[self.running[-1]] += now - self.since
        self.since = now

    def timed(self, group: str, function: Any) -> Any:
        """Wrap a function so that its time is a part's."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.lap()
            self.running.append(group)
            try:
                return function(*args, **kwargs)
            finally:
                self.lap()
                self.running.pop()

        return run


@contextmanager
def stopwatch(of: Any, groups: Groups) -> Iterator[Stopwatch]:
    """Time the parts of the code that an object comes from, wherever that was loaded from."""
    package, watch = type(of).__module__.rsplit(".", 1)[0], Stopwatch(groups)
    with ExitStack() as stack:
        for group, functions in groups.items():
            for module, path in functions:
                place: Any = import_module(module, package)
                *owners, name = path.split(".")
                for owner in owners:
                    place = getattr(place, owner)
                stack.enter_context(patch.object(place, name, watch.timed(group, getattr(place, name))))
        watch.lap()
        watch.seconds = dict.fromkeys(watch.seconds, 0.0)
        yield watch
        watch.lap()


def profile(of: Any, groups: Groups, work: Work, repeats: int) -> dict[str, float]:
    """Return the milliseconds a unit that each part takes, in the run that took least.

    Args:
        of: A model, runtime or processor, whose package the parts are in.
        groups: The parts.
        work: Uses it, and returns how many units that were.
        repeats: Runs; one more comes before, untimed.
    """
    work()
    best: dict[str, float] = {}
    for _ in range(repeats):
        with stopwatch(of, groups) as watch:
            units = work()
        found = {group: 1e3 * seconds / units for group, seconds in watch.seconds.items()}
        if not best or sum(found.values()) < sum(best.values()):
            best = found
    return best


def profiles(parts: SpeedParts) -> dict[str, dict[str, float]]:
    """Return the milliseconds of each part of the work, by what it is."""
    many, repeats = parts.sizes.melodies, parts.sizes.few_repeats
    works: dict[str, tuple[Any, Groups, Work]] = {
        "a token of one melody": (parts.model, TOKEN, parts.sampling(1)),
        f"a token of {many} melodies": (parts.model, TOKEN, parts.sampling(many)),
    }
    if parts.with_onnx:
        works |= {
            "a token of one melody, by onnxruntime": (parts.runtime, ONNX_TOKEN, parts.sampling_by_onnx(1)),
            f"a token of {many} melodies, by onnxruntime": (parts.runtime, ONNX_TOKEN, parts.sampling_by_onnx(many)),
        }
    works["a MIDI file into ids"] = (parts.processor, MIDI, parts.reading())
    return {
        name: profile(of, groups, work, repeats)
        for name, (of, groups, work) in tqdm(works.items(), desc="profiles", unit=" profiles")
    }


def measure(options: argparse.Namespace) -> None:
    """Measure on one core, and write the report."""
    check_output(options.output)
    torch.set_num_threads(1)
    with one_core():
        found = profiles(SpeedParts(SHORT if options.short else FULL, with_onnx=not options.without_onnx))
    report = {"milliseconds": rounded(found), "machine": machine(), "versions": versions(LIBRARIES)}
    write_json(report, options.output)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("results/profile.json"), help="the report to write")
    parser.add_argument("--short", action="store_true", help="small sizes, which take a minute or two")
    parser.add_argument("--without_onnx", action="store_true", help="leave the exported model out")
    return run_command(measure, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
