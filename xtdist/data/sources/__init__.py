"""Text in: sources of documents, cut into units that any machine can read."""

from xtdist.data.sources.config import (
    FilesSource,
    HfFolderSource,
    JsonlSource,
    ParquetSource,
    SourceConfig,
    StdlibSource,
)
from xtdist.data.sources.plan import (
    input_sha256,
    input_stamp,
    inputs,
    plan_units,
    read_unit,
)
from xtdist.data.sources.unit import Document, Input, Part, Unit

__all__ = [
    "Document",
    "FilesSource",
    "HfFolderSource",
    "Input",
    "JsonlSource",
    "ParquetSource",
    "Part",
    "SourceConfig",
    "StdlibSource",
    "Unit",
    "input_sha256",
    "input_stamp",
    "inputs",
    "plan_units",
    "read_unit",
]
