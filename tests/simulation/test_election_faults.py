"""What the ``available`` election promises when nodes leave, sleep, come back old, are copied, or can hardly be reached."""

from __future__ import annotations

import random

import pytest

from dimnode.core.election_types import ElectionSettings, pool_order
from tests.support.election_sim import Swarm, peer_of, torment


def names(count: int, seed: int) -> list[str]:
    return [f"n{i}-{seed}" for i in range(count)]


def steady(count: int, seed: int, seconds: float = 20, **kw: object) -> Swarm:
    """A swarm that has elected."""
    kw = {"loss": 0.02, "delay": (0.002, 0.1), **kw}
    swarm = Swarm(seed, names(count, seed), ElectionSettings(**kw.pop("settings", {})), **kw)  # pyright: ignore
    swarm.start_all()
    swarm.run(seconds)
    assert swarm.settled(), seed
    return swarm


def others(swarm: Swarm, without: str) -> dict[int, list[str]]:
    return {s: who for s, who in swarm.holders().items() if peer_of(without) not in map(peer_of, who)}


def held_elsewhere(swarm: Swarm, seat: int, without: str) -> bool:
    return any(p != without for p in swarm.holders().get(seat, ()))


@pytest.mark.parametrize(("count", "seeds"), [(5, 5), (6, 3), (8, 2), (15, 1), (30, 1)])
def test_a_restricted_pool_fills_the_seats_after_any_torment(count: int, seeds: int) -> None:
    for seed in range(100, 100 + seeds):
        swarm = Swarm(seed, names(count, seed), ElectionSettings())
        swarm.start_all()
        torment(swarm, 30)
        swarm.run(16)
        assert swarm.settled(), (seed, swarm.holders())
        assert swarm.agreed(), (seed, "all nodes see the same holders")
        assert (swarm.quarantines, swarm.ended) == ([], []), (seed, "restarts and pauses are no copied disks")
        assert all(len(node.pool()) <= 6 for node in swarm.up.values())


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def test_a_killed_holder_has_a_successor_within_three_seconds_and_a_silent_one_within_four() -> None:
    """Good links; the simulation's own measure of DESIGN's figure: p99 of 3 s with the API's start on top of this."""
    for how, limit in (("kill", 2.5), ("silent", 3.5)):
        took: list[float] = []
        for seed in range(25):
            swarm = steady(5 if seed % 8 else 20, seed, 12 + random.Random(seed).random(), loss=0.0, delay=(0.001, 0.02))
            victim = swarm.rng.choice([who[0] for who in swarm.holders().values()])
            kept = others(swarm, victim)
            (seat,) = swarm.holders().keys() - kept.keys()
            swarm.disconnects = how == "kill"
            swarm.crash(victim)
            took.append(swarm.run_until(lambda s=swarm, k=seat: k in s.holders(), 10))
            assert others(swarm, swarm.holders()[seat][0]) == kept, (seed, "the other seats never stop serving")
        assert quantile(took, 0.99) < limit, (how, sorted(took))


def test_after_a_release_the_successor_claims_at_once() -> None:
    for seed in range(8):
        swarm = steady(5 if seed % 4 else 20, seed, 12, loss=0.0)
        leaver = swarm.rng.choice([who[0] for who in swarm.holders().values()])
        kept = others(swarm, leaver)
        (seat,) = swarm.holders().keys() - kept.keys()
        swarm.release(leaver)
        took = swarm.run_until(lambda s=swarm, k=seat: k in s.holders(), 5)
        assert took < 0.5, seed
        swarm.run(5)
        assert swarm.settled(), seed
        assert others(swarm, swarm.holders()[seat][0]) == kept, seed
        assert leaver not in [p for who in swarm.holders().values() for p in who]


@pytest.mark.parametrize("kind", ["deaf", "mute"])
def test_one_way_links_take_a_holders_seat_and_healing_them_displaces_nobody(kind: str) -> None:
    for seed in range(5):
        swarm = steady(8, seed)
        victim = swarm.holders()[1][0]
        kept = others(swarm, victim)
        swarm.one_way = {(p, victim) if kind == "deaf" else (victim, p) for p in swarm.names if p != victim}
        swarm.run_until(lambda s=swarm, v=victim: held_elsewhere(s, 1, v), 8)
        swarm.run(8)
        assert others(swarm, victim).items() >= {s: w for s, w in kept.items() if s != 1}.items(), seed
        successor = next(p for p in swarm.holders()[1] if p != victim)
        swarm.heal()
        swarm.run(10)
        assert swarm.settled(), (seed, swarm.holders())
        assert swarm.holders() == {**kept, 1: [successor]}, (seed, "whoever was cut off resigns")


@pytest.mark.parametrize(("count", "seeds"), [(6, 3), (20, 1)])
def test_flapping_links_displace_nobody(count: int, seeds: int) -> None:
    for seed in range(seeds):
        swarm = steady(count, seed)
        held, won = swarm.holders(), len(swarm.won)
        for _ in range(15):
            swarm.cut |= {frozenset(swarm.rng.sample(swarm.names, 2)) for _ in range(2)}
            swarm.run(swarm.rng.uniform(0.5, 4))
            swarm.heal()
            swarm.run(swarm.rng.uniform(0.2, 3))
        assert swarm.holders() == held, seed
        assert len(swarm.won) == won, seed


@pytest.mark.parametrize("count", [5, 12])
def test_a_holder_that_almost_nobody_reaches_gives_way_and_does_not_come_back(count: int) -> None:
    for seed in range(4):
        swarm = steady(count, seed)
        victim = swarm.holders()[1][0]
        friend = swarm.rng.choice([p for p in swarm.names if p != victim])
        kept = others(swarm, victim)
        swarm.isolate(victim)
        swarm.cut.discard(frozenset((victim, friend)))
        swarm.run_until(lambda s=swarm, v=victim: s.up[v].mine() is None, 15)
        swarm.run(4)
        assert swarm.settled(), (seed, swarm.holders())
        assert others(swarm, swarm.holders()[1][0]) == kept, (seed, "only the hardly reachable one gives way")
        held = swarm.holders()
        assert victim not in [p for who in held.values() for p in who]
        swarm.heal()
        swarm.run(10)
        assert swarm.holders() == held, seed


def test_where_all_links_go_through_one_node_the_seats_are_still_filled_once() -> None:
    """Reachability is a preference: spokes hold seats, because there is nobody better."""
    for count, seed in ((5, 1), (10, 2), (20, 3)):
        hub, *spokes = names(count, seed)
        swarm = Swarm(seed, [hub, *spokes], ElectionSettings(), loss=0.0)
        swarm.cut = {frozenset((a, b)) for a in spokes for b in spokes if a != b}
        swarm.start_all()
        swarm.run(45)
        assert swarm.settled(), (seed, swarm.holders())
        assert hub in [p for who in swarm.holders().values() for p in who], (seed, "the node that all reach holds a seat")


def test_a_machine_that_was_suspended_does_not_displace_its_successor() -> None:
    """Its last claim has the highest support of all; what arrives first when it wakes are beats that it would answer."""
    for seed in range(6):
        swarm = steady(5, seed)
        victim = swarm.holders()[0][0]
        swarm.pause(victim)
        swarm.run(8)
        successor = next(p for p in swarm.holders()[0] if p != victim)
        swarm.wake(victim)
        assert swarm.up[victim].mine() is None or not swarm.paused
        swarm.run(12)
        assert swarm.settled(), (seed, swarm.holders())
        assert swarm.holders()[0] == [successor], seed
        assert [reason for _, s, reason in swarm.lost if s.peer == successor] == [], seed
        assert [reason for _, s, reason in swarm.lost if s.peer == victim] == ["pause"], seed


def test_all_machines_suspended_at_once_elect_again() -> None:
    swarm = steady(5, 3)
    swarm.pause(*swarm.names)
    swarm.run(3600)
    swarm.wake_all()
    swarm.run(16)
    assert swarm.settled()


def test_a_journal_of_last_week_displaces_nobody_and_learns_the_present_term() -> None:
    for seed in range(4):
        swarm = steady(5, seed, settings={"orchestrators": 2})
        old = next(p for p in swarm.names if [p] not in swarm.holders().values())
        disk = swarm.disks[old].n
        swarm.crash(old)
        for _ in range(6):
            victim = swarm.holders()[0][0]
            swarm.crash(victim)
            swarm.run(6)
            swarm.start(victim)
            swarm.run(6)
        held, term = swarm.holders(), max(n.n for n in swarm.up.values())
        assert term > disk + 4
        swarm.disks[old].n = 0
        swarm.start(old)
        swarm.run(10)
        assert swarm.holders() == held, seed
        assert swarm.up[old].n >= term, seed


@pytest.mark.parametrize("count", [2, 6])
def test_a_copied_disk_costs_the_newcomer_its_life_and_the_swarm_nothing(count: int) -> None:
    for seed in range(4):
        swarm = steady(count, seed, 40)
        victim = swarm.holders()[0][0] if seed % 2 else sorted(swarm.names, key=pool_order)[-1]
        kept = others(swarm, victim)
        twin = swarm.copy(victim)
        swarm.run(20)
        assert victim in [name for _, name in swarm.quarantines], (seed, "one identity, two nodes: neither holds a seat")
        assert twin in [name for _, name in swarm.quarantines], seed
        swarm.run(40)
        assert [name for _, name in swarm.ended] == [twin], seed
        assert swarm.settled(), (seed, swarm.holders())
        assert kept.items() <= swarm.holders().items(), (seed, "the others keep their seats")


def test_a_disk_that_was_rolled_back_costs_one_quarantine_and_no_life() -> None:
    """The node's last boot id is missing on its disk, and its peers still hear the echo of that life."""
    swarm = steady(3, 1, 40)
    victim = swarm.holders()[0][0]
    swarm.disks[victim].n = 0
    swarm.disks[victim].boots.clear()
    before = swarm.up[victim].boot
    swarm.crash(victim)
    swarm.start(victim)
    swarm.up[victim].on_boot(before, swarm.now)
    swarm.run(40)
    assert [name for _, name in swarm.quarantines] == [victim]
    assert swarm.ended == []
    assert swarm.settled()


def test_sixty_nodes_settle_after_a_partition_and_losses() -> None:
    swarm = steady(60, 7, 15)
    swarm.split(swarm.names[:25])
    swarm.run(12)
    assert all(swarm.holders()[s] for s in range(3))
    swarm.heal()
    for who in list(swarm.holders().values()):
        swarm.crash(who[0])
    swarm.run(10)
    assert swarm.settled(), swarm.holders()
    assert swarm.agreed()
