"""What a Hugging Face ``tokenizer.json`` says: its vocabulary, and the engine that encodes by it.

The engine can't give the id of a special token. In the file that it is made from, special tokens
have names that no text can hold (random ones), in the vocabulary too: Hugging Face's flag for
special tokens leaves a whole word ``</s>`` of a WordLevel or Unigram vocabulary as it is.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from xtdist.config import DataError

Spec = dict[str, Any]

BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Vocabulary:
    """``contents`` by id; ``special``: ids flagged so, and the unknown token; ``added``: texts of
    other added tokens by id, found in a text before anything else."""

    contents: list[str]
    special: frozenset[int]
    added: dict[int, Spec]

    @cached_property
    def ids(self) -> dict[str, int]:
        return {c: i for i, c in enumerate(self.contents)}


def engine_of(spec: Spec, where: str) -> Any:
    """The ``tokenizers.Tokenizer`` of a spec. Raises DataError for what the library refuses."""
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(json.dumps(spec))
    except BaseException as e:
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        raise DataError(f"{where}: not a tokenizer.json of Hugging Face ({e!s:.200})") from None


def normal_form(spec: Any, where: str) -> Spec:
    """The spec in the library's newest words, without truncation, padding and post-processing:
    whole texts are encoded and nothing is added to them.

    Raises:
        DataError: no valid spec, or one whose encoding is random.
    """
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise DataError(f"{where}: not a tokenizer.json of Hugging Face: it has no model")
    plain = {**spec, "truncation": None, "padding": None, "post_processor": None}
    normal: Spec = json.loads(engine_of(plain, where).to_str())
    if normal["model"].get("dropout"):
        raise DataError(
            f"{where}: model.dropout is {normal['model']['dropout']}: encoding would be random; "
            "set it to null"
        )
    return normal


def read_vocabulary(spec: Spec, where: str) -> Vocabulary:
    """Raises DataError unless ids are 0, 1, 2 … and each has one text."""
    model = spec["model"]
    listed = model["vocab"]
    if isinstance(listed, dict):
        by_id = {i: c for c, i in listed.items()}
        clash = len(by_id) < len(listed)
    else:
        by_id = {i: piece[0] for i, piece in enumerate(listed)}
        clash = len(set(by_id.values())) < len(by_id)
    added: dict[int, Spec] = {}
    special = set()
    for token in spec["added_tokens"]:
        i, content = token["id"], token["content"]
        clash |= by_id.setdefault(i, content) != content
        if model.get("byte_fallback") and BYTE_PIECE.fullmatch(content):
            continue  # stands for a byte of a text, whatever the flag says
        if token["special"]:
            special.add(i)
        else:
            added[i] = token
    clash |= len(set(by_id.values())) < len(by_id)
    if clash or sorted(by_id) != list(range(len(by_id))):
        raise DataError(
            f"{where}: the ids of its {len(by_id)} tokens are not 0 to {len(by_id) - 1}, each for "
            "one token; repair the file"
        )
    unknown = _unknown(model, by_id)
    return Vocabulary([by_id[i] for i in range(len(by_id))], frozenset(special | unknown), added)


def safe_engine(spec: Spec, vocabulary: Vocabulary, where: str) -> Any:
    """An engine with the ids of ``spec`` that no text makes give a special token, but for the
    unknown one where a text has what the vocabulary lacks.

    Raises:
        DataError: the library gives tokens other ids than the file.
    """
    marker = secrets.token_hex(16)
    names = {vocabulary.contents[i]: f"{marker}-{i}" for i in vocabulary.special}
    model = dict(spec["model"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(c, c): i for c, i in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(c, c), score] for c, score in model["vocab"]]
    if "merges" in model:
        model["merges"] = [
            (a, b)
            for a, b in model["merges"]
            if a not in names and b not in names and a + b not in names
        ]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    added = [
        {**t, "content": names[t["content"]], "special": True} if t["content"] in names else t
        for t in spec["added_tokens"]
    ]
    engine = engine_of({**spec, "model": model, "added_tokens": added}, where)
    engine.encode_special_tokens = True
    for content, i in vocabulary.ids.items():
        if engine.token_to_id(names.get(content, content)) != i:
            raise DataError(
                f"{where}: token {content!r} has id {i} in the file and "
                f"{engine.token_to_id(names.get(content, content))} once loaded; repair the file"
            )
    return engine


def _unknown(model: Spec, by_id: dict[int, str]) -> set[int]:
    if model["type"] == "Unigram":
        return set() if model["unk_id"] is None else {model["unk_id"]}
    return {i for i, content in by_id.items() if content == model.get("unk_token")}
