"""An S3 server on loopback whose requests can be made to fail."""

from __future__ import annotations

import http.client
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest


class Outage:
    """Before the server: answers 503 to ``share`` of the requests for which ``hits`` is true, and
    counts them."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.quiet()

    def quiet(self) -> None:
        self.hits: Callable[[str, str], bool] = lambda method, path: False
        self.count = 0

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        if self.hits(environ["REQUEST_METHOD"], environ["PATH_INFO"]):
            self.count += 1
            start("503 Service Unavailable", [("Content-Length", "0")])
            return [b""]
        return self.app(environ, start)


@pytest.fixture(scope="session")
def s3() -> Iterator[tuple[int, Outage]]:
    """Port and outage of a server with the bucket ``bucket``."""
    from moto.server import ThreadedMotoServer

    patch = pytest.MonkeyPatch()
    for name in [n for n in os.environ if n.lower().endswith("_proxy") or n.startswith("AWS_")]:
        patch.delenv(name)
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    outage = Outage(server._server.app)
    server._server.app = outage
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("PUT", "/bucket", headers={"Authorization": "AWS test:test"})
    assert connection.getresponse().status == 200
    yield port, outage
    server.stop()
    patch.undo()


@pytest.fixture
def outage(s3: tuple[int, Outage]) -> Iterator[Outage]:
    s3[1].quiet()
    yield s3[1]
    s3[1].quiet()


@pytest.fixture
def bucket(
    s3: tuple[int, Outage],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """The URL of a prefix of the test's own; the endpoint is in the environment, as users have it;
    the host's cache is the test's own."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3[0]}")
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    return f"s3://bucket/{uuid.uuid4().hex[:12]}/run"
