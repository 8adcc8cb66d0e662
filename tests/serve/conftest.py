"""The HTTP application over a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tiny_server import Http, served_engines, tiny_model

from xtdist.data.tokenizer import byte_tokenizer
from xtdist.decode import Engine, EngineConfig


@pytest.fixture(scope="session")
def make_engine() -> Callable[[], Engine]:
    tokenizer = byte_tokenizer()
    expert, amateur = tiny_model(1), tiny_model(2)

    def make(**options: Any) -> Engine:
        return Engine(
            expert,
            amateur=amateur,
            tokenizer=tokenizer,
            eos_ids=(tokenizer.eot_id,),
            banned_ids=(tokenizer.mask_id, tokenizer.pad_id),
            config=EngineConfig(max_sequences=4, max_waiting=16, seed=7, **options),
        )

    return make


@pytest.fixture
def serve_engine() -> Iterator[Callable[..., Any]]:
    """``serve_engine(engine, …)`` gives (app, served); threads end with the test."""
    with served_engines() as make:
        yield make


@pytest.fixture
def http(make_engine: Any, serve_engine: Any) -> Iterator[Http]:
    app, served = serve_engine(make_engine())
    client = Http(app)
    client.served = served  # type: ignore[attr-defined]
    yield client
    client.runner.close()
