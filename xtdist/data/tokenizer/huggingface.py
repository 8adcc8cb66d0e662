"""Any Hugging Face ``tokenizer.json``, with its ids."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtdist.config import DataError
from xtdist.data.tokenizer.base import Roles, Tokenizer
from xtdist.data.tokenizer.config import HuggingFaceTokenizerConfig
from xtdist.data.tokenizer.envelope import parse_json, read_file, seal
from xtdist.data.tokenizer.hf_bytes import pieces_of
from xtdist.data.tokenizer.hf_cuts import find_cuts
from xtdist.data.tokenizer.hf_ranks import rank_encoder
from xtdist.data.tokenizer.hf_spec import (
    Vocabulary,
    normal_form,
    read_vocabulary,
    safe_engine,
)
from xtdist.data.tokenizer.ranks import RankEncoder
from xtdist.data.tokenizer.roles import find_roles, roles_from, to_tree

# Words, numbers, white space, scripts, and letters of the last Unicode versions, that engines with
# older tables would split otherwise.
SAMPLES = (
    "Hello world. It's 3.14159, isn't it?\n\n\tx = foo(bar)[0]  # ok ok\r\n  WE'LL CamelCase_x1",
    "Grüße, naïve café e\u0301 — “quotes” … 你好，世界！ 日本語 한국어 العربية हिन्दी ไทย"
    " \U0001f389 \U0001f469\u200d\U0001f467 ٣٤ ½ ǅ ſ \u3000 \u2028 \x85.",
    "a\U00011f04 \U00011f50 \U00031350 \U0001e4d0 \U0002ebf0 \U00010d4a 1\U00010d40 \U000105c0"
    " \U0001cc00 \U00016d40 \U00016ea0 \U000323b0 \U00010940 z\x00\x01\x7f",
)

_WANTED = (
    "the tokenizer.json of a Hugging Face model, or set the tokenizer's kind to that of the file: "
    "tiktoken (lines of base64 and ranks) or sentencepiece (a .model)"
)

_BECOME_ASCII = ("\u037e", "\u1fef", "\u212a")


class HuggingFaceTokenizer(Tokenizer):
    """Encodes as ``tokenizers`` does without special tokens, but for text that spells a special
    token, which is plain text; byte-level BPE goes through tiktoken where that is proven equal.

    Decoding gives what the file's decoder would, except that every token has bytes of its own: of
    several spaces at the start of a text one at most is left out, where a first word gets one.
    """

    kind = "huggingface"

    def __init__(
        self, spec: Any, roles: Any, *, source: str | None = None, where: str = "tokenizer"
    ) -> None:
        """``spec``: the parsed ``tokenizer.json``; ``roles``: its ids of eot, mask and pad;
        ``source``: the file's text, kept as it is for whoever wants the file back.

        Raises:
            DataError: the library refuses the spec, its ids have gaps, encoding would be random, or
                its decoder can't be said token by token.
        """
        self.spec, self._given_roles, self.source = spec, roles, source
        self._normal = normal_form(spec, where)
        known = read_vocabulary(self._normal, where)
        found, size = roles_from(roles, len(known.contents), where)
        own = {i for i in (found.eot, found.mask, found.pad) if i < len(known.contents)}
        added = {i: t for i, t in known.added.items() if i not in own}
        self._vocabulary = Vocabulary(known.contents, known.special | own, added)
        self._engine = safe_engine(self._normal, self._vocabulary, where)
        super().__init__(pieces_of(self._normal, self._vocabulary, size, where), found, where=where)
        self._cuts = find_cuts(self._normal, self._vocabulary)
        self._check_samples(where)

    def _parts(self, text: str) -> Iterator[NDArray[np.uint32]]:
        fast = self._fast
        if fast is None or any(a in text for a in self._fragments):
            return self._by_engine(text)
        return fast.parts(text)

    def _by_engine(self, text: str) -> Iterator[NDArray[np.uint32]]:
        for part in self._cuts.parts(text):
            yield np.array(self._engine.encode(part, add_special_tokens=False).ids, np.uint32)

    @cached_property
    def _fast(self) -> RankEncoder | None:
        fast = rank_encoder(self._normal, self._vocabulary, self._engine)
        if fast is None:
            return None
        for sample in SAMPLES:
            one, other = fast.parts(sample), self._by_engine(sample)
            if np.concatenate(list(one)).tolist() != np.concatenate(list(other)).tolist():
                return None
        return fast

    @cached_property
    def _fragments(self) -> tuple[str, ...]:
        """A text that holds an added token, also once it is in normal form NFC, holds one of these:
        an ASCII part of it (or else any text does), or a character that NFC makes ASCII."""
        form, contents = (
            self._engine.normalizer,
            {t["content"] for t in self._vocabulary.added.values()},
        )
        if form is not None:
            contents |= {form.normalize_str(c) for c in contents}
        parts = {max(re.findall(r"[\x00-\x7f]+", c), key=len, default="") for c in contents}
        return (*parts, *(_BECOME_ASCII if contents and form is not None else ()))

    def _check_samples(self, where: str) -> None:
        for sample in SAMPLES:
            ids = np.concatenate(list(self._by_engine(sample))).tolist()
            plain = [i for i in ids if i not in self._vocabulary.special]
            if self.decode(plain) != self._engine.decode(plain, skip_special_tokens=False):
                if self._normal["decoder"] is None:
                    continue  # the engine then only joins tokens by spaces
                raise DataError(
                    f"{where}: decoder: what it makes of a sample is not what its tokens make one "
                    "by one; this tokenizer can't be used"
                )

    def _content(self) -> str:
        return seal(self.kind, {"roles": to_tree(self.roles), "spec": self.spec})

    def _file(self) -> str:
        if self.source is None:
            return self.text
        return seal(self.kind, {"roles": to_tree(self.roles), "source": self.source})

    def __reduce__(self) -> tuple[Any, ...]:
        build = partial(HuggingFaceTokenizer, source=self.source)
        return build, (self.spec, self._given_roles)


def take_over(config: HuggingFaceTokenizerConfig) -> Tokenizer:
    """The tokenizer of a file. Raises DataError; see ``HuggingFaceTokenizer``."""
    path = Path(config.path).expanduser()
    raw = read_file(path)
    spec = parse_json(raw, str(path), wanted=_WANTED)
    normal = normal_form(spec, str(path))
    known = read_vocabulary(normal, str(path))
    special = [known.contents[i] for i in known.special]
    asked = {"eot": config.eot, "mask": config.mask, "pad": config.pad}
    roles: Roles = find_roles(
        known.ids, asked, len(known.contents), special=special, where=str(path)
    )
    return HuggingFaceTokenizer(spec, to_tree(roles), source=as_text(raw), where=str(path))


def from_source(source: Any, roles: Any, *, where: str) -> Tokenizer:
    """The tokenizer of a file's text. Raises DataError; see ``HuggingFaceTokenizer``."""
    if not isinstance(source, str):
        raise DataError(f"{where}: damaged: source must be a text")
    spec = parse_json(source.encode(errors="replace"), where, wanted=_WANTED)
    return HuggingFaceTokenizer(spec, roles, source=source, where=where)


def as_text(raw: bytes) -> str | None:
    """A file's text, or None if its bytes are not that text's UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None
