"""Documents that a Python program makes, not files: written down first, then prepared as any."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from xtdist.config import DataError
from xtdist.data.build.config import PrepareConfig
from xtdist.data.build.foreign import refuse_foreign
from xtdist.data.build.prepare import build
from xtdist.data.build.progress import Meter, OnProgress
from xtdist.data.build.report import PrepareReport
from xtdist.data.build.work import work_folder, workspace
from xtdist.data.config import local_path
from xtdist.data.paths import check_path
from xtdist.data.sources import JsonlSource
from xtdist.data.tokenizer.config import TokenizerConfig


def prepare_documents(
    documents: Iterable[str],
    *,
    output: str | Path,
    tokenizer: TokenizerConfig | None = None,
    progress: OnProgress | None = None,
    **settings: Any,
) -> PrepareReport:
    """Make a dataset of the texts that ``documents`` gives, one at a time, in bounded memory.

    The texts are first written to the hidden work folder beside ``output``, so they need their size
    on disk once more while the dataset is built. Going on after a kill takes the iterable from its
    start again; what was encoded of equal text is not encoded again.

    Args:
        tokenizer: as ``PrepareConfig.tokenizer``; left out with ``extends``.
        settings: any other field of ``PrepareConfig`` but ``source``.

    Raises:
        ConfigError: settings that are none.
        DataError: ``documents`` is one text, bytes, a mapping or no iterable; a document is not a
            text of valid Unicode; and as ``prepare``.
        ResourceError: as ``prepare``.

    Example:
        >>> texts = (row["body"] for row in rows)                              # doctest: +SKIP
        >>> prepare_documents(                                                 # doctest: +SKIP
        ...     texts, output="data/mine", tokenizer=ByteTokenizerConfig()
        ... )
    """
    _check_documents(documents)
    check_path(str(output), "output")
    place = local_path(output)
    if tokenizer is not None:
        settings["tokenizer"] = tokenizer
    config = PrepareConfig(
        output=str(output),
        source=JsonlSource(path=str(work_folder(place) / "spool")),
        **settings,
    )
    refuse_foreign(place)
    with workspace(place) as space:
        meter = Meter(progress or (lambda _: None), "spool", 0)
        _write(documents, space.spool, config.unit_bytes, meter)
        return build(config, space, progress)


def _write(documents: Iterable[str], folder: Path, unit_bytes: int, advance: Meter) -> None:
    """Write JSON lines, a new file whenever one has ``unit_bytes``."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    lines = map(_line, itertools.count(), documents)
    for number in itertools.count():
        line = next(lines, None)
        if line is None:
            break
        with open(folder / f"documents-{number:05d}.jsonl", "wb") as file:
            while line is not None:
                file.write(line)
                advance(len(line))
                line = next(lines, None) if file.tell() < unit_bytes else None
    if not any(folder.iterdir()):
        raise DataError("documents: the iterable gave none; give one with text")


def _check_documents(documents: Any) -> None:
    """What gives texts when it is iterated, but not those that were meant."""
    if isinstance(documents, str | bytes | bytearray | memoryview | Mapping) or not isinstance(
        documents, Iterable
    ):
        raise DataError(
            f"documents: got one {type(documents).__name__}; give an iterable of texts, one for "
            "each document (a single one: [text])"
        )


def _line(number: int, text: Any) -> bytes:
    if not isinstance(text, str):
        raise DataError(
            f"documents: number {number} is of type {type(text).__name__}; give texts (str)"
        )
    try:
        return json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        raise DataError(
            f"documents: number {number} has half of a surrogate pair; only valid Unicode can be "
            "encoded"
        ) from None
