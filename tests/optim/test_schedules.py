import math

import pytest
import torch
import transformers

from xtdist.config import ConfigError, from_mapping
from xtdist.optim import (
    AdamWConfig,
    ConstantConfig,
    CosineConfig,
    InverseSqrtConfig,
    LinearConfig,
    ScheduleConfig,
    WSDConfig,
    check_schedule,
    lr_at,
)

TOTAL = 50


def rates(schedule: ScheduleConfig, total: int = TOTAL) -> list[float]:
    config = AdamWConfig(lr=0.3, schedule=schedule)
    return [lr_at(config, step, total) for step in range(total)]


def rates_of(make, **kwargs) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = make(optimizer, **kwargs)
    out = []
    for _ in range(TOTAL):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return out


def test_cosine_agrees_with_torch_after_the_warmup() -> None:
    warmup = 7
    peer = rates_of(
        torch.optim.lr_scheduler.CosineAnnealingLR, T_max=TOTAL - warmup, eta_min=0.3 * 0.1
    )
    ours = rates(CosineConfig(warmup_steps=warmup, min_ratio=0.1))
    assert ours[warmup:] == pytest.approx(peer[: TOTAL - warmup], abs=1e-12)


def test_linear_agrees_with_transformers_after_the_warmup() -> None:
    peer = rates_of(
        transformers.get_linear_schedule_with_warmup, num_warmup_steps=7, num_training_steps=TOTAL
    )
    assert rates(LinearConfig(warmup_steps=7))[7:] == pytest.approx(peer[7:], abs=1e-12)


def test_wsd_agrees_with_transformers_after_the_warmup() -> None:
    peer = rates_of(
        transformers.get_wsd_schedule,
        num_warmup_steps=5,
        num_decay_steps=15,
        num_stable_steps=30,
        min_lr_ratio=0.2,
        decay_type="linear",
    )
    by_steps = rates(WSDConfig(warmup_steps=5, decay_steps=15, min_ratio=0.2))
    by_fraction = rates(WSDConfig(warmup_steps=5, decay_fraction=0.3, min_ratio=0.2))
    assert by_steps[5:] == pytest.approx(peer[5:], abs=1e-12)
    assert by_fraction == by_steps


def test_inverse_sqrt_is_the_formula_of_attention_is_all_you_need() -> None:
    warmup = 9
    paper = [min((s + 1) ** -0.5, (s + 1) * warmup**-1.5) * warmup**0.5 * 0.3 for s in range(TOTAL)]
    assert rates(InverseSqrtConfig(warmup_steps=warmup)) == pytest.approx(paper, abs=1e-12)


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd", "constant", "inverse_sqrt"])
def test_the_warmup_is_a_line_to_the_peak_and_no_step_has_rate_zero(kind: str) -> None:
    optim = {"schedule": {"kind": kind, "warmup_steps": 10}}
    schedule = from_mapping(AdamWConfig, optim).schedule
    ours = rates(schedule)
    assert ours[:10] == pytest.approx([0.03 * (s + 1) for s in range(10)])
    assert max(ours) == ours[9]
    assert min(ours) > 0


@pytest.mark.parametrize(
    ("schedule", "end"),
    [
        (CosineConfig(min_ratio=0.1), 0.1),
        (LinearConfig(min_ratio=0.05), 0.05),
        (WSDConfig(min_ratio=0.3), 0.3),
        (ConstantConfig(), 1.0),
    ],
)
def test_past_the_end_the_rate_stays_at_its_end(schedule: ScheduleConfig, end: float) -> None:
    config = AdamWConfig(lr=2.0, schedule=schedule)
    for step in (200, 201, 10_000):
        assert lr_at(config, step, 200) == pytest.approx(2.0 * end)


def test_the_defaults_reach_the_peak_and_are_finite_for_every_length() -> None:
    config = AdamWConfig()
    for total in (0, 1, 99, 100, 101, 1000):
        values = [lr_at(config, step, total) for step in range(total + 2)]
        assert all(math.isfinite(v) and 0 < v <= config.lr for v in values)


def test_a_warmup_longer_than_the_run_is_refused_with_both_numbers() -> None:
    check_schedule(CosineConfig(warmup_steps=20), 20)
    with pytest.raises(ConfigError, match=r"warmup_steps: got 21.*20 steps"):
        check_schedule(CosineConfig(warmup_steps=21), 20)


def test_a_decay_that_overlaps_the_warmup_is_refused() -> None:
    check_schedule(WSDConfig(warmup_steps=5, decay_steps=15), 20)
    with pytest.raises(ConfigError, match=r"5 warm-up and 16 decay steps.*20"):
        check_schedule(WSDConfig(warmup_steps=5, decay_steps=16), 20)


@pytest.mark.parametrize(
    ("shape", "peer"), [("cosine", "cosine"), ("sqrt", "1-sqrt"), ("linear", "linear")]
)
def test_wsd_falls_in_the_shapes_of_transformers(shape: str, peer: str) -> None:
    theirs = rates_of(
        transformers.get_wsd_schedule,
        num_warmup_steps=5,
        num_decay_steps=20,
        num_stable_steps=25,
        min_lr_ratio=0.1,
        decay_type=peer,
    )
    ours = rates(WSDConfig(warmup_steps=5, decay_steps=20, decay_shape=shape, min_ratio=0.1))
    assert ours[5:] == pytest.approx(theirs[5:], abs=1e-12)


def test_a_warmup_goes_from_its_start_in_its_shape() -> None:
    schedule = {"warmup_steps": 4, "warmup_start": 0.2}
    line = rates(ConstantConfig(**schedule))[:5]
    curve = rates(ConstantConfig(**schedule, warmup_shape="cosine"))[:5]
    assert line == pytest.approx([0.3 * r for r in (0.4, 0.6, 0.8, 1.0, 1.0)])
    quarter = 0.2 + 0.8 * (1 - math.sqrt(0.5)) / 2
    assert curve == pytest.approx([0.3 * r for r in (quarter, 0.6, 1.2 - quarter, 1.0, 1.0)])


def test_inverse_sqrt_does_not_go_below_its_floor() -> None:
    ours = rates(InverseSqrtConfig(warmup_steps=4, min_ratio=0.5))
    free = rates(InverseSqrtConfig(warmup_steps=4))
    assert ours == pytest.approx([max(r, 0.15) if i >= 4 else r for i, r in enumerate(free)])
    assert min(free) < 0.15
