"""The application builder: ``import_path: xtdist.serve.app:build`` in a Ray Serve YAML."""

from typing import Any

from ray import serve
from ray.serve import Application

from xtdist.config import from_mapping
from xtdist.serve.config import AppConfig
from xtdist.serve.loading import resolve
from xtdist.serve.replica import Replica

# Room beside the engines' queues for requests that never reach one: lists, health, refusals. The
# engine refuses first, with a clear answer, before Ray Serve would make a request wait unseen.
_SPARE_REQUESTS = 32


def build(args: dict[str, Any]) -> Application:
    """The application of an :class:`AppConfig` given as plain data.

    Host and port are not part of it: they belong to ``http_options`` of the YAML.

    Raises:
        ConfigError: an unknown key (with the nearest name), a wrong type or range.
        CheckpointError: weights that can not be served.
    """
    return application(resolve(from_mapping(AppConfig, args, where="args")))


def application(config: AppConfig) -> Application:
    """The Ray Serve application of ``config``."""
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="replica",
        num_replicas=config.replicas,
        ray_actor_options={"num_cpus": config.cpus, "num_gpus": config.gpus},
        max_ongoing_requests=config.capacity + _SPARE_REQUESTS,
        max_queued_requests=config.capacity,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=20,
    )
    app: Application = deployment.bind(config)
    return app
