"""xtdist: distributed training and serving of transformer language models on Ray.

Names load on first use, so that ``import xtdist`` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xtdist.model import Decoder, Encoder, ModelConfig, TransformerWrapper, build_model
    from xtdist.objective import AutoregressiveWrapper, NonAutoregressiveWrapper

__all__ = [
    "AutoregressiveWrapper",
    "Decoder",
    "Encoder",
    "ModelConfig",
    "NonAutoregressiveWrapper",
    "TransformerWrapper",
    "build_model",
]

_OBJECTIVES = {"AutoregressiveWrapper", "NonAutoregressiveWrapper"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'xtdist' has no attribute {name!r}")
    home = "xtdist.objective" if name in _OBJECTIVES else "xtdist.model"
    return getattr(import_module(home), name)
