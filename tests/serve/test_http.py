"""What stands around a completion: routes, bodies, keys, failures, limits of time and queue."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from tiny_server import Http, events

from xtdist.serve.config import LimitsConfig

GOOD = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 1}).encode()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/", 405),
        ("GET", "/docs", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models/tiny", 405),
    ],
)
def test_other_paths_and_methods_get_an_error_of_the_same_form(http, method, path, status):
    reply = http.request(method, path)
    assert reply.status_code == status
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert reply.json()["error"]["code"]


def test_another_model_is_not_found(http):
    reply = http.complete(model="other", prompt="x")
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "model_not_found"
    assert "other" not in reply.text


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (GOOD, {}, 200),
        (GOOD, {"content-type": "application/json; charset=utf-8"}, 200),
        (GOOD, {"content-type": "text/plain"}, 415),
        (GOOD, {"content-type": "application/x-www-form-urlencoded"}, 415),
        (GOOD, {"content-encoding": "gzip"}, 415),
        (b"", {}, 400),
        (b"\xff\xfe", {}, 400),
        (GOOD.replace(b"1}", b"NaN}"), {}, 400),
        (GOOD.replace(b"1}", b"1" * 4400 + b"}"), {}, 400),
        (b"[" * 200_000, {}, 400),
        (b"x" * 300_000, {}, 413),
        (GOOD, {"content-length": "9" * 30}, 413),
        (GOOD, {"content-length": "-1"}, 413),
    ],
)
def test_a_body_that_is_no_small_json_object_is_refused(http, content, headers, status):
    assert http.raw(content, **headers).status_code == status


def test_a_body_without_length_is_cut_off_while_reading(http):
    sent = []

    async def endless():
        while True:
            sent.append(1)
            yield b" " * 65536

    reply = http.raw(endless())
    assert reply.status_code == 413
    assert len(sent) < 10


def test_a_body_that_does_not_arrive_times_out(make_engine, serve_engine):
    app, _ = serve_engine(make_engine(), limits=LimitsConfig(body_timeout_s=0.05))

    async def stuck():
        yield b"{"
        await asyncio.sleep(60)

    reply = Http(app).raw(stuck())
    assert reply.status_code == 408


def test_no_answer_invites_other_origins(http):
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    replies = [http.request(m, "/v1/completions", headers=headers) for m in ("OPTIONS", "GET")]
    replies.append(http.raw(GOOD, **headers))
    for reply in replies:
        assert not [h for h in reply.headers if h.startswith("access-control")]
    assert replies[0].status_code == 405


def test_a_full_queue_gets_503_with_a_time_to_come_back(http):
    body = {"prompt": ["x"] * 8, "max_tokens": 40, "ignore_eos": True}
    replies = http.gather(*[body] * 4)
    assert {r.status_code for r in replies} == {200, 503}
    for reply in replies:
        if reply.status_code == 503:
            assert reply.json()["error"]["code"] == "queue_full"
            assert int(reply.headers["retry-after"]) >= 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_past_its_deadline_is_told_so(make_engine, serve_engine, stream):
    engine = make_engine()
    step = engine.step

    def slow_step():
        time.sleep(0.03)
        return step()

    engine.step = slow_step
    app, served = serve_engine(engine, limits=LimitsConfig(request_timeout_s=0.2))
    http = Http(app)
    reply = http.complete(prompt="x", max_tokens=60, ignore_eos=True, stream=stream)
    if stream:
        *chunks, last = events(reply)
        assert reply.status_code == 200
        assert len(chunks) >= 2
        assert last["error"]["code"] == "deadline_exceeded"
    else:
        assert reply.status_code == 504
        assert reply.headers["x-should-retry"] == "false"
    assert len(engine.pool.free_pages) == engine.pool.num_pages
    assert not served.thread.broken


def test_a_failed_engine_is_an_error_without_details_and_turns_health_red(
    make_engine, serve_engine
):
    engine = make_engine()
    step, calls = engine.step, []

    def failing_step():
        calls.append(1)
        if len(calls) > 4:
            raise RuntimeError("canary /secret/path")
        return step()

    engine.step = failing_step
    app, _ = serve_engine(engine)
    http = Http(app)
    body = {"prompt": "x", "max_tokens": 60, "ignore_eos": True}
    *chunks, last = events(http.complete(**body, stream=True))
    assert "[DONE]" not in chunks
    assert last["error"]["type"] == "server_error"
    reply = http.complete(**body)
    assert reply.status_code == 503  # another replica may
    assert int(reply.headers["retry-after"]) >= 1
    assert "canary" not in reply.text + json.dumps(last)
    assert http.request("GET", "/health").status_code == 503
