"""Changed requests to the whole application in this process, by a seed: none may fail or hang.

As a command::

    python tests/serve/fuzz.py --count 1000000 --seed 7

A corpus of good requests, one or more for every route, is changed in its bytes, its JSON tree and
its headers. Every answer must be one that a client's mistake can have, of OpenAI's form and short;
no request may use a second of CPU; and at the end nothing may be left: no task, no page, no
request, no memory. The engine's admission is the real one, its steps end every request at once
unless ``--model`` asks for a (tiny) model.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import faulthandler
import gc
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from nar_server import filler, filling_model
from tiny_server import MAX_SEQ_LEN, tiny_model

from xtdist.checkpoint.chat_template import ChatTemplate
from xtdist.data.tokenizer import byte_tokenizer
from xtdist.decode import Engine, EngineConfig, Output
from xtdist.decode.outputs import TokenLogprob
from xtdist.serve.auth import LiveKeys
from xtdist.serve.backend import Backend
from xtdist.serve.config import LimitsConfig
from xtdist.serve.engine_thread import EngineThread
from xtdist.serve.gate import Gate
from xtdist.serve.routes import make_app
from xtdist.serve.served import Served

Rng = np.random.Generator
OK = frozenset({200, 400, 401, 403, 404, 405, 408, 413, 415, 429, 431})
CANARY = "canary-7f3a"
_WATCHED, _HANG_S = 50, 60.0  # so many requests, and what they may take together
CONTENT = (b"content-type", b"application/json")


@dataclasses.dataclass(frozen=True)
class Ask:
    """One request; ``pieces`` of its body arrive one by one."""

    method: str
    path: str
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = (CONTENT,)
    pieces: int = 1


@dataclasses.dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes
    wall_s: float


class InstantEngine(Engine):
    """The engine whose step ends every request at once, without running the model."""

    def step(self) -> list[Output]:
        outputs = []
        for name, request in list(self._requests.items()):
            params = request.params
            asked = getattr(params, "prompt_logprobs", None)
            scores = tuple(TokenLogprob(65, -1.0) for _ in range(len(request.prompt)))
            outputs += [
                Output(
                    name,
                    i,
                    token_ids=(65,) * (params.max_tokens > 0),
                    text="A" * (params.max_tokens > 0),
                    logprobs=(TokenLogprob(65, -1.0),) * (params.logprobs is not None),
                    finish_reason="length",
                    score=-1.0 if params.uses_beams else None,
                    prompt_logprobs=None if asked is None or i else (None, *scores[1:]),
                )
                for i in range(params.n)
            ]
            self.abort(name)
        return outputs


def make_engine(kind: type[Engine] = InstantEngine) -> Engine:
    tokenizer = byte_tokenizer()
    return kind(
        tiny_model(1),
        amateur=tiny_model(2),
        tokenizer=tokenizer,
        eos_ids=(tokenizer.eot_id,),
        banned_ids=(tokenizer.mask_id, tokenizer.pad_id),
        config=EngineConfig(max_sequences=4, max_waiting=64, seed=7),
    )


@dataclasses.dataclass
class Serving:
    """An application with a model that continues prompts and conversations, and one that fills
    masks, whose steps are real."""

    app: Any
    engine: Engine
    gate: Gate
    served: Served

    def left(self) -> list[str]:
        """What is there still when nobody asks any more; empty if nothing is."""
        time.sleep(0.05)
        left = {"engine requests": len(self.engine._requests)}
        left |= {"pages": self.engine.stats().pages_used}
        left |= {"running": self.served.thread.running}
        left |= {"open requests": self.gate.open_requests}
        return [f"{count} {what}" for what, count in left.items() if count]


@contextmanager
def serving(kind: type[Engine] = InstantEngine) -> Iterator[Serving]:
    engine, gate = make_engine(kind), Gate(LiveKeys())
    served = Served(
        name="tiny",
        thread=EngineThread(engine, name="tiny"),
        tokenizer=byte_tokenizer(),
        digest="0123456789abcdef" * 4,
        max_seq_len=MAX_SEQ_LEN,
        contrastive=True,
        chat_template=ChatTemplate("{% for m in messages %}{{ m.content }}\n{% endfor %}"),
    )
    fills = filling_model(filler())
    backend = Backend(models=[served, fills], limits=LimitsConfig(), gate=gate)
    try:
        yield Serving(make_app(backend), engine, gate, served)
    finally:
        served.chat_template.close()
        served.thread.stop()
        fills.thread.stop()


def corpus(app: Any) -> list[Ask]:
    """Good requests for every route of ``app``; a route without one is an error here."""
    bodies: Mapping[str, list[dict[str, Any]]] = BODIES
    asks = []
    for method, path in sorted(operations(app)):
        if method == "GET":
            asks.append(Ask("GET", path.replace("{name}", "tiny")))
        else:
            asks += [Ask(method, path, json.dumps(b).encode()) for b in bodies[path]]
    return asks


def operations(app: Any) -> set[tuple[str, str]]:
    """(method, path) of every route; ``{name:path}`` as ``{name}``."""
    return {
        (method, route.path.replace(":path}", "}"))
        for route in app.routes
        for method in route.methods - {"HEAD"}
    }


_COMMON = {"model": "tiny", "max_tokens": 2, "seed": 3}
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/completions": [
        {**_COMMON, "prompt": CANARY, "temperature": 0.5, "n": 2, "user": "u"},
        {**_COMMON, "prompt": ["ab", "é"], "stop": ["x", "yz"], "logprobs": 2, "top_p": 0.9},
        {**_COMMON, "prompt": [1, 2, 3], "logit_bias": {"5": -1.5}, "presence_penalty": 0.5},
        {**_COMMON, "prompt": [[1, 2], [3]], "stream": True, "echo": True},
        {**_COMMON, "prompt": "x", "contrastive": {"beta": 0.1, "alpha": 0.2}, "temperature": 0},
        {**_COMMON, "prompt": "x", "num_beams": 3, "n": 2, "length_penalty": 0.6},
        {**_COMMON, "prompt": "x", "use_beam_search": True, "n": 2, "early_stopping": True},
        {
            **_COMMON,
            "prompt": "x",
            "stream": True,
            "stream_options": {"include_usage": True},
            "top_k": 5,
            "min_p": 0.1,
            "top_a": 0.1,
            "typical_p": 0.9,
            "repetition_penalty": 1.2,
            "frequency_penalty": -0.5,
            "stop_token_ids": [7],
            "min_tokens": 1,
            "ignore_eos": True,
            "best_of": 1,
        },
        {**_COMMON, "prompt": "xyz", "echo": True, "logprobs": 0, "max_tokens": 0},
        {
            **_COMMON,
            "prompt": [1, 2, 3],
            "resume_tokens": 1,
            "stream": True,
            "return_token_ids": True,
            "allowed_token_ids": [65, 66],
            "bad_words": ["no"],
            "request_id": "mine",
            "cache_salt": "salt",
        },
        {**_COMMON, "prompt": "x", "structured_outputs": {"regex": "[ab]+"}},
        {**_COMMON, "prompt": "x", "structured_outputs": {"choice": ["a", "b"]}},
        {**_COMMON, "prompt": "x", "penalty_alpha": 0.6, "top_k": 3, "temperature": 0},
        {**_COMMON, "prompt": "a" * 50, "truncate_prompt_tokens": 3, "prompt_logprobs": 1},
    ],
    "/tokenize": [{"model": "tiny", "prompt": CANARY, "return_token_strs": True}],
    "/detokenize": [{"model": "tiny", "tokens": [1, 2, 255]}],
    "/v1/infill": [
        {
            **_COMMON,
            "model": "filler",
            "prompt": "a",
            "suffix": "b",
            "steps": 2,
            "schedule": "cosine",
        },
        {"model": "filler", "text": ["a", {"mask": 3}, "b"], "order": "random", "stream": True},
        {"model": "filler", "tokens": [1, {"mask": 2}], "noise": 0.5, "remask": True, "n": 2},
    ],
    "/v1/chat/completions": [
        {
            **_COMMON,
            "messages": [{"role": "system", "content": CANARY}, {"role": "user", "content": "x"}],
            "logprobs": True,
            "top_logprobs": 1,
        },
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
            "max_completion_tokens": 2,
            "stream": True,
            "stop": "x",
        },
    ],
}

TOKENS = [b"NaN", b"-Infinity", b"1e999", b'"', b"\\ud800", b"\\u0000", b"-", b"9" * 50, b"null"]
TOKENS += [b"[", b"]", b"{", b"}", b":", b",", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"true", b"0"]
TOKENS += [b"1e-320", b"[" * 40, b'{"a":' * 40, b"\\", b"'", b"/*", b"\r\n\r\n", b"-0", b"1E+2"]
VALUES: list[Any] = [None, True, False, 0, -1, 1, 2, 17, 2**31, 2**63, -(2**63) - 1, 10**39]
VALUES += [0.0, -0.0, 1e-320, 1e308, -1.5, 0.5, "", " ", "x", "\x00", "é\u202e", "x" * 3000, "0"]
VALUES += [
    "tiny",
    "filler",
    "never",
    "1",
    [],
    {},
    [[]],
    [None],
    [0] * 500,
    ["x"] * 40,
    ["x", 1],
    [-1],
]
VALUES += [{"a": 1}, {"5": 1}, {"-1": 0}, {"é": 0}, {str(i): 0 for i in range(1100)}, [True], "🙂"]
KINDS = [b"text/plain", b"application/json; charset=utf-16", b"", b"APPLICATION/JSON", b"\xff"]
HEADERS = [
    (b"content-encoding", b"gzip"),
    (b"content-length", b"99999999999999999999"),
    (b"content-length", b"-1"),
    (b"content-length", "٣".encode()),
    (b"transfer-encoding", b"chunked"),
    (b"authorization", b"Bearer \xff\x00"),
    (b"authorization", b"Bearer " + b"x" * 4000),
    (b"x-request-timeout-seconds", b"0.0001"),
    (b"x-forwarded-for", b"1.2.3.4"),
    (b"host", b"evil.example"),
    (b"expect", b"100-continue"),
    (b"x", b"y" * 40_000),
]
PATHS = ["//", "/v1/completions/", "/v1/models/../..", "/v1/models/%00", "/\x00", "/v1/models/é"]


def pick(rng: Rng, options: Any) -> Any:
    return options[int(rng.random() * len(options))]


def mutate(rng: Rng, ask: Ask, others: list[Ask]) -> Ask:
    """``ask`` with one to four changes."""
    for _ in range(1 + int(rng.random() * rng.random() * 4)):
        kind = rng.random()
        if kind < 0.45:
            ask = dataclasses.replace(ask, body=change_tree(rng, ask.body))
        elif kind < 0.85:
            ask = dataclasses.replace(ask, body=change_bytes(rng, ask.body, pick(rng, others).body))
        else:
            ask = change_head(rng, ask)
    return dataclasses.replace(ask, pieces=1 + int(rng.random() * 3))


def change_bytes(rng: Rng, body: bytes, other: bytes) -> bytes:
    raw = bytearray(body)
    at = int(rng.random() * (len(raw) + 1))
    to = at + int(rng.random() * rng.random() * 12)
    match int(rng.random() * 6):
        case 0:
            raw[at:to] = pick(rng, TOKENS)
        case 1:
            raw[at:to] = bytes([int(rng.random() * 256)])
        case 2:
            raw[at:to] = b""
        case 3:
            raw[at:at] = raw[at:to] * (1 + int(rng.random() * 20))
        case 4:
            raw[at:to] = other[at:to]
        case _:
            for i in range(at, min(to, len(raw))):
                raw[i] ^= 1 << int(rng.random() * 8)
    return bytes(raw)


def change_tree(rng: Rng, body: bytes) -> bytes:
    """A value, key or element of the JSON tree replaced, added, taken away or given twice."""
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        return change_bytes(rng, body, body)
    if not isinstance(tree, dict) or not tree:
        return json.dumps(pick(rng, VALUES)).encode()
    node, key = tree, pick(rng, list(tree))
    while isinstance(node[key], dict | list) and node[key] and rng.random() < 0.5:
        node = node[key]
        key = pick(rng, list(node) if isinstance(node, dict) else range(len(node)))
    match int(rng.random() * 6):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[pick(rng, FIELDS)] = pick(rng, VALUES)
        case 2 if isinstance(node, dict):
            node[key[:-1] + chr(97 + int(rng.random() * 26))] = node.pop(key)
        case 3 if isinstance(node, dict):
            text = json.dumps(tree)
            return (text[:-1] + "," + json.dumps({key: pick(rng, VALUES)})[1:]).encode()
        case 4:
            node[key] = [node[key]] * (1 + int(rng.random() * 3))
        case _:
            node[key] = pick(rng, VALUES)
    return json.dumps(tree, ensure_ascii=bool(rng.random() < 0.5)).encode("utf-8", "replace")


FIELDS = sorted({key for bodies in BODIES.values() for body in bodies for key in body})
FIELDS += ["suffix", "temprature", "__proto__", "", "a" * 300, "messages", "tools", "\x00"]


def change_head(rng: Rng, ask: Ask) -> Ask:
    match int(rng.random() * 4):
        case 0:
            kind = (b"content-type", pick(rng, KINDS))
            return dataclasses.replace(ask, headers=(kind, *ask.headers[1:]))
        case 1:
            return dataclasses.replace(ask, headers=(*ask.headers, pick(rng, HEADERS)))
        case 2:
            method = pick(rng, ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "X"])
            return dataclasses.replace(ask, method=method)
        case _:
            return dataclasses.replace(ask, path=pick(rng, PATHS))


async def call(app: Any, ask: Ask) -> Reply:
    """One request as a server would make it of an ASGI application."""
    size = -(-len(ask.body) // ask.pieces) or 1
    parts = [ask.body[i : i + size] for i in range(0, len(ask.body), size)] or [b""]
    messages = [
        {"type": "http.request", "body": part, "more_body": i < len(parts)}
        for i, part in enumerate(parts, 1)
    ]
    status, headers, body = 0, {}, []

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        return await asyncio.get_running_loop().create_future()  # the client stays

    async def send(message: Any) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = {k.decode().lower(): v.decode() for k, v in message["headers"]}
        else:
            body.append(message.get("body", b""))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": ask.method,
        "scheme": "http",
        "path": ask.path,
        "raw_path": ask.path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": list(ask.headers),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "state": {},
    }
    start = time.perf_counter()
    async with asyncio.timeout(60):
        await app(scope, receive, send)
    return Reply(status, headers, b"".join(body), time.perf_counter() - start)


async def cpu_of(app: Any, ask: Ask) -> float:
    """Seconds that all threads of this process need for a request."""
    start = time.process_time()
    await call(app, ask)
    return time.process_time() - start


def problem(ask: Ask, reply: Reply) -> str | None:
    """What is wrong with an answer."""
    if reply.status not in OK:
        return f"status {reply.status}"
    if reply.status < 400 or ask.method == "HEAD":
        return None
    if len(reply.body) > 1200:
        return f"an error of {len(reply.body)} bytes"
    error = json.loads(reply.body)["error"]
    if not error["message"] or set(error) != {"message", "type", "param", "code"}:
        return "an error of another form"
    if CANARY.encode() in reply.body and CANARY not in str(error["param"]):
        return "the prompt is repeated"
    return None


@dataclasses.dataclass
class Report:
    statuses: Counter[int]
    findings: list[tuple[int, str, Ask]]
    grown_mib: float
    slowest_s: float
    left_tasks: int


async def fuzz(
    app: Any, *, count: int, seed: int, first: int = 0, most_findings: int = 5, watch: bool = False
) -> Report:
    """``count`` changed requests, one after another. ``watch``: end the process, with a traceback,
    where it hangs."""
    good = corpus(app)
    report = Report(Counter(), [], 0.0, 0.0, 0)
    before = _rss_mib()
    for number in range(first, first + count):
        if watch and number % _WATCHED == 0:
            print(f"at {number}", end="\r", file=sys.stderr, flush=True)
            faulthandler.dump_traceback_later(_HANG_S, exit=True)
        rng = np.random.default_rng((seed, number))
        ask = mutate(rng, pick(rng, good), good)
        reply = await call(app, ask)
        report.statuses[reply.status] += 1
        report.slowest_s = max(report.slowest_s, reply.wall_s)
        found = problem(ask, reply)
        if reply.wall_s > 1.0 and await cpu_of(app, ask) > 1.0:  # others use this machine too
            found = "more than a second of CPU"
        if found is not None:
            report.findings.append((number, found, ask))
            if len(report.findings) >= most_findings:
                break
        if number - first == min(count // 2, 20_000):
            gc.collect()
            before = _rss_mib()
    if watch:
        faulthandler.cancel_dump_traceback_later()
    await asyncio.sleep(0.2)
    gc.collect()
    report.grown_mib = _rss_mib() - before
    report.left_tasks = len(asyncio.all_tasks()) - 1
    return report


def _rss_mib() -> float:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize() / 2**20


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--first", type=int, default=0, help="number to begin at, to see one again")
    parser.add_argument("--model", action="store_true", help="run a tiny model for what is good")
    given = parser.parse_args(args)
    start = time.monotonic()
    with serving(Engine if given.model else InstantEngine) as at:
        run = fuzz(at.app, count=given.count, seed=given.seed, first=given.first, watch=True)
        report = asyncio.run(run)
        left = at.left()
    wall_s = time.monotonic() - start
    print(f"{given.count} requests in {wall_s:.0f} s: {dict(sorted(report.statuses.items()))}")
    print(f"slowest {report.slowest_s * 1000:.0f} ms, grown {report.grown_mib:.1f} MiB")
    for number, what, ask in report.findings:
        print(f"FOUND at --seed {given.seed} --first {number} --count 1: {what}\n  {ask}"[:3000])
    bad = report.findings or left or report.left_tasks or report.grown_mib > 50
    if bad:
        print("left:", left, report.left_tasks, "tasks")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
