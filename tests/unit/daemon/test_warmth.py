"""What is loaded ahead of need, and what goes first when memory is short."""

from __future__ import annotations

from dimnode.daemon.agent_value import AgentFacts, value
from dimnode.daemon.settings import PrewarmSettings
from dimnode.daemon.warmth import Warmth

S = PrewarmSettings(most=3, half_life=100.0, frequent=2.0)


def test_pinned_come_first_then_queued_then_frequent() -> None:
    warmth = Warmth(S)
    for cid in ("often", "often", "often", "once"):
        warmth.used(cid, 0.0)
    assert warmth.wanted(pinned=[], queued={}, now=0.0) == ["often"]
    assert warmth.wanted(pinned=["p"], queued={"q": 1, "r": 5}, now=0.0) == ["p", "r", "q"]
    assert warmth.wanted(pinned=["often"], queued={"often": 1}, now=0.0) == ["often"]


def test_uses_fade() -> None:
    warmth = Warmth(S)
    for _ in range(3):
        warmth.used("m", 0.0)
    assert warmth.count("m", 100.0) == 1.5
    assert warmth.wanted(pinned=[], queued={}, now=100.0) == []
    assert warmth.count("unknown", 5.0) == 0.0


def test_the_cheapest_to_lose_is_worth_least() -> None:
    gib = 1 << 30
    slow, quick = AgentFacts(10.0, 5, 90.0, gib), AgentFacts(0.3, 5, 90.0, gib)
    assert value(quick, 100.0) < value(slow, 100.0)
    small, large = AgentFacts(1.0, 1, 90.0, gib // 8), AgentFacts(1.0, 1, 90.0, 4 * gib)
    assert value(large, 100.0) < value(small, 100.0)
    busy, idle = AgentFacts(1.0, 100, 90.0, gib), AgentFacts(1.0, 1, 90.0, gib)
    assert value(idle, 100.0) < value(busy, 100.0)
    old, young = AgentFacts(0.01, 1, 0.0, 0), AgentFacts(0.05, 1, 50.0, 0)
    assert value(old, 100.0) < value(young, 100.0)
