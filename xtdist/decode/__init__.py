"""Generation: one engine for sampling, greedy and beam search, contrastive decoding; mask-predict
for non-autoregressive models."""

from xtdist.decode.denoiser import Denoiser, PlainDenoiser
from xtdist.decode.engine import Engine
from xtdist.decode.fill import mask_predict
from xtdist.decode.maskpredict import MaskPredictParams
from xtdist.decode.once import generate, stream
from xtdist.decode.outputs import (
    Choice,
    Completion,
    Output,
    QueueFull,
    RequestFailed,
    TokenLogprob,
)
from xtdist.decode.params import ContrastiveParams, EngineConfig, GenerationParams, GrammarParams
from xtdist.decode.stats import EngineStats
from xtdist.decode.stopping import Tokenizer
from xtdist.decode.stream import OutputStream

__all__ = [
    "Choice",
    "Completion",
    "ContrastiveParams",
    "Denoiser",
    "Engine",
    "EngineConfig",
    "EngineStats",
    "GenerationParams",
    "GrammarParams",
    "MaskPredictParams",
    "Output",
    "OutputStream",
    "PlainDenoiser",
    "QueueFull",
    "RequestFailed",
    "TokenLogprob",
    "Tokenizer",
    "generate",
    "mask_predict",
    "stream",
]
