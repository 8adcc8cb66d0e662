"""xtdist: distributed training and serving of transformer language models on Ray.

Names load on first use, so that ``import xtdist`` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xtdist.model import (
        ContinuousTransformerWrapper,
        CrossAttender,
        Decoder,
        Encoder,
        ModelConfig,
        PrefixDecoder,
        TransformerWrapper,
        ViTransformerWrapper,
        build_model,
        keywords_of,
        load_x_transformers,
        preset,
        to_x_transformers,
    )
    from xtdist.objective import (
        AutoregressiveWrapper,
        ContinuousAutoregressiveWrapper,
        NonAutoregressiveWrapper,
        XTransformer,
    )

__all__ = [
    "AutoregressiveWrapper",
    "ContinuousAutoregressiveWrapper",
    "ContinuousTransformerWrapper",
    "CrossAttender",
    "Decoder",
    "Encoder",
    "ModelConfig",
    "NonAutoregressiveWrapper",
    "PrefixDecoder",
    "TransformerWrapper",
    "ViTransformerWrapper",
    "XTransformer",
    "build_model",
    "keywords_of",
    "load_x_transformers",
    "preset",
    "to_x_transformers",
]

_OBJECTIVES = {
    "AutoregressiveWrapper",
    "ContinuousAutoregressiveWrapper",
    "NonAutoregressiveWrapper",
    "XTransformer",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'xtdist' has no attribute {name!r}")
    home = "xtdist.objective" if name in _OBJECTIVES else "xtdist.model"
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
