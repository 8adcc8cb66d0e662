"""One choice of an answer as it grows, and its tokens as OpenAI shows them."""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field
from typing import Literal

from xtdist.decode.outputs import Output, TokenLogprob
from xtdist.serve.protocol import Choice, Logprobs
from xtdist.serve.served import TokenizerLike

_LOWEST = -9999.0  # JSON has no infinity


@dataclass
class GrowingChoice:
    """What a choice has gained since it was last sent.

    Args:
        echo: the prompt's text, if it is to come first.
    """

    echo: str = ""
    text: str = ""
    finish_reason: Literal["stop", "length"] | None = None
    score: float | None = None
    tokens: list[TokenLogprob] = field(default_factory=list)
    offset: int = 0
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def take(self, output: Output) -> None:
        self.text += output.text
        self.tokens += output.logprobs
        if output.finish_reason is not None:  # OpenAI knows no text that can't go on
            self.finish_reason = "stop" if output.finish_reason == "stop" else "length"
        self.score = output.score if output.score is not None else self.score

    def release(self, index: int, *, tokenizer: TokenizerLike, logprobs: bool) -> Choice:
        """Everything since the last release."""
        choice = Choice(
            index=index,
            text=self.echo + self.text,
            logprobs=self._logprobs(tokenizer) if logprobs else None,
            finish_reason=self.finish_reason,
            score=self.score,
        )
        self.echo, self.text, self.tokens = "", "", []
        return choice

    def _logprobs(self, tokenizer: TokenizerLike) -> Logprobs:
        offsets = []
        for token in self.tokens:
            offsets.append(self.offset)
            self.offset += len(self.decoder.decode(tokenizer.token_bytes(token.token_id)))
        tops: list[dict[str, float]] = [{} for _ in self.tokens]
        for top, token in zip(tops, self.tokens, strict=True):
            for token_id, logprob in (*token.top, (token.token_id, token.logprob)):
                top.setdefault(token_text(token_id, tokenizer), max(logprob, _LOWEST))
        return Logprobs(
            tokens=[token_text(t.token_id, tokenizer) for t in self.tokens],
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
