"""From stored bytes to the text of a document, and what is said of those that are none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from xtdist.config import DataError
from xtdist.data.sources.config import OnBadDocument

MAX_DOCUMENT_BYTES = 2**30
"""Of one document. What is larger is a file that nothing cut into documents."""
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a bad document gets."""

    bad_documents: OnBadDocument

    def refuse(self, where: str, problem: str, fix: str) -> None:
        """Return None in place of the text, or raise: ``where`` names the file and line or row."""
        if self.bad_documents == "error":
            raise DataError(f"{where}: {problem}; {fix}, or set source.bad_documents=skip")


def too_large(where: str, size: int | None = None) -> NoReturn:
    """Raise for a document that is over the limit."""
    has = "over" if size is None else f"{size / 2**30:.1f} GiB, more than"
    raise DataError(
        f"{where}: one document of {has} {MAX_DOCUMENT_BYTES / 2**30:g} GiB; split it into "
        "documents, one per file, line or row"
    )


def changed(where: str) -> DataError:
    """A file is not as it was when the units were planned."""
    return DataError(f"{where}: the text changed while it was read; run again when it is at rest")
