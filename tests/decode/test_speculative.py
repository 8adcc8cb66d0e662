from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from decode_double import VOCABULARY, Double

from xtdist.config import ConfigError
from xtdist.decode import ContrastiveParams, Engine, EngineConfig, GenerationParams

PROMPTS = ([1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11])
WHY = "no cache here;"
ROOMY = EngineConfig(max_sequences=16)
TIGHT = EngineConfig(page_tokens=2, pool_tokens=100, max_step_tokens=9, max_sequences=4)
CHUNKED = EngineConfig(page_tokens=3, max_step_tokens=5, max_sequences=5)
GREEDY = GenerationParams(max_tokens=25, temperature=0.0)
SAMPLED = GenerationParams(max_tokens=25, seed=3, temperature=0.9)
WAYS = {
    "greedy": GREEDY,
    "sampled": SAMPLED,
    "filtered": dataclasses.replace(SAMPLED, top_k=9, top_p=0.9, min_p=0.02),
    "typical": dataclasses.replace(SAMPLED, typical_p=0.8, top_a=0.1, temperature_last=True),
    "forked": dataclasses.replace(SAMPLED, n=3),
    "penalised": dataclasses.replace(
        SAMPLED, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.3
    ),
    "steered": dataclasses.replace(
        GREEDY, logit_bias={3: 2.0}, bad_words=((5,), (7, 9)), min_tokens=4, stop_token_ids=(2,)
    ),
    "short": dataclasses.replace(SAMPLED, max_tokens=2),
    "single": dataclasses.replace(SAMPLED, max_tokens=1),
    "contrastive": dataclasses.replace(SAMPLED, contrastive=ContrastiveParams(alpha=0.05)),
}


def pair(**options: Any) -> tuple[Double, Double]:
    """An expert, and an amateur that often says the same."""
    expert = Double(1, **options).eval()
    amateur = Double(1, **options).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in amateur.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.03)
    return expert, amateur


def everything(engine: Engine, params: GenerationParams) -> list[Any]:
    """All that comes of the prompts, with all pages given back."""
    found = engine.generate(list(PROMPTS), params)
    assert len(engine.pool.free_pages) == engine.pool.num_pages
    assert not any(engine.pool.references)
    return found


@pytest.mark.parametrize(("config", "draft_tokens"), [(ROOMY, 4), (TIGHT, 4), (CHUNKED, 1)])
@pytest.mark.parametrize("way", WAYS)
def test_drafts_change_no_token(way: str, draft_tokens: int, config: EngineConfig) -> None:
    expert, amateur = pair()
    params = dataclasses.replace(WAYS[way], logprobs=2)
    drafted = dataclasses.replace(params, draft_tokens=draft_tokens)
    plain = everything(Engine(expert, amateur=amateur, eos_ids=(4,), config=ROOMY), params)
    engine = Engine(expert, amateur=amateur, eos_ids=(4,), config=config)
    found = everything(engine, drafted)
    for a, b in zip(found, plain, strict=True):
        for mine, theirs in zip(a.choices, b.choices, strict=True):
            assert mine.token_ids == theirs.token_ids
            assert mine.finish_reason == theirs.finish_reason
            assert [x.logprob for x in mine.logprobs] == pytest.approx(
                [x.logprob for x in theirs.logprobs], abs=1e-5
            )
    if params.max_tokens > 2 and config is ROOMY:
        assert 0 < engine.drafts.accepted < engine.drafts.drafted
    if params.max_tokens == 1:
        assert not engine.drafts.drafted


def test_preempted_drafts_come_to_the_same_end() -> None:
    expert, amateur = pair()
    drafted = dataclasses.replace(SAMPLED, draft_tokens=5)
    config = EngineConfig(page_tokens=2, pool_tokens=48, max_sequences=4)
    engine = Engine(expert, amateur=amateur, config=config)
    preempted = []
    original = engine.scheduler._preempt

    def watched(request: Any) -> None:
        preempted.append(request.id)
        original(request)

    engine.scheduler._preempt = watched  # type: ignore[method-assign]
    assert everything(engine, drafted) == everything(Engine(expert), SAMPLED)
    assert preempted
    assert engine.drafts.accepted


@pytest.mark.parametrize("window", [0, 3, 9])
@pytest.mark.parametrize("way", ["greedy", "forked"])
def test_drafts_fit_into_windows(way: str, window: int) -> None:
    expert, amateur = pair(window=window)
    drafted = dataclasses.replace(WAYS[way], draft_tokens=4)
    config = EngineConfig(page_tokens=2, max_step_tokens=9, max_sequences=4)
    engine = Engine(expert, amateur=amateur, config=config)
    assert everything(engine, drafted) == everything(Engine(expert), WAYS[way])
    assert engine.drafts.accepted


@pytest.mark.parametrize(("expert_refused", "amateur_refused"), [(WHY, ""), ("", WHY), (WHY, WHY)])
@pytest.mark.parametrize("way", ["greedy", "contrastive"])
def test_drafts_do_not_depend_on_which_model_is_cached(
    way: str, expert_refused: str, amateur_refused: str
) -> None:
    expert, amateur = pair()
    plain = everything(Engine(expert, amateur=amateur), WAYS[way])
    expert.refused, amateur.refused = expert_refused, amateur_refused
    engine = Engine(expert, amateur=amateur)
    assert engine.recomputes == WHY
    drafted = dataclasses.replace(WAYS[way], draft_tokens=3)
    assert everything(engine, drafted) == plain


def test_an_amateur_equal_to_the_expert_saves_passes_of_the_expert() -> None:
    expert, amateur = Double(1).eval(), Double(1).eval()
    engine = Engine(expert, amateur=amateur)
    params = dataclasses.replace(SAMPLED, draft_tokens=4)
    found = engine.generate([PROMPTS[0]], params)
    assert expert.lengths == [7 + 4, 5, 5, 5, 5]
    assert amateur.lengths == [7, *[1] * 4, *[1, 1, 1, 1, 1] * 4]
    assert engine.drafts.accepted == engine.drafts.drafted == 20
    assert found == Engine(Double(1).eval()).generate([PROMPTS[0]], SAMPLED)


def test_an_amateur_that_is_always_wrong_costs_one_pass_for_each_token() -> None:
    expert, amateur = Double(1).eval(), Double(1).eval()
    with torch.no_grad():
        amateur.tokens.neg_()
    engine = Engine(expert, amateur=amateur)
    params = dataclasses.replace(GREEDY, draft_tokens=3)
    found = engine.generate([PROMPTS[0]], params)
    assert found == Engine(Double(1).eval()).generate([PROMPTS[0]], GREEDY)
    assert len(expert.lengths) == 25 - engine.drafts.accepted


def test_a_batch_shares_the_budget_and_nobody_waits_for_drafts_of_others() -> None:
    expert, amateur = pair()
    config = EngineConfig(max_step_tokens=4, max_sequences=4)
    engine = Engine(expert, amateur=amateur, config=config)
    params = dataclasses.replace(SAMPLED, draft_tokens=8)
    names = [engine.add([5], params) for _ in range(4)]
    engine.step()
    assert {o.request_id for o in engine.step()} == set(names)
    while engine.has_work:
        engine.step()
    assert len(engine.pool.free_pages) == engine.pool.num_pages


class Letters:
    """Ids are letters."""

    vocab_size = VOCABULARY

    def token_bytes(self, token_id: int, /) -> bytes:
        return bytes([97 + token_id])


def test_stop_strings_cut_accepted_drafts() -> None:
    expert, amateur = pair()
    for model in (amateur, expert):
        free = Engine(expert, tokenizer=Letters()).generate([PROMPTS[0]], GREEDY)[0].choices[0]
        for at in (2, 7, 12):
            params = dataclasses.replace(GREEDY, stop=(free.text[at : at + 3],))
            plain = Engine(expert, tokenizer=Letters()).generate([PROMPTS[0]], params)
            engine = Engine(expert, amateur=model, tokenizer=Letters())
            drafted = dataclasses.replace(params, draft_tokens=6)
            assert engine.generate([PROMPTS[0]], drafted) == plain
            assert len(engine.pool.free_pages) == engine.pool.num_pages


def test_processors_see_the_drafts_before_them() -> None:
    expert, amateur = pair()
    asked: list[tuple[int, ...]] = []

    def never_twice(tokens: Sequence[int], scores: torch.Tensor) -> torch.Tensor:
        asked.append(tuple(tokens))
        scores[list(set(tokens))] = -torch.inf
        return scores

    params = dataclasses.replace(SAMPLED, max_tokens=20)
    plain = Engine(expert).generate(list(PROMPTS), params, processor=never_twice)
    assert all(len(set(c.choices[0].token_ids)) == 20 for c in plain)
    engine = Engine(expert, amateur=amateur)
    drafted = dataclasses.replace(params, draft_tokens=3)
    assert engine.generate(list(PROMPTS), drafted, processor=never_twice) == plain
    assert engine.drafts.accepted
    assert all(len(set(tokens)) == len(tokens) for tokens in asked)


def test_a_first_amateur_drafts_and_a_second_one_is_contrasted_with() -> None:
    expert, amateur = pair()
    other = Double(5, depth=1).eval()
    both = (ContrastiveParams(alpha=0.02, beta=0.2), ContrastiveParams(alpha=0.1, beta=0.7))
    params = dataclasses.replace(SAMPLED, contrastive=both)
    drafted = dataclasses.replace(params, draft_tokens=4)
    engine = Engine(expert, amateur=(amateur, other))
    plain = everything(Engine(expert, amateur=(amateur, other)), params)
    assert everything(engine, drafted) == plain
    assert engine.drafts.accepted


def test_the_tokens_follow_the_exact_distribution() -> None:
    expert, amateur = pair()
    with torch.no_grad():
        for model in (expert, amateur):
            model.tokens.mul_(0.7)
    engine = Engine(expert, amateur=amateur, config=EngineConfig(max_sequences=256))
    params = GenerationParams(max_tokens=2, top_k=4, draft_tokens=1)
    counts: dict[tuple[int, ...], int] = {}
    draws = 6_000
    ids = [[3, 4, 5]] * draws
    for seed in range(0, draws, 2_000):
        names: dict[str, tuple[int, ...]] = {}
        for i in range(seed, seed + 2_000):
            if len(engine.scheduler.waiting) >= engine.config.max_waiting:
                for output in engine.step():
                    names[output.request_id] = (*names[output.request_id], *output.token_ids)
            names[engine.add(ids[i], dataclasses.replace(params, seed=i))] = ()
        while engine.has_work:
            for output in engine.step():
                names[output.request_id] = (*names[output.request_id], *output.token_ids)
        for tokens in names.values():
            counts[tokens] = counts.get(tokens, 0) + 1
    assert 0.2 < engine.drafts.accepted / engine.drafts.drafted < 0.98

    def kept(tokens: list[int]) -> dict[int, float]:
        with torch.no_grad():
            p, best = expert(torch.tensor([tokens]))[0, -1].softmax(-1).topk(4)
        return dict(zip(best.tolist(), (p / p.sum()).tolist(), strict=True))

    exact = {
        (a, b): p * q for a, p in kept([3, 4, 5]).items() for b, q in kept([3, 4, 5, a]).items()
    }
    assert set(counts) <= set(exact)
    chi_square = sum((counts.get(t, 0) - draws * p) ** 2 / (draws * p) for t, p in exact.items())
    assert chi_square < 44.3  # 15 degrees of freedom, one in 10,000


@pytest.mark.parametrize("params", [{"draft_tokens": 2}, {"contrastive": ContrastiveParams()}])
def test_without_an_amateur_there_is_nobody_to_draft(params: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(params))}: no amateur"):
        Engine(Double(1).eval()).add([1], GenerationParams(**params))


@pytest.mark.parametrize("other", [{"num_beams": 2}, {"penalty_alpha": 0.5, "top_k": 4}])
def test_beams_and_contrastive_search_take_no_drafts(other: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="draft_tokens"):
        GenerationParams(draft_tokens=2, **other)
