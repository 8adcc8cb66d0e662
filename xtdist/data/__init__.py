"""The data path: text to token shards, and shards to batches in an order any worker can compute.

The loader comes on first use: it needs torch, and processes that build datasets don't.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xtdist.data.build.config import LocalRunner, PrepareConfig, RayRunner
from xtdist.data.build.prepare import prepare
from xtdist.data.build.progress import Progress
from xtdist.data.build.report import PrepareReport
from xtdist.data.build.spool import prepare_documents
from xtdist.data.config import DataConfig
from xtdist.data.dataset import TokenDataset
from xtdist.data.manifest import Manifest
from xtdist.data.opening import read_manifest
from xtdist.data.order import Order, rank_slice
from xtdist.data.sources import (
    Document,
    FilesSource,
    HfFolderSource,
    JsonlSource,
    ParquetSource,
    StdlibSource,
)
from xtdist.data.storage.config import CacheConfig
from xtdist.data.storage.copy import CopyReport, copy_dataset
from xtdist.data.tokenizer import (
    TOKENIZER_FILE,
    BpeTokenizerConfig,
    ByteTokenizerConfig,
    HuggingFaceTokenizerConfig,
    SentencePieceTokenizerConfig,
    TiktokenTokenizerConfig,
    Tokenizer,
    TokenizerConfig,
    byte_tokenizer,
    load_tokenizer,
    make_tokenizer,
    train_bpe,
)
from xtdist.data.trace import Trace, TracedPiece, TracedRow
from xtdist.data.verify import VerifyReport, verify
from xtdist.data.view import View, open_view

if TYPE_CHECKING:
    from xtdist.data.loader import Loader, StepBatch

__all__ = [
    "TOKENIZER_FILE",
    "BpeTokenizerConfig",
    "ByteTokenizerConfig",
    "CacheConfig",
    "CopyReport",
    "DataConfig",
    "Document",
    "FilesSource",
    "HfFolderSource",
    "HuggingFaceTokenizerConfig",
    "JsonlSource",
    "Loader",
    "LocalRunner",
    "Manifest",
    "Order",
    "ParquetSource",
    "PrepareConfig",
    "PrepareReport",
    "Progress",
    "RayRunner",
    "SentencePieceTokenizerConfig",
    "StdlibSource",
    "StepBatch",
    "TiktokenTokenizerConfig",
    "TokenDataset",
    "Tokenizer",
    "TokenizerConfig",
    "Trace",
    "TracedPiece",
    "TracedRow",
    "VerifyReport",
    "View",
    "byte_tokenizer",
    "copy_dataset",
    "load_tokenizer",
    "make_tokenizer",
    "open_view",
    "prepare",
    "prepare_documents",
    "rank_slice",
    "read_manifest",
    "train_bpe",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in ("Loader", "StepBatch"):
        return getattr(import_module("xtdist.data.loader"), name)
    raise AttributeError(f"module 'xtdist.data' has no attribute {name!r}")
