import pytest
import torch
from torch import nn

from xtdist.config import ConfigError, from_mapping, to_mapping
from xtdist.optim import AdamWConfig, build_optimizer, param_groups, set_lr


class Net(nn.Module):
    """One of each: embedding, tied head, matrix with bias, gain, a vector stored as (h, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, 4)
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)
        self.head_scale = nn.Parameter(torch.ones(2, 1, 1))
        self.memory = nn.Parameter(torch.zeros(3, 4))
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.linear(self.emb(x))) * self.head_scale.mean() + self.memory.sum(0)
        return self.head(h)


def names(model: nn.Module, config: AdamWConfig) -> dict[str, set[str]]:
    by_id = {id(p): n for n, p in model.named_parameters()}
    return {g["name"]: {by_id[id(p)] for p in g["params"]} for g in param_groups(model, config)}


def test_only_matrices_are_decayed_and_a_tied_weight_counts_as_embedding() -> None:
    assert names(Net(), AdamWConfig()) == {
        "decay": {"linear.weight", "memory"},
        "no_decay": {"emb.weight", "norm.weight", "norm.bias", "linear.bias", "head_scale"},
    }


def test_embeddings_are_decayed_when_asked() -> None:
    groups = names(Net(), AdamWConfig(decay_embeddings=True))
    assert groups["decay"] == {"emb.weight", "linear.weight", "memory"}


def test_every_trainable_parameter_is_in_one_group_and_frozen_ones_in_none() -> None:
    model = Net()
    model.linear.weight.requires_grad_(False)
    groups = param_groups(model, AdamWConfig())
    ids = [id(p) for g in groups for p in g["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_a_group_without_parameters_is_left_out_and_no_parameters_at_all_refused() -> None:
    assert [g["name"] for g in param_groups(nn.LayerNorm(4), AdamWConfig())] == ["no_decay"]
    with pytest.raises(ConfigError, match="no trainable parameter"):
        param_groups(nn.Linear(2, 2).requires_grad_(False), AdamWConfig())


def test_steps_are_the_adamw_formula_with_decay_where_it_belongs() -> None:
    config = AdamWConfig(lr=0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3)
    torch.manual_seed(0)
    model = Net().double()
    optimizer = build_optimizer(config, model)
    decayed = {"linear.weight", "memory"}
    want = {n: p.detach().clone() for n, p in model.named_parameters()}
    m = {n: torch.zeros_like(p) for n, p in want.items()}
    v = {n: torch.zeros_like(p) for n, p in want.items()}
    x = torch.arange(6)[None]
    for t, lr in enumerate([0.1, 0.05, 0.2], start=1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x)[0], x[0]).backward()
        set_lr(optimizer, lr)
        optimizer.step()
        for n, p in model.named_parameters():
            grad = p.grad
            m[n] = 0.8 * m[n] + 0.2 * grad
            v[n] = 0.9 * v[n] + 0.1 * grad**2
            update = (m[n] / (1 - 0.8**t)) / ((v[n] / (1 - 0.9**t)).sqrt() + 1e-6)
            shrink = 1 - lr * 0.3 * (n in decayed)
            want[n] = want[n] * shrink - lr * update
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), want[n], rtol=1e-9, atol=1e-10)


def test_set_lr_respects_the_scale_of_a_group() -> None:
    optimizer = build_optimizer(AdamWConfig(), Net())
    optimizer.param_groups[1]["lr_scale"] = 0.25
    set_lr(optimizer, 0.4)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.4, 0.1])


def test_lr_scale_and_name_survive_the_state_dict() -> None:
    model = Net()
    first, second = (build_optimizer(AdamWConfig(), model) for _ in range(2))
    first.param_groups[0]["lr_scale"] = 0.5
    second.load_state_dict(first.state_dict())
    kept = [(g["name"], g["lr_scale"]) for g in second.param_groups]
    assert kept == [("decay", 0.5), ("no_decay", 1.0)]


def test_the_config_round_trips_through_plain_data() -> None:
    plain = {
        "kind": "adamw",
        "lr": 1e-3,
        "betas": [0.9, 0.99],
        "schedule": {"kind": "wsd", "warmup_steps": 3, "decay_steps": 4},
    }
    config = from_mapping(AdamWConfig, plain)
    assert from_mapping(AdamWConfig, to_mapping(config)) == config
    assert (config.betas, config.schedule.decay_steps) == ((0.9, 0.99), 4)


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"lr": 0}, "lr: got 0"),
        ({"lr": "3e-4x"}, "lr: got"),
        ({"betas": [0.9, 1.0]}, "betas.1: got 1.0"),
        ({"weight_decay": -0.1}, "weight_decay: got -0.1"),
        ({"schedule": {"kind": "cosin"}}, "cosin"),
        ({"schedule": {"kind": "cosine", "warmup": 3}}, "did you mean 'warmup_steps'"),
        ({"schedule": {"kind": "cosine", "decay_steps": 3}}, "schedule.decay_steps: unknown key"),
    ],
)
def test_a_value_that_can_not_be_is_refused_by_name(plain: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(AdamWConfig, plain)
