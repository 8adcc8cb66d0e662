from __future__ import annotations

from typing import Any

import pytest
from decode_double import Double
from decode_models import contrastive_logprobs, greedy, make_model

from xtdist.decode import ContrastiveParams, Engine, EngineConfig, GenerationParams
from xtdist.nn.attention.config import AttentionConfig

WHY = "recycled layers read the logits of the step before;"
PROMPTS = ([1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11], [12, 13])


def tokens_of(engine: Engine, params: GenerationParams) -> list[tuple[int, ...]]:
    found = [c.token_ids for r in engine.generate(list(PROMPTS), params) for c in r.choices]
    assert len(engine.pool.free_pages) == engine.pool.num_pages
    return found


def test_the_engine_says_why_it_recomputes_and_reads_whole_sequences() -> None:
    model = Double(1, refused=WHY).eval()
    engine = Engine(model)
    assert engine.recomputes == WHY
    params = GenerationParams(max_tokens=20, temperature=0.0)
    found = tokens_of(engine, params)
    assert sorted(model.lengths) == sorted(len(p) + i for p in PROMPTS for i in range(20))
    assert found == [greedy(model, prompt, 20) for prompt in PROMPTS]
    assert not engine.pool.stores[0].layers


def test_a_cached_model_recomputes_nothing() -> None:
    model = Double(1).eval()
    engine = Engine(model, config=EngineConfig(max_step_tokens=64))
    assert engine.recomputes == ""
    engine.generate([[1, 2, 3]], GenerationParams(max_tokens=5))
    assert model.lengths == [3, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "params",
    [
        GenerationParams(max_tokens=20, seed=5),
        GenerationParams(max_tokens=20, seed=5, n=3, top_p=0.9, repetition_penalty=1.2),
        GenerationParams(max_tokens=12, num_beams=3, n=3, length_penalty=0.5),
    ],
)
def test_samples_and_beams_equal_those_with_a_cache(params: GenerationParams) -> None:
    tight = EngineConfig(page_tokens=2, pool_tokens=90, max_step_tokens=9, max_sequences=4)
    refused = Engine(Double(2, refused=WHY).eval(), eos_ids=(3,), config=tight)
    cached = Engine(Double(2).eval(), eos_ids=(3,))
    assert tokens_of(refused, params) == tokens_of(cached, params)


@pytest.mark.parametrize(("expert_refused", "amateur_refused"), [(WHY, ""), ("", WHY), (WHY, WHY)])
@pytest.mark.parametrize("beams", [1, 3])
def test_contrast_does_not_depend_on_which_model_is_cached(
    expert_refused: str, amateur_refused: str, beams: int
) -> None:
    setting = ContrastiveParams(alpha=0.05)
    params = GenerationParams(max_tokens=9, temperature=0.0, num_beams=beams, contrastive=setting)
    models = [
        Double(3, refused=expert_refused, window=7).eval(),
        Double(4, refused=amateur_refused).eval(),
    ]
    engine = Engine(models[0], amateur=models[1])
    assert engine.recomputes == WHY
    found = tokens_of(engine, params)
    cached = Engine(Double(3, window=7).eval(), amateur=Double(4).eval())
    assert found == tokens_of(cached, params)
    if beams == 1:
        tokens = list(PROMPTS[0])
        for _ in range(9):
            tokens.append(int(contrastive_logprobs(tuple(models), tokens, setting).argmax()))  # type: ignore[arg-type]
        assert found[0] == tuple(tokens[len(PROMPTS[0]) :])


def test_training_mode_is_left_as_it_was() -> None:
    model = Double(1, refused=WHY).train()
    Engine(model).generate([[1]], GenerationParams(max_tokens=2))
    assert model.training


@pytest.mark.parametrize(
    "overrides", [{"attention": AttentionConfig(dim_head=8, selective=True)}, {"shift_tokens": 1}]
)
def test_options_that_no_cache_can_hold_are_named(overrides: dict[str, Any]) -> None:
    model = make_model(3, **overrides)
    engine = Engine(model)
    assert len(engine.recomputes) > 10
    params = GenerationParams(max_tokens=12, temperature=0.0)
    assert tokens_of(engine, params) == [greedy(model, prompt, 12) for prompt in PROMPTS]
