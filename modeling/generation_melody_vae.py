"""What one does with melodies: sample, vary, infill, continue, interpolate, shift, melodies longer than a latent.

All of it is one path: latents come from `sample_latent`, ids from `generate`, random numbers from a generator for each
melody. Dimension key: B batch, T tokens, N bars, Z latent size, A attributes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList

from .arguments_melody_vae import (
    Generators,
    check_bars,
    check_ids,
    check_latent,
    draw_normal,
    draw_uniform,
    make_generators,
    spawn_generators,
)
from .decoding_melody_vae import LOOP_OPTIONS, choose, sample_with_generators
from .interpolation_melody_vae import InterpolationMixin, one_for_all, slerp
from .logits_process_melody_vae import BarCountLogitsProcessor, MelodyLogitsProcessor
from .melody_line_melody_vae import key_of
from .note_editing_melody_vae import NoteEditingMixin
from .options_melody_vae import (
    FREE_DRAWS,
    LONGEST_REST,
    PER_MELODY,
    SECTION_NOISE_FACTOR,
    Conditions,
    check_candidates,
    check_count,
    check_number,
    check_temperature,
    for_each,
    is_list,
    one_time_signature,
    rows_in_another_key,
    take_rows,
    transpose_to_key,
    with_time_signature,
    write_sections,
)
from .prior_melody_vae import FEWEST_ROWS, LatentSamplingMixin
from .reconstruction_melody_vae import ReconstructionMixin
from .token_grammar_melody_vae import NO_ONSET, TokenColumn, TokenWriter, mark_repeats, scale_mask


def for_candidates(options: Mapping[str, Any], n: int, count: int) -> tuple[list[int], dict[str, Any]]:
    """Repeat the options of `n` melodies for `count` candidates of each, with generators of their own.

    Returns:
        Of each candidate the melody, and the options.
    """
    rows = [row for row in range(n) for _ in range(count)]
    if count == 1:
        return rows, dict(options)
    own = [each for one in options["generator"] for each in spawn_generators(one, count)]
    return rows, take_rows(options, rows) | {"generator": own}


class MelodyVAEGenerationMixin(LatentSamplingMixin, NoteEditingMixin, InterpolationMixin, ReconstructionMixin):
    """Operations of [`MelodyVAEModel`], in terms of its `encode` and `generate`."""

    def sample(
        self,
        n: int,
        seed: int | None = None,
        temperature: float | Sequence[float] = 1.0,
        bars: int | Sequence[int] | torch.Tensor | None = None,
        conditions: Conditions | None = None,
        guidance: float = 1.0,
        attempts: int = 12,
        generator: Generators | None = None,
        noise_level: float | None = None,
        candidates: int | None = None,
        **generate_kwargs,
    ) -> torch.Tensor:
        """Sample `n` melodies from the prior.

        The grammar enforces a time signature. A melody in another key than the condition is transposed; where the mode
        differs, or a scale or range forbids it, it is sampled again, from the fifth attempt on with no pitches outside
        the key. Genre, tempo and attributes are up to the prior, and to the melody decoder where it is told of them.

        One generator per melody, so a result does not depend on its batch: melody i of a seed is the same for every
        `n`, thread and process; bit by bit where matrix products do not depend on the number of rows (one thread of a
        CPU), else but for a rare token on which rounding decides.

        Args:
            n: Number of melodies.
            seed: Makes the result repeatable; the global random state is left alone.
            temperature: Of the softmax over tokens; one for all, or a list with one for each melody.
            bars: Bars per melody; `max_bars` by default; more are written section by section. One number for all, or
                one for each, none of them more than `max_bars`.
            conditions: Such as `{"key": "D minor", "note_density": 1.0}`. For each condition (`config.conditions`) one
                value, and for each attribute (`config.attributes`) standard deviations from the training data's mean;
                for all melodies, or a list with one for each, in which None leaves it open.
            guidance: Scale of classifier-free guidance; 1 is none.
            attempts: How often a melody is sampled at most.
            generator: Instead of a seed, one for each melody.
            noise_level: How much of its latent a melody leaves to the melody decoder, from 0 to 1;
                `config.sampling_noise` by default.
            candidates: Drawn for each melody; the one is kept that the critic takes most for a training melody.
                `config.sampling_candidates` by default; melodies longer than a latent are drawn once.
            generate_kwargs: As in [`generate`]; `scale`, `time_signature` and the range of pitches may be lists with
                one for each melody, or None where it is open.

        Returns:
            `(n, T)` ids, padded at the end.

        Raises:
            ValueError: If there are not `n` of what is given for each melody, or as in [`generate`].
        """
        n = check_count("n", n)
        conditions = self._conditions(conditions, n)
        options = self._sampling_options() | {
            "temperature": check_temperature(temperature),
            "bars": check_bars(self.config.max_bars if bars is None else bars, n),
            "conditions": conditions,
            "guidance": check_number("guidance", guidance),
            "noise_level": self._check_noise_level(noise_level),
            "generator": make_generators(n, seed, generator),
            **generate_kwargs,
        }
        for name in PER_MELODY:
            for_each(name, options.get(name), n)
        if is_list(options["bars"]):
            check_bars(options["bars"], n, self.config.max_bars)
        if self.config.grammar_columns:
            options["time_signature"] = one_time_signature(options.get("time_signature"), conditions, n)
        if not n:
            return self._no_ids()
        config = self.config
        count = check_candidates(
            candidates, options["bars"], config.max_bars, config.sampling_candidates, bool(config.critic_size)
        )
        ids = self._sample_best(n, count, options)
        for attempt in range(1, check_count("attempts", attempts, 1)):
            wrong = self._rows_in_another_key(ids, conditions)
            if not wrong:
                break
            again = take_rows(options, wrong)
            if attempt >= FREE_DRAWS and again.get("scale") is None:
                again["scale"] = again["conditions"]["key"]
            ids = self._replace_rows(ids, wrong, self._sample_best(len(wrong), count, again))
        return ids

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
                to do with it. The melody decoder is told of the key and the attributes that the melody has.
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
                labels = self.prior.open_labels(n)
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
        """Read key and attributes of the melody of a latent `(1, Z)`, as far as the melody decoder is told of them."""
        told = self.config.decoder_conditions or []
        if not told:
            return {}
        line = self.read_lines(self.decode(latent, bars=one_for_all(options.get("bars"))))[0]
        conditions: dict[str, Any] = {"key": self._known_key(line)} if "key" in told else {}
        if "attributes" in told and line["pitch"]:
            conditions |= dict(zip(self.config.attributes or [], self.attributes_of([line])[0].tolist(), strict=True))
        return conditions

    def _known_key(self, line: Mapping[str, Any]) -> str | None:
        """Find the key of a melody; None where it has no notes, or the training data had none in it."""
        key = key_of(line) if line["pitch"] else None
        return key if key in (self.config.conditions or {})["key"] else None

    def decode(
        self, latent: torch.Tensor, seed: int | None = None, generator: Generators | None = None, **generate_kwargs
    ) -> torch.Tensor:
        """Decode latents `(B, Z)` into ids `(B, T)`; greedy unless `generate_kwargs` say otherwise."""
        options = {"do_sample": False, **generate_kwargs}
        if options["do_sample"]:
            options["generator"] = make_generators(len(latent), seed, generator)
        return self.generate(latent=latent, **self._generation_kwargs(options))

    def infill(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        bars: Sequence[int] = (),
        seed: int | None = None,
        conditions: Conditions | None = None,
        guidance: float = 1.0,
        generator: Generators | None = None,
        noise_level: float | None = None,
        candidates: int = 8,
        **generate_kwargs,
    ) -> torch.Tensor:
        """Generate some bars of melodies anew; the others come back as they are.

        Of several candidates the one is kept that leads best to what follows: after which the melody decoder without a
        latent finds the bars that were kept most likely (as in sampling-importance-resampling, Rubin 1987). One that
        leaves a bar silent in which notes began is kept only if all do.

        Args:
            input_ids: `(B, T)`.
            attention_mask: `(B, T)`, 0 at padding.
            bars: Which bars, from 0.
            seed: Makes the result repeatable; the global random state is left alone.
            conditions: As in [`sample`].
            guidance: Scale of classifier-free guidance; 1 is none.
            generator: Instead of a seed, one for each melody.
            noise_level: As in [`sample`], of the bars that are filled.
            candidates: Drawn for each melody.
            generate_kwargs: As in [`generate`].

        Returns:
            `(B, T)` ids, padded at the end.

        Raises:
            ValueError: If a melody has no such bar, or the model does not know its tokens' grammar.
        """
        n = len(check_ids(input_ids, self.config.vocab_size))
        num_bars = self.is_bar_token[input_ids].sum(-1)
        shortest = int(num_bars.min()) if n else self.config.max_bars
        bars = [check_count("bars", bar) for bar in bars]
        if wrong := [bar for bar in bars if bar >= shortest]:
            raise ValueError(f"bar {wrong[0]} cannot be filled: bars count from 0 to {shortest - 1} here")
        count = check_count("candidates", candidates, 1)
        options = self._sampling_options() | generate_kwargs | {"conditions": self._conditions(conditions, n)}
        options["generator"] = make_generators(n, seed, generator)
        rows, options = for_candidates(options, n, count)
        template = input_ids[rows]
        regenerate = torch.zeros(len(rows), self.config.max_bars, dtype=torch.bool, device=self.device)
        regenerate[:, bars] = True
        if self.config.latent_size:
            mean = self._latent_mean(input_ids, attention_mask)[rows]
            options |= {"guidance": guidance, "noise_level": noise_level}
            options = self._with_latent(template, options, mean, ~regenerate, num_bars[rows])
        else:
            options["inputs"] = torch.full_like(template[:, :1], self.config.bos_token_id)
        ids = self.generate(template=template, regenerate=regenerate, **self._generation_kwargs(options))
        return ids if count == 1 or not n else self._best_candidates(ids, input_ids, bars, count)

    def _best_candidates(self, ids: torch.Tensor, originals: torch.Tensor, bars: list[int], count: int) -> torch.Tensor:
        """Choose of each `count` fillings the one that [`infill`] keeps.

        Args:
            ids: `(B count, T)` those of one melody after the other.
            originals: `(B, U)`.
            bars: Which bars were filled.
            count: Candidates of each melody.
        """
        has_notes = [[self._has_notes(bar) for bar in melody] for melody in self._split_bars(originals)]
        filled = [[self._has_notes(melody[bar]) for bar in bars] for melody in self._split_bars(ids)]
        silenced = [
            sum(has_notes[row // count][bar] and not has for bar, has in zip(bars, each, strict=True))
            for row, each in enumerate(filled)
        ]
        price = torch.tensor(silenced, device=self.device).float()
        if self.config.noise_probability:
            of_bar = self.is_bar_token[ids].cumsum(-1) - 1 + self._is_repeat(ids).long()  # repeats stand before theirs
            follows = (of_bar > min(bars, default=0)) & ~torch.isin(of_bar, torch.tensor(bars, device=self.device))
            nats = (self._unconditional_nats(ids) * follows[:, 1:]).sum(-1)
            price = price + nats / (1 + nats.max())  # less than a bar
        best = price.view(-1, count).argmin(-1)
        return self._take_candidates(ids, best, count)

    def continue_melody(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        bars: int | Sequence[int] | torch.Tensor | None = None,
        seed: int | None = None,
        conditions: Conditions | None = None,
        guidance: float = 1.0,
        generator: Generators | None = None,
        noise_level: float | None = None,
        **generate_kwargs,
    ) -> torch.Tensor:
        """Keep the bars of melodies and write on; the first new token opens a bar.

        Args:
            input_ids: `(B, T)` the bars to keep, with or without an end, padded at the beginning or the end.
            attention_mask: Not needed: padding is known by its token.
            bars: Bars to reach, those that are kept included; `max_bars` by default and at most.
            seed: Makes the result repeatable; the global random state is left alone.
            conditions: As in [`sample`].
            guidance: Scale of classifier-free guidance; 1 is none.
            generator: Instead of a seed, one for each melody.
            noise_level: As in [`sample`], of the bars that are written.
            generate_kwargs: As in [`generate`].

        Returns:
            `(B, T)` ids, padded at both ends.

        Raises:
            ValueError: If a melody has no bar to begin with, or nothing is left to write.
        """
        n = len(check_ids(input_ids, self.config.vocab_size))
        most = self.config.max_bars if self.config.latent_size else None
        bars = check_bars(self.config.max_bars if bars is None else bars, n, most)
        num_bars = self.is_bar_token[input_ids].sum(-1)
        for has, wanted in zip(num_bars.tolist(), for_each("bars", bars, n), strict=True):
            if not 1 <= has < wanted:
                raise ValueError(f"{has} bars cannot be continued to bars={wanted}: give at least 1, and fewer")
        if generate_kwargs.get("time_signature") is not None:
            raise ValueError(f"time_signature={generate_kwargs['time_signature']!r}: the melody has its own")
        primer = self._join_bars(self._split_bars(input_ids), is_open=True) if n else input_ids
        options = self._sampling_options() | {"generator": make_generators(n, seed, generator), **generate_kwargs}
        # A token that opens no bar could put more notes into the last bar that is kept.
        is_suppressed = ~self.is_bar_token
        is_suppressed[list(self._repeats().values())] = False
        options["begin_suppress_tokens"] = is_suppressed.nonzero().flatten().tolist()
        options |= {"conditions": self._conditions(conditions, n), "guidance": guidance, "noise_level": noise_level}
        return self._generate_after(primer, bars, bars, options)

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
            conditions: As in [`sample`]; what the prior and the melody decoder are told.
            logits_processor: Processors applied after this model's own.
            kwargs: As in transformers.

        Returns:
            `(B, T)` ids, padded at the end, or what `return_dict_in_generate` asks for.

        Raises:
            ValueError: If no melody can be like this, or the model does not know its tokens' grammar.
        """
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
        if template is not None:  # its bars may have more tokens than new ones
            kwargs.setdefault("max_length", template.shape[1] + self.generation_config.max_length)
        if self.config.latent_size:
            if latent is None:
                if isinstance(noise_level, torch.Tensor):
                    raise ValueError("noise_level of each bar is a latent's: give the latent, or one number")
                primer = torch.full((n, 1), self.config.bos_token_id, device=self.device) if inputs is None else inputs
                options = {"noise_level": noise_level, "conditions": self._conditions(conditions, n)}
                sampled = self._with_primer_latent(primer, options, bars)
                latent, noise_level = sampled["latent"], sampled.get("noise_level")
            latent = latent.to(self.device, self.dtype)
            kwargs["bar_conditions"] = self._bar_conditions(latent, noise_level, self._conditions(conditions, n))
        elif noise_level:
            raise ValueError(f"noise_level={noise_level}: this model has no latent")
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
        labels = None
        if conditions and self.config.decoder_conditions:
            labels = self._condition_labels(self.bar_conditioner.condition_embedding, conditions, n)
            labels = {name: values[rows] for name, values in labels.items()}
        return self.bar_conditioner(latent[rows], noise_level, labels)[:n]

    # Batches and sections of sampled melodies.

    @torch.no_grad()
    def _sample_best(self, n: int, count: int, options: Mapping[str, Any]) -> torch.Tensor:
        """Draw `count` candidates for each of `n` melodies, transpose them, and keep of each the best in its key."""
        _, options = for_candidates(options, n, count)
        ids = self._transpose_to_keys(self._sample_batch(n * count, options), options)
        if count == 1:
            return ids
        scores = self.critic(self._latent_mean(ids), self.is_bar_token[ids].sum(-1))
        scores[self._rows_in_another_key(ids, options["conditions"])] -= 1e4  # more than any logit
        return self._take_candidates(ids, scores.view(n, count).argmax(-1), count)

    def _take_candidates(self, ids: torch.Tensor, best: torch.Tensor, count: int) -> torch.Tensor:
        """Keep of `ids` `(B count, T)`, those of one melody after the other, the ones numbered by `best` `(B,)`."""
        chosen = ids.unflatten(0, (-1, count))[torch.arange(len(best), device=self.device), best]
        return chosen[:, : int(chosen.ne(self.config.pad_token_id).sum(-1).max())]

    def _sample_batch(self, n: int, options: Mapping[str, Any]) -> torch.Tensor:
        """Generate `n` melodies once, by the options of [`sample`]: of `generate`, conditions and `PER_MELODY`."""
        options = dict(options)
        bars = options.pop("bars")
        if self.config.latent_size:  # the grammar enforces any time signature; the prior knows some
            known, signature = (self.config.conditions or {}).get("time_signature", ()), options.get("time_signature")
            options["conditions"] = with_time_signature(options["conditions"], signature, known, n)
        if not is_list(bars) and bars > self.config.max_bars:
            return self._sample_sections(n, bars, options)
        bos = torch.full((n, 1), self.config.bos_token_id, device=self.device)
        return self._generate_after(bos, bars, bars, options)

    def _generate_after(
        self, primer: torch.Tensor, bars: int | Sequence[int], bars_of_latent: Any, options: Mapping[str, Any]
    ) -> torch.Tensor:
        """Sample latents that fit a primer `(B, T)`, and generate what follows it, up to so many bars."""
        n, options = len(primer), dict(options)
        if self.config.latent_size:
            options = self._with_primer_latent(primer, options, bars_of_latent)
        else:
            for name in ("conditions", "guidance", "noise_level"):  # it has no prior that could read them
                options.pop(name, None)
        if n and self.config.pad_token_id in primer[:, 0]:
            options["attention_mask"] = primer.ne(self.config.pad_token_id).long()
        return self.generate(primer, bars=bars, **self._generation_kwargs(options))

    @torch.no_grad()
    def _with_primer_latent(self, primer: torch.Tensor, options: Mapping[str, Any], bars: Any) -> dict[str, Any]:
        """Sample latents whose first bars are a primer's `(B, T)`, see [`MelodyVAEGenerationMixin._with_latent`]."""
        is_known = self._known_bars(primer)
        known = self._latent_mean(primer) if bool(is_known.any()) else None
        return self._with_latent(primer, options, known, is_known, bars)

    def _with_latent(
        self,
        ids: torch.Tensor,
        options: Mapping[str, Any],
        known: torch.Tensor | None,
        is_known: torch.Tensor,
        bars: Any,
    ) -> dict[str, Any]:
        """Put latents, and the noise level of each bar, in place of the options that say how to sample them.

        Args:
            ids: `(B, T)` what there is of the melodies.
            options: Of `generate`, and those.
            known: `(B, Z)` latents of which some bars are kept.
            is_known: `(B, N)` which.
            bars: Of the melodies.
        """
        n, options = len(ids), dict(options)
        conditions, level = options.get("conditions", {}), self._check_noise_level(options.pop("noise_level", None))
        if level is None:
            level = self._default_noise_level(conditions)
        latent = self.sample_latent(
            n,
            known,
            None if known is None else is_known,
            conditions,
            options.pop("guidance", 1.0),
            level,
            bars,
            generator=options.get("generator"),
        )
        noise_level = {"noise_level": self._bar_levels(level, is_known)} if level else {}
        options["conditions"] = self._with_keys(conditions, ids, options.get("generator"))
        return {**options, "latent": latent, **noise_level}

    def _with_keys(
        self, conditions: Mapping[str, list], ids: torch.Tensor, generator: Generators | None
    ) -> dict[str, list]:
        """Add to conditions the keys of what there is of melodies `(B, T)`, or keys drawn as in the training data."""
        shares = self.config.key_shares
        if not shares or generator is None or "key" not in (self.config.decoder_conditions or []):
            return dict(conditions)
        n, known = len(ids), (self.config.conditions or {})["key"]
        share = draw_uniform((1,), generator, self.device).squeeze(1)
        drawn = choose(torch.tensor(shares, device=self.device).expand(n, -1), share).tolist()
        keys = []
        for asked, line, index in zip(conditions.get("key", [None] * n), self.read_lines(ids), drawn, strict=True):
            keys.append(asked or (self._known_key(line) if line["pitch"] else known[index]))
        return {**conditions, "key": keys}

    def _sample_sections(self, n: int, bars: int, options: Mapping[str, Any]) -> torch.Tensor:
        """Generate melodies longer than a latent, section by section.

        A section is half a latent. It either repeats an earlier one, as often as in the training data
        (`config.section_returns`), or it is generated to follow the one before.

        Args:
            n: Number of melodies.
            bars: Bars of each.
            options: As in [`MelodyVAEGenerationMixin._sample_batch`].

        Returns:
            `(n, T)` ids, padded at the end.
        """

        def draw_lags(num_sections: int) -> list[int]:
            return self._draw_lags(n, num_sections, options["generator"])

        def write(rows: list[int], before: list[list[list[int]]], count: int) -> list[list[list[int]]]:
            return self._split_bars(self._sample_next_section(before, count, take_rows(options, rows)))

        return self._join_bars(write_sections(n, bars, max(1, self.config.max_bars // 2), draw_lags, write))

    def _draw_lags(self, n: int, num_sections: int, generator: Generators) -> list[int]:
        """Draw for each melody how many sections back the one is that it repeats now, from 0; -1 for none."""
        returns = torch.tensor((self.config.section_returns or [])[:num_sections], device=self.device)
        if not len(returns):
            return [-1] * n
        chance = torch.cat([returns, (1 - returns.sum()).clamp_min(0)[None]])
        drawn = choose(chance.expand(n, -1), draw_uniform((1,), generator, self.device).squeeze(1))
        return [lag if lag < len(returns) else -1 for lag in drawn.tolist()]

    def _sample_next_section(self, before: list[list[list[int]]], count: int, options: dict[str, Any]) -> torch.Tensor:
        """Generate `count` bars after the section before; returns ids with both."""
        known = len(before[0])
        primer = self._join_bars(before, is_open=True)
        if known:
            options["time_signature"] = None  # the primer has its own
            if options.get("noise_level") is None:
                options["noise_level"] = SECTION_NOISE_FACTOR * self._default_noise_level(options["conditions"])
        return self._generate_after(primer, known + count, self.config.max_bars, options)  # the melody goes on

    def _rows_in_another_key(self, ids: torch.Tensor, conditions: Mapping[str, list]) -> list[int]:
        """List the melodies of `ids` `(B, T)` whose key is not the condition's; none if the model cannot read."""
        if "key" not in conditions or not self.config.grammar_columns:
            return []
        return rows_in_another_key(self.read_lines(ids), conditions["key"])

    def _transpose_to_keys(self, ids: torch.Tensor, options: Mapping[str, Any]) -> torch.Tensor:
        """Transpose melodies `(B, T)` to the keys asked for, by six semitones at most, where their mode is the same.

        Those stay as they are whose scale or range was asked for, or that would leave the vocabulary.
        """
        wrong = self._rows_in_another_key(ids, options["conditions"])
        if not wrong or any(options.get(name) is not None for name in ("scale", "lowest_pitch", "highest_pitch")):
            return ids
        writer, moved = TokenWriter(self.token_grammar.cpu()), {}
        pitches = writer.values("Pitch")
        for row, line in zip(wrong, self.read_lines(ids[wrong]), strict=True):
            if transposed := transpose_to_key(line, options["conditions"]["key"][row], pitches):
                moved[row] = transposed
        return self._replace_rows(ids, list(moved), self.write_lines(list(moved.values()), writer)) if moved else ids

    def _replace_rows(self, ids: torch.Tensor, rows: list[int], new: torch.Tensor) -> torch.Tensor:
        """Put melodies `new` `(R, U)` in place of some rows of `ids` `(B, T)`; padded at the end."""
        width, pad = max(ids.shape[1], new.shape[1]), self.config.pad_token_id
        ids, new = (torch.nn.functional.pad(part, (0, width - part.shape[1]), value=pad) for part in (ids, new))
        ids[rows] = new
        return ids[:, : int(ids.ne(pad).sum(-1).max())]

    def _no_ids(self) -> torch.Tensor:
        """Ids of no melodies, `(0, 0)`."""
        return torch.empty(0, 0, dtype=torch.long, device=self.device)

    def _split_bars(self, ids: torch.Tensor) -> list[list[list[int]]]:
        """Return the tokens of each bar of `ids` `(B, T)`; what stands outside bars is left out."""
        special = {self.config.pad_token_id, self.config.bos_token_id, self.config.eos_token_id}
        special |= set(self._repeats().values())
        melodies = []
        for row, opens in zip(ids.tolist(), self.is_bar_token[ids].tolist(), strict=True):
            bars: list[list[int]] = []
            for token, is_opening in zip(row, opens, strict=True):
                if is_opening:
                    bars.append([])
                if bars and token not in special:
                    bars[-1].append(token)
            melodies.append(bars)
        return melodies

    def _join_bars(self, melodies: list[list[list[int]]], is_open: bool = False) -> torch.Tensor:
        """Write bars' tokens as ids `(B, T)`; padded at the end, or where they are left open, at the beginning."""
        end = [] if is_open else [self.config.eos_token_id]
        melodies = [mark_repeats(bars, self._repeats(), self._has_notes) for bars in melodies]
        rows = [[self.config.bos_token_id, *(token for bar in bars for token in bar), *end] for bars in melodies]
        length = max(map(len, rows))
        padding = [[self.config.pad_token_id] * (length - len(row)) for row in rows]
        padded = [pad + row if is_open else row + pad for row, pad in zip(rows, padding, strict=True)]
        return torch.tensor(padded, device=self.device)

    def _has_notes(self, bar: Sequence[int]) -> bool:
        """Whether a note begins in a bar of tokens; where the grammar is not known there are no repeats to mark."""
        return bool((self._grammar()[list(bar), TokenColumn.FIRST_ONSET] < NO_ONSET).any())

    # Options and conditions.

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
