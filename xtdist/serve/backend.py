"""What the routes answer with: the models of this moment, their bounds, and the door."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from xtdist.serve.config import LimitsConfig
from xtdist.serve.engine_thread import EngineThread
from xtdist.serve.errors import ApiError, overloaded
from xtdist.serve.gate import Gate
from xtdist.serve.metrics import Metrics
from xtdist.serve.served import Served


class Backend:
    """Models by name. An entry may be replaced while requests run: a request asks once, and what
    it got stays as it is until it lets go of it. Used in one event loop.

    Args:
        models: to begin with.

    Attributes:
        draining: nothing new is taken any more.
        leaving: the engine thread of a model that was replaced and is still read.
        reloads, failed_reloads: by name of the model, since the start.
        metrics: of all of this.
    """

    def __init__(self, *, limits: LimitsConfig, gate: Gate, models: Iterable[Served] = ()) -> None:
        self.limits = limits
        self.gate = gate
        self.draining = False
        self.leaving: EngineThread | None = None
        self.reloads: Counter[str] = Counter()
        self.failed_reloads: Counter[str] = Counter()
        self._models: dict[str, Served] = {}
        self.metrics = Metrics(self)
        for served in models:
            self.put(served)

    @property
    def models(self) -> tuple[Served, ...]:
        return tuple(self._models.values())

    @property
    def threads(self) -> list[EngineThread]:
        """All that may have requests."""
        threads = [served.thread for served in self.models]
        return threads if self.leaving is None else [*threads, self.leaving]

    def check_room(self) -> None:
        """Refuse a request before it is read when no model has room for any: in a flood, what is
        spent on those that are refused is lost to the others.

        Raises:
            ApiError: 503 with the time to come back.
        """
        if self._models and not any(served.thread.has_room for served in self.models):
            raise overloaded(min(served.thread.wait_s for served in self.models))

    def find(self, name: str) -> Served:
        """The model that answers a request; call it once for each.

        Raises:
            ApiError: 404 there is none of this name; 503 the server is about to stop.
        """
        if self.draining:
            raise shutting_down()
        if name not in self._models:
            raise ApiError(
                404,
                "there is no model of this name; GET /v1/models lists those that there are",
                param="model",
                code="model_not_found",
            )
        return self._models[name]

    def put(self, served: Served) -> Served | None:
        """Let ``served`` answer from now on; the one of its name that did until now."""
        served.thread.meter = self.metrics.meter(served.name)
        old = self._models.get(served.name)
        self._models[served.name] = served
        return old


def shutting_down() -> ApiError:
    """503: this replica takes nothing any more, another one may."""
    return ApiError(
        503, "this server is stopping", code="shutting_down", headers={"Retry-After": "1"}
    )
