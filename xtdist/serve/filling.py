"""A filled sequence as it grows, and what is shown of it."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from xtdist.decode.outputs import Output
from xtdist.serve.answer import Growing
from xtdist.serve.choice import token_text
from xtdist.serve.protocol import Choice, Completion, CompletionRequest
from xtdist.serve.protocol.infill import Filled, Infill, InfillChoice, InfillRequest
from xtdist.serve.served import TokenizerLike

SHOWN_MASK = "░"


class GrowingFill:
    """One choice of ``/v1/infill``.

    Args:
        row: its ids, masks included.
        live: whether it shows how it comes about.
        ids: whether token ids are shown.
    """

    ready = True

    def __init__(
        self, index: int, row: Sequence[int], tokenizer: TokenizerLike, *, live: bool, ids: bool
    ) -> None:
        self.index, self.tokenizer = index, tokenizer
        self.generated = self.step = 0
        self._row = list(row)
        self._gaps = gaps(row, tokenizer.mask_id)
        self._masks = row.count(tokenizer.mask_id)
        self._live, self._shows_ids = live, ids
        self._text = ""
        self._ids: list[int] = []
        self._changed: dict[int, int] = {}
        self._ended = False

    def take(self, output: Output) -> bool:
        """Add a step."""
        self.step += 1
        self._text += output.text
        self._ids += output.token_ids
        for position, token in output.filled:
            self._row[position] = self._changed[position] = token
        self.generated = self._masks - self._row.count(self.tokenizer.mask_id)
        self._ended = output.finish_reason is not None
        return True

    def release(self) -> InfillChoice:
        """Everything since the last release."""
        more: dict[str, Any] = {}
        if self._shows_ids:
            more["token_ids"] = self._ids
        if self._live:
            more["filled"] = [self._filled(p, t) for p, t in sorted(self._changed.items())]
            more["so_far"] = shown(self._row, self.tokenizer)
        if self._ended:
            fills = [self._row[gap] for gap in self._gaps]
            more |= {"fills": [shown(ids, self.tokenizer) for ids in fills]}
        choice = InfillChoice(
            index=self.index,
            text=self._text,
            step=self.step,
            finish_reason="stop" if self._ended else None,
            **more,
        )
        self._text, self._ids, self._changed = "", [], {}
        return choice

    def _filled(self, position: int, token_id: int) -> Filled:
        if token_id == self.tokenizer.mask_id:
            return Filled(position=position, token_id=None, text=None)
        text = token_text(token_id, self.tokenizer)
        return Filled(position=position, token_id=token_id, text=text)


class InfillForm:
    """How answers of ``/v1/infill`` are written."""

    prefix = "infill"

    def __init__(self, body: InfillRequest, row: Sequence[int], tokenizer: TokenizerLike) -> None:
        self.prompt_tokens = len(row) - body.masks
        live, ids = body.stream, body.return_token_ids
        self._live = live
        self.choices: Sequence[Growing] = [
            GrowingFill(i, row, tokenizer, live=live, ids=ids) for i in range(body.n)
        ]

    def message(self, **fields: Any) -> Infill:
        return Infill(object="infill.chunk" if self._live else "infill", **fields)


class FilledCompletion:
    """One choice of ``/v1/completions`` of a model that fills masks: what stands in the gap.

    Args:
        gap: its positions.
        echo: text that comes first.
    """

    ready = True

    def __init__(
        self, index: int, gap: slice, tokenizer: TokenizerLike, *, echo: str, ids: bool
    ) -> None:
        self.index, self.tokenizer = index, tokenizer
        self.generated = 0
        self._gap, self._seen = gap, 0
        self._text, self._shows_ids = echo, ids
        self._ids: list[int] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._ended = False

    def take(self, output: Output) -> bool:
        """Add a step; its tokens come in order, what was given among them."""
        start, self._seen = self._seen, self._seen + len(output.token_ids)
        new = output.token_ids[max(self._gap.start - start, 0) : max(self._gap.stop - start, 0)]
        raw = b"".join(self.tokenizer.token_bytes(t) for t in new)
        self._ended = output.finish_reason is not None
        self._text += self._decoder.decode(raw, final=self._ended)
        self._ids += new
        self.generated += len(new)
        return bool(self._text or self._ended or (self._shows_ids and new))

    def release(self) -> Choice:
        """Everything since the last release."""
        more: dict[str, Any] = {"token_ids": self._ids} if self._shows_ids else {}
        choice = Choice(
            index=self.index,
            text=self._text,
            logprobs=None,
            finish_reason="stop" if self._ended else None,
            **more,
        )
        self._text, self._ids = "", []
        return choice


class FilledCompletionForm:
    """How they are written."""

    prefix = "cmpl"

    def __init__(
        self, body: CompletionRequest, rows: Sequence[list[int]], tokenizer: TokenizerLike
    ) -> None:
        gap = [gaps(row, tokenizer.mask_id)[0] for row in rows]
        self.prompt_tokens = sum(map(len, rows)) - len(rows) * body.max_tokens
        echoes = [
            "" if not body.echo else p if isinstance(p, str) else tokenizer.decode(p)
            for p in body.prompt
        ]
        self.choices: Sequence[Growing] = [
            FilledCompletion(
                i, gap[i // body.n], tokenizer, echo=echoes[i // body.n], ids=body.return_token_ids
            )
            for i in range(len(rows) * body.n)
        ]

    def message(self, **fields: Any) -> Completion:
        return Completion(object="text_completion", **fields)


def gaps(row: Sequence[int], mask_id: int) -> list[slice]:
    """Where the masks of a row stand side by side."""
    found: list[slice] = []
    for i, token_id in enumerate(row):
        if token_id == mask_id and i and row[i - 1] == mask_id:
            found[-1] = slice(found[-1].start, i + 1)
        elif token_id == mask_id:
            found.append(slice(i, i + 1))
    return found


def shown(row: Sequence[int], tokenizer: TokenizerLike) -> str:
    """A row as text, with its masks."""
    text, raw = "", b""
    for token_id in row:
        if token_id == tokenizer.mask_id:
            text, raw = text + raw.decode(errors="replace") + SHOWN_MASK, b""
        else:
            raw += tokenizer.token_bytes(token_id)
    return text + raw.decode(errors="replace")
