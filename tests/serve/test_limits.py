"""Bounds of one request: refused with 400 naming the key, before anything is tokenized or run."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import pytest
from tiny_server import MAX_SEQ_LEN, Http

from xtdist.serve.backend import Backend
from xtdist.serve.config import LimitsConfig

LIMITS = LimitsConfig()
ABOVE = {
    "prompt": ["x"] * (LIMITS.max_prompts + 1),
    "max_tokens": LIMITS.max_tokens + 1,
    "n": LIMITS.max_sequences + 1,
    "best_of": LIMITS.max_sequences + 1,
    "num_beams": LIMITS.max_sequences + 1,
    "logprobs": LIMITS.max_logprobs + 1,
    "stop": ["x"] * (LIMITS.max_stops + 1),
    "stop_token_ids": [1] * (LIMITS.max_stops + 1),
    "logit_bias": {str(i): 0 for i in range(LIMITS.max_logit_bias + 1)},
    "bad_words": ["x"] * (LIMITS.max_bad_words + 1),
    "structured_outputs": {"regex": "x" * (LIMITS.max_grammar_chars + 1)},
    "dola": [1] * (LIMITS.max_stops + 1),
}
WRONG = {
    "n=10**6": {"n": 10**6},
    "n=10**39": {"n": 10**39},
    "n=0": {"n": 0},
    "n=-1": {"n": -1},
    "n=true": {"n": True},
    "n=1.0": {"n": 1.0},
    "n='1'": {"n": "1"},
    "max_tokens=-1": {"max_tokens": -1},
    "max_tokens=2**63": {"max_tokens": 2**63},
    "min_tokens": {"min_tokens": 5, "max_tokens": 4},
    "min_tokens=10**9": {"min_tokens": 10**9},
    "logprobs=-1": {"logprobs": -1},
    "logprobs=true": {"logprobs": True},
    "temperature=-1e-30": {"temperature": -1e-30},
    "temperature=true": {"temperature": True},
    "temperature='1'": {"temperature": "1"},
    "top_k=-2": {"top_k": -2},
    "top_p=0": {"top_p": 0},
    "repetition_penalty=0": {"repetition_penalty": 0},
    "penalties": {"presence_penalty": 2.01},
    "seed=2**63": {"seed": 2**63},
    "stop of 1 MB": {"stop": "x" * 200_000},
    "stop x 10**5": {"stop": [""] * 60_000},
    "empty stop": {"stop": [""]},
    "bias of no token": {"logit_bias": {"259": 1}},
    "bias of -1": {"logit_bias": {"-1": 1}},
    "bias of a long number": {"logit_bias": {"9" * 400: 1}},
    "bias too high": {"logit_bias": {"1": 101}},
    "stop ids": {"stop_token_ids": [259]},
    "prompt ids": {"prompt": [259]},
    "prompt ids < 0": {"prompt": [-1]},
    "prompt ids > int64": {"prompt": [2**64]},
    "prompt ids true": {"prompt": [True]},
    "prompt mixed": {"prompt": ["x", 1]},
    "prompt empty": {"prompt": []},
    "prompt nested": {"prompt": [[[1]]]},
    "too long": {"prompt": "x" * MAX_SEQ_LEN},
    "penalty_alpha": {"penalty_alpha": 0.5, "top_k": 10**6},
    "prompts x n": {"prompt": ["x"] * 8, "n": 8},
    "prompt_logprobs": {"prompt_logprobs": -1},
}


@pytest.mark.parametrize("key", ABOVE)
def test_one_above_a_bound_is_refused_by_name(http, key):
    reply = http.complete(**{"prompt": "x", "max_tokens": 1, key: ABOVE[key]})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == key


@pytest.mark.parametrize("case", WRONG)
def test_values_of_no_use_are_refused(http, case):
    reply = http.complete(**{"prompt": "x", "max_tokens": 1, **WRONG[case]})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["message"]
    assert len(reply.content) < 600


def test_every_bound_is_above_nothing_that_is_asked_at_it(make_engine, serve_engine):
    """At the bounds themselves nothing is refused for them."""
    limits = LimitsConfig(
        max_prompts=2, max_prompt_chars=4, max_tokens=3, max_sequences=4, max_stops=1
    )
    app, _ = serve_engine(make_engine(), limits=limits)
    http = Http(app)
    good = {"prompt": ["ab", "cd"], "max_tokens": 3, "n": 2, "stop": ["x"]}
    assert http.complete(**good).status_code == 200
    more = {"prompt": ["abc", "cd"], "max_tokens": 4, "n": 3, "stop": ["x", "y"]}
    for key, value in more.items():
        reply = http.complete(**{**good, key: value})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, key)


def test_what_is_refused_was_not_tokenized_and_never_reached_the_engine(
    make_engine, serve_engine, monkeypatch
):
    engine = make_engine()
    app, served = serve_engine(engine)
    http = Http(app)
    monkeypatch.setattr(served.tokenizer.__class__, "encode", lambda *_: pytest.fail("tokenized"))
    monkeypatch.setattr(engine, "add", lambda *_, **__: pytest.fail("admitted"))
    for key, value in ABOVE.items():
        assert http.complete(**{"prompt": "x", key: value}).status_code == 400
    long = http.complete(prompt="x" * (LIMITS.max_prompt_chars + 1))
    assert long.json()["error"]["param"] == "prompt"


JSON = {"content-type": "application/json"}
PATHS = ["/v1/completions", "/v1/chat/completions", "/v1/infill"]


@pytest.mark.parametrize("path", PATHS)
def test_where_no_model_has_room_a_request_is_refused_unread(http, monkeypatch, path):
    thread = http.served.thread
    assert http.request("POST", path, content=b"{", headers=JSON).status_code == 400
    full = dataclasses.replace(thread.stats, waiting=thread.engine.config.max_waiting)
    monkeypatch.setattr(thread, "stats", full)
    reply = http.request("POST", path, content=b"{", headers=JSON)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "queue_full")


def test_a_queue_that_takes_too_long_is_full(http, monkeypatch):
    thread = http.served.thread
    monkeypatch.setattr(thread, "max_wait_s", 5.0)
    thread.turnover.note(8, 16.0)
    replies = []
    for waiting in (3, 2):
        queue = dataclasses.replace(thread.stats, waiting=waiting)
        monkeypatch.setattr(thread, "stats", queue)
        replies.append(http.complete(prompt="x", max_tokens=1))
    assert [reply.status_code for reply in replies] == [503, 200]
    assert replies[0].headers["retry-after"] == "6"


@pytest.mark.parametrize("path", PATHS)
def test_a_full_queue_is_told_before_anything_is_tokenized(http, monkeypatch, path):
    """Also where another model has room."""
    monkeypatch.setattr(Backend, "check_room", lambda _: None)
    thread = http.served.thread
    bodies = {
        "/v1/completions": {"prompt": "x"},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
        "/v1/infill": {"prompt": "x", "suffix": "y", "max_tokens": 1},
    }
    full = dataclasses.replace(thread.stats, waiting=thread.engine.config.max_waiting)
    monkeypatch.setattr(thread, "stats", full)
    monkeypatch.setattr(type(http.served), "tokenize", lambda *_: pytest.fail("tokenized"))
    reply = http.request("POST", path, json={"model": "tiny", **bodies[path]})
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "queue_full")
    assert int(reply.headers["retry-after"]) >= 1


def test_a_total_that_the_memory_can_never_hold_is_a_400(make_engine, serve_engine):
    """Four sequences of full length fit: eight beams never will, whoever else runs."""
    app, _ = serve_engine(make_engine())
    http = Http(app)
    reply = http.complete(prompt="x" * 40, max_tokens=50, num_beams=8, temperature=0)
    assert reply.status_code == 400, reply.text
    fits = http.complete(prompt="x" * 40, max_tokens=2, num_beams=4, temperature=0)
    assert fits.status_code == 200


def test_nesting_is_bounded_as_the_config_says(make_engine, serve_engine):
    app, _ = serve_engine(make_engine(), limits=LimitsConfig(max_json_depth=2))
    reply = Http(app).complete(prompt=[[[1]]])
    assert reply.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("Application/JSON ; charset=UTF-8", 200),
        ('application/json; charset="utf8"', 200),
        ("application/json; charset=utf-16", 415),
        ("application/json; charset=latin-1", 415),
        ("application/jsonp", 415),
        ("text/json", 415),
        ("", 415),
    ],
)
def test_only_utf_8_json_is_read(http, kind, status):
    body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 1}).encode()
    assert http.raw(body, **{"content-type": kind}).status_code == status


def test_a_body_may_come_in_single_bytes_but_not_for_ever(http, make_engine, serve_engine):
    body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 1}).encode()

    async def drip(wait_s):
        for byte in body:
            await asyncio.sleep(wait_s)
            yield bytes([byte])

    assert http.raw(drip(0)).status_code == 200
    app, _ = serve_engine(make_engine(), limits=LimitsConfig(body_timeout_s=0.2))
    assert Http(app).raw(drip(0.02)).status_code == 408
