"""The data path: text to token shards, and shards to batches in an order any worker can compute."""

from xtdist.data.config import (
    BpeTokenizerConfig,
    ByteTokenizerConfig,
    DataConfig,
    PrepareConfig,
)
from xtdist.data.dataset import TokenDataset
from xtdist.data.loader import Loader, StepBatch
from xtdist.data.manifest import Manifest, read_manifest
from xtdist.data.order import Order, rank_slice
from xtdist.data.prepare import PrepareReport, Progress, prepare
from xtdist.data.sources import (
    Document,
    FilesSource,
    HfFolderSource,
    JsonlSource,
    ParquetSource,
    StdlibSource,
)
from xtdist.data.tokenizer import (
    TOKENIZER_FILE,
    Tokenizer,
    byte_tokenizer,
    load_tokenizer,
    train_bpe,
)
from xtdist.data.trace import TracedPiece, TracedRow
from xtdist.data.view import View, open_view

__all__ = [
    "TOKENIZER_FILE",
    "BpeTokenizerConfig",
    "ByteTokenizerConfig",
    "DataConfig",
    "Document",
    "FilesSource",
    "HfFolderSource",
    "JsonlSource",
    "Loader",
    "Manifest",
    "Order",
    "ParquetSource",
    "PrepareConfig",
    "PrepareReport",
    "Progress",
    "StdlibSource",
    "StepBatch",
    "TokenDataset",
    "Tokenizer",
    "TracedPiece",
    "TracedRow",
    "View",
    "byte_tokenizer",
    "load_tokenizer",
    "open_view",
    "prepare",
    "rank_slice",
    "read_manifest",
    "train_bpe",
]
