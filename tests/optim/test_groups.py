import pytest
import torch
from torch import nn

from xtdist.config import ConfigError, from_mapping
from xtdist.model import muon_parameters
from xtdist.model.config import ModelConfig
from xtdist.model.wrapper import build_model
from xtdist.optim import AdamWConfig, MuonConfig, build_optimizer, param_groups, set_lr


def net() -> nn.Module:
    tree = {"dim": 8, "depth": 2, "heads": 1, "num_tokens": 5, "max_seq_len": 4}
    tree |= {"attention": {"dim_head": 8}, "norm": {"kind": "layernorm"}}
    return build_model(from_mapping(ModelConfig, tree), generator=torch.Generator())


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.objective = nn.ModuleDict({"net": net()})


def table(model: nn.Module, config: AdamWConfig | MuonConfig) -> dict[str, tuple]:
    groups = param_groups(model, config, muon_parameters(model))
    return {
        g["name"]: (g["algorithm"], g["lr_scale"], g["weight_decay"], g["tensors"]) for g in groups
    }


def test_the_first_group_that_matches_counts_and_the_rest_stays_as_it_was() -> None:
    config = AdamWConfig(
        weight_decay=0.1,
        groups=(
            {"match": "*embedding*", "lr_scale": 0.5},
            {"match": "*.projection.weight", "weight_decay": 0.3},
            {"match": "layers.*", "lr_scale": 2.0},
        ),
    )
    for model in (net(), Wrapper()):  # names are those of the net, whatever is around it
        groups = param_groups(model, config)
        by_id = {id(p): n for n, p in model.named_parameters()}
        found = {g["name"]: [by_id[id(p)] for p in g["params"]] for g in groups}
        settings = {g["name"]: (g["lr_scale"], g["weight_decay"]) for g in groups}
        assert settings["*.projection.weight decay"] == (1.0, 0.3)
        assert settings["layers.* decay"] == (2.0, 0.1)
        assert settings["layers.* no_decay"] == (2.0, 0.0)
        assert settings["*embedding* no_decay"] == (0.5, 0.0)
        assert len(found["*.projection.weight decay"]) == 2
        assert all(n.endswith("projection.weight") for n in found["*.projection.weight decay"])
        everything = sorted(n for names in found.values() for n in names)
        assert everything == sorted(n for n, _ in model.named_parameters())
        assert [(g["tensors"], g["elements"]) for g in groups] == [
            (len(g["params"]), sum(p.numel() for p in g["params"])) for g in groups
        ]


def test_muon_takes_the_hidden_matrices_but_for_those_of_a_group_that_says_adamw() -> None:
    config = MuonConfig(
        lr=0.02,
        adamw_lr=0.005,
        weight_decay=0.1,
        adamw_weight_decay=0.2,
        groups=(
            {"match": "*.proj_out.weight", "optimizer": "adamw", "lr_scale": 2.0},
            {"match": "*.to_out.weight", "lr_scale": 3.0, "weight_decay": 0.0},
        ),
    )
    got = table(net(), config)
    assert got["muon"] == ("muon", 1.0, 0.1, 4)  # of two layers: projection, proj_in
    assert got["*.proj_out.weight decay"] == ("adamw", 0.5, 0.2, 2)
    assert got["*.to_out.weight muon"] == ("muon", 3.0, 0.0, 2)
    assert got["no_decay"][:3] == ("adamw", 0.25, 0.0)
    optimizer = build_optimizer(config, model := net(), muon_parameters(model))
    set_lr(optimizer, 0.04)
    rates = {g["name"]: g["lr"] for g in optimizer.param_groups}
    assert rates["muon"] == pytest.approx(0.04)
    assert rates["*.proj_out.weight decay"] == pytest.approx(0.02)
    assert rates["*.to_out.weight muon"] == pytest.approx(0.12)


def test_a_pattern_without_parameters_is_refused_with_names_there_are() -> None:
    config = AdamWConfig(groups=({"match": "*.weight"}, {"match": "layers.*.weights"}))
    with pytest.raises(
        ConfigError, match=r"optim\.groups\.1\.match: got 'layers.*no trainable"
    ) as e:
        param_groups(net(), config)
    assert "projection.weight" in str(e.value)
    config = AdamWConfig(groups=({"match": "*.weight"}, {"match": "*.projection.weight"}))
    with pytest.raises(ConfigError, match=r"optim\.groups\.1\.match.*in an earlier group"):
        param_groups(net(), config)


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"groups": [{"match": " "}]}, "match: got an empty text"),
        ({"groups": [{"match": "*", "lr_scale": -1.0}]}, "lr_scale"),
        ({"groups": [{"match": "*", "optimizer": "muon"}]}, "optimizer"),
        ({"ema": {"decay": 1.0}}, r"ema\.decay"),
        ({"ema": {"decay": 0.9, "every": 0}}, r"ema\.every"),
    ],
)
def test_a_setting_that_can_not_be_is_refused_by_name(plain: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(AdamWConfig, plain)
