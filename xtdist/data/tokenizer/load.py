"""One file, ``tokenizer.json``, for every kind: reading it, and making what it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from xtdist.config import DataError
from xtdist.data.tokenizer import byte_bpe, huggingface, sentencepiece, tiktoken
from xtdist.data.tokenizer.base import TOKENIZER_FILE, Tokenizer
from xtdist.data.tokenizer.config import (
    BpeTokenizerConfig,
    ByteTokenizerConfig,
    HuggingFaceTokenizerConfig,
    SentencePieceTokenizerConfig,
    TiktokenTokenizerConfig,
    TokenizerConfig,
)
from xtdist.data.tokenizer.envelope import (
    VERSION_KEY,
    from_base64,
    parse_json,
    read_file,
    unseal,
)


def make_tokenizer(config: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    """The tokenizer that ``config`` describes. ``texts`` are what BPE learns from; the other kinds
    read none.

    Raises:
        DataError: a file that can't be read, or used.
        ConfigError: the extra for sentencepiece is missing.
    """
    match config:
        case ByteTokenizerConfig():
            return byte_bpe.byte_tokenizer()
        case BpeTokenizerConfig():
            return byte_bpe.train_bpe(texts(), config.vocab_size)
        case HuggingFaceTokenizerConfig():
            return huggingface.take_over(config)
        case TiktokenTokenizerConfig():
            return tiktoken.take_over(config)
        case SentencePieceTokenizerConfig():
            return sentencepiece.take_over(config)


def load_tokenizer(source: str | Path | bytes, *, name: str = TOKENIZER_FILE) -> Tokenizer:
    """The tokenizer that ``Tokenizer.save`` wrote.

    Args:
        source: path of the file, or its content.
        name: what errors call the content.

    Raises:
        DataError: no such file, not JSON, or not exactly such a tokenizer (the formatting is free).
        ConfigError: the extra for sentencepiece is missing.
    """
    if isinstance(source, bytes):
        raw, where = source, name
    else:
        raw, where = read_file(Path(source)), str(source)
    tree = parse_json(raw, where)
    if not isinstance(tree, dict) or VERSION_KEY not in tree:
        return byte_bpe.from_spec(tree, where)
    match tree.get("kind"):
        case "huggingface":
            if "source" in tree:
                roles, source = unseal(tree, ("roles", "source"), where)
                return huggingface.from_source(source, roles, where=where)
            roles, spec = unseal(tree, ("roles", "spec"), where)
            return huggingface.HuggingFaceTokenizer(spec, roles, where=where)
        case "tiktoken":
            return _tiktoken(tree, where)
        case "sentencepiece":
            model, roles = unseal(tree, ("model", "roles"), where)
            raw = from_base64(model, where)
            return sentencepiece.SentencePieceTokenizer(raw, roles, where=where)
        case kind:
            raise DataError(
                f"{where}: kind is {kind!r:.80}; this version reads huggingface, tiktoken, "
                "sentencepiece"
            )


def _tiktoken(tree: dict[str, Any], where: str) -> Tokenizer:
    keys = ("pattern", "ranks", "roles", "size")
    pattern, ranks, roles, size = unseal(tree, keys, where)
    if not isinstance(ranks, list) or not isinstance(pattern, str):
        raise DataError(f"{where}: damaged: ranks must be a list and pattern a text")
    tokens = [from_base64(t, where) for t in ranks]
    return tiktoken.TiktokenTokenizer(tokens, pattern, roles, size=size, where=where)
