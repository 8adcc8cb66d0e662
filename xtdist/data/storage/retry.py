"""Trying again what may work the next time: every remote operation goes through here."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from xtdist.config import DataError, ResourceError, UnreachableError

T = TypeVar("T")
QUIET_S = 5.0  # so long a transfer may fail without a word

_WORTH = {408, 425, 429, 500, 502, 503, 504, 509}
_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENFILE}
_HOPELESS = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|NO_SUCH_KEY|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|"
    r"INVALID_CLIENT_TOKEN_ID|UNRECOGNIZED_CLIENT|EXPIRED_?TOKEN|PERMISSION_DENIED|"
    r"UNAUTHENTICATED|NOT_FOUND|INVALID_ARGUMENT|FAILED_PRECONDITION"
)
_DENIED = re.compile(
    r"ACCESS_DENIED|HTTP status 40[13]|PERMISSION_DENIED|UNAUTHENTICATED|EXPIRED_?TOKEN|"
    r"INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH"
)


class TransferError(OSError):
    """What arrived is not what was sent: too short, too long, or with another hash."""


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """At most ``tries`` tries within ``total_s``; before each, a wait that doubles from
    ``first_wait_s`` up to ``longest_wait_s``, of which a random share of up to half is left out so
    that hosts don't come back all at once."""

    tries: int = 8
    first_wait_s: float = 0.1
    longest_wait_s: float = 20.0
    total_s: float = 600.0

    def wait_s(self, failures: int) -> float:
        """How long to wait after that many failures (1, 2, ...)."""
        share = int.from_bytes(os.urandom(4), "big") / 2**33
        whole = min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(failures - 1, 60))
        return whole * (1 - share)


BACKOFF = Backoff()


def worth_retrying(error: OSError) -> bool:
    """Whether the same request may work later: not when the store said no, or this disk is full."""
    if isinstance(error, TransferError | ConnectionError | TimeoutError):
        return True
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return False
    if isinstance(error, NotADirectoryError | FileExistsError) or error.errno in _LOCAL:
        return False
    status = re.search(r"HTTP status (\d+)", str(error))
    if status is not None and 400 <= int(status[1]) < 600:
        return int(status[1]) in _WORTH
    return _HOPELESS.search(str(error)) is None


def retry(
    action: Callable[[], T],
    *,
    what: str,
    backoff: Backoff = BACKOFF,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """The result of ``action``, called again after errors of the transfer.

    Raises:
        FileNotFoundError: there is no such object (never tried again).
        DataError: naming ``what``, when the error is not worth another try, or what arrives is
            not what was sent each time.
        UnreachableError: naming it, when tries have run out.
        ResourceError: this machine's disk is full or read-only, or it is out of file handles.
    """
    began = clock()
    for failures in range(1, backoff.tries + 1):
        try:
            return action()
        except FileNotFoundError:
            raise
        except OSError as e:
            if e.errno in _LOCAL:
                raise ResourceError(f"{what}: {e.strerror} on this machine") from None
            if not worth_retrying(e):
                raise DataError(f"{what}: {_refusal(e)}") from None
            error = e
        wait = backoff.wait_s(failures)
        if failures == backoff.tries or clock() - began + wait > backoff.total_s:
            break
        if clock() - began > QUIET_S:
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
                print(f"{what}: {_line(error)}; trying again", file=sys.stderr, flush=True)
        sleep(wait)
    kind = DataError if isinstance(error, TransferError) else UnreachableError
    raise kind(
        f"{what}: failed {failures} times in {clock() - began:.0f} s, last: {_line(error)}; check "
        "the network and the store, then start again"
    ) from None


def _refusal(error: OSError) -> str:
    if _DENIED.search(str(error)) or isinstance(error, PermissionError):
        return (
            f"access denied ({_line(error)}); check the credentials in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS or the machine's role)"
            " and their rights"
        )
    return _line(error)


def _line(error: OSError) -> str:
    """The error's message in one line."""
    return " ".join(str(error).split())[:500]
