"""Matrices column by column: other strides, the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch

from xtdist.model import ModelConfig, build_model
from xtdist.nn.attention.config import AttentionConfig
from xtdist.nn.layout import by_columns


@pytest.mark.parametrize("tied", [False, True])
def test_matrices_by_columns_are_the_same_parameters_with_the_same_values(tied: bool) -> None:
    config = ModelConfig(
        dim=32,
        depth=2,
        heads=2,
        num_tokens=50,
        max_seq_len=16,
        attention=AttentionConfig(dim_head=16),
        tie_embedding=tied,
    )
    model = build_model(config, generator=torch.Generator().manual_seed(0)).eval()
    laid = by_columns(copy.deepcopy(model))
    strides = {n: p.stride() for n, p in laid.named_parameters()}
    assert strides["layers.sublayers.0.branch.to_out.weight"] == (1, 32)
    assert strides["token_embedding.weight"] == (32, 1)  # its rows are looked up one by one
    for name, parameter in model.named_parameters():
        assert torch.equal(dict(laid.named_parameters())[name], parameter)
    ids = torch.arange(7)[None]
    with torch.no_grad():
        torch.testing.assert_close(laid(ids), model(ids))
