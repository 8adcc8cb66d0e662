"""A tiny model that fills masks, and an engine over it."""

from __future__ import annotations

from typing import Any

from tiny_server import MAX_SEQ_LEN, tiny_model

from xtdist.data.tokenizer import byte_tokenizer
from xtdist.decode import Engine, EngineConfig
from xtdist.objective import NonAutoregressiveWrapper
from xtdist.serve.engine_thread import EngineThread
from xtdist.serve.served import Served

TOKENIZER = byte_tokenizer()
MASK = TOKENIZER.mask_id


def filler(**options: Any) -> NonAutoregressiveWrapper:
    return NonAutoregressiveWrapper(
        tiny_model(3, causal=False), mask_id=MASK, pad_id=TOKENIZER.pad_id, **options
    ).eval()


def filling_engine(model: NonAutoregressiveWrapper) -> Engine:
    return Engine(
        model,
        tokenizer=TOKENIZER,
        eos_ids=(TOKENIZER.eot_id,),
        banned_ids=(MASK, TOKENIZER.pad_id),
        config=EngineConfig(max_sequences=4, max_waiting=16, seed=7),
    )


def filling_model(model: NonAutoregressiveWrapper) -> Served:
    return Served(
        name="filler",
        thread=EngineThread(filling_engine(model), name="filler"),
        tokenizer=TOKENIZER,
        digest="fedcba9876543210" * 4,
        max_seq_len=MAX_SEQ_LEN,
        contrastive=False,
        filling=model.filling,
    )
