"""The model as it ships to the Hub: configuration, relative attention, model, processor."""

from .configuration_melody_vae import MelodyVAEConfig
from .modeling_melody_vae import MelodyVAEModel, MelodyVAEOutput, MelodyVAEPosterior
from .processing_melody_vae import MelodyProcessor

MelodyVAEConfig.register_for_auto_class()
MelodyVAEModel.register_for_auto_class("AutoModel")
MelodyProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["MelodyProcessor", "MelodyVAEConfig", "MelodyVAEModel", "MelodyVAEOutput", "MelodyVAEPosterior"]
