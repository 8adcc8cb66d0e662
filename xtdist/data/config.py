"""Configs of the data path: how a dataset is made and which dataset a run reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from xtdist.config import ConfigError, configclass

SPECIAL_TOKENS = ("<|endoftext|>", "<|mask|>", "<|pad|>")
MIN_BPE_VOCAB = 256 + len(SPECIAL_TOKENS) + 1

OnBadDocument = Literal["error", "skip"]


def local_path(path: str | Path) -> Path:
    """``path`` with a leading ``~`` replaced by the home folder."""
    return Path(os.path.expanduser(path))


def _check_local(key: str, path: str) -> None:
    if "://" in path:
        raise ConfigError(
            f"{key}: got {path!r}; remote storage is not supported yet; give a local or mounted "
            "path"
        )


@configclass
class ByteTokenizerConfig:
    """256 byte tokens and the three special tokens; needs no training."""

    kind: Literal["byte"] = "byte"


@configclass
class BpeTokenizerConfig:
    """Byte-level BPE trained on the training split.

    ``vocab_size`` includes the 256 bytes and the three special tokens; a corpus with too few
    repeated pairs gives a smaller vocabulary. ``train_bytes`` bounds the text that is trained on: a
    subset of the training documents, chosen by content hash.
    """

    kind: Literal["bpe"] = "bpe"
    vocab_size: Annotated[int, Field(ge=MIN_BPE_VOCAB, le=1_000_000)] = 4096
    train_bytes: Annotated[int, Field(gt=0)] = 32_000_000


@configclass
class FilesSource:
    """Every file under ``path`` that matches ``pattern`` is one document (UTF-8)."""

    kind: Literal["files"] = "files"
    path: str
    pattern: str = "**/*.txt"
    bad_documents: OnBadDocument = "error"

    def __post_init__(self) -> None:
        _check_local("path", self.path)


@configclass
class JsonlSource:
    """Every line of a ``.jsonl`` file (or of all under a folder) is one document: its ``field``."""

    kind: Literal["jsonl"] = "jsonl"
    path: str
    field: str = "text"
    bad_documents: OnBadDocument = "error"

    def __post_init__(self) -> None:
        _check_local("path", self.path)


@configclass
class StdlibSource:
    """The source of the running Python's standard library: real text that needs no download.
    Files that are not UTF-8 (a handful of codec tests) are left out."""

    kind: Literal["stdlib"] = "stdlib"


SourceConfig = Annotated[FilesSource | JsonlSource | StdlibSource, Field(discriminator="kind")]
TokenizerConfig = Annotated[ByteTokenizerConfig | BpeTokenizerConfig, Field(discriminator="kind")]


@configclass
class PrepareConfig:
    """Text to shards.

    Attributes:
        output: folder of the dataset; it appears complete or not at all.
        source: where the text comes from.
        tokenizer: how it becomes tokens.
        valid_fraction: expected share of the documents in the validation split. A document's split
            follows from its content alone, so it stays when documents are added.
        shard_tokens: a shard is closed once it has this many tokens (documents stay whole).
        replace: build anew when ``output`` holds another dataset; otherwise that is an error.
    """

    output: str
    source: SourceConfig
    tokenizer: TokenizerConfig
    valid_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    shard_tokens: Annotated[int, Field(gt=0, le=2**30)] = 32 * 2**20
    replace: bool = False

    def __post_init__(self) -> None:
        _check_local("output", self.output)


@configclass
class DataConfig:
    """The dataset that a run reads.

    ``verify``: ``touch`` hashes each shard when it is first read (60 ms per 64 MiB), ``full`` all
    of them on opening, ``size`` trusts file sizes.
    """

    path: str
    verify: Literal["touch", "full", "size"] = "touch"
