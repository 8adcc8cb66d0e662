from __future__ import annotations

import itertools
import json
import re
import sys
from typing import Any

import pytest
import torch
from decode_models import make_model
from hypothesis import given, settings
from hypothesis import strategies as st

from xtdist.config import ConfigError
from xtdist.decode import ContrastiveParams, Engine, EngineConfig, GenerationParams, GrammarParams
from xtdist.decode.grammar import Grammars
from xtdist.model import TransformerWrapper

PIECES = [bytes([c]) for c in b'abcdefxy0123456789{}[]":,.- '] + [
    b"ab", b'"x"', b"12", b"tr", b"ue", b"true", b'":', "é".encode()[:1], "é".encode()[1:]
]  # fmt: skip
END, OTHER_END, EMPTY = len(PIECES), len(PIECES) + 1, len(PIECES) + 2
VOCABULARY = len(PIECES) + 3
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"x": {"type": "integer", "maximum": 99}, "ab": {"type": "boolean"}},
        "required": ["x"],
        "additionalProperties": False,
    }
)


class Words:
    """A tokenizer whose last ids are two ends and one without bytes."""

    vocab_size = VOCABULARY

    def token_bytes(self, token_id: int, /) -> bytes:
        return [*PIECES, b"<end>", b"a", b""][token_id]


def regex(value: str) -> GrammarParams:
    return GrammarParams(kind="regex", value=value)


@pytest.fixture(scope="module")
def model() -> TransformerWrapper:
    return make_model(1, num_tokens=VOCABULARY + 2, max_seq_len=128)


@pytest.fixture(scope="module")
def engine(model: TransformerWrapper) -> Engine:
    amateur = make_model(2, num_tokens=VOCABULARY + 2, max_seq_len=128, depth=1)
    return Engine(
        model,
        amateur=amateur,
        tokenizer=Words(),
        eos_ids=(END,),
        config=EngineConfig(max_sequences=16),
    )


METHODS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "several": {"n": 3, "seed": 1, "temperature": 2.0},
    "filtered": {"n": 3, "seed": 2, "top_k": 1, "top_p": 0.3, "typical_p": 0.2},
    "best of": {"best_of": 4, "seed": 3},
    "beams": {"num_beams": 4, "n": 4},
    "drawn beams": {"num_beams": 4, "n": 4, "stochastic_beams": True, "seed": 2},
    "contrastive": {"contrastive": ContrastiveParams(), "n": 2, "seed": 4},
    "contrastive beams": {"contrastive": ContrastiveParams(), "num_beams": 3},
    "drafts": {"draft_tokens": 3, "n": 2, "seed": 5},
    "search": {"penalty_alpha": 0.6, "top_k": 4, "temperature": 0.0},
    "penalties": {"repetition_penalty": 3.0, "presence_penalty": 2.0, "seed": 6},
}
LANGUAGES = {
    "regex": (regex(r"a(ab|12)*[xy]{2,5}é?"), lambda t: re.fullmatch(r"a(ab|12)*[xy]{2,5}é?", t)),
    "json": (GrammarParams(kind="json_schema", value=SCHEMA), lambda t: fits_schema(t)),
    "lark": (
        GrammarParams(kind="lark", value='start: "[" start "]" | "x"'),
        lambda t: re.fullmatch(r"\[*x\]*", t) and t.count("[") == t.count("]"),
    ),
}


def fits_schema(text: str) -> bool:
    found = json.loads(text)
    whole = type(found["x"]) is int and found["x"] <= 99
    return whole and set(found) <= {"x", "ab"} and type(found.get("ab", True)) is bool


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("method", METHODS)
def test_whatever_the_method_a_text_that_ends_is_in_the_language(
    engine: Engine, method: str, language: str
) -> None:
    grammar, matches = LANGUAGES[language]
    bias = dict.fromkeys([PIECES.index(c) for c in (b"]", b"x", b"}", b'"')], 2.0)
    params = GenerationParams(max_tokens=60, grammar=grammar, logit_bias=bias, **METHODS[method])
    ended = 0
    for completion in engine.generate([[1, 2], [5]], params):
        for choice in completion.choices:
            if choice.finish_reason == "stop":
                assert choice.token_ids[-1] == END
                assert matches(choice.text), choice.text
                ended += 1
    assert ended
    assert len(engine.pool.free_pages) == engine.pool.num_pages


@pytest.mark.parametrize("pattern", ["a(ab)*c?", "(a|b){1,3}", "ab|abc|b", "a?b?c?", "c+"])
def test_exactly_the_tokens_that_can_still_lead_to_a_match_are_allowed(pattern: str) -> None:
    """By brute force over all strings of up to six letters."""
    tokenizer = Words()
    language = [
        "".join(letters)
        for n in range(7)
        for letters in itertools.product("abc", repeat=n)
        if re.fullmatch(pattern, "".join(letters))
    ]
    processor = Grammars(tokenizer, frozenset({END})).processor(
        GenerationParams(grammar=regex(pattern)), ends=(END, OTHER_END)
    )
    usable = [i for i, piece in enumerate(PIECES) if set(piece) <= set(b"abc")]
    for tokens in [t for n in range(4) for t in itertools.product(usable, repeat=n)]:
        text = b"".join(PIECES[t] for t in tokens).decode()
        if len(text) > 4 or not any(s.startswith(text) for s in language):
            continue
        scores = processor(tokens, torch.zeros(VOCABULARY + 2))
        allowed = set(scores.isfinite().nonzero().flatten().tolist())
        expected = {
            t for t in usable if any(s.startswith(text + PIECES[t].decode()) for s in language)
        }
        if text in language:
            expected |= {END, OTHER_END}
        rests = [s[len(text) :] for s in language if s.startswith(text)]
        if (
            all(rests) and len({rest[0] for rest in rests}) == 1
        ):  # without a choice it comes in the tokenizer's spelling
            assert len(allowed) == 1
            assert allowed <= expected
        else:
            assert allowed == expected, (text, allowed, expected)


def test_forgotten_states_are_parsed_again(engine: Engine) -> None:
    grammars = Grammars(Words(), frozenset({END}))
    processor = grammars.processor(GenerationParams(grammar=regex("[ab]*c")), ends=(END,))
    texts = [t for n in range(5) for t in itertools.product((0, 1), repeat=n)]
    first = [processor(t, torch.zeros(VOCABULARY)) for t in texts]
    again = [processor(t, torch.zeros(VOCABULARY)) for t in texts]
    assert len(texts) > processor.most
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("regex", "("),
        ("regex", "[^\\s\\S]"),
        ("regex", "Q"),
        ("json_schema", "{"),
        ("json_schema", '{"type": "nothing"}'),
        ("json_schema", '{"$ref": "http://127.0.0.1/x"}'),
        ("json_schema", '{"a":' * 3000 + "1" + "}" * 3000),
        ("lark", "start: other"),
        ("lark", "start: start"),
        ("lark", "}{"),
    ],
)
def test_a_bad_grammar_is_refused_and_the_engine_goes_on(
    engine: Engine, kind: Any, value: str
) -> None:
    bad = GenerationParams(grammar=GrammarParams(kind=kind, value=value))
    with pytest.raises(ConfigError, match=r"^grammar: this"):
        engine.compile(bad)
    with pytest.raises(ConfigError, match=r"^grammar: this"):
        engine.add([1], bad)
    assert not engine.has_work
    good = GenerationParams(grammar=regex("ab"), temperature=0.0)
    assert engine.generate([[1]], good)[0].choices[0].text == "ab"


@pytest.mark.parametrize(
    "pattern", ["a{100000}{100000}{1000}", "(a|b)*a(a|b){15}", "(a?){30}a{30}"]
)
def test_a_grammar_that_is_too_much_work_ends_its_own_request_only(
    engine: Engine, pattern: str
) -> None:
    params = GenerationParams(max_tokens=8, grammar=regex(pattern), seed=1)
    try:
        (completion,) = engine.generate([[1]], params)
    except ConfigError:
        return
    assert completion.choices[0].finish_reason in ("length", "exhausted")
    assert set(completion.choices[0].text) <= {"a", "b"}


@given(st.sampled_from(["regex", "json_schema", "lark"]), st.text(max_size=30))
@settings(max_examples=100, deadline=None)
def test_any_text_as_a_grammar_is_taken_or_refused(kind: Any, value: str) -> None:
    grammars = Grammars(Words(), frozenset({END}))
    try:
        params = GenerationParams(grammar=GrammarParams(kind=kind, value=value))
        processor = grammars.processor(params, ends=(END,))
    except ConfigError:
        return
    tokens: list[int] = []
    for _ in range(4):
        allowed = processor(tokens, torch.zeros(VOCABULARY)).isfinite().nonzero().flatten()
        if not len(allowed) or int(allowed[-1]) == END:
            break
        tokens.append(int(allowed[0]))


def test_a_text_that_may_not_end_yet_and_can_not_go_on_is_exhausted(engine: Engine) -> None:
    for method in ({}, {"num_beams": 3}, {"temperature": 0.0}, {"best_of": 2}):
        params = GenerationParams(grammar=regex("ab"), min_tokens=5, **method)
        choice = engine.generate([[1]], params)[0].choices[0]
        assert choice.finish_reason == "exhausted"
        assert "ab".startswith(choice.text)


def test_what_a_grammar_needs_is_asked_for(
    model: TransformerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = GenerationParams(grammar=regex("a"))
    with pytest.raises(ConfigError, match="grammar: it needs a tokenizer"):
        Engine(model, eos_ids=(END,)).add([1], params)
    with pytest.raises(ConfigError, match="nothing can end"):
        Engine(model, tokenizer=Words()).add([1], params)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"xtdist\[structured\]"):
        Engine(model, tokenizer=Words(), eos_ids=(END,)).add([1], params)


def test_a_hook_chooses_among_what_a_grammar_allows(engine: Engine) -> None:
    calls = []

    def hook(tokens: Any, scores: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(tokens))
        scores[PIECES.index(b"b")] = 50.0
        scores[PIECES.index(b"x")] = 60.0
        return scores

    params = GenerationParams(max_tokens=4, grammar=regex("[ab]{4,}"), temperature=0.0)
    name = engine.add([1], params, processor=hook)
    outputs = []
    while engine.knows(name):
        outputs += engine.step()
    assert "".join(o.text for o in outputs) == "bbbb"
    b = PIECES.index(b"b")
    assert calls == [(b,) * n for n in range(4)]


def test_an_explosive_grammar_ends_its_own_text_and_no_other(engine: Engine) -> None:
    """The ways to read its text grow with every token; at some point that is too many."""
    explosive = 'start: a a a a a a\na: b | b b | b b b\nb: c c | ""\nc: "x" | start | ""'
    bounded = GenerationParams(
        max_tokens=100, min_tokens=100, grammar=GrammarParams(kind="lark", value=explosive)
    )
    plain = GenerationParams(max_tokens=50, temperature=0.0, ignore_eos=True)
    beside = engine.add([5, 6], plain)
    hostile = engine.add([5, 6], bounded)
    ends: dict[str, Any] = {}
    ids: list[int] = []
    while engine.has_work:
        for output in engine.step():
            ends[output.request_id] = output.finish_reason
            ids += output.token_ids if output.request_id == beside else ()
    assert ends == {beside: "length", hostile: "exhausted"}
    assert tuple(ids) == engine.generate([[5, 6]], plain)[0].choices[0].token_ids


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("json_schema", '{"type": "integer", "multipleOf": 999983}', "multipleOf"),
        ("json_schema", '{"type": "number", "multipleOf": 1.000000007}', "multipleOf"),
        ("lark", 'start: x\nx: %json {"type": "integer", "multipleOf": 999983}', "%json"),
    ],
)
def test_a_state_for_each_remainder_is_refused_before_it_takes_memory(
    kind: str, value: str, said: str
) -> None:
    grammars = Grammars(Words(), frozenset({END}))
    with pytest.raises(ConfigError, match=said):
        grammars.compile(GrammarParams(kind=kind, value=value))
