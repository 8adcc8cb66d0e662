"""A model that is ready to answer: its engine thread, its tokenizer, and what clients see of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from xtdist.checkpoint.chat_template import ChatTemplate
from xtdist.config import ConfigError
from xtdist.decode.maskpredict import MaskPredictParams
from xtdist.decode.params import GenerationParams
from xtdist.serve.engine_thread import EngineThread
from xtdist.serve.errors import ApiError, invalid, overloaded
from xtdist.serve.job import Job
from xtdist.serve.protocol import ModelCard, Prompt

_LONG_PROMPT_CHARS = 4096
_PROBE_EVERY_S = 1.0


class TokenizerLike(Protocol):
    """What is used of :class:`xtdist.data.Tokenizer`."""

    vocab_size: int
    eot_id: int
    mask_id: int

    def encode(self, text: str, /) -> Iterable[int]: ...
    def decode(self, ids: Iterable[int], /) -> str: ...
    def token_bytes(self, token_id: int, /) -> bytes: ...


@dataclass
class Served:
    """One served model.

    Args:
        digest: of the weights; every answer names it.
        max_seq_len: tokens that a sequence may have here, prompt included.
        step: of the training run that the weights are from.
        filling: how a model that fills masks wants to be asked; None: it continues prompts.
        chat_template: what makes a prompt of a conversation.
    """

    name: str
    thread: EngineThread
    tokenizer: TokenizerLike
    digest: str
    max_seq_len: int
    contrastive: bool
    step: int | None = None
    filling: MaskPredictParams | None = None
    chat_template: ChatTemplate | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    _probed: tuple[float, bool] = (float("-inf"), True)
    _probing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _compiling: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))

    @property
    def fills(self) -> bool:
        """Whether it fills masks, from both sides, and does not continue a prompt."""
        return self.filling is not None

    def card(self) -> ModelCard:
        return ModelCard(
            id=self.name,
            created=self.created,
            max_model_len=self.max_seq_len,
            contrastive=self.contrastive,
            fills=self.fills,
            chat=self.chat_template is not None and not self.fills,
            digest=self.digest,
            step=self.step,
        )

    async def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; an empty text starts a new document. Long texts are tokenized
        off the event loop."""
        if not isinstance(prompt, str):
            return prompt
        return await self.tokenize(prompt) or [self.tokenizer.eot_id]

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of ``text`` and nothing else."""
        if len(text) > _LONG_PROMPT_CHARS:
            return await asyncio.to_thread(self._ids, text)
        return self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return [int(i) for i in self.tokenizer.encode(text)]

    async def compile(self, params: GenerationParams, timeout_s: float) -> None:
        """Compile the grammar of a request, if it has one, off the event loop. One that takes too
        long is given up here and finishes in its thread, of which there are only a few.

        Raises:
            ApiError: 400 for a grammar that can't be used, 503 when too many are being compiled.
        """
        if params.grammar is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._compiling.acquire()
        except TimeoutError:
            raise overloaded() from None
        work = asyncio.get_running_loop().run_in_executor(None, self.thread.engine.compile, params)
        work.add_done_callback(self._compiled)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(work)
        except TimeoutError:
            problem = f"structured_outputs: it takes more than {timeout_s:g} s to compile"
            raise invalid(problem, param="structured_outputs", code="invalid_value") from None
        except ConfigError:  # its message repeats the grammar
            problem = f"structured_outputs: this {params.grammar.kind} can't be used"
            raise invalid(problem, param="structured_outputs", code="invalid_value") from None

    def _compiled(self, work: asyncio.Future[None]) -> None:
        self._compiling.release()
        if not work.cancelled():
            work.exception()  # somebody has looked at it, whether or not anybody still waits

    async def healthy(self, timeout_s: float) -> bool:
        """Whether the engine works: one token, one mask, or progress on others' work. The answer is
        kept for a second, so that asking often costs nothing."""
        async with self._probing:
            asked, answer = self._probed
            if time.monotonic() - asked > _PROBE_EVERY_S:
                answer = await self._probe(timeout_s)
                self._probed = (time.monotonic(), answer)
        return answer

    async def _probe(self, timeout_s: float) -> bool:
        if self.thread.broken:
            return False
        steps = self.thread.steps
        job = self._shortest(timeout_s)
        try:
            self.thread.submit(job)
            async with asyncio.timeout(timeout_s):
                async for _ in job.pieces():
                    pass
        except (ApiError, TimeoutError):
            return not self.thread.broken and self.thread.steps > steps
        finally:
            self.thread.cancel(job)
        return True

    def _shortest(self, timeout_s: float) -> Job:
        """The least that the engine can be asked for: one token, or one mask."""
        if self.fills:
            return Job(
                [[self.tokenizer.mask_id]], MaskPredictParams(steps=1), timeout_s, measured=False
            )
        params = GenerationParams(max_tokens=1, temperature=0.0, ignore_eos=True)
        return Job([[self.tokenizer.eot_id]], params, timeout_s, measured=False)


def word_ids(words: Iterable[str], tokenizer: TokenizerLike) -> tuple[tuple[int, ...], ...]:
    """The ids of each word, alone and after a space."""
    spelt = (
        tuple(int(i) for i in tokenizer.encode(w)) for word in words for w in (word, f" {word}")
    )
    return tuple(dict.fromkeys(ids for ids in spelt if ids))
