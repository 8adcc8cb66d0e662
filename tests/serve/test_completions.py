"""The HTTP application over the real engine, in this process."""

from __future__ import annotations

import asyncio
import json

import pytest
from openai.types import Completion as OpenAICompletion
from openai.types import Model as OpenAIModel
from tiny_server import MAX_SEQ_LEN, events

from xtdist.data.tokenizer import byte_tokenizer
from xtdist.decode import ContrastiveParams, GenerationParams
from xtdist.decode.params import GrammarParams

CASES = {
    "greedy": ({"temperature": 0}, GenerationParams(temperature=0.0)),
    "sampling": (
        {"seed": 3, "top_p": 0.9, "temperature": 0.8},
        GenerationParams(seed=3, top_p=0.9, temperature=0.8),
    ),
    "choices": ({"seed": 3, "n": 3}, GenerationParams(seed=3, n=3)),
    "beams": ({"num_beams": 4, "n": 2}, GenerationParams(num_beams=4, n=2)),
    "contrastive": (
        {"temperature": 0, "contrastive": {"beta": 0.7}},
        GenerationParams(temperature=0.0, contrastive=ContrastiveParams(beta=0.7)),
    ),
    "best of": ({"n": 2, "best_of": 4, "seed": 3}, GenerationParams(n=2, best_of=4, seed=3)),
    "drawn beams": (
        {"num_beams": 3, "n": 2, "stochastic_beams": True, "seed": 3},
        GenerationParams(num_beams=3, n=2, stochastic_beams=True, seed=3),
    ),
    "contrastive search": (
        {"penalty_alpha": 0.6, "top_k": 3},
        GenerationParams(penalty_alpha=0.6, top_k=3),
    ),
    "dola": ({"dola": "high", "temperature": 0}, GenerationParams(dola="high", temperature=0.0)),
    "drafts": ({"draft_tokens": 3, "seed": 3}, GenerationParams(draft_tokens=3, seed=3)),
    "grammar": (
        {"structured_outputs": {"regex": "[a-z]{3}[0-9]{2}"}, "seed": 2},
        GenerationParams(grammar=GrammarParams(kind="regex", value="[a-z]{3}[0-9]{2}"), seed=2),
    ),
    "bans": (
        {"bad_words": ["i", "^h"], "logit_bias": {"65": 2}, "temperature": 0},
        GenerationParams(
            bad_words=((105,), (32, 105), (94, 104), (32, 94, 104)),
            logit_bias={65: 2.0},
            temperature=0.0,
        ),
    ),
    "allowed": (
        {"allowed_token_ids": [*range(97, 123)], "seed": 1, "stop": ["x", "y"]},
        GenerationParams(allowed_token_ids=tuple(range(97, 123)), seed=1, stop=("x", "y")),
    ),
}
STREAMED = [name for name in CASES if name not in ("beams", "drawn beams", "best of")]
PROMPT = "def f(x):"


@pytest.mark.parametrize("case", CASES)
def test_a_completion_is_what_the_engine_generates_directly(http, make_engine, case):
    body, params = CASES[case]
    reply = http.complete(prompt=PROMPT, **body)
    assert reply.status_code == 200, reply.text
    direct = make_engine().generate([byte_tokenizer().encode(PROMPT)], params)[0]
    choices = reply.json()["choices"]
    assert [c["text"] for c in choices] == [c.text for c in direct.choices]
    assert [c["finish_reason"] for c in choices] == [c.finish_reason for c in direct.choices]
    assert [c["index"] for c in choices] == list(range(len(direct.choices)))
    assert reply.json()["usage"]["completion_tokens"] == sum(
        len(c.token_ids) for c in direct.choices
    )


def test_the_decoders_disagree_so_that_the_test_above_means_something(http):
    replies = [http.complete(prompt=PROMPT, **body).json() for body, _ in CASES.values()]
    assert len({r["choices"][0]["text"] for r in replies}) >= 9


def test_requests_at_the_same_time_get_what_they_get_alone(http):
    bodies = [{"prompt": f"{PROMPT}{c}", **CASES[c][0]} for c in CASES]
    alone = [http.complete(**b).json()["choices"] for b in bodies]
    replies = http.gather(*bodies)
    assert [r.status_code for r in replies] == [200] * len(bodies), [r.text for r in replies]
    together = [r.json()["choices"] for r in replies]
    without_score = [
        [{k: v for k, v in c.items() if k != "score"} for c in choices] for choices in together
    ]
    assert without_score == [
        [{k: v for k, v in c.items() if k != "score"} for c in choices] for choices in alone
    ]


@pytest.mark.parametrize("case", STREAMED)
def test_the_chunks_of_a_stream_join_to_the_whole_answer(http, case):
    body = {"prompt": [PROMPT, "é"], **CASES[case][0], "max_tokens": 24, "echo": True}
    whole = http.complete(**body).json()["choices"]
    *chunks, done = events(http.complete(**body, stream=True))
    assert done == "[DONE]"
    for choice in whole:
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(p["text"] for p in parts) == choice["text"]
        assert [p["finish_reason"] for p in parts] == [None] * (len(parts) - 1) + [
            choice["finish_reason"]
        ]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)


def test_a_stream_comes_in_more_than_one_piece(http):
    body = {"prompt": PROMPT, "max_tokens": 24, "ignore_eos": True, "seed": 1}
    assert len(events(http.complete(**body, stream=True))) > 4


def test_usage_comes_in_a_last_chunk_without_choices_when_asked_for(http):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last, _ = events(http.complete(prompt="abc", ignore_eos=True, max_tokens=5, **options))
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


def test_replies_have_openais_own_types(http):
    body = {"prompt": PROMPT, "logprobs": 2, "seed": 1}
    reply = OpenAICompletion.model_validate(http.complete(**body).json(), strict=True)
    assert reply.id.startswith("cmpl-")
    assert reply.system_fingerprint == "xt-0123456789abcdef"
    for chunk in events(http.complete(**body, stream=True))[:-1]:
        for choice in chunk["choices"]:  # their type knows no null, their stream has it
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        OpenAICompletion.model_validate(chunk, strict=True)
    listed = http.request("GET", "/v1/models").json()
    assert listed["object"] == "list"
    assert [OpenAIModel.model_validate(m, strict=True).id for m in listed["data"]] == ["tiny"]
    assert http.request("GET", "/v1/models/tiny").json() == listed["data"][0]


def test_token_ids_are_the_same_prompt_as_their_text(http):
    ids = [int(i) for i in byte_tokenizer().encode(PROMPT)]
    of_ids = http.complete(prompt=ids, temperature=0, echo=True).json()
    of_text = http.complete(prompt=PROMPT, temperature=0, echo=True).json()
    assert of_ids["choices"] == of_text["choices"]
    assert of_text["choices"][0]["text"].startswith(PROMPT)


def test_an_empty_prompt_starts_a_new_document(http):
    eot = byte_tokenizer().eot_id
    empty = http.complete(prompt="", temperature=0).json()
    assert empty["choices"] == http.complete(prompt=[eot], temperature=0).json()["choices"]
    assert empty["usage"]["prompt_tokens"] == 1


def test_the_choices_of_several_prompts_are_numbered_prompt_by_prompt(http):
    both = http.complete(prompt=["a", "b"], n=2, seed=4).json()["choices"]
    alone = [http.complete(prompt=p, n=2, seed=4).json()["choices"] for p in "ab"]
    assert [c["index"] for c in both] == [0, 1, 2, 3]
    assert [c["text"] for c in both] == [c["text"] for choices in alone for c in choices]


def test_logprobs_are_parallel_lists_over_the_tokens(http, make_engine):
    body = {"prompt": PROMPT, "temperature": 0, "logprobs": 3, "max_tokens": 12}
    reply = http.complete(**body).json()
    got = reply["choices"][0]["logprobs"]
    params = GenerationParams(temperature=0.0, logprobs=3, max_tokens=12)
    direct = make_engine().generate([byte_tokenizer().encode(PROMPT)], params)[0].choices[0]
    assert got["token_logprobs"] == [t.logprob for t in direct.logprobs]
    assert [len(t) for t in got["top_logprobs"]] == [3] * len(direct.logprobs)
    for token, logprob, top in zip(
        got["tokens"], got["token_logprobs"], got["top_logprobs"], strict=True
    ):
        assert top[token] == logprob == max(top.values())
    assert got["text_offset"][0] == 0
    assert got["text_offset"] == sorted(got["text_offset"])
    streamed = events(http.complete(**body, stream=True))[:-1]
    parts = [c["logprobs"] for chunk in streamed for c in chunk["choices"]]
    assert got == {key: [x for p in parts for x in p[key]] for key in got}


def test_beams_carry_their_score_best_first(http):
    scores = [c["score"] for c in http.complete(prompt="x", num_beams=4, n=4).json()["choices"]]
    assert scores == sorted(scores, reverse=True)
    assert "score" not in http.complete(prompt="x").json()["choices"][0]


def test_the_best_of_several_are_given_and_all_that_were_drawn_is_not(http):
    reply = http.complete(prompt="x", n=2, best_of=4, seed=1, top_a=0.01, typical_p=0.9).json()
    assert [c["index"] for c in reply["choices"]] == [0, 1]
    everything = http.complete(prompt="x", n=4, seed=1, top_a=0.01, typical_p=0.9).json()
    assert {c["text"] for c in reply["choices"]} <= {c["text"] for c in everything["choices"]}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"prompt": "x" * MAX_SEQ_LEN}, "context_length_exceeded"),
        ({"prompt": "x", "max_tokens": MAX_SEQ_LEN}, "context_length_exceeded"),
        ({"prompt": "x", "n": 5}, "invalid_value"),
        ({"prompt": "x", "temperatur": 1}, "unknown_parameter"),
        ({"prompt": "x", "suffix": "y"}, "unsupported_parameter"),
        ({"prompt": "x", "best_of": 3, "stream": True}, "invalid_value"),
        ({}, "missing_parameter"),
    ],
)
def test_a_wrong_request_gets_400_and_the_next_one_is_served(http, body, code):
    reply = http.complete(**body)
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert reply.json()["error"]["code"] == code
    assert http.complete(prompt="x", max_tokens=1).status_code == 200


def test_a_wrong_request_gets_the_same_status_when_it_asks_for_a_stream(http):
    reply = http.complete(prompt="x", n=5, stream=True)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "n"


def test_a_client_that_goes_away_frees_the_engine(http):
    async def leave(stream):
        body = {"model": "tiny", "prompt": "x", "stream": stream, "max_tokens": 90}
        body |= {"n": 4, "ignore_eos": True}
        before = http.served.thread.steps
        sent = [{"type": "http.request", "body": json.dumps(body).encode()}]
        started = asyncio.Event()

        async def receive():
            if sent:
                return sent.pop()
            if stream:
                await started.wait()
            else:
                while http.served.thread.steps < before + 3:
                    await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        async def send(message):
            started.set()

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
        scope |= {"query_string": b"", "asgi": {"version": "3.0", "spec_version": "2.3"}}
        await http.app(scope, receive, send)
        thread = http.served.thread
        while thread.running:
            await asyncio.sleep(0.001)
        return thread.steps - before

    http.complete(prompt="x", max_tokens=1)
    for stream in (True, False):
        assert 1 <= http.runner.run(asyncio.wait_for(leave(stream), 30)) < 80
    pool = http.served.thread.engine.pool
    assert len(pool.free_pages) == pool.num_pages


def test_health_generates_a_token_and_is_open(http):
    assert http.request("GET", "/health").json() == {"status": "ok"}
    assert http.served.thread.steps == 1
    http.request("GET", "/health")
    assert http.served.thread.steps == 1  # asked again at once: the answer is kept
