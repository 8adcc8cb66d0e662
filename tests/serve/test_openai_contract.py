"""The real ``openai`` client, sync and async, over a socket: every call, every class of error, and
its own types as the judge of every reply."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import openai
import pytest
from faulty import serving
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion, Model
from tiny_server import MAX_SEQ_LEN, served_engines

from xtdist.data.tokenizer import byte_tokenizer
from xtdist.serve.auth import LiveKeys, new_key
from xtdist.serve.config import LimitsConfig, QuotaConfig
from xtdist.serve.gate import Gate

PROMPT = "def f(x):"
LIMITS = LimitsConfig(max_body_bytes=4096, request_timeout_s=20.0)


@pytest.fixture(scope="module")
def door(make_engine, tmp_path_factory):
    """(url, keys by name) of a server with four keys of different rights."""
    lines, keys = [], {}
    words = {
        "good": "",
        "off": "disabled",
        "poor": "tokens_per_min=20",
        "rare": "requests_per_min=1",
    }
    for name, rights in words.items():
        keys[name], line = new_key(name)
        lines.append(f"{line} {rights}")
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("\n".join(lines))
    gate = Gate(LiveKeys(str(file)), QuotaConfig(), limits=LIMITS)
    with served_engines() as serve:
        app, _ = serve(make_engine(), limits=LIMITS, gate=gate)
        with serving(app) as url:
            yield url, keys


@pytest.fixture(scope="module")
def client(door):
    url, keys = door
    with OpenAI(base_url=f"{url}/v1", api_key=keys["good"], max_retries=0, timeout=30) as client:
        yield client


def of_key(door, name, **options):
    url, keys = door
    options = {"max_retries": 0, "timeout": 30, **options}
    return OpenAI(base_url=f"{url}/v1", api_key=keys.get(name, name), **options)


BODIES: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 0},
    "choices": {"n": 3, "seed": 4, "top_p": 0.9},
    "several prompts": {"prompt": [PROMPT, "é"], "seed": 1},
    "ids": {"prompt": [1, 2, 3], "seed": 1, "user": "somebody"},
    "lists of ids": {"prompt": [[1, 2, 3], [4]], "seed": 1},
    "penalties": {"presence_penalty": 1.0, "frequency_penalty": -0.5, "seed": 2},
    "bias": {"logit_bias": {"65": 100.0}, "max_tokens": 4},
    "stop": {"stop": ["x", "i"], "seed": 3, "n": 4},
    "logprobs": {"logprobs": 3, "seed": 3},
    "echo": {"echo": True, "seed": 3},
    "ours": {
        "temperature": 0,
        "extra_body": {"contrastive": {"beta": 0.7}, "return_token_ids": True, "top_a": 0.1},
    },
}
WHOLE_ONLY: dict[str, dict[str, Any]] = {
    "best of": {"best_of": 4, "n": 2, "seed": 3},
    "beams": {"n": 2, "extra_body": {"num_beams": 4}},
}


def as_sent(client, **body):
    """The reply as the client reads it, and as it came."""
    raw = client.completions.with_raw_response.create(model="tiny", **{"prompt": PROMPT, **body})
    return raw.parse(), json.loads(raw.text)


@pytest.mark.parametrize("case", [*BODIES, *WHOLE_ONLY])
def test_a_whole_reply_has_the_clients_own_type(client, case):
    body = {**BODIES, **WHOLE_ONLY}[case]
    read, sent = as_sent(client, **body)
    assert Completion.model_validate(sent, strict=True) == read
    prompts = body.get("prompt", PROMPT)
    several = isinstance(prompts, list) and not isinstance(prompts[0], int)
    count = body.get("n", 1) * (len(prompts) if several else 1)
    assert [c.index for c in read.choices] == list(range(count))
    assert read.usage is not None
    assert read.usage.total_tokens == read.usage.prompt_tokens + read.usage.completion_tokens
    assert read._request_id is not None
    assert all(c.finish_reason in ("stop", "length") for c in read.choices)


@pytest.mark.parametrize("case", BODIES)
def test_a_stream_joins_to_the_whole_reply(client, case):
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, **BODIES[case]}
    whole = client.completions.create(**body)
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.completions.create(**asked))
    *parts, last = chunks
    assert last.choices == []
    assert last.usage == whole.usage
    assert {c.id for c in chunks} == {last.id}
    assert all(part.usage is None for part in parts)
    for choice in whole.choices:
        own = [c for part in parts for c in part.choices if c.index == choice.index]
        assert "".join(c.text for c in own) == choice.text
        assert [c.finish_reason for c in own][-1] == choice.finish_reason
        assert all(c.finish_reason is None for c in own[:-1])
        if choice.logprobs is not None:
            assert [t for c in own for t in c.logprobs.tokens] == choice.logprobs.tokens
        ids = getattr(choice, "token_ids", None)
        if ids is not None:
            assert [i for c in own for i in c.token_ids] == ids
            assert own[0].prompt_token_ids == choice.prompt_token_ids


def test_the_asynchronous_client_reads_many_streams_at_once(client):
    bodies = [{"model": "tiny", "prompt": PROMPT, "max_tokens": 12, **b} for b in BODIES.values()]

    async def read(asynchronous, body):
        stream = await asynchronous.completions.create(**body, stream=True)
        texts: dict[int, str] = {}
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + choice.text
        return texts

    async def read_all():
        async with AsyncOpenAI(base_url=client.base_url, api_key=client.api_key) as asynchronous:
            await asynchronous.models.list()
            return await asyncio.gather(*(read(asynchronous, body) for body in bodies))

    for body, texts in zip(bodies, asyncio.run(read_all()), strict=True):
        whole = client.completions.create(**body)
        assert texts == {c.index: c.text for c in whole.choices}


def test_every_chunk_has_the_clients_own_type(client):
    body = {"model": "tiny", "prompt": PROMPT, "logprobs": 2, "seed": 1, "stream": True}
    with client.completions.with_streaming_response.create(**body) as raw:
        assert raw.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in raw.iter_lines() if line]
    assert lines.pop() == "data: [DONE]"
    for line in lines:
        chunk = json.loads(line.removeprefix("data: "))
        for choice in chunk["choices"]:  # their type knows no null, their stream has it
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        Completion.model_validate(chunk, strict=True)


def test_extensions_arrive_as_attributes(client):
    extra = {"return_token_ids": True, "request_id": "mine-7"}
    reply = client.completions.create(model="tiny", prompt="ab", temperature=0, extra_body=extra)
    assert reply.id == "cmpl-mine-7"
    assert reply.choices[0].prompt_token_ids == [97, 98]
    text = byte_tokenizer().decode(reply.choices[0].token_ids)
    assert text == reply.choices[0].text


def test_models_are_listed_and_found(client):
    listed = client.models.list()
    assert [m.id for m in listed] == ["tiny"]
    assert client.models.retrieve("tiny") == listed.data[0]
    raw = json.loads(client.models.with_raw_response.list().text)
    card = Model.model_validate(raw["data"][0], strict=True)
    assert card.max_model_len == MAX_SEQ_LEN
    assert card.contrastive is True


REFUSED: dict[str, tuple[dict[str, Any], type[openai.APIStatusError], str]] = {
    "unknown key": (
        {"extra_body": {"temprature": 1}},
        openai.BadRequestError,
        "unknown_parameter",
    ),
    "wrong type": ({"max_tokens": True}, openai.BadRequestError, "invalid_value"),
    "too long": ({"prompt": "x" * 200}, openai.BadRequestError, "context_length_exceeded"),
    "suffix": ({"suffix": "end"}, openai.BadRequestError, "unsupported_parameter"),
    "other model": ({"model": "other"}, openai.NotFoundError, "model_not_found"),
    "too large": ({"prompt": "x" * 5000}, openai.APIStatusError, "body_too_large"),
    "over a limit": ({"logprobs": 21}, openai.BadRequestError, "over_limit"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_of_the_client_is_the_error_that_it_expects(client, case, stream):
    body, kind, code = REFUSED[case]
    with pytest.raises(kind) as e:
        client.completions.create(**{"model": "tiny", "prompt": "x", "stream": stream, **body})
    assert e.value.code == code
    assert e.value.type == "invalid_request_error"
    assert e.value.request_id
    assert 400 <= e.value.status_code < 500


@pytest.mark.parametrize(
    ("key", "kind", "code"),
    [
        ("xt-unknown", openai.AuthenticationError, "invalid_api_key"),
        ("off", openai.PermissionDeniedError, "api_key_disabled"),
    ],
)
def test_keys_that_do_not_open_are_told_apart(door, key, kind, code):
    with of_key(door, key) as client:
        body = {"model": "tiny", "prompt": ""}
        for call in (client.models.list, lambda: client.completions.create(**body)):
            with pytest.raises(kind) as e:
                call()
            assert e.value.code == code


def test_more_than_a_key_may_use_is_a_rate_limit(door):
    with of_key(door, "rare") as client:
        client.models.list()
        with pytest.raises(openai.RateLimitError) as e:
            client.models.list()
    assert int(e.value.response.headers["retry-after"]) >= 1
    with of_key(door, "poor") as client:
        client.completions.create(model="tiny", prompt="x", max_tokens=12)
        with pytest.raises(openai.RateLimitError):
            client.completions.create(model="tiny", prompt="x", max_tokens=18)
        with pytest.raises(openai.BadRequestError):  # never, so that trying again is no use
            client.completions.create(model="tiny", prompt="x", max_tokens=40)


def test_other_paths_and_methods_are_errors_of_the_clients_form(client):
    with pytest.raises(openai.NotFoundError):
        client.get("/nothing", cast_to=object)
    with pytest.raises(openai.APIStatusError) as e:
        client.delete("/completions", cast_to=object)
    assert e.value.status_code == 405
    assert e.value.type == "invalid_request_error"
    assert e.value.response.headers["allow"] == "POST"


def test_a_server_that_is_late_is_an_error_before_and_within_a_stream(make_engine):
    engine = make_engine()
    step = engine.step

    def slow_step():
        time.sleep(0.03)
        return step()

    engine.step = slow_step
    with served_engines() as serve:
        app, _ = serve(engine, limits=LimitsConfig(request_timeout_s=0.2))
        with serving(app) as url, OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            body = {"model": "tiny", "prompt": "x", "max_tokens": 60}
            body["extra_body"] = {"ignore_eos": True}
            with pytest.raises(openai.InternalServerError) as e:
                client.completions.create(**body)
            assert (e.value.status_code, e.value.code) == (504, "deadline_exceeded")
            stream, texts = client.completions.create(**body, stream=True), []
            with pytest.raises(openai.APIError) as late:
                texts.extend(chunk.choices[0].text for chunk in stream)
            assert late.value.code == "deadline_exceeded"
            assert len(texts) >= 2
