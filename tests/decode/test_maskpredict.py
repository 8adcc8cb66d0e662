from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from decode_models import VOCABULARY, make_model
from torch import Tensor, nn

from xtdist.config import ConfigError, from_mapping, to_mapping
from xtdist.decode import (
    Denoiser,
    Engine,
    EngineConfig,
    GenerationParams,
    MaskPredictParams,
    Output,
    PlainDenoiser,
    QueueFull,
    mask_predict,
)
from xtdist.decode.outputs import collect
from xtdist.model import TransformerWrapper

MASK = VOCABULARY - 1


@pytest.fixture(scope="module")
def filler() -> TransformerWrapper:
    return make_model(4, causal=False).double()


def masked(rows: int, length: int, given: dict[int, int]) -> torch.Tensor:
    tokens = torch.full((rows, length), MASK)
    for position, token in given.items():
        tokens[:, position] = token
    return tokens


def parameters(**values: Any) -> MaskPredictParams:
    return MaskPredictParams(**{"mask_id": MASK, "seed": 0, **values})


def states(model: Any, tokens: list[int], params: MaskPredictParams) -> list[list[int]]:
    """The sequence after each step, as a reader of the outputs sees it."""
    seen = []
    for output in Engine(model).stream(tokens, params):
        tokens = list(tokens)
        for position, token in output.filled:
            tokens[position] = token
        seen.append(tokens)
    return seen


def masks_left(model: Any, tokens: list[int], params: MaskPredictParams) -> list[int]:
    return [state.count(MASK) for state in states(model, tokens, params)]


class Scripted(nn.Module):
    """A denoiser that answers with functions of the ids, and remembers what it was given."""

    mask_id = 9
    num_tokens, max_seq_len = 10, 64
    device = torch.device("cpu")

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        *,
        critic: Callable[[Tensor], Tensor] | None = None,
        conditions: bool = False,
    ) -> None:
        super().__init__()
        self.logits, self.critic, self.conditions = logits, critic, conditions
        self.given: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
        self.criticised: list[Tensor] = []

    @property
    def has_critic(self) -> bool:
        return self.critic is not None

    def denoise(
        self, ids: Tensor, *, rows: Tensor, mask: Tensor | None, previous: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        self.given.append((ids.clone(), mask, previous))
        logits = self.logits(ids).flatten(0, 1)[rows]
        before = torch.zeros_like(ids)[..., None] if previous is None else previous
        return logits, before + 1.0 if self.conditions else None

    def criticise(self, ids: Tensor, *, mask: Tensor | None) -> Tensor | None:
        self.criticised.append(ids.clone())
        return None if self.critic is None else self.critic(ids)


@pytest.mark.parametrize("remask", [False, True])
@pytest.mark.parametrize("order", ["confidence", "random"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", lambda t: (1 - t) ** 2])
def test_every_mask_is_filled_and_what_was_given_stays(
    filler: TransformerWrapper, schedule: Any, order: str, remask: bool
) -> None:
    tokens = masked(3, 20, {0: 5, 7: 6, 19: 7})
    params = MaskPredictParams(steps=6, schedule=schedule, order=order, remask=remask, seed=1)  # type: ignore[arg-type]
    filled = mask_predict(filler, tokens, mask_id=MASK, params=params, banned_ids=(0, 1))
    assert not torch.isin(filled, torch.tensor([MASK, 0, 1])).any()
    assert (filled[:, [0, 7, 19]] == torch.tensor([5, 6, 7])).all()
    assert (tokens == MASK).sum() == 3 * 17


SHARES: list[tuple[Any, Callable[[float], float]]] = [
    ("linear", lambda t: 1 - t),
    ("cosine", lambda t: math.cos(t * math.pi / 2)),
    (lambda t: 1 - t * t, lambda t: 1 - t * t),
]


@pytest.mark.parametrize("remask", [False, True])
@pytest.mark.parametrize(("schedule", "share"), SHARES)
def test_the_schedule_says_how_many_masks_are_left(
    filler: TransformerWrapper, schedule: Any, share: Callable[[float], float], remask: bool
) -> None:
    params = parameters(steps=5, schedule=schedule, remask=remask)
    left = masks_left(filler, [MASK] * 40, params)
    assert left == [math.floor(40 * share(i / 5) + 1e-6) for i in range(1, 6)]


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_schedule_that_is_no_share_is_refused(filler: TransformerWrapper, value: float) -> None:
    with pytest.raises(ConfigError, match="schedule"):
        Engine(filler).add([MASK] * 4, parameters(schedule=lambda t: value))


def test_no_step_is_wasted_when_there_are_more_steps_than_masks(
    filler: TransformerWrapper,
) -> None:
    tokens = [1] * 6 + [MASK] * 4
    assert masks_left(filler, tokens, parameters(steps=50)) == [3, 2, 1, 0]


def test_temperature_zero_takes_the_surest_token_of_a_full_forward(
    filler: TransformerWrapper,
) -> None:
    tokens = masked(1, 8, {2: 3})
    for state in states(filler, tokens[0].tolist(), parameters(steps=99, temperature=0.0, noise=0)):
        with torch.no_grad():
            logits = filler(tokens)[0]
        logits[:, MASK] = -torch.inf
        best, ids = logits.softmax(-1).max(-1)
        best[tokens[0] != MASK] = -1
        tokens[0, best.argmax()] = ids[best.argmax()]
        assert state == tokens[0].tolist()


def test_with_remasking_kept_tokens_are_judged_by_their_own_probability() -> None:
    """The first token is the surest when it is drawn, and doubtful once the second one stands."""

    def logits(ids: Tensor) -> Tensor:
        out = torch.zeros(*ids.shape, 10, dtype=torch.float64)
        out[:, 0, 4], out[:, 1, 5], out[:, 2, 6] = 9.0, 8.0, 7.0
        if (ids[0, 0] != 9) and (ids[0, 1] == 9):
            out[:, 0, 4] = 6.0  # still the first choice, but less sure than the others
        return out

    params = parameters(steps=3, temperature=0.0, noise=0.0, mask_id=9, schedule="linear")
    kept = states(Scripted(logits), [9, 9, 9], params)
    assert kept == [[4, 9, 9], [4, 5, 9], [4, 5, 6]]
    again = parameters(
        steps=3, temperature=0.0, noise=0.0, mask_id=9, schedule="linear", remask=True
    )
    assert states(Scripted(logits), [9, 9, 9], again) == [[4, 9, 9], [9, 5, 6], [4, 5, 6]]


def test_a_redrawn_token_is_not_what_a_kept_one_is_judged_by() -> None:
    """Position 0 holds 1 in the second step, where 2 would be drawn with certainty."""

    def logits(ids: Tensor) -> Tensor:
        out = torch.zeros(*ids.shape, 10, dtype=torch.float64)
        if ids[0, 0] == 9:
            out[:, 0, 1] = 20.0
        else:
            out[:, 0, 2] = 20.0
        return out

    params = parameters(
        steps=3, temperature=0.0, noise=0.0, mask_id=9, schedule="linear", remask=True
    )
    seen = states(Scripted(logits), [9, 9, 9], params)
    assert seen[0] == [1, 9, 9]
    assert seen[1][0] == 9


def test_the_critic_decides_which_tokens_stay_and_sees_all_of_them() -> None:
    def critic(ids: Tensor) -> Tensor:
        return torch.tensor([[3.0, 0.0, 2.0, 1.0]])  # how wrong each position is

    denoiser = Scripted(lambda ids: torch.randn(*ids.shape, 10), critic=critic)
    params = parameters(
        steps=4, order="critic", noise=0.0, mask_id=None, schedule="linear", temperature=0.0
    )
    filled = []
    for state in states(denoiser, [9, 9, 9, 9], params):
        filled.append([i for i, token in enumerate(state) if token != 9])
    assert filled == [[1], [1, 3], [1, 2, 3], [0, 1, 2, 3]]
    assert len(denoiser.criticised) == 3  # in the last step there is nothing to decide
    assert all((ids != 9).all() for ids in denoiser.criticised)


def test_noise_lets_the_surest_lose_and_the_last_steps_have_less_of_it() -> None:
    def logits(ids: Tensor) -> Tensor:
        return torch.arange(64.0)[None, :, None] * torch.eye(10)[3] / 8

    def early(noise: float) -> float:
        params = parameters(steps=8, temperature=0.0, noise=noise, mask_id=9, schedule="linear")
        first = states(Scripted(logits), [9] * 64, params)[0]
        return sum(i for i, token in enumerate(first) if token != 9) / 8

    assert early(0.0) == sum(range(56, 64)) / 8
    assert early(5.0) < 55


def test_each_step_is_given_what_the_one_before_it_predicted_alone_or_in_a_batch() -> None:
    denoiser = Scripted(lambda ids: torch.zeros(*ids.shape, 10), conditions=True)
    engine = Engine(denoiser)
    params = parameters(steps=3, mask_id=9)
    engine.add([9] * 5, params)
    engine.step()
    engine.add([9] * 3, params)
    engine.step()
    assert [None if p is None else p.flatten().tolist() for _, _, p in denoiser.given] == [
        None,
        None,
        [1.0] * 5,
    ]
    engine.step()
    _, mask, previous = denoiser.given[-1]
    assert previous is not None
    assert mask is not None
    assert mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert previous[..., 0].tolist() == [[2.0] * 5, [1.0] * 3 + [0.0] * 2]


def test_only_the_best_tokens_are_drawn_with_top_k(filler: TransformerWrapper) -> None:
    drawn = mask_predict(
        filler,
        masked(64, 2, {0: 3}),
        mask_id=MASK,
        params=MaskPredictParams(top_k=3, temperature=50.0, steps=1, seed=3),
    )[:, 1]
    with torch.no_grad():
        logits = filler(masked(1, 2, {0: 3}))[0, 1]
    logits[MASK] = -torch.inf
    assert set(drawn.tolist()) == set(logits.topk(3).indices.tolist())


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


def test_a_sequence_is_filled_the_same_alone_and_among_others(filler: TransformerWrapper) -> None:
    jobs = [
        ([MASK] * length, parameters(seed=length, steps=steps, order=order, remask=remask))
        for length, steps, order, remask in [
            (20, 6, "confidence", False),
            (7, 18, "confidence", True),
            (31, 3, "random", False),
            (12, 5, "random", True),
        ]
    ]
    alone = [Engine(filler).generate([tokens], params)[0] for tokens, params in jobs]
    engine = Engine(filler, config=EngineConfig(max_sequences=3, max_step_tokens=64))
    names = [engine.add(tokens, params) for tokens, params in jobs]
    outputs: dict[str, list[Output]] = {name: [] for name in names}
    while engine.has_work:
        for output in engine.step():
            outputs[output.request_id].append(output)
    assert [collect(outputs[name]) for name in names] == alone
    assert len({c.choices[0].token_ids[:7] for c in alone}) == 4


def test_a_step_holds_no_more_tokens_than_the_budget(filler: TransformerWrapper) -> None:
    denoiser = Scripted(lambda ids: torch.zeros(*ids.shape, 10))
    engine = Engine(denoiser, config=EngineConfig(max_step_tokens=16))
    for length in (10, 10, 6):
        engine.add([9] * length, parameters(mask_id=9, steps=2))
    while engine.has_work:
        engine.step()
    shapes = [
        [int(n) for n in m.sum(1)] if m is not None else list(i.shape) for i, m, _ in denoiser.given
    ]
    assert shapes == [[10, 6], [10, 6], [1, 10], [1, 10]]
    with pytest.raises(ConfigError, match="max_step_tokens"):
        engine.add([9] * 17, parameters(mask_id=9))


def test_a_job_can_be_cancelled_between_steps_and_the_others_go_on(
    filler: TransformerWrapper,
) -> None:
    engine = Engine(filler)
    gone = engine.add([MASK] * 9, parameters())
    kept = engine.add([MASK] * 9, parameters())
    engine.step()
    assert engine.abort(gone)
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert {o.request_id for o in outputs} == {kept}
    assert outputs[-1].finish_reason == "stop"


def test_the_queue_of_jobs_is_bounded(filler: TransformerWrapper) -> None:
    engine = Engine(filler, config=EngineConfig(max_waiting=2))
    engine.add([MASK], parameters())
    engine.add([MASK], parameters())
    with pytest.raises(QueueFull):
        engine.add([MASK], parameters())


def test_tokens_come_in_order_as_soon_as_no_mask_is_before_them(
    filler: TransformerWrapper,
) -> None:
    outputs = list(Engine(filler).stream([MASK] * 12, parameters(steps=12)))
    state, shown = [MASK] * 12, 0
    for output in outputs:
        for position, token in output.filled:
            state[position] = token
        first_mask = state.index(MASK) if MASK in state else 12
        assert output.token_ids == tuple(state[shown:first_mask])
        shown = first_mask
    assert [o.finish_reason for o in outputs] == [None] * 11 + ["stop"]


def test_nothing_to_fill_is_given_back_at_once(filler: TransformerWrapper) -> None:
    tokens = torch.tensor([[1, 2, 3], [4, MASK, 6]])
    filled = mask_predict(filler, tokens, mask_id=MASK)
    assert filled[0].tolist() == [1, 2, 3]
    assert (filled[1, [0, 2]] == tokens[1, [0, 2]]).all()


def test_the_seed_decides_the_draws(filler: TransformerWrapper) -> None:
    def fill(seed: int | None) -> torch.Tensor:
        params = MaskPredictParams(seed=seed, temperature=3.0)
        return mask_predict(filler, masked(2, 16, {}), mask_id=MASK, params=params)

    assert torch.equal(fill(1), fill(1))
    assert not torch.equal(fill(1), fill(2))
    assert not torch.equal(fill(1)[0], fill(1)[1])
    torch.manual_seed(5)
    first = fill(None)
    assert not torch.equal(first, fill(None))
    torch.manual_seed(5)
    assert torch.equal(first, fill(None))


def test_random_order_at_temperature_one_samples_independent_tokens_from_the_model() -> None:
    """A model that ignores its input: each filled token must follow its distribution."""
    wanted = torch.tensor([0.5, 0.3, 0.15, 0.05])
    row = torch.full((10,), -torch.inf)
    row[:4], row[9] = wanted.log(), 2.0
    constant = Scripted(lambda ids: row.expand(*ids.shape, 10).clone())
    params = MaskPredictParams(steps=4, order="random", anneal=False, seed=8)
    filled = mask_predict(constant, torch.full((200, 50), 9), params=params)
    frequency = filled.flatten().bincount(minlength=10) / filled.numel()
    assert torch.allclose(frequency[:4], wanted, atol=0.02)
    assert frequency[4:].sum() == 0


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


@pytest.mark.parametrize(
    ("params", "named"),
    [
        (MaskPredictParams(), "mask_id"),
        (MaskPredictParams(mask_id=VOCABULARY), "mask_id"),
        (parameters(order="critic"), "critic"),
        (GenerationParams(), "MaskPredictParams"),
    ],
)
def test_parameters_that_a_filler_can_not_honour_are_refused(
    filler: TransformerWrapper, params: Any, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        Engine(filler).add([MASK], params)


def test_a_causal_model_does_not_fill_masks(expert: TransformerWrapper) -> None:
    with pytest.raises(ConfigError, match="causal"):
        mask_predict(expert, torch.zeros(1, 4, dtype=torch.long), mask_id=MASK)
    with pytest.raises(ConfigError, match="causal"):
        PlainDenoiser(expert)


def test_a_filler_has_no_amateur_and_keeps_one_id_at_least(filler: TransformerWrapper) -> None:
    with pytest.raises(ConfigError, match="amateur"):
        Engine(filler, amateur=filler)
    with pytest.raises(ConfigError, match="banned_ids"):
        Engine(filler, banned_ids=range(MASK)).add([MASK], parameters())


def test_a_bidirectional_model_is_left_in_the_mode_it_was_in(filler: TransformerWrapper) -> None:
    filler.train()
    mask_predict(filler, masked(1, 4, {}), mask_id=MASK)
    assert filler.training
    filler.eval()
    assert isinstance(PlainDenoiser(filler), Denoiser)


def test_parameters_are_plain_data() -> None:
    params = parameters(schedule="linear", order="random", remask=True, top_k=4)
    assert from_mapping(MaskPredictParams, to_mapping(params)) == params
