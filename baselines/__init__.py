"""The systems to beat, trained by the same train.py on the same windows.

| model type | model | reads |
|---|---|---|
| `music_vae` | [`MusicVAEModel`] (Roberts et al. 2018), every width scaled down by 7.3, the latent kept | steps |
| `lstm` | [`MelodyLSTMModel`], MelodyRNN's Attention RNN (Waite 2016) | tokens |
| `rnn` | [`MelodyRNNModel`], a plain RNN on the task of Eck & Schmidhuber (2002) | tokens |
| `music_transformer` | `MelodyVAEModel` with `latent_size=0` (Huang et al. 2018) | tokens |
| `music_transformer_absolute` | [`AbsoluteMusicTransformer`], the same with absolute positions | tokens |
"""

from collections.abc import Callable
from difflib import get_close_matches

from transformers import PreTrainedConfig, PreTrainedModel

from modeling import MelodyProcessor, MelodyVAEConfig, MelodyVAEModel

from .configuration_baselines import (
    AbsoluteMusicTransformerConfig,
    MelodyLSTMConfig,
    MelodyRNNConfig,
    MusicVAEConfig,
)
from .modeling_absolute import AbsoluteMusicTransformer
from .modeling_music_vae import MusicVAEModel
from .modeling_recurrent import MelodyLSTMModel, MelodyRNNModel
from .processing_music_vae import StepCollator, StepProcessor

for _config_class in (AbsoluteMusicTransformerConfig, MelodyLSTMConfig, MelodyRNNConfig, MusicVAEConfig):
    _config_class.register_for_auto_class()
for _model_class in (AbsoluteMusicTransformer, MelodyLSTMModel, MelodyRNNModel, MusicVAEModel):
    _model_class.register_for_auto_class("AutoModel")
StepProcessor.register_for_auto_class("AutoProcessor")


def music_transformer_config(**fields) -> MelodyVAEConfig:
    """Configure a Music Transformer as wide and deep as [`AbsoluteMusicTransformerConfig`]'s defaults."""
    shape = vars(AbsoluteMusicTransformerConfig())
    names = ("hidden_size", "intermediate_size", "num_encoder_layers", "num_bar_layers", "num_hidden_layers")
    names += ("num_attention_heads", "latent_size")
    return MelodyVAEConfig(**({name: shape[name] for name in names} | fields))


LANGUAGE_MODELS: dict[str, tuple[Callable[..., MelodyVAEConfig], type[MelodyVAEModel]]] = {
    "lstm": (MelodyLSTMConfig, MelodyLSTMModel),
    "rnn": (MelodyRNNConfig, MelodyRNNModel),
    "music_transformer": (music_transformer_config, MelodyVAEModel),
    "music_transformer_absolute": (AbsoluteMusicTransformerConfig, AbsoluteMusicTransformer),
}
MODEL_TYPES = ("music_vae", *LANGUAGE_MODELS)


def configure(model_type: str, processor: MelodyProcessor, **overrides) -> PreTrainedConfig:
    """Configure a baseline for a processor's vocabulary and bars.

    Args:
        model_type: One of `MODEL_TYPES`.
        processor: The tokenising processor that the language models share.
        overrides: Fields of the model's configuration.

    Raises:
        ValueError: If the model type or a field is unknown, or a value does not fit the others.
    """
    if model_type not in MODEL_TYPES:
        raise ValueError(f"unknown model type {model_type!r}: {', '.join(MODEL_TYPES)}")
    config_class, _ = LANGUAGE_MODELS.get(model_type, (MusicVAEConfig, MusicVAEModel))
    known = vars(config_class())
    for name in overrides:
        if name not in known:
            alike = get_close_matches(name, known, n=1)
            hint = f"; did you mean {alike[0]}?" if alike else ""
            raise ValueError(f"{model_type} has no field {name}={overrides[name]!r}{hint}")
    fields = {"max_bars": processor.max_bars}
    if model_type in LANGUAGE_MODELS:
        if overrides.get("latent_size"):
            raise ValueError(
                f"latent_size={overrides['latent_size']}: {model_type} is a language model without a latent"
            )
        tokenizer = processor.tokenizer
        fields |= {
            "vocab_size": len(tokenizer),
            "bar_token_ids": processor.bar_token_ids,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "mask_token_id": tokenizer.mask_token_id,
        }
    return config_class(**(fields | overrides))


def build(model_type: str, processor: MelodyProcessor, **overrides) -> PreTrainedModel:
    """Make a new baseline.

    The defaults have about 4.3 M parameters each at a vocabulary of 2,048. MusicVAE, which has no vocabulary, is scaled
    down accordingly from 178 M: every width, and not the latent. To save beside the model: [`processor_for`].

    Args:
        model_type: See [`configure`].
        processor: See [`configure`].
        overrides: See [`configure`].

    Raises:
        ValueError: See [`configure`].
    """
    config = configure(model_type, processor, **overrides)
    _, model_class = LANGUAGE_MODELS.get(model_type, (MusicVAEConfig, MusicVAEModel))
    model = model_class(config)
    if isinstance(model, MelodyVAEModel):
        model.set_grammar(processor.grammar_table(), processor.fingerprint())
    return model


def processor_for(model_type: str, processor: MelodyProcessor) -> MelodyProcessor:
    """Return the processor to save beside a model: the tokenising one itself, or for MusicVAE one of steps."""
    return StepProcessor(max_bars=processor.max_bars) if model_type == "music_vae" else processor


__all__ = [
    "MODEL_TYPES",
    "AbsoluteMusicTransformer",
    "AbsoluteMusicTransformerConfig",
    "MelodyLSTMConfig",
    "MelodyLSTMModel",
    "MelodyRNNConfig",
    "MelodyRNNModel",
    "MusicVAEConfig",
    "MusicVAEModel",
    "StepCollator",
    "StepProcessor",
    "build",
    "configure",
    "processor_for",
]
