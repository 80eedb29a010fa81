"""Many nodes elect on virtual time: what the ``available`` election promises, restricted pool included."""

from __future__ import annotations

import pytest

from dimnode.core.election_types import ElectionSettings, pool_order
from tests.support.election_sim import Swarm, torment


def names(count: int, seed: int = 0) -> list[str]:
    return [f"n{i}-{seed}" for i in range(count)]


def steady(count: int, seed: int = 0, **kw: object) -> Swarm:
    """A swarm that has elected."""
    swarm = Swarm(seed, names(count, seed), ElectionSettings(**kw.pop("settings", {})), **kw)  # pyright: ignore
    swarm.start_all()
    swarm.run(20)
    assert swarm.settled()
    return swarm


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 9, 12])
def test_after_any_torment_the_seats_fill_with_distinct_nodes(count: int) -> None:
    for seed in range(12 if count < 8 else 6):
        swarm = Swarm(seed, names(count, seed), ElectionSettings())
        swarm.start_all()
        torment(swarm, 40)
        swarm.run(16)
        assert swarm.settled(), (seed, swarm.holders())
        held = swarm.holders()
        swarm.run(10)
        assert swarm.holders() == held, "a settled swarm keeps its seats"


@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_a_killed_holder_is_replaced_within_ten_seconds(loss: float) -> None:
    for seed in range(8):
        swarm = steady(6, seed, loss=loss)
        victim = swarm.holders()[1][0]
        rest = {s: who for s, who in swarm.holders().items() if s != 1}
        swarm.crash(victim)
        start, filled = swarm.now, 0.0
        while not swarm.settled():
            swarm.run(0.1)
            assert swarm.now - start < 10
        filled = swarm.now - start
        assert filled < 5
        assert {s: who for s, who in swarm.holders().items() if s != 1} == rest, "other seats never stop serving"


def test_without_loss_the_replacement_takes_under_three_seconds() -> None:
    for seed in range(8):
        swarm = steady(5, seed, loss=0.0, delay=(0.001, 0.02))
        swarm.crash(swarm.holders()[0][0])
        swarm.run(3)
        assert swarm.settled()


def test_a_silent_death_without_a_broken_connection_is_noticed_too() -> None:
    swarm = steady(5, 3, disconnects=False)
    swarm.crash(swarm.holders()[2][0])
    swarm.run(8)
    assert swarm.settled()


def test_joiners_displace_nobody() -> None:
    for seed in range(5):
        swarm = Swarm(seed, names(9, seed), ElectionSettings())
        first = sorted(swarm.names, key=pool_order)[-3:]
        for i, name in enumerate(first):
            swarm.start(name, "join" if i else "alone")
        swarm.run(15)
        held = swarm.holders()
        assert swarm.settled()
        for name in swarm.names:
            if name not in swarm.up:
                swarm.start(name)
                swarm.run(4)
        assert swarm.holders() == held, "incumbents with the highest hashes keep their seats against all joiners"
        assert swarm.displaced == 0


def test_a_flapping_node_displaces_nobody() -> None:
    for seed in range(3):
        swarm = steady(8, seed)
        held, before = swarm.holders(), swarm.displaced
        flapping = next(p for p in sorted(swarm.names, key=pool_order) if [p] not in held.values())
        for _ in range(6):
            swarm.isolate(flapping)
            swarm.run(6)
            swarm.heal()
            swarm.run(7)
            assert [p for who in swarm.holders().values() for p in who if p != flapping] == [p for who in held.values() for p in who]
        assert swarm.holders() == held
        assert swarm.displaced - before <= 6, "only the flapping node itself resigns"


def test_one_broken_link_makes_no_second_holder() -> None:
    for seed in range(4):
        swarm = steady(3, seed, settings={"orchestrators": 1}, loss=0.0)
        (holder,) = swarm.holders()[0]
        other = next(p for p in swarm.names if p != holder)
        swarm.cut = {frozenset((holder, other))}
        swarm.run(30, lambda s=swarm, h=holder: _only(s, h))


def _only(swarm: Swarm, holder: str) -> None:
    assert swarm.holders() == {0: [holder]}


def test_each_side_of_a_partition_elects_and_the_larger_tenure_stays() -> None:
    swarm = steady(7, 1, settings={"orchestrators": 1}, loss=0.0)
    (holder,) = swarm.holders()[0]
    away = [p for p in swarm.names if p != holder][:2]
    swarm.split(away)
    swarm.run(15)
    assert len(swarm.holders()[0]) == 2
    swarm.heal()
    swarm.run(10)
    assert swarm.holders() == {0: [holder]}


def test_two_swarms_of_one_that_meet_share_the_seats() -> None:
    swarm = Swarm(2, names(2), ElectionSettings())
    swarm.split([swarm.names[0]])
    for name in swarm.names:
        swarm.start(name, "alone")
    swarm.run(5)
    assert swarm.holders() == {0: sorted(swarm.names)}
    swarm.heal()
    swarm.run(8)
    assert swarm.settled()


def test_nodes_that_may_not_hold_seats_never_do() -> None:
    swarm = Swarm(4, names(6, 4), ElectionSettings(), ineligible=frozenset(names(6, 4)[:4]))
    for i, name in enumerate(reversed(swarm.names)):
        swarm.start(name, "join" if i else "alone")
    swarm.run(20)
    assert swarm.settled()
    assert {p for who in swarm.holders().values() for p in who} == set(swarm.names[4:])


def test_an_allow_list_restricts_the_seats() -> None:
    allow = frozenset(names(5, 6)[1:3])
    swarm = Swarm(6, names(5, 6), ElectionSettings(allow=allow))
    swarm.start_all()
    swarm.run(20)
    assert {p for who in swarm.holders().values() for p in who} == allow


def test_when_the_whole_pool_dies_the_others_take_over() -> None:
    swarm = steady(14, 7, loss=0.0)
    pool = swarm.up[swarm.names[0]].pool()
    assert len(pool) == 6
    for name in {*pool, *(p for who in swarm.holders().values() for p in who)}:
        swarm.crash(name)
    swarm.run(10)
    assert swarm.settled()


def test_a_paused_holder_drops_its_seat_when_it_wakes_and_claims_no_filled_one() -> None:
    swarm = steady(6, 8, loss=0.0)
    victim = swarm.holders()[0][0]
    swarm.pause(victim)
    swarm.run(8)
    assert len(swarm.holders()[0]) == 2, "asleep it cannot know; others took over"
    swarm.wake_all()
    swarm.run(0.3)
    assert victim not in swarm.holders()[0]
    swarm.run(8)
    assert swarm.settled()


def test_observers_and_pool_know_the_same_seats_and_cost_is_bounded() -> None:
    swarm = steady(16, 9, loss=0.0)
    swarm.run(5)
    want = {s: who[0] for s, who in swarm.holders().items()}
    for node in swarm.up.values():
        assert {seat.seat: seat.peer for seat in node.seats(swarm.now)} == want
    before = swarm.sent
    swarm.run(20)
    assert (swarm.sent - before) / 20 / 16 < 9, "requests per second and node"


def test_terms_grow_with_every_change_and_ballots_are_unique() -> None:
    swarm = Swarm(11, names(5, 11), ElectionSettings())
    swarm.start_all()
    torment(swarm, 60)
    ballots = [(seat.n, seat.peer, seat.boot) for _, seat in swarm.won]
    assert len(set(ballots)) == len(ballots)
    by_node: dict[str, list[int]] = {}
    for _, seat in swarm.won:
        by_node.setdefault(seat.peer, []).append(seat.n)
    for terms in by_node.values():
        assert terms == sorted(set(terms)), "a node never uses a term twice, restarts included"
