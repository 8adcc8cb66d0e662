"""The OpenAPI document as a tester that did not write it reads it.

Requests made from the document, right and wrong ones, for every operation: no server error, and
every answer has a status, a content type and a body as the document says.
"""

from __future__ import annotations

import contextlib

import fuzz
import pytest
import schemathesis

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def app():
    with fuzz.serving() as at:
        yield at.app


def test_every_answer_is_as_the_document_says(app, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it leaves a folder where it runs
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    tried = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            cases = operation.as_strategy(generation_mode=mode)

            @settings(
                max_examples=100,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.explicit, Phase.generate],
            )
            @given(case=cases)
            def ask(case):
                tried.add((case.method, case.path))
                case.call_and_validate(checks=checks)

            with contextlib.suppress(Unsatisfiable):  # nothing of a GET can be wrong
                ask()
    assert len(tried) >= 8, tried
