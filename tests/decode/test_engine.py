from __future__ import annotations

from typing import Any

import pytest
import torch
from decode_models import VOCABULARY, greedy, make_model, next_logits

from xtdist.config import ConfigError
from xtdist.decode import (
    ContrastiveParams,
    Engine,
    EngineConfig,
    GenerationParams,
    QueueFull,
)
from xtdist.model import TransformerWrapper
from xtdist.nn.attention.config import AttentionConfig, LatentConfig
from xtdist.nn.norm.adaptive import AdaptiveRMSNormConfig
from xtdist.nn.position.bias import AlibiConfig
from xtdist.nn.position.config import LearnedConfig, NoPositionConfig
from xtdist.nn.position.parts import ForgettingConfig

PROMPTS = ([1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11], [12, 13])
SAMPLED = GenerationParams(max_tokens=12, seed=7, top_p=0.95, temperature=1.2)


def tokens_of(engine: Engine, prompts: Any, params: GenerationParams) -> list[tuple[int, ...]]:
    choices = [c.choices for c in engine.generate(list(prompts), params)]
    return [choice.token_ids for per_prompt in choices for choice in per_prompt]


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"attention": AttentionConfig(dim_head=8)},
        {"attention": AttentionConfig(dim_head=8, kv_heads=1)},
        {"attention": AttentionConfig(dim_head=8, qk_rmsnorm=True)},
        {"position": LearnedConfig()},
        {"position": NoPositionConfig()},
        {"tie_embedding": True},
        {"attention": AttentionConfig(dim_head=8, window=5)},
        {"attention": AttentionConfig(dim_head=8, kv_heads=2, window=3), "depth": 3},
        {"attention": AttentionConfig(dim_head=8, window=5), "position_bias": AlibiConfig()},
        {"attention": AttentionConfig(dim_head=8, latent=LatentConfig(kv_dim=12, rotary_heads=1))},
        {"attention": AttentionConfig(dim_head=8, forgetting=ForgettingConfig())},
        {"attention": AttentionConfig(dim_head=8, selective=True)},
        {"shift_tokens": 1},
    ],
)
@pytest.mark.parametrize("page_tokens", [0, 4])
def test_greedy_with_the_cache_equals_full_recomputation(
    overrides: dict[str, Any], page_tokens: int
) -> None:
    model = make_model(3, **overrides)
    engine = Engine(model, config=EngineConfig(page_tokens=page_tokens))
    found = tokens_of(engine, PROMPTS, GenerationParams(max_tokens=20, temperature=0.0))
    assert found == [greedy(model, prompt, 20) for prompt in PROMPTS]


def test_logprobs_equal_those_of_a_full_forward(expert: TransformerWrapper) -> None:
    params = GenerationParams(max_tokens=8, seed=1, logprobs=3, repetition_penalty=1.5)
    choice = Engine(expert).generate([PROMPTS[0]], params)[0].choices[0]
    for i, found in enumerate(choice.logprobs):
        before = [*PROMPTS[0], *choice.token_ids[:i]]
        expected = next_logits(expert, before).log_softmax(-1)
        assert found.token_id == choice.token_ids[i]
        assert found.logprob == pytest.approx(float(expected[found.token_id]), abs=1e-5)
        assert [t for t, _ in found.top] == expected.topk(3).indices.tolist()
    assert len(choice.logprobs) == 8


@pytest.mark.parametrize(
    "params",
    [SAMPLED, GenerationParams(max_tokens=12, seed=3, top_k=5, presence_penalty=0.5, n=2)],
)
def test_batched_equals_alone(expert: TransformerWrapper, params: GenerationParams) -> None:
    together = tokens_of(Engine(expert), PROMPTS, params)
    alone = [t for p in PROMPTS for t in tokens_of(Engine(expert), [p], params)]
    assert together == alone


def test_a_prompt_in_chunks_equals_a_whole_prompt(expert: TransformerWrapper) -> None:
    whole = tokens_of(Engine(expert), PROMPTS, SAMPLED)
    small = EngineConfig(max_step_tokens=3, max_sequences=3, page_tokens=4)
    assert tokens_of(Engine(expert, config=small), PROMPTS, SAMPLED) == whole


def test_preempted_requests_come_to_the_same_end(expert: TransformerWrapper) -> None:
    plenty = tokens_of(Engine(expert), PROMPTS, SAMPLED)
    config = EngineConfig(page_tokens=2, pool_tokens=30, max_sequences=4)
    engine = Engine(expert, config=config)
    preempted = []
    original = engine.scheduler._preempt
    engine.scheduler._preempt = lambda r: (preempted.append(r.id), original(r))[1]  # type: ignore[method-assign]
    assert tokens_of(engine, PROMPTS, SAMPLED) == plenty
    assert preempted


def test_choices_of_one_request_differ_and_equal_their_own_seeds(
    expert: TransformerWrapper,
) -> None:
    params = GenerationParams(max_tokens=10, seed=11, n=4)
    first = tokens_of(Engine(expert), [PROMPTS[0]], params)
    assert len(set(first)) == 4
    busy = Engine(expert, config=EngineConfig(max_sequences=8))
    busy.add(PROMPTS[1], GenerationParams(max_tokens=30))
    assert tokens_of(busy, [PROMPTS[0]], params) == first


def test_requests_without_a_seed_differ_and_follow_the_engine_seed(
    expert: TransformerWrapper,
) -> None:
    params = GenerationParams(max_tokens=10)
    config = EngineConfig(seed=5)
    first = tokens_of(Engine(expert, config=config), [[1], [1]], params)
    assert first[0] != first[1]
    assert tokens_of(Engine(expert, config=config), [[1], [1]], params) == first
    assert tokens_of(Engine(expert), [[1], [1]], params) != first


def test_values_left_in_freed_pages_are_never_read(expert: TransformerWrapper) -> None:
    engine = Engine(expert, config=EngineConfig(page_tokens=4, max_sequences=4, prefix_cache=False))
    clean = tokens_of(engine, PROMPTS, SAMPLED)
    with torch.inference_mode():
        for keys, values in engine.pool.stores[0].layers.values():
            keys.fill_(float("nan"))
            values.fill_(float("nan"))
    assert tokens_of(engine, PROMPTS, SAMPLED) == clean


def test_banned_ids_and_ids_beyond_the_tokenizer_never_come(expert: TransformerWrapper) -> None:
    class Small:
        vocab_size = 30

        def token_bytes(self, token_id: int, /) -> bytes:
            return bytes([65 + token_id])

    engine = Engine(expert, banned_ids=range(25), tokenizer=Small())
    sampled = tokens_of(engine, [[1]], GenerationParams(max_tokens=60, temperature=5.0))[0]
    assert set(sampled) == {25, 26, 27, 28, 29}


def test_eos_ends_a_sequence_unless_ignored_or_too_early(expert: TransformerWrapper) -> None:
    eos = greedy(expert, PROMPTS[0], 5)[4]
    engine = Engine(expert, eos_ids=(eos,))
    first = engine.generate([PROMPTS[0]], GenerationParams(temperature=0.0))[0].choices[0]
    assert first.token_ids[-1] == eos
    assert first.finish_reason == "stop"
    assert eos not in first.token_ids[:-1]
    ignored = GenerationParams(temperature=0.0, ignore_eos=True)
    assert tokens_of(engine, [PROMPTS[0]], ignored) == [greedy(expert, PROMPTS[0], 16)]
    later = GenerationParams(temperature=0.0, min_tokens=10)
    tokens = tokens_of(engine, [PROMPTS[0]], later)[0]
    assert eos not in tokens[:10]
    assert len(tokens) >= 10


def test_training_mode_is_left_as_it_was_and_changes_nothing(expert: TransformerWrapper) -> None:
    model = make_model(1, emb_dropout=0.5).train()
    model.layers.sublayers[0].eval()
    modes = [m.training for m in model.modules()]
    found = tokens_of(Engine(model), PROMPTS, GenerationParams(temperature=0.0))
    assert [m.training for m in model.modules()] == modes
    assert found == tokens_of(Engine(expert), PROMPTS, GenerationParams(temperature=0.0))


def test_a_full_queue_says_so_and_an_aborted_request_leaves_nothing(
    expert: TransformerWrapper,
) -> None:
    engine = Engine(expert, config=EngineConfig(max_waiting=2, max_sequences=2))
    engine.add([1], GenerationParams(), request_id="a")
    engine.add([1], GenerationParams())
    with pytest.raises(QueueFull, match="max_waiting"):
        engine.add([1], GenerationParams())
    engine.step()
    assert engine.abort("a")
    assert not engine.abort("a")
    while engine.has_work:
        assert all(o.request_id != "a" for o in engine.step())
    assert len(engine.pool.free_pages) == engine.pool.num_pages
    assert engine.step() == []


@pytest.mark.parametrize(
    ("prompt", "params", "named"),
    [
        ([], {}, "prompt"),
        ([VOCABULARY], {}, "vocabulary"),
        ([-1], {}, "vocabulary"),
        ([1] * 60, {"max_tokens": 5}, "max_tokens"),
        ([1], {"contrastive": ContrastiveParams()}, "amateur"),
        ([1], {"stop": ("x",)}, "tokenizer"),
        ([1], {"n": 9}, "max_sequences"),
        ([1], {"num_beams": 9}, "max_sequences"),
        ([1], {"stop_token_ids": (VOCABULARY,)}, "stop_token_ids"),
        ([1], {"logit_bias": {VOCABULARY: 1.0}}, "logit_bias"),
        ([1], {"n": 4, "max_tokens": 40}, "pool"),
    ],
)
def test_what_can_not_be_honoured_is_refused_before_it_runs(
    expert: TransformerWrapper, prompt: list[int], params: dict[str, Any], named: str
) -> None:
    engine = Engine(expert, config=EngineConfig(page_tokens=8, pool_tokens=128))
    with pytest.raises(ConfigError, match=named):
        engine.add(prompt, GenerationParams(**params))
    assert not engine.has_work


def test_a_model_that_reads_a_condition_is_refused() -> None:
    with pytest.raises(ConfigError, match="condition"):
        Engine(make_model(1, norm=AdaptiveRMSNormConfig(dim_condition=8)))


def test_a_bound_on_sequences_sizes_the_pool_and_refuses_longer_ones(
    expert: TransformerWrapper,
) -> None:
    engine = Engine(expert, config=EngineConfig(max_sequence_tokens=10, max_sequences=3))
    assert engine.pool.num_pages * engine.pool.page_tokens == 30
    engine.add([1] * 5, GenerationParams(max_tokens=5))
    with pytest.raises(ConfigError, match="limit of 10"):
        engine.add([1] * 5, GenerationParams(max_tokens=6))
    with pytest.raises(ConfigError, match="limit of 64"):
        Engine(expert).add([1] * 5, GenerationParams(max_tokens=60))
