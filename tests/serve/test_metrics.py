"""What a replica says of itself adds up with what its clients have seen."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families
from tiny_server import Http, events

from xtdist.serve.auth import LiveKeys
from xtdist.serve.config import LimitsConfig, QuotaConfig
from xtdist.serve.errors import slow_reader
from xtdist.serve.gate import Gate
from xtdist.serve.metrics import Mirror

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
ENGINE = ("running", "waiting", "sequences", "pages_used", "pages_cached", "pages_total")
COUNTED = ("prompt_tokens", "prefix_hit_tokens", "generated_tokens", "preemptions", "drafted")
COUNTED = (*COUNTED, "accepted", "steps")
HISTOGRAMS = ("first_token", "between_tokens", "request", "queue")


def scrape(http: Http, **headers: str) -> Samples:
    reply = http.request("GET", "/metrics", headers=headers)
    assert reply.status_code == 200
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(reply.text)
        for s in family.samples
    }


def of(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((f"xtdist_{name}", tuple(sorted(labels.items()))), 0.0)


def settled(http: Http, served: Any) -> Samples:
    """When the engine's thread has told of its last step."""
    ends = time.monotonic() + 10
    while (served.thread.running or served.thread.stats.running) and time.monotonic() < ends:
        time.sleep(0.01)
    return scrape(http)


def test_what_is_counted_is_what_the_clients_saw(http: Http) -> None:
    served = http.served  # type: ignore[attr-defined]
    whole = [{"prompt": "import ", "max_tokens": n, "ignore_eos": True} for n in (3, 9)]
    pair = {"prompt": ["import os", "import "], "max_tokens": 5, "n": 2, "ignore_eos": True}
    replies = [reply.json() for reply in http.gather(*whole, pair, *[whole[0]] * 6)]
    stream = events(http.complete(**whole[1], stream=True, stream_options={"include_usage": True}))
    usages = [r["usage"] for r in replies] + [stream[-2]["usage"]]
    bad = http.complete(prompt="x", top_k="many")
    lost = http.request("GET", "/v1/a/path/that/nobody/made")
    assert (bad.status_code, lost.status_code) == (400, 404)

    found = settled(http, served)

    def asked(status: int, route: str = "/v1/completions") -> float:
        return of(found, "requests_total", route=route, status=str(status))

    assert (asked(200), asked(400), asked(404, "other")) == (len(usages), 1, 1)
    generated = sum(u["completion_tokens"] for u in usages)
    assert of(found, "engine_generated_tokens_total", model="tiny") == generated
    prompts = sum(len(r["choices"]) // 2 or 1 for r in replies) + 1
    read = of(found, "engine_prompt_tokens_total", model="tiny")
    assert read == sum(u["prompt_tokens"] for u in usages)
    for name in ("first_token", "request", "queue"):
        assert of(found, f"{name}_seconds_count", model="tiny") == len(usages)
    between = of(found, "between_tokens_seconds_count", model="tiny")
    assert 0 < between <= generated - prompts
    first, whole_s = (
        of(found, f"{n}_seconds_sum", model="tiny") for n in ("first_token", "request")
    )
    gaps_s = of(found, "between_tokens_seconds_sum", model="tiny")
    assert first + gaps_s == pytest.approx(whole_s)
    assert 0 <= of(found, "queue_seconds_sum", model="tiny") < first
    for name in ("running", "waiting", "sequences", "pages_used"):
        assert of(found, f"engine_{name}", model="tiny") == 0
    assert of(found, "engine_pages_total", model="tiny") > 0
    assert of(found, "disconnects_total", model="tiny") == 0


def test_everything_that_is_exported_has_a_bounded_label_and_no_words_of_clients(
    http: Http,
) -> None:
    http.complete(prompt="canary", model="canary")
    http.complete(prompt="canary", user="canary", max_tokens=1)
    http.request("GET", "/canary")
    found = scrape(http)
    names = {name for name, _ in found}
    expected = {f"xtdist_engine_{n}" for n in ENGINE}
    expected |= {f"xtdist_engine_{n}_total" for n in COUNTED}
    expected |= {f"xtdist_{n}_seconds_{s}" for n in HISTOGRAMS for s in ("bucket", "sum", "count")}
    expected |= {"xtdist_requests_total", "xtdist_disconnects_total", "xtdist_reloads_total"}
    expected |= {"xtdist_slow_readers_total", "xtdist_open_requests"}
    assert expected <= names
    assert {n for n in names if not n.endswith("_created")} == expected
    labels = {key for _, pairs in found for key, _ in pairs}
    assert labels == {"model", "route", "status", "le", "result"}
    values = {value for _, pairs in found for key, value in pairs if key != "le"}
    assert "canary" not in str(values)


def test_clients_that_leave_and_clients_that_do_not_read_are_told_apart(
    make_engine: Any, serve_engine: Any
) -> None:
    app, served = serve_engine(make_engine())
    http = Http(app)
    body = b'{"model": "tiny", "prompt": "import ", "max_tokens": 80, "ignore_eos": true, '
    body += b'"stream": true}'
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "asgi": {"spec_version": "2.4"},
    }

    async def leaves() -> None:
        """After its first frame."""
        first = asyncio.Event()
        news = iter([{"type": "http.request", "body": body}])

        async def receive() -> Any:
            message = next(news, None)
            if message is None:
                await first.wait()
            return message or {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                first.set()
                raise OSError("gone")

        await app(scope, receive, send)

    http.runner.run(leaves())
    found = settled(http, served)
    assert of(found, "disconnects_total", model="tiny") == 1
    assert of(found, "slow_readers_total", model="tiny") == 0
    assert of(found, "request_seconds_count", model="tiny") == 0
    http.runner.close()


def test_a_client_that_takes_no_frame_counts_as_a_slow_reader(
    make_engine: Any, serve_engine: Any
) -> None:
    app, served = serve_engine(make_engine(), limits=LimitsConfig(send_timeout_s=0.05))
    http = Http(app)

    async def stuck() -> None:
        body = b'{"model": "tiny", "prompt": "a", "max_tokens": 80, "ignore_eos": true, '
        news = [{"type": "http.request", "body": body + b'"stream": true}'}]

        async def receive() -> Any:
            return news.pop() if news else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        scope = {"type": "http", "method": "POST", "path": "/v1/completions"}
        scope |= {"query_string": b"", "asgi": {"spec_version": "2.4"}}
        await app({**scope, "headers": [(b"content-type", b"application/json")]}, receive, send)

    http.runner.run(stuck())
    found = settled(http, served)
    assert of(found, "slow_readers_total", model="tiny") == 1
    assert of(found, "disconnects_total", model="tiny") == 0
    http.runner.close()


@pytest.mark.parametrize("is_open", [False, True])
def test_metrics_need_a_key_unless_they_are_declared_open(
    make_engine: Any, serve_engine: Any, monkeypatch: pytest.MonkeyPatch, is_open: bool
) -> None:
    monkeypatch.setenv("KEYS", f"ops sha256:{hashlib.sha256(b'xt-' + b'k' * 43).hexdigest()}")
    gate = Gate(LiveKeys(env="KEYS"), QuotaConfig(requests_per_min=2), open_metrics=is_open)
    app, _ = serve_engine(make_engine(), gate=gate)
    http = Http(app)
    assert http.request("GET", "/metrics").status_code == (200 if is_open else 401)
    key = {"authorization": "Bearer xt-" + "k" * 43}
    if is_open:
        for _ in range(3):
            http.request("GET", "/v1/models", headers=key)
    found = scrape(http, **key)
    status, route = ("429", "/v1/models") if is_open else ("401", "/metrics")
    assert of(found, "requests_total", route=route, status=status) == 1
    http.runner.close()


def test_ray_is_given_the_samples_of_the_registry_under_their_names() -> None:
    registry = CollectorRegistry()
    Counter("a", "about a", ["model"], registry=registry).labels("m").inc(3)
    Gauge("b", "about b", registry=registry).set(-2)
    histogram = Histogram("c", "about c", buckets=(1, 2), registry=registry)
    for value in (0.5, 1.5, 9):
        histogram.observe(value)
    made: dict[str, tuple[str, tuple[str, ...]]] = {}
    told: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    class Fake:
        def __init__(self, name: str, about: str, tags: tuple[str, ...]) -> None:
            assert name not in made
            self.name = name
            made[name] = (about, tags)

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert set(tags) == set(made[self.name][1])
            told[self.name, tuple(sorted(tags.items()))] = value

    mirror = Mirror(registry, replica="r1", make=Fake)
    mirror.publish()
    mirror.publish()
    r = ("replica", "r1")
    assert told == {
        ("a_total", (("model", "m"), r)): 3,
        ("b", (r,)): -2,
        ("c_bucket", (("le", "1.0"), r)): 1,
        ("c_bucket", (("le", "2.0"), r)): 2,
        ("c_bucket", (("le", "+Inf"), r)): 3,
        ("c_count", (r,)): 3,
        ("c_sum", (r,)): 11,
    }
    assert made["a_total"] == ("about a", ("model", "replica"))


def test_reloads_are_counted_by_their_result(make_engine: Any, serve_engine: Any) -> None:
    from xtdist.serve.backend import Backend

    _, served = serve_engine(make_engine())
    backend = Backend(limits=LimitsConfig(), gate=Gate(LiveKeys()), models=[served])
    backend.reloads["tiny"] += 2
    backend.failed_reloads["tiny"] += 1
    value = backend.metrics.registry.get_sample_value
    assert value("xtdist_reloads_total", {"model": "tiny", "result": "done"}) == 2
    assert value("xtdist_reloads_total", {"model": "tiny", "result": "failed"}) == 1
    assert slow_reader().status == 408
