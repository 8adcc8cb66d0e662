"""What can go wrong for a caller of the client. Nothing here holds a prompt or a key."""

from __future__ import annotations

from xtdist.config import ResourceError
from xtdist.serve.client.answer import Answer


class ClientError(ResourceError):
    """Base of all of them; on the command line one message and exit code 2."""


class Unreachable(ClientError):
    """No answer, or not all of it: connection refused, reset or cut, or silence."""


class RequestError(ClientError):
    """The server said no.

    Args:
        status: HTTP status; of an error frame in a stream, the one that its kind stands for.
        code: the server's stable word for it (``queue_full``, ``context_length_exceeded``, …).
        param: the request key at fault.
        retry_after_s: what the server asks to wait.
        repeatable: whether the server says that asking again may help; None: it does not say.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        repeatable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.retry_after_s, self.repeatable = retry_after_s, repeatable


class StreamBroken(ClientError):
    """A stream that ended before its end and can't be continued; ``received`` is what came."""

    def __init__(self, message: str, received: Answer) -> None:
        super().__init__(message)
        self.received = received


class WeightsChanged(StreamBroken):
    """The server has other weights than those that began the stream; a continuation would be a
    mixture of two models."""
