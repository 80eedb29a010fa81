"""Mode ``majority``: what an owner decides counts once most of the voters have it; an end is shown once they have it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from dimnode.clock import TrioClock
from dimnode.domain.record import Ballot, OutcomeEntry, StatusEntry
from dimnode.errors import Unavailable
from dimnode.records.acknowledgements import Acknowledgements
from dimnode.records.replicator import ReplicatorSettings
from tests.support.copies import an_owner, new_job
from tests.support.entries import RULES, claim, core, outcome
from tests.support.record_nodes import record_swarm

FIVE = ("owner", "a", "b", "c", "d")
ONE = ReplicatorSettings(replicas=1)
END = OutcomeEntry(job="j", ballot=Ballot(1, "owner", "b"), status="completed", at=1.0)


async def test_a_majority_of_the_voters_gets_every_decision_whatever_the_replicas_say(autojump_clock: MockClock) -> None:
    async with an_owner("abcdxy", ONE, voters=FIVE) as owner:
        for n in range(12):
            (copied,) = await owner.replicator.write([new_job(f"j{n}")])
            assert copied.enough
            assert len(owner.copies(f"j{n}") & set(FIVE)) == 2, "three of five with the owner"
        assert owner.replicator.insists()


async def test_copies_on_others_make_no_majority(autojump_clock: MockClock) -> None:
    async with an_owner("axyz", ReplicatorSettings(replicas=3), voters=FIVE) as owner:
        (copied,) = await owner.replicator.write([new_job("j")])
        assert copied.others == 3
        assert not copied.enough
        assert not owner.replicator.enough("j")


async def test_an_owner_that_does_not_vote_needs_more_others(autojump_clock: MockClock) -> None:
    async with an_owner("abc", ONE, voters=("a", "b", "c")) as owner:
        (copied,) = await owner.replicator.write([new_job("j")])
        assert copied.enough
        assert len(owner.copies("j")) == 2


async def test_a_sole_voter_decides_alone_and_who_asks_nobody_has_enough(autojump_clock: MockClock) -> None:
    for voters in (("owner",), ()):
        async with an_owner("", ONE, voters=voters) as owner:
            (copied,) = await owner.replicator.write([new_job("j")])
            assert copied.enough
            assert owner.replicator.insists() == bool(voters)


async def test_an_end_without_a_majority_is_not_written_here_and_is_the_same_when_it_is_tried_again(autojump_clock: MockClock) -> None:
    async with an_owner("ab", ONE, voters=("owner", "a", "b")) as owner:
        await owner.table.merge("j", [core("j"), claim(1, "owner", job="j")])
        for peer in "ab":
            owner.kill(peer)
        with pytest.raises(Unavailable):
            await owner.table.conclude("j", END)
        assert not owner.table.view("j").terminal
        assert "j" in await owner.journal.unfinished()
        owner.revive("a")
        seen = None
        with trio.fail_after(30):
            while seen is None:
                try:
                    seen = await owner.table.conclude("j", END)
                except Unavailable:
                    await trio.sleep(0.5)
        assert seen.status == "completed"
        ends = [e for e in owner.holders["a"].records["j"].values() if isinstance(e.body(), OutcomeEntry)]
        assert len(ends) == 1
        assert await owner.replicator.counts("j")


async def test_what_was_noted_before_a_decision_that_does_not_count_is_on_the_disk(autojump_clock: MockClock) -> None:
    async with an_owner("ab", ONE, voters=("owner", "a", "b")) as owner:
        await owner.table.merge("j", [core("j"), claim(1, "owner", job="j")])
        for peer in "ab":
            owner.kill(peer)
        note = StatusEntry(job="j", ballot=Ballot(1, "owner", "b"), status="running", at=1.0, elapsed=1.0)
        owner.table.note("j", note)
        with pytest.raises(Unavailable):
            await owner.table.conclude("j", END)
        assert note in [e.body() for e in await owner.journal.load("j")]
        assert not any(isinstance(e.body(), OutcomeEntry) for e in await owner.journal.load("j"))


async def test_a_copy_shows_an_end_only_when_most_of_the_voters_have_it_and_hands_it_to_them(autojump_clock: MockClock) -> None:
    async with record_swarm("abc") as swarm:
        a, b = swarm.nodes["a"], swarm.nodes["b"]
        await a.table.merge("j", [core("j"), claim(1, "z", job="j"), outcome(1, "completed", "z", job="j")])
        ends = Acknowledgements(a.network, a.table, TrioClock(), lambda: ("a", "b", "c", "d", "e"), 2.0, RULES)
        swarm.hub.partition(["a", "b"], ["c"])
        assert not await ends.counts("j"), "two of five"
        swarm.hub.heal()
        swarm.hub.connect_all()
        assert await ends.counts("j")
        assert (await b.table.load("j")).terminal
        swarm.hub.partition(["a"], ["b", "c"])
        assert await ends.counts("j"), "once it counts it counts"
