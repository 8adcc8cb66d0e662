"""Configs of a build: what a dataset is made from, and what works on it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from xtdist.config import ConfigError, PositiveInt, configclass
from xtdist.data.paths import check_path
from xtdist.data.sources.config import SourceConfig
from xtdist.data.tokenizer.config import TokenizerConfig


@configclass
class LocalRunner:
    """``workers`` processes on this machine (null: one per core). A single one, or a single unit of
    work, needs no process of its own."""

    kind: Literal["local"] = "local"
    workers: PositiveInt | None = None


@configclass
class RayRunner:
    """One task of one CPU for each unit, on all nodes of the Ray cluster. Text and ``output`` must
    be on storage that every node has under the same path."""

    kind: Literal["ray"] = "ray"


RunnerConfig = Annotated[LocalRunner | RayRunner, Field(discriminator="kind")]


@configclass
class PrepareConfig:
    """Text to shards.

    Attributes:
        output: folder of the dataset; it appears complete or not at all.
        source: where the text comes from.
        tokenizer: how it becomes tokens. Left out with ``extends``.
        extends: a dataset to add to: the new one begins with its shards and keeps its tokenizer;
            documents that it has are left out. It is not changed.
        valid_fraction: expected share of the documents in the validation split. A document's split
            follows from its content alone, so it stays when documents are added.
        shard_tokens: a shard is closed once it has this many tokens (documents stay whole).
        unit_bytes: text is cut into units of about this size, each read and encoded in one go.
        runner: what works on the units; it changes nothing in the dataset.
        replace: build anew when ``output`` holds another dataset; otherwise that is an error.
    """

    output: str
    source: SourceConfig
    tokenizer: TokenizerConfig | None = None
    extends: str | None = None
    valid_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    shard_tokens: Annotated[int, Field(gt=0, le=2**30)] = 32 * 2**20
    unit_bytes: PositiveInt = 2**27
    runner: RunnerConfig = LocalRunner()
    replace: bool = False

    def __post_init__(self) -> None:
        for key, path in (("output", self.output), ("extends", self.extends)):
            if path is None:
                continue
            check_path(path, key)
            if "://" in path:
                raise ConfigError(
                    f"{key}: got {path!r}; datasets are made on local or mounted storage; give "
                    "such a path (the finished one can be copied to remote storage)"
                )
        if self.tokenizer is None and self.extends is None:
            raise ConfigError(
                "tokenizer: required key is missing (only a dataset that extends another has one "
                "already)"
            )
        if self.tokenizer is not None and self.extends is not None:
            raise ConfigError(
                "tokenizer: got one besides extends; a dataset that extends another keeps its "
                "tokenizer; leave this key out (on the command line: tokenizer=null)"
            )
