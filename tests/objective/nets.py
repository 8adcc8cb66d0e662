"""Small networks for the objectives' tests."""

from __future__ import annotations

from typing import Any

import torch

from xtdist.config import from_mapping
from xtdist.model import ModelConfig, TransformerWrapper, build_model
from xtdist.objective.masking import Schedule

VOCABULARY = 20


def make_net(*, causal: bool, **more: Any) -> TransformerWrapper:
    tree: dict[str, Any] = {
        "dim": 32,
        "depth": 2,
        "heads": 2,
        "num_tokens": VOCABULARY,
        "max_seq_len": 16,
        "attention": {"dim_head": 16},
    }
    config = from_mapping(ModelConfig, {**tree, "causal": causal, **more})
    return build_model(config, generator=torch.Generator().manual_seed(1))


def some_ids(*shape: int, seed: int = 0, high: int = VOCABULARY - 1) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def how_often(schedule: Schedule, n: int, draws: int = 60_000) -> list[float]:
    """Of draws at even times, the part that masks 1, 2, … n tokens."""
    counts = [schedule.count((i + 0.5) / draws, n) for i in range(draws)]
    return [counts.count(k) / draws for k in range(1, n + 1)]
