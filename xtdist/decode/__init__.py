"""Generation: one engine for sampling, greedy and beam search, contrastive decoding; mask-predict
for non-autoregressive models."""

from xtdist.decode.engine import Engine, generate
from xtdist.decode.maskpredict import MaskPredict, MaskPredictParams, mask_predict
from xtdist.decode.outputs import Choice, Completion, Output, QueueFull, TokenLogprob
from xtdist.decode.params import ContrastiveParams, EngineConfig, GenerationParams, GrammarParams

__all__ = [
    "Choice",
    "Completion",
    "ContrastiveParams",
    "Engine",
    "EngineConfig",
    "GenerationParams",
    "GrammarParams",
    "MaskPredict",
    "MaskPredictParams",
    "Output",
    "QueueFull",
    "TokenLogprob",
    "generate",
    "mask_predict",
]
