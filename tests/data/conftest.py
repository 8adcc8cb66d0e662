"""A small corpus and the datasets made from it, shared by the tests of the data path."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from xtdist.data import BpeTokenizerConfig, FilesSource, PrepareConfig, prepare

TEXT = "the cat of an état sat on mat ünder 東京 and ran; def f(x): return x + 1\n\n# 42 — ok"
WORDS = TEXT.split(" ")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 different documents of 1 to 300 words in nested folders."""
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for i in range(120):
        words = rng.choice(WORDS, size=rng.integers(1, 300))
        path = root / f"part{i % 3}" / f"doc{i:03d}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{i}: " + " ".join(words), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def settings(corpus: Path) -> Callable[..., PrepareConfig]:
    """Makes a config for the corpus: BPE, several small shards per split."""

    def make(output: Path, **changes: object) -> PrepareConfig:
        fields: dict[str, object] = {
            "source": FilesSource(path=str(corpus)),
            "tokenizer": BpeTokenizerConfig(vocab_size=300),
            "valid_fraction": 0.2,
            "shard_tokens": 2000,
        }
        return PrepareConfig(output=str(output), **{**fields, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, settings: Callable[..., PrepareConfig]) -> Path:
    """A finished dataset. Read only: use ``dataset`` to damage one."""
    folder = tmp_path_factory.mktemp("built") / "dataset"
    prepare(settings(folder))
    return folder


@pytest.fixture
def dataset(built: Path, tmp_path: Path) -> Path:
    """A copy of ``built`` that the test may damage."""
    return Path(shutil.copytree(built, tmp_path / "dataset"))
