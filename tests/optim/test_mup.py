"""muP: start values, scales and rates as table 8 of 2203.03466 says, and what they are for."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from xtdist.config import ConfigError, from_mapping, to_mapping
from xtdist.model import ModelConfig, build_model, muon_parameters
from xtdist.model.mup import at_width, without_mup
from xtdist.optim import AdamWConfig, MuonConfig, param_groups
from xtdist.train.coordinate_check import coordinate_check, slope
from xtdist.train.spec import RunSpec

TREE: dict[str, Any] = {
    "dim": 64,
    "depth": 2,
    "heads": 4,
    "num_tokens": 64,
    "max_seq_len": 16,
    "attention": {"dim_head": 16},
}
BASE = {"base_width": 64}


def config_of(**changes: Any) -> ModelConfig:
    return from_mapping(ModelConfig, {**TREE, **changes})


def net(config: ModelConfig, seed: int = 0) -> torch.nn.Module:
    return build_model(config, generator=torch.Generator().manual_seed(seed))


def test_at_the_width_of_its_base_a_model_is_the_one_without_mup() -> None:
    plain, ours = net(config_of()), net(config_of(mup=BASE))
    for (name, a), (_, b) in zip(plain.named_parameters(), ours.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(1))
    assert torch.equal(plain(tokens), ours(tokens))
    for optim in (AdamWConfig(), MuonConfig()):
        groups = [param_groups(n, optim, muon_parameters(n)) for n in (plain, ours)]
        shown = [
            [{k: v for k, v in g.items() if k != "params"} for g in several] for several in groups
        ]
        assert shown[0] == shown[1]


def test_start_values_scales_and_rates_are_those_of_table_8() -> None:
    """At four times the base's width, with heads twice as large as the base's."""
    moe = {"kind": "moe", "experts": 4, "top_k": 2, "expert": {"kind": "glu"}}
    config = config_of(
        dim=256,
        heads=8,
        attention={"dim_head": 32},
        mup={"base_width": 64, "base_dim_head": 16},
        feedforward=moe,
        position={"kind": "learned"},
    )
    model = net(config)
    stds = {name: float(p.detach().std()) for name, p in model.named_parameters() if p.ndim > 1}
    base = (3 * 64) ** -0.5
    assert stds["token_embedding.weight"] == pytest.approx(base, rel=0.03)
    assert stds["head.weight"] == pytest.approx(base, rel=0.03)
    assert stds["position_embedding.weight"] == pytest.approx(base, rel=0.05)
    first, second = "layers.sublayers.0.branch", "layers.sublayers.1.branch"
    assert stds[f"{first}.projection.weight"] == pytest.approx((3 * 256) ** -0.5, rel=0.03)
    # fan_in^-1 from the base's fan_in^-1/2 on
    assert stds[f"{second}.router.weight"] == pytest.approx((3 * 64) ** -0.5 / 4, rel=0.1)
    attention = model.get_submodule(first)
    assert attention.scale == pytest.approx(math.sqrt(16) / 32)  # 16^-1/2 at a head of 16
    hidden = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    logits = hidden @ model.head.weight.T / 4
    torch.testing.assert_close(model.to_logits(hidden), logits)

    by_id = {id(p): name for name, p in model.named_parameters()}
    for optim, muon_factor in (
        (AdamWConfig(), 0.25),
        (MuonConfig(scale="adamw_rms"), 0.5),
        (MuonConfig(scale="original"), 1.0),
    ):
        for group in param_groups(model, optim, muon_parameters(model)):
            names = {by_id[id(p)] for p in group["params"]}
            if group["algorithm"] == "muon":
                wanted = muon_factor
            elif group["name"].startswith("decay x"):
                wanted = 0.25
                assert all(".branch." in n for n in names)
            else:
                wanted = 1.0
                assert not any(n.endswith(("projection.weight", "proj_in")) for n in names)
            assert group["lr_scale"] == wanted
            if group["weight_decay"]:
                assert group["lr_scale"] * group["weight_decay"] == pytest.approx(0.1)


def test_a_group_of_the_config_multiplies_the_factor_of_the_width() -> None:
    config = AdamWConfig(groups=({"match": "*.projection.weight", "lr_scale": 3.0},))
    groups = param_groups(net(config_of(dim=128, heads=8, mup=BASE)), config)
    found = {g["name"]: g["lr_scale"] for g in groups}
    assert found["*.projection.weight decay x0.5"] == 1.5
    assert found["decay x0.5"] == 0.5
    assert found["no_decay"] == 1.0


GROWING = ("adamw", "muon")


@pytest.mark.parametrize("kind", GROWING)
def test_activations_keep_their_size_at_any_width_with_mup_and_grow_without(kind: str) -> None:
    _check_widths(kind, (32, 64, 128, 256), base=32)


@pytest.mark.long
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", GROWING)
def test_activations_keep_their_size_from_64_to_1024(kind: str, tied: bool) -> None:
    _check_widths(kind, (64, 128, 256, 512, 1024), base=64, tied=tied)


def _check_widths(kind: str, widths: tuple[int, ...], *, base: int, tied: bool = False) -> None:
    optim = {
        "adamw": AdamWConfig(lr=4e-3, weight_decay=0.0),
        "muon": MuonConfig(lr=0.03, adamw_lr=4e-3, weight_decay=0.0, ns_precision="fp32"),
    }[kind]
    slopes = {}
    for mup in (None, {"base_width": base}):
        config = at_width(config_of(mup=mup, tie_embedding=tied), base)
        sizes = coordinate_check(config, optim, widths=widths, steps=3)
        slopes[mup is None] = {name: slope(widths, each) for name, each in sizes.items()}
    with_mup, without = slopes[False], slopes[True]
    layers = [name for name in with_mup if name != "logits"]
    assert len(layers) == 4
    assert all(abs(with_mup[name]) < 0.12 for name in layers), with_mup
    # What the start values add to the logits goes away with the width; what is learned stays.
    assert -0.5 < with_mup["logits"] < 0.05, with_mup
    assert without["logits"] > 0.1, without
    # An orthogonal update of AdamW's size grows by the root of the width alone.
    least = 0.35 if kind == "adamw" else 0.15
    assert all(without[name] > least for name in layers), without


@pytest.mark.parametrize("tied", [False, True])
def test_a_folded_model_computes_the_same_without_mup(tied: bool) -> None:
    config = config_of(
        dim=128,
        heads=4,
        attention={"dim_head": 32, "bias": True},
        mup={"base_width": 64, "base_dim_head": 16},
        tie_embedding=tied,
    )
    model = net(config).eval()
    plain, weights = without_mup(config, model.state_dict())
    assert plain.mup is None
    assert from_mapping(ModelConfig, to_mapping(plain)) == plain
    other = net(plain, seed=9).eval()
    other.load_state_dict(weights)
    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(other(tokens), model(tokens), rtol=1e-5, atol=1e-6)

    normed = dataclasses.replace(
        config, attention=dataclasses.replace(config.attention, qk_rmsnorm=True)
    )
    with pytest.raises(ConfigError, match=r"mup\.base_dim_head"):
        without_mup(normed, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": {"dim_head": 16, "cope": {}}}, "mup: .* of CoPE follow"),
        ({"residual": {"kind": "gru"}}, "GRU residual"),
        ({"attention": {"dim_head": 16, "kv_heads": 1}, "dim": 128}, "attention.kv_heads=1 .*0.5"),
        ({"dim": 96}, "heads=4 .* would be 2.6"),
        ({"embedding": {"dim": 32}}, "embedding width"),
    ],
)
def test_what_has_no_known_place_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        net(config_of(mup=BASE, **changes))


def test_a_run_refuses_an_objective_with_weights_of_its_own() -> None:
    run = {"name": "x", "data": {"path": "d"}, "loop": {"steps": 1}}
    model = {**TREE, "mup": BASE, "causal": False}
    del model["num_tokens"], model["max_seq_len"]
    for part in ({"self_cond": True}, {"self_token_critic": True}):
        objective = {"kind": "nonautoregressive", **part}
        with pytest.raises(ConfigError, match=r"^model.mup: .*objective.self"):
            from_mapping(RunSpec, {**run, "model": model, "objective": objective})
    assert from_mapping(RunSpec, {**run, "model": model | {"causal": True}}).model.mup is not None
