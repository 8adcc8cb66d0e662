"""What a replica tells Prometheus: on ``GET /metrics``, and by Ray for a whole cluster.

Everything is declared once, in a registry of this replica; Ray is given the same samples every few
seconds, so that it costs nothing per token. Labels are the model, the route and the status: never
anything that a client has written.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xtdist.decode.stats import EngineStats
from xtdist.serve.errors import ApiError
from xtdist.serve.job import Event, Job

if TYPE_CHECKING:
    from xtdist.serve.backend import Backend

PATH = "/metrics"
_CLIENT_GONE = 499
_PUBLISH_S = 5.0
_OF_THIS_MOMENT = (
    *("running", "waiting", "sequences"),
    *("pages_used", "pages_cached", "pages_total"),
)
_LATENCIES_S = tuple(
    x * 10.0**e for e in range(-3, 2) for x in (1, 1.5, 2, 3, 5, 7)
)  # 1 ms to 70 s


class Meter:
    """The requests of one model, as the event loop delivers what was made for them.

    Args:
        name: of the model.
    """

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._queue = metrics.queue.labels(name)
        self._first = metrics.first_token.labels(name)
        self._between = metrics.between_tokens.labels(name)
        self._whole = metrics.whole.labels(name)
        self._left = metrics.disconnects.labels(name)
        self._slow = metrics.slow_readers.labels(name)

    def delivered(self, job: Job, event: Event, *, now: float) -> None:
        """``event`` is on its way to the reader of ``job``. Tokens that one step has made for one
        request count as one."""
        if not job.measured:
            return
        if isinstance(event, ApiError):
            if event.code == "slow_reader":
                self._slow.inc()
            return
        if job.last is None:
            self._first.observe(now - job.began)
            self._queue.observe((job.started or now) - job.began)
        else:
            self._between.observe(now - job.last)
        job.last = now
        if job.over:
            self._whole.observe(now - job.began)

    def left(self, job: Job) -> None:
        """Nobody reads ``job`` any more, and it was not over."""
        if job.measured:
            self._left.inc()

    def cut(self, job: Job) -> None:
        """The client did not take a piece of its stream in time."""
        if job.measured:
            self._slow.inc()


class Metrics:
    """The registry of one replica.

    Args:
        backend: whose models, door and reloads are read when somebody asks.
    """

    def __init__(self, backend: Backend) -> None:
        self.registry = registry = CollectorRegistry()

        def seconds(name: str, about: str) -> Histogram:
            return Histogram(
                f"xtdist_{name}_seconds", about, ["model"], buckets=_LATENCIES_S, registry=registry
            )

        self.requests = Counter(
            "xtdist_requests",
            "Requests that were answered, 429: rate limited, 499: the client left before",
            ["route", "status"],
            registry=registry,
        )
        self.first_token = seconds("first_token", "From admission to the first token")
        self.between_tokens = seconds("between_tokens", "Between two deliveries of tokens")
        self.whole = seconds("request", "From admission to the last token")
        self.queue = seconds("queue", "From admission to the first step for a request")
        self.disconnects = Counter(
            "xtdist_disconnects",
            "Requests that were given up before their end",
            ["model"],
            registry=registry,
        )
        self.slow_readers = Counter(
            "xtdist_slow_readers",
            "Requests that were ended because nobody read their answer",
            ["model"],
            registry=registry,
        )
        registry.register(_Read(backend))

    def meter(self, name: str) -> Meter:
        """Of the model with this name."""
        return Meter(self, name)

    async def publish(self) -> None:
        """Give Ray the samples of every moment, for ever; without Ray do nothing."""
        import ray

        if not ray.is_initialized():
            return
        mirror = Mirror(self.registry, replica=replica_name())
        while True:
            await asyncio.sleep(_PUBLISH_S)
            mirror.publish()


class _Read(Collector):
    """What is counted elsewhere, and read when somebody asks."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def collect(self) -> Iterator[Metric]:
        backend = self._backend
        models = backend.models
        for field in dataclasses.fields(EngineStats):
            kind = GaugeMetricFamily if field.name in _OF_THIS_MOMENT else CounterMetricFamily
            about = f"EngineStats.{field.name} of the engine"
            family = kind(f"xtdist_engine_{field.name}", about, labels=["model"])
            for served in models:
                family.add_metric([served.name], getattr(served.thread.stats, field.name))
            yield family
        reloads = CounterMetricFamily(
            "xtdist_reloads", "Times that weights were replaced", labels=["model", "result"]
        )
        for served in models:
            reloads.add_metric([served.name, "done"], backend.reloads[served.name])
            reloads.add_metric([served.name, "failed"], backend.failed_reloads[served.name])
        yield reloads
        inside = "Requests between the door and the end of their answer"
        yield GaugeMetricFamily("xtdist_open_requests", inside, backend.gate.open_requests)


class Counting:
    """The ASGI middleware that counts answers by route and status.

    Args:
        routes: of the application; another path counts as ``other``.
    """

    def __init__(self, app: ASGIApp, *, requests: Counter, routes: list[BaseRoute]) -> None:
        self._app = app
        self._requests = requests
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = _CLIENT_GONE

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, tell)
        finally:
            self._requests.labels(self._route(scope), status).inc()

    def _route(self, scope: Scope) -> str:
        path, root = str(scope["path"]), str(scope.get("root_path", ""))
        path = path.removeprefix(root) or "/"
        known: Any
        for known in self._routes:
            if known.path == path or known.path_regex.fullmatch(path):
                return str(known.path)
        return "other"


def add_metrics(app: FastAPI, metrics: Metrics) -> None:
    """``GET /metrics``, and the counting of all requests."""
    app.add_middleware(Counting, requests=metrics.requests, routes=app.router.routes)

    @app.get(PATH, include_in_schema=False)
    async def scrape(_: Request) -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


class GaugeLike(Protocol):
    """What is used of :class:`ray.util.metrics.Gauge`."""

    def set(self, value: float, tags: dict[str, str]) -> None: ...


class Mirror:
    """Gives the samples of a registry to Ray, under the names that ``/metrics`` has for them. All
    of them are gauges there: a counter of Ray's would have to be told of every change.

    Args:
        replica: a tag on all of them.
        make: a gauge from name, description and names of tags; None: Ray's.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        replica: str,
        make: Callable[[str, str, tuple[str, ...]], GaugeLike] | None = None,
    ) -> None:
        if make is None:
            from ray.util.metrics import Gauge

            make = Gauge
        self._registry = registry
        self._replica = replica
        self._make = make
        self._gauges: dict[str, GaugeLike] = {}

    def publish(self) -> None:
        """The samples of this moment."""
        for name, labels, value, about in _samples(self._registry.collect()):
            tags = {**labels, "replica": self._replica}
            gauge = self._gauges.get(name)
            if gauge is None:
                gauge = self._gauges[name] = self._make(name, about, tuple(tags))
            gauge.set(value, tags)


def _samples(metrics: Iterable[Metric]) -> Iterator[tuple[str, dict[str, str], float, str]]:
    for metric in metrics:
        for sample in metric.samples:
            if not sample.name.endswith("_created"):
                yield sample.name, sample.labels, sample.value, metric.documentation


def replica_name() -> str:
    """Of the Ray Serve replica that this runs in; of this moment elsewhere."""
    from ray import serve

    try:
        return str(serve.get_replica_context().replica_id.unique_id)
    except Exception:
        return f"{time.time_ns():x}"
