"""What is written around bars that are given: `infill` between them, `continue_melody` after them.

Dimension key: B batch, T tokens, N bars.
"""

from collections.abc import Sequence

import torch

from .arguments_melody_vae import Generators, check_bars, check_buffers, check_ids, make_generators, spawn_generators
from .options_melody_vae import Conditions, check_count, check_fill_bars, for_candidates, for_each


class InfillingMixin:
    """How [`MelodyVAEModel`] fills in and continues melodies."""

    def infill(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        bars: Sequence[int] = (),
        seed: int | None = None,
        conditions: Conditions | None = None,
        guidance_scale: float = 1.0,
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
            guidance_scale: Scale of classifier-free guidance; 1 is none.
            generator: Instead of a seed, one for each melody.
            noise_level: As in [`sample`], of the bars that are filled.
            candidates: Drawn for each melody.
            generate_kwargs: As in [`generate`].

        Returns:
            `(B, T)` ids, padded at the end.

        Raises:
            ValueError: If a melody has no such bar, or the model does not know its tokens' grammar.
        """
        # Several candidates of each melody are rows side by side.
        check_buffers(self)
        n = len(check_ids(input_ids, self.config.vocab_size))
        num_bars = self.is_bar_token[input_ids].sum(-1)
        bars = check_fill_bars(bars, int(num_bars.min()) if n else self.config.max_bars)
        count = check_count("candidates", candidates, 1)
        options = self._sampling_options() | generate_kwargs | {"conditions": self._conditions(conditions, n)}
        options["generator"] = make_generators(n, seed, generator)
        rows, options = for_candidates(options, n, count, spawn_generators)
        # The template's bars stay, but those to regenerate, which the latent does not know.
        template = input_ids[rows]
        regenerate = torch.zeros(len(rows), self.config.max_bars, dtype=torch.bool, device=self.device)
        regenerate[:, bars] = True
        if self.config.latent_size:
            mean = self._latent_mean(input_ids, attention_mask)[rows]
            options |= {"guidance_scale": guidance_scale, "noise_level": noise_level}
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
        guidance_scale: float = 1.0,
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
            guidance_scale: Scale of classifier-free guidance; 1 is none.
            generator: Instead of a seed, one for each melody.
            noise_level: As in [`sample`], of the bars that are written.
            generate_kwargs: As in [`generate`].

        Returns:
            `(B, T)` ids, padded at both ends.

        Raises:
            ValueError: If a melody has no bar to begin with, or nothing is left to write.
        """
        check_buffers(self)
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
        options |= {
            "conditions": self._conditions(conditions, n),
            "guidance_scale": guidance_scale,
            "noise_level": noise_level,
        }
        return self._generate_after(primer, bars, bars, options)
