from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from decode_models import VOCABULARY, make_model
from torch import nn

from xtdist.config import ConfigError
from xtdist.decode import MaskPredict, MaskPredictParams, mask_predict
from xtdist.model import TransformerWrapper

MASK = VOCABULARY - 1


@pytest.fixture(scope="module")
def filler() -> TransformerWrapper:
    return make_model(4, causal=False)


def masked(rows: int, length: int, given: dict[int, int]) -> torch.Tensor:
    tokens = torch.full((rows, length), MASK)
    for position, token in given.items():
        tokens[:, position] = token
    return tokens


@pytest.mark.parametrize("order", ["confidence", "random"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_every_mask_is_filled_and_what_was_given_stays(
    filler: TransformerWrapper, schedule: str, order: str
) -> None:
    tokens = masked(3, 20, {0: 5, 7: 6, 19: 7})
    params = MaskPredictParams(steps=6, schedule=schedule, order=order)  # type: ignore[arg-type]
    filled = mask_predict(filler, tokens, mask_id=MASK, params=params, banned_ids=(0, 1))
    assert not torch.isin(filled, torch.tensor([MASK, 0, 1])).any()
    assert (filled[:, [0, 7, 19]] == torch.tensor([5, 6, 7])).all()
    assert (tokens == MASK).sum() == 3 * 17


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_schedule_says_how_many_masks_are_left(
    filler: TransformerWrapper, schedule: str
) -> None:
    params = MaskPredictParams(steps=5, schedule=schedule)  # type: ignore[arg-type]
    job = MaskPredict(filler, masked(1, 40, {}), mask_id=MASK, params=params)
    left = []
    while not job.done:
        left.append(int((job.step() == MASK).sum()))
    t = [i / 5 for i in range(1, 6)]
    share = [1 - x if schedule == "linear" else math.cos(x * math.pi / 2) for x in t]
    assert left == [math.floor(40 * s + 1e-6) for s in share]


def test_no_step_is_wasted_when_there_are_more_steps_than_masks(
    filler: TransformerWrapper,
) -> None:
    tokens = masked(1, 10, dict.fromkeys(range(6), 1))
    job = MaskPredict(filler, tokens, mask_id=MASK, params=MaskPredictParams(steps=50))
    left = []
    while not job.done:
        left.append(int((job.step() == MASK).sum()))
    assert left == [3, 2, 1, 0]


def test_temperature_zero_takes_the_surest_token_of_a_full_forward(
    filler: TransformerWrapper,
) -> None:
    params = MaskPredictParams(steps=100, temperature=0.0, noise=0.0)
    job = MaskPredict(filler, masked(1, 8, {2: 3}), mask_id=MASK, params=params)
    tokens = masked(1, 8, {2: 3})
    while not job.done:
        with torch.no_grad():
            logits = filler(tokens)[0]
        logits[:, MASK] = -torch.inf
        best, ids = logits.softmax(-1).max(-1)
        best[tokens[0] != MASK] = -1
        tokens[0, best.argmax()] = ids[best.argmax()]
        assert torch.equal(job.step(), tokens)


def test_padding_is_neither_read_nor_filled(filler: TransformerWrapper) -> None:
    mask = torch.tensor([[True] * 12, [True] * 7 + [False] * 5])
    params = MaskPredictParams(seed=3)
    both = mask_predict(filler, masked(2, 12, {0: 2}), mask_id=MASK, params=params, mask=mask)
    assert (both[1, 7:] == MASK).all()
    assert not (both[1, :7] == MASK).any()
    assert not (both[0] == MASK).any()
    tokens = masked(2, 12, {0: 2})
    tokens[1, 7:] = 9
    other = mask_predict(filler, tokens, mask_id=MASK, params=params, mask=mask)
    assert torch.equal(both[1, :7], other[1, :7])


def test_the_seed_decides_the_draws(filler: TransformerWrapper) -> None:
    def fill(seed: int) -> torch.Tensor:
        params = MaskPredictParams(seed=seed, temperature=3.0)
        return mask_predict(filler, masked(2, 16, {}), mask_id=MASK, params=params)

    assert torch.equal(fill(1), fill(1))
    assert not torch.equal(fill(1), fill(2))
    assert not torch.equal(fill(1)[0], fill(1)[1])


def test_random_order_at_temperature_one_samples_independent_tokens_from_the_model() -> None:
    """A model that ignores its input: each filled token must follow its distribution."""
    wanted = torch.tensor([0.5, 0.3, 0.15, 0.05])

    class Constant(nn.Module):
        max_seq_len = 64

        class config:
            causal = False
            num_tokens = 5

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.cat([wanted.log(), torch.tensor([2.0])]))

        def forward(
            self, x: torch.Tensor, *, mask: torch.Tensor | None, logit_rows: torch.Tensor
        ) -> torch.Tensor:
            return self.weight.expand(len(logit_rows), -1).clone()

    params = MaskPredictParams(steps=4, order="random", anneal=False, seed=8)
    filled = mask_predict(Constant(), torch.full((200, 50), 4), mask_id=4, params=params)
    frequency = filled.flatten().bincount(minlength=5) / filled.numel()
    assert torch.allclose(frequency[:4], wanted, atol=0.02)
    assert frequency[4] == 0


def broken() -> Iterator[tuple[torch.Tensor, str]]:
    yield torch.zeros(4, dtype=torch.long), "tokens"
    yield torch.zeros(1, 65, dtype=torch.long), "64"
    yield torch.full((1, 4), VOCABULARY), "vocabulary"
    yield torch.zeros(1, 4), "tokens"


@pytest.mark.parametrize(("tokens", "named"), list(broken()))
def test_tokens_that_the_model_can_not_take_are_refused(
    filler: TransformerWrapper, tokens: torch.Tensor, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        mask_predict(filler, tokens, mask_id=MASK)


def test_a_causal_model_is_refused(expert: TransformerWrapper) -> None:
    with pytest.raises(ConfigError, match="causal"):
        mask_predict(expert, torch.zeros(1, 4, dtype=torch.long), mask_id=MASK)
