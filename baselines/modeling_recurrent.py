"""Recurrent language models of melodies: a plain RNN, and an LSTM with attention in the manner of MelodyRNN.

Both are [`MelodyVAEModel`]s without a latent whose layers are recurrent: the same tokens, loss, grammar and ways of
generation. Their cache is a state of constant size, so generation takes time in proportion to its length.

Dimension key: B batch, T tokens, C hidden size, R recurrent size, V vocabulary.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from modeling.cache_melody_vae import CACHE_NAME, given_cache
from modeling.modeling_melody_vae import MelodyVAEModel, MelodyVAEOutput, refuse_arguments

from .attention_lstm import AttentionLSTM
from .configuration_baselines import MelodyLSTMConfig, MelodyRNNConfig, RecurrentConfig
from .recurrence import Recurrence, RecurrentCache, State, in_own_precision, init_recurrent_weights


class RecurrentModel(MelodyVAEModel):
    """Language model whose layers are recurrent; subclasses have a `trunk`, an output layer and no attention layers.

    Args:
        config: A [`RecurrentConfig`].
    """

    config: RecurrentConfig
    _no_split_modules = ["Recurrence", "AttentionLSTM"]  # noqa: RUF012 - the base class's own form
    supports_gradient_checkpointing = False
    _is_stateful = True
    _can_compile_fullgraph = False

    def __init__(self, config: RecurrentConfig):
        super().__init__(config)
        self.input_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.output_proj = nn.Linear(config.recurrent_size, config.hidden_size)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.RNNBase | nn.LSTMCell):
            init_recurrent_weights(module)
        elif isinstance(module, nn.Linear) and module is not self.lm_head:
            init.xavier_uniform_(module.weight)

    def _musical_inputs(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """There are none: the state knows what was."""
        return {}

    def trunk(
        self, inputs: torch.Tensor, state: State | None, lengths: torch.Tensor | None
    ) -> tuple[torch.Tensor, State]:
        """Read embedded tokens `(B, T, C)`; returns outputs `(B, T, R)` and the state after the last token."""
        raise NotImplementedError

    @in_own_precision
    def read(
        self, input_ids: torch.Tensor, state: State | None, lengths: torch.Tensor | None
    ) -> tuple[torch.Tensor, State]:
        """Read tokens `(B, T)`; returns what the output layer reads `(B, T, C)` and the state after the last token."""
        # Embeddings start small, since they are the output layer's weights as well; recurrent layers want more to hear.
        inputs = self.dropout(self.input_norm(self.embed_tokens(input_ids)))
        outputs, state = self.trunk(inputs, state, lengths)
        return self.output_proj(self.dropout(outputs)), state

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        kl_weight: float | None = None,
        tokens_per_melody: float | torch.Tensor | None = None,
        past_key_values: RecurrentCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        inputs_embeds: torch.Tensor | None = None,
        latent: torch.Tensor | None = None,
        cache: RecurrentCache | None = None,
    ) -> MelodyVAEOutput:
        """Predict each next token.

        The loss is `reconstruction_nats / tokens_per_melody`, where nats are summed over tokens, means over the
        batch's melodies.

        Args:
            input_ids: `(B, T)`.
            attention_mask: `(B, T)`, or with a cache as long as everything so far; 0 at padding, which may be anywhere.
            labels: `(B, T)`, aligned with `input_ids`; -100 is not counted.
            kl_weight: Ignored: there is no latent. So that all models are trained by the same call.
            tokens_per_melody: What the loss is divided by; the batch's own mean by default.
            past_key_values: State after the tokens before these.
            use_cache: Whether to return the state.
            logits_to_keep: Number of last positions to compute logits for (0: all), or their indices.
            output_hidden_states: Refused, like the three that follow.
            output_attentions: Refused.
            inputs_embeds: Refused.
            latent: Refused.
            cache: The same as `past_key_values`, as transformers calls it from 5.24 on.

        Returns:
            A [`MelodyVAEOutput`].

        Raises:
            ValueError: If a refused argument asks for anything.
        """
        refuse_arguments(
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            inputs_embeds=inputs_embeds,
            latent=latent,
        )
        cache = given_cache(cache, past_key_values)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and labels is None
        length = input_ids.shape[1]
        input_ids = self._drop_tokens(input_ids)
        order, lengths = None, None
        if attention_mask is not None and not (is_token := attention_mask[:, -length:].bool()).all():
            # Tokens first: then what comes after them cannot change what is put out for them.
            order = is_token.int().argsort(dim=1, descending=True, stable=True)
            input_ids = input_ids.gather(1, order)
            lengths = is_token.sum(1) if use_cache else None
        # Read on from the state that was left, and put padding back.
        before = None if cache is None else cache.state
        hidden_states, state = self.read(input_ids, before, lengths)  # (B, T, C)
        if order is not None:
            places = order.argsort(dim=1)[..., None].expand_as(hidden_states)
            hidden_states = hidden_states.gather(1, places)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        output = MelodyVAEOutput(logits=self.lm_head(self.norm(hidden_states[:, kept])))  # (B, T, V)
        if use_cache:
            num_tokens = length + (0 if cache is None else cache.num_tokens)
            setattr(output, CACHE_NAME, RecurrentCache(state, num_tokens))
        if labels is not None:
            output.add_loss(labels, tokens_per_melody)
        return output


class MelodyRNNModel(RecurrentModel):
    """A plain recurrent network (Elman 1990) that continues melodies.

    The task is Eck and Schmidhuber's (2002, "A first look at music composition using LSTM recurrent neural networks"):
    next-step prediction of melodies. They solved it with an LSTM where plain recurrent networks, as in Mozer's CONCERT
    (1994), had not; this is the plain network, the LSTM is [`MelodyLSTMModel`].

    Args:
        config: A [`MelodyRNNConfig`].
    """

    config: MelodyRNNConfig
    config_class = MelodyRNNConfig

    def __init__(self, config: MelodyRNNConfig):
        super().__init__(config)
        self.recurrent = Recurrence(
            nn.RNN(
                config.hidden_size,
                config.recurrent_size,
                config.num_recurrent_layers,
                batch_first=True,
                dropout=config.dropout,
            )
        )
        self.post_init()

    def trunk(
        self, inputs: torch.Tensor, state: State | None, lengths: torch.Tensor | None
    ) -> tuple[torch.Tensor, State]:
        """See [`RecurrentModel.trunk`]."""
        return self.recurrent(inputs, state, lengths)


class MelodyLSTMModel(RecurrentModel):
    """LSTM with attention over its last steps, in the manner of MelodyRNN's Attention RNN (Waite 2016).

    As there, the first layer attends and the others are plain. What differs: the tokens (bar-wise BPE instead of one
    one-hot event per sixteenth, without features of the beat and of what was a bar or two ago) and the width.

    Args:
        config: A [`MelodyLSTMConfig`].
    """

    config: MelodyLSTMConfig
    config_class = MelodyLSTMConfig

    def __init__(self, config: MelodyLSTMConfig):
        super().__init__(config)
        self.attentive = AttentionLSTM(config)
        self.recurrent = Recurrence(
            nn.LSTM(
                config.attention_size,
                config.recurrent_size,
                config.num_recurrent_layers - 1,
                batch_first=True,
                dropout=config.dropout if config.num_recurrent_layers > 2 else 0.0,
            )
        )
        self.post_init()

    def trunk(
        self, inputs: torch.Tensor, state: State | None, lengths: torch.Tensor | None
    ) -> tuple[torch.Tensor, State]:
        """See [`RecurrentModel.trunk`]."""
        first, rest = (None, None) if state is None else (state[:4], state[4:])
        outputs, first = self.attentive(inputs, first, lengths)
        outputs, rest = self.recurrent(self.dropout(outputs), rest, lengths)
        return outputs, first + rest
