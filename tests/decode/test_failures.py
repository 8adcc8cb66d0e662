"""What an exception in a step leaves behind: the request that is to blame fails alone, and after
any other one everything is as it was before the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from decode_models import VOCABULARY, make_model

from xtdist.decode import (
    ContrastiveParams,
    Engine,
    EngineConfig,
    GenerationParams,
    MaskPredictParams,
    RequestFailed,
)
from xtdist.decode.autoregression import Autoregression
from xtdist.decode.continuation import Continuation
from xtdist.decode.kv_cache import KVPool
from xtdist.decode.lockstep import Lockstep
from xtdist.decode.outputs import collect
from xtdist.decode.scheduler import Scheduler
from xtdist.decode.stopping import TextStream
from xtdist.model import TransformerWrapper

MASK = VOCABULARY - 1
GREEDY = GenerationParams(max_tokens=6, temperature=0.0)
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "three": {"seed": 2, "n": 3, "stop": ("ab",)},
    "best of": {"seed": 6, "n": 1, "best_of": 3},
    "beams": {"num_beams": 3, "n": 2},
    "drawn beams": {"num_beams": 3, "stochastic_beams": True, "seed": 7},
    "drafted": {"seed": 4, "draft_tokens": 3, "contrastive": ContrastiveParams()},
    "search": {"penalty_alpha": 0.6, "top_k": 3},
}


@pytest.fixture(scope="module")
def expert() -> TransformerWrapper:
    """In float64, so that who runs beside a request does not show in its scores."""
    return make_model(1).double()


@pytest.fixture(scope="module")
def amateur() -> TransformerWrapper:
    return make_model(2, depth=1).double()


class Letters:
    """One character for each id; it may fail at one of them."""

    vocab_size = VOCABULARY

    def __init__(self, wrong: int | None = None) -> None:
        self.wrong = wrong

    def token_bytes(self, token: int) -> bytes:
        if token == self.wrong:
            raise KeyError("no such piece")
        return ("aé€🙂b"[token % 5]).encode()


class Failing:
    """A processor that changes nothing until a request has so many tokens."""

    def __init__(self, after: int, error: type[BaseException] = ValueError) -> None:
        self.after, self.error = after, error

    def __call__(self, tokens: Sequence[int], scores: torch.Tensor) -> torch.Tensor:
        if len(tokens) == self.after:
            raise self.error("boom")
        return scores


def make_engine(expert: TransformerWrapper, amateur: TransformerWrapper, **options: Any) -> Engine:
    options.setdefault("tokenizer", Letters())
    config = EngineConfig(seed=1, page_tokens=4, max_sequences=12)
    return Engine(expert, amateur=amateur, config=config, **options)


def idle(engine: Engine) -> bool:
    return not engine.has_work and len(engine.pool.free_pages) == engine.pool.num_pages


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("innocent_first", [True, False])
def test_a_processor_that_raises_fails_its_own_stream_alone(
    expert: TransformerWrapper, amateur: TransformerWrapper, kind: str, innocent_first: bool
) -> None:
    params = GenerationParams(max_tokens=6, **KINDS[kind])
    engine = make_engine(expert, amateur)
    alone = engine.generate([[1, 2, 3]], params)[0]
    good = engine.stream([1, 2, 3], params)
    bad = engine.stream([4, 5], params, processor=Failing(2))
    found = list(good) if innocent_first else []
    with pytest.raises(ValueError, match="boom"):
        list(bad)
    assert list(bad) == []
    assert collect(found or list(good)) == alone
    assert idle(engine)


def test_what_came_before_the_failure_is_read_first(
    expert: TransformerWrapper, amateur: TransformerWrapper
) -> None:
    engine = make_engine(expert, amateur)
    whole = engine.generate([[4, 5]], GREEDY)[0].choices[0].token_ids
    good, bad = engine.stream([1], GREEDY), engine.stream([4, 5], GREEDY, processor=Failing(2))
    list(good)
    assert next(bad).token_ids + next(bad).token_ids == whole[:2]
    with pytest.raises(ValueError, match="boom"):
        next(bad)


def test_generate_raises_what_a_processor_raises_and_aborts_its_other_requests(
    expert: TransformerWrapper, amateur: TransformerWrapper
) -> None:
    engine = make_engine(expert, amateur)
    with pytest.raises(ValueError, match="boom"):
        engine.generate([[1], [2]], GREEDY, processor=Failing(3))
    assert idle(engine)


def test_a_step_tells_which_request_failed_and_the_next_ones_go_on(
    expert: TransformerWrapper, amateur: TransformerWrapper
) -> None:
    engine = make_engine(expert, amateur)
    alone = engine.generate([[1]], GREEDY)[0]
    good = engine.add([1], GREEDY)
    bad = engine.add([2], GREEDY, processor=Failing(2))
    outputs, failures = [], []
    while engine.has_work:
        try:
            outputs += engine.step()
        except RequestFailed as e:
            failures.append((e.request_id, str(e.__cause__)))
            assert not engine.knows(bad)
    assert failures == [(bad, "boom")]
    assert collect([o for o in outputs if o.request_id == good]) == alone
    assert idle(engine)


@pytest.mark.parametrize("kind", ["greedy", "beams", "search"])
def test_a_tokenizer_that_raises_fails_the_request_whose_token_it_is(
    expert: TransformerWrapper, amateur: TransformerWrapper, kind: str
) -> None:
    params = GenerationParams(max_tokens=6, **KINDS[kind])
    first, second = (
        {t for c in make_engine(expert, amateur).generate([p], params)[0].choices
         for t in c.token_ids}
        for p in ([1, 2, 3], [7])
    )  # fmt: skip
    engine = make_engine(expert, amateur, tokenizer=Letters(min(second - first)))
    good, bad = engine.stream([1, 2, 3], params), engine.stream([7], params)
    with pytest.raises(KeyError, match="no such piece"):
        list(bad)
    assert collect(list(good)) == make_engine(expert, amateur).generate([[1, 2, 3]], params)[0]
    assert idle(engine)


PLACES: tuple[tuple[Any, str], ...] = (
    (Scheduler, "_grant"),
    (KVPool, "reserve"),
    (KVPool, "advance"),
    (KVPool, "fork"),
    (KVPool, "release"),
    (Lockstep, "_ready"),
    (Continuation, "advance"),
    (Continuation, "_accept"),
    (TextStream, "push"),
    (Autoregression, "advance"),
)


def interrupt(
    monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str], *, calls: int, late: bool
) -> Callable[[], bool]:
    """Ctrl-C once at this call, before or after what it does; tells whether it came to that."""
    owner, name = place
    plain, count = getattr(owner, name), 0

    def once(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        found = plain(*args, **options) if late or count != calls else None
        if count == calls:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(owner, name, once)
    return lambda: count >= calls


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[0].__name__}.{place[1]}")
def test_after_an_interrupt_anywhere_in_a_step_the_next_ones_go_on_as_if_there_was_none(
    expert: TransformerWrapper,
    amateur: TransformerWrapper,
    monkeypatch: pytest.MonkeyPatch,
    place: tuple[Any, str],
    late: bool,
) -> None:
    params = [GenerationParams(max_tokens=6, **kind) for kind in KINDS.values()]
    engine = make_engine(expert, amateur)
    alone = [engine.generate([[1, 2, 3, i]], p)[0] for i, p in enumerate(params)]
    for calls in (1, 2, 5, 9, 14, 20):
        with monkeypatch.context() as patch:
            came = interrupt(patch, place, calls=calls, late=late)
            names = [engine.add([1, 2, 3, i], p) for i, p in enumerate(params)]
            outputs, raised = [], 0
            while engine.has_work:
                try:
                    outputs += engine.step()
                except KeyboardInterrupt:
                    raised += 1
        assert raised == came()
        for name, whole in zip(names, alone, strict=True):
            assert collect([o for o in outputs if o.request_id == name]) == whole
        assert idle(engine)


def test_after_an_interrupt_requests_can_be_aborted_and_all_pages_are_free(
    expert: TransformerWrapper, amateur: TransformerWrapper
) -> None:
    for kind in KINDS.values():
        engine = make_engine(expert, amateur)
        params = GenerationParams(max_tokens=6, **kind)
        names = [engine.add([1, 2], params, processor=Failing(3, KeyboardInterrupt)), *(
            engine.add([1, 3], params) for _ in range(2)
        )]  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            all(engine.step() is not None for _ in range(9))
        for name in names:
            assert engine.abort(name)
        assert idle(engine)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_model_that_gives_nan_is_an_error_for_every_way_to_go_on(
    amateur: TransformerWrapper, kind: str
) -> None:
    model = make_model(0)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(float("nan"))
    engine = make_engine(model, amateur)
    with pytest.raises(FloatingPointError, match="nan"):
        engine.generate([[1, 2]], GenerationParams(max_tokens=6, **KINDS[kind]))
    assert idle(engine)


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"top_k": 3},
        {"top_p": 0.5},
        {"min_p": 0.5},
        {"top_a": 0.5},
        {"typical_p": 0.5},
        {"temperature": 0.0},
        {"repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_one_nan_among_the_logits_is_seen_through_every_filter(filters: dict[str, Any]) -> None:
    model = make_model(0)
    with torch.no_grad():
        model.head.weight[7] = float("nan")
    engine = Engine(model, config=EngineConfig(seed=0))
    with pytest.raises(FloatingPointError, match="nan"):
        engine.generate([[1, 2]], GenerationParams(max_tokens=4, **filters))


@pytest.mark.parametrize("order", ["confidence", "random"])
def test_filling_masks_fails_alone_too(order: Any) -> None:
    model = make_model(4, causal=False)
    params = MaskPredictParams(steps=5, mask_id=MASK, seed=1, temperature=0.0, order=order)
    plain = Engine(model, tokenizer=Letters())
    rows = [[1, 2, *[MASK] * 6], [9, 8, 7, *[MASK] * 6]]
    first, second = plain.generate(rows, params)
    wrong = min({*second.choices[0].token_ids} - {*first.choices[0].token_ids})
    engine = Engine(model, tokenizer=Letters(wrong))
    good, bad = (engine.stream(row, params) for row in rows)
    with pytest.raises(KeyError, match="no such piece"):
        list(bad)
    assert collect(list(good)) == first
    with torch.no_grad():
        model.head.weight[7] = float("nan")
    with pytest.raises(FloatingPointError, match="nan"):
        plain.generate(rows, params)
    assert idle(plain)
