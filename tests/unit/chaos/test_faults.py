"""The schedule of faults, whom they hit, and how the time to a new orchestrator is read."""

from __future__ import annotations

import itertools

import pytest

from tools.chaos.faults import BAG, SECONDS, Fault, choose, schedule, ways
from tools.chaos.network import CLIENT
from tools.chaos.swarm import Seen, holders, others_suffice, replaced

NODES = (1, 2, 3, 4, 5)


def a_fault(kind: str, **more: object) -> Fault:
    values = {"at": 1.0, "kind": kind, "seconds": 2.0, "holder": True, "who": 0.5, "other": 0.5, "client": True, **more}
    return Fault(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(30))
def test_a_schedule_follows_from_its_seed_and_keeps_its_bounds(seed: int) -> None:
    faults = schedule(seed, 600)
    assert faults == schedule(seed, 600)
    assert faults != schedule(seed + 1, 600)
    assert {f.kind for f in faults} == set(BAG)
    assert (faults[0].kind, faults[0].holder) == ("kill", True)
    for f in faults:
        assert SECONDS[f.kind][0] <= f.seconds <= SECONDS[f.kind][1]
        assert f.end <= 600
        assert sum(g.at <= f.at < g.end for g in faults) <= 2
    assert all(a.at <= b.at for a, b in itertools.pairwise(faults))
    assert any(b.at < a.end for a, b in itertools.pairwise(faults))


@pytest.mark.parametrize("seed", range(10))
def test_a_short_run_has_faults_too(seed: int) -> None:
    assert len(schedule(seed, 60)) >= 3


def test_the_victim_holds_a_seat_if_one_is_to_be_had() -> None:
    assert choose(a_fault("kill"), NODES, frozenset({2, 3})) == 3
    assert choose(a_fault("kill"), (1, 4, 5), frozenset({2, 3})) == 4
    assert choose(a_fault("kill", holder=False, who=0.0), NODES, frozenset({3})) == 1
    assert choose(a_fault("kill", who=0.999), NODES, frozenset()) == 5
    assert choose(a_fault("kill"), (), frozenset({1})) is None


def test_what_a_cut_severs() -> None:
    assert ways(a_fault("kill"), 1, NODES)[1] == set()
    assert ways(a_fault("cut-in", client=False), 1, NODES)[1] == {(n, 1) for n in (2, 3, 4, 5)}
    assert ways(a_fault("cut-out"), 1, NODES)[1] == {(1, n) for n in (CLIENT, 2, 3, 4, 5)}
    assert len(ways(a_fault("cut"), 1, NODES)[1]) == 10
    assert ways(a_fault("pair", other=0.99), 1, NODES)[1] == {(1, 5), (5, 1)}


@pytest.mark.parametrize("other", [0.0, 0.49, 0.99])
def test_halves_leave_a_larger_side(other: float) -> None:
    _, cut = ways(a_fault("halves", other=other, client=False), 2, NODES)
    side = {n for n in NODES if (n, 5) in cut} | {2}
    rest = set(NODES) - side
    assert 1 <= len(side) < len(rest)
    assert cut == {way for a in side for b in rest for way in ((a, b), (b, a))}
    _, with_client = ways(a_fault("halves", other=other), 2, NODES)
    assert {way for way in with_client - cut if CLIENT in way} == {w for a in side for w in ((a, CLIENT), (CLIENT, a))}


SEEN = [Seen(0, 1, True), Seen(0, 2, True), Seen(5.1, 1, False), Seen(6, 3, True), Seen(9, 1, True)]


def test_who_served_when() -> None:
    assert holders(SEEN, 4) == {1, 2}
    assert holders(SEEN, 5.5) == {2}
    assert holders(SEEN, 10) == {1, 2, 3}


def test_a_holder_beyond_the_seats_need_not_be_replaced() -> None:
    many = [Seen(0, n, True) for n in (1, 2, 3, 4)]
    assert others_suffice(many, 4, 5.0)
    assert others_suffice([*many, Seen(4, 4, False)], 4, 5.0)
    assert not others_suffice(many[:3], 3, 5.0)
    assert not others_suffice([*many, Seen(4, 2, False)], 4, 5.0)


def test_time_to_a_new_orchestrator() -> None:
    assert replaced(SEEN, 1, 5.0) == (1.0, 3)
    assert replaced(SEEN[:3], 1, 5.0) is None
    assert replaced([*SEEN[:3], SEEN[4]], 1, 5.0) == (4.0, 1)  # it came back itself
    flicker = [*SEEN[:3], Seen(5.5, 2, False), Seen(5.7, 2, True)]
    assert replaced(flicker, 1, 5.0) is None  # nobody new
