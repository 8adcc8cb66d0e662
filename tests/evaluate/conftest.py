"""A small byte-level dataset and random weights for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xtdist.checkpoint import WeightsConfig, save_weights
from xtdist.config import from_mapping
from xtdist.data import (
    BpeTokenizerConfig,
    ByteTokenizerConfig,
    FilesSource,
    PrepareConfig,
    prepare,
)
from xtdist.model.wrapper import build_model

WORDS = ["def", "return", "état", "self", "for", "in", "if", "東京", "x", "y", "0", "(", ")", "="]
SaveModel = Callable[..., Path]


def make_dataset(root: Path, *, seed: int, bpe: bool = False) -> Path:
    """30 documents of 5 to 60 words in ``root/dataset``, several shards."""
    rng = np.random.default_rng(seed)
    (root / "text").mkdir(parents=True)
    for i in range(30):
        words = rng.choice(WORDS, size=rng.integers(5, 60))
        (root / "text" / f"{i}.txt").write_text(" ".join(words), encoding="utf-8")
    prepare(
        PrepareConfig(
            output=str(root / "dataset"),
            source=FilesSource(path=str(root / "text")),
            tokenizer=BpeTokenizerConfig(vocab_size=270) if bpe else ByteTokenizerConfig(),
            valid_fraction=0.3,
            shard_tokens=700,
        )
    )
    return root / "dataset"


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("evaluate"), seed=0)


@pytest.fixture(scope="session")
def other_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("evaluate-other"), seed=1)


@pytest.fixture(scope="session")
def bpe_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("evaluate-bpe"), seed=0, bpe=True)


@pytest.fixture
def save_model(tmp_path: Path, dataset: Path) -> SaveModel:
    """``save_model(kind, seed=…, silent=…, documents=…)``: a folder of weights of a random model
    that takes 24 tokens; a silent one gives every token the same logit."""

    def save(
        kind: str = "autoregressive", *, seed: int = 0, silent: bool = False, documents: str = ""
    ) -> Path:
        model: dict[str, Any] = {"dim": 16, "depth": 1, "heads": 2, "attention": {"dim_head": 8}}
        model |= {"num_tokens": 259, "max_seq_len": 24, "causal": kind == "autoregressive"}
        meta = {"step": 7} | ({"documents": documents} if documents else {})
        config = from_mapping(
            WeightsConfig, {"model": model, "objective": {"kind": kind}, "meta": meta}
        )
        net = build_model(config.model, generator=torch.Generator().manual_seed(seed))
        if silent:
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.zero_()
        folder = tmp_path / f"{kind}-{seed}-{silent}-{documents}"
        save_weights(folder, net.state_dict(), config, tokenizer=dataset / "tokenizer.json")
        return folder

    return save
