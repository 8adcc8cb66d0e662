"""Where a text may be cut so that its parts, encoded one by one by Hugging Face's engine, have the
ids of the whole. Parts need less memory and go faster."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from xtdist.config import DataError
from xtdist.data.tokenizer.hf_spec import Spec, Vocabulary
from xtdist.data.tokenizer.ranks import PATTERNS

PART_CHARS = 4_096
MOST_CHARS = 16_000_000  # of a part: the engine needs some hundred bytes for each

# Only plain characters stand before the cut: no normalizer makes white space of them.
_BEFORE_SPACE = re.compile(r"(?<=[0-9A-Za-z.,;:()\[\]{}]) ")
_BETWEEN_WORDS = re.compile(r"(?<=[0-9A-Za-z.,;:()\[\]{}]) (?=[0-9A-Za-z])")

_UNICODE_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
_BY_CHARACTER = frozenset(
    [*_UNICODE_FORMS, "Lowercase", "Nmt", "Precompiled", "BertNormalizer", "StripAccents"]
)
_CUT_AT_SPACES = frozenset(["BertPreTokenizer", "Whitespace", "WhitespaceSplit"])


@dataclass(frozen=True)
class Cuts:
    """Parts begin where ``pattern`` matches; ``drop``: that many characters after it, which the
    engine puts before every part by itself."""

    pattern: re.Pattern[str] | None
    drop: int = 0

    def parts(self, text: str) -> Iterator[str]:
        """Raises DataError for a part that is too long to be encoded in bounded memory."""
        start = 0
        while start < len(text):
            found = None
            if self.pattern is not None:
                found = self.pattern.search(text, start + PART_CHARS)
            stop = found.start() if found else len(text)
            if stop - start > MOST_CHARS:
                raise DataError(
                    f"a text has {stop - start} characters in a row that this tokenizer can only "
                    f"encode as a whole; at most {MOST_CHARS} fit the memory: split the document"
                )
            yield text[start:stop]
            start = stop + (self.drop if found else 0)


def find_cuts(spec: Spec, vocabulary: Vocabulary) -> Cuts:
    """The cuts that are proven not to show; ``Cuts(None)`` if there are none."""
    for token in vocabulary.added.values():
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            return Cuts(None)
        if re.search(r"[\s▁]", token["content"]):
            return Cuts(None)
    steps = _flat(spec["normalizer"], "normalizers")
    if all(_keeps_places(s) for s in steps) and _cuts_at_spaces(spec["pre_tokenizer"]):
        return Cuts(_BEFORE_SPACE)
    return _between_pieces(spec, steps)


def _keeps_places(step: Spec) -> bool:
    """Whether a normalizer does the same on both sides of a space, wherever the text is cut."""
    if step["type"] == "Strip":
        return not step["strip_left"]
    if step["type"] == "Replace":
        pattern = step["pattern"]
        return len(pattern.get("String", "")) == 1 or pattern.get("Regex") == " {2,}"
    return step["type"] in _BY_CHARACTER


def _cuts_at_spaces(part: Spec | None) -> bool:
    """Whether the first step that looks beyond single characters begins a word at each space."""
    for step in _flat(part, "pretokenizers"):
        kind = step["type"]
        if kind in ("Digits", "Punctuation"):
            continue
        if kind == "ByteLevel":
            return bool(step["use_regex"])
        if kind == "Metaspace":
            return bool(step["split"])
        if kind == "Split" and step["pattern"].get("Regex") in PATTERNS.values():
            return True
        if kind == "Split":
            return step["pattern"].get("String") == " " and step["behavior"] in (
                "Isolated",
                "Removed",
                "MergedWithNext",
            )
        return kind in _CUT_AT_SPACES
    return False


def _between_pieces(spec: Spec, steps: list[Spec]) -> Cuts:
    """Cuts for BPE that reads a text as one word with ▁ for its spaces, if no token goes on over
    such a place: then no merge does."""
    model, words = spec["model"], spec["pre_tokenizer"]
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    if words is None:
        first = steps[:1] == [{"type": "Prepend", "prepend": "▁"}]
        fits = steps[first:] == [space]
    else:
        fits = words["type"] == "Metaspace" and words["replacement"] == "▁" and not steps
        first = fits and words["prepend_scheme"] != "never"
    if not fits or model["type"] != "BPE" or model["ignore_merges"] or "▁" not in model["vocab"]:
        return Cuts(None)
    if any(re.search(r"[^▁]▁", token) for token in model["vocab"]):
        return Cuts(None)
    return Cuts(_BETWEEN_WORDS, drop=int(first))


def _flat(part: Any, key: str) -> list[Spec]:
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [step for inner in part[key] for step in _flat(inner, key)]
