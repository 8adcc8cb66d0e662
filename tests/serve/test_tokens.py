"""``/tokenize``, ``/detokenize``, and the names of requests."""

from __future__ import annotations

import pytest
from tiny_server import MAX_SEQ_LEN, Http, served_engines

from xtdist.data.tokenizer import byte_tokenizer


@pytest.fixture(scope="module")
def http(make_engine):
    with served_engines() as serve:
        client = Http(serve(make_engine())[0])
        yield client
        client.runner.close()


def post(http, path, **body):
    return http.request("POST", path, json={"model": "tiny", **body})


@pytest.mark.parametrize("text", ["", "def é:", "x" * 5000])
def test_a_text_becomes_ids_and_the_same_text_again(http, text):
    tokens = post(http, "/tokenize", prompt=text).json()
    ids = [int(i) for i in byte_tokenizer().encode(text)]
    assert tokens == {
        "count": len(ids),
        "max_model_len": MAX_SEQ_LEN,
        "tokens": ids,
        "token_strs": None,
    }
    assert post(http, "/detokenize", tokens=ids).json() == {"prompt": text}


def test_each_token_alone_is_shown_when_asked_for(http):
    tokens = post(http, "/tokenize", prompt="aé", return_token_strs=True).json()
    assert tokens["token_strs"] == ["a", "bytes:\\xc3", "bytes:\\xa9"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "a", "promt": "b"}, "promt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "model"),
        ("/tokenize", {"prompt": "x" * 200_000}, "prompt"),
        ("/detokenize", {"tokens": [259]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/detokenize", {"tokens": [True]}, "tokens.0"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [1], "model": None}, "model"),
    ],
)
def test_mistakes_name_the_key(http, path, body, param):
    reply = post(http, path, **body)
    assert reply.status_code == (404 if body.get("model") == "other" else 400)
    assert reply.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/models"), ("GET", "/nothing"), ("DELETE", "/tokenize"), ("GET", "/health")],
)
def test_every_response_has_a_name_and_a_plain_word_of_the_client_is_kept(http, method, path):
    def name(given=None):
        headers = {} if given is None else {"X-Request-Id": given}
        return http.request(method, path, headers=headers).headers["x-request-id"]

    assert name("req-1.b:2_c") == "req-1.b:2_c"
    others = [name(), name(""), name("a b"), name("x" * 129), name('"><script>')]
    assert all(n.startswith("req-") and len(n) == 36 for n in others)
    assert len(set(others)) == len(others)
