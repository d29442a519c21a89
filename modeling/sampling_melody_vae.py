"""New melodies: `sample`, with candidates of which a critic keeps one, in keys asked for, and longer than a latent.

Dimension key: B batch, T tokens, N bars, Z latent size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .arguments_melody_vae import Generators, check_bars, draw_uniform, make_generators, spawn_generators
from .decoding_melody_vae import sample_categorical
from .melody_line_melody_vae import known_key
from .options_melody_vae import (
    PER_MELODY,
    Conditions,
    check_candidates,
    check_count,
    check_number,
    check_temperature,
    draw_again,
    for_candidates,
    for_each,
    for_next_section,
    is_list,
    one_time_signature,
    rows_in_another_key,
    take_rows,
    transpose_rows,
    with_time_signature,
    write_sections,
)
from .token_grammar_melody_vae import TokenWriter


class SamplingMixin:
    """How [`MelodyVAEModel`] samples melodies: latents from `sample_latent`, ids from `generate`."""

    def sample(
        self,
        n: int,
        seed: int | None = None,
        temperature: float | Sequence[float] = 1.0,
        bars: int | Sequence[int] | torch.Tensor | None = None,
        conditions: Conditions | None = None,
        guidance_scale: float = 1.0,
        max_attempts: int = 12,
        generator: Generators | None = None,
        noise_level: float | None = None,
        candidates: int | None = None,
        **generate_kwargs,
    ) -> torch.Tensor:
        """Sample `n` melodies: latents from the prior, whose flow stops at `noise_level`, and tokens from the decoder.

        At noise level 1 (`config.sampling_noise` of the release) the decoder is an unconditional language model.

        The grammar enforces a time signature. A melody in another key than the condition is transposed; where the mode
        differs, or a scale or range forbids it, it is sampled again, from the fifth attempt on with no pitches outside
        the key. Genre, tempo and attributes are up to the prior, and to the melody decoder where it is conditioned on
        them.

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
            guidance_scale: Scale of classifier-free guidance; 1 is none.
            max_attempts: How often a melody is sampled at most.
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
        # One value, or one for each melody: all are checked before anything is drawn.
        n = check_count("n", n)
        conditions = self._conditions(conditions, n)
        options = self._sampling_options() | {
            "temperature": check_temperature(temperature),
            "bars": check_bars(self.config.max_bars if bars is None else bars, n),
            "conditions": conditions,
            "guidance_scale": check_number("guidance_scale", guidance_scale),
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
        # The critic chooses among candidates; melodies in another key than asked for are drawn again.
        config = self.config
        count = check_candidates(
            candidates, options["bars"], config.max_bars, config.sampling_candidates, bool(config.critic_size)
        )
        return draw_again(
            self._sample_best(n, count, options),
            options,
            check_count("max_attempts", max_attempts, 1),
            lambda ids: self._rows_in_another_key(ids, conditions),
            lambda n, again: self._sample_best(n, count, again),
            self._replace_rows,
        )

    @torch.no_grad()
    def _sample_best(self, n: int, count: int, options: Mapping[str, Any]) -> torch.Tensor:
        """Draw `count` candidates for each of `n` melodies, transpose them, and keep of each the best in its key."""
        _, options = for_candidates(options, n, count, spawn_generators)
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
            for name in ("conditions", "guidance_scale", "noise_level"):  # it has no prior that could read them
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
            options.pop("guidance_scale", 1.0),
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
        drawn = sample_categorical(torch.tensor(shares, device=self.device).expand(n, -1), share).tolist()
        keys = []
        for asked, line, index in zip(conditions.get("key", [None] * n), self.read_lines(ids), drawn, strict=True):
            keys.append(asked or (known_key(line, known) if line["pitch"] else known[index]))
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
        drawn = sample_categorical(chance.expand(n, -1), draw_uniform((1,), generator, self.device).squeeze(1))
        return [lag if lag < len(returns) else -1 for lag in drawn.tolist()]

    def _sample_next_section(self, before: list[list[list[int]]], count: int, options: dict[str, Any]) -> torch.Tensor:
        """Generate `count` bars after the section before; returns ids with both."""
        known = len(before[0])
        primer = self._join_bars(before, is_open=True)
        if known:
            options = for_next_section(options, self._default_noise_level(options["conditions"]))
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
        if not wrong:
            return ids
        writer = TokenWriter(self.token_grammar.cpu())
        moved = transpose_rows(wrong, self.read_lines(ids[wrong]), options, writer.values("Pitch"))
        return self._replace_rows(ids, list(moved), self.write_lines(list(moved.values()), writer)) if moved else ids

    def _replace_rows(self, ids: torch.Tensor, rows: list[int], new: torch.Tensor) -> torch.Tensor:
        """Put melodies `new` `(R, U)` in place of some rows of `ids` `(B, T)`; padded at the end."""
        width, pad = max(ids.shape[1], new.shape[1]), self.config.pad_token_id
        ids, new = (torch.nn.functional.pad(part, (0, width - part.shape[1]), value=pad) for part in (ids, new))
        ids[rows] = new
        return ids[:, : int(ids.ne(pad).sum(-1).max())]
