from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from decode_double import VOCABULARY, Double
from decode_models import contrastive_logprobs, greedy
from hypothesis import given, settings
from hypothesis import strategies as st

from xtdist.config import ConfigError
from xtdist.decode import Completion, ContrastiveParams, Engine, EngineConfig, GenerationParams
from xtdist.decode.kv_cache import KVPool, PageTable, Window
from xtdist.decode.scheduler import Scheduler
from xtdist.decode.sizing import make_pool
from xtdist.decode.step_cache import Segment, StepCache

PROMPTS = ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [8], [9, 10, 11], [12, 13])
GREEDY = GenerationParams(max_tokens=40, temperature=0.0)
MANY = (
    GREEDY,
    GenerationParams(max_tokens=40, seed=3, n=3),
    GenerationParams(max_tokens=40, num_beams=3, n=3),
)


def untrimmed(model: Double) -> Double:
    """The same model, which keeps its window to itself."""
    copy = Double(0, window=model.window, max_seq_len=model.max_seq_len)
    copy.load_state_dict(model.state_dict())
    spec = copy.cache_spec()
    copy.cache_spec = lambda: type(spec)(layers=spec.layers)  # type: ignore[method-assign]
    return copy.eval()


def tokens_of(completions: list[Completion]) -> list[list[tuple[int, ...]]]:
    return [[choice.token_ids for choice in c.choices] for c in completions]


def run_watched(engine: Engine, prompts: Any, params: GenerationParams) -> tuple[Any, int]:
    """The tokens, and the most pages that were in use after any step."""
    used = []
    pump = engine.pump

    def watched() -> None:
        pump()
        used.append(engine.pool.num_pages - len(engine.pool.free_pages))

    engine.pump = watched  # type: ignore[method-assign]
    found = tokens_of(engine.generate(list(prompts), params))
    assert used[-1] == 0
    assert not any(engine.pool.references)
    return found, max(used)


@pytest.mark.parametrize("window", [0, 1, 7, 40])
def test_a_sequence_much_longer_than_the_pool_equals_full_recomputation(window: int) -> None:
    model = Double(1, window=window, max_seq_len=400).eval()
    engine = Engine(model, config=EngineConfig(pool_tokens=96, max_sequences=1))
    prompt = [int(t) for t in torch.arange(150) * 7 % VOCABULARY]
    params = GenerationParams(max_tokens=150, temperature=0.0)
    found, used = run_watched(engine, [prompt], params)
    assert found == [[greedy(model, prompt, 150)]]
    assert engine.pool.num_pages * engine.pool.page_tokens == 96
    assert 1 <= used <= 6


@pytest.mark.parametrize("params", MANY)
@pytest.mark.parametrize(("window", "page_tokens"), [(0, 1), (3, 2), (5, 4), (9, 0)])
def test_forks_and_beams_equal_those_that_keep_everything(
    window: int, page_tokens: int, params: GenerationParams
) -> None:
    model = Double(2, window=window).eval()
    everything = tokens_of(Engine(untrimmed(model)).generate(list(PROMPTS), params))
    config = EngineConfig(page_tokens=page_tokens, max_step_tokens=9, max_sequences=4)
    engine = Engine(model, config=config)
    found, used = run_watched(engine, PROMPTS, params)
    assert found == everything
    assert used <= 4 * engine.pool.most_pages(64)
    if page_tokens:
        assert used < 4 * 30 / page_tokens


@pytest.mark.parametrize("params", MANY)
def test_preempted_sequences_come_to_the_same_end(
    params: GenerationParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Double(3, window=6).eval()
    everything = tokens_of(Engine(untrimmed(model)).generate(list(PROMPTS), params))
    preempted: list[Any] = []
    preempt = Scheduler._preempt
    monkeypatch.setattr(Scheduler, "_preempt", lambda s, r: (preempted.append(r), preempt(s, r))[1])
    config = EngineConfig(page_tokens=2, pool_tokens=30, max_sequences=9, max_step_tokens=9)
    found, _ = run_watched(Engine(model, config=config), PROMPTS, params)
    assert found == everything
    assert preempted


@pytest.mark.parametrize(("first", "second", "kept"), [(4, 9, 9), (9, 4, 9), (4, None, None)])
def test_two_models_keep_what_the_farther_sighted_one_reads(
    first: int, second: int | None, kept: int | None
) -> None:
    expert, amateur = Double(4, window=first).eval(), Double(5, window=second).eval()
    setting = ContrastiveParams(alpha=0.05)
    config = EngineConfig(page_tokens=2)
    engine = Engine(expert, amateur=amateur, config=config)
    window = engine.pool.window
    assert (None if window is None else window.back) == kept
    params = GenerationParams(max_tokens=30, temperature=0.0, contrastive=setting)
    found, _ = run_watched(engine, PROMPTS, params)
    for prompt, choices in zip(PROMPTS, found, strict=True):
        tokens = list(prompt)
        for _ in range(30):
            models: Any = (expert, amateur)
            tokens.append(int(contrastive_logprobs(models, tokens, setting).argmax()))
        assert choices == [tuple(tokens[len(prompt) :])]


def test_an_aborted_request_gives_back_its_pages() -> None:
    config = EngineConfig(page_tokens=2)
    engine = Engine(Double(1, window=4).eval(), config=config)
    name = engine.add(PROMPTS[0], GenerationParams(max_tokens=40, n=3))
    for _ in range(20):
        engine.step()
    assert 0 < engine.pool.num_pages - len(engine.pool.free_pages) <= 12
    engine.abort(name)
    assert len(engine.pool.free_pages) == engine.pool.num_pages


def test_what_the_window_itself_needs_must_fit_into_the_pool() -> None:
    engine = Engine(Double(1, window=30).eval(), config=EngineConfig(page_tokens=4, pool_tokens=32))
    engine.add([1], GenerationParams(max_tokens=20))
    with pytest.raises(ConfigError, match="pool_tokens"):
        engine.add([1], GenerationParams(max_tokens=60))


@pytest.mark.parametrize("window", [0, 8, 100, 4096])
@pytest.mark.parametrize("pool_tokens", [0, 40960])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_pool_is_sized_by_the_window(window: int, pool_tokens: int, on_cpu: bool) -> None:
    config = EngineConfig(max_sequences=4, pool_tokens=pool_tokens)
    pool = make_pool(config, longest=32768, window=window, models=1, on_cpu=on_cpu)
    assert pool.page_tokens <= max(16, window // 4)
    assert pool.window is not None
    assert 1 <= pool.window.chunk <= config.max_step_tokens
    assert 4 * pool.most_pages(32768) <= pool.num_pages
    if pool_tokens == 0:
        assert pool.num_pages * pool.page_tokens <= 4 * 3 * max(window, 256)


def test_a_pool_without_a_window_holds_whole_sequences() -> None:
    pool = make_pool(EngineConfig(), longest=1000, window=None, models=1, on_cpu=True)
    assert (pool.num_pages, pool.page_tokens, pool.window) == (8, 1000, None)
    pool = make_pool(EngineConfig(), longest=1000, window=None, models=1, on_cpu=False)
    assert (pool.num_pages, pool.page_tokens) == (32, 256)


@settings(max_examples=100, deadline=None)
@given(back=st.integers(0, 9), page_tokens=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_reads_hold_every_token_that_a_later_query_may_reach(
    back: int, page_tokens: int, seed: int
) -> None:
    """Random growth, forks and releases against plain lists of what was written."""
    draw = random.Random(seed)
    pool = KVPool(60, page_tokens, window=Window(back=back, chunk=6))
    live: list[tuple[PageTable, list[int]]] = [(PageTable(), [])]
    written = 0
    for _ in range(25):
        operation = draw.random()
        if operation < 0.2 and len(live) < 4:
            table, history = draw.choice(live)
            live.append((pool.fork(table), list(history)))
        elif operation < 0.3:
            table, history = draw.choice(live)
            pool.release(table)
            history.clear()
        else:
            growing = draw.sample(live, draw.randint(1, len(live)))
            counts = [draw.randint(1, 6) for _ in growing]
            assert pool.reserve([(t, c) for (t, _), c in zip(growing, counts, strict=True)])
            segments, values = [], []
            for (table, history), count in zip(growing, counts, strict=True):
                assert len(table.pages) <= pool.most_pages(10**6)
                segments.append(Segment(table, len(values), len(values) + count))
                values += range(written, written + count)
                history += range(written, written + count)
                written += count
            cache = StepCache(pool.stores[0], segments, torch.device("cpu"), back=back)
            new = torch.tensor(values, dtype=torch.float64)[None, None, :, None]
            for (table, history), count, read in zip(
                growing, counts, cache.update(0, (new,)), strict=True
            ):
                assert read.first == max(0, table.length - back)
                assert read.kept[0].flatten().tolist() == history[read.first :]
                pool.advance(table, count)
        owned = [page for table, _ in live for page in table.pages]
        assert [owned.count(page) for page in range(60)] == pool.references
    for table, _ in live:
        pool.release(table)
    assert len(pool.free_pages) == 60
