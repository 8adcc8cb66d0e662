"""Serving for as long as this process lives: start, wait for Ctrl-C, stop what was started."""

from __future__ import annotations

import ipaddress
import logging
import re
import signal
import socket
import threading
from contextlib import ExitStack
from types import FrameType, TracebackType

from xtdist.config import ConfigError, ResourceError
from xtdist.connect import check_room, connect, disconnect
from xtdist.serve.config import ServeConfig
from xtdist.serve.loading import resolve

APP = "xtdist"
_ERROR = re.compile(r"[\w.]*(Error|Exception): ")
_OURS = re.compile(r"^xtdist\.config\.errors\.\w+: ")


class Server:
    """A running application. ``stop`` (or leaving a ``with``) ends what :func:`run` started, Ray
    only if it was not running before.

    Args:
        url: where clients find it, without ``/v1``.
        undo: what stops it.
    """

    def __init__(self, url: str, undo: ExitStack) -> None:
        self.url = url
        self._undo = undo

    def stop(self) -> None:
        """Twice is once."""
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


def check(config: ServeConfig) -> ServeConfig:
    """Find out what would go wrong before anything is started: the port, the key file, the weights.

    Returns:
        The config with absolute paths, as the replicas need them.

    Raises:
        ResourceError: the address can not be listened on.
        ConfigError: a key file that can not be read, or none for a host that others reach.
        CheckpointError: weights that can not be served.
    """
    _check_port(config.host, config.port)
    if config.api_keys_file is None and not _is_loopback(config.host):
        raise ConfigError(
            f"host: got {config.host!r} without api_keys_file: whoever reaches it could use it; "
            "name a file of keys, or listen on 127.0.0.1"
        )
    return resolve(config)


def run(config: ServeConfig, *, address: str | None = None, block: bool = True) -> Server:
    """Serve ``config`` on a Ray cluster.

    Args:
        address: of a running cluster; None: the one in RAY_ADDRESS (as inside a submitted job),
            else one that is started here and ends with the server.
        block: wait for SIGINT or SIGTERM, then stop. Otherwise return the running server at once.

    Raises:
        UserError: see :func:`check`; or the cluster can not be reached, is too small, or the
            replicas do not come up.
    """
    config = check(config)
    with ExitStack() as undo:
        if connect(address):
            undo.callback(disconnect)
        check_room("replicas", config.replicas, cpus=config.cpus, gpus=config.gpus)
        _deploy(config, undo)
        server = Server(f"http://{config.host}:{config.port}", undo.pop_all())
    if block:
        with server:
            server.wait()
    return server


def _deploy(config: ServeConfig, undo: ExitStack) -> None:
    """Start Ray Serve with the application in it; ``undo`` gets what stops it."""
    try:
        from ray import serve

        from xtdist.serve.app import application
    except ImportError as e:
        raise ResourceError(
            f"serving needs a package that is missing ({e.name}); install it with: "
            "pip install 'xtdist[serve]'"
        ) from None
    if serve.status().proxies:
        raise ResourceError(
            "Ray Serve is running on this cluster already, at a host and port of its own; add the "
            "model there with 'serve deploy', or stop it with 'serve shutdown'"
        )
    # Its lines would say that host and port were ignored, when they were just set.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location="HeadOnly", http_options={"host": config.host, "port": config.port})
    undo.callback(serve.shutdown)
    try:
        serve.run(application(config), name=APP, route_prefix="/")
    except RuntimeError as e:
        raise ResourceError(f"the application did not start: {_reason() or e}") from None


def _reason() -> str:
    """The last exception that Ray Serve reports of our replicas."""
    from ray import serve

    status = serve.status().applications.get(APP)
    messages = [d.message for d in status.deployments.values()] if status is not None else []
    lines = [line.strip() for m in messages for line in m.splitlines()]
    errors = [line for line in lines if _ERROR.match(line)]
    return _OURS.sub("", errors[-1]) if errors else ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_port(host: str, port: int) -> None:
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as e:
        raise ResourceError(
            f"{host}:{port}: can't listen there ({e.strerror or e}); set host and port to a free "
            "address of this machine"
        ) from None
