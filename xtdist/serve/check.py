"""What would go wrong, found before anything starts."""

from __future__ import annotations

import ipaddress
import socket
import ssl

from xtdist.config import ConfigError, ResourceError
from xtdist.serve.config import ServeConfig
from xtdist.serve.loading import resolve

HA_PROXY = "RAY_SERVE_ENABLE_HA_PROXY"


def check(config: ServeConfig) -> ServeConfig:
    """Look at all that needs no cluster: keys, certificate, weights.

    Returns:
        The config with absolute paths, as the replicas need them.

    Raises:
        ConfigError: a key file or certificate that can not be used, no keys for a server that
            others reach.
        CheckpointError: weights that can not be served.
    """
    reached = config.proxy == "haproxy" or not is_loopback(config.host)
    if not config.has_keys and reached:
        what = "proxy: got 'haproxy'" if config.proxy == "haproxy" else f"host: got {config.host!r}"
        raise ConfigError(
            f"{what} without keys: whoever reaches it could use it; set api_keys_file "
            "(--api-keys-file FILE, to which --new-key NAME adds one) or api_keys_env, or listen "
            "on 127.0.0.1 with proxy ray"
        )
    if config.ssl_certfile is not None:
        _check_certificate(config.ssl_certfile, str(config.ssl_keyfile))
    return resolve(config)


def check_port(host: str, port: int) -> None:
    """Raises ResourceError where nothing can listen at an address."""
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


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_certificate(certfile: str, keyfile: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            certfile, keyfile, password=lambda: ""
        )
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or getattr(e, "reason", None) or type(e).__name__
        raise ConfigError(
            f"ssl_certfile, ssl_keyfile: {certfile} and {keyfile} are no PEM certificate and its "
            f"key without a password ({reason})"
        ) from None
