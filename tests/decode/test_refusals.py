"""Ids, names and sizes that an engine can't honour are refused when they are given."""

from __future__ import annotations

from typing import Any

import pytest
from decode_models import VOCABULARY, make_model

from xtdist.config import ConfigError
from xtdist.decode import Engine, EngineConfig, GenerationParams, mask_predict
from xtdist.model import TransformerWrapper

PARAMS = GenerationParams(max_tokens=2, seed=1)


@pytest.mark.parametrize("field", ["eos_ids", "banned_ids"])
@pytest.mark.parametrize("wrong", [-1, VOCABULARY])
def test_ids_that_the_model_has_not_are_refused(
    expert: TransformerWrapper, field: str, wrong: int
) -> None:
    with pytest.raises(ConfigError, match=f"{field}: token id {wrong} is not in the vocabulary"):
        Engine(expert, **{field: (3, wrong)})  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [-1, VOCABULARY])
def test_so_are_those_that_masks_are_not_filled_with(wrong: int) -> None:
    import torch

    with pytest.raises(ConfigError, match="banned_ids"):
        mask_predict(
            make_model(4, causal=False), torch.tensor([[1, 5]]), mask_id=5, banned_ids=[wrong]
        )


def test_an_engine_that_may_choose_nothing_is_refused(expert: TransformerWrapper) -> None:
    with pytest.raises(ConfigError, match="no id is left"):
        Engine(expert, banned_ids=range(VOCABULARY))
    (completion,) = Engine(expert, banned_ids=range(1, VOCABULARY)).generate([[5]], PARAMS)
    assert completion.choices[0].token_ids == (0, 0)


def test_names_of_the_engine_pass_by_those_of_a_caller(expert: TransformerWrapper) -> None:
    engine = Engine(expert)
    names = [engine.add([1], PARAMS, request_id="request-1")]
    names += [engine.add([1], PARAMS) for _ in range(3)]
    assert len(set(names)) == 4
    while engine.has_work:
        engine.step()
    assert engine.add([1], PARAMS) not in names


def test_a_bound_of_the_cache_beyond_what_can_be_used_takes_no_more(
    expert: TransformerWrapper,
) -> None:
    most = Engine(expert, config=EngineConfig(page_tokens=4)).pool.num_pages
    engine = Engine(expert, config=EngineConfig(page_tokens=4, pool_tokens=10**12))
    assert engine.pool.num_pages == most


@pytest.mark.parametrize(
    "sizes",
    [
        {"max_sequence_tokens": 10**12},
        {"max_sequences": 10**16, "max_step_tokens": 10**16},
    ],
    ids=str,
)
def test_sizes_beyond_memory_are_one_clear_error(sizes: dict[str, Any]) -> None:
    model = make_model(1)
    with pytest.raises(ConfigError, match=r"memory.*lower"):
        Engine(model, config=EngineConfig(**sizes)).generate([[1]], PARAMS)
