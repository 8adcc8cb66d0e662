"""Whole models: the stack of layers and the wrapper that turns token ids into logits."""

from xtdist.model.config import LayersConfig, ModelConfig
from xtdist.model.layers import Decoder, Encoder, Layers
from xtdist.model.outputs import LogitsAndEmbeddings, ModelInputs
from xtdist.model.wrapper import TransformerWrapper, build_model

__all__ = [
    "Decoder",
    "Encoder",
    "Layers",
    "LayersConfig",
    "LogitsAndEmbeddings",
    "ModelConfig",
    "ModelInputs",
    "TransformerWrapper",
    "build_model",
]
