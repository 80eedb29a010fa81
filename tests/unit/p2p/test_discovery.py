from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from p2p.api import Unreachable
from p2p.discovery import MOST_ADDRESSES, Dialer, DialPlan, dial_any
from p2p.settings import DialSettings

NOBODY: frozenset[str] = frozenset()
SETTINGS = DialSettings(backoff_first=1.0, backoff_most=30.0, jitter=0.0, target_peers=2, at_once=3, known_peers=5, known_attempts=3)


def plan(settings: DialSettings = SETTINGS) -> DialPlan:
    return DialPlan(settings, random.Random(1))


def names(targets: list[object]) -> list[str]:
    return sorted(target.peer for target in targets)  # type: ignore[attr-defined]


def test_a_bootstrap_peer_is_dialled_until_it_answers_at_growing_intervals() -> None:
    decides = plan()
    decides.mention("boot", ["addr"], 0.0, bootstrap=True)
    now, waits = 0.0, list[float]()
    for _ in range(100):
        assert names(decides.due(now, NOBODY)) == ["boot"]
        assert decides.due(now, NOBODY) == []
        decides.failed("boot", now)
        wait = decides.next_due(now, NOBODY)
        assert wait is not None
        waits.append(wait)
        now += wait
    assert waits[:6] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert waits[-1] == 30.0


def test_jitter_spreads_the_intervals() -> None:
    decides = DialPlan(DialSettings(backoff_first=10.0, jitter=0.3), random.Random(2))
    waits = set[float]()
    for number in range(50):
        decides.mention(f"p{number}", ["addr"], 0.0, bootstrap=True)
        decides.failed(f"p{number}", 0.0)
    waits = {target.due for target in decides._targets.values()}
    assert len(waits) == 50
    assert 7.0 <= min(waits) < max(waits) <= 13.0


def test_connected_peers_are_left_alone() -> None:
    decides = plan()
    decides.mention("boot", ["addr"], 0.0, bootstrap=True)
    assert decides.due(0.0, frozenset({"boot"})) == []
    assert decides.next_due(0.0, frozenset({"boot"})) is None


def test_others_are_dialled_only_while_peers_are_lacking() -> None:
    decides = plan()
    for number in range(4):
        decides.mention(f"p{number}", ["addr"], 0.0)
    assert len(decides.due(0.0, NOBODY)) == 2
    assert decides.due(0.0, NOBODY) == []
    decides = plan()
    decides.mention("p", ["addr"], 0.0)
    assert decides.due(0.0, frozenset({"x", "y"})) == []
    decides.mention("lan", ["addr"], 0.0, wanted=True)
    assert names(decides.due(0.0, frozenset({"x", "y"}))) == ["lan"]


def test_others_are_given_up_until_they_are_mentioned_again() -> None:
    decides = plan()
    decides.mention("p", ["addr"], 0.0)
    now = 0.0
    for _ in range(3):
        decides.due(now, NOBODY)
        decides.failed("p", now)
        now += 100
    assert decides.due(now, NOBODY) == []
    assert decides.next_due(now, NOBODY) is None
    decides.mention("p", ["addr"], now)
    decides.due(now, NOBODY)
    assert names(decides.due(now + 100, NOBODY)) or decides._targets["p"].dialling


def test_a_new_address_is_tried_at_once() -> None:
    decides = plan()
    decides.mention("boot", ["old"], 0.0, bootstrap=True)
    decides.due(0.0, NOBODY)
    decides.failed("boot", 0.0)
    decides.mention("boot", ["old"], 0.5)
    assert decides.due(0.5, NOBODY) == []
    decides.mention("boot", ["new"], 0.5)
    assert names(decides.due(0.5, NOBODY)) == ["boot"]
    assert decides.addresses("boot") == ("new", "old")


def test_memory_is_bounded_and_keeps_bootstrap_peers() -> None:
    decides = plan()
    decides.mention("boot", ["addr"], 0.0, bootstrap=True)
    for number in range(20):
        decides.mention(f"p{number}", ["addr"], 0.0)
    assert list(decides._targets) == ["boot", "p16", "p17", "p18", "p19"]
    decides.mention("boot", [f"a{number}" for number in range(100)], 0.0)
    assert len(decides.addresses("boot")) == MOST_ADDRESSES
    assert decides.addresses("nobody") == ()
    everyone = plan()
    for number in range(10):
        everyone.mention(f"b{number}", ["addr"], 0.0, bootstrap=True)
    assert len(everyone._targets) == 10


def test_a_lost_peer_is_dialled_soon_but_not_at_once() -> None:
    decides = plan()
    decides.mention("boot", ["addr"], 0.0, bootstrap=True)
    decides.due(0.0, NOBODY)
    decides.succeeded("boot")
    decides.lost("boot", 50.0)
    assert decides.due(50.0, NOBODY) == []
    assert names(decides.due(51.0, NOBODY)) == ["boot"]


def test_strangers_do_no_harm() -> None:
    decides = plan()
    decides.failed("x", 0.0)
    decides.succeeded("x")
    decides.lost("x", 0.0)
    assert decides.due(0.0, NOBODY) == []


async def test_many_waiters_share_one_dial(autojump_clock: trio.testing.MockClock) -> None:
    dials: list[str] = []
    connected: set[str] = set()

    async def dial(peer: str, addresses: tuple[str, ...]) -> None:
        dials.append(peer)
        await trio.sleep(1)
        connected.add(peer)

    async with trio.open_nursery() as nursery:
        dialer = Dialer(plan(), dial, lambda: frozenset(connected), nursery.start_soon)
        dialer._plan.mention("p", ["addr"], 0.0)
        with trio.move_on_after(0.5):  # the first waiter gives up; the dial goes on for the others
            await dialer.connect("p")
        async with trio.open_nursery() as waiters:
            for _ in range(5):
                waiters.start_soon(dialer.connect, "p")
        await dialer.connect("p")
    assert dials == ["p"]


async def test_a_failed_dial_tells_all_why(autojump_clock: trio.testing.MockClock) -> None:
    async def dial(peer: str, addresses: tuple[str, ...]) -> None:
        raise Unreachable("no route")

    async with trio.open_nursery() as nursery:
        dialer = Dialer(plan(), dial, lambda: NOBODY, nursery.start_soon)
        with pytest.raises(Unreachable, match="no address"):
            await dialer.connect("p")
        dialer._plan.mention("p", ["addr"], 0.0)
        with pytest.raises(Unreachable, match="no route"):
            await dialer.connect("p")


async def test_the_loop_dials_bootstrap_peers_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    times: list[float] = []
    connected: set[str] = set()
    start = trio.current_time()

    async def dial(peer: str, addresses: tuple[str, ...]) -> None:
        times.append(trio.current_time() - start)
        if times[-1] < 600:
            raise Unreachable("not yet")
        connected.add(peer)

    async with trio.open_nursery() as nursery:
        dialer = Dialer(plan(), dial, lambda: frozenset(connected), nursery.start_soon)
        nursery.start_soon(dialer.run)
        dialer.mention("boot", ["addr"], bootstrap=True)
        await trio.sleep(1000)
        assert connected == {"boot"}
        connected.clear()
        dialer.lost("boot")
        await trio.sleep(5)
        assert connected == {"boot"}
        nursery.cancel_scope.cancel()


async def test_dial_any_staggers_and_the_first_wins(autojump_clock: trio.testing.MockClock) -> None:
    started: dict[str, float] = {}
    ended: list[str] = []
    begin = trio.current_time()

    async def one(address: str) -> None:
        started[address] = trio.current_time() - begin
        if address == "refused":
            raise Unreachable("refused")
        try:
            await trio.sleep({"silent": 60, "slow": 3, "quick": 1}[address])
        finally:
            ended.append(address)

    await dial_any(["refused", "silent", "slow", "quick"], one, 0.5)
    assert started == {"refused": 0.0, "silent": 0.0, "slow": 0.5, "quick": 1.0}
    assert trio.current_time() - begin == 2.0
    with pytest.raises(Unreachable, match="refused"):
        await dial_any(["refused"], one, 0.5)
    with pytest.raises(Unreachable, match="no usable"):
        await dial_any([], one, 0.5)
