"""A real S3 server on loopback, also behind a proxy that injects faults."""

from __future__ import annotations

import hashlib
import http.client
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from object_store import Faults, uri

PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
AWS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[int]:
    """The port of a moto server with the bucket ``bucket``."""
    from moto.server import ThreadedMotoServer

    patch = pytest.MonkeyPatch()
    for name in (*PROXIES, *AWS):
        patch.delenv(name, raising=False)
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("PUT", "/bucket", headers={"Authorization": "AWS test:test"})
    assert connection.getresponse().status == 200
    yield port
    server.stop()
    patch.undo()


@pytest.fixture
def remote(s3_server: int, request: pytest.FixtureRequest) -> Callable[[str], str]:
    """The URI of a path of the test's own."""
    own = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    return lambda name: uri(s3_server, f"{own}/{name}")


@pytest.fixture(scope="session")
def faults_server(s3_server: int) -> Iterator[Faults]:
    faults = Faults(s3_server)
    yield faults
    faults.server.shutdown()


@pytest.fixture
def faults(faults_server: Faults) -> Iterator[Faults]:
    """The proxy, quiet at first, with a sequence of faults of its own per test."""
    faults_server.share, faults_server.did = 0.0, {}
    faults_server._rng = np.random.default_rng(0)
    yield faults_server
    faults_server.share = 0.0
