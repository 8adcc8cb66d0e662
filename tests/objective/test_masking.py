"""How many tokens are masked, which, and what each counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from nets import VOCABULARY

from xtdist.config import ConfigError, from_mapping
from xtdist.objective import NonAutoregressiveConfig
from xtdist.objective.masking import Masking, schedule_of

MASK = VOCABULARY - 1
SCHEDULES: dict[str, tuple[Any, Any]] = {
    "linear": ("linear", lambda t: 1 - t),
    "cosine": ("cosine", lambda t: torch.cos(t * math.pi / 2)),
    "linear, as a function": (lambda t: 1 - t, lambda t: 1 - t),
    "cube": (lambda t: (1 - t) ** 3, lambda t: (1 - t) ** 3),
    "rising": (lambda t: t, lambda t: t),
    "there and back": (lambda t: (2 * t - 1).abs(), lambda t: (2 * t - 1).abs()),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_counts_follow_the_schedule_and_weights_are_one_over_k_times_their_probability(
    name: str,
) -> None:
    given, function = SCHEDULES[name]
    n, draws = 8, 40_000
    schedule = schedule_of(given, longest=n)
    times = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    counts = torch.bincount(
        torch.tensor([schedule.count(float(u), n) for u in times]), minlength=n + 1
    )
    want = torch.histc(function(times), bins=n, min=0, max=1)
    assert counts[0] == 0
    assert (counts[1:] - want).abs().max() <= 2
    for k in range(1, n + 1):
        assert schedule.weight(k, n) == pytest.approx(draws / (k * counts[k].item()), rel=2e-2)
    assert sum(schedule.probability(k, n) for k in range(1, n + 1)) == pytest.approx(1)


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_a_tabulated_schedule_weighs_as_the_formula_does(n: int) -> None:
    formula, table = schedule_of("linear"), schedule_of(lambda t: 1 - t, longest=n)
    for k in (1, n // 2 or 1, n):
        assert table.weight(k, n) == pytest.approx(formula.weight(k, n), rel=5e-3)
        assert formula.weight(k, n) == pytest.approx(n / k, rel=1e-9)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda t: t[:3], "for each of them"),
        (lambda t: 0.5, "gives float"),
        (lambda t: 2 * t, "gives 3.81e-06 to 2"),
        (lambda t: t - 0.5, "from 0 to 1"),
        (lambda t: t * float("nan"), "gives nan to nan"),
        (lambda t: 0.5 + t / 2, "between 0 and 0.5"),
        (lambda t: torch.full_like(t, 0.3), "between 0.3 and 1"),
    ],
)
def test_a_function_that_is_no_schedule_or_leaves_counts_out_is_refused(
    function: Any, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        schedule_of(function, longest=16)


def test_without_weights_a_schedule_may_leave_counts_out() -> None:
    schedule = schedule_of(lambda t: torch.full_like(t, 0.3), longest=16, weighted=False)
    assert {schedule.count(t / 10, 10) for t in range(10)} == {3}


def drawn(rows: int, *, augment: bool = True, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of rows of 16 zeros: what stands in their place, and the weights."""
    config = from_mapping(NonAutoregressiveConfig, options)
    masking = Masking(
        config=config, schedule=schedule_of("linear"), mask_id=MASK, num_tokens=VOCABULARY
    )
    generator = torch.Generator().manual_seed(0)
    row, real = torch.zeros(16, dtype=torch.long), torch.ones(16, dtype=torch.bool)
    found = [masking.draw(row, real, generator, augment=augment) for _ in range(rows)]
    return torch.stack([row for row, _ in found]), torch.stack([w for _, w in found])


def test_masked_tokens_are_kept_or_swapped_as_often_as_asked() -> None:
    inputs, weights = drawn(8000, no_replace_prob=0.25, random_token_prob=0.5)
    share = torch.bincount(inputs[weights > 0], minlength=VOCABULARY) / (weights > 0).sum()
    keep, swap = 0.25, 0.5  # each in every second row
    swapped = swap * (1 + (1 - keep)) / 4
    assert share[MASK].item() == pytest.approx(1 - keep / 2 - swapped, abs=0.01)
    assert share[0].item() == pytest.approx(keep / 2 + swapped / (VOCABULARY - 1), abs=0.01)
    assert share[1:MASK].min() > 0.5 * swapped / (VOCABULARY - 1)
    masks_only = [bool((row[w > 0] == MASK).all()) for row, w in zip(inputs, weights, strict=True)]
    assert sum(masks_only) / len(masks_only) > 0.25


def test_other_things_than_masks_stand_in_place_of_tokens_in_training_only() -> None:
    inputs, weights = drawn(50, augment=False, no_replace_prob=0.25, random_token_prob=0.5)
    assert (inputs[weights > 0] == MASK).all()
