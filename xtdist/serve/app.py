"""The application builder: ``import_path: xtdist.serve.app:build`` in a Ray Serve YAML."""

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import RayServeException

from xtdist.config import UserError, from_mapping
from xtdist.serve.config import AppConfig
from xtdist.serve.loading import resolve
from xtdist.serve.replica import Replica

DEPLOYMENT = "replica"
# Room beside the engines' queues for requests that never reach one: lists, health, refusals. The
# engine refuses first, with a clear answer, before Ray Serve would make a request wait unseen.
_SPARE_REQUESTS = 32
_END_S = 10.0  # for what is left when the last stream has ended or run out of time


def build(args: dict[str, Any]) -> Application:
    """The application of an :class:`AppConfig` given as plain data.

    Host and port are not part of it: they belong to ``http_options`` of the YAML.

    Raises:
        RayServeException: an unknown key (with the nearest name), a wrong type or range, weights
            that can not be served. Of this kind of error ``serve status`` shows the text alone.
    """
    try:
        return application(resolve(from_mapping(AppConfig, args, where="args")))
    except UserError as e:
        raise RayServeException(" ".join(str(e).split())) from None


def application(config: AppConfig) -> Application:
    """The Ray Serve application of ``config``.

    A replica that ends takes nothing new and has the time that the longest request may take: every
    stream ends by itself, or with the error that its time is up.
    """
    options: dict[str, Any] = {"num_replicas": config.replicas}
    if config.autoscaling is not None:
        options = {"autoscaling_config": autoscaling(config)}
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name=DEPLOYMENT,
        ray_actor_options={"num_cpus": config.cpus, "num_gpus": config.gpus},
        max_ongoing_requests=config.capacity + _SPARE_REQUESTS,
        max_queued_requests=config.capacity,
        user_config={},
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=config.limits.request_timeout_s + _END_S,
        **options,
    )
    app: Application = deployment.bind(config)
    return app


def autoscaling(config: AppConfig) -> AutoscalingConfig:
    """Ray Serve's settings: replicas are added before the engines of one are full."""
    auto = config.autoscaling
    assert auto is not None
    return AutoscalingConfig(
        min_replicas=auto.min_replicas,
        max_replicas=auto.max_replicas,
        target_ongoing_requests=auto.load * config.engine.max_sequences * len(config.models),
        look_back_period_s=auto.look_back_s,
        upscale_delay_s=auto.upscale_delay_s,
        downscale_delay_s=auto.downscale_delay_s,
    )
