"""How fast text becomes a dataset, beside the encoding alone and that of the library ``tokenizers``
with the same vocabulary."""

from __future__ import annotations

import itertools
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
from data_corpora import Text

from xtdist.data import (
    BpeTokenizerConfig,
    ByteTokenizerConfig,
    HuggingFaceTokenizerConfig,
    JsonlSource,
    LocalRunner,
    ParquetSource,
    PrepareConfig,
    Tokenizer,
    TokenizerConfig,
    load_tokenizer,
    prepare,
    train_bpe,
)

HEADER = ("what", "from", "workers", "MB/s", "MB per CPU-second", "theirs / ours")
MB = 1e6
Kind = Literal["bytes", "bpe", "trained"]
NAMES: dict[Kind, str] = {
    "bytes": "build, bytes",
    "bpe": "build, BPE",
    "trained": "build, BPE, training included",
}


@dataclass(frozen=True, kw_only=True)
class Build:
    """One build: which tokenizer, what text lies in, and how many processes work on it."""

    kind: Kind
    source: Literal["parquet", "jsonl"]
    workers: int


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """``vocab_size`` ids, learned from ``train_bytes`` of text; units of ``unit_bytes``;
    ``sample_bytes`` are encoded where encoding alone is measured."""

    vocab_size: int = 32_000
    train_bytes: int = 8_000_000
    unit_bytes: int = 16_000_000
    sample_bytes: int = 8_000_000


BUILDS = (
    Build(kind="bytes", source="parquet", workers=2),
    Build(kind="bytes", source="jsonl", workers=2),
    Build(kind="bytes", source="parquet", workers=1),
    Build(kind="bpe", source="parquet", workers=2),
    Build(kind="bpe", source="jsonl", workers=2),
    Build(kind="bpe", source="parquet", workers=1),
    Build(kind="trained", source="parquet", workers=2),
)
QUICK = (
    Build(kind="bytes", source="parquet", workers=2),
    Build(kind="bpe", source="jsonl", workers=1),
    Build(kind="trained", source="parquet", workers=1),
)


def processor_seconds() -> float:
    """Of this process and of all that it has waited for."""
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, both))


def timed(step: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor seconds of one call, processes that it starts and ends included."""
    wall, cpu = time.perf_counter(), processor_seconds()
    step()
    return time.perf_counter() - wall, processor_seconds() - cpu


def texts(text: Text, limit_bytes: int) -> Iterator[str]:
    """Documents from all over the corpus, about ``limit_bytes`` of them."""
    every = max(1, text.text_bytes // limit_bytes)
    column = pq.read_table(text.parquet)["text"]
    for i in range(0, len(column), every):
        yield column[i].as_py()


def build(one: Build, text: Text, vocabulary: Path, *, sizes: Sizes, output: Path) -> None:
    """Make the dataset and take it away again."""
    tokenizer: TokenizerConfig
    match one.kind:
        case "bytes":
            tokenizer = ByteTokenizerConfig()
        case "bpe":
            tokenizer = HuggingFaceTokenizerConfig(path=str(vocabulary))
        case "trained":
            tokenizer = BpeTokenizerConfig(
                vocab_size=sizes.vocab_size, train_bytes=sizes.train_bytes
            )
    source = (
        ParquetSource(path=str(text.parquet))
        if one.source == "parquet"
        else JsonlSource(path=str(text.jsonl))
    )
    report = prepare(
        PrepareConfig(
            output=str(output),
            source=source,
            tokenizer=tokenizer,
            unit_bytes=sizes.unit_bytes,
            runner=LocalRunner(workers=one.workers),
        )
    )
    made = sum(split.text_bytes for split in report.splits.values())
    if made != text.text_bytes:
        raise ValueError(
            f"{one}: {made} bytes of text in the dataset, {text.text_bytes} in its source"
        )
    shutil.rmtree(output)


def encoders(vocabulary: Path, sample: Sequence[str]) -> dict[str, Callable[[], Any]]:
    """Encoding alone, in one thread; ids are compared first."""
    import tokenizers

    mine: Tokenizer = load_tokenizer(vocabulary)
    theirs = tokenizers.Tokenizer.from_file(str(vocabulary))
    for document in itertools.islice(sample, 20):
        if mine.encode(document).tolist() != theirs.encode(document).ids:
            raise ValueError("tokenizers gives other ids")
    return {
        "encode alone, BPE": lambda: [mine.encode(document) for document in sample],
        "encode alone, tokenizers": lambda: [theirs.encode(document) for document in sample],
    }


def lines(
    builds: Sequence[Build], text: Text, folder: Path, *, sizes: Sizes, repeats: int
) -> list[list[str]]:
    """The table: all builds in turn, then the encoders in turn."""
    vocabulary = folder / "vocabulary.json"
    train_bpe(texts(text, sizes.train_bytes), sizes.vocab_size).save(vocabulary)
    sample = list(texts(text, sizes.sample_bytes))
    sample_bytes = sum(len(document.encode()) for document in sample)
    found: dict[tuple[str, ...], list[tuple[float, float]]] = {}

    def note(key: tuple[str, ...], step: Callable[[], Any], size: int) -> None:
        wall, cpu = timed(step)
        found.setdefault(key, []).append((wall * MB / size, cpu * MB / size))

    for _ in range(repeats):
        for one in builds:
            step = partial(build, one, text, vocabulary, sizes=sizes, output=folder / "out")
            note((NAMES[one.kind], one.source, str(one.workers)), step, text.text_bytes)
        for name, encode in encoders(vocabulary, sample).items():
            note((name, "memory", "1"), encode, sample_bytes)
    own = [cpu for _, cpu in found["encode alone, BPE", "memory", "1"]]
    rows = []
    for key, runs in found.items():
        wall, cpu = (statistics.median(column) for column in zip(*runs, strict=True))
        ratio = statistics.median(c / o for (_, c), o in zip(runs, own, strict=True))
        shown = f"{ratio:.2f}" if "tokenizers" in key[0] else "-"
        rows.append([*key, f"{1 / wall:.1f}", f"{1 / cpu:.1f}", shown])
    return rows
