"""A Ray cluster to work on: the one in RAY_ADDRESS, or one that is started here and ends here."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from pathlib import Path

from xtdist.config import ResourceError

ADDRESS = "RAY_ADDRESS"


def connect(address: str | None = None, *, dashboard: bool = False) -> bool:
    """Connect this process to Ray; whether a cluster was started for it (``ray.shutdown`` ends it).

    Args:
        address: of a running cluster; None: RAY_ADDRESS (set inside a submitted job), else a new
            local cluster, with token authentication.

    Raises:
        ResourceError: the cluster can't be reached or started.
    """
    target = address or os.environ.get(ADDRESS) or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if target == "local":
        _require_token()
    _check_reachable(target)
    import ray

    if ray.is_initialized():
        return False
    options = {"include_dashboard": dashboard} if target == "local" else {}
    if target == "local":
        print("starting a local Ray cluster …", flush=True)
    try:
        ray.init(address=target, logging_level=logging.ERROR, log_to_driver=False, **options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as e:
        raise ResourceError(
            f"no Ray cluster at {target}: {str(e).strip().splitlines()[0]}; check {ADDRESS} and "
            "the token (RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH)"
        ) from None
    return target == "local"


def _check_reachable(target: str) -> None:
    """Find out in seconds whether something listens at ``host:port``; Ray tries for minutes."""
    host, colon, port = target.rpartition(":")
    if "://" in target or not (colon and host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as e:
        raise ResourceError(
            f"no Ray cluster at {target}: nothing answers there ({e}); check {ADDRESS}, or unset "
            "it to start a local cluster"
        ) from None


def disconnect() -> None:
    """End the connection, and the cluster if it was started here."""
    import ray

    ray.shutdown()


def _require_token() -> None:
    """Have a cluster that is started here answer only to holders of a token, in this environment.

    Ray reads RAY_AUTH_MODE at its import. If that is past, the variable must stay as it was: unset,
    ``ray.init`` turns the token on by itself; set now, only the children would see it. It reads a
    token once as well: where it may have one from its file, another would be the children's alone.
    """
    imported = "ray" in sys.modules
    if not imported:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    token = os.environ.get("RAY_AUTH_MODE", "token") == "token"
    read = imported and (Path.home() / ".ray" / "auth_token").exists()
    if token and "RAY_AUTH_TOKEN_PATH" not in os.environ and not read:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def check_room(key: str, count: int, *, cpus: float, gpus: float) -> None:
    """Whether the cluster could ever run ``count`` processes; waiting for ever is no answer.

    Args:
        key: the config key that sets ``count``, for the message.

    Raises:
        ResourceError: it could not; says what is wanted and what is there.
    """
    import ray

    have = ray.cluster_resources()
    for name, each in (("CPU", cpus), ("GPU", gpus)):
        found = have.get(name, 0)
        if count * each > found:
            raise ResourceError(
                f"{key}: {count} with {each:g} {name} each need {count * each:g} {name}s; the "
                f"cluster has {found:g}. Set {key} to at most {int(found // each)}, take fewer "
                f"{name}s for each, or add nodes ({ADDRESS} names the cluster)"
            )
