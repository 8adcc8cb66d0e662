"""Beginnings of texts that pages still hold: used again where they are the same, by nobody else,
and with the same result as without."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from decode_models import make_model
from hypothesis import given, settings

from xtdist.config import ConfigError
from xtdist.decode import Completion, ContrastiveParams, Engine, EngineConfig, GenerationParams
from xtdist.decode.kv_cache import KVPool
from xtdist.decode.outputs import Output, RequestFailed, collect
from xtdist.decode.prefix_cache import Blocks, PrefixCache, root_of
from xtdist.model import TransformerWrapper
from xtdist.nn.attention.config import AttentionConfig

LONG = tuple(i * 7 % 37 for i in range(64))
PROMPTS = (LONG[:40], LONG[:33], (*LONG[:35], 1, 2), LONG[:16], (*LONG[:20], 3), LONG[1:30], (5,))
CONTRAST = ContrastiveParams(alpha=0.05)
MODELS: dict[str, dict[str, Any]] = {
    "everything": {},
    "window": {"attention": AttentionConfig(dim_head=8, window=6)},
    "recomputed": {"shift_tokens": 1},
}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"seed": 2, "n": 3, "top_p": 0.9},
    "beams": {"num_beams": 3, "n": 2},
    "contrast": {"seed": 3, "contrastive": CONTRAST},
    "drafted": {"seed": 4, "draft_tokens": 3, "n": 2},
    "search": {"penalty_alpha": 0.6, "top_k": 3},
    "scored": {"temperature": 0.0, "prompt_logprobs": 0},
}
SIZES: tuple[dict[str, int], ...] = (
    {"page_tokens": 1, "max_step_tokens": 9, "pool_tokens": 150},
    {"page_tokens": 3, "max_step_tokens": 7, "pool_tokens": 210},
    {"page_tokens": 20, "max_step_tokens": 64, "pool_tokens": 240},
    {"page_tokens": 16, "max_step_tokens": 30},
    {"page_tokens": 64, "max_step_tokens": 64},
    {"page_tokens": 64, "max_step_tokens": 64, "max_sequences": 3},
)


def tiny(seed: int, **options: Any) -> TransformerWrapper:
    sizes = {"dim": 16, "depth": 1, "heads": 2, "attention": AttentionConfig(dim_head=8)}
    return make_model(seed, **{**sizes, **options}).double()


@functools.cache
def models(name: str) -> tuple[TransformerWrapper, ...]:
    """In float64, so that the order of sums changes no token."""
    return tiny(1, **MODELS[name]), tiny(2)


def make_engine(name: str = "everything", **config: Any) -> Engine:
    expert, amateur = models(name)
    given = EngineConfig(**{"max_sequences": 6, **config})
    return Engine(expert, amateur=amateur, eos_ids=(36,), config=given)


def parameters(kind: str, count: int) -> GenerationParams:
    return GenerationParams(max_tokens=count, **KINDS[kind])


@functools.cache
def without(name: str, prompt: tuple[int, ...], kind: str, count: int) -> Completion:
    engine = make_engine(name, prefix_cache=False)
    return engine.generate([prompt], parameters(kind, count))[0]


def finish(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


@torch.inference_mode()
def poison(engine: Engine) -> None:
    """Nan wherever no running request has something."""
    pool = engine.pool
    assert isinstance(pool, KVPool)
    for store in pool.stores:
        for kinds in store.layers.values():
            for stored in kinds:
                stored[pool.free_pages] = torch.nan


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["greedy", "beams", "contrast", "drafted"])
def test_what_was_computed_is_used_again_and_changes_nothing(
    kind: str, size: dict[str, int]
) -> None:
    engine = make_engine(**size)
    for prompt in PROMPTS:
        found = engine.generate([prompt], parameters(kind, 6))[0]
        assert found == without("everything", prompt, kind, 6)
    block = min(16, size["page_tokens"])
    stats = engine.stats()
    assert stats.prefix_hit_tokens >= 32 // block * block  # of the second prompt alone
    assert stats.prompt_tokens == sum(map(len, PROMPTS))
    assert stats.pages_used == 0
    assert stats.pages_cached <= stats.pages_total == len(engine.pool.free_pages)


def test_an_answer_is_the_beginning_of_the_next_prompt() -> None:
    engine = make_engine(page_tokens=64)
    params = parameters("greedy", 20)
    first = engine.generate([LONG[:10]], params)[0].choices[0]
    prompt = (*LONG[:10], *first.token_ids, 9)
    before = engine.stats()
    assert engine.generate([prompt], params)[0] == without("everything", prompt, "greedy", 20)
    after = engine.stats()
    assert after.prefix_hit_tokens - before.prefix_hit_tokens == 16
    assert after.pages_cached == before.pages_cached == 1  # in the same page, not in a copy of it


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    engine = make_engine(page_tokens=16)
    for hits in (0, 16):  # of 32, of which 31 at most
        before = engine.stats().prefix_hit_tokens
        found = engine.generate([LONG[:32]], parameters("greedy", 4))[0]
        assert found == without("everything", LONG[:32], "greedy", 4)
        assert engine.stats().prefix_hit_tokens - before == hits


def test_requests_that_run_share_pages() -> None:
    engine = make_engine(page_tokens=16)
    engine.add(LONG[:40], parameters("greedy", 16))
    engine.step()
    engine.add(LONG[:40], parameters("greedy", 16))
    engine.step()
    assert engine.stats().pages_used == 4  # two in common, and one of its own for each
    finish(engine)


@pytest.mark.parametrize("page_tokens", [16, 64])
def test_what_is_in_free_pages_is_never_read_with_another_salt(page_tokens: int) -> None:
    engine = make_engine(page_tokens=page_tokens)
    params, prompt = parameters("greedy", 6), LONG[:40]
    for salt in ("a", "b"):
        engine.add(prompt, params, salt=salt)
        finish(engine)
    assert engine.stats().prefix_hit_tokens == 0
    poison(engine)
    name = engine.add(prompt, params, salt="c")
    outputs: list[Output] = []
    while engine.has_work:
        outputs += engine.step()
    assert {o.request_id for o in outputs} == {name}
    assert collect(outputs) == without("everything", prompt, "greedy", 6)
    assert engine.stats().prefix_hit_tokens == 0
    engine.add(prompt, params, salt="a")  # the poison was where it should be
    with pytest.raises(RequestFailed):
        finish(engine)


def test_what_a_request_that_fails_has_read_and_written_is_not_used_again() -> None:
    engine = make_engine(page_tokens=16)
    params, prompt = parameters("greedy", 6), LONG[:40]
    assert engine.generate([prompt], params)[0] == without("everything", prompt, "greedy", 6)
    poison(engine)
    with pytest.raises(FloatingPointError):
        engine.generate([prompt], params)
    assert engine.generate([prompt], params)[0] == without("everything", prompt, "greedy", 6)


def test_a_prompt_reads_nothing_that_other_models_have_filled() -> None:
    engine = make_engine()
    engine.generate([LONG[:40]], parameters("greedy", 2))
    for kind, hits in (("contrast", 0), ("drafted", 32), ("search", 32), ("scored", 32)):
        engine.generate([LONG[:40]], parameters(kind, 2))
        assert engine.stats().prefix_hit_tokens == hits, kind


def test_without_it_and_without_a_cache_nothing_is_kept() -> None:
    for engine in (make_engine(prefix_cache=False), make_engine("recomputed")):
        for _ in range(2):
            engine.generate([LONG[:40]], parameters("greedy", 2))
        assert engine.stats().prefix_hit_tokens == engine.stats().pages_cached == 0


def test_a_step_that_breaks_leaves_nothing_wrong_behind() -> None:
    engine = make_engine(page_tokens=16, max_step_tokens=24)
    params, prompt = parameters("greedy", 6), LONG[:40]
    outputs = engine.stream(prompt, params)
    engine.pump()
    expert = models("everything")[0]

    def breaks(*_: Any) -> None:
        poison(engine)
        raise MemoryError

    hook = expert.register_forward_hook(breaks)
    with pytest.raises(MemoryError):
        engine.pump()
    hook.remove()
    assert collect(list(outputs)) == without("everything", prompt, "greedy", 6)
    assert engine.generate([prompt], params)[0] == without("everything", prompt, "greedy", 6)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    page=st.integers(1, 40),
    back=st.one_of(st.none(), st.integers(0, 60)),
    missing=st.sets(st.integers(0, 9)),
    length=st.integers(0, 100),
)
def test_the_longest_beginning_has_every_page_that_is_read(
    page: int, back: int | None, missing: set[int], length: int
) -> None:
    """By trying every block: its own digest is there, and the last one of each page before it."""
    blocks = Blocks(page)
    digests: list[bytes] = []
    blocks.extend(digests, LONG * 2, root=root_of("", models=1), upto=length)
    ends = [blocks.end(i) for i in range(len(digests))]
    assert ends == [t for t in range(1, length + 1) if t % page == 0 or t % page % 16 == 0]
    cache = PrefixCache(blocks)
    there = {i for i in range(len(digests)) if i not in missing}
    for i in sorted(there):
        cache.add(ends[i] // page, digests[i : i + 1])

    def valid(i: int) -> bool:
        first = 0 if back is None else max(0, ends[i] - back) // page
        needed = [j for j in range(i) if ends[j] % page == 0 and ends[j] // page > first]
        return i in there and there.issuperset(needed)

    wanted = max((i + 1 for i in range(len(digests)) if valid(i)), default=0)
    assert cache.longest(digests, back=back) == wanted


Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(("add", "add", "add", "step", "step", "many", "abort", "preempt")),
        st.integers(0, len(PROMPTS) - 1),
        st.integers(0, 2**16),
    ),
    max_size=30,
)


def check_pages(engine: Engine) -> None:
    pool = engine.pool
    tables = [s.table for r in engine._requests.values() for s in r.sequences]
    held = Counter(page for table in tables for page in table.pages)
    assert [held[p] for p in range(pool.num_pages)] == pool.references
    assert sorted(pool.free_pages) == [p for p in range(pool.num_pages) if not held[p]]
    assert pool.free == len(pool.free_pages)


@pytest.mark.parametrize("name", ["everything", "window"])
@pytest.mark.parametrize("size", range(len(SIZES)))
@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(steps=STEPS)
def test_whatever_happens_pages_add_up_and_results_are_those_without(
    name: str, size: int, steps: list[Step]
) -> None:
    engine = make_engine(name, **SIZES[size])
    asked: dict[str, tuple[Any, ...]] = {}
    got: dict[str, list[Output]] = {}
    for what, number, chance in [*steps, ("end", 0, 0)]:
        if what == "add":
            kind, count = sorted(KINDS)[chance % len(KINDS)], (1, 6, 17)[chance % 3]
            salt = "ab"[chance // 7 % 2]
            try:
                key = engine.add(PROMPTS[number], parameters(kind, count), salt=salt)
            except ConfigError:  # larger than the pool
                continue
            asked[key], got[key] = (PROMPTS[number], kind, count), []
        live = sorted(n for n in asked if engine.knows(n))
        running = engine.scheduler.running
        if what == "abort" and live:
            engine.abort(live[chance % len(live)])
            del asked[live[chance % len(live)]]
        if what == "preempt" and running:
            engine.scheduler._preempt(running[chance % len(running)])
        times = {"step": 1, "many": 5, "end": 10**6}.get(what, 0)
        while times and engine.has_work:
            times -= 1
            for output in engine.step():
                got[output.request_id].append(output)
        check_pages(engine)
    assert len(engine.pool.free_pages) == engine.pool.num_pages
    for key, job in asked.items():
        found, wanted = collect(got[key]), without(name, *job)
        for ours, theirs in zip(found.choices, wanted.choices, strict=True):
            assert ours.token_ids == theirs.token_ids
            assert ours.finish_reason == theirs.finish_reason
            assert ours.score == pytest.approx(theirs.score)
        pairs = zip(found.prompt_logprobs or (), wanted.prompt_logprobs or (), strict=True)
        for mine, other in list(pairs)[1:]:
            assert mine is not None
            assert other is not None
            assert mine.logprob == pytest.approx(other.logprob)
