"""One replica of the application: models, engines and HTTP in a single process.

The engines run in threads of the process that speaks HTTP: passing every token through a second
process would cost ten times the streaming rate.
"""

from __future__ import annotations

import torch
from fastapi import FastAPI

from xtdist.serve.auth import load_keys
from xtdist.serve.config import AppConfig
from xtdist.serve.loading import load_served
from xtdist.serve.routes import Backend, make_app


class Replica:
    """What Ray Serve starts, ``config.replicas`` times.

    Raises:
        CheckpointError: weights that can not be served.
        ConfigError: a key file that can not be read.
    """

    def __init__(self, config: AppConfig) -> None:
        torch.set_num_threads(config.cpus)
        self.backend = Backend(
            models=[load_served(m, config) for m in config.models],
            limits=config.limits,
            keys=load_keys(config.api_keys_file),
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self.backend)

    def check_health(self) -> None:
        """Ray Serve replaces a replica whose engine has failed."""
        broken = [m.name for m in self.backend.models if m.thread.broken]
        if broken:
            raise RuntimeError(f"the engine of {', '.join(broken)} has failed")

    def __del__(self) -> None:
        backend = getattr(self, "backend", None)
        for served in backend.models if backend is not None else ():
            served.thread.stop()
