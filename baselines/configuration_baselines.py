"""Configurations of the baselines; their defaults are models of about 4.3 M parameters at a vocabulary of 2,048."""

from transformers import PreTrainedConfig

from modeling.cache_melody_vae import OTHER_OUTPUTS
from modeling.configuration_melody_vae import MelodyVAEConfig

from .flat_code import FlatCode


class RecurrentConfig(FlatCode, MelodyVAEConfig):
    """Shape of a recurrent language model: a [`MelodyVAEModel`] without a latent and without attention layers.

    The fields of [`MelodyVAEConfig`] mean what they mean there; those of latents and of attention layers have nothing
    to act on.

    Args:
        hidden_size: Width of the embeddings, and of what the output layer reads (C).
        recurrent_size: Width of the recurrent layers (R).
        num_recurrent_layers: Recurrent layers.
        dropout: Dropout rate of embeddings and of what goes from one recurrent layer to the next.
    """

    num_hidden_layers: int = 0
    num_encoder_layers: int = 0
    num_bar_layers: int = 0
    num_attention_heads: int = 1
    latent_size: int = 0
    recurrent_size: int = 512
    num_recurrent_layers: int = 2


class MelodyRNNConfig(RecurrentConfig):
    """Shape of a [`MelodyRNNModel`], see [`RecurrentConfig`]."""

    model_type = "melody_rnn"

    hidden_size: int = 384
    recurrent_size: int = 960


class MelodyLSTMConfig(RecurrentConfig):
    """Shape of a [`MelodyLSTMModel`].

    Args:
        attention_size: Width of what the first layer puts out and attends to (A); MelodyRNN has 128.
        attention_length: How many steps back it attends; MelodyRNN has 40.
    """

    model_type = "melody_lstm"

    hidden_size: int = 256
    recurrent_size: int = 544
    attention_size: int = 128
    attention_length: int = 40


class AbsoluteMusicTransformerConfig(FlatCode, MelodyVAEConfig):
    """Shape of an [`AbsoluteMusicTransformer`]; see [`MelodyVAEConfig`], of which it has no latent."""

    model_type = "absolute_music_transformer"

    hidden_size: int = 192
    intermediate_size: int = 768
    num_encoder_layers: int = 0
    num_bar_layers: int = 0
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    latent_size: int = 0


class MusicVAEConfig(FlatCode, PreTrainedConfig):
    """Shape and training constants of a [`MusicVAEModel`].

    The published 16-bar model (magenta's `hierdec-mel_16bar`) has encoder_size=2048, decoder_size=1024 and about 178 M
    parameters. The defaults keep its latent of 512, its two layers everywhere and its proportion of two to one.

    Args:
        vocab_size: Step classes and the two ids that are no class: the start and padding.
        num_classes: Step classes (V).
        encoder_size: Width of each direction of the melody encoder (E).
        decoder_size: Width of conductor and melody decoder (D).
        num_layers: LSTM layers of melody encoder, conductor and melody decoder, each.
        latent_size: Size of the latent (Z).
        max_bars: Bars that one latent holds (N).
        steps_per_bar: Steps of a bar (S).
        dropout: Dropout rate between LSTM layers; published: none.
        kl_weight: Weight (beta) of the KL term when `forward` is not given one.
        free_bits: Bits of KL per melody that cost nothing.
        latent_log_variance_init: Log-variance of the posterior before training, as in [`MelodyVAEConfig`]; published:
            about -0.7.
    """

    model_type = "music_vae"
    keys_to_ignore_at_inference = OTHER_OUTPUTS

    vocab_size: int = 92
    num_classes: int = 90
    encoder_size: int = 280
    decoder_size: int = 140
    num_layers: int = 2
    latent_size: int = 512
    max_bars: int = 16
    steps_per_bar: int = 16
    dropout: float = 0.0
    kl_weight: float = 0.2
    free_bits: float = 256.0
    latent_log_variance_init: float = -3.0
    bos_token_id: int = 90
    pad_token_id: int = 91
