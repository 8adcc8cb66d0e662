"""Bounds per key against a count kept by hand."""

from __future__ import annotations

import numpy as np
import pytest

from xtdist.serve.config import QuotaConfig
from xtdist.serve.errors import ApiError
from xtdist.serve.quota import Account, Bucket


def account(now=0.0, **bounds):
    made = Account()
    made.follow(QuotaConfig(**bounds), now)
    return made


def test_no_bounds_refuse_nothing():
    free = account()
    for _ in range(1000):
        free.begin(0.0)
    free.charge(10**12, 0.0)
    assert free.running == 1000
    assert free.headers(0.0) == {}


def test_a_minute_gives_as_many_requests_as_it_says_and_then_one_after_another():
    key = account(requests_per_min=30)
    for _ in range(30):
        key.begin(0.0)
    with pytest.raises(ApiError) as e:
        key.begin(0.0)
    assert (e.value.status, e.value.code) == (429, "rate_limit_exceeded")
    assert e.value.headers == {"Retry-After": "2"}
    assert e.value.body()["error"]["type"] == "rate_limit_error"
    with pytest.raises(ApiError):
        key.begin(1.9)
    key.begin(2.0)
    with pytest.raises(ApiError):
        key.begin(2.0)


def test_who_comes_back_when_told_gets_in():
    key = account(requests_per_min=7)
    rng, now, made = np.random.default_rng(3), 0.0, 0
    for _ in range(200):
        try:
            key.begin(now)
            made += 1
        except ApiError as e:
            now += float(e.headers["Retry-After"])
            key.begin(now)
            made += 1
        now += float(rng.exponential(2.0))
        assert made <= 7 + now * 7 / 60 + 1


def test_only_so_many_run_at_once():
    key = account(concurrent_requests=2)
    key.begin(0.0)
    key.begin(0.0)
    with pytest.raises(ApiError, match="2 requests running at once"):
        key.begin(1e6)
    key.running -= 1
    key.begin(0.0)


def test_a_request_that_may_not_run_is_not_counted_against_the_minute():
    key = account(concurrent_requests=1, requests_per_min=60)
    key.begin(0.0)
    for _ in range(100):
        with pytest.raises(ApiError, match="running at once"):
            key.begin(0.0)
    assert key.headers(0.0)["x-ratelimit-remaining-requests"] == "59"


def test_tokens_are_reserved_and_come_back_evenly():
    key = account(tokens_per_min=600)
    key.charge(500, 0.0)
    with pytest.raises(ApiError) as e:
        key.charge(200, 0.0)
    assert e.value.headers == {"Retry-After": "10"}
    assert key.headers(0.0) == {
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "100",
        "x-ratelimit-reset-tokens": "50.000s",
    }
    key.charge(200, 10.0)
    assert key.headers(10.0)["x-ratelimit-remaining-tokens"] == "0"


def test_what_never_fits_into_a_minute_is_not_asked_to_come_back():
    with pytest.raises(ApiError) as e:
        account(tokens_per_min=600).charge(601, 0.0)
    assert (e.value.status, e.value.param, e.value.headers) == (400, "max_tokens", {})


def test_a_bucket_is_never_fuller_than_full_nor_forgets_what_was_taken():
    bucket = Bucket(60, 0.0)
    assert bucket.left(1e9) == 60
    bucket.take(50, 1e9)
    bucket.resize(100, 1e9)
    assert bucket.left(1e9) == 50
    bucket.resize(20, 1e9)
    assert bucket.left(1e9) == -30
    assert bucket.wait_s(1, 1e9) == pytest.approx(31 * 3)
    bucket.take(-1000, 1e9)
    assert bucket.left(1e9) == 20


def test_changed_bounds_hold_from_the_next_request_on():
    key = account(requests_per_min=1)
    key.begin(0.0)
    key.follow(QuotaConfig(requests_per_min=2), 0.0)
    key.begin(0.0)
    with pytest.raises(ApiError):
        key.begin(0.0)
    key.follow(QuotaConfig(), 0.0)
    key.begin(0.0)
