"""A request that goes on with tokens that another engine has generated for it."""

from __future__ import annotations

from typing import Any

import pytest
from decode_models import VOCABULARY, make_model

from xtdist.config import ConfigError
from xtdist.decode import ContrastiveParams, Engine, EngineConfig, GenerationParams, GrammarParams
from xtdist.model import TransformerWrapper

PROMPT = [5, 6, 7]
PIECES = ["a", "bc", "d", "\u20ac", "e f", "g"]


class Texts:
    """Several characters per id; some ids are half of a code point."""

    vocab_size = VOCABULARY
    eot_id = 0

    def token_bytes(self, token_id: int, /) -> bytes:
        if token_id % 7 == 3:
            return "é".encode()[token_id // 7 % 2 :][:1]
        return PIECES[token_id % 6].encode()


CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0, "ignore_eos": True},
    "sampled": {"seed": 3, "top_k": 20, "temperature": 1.5},
    "penalties": {"seed": 4, "repetition_penalty": 1.5, "frequency_penalty": 1.0, "min_p": 0.02},
    "counts": {"seed": 5, "min_tokens": 12, "presence_penalty": 2.0},
    "contrastive": {"seed": 6, "contrastive": ContrastiveParams(alpha=0.01, beta=0.5)},
    "drafts": {"seed": 7, "draft_tokens": 3},
    "bad words": {"seed": 8, "bad_words": ((1, 2), (4,)), "logit_bias": {7: -2.0}},
    "stops": {"seed": 19, "ignore_eos": True, "stop": ("bce f", "ad\u20acx", "gd")},
}


def engine(expert: TransformerWrapper, amateur: TransformerWrapper, **config: Any) -> Engine:
    tokenizer = Texts()
    return Engine(
        expert,
        amateur=amateur,
        tokenizer=tokenizer,
        eos_ids=(tokenizer.eot_id,),
        config=EngineConfig(max_sequences=4, **config),
    )


@pytest.mark.parametrize("name", CASES)
def test_what_follows_is_what_would_have_followed(
    expert: TransformerWrapper, amateur: TransformerWrapper, name: str
) -> None:
    params = {"max_tokens": 14, **CASES[name]}
    first = engine(expert, amateur)
    whole = first.generate([PROMPT], GenerationParams(**params))[0].choices[0]
    assert len(whole.token_ids) > 6
    second = engine(expert, amateur, page_tokens=4)
    for given in range(1, min(len(whole.token_ids), 14), 3):
        resumed = GenerationParams(**params, resume_tokens=given)
        outputs = list(second.stream([*PROMPT, *whole.token_ids[:given]], resumed))
        assert "".join(o.text for o in outputs) == whole.text
        assert tuple(t for o in outputs for t in o.token_ids) == whole.token_ids
        assert outputs[-1].finish_reason == whole.finish_reason


def test_a_grammar_goes_on_where_it_was() -> None:
    pytest.importorskip("llguidance")
    from xtdist.data.tokenizer import byte_tokenizer

    tokenizer, model = byte_tokenizer(), make_model(1, num_tokens=259)
    grammar = GrammarParams(kind="regex", value="(ab|cd){3,8}[0-9]{4}")
    params: dict[str, Any] = {"max_tokens": 30, "seed": 1, "grammar": grammar}
    made = Engine(model, tokenizer=tokenizer, eos_ids=(tokenizer.eot_id,))
    whole = made.generate([PROMPT], GenerationParams(**params))[0].choices[0]
    for given in range(1, len(whole.token_ids) - 1, 3):
        resumed = GenerationParams(**params, resume_tokens=given)
        prompt = [*PROMPT, *whole.token_ids[:given]]
        assert made.generate([prompt], resumed)[0].choices[0] == whole


def test_it_shares_an_engine_with_others(
    expert: TransformerWrapper, amateur: TransformerWrapper
) -> None:
    params: dict[str, Any] = {"seed": 3, "max_tokens": 20, "ignore_eos": True}
    shared = engine(expert, amateur, pool_tokens=64, page_tokens=4)  # some must wait or go back
    whole = shared.generate([PROMPT], GenerationParams(**params))[0]
    prompts = [[*PROMPT, *whole.choices[0].token_ids[:k]] for k in (3, 9, 17)]
    names = [
        shared.add(p, GenerationParams(**params, resume_tokens=len(p) - 3)) for p in prompts
    ] + [shared.add(PROMPT, GenerationParams(**params))]
    ids: dict[str, list[int]] = {n: [] for n in names}
    while shared.has_work:
        for output in shared.step():
            ids[output.request_id] += output.token_ids
    assert [tuple(found) for found in ids.values()] == [whole.choices[0].token_ids] * 4
    assert shared.stats().pages_used == 0


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"resume_tokens": 5}, "resume_tokens: got 5 for 5 tokens in all"),
        ({"resume_tokens": 2, "max_tokens": 2}, "resume_tokens: got 2, and max_tokens 2"),
        ({"resume_tokens": 2, "n": 2}, "n: got 2 with resume_tokens"),
        ({"resume_tokens": 2, "logprobs": 1}, "logprobs: got 1 with resume_tokens"),
        ({"resume_tokens": 2, "num_beams": 2}, "num_beams: got 2 with resume_tokens"),
        ({"resume_tokens": 2, "stop_token_ids": (8,)}, "these tokens end the text"),
        ({"resume_tokens": 2, "stop": ("d",)}, "these tokens end the text"),
        ({"resume_tokens": -1}, "resume_tokens"),
    ],
)
def test_what_can_not_be_resumed_is_refused(
    expert: TransformerWrapper, amateur: TransformerWrapper, params: dict[str, Any], said: str
) -> None:
    made = engine(expert, amateur)
    with pytest.raises(ConfigError, match=said):
        made.add([5, 6, 7, 2, 8], GenerationParams(**params))
    assert not made.has_work
    with pytest.raises(ConfigError, match="id 99 is not in the vocabulary"):
        made.add([5, 6, 7, 2, 99], GenerationParams(resume_tokens=2))
