"""A node that leaves: what it alone has goes to others first."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from dimnode.domain import codec
from dimnode.domain.record import Ballot
from tests.support.copies import Owner, an_owner, new_job
from tests.support.entries import claim, core, outcome


async def keep(
    owner: Owner, job: str, *, copied: bool = False, result: bytes | None = None, ended: bool = False, spec: bytes = b"s"
) -> None:
    """A record on the owner's disk; on others only if ``copied``."""
    entries = [e.body() for e in new_job(job, spec=spec).entries]
    if ended:
        entries.append(outcome(1, "completed", "owner", job=job, result=result).body())
    await owner.table.extend([(job, entries)], wanted=None if copied else 0)
    if not copied:
        owner.replicator.drop([job])
        for h in owner.holders.values():
            h.records.pop(job, None)


def asked(owner: Owner) -> int:
    return sum(sum(h.requests) for h in owner.holders.values())


async def test_everything_that_others_lack_goes_to_them(autojump_clock: MockClock) -> None:
    async with an_owner() as owner:
        for i in range(300):
            await keep(owner, f"j{i}", ended=i % 2 == 0)
        assert await owner.replicator.hand_over(30.0) == 0
        for i in range(300):
            held = owner.copies(f"j{i}")
            assert len(held) == 1
            assert set(owner.replicator.responsible(f"j{i}")) == held


async def test_what_others_have_is_not_sent_again(autojump_clock: MockClock) -> None:
    async with an_owner() as owner:
        for i in range(20):
            await keep(owner, f"j{i}", copied=True)
        before = asked(owner)
        assert await owner.replicator.hand_over(30.0) == 0
        owner.replicator.drop([f"j{i}" for i in range(20)])  # as after a restart: nothing is known of the copies
        assert await owner.replicator.hand_over(30.0) == 0
        assert asked(owner) == before


async def test_a_copy_that_lags_behind_gets_the_rest(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        await keep(owner, "j", ended=True)
        owner.holders["a"].records["j"] = {e.id: e for e in new_job("j").entries}
        assert await owner.replicator.hand_over(30.0) == 0
        assert owner.holders["a"].has("j", owner.table.record("j").entries())


async def test_the_owner_of_a_record_is_not_the_only_other_one(autojump_clock: MockClock) -> None:
    """This node keeps a copy; its owner has the record, and one more shall have it."""
    async with an_owner("ab") as owner:
        for i in range(10):
            entries = (core(f"j{i}"), claim(3, "a", job=f"j{i}"))
            await owner.table.merge(f"j{i}", entries)
            owner.holders["a"].records[f"j{i}"] = {e.id: e for e in entries}
        assert await owner.replicator.hand_over(30.0) == 0
        assert len(owner.holders["b"].records) == 10


async def test_nodes_that_fail_are_replaced(autojump_clock: MockClock) -> None:
    async with an_owner() as owner:
        for i in range(60):
            await keep(owner, f"j{i}")
        owner.holders["a"].full = True
        owner.hub.cut("owner", "b")
        assert await owner.replicator.hand_over(30.0) == 0
        assert len(owner.holders["c"].records) == 60


async def test_a_node_that_is_busy_is_asked_again(autojump_clock: MockClock) -> None:
    """The only other one answers after eight seconds what it is asked; a request waits five."""
    async with an_owner("a") as owner:
        for i in range(10):
            await keep(owner, f"j{i}")
        busy = owner.holders["a"]
        busy.sync = 60.0
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def catch_its_breath() -> None:
                await trio.sleep(8.0)
                busy.sync = 0.0

            assert await owner.replicator.hand_over(30.0) == 0
        assert len(busy.records) == 10


async def test_a_node_that_never_answers_is_given_up(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        await keep(owner, "j")
        owner.hub.cut("owner", "a")
        since = trio.current_time()
        assert await owner.replicator.hand_over(300.0) == 1
        assert trio.current_time() - since < 30


async def test_there_is_time_for_others_when_one_does_not_answer(autojump_clock: MockClock) -> None:
    async with an_owner("abc") as owner:
        for i in range(100):
            await keep(owner, f"j{i}", ended=True)
        owner.hub.pause("a")
        assert await owner.replicator.hand_over(3.0) == 0


@pytest.mark.parametrize("patience", [1.0, 30.0])
async def test_what_nobody_takes_is_counted_in_time(autojump_clock: MockClock, patience: float) -> None:
    async with an_owner("ab") as owner:
        for i in range(10):
            await keep(owner, f"j{i}")
        for h in owner.holders.values():
            h.full = True
            h.sync = 2.0
        since = trio.current_time()
        assert await owner.replicator.hand_over(patience) == 10
        assert trio.current_time() - since <= patience


async def test_nobody_there_now(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        await keep(owner, "j")
        owner.registry.set("a", "dead")
        assert await owner.replicator.hand_over(30.0) == 1


async def test_a_swarm_of_one_leaves_nobody(autojump_clock: MockClock) -> None:
    async with an_owner("") as owner:
        await keep(owner, "j")
        assert await owner.replicator.hand_over(30.0) == 0


async def test_blocks_go_along(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        inputs = await owner.store.add_bytes(b"inputs" * 1000)
        tensor = await owner.store.add_bytes(b"outputs" * 1000)
        spec = codec.encode({"client_data": {"x": {"dtype": "", "shape": [], "cid": inputs}}})
        result = codec.encode({"outputs": {"y": {"dtype": "", "shape": [], "raw": None, "cid": tensor}}})
        await keep(owner, "j", ended=True, spec=spec, result=result)
        assert await owner.replicator.hand_over(30.0) == 0
        assert owner.holders["a"].blocks == {inputs, tensor}


async def test_a_node_that_is_slow_to_fetch_blocks_ends_no_leave(autojump_clock: MockClock) -> None:
    async with an_owner("ab") as owner:
        for n in range(10):
            inputs = await owner.store.add_bytes(b"inputs %d" % n * 1000)
            await keep(owner, f"j{n}", ended=True, spec=codec.encode({"client_data": {"x": {"dtype": "", "shape": [], "cid": inputs}}}))
        owner.holders["a"].block_delay = 60.0
        assert await owner.replicator.hand_over(5.0) == 0
        assert len(owner.holders["b"].blocks) == 10


async def test_a_record_without_its_blocks_is_not_handed_over(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        inputs = await owner.store.add_bytes(b"inputs" * 1000)
        await keep(owner, "j", ended=True, spec=codec.encode({"client_data": {"x": {"dtype": "", "shape": [], "cid": inputs}}}))
        owner.holders["a"].no_blocks = True
        assert await owner.replicator.hand_over(30.0) == 1


async def test_finished_ones_may_go_first_and_are_not_looked_at_again(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        for i in range(20):
            await keep(owner, f"j{i}", ended=i % 2 == 0)
        assert await owner.replicator.hand_over(30.0, only_finished=True) == 0
        finished = {f"j{i}" for i in range(0, 20, 2)}
        assert set(owner.holders["a"].compared) == finished <= set(owner.holders["a"].records)
        assert await owner.replicator.hand_over(30.0) == 0
        assert set(owner.holders["a"].records) == {f"j{i}" for i in range(20)}
        assert finished.isdisjoint(owner.holders["a"].compared[len(finished) :])


async def test_who_was_given_up_early_is_asked_again_at_the_end(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        await keep(owner, "j", ended=True)
        owner.hub.cut("owner", "a")
        assert await owner.replicator.hand_over(300.0, only_finished=True) == 1
        owner.hub.heal()
        assert await owner.replicator.hand_over(30.0) == 0


async def test_what_changed_since_is_sent_once_more(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        await keep(owner, "j")
        assert await owner.replicator.hand_over(30.0) == 0
        await keep(owner, "j", ended=True)
        assert await owner.replicator.hand_over(30.0) == 0
        assert owner.holders["a"].has("j", owner.table.record("j").entries())


async def test_nodes_that_are_silent_for_a_moment_are_waited_for(autojump_clock: MockClock) -> None:
    """Suspected of being dead, they are not chosen for copies, but they may recover."""
    async with an_owner("a") as owner:
        await keep(owner, "j")
        owner.registry.set("a", "suspect")
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def recover() -> None:
                await trio.sleep(5.0)
                owner.registry.set("a", "alive")

            assert await owner.replicator.hand_over(30.0) == 0
        assert trio.current_time() < 10


async def test_records_of_former_owners_are_taken_all_the_same(autojump_clock: MockClock) -> None:
    """Nothing is decided by a hand-over, so nothing of it is fenced."""
    async with an_owner("a") as owner:
        await keep(owner, "j")
        rival = claim(9, "rival", job="j")
        owner.holders["a"].records["j"] = {e.id: e for e in (core("j"), rival)}
        owner.holders["a"].fences["j"] = (Ballot(9, "rival", "b"), ())
        assert await owner.replicator.hand_over(30.0) == 0
        assert owner.holders["a"].has("j", [*new_job("j").entries, rival])
