"""Engines for one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xtdist.decode.engine import Engine
from xtdist.decode.given import as_prompts
from xtdist.decode.maskpredict import MaskPredictParams
from xtdist.decode.outputs import Completion
from xtdist.decode.params import EngineConfig, GenerationParams
from xtdist.decode.stream import OutputStream


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    params: GenerationParams | MaskPredictParams,
    **options: Any,
) -> list[Completion]:
    """Continue ``prompts``, or fill their masks, with an engine made for this call; ``options`` are
    ``Engine``'s. Raises as ``Engine`` and ``Engine.add``."""
    each = params.width if isinstance(params, GenerationParams) else 1
    width = min(each * max(1, len(as_prompts(prompts))), max(each, 8))
    options.setdefault("config", EngineConfig(max_sequences=width))
    return Engine(model, **options).generate(prompts, params)


def stream(
    model: Any,
    prompt_ids: Sequence[int],
    params: GenerationParams | MaskPredictParams,
    **options: Any,
) -> OutputStream:
    """The outputs of one request as they come, of an engine made for this call; ``options`` are
    ``Engine``'s. Raises as ``Engine`` and ``Engine.add``."""
    return Engine(model, **options).stream(prompt_ids, params)
