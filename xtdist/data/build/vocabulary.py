"""The tokenizer of a build: given, taken over, or trained on a sample of the training split."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xtdist.config import DataError, to_mapping
from xtdist.data.build.duplicates import Counts
from xtdist.data.build.progress import Meter, OnProgress
from xtdist.data.build.runners import Runner
from xtdist.data.build.sample import Sample, choose, sample_texts
from xtdist.data.build.work import Work
from xtdist.data.shards import token_dtype
from xtdist.data.sources import SourceConfig, Unit
from xtdist.data.tokenizer import (
    TOKENIZER_FILE,
    BpeTokenizerConfig,
    Tokenizer,
    TokenizerConfig,
    load_tokenizer,
    make_tokenizer,
)
from xtdist.files import sync, write_atomic

_NOTE = "tokenizer-note.json"


class Vocabulary:
    """Either ``ready``, or to be trained once the text is known.

    Raises:
        DataError: the tokenizer that ``config`` names can't be read.
    """

    def __init__(self, config: TokenizerConfig | None, old: Tokenizer | None) -> None:
        self._spec = config if isinstance(config, BpeTokenizerConfig) else None
        self.ready = old
        if config is not None and self._spec is None:
            self.ready = make_tokenizer(config, _no_texts)

    @property
    def identity(self) -> dict[str, Any]:
        """What the tokenizer follows from: its content, or how it is trained."""
        if self._spec is not None:
            return to_mapping(self._spec)
        assert self.ready is not None
        return {"kind": self.ready.kind, "sha256": self.ready.sha256}

    def shard_bytes(self, text_bytes: int) -> int:
        """About the size of shards: one id per byte, or per two bytes for BPE (usually 3 or 4)."""
        if self.ready is not None and self.ready.kind == "byte":
            return text_bytes * 2
        size = self.ready.vocab_size if self.ready is not None else self._size
        return text_bytes * (2 if token_dtype(size) == "uint16" else 4) // 2

    def make(
        self,
        source: SourceConfig,
        units: Sequence[Unit],
        *,
        work: Work,
        counts: Counts,
        workers: tuple[Runner, OnProgress],
    ) -> Tokenizer:
        """The tokenizer, saved in the work's dataset; trained if an earlier build did not do so."""
        path = work.dataset / TOKENIZER_FILE
        if self.ready is not None:
            _save(self.ready, path, work)
            return self.ready
        assert self._spec is not None
        key = hashlib.sha256(
            json.dumps([self.identity, counts.sha256, counts.codes_sha256]).encode()
        ).hexdigest()
        found = _trained_before(path, work, key)
        if found is not None:
            return found
        runner, progress = workers
        choice = choose(work, len(units), counts, self._spec.train_bytes)
        wanted = [u for u in units if len(choice.rows(work, u.number))]
        tasks = [Sample(source=source, unit=u, work=work, choice=choice) for u in wanted]
        expected = min(self._spec.train_bytes, counts.text_bytes["train"])
        files = runner.run(tasks, Meter(progress, "tokenizer", expected))
        tokenizer = make_tokenizer(self._spec, lambda: sample_texts(files))
        _save(tokenizer, path, work)
        write_atomic(work.folder / _NOTE, json.dumps([key, tokenizer.sha256]) + "\n")
        for file in files:
            file.unlink()
        return tokenizer

    @property
    def _size(self) -> int:
        assert self._spec is not None
        return self._spec.vocab_size


def _save(tokenizer: Tokenizer, path: Path, work: Work) -> None:
    part = work.attempts / path.name
    tokenizer.save(part)
    sync(part)
    os.replace(part, path)


def _trained_before(path: Path, work: Work, key: str) -> Tokenizer | None:
    try:
        if [key, *_sha256(path)] == json.loads((work.folder / _NOTE).read_bytes()):
            return load_tokenizer(path)
    except (OSError, ValueError):
        pass
    return None


def _sha256(path: Path) -> tuple[str, ...]:
    try:
        return (load_tokenizer(path).sha256,)
    except DataError:
        return ()


def _no_texts() -> Iterator[str]:
    raise AssertionError("only BPE is trained")
