"""Token buckets per principal."""

from __future__ import annotations

import pytest

from dimnode.core.rate_limit import RateLimiter, RateLimitSettings


def test_no_rate_no_limit() -> None:
    limiter = RateLimiter(RateLimitSettings())
    assert all(limiter.take("a", 0.0) is None for _ in range(1000))
    assert len(limiter) == 0


def test_a_burst_then_the_rate() -> None:
    limiter = RateLimiter(RateLimitSettings(rate=2.0, burst=3))
    assert [limiter.take("a", 0.0) for _ in range(3)] == [None] * 3
    assert limiter.take("a", 0.0) == pytest.approx(0.5)
    assert limiter.take("a", 0.25) == pytest.approx(0.25)
    assert limiter.take("a", 0.5) is None
    assert limiter.take("a", 0.5) is not None
    assert [limiter.take("a", 100.0) for _ in range(4)].count(None) == 3, "rest is not saved up beyond the burst"


def test_principals_do_not_share() -> None:
    limiter = RateLimiter(RateLimitSettings(rate=1.0, burst=1))
    assert limiter.take("a", 0.0) is None
    assert limiter.take("b", 0.0) is None
    assert limiter.take("a", 0.0) is not None


def test_a_clock_that_stands_or_steps_back_gives_nothing() -> None:
    limiter = RateLimiter(RateLimitSettings(rate=1.0, burst=1))
    assert limiter.take("a", 10.0) is None
    assert limiter.take("a", 5.0) is not None


def test_a_cost_above_the_burst_takes_a_full_bucket() -> None:
    limiter = RateLimiter(RateLimitSettings(rate=1.0, burst=5))
    assert limiter.take("a", 0.0, cost=50) is None
    assert limiter.take("a", 0.0, cost=50) == pytest.approx(5.0)


def test_the_default_burst_is_a_second_of_requests() -> None:
    assert RateLimitSettings(rate=7.0).capacity == 7.0
    assert RateLimitSettings(rate=0.5).capacity == 1.0


def test_principals_are_bounded() -> None:
    limiter = RateLimiter(RateLimitSettings(rate=1.0, burst=1, principals=3))
    for i in range(10):
        limiter.take(f"p{i}", 0.0)
    assert len(limiter) == 3
