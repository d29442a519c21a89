"""The model as it ships to the Hub: configuration, relative attention, model, processor, pipeline."""

from transformers import AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_melody_vae import MelodyVAEConfig
from .modeling_melody_vae import MelodyVAEModel, MelodyVAEOutput, MelodyVAEPosterior
from .pipeline_melody_vae import TASK, MelodyGenerationPipeline
from .processing_melody_vae import MelodyProcessor

MelodyVAEConfig.register_for_auto_class()
MelodyVAEModel.register_for_auto_class("AutoModel")
MelodyProcessor.register_for_auto_class("AutoProcessor")
PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=MelodyGenerationPipeline, pt_model=AutoModel)

__all__ = [
    "MelodyGenerationPipeline",
    "MelodyProcessor",
    "MelodyVAEConfig",
    "MelodyVAEModel",
    "MelodyVAEOutput",
    "MelodyVAEPosterior",
]
