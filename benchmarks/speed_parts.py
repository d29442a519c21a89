"""What `benchmarks.speed` times: each part puts several ways of doing the same work side by side."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from symusic import Score
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.attention import attention_form, make_attention
from benchmarks.peers import LONGEST, generation, make_peers, matrix_rate, products
from benchmarks.timing import Work, take_turns
from command import UserError
from generation.loading import load_model
from publishing.onnx.export import export
from training.processes import is_bfloat16_emulated

REPOSITORY = Path(__file__).parents[1]
RELEASE = Path("release") / "melody-vae-16bar"

TORCH_IMPORTS = "import torch; from transformers import AutoModel, GenerationMixin, PreTrainedModel"
"""What any model of transformers that generates needs."""
COLD_STARTS = {
    "ours": "from transformers import AutoModel; "
    f"model = AutoModel.from_pretrained({str(RELEASE)!r}, trust_remote_code=True); "
    "model.sample(1, seed=0, candidates=1)",
    "its imports alone": TORCH_IMPORTS,
    "torch alone": "import torch",
    "transformers alone": "import transformers",
    "onnxruntime and numpy alone": "import numpy, onnxruntime",
}


@dataclass(frozen=True)
class Sizes:
    """How much work a turn is, and how many turns there are."""

    bars: int = 16
    melodies: int = 64
    many_melodies: int = 1000
    encoded: tuple[int, ...] = (16, 64, 256)
    encoded_alone: int = 128
    attended: int = 2048
    training: tuple[int, int] = (64, 160)
    growth_bars: tuple[int, ...] = (1, 4, 16, 64)
    growth_batch: tuple[int, ...] = (1, 4, 16, 64, 256)
    growth_length: tuple[int, ...] = (512, 1024, 2048, 4096)
    repeats: int = 5
    few_repeats: int = 2


FULL = Sizes()
SHORT = Sizes(
    bars=4,
    melodies=16,
    many_melodies=64,
    encoded=(16,),
    encoded_alone=16,
    attended=1024,
    training=(4, 64),
    growth_bars=(1, 4),
    growth_batch=(1, 4),
    growth_length=(128, 256),
    repeats=3,
    few_repeats=1,
)


def random_melodies(config: Any, size: int, length: int) -> torch.Tensor:
    """Draw tokens at random, `(size, length)`, in bars of equal length, no more of them than a latent holds."""
    special = {config.pad_token_id, config.bos_token_id, config.eos_token_id, config.mask_token_id}
    other = sorted(set(range(config.vocab_size)) - special - {*config.bar_token_ids, *config.repeat_token_ids})
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor(other)[torch.randint(len(other), (size, length), generator=generator)]
    ids[:, :: length // config.max_bars + 1] = config.bar_token_ids[0]
    return ids


class SpeedParts:
    """The model, its peers and what is timed of them.

    Args:
        sizes: Of the work.
        progress: Shows what runs.
        onnx: Folder that `export_onnx.py` wrote; by default the model is exported first.
        with_onnx: Whether the exported model is timed as well.
    """

    def __init__(self, sizes: Sizes, progress: tqdm | None = None, onnx: Path | None = None, with_onnx: bool = True):
        self.sizes, self.progress, self.onnx, self.with_onnx = sizes, progress, onnx, with_onnx
        self.processor, self.model = load_model(str(RELEASE))
        self.model.eval()

    @cached_property
    def peers(self) -> dict[str, Any]:
        """GPT-2 and Llama of the model's size."""
        return make_peers(self.model.config)

    @cached_property
    def runtime(self) -> Any:
        """The exported model on onnxruntime, with one thread."""
        from publishing.onnx.onnx_melody_vae import OnnxMelodyVAE

        if self.onnx is None:
            folder = Path(self.temporary.name)
            export(copy.deepcopy(self.model), folder)
            self.onnx = folder
        return OnnxMelodyVAE(self.onnx, threads=1)

    @cached_property
    def temporary(self) -> tempfile.TemporaryDirectory:
        """A folder that goes with this object."""
        return tempfile.TemporaryDirectory(prefix="melody-vae-benchmark-")

    @property
    def midi(self) -> list[bytes]:
        """The MIDI files of the release's samples, of one melody each."""
        paths = sorted((REPOSITORY / RELEASE / "samples").glob("*.mid"))
        if not paths:
            raise UserError(f"{RELEASE}/samples has no MIDI files; run publishing.release first")
        return [path.read_bytes() for path in paths]

    def turns(self, sides: Mapping[str, Work], repeats: int | None = None, **options: Any) -> dict[str, Any]:
        """Time sides in turns, see [`take_turns`]."""
        return take_turns(sides, repeats or self.sizes.repeats, self.progress, **options)

    def sampling(self, rows: int, bars: int | None = None) -> Work:
        """Return the work of sampling melodies; its units are tokens, the end of each melody among them."""

        def work() -> int:
            ids = self.model.sample(rows, seed=0, candidates=1, bars=bars or self.sizes.bars)
            return int(ids.ne(self.model.config.pad_token_id).sum()) - rows

        return work

    def sampling_by_onnx(self, rows: int) -> Work:
        """Return the same work of onnxruntime."""

        def work() -> int:
            ids = self.runtime.sample(rows, seed=0, candidates=1, bars=self.sizes.bars)
            return int((ids != self.model.config.pad_token_id).sum()) - rows

        return work

    def sample(self, rows: int, repeats: int) -> dict[str, Any]:
        """Sample melodies, let peers write as many tokens, and do a token's matrix products alone."""
        tokens = max(round(self.sampling(rows)() / rows), 1)
        sides = {"ours": self.sampling(rows)} | ({"ONNX": self.sampling_by_onnx(rows)} if self.with_onnx else {})
        sides |= {name: generation(peer, rows, tokens) for name, peer in self.peers.items()}
        return {
            "unit": "token",
            "melodies": rows,
            "tokens_per_melody": tokens,
            "sides": self.turns(sides | {"limit": products(self.model, rows, tokens)}, repeats),
        }

    def one(self) -> dict[str, Any]:
        """One melody."""
        return self.sample(1, self.sizes.repeats)

    def batch(self) -> dict[str, Any]:
        """Many melodies side by side."""
        return self.sample(self.sizes.melodies, self.sizes.few_repeats)

    def thousand(self) -> dict[str, Any]:
        """A thousand melodies in one call; GPT-2 writes as many as in `batch`."""
        count, rows = self.sizes.many_melodies, self.sizes.melodies
        tokens = max(round(self.sampling(rows)() / rows), 1)
        sides = {"ours": self.sampling(count), "GPT-2": generation(self.peers["GPT-2"], rows, tokens)}
        return {"unit": "token", "melodies": count, "sides": self.turns(sides, 1, warm_up=False)}

    def encode(self) -> dict[str, Any]:
        """Encode melodies one by one, and in batches as the processor pads them."""
        files, most = self.midi, max(self.sizes.encoded)

        def encoding(rows: int, count: int) -> Work:
            batches = []
            for first in range(0, count, rows):
                of_batch = [files[index % len(files)] for index in range(first, min(first + rows, count))]
                batches.append(self.processor(midi=of_batch, return_tensors="pt"))

            @torch.no_grad()
            def work() -> int:
                for batch in batches:
                    self.model.encode(**batch)
                return count

            return work

        alone = self.sizes.encoded_alone
        sides = {"one by one": encoding(1, alone)}
        sides |= {f"batches of {rows}": encoding(rows, max(rows, min(alone, most))) for rows in self.sizes.encoded}
        return {"unit": "melody", "sides": self.turns(sides)}

    def reading(self, read: Callable[[bytes], Any] | None = None) -> Work:
        """Return the work of reading MIDI files of one melody, by default into ids."""
        files, read = self.midi, read or (lambda content: self.processor(midi=content, return_tensors="pt"))

        def work() -> int:
            for content in files:
                read(content)
            return len(files)

        return work

    def midi_in(self) -> dict[str, Any]:
        """Read MIDI files of one melody: into ids, into MidiTok's base tokens, and parsing alone."""
        remi = self.processor.remi
        sides = {
            "ours": self.reading(),
            "MidiTok": self.reading(lambda content: remi(Score.from_midi(content))),
            "symusic, parsing alone": self.reading(Score.from_midi),
        }
        return {"unit": "file", "sides": self.turns(sides, 3 * self.sizes.repeats)}

    def attention(self) -> dict[str, Any]:
        """One attention layer without gradients, beside the same layer with plain `scaled_dot_product_attention`."""
        length = self.sizes.attended
        found: dict[str, Any] = {"unit": "pass", "tokens": length, "sides": {}}
        for kind in ("bidirectional", "causal"):
            layer = make_attention(kind == "causal", self.model.config.max_relative_distance, heads=4)
            states = torch.randn(1, length, layer.config.hidden_size)

            def attending(form: str, layer: Any = layer, states: torch.Tensor = states) -> Work:
                @torch.no_grad()
                def work() -> int:
                    with attention_form(form):
                        layer(states)
                    return 1

                return work

            turns = self.turns({"ours": attending("ours"), "plain": attending("none")})
            found["sides"] |= {f"{name}, {kind}": of_side for name, of_side in turns.items()}
        return found

    def memory(self) -> dict[str, Any]:
        """What such a pass adds to the memory, each in a process of its own."""
        command, length = [sys.executable, "-m", "benchmarks.attention", "--threads", "1"], self.sizes.attended
        mib = {}
        for kind in ("bidirectional", "causal"):
            for name, form in (("ours", "ours"), ("plain", "none")):
                of_pass = ["--without_gradients", "--memory_of", form, kind, str(length)]
                mib[f"{name}, {kind}"] = float(self._run([*command, *of_pass]).stdout)
        return {"unit": "pass", "tokens": length, "mib": mib}

    def cold_start(self) -> dict[str, Any]:
        """From the start of a process to the first melody, beside imports alone."""
        starts = COLD_STARTS | ({"ONNX": self._onnx_script()} if self.with_onnx else {})

        def starting(code: str) -> Work:
            def work() -> int:
                self._run([sys.executable, "-c", code])
                return 1

            return work

        sides = {name: starting(code) for name, code in starts.items()}
        return {"unit": "start", "sides": self.turns(sides, self.sizes.few_repeats)}

    def _onnx_script(self) -> str:
        """Write the program that samples a melody by onnxruntime, with what was exported."""
        assert self.runtime
        return (
            f"import sys; sys.path.insert(0, {str(self.onnx)!r}); from onnx_melody_vae import OnnxMelodyVAE; "
            f"OnnxMelodyVAE({str(self.onnx)!r}, threads=1).sample(1, seed=0, candidates=1)"
        )

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command by one thread, without the network, its modules compiled once.

        Raises:
            UserError: If it fails; with its last line.
        """
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment = {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, encoding="utf-8", check=False
        )
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{' '.join(command[:3])} ...: exit code {done.returncode}, {why}")
        return done

    def training(self) -> dict[str, Any]:
        """A training step (forward, backward, AdamW) in fp32 and bf16, beside peers' and the matrix-product rate.

        bf16 is left out where the processor emulates it, and a step takes minutes.
        """
        size, length = self.sizes.training
        ids = random_melodies(self.model.config, size, length)
        names = {"ours": self.model, **self.peers}

        def stepping(model: Any, dtype: torch.dtype) -> Work:
            model = copy.deepcopy(model).train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

            def work() -> int:
                with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                    loss = model(ids, labels=ids).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                return ids.numel()

            return work

        # Each side by its own optimiser, in turns.
        found: dict[str, Any] = {"unit": "token", "batch": [size, length], "sides": {}}
        precisions = {"fp32": torch.float32}
        if not is_bfloat16_emulated(torch.device("cpu")):
            precisions["bf16"] = torch.bfloat16
        for name, dtype in precisions.items():
            sides = {side: stepping(model, dtype) for side, model in names.items()}
            turns = self.turns(sides, self.sizes.few_repeats)
            rate = self.turns({"rate": matrix_rate(dtype)})["rate"]
            found["sides"] |= {f"{side}, {name}": of_side for side, of_side in turns.items()}
            found[f"matrix_gflops_per_second, {name}"] = 1 / rate["milliseconds"]  # a unit is a million operations
        # Operations are counted, and set beside the rate of bare products.
        with FlopCounterMode(display=False) as counter:
            stepping(self.model, torch.float32)()
        found["gflops_per_token"] = counter.get_total_flops() / ids.numel() / 1e9
        for name in precisions:
            done = found["gflops_per_token"] / found["sides"][f"ours, {name}"]["milliseconds"] * 1e3
            found[f"share_of_matrix_rate, {name}"] = done / found[f"matrix_gflops_per_second, {name}"]
        return found

    def growth_bars(self) -> dict[str, Any]:
        """One melody of more and more bars."""
        sides = {str(bars): self.sampling(1, bars) for bars in self.sizes.growth_bars}
        return {"unit": "token", "sides": self.turns(sides, self.sizes.few_repeats)}

    def growth_batch(self) -> dict[str, Any]:
        """More and more melodies side by side."""
        sides = {str(rows): self.sampling(rows) for rows in self.sizes.growth_batch}
        return {"unit": "token", "sides": self.turns(sides, 1)}

    def growth_length(self) -> dict[str, Any]:
        """A pass without gradients over longer and longer sequences, beside GPT-2's."""
        config, gpt2 = self.model.config, make_peers(self.model.config, LONGEST)["GPT-2"]
        latent = torch.zeros(1, config.latent_size)
        sides: dict[str, Work] = {}
        for length in self.sizes.growth_length:
            ids = random_melodies(config, 1, length)

            def reading(model: Any, ids: torch.Tensor = ids, **options: Any) -> Work:
                @torch.no_grad()
                def work() -> int:
                    model(ids, use_cache=False, **options)
                    return ids.numel()

                return work

            sides |= {f"ours, {length}": reading(self.model, latent=latent), f"GPT-2, {length}": reading(gpt2)}
        return {"unit": "token", "sides": self.turns(sides, self.sizes.few_repeats)}
