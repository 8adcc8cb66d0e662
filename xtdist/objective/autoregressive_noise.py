"""What training hides from a model that predicts the next token (2210.13432)."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from xtdist.config import derive_seed
from xtdist.objective.base import Prepared
from xtdist.objective.config import AutoregressiveConfig


def with_hidden(
    prepared: Prepared,
    real: Bool[Tensor, "b n"],
    config: AutoregressiveConfig,
    *,
    mask_id: int | None,
    seed: int,
) -> Prepared:
    """The same with ``mask_token_prob`` of the tokens replaced by ``mask_id``, and ``mask_prob`` of
    them hidden as keys."""
    may, ids = not_first(real, prepared.documents), prepared.sample_ids
    if config.mask_token_prob:
        assert mask_id is not None
        share = config.mask_token_prob
        places = hidden_places(real, share, may=may, seed=seed, name="replaced", sample_ids=ids)
        prepared = replace(prepared, inputs=prepared.inputs.masked_fill(places, mask_id))
    if config.mask_prob:
        share = config.mask_prob
        places = hidden_places(real, share, may=may, seed=seed, name="dropped", sample_ids=ids)
        prepared = replace(prepared, keys=~places)
    return prepared


def hidden_places(
    real: Bool[Tensor, "b n"],
    probability: float,
    *,
    may: Bool[Tensor, "b n"],
    seed: int,
    name: str,
    sample_ids: Int[Tensor, " b"],
) -> Bool[Tensor, "b n"]:
    """⌊n · ``probability``⌋ random places of each row of n ``real`` tokens, among those that
    ``may`` be hidden (all of them if they are fewer), drawn from (``seed``, ``name``, sample id)
    alone."""
    rows = []
    counts = (real.sum(dim=1).double() * probability).long().tolist()
    for allowed, count, i in zip(may.cpu(), counts, sample_ids.tolist(), strict=True):
        generator = torch.Generator().manual_seed(derive_seed(seed, name, int(i)))
        order = torch.rand(len(allowed), generator=generator).masked_fill(~allowed, 2.0)
        chosen = torch.zeros_like(allowed)
        chosen[order.argsort()[:count]] = True
        rows.append(chosen & allowed)
    return torch.stack(rows).to(may.device)


def not_first(
    real: Bool[Tensor, "b n"], documents: Int[Tensor, "b n"] | None
) -> Bool[Tensor, "b n"]:
    """The real tokens but the first of each row and of each document, which would leave a token
    with nothing to read."""
    may = real & (real.cumsum(dim=1) > 1)
    may[:, 0] = False
    if documents is not None:
        may[:, 1:] &= documents[:, 1:] == documents[:, :-1]
    return may
