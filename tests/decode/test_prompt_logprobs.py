"""What a model thinks of a prompt, and choices that are bounded or shown in another way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decode_models import VOCABULARY, greedy, make_model

from xtdist.config import ConfigError
from xtdist.decode import Choice, ContrastiveParams, Engine, EngineConfig, GenerationParams
from xtdist.model import TransformerWrapper

PROMPT = (5, 6, 7, 8, 9, 10, 11)


def engine(*models: TransformerWrapper, **config: Any) -> Engine:
    return Engine(
        models[0], amateur=models[1:] or None, config=EngineConfig(max_sequences=4, **config)
    )


@torch.no_grad()
def by_one_pass(model: TransformerWrapper, prompt: tuple[int, ...]) -> torch.Tensor:
    return model(torch.tensor([prompt]))[0].float().log_softmax(-1)


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"max_tokens": 0, "n": 3},
        {"max_tokens": 2, "seed": 1, "n": 2, "best_of": 3},
        {"max_tokens": 2, "num_beams": 3, "n": 2},
        {"max_tokens": 2, "penalty_alpha": 0.6, "top_k": 3},
        {"max_tokens": 3, "seed": 1, "contrastive": ContrastiveParams()},
        {"max_tokens": 3, "seed": 1, "draft_tokens": 2},
    ],
    ids=str,
)
def test_the_first_output_scores_the_prompt_as_one_pass_does(
    expert: TransformerWrapper, amateur: TransformerWrapper, options: dict[str, Any]
) -> None:
    made = engine(expert, amateur, page_tokens=3, max_step_tokens=4)  # in chunks
    outputs = list(made.stream(PROMPT, GenerationParams(prompt_logprobs=2, **options)))
    scored = [o for o in outputs if o.prompt_logprobs is not None]
    assert scored == outputs[:1]
    assert outputs[0].index == 0
    first, *others = outputs[0].prompt_logprobs or ()
    wanted = by_one_pass(expert, PROMPT)
    assert first is None
    assert [x.token_id for x in others if x is not None] == list(PROMPT[1:])
    for row, x in zip(wanted, others, strict=False):
        assert x is not None
        assert x.logprob == pytest.approx(float(row[x.token_id]), abs=1e-4)
        best = row.topk(2)
        assert [i for i, _ in x.top] == best.indices.tolist()
        assert [v for _, v in x.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert len(made.pool.free_pages) == made.pool.num_pages
    if not options["max_tokens"]:
        assert [(o.index, o.token_ids, o.finish_reason) for o in outputs] == [
            (i, (), "length") for i in range(options.get("n", 1))
        ]


def test_scores_survive_the_loss_of_pages_and_models_without_a_cache(
    expert: TransformerWrapper,
) -> None:
    params = GenerationParams(max_tokens=2, temperature=0.0, prompt_logprobs=0)
    whole = engine(expert).generate([PROMPT], params)[0]
    made = engine(expert, page_tokens=2, max_step_tokens=4)
    outputs = made.stream(PROMPT, params)
    made.pump()
    made.scheduler._preempt(made.scheduler.running[0])
    (first, *_) = list(outputs)
    assert first.prompt_logprobs is not None
    assert whole.prompt_logprobs is not None
    pairs = zip(first.prompt_logprobs[1:], whole.prompt_logprobs[1:], strict=True)
    for ours, theirs in pairs:
        assert ours is not None
        assert theirs is not None
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
    shifted = make_model(3, shift_tokens=1)
    recomputed = engine(shifted).generate([PROMPT], params)[0].prompt_logprobs
    assert recomputed is not None
    for row, x in zip(by_one_pass(shifted, PROMPT), recomputed[1:], strict=False):
        assert x is not None
        assert x.logprob == pytest.approx(float(row[x.token_id]), abs=1e-4)


def test_a_prompt_of_one_token_has_nothing_to_score(expert: TransformerWrapper) -> None:
    params = GenerationParams(max_tokens=1, prompt_logprobs=1)
    assert engine(expert).generate([(5,)], params)[0].prompt_logprobs == (None,)


def test_nothing_is_generated_only_where_something_is_scored() -> None:
    with pytest.raises(ConfigError, match="max_tokens: got 0, which only prompt_logprobs"):
        GenerationParams(max_tokens=0)
    with pytest.raises(ConfigError, match="num_beams: got 2 with max_tokens 0"):
        GenerationParams(max_tokens=0, prompt_logprobs=0, num_beams=2)


def test_only_allowed_ids_come(expert: TransformerWrapper, amateur: TransformerWrapper) -> None:
    allowed = (4, 9, 9, 30)
    for options in ({"n": 3, "seed": 1}, {"num_beams": 3}, {"seed": 1, "draft_tokens": 3}):
        params = GenerationParams(max_tokens=9, allowed_token_ids=allowed, **options)
        found = engine(expert, amateur).generate([PROMPT], params)[0]
        assert {t for c in found.choices for t in c.token_ids} <= set(allowed)
    everything = tuple(range(VOCABULARY))
    params = GenerationParams(max_tokens=9, allowed_token_ids=everything, temperature=0.0)
    found = engine(expert).generate([PROMPT], params)[0]
    assert found.choices[0].token_ids == greedy(expert, PROMPT, 9)
    banned = Engine(expert, banned_ids=(4,))
    dry = banned.generate([PROMPT], GenerationParams(allowed_token_ids=(4,)))[0]
    assert dry.choices[0].finish_reason == "exhausted"
    with pytest.raises(ConfigError, match="allowed_token_ids: token id 99"):
        banned.add(PROMPT, GenerationParams(allowed_token_ids=(99,)))
    with pytest.raises(ConfigError, match="allowed_token_ids"):
        GenerationParams(allowed_token_ids=())


class Letters:
    vocab_size = VOCABULARY

    def token_bytes(self, token_id: int, /) -> bytes:
        return bytes([97 + token_id % 26, 65 + token_id % 26])


def test_the_stop_that_ended_a_choice_is_named_and_shown_on_request(
    expert: TransformerWrapper,
) -> None:
    made = Engine(expert, tokenizer=Letters(), eos_ids=(39,))
    base: dict[str, Any] = {"max_tokens": 9, "temperature": 0.0, "ignore_eos": True}

    def choice(**more: Any) -> Choice:
        return made.generate([PROMPT], GenerationParams(**base, **more))[0].choices[0]

    plain = choice()
    assert plain.stop_reason is None
    stop = plain.text[5:8]  # from the middle of one token to the middle of another
    place = plain.text.index(stop)
    cut = choice(stop=("zzz", stop))
    assert (cut.text, cut.stop_reason) == (plain.text[:place], stop)
    shown = choice(stop=("zzz", stop), include_stop_str=True)
    assert (shown.text, shown.stop_reason) == (plain.text[: place + len(stop)], stop)
    assert len(shown.token_ids) > len(cut.token_ids)
    last = plain.token_ids[3]
    assert choice(stop_token_ids=(last,)).stop_reason == last


def test_beams_name_what_ended_them(expert: TransformerWrapper) -> None:
    made = Engine(expert, tokenizer=Letters())
    ends = tuple(range(0, VOCABULARY, 2))
    params = GenerationParams(max_tokens=6, num_beams=4, n=4, stop_token_ids=ends)
    choices = made.generate([PROMPT], params)[0].choices
    assert {c.finish_reason for c in choices} == {"stop"}
    assert [c.stop_reason for c in choices] == [c.token_ids[-1] for c in choices]
    letters = tuple("ABCDEFGHJLNPRTVX")
    params = GenerationParams(max_tokens=6, num_beams=4, n=4, stop=letters, include_stop_str=True)
    stopped = [c for c in made.generate([PROMPT], params)[0].choices if c.finish_reason == "stop"]
    assert stopped
    assert [c.stop_reason for c in stopped] == [c.text[-1] for c in stopped]


def test_what_an_engine_has_done_adds_up(expert: TransformerWrapper) -> None:
    made = engine(expert)
    params = GenerationParams(max_tokens=4, temperature=0.0)
    made.add(PROMPT, params)
    before = made.stats()
    assert (before.waiting, before.running, before.steps, before.pages_used) == (1, 0, 0, 0)
    made.step()
    during = made.stats()
    assert (during.running, during.sequences, during.pages_used > 0) == (1, 1, True)
    while made.has_work:
        made.step()
    after = made.stats()
    assert (after.running, after.waiting, after.pages_used) == (0, 0, 0)
    assert (after.prompt_tokens, after.generated_tokens, after.steps) == (len(PROMPT), 4, 4)
    assert after.pages_total == made.pool.num_pages
