"""One choice of an answer as it grows, and its tokens as OpenAI and vLLM show them."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from xtdist.decode.outputs import Output, TokenLogprob
from xtdist.serve.protocol import Choice, Logprobs
from xtdist.serve.protocol.completions import PromptLogprob
from xtdist.serve.served import TokenizerLike

_END = "<|endoftext|>"
LOWEST = -9999.0  # JSON has no infinity


class GrowingChoice:
    """What a choice of any kind has gained since it was last sent.

    Args:
        index: its number in the answer.
        ids: whether token ids are shown.
        special: whether the text shows the token that ended it.
    """

    def __init__(
        self, index: int, tokenizer: TokenizerLike, *, ids: bool = False, special: bool = False
    ) -> None:
        self.index = index
        self.tokenizer = tokenizer
        self.generated = 0
        self.text = ""
        self.tokens: list[TokenLogprob] = []
        self.token_ids: list[int] = []
        self.finish_reason: Literal["stop", "length"] | None = None
        self.stop_reason: str | int | None = None
        self.score: float | None = None
        self.shows_ids, self._shows_special = ids, special

    @property
    def ready(self) -> bool:
        return True

    def take(self, output: Output) -> bool:
        """Add an output; whether there is something new to show."""
        self.text += output.text
        self.tokens += output.logprobs
        self.generated += len(output.token_ids)
        if self.shows_ids:
            self.token_ids += output.token_ids
        if output.finish_reason is not None:  # OpenAI knows no text that can't go on
            self.finish_reason = "stop" if output.finish_reason == "stop" else "length"
            self.score, self.stop_reason = output.score, output.stop_reason
            if self._shows_special and output.token_ids[-1:] == (self.tokenizer.eot_id,):
                self.text += _END
        news = output.text or output.logprobs or output.finish_reason
        return bool(news or (self.shows_ids and output.token_ids))


@dataclass
class Prompt:
    """One prompt, of one or several choices.

    Args:
        text: as it is echoed.
        logprobs: of its tokens, once they are known; of the first one None.
        awaited: whether they must come before everything else.
    """

    ids: Sequence[int]
    text: str
    awaited: bool = False
    logprobs: Sequence[TokenLogprob | None] | None = None


@dataclass(frozen=True)
class Shown:
    """What a choice of ``/v1/completions`` shows besides its text. ``logprobs`` and
    ``prompt_logprobs``: how many of the likeliest tokens, None for nothing."""

    echo: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    token_ids: bool = False
    special: bool = False


class CompletionChoice(GrowingChoice):
    """Of ``/v1/completions``."""

    def __init__(
        self, index: int, tokenizer: TokenizerLike, prompt: Prompt, *, shown: Shown
    ) -> None:
        super().__init__(index, tokenizer, ids=shown.token_ids, special=shown.special)
        self._prompt, self._shown = prompt, shown
        self._begun = False
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    @property
    def ready(self) -> bool:
        return not self._prompt.awaited or self._prompt.logprobs is not None

    def take(self, output: Output) -> bool:
        if self._prompt.awaited and output.prompt_logprobs is not None:
            self._prompt.logprobs = output.prompt_logprobs
        return super().take(output)

    def release(self) -> Choice:
        """Everything since the last release."""
        more: dict[str, Any] = {} if self._begun else self._before()
        if self.finish_reason is not None:
            ends = {"stop_reason": self.stop_reason, "score": self.score}
            more |= {k: v for k, v in ends.items() if v is not None}
        if self.shows_ids:
            more["token_ids"], self.token_ids = self.token_ids, []
        choice = Choice(
            index=self.index,
            text=self.text
            if self._begun or not self._shown.echo
            else self._prompt.text + self.text,
            logprobs=self._logprobs() if self._shown.logprobs is not None else None,
            finish_reason=self.finish_reason,
            **more,
        )
        self.text, self.tokens, self._begun = "", [], True
        return choice

    def _before(self) -> dict[str, Any]:
        """What only the first release has."""
        more: dict[str, Any] = {}
        if self.shows_ids:
            more["prompt_token_ids"] = list(self._prompt.ids)
        most = self._shown.prompt_logprobs
        if most is not None:
            more["prompt_logprobs"] = [
                None if t is None else self._ranked(t, most) for t in self._prompt.logprobs or ()
            ]
        return more

    def _logprobs(self) -> Logprobs:
        most = self._shown.logprobs or 0
        ids = [t.token_id for t in self.tokens]
        told: list[TokenLogprob | None] = [*self.tokens]
        offsets = []
        if self._shown.echo and not self._begun:
            offsets = self._prompt_offsets()
            ids, told = [*self._prompt.ids, *ids], [*(self._prompt.logprobs or ()), *told]
        for token in self.tokens:
            offsets.append(self._offset)
            raw = self.tokenizer.token_bytes(token.token_id)
            self._offset += len(self._decoder.decode(raw))
        return Logprobs(
            tokens=[token_text(i, self.tokenizer) for i in ids],
            token_logprobs=[None if t is None else max(t.logprob, LOWEST) for t in told],
            top_logprobs=[None if t is None else self._top(t, most) for t in told],
            text_offset=offsets,
        )

    def _prompt_offsets(self) -> list[int]:
        """Where the tokens of the prompt begin in its text, which may lack a space that the first
        one has."""
        offsets, total = text_offsets(self._prompt.ids, self.tokenizer)
        self._offset = len(self._prompt.text)
        lacks = max(total - self._offset, 0)
        return [max(offset - lacks, 0) for offset in offsets]

    def _top(self, token: TokenLogprob, most: int) -> dict[str, float]:
        """The likeliest by their text, and the token itself; of several with the same text, the
        first."""
        top: dict[str, float] = {}
        for token_id, logprob in (*token.top[:most], (token.token_id, token.logprob)):
            top.setdefault(token_text(token_id, self.tokenizer), max(logprob, LOWEST))
        return top

    def _ranked(self, token: TokenLogprob, most: int) -> dict[str, PromptLogprob]:
        likeliest: list[tuple[int, float, int | None]]
        likeliest = [(i, p, rank) for rank, (i, p) in enumerate(token.top[:most], 1)]
        if token.token_id not in [i for i, _, _ in likeliest]:
            likeliest.append((token.token_id, token.logprob, None))
        return {
            str(i): PromptLogprob(
                logprob=max(p, LOWEST), rank=rank, decoded_token=token_text(i, self.tokenizer)
            )
            for i, p, rank in likeliest
        }


def text_offsets(ids: Iterable[int], tokenizer: TokenizerLike) -> tuple[list[int], int]:
    """Where each token begins in the text of all, in characters, and the length of it."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    offsets, total = [], 0
    for token_id in ids:
        offsets.append(total)
        total += len(decoder.decode(tokenizer.token_bytes(token_id)))
    return offsets, total + len(decoder.decode(b"", final=True))


def token_text(token_id: int, tokenizer: TokenizerLike) -> str:
    """A token alone, as text; bytes that are no text alone as ``bytes:\\xNN``."""
    if token_id == tokenizer.eot_id:
        return _END
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{b:02x}" for b in raw)
