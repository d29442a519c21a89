"""Melody VAE: a melody encoder, one latent per melody, a melody decoder, both with relative attention.

    input_ids --> melody encoder (bidirectional) --> one vector per bar --> latent_mean, latent_log_variance
                       q(z|x)                                                          |
                                                                                    latent z
                                                                                       |
    input_ids --> melody decoder (causal) <-- added to every layer <-- bar layers <-- share of each bar
                       p(x|z)                 at the tokens of the bar

Dimension key: B batch, T tokens, N bars, C hidden size, Z latent size, V vocabulary, K decoder layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .cache_melody_vae import CACHE_NAME, given_cache
from .conditioning_melody_vae import BarConditioner, ConditionEmbedding
from .configuration_melody_vae import MelodyVAEConfig
from .critic_melody_vae import MelodyCritic
from .fingerprint_melody_vae import FingerprintedModel
from .generation_melody_vae import MelodyVAEGenerationMixin
from .melody_encoder_melody_vae import EncodingMixin, MelodyEncoder, MelodyVAEPosterior
from .musical_position_melody_vae import BarPositionEmbedding, rotation_of
from .pipeline_melody_vae import custom_pipelines
from .prior_melody_vae import LatentPrior
from .relative_attention import MelodyVAELayer, RelativeAttention, ResidualLinear, ZeroLinear
from .token_grammar_melody_vae import MAX_TOKENS_PER_BAR
from .vocabulary_melody_vae import VocabularyMixin

NATS_PER_BIT = 0.6931471805599453  # ln 2


@dataclass
class MelodyVAEOutput(CausalLMOutputWithPast):
    """Output of [`MelodyVAEModel`]: transformers' own of a causal language model, and what a VAE has beside it.

    Args:
        loss: Scalar, see [`MelodyVAEModel.forward`].
        logits: `(B, T, V)`.
        cache: Keys and values of the melody decoder; `past_key_values` up to transformers 5.23.
        hidden_states: `(B, T, C)` before each layer of the melody decoder and after the last, where asked for.
        reconstruction_nats: Scalar, nats per melody.
        kl_nats: Scalar, nats per melody, before free bits and weight.
        latent_mean: `(B, Z)`, where the melody encoder ran.
        latent_log_variance: `(B, Z)`, likewise.
    """

    reconstruction_nats: torch.Tensor | None = None
    kl_nats: torch.Tensor | None = None
    latent_mean: torch.Tensor | None = None
    latent_log_variance: torch.Tensor | None = None

    def add_loss(
        self,
        labels: torch.Tensor,
        tokens_per_melody: float | torch.Tensor | None,
        kl_weight: float = 0.0,
        free_bits: float = 0.0,
    ) -> None:
        """Set the loss and what it consists of, see [`MelodyVAEModel.forward`]; no KL where there is no posterior."""
        if tokens_per_melody is None:
            tokens_per_melody = (labels[:, 1:] != -100).sum().clamp_min(1) / len(labels)
        assert self.logits is not None
        self.reconstruction_nats = reconstruction_nats(self.logits, labels).mean()
        self.loss = self.reconstruction_nats / tokens_per_melody
        if self.latent_mean is not None:
            kl_nats = MelodyVAEPosterior(self.latent_mean, self.latent_log_variance).kl_nats()
            paid = (kl_nats - free_bits * NATS_PER_BIT).clamp_min(0).mean()
            self.kl_nats = kl_nats.mean()
            self.loss = self.loss + kl_weight * paid / tokens_per_melody


def refuse_arguments(**arguments: object) -> None:
    """Refuse arguments of transformers' models that this one does not have, where they ask for anything.

    Raises:
        ValueError: If one is neither None nor False.
    """
    for name, value in arguments.items():
        if value is not None and value is not False:
            raise ValueError(f"{name}: this model does not support it")


def reconstruction_nats(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each melody's tokens.

    Args:
        logits: `(B, T, V)`.
        labels: `(B, T)`, aligned with the input (position t is predicted from t - 1); -100 is not counted.

    Returns:
        `(B,)` nats, summed over tokens.
    """
    labels = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)  # of each position the next; slicing logits copies
    nats = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
    return nats.view(labels.shape).sum(-1)


class MelodyVAEPreTrainedModel(FingerprintedModel, PreTrainedModel):
    """Weight initialisation and what the model supports."""

    config: MelodyVAEConfig
    config_class = MelodyVAEConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MelodyVAELayer", "MelodyEncoder", "BarConditioner", "LatentPrior", "MelodyCritic"]  # noqa: RUF012 - the base class's own form
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @property
    def device(self) -> torch.device:
        """Where the model computes; between uses, offloaded weights lie on no device (`meta`)."""
        device = super().device
        if device.type == "meta":
            hooks = (getattr(module, "_hf_hook", None) for module in self.modules())
            used = {getattr(hook, "execution_device", None) for hook in hooks} - {None}
            return torch.device(used.pop()) if len(used) == 1 else device
        return device

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        std = self.config.initializer_range
        depth = self.config.num_encoder_layers + self.config.num_bar_layers + self.config.num_hidden_layers
        if isinstance(module, RelativeAttention):
            module.init_weights(std)
        elif isinstance(module, ResidualLinear):
            init.normal_(module.weight, mean=0.0, std=std / (2 * depth) ** 0.5)
        elif isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
        elif isinstance(module, MelodyEncoder):
            init.normal_(module.absent_bar, mean=0.0, std=std)
            init.constant_(module.log_variance_proj.bias, self.config.latent_log_variance_init)
        elif isinstance(module, BarConditioner):
            init.normal_(module.bar_embedding, mean=0.0, std=std)
            init.normal_(module.edge_embedding, mean=0.0, std=std)
        elif isinstance(module, ConditionEmbedding):
            init.zeros_(module.attribute_mean)
            init.ones_(module.attribute_scale)
            if isinstance(module, LatentPrior):
                init.normal_(module.bar_embedding, mean=0.0, std=std)
                init.zeros_(module.mean)
                init.ones_(module.scale)
            else:  # a trained melody decoder goes on as it was
                for weight in module.parameters():
                    init.zeros_(weight)
        elif isinstance(module, MelodyCritic):
            init.zeros_(module.mean)
            init.ones_(module.scale)
        elif isinstance(module, MelodyVAEModel):
            init.copy_(module.is_bar_token, module._bar_token_mask())
            if self.config.grammar_columns:
                init.zeros_(module.token_grammar)


class MelodyVAEModel(
    VocabularyMixin, EncodingMixin, MelodyVAEGenerationMixin, MelodyVAEPreTrainedModel, GenerationMixin
):
    """Variational autoencoder of melodies; with `latent_size=0` a Music Transformer.

    What one does with it (sample, vary, infill, interpolate, shift, ...) is in [`MelodyVAEGenerationMixin`], what it
    knows of its tokens in [`VocabularyMixin`], and `encode` in [`EncodingMixin`].

    Args:
        config: A [`MelodyVAEConfig`].
    """

    is_bar_token: torch.Tensor
    token_grammar: torch.Tensor
    _is_plain = True  # [`StepDecoder`] can compute what its `forward` does
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}  # noqa: RUF012 - the base class's own form

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if vars(cls).keys() & {"forward", "_embed", "_add_position_embeddings", "musical_position", "musical_pitch"}:
            cls._is_plain = False

    def __init__(self, config: MelodyVAEConfig):
        config.custom_pipelines = custom_pipelines()
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.dropout = nn.Dropout(config.dropout)
        if config.musical_time:
            self.time_embedding = BarPositionEmbedding(config)  # the name in published weights
        if config.previous_token:
            self.previous_proj = ZeroLinear(config.hidden_size, config.hidden_size, bias=False)
        if config.latent_size:
            self.melody_encoder = MelodyEncoder(config)
            self.bar_conditioner = BarConditioner(config)
        if config.num_prior_layers:
            self.prior = LatentPrior(config)
        if config.critic_size:
            self.critic = MelodyCritic(config)
        if config.grammar_columns:
            shape = (config.vocab_size, config.grammar_columns)
            self.register_buffer("token_grammar", torch.zeros(shape, dtype=torch.int32))
        self.layers = nn.ModuleList(
            MelodyVAELayer(config, index, is_causal=True) for index in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.register_buffer("is_bar_token", self._bar_token_mask())
        self._has_grammar = False
        self.post_init()
        self.generation_config.max_length = (MAX_TOKENS_PER_BAR + bool(config.repeat_lags)) * config.max_bars + 2

    def _add_position_embeddings(
        self, embedded: torch.Tensor, musical_position: torch.Tensor, pitch: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Add bar-position embeddings to tokens `(B, T, C)`; returns them and the rotation of queries and keys."""
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        if not self.config.musical_time:
            return embedded, rotation_of(head_dim, None, pitch)
        return embedded + self.time_embedding(musical_position), rotation_of(head_dim, musical_position, pitch)

    def _embed(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        musical_position: torch.Tensor,
        pitch: torch.Tensor | None,
        previous_ids: torch.Tensor | None,
        cache: Cache | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embed tokens `(B, T)` for the melody decoder; returns `(B, T, C)` and the rotation of queries and keys."""
        hidden_states, rotation = self._add_position_embeddings(self.embed_tokens(input_ids), musical_position, pitch)
        if self.config.previous_token:
            previous_ids = self.previous_ids(input_ids) if previous_ids is None else previous_ids
            hidden_states = hidden_states + self.previous_proj(self.embed_tokens(previous_ids))
        return self.dropout(hidden_states), rotation

    def _bar_one_hot(self, musical_position: torch.Tensor) -> torch.Tensor:
        """Rows of [`BarConditioner`]'s table for musical positions `(B, T)`, one-hot, `(B, T, N + 1)`."""
        rows = (musical_position.floor().long() + 1).clamp(0, self.config.max_bars)
        return nn.functional.one_hot(rows, self.config.max_bars + 1).to(self.dtype)

    def _may_read_values(self, values: torch.Tensor) -> bool:
        """Whether the host may look at `values`: in training on a GPU it would wait for them at every step."""
        return not self.training or values.device.type == "cpu"

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        latent: torch.Tensor | None = None,
        noise_level: torch.Tensor | None = None,
        conditions: Mapping[str, torch.Tensor] | None = None,
        labels: torch.Tensor | None = None,
        kl_weight: float | None = None,
        tokens_per_melody: float | torch.Tensor | None = None,
        bar_conditions: torch.Tensor | None = None,
        musical_position: torch.Tensor | None = None,
        pitch: torch.Tensor | None = None,
        previous_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cache: Cache | None = None,
    ) -> MelodyVAEOutput:
        """Predict each next token.

        The loss is `(reconstruction_nats + kl_weight * max(kl_nats - free nats, 0)) / tokens_per_melody`, means over
        the batch's melodies. Nats are summed over tokens, the KL over the latent; free bits apply to that sum, melody
        by melody.

        Args:
            input_ids: `(B, T)`.
            attention_mask: `(B, T)`, 0 at padding; by default where `pad_token_id` is.
            latent: `(B, Z)`. Without one the melody encoder reads `input_ids`; its sample is used in training, its
                mean otherwise.
            noise_level: `(B, N)`, how much of each bar's share of `latent` is noise, from 0 to 1; 0 by default. In
                training it is drawn and the noise added, see `config.noise_probability`.
            conditions: What the melodies are like, for a model with `config.decoder_conditions`, as
                [`LatentPrior.forward`] takes labels. In training some are left open.
            labels: `(B, T)`, aligned with `input_ids`; -100 is not counted, nor are the tokens of a bar that is an
                earlier one over again, which the token before it says.
            kl_weight: Beta; `config.kl_weight` by default.
            tokens_per_melody: What the loss is divided by; the batch's own mean by default. A constant gives every
                melody the same weight whatever batch it is in, so that accumulated batches equal one large one.
            bar_conditions: `(B, N + 1, K, C)`, a latent that [`BarConditioner`] has expanded already.
            musical_position: `(B, T)`, see [`MelodyVAEModel.musical_position`]; needed where the cache holds the
                melody's beginning.
            pitch: `(B, T)`, see [`MelodyVAEModel.musical_pitch`]; belongs to `musical_position`.
            previous_ids: `(B, T)`, see [`MelodyVAEModel.previous_ids`]; needed there likewise.
            past_key_values: Cache of the melody decoder.
            use_cache: Whether to return a cache.
            logits_to_keep: Number of last positions to compute logits for (0: all), or their indices.
            output_hidden_states: Whether to return what is before each layer and after the last.
            output_attentions: Refused: attention weights are not kept.
            inputs_embeds: Refused: the model reads bars and pitches from ids.
            cache: The same as `past_key_values`, as transformers calls it from 5.24 on.

        Returns:
            A [`MelodyVAEOutput`].

        Raises:
            ValueError: If a refused argument asks for anything.
        """
        refuse_arguments(output_attentions=output_attentions, inputs_embeds=inputs_embeds)
        cache = given_cache(cache, past_key_values)
        if attention_mask is None and cache is None:
            attention_mask = input_ids.ne(self.config.pad_token_id).long()
        # The latent: given, or encoded from the melody, and expanded into a condition of each bar.
        if musical_position is None:
            musical_position, pitch = self.musical_position(input_ids), self.musical_pitch(input_ids)
        posterior = MelodyVAEPosterior()
        if self.config.latent_size and bar_conditions is None:
            if latent is None:
                posterior = self.encode(input_ids, attention_mask, musical_position, pitch)
            bar_conditions = self._condition_bars(posterior, latent, noise_level, conditions)
        # Tokens that only repeat a bar cost nothing: the grammar knows them.
        if labels is not None and self.config.repeat_token_ids:
            labels = labels.masked_fill(self._copied_tokens(input_ids), -100)
        input_ids = self._drop_tokens(input_ids)
        cache, use_cache = self._prepare_cache(cache, use_cache, has_labels=labels is not None)

        # The decoder: each token is conditioned on its own bar.
        hidden_states, rotation = self._embed(input_ids, attention_mask, musical_position, pitch, previous_ids, cache)
        all_hidden_states = [hidden_states]
        may_skip = self._may_read_values(hidden_states)
        mask = create_causal_mask(self.config, hidden_states, attention_mask, cache, allow_is_causal_skip=may_skip)
        bar_one_hot = self._bar_one_hot(musical_position).to(hidden_states.dtype)
        for index, layer in enumerate(self.layers):
            condition = None if bar_conditions is None else bar_one_hot @ bar_conditions[:, :, index]  # (B, T, C)
            hidden_states = layer(hidden_states, condition, attention_mask=mask, cache=cache, rotation=rotation)
            all_hidden_states.append(hidden_states)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(self.norm(hidden_states[:, kept]))  # (B, T, V)

        # What transformers' models return.
        output = MelodyVAEOutput(logits=logits, **{CACHE_NAME: cache if use_cache else None}, **posterior)
        if self.config.output_hidden_states if output_hidden_states is None else output_hidden_states:
            output.hidden_states = tuple(all_hidden_states)
        if labels is not None:
            kl_weight = self.config.kl_weight if kl_weight is None else kl_weight
            output.add_loss(labels, tokens_per_melody, kl_weight, self.config.free_bits)
        return output

    def _prepare_cache(
        self, cache: Cache | None, use_cache: bool | None, has_labels: bool
    ) -> tuple[Cache | None, bool]:
        """Return the cache to use, a new one where one is asked for and none is given, and whether to return it."""
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and not has_labels
        if self.training and len(self.layers) and self.layers[0].gradient_checkpointing:
            return None, False  # a layer that runs again would write its keys twice
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        return cache, use_cache

    def _condition_bars(
        self,
        posterior: MelodyVAEPosterior,
        latent: torch.Tensor | None,
        noise_level: torch.Tensor | None,
        conditions: Mapping[str, torch.Tensor] | None,
    ) -> torch.Tensor:
        """Expand a latent, one of the posterior where none is given, for the melody decoder, `(B, N + 1, K, C)`."""
        if latent is None:
            latent = posterior.sample() if self.training else posterior.latent_mean
            if self.training and self.config.noise_probability and self._learns_from_noise():
                noise_level = self.bar_conditioner.draw_noise_level(len(latent))
                latent = self.bar_conditioner.add_noise(latent, noise_level)
        if conditions is not None and self.training and self.config.decoder_conditions:
            conditions = self.bar_conditioner.condition_embedding.hide(conditions, all_hidden=0.4, each_hidden=0.4)
        return self.bar_conditioner(latent, noise_level, conditions)

    def _learns_from_noise(self) -> bool:
        """Whether anything is trained that reads the noise level: not where only the melody encoder is."""
        readers = (self.layers, self.bar_conditioner)
        return any(weight.requires_grad for reader in readers for weight in reader.parameters())

    def _drop_tokens(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Mask a random share of tokens `(B, T)` in training, see `config.token_dropout`."""
        if not self.training or not self.config.token_dropout:
            return input_ids
        is_dropped = torch.rand(input_ids.shape, device=input_ids.device) < self.config.token_dropout
        return input_ids.masked_fill(is_dropped, self.config.mask_token_id)

    def prepare_inputs_for_generation(self, input_ids, next_sequence_length=None, **kwargs):
        """Read positions over the whole sequence, of which a cached step sees the last token only."""
        inputs = super().prepare_inputs_for_generation(input_ids, next_sequence_length=next_sequence_length, **kwargs)
        kept = slice(-inputs["input_ids"].shape[1], None)
        return inputs | {name: value[:, kept].contiguous() for name, value in self._musical_inputs(input_ids).items()}

    def _musical_inputs(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Read from whole melodies `(B, T)` what `forward` is given beside their last tokens, `(B, T)` each."""
        inputs = {"musical_position": self.musical_position(input_ids)}
        if (pitch := self.musical_pitch(input_ids)) is not None:
            inputs["pitch"] = pitch
        if self.config.previous_token:
            inputs["previous_ids"] = self.previous_ids(input_ids)
        return inputs
