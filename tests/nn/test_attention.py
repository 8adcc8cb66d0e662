"""Attention against its formula, written out per head and per query."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from xtdist.nn.attention.attend import Attend
from xtdist.nn.attention.backends import BACKENDS
from xtdist.nn.attention.cache import Kept, Read
from xtdist.nn.attention.config import AttentionConfig
from xtdist.nn.attention.inputs import AttentionInputs, LayerInputs
from xtdist.nn.attention.masks import Visible
from xtdist.nn.attention.module import Attention, AttentionGeometry

EACH = pytest.mark.parametrize("backend", list(BACKENDS))
EACH_DROPPING = pytest.mark.parametrize("backend", ["sdpa", "eager"])


def brute_force(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """softmax over the allowed keys (b h i j), one query at a time, keys repeated for their group;
    a query without keys reads zero."""
    group = q.shape[1] // k.shape[1]
    out = torch.zeros(*q.shape[:3], v.shape[-1])
    allowed = allowed.expand(*q.shape[:3], k.shape[2])
    for b, h, i in torch.cartesian_prod(*(torch.arange(s) for s in q.shape[:3])).tolist():
        keys = allowed[b, h, i].nonzero()[:, 0]
        if len(keys):
            scores = k[b, h // group, keys] @ q[b, h, i] * scale
            weights = (scores - scores.max()).exp()
            out[b, h, i] = (weights / weights.sum()) @ v[b, h // group, keys]
    return out


def qkv(kv_heads: int = 2, keys: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 7, 8, generator=g)
    k = torch.randn(2, kv_heads, keys, 8, generator=g)
    return q, k, torch.randn(2, kv_heads, keys, 6, generator=g)


@EACH
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [True, False])
def test_grouped_heads_equal_repeated_keys_by_brute_force(
    backend: str, kv_heads: int, causal: bool
) -> None:
    q, k, v = qkv(kv_heads)
    allowed = torch.ones(7, 7, dtype=torch.bool)
    allowed = allowed.tril() if causal else allowed
    got = BACKENDS[backend](q, k, v, Attend(visible=Visible(causal=causal), scale=0.3)).out
    torch.testing.assert_close(got, brute_force(q, k, v, allowed, 0.3))


REAL = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1]], dtype=torch.bool)
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [5, 5, 5, 5, 5, 5, 1]])
TABLE = torch.rand(2, 4, 7, 7, generator=torch.Generator().manual_seed(3)) > 0.4
RULES = {
    "window": Visible(causal=True, window=2),
    "window of a single key": Visible(causal=True, window=0),
    "window both ways": Visible(window=2),
    "padding": Visible(keys=REAL),
    "causal padding": Visible(causal=True, keys=REAL),
    "documents": Visible(causal=True, documents=DOCUMENTS),
    "prefix": Visible(causal=True, prefix=torch.tensor([3, 0])),
    "table": Visible(table=TABLE),
    "all": Visible(causal=True, window=4, keys=REAL, documents=DOCUMENTS, table=TABLE),
}


def ruled(rules: Visible, b: int, h: int, i: int, j: int) -> bool:
    """The rules one by one, for 7 queries that are the last of the keys behind the lead."""
    if j < rules.lead:
        return rules.lead_keys is None or bool(rules.lead_keys[b, j])
    j -= rules.lead
    prefix = 0 if rules.prefix is None else int(rules.prefix[b])
    return not (
        (rules.causal and j > i and j >= prefix)
        or (rules.window is not None and i - j > rules.window)
        or (rules.keys is not None and not rules.keys[b, j])
        or (rules.documents is not None and rules.documents[b, i] != rules.documents[b, j])
        or (rules.table is not None and not rules.table[b, h, i, j])
    )


@EACH
@pytest.mark.parametrize("lead", [0, 2])
@pytest.mark.parametrize("name", RULES)
def test_every_rule_of_visibility_by_brute_force(backend: str, name: str, lead: int) -> None:
    q, k, v = qkv(keys=7 + lead)
    rules = RULES[name].after(lead) if lead else RULES[name]
    allowed = torch.zeros(2, 4, 7, 7 + lead, dtype=torch.bool)
    for index in torch.cartesian_prod(*(torch.arange(s) for s in allowed.shape)).tolist():
        allowed[tuple(index)] = ruled(rules, *index)
    got = BACKENDS[backend](q, k, v, Attend(visible=rules, scale=0.3)).out
    torch.testing.assert_close(got, brute_force(q, k, v, allowed, 0.3))


@pytest.mark.parametrize("lead", [0, 3])
@pytest.mark.parametrize("window", [0, 5, 150])
def test_a_long_window_is_read_in_pieces_with_the_same_result(window: int, lead: int) -> None:
    g = torch.Generator().manual_seed(2)
    n = 421
    q = torch.randn(2, 4, n, 8, generator=g, requires_grad=True)
    k, v = torch.randn(2, 2, 2, n + lead, 8, generator=g)
    documents = torch.arange(n).expand(2, n) // 100
    bias = torch.randn(1, 4, n, n, generator=g)
    for rules, extra in (
        (Visible(causal=True, window=window), None),
        (Visible(causal=True, window=window, documents=documents, keys=documents != 2), bias),
    ):
        rules = rules.after(lead) if lead else rules
        how = Attend(scale=0.3, visible=rules, bias=extra)
        got, want = (BACKENDS[name](q, k, v, how).out for name in ("sdpa", "eager"))
        torch.testing.assert_close(got, want)
        grads = [torch.autograd.grad(out.square().sum(), q)[0] for out in (got, want)]
        torch.testing.assert_close(grads[0], grads[1], atol=1e-4, rtol=1e-4)


def test_a_window_makes_no_table_of_all_pairs() -> None:
    q = torch.randn(1, 1, 2048, 8, requires_grad=True)
    how = Attend(scale=0.3, visible=Visible(causal=True, window=16))
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple) else (out,):
                if isinstance(t, Tensor):
                    largest = max(largest, t.numel())
            return out

    with Watch():
        BACKENDS["sdpa"](q, q, q, how).out.sum().backward()
    assert largest <= 2048 * 8 * 4


@EACH
def test_leading_keys_can_be_hidden_one_by_one(backend: str) -> None:
    q, k, v = qkv(keys=10)
    of_first = torch.tensor([[True, False], [False, False]])
    rules = Visible(causal=True).after(1).after(2, of_first)
    allowed = torch.zeros(2, 4, 7, 10, dtype=torch.bool)
    for index in torch.cartesian_prod(*(torch.arange(s) for s in allowed.shape)).tolist():
        allowed[tuple(index)] = ruled(rules, *index)
    assert allowed[:, :, :, 2].all()
    assert not allowed[1, :, :, :2].any()
    got = BACKENDS[backend](q, k, v, Attend(visible=rules, scale=0.3)).out
    torch.testing.assert_close(got, brute_force(q, k, v, allowed, 0.3))


@pytest.mark.parametrize("rules", [Visible(causal=True), Visible(causal=True, keys=REAL)])
def test_bias_and_sink_give_the_same_on_every_backend(rules: Visible) -> None:
    q, k, v = qkv()
    g = torch.Generator().manual_seed(5)
    bias, sink = torch.randn(1, 4, 7, 7, generator=g), torch.randn(4, generator=g)
    for how in (
        Attend(scale=0.3, visible=rules, bias=bias),
        Attend(scale=0.3, visible=rules, sink=sink),
        Attend(scale=0.3, visible=rules, bias=bias, sink=sink),
    ):
        outs = [BACKENDS[name](q, k, v, how).out for name in BACKENDS]
        for other in outs[1:]:
            torch.testing.assert_close(outs[0], other)


def test_a_sink_takes_its_share_and_reads_nothing() -> None:
    q, k, v = qkv()
    sink = torch.tensor([0.5, -1.0, 2.0, 0.0])
    got = BACKENDS["eager"](q, k, v, Attend(scale=0.3, sink=sink)).out
    keys, values = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
    scores = (q @ keys.mT * 0.3).exp()
    share = scores / (scores.sum(dim=-1, keepdim=True) + sink.exp()[:, None, None])
    torch.testing.assert_close(got, share @ values)


@EACH_DROPPING
def test_dropout_drops_whole_weights_and_keeps_the_mean(backend: str) -> None:
    torch.manual_seed(0)
    q, k = torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 400, 8)
    v = torch.ones(1, 1, 400, 8)
    how = Attend(scale=1.0, dropout=0.25)
    out = torch.cat([BACKENDS[backend](q, k, v, how).out for _ in range(200)])
    assert out.mean().item() == pytest.approx(1, abs=0.01)
    assert out[:, 0, 0, 0].std().item() == pytest.approx(math.sqrt(0.25 / 0.75 / 400), rel=0.25)


def layer(**options: object) -> Attention:
    geometry = AttentionGeometry(dim=16, heads=4, causal=True)
    torch.manual_seed(0)
    return Attention(geometry, AttentionConfig(dim_head=8, **options))  # type: ignore[arg-type]


def told(n: int, **more: object) -> AttentionInputs:
    pos = torch.arange(n)[None]
    inputs = AttentionInputs(q_pos=pos, k_pos=pos, visible=Visible(causal=True))
    return replace(inputs, **more)  # type: ignore[arg-type]


def test_a_layer_is_projection_attention_projection() -> None:
    attention = layer(kv_heads=2)
    x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(1))
    weight = attention.projection.weight
    q = (x @ weight[:32].T).unflatten(-1, (4, 8)).transpose(1, 2)
    k = (x @ weight[32:48].T).unflatten(-1, (2, 8)).transpose(1, 2)
    v = (x @ weight[48:].T).unflatten(-1, (2, 8)).transpose(1, 2)
    allowed = torch.ones(7, 7, dtype=torch.bool).tril()
    heads = brute_force(q, k, v, allowed, 8**-0.5)
    want = heads.transpose(1, 2).flatten(2) @ attention.to_out.weight.T
    torch.testing.assert_close(attention(x, told(7)).out, want)


def test_a_cache_gets_normalized_keys_and_the_layer_reads_what_it_gives() -> None:
    attention, seen = layer(qk_rmsnorm=True, kv_heads=2), {}
    x = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(1))

    class Echo:
        def update(self, layer: int, new: Kept) -> list[Read]:
            seen.update(layer=layer, new=new)
            return [Read(rows=slice(0, 3), kept=new)]

    cached = attention(x, told(3, cache=Echo()), LayerInputs(layer=5)).out
    torch.testing.assert_close(cached, attention(x, told(3)).out)
    keys, values = seen["new"]
    assert seen["layer"] == 5
    assert keys.shape == values.shape == (1, 2, 3, 8)
    rms = keys.square().mean(dim=-1).sqrt()
    torch.testing.assert_close(rms, torch.ones_like(rms), atol=1e-4, rtol=1e-4)


def test_flex_attention_refuses_gradients_on_the_cpu() -> None:
    q, k, v = (t.requires_grad_() for t in qkv())
    with pytest.raises(ValueError, match="no gradients on the CPU"):
        BACKENDS["flex"](q, k, v, Attend(scale=1.0))


def test_plain_causality_needs_no_table() -> None:
    assert Visible(causal=True).only_causal
    assert Visible().only_causal
    for rules in RULES.values():
        assert not rules.only_causal
