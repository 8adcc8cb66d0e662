"""What a client gets instead of an answer: a status and an error object, never a traceback."""

from __future__ import annotations

import math
import traceback
from typing import Any


class ApiError(Exception):
    """A refused or failed request.

    Args:
        status: HTTP status.
        message: one sentence for the client; never holds prompts, keys, paths or tracebacks.
        param: the request key at fault.
        code: a stable word that programs can test.
        headers: extra response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        error = {
            "message": self.message,
            "type": _type(self.status),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


def _type(status: int) -> str:
    special = {
        401: "authentication_error",
        403: "permission_error",
        429: "rate_limit_error",
        503: "overloaded_error",
    }
    if status in special:
        return special[status]
    return "invalid_request_error" if status < 500 else "server_error"


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request itself is wrong; sending it again will not help."""
    return ApiError(400, message, param=param, code=code)


def overloaded(wait_s: float = 0.0) -> ApiError:
    """503: nothing is wrong with the request, the queue is full. ``wait_s``: until a turn comes."""
    return ApiError(
        503,
        "the server's queue is full; try again",
        code="queue_full",
        headers={"Retry-After": str(min(max(math.ceil(wait_s), 1), 60))},
    )


def deadline_exceeded(timeout_s: float) -> ApiError:
    """504: the request ran past the server's limit. Clients are asked not to repeat it."""
    return ApiError(
        504,
        f"the request took longer than {timeout_s:g} s; ask for fewer tokens",
        code="deadline_exceeded",
        headers={"X-Should-Retry": "false"},
    )


def slow_reader() -> ApiError:
    """408: the answer is made faster than the client takes it."""
    return ApiError(
        408,
        "the answer was not read fast enough; read it as it comes",
        code="slow_reader",
        headers={"X-Should-Retry": "false"},
    )


def unhealthy() -> ApiError:
    """503: this replica does not generate and will be replaced; another one may."""
    return ApiError(503, "not generating", code="unhealthy", headers={"Retry-After": "5"})


def internal() -> ApiError:
    """500: our fault. The cause is in the server's log."""
    return ApiError(500, "the server failed on this request", code="internal_error")


def outline(error: BaseException | None) -> str:
    """Where an exception and its causes come from, for a log. Without their messages, which often
    repeat what a client has sent; only what torch itself says of the device is kept."""
    lines: list[str] = []
    while error is not None:
        kept = f": {error}" if type(error).__module__.partition(".")[0] == "torch" else ""
        lines += [*traceback.format_tb(error.__traceback__), f"{type(error).__name__}{kept}\n"]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "".join(lines).rstrip()
