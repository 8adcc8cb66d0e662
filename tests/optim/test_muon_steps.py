"""Muon on whole parameters; how it works on parts of them is in tests/train/test_muon_runs.py."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from muon_reference import ReferenceMuon
from torch import Tensor, nn

from xtdist.config import ConfigError, from_mapping
from xtdist.model import muon_parameters
from xtdist.model.config import ModelConfig
from xtdist.model.wrapper import build_model
from xtdist.optim import MuonConfig, build_optimizer, set_lr
from xtdist.optim.newton_schulz import orthogonal
from xtdist.optim.plan import plans_of, units_of


def whole(p: Tensor) -> SimpleNamespace:
    return SimpleNamespace(parameter=p, sizes=(p.shape[0],), axis=0)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(
    ("scale", "peer_scale"), [("original", "original"), ("adamw_rms", "match_rms_adamw")]
)
def test_whole_matrices_go_as_with_torch(nesterov: bool, scale: str, peer_scale: str) -> None:
    torch.manual_seed(0)
    ours = nn.ParameterList([torch.randn(6, 10), torch.randn(12, 4)])
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    config = MuonConfig(lr=0.05, momentum=0.9, weight_decay=0.2, nesterov=nesterov, scale=scale)
    optimizer = build_optimizer(config, ours, [whole(p) for p in ours])
    peer = torch.optim.Muon(
        theirs,
        lr=0.05,
        momentum=0.9,
        weight_decay=0.2,
        nesterov=nesterov,
        adjust_lr_fn=peer_scale,
    )
    for _ in range(4):
        for mine, its in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            its.grad = mine.grad.clone()
        set_lr(optimizer, 0.05)
        optimizer.step()
        peer.step()
        for mine, its in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(7, 7), (5, 40), (40, 5)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    u, s, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    got = orthogonal(u @ torch.diag(s) @ v, steps=8, precision="fp32")
    in_its_basis = u.T @ got @ v.T
    torch.testing.assert_close(in_its_basis, torch.diag(in_its_basis.diag()), rtol=0, atol=1e-4)
    assert ((in_its_basis.diag() > 0.6) & (in_its_basis.diag() < 1.3)).all()
    assert not orthogonal(torch.zeros(shape), steps=5, precision="bf16").any()


def model(**changes: Any) -> nn.Module:
    tree = {"dim": 16, "depth": 2, "heads": 2, "num_tokens": 13, "max_seq_len": 8} | changes
    generator = torch.Generator().manual_seed(0)
    return build_model(from_mapping(ModelConfig, tree), generator=generator)


MODELS: dict[str, dict[str, Any]] = {
    "joint": {"attention": {"dim_head": 8, "kv_heads": 1}},
    "gated": {"feedforward": {"kind": "glu"}, "attention": {"dim_head": 8, "glu_out": True}},
    "experts": {"feedforward": {"kind": "moe", "experts": 3, "top_k": 2}},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scale", ["original", "adamw_rms"])
def test_blocks_of_a_model_are_made_orthogonal_one_by_one(name: str, scale: str) -> None:
    """Against a Muon written once more, block after block, and torch's AdamW for the rest."""
    nets = [model(**MODELS[name]) for _ in range(2)]
    config = MuonConfig(lr=0.02, adamw_lr=0.005, scale=scale, ns_precision="fp32", weight_decay=0.3)
    optimizer = build_optimizer(config, nets[0], muon_parameters(nets[0]))
    reference = ReferenceMuon(config, nets[1])
    before = {n: p.detach().clone() for n, p in nets[0].named_parameters()}
    x = torch.arange(24).reshape(3, 8) % 13
    for lr in (0.02, 0.01, 0.03):
        for net in nets:
            net.zero_grad()
            net(x).square().mean().backward()
        set_lr(optimizer, lr)
        for group in reference.param_groups:
            group["lr"] = lr
        optimizer.step()
        reference.step()
    for (n, mine), want in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-5, atol=1e-6, msg=lambda m, n=n: f"{n}: {m}")
        assert not mine.equal(before[n]), n
    assert optimizer.updated == 3 * optimizer.matrices
    blocks = sum(len(m.sizes) * math.prod(m.parameter.shape[:-2]) for m in muon_parameters(nets[0]))
    assert optimizer.matrices == blocks


def test_the_state_of_both_halves_survives_a_state_dict() -> None:
    net = model(**MODELS["joint"])
    optimizers = [build_optimizer(MuonConfig(), net, muon_parameters(net)) for _ in range(2)]
    net(torch.zeros(1, 8, dtype=torch.long)).square().mean().backward()
    optimizers[0].step()
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    kinds = {frozenset(s) for s in optimizers[1].state.values()}
    assert kinds == {frozenset({"momentum_buffer"}), frozenset({"step", "exp_avg", "exp_avg_sq"})}


def test_a_model_without_matrices_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim\.kind: got 'muon', but no parameter"):
        build_optimizer(MuonConfig(), nn.LayerNorm(3), [])


def test_a_tensor_that_nobody_has_described_is_refused() -> None:
    net = nn.Linear(4, 4, bias=False)
    optimizer = build_optimizer(MuonConfig(), net, [whole(net.weight)])
    strange = nn.Parameter(torch.ones(16))
    optimizer.param_groups[0]["params"] = [strange]
    strange.grad = torch.zeros(16)
    optimizer.step()  # DeepSpeed's trial step
    assert strange.equal(torch.ones(16))
    strange.grad = torch.ones(16)
    with pytest.raises(RuntimeError, match="attach"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="1 matrices and the engine holds 0"):
        optimizer.attach([], {"weight": net.weight})


def test_a_matrix_of_which_elements_are_missing_is_refused() -> None:
    p = nn.Parameter(torch.zeros(4, 3))
    piece = SimpleNamespace(name="p", start=0, at=0, numel=11)
    flat = SimpleNamespace(pieces=[piece], master=torch.zeros(12))
    with pytest.raises(RuntimeError, match="1 elements of a matrix are on no rank"):
        plans_of([flat], {"p": units_of(whole(p))})
