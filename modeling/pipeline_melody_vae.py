"""The pipeline "melody-generation": MIDI in, MIDI out."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from torch import nn
from transformers import Pipeline

from .melody_line_melody_vae import TEMPO_CLASSES, tempo_class

TASK = "melody-generation"
MODES = ("sample", "reconstruct", "vary", "shift", "infill", "continue")
READ = ("input_ids", "attention_mask")
NEEDS_LATENT = ("reconstruct", "vary", "shift")


def custom_pipelines() -> dict[str, dict[str, Any]]:
    """Make what a model's configuration has to say, so that `pipeline(model=...)` finds this file.

    Always a new one: `pipeline` puts classes in place of the names, which cannot be saved.
    """
    return {TASK: {"impl": "pipeline_melody_vae.MelodyGenerationPipeline", "pt": ["AutoModel"]}}


class MelodyGenerationPipeline(Pipeline):
    """Write melodies: `pipeline("melody-generation", model=path, trust_remote_code=True)`.

    ```python
    melodies = pipe(4, bars=8, seed=1)  # from nothing
    melodies = pipe("tune.mid")  # through the latent and back
    melodies = pipe("tune.mid", mode="vary", num=3, similarity=0.7)
    melodies = pipe("tune.mid", mode="shift", attribute="note_density", amount=-1.0)
    melodies = pipe("tune.mid", mode="infill", fill=[4, 5], num=3)
    melodies = pipe("tune.mid", mode="continue", primer_bars=4)
    Path("new.mid").write_bytes(melodies[0]["midi"])
    ```
    """

    model: Any  # a MelodyVAEModel, whose file imports this one
    processor: Any  # a MelodyProcessor
    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.processor.check_fingerprint(self.model.config.fingerprint)

    def __call__(self, inputs: Any = None, **kwargs) -> Any:
        """Write melodies.

        Args:
            inputs: A number of melodies to sample (1 by default), or a melody: the path or the bytes of a MIDI file,
                a score or a line of the data set; or a list of melodies, done in one batch. Generators and datasets
                are streamed.
            kwargs: Any of these, here or when the pipeline is made:
                mode (`str`): `sample`, `reconstruct`, `vary`, `shift`, `infill` or `continue`; `sample` without a
                    melody and `reconstruct` with one by default.
                num (`int`): Variations, infills or continuations of each melody, 1 by default.
                first_bar (`int`): Where the melody is cut, 0 by default.
                bars (`int`): Bars to read of a melody, or to sample, or to reach in a continuation; as many as the
                    model holds by default.
                primer_bars (`int`): Bars of the melody that a continuation keeps, 4 by default.
                temperature (`float`): Of the softmax over tokens. 1 by default where samples are drawn;
                    reconstructions, variations and shifts are greedy unless it is given.
                similarity (`float`): Of variations, from 0 to 1, 0.8 by default.
                attribute (`str`): What a shift changes, one of `config.attributes`.
                amount (`float`): By how much, in standard deviations of the training data, 1 by default.
                fill (`list[int]`): Bars that an infill writes anew, from 0.
                key, genre, time_signature, note_density and the like: What samples, infills and continuations shall be
                    like; any of the model's `config.conditions` and `config.attributes`, or all in a dict, conditions;
                    see `MelodyVAEModel.sample`.
                guidance_scale (`float`): Of classifier-free guidance; 1, none, by default.
                seed (`int`): Makes the result repeatable; the global random state is left alone.
                tempo (`float` or `str`): Quarter notes per minute, or `slow`, `medium` or `fast`, of the score and, as
                    far as the model knows tempos, of what is written; the melody's own by default, or 120.
                track (`int`): Of a MIDI file, that has the tune; the likeliest by default.
                program (`int`): General MIDI program; the melody's own, or 0.
                Others are passed to `generate`.

        Returns:
            A list of melodies; of a list of inputs, one such list for each. A melody is a dict: `midi`, the bytes of
            a MIDI file, and `line`, its notes with the columns of the data set, `tempo` and `program`; and where it
            comes from a MIDI file, `source`, a sentence on the track and the bars that were read and how sure that is.

        Raises:
            ValueError: If an input is no melody, or the mode is unknown or does not fit it.
        """
        if isinstance(inputs, list | tuple):
            if not inputs:
                return []
            if kwargs.pop("batch_size", None):
                raise ValueError("batch_size: a list is one batch; give shorter lists")
            own = (self._preprocess_params, self._forward_params, self._postprocess_params)
            given = self._sanitize_parameters(**kwargs)
            return self.run_single(list(inputs), *({**a, **b} for a, b in zip(own, given, strict=True)))
        return super().__call__(1 if inputs is None else inputs, **kwargs)

    def _sanitize_parameters(self, **parameters) -> tuple[dict, dict, dict]:
        """Give each step its parameters; what no step knows is for `generate`."""

        def take(*names: str) -> dict:
            return {name: parameters.pop(name) for name in names if name in parameters}

        read = take("mode", "num", "first_bar", "bars", "primer_bars", "track")
        written = take("tempo", "program")
        if "tempo" in written:
            parameters["tempo"] = tempo = written["tempo"]
            if isinstance(tempo, str) and tempo not in TEMPO_CLASSES:
                raise ValueError(f"tempo={tempo!r} is neither a number nor one of {', '.join(TEMPO_CLASSES)}")
        return read, parameters, written

    def preprocess(
        self,
        inputs: Any,
        mode: str | None = None,
        num: int = 1,
        first_bar: int = 0,
        bars: int | None = None,
        primer_bars: int = 4,
        track: int | None = None,
    ) -> dict[str, Any]:
        """Read melodies and cut them to the bars that the mode needs."""
        is_count = isinstance(inputs, int)
        # Each mode needs certain inputs, and a model that can do it.
        mode = mode or ("sample" if is_count else "reconstruct")
        if mode not in MODES:
            raise ValueError(f"mode={mode!r} is none of {', '.join(MODES)}")
        if is_count != (mode == "sample"):
            needed = "the number of melodies" if mode == "sample" else "a melody (path, bytes, score or line)"
            raise ValueError(f"mode={mode!r} needs {needed}, not {type(inputs).__name__}")
        num = inputs if is_count else num
        if num < 1:
            raise ValueError(f"{num} melodies: there must be 1 or more")
        if mode in NEEDS_LATENT and not self.model.config.latent_size:
            raise ValueError(
                f"mode={mode!r}: this model has no latent (latent_size=0); it samples, fills and continues"
            )
        longest = self.processor.max_bars
        if bars is not None and (bars < 1 or (bars > longest and not is_count)):
            raise ValueError(f"bars={bars}: this model reads 1 to {longest} at a time; samples can be longer")
        prepared = {"mode": mode, "num": num, "bars": bars or longest, "lines": None}
        if mode == "sample":
            return prepared
        # Read the melodies, and cut them to a primer or to the bars of a latent.
        melodies = inputs if isinstance(inputs, list) else [inputs]
        lines = [each if isinstance(each, dict) else self._read(each, track) for each in melodies]
        is_primer = mode == "continue"
        if is_primer and not 1 <= primer_bars < prepared["bars"]:
            raise ValueError(f"primer_bars={primer_bars}: must leave something to write of bars={prepared['bars']}")
        batch = self.processor(
            lines=lines,
            first_bar=first_bar,
            bars=primer_bars if is_primer else prepared["bars"],
            primer=is_primer,
            return_tensors="pt",
        )
        return {**prepared, **batch, "lines": lines, "is_list": isinstance(inputs, list)}

    def _read(self, melody: Any, track: int | None) -> dict:
        """Find the tune of a MIDI file, and keep in words what was found."""
        (line,) = self.processor.read(str(melody) if isinstance(melody, PathLike) else melody, track)
        return {**line, "source": self.processor.describe(line)}

    def _forward(
        self,
        model_inputs: dict[str, Any],
        seed: int | None = None,
        temperature: float | None = None,
        similarity: float = 0.8,
        attribute: str | None = None,
        amount: float = 1.0,
        fill: Sequence[int] = (),
        conditions: dict[str, Any] | None = None,
        guidance_scale: float = 1.0,
        tempo: float | str | None = None,
        **generate_kwargs,
    ) -> dict[str, Any]:
        """Write ids `(B * num, T)`, those of each melody in a row."""
        model, mode, num = self.model, model_inputs["mode"], model_inputs["num"]
        # `tempo` is how fast it is played too, and a time signature what the grammar enforces.
        known = {*(model.config.conditions or {}), *(model.config.attributes or [])} - {"tempo", "time_signature"}
        named = {name: generate_kwargs.pop(name) for name in known & generate_kwargs.keys()}
        conditions = {**named, **(conditions or {})}
        pace = tempo if tempo is None or isinstance(tempo, str) else tempo_class(tempo)
        # A tempo's class is a condition, where the model knows it.
        if mode not in NEEDS_LATENT and pace in (model.config.conditions or {}).get("tempo", ()):
            conditions.setdefault("tempo", pace)
        options = {"seed": seed, **generate_kwargs}
        # Modes through the latent decode; the others write what is not there yet.
        if mode in NEEDS_LATENT:
            if conditions:
                raise ValueError(f"conditions: mode={mode!r} has none; sample, infill and continue do")
            if temperature is not None:
                options |= {"do_sample": True, "top_k": 0, "top_p": model.config.sampling_top_p}
                options["temperature"] = temperature
            ids = self._decode(model_inputs, similarity, attribute, amount, options)
        else:
            options |= {"temperature": 1.0 if temperature is None else temperature}
            options |= {"conditions": conditions, "guidance_scale": guidance_scale}
            if mode == "sample":
                ids = model.sample(num, bars=model_inputs["bars"], **options)
            else:
                batch = {name: model_inputs[name].repeat_interleave(num, dim=0) for name in READ}
                if mode == "infill":
                    ids = model.infill(**batch, bars=fill, **options)
                else:
                    ids = model.continue_melody(**batch, bars=model_inputs["bars"], **options)
        asked = conditions.get("tempo")
        return {
            "ids": ids,
            "num": num,
            "lines": model_inputs["lines"],
            "is_list": model_inputs.get("is_list", False),
            "tempos": [asked] * len(ids) if asked is None or isinstance(asked, str) else asked,
        }

    def _decode(
        self, model_inputs: dict[str, Any], similarity: float, attribute: str | None, amount: float, options: dict
    ) -> torch.Tensor:
        """Write melodies anew from their latents, or from latents near by."""
        model, num, mode = self.model, model_inputs["num"], model_inputs["mode"]
        latent = model.encode(model_inputs["input_ids"], model_inputs["attention_mask"]).latent_mean
        latent = model.refine(latent, model_inputs["input_ids"])
        bars = model.is_bar_token[model_inputs["input_ids"]].sum(-1)  # (B,)
        if mode == "vary":
            variations = [
                model.vary(melody, n=num, similarity=similarity, bars=int(count), **options)
                for melody, count in zip(latent, bars, strict=True)
            ]
            width, pad = max(ids.shape[1] for ids in variations), model.config.pad_token_id
            return torch.cat([nn.functional.pad(ids, (0, width - ids.shape[1]), value=pad) for ids in variations])
        if mode == "shift":
            latent = model.shift(latent, str(attribute), amount, bars=bars)
        latent, bars = (part.repeat_interleave(num, dim=0) for part in (latent, bars))
        return model.decode(latent, bars=bars, **options)

    def postprocess(
        self, model_outputs: dict[str, Any], tempo: float | str | None = None, program: int | None = None
    ) -> list:
        """Write ids as MIDI files and lines."""
        num, sources = model_outputs["num"], model_outputs["lines"]
        melodies = []
        for index, ids in enumerate(model_outputs["ids"]):
            source = sources[index // num] if sources else {}
            asked = model_outputs["tempos"][index]
            own = asked or source.get("tempo", 120.0)
            sounding = own if tempo is None else tempo
            sound = {
                "tempo": float(TEMPO_CLASSES[sounding][-1] if isinstance(sounding, str) else sounding),
                "program": int(source.get("program", 0) if program is None else program),
            }
            (midi,) = self.processor.to_midi_bytes(ids[None], **sound)
            (line,) = self.processor.to_lines(ids[None])
            said = {"source": source["source"]} if "source" in source else {}
            melodies.append({"midi": midi, "line": {**line, **sound}, **said})
        if model_outputs["is_list"]:
            return [melodies[start : start + num] for start in range(0, len(melodies), num)]
        return melodies

    def save_pretrained(self, save_directory: str | PathLike, **kwargs) -> None:
        """Save the model and, unlike the base class, the processor."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)
