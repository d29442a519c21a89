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
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import ModelOutput, can_return_tuple

from .arguments_melody_vae import check_buffers
from .cache_melody_vae import CACHE_NAME, given_cache
from .conditioning_melody_vae import BarConditioner, ConditionEmbedding
from .configuration_melody_vae import MelodyVAEConfig
from .critic_melody_vae import MelodyCritic
from .fingerprint_melody_vae import Fingerprint, FingerprintedModel, check, hash_grammar
from .generation_melody_vae import MelodyVAEGenerationMixin
from .musical_position_melody_vae import BarPositionEmbedding, rotation_of
from .pipeline_melody_vae import custom_pipelines
from .prior_melody_vae import LatentPrior
from .relative_attention import MelodyVAELayer, RelativeAttention, ResidualLinear, ZeroLinear
from .token_grammar_melody_vae import MAX_TOKENS_PER_BAR, NO_ONSET, SPECIAL_ROW, TokenColumn, copied_tokens

NATS_PER_BIT = 0.6931471805599453  # ln 2
ENCODED_AT_ONCE = 8  # melodies on a CPU; 4 and 16 were slower in small batches


@dataclass
class MelodyVAEPosterior(ModelOutput):
    """Diagonal Gaussian q(z|x).

    Args:
        latent_mean: `(B, Z)`.
        latent_log_variance: `(B, Z)`.
    """

    latent_mean: torch.Tensor = None  # pyright: ignore[reportAssignmentType] - ModelOutput wants defaults
    latent_log_variance: torch.Tensor = None  # pyright: ignore[reportAssignmentType]

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw a latent `(B, Z)` by reparameterisation (Kingma & Welling 2014, arXiv:1312.6114)."""
        mean = self.latent_mean
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return mean + noise * (0.5 * self.latent_log_variance).exp()

    def kl_nats(self) -> torch.Tensor:
        """KL divergence from N(0, I), summed over the latent, `(B,)` nats per melody."""
        mean, log_variance = self.latent_mean.float(), self.latent_log_variance.float()
        return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


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


class MelodyEncoder(nn.Module):
    """q(z|x): bidirectional layers over tokens, a mean per bar, and from each bar its share of the latent."""

    def __init__(self, config: MelodyVAEConfig):
        super().__init__()
        self.layers = nn.ModuleList(
            MelodyVAELayer(config, index, is_causal=False) for index in range(config.num_encoder_layers)
        )
        self.absent_bar = nn.Parameter(torch.empty(config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mean_proj = nn.Linear(config.hidden_size, config.latent_size // config.max_bars)
        self.log_variance_proj = nn.Linear(config.hidden_size, config.latent_size // config.max_bars)

    def forward(
        self,
        hidden_states: torch.Tensor,
        bar_one_hot: torch.Tensor,
        attention_mask: torch.Tensor | None,
        rotation: torch.Tensor | None = None,
    ) -> MelodyVAEPosterior:
        """Encode embedded tokens `(B, T, C)`; `bar_one_hot` `(B, T, N)` is zero for tokens outside bars."""
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask=attention_mask, rotation=rotation)
        tokens_per_bar = bar_one_hot.sum(1)[..., None]  # (B, N, 1)
        bars = bar_one_hot.transpose(1, 2) @ hidden_states / tokens_per_bar.clamp_min(1)  # (B, N, C)
        bars = self.norm(torch.where(tokens_per_bar > 0, bars, self.absent_bar.to(bars.dtype)))
        return MelodyVAEPosterior(
            latent_mean=self.mean_proj(bars).flatten(1),  # (B, Z)
            latent_log_variance=self.log_variance_proj(bars).flatten(1),
        )


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
            # The latent starts as a whisper: at full strength its noise would drown the melody decoder.
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


class MelodyVAEModel(MelodyVAEGenerationMixin, MelodyVAEPreTrainedModel, GenerationMixin):
    """Variational autoencoder of melodies; with `latent_size=0` a Music Transformer.

    What one does with it (sample, vary, infill, interpolate, shift, ...) is in [`MelodyVAEGenerationMixin`].

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

    def _bar_token_mask(self) -> torch.Tensor:
        """Whether each token opens a bar, `(V,)`."""
        mask = torch.zeros(self.config.vocab_size, dtype=torch.bool)
        mask[self.config.bar_token_ids] = True
        return mask

    def set_grammar(self, table: torch.Tensor, fingerprint: Fingerprint | None = None) -> None:
        """Set what each token stands for, `MelodyProcessor.grammar_table()` and `.fingerprint()`.

        From then on it generates valid melodies only, `generate` takes a scale, a range, a time signature and bars to
        keep (see [`MelodyLogitsProcessor`]), and the model can read what it wrote.

        Raises:
            ValueError: If the table is of another vocabulary.
        """
        if table.dim() != 2 or table.shape[0] != self.config.vocab_size or table.shape[1] < len(SPECIAL_ROW):
            raise ValueError(f"a table of {tuple(table.shape)} is no grammar of {self.config.vocab_size} tokens")
        if fingerprint:
            check(self.config.fingerprint, fingerprint, "a grammar of another tokenizer or grid")
            self.config.fingerprint = (self.config.fingerprint or {}) | fingerprint
        if grammar := hash_grammar(table):  # now: weights that are sharded cannot be read when they are saved
            self.config.fingerprint = (self.config.fingerprint or {}) | {"grammar": grammar}
        self.config.grammar_columns = table.shape[1]
        self.register_buffer("token_grammar", table.to(self.device, torch.int32))

    def _grammar(self) -> torch.Tensor:
        """What each token stands for, `(V, grammar_columns)`.

        Raises:
            ValueError: If neither the weights nor [`MelodyVAEModel.set_grammar`] have said it.
        """
        check_buffers(self)
        if not self._has_grammar and not torch.compiler.is_compiling():
            table = self._buffers.get("token_grammar")
            self._has_grammar = table is not None and (table.is_meta or bool(table.any()))
            if not self._has_grammar:
                raise ValueError("this model does not know its tokens: model.set_grammar(processor.grammar_table())")
        return self.token_grammar

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Embedding:
        """Resize the vocabulary as transformers does; new tokens open no bar, and the grammar never allows them."""
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        size = self.config.vocab_size
        if size != len(self.is_bar_token):
            self.config.fingerprint = None  # the tokens are others now
        self.config.bar_token_ids = [token for token in self.config.bar_token_ids or [] if token < size]
        repeats = [pair for pair in self._repeats().items() if pair[1] < size]
        self.config.repeat_lags, self.config.repeat_token_ids = [lag for lag, _ in repeats], [id_ for _, id_ in repeats]
        self.is_bar_token = self._bar_token_mask().to(self.device)
        if "token_grammar" in self._buffers:
            columns = self.token_grammar.shape[1]
            table = torch.zeros(size, columns, dtype=torch.int32, device=self.device)
            table[:, : len(SPECIAL_ROW)] = torch.tensor(SPECIAL_ROW, dtype=torch.int32)
            kept = min(size, len(self.token_grammar))
            table[:kept] = self.token_grammar[:kept]
            self.token_grammar = table if self.token_grammar.any() else torch.zeros_like(table)
        return embeddings

    def _repeats(self) -> dict[int, int]:
        """The tokens that say "this bar is the one so many bars earlier over again", by that number of bars."""
        return dict(zip(self.config.repeat_lags or (), self.config.repeat_token_ids or (), strict=True))

    @torch.no_grad()
    def add_repeats(self, repeats: Mapping[int, int]) -> None:
        """Teach a model the tokens of [`MelodyProcessor.add_repeats`], which say that a bar is an earlier one again.

        They begin as the mean of the tokens that open a bar; their use has to be learned.

        Args:
            repeats: For bars back, the token's id, as `MelodyProcessor.repeats` has them.

        Raises:
            ValueError: If a token is one that the model has already.
        """
        if known := [token for token in repeats.values() if token < self.config.vocab_size]:
            raise ValueError(f"repeats: the model has a token {known[0]} already, of {self.config.vocab_size}")
        size = max(repeats.values(), default=self.config.vocab_size - 1) + 1
        embeddings = self.resize_token_embeddings(size, mean_resizing=False).weight
        embeddings[list(repeats.values())] = embeddings[self.config.bar_token_ids].mean(0)
        self.config.repeat_lags, self.config.repeat_token_ids = list(repeats), list(repeats.values())
        self.generation_config.max_length = (MAX_TOKENS_PER_BAR + 1) * self.config.max_bars + 2

    def _is_repeat(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Whether each token says that the bar after it is an earlier one over again."""
        is_repeat = torch.zeros_like(input_ids, dtype=torch.bool)
        for token in self.config.repeat_token_ids or ():
            is_repeat |= input_ids == token
        return is_repeat

    def _copied_tokens(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Whether each token belongs to a bar that is an earlier one over again, as the token before it says."""
        return copied_tokens(input_ids, self.is_bar_token, self._is_repeat(input_ids), self.config.eos_token_id)

    def _without_repeats(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *others: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, *tuple[torch.Tensor | None, ...]]:
        """Move tokens that say that a bar is repeated to the end, and mask them; `others` `(B, T)` move along.

        The melody encoder reads notes: what a bar is called makes no difference to it.
        """
        is_repeat = self._is_repeat(input_ids)
        order = is_repeat.int().argsort(dim=-1, stable=True)
        moved = [None if other is None else other.gather(-1, order) for other in others]
        return input_ids.gather(-1, order), (attention_mask * ~is_repeat).gather(-1, order), *moved

    def musical_position(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Where in the music each token is, `(B, T)`, in bars since the melody began.

        The whole part is the index of the token's bar, -1 before the first. The rest says how far into the bar the
        latest onset is, for models with `config.musical_time`; for others it is 0.

        Raises:
            ValueError: If the model needs to know its tokens and does not.
        """
        bars = self.is_bar_token[input_ids].cumsum(-1) - 1
        if not self.config.musical_time:
            return bars.float()
        rows = self._grammar()[input_ids]
        onset, steps = rows[..., TokenColumn.LAST_ONSET], rows[..., TokenColumn.BAR_STEPS]
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        signature = torch.where(steps > 0, place, 0).cummax(-1).values  # where the latest time signature is
        reached = (bars * NO_ONSET + onset + 1).cummax(-1).values % NO_ONSET  # latest onset of the bar, 0 for none
        return bars + ((reached - 1).clamp_min(0) / steps.gather(-1, signature).clamp_min(1)).clamp_max(0.999)

    def musical_pitch(self, input_ids: torch.Tensor) -> torch.Tensor | None:
        """Pitch of the latest note at each token, `(B, T)`, in semitones; None unless `config.musical_pitch` asks.

        It is 0 before the first note, and the middle of its pitches where a token has several.

        Raises:
            ValueError: If the model needs to know its tokens and does not.
        """
        if not self.config.musical_pitch:
            return None
        rows = self._grammar()[input_ids]
        lowest, highest = rows[..., TokenColumn.LOWEST_PITCH], rows[..., TokenColumn.HIGHEST_PITCH]
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        latest = torch.where(highest > 0, place, 0).cummax(-1).values
        return torch.where(highest > 0, (lowest + highest) / 2, 0.0).gather(-1, latest)

    musical_time = musical_position  # the method's name in the first release

    def previous_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The token before each, `(B, T)`; where there is none, or padding, the token itself."""
        previous = torch.cat([input_ids[:, :1], input_ids[:, :-1]], dim=1)
        return torch.where(previous == self.config.pad_token_id, input_ids, previous)

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

    def encode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        musical_position: torch.Tensor | None = None,
        pitch: torch.Tensor | None = None,
        **kwargs,
    ) -> MelodyVAEPosterior:
        """Encode melodies of up to `max_bars` bars.

        Args:
            input_ids: `(B, T)`.
            attention_mask: `(B, T)`, 0 at padding; by default where `pad_token_id` is.
            musical_position: `(B, T)`, what [`MelodyVAEModel.musical_position`] returns, if it was computed already.
            pitch: `(B, T)`, what [`MelodyVAEModel.musical_pitch`] returns, likewise.
            kwargs: Ignored, so that a processor's whole output can be passed.

        Returns:
            The posterior q(z|x), `(B, Z)`.

        Raises:
            ValueError: If the model has no latent, or a melody is too long for it.
        """
        if not self.config.latent_size:
            raise ValueError("latent_size=0: this model is a plain Music Transformer and has no latent to encode into")
        check_buffers(self)
        if musical_position is None:
            musical_position, pitch = self.musical_position(input_ids), self.musical_pitch(input_ids)
        if self._may_read_values(musical_position) and not torch.compiler.is_compiling() and musical_position.numel():
            num_bars, max_bars = int(musical_position.max()) + 1, self.config.max_bars
            if num_bars > max_bars:
                raise ValueError(
                    f"a melody of {num_bars} bars does not fit a latent of max_bars={max_bars}: cut it into windows"
                )
        if attention_mask is None:
            attention_mask = input_ids.ne(self.config.pad_token_id).long()
        if self.config.repeat_token_ids:
            input_ids, attention_mask, musical_position, pitch = self._without_repeats(
                input_ids, attention_mask, musical_position, pitch
            )
        if len(input_ids) > ENCODED_AT_ONCE and input_ids.device.type == "cpu" and self._may_be_split():
            return self._encode_by_length(input_ids, attention_mask, musical_position, pitch)
        return self._encode_rows(input_ids, attention_mask, musical_position, pitch)

    def _may_be_split(self) -> bool:
        """Whether a batch may be read in parts: not in training, nor where its operations are recorded."""
        return not (self.training or torch.compiler.is_compiling() or torch.jit.is_tracing())  # pyright: ignore[reportPrivateImportUsage]

    def _encode_by_length(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *of_tokens: torch.Tensor | None
    ) -> MelodyVAEPosterior:
        """Encode melodies of like length together, a few at a time: less padding, and all stays in the cache."""
        parts, order = [], attention_mask.sum(-1).argsort()
        for rows in order.split(ENCODED_AT_ONCE):
            kept = attention_mask[rows].any(0).nonzero().squeeze(1)
            span = slice(int(kept[0]), int(kept[-1]) + 1) if len(kept) else slice(0, 1)
            given = (input_ids, attention_mask, *of_tokens)
            parts.append(self._encode_rows(*(None if each is None else each[rows, span] for each in given)))
        back = order.argsort()
        return MelodyVAEPosterior(
            latent_mean=torch.cat([part.latent_mean for part in parts])[back],
            latent_log_variance=torch.cat([part.latent_log_variance for part in parts])[back],
        )

    def _encode_rows(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        musical_position: torch.Tensor,
        pitch: torch.Tensor | None,
    ) -> MelodyVAEPosterior:
        """Encode melodies `(B, T)` side by side, see [`encode`]."""
        one_hot = self._bar_one_hot(musical_position)[..., 1:]  # (B, T, N)
        one_hot = one_hot * attention_mask[..., None]
        embedded, rotation = self._add_position_embeddings(self.embed_tokens(input_ids), musical_position, pitch)
        embedded = self.dropout(embedded)
        mask = create_bidirectional_mask(
            self.config, embedded, attention_mask, allow_is_bidirectional_skip=self._may_read_values(embedded)
        )
        return self.melody_encoder(embedded, one_hot.to(embedded.dtype), mask, rotation)

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
        if musical_position is None:
            musical_position, pitch = self.musical_position(input_ids), self.musical_pitch(input_ids)
        posterior = MelodyVAEPosterior()
        if self.config.latent_size and bar_conditions is None:
            if latent is None:
                posterior = self.encode(input_ids, attention_mask, musical_position, pitch)
            bar_conditions = self._condition_bars(posterior, latent, noise_level, conditions)
        if labels is not None and self.config.repeat_token_ids:
            labels = labels.masked_fill(self._copied_tokens(input_ids), -100)
        input_ids = self._drop_tokens(input_ids)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and labels is None
        if self.training and len(self.layers) and self.layers[0].gradient_checkpointing:
            use_cache, cache = False, None  # a layer that runs again would write its keys twice
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)

        hidden_states, rotation = self._embed(input_ids, attention_mask, musical_position, pitch, previous_ids, cache)
        all_hidden_states = [hidden_states]
        mask = create_causal_mask(
            self.config, hidden_states, attention_mask, cache, allow_is_causal_skip=self._may_read_values(hidden_states)
        )
        bar_one_hot = self._bar_one_hot(musical_position).to(hidden_states.dtype)
        for index, layer in enumerate(self.layers):
            condition = None if bar_conditions is None else bar_one_hot @ bar_conditions[:, :, index]  # (B, T, C)
            hidden_states = layer(hidden_states, condition, attention_mask=mask, cache=cache, rotation=rotation)
            all_hidden_states.append(hidden_states)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(self.norm(hidden_states[:, kept]))  # (B, T, V)

        output = MelodyVAEOutput(logits=logits, **{CACHE_NAME: cache if use_cache else None}, **posterior)
        if self.config.output_hidden_states if output_hidden_states is None else output_hidden_states:
            output.hidden_states = tuple(all_hidden_states)
        if labels is not None:
            kl_weight = self.config.kl_weight if kl_weight is None else kl_weight
            output.add_loss(labels, tokens_per_melody, kl_weight, self.config.free_bits)
        return output

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
            if self.training and self.config.noise_probability:
                noise_level = self.bar_conditioner.draw_noise_level(len(latent))
                latent = self.bar_conditioner.add_noise(latent, noise_level)
        if conditions is not None and self.training and self.config.decoder_conditions:
            conditions = self.bar_conditioner.condition_embedding.hide(conditions, all_hidden=0.4, each_hidden=0.4)
        return self.bar_conditioner(latent, noise_level, conditions)

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
