"""Whole models: the stack of layers and the wrapper that turns token ids into logits."""

from xtdist.model.compat_back import keywords_of
from xtdist.model.compat_load import load_x_transformers
from xtdist.model.compat_weights import to_x_transformers
from xtdist.model.config import LayersConfig, ModelConfig
from xtdist.model.continuous import ContinuousTransformerWrapper
from xtdist.model.layers import Layers
from xtdist.model.muon import muon_parameters
from xtdist.model.outputs import LogitsAndEmbeddings, ModelInputs
from xtdist.model.pool import AttentionPool
from xtdist.model.presets import preset
from xtdist.model.qk_clip import attn_qk_clip_, watch_max_scores
from xtdist.model.stacks import CrossAttender, Decoder, Encoder, PrefixDecoder
from xtdist.model.vision import ViTransformerWrapper
from xtdist.model.wrapper import TransformerWrapper, build_model

__all__ = [
    "AttentionPool",
    "ContinuousTransformerWrapper",
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
    "ViTransformerWrapper",
    "attn_qk_clip_",
    "build_model",
    "keywords_of",
    "load_x_transformers",
    "muon_parameters",
    "preset",
    "to_x_transformers",
    "watch_max_scores",
]
