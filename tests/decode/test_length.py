from __future__ import annotations

from typing import Any

import pytest
from decode_models import contrastive_logprobs, greedy, make_model

from xtdist.config import ConfigError
from xtdist.decode import ContrastiveParams, Engine, EngineConfig, GenerationParams
from xtdist.decode.admission import Limits
from xtdist.nn.attention.config import AttentionConfig
from xtdist.nn.position.bias import AlibiConfig, DynamicConfig, T5Config
from xtdist.nn.position.config import LearnedConfig, NoPositionConfig, SinusoidalConfig

PROMPTS = ([1, 2, 3, 4, 5, 6, 7], [8], list(range(20)))
TRAINED, LONG = 16, 48
PARAMS = GenerationParams(max_tokens=28, temperature=0.0)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"position": NoPositionConfig()},
        {"position": SinusoidalConfig()},
        {"position": NoPositionConfig(), "position_bias": AlibiConfig()},
        {"position": NoPositionConfig(), "position_bias": T5Config()},
        {"position": NoPositionConfig(), "position_bias": DynamicConfig()},
        {"attention": AttentionConfig(dim_head=8, window=5)},
        {"shift_tokens": 1},
    ],
)
@pytest.mark.parametrize("page_tokens", [0, 4])
def test_positions_that_go_on_read_everything_before(
    overrides: dict[str, Any], page_tokens: int
) -> None:
    model = make_model(3, max_seq_len=TRAINED, **overrides)
    assert Limits.of(model, "model").longest is None
    config = EngineConfig(max_sequence_tokens=LONG, page_tokens=page_tokens, max_step_tokens=9)
    engine = Engine(model, config=config)
    assert engine.longest == LONG
    found = [c.choices[0].token_ids for c in engine.generate(list(PROMPTS), PARAMS)]
    assert found == [greedy(model, prompt, 28) for prompt in PROMPTS]
    assert len(engine.pool.free_pages) == engine.pool.num_pages
    with pytest.raises(ConfigError, match=f"limit of {LONG}"):
        engine.add([1] * 30, PARAMS)
    with pytest.raises(ConfigError, match=f"limit of {TRAINED}"):
        Engine(model).add([1], PARAMS)


def test_a_table_of_positions_ends_where_it_ends() -> None:
    model = make_model(3, max_seq_len=TRAINED, position=LearnedConfig())
    assert Limits.of(model, "model").longest == TRAINED
    with pytest.raises(ConfigError, match=f"vector for each of {TRAINED} positions"):
        Engine(model, config=EngineConfig(max_sequence_tokens=TRAINED + 1))
    Engine(model, config=EngineConfig(max_sequence_tokens=TRAINED))


def test_amateurs_go_on_with_the_expert_but_not_past_a_table_of_their_own() -> None:
    expert, amateur = make_model(3, max_seq_len=TRAINED), make_model(4, max_seq_len=8, depth=1)
    setting = ContrastiveParams()
    params = GenerationParams(max_tokens=28, temperature=0.0, contrastive=setting)
    config = EngineConfig(max_sequence_tokens=LONG)
    found = Engine(expert, amateur=amateur, config=config).generate([PROMPTS[0]], params)
    tokens = list(PROMPTS[0])
    for _ in range(28):
        tokens.append(int(contrastive_logprobs((expert, amateur), tokens, setting).argmax()))
    assert found[0].choices[0].token_ids == tuple(tokens[len(PROMPTS[0]) :])
    learned = make_model(4, max_seq_len=8, depth=1, position=LearnedConfig())
    engine = Engine(expert, amateur=learned, config=config)
    engine.add([1], PARAMS)
    with pytest.raises(ConfigError, match="limit of 8"):
        engine.add([1], params)


def test_a_bound_that_the_expert_was_made_for_does_not_lengthen_an_amateur() -> None:
    expert, amateur = make_model(3, max_seq_len=TRAINED), make_model(4, max_seq_len=8)
    engine = Engine(expert, amateur=amateur, config=EngineConfig(max_sequence_tokens=TRAINED))
    with pytest.raises(ConfigError, match="limit of 8"):
        engine.add([1] * 5, GenerationParams(max_tokens=9, contrastive=ContrastiveParams()))
