"""Melodies written by the grammar, and sampled: of several candidates the best, section by section where they are long.

Dimension key: B batch, T tokens, N bars, Z latent size, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .decoding import StepDecoder, draw_tokens, write_melodies
from .grammar_state_melody_vae import GrammarState, Wanted, log_sum_exp
from .latents import Generators, LatentModel, make_generators
from .melody_line_melody_vae import known_key
from .options_melody_vae import (
    LONGEST_REST,
    PER_MELODY,
    check_candidates,
    default_noise_level,
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
from .token_grammar_melody_vae import TokenColumn, scale_mask


def as_lists(options: Mapping[str, Any]) -> dict[str, Any]:
    """Write arrays with a value for each melody as lists."""
    return {
        name: value.tolist() if name in PER_MELODY and isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }


class SamplingModel(LatentModel):
    """What writes melodies from latents, and samples them; arguments as of [`LatentModel`]."""

    def decode(self, latent: np.ndarray, seed: int | None = None, **options) -> np.ndarray:
        """Decode latents `(B, Z)` into ids `(B, T)`; greedily, unless there is a seed or a generator for each.

        Args:
            latent: `(B, Z)`.
            seed: Makes sampling repeatable.
            options: As in [`generate`].
        """
        if seed is not None:
            options["generator"] = make_generators(len(latent), seed)
        return self.generate(latent, **options)

    def generate(
        self,
        latent: np.ndarray | None = None,
        input_ids: np.ndarray | None = None,
        bars: int | Sequence[int] | np.ndarray | None = None,
        noise_level: float | np.ndarray | None = None,
        conditions: Mapping[str, Any] | None = None,
        scale: str | Sequence[str | None] | None = None,
        time_signature: str | Sequence[str | None] | None = None,
        lowest_pitch: int | Sequence[int | None] | None = None,
        highest_pitch: int | Sequence[int | None] | None = None,
        template: np.ndarray | None = None,
        regenerate: Sequence[int] = (),
        max_rest: float | None = None,
        generator: Generators | None = None,
        temperature: float | Sequence[float] = 1.0,
        top_p: float = 1.0,
        max_length: int | None = None,
        opens_bar: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Write melodies.

        Args:
            latent: `(B, Z)`; needed unless the model has none.
            input_ids: `(B, T)` beginnings of the melodies, padded on the left; the start token by default.
            bars: Bars that each melody shall have, a number or `(B,)`; the model decides by default.
            noise_level: How much of the latent is noise, from 0 to 1; a number, or `(B, N)` for each bar.
            conditions: Of the melody decoder, as in [`sample`].
            scale: Such as `D dorian`: the only pitches. One for all, or one for each, as the three that follow.
            time_signature: Such as `6/8`; the model's choice by default.
            lowest_pitch: MIDI pitch.
            highest_pitch: MIDI pitch.
            template: `(B, T)` ids of melodies to keep bars of.
            regenerate: Which of their bars to write anew, from 0.
            max_rest: Bars that a rest between notes may last; any by default.
            generator: Source of random numbers for each melody; by default the most likely token is taken.
            temperature: Of the softmax over tokens, one for all or one for each.
            top_p: Share of the probability that tokens are drawn from.
            max_length: Tokens to stop at, the beginning's included.
            opens_bar: Whether the first new token has to open a bar.
            progress: Called before each token with the number of bars that all melodies have begun.

        Returns:
            `(B, T)` ids, padded at the end.

        Raises:
            ValueError: If no melody can be like this, or there is a latent too much or none.
        """
        config = self.config
        if (latent is None) == bool(config["latent_size"]):
            given = "no" if latent is None else "a"
            raise ValueError(f"latent_size={config['latent_size']}, and {given} latent given")
        n = next((len(part) for part in (latent, input_ids, template) if part is not None), 1)
        if not n:
            return np.empty((0, 0), dtype=np.int64)
        # One value, or one for each melody.
        asked = {"bars": bars, "scale": scale, "time_signature": time_signature, "temperature": temperature}
        asked = as_lists(asked | {"lowest_pitch": lowest_pitch, "highest_pitch": highest_pitch})
        temperatures = for_each("temperature", asked.pop("temperature"), n)
        wanted = self._wanted(n, asked.pop("bars"), max_rest, **asked)
        length = config["max_length"] if max_length is None else max_length
        # A template's bars may have more tokens than new ones.
        if template is not None:
            length += template.shape[1] if max_length is None else 0
            self._keep_template(wanted, template, regenerate, bars is None)
        if latent is None:
            bar_conditions = None
        else:
            bar_conditions = self.bar_conditions(latent, noise_level, self.check_conditions(conditions, n))
        primer = np.full((n, 1), config["bos_token_id"]) if input_ids is None else input_ids
        is_first = None
        if opens_bar:  # a token that opens none could put more notes into the last bar that is there
            is_first = self.table.opens_bar.copy()
            is_first[[*self.repeats.values()]] = True
        rows = write_melodies(
            self._step_decoder(n, bar_conditions),
            [GrammarState(self.table, each) for each in wanted],
            primer.astype(np.int64),
            length,
            generator,
            np.array(temperatures, dtype=np.float32),
            top_p,
            is_first,
            progress,
        )
        return self._pad(rows)

    def unconditional_nats(self, ids: np.ndarray) -> np.ndarray:
        """Nats of each token of `(B, T)` after the first, `(B, T - 1)`, for the melody decoder without a latent.

        Tokens that the grammar copies cost none.
        """
        config, n = self.config, len(ids)
        latent = np.zeros((n, config["latent_size"]), np.float32)
        decoder = self._step_decoder(n, self.bar_conditions(latent, noise_level=1.0))
        is_padding, nats = ids == config["pad_token_id"], np.zeros((n, ids.shape[1] - 1), np.float32)
        for place, (token, following) in enumerate(pairwise(np.ascontiguousarray(ids.T))):
            logits = decoder(token, is_padding[:, place])
            nats[:, place] = log_sum_exp(logits) - logits[np.arange(n), following]
        return np.where(is_padding | self._copied_tokens(ids), 0, np.pad(nats, ((0, 0), (1, 0))))[:, 1:]

    def _copied_tokens(self, ids: np.ndarray) -> np.ndarray:
        """Whether each token belongs to such a bar, as `copied_tokens` of the model finds it."""
        opens, is_repeat, place = self.table.opens_bar[ids], self._is_repeat(ids), np.arange(ids.shape[1])
        follows = np.roll(is_repeat, 1, axis=-1) & (place > 0) & opens
        is_edge = opens | is_repeat | (ids == self.config["eos_token_id"])
        return np.take_along_axis(follows, np.maximum.accumulate(np.where(is_edge, place, 0), axis=-1), axis=-1)

    def _step_decoder(self, n: int, bar_conditions: np.ndarray | None) -> StepDecoder:
        return StepDecoder(self._session("decoder"), self.config, self.table, n, bar_conditions)

    def _wanted(self, n: int, bars: Any, max_rest: float | None, **asked: Any) -> list[Wanted]:
        """Write options of [`generate`] as what each melody is to be."""
        most = self.config["max_bars"]
        if bars is not None and np.max(bars) > most and self.config["latent_size"]:
            raise ValueError(
                f"bars={np.max(bars)}: a latent holds at most max_bars={most}; sample(bars=...) writes longer ones"
            )
        lists = {name: for_each(name, value, n) for name, value in {"bars": bars, **asked}.items()}
        wanted = []
        for count, scale, signature, low, high in zip(*lists.values(), strict=True):
            if count is not None and count < 1:
                raise ValueError(f"bars={count}: a melody has at least one bar")
            pitches = (
                0xFFF if scale is None else scale_mask(scale),
                0 if low is None else int(low),
                127 if high is None else int(high),
            )
            self.table.usable_phases(pitches)
            number = (0, 0) if signature is None else self.table.time_signature(signature)
            wanted.append(Wanted(most if count is None else int(count), count is None, number, pitches, max_rest))
        return wanted

    def _keep_template(self, wanted: list[Wanted], template: np.ndarray, regenerate: Sequence[int], own: bool) -> None:
        """Let melodies keep the bars of a template `(B, T)` but for some; `own` bars are those that it has."""
        for each, melody in zip(wanted, self._split_bars(template), strict=True):
            each.kept = {index: bar for index, bar in enumerate(melody) if index not in regenerate}
            each.bars, each.model_ends = len(melody) if own and melody else each.bars, False
            signed = (self.table.rows[token] for bar in melody for token in bar)
            columns = TokenColumn.TIME_SIGNATURE, TokenColumn.BAR_STEPS
            each.signature = next(
                ((row[columns[0]], row[columns[1]]) for row in signed if row[columns[0]]), each.signature
            )

    def sample(
        self,
        n: int,
        seed: int | None = None,
        temperature: float | Sequence[float] = 1.0,
        bars: int | Sequence[int] | None = None,
        conditions: Mapping[str, Any] | None = None,
        guidance_scale: float = 1.0,
        max_attempts: int = 12,
        generator: Generators | None = None,
        noise_level: float | None = None,
        candidates: int | None = None,
        **options,
    ) -> np.ndarray:
        """Sample `n` melodies from the prior, as `MelodyVAEModel.sample` does.

        Args:
            n: Number of melodies.
            seed: Makes the result repeatable: melody i of a seed is the same for every `n`, but for a rare token on
                which rounding decides.
            temperature: Of the softmax over tokens; one for all, or one for each.
            bars: Bars per melody; `max_bars` by default; more are written section by section. One number for all, or
                one for each, none of them more than `max_bars`.
            conditions: Such as `{"key": "D minor", "note_density": 1.0}`; for all, or a list with one for each, in
                which None leaves it open.
            guidance_scale: Scale of classifier-free guidance; 1 is none.
            max_attempts: How often a melody in another key than asked for is sampled at most.
            generator: Instead of a seed, one for each melody.
            noise_level: How much of its latent a melody leaves to the melody decoder, from 0 to 1;
                `config.sampling_noise` by default.
            candidates: Drawn for each melody; the one is kept that the critic takes most for a training melody.
                `config.sampling_candidates` by default; melodies longer than a latent are drawn once.
            options: As in [`generate`]: `scale`, `time_signature`, `top_p`, ...

        Returns:
            `(n, T)` ids, padded at the end.

        Raises:
            ValueError: If there are not `n` of what is given for each melody, or as in [`generate`].
        """
        # One value, or one for each melody: all are checked before anything is drawn.
        checked = self.check_conditions(conditions, n)
        asked = self._sampling_options() | {
            "temperature": temperature,
            "bars": self.config["max_bars"] if bars is None else bars,
            "conditions": checked,
            "guidance_scale": guidance_scale,
            "noise_level": noise_level,
            "generator": make_generators(n, seed, generator),
            **options,
        }
        asked = as_lists(asked)
        for name in PER_MELODY:
            for_each(name, asked.get(name), n)
        asked["time_signature"] = one_time_signature(asked.get("time_signature"), checked, n)
        if not n:
            return np.empty((0, 0), dtype=np.int64)
        # The critic chooses among candidates; melodies in another key than asked for are drawn again.
        config = self.config
        count = check_candidates(
            candidates, asked["bars"], config["max_bars"], config["sampling_candidates"], bool(config["critic_size"])
        )
        ids = self._sample_best(n, count, asked)
        return draw_again(
            ids,
            asked,
            max_attempts,
            lambda ids: self._rows_in_another_key(ids, checked),
            lambda n, again: self._sample_best(n, count, again),
            self._replace_rows,
        )

    # Batches and sections of sampled melodies.

    def _sample_best(self, n: int, count: int, options: Mapping[str, Any]) -> np.ndarray:
        """Draw `count` candidates for each of `n` melodies, transpose them, and keep of each the best in its key."""
        _, options = for_candidates(options, n, count, np.random.Generator.spawn)
        ids = self._transpose_to_keys(self._sample_batch(n * count, options), options)
        return ids if count == 1 else self._choose(ids, count, options["conditions"])

    def _choose(self, ids: np.ndarray, count: int, conditions: Mapping[str, list]) -> np.ndarray:
        """Keep of `ids` `(B count, T)`, candidates of one melody after the other, the best of each by the critic."""
        (scores,) = self._run("critic", {"latent": self.encode(ids)[0], "bars": self.num_bars(ids)})
        scores[self._rows_in_another_key(ids, conditions)] -= 1e4  # more than any logit
        return self._take_candidates(ids, scores.reshape(-1, count).argmax(-1), count)

    def _take_candidates(self, ids: np.ndarray, best: np.ndarray, count: int) -> np.ndarray:
        """Keep of `ids` `(B count, T)`, those of one melody after the other, the ones numbered by `best` `(B,)`."""
        chosen = ids[np.arange(len(best)) * count + best]
        return chosen[:, : int((chosen != self.config["pad_token_id"]).sum(-1).max())]

    def _sample_batch(self, n: int, options: Mapping[str, Any]) -> np.ndarray:
        """Write `n` melodies once, by the options of [`sample`]."""
        options = dict(options)
        bars = options.pop("bars")
        if not is_list(bars) and bars > self.config["max_bars"]:
            return self._sample_sections(n, bars, options)
        if self.config["latent_size"]:
            known, signature = self.config["conditions"].get("time_signature", ()), options.get("time_signature")
            options["conditions"] = with_time_signature(options["conditions"], signature, known, n)
        return self._generate_after(np.full((n, 1), self.config["bos_token_id"]), bars, bars, options)

    def _generate_after(
        self, primer: np.ndarray, bars: Any, bars_of_latent: Any, options: Mapping[str, Any]
    ) -> np.ndarray:
        """Sample latents that fit a primer `(B, T)`, and write what follows it, up to so many bars."""
        options, num_bars = dict(options), self.num_bars(primer)
        if self.config["latent_size"]:
            is_known = np.arange(self.config["max_bars"]) < num_bars[:, None]
            known = self.encode(primer)[0] if num_bars.any() else None
            options = self._with_latent(primer, options, known, is_known, bars_of_latent)
        else:
            for name in ("conditions", "guidance_scale", "noise_level"):  # it has no prior that could read them
                options.pop(name, None)
        return self.generate(input_ids=primer, bars=bars, **options)

    def _with_latent(
        self, ids: np.ndarray, options: Mapping[str, Any], known: np.ndarray | None, is_known: np.ndarray, bars: Any
    ) -> dict[str, Any]:
        """Put latents, and the noise level of each bar, in place of the options that say how to sample them.

        Args:
            ids: `(B, T)` what there is of the melodies.
            options: Of [`generate`], and those.
            known: `(B, Z)` latents of which some bars are kept.
            is_known: `(B, N)` which.
            bars: Of the melodies.
        """
        options = dict(options)
        conditions, level = options["conditions"], options.pop("noise_level", None)
        if level is None:
            level = self._default_noise_level(conditions)
        elif level and not self.config["noise_probability"]:
            raise ValueError(f"noise_level={level:g} and a model trained without (noise_probability=0)")
        guidance_scale = options.pop("guidance_scale", 1.0)
        latent = self.sample_latent(options["generator"], known, is_known, conditions, guidance_scale, level, bars)
        levels = {"noise_level": np.where(is_known, 0.0, level).astype(np.float32)} if level else {}
        options["conditions"] = self._with_keys(conditions, ids, options["generator"])
        return {**options, "latent": latent, **levels}

    def _with_keys(self, conditions: Mapping[str, list], ids: np.ndarray, generator: Generators) -> dict[str, list]:
        """Add to conditions the keys of what there is of melodies `(B, T)`, or keys drawn as in the training data."""
        shares = self.config["key_shares"]
        if not shares or "key" not in self.config["decoder_conditions"]:
            return dict(conditions)
        sums, known = np.cumsum(shares), self.config["conditions"]["key"]
        drawn = [known[np.searchsorted(sums, source.random() * sums[-1], side="right")] for source in generator]
        keys = []
        for asked, line, key in zip(conditions.get("key", [None] * len(ids)), self.read_lines(ids), drawn, strict=True):
            keys.append(asked or (known_key(line, known) if line["pitch"] else key))
        return {**conditions, "key": keys}

    def _sample_sections(self, n: int, bars: int, options: Mapping[str, Any]) -> np.ndarray:
        """Write melodies longer than a latent, section by section of half a latent, as `MelodyVAEModel` does."""

        def draw_lags(num_sections: int) -> list[int]:
            return self._draw_lags(n, num_sections, options["generator"])

        def write(rows: list[int], before: list[list[list[int]]], count: int) -> list[list[list[int]]]:
            return self._split_bars(self._sample_next_section(before, count, take_rows(options, rows)))

        return self._join_bars(write_sections(n, bars, max(1, self.config["max_bars"] // 2), draw_lags, write))

    def _draw_lags(self, n: int, num_sections: int, generator: Generators) -> list[int]:
        """Draw for each melody how many sections back the one is that it repeats now, from 0; -1 for none."""
        returns = self.config["section_returns"][:num_sections]
        if not returns:
            return [-1] * n
        with np.errstate(divide="ignore"):
            scores = np.log([[*returns, max(1 - sum(returns), 0)]]).repeat(n, axis=0)
        drawn = draw_tokens(scores, np.array([source.random() for source in generator]), top_p=1.0)
        return [lag if lag < len(returns) else -1 for lag in drawn.tolist()]

    def _sample_next_section(self, before: list[list[list[int]]], count: int, options: dict[str, Any]) -> np.ndarray:
        """Write `count` bars after the section before; returns ids with both."""
        known = len(before[0])
        if known:
            options = for_next_section(options, self._default_noise_level(options["conditions"]))
        primer = self._join_bars(before, is_open=True)
        return self._generate_after(primer, known + count, self.config["max_bars"], options)  # the melody goes on

    def _rows_in_another_key(self, ids: np.ndarray, conditions: Mapping[str, list]) -> list[int]:
        """List the melodies of `ids` `(B, T)` whose key is not the condition's."""
        if "key" not in conditions:
            return []
        return rows_in_another_key(self.read_lines(ids), conditions["key"])

    def _transpose_to_keys(self, ids: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
        """Transpose melodies `(B, T)` to the keys asked for where their mode is the same.

        Those stay as they are whose scale or range was asked for, or that would leave the vocabulary.
        """
        wrong = self._rows_in_another_key(ids, options["conditions"])
        if not wrong:
            return ids
        moved = transpose_rows(wrong, self.read_lines(ids[wrong]), options, self._pitches)
        return self._replace_rows(ids, list(moved), self.write_lines(moved.values())) if moved else ids

    @property
    def _pitches(self) -> list[int]:
        return self.writer.values("Pitch")

    def _replace_rows(self, ids: np.ndarray, rows: Sequence[int], new: np.ndarray) -> np.ndarray:
        """Put melodies `new` `(R, U)` in place of some rows of `ids` `(B, T)`; padded at the end."""
        pad = self.config["pad_token_id"]
        melodies = [[token for token in row if token != pad] for row in ids.tolist()]
        for row, melody in zip(rows, new.tolist(), strict=True):
            melodies[row] = [token for token in melody if token != pad]
        return self._pad(melodies)

    # Options and conditions.

    def _sampling_options(self) -> dict[str, Any]:
        """Return the options of [`generate`] with which this model samples tokens."""
        return {"top_p": self.config["sampling_top_p"], "max_rest": LONGEST_REST}

    def _default_noise_level(self, conditions: Mapping[str, list]) -> float:
        """How noisy the latents of melodies under these conditions are by default."""
        level, *known = (self.config[name] for name in ("sampling_noise", "decoder_conditions", "attributes"))
        return default_noise_level(level, conditions, *known)
