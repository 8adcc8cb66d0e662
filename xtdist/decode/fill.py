"""A batch of sequences with masks in, without masks out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from xtdist.config import ConfigError
from xtdist.decode.batch import MOST_AT_ONCE
from xtdist.decode.denoiser import PlainDenoiser, as_denoiser
from xtdist.decode.engine import Engine
from xtdist.decode.given import as_made
from xtdist.decode.maskpredict import MaskPredictParams
from xtdist.decode.params import EngineConfig
from xtdist.model.tensors import check_shape, check_tensor, is_integer, seen


def mask_predict(
    model: Any,
    tokens: Int[Tensor, "b n"],
    *,
    mask_id: int | None = None,
    params: MaskPredictParams | None = None,
    banned_ids: Iterable[int] = (),
    mask: Bool[Tensor, "b n"] | None = None,
) -> Int[Tensor, "b n"]:
    """``tokens`` with every ``mask_id`` filled in; all others stay as they are.

    Without a seed in ``params``, draws follow torch's default generator. A row is filled as if it
    were alone, its padding left out; its draws depend on the seed and its number.

    Args:
        model: a bidirectional model, or a ``Denoiser``.
        mask_id: the mask (None: the model says it); it is never filled in, nor are ``banned_ids``.
        mask: True = real position, False = padding, which is neither read nor filled.

    Raises:
        ConfigError: a causal model, or tokens that the model can't take.
        ValueError: what is no tensor, or a mask of another type or shape.
    """
    if check_tensor(tokens, name="tokens").ndim != 2 or not is_integer(tokens) or 0 in tokens.shape:
        raise ConfigError(f"tokens: got {seen(tokens)}; give ids (b, n)")
    if mask is not None:
        check_shape(mask, name="mask", kind="bool", shapes=[tuple(tokens.shape)])
    given = MaskPredictParams() if params is None else params
    params = as_made(given, MaskPredictParams, name="params")
    seed = int(torch.randint(2**62, ())) if params.seed is None else params.seed
    asked = params.mask_id if mask_id is None else mask_id
    params = dataclasses.replace(params, seed=None, mask_id=asked)
    out = tokens.long().cpu().clone(memory_format=torch.contiguous_format)
    real = torch.ones_like(out, dtype=torch.bool) if mask is None else mask.cpu()
    config = EngineConfig(
        max_sequences=min(len(out), MOST_AT_ONCE),
        max_step_tokens=max(EngineConfig().max_step_tokens, out.shape[1]),
        seed=seed,
    )
    filler: Any = as_denoiser(model) or PlainDenoiser(model)
    engine = Engine(filler, banned_ids=banned_ids, config=config)
    rows = [row[kept].tolist() for row, kept in zip(out, real, strict=True)]
    completions = engine.generate([row for row in rows if row], params)
    filled = [i for i, row in enumerate(rows) if row]
    for i, completion in zip(filled, completions, strict=True):
        out[i, real[i]] = torch.tensor(completion.choices[0].token_ids)
    return out.to(tokens.device)
