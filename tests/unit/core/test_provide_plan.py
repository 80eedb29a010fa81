"""What the DHT is told, and when again."""

from __future__ import annotations

import random

from dimnode.core.provide_plan import ProvidePlan, ProvideSettings

SETTINGS = ProvideSettings(repeat=100, retry=10, most=3, jitter=0.0)


def plan(**changes: float) -> ProvidePlan:
    return ProvidePlan(SETTINGS if not changes else ProvideSettings(repeat=100, retry=10, most=3, **changes), random.Random(1))


def test_each_content_is_announced_and_again_after_a_while():
    p = plan()
    p.update(["a", "b"], 0)
    assert p.next(0) == "a"
    p.announced("a", 3, 0)
    assert p.next(0) == "b"
    p.announced("b", 1, 5)
    assert p.next(99) is None
    assert p.next(100) == "a"


def test_what_nobody_took_note_of_is_tried_again_soon():
    p = plan()
    p.update(["a"], 0)
    p.announced("a", 0, 0)
    assert p.next(9) is None
    assert p.next(10) == "a"


def test_what_must_not_be_announced_does_not_hold_up_the_rest():
    p = plan()
    p.update(["a", "b"], 0)
    p.withheld("a", 0)
    assert p.next(0) == "b"


def test_only_so_much_is_announced_and_what_is_gone_is_not():
    p = plan()
    assert p.update("abcd", 0) == []
    assert (p.provided, p.left_out) == (3, 1)
    assert p.update("da", 1) == ["b", "c"]
    p.announced("b", 1, 1)
    assert (p.provided, p.left_out) == (2, 0)
    p.announced("a", 1, 1)
    assert p.next(1) == "d"


def test_repeats_spread():
    p = plan(jitter=0.1)
    p.update("abc", 0)
    for root in "abc":
        p.announced(root, 1, 0)
    times = sorted(p._due.values())
    assert 90 <= times[0] < times[-1] <= 110
