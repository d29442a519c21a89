"""Configuration of the melody VAE."""

from difflib import get_close_matches

from transformers import PreTrainedConfig

from .cache_melody_vae import OTHER_OUTPUTS
from .fingerprint_melody_vae import check, hash_conditions

# What transformers takes beside the fields and properties of `PreTrainedConfig`.
COMMON_ARGUMENTS = ("attn_implementation", "experts_implementation", "auto_map", "custom_pipelines")


class MelodyVAEConfig(PreTrainedConfig):
    """Shape and training constants of a [`MelodyVAEModel`].

    Args:
        vocab_size: Size of the tokenizer's vocabulary.
        bar_token_ids: Ids of the tokens that open a bar; the model counts bars by them.
        repeat_token_ids: Ids of the tokens that say "this bar is an earlier one over again"; none by default.
        repeat_lags: For each of them, how many bars earlier.
        hidden_size: Width of every layer (C).
        intermediate_size: Width of the feed-forward layers.
        num_encoder_layers: Layers of the melody encoder q(z|x), bidirectional.
        num_bar_layers: Layers over the bar vectors between the latent and the melody decoder.
        num_hidden_layers: Layers of the melody decoder p(x|z), causal.
        num_attention_heads: Heads of every attention (H); `hidden_size` must be a multiple.
        latent_size: Size of the latent (Z), a multiple of `max_bars`; 0 leaves a plain Music Transformer.
        max_bars: Bars that one latent holds.
        grammar_columns: Width of the table that says what each token stands for, see
            [`MelodyVAEModel.set_grammar`]; 0 while the model has none.
        fingerprint: Hashes of the tokens, their merges, the grammar and the conditions that the weights are of; None in
            earlier models. To change conditions or attributes, set it to None.
        num_prior_layers: Layers of the learned prior over latents; 0 leaves N(0, I).
        conditions: What the learned prior can be asked for: the values of each condition, by its name.
        attributes: What [`MelodyVAEModel.shift`] can change and samples can be asked for.
        decoder_conditions: Which of the conditions, and `attributes` if it is all of these, the melody decoder is
            conditioned on beside its latent.
        average_attributes: Whether attributes that are left open are those of an average melody where a latent without
            noise is decoded; set by `python -m evaluation.calibration` where more notes come back so.
        key_shares: How often each key of `conditions` is that of a training melody. A melody decoder that is
            conditioned on keys gets one drawn from these where none is asked for: without, it wanders between keys.
        section_returns: In melodies longer than a latent, the probability of repeating the section k back, k = 1, 2,
            ...
        max_relative_distance: Distance in tokens from which on relative embeddings are shared.
        musical_time: Whether tokens carry a bar-position embedding, and attention adds rotary encodings of bar time to
            the distance in tokens.
        musical_pitch: Whether attention adds rotary encodings of the latest note's pitch.
        previous_token: Whether to add a projection of the previous token's embedding to the melody decoder's input.
        dropout: Dropout rate of embeddings, attention and residual branches.
        token_dropout: Share of the melody decoder's input tokens that are masked in training, so that it has to
            read its latent (Bowman et al. 2016, arXiv:1511.06349).
        kl_weight: Weight (beta) of the KL term when `forward` is not given one.
        free_bits: Bits of KL per melody that cost nothing (MusicVAE, arXiv:1803.05428, has 256 at 16 bars).
        noise_probability: Share of the melodies whose latent is mixed with noise in training; the melody decoder is
            conditioned on the noise level, so that it can write with a latent that is known in part or not at all.
            None where the melody decoder is frozen.
        sampling_noise: Noise level at which `sample`, `infill` and continuations stop the prior's flow, from 0 to 1
            (the melody decoder writes as a language model); half of it under conditions, which only the prior reads.
            For models with `noise_probability`.
        variation_levels: Noise levels at which variations share 0, ..., 1 of their notes (F1) with the melody, evenly
            spaced; measured by `python -m evaluation.calibration`. By default a level is 1 less the similarity.
        sampling_top_p: Share of the probability that sampling draws each token from, the most probable ones first
            (Holtzman et al. 2020, arXiv:1904.09751); 1 is all.
        critic_size: Width of the critic that chooses among candidates, see [`MelodyCritic`]; 0 leaves it out. Trained
            by `python -m training.critic`.
        sampling_candidates: Melodies that `sample` draws for each one that it returns; for models with a critic.
        latent_log_variance_init: Log-variance of the posterior before training; a low one keeps the first
            samples readable.
        initializer_range: Standard deviation of the initial weights.
        layer_norm_eps: Epsilon of the layer norms.

    Raises:
        ValueError: If a name is unknown or a size does not fit another.
    """

    model_type = "melody_vae"
    keys_to_ignore_at_inference = OTHER_OUTPUTS
    attribute_map = {"latent_noise": "noise_probability"}  # noqa: RUF012 - names of older checkpoints

    vocab_size: int = 1024
    bar_token_ids: list[int] | None = None
    repeat_token_ids: list[int] | None = None
    repeat_lags: list[int] | None = None
    hidden_size: int = 256
    intermediate_size: int = 1024
    num_encoder_layers: int = 3
    num_bar_layers: int = 1
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    latent_size: int = 512
    max_bars: int = 16
    grammar_columns: int = 0
    fingerprint: dict[str, str] | None = None
    num_prior_layers: int = 0
    conditions: dict[str, list[str]] | None = None
    attributes: list[str] | None = None
    decoder_conditions: list[str] | None = None
    average_attributes: bool = False
    key_shares: list[float] | None = None
    section_returns: list[float] | None = None
    max_relative_distance: int = 256
    musical_time: bool = False
    musical_pitch: bool = False
    previous_token: bool = False
    dropout: float = 0.0
    token_dropout: float = 0.0
    kl_weight: float = 0.2
    free_bits: float = 256.0
    noise_probability: float = 0.0
    sampling_noise: float = 0.0
    variation_levels: list[float] | None = None
    sampling_top_p: float = 1.0
    critic_size: int = 0
    sampling_candidates: int = 1
    latent_log_variance_init: float = -3.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 2
    mask_token_id: int = 3

    def __post_init__(self, **kwargs):
        # Old names of fields.
        for old in self.attribute_map.keys() & kwargs.keys():
            setattr(self, old, kwargs.pop(old))
        # Only a saved configuration knows its transformers_version; other versions and libraries may have left more
        # in it, and it has to load all the same.
        if self.transformers_version is None:
            for name in kwargs:
                if not hasattr(PreTrainedConfig, name) and name not in COMMON_ARGUMENTS:
                    alike = get_close_matches(name, vars(self), n=1)
                    hint = f"; did you mean {alike[0]}?" if alike else ""
                    raise ValueError(f"unknown field {name}={kwargs[name]!r}{hint}")
        # What belongs to the decoder and the latent.
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}"
            )
        if self.max_bars < 1 or self.latent_size < 0:
            raise ValueError(f"max_bars={self.max_bars} must be positive, latent_size={self.latent_size} not negative")
        if self.latent_size % self.max_bars:
            raise ValueError(
                f"latent_size={self.latent_size} is not a multiple of max_bars={self.max_bars}: "
                "each bar has an equal share of the latent"
            )
        if not 0 <= self.noise_probability <= 1 or (self.noise_probability and not self.latent_size):
            raise ValueError(f"noise_probability={self.noise_probability} must be from 0 to 1, and 0 without a latent")
        if not 0 <= self.sampling_noise <= (1 if self.noise_probability else 0):
            raise ValueError(
                f"sampling_noise={self.sampling_noise} must be from 0 to 1, and 0 without noise_probability"
            )
        if not 0 < self.sampling_top_p <= 1:
            raise ValueError(f"sampling_top_p={self.sampling_top_p} must be more than 0, and 1 at most")
        for name in ("num_prior_layers", "critic_size"):
            if getattr(self, name) and not self.latent_size:
                raise ValueError(f"{name}={getattr(self, name)} without a latent: set latent_size")
        if self.sampling_candidates < 1 or (self.sampling_candidates > 1 and not self.critic_size):
            raise ValueError(
                f"sampling_candidates={self.sampling_candidates} must be positive, and 1 without a critic (critic_size)"
            )
        # Lists that a file left out are empty.
        self.bar_token_ids = self.bar_token_ids or []
        self.repeat_token_ids, self.repeat_lags = self.repeat_token_ids or [], self.repeat_lags or []
        if len(self.repeat_token_ids) != len(self.repeat_lags):
            raise ValueError(f"repeat_token_ids={self.repeat_token_ids} and repeat_lags={self.repeat_lags} go together")
        self.conditions = self.conditions or {}
        self.attributes = self.attributes or []
        self.section_returns = self.section_returns or []
        # The order of conditions and attributes is part of the weights: their embeddings are numbered by it.
        own = {"conditions": hash_conditions(self.conditions, self.attributes)}
        check(self.fingerprint, own, "other conditions or attributes, or in another order")
        self.decoder_conditions = self.decoder_conditions or []
        if self.key_shares and len(self.key_shares) != len(self.conditions.get("key", ())):
            raise ValueError(f"key_shares: {len(self.key_shares)} shares of {len(self.conditions.get('key', ()))} keys")
        if unknown := set(self.decoder_conditions) - {*self.conditions, "attributes"}:
            raise ValueError(f"decoder_conditions: {sorted(unknown)[0]!r} is none of the conditions")
        super().__post_init__(**kwargs)
