"""What one does with melodies: sample, vary, infill, continue, interpolate, shift, pieces longer than a latent.

Dimension key: B batch, T tokens, N bars, Z latent size, A attributes.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import DynamicCache

from .cache_melody_vae import CACHE_NAME
from .melody_line_melody_vae import key_of
from .note_editing_melody_vae import NoteEditingMixin

Conditions = Mapping[str, Any]
"""For each condition a value, and for each attribute standard deviations; one for all melodies, or one for each."""

Generators = Sequence[torch.Generator]
"""A source of random numbers for each melody, which then depends on its own alone, not on what else is in the batch."""

PER_MELODY = ("generator", "bars", "temperature", "scale", "time_signature", "lowest_pitch", "highest_pitch")
"""Options of `sample` that may be lists with one for each melody."""

GREEDY_OPTIONS = {"do_sample", "noise", "max_length", *PER_MELODY} - {"generator", "temperature"}

FEWEST_ROWS = 4  # products of fewer rows are summed up in another order (MKL), and might round to another token
NUMBERS_AT_ONCE = 64
FREE_DRAWS = 2  # of a melody in a key; in further ones nothing lies outside the key
# Of Heun's method; latents of 64 steps then differ by 0.013 of their standard deviation, at 32 by 0.005.
PRIOR_STEPS = 8
# Of a new section's noise, against a melody's: the melody decoder alone would go on as before, and ever more so.
NOISE_OF_SECTIONS = 0.75


def slerp(a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Interpolate on the great circle from `a` to `b` (Shoemake 1985); lengths change linearly.

    Args:
        a: `(Z,)`.
        b: `(Z,)`.
        weight: `(S,)` positions, 0 is a, 1 is b.

    Returns:
        `(S, Z)`. Nearly parallel vectors are interpolated in a straight line.
    """
    weight = weight[:, None]
    length_a, length_b = a.norm().clamp_min(1e-12), b.norm().clamp_min(1e-12)  # the prior's mean has no direction
    cosine = (a @ b / (length_a * length_b)).clamp(-1, 1)
    angle = cosine.arccos()
    if angle.sin().abs() < 1e-4:
        return (1 - weight) * a + weight * b
    arc = (((1 - weight) * angle).sin() * a / length_a + (weight * angle).sin() * b / length_b) / angle.sin()
    return arc * ((1 - weight) * length_a + weight * length_b)


def draw_normal(like: torch.Tensor, generator: Generators | None) -> torch.Tensor:
    """Draw from N(0, I) as many as `like` `(B, ...)` has, a row from its own generator or all from the global one."""
    if generator is None:
        return torch.randn_like(like)
    return torch.stack([torch.randn(like.shape[1:], generator=each, device=each.device) for each in generator]).to(like)


def draw_uniform(like: torch.Tensor, generator: Generators | None) -> torch.Tensor:
    """Draw from 0 to 1 as `draw_normal` does."""
    if generator is None:
        return torch.rand(like.shape, device=like.device)
    return torch.stack([torch.rand(like.shape[1:], generator=each, device=each.device) for each in generator]).to(
        like.device
    )


def is_list(value: Any) -> bool:
    """Whether an option has a value for each melody."""
    return isinstance(value, list | tuple)


def take_rows(options: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Keep of the options that have a value for each melody those of some melodies; what is for all stays."""
    per_melody = {name for name in PER_MELODY if is_list(options.get(name))}
    return {name: [value[row] for row in rows] if name in per_melody else value for name, value in options.items()}


def take_conditions(asked: Mapping[str, list], rows: Sequence[int]) -> dict[str, list]:
    """Keep of conditions, a list with one for each melody, those of some melodies."""
    return {name: [values[row] for row in rows] for name, values in asked.items()}


def choose(weights: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Find where the running sum of weights exceeds a share of the whole.

    Args:
        weights: `(B, V)`, none negative.
        share: `(B,)`, from 0 to just under 1; uniform ones choose each index as often as its weight says.

    Returns:
        `(B,)` indices; never one without weight.
    """
    sums = weights.cumsum(-1)
    return torch.searchsorted(sums, share[:, None].to(sums) * sums[:, -1:], right=True).squeeze(1)


def decode_apart(
    model,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    generator: Generators | None = None,
    temperatures: torch.Tensor | None = None,
    **model_kwargs,
) -> torch.Tensor:
    """Decode as transformers' sampling does, each melody with random numbers of its own, or greedily.

    A decoding loop for `generate(custom_generate=...)`. A token takes one number from 0 to 1, and a melody one number
    of its generator, from which all of these come: what else is in the batch, and for how long, makes no difference.
    The model no longer computes the melodies that are done once they are an eighth of the rest.

    Args:
        model: A [`MelodyVAEModel`].
        input_ids: `(B, T)`.
        logits_processor: As `generate` prepares it, like the three that follow and `model_kwargs`.
        stopping_criteria: When a melody is done.
        generation_config: Names the token that pads.
        generator: One for each melody; without, the most likely token is taken.
        temperatures: `(B,)`, of the softmax over tokens, beside the one temperature of `generation_config`.
        model_kwargs: Of `forward`.

    Returns:
        `(B, T')` ids, padded at the end.
    """
    own = []
    for each in generator or ():
        seed = int(torch.randint(2**62, (), generator=each, device=each.device))
        own.append(torch.Generator(each.device).manual_seed(seed))
    is_done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    rows = torch.arange(len(input_ids), device=input_ids.device)  # (A,) those that the model computes
    numbers = torch.empty(0)
    for step in itertools.count():
        new = 1 if step and model_kwargs.get("use_cache") else None
        inputs = model.prepare_inputs_for_generation(input_ids[rows], next_sequence_length=new, **model_kwargs)
        output = model(**inputs, return_dict=True)
        model_kwargs = model._update_model_kwargs_for_generation(output, model_kwargs)
        logits = output.logits.new_zeros(len(input_ids), output.logits.shape[-1], dtype=torch.float32)
        logits[rows] = output.logits[:, -1].float()
        scores = logits_processor(input_ids, logits)  # (B, V)
        if temperatures is not None:
            scores = scores / temperatures[:, None]
        if own and step % NUMBERS_AT_ONCE == 0:
            numbers = draw_uniform(scores.new_empty(len(scores), NUMBERS_AT_ONCE), own)
        token = choose(scores.softmax(-1), numbers[:, step % NUMBERS_AT_ONCE]) if own else scores.argmax(-1)
        token = token.masked_fill(is_done, generation_config.pad_token_id)
        input_ids = torch.cat([input_ids, token[:, None]], dim=-1)
        is_done = is_done | stopping_criteria(input_ids, scores)
        if is_done.all():
            break
        left = (~is_done[rows]).nonzero().squeeze(1)
        cache = model_kwargs.get(CACHE_NAME)
        if FEWEST_ROWS <= len(left) <= 8 / 9 * len(rows) and isinstance(cache, DynamicCache):
            cache.batch_select_indices(left)
            for name, value in model_kwargs.items():
                if isinstance(value, torch.Tensor) and value.shape[:1] == rows.shape:
                    model_kwargs[name] = value[left]
            rows = rows[left]
    return input_ids


class MelodyVAEGenerationMixin(NoteEditingMixin):
    """Operations of [`MelodyVAEModel`], which has `encode` and `generate`."""

    is_bar_token: torch.Tensor
    generate: Any

    def known_bars(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Which bars of the latent `input_ids` `(B, T)` hold, `(B, N)`."""
        num_bars = self.is_bar_token[input_ids].sum(-1, keepdim=True)  # (B, 1)
        return torch.arange(self.config.max_bars, device=input_ids.device) < num_bars

    def spread_over_latent(self, bars: torch.Tensor) -> torch.Tensor:
        """Repeat a value of each bar `(B, N)` for its share of the latent, `(B, Z)`."""
        return bars.repeat_interleave(self.config.latent_size // self.config.max_bars, dim=1)

    def conditions_of(self, conditions: Conditions | None, n: int) -> dict[str, list]:
        """Write conditions as a list for each of `n` melodies.

        Args:
            conditions: For each condition (`config.conditions`) one value, and for each attribute (`config.attributes`)
                standard deviations from the training data's mean; for all melodies, or a list with one for each, in
                which None leaves it open.
            n: Number of melodies.

        Raises:
            ValueError: If the model does not know a condition or a value.
        """
        if conditions and not self.config.num_prior_layers:
            raise ValueError(f"conditions {list(conditions)}: this model has no learned prior to ask (train_prior.py)")
        known = self.config.conditions or {}
        attributes = self.config.attributes or []
        asked = {}
        for name, value in (conditions or {}).items():
            if name not in known and name not in attributes:
                raise ValueError(f"unknown condition {name!r}; this model has {', '.join([*known, *attributes])}")
            values = [value] * n if isinstance(value, str | int | float) else list(value)
            if len(values) != n:
                raise ValueError(f"{len(values)} values of {name} for {n} melodies")
            for each in values:
                if each is None:
                    continue
                if name in known and each not in known[name]:
                    raise ValueError(f"unknown {name} {each!r}; this model has {', '.join(known[name])}")
                if name in attributes and not isinstance(each, int | float):
                    raise ValueError(f"{name}={each!r}: attributes are asked for in standard deviations, such as 1.0")
            asked[name] = values
        return asked

    def condition_labels(
        self, asked: Mapping[str, list], n: int, bars: int | Sequence[int] | torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Write the conditions and bars of `n` melodies as [`LatentPrior.forward`] takes them; the others are open."""
        labels = self.prior.open_labels(n)
        if bars is not None:
            labels["bars"] = torch.as_tensor(bars, device=self.device).clamp(max=self.config.max_bars).expand(n)
        for name, values in asked.items():
            if name in (self.config.attributes or []):
                values = [torch.nan if each is None else each for each in values]
                values = torch.tensor(values, dtype=torch.float32, device=self.device)
                labels["attributes"][:, (self.config.attributes or []).index(name)] = values
            else:
                known = [*(self.config.conditions or {})[name], None]  # the last one: left open
                labels[name] = torch.tensor([known.index(each) for each in values], device=self.device)
        return labels

    def sampling_options(self) -> dict[str, Any]:
        """Return the options of [`generate`] with which this model draws tokens."""
        return {"do_sample": True, "top_k": 0, "top_p": self.config.sampling_top_p}

    def prior_sample(
        self,
        n: int,
        input_ids: torch.Tensor | None = None,
        conditions: Conditions | None = None,
        guidance: float = 1.0,
        generator: Generators | None = None,
    ) -> torch.Tensor:
        """Draw `n` latents `(n, Z)` from the prior: the learned one where the model has it, else N(0, I).

        Args:
            n: Number of latents.
            input_ids: `(n, T)` beginnings of melodies; their bars get their posterior's mean, and the learned prior
                draws the others to fit them.
            conditions: See [`MelodyVAEGenerationMixin.conditions_of`].
            guidance: By how much conditions are exaggerated; 1 is not at all.
            generator: One for each latent; the global random state by default.
        """
        return self.sketch(n, input_ids, conditions, guidance, generator, noise=0.0)["latent"]

    @torch.no_grad()
    def sketch(
        self,
        n: int,
        input_ids: torch.Tensor | None = None,
        conditions: Conditions | None = None,
        guidance: float = 1.0,
        generator: Generators | None = None,
        noise: float | None = None,
        bars: int | Sequence[int] | torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """Draw `n` latents from the prior as `prior_sample` does, as options of [`generate`].

        `noise` says how much of them is left to the melody decoder, and `bars` how long the melodies will be, see
        [`MelodyVAEGenerationMixin.fill`].
        """
        asked = self.conditions_of(conditions, n)
        latent = torch.zeros(n, self.config.latent_size, device=self.device, dtype=self.dtype)
        is_known = torch.zeros(n, self.config.max_bars, dtype=torch.bool, device=self.device)
        if input_ids is not None:
            is_known = self.known_bars(input_ids)
            mean = self.encode(input_ids, input_ids.ne(self.config.pad_token_id).long()).latent_mean
            latent = torch.where(self.spread_over_latent(is_known), mean, latent)
        return self.fill(latent, is_known, asked, guidance, generator, noise, bars)

    def fill(
        self,
        latent: torch.Tensor,
        is_known: torch.Tensor,
        asked: Mapping[str, list],
        guidance: float = 1.0,
        generator: Generators | None = None,
        noise: float | None = None,
        bars: int | Sequence[int] | torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """Draw the bars of latents that are not known from the prior, on its way from noise as far as `noise` says.

        Args:
            latent: `(B, Z)`.
            is_known: `(B, N)`, bars that stay as they are.
            asked: Conditions, as `conditions_of` writes them.
            guidance: By how much conditions are exaggerated; 1 is not at all.
            generator: One for each latent; the global random state by default.
            noise: How much of the bars is still noise, from 0 (the prior draws them to the end) to 1 (the melody
                decoder, which is told, writes alone); `config.sampling_noise` by default, half of it where there are
                conditions.
            bars: Bars of the melodies, of each or of all; the learned prior decides by default.

        Returns:
            Options of [`generate`], `latent` and, where there is any, `noise`.

        Raises:
            ValueError: If the model was trained without noise, or `noise` is not from 0 to 1.
        """
        amount = self.usual_noise(asked) if noise is None else noise
        if amount and (not self.config.latent_noise or not 0 <= amount <= 1):
            told = "is not from 0 to 1" if self.config.latent_noise else "and a model trained without (latent_noise=0)"
            raise ValueError(f"noise={amount} {told}")
        told = latent.new_full((len(latent), self.config.max_bars), amount).masked_fill(is_known, 0.0)
        if self.config.num_prior_layers:
            labels = self.condition_labels(asked, len(latent), bars)
            latent = self.complete(latent, is_known, labels, 0.0, 1.0 - amount, guidance, generator)
        else:
            drawn = torch.where(self.spread_over_latent(is_known), latent, draw_normal(latent, generator))
            latent = self.bar_conditioner.add_noise(drawn, told, draw_normal(latent, generator)) if amount else drawn
        return {"latent": latent, "noise": told} if amount else {"latent": latent}

    def usual_noise(self, asked: Mapping[str, list]) -> float:
        """How much noise a melody under these conditions begins with."""
        # Of conditions, the time signature aside, the melody decoder hears from the latent alone.
        return self.config.sampling_noise / (2 if asked.keys() - {"time_signature"} else 1)

    def complete(
        self,
        latent: torch.Tensor,
        is_known: torch.Tensor,
        labels: dict[str, torch.Tensor],
        begin: float = 0.0,
        end: float = 1.0,
        guidance: float = 1.0,
        generator: Generators | None = None,
    ) -> torch.Tensor:
        """Draw the bars of latents `(B, Z)` that are not known, see [`LatentPrior.complete`]."""
        noise = draw_normal(self.prior.shares(latent), generator)
        return self.prior.complete(latent, is_known, labels, begin, end, guidance, PRIOR_STEPS, noise)

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

        The latent is taken back towards noise (Meng et al. 2022, arXiv:2108.01073), and the melody decoder, which is
        told how far, writes what it left open. In models without `config.latent_noise` the learned prior draws the
        latent anew from there; without one it is mixed with noise on the great circle.

        Args:
            latent: `(Z,)` or `(1, Z)`.
            n: Number of variations.
            similarity: 1 gives the melody itself, 0 melodies that have nothing to do with it.
            seed: Makes the result repeatable; the global random state is left alone.
            generator: Instead of a seed, one for each variation.
            generate_kwargs: As in [`generate`].

        Returns:
            `(n, T)` ids.

        Raises:
            ValueError: If `similarity` is not from 0 to 1, or there are not `n` generators.
        """
        if not 0 <= similarity <= 1:
            raise ValueError(f"similarity={similarity} is not from 0 to 1")
        self.check_generator(generator, seed, n)
        with self.seeded(seed):
            latents, options = latent.reshape(1, -1).expand(n, -1), {}
            if similarity < 1 and self.config.latent_noise:
                noise = latents.new_full((n, self.config.max_bars), 1 - similarity)
                latents = self.bar_conditioner.add_noise(latents, noise, draw_normal(latents, generator))
                options = self.sampling_options() | {"noise": noise}
                if generator is not None:
                    options["generator"] = generator
            elif similarity < 1 and self.config.num_prior_layers:
                is_known = torch.zeros(n, self.config.max_bars, dtype=torch.bool, device=self.device)
                labels = self.prior.open_labels(n)
                latents = self.complete(latents, is_known, labels, begin=similarity, generator=generator)
            elif similarity < 1:
                weight = torch.tensor([1 - similarity], device=latent.device, dtype=latent.dtype)
                noise = draw_normal(latents, generator)
                latents = torch.cat([slerp(*pair, weight) for pair in zip(latents, noise, strict=True)])
            return self.decode(latents, **self.apart({**options, **generate_kwargs}))

    def decode(self, latent: torch.Tensor, **generate_kwargs) -> torch.Tensor:
        """Decode latents `(B, Z)` into ids `(B, T)`; greedy unless `generate_kwargs` say otherwise."""
        options = {"do_sample": False, **generate_kwargs}
        if not options["do_sample"] and options.keys() <= GREEDY_OPTIONS:
            options["custom_generate"] = decode_apart  # the same tokens; the longest melody does not hold up the others
        return self.generate(latent=latent, **options)

    @contextmanager
    def seeded(self, seed: int | None) -> Iterator[None]:
        """Draw random numbers from a seed, and leave the global random state alone; None draws from the latter."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            yield

    def check_generator(self, generator: Generators | None, seed: int | None, n: int) -> None:
        """Refuse generators that are not one for each of `n` melodies, or that come with a seed."""
        if generator is None:
            return
        if seed is not None:
            raise ValueError(f"seed={seed} and generator: give one of them")
        if len(generator) != n:
            raise ValueError(f"{len(generator)} generators for {n} melodies")

    def sample(
        self,
        n: int,
        seed: int | None = None,
        temperature: float | Sequence[float] = 1.0,
        bars: int | Sequence[int] | None = None,
        conditions: Conditions | None = None,
        guidance: float = 1.0,
        attempts: int = 12,
        generator: Generators | None = None,
        noise: float | None = None,
        **generate_kwargs,
    ) -> torch.Tensor:
        """Sample `n` melodies from the prior.

        A time signature that is asked for holds by the tokens' grammar. A melody in another key than asked for is
        drawn again, from the third attempt on with no pitches outside the key; genre, tempo and attributes are in the
        hands of the prior.

        Args:
            n: Number of melodies.
            seed: Makes the result repeatable; the global random state is left alone.
            temperature: Of the softmax over tokens; with generators also one for each melody.
            bars: Bars per melody; `max_bars` by default; more are made section by section. One number for all, or one
                for each, none of them more than `max_bars`.
            conditions: What the melodies shall be like, such as `{"key": "D minor", "note_density": 1.0}`; see
                [`MelodyVAEGenerationMixin.conditions_of`].
            guidance: By how much conditions are exaggerated; 1 is not at all.
            attempts: How often a melody is drawn at most.
            generator: Instead of a seed, one for each melody, which then is the same in whatever batch it is drawn:
                bit by bit where matrix products do not depend on the number of rows (one thread of a CPU), else but
                for a rare token on which rounding decides.
            noise: How much of its latent a melody leaves to the melody decoder, from 0 to 1, see
                [`MelodyVAEGenerationMixin.fill`]; `config.sampling_noise` by default.
            generate_kwargs: As in [`generate`]; `scale`, `time_signature` and the range of pitches may be lists with
                one for each melody, or None where it is open.

        Returns:
            `(n, T)` ids, padded at the end.

        Raises:
            ValueError: If there are not `n` of what is given for each melody, or as in [`generate`].
        """
        asked = self.conditions_of(conditions, n)
        self.check_generator(generator, seed, n)
        bars = self.config.max_bars if bars is None else bars
        options = self.sampling_options() | {"temperature": temperature, "bars": bars, **generate_kwargs}
        if self.config.latent_size:
            options["noise"] = noise
        elif noise:
            raise ValueError(f"noise={noise}: this model has no latent")
        if generator is not None:
            options["generator"] = generator
        elif is_list(temperature):
            raise ValueError(f"temperature={temperature}, one for each melody: give generators too")
        for name in PER_MELODY:
            if is_list(options.get(name)) and len(options[name]) != n:
                raise ValueError(f"{len(options[name])} values of {name} for {n} melodies")
        if is_list(bars) and max(bars) > self.config.max_bars:
            raise ValueError(f"bars={bars}: where each melody has its own, at most max_bars={self.config.max_bars}")
        with self.seeded(seed):
            ids = self.draw(n, asked, guidance, options)
            for attempt in range(1, attempts):
                wrong = self.rows_in_another_key(ids, asked)
                if not wrong:
                    break
                own = take_rows(options, wrong)
                if attempt >= FREE_DRAWS and own.get("scale") is None:
                    own["scale"] = [asked["key"][row] for row in wrong]
                drawn = self.draw(len(wrong), take_conditions(asked, wrong), guidance, own)
                ids = self.replace_rows(ids, wrong, drawn)
        return ids

    def rows_in_another_key(self, ids: torch.Tensor, asked: Mapping[str, list]) -> list[int]:
        """List the melodies of `ids` `(B, T)` whose key is not the one asked for; none if the model cannot read."""
        if "key" not in asked or not self.config.grammar_columns:
            return []
        lines = self.read_lines(ids)
        pairs = enumerate(zip(lines, asked["key"], strict=True))
        return [row for row, (line, key) in pairs if key is not None and key_of(line) != key]

    def replace_rows(self, ids: torch.Tensor, rows: list[int], new: torch.Tensor) -> torch.Tensor:
        """Put melodies `new` `(R, U)` in place of some rows of `ids` `(B, T)`; padded at the end."""
        width = max(ids.shape[1], new.shape[1])
        pad = self.config.pad_token_id
        ids, new = (torch.nn.functional.pad(each, (0, width - each.shape[1]), value=pad) for each in (ids, new))
        ids[rows] = new
        return ids[:, : int(ids.ne(pad).sum(-1).max())]

    def draw(self, n: int, asked: Mapping[str, list], guidance: float, options: Mapping[str, Any]) -> torch.Tensor:
        """Generate `n` melodies; `asked` as `conditions_of` writes it, options of `generate` and those `PER_MELODY`."""
        options = dict(options)
        if "generator" in options and n < FEWEST_ROWS:
            rows = [*range(n), *[0] * (FEWEST_ROWS - n)]
            chosen = take_rows(options, rows)
            chosen["generator"][n:] = [each.clone_state() for each in chosen["generator"][n:]]
            drawn = self.draw(FEWEST_ROWS, take_conditions(asked, rows), guidance, chosen)[:n]
            return drawn[:, : int(drawn.ne(self.config.pad_token_id).sum(-1).max())]
        if "time_signature" in asked and self.config.grammar_columns:
            options.setdefault("time_signature", asked["time_signature"])
        bars = options.pop("bars")
        if not is_list(bars) and bars > self.config.max_bars:
            return self.compose(n, bars, asked, guidance, options)
        if self.config.latent_size:
            signature = options.get("time_signature")
            known = (self.config.conditions or {}).get("time_signature", ())
            if known and signature and "time_signature" not in asked:
                signatures = signature if is_list(signature) else [signature] * n
                asked = {**asked, "time_signature": [each if each in known else None for each in signatures]}
            noise = options.pop("noise", None)
            options |= self.sketch(n, None, asked, guidance, options.get("generator"), noise, bars)
        else:
            options["inputs"] = torch.full((n, 1), self.config.bos_token_id, device=self.device)
        return self.generate(bars=torch.as_tensor(bars), **self.apart(options))

    def apart(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Write options as `generate` takes them: with generators, [`decode_apart`] is the decoding loop."""
        options = dict(options)
        if "generator" in options:
            options["custom_generate"] = decode_apart
            if is_list(options.get("temperature")):
                options["temperatures"] = torch.tensor(options.pop("temperature"), device=self.device)
        return options

    def compose(
        self, n: int, bars: int, asked: Mapping[str, list], guidance: float, options: Mapping[str, Any]
    ) -> torch.Tensor:
        """Generate melodies longer than a latent, section by section.

        A section is half a latent. It is either an earlier one over again, as often as in the training data
        (`config.section_returns`), or it is generated to follow the one before. No note rings from one into the next.

        Args:
            n: Number of melodies.
            bars: Bars of each.
            asked: Conditions, as `conditions_of` writes them.
            guidance: By how much conditions are exaggerated.
            options: As in [`MelodyVAEGenerationMixin.draw`].

        Returns:
            `(n, T)` ids, padded at the end.
        """
        size = max(1, self.config.max_bars // 2)
        made: list[list[list[list[int]]]] = [[] for _ in range(n)]  # of each melody its sections, their bars' tokens
        while size * len(made[0]) < bars:
            count = min(size, bars - size * len(made[0]))
            returns = torch.tensor((self.config.section_returns or [])[: len(made[0])], device=self.device)
            lag = torch.full((n,), -1, device=self.device)
            if count == size and len(returns):  # half a section could end within a note
                chance = torch.cat([returns, (1 - returns.sum()).clamp_min(0)[None]])
                drawn = choose(chance.expand(n, -1), draw_uniform(lag[:, None], options.get("generator")).squeeze(1))
                lag = torch.where(drawn < len(returns), drawn, -1)
            new = [row for row, of in enumerate(lag.tolist()) if of < 0]
            sections = [list(melody[-1 - of]) if of >= 0 else [] for melody, of in zip(made, lag.tolist(), strict=True)]
            if new:
                primer = self.join_bars([made[row][-1] if made[row] else [] for row in new], is_open=True)
                known = size if made[0] else 0
                own = take_rows(options, new)
                if self.config.latent_size:
                    conditions = take_conditions(asked, new)
                    told = own.pop("noise", None)
                    if told is None and made[0]:
                        told = NOISE_OF_SECTIONS * self.usual_noise(conditions)
                    bars_told = self.config.max_bars  # the piece goes on
                    own |= self.sketch(len(new), primer, conditions, guidance, own.get("generator"), told, bars_told)
                if made[0]:
                    own["time_signature"] = None  # the primer has its own
                ids = self.generate(primer, bars=known + count, **self.apart(own))
                for row, section in zip(new, self.split_bars(ids), strict=True):
                    sections[row] = section[known:]
            for melody, section in zip(made, sections, strict=True):
                melody.append(section)
        return self.join_bars([[bar for section in melody for bar in section] for melody in made])

    def split_bars(self, ids: torch.Tensor) -> list[list[list[int]]]:
        """Return the tokens of each bar of `ids` `(B, T)`; what stands outside bars is left out."""
        special = {self.config.pad_token_id, self.config.bos_token_id, self.config.eos_token_id}
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

    def join_bars(self, melodies: list[list[list[int]]], is_open: bool = False) -> torch.Tensor:
        """Write bars' tokens as ids `(B, T)`; padded at the end, or where they are left open, at the beginning."""
        end = [] if is_open else [self.config.eos_token_id]
        rows = [[self.config.bos_token_id, *(token for bar in bars for token in bar), *end] for bars in melodies]
        length = max(map(len, rows))
        padding = [[self.config.pad_token_id] * (length - len(row)) for row in rows]
        padded = [pad + row if is_open else row + pad for row, pad in zip(rows, padding, strict=True)]
        return torch.tensor(padded, device=self.device)

    def infill(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        bars: Sequence[int] = (),
        seed: int | None = None,
        conditions: Conditions | None = None,
        guidance: float = 1.0,
        generator: Generators | None = None,
        noise: float | None = None,
        **generate_kwargs,
    ) -> torch.Tensor:
        """Generate some bars of melodies anew; the others come back as they are.

        Args:
            input_ids: `(B, T)`.
            attention_mask: `(B, T)`, 0 at padding.
            bars: Which bars, from 0.
            seed: Makes the result repeatable; the global random state is left alone.
            conditions: What the melodies shall be like; see [`MelodyVAEGenerationMixin.conditions_of`].
            guidance: By how much conditions are exaggerated; 1 is not at all.
            generator: Instead of a seed, one for each melody.
            noise: As in [`sample`], of the bars that are filled.
            generate_kwargs: As in [`generate`].

        Returns:
            `(B, T)` ids, padded at the end.

        Raises:
            ValueError: If a melody has no such bar, or the model does not know its tokens' grammar.
        """
        shortest = int(self.is_bar_token[input_ids].sum(-1).min())
        if wrong := [bar for bar in bars if not 0 <= bar < shortest]:
            raise ValueError(f"bar {wrong[0]} cannot be filled: bars count from 0 to {shortest - 1} here")
        regenerate = torch.zeros(len(input_ids), self.config.max_bars, dtype=torch.bool, device=self.device)
        regenerate[:, list(bars)] = True
        asked = self.conditions_of(conditions, len(input_ids))
        self.check_generator(generator, seed, len(input_ids))
        options = self.sampling_options() | generate_kwargs
        if generator is not None:
            options["generator"] = generator
        with self.seeded(seed):
            if self.config.latent_size:
                mean = self.encode(input_ids, attention_mask).latent_mean
                bars_told = self.is_bar_token[input_ids].sum(-1)
                options |= self.fill(mean, ~regenerate, asked, guidance, generator, noise, bars_told)
            else:
                options["inputs"] = torch.full_like(input_ids[:, :1], self.config.bos_token_id)
            return self.generate(template=input_ids, regenerate=regenerate, **self.apart(options))

    def reconstruct(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **generate_kwargs
    ) -> torch.Tensor:
        """Decode melodies from their posterior's mean, as many bars as they have, `(B, T)` ids."""
        posterior = self.encode(input_ids, attention_mask)
        bars = self.is_bar_token[input_ids].sum(-1)
        return self.decode(posterior.latent_mean, bars=bars, **generate_kwargs)

    def interpolate(self, a: torch.Tensor, b: torch.Tensor, steps: int = 7, **generate_kwargs) -> torch.Tensor:
        """Decode points on the great circle between two latents `(Z,)`, ends included, `(steps, T)` ids."""
        weight = torch.linspace(0, 1, steps, device=a.device, dtype=a.dtype)
        return self.decode(slerp(a.flatten(), b.flatten(), weight), **generate_kwargs)

    def interpolate_grid(self, corners: torch.Tensor, size: int = 5, **generate_kwargs) -> torch.Tensor:
        """Decode a square of points between four latents, its corners included.

        Args:
            corners: `(4, Z)`: top left, top right, bottom left, bottom right.
            size: Points along each side.
            generate_kwargs: As in [`generate`].

        Returns:
            `(size * size, T)` ids, row by row.
        """
        if corners.shape[0] != 4:
            raise ValueError(f"a grid has 4 corners, not {corners.shape[0]}")
        weight = torch.linspace(0, 1, size, device=corners.device, dtype=corners.dtype)
        left, right = slerp(corners[0], corners[2], weight), slerp(corners[1], corners[3], weight)  # (size, Z)
        rows = [slerp(a, b, weight) for a, b in zip(left, right, strict=True)]
        return self.decode(torch.cat(rows), **generate_kwargs)
