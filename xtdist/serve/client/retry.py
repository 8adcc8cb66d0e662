"""Whether to ask again, and when.

A generation has no side effect: asking twice costs time and nothing else, so a whole request may be
repeated as long as nothing of its answer has been given out. What the server blames on the request
itself is not repeated (4xx), or once (a failure inside the engine: a request that breaks engines
should not meet all of them).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from xtdist.config import PositiveFloat, PositiveInt, configclass, derive_seed
from xtdist.serve.client.errors import ClientError, RequestError, Unreachable

_NEVER = ("deadline_exceeded", "slow_reader", "client_closed")
_SELDOM = "internal_error"


@configclass
class Retry:
    """How long to try.

    The wait before attempt k + 1 is ``first_s`` * 2 ** (k - 1), at most ``longest_s``, of which a
    random half is taken off so that many clients do not come back together; never less than the
    server's Retry-After.

    Args:
        attempts: in a row without anything new; of a stream that comes in parts, for each part.
        deadline_s: of one call with all attempts and waits; a stream that flows is not cut by it.
        silence_s: before a whole answer, before the first chunk of a stream and between two; beyond
            it an attempt counts as broken. A server answers within its ``request_timeout_s``.
        seed: of the waits; None: from the operating system.
    """

    attempts: PositiveInt = 30
    first_s: PositiveFloat = 0.2
    longest_s: PositiveFloat = 5.0
    deadline_s: PositiveFloat = 300.0
    silence_s: PositiveFloat = 150.0
    seed: int | None = None


@dataclass
class Attempts:
    """The attempts of one call. ``number`` of the call: calls of one client wait differently."""

    retry: Retry
    number: int = 0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    failed: int = 0  # in a row
    blamed: int = 0  # times that the engine failed on this request
    _draws: int = 0
    _begun: float = field(init=False)
    _seed: int = field(init=False)

    def __post_init__(self) -> None:
        self._begun = self.clock()
        seed = self.retry.seed if self.retry.seed is not None else secrets.randbits(63)
        self._seed = derive_seed(seed, "retry", self.number)

    @property
    def left_s(self) -> float:
        return max(self.retry.deadline_s - (self.clock() - self._begun), 0.0)

    def progress(self) -> None:
        """Something new has come."""
        self.failed = 0

    async def wait(self, failure: ClientError, *, otherwise: ClientError | None = None) -> None:
        """Wait before the next attempt.

        Raises:
            ClientError: ``otherwise``, or else ``failure``, if there should be none.
        """
        self.failed += 1
        self.blamed += isinstance(failure, RequestError) and failure.code == _SELDOM
        wait_s = self._wait_s(failure)
        often = self.failed >= self.retry.attempts or self.blamed > 1
        if not repeatable(failure) or often or wait_s >= self.left_s:
            if otherwise is None:
                raise failure
            raise otherwise from failure
        await self.sleep(wait_s)

    def _wait_s(self, failure: ClientError) -> float:
        whole = min(self.retry.first_s * 2 ** min(self.failed - 1, 60), self.retry.longest_s)
        self._draws += 1
        share = derive_seed(self._seed, self._draws) / 2**63
        asked = failure.retry_after_s if isinstance(failure, RequestError) else None
        return max(whole * (1 - share / 2), asked or 0.0)


def repeatable(failure: ClientError) -> bool:
    """Whether the same request may succeed if it is sent again."""
    if isinstance(failure, Unreachable):
        return True
    if not isinstance(failure, RequestError) or failure.code in _NEVER:
        return False
    if failure.repeatable is not None:
        return failure.repeatable
    if failure.status >= 500:
        return failure.status not in (501, 504)
    return failure.status in (408, 429)  # 408: the server did not read all of the request in time
