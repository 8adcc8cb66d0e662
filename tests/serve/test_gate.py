"""The door in front of the routes: who gets in, what is counted, and that it is counted back."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from tiny_server import Http, events

from xtdist.serve.auth import LiveKeys, new_key
from xtdist.serve.config import LimitsConfig, QuotaConfig
from xtdist.serve.gate import OPEN_PATHS, Door, Gate, caller_of

GOOD = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 1}).encode()


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def keyed(make_engine, serve_engine, tmp_path):
    """``keyed(words of the key's line, **quota)`` gives (http, headers with the key, gate)."""

    def make(words="", *, clock=None, most=1024, **quota):
        key, line = new_key("alice")
        (tmp_path / "keys").write_text(f"# keys\n\n{line} {words}\n{new_key('bob')[1]}\n")
        gate = Gate(
            LiveKeys(str(tmp_path / "keys")),
            QuotaConfig(**quota),
            limits=LimitsConfig(max_open_requests=most),
            clock=clock or Clock(),
        )
        app, served = serve_engine(make_engine(), gate=gate)
        http = Http(app)
        http.served = served
        return http, {"Authorization": f"Bearer {key}"}, gate

    return make


def routes_of(app):
    """Every method and path of the application."""
    for route in app.routes:
        for method in sorted(route.methods):
            yield method, route.path.replace("{name:path}", "tiny").replace("{name}", "tiny")


def test_every_route_but_the_open_ones_needs_a_key(keyed):
    http, good, gate = keyed()
    key = good["Authorization"].removeprefix("Bearer ")
    bad = [
        {},
        {"Authorization": key},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {key[:-1]}"},
        {"Authorization": f"Bearer {key}x"},
        {"Authorization": f"Basic {key}"},
        {"Authorization": "Bearer " + "x" * 5000},
        {"Authorization": "Bearer é".encode("latin-1")},
        {"X-Api-Key": key},
    ]
    others = [("GET", "/none"), ("POST", "/health/"), ("PUT", "/v1/models")]
    closed = [(m, p) for m, p in [*routes_of(http.app), *others] if p not in OPEN_PATHS]
    assert {p for _, p in closed} >= {"/v1/completions", "/v1/models", "/v1/models/tiny"}
    for method, path in closed:
        for headers in bad:
            reply = http.request(method, path, content=b"no json", headers=headers)
            assert reply.status_code == 401, (method, path, headers)
            assert reply.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                assert reply.json()["error"]["code"] == "invalid_api_key"
    for method, path in closed:
        assert http.request(method, path, headers=good).status_code not in (401, 403)
    assert http.request("GET", "/health").status_code == 200
    assert gate.open_requests == 0


def test_a_socket_that_is_no_http_request_is_closed(keyed):
    http, _, _ = keyed()
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/v1/models", "headers": [], "state": {}}
    http.runner.run(http.app(scope, receive, send))
    assert [m["type"] for m in sent] == ["websocket.close"]


def test_a_key_with_bounds_is_told_what_is_left_and_when_to_come_back(keyed):
    clock = Clock()
    http, good, _ = keyed(
        "requests_per_min=2", clock=clock, requests_per_min=99, tokens_per_min=600
    )
    first, second, third = (http.request("GET", "/v1/models", headers=good) for _ in range(3))
    assert [r.status_code for r in (first, second, third)] == [200, 200, 429]
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-limit-tokens"] == "600"
    left = [r.headers["x-ratelimit-remaining-requests"] for r in (first, second, third)]
    assert left == ["1", "0", "0"]
    assert third.headers["retry-after"] == "30"
    assert third.headers["x-ratelimit-reset-requests"] == "60.000s"
    assert third.json()["error"]["code"] == "rate_limit_exceeded"
    clock.now = 30.0
    assert http.request("GET", "/v1/models", headers=good).status_code == 200


def test_keys_do_not_use_up_each_others_share(keyed, tmp_path):
    http, alice, _ = keyed(requests_per_min=1)
    bob, line = new_key("carol")
    with open(tmp_path / "keys", "a") as file:
        file.write(line)
    carol = {"Authorization": f"Bearer {bob}"}
    codes = [http.request("GET", "/v1/models", headers=h).status_code for h in (alice, alice)]
    assert codes == [200, 429]
    assert http.request("GET", "/v1/models", headers=carol).status_code == 200


def test_tokens_are_charged_as_they_may_come_and_settled_as_they_came(keyed):
    http, good, _ = keyed(tokens_per_min=100)
    headers = {**good, "content-type": "application/json"}

    def ask(**body):
        content = json.dumps({"model": "tiny", "ignore_eos": True, **body})
        return http.request("POST", "/v1/completions", content=content, headers=headers)

    reply = ask(prompt="12345", max_tokens=20, n=2)
    assert reply.status_code == 200
    assert reply.headers["x-ratelimit-remaining-tokens"] == str(100 - 5 - 2 * 20)
    assert ask(prompt="12345", max_tokens=60).status_code == 429
    assert ask(prompt="12345", max_tokens=90, n=2).json()["error"]["code"] == "over_quota"
    stopped = ask(prompt="12345", max_tokens=40, stop=[chr(i) for i in range(97, 113)])
    assert stopped.status_code == 200


@pytest.mark.parametrize(
    "how", [{"num_beams": 3}, {"best_of": 3, "temperature": 1.0}, {"n": 3, "temperature": 1.0}]
)
def test_what_beams_and_candidates_that_do_not_win_have_read_is_used_up_too(keyed, how):
    http, good, _ = keyed(tokens_per_min=1000)
    headers = {**good, "content-type": "application/json"}
    body = {"model": "tiny", "ignore_eos": True, "prompt": "12345", "max_tokens": 20, **how}
    reply = http.request("POST", "/v1/completions", content=json.dumps(body), headers=headers)
    assert reply.headers["x-ratelimit-remaining-tokens"] == str(1000 - 5 - 3 * 20)


def test_unused_tokens_come_back_once():
    clock = Clock()
    gate = Gate(LiveKeys(), QuotaConfig(tokens_per_min=100), clock=clock)
    caller = gate.enter(None)
    caller.charge(80)
    caller.settle(30)
    caller.settle(30)
    assert caller.headers()["x-ratelimit-remaining-tokens"] == "70"
    other = gate.enter(None)
    other.charge(50)
    other.settle(60)
    assert other.headers()["x-ratelimit-remaining-tokens"] == "20"


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_counts_as_running_until_its_answer_is_sent(keyed, stream):
    http, good, gate = keyed(concurrent_requests=1)
    headers = {**good, "content-type": "application/json"}
    body = {"model": "tiny", "prompt": "x", "max_tokens": 40, "ignore_eos": True, "stream": stream}
    content = json.dumps(body).encode()

    async def two():
        one = asyncio.create_task(
            http.arequest("POST", "/v1/completions", content=content, headers=headers)
        )
        while not (gate.open_requests or one.done()):
            await asyncio.sleep(0)
        other = await http.arequest("GET", "/v1/models", headers=headers)
        return await one, other

    one, other = http.runner.run(two())
    assert (one.status_code, other.status_code) == (200, 429)
    assert other.headers["retry-after"] == "1"
    if stream:
        assert events(one)[-1] == "[DONE]"
    assert gate.open_requests == 0
    assert http.request("GET", "/v1/models", headers=headers).status_code == 200


def test_the_door_closes_when_it_is_full_for_all_but_the_open_paths(keyed):
    http, good, gate = keyed(most=1)
    inside = gate.enter(good["Authorization"])
    reply = http.request("GET", "/v1/models", headers=good)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert http.request("GET", "/health").status_code == 200
    inside.leave()
    inside.leave()
    assert gate.open_requests == 0
    assert http.request("GET", "/v1/models", headers=good).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/health"])
def test_giant_headers_and_paths_are_refused_before_anything_is_done_with_them(keyed, path):
    """CVE-2025-48956."""
    http, good, _ = keyed()
    assert http.request("GET", path, headers={**good, "x": "y" * 20_000}).status_code == 200
    for key in ("x", "Authorization"):
        reply = http.request("GET", path, headers={**good, key: "y" * 33_000})
        assert reply.status_code == 431
        assert reply.json()["error"]["code"] == "headers_too_large"
    long = http.request("GET", f"{path}?{'a' * 33_000}", headers=good)
    assert long.status_code == 431


def test_callers_share_a_salt_only_with_themselves(tmp_path):
    made = {name: new_key(name) for name in "ab"}
    (tmp_path / "keys").write_text("\n".join(line for _, line in made.values()))
    gate = Gate(LiveKeys(str(tmp_path / "keys")))
    salts = {n: gate.enter(f"Bearer {key}").salt for n, (key, _) in made.items()}
    assert salts["a"] != salts["b"]
    assert gate.enter(f"Bearer {made['a'][0]}").salt == salts["a"]


@pytest.mark.parametrize("path", ["/v1/models", "/health"])
@pytest.mark.parametrize("started", [False, True])
def test_what_fails_inside_is_a_500_and_its_words_stay_out_of_answers_and_logs(
    caplog, path, started
):
    async def failing(scope, receive, send):
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError(" ".join(["canary", "prompt"]))

    gate = Gate(LiveKeys())
    sent = []

    async def send(message):
        sent.append(message)

    async def ask():
        scope = {"type": "http", "path": path, "headers": [], "method": "GET"}
        await Door(failing, gate)(scope, None, send)

    with caplog.at_level(logging.DEBUG):
        if started:
            with pytest.raises(ConnectionAbortedError):
                asyncio.run(ask())
        else:
            asyncio.run(ask())
    assert sent[0]["status"] == (200 if started else 500)
    assert "ValueError" in caplog.text
    assert "test_gate.py" in caplog.text
    assert "canary prompt" not in caplog.text + repr(sent)
    assert gate.open_requests == 0


def test_a_handler_finds_its_caller():
    seen = []

    async def app(scope, receive, send):
        from starlette.requests import Request

        seen.append(caller_of(Request(scope)).name)

    scope = {"type": "http", "path": "/v1/models", "headers": []}
    asyncio.run(Door(app, Gate(LiveKeys()))(scope, None, None))
    assert seen == ["anonymous"]
