"""A request on its way through the engine, and what comes back of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from xtdist.decode.outputs import Output
from xtdist.decode.params import GenerationParams
from xtdist.serve.errors import ApiError


@dataclass(frozen=True)
class Piece:
    """What one step added to one choice of one prompt."""

    prompt: int
    output: Output


Event = list[Piece] | ApiError


@dataclass(eq=False)
class Job:
    """One HTTP request: its prompts are admitted together or not at all, and share one deadline.

    Args:
        prompts: token ids, at least one each.
        timeout_s: from submission to the last token.
    """

    prompts: list[list[int]]
    params: GenerationParams
    timeout_s: float
    deadline: float = 0.0
    live: dict[str, int] = field(default_factory=dict)  # engine request id -> open choices
    _events: list[Event] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _open: int = field(init=False)

    def __post_init__(self) -> None:
        self._open = len(self.prompts) * self.params.n

    def deliver(self, event: Event) -> None:
        """Called in the event loop."""
        if event:
            self._events.append(event)
        self._wake.set()

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """All pieces since the last call, until every choice has finished.

        Raises:
            ApiError: refused at admission, past the deadline, or the engine failed.
        """
        while self._open:
            await self._wake.wait()
            self._wake.clear()
            events, self._events = self._events, []
            for event in events:
                if isinstance(event, ApiError):
                    raise event
            batch = [piece for event in events if isinstance(event, list) for piece in event]
            self._open -= sum(p.output.finish_reason is not None for p in batch)
            if batch:
                yield batch
