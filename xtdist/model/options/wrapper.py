"""Options of the wrapper: embedding, head, memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xtdist.model.options.base import REQUIRED, Option, Row, Sample
from xtdist.model.options.weights import Rule


def logit_scale(scale: float | None, given: Mapping[str, Any]) -> float:
    """There, tied logits are scaled by dim^-1/2 unless said otherwise."""
    return float(given["dim"]) ** -0.5 if scale is None else scale


def logit_scale_back(scale: float, tree: Mapping[str, Any]) -> float | None:
    """The way back."""
    return None if scale == float(tree["dim"]) ** -0.5 else scale


OPTIONS: tuple[Option, ...] = (
    Option(
        name="embedding",
        about="token embedding and output head",
        active="dim",
        wrapper=(
            Row("num_tokens", "num_tokens", REQUIRED),
            Row("max_seq_len", "max_seq_len", REQUIRED),
            Row("emb_dropout", "emb_dropout", 0.0),
        ),
        samples=(Sample(wrapper={"emb_dropout": 0.1}),),
        weights=(
            Rule("wrapper", "token_emb.emb.weight", "token_embedding.weight"),
            Rule("wrapper", "to_logits.weight", "head.weight"),
        ),
    ),
    Option(
        name="tied embedding",
        about="the embedding matrix is the output head",
        active="tie_embedding",
        paper="1608.05859",
        wrapper=(
            Row("tie_embedding", "tie_embedding", False),
            Row(
                "tie_embedding_scale",
                "logit_scale",
                None,
                needs="tie_embedding",
                into=logit_scale,
                back=logit_scale_back,
            ),
        ),
        samples=(
            Sample(wrapper={"tie_embedding": True}),
            Sample(wrapper={"tie_embedding": True, "tie_embedding_scale": 0.5}),
        ),
    ),
)
