"""Clocks: the machine's, one turned by hand, Trio's."""

from __future__ import annotations

import time

import pytest
import trio
from trio.testing import MockClock

from dimnode.clock import ManualClock, SystemClock, TrioClock


def test_the_system_clock() -> None:
    clock = SystemClock()
    assert abs(clock.wall() - time.time()) < 5
    assert clock.monotonic() <= clock.monotonic()


def test_a_manual_clock_moves_when_told() -> None:
    clock = ManualClock()
    wall, monotonic = clock.wall(), clock.monotonic()
    clock.advance(2.5)
    assert (clock.wall() - wall, clock.monotonic() - monotonic) == (2.5, 2.5)
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)


async def test_trios_clock_follows_virtual_time(autojump_clock: MockClock) -> None:
    clock = TrioClock()
    wall, monotonic = clock.wall(), clock.monotonic()
    await trio.sleep(100)
    assert clock.wall() - wall == pytest.approx(100)
    assert clock.monotonic() - monotonic == pytest.approx(100)
