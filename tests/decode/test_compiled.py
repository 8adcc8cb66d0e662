"""Compiled decode steps give what the others give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from decode_double import Double
from decode_models import make_model

from xtdist.config import ConfigError
from xtdist.decode import ContrastiveParams, Engine, EngineConfig, GenerationParams
from xtdist.decode.compiled import CompiledStep
from xtdist.decode.step_cache import Segment
from xtdist.model import TransformerWrapper
from xtdist.nn.position.bias import AlibiConfig, T5Config
from xtdist.nn.position.config import LearnedConfig

CONFIG = EngineConfig(max_sequences=4, seed=1)
PROMPTS = [[1, 2, 3, 4], [5, 6, 7], [8, 9, 10, 11, 12]]
GREEDY = GenerationParams(max_tokens=12, temperature=0.0)


class Counting(CompiledStep):
    """Remembers how many sequences each compiled step had."""

    steps: list[int]

    def run(
        self, ids: torch.Tensor, *, pos: torch.Tensor, segments: Sequence[Segment]
    ) -> torch.Tensor:
        self.steps.append(len(segments))
        return super().run(ids, pos=pos, segments=segments)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    monkeypatch.setattr(Counting, "steps", made, raising=False)
    monkeypatch.setattr("xtdist.decode.runner.CompiledStep", Counting)
    return made


def tokens_of(
    model: TransformerWrapper,
    params: GenerationParams,
    *,
    compiled: int,
    amateur: TransformerWrapper | None = None,
    prompts: Sequence[Sequence[int]] = PROMPTS,
) -> list[tuple[int, ...]]:
    config = replace(CONFIG, compile_sequences=compiled)
    engine = Engine(model, amateur=amateur, config=config)
    completions = engine.generate(prompts, params)
    return [tuple(c.token_ids) for completion in completions for c in completion.choices]


@pytest.mark.long
def test_compiled_steps_give_the_tokens_of_plain_ones(
    expert: TransformerWrapper, steps: list[int]
) -> None:
    """Beams move between pages; of three sequences, more than are compiled, two go on longer."""
    beams = GenerationParams(max_tokens=12, num_beams=2)
    for params, prompts in ((GREEDY, PROMPTS[:2]), (beams, PROMPTS[:1]), (GREEDY, PROMPTS[:1])):
        plain = tokens_of(expert, params, compiled=0, prompts=prompts)
        assert not steps
        assert tokens_of(expert, params, compiled=2, prompts=prompts) == plain
        assert len(steps) >= 10
        assert set(steps) <= {1, 2}
        steps.clear()
    assert tokens_of(expert, GREEDY, compiled=2) == tokens_of(expert, GREEDY, compiled=0)
    assert 3 not in steps


@pytest.mark.long
def test_expert_and_amateur_never_share_a_graph(
    expert: TransformerWrapper, amateur: TransformerWrapper, steps: list[int]
) -> None:
    """Their forwards are one function: the graph of one must not run for the other."""
    params = GenerationParams(max_tokens=8, temperature=0.0, contrastive=ContrastiveParams())
    first = {"amateur": amateur, "prompts": PROMPTS[:1]}
    plain = tokens_of(expert, params, compiled=0, **first)  # type: ignore[arg-type]
    assert tokens_of(expert, params, compiled=1, **first) == plain  # type: ignore[arg-type]
    assert len(steps) >= 2 * 7


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {"position": LearnedConfig()},
        {"position_bias": T5Config()},
        {"position_bias": AlibiConfig()},
    ],
)
def test_other_positions_compile_too(options: dict[str, object], steps: list[int]) -> None:
    model = make_model(4, **options)
    plain = tokens_of(model, GREEDY, compiled=0, prompts=PROMPTS[:1])
    assert tokens_of(model, GREEDY, compiled=1, prompts=PROMPTS[:1]) == plain
    assert steps


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"page_tokens": 8}, "a page holds 8 tokens and a sequence 64"), ({}, r"install g\+\+")],
)
def test_what_never_runs_compiled_is_refused(
    expert: TransformerWrapper,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, int],
    message: str,
) -> None:
    monkeypatch.setattr("xtdist.decode.compiled._has_compiler", lambda: False)
    with pytest.raises(ConfigError, match=f"compile_sequences: .*{message}"):
        Engine(expert, config=EngineConfig(compile_sequences=1, **settings))


def test_a_model_without_a_cache_is_not_compiled() -> None:
    with pytest.raises(ConfigError, match="compile_sequences: model has no cache"):
        Engine(Double(1, refused="because."), config=EngineConfig(compile_sequences=1))
