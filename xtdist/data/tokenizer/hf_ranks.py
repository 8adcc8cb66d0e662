"""When a Hugging Face BPE gives the ids of byte-pair encoding by rank, which is much faster.

Hugging Face joins exactly the listed pairs, in their order. Joining by rank joins any neighbours
whose bytes together are a token. Both join the same if every token, encoded with lower ranks only,
ends as one of its listed pairs: what happens within a token's bytes does not depend on what is
around them as long as nothing joins over their ends, so no other pair can ever come to stand there.
A token that Hugging Face's own BPE can't make of its text comes up in no text; it has no rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from xtdist.data.tokenizer.hf_spec import Spec, Vocabulary
from xtdist.data.tokenizer.merges import byte_characters, split_by_rank
from xtdist.data.tokenizer.ranks import PATTERNS, RankEncoder

_BYTE_OF = {c: b for b, c in enumerate(byte_characters())}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}


def rank_encoder(spec: Spec, vocabulary: Vocabulary, engine: Any) -> RankEncoder | None:
    """The same ids by rank, for texts that hold no added token; None if they are not proven to be
    the same."""
    pattern, model = _pattern(spec), spec["model"]
    plain = {"byte_fallback": False, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    if pattern is None or model["type"] != "BPE":
        return None
    if any((model.get(key) or None) != (value or None) for key, value in plain.items()):
        return None
    if spec["normalizer"] not in (None, {"type": "NFC"}):
        return None
    tokens = _ranked(spec, vocabulary, engine)
    if tokens is None:
        return None
    ids = np.array([vocabulary.ids[c] for c in tokens], np.uint32)
    same = np.array_equal(ids, np.arange(len(ids)))
    form = engine.normalizer
    return RankEncoder(
        [_bytes(c) for c in tokens],
        pattern,
        ids=None if same else ids,
        normalize=str if form is None else lambda t: t if t.isascii() else form.normalize_str(t),
    )


def _pattern(spec: Spec) -> str | None:
    """The name of the split into words, if it is one that tiktoken's engine knows exactly."""
    part = spec["pre_tokenizer"]
    if part is None:
        return None
    steps = part["pretokenizers"] if part["type"] == "Sequence" else [part]
    last = {k: v for k, v in steps[-1].items() if k in _BYTE_LEVEL} if steps else None
    if last != _BYTE_LEVEL:
        return None
    if len(steps) == 1:
        return "gpt2" if steps[0]["use_regex"] else None
    if len(steps) > 2 or steps[0]["type"] != "Split" or steps[1]["use_regex"]:
        return None
    split = steps[0]
    if (split["behavior"], split["invert"]) not in (("Isolated", False), ("Removed", True)):
        return None
    return next((n for n, p in PATTERNS.items() if split["pattern"].get("Regex") == p), None)


def _ranked(spec: Spec, vocabulary: Vocabulary, engine: Any) -> list[str] | None:
    """Tokens in rank order, as the file writes them."""
    special = {vocabulary.contents[i] for i in vocabulary.special}
    listed, ids = spec["model"]["vocab"], vocabulary.ids
    if not set(_BYTE_OF) <= listed.keys() or special & set(_BYTE_OF):
        return None
    model = engine.model
    tokens = sorted(_BYTE_OF, key=lambda c: ids[c])
    ranks = {_bytes(c): rank for rank, c in enumerate(tokens)}
    for token, pairs in _grouped(spec["model"]["merges"], special):
        if not set(token) <= _BYTE_OF.keys():
            return None
        raw = _bytes(token)
        if raw in ranks:  # listed again: its first rank has come before
            continue
        parts = split_by_rank(raw, ranks)
        if len(parts) == 2 and (parts[0], parts[1]) in pairs:
            ranks[raw] = len(tokens)
            tokens.append(token)
        elif [t.id for t in model.tokenize(token)] == [ids[token]]:
            return None
    if spec["model"]["ignore_merges"] and listed.keys() - special - set(tokens):
        return None  # words that are found whole though nothing makes them
    return tokens


def _grouped(
    merges: list[list[str]], special: set[str]
) -> Iterator[tuple[str, set[tuple[bytes, bytes]]]]:
    """Tokens in the order of their merges, each with the pairs that stand together."""
    usable = ((a, b) for a, b in merges if not special & {a, b, a + b})
    for token, group in itertools.groupby(usable, key=lambda pair: pair[0] + pair[1]):
        yield token, {(_bytes(a), _bytes(b)) for a, b in group}


def _bytes(token: str) -> bytes:
    return bytes(_BYTE_OF.get(c, 0) for c in token)
