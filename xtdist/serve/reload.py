"""New weights in a running replica: loaded beside the old ones, proved, and put in their place.

Nothing of a request changes under it: whoever got the old model finishes with it. The next model is
loaded only when the one before it is gone, so that beside the models that serve there is at most
one copy more, of one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import weakref
from collections.abc import Callable, Iterable

from xtdist.config import CheckpointError, ConfigError, UserError
from xtdist.serve.backend import Backend
from xtdist.serve.config import AppConfig, ServedModel
from xtdist.serve.loading import load_served
from xtdist.serve.places import locate
from xtdist.serve.served import Served

log = logging.getLogger(__name__)
_LOOK_S = 0.05  # seconds between looks at an old model that is still read
_COLLECT_LOOKS = 20  # looks at an idle one, until reference cycles are searched for

Load = Callable[[ServedModel, AppConfig], Served]


class Reloader:
    """Keeps the models of ``backend`` at the weights that they should have.

    Args:
        load: makes a model of located weights; runs in a thread.
    """

    def __init__(self, backend: Backend, config: AppConfig, *, load: Load = load_served) -> None:
        self._backend = backend
        self._config = config
        self._load = load
        self._wanted: dict[str, ServedModel] = {}
        self._serving: dict[str, ServedModel] = {}  # located
        self._bad: dict[str, ServedModel] = {}  # located, and not to be tried again
        self._said: dict[str, str] = {}  # the last failure that the log tells of
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def started(self) -> bool:
        return self._task is not None

    async def start(self, models: Iterable[ServedModel]) -> None:
        """Load all of them, and look after them from then on.

        Raises:
            CheckpointError: weights that can not be served.
            ConfigError: models or sizes that do not go together.
        """
        for spec in models:
            located = await self._locate(spec)
            self._backend.put(await self._proved(located))
            self._wanted[spec.name], self._serving[spec.name] = spec, located
        self._task = asyncio.create_task(self._look_after())

    def want(self, models: Iterable[ServedModel]) -> None:
        """Serve these weights from now on, as soon as they are loaded."""
        self._wanted |= {spec.name: spec for spec in models}
        self._bad.clear()
        self._news.set()

    def stop(self) -> None:
        """Load nothing any more."""
        if self._task is not None:
            self._task.cancel()

    async def _look_after(self) -> None:
        every_s = self._config.reload_every_s
        while True:
            follows = any(spec.follow for spec in self._wanted.values())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), every_s if follows else None)
            asked = self._news.is_set()
            self._news.clear()
            for spec in list(self._wanted.values()):
                if asked or spec.follow:
                    await self._look_at(spec)

    async def _look_at(self, spec: ServedModel) -> None:
        """Replace one model if it should have other weights; it stays where that fails."""
        located = None
        try:
            located = await self._locate(spec)
            if located in (self._serving.get(spec.name), self._bad.get(spec.name)):
                return
            served = await self._proved(located)
        except Exception as e:
            self._failed(spec, e)
            if located is not None and isinstance(e, CheckpointError | ConfigError):
                self._bad[spec.name] = located  # of anything else, trying again may help
            return
        self._serving[spec.name] = located
        self._said.pop(spec.name, None)
        await self._swap(served)

    def _failed(self, spec: ServedModel, error: Exception) -> None:
        """Say it, once while it stays the same."""
        self._backend.failed_reloads[spec.name] += 1
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if self._said.get(spec.name) != said:
            self._said[spec.name] = said
            log.error("model %s stays as it is, the new weights failed: %s", spec.name, said)

    async def _locate(self, spec: ServedModel) -> ServedModel:
        return await asyncio.to_thread(locate, spec, registry=self._config.registry)

    async def _proved(self, spec: ServedModel) -> Served:
        """The loaded model, once it has generated a token.

        Raises:
            CheckpointError: it did not.
        """
        served = await asyncio.to_thread(self._load, spec, self._config)
        try:
            healthy = await served.healthy(self._config.limits.request_timeout_s)
        except BaseException:
            served.thread.stop()
            raise
        if not healthy:
            await asyncio.to_thread(served.thread.stop)
            raise CheckpointError(f"{spec.weights}: was loaded, but does not generate")
        return served

    async def _swap(self, served: Served) -> None:
        """Put it in, and wait until nobody has the old one any more."""
        name, digest = served.name, served.digest
        old = self._backend.put(served)
        self._backend.reloads[name] += 1
        log.info("model %s now has the weights %s", name, digest[:16])
        if old is None:
            return
        thread, rest = old.thread, weakref.ref(old)
        self._backend.leaving = thread
        del old, served
        idle = 0
        while rest() is not None:
            await asyncio.sleep(_LOOK_S)
            idle = 0 if thread.running else idle + 1
            if idle and idle % _COLLECT_LOOKS == 0:
                gc.collect()  # a request that failed may hold its frames in a cycle
        await asyncio.to_thread(thread.stop)
        self._backend.leaving = None
