"""The description of the API against what the server takes and sends."""

from __future__ import annotations

import copy

import jsonschema
import pytest
from tiny_server import Http, served_engines

from xtdist.serve.gate import OPEN_PATHS


@pytest.fixture(scope="module")
def http(make_engine):
    with served_engines() as serve:
        app, _ = serve(make_engine())
        client = Http(app)
        yield client
        client.runner.close()


@pytest.fixture(scope="module")
def document(http):
    return http.request("GET", "/openapi.json").json()


def validator(document, schema):
    """Of ``schema`` inside of the document, so that its references are found."""
    whole = {**copy.deepcopy(document), "allOf": [schema]}
    return jsonschema.Draft202012Validator(whole)


def taken(document, path):
    content = document["paths"][path]["post"]["requestBody"]["content"]
    return validator(document, content["application/json"]["schema"])


def sent(document, method, path, status="200"):
    content = document["paths"][path][method]["responses"][status]["content"]
    return validator(document, content["application/json"]["schema"])


def test_every_route_is_described_but_those_for_people(http, document):
    hidden = {"/", "/openapi.json", "/metrics"}
    routes = {(m.lower(), r.path_format) for r in http.app.routes for m in r.methods}
    described = {(m, path) for path, methods in document["paths"].items() for m in methods}
    assert described == {(m, path) for m, path in routes if path not in hidden}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert ({"key": []} in operation["security"]) == (path not in OPEN_PATHS)
            assert set(operation["responses"]) == {"200", "4XX", "5XX"}


def test_all_parts_of_the_document_are_schemas(document):
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    assert document["openapi"].startswith("3.1")


GOOD = [
    {"prompt": "x"},
    {"prompt": ["x", "y"], "n": 2, "stop": "a", "temperature": 0, "seed": None},
    {"prompt": [1, 2], "stop": ["a", "b"], "logit_bias": {"5": -1.5}, "logprobs": 1},
    {"prompt": [[1], [2]], "echo": True, "contrastive": {"beta": 1}, "user": "me"},
    {"prompt": "x", "num_beams": 2, "early_stopping": "never"},
    {"prompt": "x", "structured_outputs": {"regex": "a|b"}, "return_token_ids": True},
    {"prompt": "x", "prompt_logprobs": 1, "max_tokens": 0},
]


@pytest.mark.parametrize("body", GOOD)
def test_what_is_taken_and_sent_fits_the_document(http, document, body):
    taken(document, "/v1/completions").validate({"model": "tiny", **body})
    reply = http.complete(**body)
    assert reply.status_code == 200, reply.text
    sent(document, "post", "/v1/completions").validate(reply.json())


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": "x", "temprature": 1},
        {"prompt": []},
        {"prompt": [-1]},
        {"prompt": ["x", 1]},
        {"prompt": None},
        {"prompt": "x", "max_tokens": "5"},
        {"prompt": "x", "max_tokens": True},
        {"prompt": "x", "max_tokens": -1},
        {"prompt": "x", "stop": [1]},
        {"prompt": "x", "logit_bias": {"a": 1}},
        {"prompt": "x", "logit_bias": {"5": 101}},
        {"prompt": "x", "contrastive": {"alfa": 1}},
        {"prompt": "x", "structured_outputs": {}},
        {"prompt": "x", "structured_outputs": {"regex": None}},
        {"prompt": "x", "truncate_prompt_tokens": 0},
        {"prompt": "x", "priority": 1},
    ],
)
def test_what_does_not_fit_the_document_is_refused_in_its_form(http, document, body):
    with pytest.raises(jsonschema.ValidationError):
        taken(document, "/v1/completions").validate({"model": "tiny", **body})
    reply = http.complete(**body)
    assert reply.status_code == 400
    sent(document, "post", "/v1/completions", "4XX").validate(reply.json())


@pytest.mark.parametrize(
    ("method", "path", "given"),
    [
        ("get", "/health", None),
        ("get", "/v1/models", None),
        ("get", "/v1/models/{name}", None),
        ("post", "/tokenize", {"model": "tiny", "prompt": "é", "return_token_strs": True}),
        ("post", "/detokenize", {"model": "tiny", "tokens": [65]}),
    ],
)
def test_the_other_routes_send_what_they_say(http, document, method, path, given):
    if given is not None:
        taken(document, path).validate(given)
    url = path.replace("{name}", "tiny")
    reply = http.request(method, url, **({} if given is None else {"json": given}))
    assert reply.status_code == 200, reply.text
    sent(document, method, path).validate(reply.json())
