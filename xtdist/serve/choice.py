"""One choice of an answer as it grows, and its tokens as OpenAI shows them."""

from __future__ import annotations

import codecs
from typing import Literal

from xtdist.decode.outputs import Output, TokenLogprob
from xtdist.serve.protocol import Choice, Logprobs
from xtdist.serve.served import TokenizerLike

_LOWEST = -9999.0  # JSON has no infinity


class GrowingChoice:
    """What a choice of any kind has gained since it was last sent.

    Args:
        index: its number in the answer.
    """

    def __init__(self, index: int, tokenizer: TokenizerLike) -> None:
        self.index = index
        self.tokenizer = tokenizer
        self.generated = 0
        self.text = ""
        self.tokens: list[TokenLogprob] = []
        self.finish_reason: Literal["stop", "length"] | None = None
        self.score: float | None = None

    @property
    def ready(self) -> bool:
        return True

    def take(self, output: Output) -> bool:
        """Add an output; whether there is something new to show."""
        self.text += output.text
        self.tokens += output.logprobs
        self.generated += len(output.token_ids)
        if output.finish_reason is not None:  # OpenAI knows no text that can't go on
            self.finish_reason = "stop" if output.finish_reason == "stop" else "length"
            self.score = output.score
        return bool(output.text or output.logprobs or output.finish_reason)


class CompletionChoice(GrowingChoice):
    """Of ``/v1/completions``.

    Args:
        echo: the prompt's text, if it is to come first.
        logprobs: whether to show them.
    """

    def __init__(
        self, index: int, tokenizer: TokenizerLike, *, echo: str = "", logprobs: bool = False
    ) -> None:
        super().__init__(index, tokenizer)
        self.text = echo
        self._logprobs = logprobs
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def release(self) -> Choice:
        """Everything since the last release."""
        score = {"score": self.score} if self.score is not None else {}
        choice = Choice(
            index=self.index,
            text=self.text,
            logprobs=self._shown_logprobs() if self._logprobs else None,
            finish_reason=self.finish_reason,
            **score,
        )
        self.text, self.tokens = "", []
        return choice

    def _shown_logprobs(self) -> Logprobs:
        offsets = []
        for token in self.tokens:
            offsets.append(self._offset)
            raw = self.tokenizer.token_bytes(token.token_id)
            self._offset += len(self._decoder.decode(raw))
        tops: list[dict[str, float]] = [{} for _ in self.tokens]
        for top, token in zip(tops, self.tokens, strict=True):
            for token_id, logprob in (*token.top, (token.token_id, token.logprob)):
                top.setdefault(token_text(token_id, self.tokenizer), max(logprob, _LOWEST))
        return Logprobs(
            tokens=[token_text(t.token_id, self.tokenizer) for t in self.tokens],
            token_logprobs=[max(t.logprob, _LOWEST) for t in self.tokens],
            top_logprobs=tops,
            text_offset=offsets,
        )


def token_text(token_id: int, tokenizer: TokenizerLike) -> str:
    """A token alone, as text; bytes that are no text alone as ``bytes:\\xNN``."""
    if token_id == tokenizer.eot_id:
        return "<|endoftext|>"
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{b:02x}" for b in raw)
