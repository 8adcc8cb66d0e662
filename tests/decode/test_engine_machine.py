"""Any order of what may happen to an engine: pages are never lost, shared or written wrongly, and
every request ends with the tokens that it has alone."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any, ClassVar

import hypothesis.strategies as st
import pytest
from decode_models import make_model
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from xtdist.config import ConfigError
from xtdist.decode import (
    Completion,
    ContrastiveParams,
    Engine,
    EngineConfig,
    GenerationParams,
    Output,
)
from xtdist.decode.outputs import collect
from xtdist.decode.stream import OutputStream
from xtdist.model import TransformerWrapper
from xtdist.nn.attention.config import AttentionConfig

ENDS = (3, 17)
PROMPTS = ((1,), (5, 6), (2, 3, 4), (7, 8, 9, 10, 11), (1, 2) * 5, tuple(range(20, 33)))
CONTRAST = ContrastiveParams(alpha=0.05)
MODELS: dict[str, dict[str, Any]] = {
    "everything": {},
    "window": {"attention": AttentionConfig(dim_head=8, window=4)},
    "recomputed": {"shift_tokens": 1},
}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"seed": 1, "top_p": 0.9, "repetition_penalty": 1.2},
    "three": {"seed": 2, "n": 3},
    "best of": {"seed": 6, "n": 1, "best_of": 3},
    "beams": {"num_beams": 3, "n": 2},
    "drawn beams": {"num_beams": 3, "stochastic_beams": True, "seed": 7},
    "contrast": {"seed": 3, "contrastive": CONTRAST},
    "two amateurs": {"temperature": 0.0, "contrastive": (CONTRAST, CONTRAST)},
    "contrasted beams": {"num_beams": 2, "contrastive": CONTRAST},
    "drafted": {"temperature": 0.0, "draft_tokens": 3},
    "drafted draws": {"seed": 4, "draft_tokens": 4, "n": 2},
    "drafted contrast": {"seed": 5, "draft_tokens": 2, "contrastive": CONTRAST},
    "search": {"penalty_alpha": 0.6, "top_k": 3},
}
MIXED = (
    ("greedy", "sampled", "three", "best of"),
    ("greedy", "beams", "drawn beams", "contrasted beams"),
    ("contrast", "two amateurs", "search"),
    ("drafted", "drafted draws", "drafted contrast", "three"),
)
"""Few kinds meet each other more often than many."""
TIGHT = (
    {"max_sequences": 6, "max_step_tokens": 7, "page_tokens": 3, "pool_tokens": 66},
    {"max_sequences": 2, "max_step_tokens": 3, "page_tokens": 1, "pool_tokens": 30},
    {"max_sequences": 8, "max_step_tokens": 20, "page_tokens": 2, "pool_tokens": 44},
    {"max_sequences": 8, "max_step_tokens": 64, "page_tokens": 64, "pool_tokens": 256},
)


def tiny(seed: int, **options: Any) -> TransformerWrapper:
    sizes = {"dim": 16, "depth": 1, "heads": 2, "attention": AttentionConfig(dim_head=8)}
    return make_model(seed, **{**sizes, **options}).double()


@functools.cache
def models(name: str) -> list[TransformerWrapper]:
    """An expert and two amateurs; in float64, so that the order of sums changes no token."""
    return [tiny(1, **MODELS[name]), tiny(2), tiny(3)]


def make_engine(name: str, config: EngineConfig | None = None) -> Engine:
    expert, *amateurs = models(name)
    return Engine(expert, amateur=amateurs, eos_ids=ENDS, config=config)


def parameters(kind: str, count: int) -> GenerationParams:
    return GenerationParams(max_tokens=count, **KINDS[kind])


@functools.cache
def alone(name: str, prompt: tuple[int, ...], kind: str, count: int) -> Completion:
    return make_engine(name).generate([prompt], parameters(kind, count))[0]


class EngineMachine(RuleBasedStateMachine):
    kinds: ClassVar[tuple[str, ...]] = ()
    seen: ClassVar[Counter[str]] = Counter()

    @initialize(name=st.sampled_from(sorted(MODELS)), tight=st.sampled_from(TIGHT))
    def start(self, name: str, tight: dict[str, int]) -> None:
        self.name = name
        self.engine = make_engine(name, EngineConfig(**tight))
        self.asked: dict[str, tuple[tuple[int, ...], str, int]] = {}
        self.got: dict[str, list[Output]] = {}
        self.streams: dict[str, OutputStream] = {}
        self.watch_writes()
        self.watch_preemption()

    def watch_writes(self) -> None:
        pool = self.engine.pool
        for store in pool.stores:

            def write(layer: int, slots: Any, rows: Any, *, plain: Any = store.write) -> None:
                assert {pool.references[page] for page in slots.pages.tolist()} <= {1}
                plain(layer, slots, rows)

            store.write = write  # type: ignore[method-assign]

    def watch_preemption(self) -> None:
        preempt = self.engine.scheduler._preempt

        def counted(request: Any) -> None:
            self.seen["preempted"] += 1
            preempt(request)

        self.engine.scheduler._preempt = counted  # type: ignore[method-assign]

    @rule(
        prompt=st.sampled_from(PROMPTS),
        number=st.integers(0, 11),
        count=st.sampled_from((1, 5, 11)),
        streamed=st.booleans(),
    )
    def add(self, prompt: tuple[int, ...], number: int, count: int, streamed: bool) -> None:
        kind = self.kinds[number % len(self.kinds)]
        params = parameters(kind, count)
        pool = self.engine.pool
        needed = params.width * pool.most_pages(len(prompt) + count)
        if params.width > self.engine.config.max_sequences or needed > pool.num_pages:
            with pytest.raises(ConfigError, match=r"max_sequences|pages"):
                self.engine.add(prompt, params)
            self.seen["refused"] += 1
            return
        if streamed:
            stream = self.engine.stream(prompt, params)
            name = stream.request_id
            self.streams[name] = stream
        else:
            name = self.engine.add(prompt, params)
        self.asked[name], self.got[name] = (prompt, kind, count), []
        self.seen[kind] += 1

    @rule()
    def step(self) -> None:
        for output in self.engine.step():
            self.got[output.request_id].append(output)

    @rule(times=st.integers(2, 6))
    def steps(self, times: int) -> None:
        for _ in range(times):
            self.step()

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        if self.streams:
            name = data.draw(st.sampled_from(sorted(self.streams)))
            self.got[name] += [o for o in [next(self.streams[name], None)] if o is not None]

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        running = sorted(n for n in self.asked if self.engine.knows(n))
        if running:
            name = data.draw(st.sampled_from(running))
            if name in self.streams:
                self.streams.pop(name).close()
            else:
                assert self.engine.abort(name)
            del self.asked[name]
            self.seen["cancelled"] += 1

    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        """What the scheduler does by itself when pages run out, at any moment."""
        running = self.engine.scheduler.running
        if running:
            self.engine.scheduler._preempt(running[data.draw(st.integers(0, len(running) - 1))])

    @invariant()
    def pages_are_where_their_tables_say(self) -> None:
        if not hasattr(self, "engine"):
            return
        pool = self.engine.pool
        requests = self.engine._requests.values()
        tables = [s.table for r in requests for s in r.sequences]
        assert len(tables) == len({id(table) for table in tables})
        held = Counter(page for table in tables for page in table.pages)
        assert [held[page] for page in range(pool.num_pages)] == pool.references
        assert sorted(pool.free_pages) == [p for p in range(pool.num_pages) if not held[p]]
        scheduler = self.engine.scheduler
        assert {id(r) for r in requests} == {
            id(r) for r in (*scheduler.running, *scheduler.waiting)
        }
        assert all(not s.table.pages for r in scheduler.waiting for s in r.sequences)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        while self.engine.has_work:
            self.step()
            self.pages_are_where_their_tables_say()
        for name, stream in self.streams.items():
            self.got[name] += list(stream)
        assert len(self.engine.pool.free_pages) == self.engine.pool.num_pages
        for name, job in self.asked.items():
            assert collect(self.got[name]) == alone(self.name, *job)


@pytest.mark.parametrize("kinds", MIXED, ids=" + ".join)
def test_whatever_happens_pages_are_kept_in_order_and_tokens_are_those_of_a_lone_request(
    kinds: tuple[str, ...],
) -> None:
    seen: Counter[str] = Counter()
    machine = type("Machine", (EngineMachine,), {"kinds": kinds, "seen": seen})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25, stateful_step_count=25, deadline=None, derandomize=True, database=None
        ),
    )
    assert set(seen) >= {*kinds, "preempted", "cancelled"}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_request_that_loses_its_pages_at_any_step_goes_on_as_if_it_had_not(kind: str) -> None:
    for steps in (1, 2, 3, 6):
        engine = make_engine("everything")
        outputs = engine.stream(PROMPTS[3], parameters(kind, 11))
        for _ in range(steps):
            engine.pump()
        for request in tuple(engine.scheduler.running):
            engine.scheduler._preempt(request)
        assert len(engine.pool.free_pages) == engine.pool.num_pages
        assert collect(list(outputs)) == alone("everything", PROMPTS[3], kind, 11)


def test_when_pages_run_out_requests_wait_and_end_as_if_alone() -> None:
    engine = make_engine("everything", EngineConfig(**TIGHT[2]))
    preempted = []
    preempt = engine.scheduler._preempt

    def counted(request: Any) -> None:
        preempted.append(request.id)
        preempt(request)

    engine.scheduler._preempt = counted  # type: ignore[method-assign]
    prompts = PROMPTS[:4] * 2
    found = engine.generate(prompts, parameters("sampled", 11))
    assert found == [alone("everything", prompt, "sampled", 11) for prompt in prompts]
    assert len(preempted) > 1


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_pages_of_a_request_fit_into_what_was_reserved_for_it(name: str, kind: str) -> None:
    """With one page less than a request may need it is refused, with so many it always ends."""
    params = parameters(kind, 9)
    for pages in range(1, 60):
        config = EngineConfig(
            max_sequences=4, max_step_tokens=8, page_tokens=3, pool_tokens=3 * pages
        )
        try:
            found = make_engine(name, config).generate([PROMPTS[3]], params)[0]
        except ConfigError:
            continue
        assert found == alone(name, PROMPTS[3], kind, 9)
        return
    raise AssertionError("60 pages were not enough")
