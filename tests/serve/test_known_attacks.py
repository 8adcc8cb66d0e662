"""What has been used against other serving engines, one test for each (names: their CVEs).

Elsewhere: key comparison (CVE-2025-59425) in ``test_auth``, giant headers (CVE-2025-48956) in
``test_gate``, pickles and hostile tensors in files (CVE-2025-32434) in ``test_hostile_models``.
"""

from __future__ import annotations

import base64
import json
import pickle
import time

import fuzz
import pytest
from tiny_server import Http

from xtdist.serve.auth import LiveKeys, new_key
from xtdist.serve.gate import Gate

GOOD = {"prompt": "x", "max_tokens": 2, "temperature": 0}


@pytest.fixture
def alive(http):
    """Afterwards the engine still answers, as it did before."""
    before = http.complete(**GOOD).json()["choices"]
    yield http
    assert http.complete(**GOOD).json()["choices"] == before
    assert http.request("GET", "/health").status_code == 200
    assert not http.served.thread.broken


@pytest.mark.parametrize("key", ["n", "best_of", "num_beams"])
@pytest.mark.parametrize("count", [10**4, 10**9, 2**63, 10**30])
def test_cve_2026_34756_a_count_of_choices_without_bound(alive, key, count):
    start = time.process_time()
    reply = alive.complete(**{**GOOD, key: count})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, key)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a", "max_tokens": 2, "n": 10**39},
        {"tokens": [1, {"mask": 2}], "n": 10**7},
        {"tokens": [1, {"mask": 2}], "n": 17},  # more than can wait: not a 503 for ever
        {"text": ["a", {"mask": 2**31 - 1}]},
        {"text": [{"mask": 2**31 - 1}] * 50},
        {"prompt": "a", "max_tokens": 10**39},
    ],
    ids=lambda body: json.dumps(body)[:40],
)
def test_cve_2026_34756_masks_and_fillings_without_bound(body):
    with fuzz.serving() as at:
        start = time.process_time()
        reply = Http(at.app).request("POST", "/v1/infill", json={"model": "filler", **body})
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] in ("n", "max_tokens", "mask")
        assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "schema",
    [
        {"regex": "("},
        {"regex": "(?P<x>a)(?P=x)"},
        {"json": "no json"},
        {"json": {"type": "something"}},
        {"json": {"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}},
        {"json": {"$ref": "http://127.0.0.1:1/schema"}},
        {"json": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}},
        {"json": {"type": "string", "pattern": "("}},
        {"json": {"type": "integer", "multipleOf": 10**9 + 7}},
        {"json": '{"type": "number", "multipleOf": 1.000000007}'},
        {"grammar": "start: start"},
        {"grammar": "start: %import os"},
        {"grammar": "nothing"},
        {"grammar": ""},
        {"choice": []},
        {"choice": [""]},
        {},
        {"regex": "a", "json": {}},
        {"kind": "regex", "value": "a"},
    ],
    ids=lambda s: json.dumps(s)[:40],
)
def test_cve_2025_48942_a_grammar_that_can_not_be_used(alive, schema):
    """And -48943, -48944: a wrong schema, regular expression or type of tool ends that request."""
    reply = alive.complete(**{**GOOD, "structured_outputs": schema})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"].startswith("structured_outputs")


@pytest.mark.parametrize(
    "schema",
    [
        {"regex": "(a|aa)*" * 50 + "{1,100000}"},
        {"regex": "((((a{1,100}){1,100}){1,100}){1,100}){1,100}"},
        {"json": {"type": "array", "minItems": 10**9}},
    ],
    ids=("ambiguous", "nested", "endless"),
)
def test_a_grammar_that_looks_large_and_is_not_costs_little(alive, schema):
    start = time.process_time()
    reply = alive.complete(**{**GOOD, "structured_outputs": schema})
    assert reply.status_code == 200, reply.text
    assert time.process_time() - start < 1


@pytest.mark.parametrize("tools", [[], [{}], [{"type": "function"}], "x", [{"type": 5}], {"a": 1}])
def test_cve_2025_48944_tools_that_are_none(alive, tools):
    reply = alive.complete(**{**GOOD, "tools": tools})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tools")


@pytest.mark.parametrize("key", ["prompt_embeds", "multi_modal_data", "prompt"])
def test_cve_2025_62164_and_32444_nothing_that_is_sent_is_unpickled(alive, monkeypatch, key):
    payload = base64.b64encode(pickle.dumps({"a": 1})).decode()
    monkeypatch.setattr(pickle, "loads", lambda *_, **__: pytest.fail("unpickled"))
    monkeypatch.setattr(pickle, "Unpickler", lambda *_, **__: pytest.fail("unpickled"))
    reply = alive.complete(**{**GOOD, "max_tokens": 1, key: {"data": payload}})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, key)


@pytest.mark.parametrize("value", [-1, -2, 21, 10**9, True, "all"])
@pytest.mark.parametrize("key", ["prompt_logprobs", "logprobs"])
def test_all_log_probabilities_can_not_be_asked_for(alive, key, value):
    reply = alive.complete(**{**GOOD, key: value})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, key)


@pytest.mark.parametrize("min_tokens", [3, 10**9, 2**63])
def test_cve_2026_114051_more_tokens_at_least_than_at_most(alive, min_tokens):
    reply = alive.complete(**{**GOOD, "min_tokens": min_tokens})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "min_tokens")


@pytest.mark.parametrize("draft_tokens", [0, 3])
def test_cve_2026_44223_penalties_with_speculation(alive, draft_tokens):
    """Every penalty on tokens that were drafted, in a batch of requests of unequal length."""
    one = {"temperature": 0, "ignore_eos": True, "draft_tokens": draft_tokens}
    penalties = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": -0.5}
    bodies = [
        {**one, **penalties, "prompt": "x" * size, "max_tokens": 5 + size, "min_tokens": size}
        for size in (1, 4, 9)
    ]
    together = alive.gather(*bodies)
    alone = [alive.complete(**body) for body in bodies]
    assert [r.status_code for r in together + alone] == [200] * 6
    texts = [[r.json()["choices"][0]["text"] for r in rs] for rs in (together, alone)]
    assert texts[0] == texts[1]


def test_cve_2025_46570_no_key_sees_what_another_has_asked(serve_engine, make_engine, tmp_path):
    """And -25183: pages of a prompt are shared only between requests of one salt, which each key
    has to itself and no client can write."""
    made = {name: new_key(name) for name in ("a", "b")}
    (tmp_path / "keys").write_text("\n".join(line for _, line in made.values()))
    engine = make_engine()
    salts, add = [], engine.add

    def watched(*args, **options):
        salts.append(options.get("salt", ""))
        return add(*args, **options)

    engine.add = watched
    app, _ = serve_engine(engine, gate=Gate(LiveKeys(str(tmp_path / "keys"))))
    http = Http(app)

    def ask(name, **body):
        headers = {
            "Authorization": f"Bearer {made[name][0]}",
            "content-type": "application/json",
        }
        content = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 1, **body})
        reply = http.request("POST", "/v1/completions", content=content, headers=headers)
        assert reply.status_code == 200

    ask("a")
    ask("a")
    ask("b")
    ask("a", cache_salt="s")
    ask("b", cache_salt="s")
    ask("b", cache_salt=salts[0])
    a, again, b, a_s, b_s, stolen = salts
    assert a == again
    assert len({a, b, a_s, b_s, stolen}) == 5
    assert "" not in salts
