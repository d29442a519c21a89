"""Run an exported melody VAE with numpy and onnxruntime alone; lies beside the graphs that `export_onnx.py` writes.

```python
model = OnnxMelodyVAE("onnx")
mean, log_variance = model.encode(input_ids)
ids = model.generate(mean, bars=16)  # greedy
```

The ids are those that `MelodyVAEModel.decode` gives without the grammar of `logits_process_melody_vae.py`,
which is not exported: scales, ranges and templates cannot be asked for here.

Dimension key: B batch, T tokens, P cached tokens, N bars, K decoder layers, H heads, D head size, C hidden size,
Z latent size, V vocabulary.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

NO_ONSET = 1 << 14  # more grid steps than a bar has


class OnnxMelodyVAE:
    """The three graphs of a melody VAE, of which a plain Music Transformer has the last only.

    encoder.onnx: `input_ids`, `attention_mask`, `musical_position` `(B, T)` to `latent_mean`, `latent_log_variance`
    `(B, Z)`.
    bar_conditioner.onnx: `latent` `(B, Z)` to `bar_conditions` `(B, N + 1, K, C)`.
    decoder.onnx: `input_ids`, `musical_position` `(B, T)`, `attention_mask` `(B, P + T)`, `bar_conditions` and for
    each layer `past_key_values.I.key` and `.value` `(B, H, P, D)`, to `logits` `(B, T, V)` and for each layer
    `present.I.key` and `.value` `(B, H, P + T, D)`. P is 0 at the start.

    `musical_position` is what [`OnnxMelodyVAE.musical_position`] returns. Models with `musical_pitch` take `pitch`
    `(B, T)` in both, models with `previous_token` `previous_ids` `(B, T)` in the decoder; methods of these names return
    them.

    Args:
        folder: What `export_onnx.py` wrote.
        threads: Of onnxruntime; 0 leaves it the choice.

    Raises:
        FileNotFoundError: If the folder lacks a file.
    """

    def __init__(self, folder: str | Path, threads: int = 0):
        self.folder = Path(folder)
        self.config: dict[str, Any] = json.loads((self.folder / "onnx_config.json").read_text(encoding="utf-8"))
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.decoder = self._session("decoder")
        if self.config["latent_size"]:
            self.encoder = self._session("encoder")
            self.bar_conditioner = self._session("bar_conditioner")
        self.is_bar_token = np.zeros(self.config["vocab_size"], dtype=bool)
        self.is_bar_token[self.config["bar_token_ids"]] = True

    def _session(self, name: str) -> onnxruntime.InferenceSession:
        path = self.folder / f"{name}.onnx"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; write it with export_onnx.py")
        return onnxruntime.InferenceSession(path, self.options, providers=["CPUExecutionProvider"])

    def musical_position(self, input_ids: np.ndarray) -> np.ndarray:
        """Where in the music each token is, as `MelodyVAEModel.musical_position` has it, `(B, T)`, in bars."""
        bars = self.is_bar_token[input_ids].cumsum(-1) - 1
        if not self.config["musical_time"]:
            return bars.astype(np.float32)
        onset, steps = self._columns(input_ids, "last_onset", "bar_steps")
        signature = np.maximum.accumulate(np.where(steps > 0, np.arange(input_ids.shape[1]), 0), axis=-1)
        reached = np.maximum.accumulate(bars * NO_ONSET + onset + 1, axis=-1) % NO_ONSET
        part = np.maximum(reached - 1, 0) / np.maximum(np.take_along_axis(steps, signature, axis=-1), 1)
        return (bars + np.minimum(part, 0.999)).astype(np.float32)

    def musical_pitch(self, input_ids: np.ndarray) -> np.ndarray:
        """Pitch of the latest note at each token, as `MelodyVAEModel.musical_pitch` has it, `(B, T)`, in semitones."""
        lowest, highest = self._columns(input_ids, "lowest_pitch", "highest_pitch")
        latest = np.maximum.accumulate(np.where(highest > 0, np.arange(input_ids.shape[1]), 0), axis=-1)
        pitch = np.where(highest > 0, (lowest + highest) / 2, 0.0).astype(np.float32)
        return np.take_along_axis(pitch, latest, axis=-1)

    def _columns(self, input_ids: np.ndarray, *names: str) -> list[np.ndarray]:
        return [np.asarray(self.config[name])[input_ids] for name in names]

    def previous_ids(self, input_ids: np.ndarray) -> np.ndarray:
        """The token before each, `(B, T)`; where there is none, or padding, the token itself."""
        previous = np.concatenate([input_ids[:, :1], input_ids[:, :-1]], axis=1)
        return np.where(previous == self.config["pad_token_id"], input_ids, previous)

    def encode(self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Encode melodies `(B, T)`; returns the posterior's mean and log-variance, `(B, Z)` each.

        Raises:
            ValueError: If the model has no latent, or a melody is too long for it.
        """
        if not self.config["latent_size"]:
            raise ValueError("latent_size=0: this model is a plain Music Transformer and has no latent to encode into")
        if (longest := int(self.is_bar_token[input_ids].sum(-1).max())) > self.config["max_bars"]:
            raise ValueError(f"a melody of {longest} bars does not fit a latent of {self.config['max_bars']}")
        if attention_mask is None:
            attention_mask = np.ones_like(input_ids)
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        feeds["musical_position"] = self.musical_position(input_ids)
        if self.config["musical_pitch"]:
            feeds["pitch"] = self.musical_pitch(input_ids)
        mean, log_variance = self.encoder.run(None, feeds)
        return mean, log_variance  # pyright: ignore[reportReturnType] - onnxruntime can return other things than arrays

    def generate(
        self,
        latent: np.ndarray | None = None,
        input_ids: np.ndarray | None = None,
        attention_mask: np.ndarray | None = None,
        bars: int | np.ndarray | None = None,
        max_length: int | None = None,
    ) -> np.ndarray:
        """Write melodies greedily.

        Args:
            latent: `(B, Z)`; needed unless the model has none.
            input_ids: `(B, T)` beginnings of the melodies, padded on the left; the start token by default.
            attention_mask: `(B, T)`, 0 at padding.
            bars: Bars that each melody shall have, a number or `(B,)`; the model decides by default.
            max_length: Tokens to stop at, the beginning's included.

        Returns:
            `(B, T)` ids, padded at the end.

        Raises:
            ValueError: If there is a latent too much or none.
        """
        config, feeds = self.config, {}
        if (latent is None) == bool(config["latent_size"]):
            raise ValueError(f"latent_size={config['latent_size']}, and {'no' if latent is None else 'a'} latent given")
        if latent is not None:
            feeds["bar_conditions"] = self.bar_conditioner.run(None, {"latent": latent.astype(np.float32)})[0]
        if input_ids is None:
            input_ids = np.full((1 if latent is None else len(latent), 1), config["bos_token_id"])
        ids = input_ids.astype(np.int64)
        mask = np.ones_like(ids) if attention_mask is None else attention_mask.astype(np.int64)
        cache_names = [each.name.replace("present", "past_key_values") for each in self.decoder.get_outputs()[1:]]
        empty = np.zeros((len(ids), config["num_attention_heads"], 0, config["head_size"]), np.float32)
        cache: list[Any] = [empty] * len(cache_names)
        decoder_inputs = {each.name for each in self.decoder.get_inputs()}  # one that is never read is left out
        counts = None if bars is None else np.broadcast_to(bars, len(ids))
        is_done, past = np.zeros(len(ids), dtype=bool), 0
        while ids.shape[1] < (max_length or config["max_length"]) and not is_done.all():
            feeds |= {"input_ids": ids[:, past:], "attention_mask": mask, **dict(zip(cache_names, cache, strict=True))}
            if "musical_position" in decoder_inputs:
                feeds["musical_position"] = self.musical_position(ids)[:, past:]
            if config["musical_pitch"]:
                feeds["pitch"] = self.musical_pitch(ids)[:, past:]
            if config["previous_token"]:
                feeds["previous_ids"] = self.previous_ids(ids)[:, past:]
            logits, *cache = self.decoder.run(None, feeds)
            scores = np.asarray(logits)[:, -1]
            if counts is not None:
                scores = self._keep_bar_count(ids, scores, counts)
            new = np.where(is_done, config["pad_token_id"], scores.argmax(-1))[:, None]
            past = ids.shape[1]
            ids = np.concatenate([ids, new], axis=1)
            mask = np.concatenate([mask, np.ones_like(new)], axis=1)
            is_done |= new[:, 0] == config["eos_token_id"]
        return ids

    def _keep_bar_count(self, ids: np.ndarray, scores: np.ndarray, bars: np.ndarray) -> np.ndarray:
        """Do as the model's `BarCountLogitsProcessor`: a bar's end leads on to what the number of bars calls for."""
        opens_bar = self.is_bar_token[ids]  # (B, T)
        begun = opens_bar.sum(-1)
        is_last = (begun >= bars)[:, None]
        end = scores[:, [self.config["eos_token_id"]]]
        new_bar = np.logaddexp.reduce(scores[:, self.is_bar_token], axis=-1, keepdims=True)
        bar_ends = np.logaddexp(end, new_bar)
        length = ids.shape[1] - (opens_bar * np.arange(1, ids.shape[1] + 1)).max(-1)
        has_to_end = (length >= self.config["max_tokens_per_bar"] - 1) & (begun > 0)
        within = np.where(has_to_end[:, None], -np.inf, scores)
        kept = np.where(self.is_bar_token, np.where(is_last, -np.inf, scores + (bar_ends - new_bar)), within)
        kept[:, self.config["eos_token_id"]] = np.where(is_last, bar_ends, -np.inf)[:, 0]
        return kept
