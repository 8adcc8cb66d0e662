"""Ranks as tiktoken's files have them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtdist.config import DataError
from xtdist.data.tokenizer.base import MOST_IDS, Pieces, Tokenizer
from xtdist.data.tokenizer.config import TiktokenTokenizerConfig
from xtdist.data.tokenizer.envelope import from_base64, read_file, seal, to_base64
from xtdist.data.tokenizer.ranks import PATTERNS, RankEncoder
from xtdist.data.tokenizer.roles import roles_from, to_tree


class TiktokenTokenizer(Tokenizer):
    """The ids of ``tiktoken.Encoding.encode_ordinary``. Ids between the ranks and the special
    tokens that nothing has are allowed, and have no bytes."""

    kind = "tiktoken"

    def __init__(
        self,
        tokens: Sequence[bytes],
        pattern: str,
        roles: Any,
        *,
        size: int,
        where: str = "tokenizer",
    ) -> None:
        """``tokens`` by rank, ``size``: ids with those of special tokens, without appended roles.

        Raises:
            DataError: tokens that are not different or lack a byte, a wrong expression, or roles
                among the ranks or beyond the size.
        """
        check_tokens(tokens, where)
        check_pattern(pattern, where)
        if type(size) is not int or not len(tokens) <= size <= MOST_IDS:
            raise DataError(f"{where}: size: got {size!r}; it has {len(tokens)} ranks")
        found, total = roles_from(roles, size, where)
        if min(found.eot, found.mask, found.pad) < len(tokens):
            raise DataError(f"{where}: roles: one has the id of a rank; give ids behind the ranks")
        self._args = (list(tokens), pattern, roles, size)
        self._ranks = RankEncoder(tokens, pattern)
        self._lengths = np.array([len(t) for t in tokens], np.int64)
        super().__init__(Pieces([*tokens, *[b""] * (total - len(tokens))]), found, where=where)

    def _parts(self, text: str) -> Iterator[NDArray[np.uint32]]:
        if self._ranks.pattern in PATTERNS:
            return self._ranks.parts(text)
        return self._whole(text)

    def _whole(self, text: str) -> Iterator[NDArray[np.uint32]]:
        """With an expression of one's own, that is not known to match everything."""
        for ids in self._ranks.parts(text):
            if int(self._lengths[ids].sum()) != len(text.encode()):
                raise DataError(
                    f"pattern: {self._ranks.pattern!r} leaves out a part of a text; it must match "
                    "everything (end it with |.|\\n)"
                )
            yield ids

    def _content(self) -> str:
        tokens, pattern, _, size = self._args
        ranks = [to_base64(t) for t in tokens]
        roles = to_tree(self.roles)
        return seal(self.kind, {"pattern": pattern, "ranks": ranks, "roles": roles, "size": size})

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, self._args


def _rebuild(tokens: list[bytes], pattern: str, roles: Any, size: int) -> TiktokenTokenizer:
    return TiktokenTokenizer(tokens, pattern, roles, size=size)


def take_over(config: TiktokenTokenizerConfig) -> Tokenizer:
    """The tokenizer of a ranks file. Raises DataError; see ``TiktokenTokenizer``."""
    path = Path(config.path).expanduser()
    where = str(path)
    tokens = read_ranks(read_file(path), where)
    ids = sorted(config.special.values())
    if len(set(ids)) < len(ids) or (ids and not len(tokens) <= ids[0] <= ids[-1] < MOST_IDS):
        raise DataError(
            f"{where}: special: ids must be different, and behind the {len(tokens)} ranks"
        )
    size = max(len(tokens), ids[-1] + 1 if ids else 0)
    names, total = dict(config.special), size
    for name in (config.eot, config.mask, config.pad):
        if name not in names:
            names[name] = total
            total += 1
    roles = {"eot": names[config.eot], "mask": names[config.mask], "pad": names[config.pad]}
    return TiktokenTokenizer(tokens, config.pattern, roles, size=size, where=where)


def read_ranks(raw: bytes, where: str) -> list[bytes]:
    """Tokens by rank. Raises DataError naming the line that is wrong."""
    tokens: list[bytes] = []
    for number, line in enumerate(raw.splitlines(), 1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != 2 or fields[1] != b"%d" % len(tokens):
            raise DataError(
                f"{where}:{number}: expected a base64 token and the rank {len(tokens)}, got "
                f"{line[:60]!r}"
            )
        tokens.append(from_base64(fields[0].decode("latin-1"), f"{where}:{number}"))
    return tokens


def check_tokens(tokens: Sequence[bytes], where: str) -> None:
    """Raises DataError unless tokens are different and every byte is one."""
    known = set(tokens)
    if len(known) < len(tokens) or b"" in known:
        raise DataError(f"{where}: two ranks have the same token, or one is empty")
    lacking = [b for b in range(256) if bytes([b]) not in known]
    if lacking:
        raise DataError(
            f"{where}: {len(lacking)} bytes have no rank (the first: 0x{lacking[0]:02x}); then not "
            "every text can be encoded"
        )


def check_pattern(pattern: Any, where: str) -> None:
    """Raises DataError for what is neither a name nor a regular expression for tiktoken."""
    try:
        RankEncoder([bytes([b]) for b in range(256)], pattern)._whole("a b")
    except (ValueError, TypeError, DataError) as e:
        raise DataError(
            f"{where}: pattern: {pattern!r:.80} is none of {', '.join(PATTERNS)} and no regular "
            f"expression that tiktoken understands ({e!s:.120})"
        ) from None
