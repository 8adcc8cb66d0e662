"""Changed requests by a seed; ``fuzz.py`` says what is changed and what must hold."""

from __future__ import annotations

import asyncio

import fuzz
import pytest

from xtdist.decode import Engine


def run(kind, *, count, seed):
    with fuzz.serving(kind) as at:
        report = asyncio.run(fuzz.fuzz(at.app, count=count, seed=seed))
        left, broken = at.left(), at.served.thread.broken
    assert report.findings == []
    assert (left, report.left_tasks, broken) == ([], 0, False)
    assert report.grown_mib < 50
    return report


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        (fuzz.InstantEngine, 1_000),
        (Engine, 150),
        pytest.param(fuzz.InstantEngine, 100_000, marks=pytest.mark.long),
        pytest.param(Engine, 5_000, marks=pytest.mark.long),
    ],
)
def test_no_changed_request_fails_or_leaves_anything_behind(kind, count):
    report = run(kind, count=count, seed=count)
    assert report.statuses[200] > count / 10
    assert report.statuses[400] > count / 3
    assert len(report.statuses) >= 5


def test_every_route_is_in_the_corpus():
    with fuzz.serving() as at:
        app = at.app
        assert {(a.method, a.path) for a in fuzz.corpus(app)} >= {
            (m, p.replace("{name}", "tiny")) for m, p in fuzz.operations(app)
        }


def test_a_failing_server_would_be_found(monkeypatch):
    """The checks themselves: a route that fails for some input is a finding with its request."""
    with fuzz.serving() as at:

        def failing(text):
            raise ZeroDivisionError

        monkeypatch.setattr(at.served.tokenizer, "encode", failing)
        report = asyncio.run(fuzz.fuzz(at.app, count=300, seed=1))
    assert [what for _, what, _ in report.findings] == ["status 500"] * 5


def test_the_same_number_of_the_same_seed_is_the_same_request():
    with fuzz.serving() as at:
        good = fuzz.corpus(at.app)
    rngs = [fuzz.np.random.default_rng((7, number)) for number in (5, 5, 6)]
    asks = [fuzz.mutate(rng, fuzz.pick(rng, good), good) for rng in rngs]
    assert asks[0] == asks[1] != asks[2]
