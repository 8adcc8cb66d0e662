from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from decode_models import make_model

from xtdist.config import ConfigError
from xtdist.decode import Engine, EngineConfig, GenerationParams
from xtdist.decode.contrastive_search import Candidate, Search
from xtdist.model import TransformerWrapper

PROMPTS = ([1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11])
SEARCH = GenerationParams(max_tokens=12, top_k=4, penalty_alpha=0.6)


@pytest.fixture(scope="module")
def model() -> TransformerWrapper:
    return make_model(1).double()


@torch.no_grad()
def reference(
    model: TransformerWrapper, prompt: Sequence[int], params: GenerationParams
) -> tuple[int, ...]:
    """The definition, without a cache: every candidate in a forward pass of its own."""
    tokens = list(prompt)
    for _ in range(params.max_tokens):
        p = model(torch.tensor([tokens]))[0, -1].softmax(-1)
        scores = {}
        for v in p.argsort(descending=True)[: params.top_k].tolist():
            *before, own = model.hidden(torch.tensor([[*tokens, v]]))[0]
            likeness = max(float(torch.cosine_similarity(own, h, dim=0)) for h in before)
            a = params.penalty_alpha
            scores[v] = (1 - a) * float(p[v]) - a * likeness
        tokens.append(max(scores, key=lambda v: scores[v]))
    return tuple(tokens[len(prompt) :])


def tokens_of(engine: Engine, params: GenerationParams) -> list[tuple[int, ...]]:
    found = [c.choices[0].token_ids for c in engine.generate(list(PROMPTS), params)]
    assert len(engine.pool.free_pages) == engine.pool.num_pages
    return found


@pytest.mark.parametrize("penalty_alpha", [0.3, 0.6, 1.0])
def test_forks_with_a_cache_equal_the_definition_without(
    model: TransformerWrapper, penalty_alpha: float
) -> None:
    params = dataclasses.replace(SEARCH, penalty_alpha=penalty_alpha)
    expected = [reference(model, prompt, params) for prompt in PROMPTS]
    assert tokens_of(Engine(model), params) == expected
    chunks = EngineConfig(page_tokens=3, max_step_tokens=9, max_sequences=9)
    assert tokens_of(Engine(model, config=chunks), params) == expected


def test_a_model_without_a_cache_is_searched_too() -> None:
    model = make_model(3, shift_tokens=1).double()
    engine = Engine(model)
    assert engine.recomputes
    assert tokens_of(engine, SEARCH) == [reference(model, prompt, SEARCH) for prompt in PROMPTS]


def test_preempted_searches_compute_their_hidden_states_again(model: TransformerWrapper) -> None:
    config = EngineConfig(page_tokens=2, pool_tokens=90, max_sequences=24)
    engine = Engine(model, config=config)
    preempted = []
    original = engine.scheduler._preempt

    def watched(request: Any) -> None:
        preempted.append(len(request.sequences))
        original(request)

    engine.scheduler._preempt = watched  # type: ignore[method-assign]
    prompts = [[i, *PROMPTS[0]] for i in range(6)]
    found = engine.generate(prompts, SEARCH)
    assert found == Engine(model).generate(prompts, SEARCH)
    assert 4 in preempted
    assert len(engine.pool.free_pages) == engine.pool.num_pages


@torch.no_grad()
def test_the_choice_is_that_of_the_definition_in_transformers() -> None:
    generator = torch.Generator().manual_seed(0)
    for alpha in (0.1, 0.5, 0.9):
        for _ in range(20):
            context = torch.randn(9, 16, generator=generator)
            following = torch.randn(5, 16, generator=generator)
            top_k_probs = torch.rand(5, generator=generator)
            norm_context = context / context.norm(dim=1, keepdim=True)
            norm_following = following / following.norm(dim=1, keepdim=True)
            cosine_matrix = torch.matmul(norm_context, norm_following.T)
            degeneration_penalty, _ = torch.max(cosine_matrix, dim=0)
            scores = (1.0 - alpha) * top_k_probs - alpha * degeneration_penalty
            search = Search(alpha)
            search.see(0, context[:6])
            search.see(6, context[6:])
            search.candidates = [Candidate(i, float(p)) for i, p in enumerate(top_k_probs)]
            assert search.best(list(following)) == int(scores.argmax())


def test_almost_no_penalty_is_greedy(model: TransformerWrapper) -> None:
    params = dataclasses.replace(SEARCH, penalty_alpha=1e-9)
    greedy = GenerationParams(max_tokens=12, temperature=0.0)
    assert tokens_of(Engine(model), params) == tokens_of(Engine(model), greedy)


def test_it_ends_keeps_bans_and_reports_the_models_own_logprobs(model: TransformerWrapper) -> None:
    free = reference(model, PROMPTS[0], SEARCH)
    ended = dataclasses.replace(SEARCH, stop_token_ids=(free[5],), logprobs=2)
    engine = Engine(model, banned_ids=(39,))
    choice = engine.generate([PROMPTS[0]], ended)[0].choices[0]
    assert choice.token_ids == free[: free.index(free[5]) + 1]
    assert choice.finish_reason == "stop"
    for i, found in enumerate(choice.logprobs):
        with torch.no_grad():
            logits = model(torch.tensor([[*PROMPTS[0], *free[:i]]]))[0, -1]
        assert found.logprob == pytest.approx(float(logits.log_softmax(-1)[free[i]]), abs=1e-5)
    assert len(choice.logprobs) == len(choice.token_ids)
    banned = Engine(model, banned_ids=set(range(40)) - {3, 6}).generate([[1]], SEARCH)[0]
    assert set(banned.choices[0].token_ids) <= {3, 6}


def test_it_shares_a_batch_with_others_and_an_abort_leaves_nothing(
    model: TransformerWrapper,
) -> None:
    drawn = GenerationParams(max_tokens=12, seed=1)
    alone = [Engine(model).generate([[3, 4]], p)[0].choices[0].token_ids for p in (SEARCH, drawn)]
    engine = Engine(model, config=EngineConfig(max_sequences=12))
    names = [engine.add([3, 4], p) for p in (SEARCH, drawn)]
    gone = engine.add([3, 4, 5], SEARCH)
    found: dict[str, list[int]] = {name: [] for name in (*names, gone)}
    while engine.has_work:
        for output in engine.step():
            found[output.request_id] += output.token_ids
        if len(found[gone]) == 3:
            engine.abort(gone)
    assert [tuple(found[n]) for n in names] == alone
    assert len(engine.pool.free_pages) == engine.pool.num_pages


def test_more_candidates_than_sequences_may_run_are_refused(model: TransformerWrapper) -> None:
    with pytest.raises(ConfigError, match=r"top_k.*max_sequences"):
        Engine(model).add([1], dataclasses.replace(SEARCH, top_k=9))
