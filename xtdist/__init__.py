"""xtdist: distributed training and serving of transformer language models on Ray.

Names load on first use, so that ``import xtdist`` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xtdist.model import Decoder, Encoder, ModelConfig, TransformerWrapper, build_model

__all__ = ["Decoder", "Encoder", "ModelConfig", "TransformerWrapper", "build_model"]

_HOME = dict.fromkeys(__all__, "xtdist.model")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'xtdist' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
