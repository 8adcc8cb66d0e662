"""Attention against its formula, written out per head and per query."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from xtdist.nn.attention.backends import BACKENDS, Attend
from xtdist.nn.attention.cache import Kept, Read
from xtdist.nn.attention.config import AttentionConfig
from xtdist.nn.attention.masks import attention_mask
from xtdist.nn.attention.module import Attention, AttentionGeometry, AttentionInputs

EACH = pytest.mark.parametrize("backend", list(BACKENDS))


def brute_force(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """softmax over the allowed keys, one query at a time, keys repeated for their group."""
    group = q.shape[1] // k.shape[1]
    out = torch.zeros_like(q)
    for b, h, i in torch.cartesian_prod(*(torch.arange(s) for s in q.shape[:3])).tolist():
        keys = allowed[b, i].nonzero()[:, 0]
        scores = k[b, h // group, keys] @ q[b, h, i] * scale
        weights = (scores - scores.max()).exp()
        out[b, h, i] = (weights / weights.sum()) @ v[b, h // group, keys]
    return out


def qkv(kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 7, 8, generator=g)
    k, v = torch.randn(2, 2, kv_heads, 7, 8, generator=g)
    return q, k, v


@EACH
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [True, False])
def test_grouped_heads_equal_repeated_keys_by_brute_force(
    backend: str, kv_heads: int, causal: bool
) -> None:
    q, k, v = qkv(kv_heads)
    allowed = torch.ones(2, 7, 7, dtype=torch.bool)
    allowed = allowed.tril() if causal else allowed
    got = BACKENDS[backend](q, k, v, Attend(causal=causal, scale=0.3))
    torch.testing.assert_close(got, brute_force(q, k, v, allowed, 0.3))


@EACH
@pytest.mark.parametrize("causal", [True, False])
def test_masks_hide_padding_by_brute_force(backend: str, causal: bool) -> None:
    q, k, v = qkv(2)
    real = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1]], dtype=torch.bool)
    allowed = real[:, None, :].expand(2, 7, 7)
    allowed = (allowed.tril() if causal else allowed) | torch.eye(7, dtype=torch.bool)
    mask = attention_mask(real, causal=causal)
    got = BACKENDS[backend](q, k, v, Attend(mask=mask, causal=causal, scale=0.3))
    want = brute_force(q, k, v, allowed, 0.3)
    rows = real[:, None, :, None].expand_as(want)
    torch.testing.assert_close(got[rows], want[rows])


@EACH
def test_dropout_drops_whole_weights_and_keeps_the_mean(backend: str) -> None:
    torch.manual_seed(0)
    q, k = torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 400, 8)
    v = torch.ones(1, 1, 400, 8)
    how = Attend(causal=False, scale=1.0, dropout=0.25)
    out = torch.cat([BACKENDS[backend](q, k, v, how) for _ in range(200)])
    assert out.mean().item() == pytest.approx(1, abs=0.01)
    assert out[:, 0, 0, 0].std().item() == pytest.approx(math.sqrt(0.25 / 0.75 / 400), rel=0.25)


def layer(**options: object) -> Attention:
    geometry = AttentionGeometry(dim=16, heads=4, causal=True, layer=5)
    torch.manual_seed(0)
    return Attention(geometry, AttentionConfig(dim_head=8, **options))  # type: ignore[arg-type]


def test_a_layer_is_projection_attention_projection() -> None:
    attention = layer(kv_heads=2)
    x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(1))
    weight = attention.to_qkv.weight
    q = (x @ weight[:32].T).unflatten(-1, (4, 8)).transpose(1, 2)
    k = (x @ weight[32:48].T).unflatten(-1, (2, 8)).transpose(1, 2)
    v = (x @ weight[48:].T).unflatten(-1, (2, 8)).transpose(1, 2)
    allowed = torch.ones(2, 7, 7, dtype=torch.bool).tril()
    heads = brute_force(q, k, v, allowed, 8**-0.5)
    want = heads.transpose(1, 2).flatten(2) @ attention.to_out.weight.T
    torch.testing.assert_close(attention(x, AttentionInputs()), want)


def test_a_cache_gets_normalized_keys_and_the_layer_reads_what_it_gives() -> None:
    attention, seen = layer(qk_rmsnorm=True, kv_heads=2), {}
    x = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(1))

    class Echo:
        def update(self, layer: int, new: Kept) -> list[Read]:
            seen.update(layer=layer, new=new)
            return [Read(rows=slice(0, 3), kept=new)]

    torch.testing.assert_close(
        attention(x, AttentionInputs(cache=Echo())), attention(x, AttentionInputs())
    )
    keys, values = seen["new"]
    assert seen["layer"] == 5
    assert keys.shape == values.shape == (1, 2, 3, 8)
    rms = keys.square().mean(dim=-1).sqrt()
    torch.testing.assert_close(rms, torch.ones_like(rms), atol=1e-4, rtol=1e-4)


def test_no_mask_is_made_without_padding() -> None:
    assert attention_mask(None, causal=True) is None
    assert attention_mask(None, causal=False) is None


def test_every_query_may_read_something() -> None:
    for bits in range(2**4):
        real = torch.tensor([[bool(bits >> i & 1) for i in range(4)]])
        for causal in (True, False):
            mask = attention_mask(real, causal=causal)
            assert mask is not None
            full = mask.expand(1, 1, 4, 4)
            assert full.any(dim=-1).all()
            for i in real[0].nonzero()[:, 0].tolist():
                past = torch.arange(4) <= i
                want = real[0] & past if causal else real[0]
                assert torch.equal(full[0, 0, i], want)
