"""A prompt and a key that no log, metric, model list or error may ever show.

Everything that the process writes is read: all loggers at their lowest level, standard output and
error, warnings, and every registered metric.
"""

from __future__ import annotations

import json
import logging
import warnings

import pytest
from tiny_server import Http

from xtdist.serve.auth import LiveKeys, new_key
from xtdist.serve.config import QuotaConfig
from xtdist.serve.gate import Gate

PROMPT = "canary-prompt-5b1e"
LEAVES = {  # every place of a request where a client may write something of its own
    "prompt": PROMPT,
    "user": PROMPT,
    "stop": PROMPT,
    "bad_words": [PROMPT],
    "model": PROMPT,
    "suffix": PROMPT,
    "cache_salt": PROMPT,
    "request_id": f"{PROMPT} ",
    "logit_bias": {PROMPT: 1},
    "structured_outputs": {"regex": PROMPT + "["},
    "early_stopping": PROMPT,
    "temperature": PROMPT,
    "stream_options": {"include_usage": PROMPT},
    "contrastive": {"alpha": PROMPT},
    "messages": [{"role": PROMPT, "content": PROMPT}],
    "text": [PROMPT, {"mask": PROMPT}],
    "tokens": [PROMPT],
}
PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/infill", "/tokenize", "/detokenize")


class FailingError(RuntimeError):
    pass


@pytest.fixture
def watched(caplog, capfd):
    """Gives a function: all that was written by now."""
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")

        def written():
            out, err = capfd.readouterr()
            formatted = logging.Formatter("%(name)s %(pathname)s %(message)s")
            ours = [r for r in caplog.records if not r.name.startswith("httpx")]  # the client
            lines = [formatted.format(r) for r in ours]
            return "\n".join([out, err, *lines, *(str(w.message) for w in warned), metrics()])

        yield written


def metrics():
    from prometheus_client import REGISTRY, generate_latest

    return generate_latest(REGISTRY).decode()


@pytest.fixture
def keyed(serve_engine, tmp_path):
    def make(engine):
        key, line = new_key("canary-name-is-fine")
        (tmp_path / "keys").write_text(line)
        gate = Gate(LiveKeys(str(tmp_path / "keys")), QuotaConfig(requests_per_min=1000))
        app, _ = serve_engine(engine, gate=gate)
        return Http(app), key

    return make


def ask(http, key, path, body):
    headers = {"Authorization": f"Bearer {key}", "content-type": "application/json"}
    return http.request("POST", path, content=json.dumps(body), headers=headers)


@pytest.mark.parametrize("path", PATHS)
def test_no_refusal_repeats_what_was_sent_and_nothing_is_written(keyed, watched, make_engine, path):
    http, key = keyed(make_engine())
    good = {"model": "tiny", "prompt": "x", "max_tokens": 1}
    for name, value in LEAVES.items():
        for body in ({**good, name: value}, {name: value}):
            reply = ask(http, key, path, body)
            if reply.status_code >= 400:
                assert PROMPT not in reply.text, (name, reply.text)
            assert PROMPT not in str(reply.headers)
            assert key not in reply.text + str(reply.headers)
    seen = watched()
    assert PROMPT not in seen
    assert key not in seen


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0, 2])
def test_a_failure_inside_says_nothing_of_the_request(keyed, watched, make_engine, stream, after):
    engine = make_engine()
    step, steps = engine.step, []

    def failing():
        steps.append(1)
        if len(steps) > after:
            raise FailingError(f"could not go on with {PROMPT!r}") from KeyError(PROMPT)
        return step()

    engine.step = failing
    http, key = keyed(engine)
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 20, "ignore_eos": True}
    reply = ask(http, key, "/v1/completions", {**body, "stream": stream})
    again = ask(http, key, "/v1/completions", body)
    assert "server_error" in reply.text or reply.status_code >= 500
    assert again.status_code >= 500
    seen = watched()
    assert "FailingError" in seen  # the log does say what failed
    for text in (seen, reply.text, again.text):
        assert PROMPT not in text
        assert key not in text


def test_a_tokenizer_that_fails_says_nothing_of_the_text(keyed, watched, make_engine, monkeypatch):
    http, key = keyed(make_engine())

    def failing(*_):
        raise UnicodeEncodeError("utf-8", PROMPT, 0, 1, PROMPT)

    from xtdist.serve.served import Served

    monkeypatch.setattr(Served, "tokenize", failing)
    for path in ("/v1/completions", "/tokenize"):
        body = {"model": "tiny", "prompt": PROMPT}
        reply = ask(http, key, path, body)
        assert reply.status_code == 500
        assert PROMPT not in reply.text
    seen = watched()
    assert "UnicodeEncodeError" in seen
    assert PROMPT not in seen


def test_lists_and_health_and_metrics_know_no_prompt_and_no_key(keyed, watched, make_engine):
    http, key = keyed(make_engine())
    for stream in (False, True):
        body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 3, "stream": stream}
        assert ask(http, key, "/v1/completions", body).status_code == 200
    bad = {"Authorization": f"Bearer {key}{PROMPT}"}
    good = {"Authorization": f"Bearer {key}"}
    for route in http.app.routes:
        for headers in (good, bad, {}):
            for method in sorted(route.methods):
                path = route.path.replace("{name:path}", PROMPT).replace("{name}", PROMPT)
                reply = http.request(method, path, headers=headers)
                text = reply.text + str(reply.headers)
                assert PROMPT not in text, (method, path)
                assert key not in text, (method, path)
    seen = watched()
    assert PROMPT not in seen
    assert key not in seen
