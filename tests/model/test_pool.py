"""Attention pooling against x-transformers, with masks, given queries and every kind of pooler."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xtdist.config import ConfigError
from xtdist.model.compat_weights import from_x_transformers
from xtdist.model.layers import Layers
from xtdist.model.pool import AttentionPool
from xtdist.nn.linear import initialize

xt = pytest.importorskip("x_transformers")

SIZES = {"heads": 4, "dim_head": 8}
KINDS: dict[str, dict[str, Any]] = {
    "one attention": {},
    "several tokens": {"num_pooled_tokens": 3},
    "another width": {"dim_context": 12, "num_pooled_tokens": 2},
    "residual": {"add_residual": True},
    "squeezed": {"squeeze_output": True},
    "blocks": {"depth": 2, "num_pooled_tokens": 2, "dim_context": 12},
    "one block": {"use_transformer_blocks": True},
    "an option of attention": {"attn_kwargs": {"qk_rmsnorm": True}},
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def perturb(module: nn.Module) -> None:
    for seed, weight in enumerate(module.parameters()):
        weight.add_(0.2 * noise(*weight.shape, seed=seed))


def converted(theirs: nn.Module, ours: AttentionPool) -> dict[str, Tensor]:
    state = theirs.state_dict()
    queries = {"queries": state.pop("queries")} if "queries" in state else {}
    inner = {name.removeprefix("pooler."): weight for name, weight in state.items()}
    if isinstance(ours.pooler, Layers):
        named = {f"attn_layers.{name}": weight for name, weight in inner.items()}
        found = from_x_transformers(named, ours.pooler.config)
        return queries | {f"pooler.{k.removeprefix('layers.')}": v for k, v in found.items()}
    found = {
        "pooler.projection.to_q.weight": inner["to_q.weight"],
        "pooler.projection.to_kv.weight": torch.cat((inner["to_k.weight"], inner["to_v.weight"])),
        "pooler.to_out.weight": inner["to_out.weight"],
    }
    for name in ("query", "key"):
        if f"qk_norm_{name[0]}_scale" in inner:
            found[f"pooler.norms.{name}.gain"] = inner[f"qk_norm_{name[0]}_scale"]
    return queries | found


def pair_of(keywords: dict[str, Any]) -> tuple[nn.Module, AttentionPool]:
    theirs = xt.x_transformers.AttentionPool(32, **SIZES, **keywords).eval()
    perturb(theirs)
    ours = AttentionPool(32, **SIZES, **keywords).eval()
    state = converted(theirs, ours)
    assert state.keys() == ours.state_dict().keys()
    ours.load_state_dict(state)
    return theirs, ours


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "an option of attention"])
def test_the_same_weights_pool_as_x_transformers(kind: str) -> None:
    theirs, ours = pair_of(KINDS[kind])
    context = noise(2, 9, KINDS[kind].get("dim_context", 32))
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    for given in (None, mask):
        torch.testing.assert_close(
            ours(context, given), theirs(context, given), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_not_read_and_a_batch_is_its_rows(kind: str) -> None:
    ours = AttentionPool(32, **SIZES, **KINDS[kind]).eval()
    perturb(ours)
    context = noise(2, 9, KINDS[kind].get("dim_context", 32))
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    got = ours(context, mask)
    torch.testing.assert_close(got[1:], ours(context[1:, :4]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(got[:1], ours(context[:1]), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(got, ours(context))


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient_and_the_module_pickles(kind: str) -> None:
    ours = AttentionPool(32, **SIZES, **KINDS[kind])
    perturb(ours)
    context = noise(2, 9, KINDS[kind].get("dim_context", 32))
    ours(context).square().sum().backward()
    for name, weight in ours.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name
    again = pickle.loads(pickle.dumps(ours))
    assert torch.equal(again(context), ours(context))


def test_one_attention_is_the_softmax_formula() -> None:
    ours = AttentionPool(32, **SIZES, num_pooled_tokens=2)
    perturb(ours)
    context, weights = noise(1, 5, 32), ours.state_dict()
    q = (ours.queries @ weights["pooler.projection.to_q.weight"].T).view(2, 4, 8)
    k, v = (context[0] @ weights["pooler.projection.to_kv.weight"].T).view(5, 2, 4, 8).unbind(1)
    heads = [(q[:, h] @ k[:, h].T / 8**0.5).softmax(dim=-1) @ v[:, h] for h in range(4)]
    want = torch.cat(heads, dim=-1) @ weights["pooler.to_out.weight"].T
    torch.testing.assert_close(ours(context)[0], want, atol=1e-6, rtol=1e-5)


def test_given_queries_take_the_place_of_learned_ones() -> None:
    theirs, ours = pair_of({"num_pooled_tokens": 0})
    context, queries = noise(2, 9, 32), noise(2, 3, 32, seed=1)
    torch.testing.assert_close(ours(context, queries=queries), theirs(context, queries=queries))
    with pytest.raises(ValueError, match="num_pooled_tokens=0 they must be given"):
        ours(context)


def test_built_on_the_meta_device_it_draws_the_same_start_values() -> None:
    def draw() -> AttentionPool:
        with torch.device("meta"):
            pool = AttentionPool(32, **SIZES, depth=2)
        pool.to_empty(device="cpu")
        initialize(pool, torch.Generator().manual_seed(0))
        return pool

    one, two = draw(), draw()
    assert all(map(torch.equal, one.parameters(), two.parameters()))
    assert 0.001 < one.queries.std() < 0.1


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"num_pooled_tokens": 2, "squeeze_output": True}, "can't be one vector"),
        ({"depth": 2, "use_transformer_blocks": False}, "has no depth"),
        ({"depth": 2, "add_residual": True}, "their own residual"),
        ({"heads": 0}, "heads"),
    ],
)
def test_what_can_not_be_together_is_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AttentionPool(32, **keywords)


def test_wrong_keywords_and_shapes_are_told_apart() -> None:
    with pytest.raises(TypeError, match="did you mean 'num_pooled_tokens'"):
        AttentionPool(32, num_pool_tokens=2)
    with pytest.raises(TypeError, match="attn_qk_rmsnorm"):
        AttentionPool(32, attn_kwargs={"qk_rmsnrm": True})
    pool = AttentionPool(32, **SIZES)
    with pytest.raises(ValueError, match="context: got"):
        pool(noise(2, 9, 16))
    with pytest.raises(ValueError, match=r"context: got a NoneType; give a torch\.Tensor"):
        pool(None)
    with pytest.raises(ValueError, match="mask: got a list"):
        pool(noise(2, 9, 32), [[True] * 9] * 2)
    with pytest.raises(ValueError, match="mask: got"):
        pool(noise(2, 9, 32), torch.ones(2, 9))
    with pytest.raises(ValueError, match="queries: got"):
        pool(noise(2, 9, 32), queries=noise(1, 3, 32))
