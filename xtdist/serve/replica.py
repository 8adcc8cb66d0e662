"""One replica of the application: models, engines and HTTP in a single process.

The engines run in threads of the process that speaks HTTP: passing every token through a second
process would cost ten times the streaming rate.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

import torch
from fastapi import FastAPI

from xtdist.config import ConfigError, from_mapping
from xtdist.serve.auth import LiveKeys
from xtdist.serve.backend import Backend, shutting_down
from xtdist.serve.check import HA_PROXY
from xtdist.serve.config import AppConfig, LiveConfig
from xtdist.serve.gate import Gate
from xtdist.serve.reload import Reloader
from xtdist.serve.routes import make_app

log = logging.getLogger(__name__)
_LOOK_S = 0.05


class Replica:
    """What Ray Serve starts, once for each replica. It has its models after the first
    ``reconfigure``.

    Raises:
        ConfigError: a key file that can not be read, or no keys where HAProxy is in front: then
            the replica itself listens as well, on every interface.
    """

    def __init__(self, config: AppConfig) -> None:
        if os.environ.get(HA_PROXY) == "1" and not config.has_keys:
            raise ConfigError(
                f"{HA_PROXY}=1 lets this replica listen on every interface, and there are no keys: "
                "whoever reaches it could use it; set api_keys_file or api_keys_env"
            )
        torch.set_num_threads(config.cpus)
        self._config = config
        keys = LiveKeys(config.api_keys_file, config.api_keys_env)
        self.backend = Backend(
            limits=config.limits,
            gate=Gate(keys, config.quota, limits=config.limits, open_metrics=config.open_metrics),
        )
        self._publishing: asyncio.Task[None] | None = None
        self.reloader = Reloader(self.backend, config)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self.backend)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Ray Serve calls it at the start, and when a :class:`LiveConfig` has changed. The first
        time it returns when the models answer; later at once, because Ray Serve sends this replica
        no requests meanwhile: the new weights are loaded beside those that serve.

        Raises:
            UserError: at the start only; later what is wrong is said in the log, and the models
                stay as they are.
        """
        if not self.reloader.started:
            self._publishing = asyncio.create_task(self.backend.metrics.publish())
            await self.reloader.start(self._models(user_config))
            return
        try:
            self.reloader.want(self._models(user_config))
        except ConfigError as e:
            log.error("the models stay as they are: %s", e)

    def _models(self, user_config: dict[str, Any]) -> Any:
        live = from_mapping(LiveConfig, user_config, where="user_config")
        return live.of(self._config.models)

    async def drain(self) -> int:
        """Take nothing new, let what runs go on for ``drain_s``, then end it with an error.

        Returns:
            How many requests were ended.
        """
        self.backend.draining = True
        self.reloader.stop()
        threads = self.backend.threads
        ends = asyncio.get_running_loop().time() + self._config.drain_s
        while any(t.running for t in threads) and asyncio.get_running_loop().time() < ends:
            await asyncio.sleep(_LOOK_S)
        left = sum(t.running for t in threads)
        for thread in threads:
            thread.fail(shutting_down())
        return left

    def check_health(self) -> None:
        """Ray Serve replaces a replica whose engine has failed, or hangs."""
        limit_s, threads = self._config.limits.stall_timeout_s, self.backend.threads
        broken = [t.name for t in threads if t.broken]
        if broken:
            raise RuntimeError(f"the engine of {', '.join(broken)} has failed")
        stalled = [t.name for t in threads if t.stalled_s > limit_s]
        if stalled:
            raise RuntimeError(f"a step of {', '.join(stalled)} takes more than {limit_s:g} s")
        if not self.backend.models:
            raise RuntimeError("no models: user_config was null; leave it out")

    def __del__(self) -> None:
        if not hasattr(self, "reloader"):
            return
        self.reloader.stop()
        for thread in self.backend.threads:
            thread.stop()
