"""Tokenizers: our own, and those of others; one file holds any of them."""

from xtdist.data.tokenizer.base import TOKENIZER_FILE, Tokenizer
from xtdist.data.tokenizer.byte_bpe import byte_tokenizer, train_bpe
from xtdist.data.tokenizer.config import (
    MIN_BPE_VOCAB,
    SPECIAL_TOKENS,
    BpeTokenizerConfig,
    ByteTokenizerConfig,
    HuggingFaceTokenizerConfig,
    SentencePieceTokenizerConfig,
    TiktokenTokenizerConfig,
    TokenizerConfig,
)
from xtdist.data.tokenizer.load import load_tokenizer, make_tokenizer

__all__ = [
    "MIN_BPE_VOCAB",
    "SPECIAL_TOKENS",
    "TOKENIZER_FILE",
    "BpeTokenizerConfig",
    "ByteTokenizerConfig",
    "HuggingFaceTokenizerConfig",
    "SentencePieceTokenizerConfig",
    "TiktokenTokenizerConfig",
    "Tokenizer",
    "TokenizerConfig",
    "byte_tokenizer",
    "load_tokenizer",
    "make_tokenizer",
    "train_bpe",
]
