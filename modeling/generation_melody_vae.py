"""The one path on which melodies are written: `generate` and `decode`, and `vary`; the other operations join in here.

Latents come from `sample_latent`, ids from `generate`, random numbers from a generator for each melody.
Dimension key: B batch, T tokens, N bars, Z latent size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList

from .arguments_melody_vae import Generators, check_bars, check_ids, check_latent, draw_normal, make_generators
from .decoding_melody_vae import LOOP_OPTIONS, sample_with_generators
from .infilling_melody_vae import InfillingMixin
from .interpolation_melody_vae import InterpolationMixin, one_for_all, slerp
from .logits_process_melody_vae import BarCountLogitsProcessor, MelodyLogitsProcessor
from .note_editing_melody_vae import NoteEditingMixin
from .options_melody_vae import LONGEST_REST, Conditions, check_count, check_number, is_list
from .prior_melody_vae import FEWEST_ROWS, LatentSamplingMixin
from .reading_melody_vae import ReadingMixin
from .reconstruction_melody_vae import ReconstructionMixin
from .sampling_melody_vae import SamplingMixin
from .token_grammar_melody_vae import scale_mask


class MelodyVAEGenerationMixin(
    LatentSamplingMixin,
    SamplingMixin,
    InfillingMixin,
    NoteEditingMixin,
    InterpolationMixin,
    ReconstructionMixin,
    ReadingMixin,
):
    """Operations of [`MelodyVAEModel`], in terms of its `encode` and forward pass; all of them end in `generate`."""

    @torch.no_grad()
    def vary(
        self,
        latent: torch.Tensor,
        n: int = 4,
        similarity: float = 0.8,
        seed: int | None = None,
        generator: Generators | None = None,
        **generate_kwargs,
    ) -> torch.Tensor:
        """Decode variations of a melody.

        The latent is mixed with noise (Meng et al. 2022, arXiv:2108.01073), and the melody decoder, conditioned on the
        noise level, writes what it left open. In models without `config.noise_probability` the learned prior denoises
        the latent from there; without one it is mixed with noise on the great circle.

        Args:
            latent: `(Z,)` or `(1, Z)`.
            n: Number of variations.
            similarity: Share of the notes (F1) that a variation has in common with the melody, on average, where the
                model is calibrated (`config.variation_levels`); 1 gives the melody itself, 0 melodies that have nothing
                to do with it. The melody decoder is conditioned on the key and the attributes that the melody has.
            seed: Makes the result repeatable; the global random state is left alone.
            generator: Instead of a seed, one for each variation.
            generate_kwargs: As in [`generate`].

        Returns:
            `(n, T)` ids.

        Raises:
            ValueError: If `similarity` is not from 0 to 1, or there are not `n` generators.
        """
        n, similarity = check_count("n", n), check_number("similarity", similarity, 0, 1)
        latents = check_latent(latent, self.config.latent_size, 1).to(self.device, self.dtype).expand(n, -1)
        generator, options = make_generators(n, seed, generator), {}
        if n and similarity < 1:
            noise = draw_normal(latents, generator)
            if self.config.noise_probability:
                level = self._variation_level(similarity)
                options = self._sampling_options() | {"conditions": self._conditions_like(latents[:1], generate_kwargs)}
                options["noise_level"] = latents.new_full((n, self.config.max_bars), level)
                latents = self.bar_conditioner.add_noise(latents, options["noise_level"], noise)
            elif self.config.num_prior_layers:
                is_known = torch.zeros(n, self.config.max_bars, dtype=torch.bool, device=self.device)
                labels = self.prior.null_labels(n)
                latents = self._complete(latents, is_known, labels, begin=similarity, noise=noise)
            else:
                weight = torch.tensor([1 - similarity], device=self.device, dtype=self.dtype)
                latents = torch.cat([slerp(*pair, weight) for pair in zip(latents, noise, strict=True)])
        return self.decode(latents, generator=generator, **{**options, **generate_kwargs})

    def _variation_level(self, similarity: float) -> float:
        """Look up the noise level at which variations have this similarity."""
        levels = self.config.variation_levels or [1.0, 0.0]
        place = similarity * (len(levels) - 1)
        below = min(int(place), len(levels) - 2)
        return levels[below] + (place - below) * (levels[below + 1] - levels[below])

    def _conditions_like(self, latent: torch.Tensor, options: Mapping[str, Any]) -> dict[str, Any]:
        """Read the conditions of the melody decoder from the melody of a latent `(1, Z)`."""
        if not self.config.decoder_conditions:
            return {}
        lines = self.read_lines(self.decode(latent, bars=one_for_all(options.get("bars"))))
        return {name: values[0] for name, values in self.conditions_of(lines).items()}

    def decode(
        self, latent: torch.Tensor, seed: int | None = None, generator: Generators | None = None, **generate_kwargs
    ) -> torch.Tensor:
        """Decode latents `(B, Z)` into ids `(B, T)`; greedy unless `generate_kwargs` say otherwise."""
        options = {"do_sample": False, **generate_kwargs}
        if options["do_sample"]:
            options["generator"] = make_generators(len(latent), seed, generator)
        return self.generate(latent=latent, **self._generation_kwargs(options))

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        latent: torch.Tensor | None = None,
        noise_level: float | torch.Tensor | None = None,
        bars: int | Sequence[int] | torch.Tensor | None = None,
        scale: str | Sequence[str | None] | None = None,
        time_signature: str | Sequence[str | None] | None = None,
        lowest_pitch: int | Sequence[int | None] | None = None,
        highest_pitch: int | Sequence[int | None] | None = None,
        template: torch.Tensor | None = None,
        regenerate: torch.Tensor | None = None,
        max_rest: float | None = None,
        conditions: Conditions | None = None,
        logits_processor: LogitsProcessorList | None = None,
        **kwargs,
    ):
        """Generate melodies: transformers' own `generate`, conditioned on a latent.

        Args:
            inputs: `(B, T)`, the beginning of the melodies (also as `input_ids`); the start token by default.
            latent: `(B, Z)`. By default drawn from the prior, and for bars that `input_ids` has, the posterior's mean.
            noise_level: How much of the latent is noise, from 0 to 1 (the melody decoder writes as a language model); a
                number, or `(B, N)` for each bar; `config.sampling_noise` by default where latents are drawn here. For
                models with `config.noise_probability`.
            bars: Bars that each melody shall have, a number or `(B,)`; the model decides by default.
            scale: Such as `D dorian`: the only pitches, see `token_grammar_melody_vae.scale_mask`.
            time_signature: Such as `6/8`, one for all or one for each; the model's choice by default.
            lowest_pitch: MIDI pitch.
            highest_pitch: MIDI pitch.
            template: `(B, T)` ids of melodies to keep bars of.
            regenerate: `(B, N)` which of their bars to generate.
            max_rest: Bars that a rest between notes may last; any by default, one bar in operations that sample.
            conditions: As in [`sample`]; what the prior and the melody decoder are conditioned on.
            logits_processor: Processors applied after this model's own.
            kwargs: As in transformers.

        Returns:
            `(B, T)` ids, padded at the end, or what `return_dict_in_generate` asks for.

        Raises:
            ValueError: If no melody can be like this, or the model does not know its tokens' grammar.
        """
        # How many melodies: what is given says so, and must agree.
        inputs = kwargs.pop("input_ids", inputs)
        if inputs is not None:
            check_ids(inputs, self.config.vocab_size)
        if latent is not None:
            latent = check_latent(latent, self.config.latent_size, None if inputs is None else len(inputs))
        given = [len(part) for part in (latent, inputs, template) if part is not None]
        n = given[0] if given else 1
        if bars is not None:
            bars = check_bars(bars, n, self.config.max_bars if self.config.latent_size else None)
            bars = torch.as_tensor(bars, device=self.device).reshape(-1)
        if not n:
            return self._no_ids()
        conditions = self._conditions(conditions, n)
        if template is not None:  # its bars may have more tokens than new ones
            kwargs.setdefault("max_length", template.shape[1] + self.generation_config.max_length)
        # A latent that is not given is sampled, with the bars of the primer known.
        if self.config.latent_size:
            if latent is None:
                if isinstance(noise_level, torch.Tensor):
                    raise ValueError("noise_level of each bar is a latent's: give the latent, or one number")
                primer = torch.full((n, 1), self.config.bos_token_id, device=self.device) if inputs is None else inputs
                options = {"noise_level": noise_level, "conditions": conditions}
                sampled = self._with_primer_latent(primer, options, bars)
                latent, noise_level = sampled["latent"], sampled.get("noise_level")
            latent = latent.to(self.device, self.dtype)
            kwargs["bar_conditions"] = self._bar_conditions(latent, noise_level, conditions)
        elif noise_level:
            raise ValueError(f"noise_level={noise_level}: this model has no latent")
        # What is asked of the notes goes to the grammar.
        asked = {"time_signature": time_signature, "lowest_pitch": lowest_pitch, "highest_pitch": highest_pitch}
        asked |= {"template": template, "regenerate": regenerate, "pitch_classes": scale and scale_mask(scale)}
        asked["max_rest"] = max_rest and check_number("max_rest", max_rest, 0)
        processors = self._grammar_processors(bars, asked) + (logits_processor or [])
        return super().generate(inputs, logits_processor=LogitsProcessorList(processors), **kwargs)

    def _grammar_processors(self, bars: torch.Tensor | None, asked: Mapping[str, Any]) -> list:
        """Return the logits processor of the tokens' grammar, where the model knows it."""
        eos = self.generation_config.eos_token_id
        if self.config.grammar_columns:
            fixed = {"max_bars": self.config.max_bars, "repeats": self._repeats()}
            return [MelodyLogitsProcessor(self._grammar(), eos, bars=bars, **fixed, **asked)]
        asked.pop("max_rest")
        if any(value is not None for value in asked.values()):
            raise ValueError("this model does not know its tokens: model.set_grammar(processor.grammar_table())")
        return [] if bars is None else [BarCountLogitsProcessor(bars, self.is_bar_token, eos)]

    def _bar_conditions(self, latent: torch.Tensor, noise_level: Any, conditions: Mapping[str, list]) -> torch.Tensor:
        """Expand latents `(B, Z)` into condition embeddings, as [`BarConditioner`] does."""
        n = len(latent)
        rows = torch.arange(max(n, FEWEST_ROWS), device=latent.device) % n
        if noise_level is not None:
            if not self.config.noise_probability:
                raise ValueError(f"noise_level={noise_level}: this model was trained without (noise_probability=0)")
            noise_level = torch.as_tensor(noise_level, device=self.device).expand(n, self.config.max_bars)[rows]
        labels = self._decoder_labels(conditions, n, noise_level)
        labels = labels and {name: values[rows] for name, values in labels.items()}
        return self.bar_conditioner(latent[rows], noise_level, labels)[:n]

    def _sampling_options(self) -> dict[str, Any]:
        """Return the options of [`generate`] with which this model samples tokens."""
        return {"do_sample": True, "top_k": 0, "top_p": self.config.sampling_top_p, "max_rest": LONGEST_REST}

    def _generation_kwargs(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Write options as `generate` takes them: with the one decoding loop, unless transformers' own is asked for."""
        options = {name: value for name, value in options.items() if value is not None}
        if "generator" in options or (options.keys() <= LOOP_OPTIONS and not options.get("do_sample")):
            options["custom_generate"] = sample_with_generators
            if is_list(options.get("temperature")):
                options["temperatures"] = torch.tensor(options.pop("temperature"), device=self.device)
        return options
