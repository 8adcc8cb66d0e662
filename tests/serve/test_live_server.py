"""A live Ray Serve application, asked with the real ``openai`` client."""

from __future__ import annotations

import os
import socket
import urllib.parse
import urllib.request
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI
from tiny_server import free_port, save_tiny

from xtdist.config import ResourceError
from xtdist.data.tokenizer import byte_tokenizer
from xtdist.decode import ContrastiveParams, Engine, EngineConfig, GenerationParams
from xtdist.serve import Client, ServeConfig, ServedModel, new_key, run

pytestmark = pytest.mark.ray
PROMPT = "import "


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return save_tiny(folder / "expert", seed=1), save_tiny(folder / "amateur", seed=2, dim=16)


@pytest.fixture(scope="module")
def server(weights, tmp_path_factory):
    """(url, key) of a running server."""
    address = os.environ.pop("RAY_ADDRESS", None)
    key, line = new_key("test")
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(line)
    port = free_port()
    expert, amateur = map(str, weights)
    config = ServeConfig(
        port=port,
        models=(ServedModel(name="tiny", weights=expert, amateur=amateur),),
        engine=EngineConfig(max_sequences=4, max_waiting=16, seed=7),
        api_keys_file=str(keys),
    )
    with run(config, block=False) as running:
        yield running.url, key
    import ray

    assert not ray.is_initialized()
    with socket.socket() as s:
        assert s.connect_ex(("127.0.0.1", port)) != 0
    if address is not None:
        os.environ["RAY_ADDRESS"] = address


@pytest.fixture(scope="module")
def client(server):
    url, key = server
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def engine(weights):
    from xtdist.checkpoint.weights import load_weights

    tokenizer = byte_tokenizer()
    return Engine(
        load_weights(weights[0]).model,
        amateur=load_weights(weights[1]).model,
        tokenizer=tokenizer,
        eos_ids=(tokenizer.eot_id,),
        banned_ids=(tokenizer.mask_id, tokenizer.pad_id),
    )


CASES = {
    "greedy": ({"temperature": 0}, GenerationParams(temperature=0.0, max_tokens=24)),
    "sampling": (
        {"seed": 5, "top_p": 0.9, "n": 2},
        GenerationParams(seed=5, top_p=0.9, n=2, max_tokens=24),
    ),
    "beams": (
        {"n": 2, "extra_body": {"num_beams": 4, "length_penalty": 0.6}},
        GenerationParams(num_beams=4, n=2, length_penalty=0.6, max_tokens=24),
    ),
    "contrastive": (
        {"temperature": 0, "extra_body": {"contrastive": {"alpha": 0.2, "beta": 0.9}}},
        GenerationParams(
            temperature=0.0,
            contrastive=ContrastiveParams(alpha=0.2, beta=0.9),
            max_tokens=24,
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_client_gets_what_the_engine_generates(client, engine, case):
    arguments, params = CASES[case]
    reply = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=24, **arguments)
    direct = engine.generate([byte_tokenizer().encode(PROMPT)], params)[0]
    assert [c.text for c in reply.choices] == [c.text for c in direct.choices]
    assert reply._request_id


@pytest.mark.parametrize("case", ["greedy", "sampling", "contrastive"])
def test_a_stream_joins_to_the_whole_answer(client, case):
    arguments = {"model": "tiny", "prompt": PROMPT, "max_tokens": 24, **CASES[case][0]}
    whole = client.completions.create(**arguments)
    texts = dict.fromkeys(range(len(whole.choices)), "")
    usage = None
    options = {"include_usage": True}
    for chunk in client.completions.create(**arguments, stream=True, stream_options=options):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        usage = chunk.usage
    assert list(texts.values()) == [c.text for c in whole.choices]
    assert usage == whole.usage


def test_mistakes_become_the_clients_own_errors(client, server):
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model="tiny", prompt="x", extra_body={"temprature": 1})
    assert bad.value.body["param"] == "temprature"
    with pytest.raises(openai.BadRequestError):
        client.completions.create(
            model="tiny", prompt="x", extra_body={"num_beams": 2}, stream=True
        )
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="x")
    with pytest.raises(openai.AuthenticationError):
        OpenAI(base_url=f"{server[0]}/v1", api_key="wrong").models.list()


def test_models_and_health_answer(client, server):
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "xtdist"
    with urllib.request.urlopen(f"{server[0]}/health", timeout=30) as reply:
        assert reply.status == 200


def test_giant_headers_are_refused_and_the_server_goes_on(server, client):
    """Whatever listens in front of the replica: it, or the replica, says no."""
    with httpx.Client(timeout=60) as raw:
        reply = raw.get(f"{server[0]}/v1/models", headers={"x": "y" * 200_000})
    assert 400 <= reply.status_code < 500
    assert client.models.list().data


def test_neither_prompts_nor_keys_are_in_any_log_of_the_cluster(server, client):
    from ray._private import worker

    logs = Path(worker._global_node.get_logs_dir_path())
    secret = "canary-prompt-9c2d"
    for stream in (False, True):
        arguments = {"prompt": secret, "max_tokens": 3, "stream": stream}
        list(client.completions.create(model="tiny", **arguments))
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="tiny", **arguments, extra_body={"top_k": secret})
    with pytest.raises(openai.AuthenticationError):
        OpenAI(base_url=f"{server[0]}/v1", api_key=secret, max_retries=0).models.list()
    written = {p: p.read_bytes() for p in logs.rglob("*") if p.is_file()}
    assert any(b"/v1/completions" in text for text in written.values())  # requests are logged
    for path, text in written.items():
        assert secret.encode() not in text, path
        assert server[1].encode() not in text, path


def test_a_stream_that_is_left_does_not_hold_its_place(client):
    """Six times as many abandoned streams as the engine has places, then one request."""
    for _ in range(24):
        stream = client.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=80, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
    assert client.completions.create(model="tiny", prompt=PROMPT, max_tokens=1).choices


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"replicas": 999}, "need 999"),
        ({}, "Ray Serve is running on this cluster already"),
        ({"port": "the same"}, "'xtdist' is running on this cluster already"),
    ],
)
def test_what_the_cluster_can_not_take_is_said_and_the_running_server_stays(
    weights, server, client, change, message
):
    models = (ServedModel(name="second", weights=str(weights[0])),)
    at = {"port": free_port()} | change
    if at["port"] == "the same":
        at["port"] = urllib.parse.urlsplit(server[0]).port
    with pytest.raises(ResourceError, match=message):
        run(ServeConfig(models=models, **at), block=False)
    assert [m.id for m in client.models.list()] == ["tiny"]


@pytest.mark.long
@pytest.mark.alone
def test_a_second_application_goes_beside_the_first_and_away_again(server, weights, client):
    at = urllib.parse.urlsplit(server[0])
    beside = {
        "models": (ServedModel(name="second", weights=str(weights[0])),),
        "host": at.hostname,
        "port": at.port,
    }
    with run(ServeConfig(**beside, app="more", route_prefix="/more"), block=False) as second:
        assert second.url == f"{server[0]}/more"
        other = OpenAI(base_url=f"{second.url}/v1", api_key="none", max_retries=0, timeout=60)
        assert [m.id for m in other.models.list()] == ["second"]
        arguments = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0}
        first = client.completions.create(model="tiny", **arguments)
        reply = other.completions.create(model="second", **arguments)
        assert reply.choices[0].text == first.choices[0].text
        stream = other.completions.create(model="second", stream=True, **arguments)
        assert "".join(c.choices[0].text for c in stream) == reply.choices[0].text
    assert client.models.list().data
    with pytest.raises(openai.AuthenticationError):  # only the first one is left to answer there
        other.models.list()


def test_our_own_client_gets_the_same_answers(server, client):
    with Client(server[0], api_key=server[1]) as ours:
        assert [card["id"] for card in ours.models()] == ["tiny"]
        beams = ours.complete(PROMPT, num_beams=4, n=2, max_tokens=24, length_penalty=0.6)
        arguments = CASES["beams"][0]
        reply = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=24, **arguments)
        assert [c.text for c in beams.choices] == [c.text for c in reply.choices]
        streamed = ours.stream(PROMPT, temperature=0, contrastive={}, max_tokens=8)
        whole = ours.complete(PROMPT, temperature=0, contrastive={}, max_tokens=8)
        assert "".join(piece.text for piece in streamed) == whole.text
