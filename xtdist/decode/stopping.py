"""When a continuation ends, and which text may be shown before it does.

Text is decoded byte by byte, so no broken code point is ever emitted. With stop strings, the
longest suffix that could still become one is held back; when one is found, text, token ids and
log-probabilities end together before it, or with it where it shall be shown. No stop string begins
in the first ``min_tokens`` tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from xtdist.decode.params import GenerationParams


class Tokenizer(Protocol):
    """What decoding needs of a tokenizer."""

    vocab_size: int

    def token_bytes(self, token_id: int, /) -> bytes: ...


@dataclass
class _Piece:
    """A token that waits to be released: the characters [start, stop) of the text are its own."""

    token_id: int
    start: int
    stop: int
    extra: Any


@dataclass(frozen=True)
class Release:
    """What may be shown now."""

    token_ids: tuple[int, ...] = ()
    text: str = ""
    extras: tuple[Any, ...] = ()

    def __add__(self, other: Release) -> Release:
        return Release(
            self.token_ids + other.token_ids, self.text + other.text, self.extras + other.extras
        )


@dataclass
class TextStream:
    """Turns the token ids of one choice into text that is safe to show.

    Without a tokenizer, tokens pass through at once and the text stays empty.
    """

    tokenizer: Tokenizer | None = None
    stop: tuple[str, ...] = ()
    min_tokens: int = 0
    text: str = ""
    shown: int = 0
    stopped: bool = False
    stopped_by: str | None = None
    include_stop: bool = False
    waiting: list[_Piece] = field(default_factory=list)

    @classmethod
    def of(cls, params: GenerationParams, tokenizer: Tokenizer | None) -> TextStream:
        """Of one choice of a request."""
        return cls(tokenizer, params.stop, params.min_tokens, include_stop=params.include_stop_str)

    def __post_init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._tokens, self._free = 0, 0  # tokens so far; where a stop string may begin

    def push(self, token_id: int, *, extra: Any = None, visible: bool = True) -> Release:
        """Add a token. ``visible=False``: it belongs to the ids but not to the text (EOS).
        ``extra`` travels with the token. Sets ``stopped`` when a stop string is complete."""
        if self.tokenizer is None:
            return Release((token_id,), "", (extra,))
        start = len(self.text)
        self.text += self._decoder.decode(self.tokenizer.token_bytes(token_id) if visible else b"")
        partial = bool(self._decoder.getstate()[0])
        self._tokens += 1
        if self._tokens <= self.min_tokens:
            self._free = len(self.text) + partial
        self.waiting.append(_Piece(token_id, start, len(self.text) + partial, extra))
        return self._after_growth(start)

    def progress(self) -> tuple[Any, ...] | None:
        """What ``resume`` goes back to; None without a tokenizer, where there is nothing."""
        if self.tokenizer is None:
            return None
        fields = {**vars(self), "waiting": self.waiting.copy()}
        return fields, self._decoder.getstate()

    def resume(self, progress: tuple[Any, ...] | None) -> None:
        """Go on from there."""
        if progress is not None:
            fields, decoder = progress
            vars(self).update(fields)
            self._decoder.setstate(decoder)

    def finish(self) -> Release:
        """Everything that is still held back, once no more tokens come."""
        if self.stopped or self.tokenizer is None:
            return Release()
        start = len(self.text)
        self.text += self._decoder.decode(b"", final=True)
        release = self._after_growth(start)
        return release if self.stopped else release + self._show(len(self.text), final=True)

    def _after_growth(self, start: int) -> Release:
        found = earliest_stop(self.text, self.stop, grown_from=start, free_from=self._free)
        if found is None:
            held = 0 if self.include_stop else held_back(self.text[self._free :], self.stop)
            return self._show(len(self.text) - held)
        place, self.stopped_by = found
        self.stopped = True
        end = place + len(self.stopped_by) * self.include_stop
        self.text = self.text[:end]
        self.waiting = [p for p in self.waiting if p.start < end]
        return self._show(end, final=True)

    def _show(self, upto: int, *, final: bool = False) -> Release:
        ready = self.waiting if final else [p for p in self.waiting if p.stop <= upto]
        self.waiting = [] if final else self.waiting[len(ready) :]
        text, self.shown = self.text[self.shown : upto], max(self.shown, upto)
        return Release(tuple(p.token_id for p in ready), text, tuple(p.extra for p in ready))


def earliest_stop(
    text: str, stops: Sequence[str], *, grown_from: int, free_from: int = 0
) -> tuple[int, str] | None:
    """Where the first stop string begins, at ``free_from`` or later, among those that end after
    ``grown_from``, and which; of several the shortest."""
    places = [(text.find(s, max(free_from, grown_from - len(s) + 1)), s) for s in stops]
    found = [(place, s) for place, s in places if place >= 0]
    return min(found, key=lambda f: (f[0], len(f[1])), default=None)


def held_back(text: str, stops: Sequence[str]) -> int:
    """Length of the longest suffix of ``text`` that is a proper prefix of a stop string."""
    longest = max((len(s) for s in stops), default=1) - 1
    for n in range(min(longest, len(text)), 0, -1):
        if any(len(s) > n and s.startswith(text[-n:]) for s in stops):
            return n
    return 0
