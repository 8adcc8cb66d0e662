"""Which matrices Muon updates: all of attention and feed-forward, each by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from xtdist.config import from_mapping, to_mapping
from xtdist.model import Decoder, Layers, LayersConfig, TransformerWrapper
from xtdist.model.muon import MuonMatrix, muon_parameters

xt = pytest.importorskip("x_transformers")

STACK: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gated": {"ff_glu": True, "attn_kv_heads": 2, "attn_value_dim_head": 6},
    "cross": {"cross_attend": True},
    "on attention": {"attn_on_attn": True},
    "tied": {"weight_tie_layers": True},
    "latent": {
        "attn_use_latent_kv": True,
        "attn_dim_latent_kv": 6,
        "attn_use_latent_q": True,
        "attn_dim_latent_q": 5,
        "attn_latent_rope_subheads": 2,
        "rotary_pos_emb": True,
    },
}


def blocks_of(net: Layers, role: str) -> list[Tensor]:
    return [
        block
        for matrix in muon_parameters(net)
        for block, kind in zip(matrix.blocks(matrix.parameter), matrix.roles, strict=True)
        if kind == role
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_cover_their_parameters_which_the_model_has_by_that_name(kind: str) -> None:
    net = Decoder(**STACK, **KINDS[kind])
    named = dict(net.named_parameters())
    found = muon_parameters(net)
    assert len({m.name for m in found}) == len(found)
    for matrix in found:
        assert named[matrix.name] is matrix.parameter
        blocks = matrix.blocks(matrix.parameter)
        assert torch.equal(torch.cat(blocks, dim=matrix.axis), matrix.parameter)
        assert len(blocks) == len(matrix.roles)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_are_vectors(kind: str) -> None:
    net = Decoder(**STACK, **KINDS[kind])
    found = {m.name for m in muon_parameters(net)}
    assert found
    assert all(weight.ndim == 1 for name, weight in net.named_parameters() if name not in found)


@pytest.mark.parametrize("kind", ["plain", "gated", "cross", "tied"])
def test_without_queries_and_keys_they_are_as_many_numbers_as_in_x_transformers(kind: str) -> None:
    theirs = xt.Decoder(**STACK, **KINDS[kind], verbose=False).muon_parameters()
    net = Decoder(**STACK, **KINDS[kind])
    roles = ("value", "out", "up", "gate", "down")
    ours = sum(block.numel() for role in roles for block in blocks_of(net, role))
    assert ours == sum({id(weight): weight.numel() for weight in theirs}.values())


def test_queries_keys_and_values_are_matrices_of_their_own() -> None:
    net = Decoder(**{**STACK, "depth": 1}, attn_kv_heads=2, attn_value_dim_head=6, ff_glu=True)
    x = torch.randn(1, 3, 32)
    projection = net.sublayers[0].branch.projection
    for role, want in zip(("query", "key", "value"), projection(x), strict=True):
        (weight,) = blocks_of(net, role)
        got = (x @ weight.T).unflatten(-1, (want.shape[1], -1)).transpose(1, 2)
        torch.testing.assert_close(got, want)
    branch = net.sublayers[1].branch
    (up,), (gate,), (down,) = (blocks_of(net, role) for role in ("up", "gate", "down"))
    bias_up, bias_gate = branch.proj_in.bias.chunk(2)
    hidden = (x @ up.T + bias_up) * torch.nn.functional.gelu(x @ gate.T + bias_gate)
    torch.testing.assert_close(hidden @ down.T + branch.proj_out.bias, branch(x))


def test_experts_have_matrices_of_their_own_and_the_router_is_left_to_adamw() -> None:
    tree = to_mapping(Decoder(**STACK).config)
    tree["feedforward"] = {
        "kind": "moe",
        "experts": 3,
        "top_k": 2,
        "shared_experts": 1,
        "expert": {"kind": "glu", "multiple_of": 1},
    }
    net = Layers(from_mapping(LayersConfig, tree))
    found = {m.name: m for m in muon_parameters(net)}
    assert not any("router" in name for name in found)
    inner = net.sublayers[1].branch.proj_out.shape[1]
    up, gate = found["sublayers.1.branch.proj_in"].blocks(net.sublayers[1].branch.proj_in)
    assert up.shape == gate.shape == (3, 32, inner)
    assert "sublayers.1.branch.shared.proj_in.weight" in found


def test_frozen_matrices_are_left_out() -> None:
    net = Decoder(**STACK)
    net.sublayers[0].requires_grad_(requires_grad=False)
    assert {m.name.split(".")[1] for m in muon_parameters(net)} == {"1", "2", "3"}


def test_a_split_of_one_matrix_is_itself() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3))
    (block,) = MuonMatrix("w", weight, (4,), ("out",)).blocks(weight)
    assert torch.equal(block, weight)


def test_as_a_method_a_wrapper_names_the_matrices_of_its_layers() -> None:
    stack = Decoder(**STACK)
    net = TransformerWrapper(num_tokens=20, max_seq_len=16, attn_layers=stack)
    of_stack, of_net = stack.muon_parameters(), net.muon_parameters()
    assert [f"layers.{m.name}" for m in of_stack] == [m.name for m in of_net]
    assert all(a.parameter is b.parameter for a, b in zip(of_stack, of_net, strict=True))
    assert len(of_stack) == 8
