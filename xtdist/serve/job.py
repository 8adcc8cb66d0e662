"""A request on its way through the engine, and what comes back of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from xtdist.decode.maskpredict import MaskPredictParams
from xtdist.decode.outputs import Output
from xtdist.decode.params import GenerationParams
from xtdist.serve.errors import ApiError, unhealthy


@dataclass(frozen=True)
class Piece:
    """What one step added to one choice of one prompt."""

    prompt: int
    output: Output

    @property
    def size(self) -> int:
        """Tokens in it."""
        return len(self.output.token_ids) + len(self.output.filled)


Event = list[Piece] | ApiError
_LATE_S = 10.0
Params = GenerationParams | MaskPredictParams


@dataclass(eq=False)
class Job:
    """One HTTP request: its prompts are admitted together or not at all, and share one deadline.

    Args:
        prompts: token ids, at least one each.
        params: of all of them, or of each.
        timeout_s: from submission to the last token.
        salt: requests with another one share no work with this one.
        measured: whether it counts as a request of a client.

    Attributes:
        made: tokens that the engine's thread has handed over; only it writes this.
        taken: how many of them were read; only the event loop writes this.
        began, started, last: monotonic seconds; submitted, no longer queued, last delivered.
    """

    prompts: list[list[int]]
    params: Params | tuple[Params, ...]
    timeout_s: float
    salt: str = ""
    measured: bool = True
    deadline: float = 0.0
    made: int = 0
    taken: int = 0
    began: float = 0.0
    started: float | None = None
    last: float | None = None
    failed: bool = False
    live: dict[str, int] = field(default_factory=dict)  # engine request id -> open choices
    _events: list[Event] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _open: int = field(init=False)

    def __post_init__(self) -> None:
        self._open = sum(self.choices_of(i) for i in range(len(self.prompts)))

    def params_of(self, index: int) -> Params:
        """Of the prompt with this number."""
        return self.params[index] if isinstance(self.params, tuple) else self.params

    def choices_of(self, index: int) -> int:
        """How many ends the prompt with this number comes to."""
        params = self.params_of(index)
        return params.n if isinstance(params, GenerationParams) else 1

    @property
    def over(self) -> bool:
        """Whether its last piece was delivered, or an error."""
        return self.failed or not self._open

    def deliver(self, event: Event) -> None:
        """Called in the event loop."""
        if isinstance(event, ApiError):
            self.failed = True
        else:
            self._open -= sum(p.output.finish_reason is not None for p in event)
        if event:
            self._events.append(event)
        self._wake.set()

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """All pieces since the last call, until every choice has finished.

        Raises:
            ApiError: refused at admission, past the deadline, or the engine failed or hangs: it
                keeps the deadline itself while it can.
        """
        loop = asyncio.get_running_loop()
        late = loop.call_later(self.timeout_s + _LATE_S, self._give_up)
        try:
            while self._open or self._events:
                await self._wake.wait()
                self._wake.clear()
                events, self._events = self._events, []
                for event in events:
                    if isinstance(event, ApiError):
                        raise event
                batch = [piece for event in events if isinstance(event, list) for piece in event]
                self.taken += sum(p.size for p in batch)
                if batch:
                    yield batch
        finally:
            late.cancel()

    def _give_up(self) -> None:
        """The engine has not kept the deadline: it hangs."""
        if not self.over:
            self.deliver(unhealthy())
