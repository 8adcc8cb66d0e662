"""Ways to bring an endpoint up, on clusters of their own: Ray Serve's YAML with weights changed
while clients ask, HAProxy, TLS, and the end by SIGTERM."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import httpx
import openai
import pytest
import yaml
from openai import OpenAI
from test_reload import alone
from test_serve_check import certificate
from tiny_server import free_port, save_tiny

from xtdist.serve import new_key

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.alone]
REPO = Path(__file__).parents[2]
PROMPT = "import "
SIZES = {"max_sequences": 4, "max_waiting": 64, "seed": 7}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two sets of weights, and for each its fingerprint and what it writes."""
    folder = tmp_path_factory.mktemp("weights")
    folders = [save_tiny(folder / f"w{seed}", seed=seed) for seed in (1, 2)]
    return [(str(f), *alone(f, max_tokens=24)) for f in folders]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def ask(client, **options):
    greedy = {"temperature": 0, "max_tokens": 24, "extra_body": {"ignore_eos": True}}
    return client.completions.create(model="tiny", prompt=PROMPT, **{**greedy, **options})


def answer(client):
    """(fingerprint, text) of a streamed answer."""
    chunks = list(ask(client, stream=True))
    (made_by,) = {c.system_fingerprint for c in chunks}
    return made_by, "".join(c.choices[0].text for c in chunks)


@pytest.fixture
def cluster():
    import ray
    from ray import serve

    from xtdist.connect import connect, disconnect

    assert connect()
    yield
    serve.shutdown()
    disconnect()
    assert not ray.is_initialized()


def deploy(tree):
    """What ``serve deploy`` asks of the controller."""
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(tree))


def wait_for(condition, seconds=300.0):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not come"
        time.sleep(0.2)


def test_weights_changed_by_serve_deploy_fail_no_request_and_restart_nothing(sets, cluster):
    from ray import serve

    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    tree = yaml.safe_load((REPO / "jobs/configs/serve_demo.yaml").read_text())
    (application,) = tree["applications"]
    application["args"] = {
        "models": [{"name": "tiny", "weights": sets[0][0]}],
        "engine": SIZES,
        "cpus": 1,
        "replicas": 2,
    }

    def state():
        return serve.status().applications["xtdist"]

    deploy({**tree, "applications": [{**application, "args": {"models": [], "cpuz": 1}}]})
    wait_for(lambda: state().status.value == "DEPLOY_FAILED")
    said = state().message
    assert "did you mean 'cpus'" in said
    assert "Traceback" not in said
    deploy(tree)
    wait_for(lambda: state().status.value == "RUNNING")
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0, timeout=60)
    replicas = replica_ids()
    seen, failures, ended = set(), [], threading.Event()

    def load():
        while not ended.is_set():
            try:
                seen.add(answer(client))
            except Exception as e:
                failures.append(e)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for folder, *made in (sets[1], sets[0], sets[1]):
            live = {"models": [{"name": "tiny", "weights": folder}]}
            application["deployments"] = [{"name": "replica", "user_config": live}]
            deploy(tree)
            for _ in range(3):  # both replicas, one after the other
                wait_for(lambda made=made: answer(client) == tuple(made))
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert seen == {tuple(made) for _, *made in sets}
    assert replica_ids() == replicas


def replica_ids():
    from ray.util import list_named_actors

    names = {actor["name"] for actor in list_named_actors(all_namespaces=True)}
    found = {name for name in names if name.startswith("SERVE_REPLICA::")}
    assert len(found) == 2
    return found


class Command:
    """``python jobs/serve.py …`` as a process of its own."""

    def __init__(self, tmp_path, tree):
        self.file = tmp_path / "serve.yaml"
        self.file.write_text(yaml.safe_dump(tree))
        self.log = tmp_path / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, REPO / "jobs/serve.py", "--config", str(self.file)],
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        wait_for(lambda: self.process.poll() is not None or "serving at" in self.text)
        assert "serving at" in self.text, self.text

    @property
    def text(self):
        return self.log.read_text()

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=180)

    def kill(self):
        if self.process.poll() is None:
            self.end()


@pytest.fixture
def served(tmp_path):
    commands = []

    def start(tree):
        commands.append(Command(tmp_path, tree))
        return commands[-1]

    yield start
    for command in commands:
        command.kill()


@pytest.fixture
def keyed(tmp_path):
    key, line = new_key("me")
    (tmp_path / "keys").write_text(line)
    return key, str(tmp_path / "keys")


def test_haproxy_serves_the_openai_client_and_replicas_keep_their_own_door(sets, served, keyed):
    key, keys = keyed
    port = free_port()
    command = served(
        {
            "models": [{"name": "tiny", "weights": sets[0][0]}],
            "engine": SIZES,
            "replicas": 2,
            "proxy": "haproxy",
            "api_keys_file": keys,
            "port": port,
            "drain_s": 20.0,
        }
    )
    url = f"http://127.0.0.1:{port}"
    client = OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)
    expected = tuple(sets[0][1:])
    assert answer(client) == expected
    reply = ask(client)
    assert (reply.system_fingerprint, reply.choices[0].text) == expected
    with pytest.raises(openai.BadRequestError):
        ask(client, max_tokens=100_000)
    with pytest.raises(openai.AuthenticationError):
        ask(OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0))
    assert urllib.request.urlopen(f"{url}/health", timeout=60).status == 200
    doors = [p for p in range(30000, 30010) if listens(p)]
    assert len(doors) == 2  # the replicas listen as well, and ask for the same key
    for door in doors:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{door}/v1/models", timeout=60)
        assert answer(
            OpenAI(base_url=f"http://127.0.0.1:{door}/v1", api_key=key, max_retries=0)
        ) == (expected)
    abandoned(client)
    assert answer(client) == expected
    check_end(command, client, expected)


def listens(port):
    with socket.socket() as s:
        s.settimeout(0.5)
        return s.connect_ex(("127.0.0.1", port)) == 0


def abandoned(client):
    """More streams left behind than the engines have places."""
    for _ in range(24):
        stream = ask(client, stream=True, max_tokens=80)
        next(iter(stream))
        stream.close()


def check_end(command, client, expected):
    """A stream that runs when SIGTERM comes is whole; a new request is told to go elsewhere."""
    stream = iter(ask(client, stream=True, max_tokens=80))
    first = next(stream)
    command.process.send_signal(signal.SIGTERM)
    rest = list(stream)
    assert rest[-1].choices[0].finish_reason == "length"
    text = "".join(c.choices[0].text for c in (first, *rest))
    assert text.startswith(expected[1])
    with pytest.raises((openai.APIStatusError, openai.APIConnectionError)) as refused:
        ask(client, max_tokens=1)
    assert getattr(refused.value, "status_code", 503) in (503, 404)
    assert command.process.wait(timeout=180) == 0, command.text
    assert "Traceback" not in command.text, command.text


def test_sigterm_ends_the_server_of_ray_after_its_streams(sets, served):
    port = free_port()
    models = [{"name": "tiny", "weights": sets[0][0]}]
    command = served({"models": models, "engine": SIZES, "port": port})
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0)
    check_end(command, client, tuple(sets[0][1:]))
    assert re.search(r"stopping", command.text)


def test_a_certificate_makes_it_https(sets, served, tmp_path):
    port = free_port()
    files = certificate(tmp_path)
    models = [{"name": "tiny", "weights": sets[0][0]}]
    served({"models": models, "engine": SIZES, "port": port, **files})
    trusted = httpx.Client(verify=ssl.create_default_context(cafile=files["ssl_certfile"]))
    client = OpenAI(base_url=f"https://127.0.0.1:{port}/v1", api_key="x", http_client=trusted)
    assert answer(client) == tuple(sets[0][1:])
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{port}/health", timeout=30)
