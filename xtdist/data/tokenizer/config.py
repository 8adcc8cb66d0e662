"""Which tokenizer a dataset is made with."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from xtdist.config import ConfigError, NonNegativeInt, configclass
from xtdist.data.paths import check_path

SPECIAL_TOKENS = ("<|endoftext|>", "<|mask|>", "<|pad|>")
MIN_BPE_VOCAB = 256 + len(SPECIAL_TOKENS) + 1


@configclass
class ByteTokenizerConfig:
    """256 byte tokens and the three special tokens; needs no training."""

    kind: Literal["byte"] = "byte"


@configclass
class BpeTokenizerConfig:
    """Byte-level BPE trained on the training split.

    ``vocab_size`` includes the 256 bytes and the three special tokens; a corpus with too few
    repeated pairs gives a smaller vocabulary. ``train_bytes`` bounds the text that is trained on: a
    subset of the training documents, chosen by content hash.
    """

    kind: Literal["bpe"] = "bpe"
    vocab_size: Annotated[int, Field(ge=MIN_BPE_VOCAB, le=1_000_000)] = 4096
    train_bytes: Annotated[int, Field(gt=0)] = 32_000_000


@configclass
class HuggingFaceTokenizerConfig:
    """A ``tokenizer.json`` of the ``tokenizers`` library, with its ids.

    ``eot``, ``mask`` and ``pad`` name tokens of the file. None: one of the usual names; a mask or
    pad token that the file lacks is appended after its vocabulary.
    """

    kind: Literal["huggingface"] = "huggingface"
    path: str
    eot: str | None = None
    mask: str | None = None
    pad: str | None = None

    def __post_init__(self) -> None:
        check_local_path(self.path)


@configclass
class TiktokenTokenizerConfig:
    """Byte-pair ranks as tiktoken has them: lines of a base64 token and its rank.

    ``pattern`` is the split into words: gpt2, cl100k, o200k, llama3, qwen2, or a regular expression
    of one's own that matches all of any text. ``special`` are ids of special tokens behind the
    ranks; ``eot``, ``mask`` and ``pad`` are looked up there, or appended.
    """

    kind: Literal["tiktoken"] = "tiktoken"
    path: str
    pattern: str
    special: dict[str, NonNegativeInt] = field(default_factory=dict)
    eot: str = SPECIAL_TOKENS[0]
    mask: str = SPECIAL_TOKENS[1]
    pad: str = SPECIAL_TOKENS[2]

    def __post_init__(self) -> None:
        check_local_path(self.path)


@configclass
class SentencePieceTokenizerConfig:
    """A model of the sentencepiece library (needs the extra ``sentencepiece``).

    ``eot``, ``mask`` and ``pad`` name pieces of the model. None: the model's own end and pad, or
    one of the usual names; a mask or pad that it lacks is appended after its vocabulary.
    """

    kind: Literal["sentencepiece"] = "sentencepiece"
    path: str
    eot: str | None = None
    mask: str | None = None
    pad: str | None = None

    def __post_init__(self) -> None:
        check_local_path(self.path)


TokenizerConfig = Annotated[
    ByteTokenizerConfig
    | BpeTokenizerConfig
    | HuggingFaceTokenizerConfig
    | TiktokenTokenizerConfig
    | SentencePieceTokenizerConfig,
    Field(discriminator="kind"),
]


def check_local_path(path: str) -> None:
    """Raises ConfigError for a remote path, and for what is none."""
    check_path(path)
    if "://" in path:
        raise ConfigError(
            f"path: got {path!r}; a tokenizer is read from a local file, copy it here first"
        )
