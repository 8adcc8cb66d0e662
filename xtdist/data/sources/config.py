"""Configs of sources: where the text of a dataset comes from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from xtdist.config import configclass
from xtdist.data.paths import check_path

OnBadDocument = Literal["error", "skip"]
JSON_LINES = "**/*.{jsonl,jsonl.gz,jsonl.zst,jsonl.bz2,json.gz,json.zst,json.bz2}"


@configclass
class FilesSource:
    """Every file under ``path`` that matches ``pattern`` is one document (UTF-8).

    Attributes:
        path: a folder, or one file; local, ``s3://bucket/...`` or ``gs://bucket/...``.
        pattern: files of the folder: ``*`` and ``?`` within a name, ``**/`` for any folders,
            ``[abc]`` and ``{a,b}`` for alternatives. Files named ``.gz``, ``.zst`` or ``.bz2`` are
            unpacked as they are read.
        bad_documents: what a document that is not UTF-8 gets: ``error`` names it, ``skip`` leaves
            it out and counts it.
    """

    kind: Literal["files"] = "files"
    path: str
    pattern: str = "**/*.txt"
    bad_documents: OnBadDocument = "error"

    def __post_init__(self) -> None:
        check_path(self.path)


@configclass
class JsonlSource:
    """Every line of a JSON lines file is one document: the text under ``field``.

    Attributes:
        path: a folder, or one file; local, ``s3://bucket/...`` or ``gs://bucket/...``.
        pattern: files of the folder, as in ``files``. Plain files are read in parts, packed ones
            (``.gz``, ``.zst``, ``.bz2``) from start to end.
        field: the key of the text.
        bad_documents: ``error`` names the file and line that is not JSON or has no text under
            ``field``; ``skip`` leaves it out and counts it. Blank lines are no documents.
    """

    kind: Literal["jsonl"] = "jsonl"
    path: str
    pattern: str = JSON_LINES
    field: str = "text"
    bad_documents: OnBadDocument = "error"

    def __post_init__(self) -> None:
        check_path(self.path)


@configclass
class ParquetSource:
    """Every row of a Parquet file is one document: the text in column ``field``.

    Attributes:
        path: a folder, or one file; local, ``s3://bucket/...`` or ``gs://bucket/...``.
        pattern: files of the folder, as in ``files``.
        field: a column of strings, or of binary values that hold UTF-8.
        bad_documents: what a row with null or with bytes that are not UTF-8 gets.
    """

    kind: Literal["parquet"] = "parquet"
    path: str
    pattern: str = "**/*.parquet"
    field: str = "text"
    bad_documents: OnBadDocument = "error"

    def __post_init__(self) -> None:
        check_path(self.path)


@configclass
class HfFolderSource:
    """A folder written by ``save_to_disk`` of Hugging Face datasets; every row is one document.

    Attributes:
        path: the folder; local, ``s3://bucket/...`` or ``gs://bucket/...``.
        split: which dataset of a ``DatasetDict``; null for a folder that holds one ``Dataset``.
        field: a column of strings, or of binary values that hold UTF-8.
        bad_documents: what a row with null or with bytes that are not UTF-8 gets.
    """

    kind: Literal["hf_folder"] = "hf_folder"
    path: str
    split: str | None = None
    field: str = "text"
    bad_documents: OnBadDocument = "error"

    def __post_init__(self) -> None:
        check_path(self.path)


@configclass
class StdlibSource:
    """The source of the running Python's standard library: real text that needs no download.
    Files that are not UTF-8 (a handful of codec tests) are left out."""

    kind: Literal["stdlib"] = "stdlib"


SourceConfig = Annotated[
    FilesSource | JsonlSource | ParquetSource | HfFolderSource | StdlibSource,
    Field(discriminator="kind"),
]
