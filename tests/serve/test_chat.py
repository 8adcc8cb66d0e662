"""``/v1/chat/completions``: the template, and then what completions do with its text."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel
from tiny_server import MAX_SEQ_LEN, Http, events, save_tiny

from xtdist.checkpoint import WeightsConfig, load_weights, save_weights
from xtdist.checkpoint.chat_template import ChatTemplate
from xtdist.config import CheckpointError, ConfigError
from xtdist.data.tokenizer import byte_tokenizer
from xtdist.serve.auth import LiveKeys
from xtdist.serve.backend import Backend
from xtdist.serve.config import AppConfig, LimitsConfig, ServedModel
from xtdist.serve.engine_thread import EngineThread
from xtdist.serve.gate import Gate
from xtdist.serve.loading import load_served, resolve
from xtdist.serve.routes import make_app
from xtdist.serve.served import Served

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
TALK = [{"role": "system", "content": "short"}, {"role": "user", "content": "Hi <|endoftext|>"}]
TEXT = "s:short\nu:Hi <|endoftext|>\na:"


class Verdict(BaseModel):
    good: bool


@pytest.fixture(scope="module")
def server(make_engine):
    tokenizer = byte_tokenizer()
    served = Served(
        name="tiny",
        thread=EngineThread(make_engine(), name="tiny"),
        tokenizer=tokenizer,
        digest="0123456789abcdef" * 4,
        max_seq_len=MAX_SEQ_LEN,
        contrastive=True,
        chat_template=ChatTemplate(TEMPLATE),
    )
    http = Http(make_app(Backend(models=[served], limits=LimitsConfig(), gate=Gate(LiveKeys()))))
    http.served = served

    async def ask(path, **body):
        return await http.arequest("POST", path, json={"model": "tiny", **body})

    http.ask = ask
    http.post = lambda path, **body: http.runner.run(ask(path, **body))
    yield http
    http.runner.close()
    served.thread.stop()
    served.chat_template.close()


@pytest.fixture
def template(server):
    """``template(source)``: another one, for this test."""
    before = server.served.chat_template

    def use(source):
        server.served.chat_template = ChatTemplate(source)

    yield use
    if server.served.chat_template is not before:
        server.served.chat_template.close()
    server.served.chat_template = before


WAYS = {
    "greedy": {"temperature": 0},
    "sampled": {"seed": 5, "n": 3, "top_p": 0.9, "temperature": 0.7},
    "beams": {"num_beams": 3, "n": 2},
    "contrastive": {"contrastive": {"beta": 0.5}, "seed": 1},
    "search": {"penalty_alpha": 0.6, "top_k": 4, "temperature": 0},
    "stops": {"seed": 2, "stop": ["a", "e", "z"], "include_stop_str_in_output": True},
    "schema": {"seed": 3, "structured_outputs": {"json": {"enum": ["yes", "no"]}}},
    "penalties": {"seed": 4, "frequency_penalty": 1.0, "logit_bias": {"97": 5}, "min_tokens": 3},
}


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_is_the_completion_of_the_rendered_prompt_alone_and_under_load(server, way):
    body = {"max_tokens": 12, "return_token_ids": True, **WAYS[way]}
    wanted = server.post(COMPLETIONS, prompt=TEXT, **body).json()

    async def crowd():
        own = server.ask(CHAT, messages=TALK, **body)
        rest = [server.ask(COMPLETIONS, prompt="x" * k, max_tokens=8) for k in (1, 9, 30)]
        return (await asyncio.gather(own, *rest))[0].json()

    for found in (server.post(CHAT, messages=TALK, **body).json(), server.runner.run(crowd())):
        reply = ChatCompletion.model_validate(found)
        assert [c.message.content for c in reply.choices] == [c["text"] for c in wanted["choices"]]
        for key in ("token_ids", "prompt_token_ids", "finish_reason", "score"):
            assert [c.get(key) for c in found["choices"]] == [c.get(key) for c in wanted["choices"]]
        assert found["usage"] == wanted["usage"]
        assert {c.message.role for c in reply.choices} == {"assistant"}


def test_a_stream_joined_is_the_whole_answer_and_begins_with_the_role(server):
    body = {"messages": TALK, "max_tokens": 10, "n": 2, "seed": 8}
    whole = server.post(CHAT, **body).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage, done = events(server.post(CHAT, **body, **options))
    assert done == "[DONE]"
    texts, roles = ["", ""], [[], []]
    for chunk in chunks:
        for choice in ChatCompletionChunk.model_validate(chunk).choices:
            texts[choice.index] += choice.delta.content
            roles[choice.index].append(choice.delta.role)
    assert texts == [c["message"]["content"] for c in whole["choices"]]
    assert all(r[0] == "assistant" and not any(r[1:]) for r in roles)
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    ends = [c["finish_reason"] for chunk in chunks for c in chunk["choices"]]
    assert sum(e is not None for e in ends) == 2


def test_logprobs_are_those_of_completions_in_the_form_of_chat(server):
    body = {"max_tokens": 6, "seed": 3}
    old = server.post(COMPLETIONS, prompt=TEXT, logprobs=3, **body).json()["choices"][0]
    reply = server.post(CHAT, messages=TALK, logprobs=True, top_logprobs=3, **body).json()
    tokens = ChatCompletion.model_validate(reply).choices[0].logprobs.content
    assert [t.token for t in tokens] == old["logprobs"]["tokens"]
    assert [t.logprob for t in tokens] == old["logprobs"]["token_logprobs"]
    for token, top in zip(tokens, old["logprobs"]["top_logprobs"], strict=True):
        assert len(token.bytes) == 1
        for likely in token.top_logprobs:
            assert top[likely.token] == likely.logprob
        likeliest = [likely.logprob for likely in token.top_logprobs]
        assert likeliest == sorted(likeliest, reverse=True)
        assert len(likeliest) == 3
    none = server.post(CHAT, messages=TALK, logprobs=True, **body).json()["choices"][0]
    assert all(t["top_logprobs"] == [] for t in none["logprobs"]["content"])


def test_the_openai_client_is_understood_sync_async_and_streaming(server):
    args = {"model": "tiny", "messages": TALK, "max_completion_tokens": 6, "seed": 1}
    wanted = server.post(COMPLETIONS, prompt=TEXT, max_tokens=6, seed=1).json()
    wanted = wanted["choices"][0]["text"]

    async def use():
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app=server.app))
        async with openai.AsyncOpenAI(
            api_key="x", base_url="http://here/v1", http_client=http
        ) as client:
            whole = await client.chat.completions.create(**args)
            stream = await client.chat.completions.create(**args, stream=True)
            parts = [c.choices[0].delta.content async for c in stream]
            with pytest.raises(openai.BadRequestError) as e:
                await client.chat.completions.create(**args, tools=[])
            return whole, "".join(parts), e.value

    whole, joined, error = server.runner.run(use())
    assert whole.choices[0].message.content == joined == wanted
    assert (error.param, error.code) == ("tools", "unsupported_parameter")
    again = [*TALK, whole.choices[0].message.model_dump(), {"role": "user", "content": "?"}]
    assert server.post(CHAT, messages=again, max_tokens=1).status_code == 200

    def post(request):
        reply = server.post(CHAT, **json.loads(request.content))
        return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)

    http = httpx.Client(transport=httpx.MockTransport(post))
    with openai.OpenAI(api_key="x", base_url="http://here/v1", http_client=http) as client:
        assert client.chat.completions.create(**args).choices[0].message.content == wanted
        chunks = client.chat.completions.create(**args, stream=True)
        assert "".join(c.choices[0].delta.content for c in chunks) == wanted
        no_space = {str(ord(c)): -100 for c in " \t\r\n"}  # or a random model never ends
        args |= {"max_completion_tokens": 40, "logit_bias": no_space, "response_format": Verdict}
        parsed = client.chat.completions.parse(**args).choices[0].message.parsed
    assert parsed.good in (True, False)


def test_special_tokens_spelled_in_a_message_are_plain_text(server):
    body = {"messages": TALK, "max_tokens": 1, "return_token_ids": True}
    ids = server.post(CHAT, **body).json()["choices"][0]["prompt_token_ids"]
    assert bytes(ids) == TEXT.encode()  # no id beyond the bytes


def test_the_last_message_can_be_continued(server):
    talk = [*TALK, {"role": "assistant", "content": "I th"}]
    body = {"max_tokens": 5, "temperature": 0}
    wanted = server.post(COMPLETIONS, prompt=TEXT + "I th", **body).json()["choices"][0]["text"]
    reply = server.post(CHAT, messages=talk, continue_final_message=True, **body).json()
    assert reply["choices"][0]["message"]["content"] == wanted
    plain = server.post(COMPLETIONS, prompt=TEXT[:-2], **body).json()["choices"][0]["text"]
    reply = server.post(CHAT, messages=TALK, add_generation_prompt=False, **body).json()
    assert reply["choices"][0]["message"]["content"] == plain


def test_text_parts_are_lines_and_developer_is_system(server):
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]
    talk = [{"role": "developer", "content": "x"}, {"role": "user", "content": parts}]
    body = {"max_tokens": 1, "return_token_ids": True}
    ids = server.post(CHAT, messages=talk, **body).json()["choices"][0]["prompt_token_ids"]
    assert bytes(ids) == b"s:x\nu:Hi\nthere\na:"


def test_an_answer_without_a_bound_fills_what_room_there_is(server):
    reply = server.post(CHAT, messages=TALK, ignore_eos=True, seed=1).json()
    assert reply["usage"]["total_tokens"] == MAX_SEQ_LEN


def test_the_templates_stop_strings_end_an_answer(server, template):
    free = server.post(COMPLETIONS, prompt="s", max_tokens=20, seed=2).json()["choices"][0]["text"]
    stop = next(c for c in free[3:] if c.isascii() and c.isprintable() and c not in "'\\")
    template("{% set stop = ['" + stop + "'] %}{{ messages[0].role[0] }}")
    reply = server.post(CHAT, messages=TALK, max_tokens=20, seed=2).json()["choices"][0]
    assert reply["message"]["content"] == free[: free.index(stop)]
    assert (reply["finish_reason"], reply["stop_reason"]) == ("stop", stop)


def test_response_format_is_structured_outputs(server):
    def asked(**form):
        reply = server.post(CHAT, messages=TALK, max_tokens=30, seed=6, **form)
        return reply.json()["choices"][0]["message"]["content"]

    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema["additionalProperties"] = False
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert asked(response_format=named) == asked(structured_outputs={"json": schema})
    assert json.loads(asked(response_format=named))["a"] in (True, False)
    assert asked(response_format={"type": "json_object"}).lstrip().startswith("{")
    assert asked(response_format={"type": "text"}) == asked()


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"tools": [{}]}, "tools", "no tools"),
        ({"tool_choice": "auto"}, "tool_choice", "no tools"),
        ({"functions": []}, "functions", "no functions"),
        ({"audio": {}}, "audio", "text"),
        ({"modalities": ["audio"]}, "modalities", "text"),
        ({"echo": True}, "echo", "/v1/completions"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "'user'"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content",
            "text parts",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "messages.0.tool_calls",
            "unknown key",
        ),
        ({"messages": [{"role": "user", "content": "x" * 99}]}, "messages", "positions"),
        ({"max_tokens": 2, "max_completion_tokens": 2}, "max_tokens", "old name"),
        ({"max_tokens": 95}, "messages", "positions"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs=true"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs", "at most 20"),
        ({"continue_final_message": True}, "continue_final_message", "last message"),
        ({"num_beams": 2, "stream": True}, "stream", "beam"),
        ({"temprature": 1}, "temprature", "'temperature'"),
        ({"stop_token_ids": [999]}, "stop_token_ids", "0 to 258"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'json_object'"),
    ],
)
def test_what_can_not_be_honoured_is_refused_by_name(server, change, param, said):
    reply = server.post(CHAT, **{"messages": TALK, **change})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param)
    assert said in error["message"]


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no: ' ~ messages[1].content) }}",
        "{{ messages.no.such.thing }}",
        "{{ 'x' * 2000000 }}",
    ],
)
def test_a_template_that_fails_is_a_refusal_that_repeats_nothing(server, template, source):
    template(source)
    reply = server.post(CHAT, messages=TALK)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "template_failed")
    assert "endoftext" not in reply.text
    assert server.post(COMPLETIONS, prompt="x", max_tokens=1).status_code == 200


def test_a_model_without_a_template_has_no_conversations(server, monkeypatch):
    assert server.request("GET", "/v1/models").json()["data"][0]["chat"] is True
    monkeypatch.setattr(server.served, "chat_template", None)
    error = server.post(CHAT, messages=TALK).json()["error"]
    assert (error["param"], error["code"]) == ("model", "unsupported_model")
    assert "no chat template" in error["message"]
    assert server.request("GET", "/v1/models").json()["data"][0]["chat"] is False


@pytest.fixture
def weights(tmp_path):
    """Weights with a template, as training saves them."""
    folder = save_tiny(tmp_path / "w", seed=1)
    loaded = load_weights(folder)
    config = WeightsConfig(model=loaded.model.config, objective=loaded.objective, meta={})
    (tmp_path / "own.jinja").write_text("of the weights {{ messages[0].content }}")
    save_weights(
        tmp_path / "talks",
        loaded.model.state_dict(),
        config,
        tokenizer=folder / "tokenizer.json",
        chat_template=tmp_path / "own.jinja",
    )
    return tmp_path / "talks"


def rendered(spec):
    """What the template of a model that is loaded makes."""
    served = load_served(spec, AppConfig(models=(spec,)))
    try:
        return served.chat_template.render(TALK).parts
    finally:
        served.thread.stop()
        served.chat_template.close()


def test_weights_bring_their_template_and_the_config_may_have_another(weights, tmp_path):
    spec = ServedModel(name="m", weights=str(weights))
    assert rendered(spec) == ("of the weights short",)
    (tmp_path / "other.jinja").write_text("another")
    other = dataclasses.replace(spec, chat_template=str(tmp_path / "other.jinja"))
    assert rendered(other) == ("another",)
    gone = dataclasses.replace(spec, chat_template=str(tmp_path / "none.jinja"))
    with pytest.raises(ConfigError, match=r"models\.m\.chat_template: .*none\.jinja"):
        resolve(AppConfig(models=(gone,)))


def test_a_template_that_was_changed_or_put_beside_weights_is_not_used(weights, tmp_path):
    (weights / "chat_template.jinja").write_text("changed")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja"):
        resolve(AppConfig(models=(ServedModel(name="m", weights=str(weights)),)))
    plain = save_tiny(tmp_path / "plain", seed=1)
    (plain / "chat_template.jinja").write_text("put there")
    spec = ServedModel(name="m", weights=str(plain))
    served = load_served(spec, AppConfig(models=(spec,)))
    assert served.chat_template is None
    served.thread.stop()
