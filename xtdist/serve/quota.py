"""What one API key may use: requests and tokens per minute, requests at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from xtdist.serve.config import QuotaConfig
from xtdist.serve.errors import ApiError

_MINUTE_S = 60.0


class Bucket:
    """``per_min`` may be taken at once, and comes back evenly over a minute.

    Args:
        now: seconds of a monotonic clock, as in every method.
    """

    def __init__(self, per_min: int, now: float) -> None:
        self.per_min = per_min
        self._level = float(per_min)
        self._at = now

    def left(self, now: float) -> float:
        self._level = min(self.per_min, self._level + (now - self._at) * self._rate)
        self._at = now
        return self._level

    def wait_s(self, amount: float, now: float) -> float:
        """Until ``amount`` may be taken; 0 for now."""
        return max(0.0, amount - self.left(now)) / self._rate

    def take(self, amount: float, now: float) -> None:
        """Negative gives back."""
        self._level = min(self.per_min, self.left(now) - amount)

    def resize(self, per_min: int, now: float) -> None:
        """What was taken stays taken."""
        self._level = self.left(now) + per_min - self.per_min
        self.per_min = per_min

    @property
    def _rate(self) -> float:
        return self.per_min / _MINUTE_S


@dataclass
class Account:
    """What one key uses at the moment."""

    quota: QuotaConfig = field(default_factory=QuotaConfig)
    running: int = 0
    requests: Bucket | None = None
    tokens: Bucket | None = None

    def follow(self, quota: QuotaConfig, now: float) -> None:
        """Go by these bounds from now on."""
        self.quota = quota
        self.requests = _sized(self.requests, quota.requests_per_min, now)
        self.tokens = _sized(self.tokens, quota.tokens_per_min, now)

    def begin(self, now: float) -> None:
        """Count a request as made and running.

        Raises:
            ApiError: 429 with the time to come back.
        """
        most = self.quota.concurrent_requests
        if most is not None and self.running >= most:
            raise _too_many(f"this key may have {most} requests running at once", 1.0)
        if self.requests is not None:
            wait_s = self.requests.wait_s(1, now)
            if wait_s:
                per_min = self.requests.per_min
                raise _too_many(f"this key may make {per_min} requests a minute", wait_s)
            self.requests.take(1, now)
        self.running += 1

    def charge(self, tokens: int, now: float) -> None:
        """Reserve tokens.

        Raises:
            ApiError: 429 with the time to come back; 400 for more than there ever will be.
        """
        if self.tokens is None:
            return
        per_min = self.tokens.per_min
        if tokens > per_min:
            raise ApiError(
                400,
                f"max_tokens: prompt and answer may have {tokens} tokens together, and this key "
                f"may use {per_min} a minute",
                param="max_tokens",
                code="over_quota",
            )
        wait_s = self.tokens.wait_s(tokens, now)
        if wait_s:
            raise _too_many(f"this key may use {per_min} tokens a minute", wait_s)
        self.tokens.take(tokens, now)

    def headers(self, now: float) -> dict[str, str]:
        """OpenAI's ``x-ratelimit-*``."""
        out: dict[str, str] = {}
        for what, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            if bucket is not None:
                left = bucket.left(now)
                out[f"x-ratelimit-limit-{what}"] = str(bucket.per_min)
                out[f"x-ratelimit-remaining-{what}"] = str(max(0, math.floor(left)))
                out[f"x-ratelimit-reset-{what}"] = f"{bucket.wait_s(bucket.per_min, now):.3f}s"
        return out


def _sized(bucket: Bucket | None, per_min: int | None, now: float) -> Bucket | None:
    if per_min is None:
        return None
    if bucket is None:
        return Bucket(per_min, now)
    if bucket.per_min != per_min:
        bucket.resize(per_min, now)
    return bucket


def _too_many(what: str, wait_s: float) -> ApiError:
    return ApiError(
        429,
        f"{what}; try again later",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(max(1, math.ceil(wait_s)))},
    )
