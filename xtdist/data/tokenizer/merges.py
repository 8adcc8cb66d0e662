"""Byte-pair merges: training them, and the ids they stand for.

Token ids are ranks: 0-255 are the bytes, 256 + i is the i-th merge. Two neighbours are joined
whenever their bytes together are a token, lowest rank first (what ``tiktoken`` computes). Hugging
Face's encoder instead joins exactly the listed pairs. Both give the same ids if every token,
encoded with lower ranks only, ends as its listed pair; ``ranked_merges`` keeps just those that do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import cast

Merge = tuple[bytes, bytes]

_MAX_TOKEN_BYTES = 128  # checking a token is quadratic in its length: long runs must end
_LONG_RUN = re.compile(r"\S{2048}|\s{2048}")  # the trainer is quadratic in a word's length, too


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in tokenizer.json (GPT-2's table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    table, spare = [], 256
    for byte in range(256):
        if byte in printable:
            table.append(chr(byte))
        else:
            table.append(chr(spare))
            spare += 1
    return table


def train_merges(texts: Iterable[str], max_merges: int) -> list[Merge]:
    """At most ``max_merges`` merges, most frequent pair first; same texts, same merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + max_merges + max_merges // 32 + 16,  # spares for those left out
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=[],
        max_token_length=_MAX_TOKEN_BYTES,
    )
    engine.train_from_iterator((part for text in texts for part in _bounded(text)), trainer)
    pairs = json.loads(engine.to_str())["model"]["merges"]
    byte_of = {c: b for b, c in enumerate(byte_characters())}
    raw = [tuple(bytes(byte_of[c] for c in part) for part in pair) for pair in pairs]
    return ranked_merges(cast(list[Merge], raw))[:max_merges]


def _bounded(text: str) -> Iterator[str]:
    """``text``, cut within runs of 2048 characters without (or of nothing but) white space."""
    start = 0
    for run in _LONG_RUN.finditer(text):
        yield text[start : run.end()]
        start = run.end()
    yield text[start:]


def ranked_merges(merges: Iterable[Merge]) -> list[Merge]:
    """The merges without those for which rank order and the listed pair would disagree."""
    ranks = {bytes([b]): b for b in range(256)}
    kept: list[Merge] = []
    for left, right in merges:
        token = left + right
        if token in ranks:
            continue
        parts = split_by_rank(token, ranks)
        if len(parts) == 2:
            ranks[token] = len(ranks)
            kept.append((parts[0], parts[1]))
    return kept


def split_by_rank(text: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Byte-pair encoding as its definition says: join the lowest-ranked neighbours, leftmost first,
    until none is a token. Quadratic: for single words."""
    parts = [text[i : i + 1] for i in range(len(text))]
    while len(parts) > 1:
        best, at = min(
            (ranks.get(parts[i] + parts[i + 1], len(ranks)), i) for i in range(len(parts) - 1)
        )
        if best == len(ranks):
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
