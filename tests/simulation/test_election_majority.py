"""Many elections of mode ``majority`` on virtual time. At every event of every run it is checked that no (seat, term) has two
holders and no seat two valid leases; clocks run up to 2 % too fast or too slow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dimnode.core.election_types import ElectionSettings
from dimnode.core.election_voter import Voter
from dimnode.domain.voting import Promises
from tests.support.majority_sim import SETTINGS, MajoritySwarm, recover, torment

FAST = (0.0005, 0.004)
SLOW = (0.005, 0.3)


def names(count: int) -> list[str]:
    return [f"n{i}" for i in range(count)]


def swarm_of(count: int, seed: int = 0, **kw: object) -> MajoritySwarm:
    swarm = MajoritySwarm(seed, names(count), delay=(FAST, SLOW)[seed % 2], loss=0.05 * (seed % 2), **kw)  # pyright: ignore
    swarm.start_all()
    return swarm


def steady(count: int, seed: int = 0, **kw: object) -> MajoritySwarm:
    swarm = swarm_of(count, seed, **kw)
    swarm.run_until(swarm.settled, 15)
    swarm.run(3)
    return swarm


@pytest.mark.parametrize("count", range(1, 10))
def test_whatever_happens_no_seat_has_two_holders_and_all_fill_afterwards(count: int) -> None:
    for seed in range(30 if count < 6 else 14):
        swarm = swarm_of(count, 100 * count + seed, settings=replace(SETTINGS, released=5.0))
        torment(swarm, 25, lists=seed % 3 == 0)
        swarm.run(5)
        swarm.run_until(lambda s=swarm: s.settled() and s.agreed(), 25)
        held = swarm.holders()
        swarm.run(5)
        assert swarm.holders() == held, "a settled swarm keeps its seats"


@pytest.mark.parametrize("seed", range(8))
def test_a_killed_holder_is_replaced_within_six_seconds_and_the_others_keep_theirs(seed: int) -> None:
    swarm = steady(6, seed)
    rest = dict(swarm.holders())
    swarm.crash(rest.pop(1))
    assert swarm.run_until(swarm.settled, 10) < 6
    assert {s: who for s, who in swarm.holders().items() if s != 1} == rest


@pytest.mark.parametrize("seed", range(6))
def test_a_released_seat_is_taken_before_its_lease_would_be_over(seed: int) -> None:
    swarm = steady(5, 2 * seed)
    holder = swarm.holders()[0]
    swarm.release(holder)
    assert swarm.run_until(lambda: swarm.holders().get(0) not in (None, holder), 10) < 2.0


@pytest.mark.parametrize("seed", range(6))
def test_the_lesser_side_loses_its_seats_and_the_greater_fills_them(seed: int) -> None:
    swarm = steady(5, seed)
    lesser = {*list(swarm.holders().values())[:2]}
    swarm.split(lesser)
    swarm.run(4)
    assert not lesser & set(swarm.holders().values())
    swarm.run_until(swarm.settled, 10)
    assert not lesser & set(swarm.holders().values())
    for name in lesser:
        assert not swarm.up[name].candidate.sees_majority(swarm.clock(name))
    held = swarm.holders()
    swarm.heal()
    swarm.run(15)
    assert swarm.holders() == held, "who returns displaces nobody"


def test_without_a_majority_there_is_no_seat() -> None:
    swarm = steady(3)
    for name in ("n0", "n1"):
        swarm.crash(name)
    swarm.run(4)
    assert swarm.holders() == {}
    swarm.run(60)
    assert swarm.holders() == {}
    swarm.start("n0")
    swarm.run_until(swarm.settled, 15)


def test_an_electorate_of_one_is_a_swarm_of_one_and_two_stop_when_one_is_lost() -> None:
    one = steady(1)
    assert one.holders() == {0: "n0"}
    two = steady(2)
    two.crash("n1")
    two.run(10)
    assert two.holders() == {}


@pytest.mark.parametrize("seed", range(4))
def test_who_does_not_vote_may_hold_a_seat_and_who_is_not_eligible_may_vote(seed: int) -> None:
    swarm = MajoritySwarm(seed, names(7), voters=["n0", "n1", "n2"], ineligible=frozenset({"n0", "n1"}))
    swarm.start_all()
    swarm.run_until(swarm.settled, 15)
    assert not {"n0", "n1"} & set(swarm.holders().values())
    swarm.run_until(swarm.agreed, 10)


@pytest.mark.parametrize("seed", range(6))
def test_voters_that_restart_one_after_the_other_unseat_nobody_else(seed: int) -> None:
    swarm = steady(5, seed)
    held = swarm.holders()
    for name in sorted(set(swarm.names) - set(held.values())):
        swarm.crash(name)
        swarm.start(name)
        swarm.run(1.5)
    assert swarm.holders() == held


def test_a_deaf_holder_and_a_mute_one_lose_their_seats() -> None:
    for seed in range(6):
        swarm = steady(5, seed)
        deaf, mute = swarm.holders()[0], swarm.holders()[1]
        swarm.one_way = {(p, deaf) for p in swarm.names if p != deaf} | {(mute, p) for p in swarm.names if p != mute}
        swarm.run(4)
        assert not {deaf, mute} & set(swarm.holders().values())
        swarm.run_until(lambda s=swarm: len(s.holders()) == 3, 20)


@pytest.mark.parametrize("seed", range(6))
def test_the_electorate_grows_and_shrinks_while_seats_are_held(seed: int) -> None:
    swarm = MajoritySwarm(seed, names(5), voters=["n0"])
    swarm.start_all()
    swarm.run_until(swarm.settled, 15)
    for peer in ("n1", "n2", "n3", "n4", "n0"):
        swarm.run_until(lambda p=peer: swarm.change(p), 40)
        swarm.run_until(swarm.settled, 20)
    swarm.run_until(lambda: all(d.listed == swarm.listed and d.settled for d in swarm.disks.values()), 30)
    assert swarm.listed.voters == ("n1", "n2", "n3", "n4")
    swarm.crash("n0")
    swarm.run_until(swarm.settled, 15)


# --- the checks find what is wrong


def broken(runs: int, settings: ElectionSettings = SETTINGS) -> int:
    """How many of these runs break a promise. There are more nodes than seats, so that somebody wants each of them."""
    found = 0
    for seed in range(runs):
        swarm = swarm_of(5, seed, settings=replace(settings, orchestrators=2))
        try:
            torment(swarm, 60)
            recover(swarm)
        except AssertionError:
            found += 1
    return found


def test_a_voter_that_forgets_its_leases_in_a_restart_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Voter.__init__

    def forgetful(self: Voter, settings: ElectionSettings, me: str, promises: Promises | None, now: float) -> None:
        honest(self, settings, me, promises, now)
        self._granted.clear()  # pyright: ignore[reportPrivateUsage]

    assert broken(8) == 0
    monkeypatch.setattr(Voter, "__init__", forgetful)
    assert broken(8) > 0


def test_leases_that_end_later_than_at_the_voters_would_be_found() -> None:
    assert broken(8, replace(SETTINGS, drift=-0.5)) > 0
