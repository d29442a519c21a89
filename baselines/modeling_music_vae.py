"""MusicVAE with the hierarchical melody decoder (Roberts et al. 2018, arXiv:1803.05428), as magenta trains it.

    steps --> melody encoder (two directions) --> latent_mean, latent_log_variance --> latent z
                                                                                          |
    melody decoder, a bar at a time  <-- embedding of each bar <-- conductor, a step per bar
        reads: that embedding and the step before

The melody decoder begins each bar in a state made of that bar's embedding alone, so what it knows of other bars it
knows by the latent, but for one thing: the step before a bar line is the first input of the bar after it.

Dimension key: B batch, T ids, N bars, S steps of a bar, V step classes, Z latent size, E, D widths, L layers.
"""

import math

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from modeling.interpolation_melody_vae import slerp
from modeling.modeling_melody_vae import (
    MelodyVAEOutput,
    MelodyVAEPosterior,
    refuse_arguments,
)

from .configuration_baselines import MusicVAEConfig
from .recurrence import in_own_precision, init_recurrent_weights

CLOSED = -1e4  # added to a gate: its sigmoid is 0
PARAMETERS = ("weight_hh", "bias_ih", "bias_hh")  # of an LSTM's layer, after weight_ih


class StepEncoder(nn.Module):
    """q(z|x): a bidirectional LSTM over steps; the last state of each direction says what the posterior is."""

    def __init__(self, config: MusicVAEConfig):
        super().__init__()
        self.recurrent = nn.LSTM(
            config.num_classes,
            config.encoder_size,
            config.num_layers,
            batch_first=True,
            dropout=config.dropout,
            bidirectional=True,
        )
        self.mean_proj = nn.Linear(2 * config.encoder_size, config.latent_size)
        self.scale_proj = nn.Linear(2 * config.encoder_size, config.latent_size)

    def forward(self, steps: torch.Tensor, lengths: torch.Tensor | None) -> MelodyVAEPosterior:
        """Encode one-hot `steps` `(B, N S, V)`, of which the first `lengths` `(B,)` are the melody; None: all."""
        if lengths is None:
            _, (hidden, _) = self.recurrent(steps)  # (2 L, B, E)
            last = torch.cat([hidden[-2], hidden[-1]], dim=-1)  # (B, 2 E)
        else:
            last = self.read_padded(steps, lengths)
        scale = nn.functional.softplus(self.scale_proj(last))
        return MelodyVAEPosterior(
            latent_mean=self.mean_proj(last),
            latent_log_variance=2 * scale.clamp_min(1e-6).log(),
        )

    def read_padded(self, steps: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Read melodies of different `lengths` `(B,)`, returns the last state of each direction, `(B, 2 E)`.

        As over a packed sequence, whose gradients on a CPU take time that grows with the square of the length: each
        step's is as large as all inputs. Here the direction that meets the padding first has its input gates closed
        there, so that its state stays zero; the other one's is taken where the melody ends.
        """
        batch, length, _ = steps.shape
        size = self.recurrent.hidden_size
        is_padding = torch.arange(length, device=steps.device) >= lengths[:, None]  # (B, N S)
        is_padding = is_padding[..., None].to(steps.dtype)
        zeros = steps.new_zeros(2, batch, size)
        ignored = steps.new_zeros(4 * size, 1)
        closing = torch.cat([ignored[:size] + CLOSED, ignored[size:]])  # torch has the input gates first
        outputs = steps
        for layer in range(self.recurrent.num_layers):
            weights = []
            for suffix, of_padding in ((f"l{layer}", ignored), (f"l{layer}_reverse", closing)):
                weights.append(torch.cat([self.recurrent.get_parameter(f"weight_ih_{suffix}"), of_padding], dim=1))
                weights += [self.recurrent.get_parameter(f"{name}_{suffix}") for name in PARAMETERS]
            outputs = nn.functional.dropout(outputs, self.recurrent.dropout if layer else 0.0, self.training)
            inputs = torch.cat([outputs, is_padding], dim=-1)
            # Biases, one layer, no dropout inside, in two directions, batch first.
            outputs, _, _ = torch.lstm(inputs, (zeros, zeros), weights, True, 1, 0.0, self.training, True, True)
        rows = torch.arange(batch, device=steps.device)
        return torch.cat([outputs[rows, lengths - 1, :size], outputs[:, 0, size:]], dim=-1)


class EmbeddedLSTM(nn.Module):
    """LSTM whose initial state is made of an embedding (of a latent, or of a bar)."""

    def __init__(self, input_size: int, embedding_size: int, config: MusicVAEConfig):
        super().__init__()
        self.recurrent = nn.LSTM(
            input_size, config.decoder_size, config.num_layers, batch_first=True, dropout=config.dropout
        )
        self.state_proj = nn.Linear(embedding_size, 2 * config.num_layers * config.decoder_size)

    def initial_state(self, embedding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Make hidden and cell states, `(L, B, D)` each, of `embedding` `(B, ...)`."""
        state = self.state_proj(embedding).tanh().unflatten(-1, (2, self.recurrent.num_layers, -1))  # (B, 2, L, D)
        hidden, cell = state.permute(1, 2, 0, 3).contiguous()
        return hidden, cell

    def forward(
        self, inputs: torch.Tensor, embedding: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Read `inputs` `(B, T, ...)` from `state` on, by default the one made of `embedding` `(B, ...)`.

        Returns:
            Outputs `(B, T, D)`, and the state after them.
        """
        return self.recurrent(inputs, self.initial_state(embedding) if state is None else state)


class MusicVAEModel(PreTrainedModel):
    """MusicVAE, 16 bars of 4/4 in sixteenths; its ids are steps, see `processing_music_vae`.

    As published: two LSTM layers in melody encoder, conductor and melody decoder; the posterior's standard deviation a
    softplus; initial states a tanh of a linear layer; the conductor without inputs; the bar's embedding beside the step
    before at every step of the melody decoder; forget gates open at first; teacher forcing in training (16-bar models;
    the 2-bar models alone had scheduled sampling). Narrower by default, see [`MusicVAEConfig`].

    What is not: melodies may be shorter than `max_bars`, and their reconstruction ends where they do. And the linear
    layers on both sides of a latent start as Glorot and Bengio (2010) have it instead of at 0.001, with a posterior as
    narrow as our own model's at first: in a trial of one bar, one seed, the latent was in use sooner that way.

    Args:
        config: A [`MusicVAEConfig`].
    """

    config: MusicVAEConfig
    config_class = MusicVAEConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _no_split_modules = ["StepEncoder", "EmbeddedLSTM"]  # noqa: RUF012 - the base class's own form

    def __init__(self, config: MusicVAEConfig):
        super().__init__(config)
        self.melody_encoder = StepEncoder(config)
        self.conductor = EmbeddedLSTM(1, config.latent_size, config)
        self.melody_decoder = EmbeddedLSTM(config.num_classes + config.decoder_size, config.decoder_size, config)
        self.output_proj = nn.Linear(config.decoder_size, config.num_classes)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.LSTM):
            init_recurrent_weights(module)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            # Here, not at the melody encoder: the library passes over modules without weights of their own.
            if module is self.melody_encoder.scale_proj:
                deviation = math.exp(0.5 * self.config.latent_log_variance_init)
                init.constant_(module.bias, math.log(math.expm1(deviation)))  # softplus of it is the deviation

    def get_input_embeddings(self) -> None:
        """There are none: steps are read one-hot."""
        return None

    def one_hot(self, ids: torch.Tensor) -> torch.Tensor:
        """Write step classes one-hot, `(..., V)`; the start and padding are zeros."""
        return nn.functional.one_hot(ids, self.config.vocab_size)[..., : self.config.num_classes].to(self.dtype)

    @in_own_precision
    def encode(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> MelodyVAEPosterior:
        """Encode melodies.

        Args:
            input_ids: `(B, 1 + N S)`, the start and whole bars of steps.
            attention_mask: `(B, 1 + N S)`, 0 at padding, which is at the end.
            kwargs: Ignored, so that a processor's whole output can be passed.

        Returns:
            The posterior q(z|x), `(B, Z)`.
        """
        lengths = None
        if attention_mask is not None and not attention_mask.all():
            lengths = attention_mask[:, 1:].sum(1)
        return self.melody_encoder(self.one_hot(input_ids[:, 1:]), lengths)

    @in_own_precision
    def embed_bars(self, latent: torch.Tensor, bars: int) -> torch.Tensor:
        """Let the conductor expand `latent` `(B, Z)` into `(B, bars, D)`."""
        nothing = latent.new_zeros(len(latent), bars, 1)
        return self.conductor(nothing, latent)[0]

    @in_own_precision
    def predict_steps(self, before: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """Predict steps from `latent` `(B, Z)` and the true step before each, `before` `(B, N S)`; `(B, N S, V)`."""
        steps_per_bar = self.config.steps_per_bar
        embedded = self.embed_bars(latent, before.shape[1] // steps_per_bar).flatten(0, 1)  # (B N, D)
        inputs = self.one_hot(before).view(len(embedded), steps_per_bar, -1)  # (B N, S, V)
        inputs = torch.cat([inputs, embedded[:, None].expand(-1, steps_per_bar, -1)], dim=-1)
        outputs, _ = self.melody_decoder(inputs, embedded)
        return self.output_proj(outputs).view(*before.shape, -1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        latent: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        kl_weight: float | None = None,
        tokens_per_melody: float | torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> MelodyVAEOutput:
        """Predict each next step, given the true one before it.

        The loss is that of [`MelodyVAEModel`]: `(reconstruction_nats + kl_weight * max(kl_nats - free nats, 0)) /
        tokens_per_melody`, means over the batch's melodies. Nats are summed over steps, the KL over the latent; free
        bits apply to that sum, melody by melody.

        Args:
            input_ids: `(B, 1 + N S)`, the start and whole bars of steps.
            attention_mask: `(B, 1 + N S)`, 0 at padding, which is at the end.
            latent: `(B, Z)`. Without one the melody encoder reads `input_ids`; its sample is used in training, its
                mean otherwise.
            labels: `(B, 1 + N S)`, aligned with `input_ids`; -100 is not counted.
            kl_weight: Beta; `config.kl_weight` by default.
            tokens_per_melody: What the loss is divided by; the mean number of labelled steps by default.
            use_cache: Ignored: steps are decoded by [`MusicVAEModel.decode`], which keeps a state of its own.
            output_hidden_states: Refused, like the two that follow.
            output_attentions: Refused.
            inputs_embeds: Refused.

        Returns:
            A [`MelodyVAEOutput`]; logits `(B, 1 + N S, V)`, zeros at the last position, which predicts nothing.

        Raises:
            ValueError: If these are not whole bars, or too many, or a refused argument asks for anything.
        """
        refuse_arguments(
            output_hidden_states=output_hidden_states, output_attentions=output_attentions, inputs_embeds=inputs_embeds
        )
        # Ids are the start and whole bars.
        steps_per_bar = self.config.steps_per_bar
        bars, rest = divmod(input_ids.shape[1] - 1, steps_per_bar)
        if rest or not 1 <= bars <= self.config.max_bars:
            raise ValueError(
                f"{input_ids.shape[1]} ids are not the start and 1 to {self.config.max_bars} bars "
                f"of {steps_per_bar} steps"
            )
        posterior = MelodyVAEPosterior()
        if latent is None:
            posterior = self.encode(input_ids, attention_mask)
            latent = posterior.sample() if self.training else posterior.latent_mean
        logits = nn.functional.pad(self.predict_steps(input_ids[:, :-1], latent), (0, 0, 0, 1))  # (B, 1 + N S, V)
        output = MelodyVAEOutput(logits=logits, **posterior)
        if labels is not None:
            kl_weight = self.config.kl_weight if kl_weight is None else kl_weight
            output.add_loss(labels, tokens_per_melody, kl_weight, self.config.free_bits)
        return output

    @torch.no_grad()
    def decode(
        self,
        latent: torch.Tensor,
        bars: int | torch.Tensor | None = None,
        do_sample: bool = False,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Decode latents, each step conditioned on the one before it.

        Args:
            latent: `(B, Z)`.
            bars: Bars of each melody, a number or `(B,)`; `max_bars` by default.
            do_sample: Draw steps instead of taking the likeliest.
            temperature: Of the softmax over steps.
            generator: Of the random numbers; the global random state by default.

        Returns:
            `(B, 1 + N S)` ids, N the most bars asked for; shorter melodies are padded at the end.

        Raises:
            ValueError: If no melody has so many bars.
        """
        max_bars = self.config.max_bars
        wanted = torch.as_tensor(max_bars if bars is None else bars, device=self.device).expand(len(latent))
        if (wanted < 1).any() or (wanted > max_bars).any():
            raise ValueError(f"bars={wanted.tolist()}: this model's melodies have 1 to {max_bars} bars")
        ids = torch.full((len(latent), 1), self.config.bos_token_id, device=self.device)
        steps = [ids]
        embedded_bars = self.embed_bars(latent.to(self.device, self.dtype), int(wanted.max()))
        for embedded in tqdm(embedded_bars.unbind(1), desc="Decoding bars", leave=False, delay=2):
            state = None
            for _ in range(self.config.steps_per_bar):
                inputs = torch.cat([self.one_hot(steps[-1]), embedded[:, None]], dim=-1)  # (B, 1, V + D)
                output, state = self.melody_decoder(inputs, embedded, state)
                logits = self.output_proj(output[:, -1])
                if do_sample:
                    steps.append((logits.float() / temperature).softmax(-1).multinomial(1, generator=generator))
                else:
                    steps.append(logits.argmax(-1, keepdim=True))
        ids = torch.cat(steps, dim=1)
        places = torch.arange(ids.shape[1], device=self.device)
        return ids.masked_fill(places > wanted[:, None] * self.config.steps_per_bar, self.config.pad_token_id)

    def sample(
        self, n: int, seed: int | None = None, temperature: float = 1.0, bars: int | None = None
    ) -> torch.Tensor:
        """Sample `n` melodies from the prior N(0, I).

        Args:
            n: Number of melodies.
            seed: Makes the result repeatable; the global random state is left alone.
            temperature: Of the softmax over steps.
            bars: Bars per melody; `max_bars` by default and at most.

        Returns:
            `(n, 1 + N S)` ids.
        """
        generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        shape = (n, self.config.latent_size)
        latent = torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype)
        return self.decode(latent, bars, do_sample=True, temperature=temperature, generator=generator)

    def reconstruct(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        refinement_steps: int = 0,
        **decode_kwargs,
    ) -> torch.Tensor:
        """Decode melodies from their posterior's mean, as many bars as they have, `(B, 1 + N S)` ids.

        Raises:
            ValueError: If `refinement_steps`, which [`MelodyVAEModel.reconstruct`] has, is not 0.
        """
        if refinement_steps:
            raise ValueError(f"refinement_steps={refinement_steps}: MusicVAE's latents are not refined")
        latent = self.encode(input_ids, attention_mask).latent_mean
        bars = (input_ids < self.config.num_classes).sum(1) // self.config.steps_per_bar
        return self.decode(latent, bars=bars, **decode_kwargs)

    def interpolate(self, a: torch.Tensor, b: torch.Tensor, steps: int = 7, **decode_kwargs) -> torch.Tensor:
        """Decode points on the great circle between two latents `(Z,)`, ends included, `(steps, 1 + N S)` ids."""
        weight = torch.linspace(0, 1, steps, device=a.device, dtype=a.dtype)
        return self.decode(slerp(a.flatten(), b.flatten(), weight), **decode_kwargs)
