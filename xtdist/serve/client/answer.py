"""What comes back, from JSON: whole answers, and streams that may be sent a second time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Choice:
    """One choice of an answer, or what one chunk of a stream has added to it.

    Args:
        finish_reason: None while it goes on.
        token_ids: of a whole answer only if ``return_token_ids`` was asked for.
        score: of a beam.
        logprobs: as the server sent them.
    """

    index: int
    text: str
    finish_reason: str | None = None
    token_ids: tuple[int, ...] = ()
    stop_reason: str | int | None = None
    score: float | None = None
    logprobs: Any = None


@dataclass(frozen=True)
class Answer:
    """``fingerprint`` names the weights; ``usage`` counts tokens, where the server said them."""

    id: str
    model: str
    fingerprint: str | None
    choices: tuple[Choice, ...]
    usage: Mapping[str, int] | None = None

    @property
    def text(self) -> str:
        """Of the first choice: the best one, with beams."""
        return self.choices[0].text if self.choices else ""


class Differs(Exception):
    """A stream that was sent a second time is another one."""


def read_answer(tree: Mapping[str, Any]) -> Answer:
    """A whole answer to a completion, chat or infill request."""
    return Answer(
        id=tree["id"],
        model=tree["model"],
        fingerprint=tree.get("system_fingerprint"),
        choices=tuple(read_choice(c) for c in tree["choices"]),
        usage=tree.get("usage"),
    )


def read_choice(tree: Mapping[str, Any]) -> Choice:
    said = tree.get("message") or tree.get("delta") or {}
    return Choice(
        index=tree["index"],
        text=tree.get("text") or said.get("content") or "",
        finish_reason=tree.get("finish_reason"),
        token_ids=tuple(tree.get("token_ids") or ()),
        stop_reason=tree.get("stop_reason"),
        score=tree.get("score"),
        logprobs=tree.get("logprobs"),
    )


@dataclass
class _Growing:
    """A choice so far; ``chars`` and ``ids`` of it have come in this sending of the stream."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    last: Choice | None = None
    chars: int = 0
    ids: int = 0

    def take(self, new: Choice) -> Choice | None:
        """What is new in ``new``; None if it was all there already.

        Raises:
            Differs: what should be the same is not.
        """
        known = min(len(self.text) - self.chars, len(new.text))
        known_ids = min(len(self.token_ids) - self.ids, len(new.token_ids))
        same = self.text.startswith(new.text[:known], self.chars)
        ids = tuple(self.token_ids[self.ids : self.ids + known_ids])
        if not same or ids != new.token_ids[:known_ids]:
            raise Differs
        self.chars += len(new.text)
        self.ids += len(new.token_ids)
        if new.finish_reason is not None and self.chars < len(self.text):
            raise Differs
        text, token_ids = new.text[known:], new.token_ids[known_ids:]
        over = self.last is not None and self.last.finish_reason is not None
        if over and (text or token_ids):
            raise Differs
        if over or not (text or token_ids or new.finish_reason is not None):
            return None
        self.text += text
        self.token_ids += token_ids
        self.last = Choice(
            index=new.index,
            text=text,
            finish_reason=new.finish_reason,
            token_ids=token_ids,
            stop_reason=new.stop_reason,
            score=new.score,
            logprobs=_without(new.logprobs, known_ids),
        )
        return self.last


@dataclass
class Received:
    """A stream so far, over all of its sendings."""

    id: str = ""
    model: str = ""
    fingerprint: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    usage: Mapping[str, int] | None = None
    choices: dict[int, _Growing] = field(default_factory=dict)

    @property
    def started(self) -> bool:
        """Whether the caller has been given anything."""
        return any(c.last is not None for c in self.choices.values())

    @property
    def ended(self) -> bool:
        """Whether every choice that began has ended."""
        lasts = [c.last for c in self.choices.values()]
        return bool(lasts) and all(x is not None and x.finish_reason is not None for x in lasts)

    def begin_again(self) -> None:
        """The stream is sent once more from its start: what is known will be skipped."""
        for choice in self.choices.values():
            choice.chars = choice.ids = 0

    def take(self, tree: Mapping[str, Any]) -> list[Choice]:
        """What a chunk adds.

        Raises:
            Differs: it does not continue what was received before.
        """
        self.id, self.model = self.id or tree["id"], tree["model"]
        self.fingerprint = tree.get("system_fingerprint")
        self.usage = tree.get("usage") or self.usage
        self._take_prompt(tree)
        new = (self._choice(c["index"]).take(read_choice(c)) for c in tree["choices"])
        return [choice for choice in new if choice is not None]

    def answer(self) -> Answer:
        choices = [
            Choice(
                index=index,
                text=c.text,
                finish_reason=c.last.finish_reason if c.last else None,
                token_ids=tuple(c.token_ids),
                stop_reason=c.last.stop_reason if c.last else None,
            )
            for index, c in sorted(self.choices.items())
        ]
        return Answer(self.id, self.model, self.fingerprint, tuple(choices), self.usage)

    def _choice(self, index: int) -> _Growing:
        return self.choices.setdefault(index, _Growing())

    def _take_prompt(self, tree: Mapping[str, Any]) -> None:
        if self.prompt_token_ids is None:
            for part in (tree, *tree["choices"]):
                if part.get("prompt_token_ids") is not None:
                    self.prompt_token_ids = tuple(part["prompt_token_ids"])


def _without(logprobs: Any, tokens: int) -> Any:
    """Log-probabilities (lists of one entry per token) without those of the first tokens."""
    if not isinstance(logprobs, dict) or not tokens:
        return logprobs
    return {k: v[tokens:] if isinstance(v, list) else v for k, v in logprobs.items()}
