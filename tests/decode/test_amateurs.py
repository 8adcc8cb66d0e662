from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from decode_double import VOCABULARY, Double
from torch import nn
from x_transformers.autoregressive_wrapper import contrastive_decode_fn

from xtdist.config import ConfigError
from xtdist.decode import ContrastiveParams, Engine, EngineConfig, GenerationParams

PROMPTS = ([1, 2, 3, 4], [5], [20, 21, 22])
BOTH = (ContrastiveParams(alpha=0.02, beta=0.4), ContrastiveParams(alpha=0.1, beta=0.9))


def models(count: int = 3) -> list[Double]:
    return [Double(seed, depth=2 if seed == 1 else 1).eval() for seed in range(1, 1 + count)]


def engine_of(expert: Double, *amateurs: Double, **config: int) -> Engine:
    return Engine(expert, amateur=amateurs, config=EngineConfig(**config))


@torch.no_grad()
def logits_of(model: Double, tokens: Sequence[int]) -> torch.Tensor:
    return model(torch.tensor([list(tokens)]))[0, -1]


def theirs(
    all_models: Sequence[Double], tokens: Sequence[int], settings: Sequence[ContrastiveParams]
) -> torch.Tensor:
    """x-transformers' loop over amateurs."""
    logits = logits_of(all_models[0], tokens)
    for amateur, setting in zip(all_models[1:], settings, strict=True):
        weaker = logits_of(amateur, tokens)
        logits = contrastive_decode_fn(logits, weaker, alpha=setting.alpha, beta=setting.beta)
    return logits


@pytest.mark.parametrize("refused", [(), (1,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("page_tokens", [0, 3])
def test_several_amateurs_in_order_equal_x_transformers(
    page_tokens: int, refused: Sequence[int]
) -> None:
    all_models = models()
    for i in refused:
        all_models[i].refused = "no cache;"
    engine = engine_of(*all_models, page_tokens=page_tokens, max_step_tokens=8)
    params = GenerationParams(max_tokens=12, temperature=0.0, contrastive=BOTH)
    for prompt, completion in zip(PROMPTS, engine.generate(list(PROMPTS), params), strict=True):
        tokens = list(prompt)
        for _ in range(12):
            tokens.append(int(theirs(all_models, tokens, BOTH).argmax()))
        assert completion.choices[0].token_ids == tuple(tokens[len(prompt) :])
    assert len(engine.pool.free_pages) == engine.pool.num_pages


def test_draws_come_from_what_the_last_contrast_left() -> None:
    all_models = models()
    engine = engine_of(*all_models, max_sequences=300)
    params = GenerationParams(max_tokens=1, seed=0, n=300, contrastive=BOTH)
    drawn = {c.token_ids[0] for c in engine.generate([[1, 2]], params)[0].choices}
    left = theirs(all_models, [1, 2], BOTH)
    likely = (left.softmax(-1) > 0.05).nonzero()[:, 0].tolist()
    possible = (left > torch.finfo(left.dtype).min / 2).nonzero()[:, 0].tolist()
    assert set(likely) <= drawn <= set(possible)
    assert len(possible) < VOCABULARY


def test_beams_sum_the_contrast_of_log_probabilities() -> None:
    all_models, prompt, length = models(), [1, 2], 2

    def scores(tokens: Sequence[int]) -> torch.Tensor:
        score = logits_of(all_models[0], tokens).log_softmax(-1)
        for amateur, setting in zip(all_models[1:], BOTH, strict=True):
            weaker = logits_of(amateur, tokens).log_softmax(-1)
            kept = score >= score.max() + math.log(setting.alpha)
            score = torch.where(
                kept, (1 + setting.beta) * score - setting.beta * weaker, -torch.inf
            )
        return score

    sums: dict[tuple[int, ...], float] = {(): 0.0}
    for _ in range(length):
        sums = {
            (*tokens, v): total + s
            for tokens, total in sums.items()
            for v, s in enumerate(scores([*prompt, *tokens]).tolist())
            if s > -math.inf
        }
    params = GenerationParams(
        max_tokens=length, num_beams=len(sums), n=3, length_penalty=0.0, contrastive=BOTH
    )
    engine = engine_of(*all_models, max_sequences=len(sums))
    found = engine.generate([prompt], params)[0].choices
    best = sorted(sums, key=lambda t: -sums[t])[:3]
    assert [c.token_ids for c in found] == best
    assert [c.score for c in found] == pytest.approx([sums[t] for t in best], abs=1e-4)


def test_a_request_runs_only_the_amateurs_that_it_reads() -> None:
    expert, first, second = models()
    engine = Engine(expert, amateur=nn.ModuleList([first, second]))
    engine.generate([[1, 2, 3]], GenerationParams(max_tokens=3))
    assert not first.lengths
    one = GenerationParams(max_tokens=3, contrastive=ContrastiveParams())
    engine.generate([[1, 2, 3]], one)
    assert first.lengths == [3, 1, 1]
    assert not second.lengths
    both = GenerationParams(max_tokens=3, contrastive=BOTH)
    names = [engine.add([4, 5], p) for p in (one, both, GenerationParams(max_tokens=3))]
    while engine.has_work:
        engine.step()
    assert first.lengths[3:] == [4, 2, 2]
    assert second.lengths == [2, 1, 1]
    assert len(names) == 3


def test_one_setting_in_a_tuple_is_that_setting() -> None:
    expert, first, second = models()
    engine = Engine(expert, amateur=[first, second])
    alone, in_tuple = (
        GenerationParams(max_tokens=9, seed=1, contrastive=c) for c in (BOTH[0], BOTH[:1])
    )
    assert engine.generate(list(PROMPTS), alone) == engine.generate(list(PROMPTS), in_tuple)
    assert engine.generate(list(PROMPTS), alone) == Engine(expert, amateur=first).generate(
        list(PROMPTS), alone
    )


def test_amateurs_that_are_missing_or_speak_otherwise_are_named() -> None:
    expert, first, second = models()
    with pytest.raises(ConfigError, match="contrastive: got parameters for 2 amateurs, 1 are"):
        Engine(expert, amateur=first).add([1], GenerationParams(contrastive=BOTH))
    second.config.num_tokens = VOCABULARY + 1
    with pytest.raises(ConfigError, match="amateur 1: its vocabulary"):
        Engine(expert, amateur=(first, second))
