"""Bytes by id, from a Hugging Face decoder.

Such a decoder turns a list of tokens into a text. Here each token has bytes of its own, so that a
continuation can be shown token by token; only the space at a text's start (or end) belongs to the
text. A decoder that needs more than that is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from xtdist.config import DataError
from xtdist.data.tokenizer.base import Pieces
from xtdist.data.tokenizer.hf_spec import BYTE_PIECE, Spec, Vocabulary
from xtdist.data.tokenizer.merges import byte_characters

_CLEANUP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


@dataclass
class _Steps:
    """A decoder as steps on one token each. ``fused``: from here on it works on the text."""

    where: str
    each: list[Callable[[str], str]] = field(default_factory=list)
    to_bytes: Callable[[str], bytes] = str.encode
    lead: str = ""
    trail: str = ""
    fused: bool = False

    def add(self, step: Spec) -> None:
        """Raises DataError for what can't be said of single tokens."""
        kind = step["type"]
        handler = getattr(self, f"_{kind.lower()}", None)
        binary = self.to_bytes is not str.encode
        if handler is None or (binary and kind not in ("Fuse", "Strip")):
            self._refuse(kind)
        else:
            handler(step)

    def _refuse(self, kind: str) -> None:
        raise DataError(
            f"{self.where}: decoder: {kind} can't be said of single tokens here, so text could not "
            "be shown while it is generated; this tokenizer can't be used"
        )

    def _sequence(self, step: Spec) -> None:
        for inner in step["decoders"]:
            self.add(inner)

    def _fuse(self, step: Spec) -> None:
        self.fused = True

    def _bytelevel(self, step: Spec) -> None:
        self.to_bytes, self.fused = _byte_level, True

    def _bytefallback(self, step: Spec) -> None:
        if self.fused:
            self._refuse("ByteFallback after Fuse")
        self.to_bytes = _byte_fallback

    def _replace(self, step: Spec) -> None:
        pattern = step["pattern"].get("String")
        if pattern is None or (self.fused and len(pattern) != 1):
            self._refuse("Replace by a pattern")
        else:
            self.each.append(lambda t: t.replace(pattern, step["content"]))

    def _metaspace(self, step: Spec) -> None:
        self.each.append(lambda t: t.replace(step["replacement"], " "))
        if step["prepend_scheme"] != "never":
            self.lead = " "

    def _strip(self, step: Spec) -> None:
        char, start, stop = step["content"], step["start"], step["stop"]
        if not self.fused:
            if self.to_bytes is not str.encode:
                self._refuse("Strip between ByteFallback and Fuse")
            self.each.append(lambda t: _stripped(t, char, start, stop))
        elif max(start, stop) > 1 or self.lead or self.trail:
            self._refuse("Strip of several characters")
        else:
            self.lead, self.trail = char * start, char * stop

    def _wordpiece(self, step: Spec) -> None:
        def spaced(token: str) -> str:
            token = token[len(prefix) :] if token.startswith(prefix) else " " + token
            for old, new in _CLEANUP if step["cleanup"] else ():
                token = token.replace(old, new)
            return token

        prefix, self.lead = step["prefix"], " "
        self.each.append(spaced)

    def _bpedecoder(self, step: Spec) -> None:
        self.each.append(lambda t: t.replace(step["suffix"], " "))
        self.trail = " "

    def bytes_of(self, token: str) -> bytes:
        for step in self.each:
            token = step(token)
        return self.to_bytes(token)


def pieces_of(spec: Spec, vocabulary: Vocabulary, size: int, where: str) -> Pieces:
    """Bytes of ``size`` ids; special tokens, and those behind the vocabulary, have none.

    Raises:
        DataError: the decoder can't be said token by token.
    """
    steps = _steps(spec, where)
    numbered = enumerate(vocabulary.contents)
    table = [b"" if i in vocabulary.special else steps.bytes_of(c) for i, c in numbered]
    if steps.to_bytes is _byte_level:  # an added token is text as it stands, not in byte characters
        for i, token in vocabulary.added.items():
            if i not in vocabulary.special:
                table[i] = token["content"].encode()
    table += [b""] * (size - len(table))
    return Pieces(table, steps.lead.encode(), steps.trail.encode())


def _steps(spec: Spec, where: str) -> _Steps:
    model, decoder = spec["model"], spec["decoder"]
    steps = _Steps(where)
    suffix = model.get("end_of_word_suffix")
    if decoder is None:
        if _has(spec["pre_tokenizer"], "ByteLevel"):
            decoder = {"type": "ByteLevel"}
        elif model["type"] == "WordLevel":  # tokens are words, a space between them
            steps.each.append(lambda t: " " + t)
            steps.lead = " "
            return steps
        else:
            raise DataError(
                f"{where}: decoder: it has none, so how its tokens make a text is not said; set one"
            )
    if suffix and _has(decoder, "ByteLevel"):  # CLIP's: its users put a space for the suffix
        steps.each.append(lambda t: t.removesuffix(suffix) + "Ġ" * t.endswith(suffix))
        steps.trail = " "
    elif suffix and not _has(decoder, "BPEDecoder"):
        raise DataError(f"{where}: decoder: leaves the suffix {suffix!r} of words in the text")
    prefix = model.get("continuing_subword_prefix")
    if prefix and not _has(decoder, "WordPiece"):
        raise DataError(f"{where}: decoder: leaves the prefix {prefix!r} of word parts in the text")
    steps.add(decoder)
    return steps


def _has(part: Any, kind: str) -> bool:
    if not isinstance(part, dict):
        return False
    inner = part.get("decoders", []) + part.get("pretokenizers", [])
    return part["type"] == kind or any(_has(p, kind) for p in inner)


def _byte_level(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF[c] for c in token)
    except KeyError:
        return token.encode()


def _byte_fallback(token: str) -> bytes:
    found = BYTE_PIECE.fullmatch(token)
    return bytes([int(found[1], 16)]) if found else token.encode()


def _stripped(token: str, char: str, start: int, stop: int) -> str:
    for _ in range(start):
        token = token.removeprefix(char)
    for _ in range(stop):
        token = token.removesuffix(char)
    return token


_BYTE_OF = {c: b for b, c in enumerate(byte_characters())}
