"""Models of the sentencepiece library (extra ``sentencepiece``)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtdist.config import ConfigError, DataError
from xtdist.data.tokenizer.base import Pieces, Tokenizer
from xtdist.data.tokenizer.config import SentencePieceTokenizerConfig
from xtdist.data.tokenizer.envelope import read_file, seal, to_base64
from xtdist.data.tokenizer.hf_cuts import Cuts
from xtdist.data.tokenizer.roles import find_roles, roles_from, to_tree

_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class SentencePieceTokenizer(Tokenizer):
    """The ids of ``SentencePieceProcessor.encode``; its own control pieces can't be spelled.

    ▁ is a space. A model that puts one before a text leaves it out when a whole text is decoded.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes, roles: Any, *, where: str = "tokenizer") -> None:
        """``model``: content of a ``.model`` file.

        Raises:
            ConfigError: the extra is missing.
            DataError: the library refuses the model, or roles outside the vocabulary.
        """
        self._model, self._given_roles = model, roles
        self._engine = load_engine(model, where)
        found, size = roles_from(roles, self._engine.get_piece_size(), where)
        special = {found.eot, found.mask, found.pad}
        own = [i for i in special if i < self._engine.get_piece_size()]
        for i in own:
            if not (self._engine.is_control(i) or self._engine.is_unused(i)):
                raise DataError(
                    f"{where}: {self._engine.id_to_piece(i)!r} can't be eot, mask or pad: text "
                    "encodes to it (it is no control piece of the model)"
                )
        super().__init__(_pieces(self._engine, size), found, where=where)

    def _parts(self, text: str) -> Iterator[NDArray[np.uint32]]:
        for part in Cuts(None).parts(text):  # whole, as far as the memory goes
            yield np.array(self._engine.encode(part), np.uint32)

    def _content(self) -> str:
        roles = to_tree(self.roles)
        return seal(self.kind, {"model": to_base64(self._model), "roles": roles})

    def __reduce__(self) -> tuple[Any, ...]:
        return SentencePieceTokenizer, (self._model, self._given_roles)


def take_over(config: SentencePieceTokenizerConfig) -> Tokenizer:
    """The tokenizer of a ``.model`` file. Raises as ``SentencePieceTokenizer``."""
    path = Path(config.path).expanduser()
    model = read_file(path)
    engine = load_engine(model, str(path))
    size = engine.get_piece_size()
    control = {engine.id_to_piece(i): i for i in range(size) if engine.is_control(i)}
    own = {"eot": engine.eos_id(), "pad": engine.pad_id()}
    asked = {"eot": config.eot, "mask": config.mask, "pad": config.pad}
    for role, i in own.items():
        if asked[role] is None and i >= 0:
            asked[role] = engine.id_to_piece(i)
    roles = find_roles(control, asked, size, special=control, where=str(path))
    return SentencePieceTokenizer(model, to_tree(roles), where=str(path))


def load_engine(model: bytes, where: str) -> Any:
    """The library's processor. Raises DataError for what it refuses, ConfigError without it."""
    try:
        import sentencepiece
    except ImportError:
        raise ConfigError(
            f"{where}: a sentencepiece tokenizer needs that library; install it with "
            "pip install 'xtdist[sentencepiece]'"
        ) from None
    engine = sentencepiece.SentencePieceProcessor()
    try:
        engine.LoadFromSerializedProto(model)
    except (RuntimeError, ValueError, TypeError, OSError) as e:
        raise DataError(f"{where}: not a model of sentencepiece ({e!s:.120})") from None
    return engine


def _pieces(engine: Any, size: int) -> Pieces:
    table = [_bytes(engine, i) for i in range(engine.get_piece_size())]
    table += [b""] * (size - len(table))
    whole = "".join(engine.encode("a", out_type=str))
    lead = b" " if whole.startswith(_SPACE) else b""
    return Pieces(table, lead, b" " if whole.endswith(_SPACE) else b"")


def _bytes(engine: Any, i: int) -> bytes:
    if engine.is_control(i) or engine.is_unknown(i) or engine.is_unused(i):
        return b""
    piece: str = engine.id_to_piece(i)
    if engine.is_byte(i):
        found = _BYTE.fullmatch(piece)
        return bytes([int(found[1], 16)]) if found else b""
    return piece.replace(_SPACE, " ").encode()
