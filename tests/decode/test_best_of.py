from __future__ import annotations

import pytest
from decode_models import next_logits

from xtdist.decode import Engine, EngineConfig, GenerationParams
from xtdist.model import TransformerWrapper

EOS = (14, 3)
PROMPT = [1, 2, 3]


def test_the_best_by_mean_log_probability_are_given(expert: TransformerWrapper) -> None:
    everything = GenerationParams(max_tokens=12, n=6, seed=4, logprobs=2)
    best = GenerationParams(max_tokens=12, n=2, best_of=6, seed=4, logprobs=2)
    plain = GenerationParams(max_tokens=12, n=2, best_of=6, seed=4)
    engine = Engine(expert, eos_ids=EOS)
    drawn = engine.generate([PROMPT], everything)[0].choices
    assert len({c.token_ids for c in drawn}) == 6
    assert len({len(c.token_ids) for c in drawn}) > 1

    def mean(choice: object) -> float:
        values = []
        for i, token in enumerate(choice.token_ids):  # type: ignore[attr-defined]
            logits = next_logits(expert, [*PROMPT, *choice.token_ids[:i]])  # type: ignore[attr-defined]
            values.append(float(logits.log_softmax(-1)[token]))
        return sum(values) / len(values)

    expected = sorted(drawn, key=lambda c: -mean(c))[:2]
    assert engine.generate([PROMPT], best)[0].choices == tuple(expected)
    (without,) = engine.generate([PROMPT], plain)
    assert [c.token_ids for c in without.choices] == [c.token_ids for c in expected]
    assert not any(c.logprobs for c in without.choices)
    assert len(engine.pool.free_pages) == engine.pool.num_pages


def test_nothing_comes_before_all_have_ended_and_others_still_stream(
    expert: TransformerWrapper,
) -> None:
    engine = Engine(expert, config=EngineConfig(max_sequences=8))
    ranked = engine.add(PROMPT, GenerationParams(max_tokens=5, n=2, best_of=3, seed=1))
    other = engine.add(PROMPT, GenerationParams(max_tokens=9, seed=2))
    steps = []
    while engine.has_work:
        steps.append([(o.request_id, o.index) for o in engine.step()])
    shown = [i for i, step in enumerate(steps) if any(name == ranked for name, _ in step)]
    assert shown == [4]
    assert [x for x in steps[4] if x[0] == ranked] == [(ranked, 0), (ranked, 1)]
    assert sum((other, 0) in step for step in steps) == 9


def test_best_of_does_not_depend_on_company_or_preemption(expert: TransformerWrapper) -> None:
    params = GenerationParams(max_tokens=20, n=2, best_of=3, seed=3)
    prompts = [[5], [6, 7], [8, 9, 10]]
    alone = [Engine(expert).generate([p], params)[0] for p in prompts]
    tight = EngineConfig(max_sequences=9, max_step_tokens=10, page_tokens=2, pool_tokens=80)
    together = Engine(expert, config=tight).generate(prompts, params)
    for a, b in zip(alone, together, strict=True):
        assert [c.token_ids for c in a.choices] == [c.token_ids for c in b.choices]


@pytest.mark.parametrize("n", [1, 3])
def test_logprobs_of_every_choice_are_the_models_own(expert: TransformerWrapper, n: int) -> None:
    params = GenerationParams(
        max_tokens=6, n=n, seed=5, logprobs=3, temperature=0.5, top_k=4, bad_words=((9,),)
    )
    (completion,) = Engine(expert).generate([PROMPT], params)
    assert len(completion.choices) == n
    for choice in completion.choices:
        assert [x.token_id for x in choice.logprobs] == list(choice.token_ids)
        for i, x in enumerate(choice.logprobs):
            row = next_logits(expert, [*PROMPT, *choice.token_ids[:i]]).log_softmax(-1)
            values, ids = row.topk(3)
            assert x.logprob == pytest.approx(float(row[x.token_id]), abs=1e-4)
            assert [t for t, _ in x.top] == ids.tolist()
            assert [v for _, v in x.top] == pytest.approx(values.tolist(), abs=1e-4)
