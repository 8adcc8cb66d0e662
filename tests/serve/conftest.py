"""The HTTP application over a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tiny_server import MAX_SEQ_LEN, Http, tiny_model

from xtdist.data.tokenizer import byte_tokenizer
from xtdist.decode import Engine, EngineConfig
from xtdist.serve.auth import LiveKeys
from xtdist.serve.backend import Backend
from xtdist.serve.config import LimitsConfig
from xtdist.serve.engine_thread import EngineThread
from xtdist.serve.gate import Gate
from xtdist.serve.routes import make_app
from xtdist.serve.served import Served


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
    threads = []

    def make(engine: Any, *, limits: LimitsConfig | None = None, gate: Gate | None = None) -> Any:
        tokenizer = byte_tokenizer()
        thread = EngineThread(engine, name="tiny")
        threads.append(thread)
        served = Served(
            name="tiny",
            thread=thread,
            tokenizer=tokenizer,
            digest="0123456789abcdef" * 4,
            max_seq_len=MAX_SEQ_LEN,
            contrastive=True,
        )
        backend = Backend(
            models=[served],
            limits=limits or LimitsConfig(),
            gate=gate or Gate(LiveKeys(), limits=limits),
        )
        return make_app(backend), served

    yield make
    for thread in threads:
        thread.stop()


@pytest.fixture
def http(make_engine: Any, serve_engine: Any) -> Iterator[Http]:
    app, served = serve_engine(make_engine())
    client = Http(app)
    client.served = served  # type: ignore[attr-defined]
    yield client
    client.runner.close()
