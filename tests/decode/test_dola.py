from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from decode_models import make_model

from xtdist.config import ConfigError
from xtdist.decode import Engine, GenerationParams
from xtdist.decode.dola import against_exits, exit_layers
from xtdist.model import TransformerWrapper

PROMPTS = ([1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11])
DEPTH = 6


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def by_definition(final: torch.Tensor, exits: Sequence[torch.Tensor]) -> list[float]:
    p = final.double().softmax(-1).tolist()
    early = [e.double().softmax(-1).tolist() for e in exits]

    def divergence(q: list[float]) -> float:
        m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        return (kl(p, m) + kl(q, m)) / 2

    q = max(early, key=divergence)
    return [math.log(a / b) if a >= 0.1 * max(p) else -math.inf for a, b in zip(p, q, strict=True)]


def cut(model: TransformerWrapper, layers: int) -> TransformerWrapper:
    """The first layers of ``model`` with its final norm and head."""
    short = make_model(0, depth=layers).double()
    ours = model.state_dict()
    short.load_state_dict({name: ours[name] for name in short.state_dict()})
    return short


@pytest.fixture(scope="module")
def model() -> TransformerWrapper:
    return make_model(1, depth=DEPTH).double()


def test_scores_follow_the_definition_row_by_row() -> None:
    generator = torch.Generator().manual_seed(0)
    final, *exits = torch.randn(4, 5, 30, generator=generator) * 2
    found = against_exits(final, exits)
    for i in range(5):
        expected = by_definition(final[i], [e[i] for e in exits])
        assert found[i].tolist() == pytest.approx(expected, abs=1e-4)


def test_a_forbidden_token_stays_forbidden() -> None:
    final, early = torch.zeros(2, 1, 4)
    final[0, 1] = -math.inf
    found = against_exits(final, [early])
    assert found.isneginf().tolist() == [[False, True, False, False]]
    nothing = against_exits(torch.full((1, 4), -math.inf), [early])
    assert nothing.isneginf().all()


@pytest.mark.parametrize("dola", ["low", "high", (1, 4), (5,)])
def test_greedy_equals_models_that_end_early(model: TransformerWrapper, dola: Any) -> None:
    layers: tuple[int, ...] = (
        {"low": (2,), "high": (3, 5)}[dola] if dola in ("low", "high") else dola
    )
    exits = [cut(model, n) for n in layers]
    engine = Engine(model)
    params = GenerationParams(max_tokens=8, temperature=0.0, dola=dola)
    for prompt, completion in zip(PROMPTS, engine.generate(list(PROMPTS), params), strict=True):
        tokens = list(prompt)
        for _ in range(8):
            with torch.no_grad():
                final, *early = (m(torch.tensor([tokens]))[0, -1] for m in (model, *exits))
            scores = by_definition(final, early)
            tokens.append(max(range(len(scores)), key=lambda v: scores[v]))
        assert completion.choices[0].token_ids == tuple(tokens[len(prompt) :])
    assert len(engine.pool.free_pages) == engine.pool.num_pages


@pytest.mark.parametrize(
    "params",
    [
        GenerationParams(max_tokens=8, seed=2, n=2, dola="high"),
        GenerationParams(max_tokens=8, num_beams=3, dola="high"),
    ],
)
def test_samples_and_beams_do_not_depend_on_the_cache(params: GenerationParams) -> None:
    model = make_model(1, depth=4).double()
    cached = Engine(model).generate(list(PROMPTS), params)
    plain = GenerationParams(max_tokens=8, seed=2, n=params.n, num_beams=params.num_beams)
    assert cached != Engine(model).generate(list(PROMPTS), plain)
    spec = model.cache_spec()
    model.cache_spec = lambda: type(spec)(layers=spec.layers, refused="no;")  # type: ignore[method-assign]
    recomputed = Engine(model).generate(list(PROMPTS), params)
    for a, b in zip(cached, recomputed, strict=True):
        assert [c.token_ids for c in a.choices] == [c.token_ids for c in b.choices]


def test_drafts_change_no_token(model: TransformerWrapper) -> None:
    amateur = cut(model, 5)
    engine = Engine(model, amateur=amateur)
    plain, drafted = (
        GenerationParams(max_tokens=12, seed=4, dola="low", draft_tokens=k) for k in (0, 3)
    )
    assert engine.generate(list(PROMPTS), drafted) == engine.generate(list(PROMPTS), plain)
    assert engine.drafts.accepted


def test_layers_that_are_not_there_are_named(model: TransformerWrapper) -> None:
    assert exit_layers("low", make_model(0, depth=2)) == (1,)
    assert exit_layers("high", make_model(0, depth=2)) == (1,)
    for wrong in (0, DEPTH):
        with pytest.raises(ConfigError, match=f"layer {wrong}; .*1 to {DEPTH - 1}"):
            Engine(model).add([1], GenerationParams(dola=(1, wrong)))
    with pytest.raises(ConfigError, match="none before the last"):
        Engine(make_model(0, depth=1)).add([1], GenerationParams(dola="low"))
