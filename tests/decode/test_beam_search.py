from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from decode_llama import HALVES, llama
from decode_models import greedy, make_model, next_logits
from transformers import GenerationConfig

from xtdist.config import ConfigError
from xtdist.decode import Completion, ContrastiveParams, Engine, EngineConfig, GenerationParams
from xtdist.decode.beam import BeamSearch
from xtdist.decode.scheduler import Scheduler
from xtdist.model import TransformerWrapper

PROMPTS = [[1, 2, 3, 4, 5], [7], [9, 8, 30, 31]]
EOS = (3, 17, 29)


@pytest.fixture(scope="module")
def expert() -> TransformerWrapper:
    return make_model(1, position=HALVES)


@pytest.fixture(scope="module")
def peer(expert: TransformerWrapper) -> Any:
    return llama(expert)


def by_transformers(
    peer: Any, prompt: list[int], params: GenerationParams, eos: tuple[int, ...]
) -> list[tuple[tuple[int, ...], float]]:
    """(tokens, score) of all beams by transformers' own beam search, with its own cache."""
    beams = params.num_beams > 1
    config = GenerationConfig(
        num_beams=params.num_beams,
        num_return_sequences=params.n,
        max_new_tokens=params.max_tokens,
        min_new_tokens=params.min_tokens or None,
        length_penalty=params.length_penalty if beams else None,
        early_stopping=params.early_stopping or False,
        repetition_penalty=params.repetition_penalty,
        sequence_bias={(token,): bias for token, bias in params.logit_bias.items()} or None,
        bad_words_ids=[list(word) for word in params.bad_words] or None,
        eos_token_id=list(eos) or None,
        pad_token_id=0,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    ids = torch.tensor([prompt])
    result = peer.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    scores = result.sequences_scores if beams else [math.nan]
    found = []
    for row, score in zip(result.sequences, scores, strict=True):
        tokens = row[len(prompt) :].tolist()
        ends = [i for i, t in enumerate(tokens) if t in eos]
        found.append((tuple(tokens[: ends[0] + 1] if ends else tokens), float(score)))
    return found


def agree(completion: Completion, expected: list[tuple[tuple[int, ...], float]]) -> None:
    """The same sequences with the same scores in the same order."""
    assert [c.token_ids for c in completion.choices] == [tokens for tokens, _ in expected]
    scores = [c.score for c in completion.choices]
    assert scores == pytest.approx([score for _, score in expected], rel=1e-4)


def run(
    model: TransformerWrapper,
    prompts: list[list[int]],
    params: GenerationParams,
    *,
    eos: tuple[int, ...] = (),
) -> list[Completion]:
    engine = Engine(model, eos_ids=eos, config=EngineConfig(max_sequences=params.num_beams + 2))
    completions = engine.generate(prompts, params)
    assert len(engine.pool.free_pages) == engine.pool.num_pages
    assert not any(engine.pool.references)
    return completions


@pytest.mark.parametrize("eos", [(5,), EOS])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("num_beams", [2, 4, 8])
def test_sequences_and_scores_equal_those_of_transformers(
    expert: TransformerWrapper,
    peer: Any,
    num_beams: int,
    length_penalty: float,
    early_stopping: Any,
    eos: tuple[int, ...],
) -> None:
    params = GenerationParams(
        max_tokens=9,
        num_beams=num_beams,
        n=num_beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        logit_bias=dict.fromkeys(eos, 1.0),
    )
    for prompt, completion in zip(PROMPTS, run(expert, PROMPTS, params, eos=eos), strict=True):
        agree(completion, by_transformers(peer, prompt, params, eos))


@pytest.mark.parametrize("eos", [(), (5,), EOS])
def test_one_beam_is_the_greedy_search_of_transformers(
    expert: TransformerWrapper, peer: Any, eos: tuple[int, ...]
) -> None:
    bias = dict.fromkeys(eos, 2.0)
    params = GenerationParams(max_tokens=12, num_beams=1, temperature=0.0, logit_bias=bias)
    for prompt, completion in zip(PROMPTS, run(expert, PROMPTS, params, eos=eos), strict=True):
        ((tokens, _),) = by_transformers(peer, prompt, params, eos)
        assert completion.choices[0].token_ids == tokens


@pytest.mark.parametrize("eos", [(), (5,)])
def test_a_minimum_length_penalties_and_bad_words_equal_transformers(
    expert: TransformerWrapper, peer: Any, eos: tuple[int, ...]
) -> None:
    params = GenerationParams(
        max_tokens=12,
        min_tokens=4,
        num_beams=4,
        n=4,
        repetition_penalty=1.3,
        bad_words=((30,), (5, 7), (2, 3, 4), (31, 1)),
    )
    for prompt, completion in zip(PROMPTS, run(expert, PROMPTS, params, eos=eos), strict=True):
        agree(completion, by_transformers(peer, prompt, params, eos))


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [1.0, 2.0])
def test_many_likely_ends_equal_transformers(
    expert: TransformerWrapper, peer: Any, length_penalty: float, early_stopping: Any
) -> None:
    params = GenerationParams(
        max_tokens=14,
        num_beams=3,
        n=3,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        logit_bias=dict.fromkeys(EOS, 2.5),
    )
    for prompt, completion in zip(PROMPTS, run(expert, PROMPTS, params, eos=EOS), strict=True):
        agree(completion, by_transformers(peer, prompt, params, EOS))


def test_more_beams_than_tokens_in_the_vocabulary_equal_transformers() -> None:
    model = make_model(5, num_tokens=6, position=HALVES)
    params = GenerationParams(max_tokens=5, num_beams=11, n=11)
    (completion,) = run(model, [[1, 2]], params, eos=(3,))
    agree(completion, by_transformers(llama(model), [1, 2], params, (3,)))


def test_a_beam_as_wide_as_all_sequences_finds_the_global_optimum() -> None:
    model = make_model(5, num_tokens=5)
    prompt, length = [1, 2], 3
    params = GenerationParams(max_tokens=length, num_beams=5**length, n=3, length_penalty=0.0)
    best = run(model, [prompt], params)[0].choices
    everything = {}
    for tokens in itertools.product(range(5), repeat=length):
        logprob = 0.0
        for i, token in enumerate(tokens):
            logits = next_logits(model, [*prompt, *tokens[:i]])
            logprob += float(logits.log_softmax(-1)[token])
        everything[tokens] = logprob
    expected = sorted(everything, key=lambda t: -everything[t])[:3]
    assert [c.token_ids for c in best] == expected
    assert [c.score for c in best] == pytest.approx([everything[t] for t in expected], abs=1e-5)


def test_beams_preempted_under_page_pressure_equal_beams_with_room(
    expert: TransformerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = GenerationParams(max_tokens=20, num_beams=3, n=3)
    roomy = Engine(expert, eos_ids=EOS).generate(PROMPTS, params)
    tight = EngineConfig(max_sequences=9, max_step_tokens=10, page_tokens=2, pool_tokens=80)
    engine = Engine(expert, eos_ids=EOS, config=tight)
    preempted: list[int] = []
    preempt = Scheduler._preempt
    monkeypatch.setattr(
        Scheduler, "_preempt", lambda s, r: (preempted.append(r.backlog), preempt(s, r))[1]
    )
    squeezed = engine.generate(PROMPTS, params)
    assert preempted
    for a, b in zip(roomy, squeezed, strict=True):
        assert [c.token_ids for c in a.choices] == [c.token_ids for c in b.choices]
    assert len(engine.pool.free_pages) == engine.pool.num_pages


@pytest.mark.parametrize(
    "conflict",
    [{"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}, {"logprobs": 1}, {"n": 5}],
)
def test_what_beam_search_can_not_honour_is_refused(conflict: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(conflict))):
        GenerationParams(num_beams=4, **conflict)


def test_a_search_that_finds_too_few_repeats_its_best() -> None:
    prompt, contrast = [1, 2, 3], ContrastiveParams(alpha=1.0)  # one candidate at every step
    params = GenerationParams(max_tokens=6, num_beams=4, n=4, contrastive=contrast)
    engine = Engine(make_model(0), amateur=make_model(1))
    choices = engine.generate([prompt], params)[0].choices
    assert [c.token_ids for c in choices] == [greedy(make_model(0), prompt, 6)] * 4
    assert len({c.score for c in choices}) == 1


def test_a_search_that_finds_nothing_ends_with_empty_choices() -> None:
    def nothing(tokens: Any, scores: torch.Tensor) -> torch.Tensor:
        return scores.fill_(-math.inf)

    params = GenerationParams(max_tokens=6, num_beams=3, n=2)
    (completion,) = Engine(make_model(0)).generate([[1, 2]], params, processor=nothing)
    assert [(c.token_ids, c.finish_reason, c.score) for c in completion.choices] == [
        ((), "exhausted", None)
    ] * 2


@pytest.mark.parametrize("early_stopping", [False, "never"])
@pytest.mark.parametrize("length_penalty", [-100.0, 100.0])
def test_extreme_length_penalties_keep_scores_finite(
    length_penalty: float, early_stopping: Any
) -> None:
    search = BeamSearch(2, 4096, length_penalty, early_stopping, generated=4000)
    logprobs = torch.tensor([[-0.5, -1.0, -2.0]])
    search.advance(logprobs, ends=lambda c: c.token < 2, tokens_of=lambda c: (c.token,))
    assert len(search.finished) == 2
    assert all(math.isfinite(f.score) for f in search.finished)
    assert search.finished[0].score > search.finished[1].score
