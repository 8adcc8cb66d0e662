"""Whole models: the stack of layers and the wrapper that turns token ids into logits."""

from xtdist.model.config import LayersConfig, ModelConfig
from xtdist.model.layers import Layers
from xtdist.model.outputs import LogitsAndEmbeddings, ModelInputs
from xtdist.model.stacks import CrossAttender, Decoder, Encoder, PrefixDecoder
from xtdist.model.wrapper import TransformerWrapper, build_model

__all__ = [
    "CrossAttender",
    "Decoder",
    "Encoder",
    "Layers",
    "LayersConfig",
    "LogitsAndEmbeddings",
    "ModelConfig",
    "ModelInputs",
    "PrefixDecoder",
    "TransformerWrapper",
    "build_model",
]
