"""What ``/v1/completions`` shows beside the text: log-probabilities, ids, reasons, counts."""

from __future__ import annotations

import threading

import pytest
import torch
from tiny_server import MAX_SEQ_LEN, Http, events, served_engines, tiny_model

from xtdist.data.tokenizer import byte_tokenizer
from xtdist.decode import GenerationParams
from xtdist.serve.config import LimitsConfig

PROMPT = "def é(x):"
IDS = [int(i) for i in byte_tokenizer().encode(PROMPT)]


@pytest.fixture(scope="module")
def scores():
    """Log-probabilities of the token after each position of ``PROMPT``, by the model itself."""
    with torch.inference_mode():
        return tiny_model(1)(torch.tensor([IDS]))[0].log_softmax(-1)


def joined(reply, index=0):
    """The choice of a stream, its parts put together."""
    *chunks, done = events(reply)
    assert done == "[DONE]"
    parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
    whole = {**parts[0], "text": "".join(p["text"] for p in parts)}
    for key in ("finish_reason", "stop_reason"):
        whole |= {key: parts[-1][key]} if key in parts[-1] else {}
    if parts[0]["logprobs"] is not None:
        keys = parts[0]["logprobs"]
        whole["logprobs"] = {k: [x for p in parts for x in p["logprobs"][k]] for k in keys}
    if "token_ids" in parts[0]:
        whole["token_ids"] = [i for p in parts for i in p["token_ids"]]
    return whole


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 5])
def test_echo_with_logprobs_scores_the_prompt(http, scores, stream, max_tokens):
    body = {"prompt": PROMPT, "echo": True, "logprobs": 2, "max_tokens": max_tokens, "n": 2}
    reply = http.complete(**body, seed=3, stream=stream)
    assert reply.status_code == 200, reply.text
    for index in range(2):
        choice = joined(reply, index) if stream else reply.json()["choices"][index]
        got = choice["logprobs"]
        assert choice["text"].startswith(PROMPT)
        assert choice["finish_reason"] == "length"
        assert got["token_logprobs"][0] is got["top_logprobs"][0] is None
        expected = [scores[i - 1, IDS[i]].item() for i in range(1, len(IDS))]
        assert got["token_logprobs"][1 : len(IDS)] == pytest.approx(expected, abs=1e-4)
        best = scores.topk(2).values.tolist()
        for top, known in zip(got["top_logprobs"][1 : len(IDS)], best, strict=False):
            assert sorted(top.values())[-2:] == pytest.approx(sorted(known), abs=1e-4)
        assert got["tokens"][4] == "bytes:\\xc3"
        after = [9] if max_tokens else []
        assert got["text_offset"][: len(IDS) + 1] == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, *after]
        assert len(got["tokens"]) == len(IDS) + max_tokens
        assert {len(v) for v in got.values()} == {len(got["tokens"])}


def test_max_tokens_zero_only_reads(http):
    reply = http.complete(prompt=[PROMPT, "b"], echo=True, max_tokens=0).json()
    assert [c["text"] for c in reply["choices"]] == [PROMPT, "b"]
    assert reply["usage"]["completion_tokens"] == 0


def test_prompt_logprobs_are_vllms(http, scores):
    body = {"prompt": PROMPT, "prompt_logprobs": 3, "max_tokens": 2}
    choice = http.complete(**body).json()["choices"][0]
    first, *rest = choice["prompt_logprobs"]
    assert first is None
    assert len(rest) == len(IDS) - 1
    assert choice["logprobs"] is None
    for position, known in enumerate(rest):
        values, ids = scores[position].topk(3)
        for rank, (i, value) in enumerate(zip(ids.tolist(), values.tolist(), strict=True), 1):
            assert known[str(i)]["rank"] == rank
            assert known[str(i)]["logprob"] == pytest.approx(value, abs=1e-4)
        assert str(IDS[position + 1]) in known
    assert joined(http.complete(**body, stream=True))["prompt_logprobs"] == [first, *rest]


@pytest.mark.parametrize("stream", [False, True])
def test_token_ids_are_those_of_the_engine(http, make_engine, stream):
    body = {"prompt": PROMPT, "seed": 3, "return_token_ids": True, "stream": stream}
    reply = http.complete(**body)
    choice = joined(reply) if stream else reply.json()["choices"][0]
    direct = make_engine().generate([IDS], GenerationParams(seed=3))[0].choices[0]
    assert choice["prompt_token_ids"] == IDS
    assert tuple(choice["token_ids"]) == direct.token_ids
    assert "token_ids" not in http.complete(prompt="x", max_tokens=1).json()["choices"][0]


@pytest.mark.parametrize("stream", [False, True])
def test_what_ended_the_text_is_told(http, stream):
    def ended(**body):
        reply = http.complete(prompt="x", seed=1, max_tokens=60, stream=stream, **body)
        return joined(reply) if stream else reply.json()["choices"][0]

    only = {"allowed_token_ids": [97, 98, 99]}
    string = ended(**only, stop=["bc", "zz"])
    assert (string["finish_reason"], string["stop_reason"]) == ("stop", "bc")
    assert "bc" not in string["text"]
    shown = ended(**only, stop=["bc", "zz"], include_stop_str_in_output=True)
    assert shown["text"] == string["text"] + "bc"
    token = ended(**only, stop_token_ids=[99])
    assert (token["finish_reason"], token["stop_reason"]) == ("stop", 99)
    assert "c" not in token["text"]
    assert "stop_reason" not in ended(**only)


@pytest.mark.parametrize("stream", [False, True])
def test_the_end_of_a_text_is_shown_when_asked_for(http, stream):
    body = {"prompt": "x", "logit_bias": {"258": 0, "256": 100.0}, "stream": stream}
    shown = http.complete(**body, skip_special_tokens=False, return_token_ids=True)
    choice = joined(shown) if stream else shown.json()["choices"][0]
    assert (choice["text"], choice["token_ids"]) == ("<|endoftext|>", [256])
    assert (joined if stream else lambda r: r.json()["choices"][0])(http.complete(**body))[
        "text"
    ] == ""
    assert http.complete(**body, skip_special_tokens=False, ignore_eos=True).status_code == 400


def test_a_long_prompt_may_be_cut_at_its_beginning(http):
    long = "y" * MAX_SEQ_LEN + "ab"
    cut = http.complete(prompt=long, truncate_prompt_tokens=2, temperature=0, echo=True).json()
    whole = http.complete(prompt="ab", temperature=0, echo=True).json()
    assert (cut["choices"], cut["usage"]) == (whole["choices"], whole["usage"])
    fits = http.complete(prompt=long, truncate_prompt_tokens=-1, max_tokens=6).json()
    assert fits["usage"]["prompt_tokens"] == MAX_SEQ_LEN - 6
    reply = http.complete(prompt=long, truncate_prompt_tokens=-1, max_tokens=MAX_SEQ_LEN)
    assert reply.json()["error"]["code"] == "context_length_exceeded"


def test_usage_may_come_with_every_chunk(http):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "abc", "max_tokens": 5, "ignore_eos": True, "n": 2, "seed": 1}
    *chunks, last, _ = events(http.complete(**body, stream=True, stream_options=options))
    counts = [c["usage"]["completion_tokens"] for c in chunks]
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1] == last["usage"]["completion_tokens"] == 10
    assert {c["usage"]["prompt_tokens"] for c in chunks} == {3}


def test_a_stream_is_resumed_where_it_broke(http):
    body = {"seed": 5, "max_tokens": 20, "ignore_eos": True, "frequency_penalty": 1.5}
    whole = http.complete(prompt=IDS, **body, return_token_ids=True).json()
    ids = whole["choices"][0]["token_ids"]
    again = http.complete(prompt=[*IDS, *ids[:7]], **body, return_token_ids=True, resume_tokens=7)
    assert again.json()["choices"] == whole["choices"]
    assert again.json()["usage"] == whole["usage"]
    assert again.json()["choices"][0]["prompt_token_ids"] == IDS


@pytest.mark.parametrize(
    ("grammar", "fits"),
    [
        ({"choice": ["yes", 'a "b"\\\n', "ü"]}, {"yes", 'a "b"\\\n', "ü"}),
        ({"regex": "(ab|cd)e"}, {"abe", "cde"}),
        ({"grammar": 'start: "x" ("1" | "2")'}, {"x1", "x2"}),
        ({"json": {"type": "boolean"}}, {"true", "false"}),
        ({"json": '{"enum": ["a", 5]}'}, {'"a"', "5"}),
    ],
)
def test_structured_outputs_are_in_their_language(http, grammar, fits):
    reply = http.complete(prompt="x", n=4, seed=2, structured_outputs=grammar)
    assert reply.status_code == 200, reply.text
    for choice in reply.json()["choices"]:
        assert choice["text"].strip() in {f.strip() for f in fits}
        assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "grammar",
    [
        {"regex": "(canary"},
        {"grammar": "canary["},
        {"json": "{canary"},
        {"json": {"type": "canary"}},
        {"regex": ""},
        {"choice": []},
        {"choice": [""]},
        {},
        {"regex": "a", "choice": ["b"]},
        {"regexp": "a"},
        "regex",
    ],
)
def test_a_grammar_that_is_none_is_refused_without_repeating_it(http, grammar):
    reply = http.complete(prompt="x", structured_outputs=grammar)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].split(".")[0] == "structured_outputs"
    assert "canary" not in reply.text
    assert http.complete(prompt="x", max_tokens=1).status_code == 200


def test_only_requests_of_the_same_salt_share_work(make_engine):
    with served_engines() as serve:
        app, served = serve(make_engine(page_tokens=4))
        http = Http(app)

        def hits(**body):
            before = served.thread.engine.stats().prefix_hit_tokens
            assert http.complete(prompt=PROMPT * 2, max_tokens=2, **body).status_code == 200
            return served.thread.engine.stats().prefix_hit_tokens - before

        assert [hits(), hits(cache_salt="a"), hits(cache_salt="b")] == [0, 0, 0]
        shared = [hits(), hits(cache_salt="a"), hits(cache_salt="b")]
        assert shared == [shared[0]] * 3
        assert shared[0] >= 12
        scored = {"prompt": PROMPT * 2, "echo": True, "logprobs": 1, "max_tokens": 0}
        replies = [http.complete(**scored, cache_salt=salt).json() for salt in ("a", "fresh")]
        assert replies[0]["choices"] == replies[1]["choices"]  # whatever was there already
        http.runner.close()


def test_a_grammar_that_compiles_for_too_long_is_given_up_while_others_are_served(make_engine):
    engine, released = make_engine(), threading.Event()
    engine.compile = lambda _: released.wait(20)
    with served_engines() as serve:
        app, _ = serve(engine, limits=LimitsConfig(grammar_timeout_s=0.2))
        http = Http(app)
        slow = {"prompt": "x", "structured_outputs": {"regex": "a"}}
        replies = http.gather(slow, slow, {"prompt": "x"}, slow)
        released.set()
        assert [r.status_code for r in replies[:3]] == [400, 400, 200]
        assert replies[3].status_code in (400, 503)  # its turn has not come in time
        http.runner.close()
