from __future__ import annotations

from tools.bench_rpc import health_calls, unary_calls


async def test_pooled_connections_save_at_least_30_percent_of_the_time() -> None:
    figures = await health_calls(100)
    assert figures["saved"] >= 0.3, figures


async def test_the_bridge_alone_is_no_limit_to_submissions() -> None:
    """A generous floor, for a busy machine: a hundredth of a second a call would be a defect."""
    assert await unary_calls(32, 0.7) > 100
