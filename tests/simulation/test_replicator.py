"""Copies of an owner's records, on virtual time: what a writer waits for, and what happens when nodes fail."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from dimnode.domain.record import Ballot, Claim, OutcomeEntry, StatusEntry
from dimnode.ports import Written
from dimnode.records.links import LinkSettings
from dimnode.records.replicator import ReplicatorSettings
from tests.support.copies import Owner, an_owner, new_job
from tests.support.entries import claim, outcome, signed

TWO = ReplicatorSettings(replicas=2)


def status(job: str, elapsed: float) -> Written:
    ballot = Ballot(1, "owner", "b")
    return Written(job, (signed(StatusEntry(job=job, ballot=ballot, status="running", at=1.0, elapsed=elapsed)),))


async def holder_of(owner: Owner, job: str) -> str:
    (copied,) = await owner.replicator.write([new_job(job)])
    assert copied.others == 1
    (peer,) = owner.copies(job)
    return peer


def seconds(since: float) -> float:
    return trio.current_time() - since


async def test_a_job_is_where_it_is_said_to_be(autojump_clock: MockClock) -> None:
    async with an_owner(settings=TWO) as owner:
        jobs = [new_job(f"j{i}") for i in range(20)]
        copied = await owner.replicator.write(jobs)
        assert [c.others for c in copied] == [2] * 20
        assert all(len(owner.copies(w.job, w.entries)) == 2 for w in jobs)
        assert {p for w in jobs for p in owner.copies(w.job)} == {"a", "b", "c"}
        assert owner.replicator.others("j3") == 2
        assert set(owner.replicator.responsible("j3")) == owner.copies("j3")


async def test_only_what_is_new_is_sent_later_and_arrives_in_order(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        await owner.replicator.write([new_job("j")])
        async with trio.open_nursery() as nursery:
            for i in range(10):
                nursery.start_soon(owner.replicator.write, [status("j", float(i))])
        assert owner.holders["a"].entries == 12
        (copied,) = await owner.replicator.write([status("j", 99.0)])
        assert copied.others == 1
        assert len(owner.holders["a"].records["j"]) == 13


async def test_many_writers_share_requests(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        async with trio.open_nursery() as nursery:
            for i in range(1000):
                nursery.start_soon(owner.replicator.write, [new_job(f"j{i}")])
        requests = owner.holders["a"].requests
        assert sum(requests) == 1000
        assert max(requests) == 256
        assert len(requests) < 10


async def test_alone_nobody_waits(autojump_clock: MockClock) -> None:
    async with an_owner("") as owner:
        since = trio.current_time()
        assert [c.others for c in await owner.replicator.write([new_job("j"), new_job("k")])] == [0, 0]
        assert seconds(since) == 0


async def test_a_node_that_comes_later_gets_the_jobs_that_have_too_few_copies(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        owner.registry.set("a", "dead")
        await trio.sleep(1)
        jobs = [new_job(f"j{i}") for i in range(1000)]
        for w in jobs:
            await owner.table.extend([(w.job, [e.body() for e in w.entries])])
        assert not owner.holders["a"].records
        owner.registry.set("a")
        await trio.sleep(2)
        assert len(owner.holders["a"].records) == 1000
        assert all(owner.replicator.others(w.job) == 1 for w in jobs)


async def test_a_killed_holder_costs_its_writers_no_copy(autojump_clock: MockClock) -> None:
    async with an_owner() as owner:
        peer = await holder_of(owner, "j")
        owner.holders[peer].sync = 0.3
        since = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def write() -> None:
                (copied,) = await owner.replicator.write([status("j", 1.0)])
                assert copied.others == 1
                assert seconds(since) < 0.5

            nursery.start_soon(write)
            await trio.sleep(0.1)
            owner.kill(peer)
        assert owner.copies("j", [*new_job("j").entries, *status("j", 1.0).entries]) - {peer}


async def test_a_frozen_holder_costs_each_writer_little_and_later_ones_nothing(autojump_clock: MockClock) -> None:
    async with an_owner() as owner:
        peer = await holder_of(owner, "j")
        owner.hub.cut("owner", peer)
        since = trio.current_time()
        (copied,) = await owner.replicator.write([status("j", 1.0)])
        assert copied.others == 1
        assert 0.5 < seconds(since) < 1.0
        since = trio.current_time()
        copied = await owner.replicator.write([new_job(f"k{i}") for i in range(50)])
        assert {c.others for c in copied} == {1}
        assert seconds(since) < 0.1
        assert peer not in {p for i in range(50) for p in owner.copies(f"k{i}")}


async def test_the_only_other_node_freezes_and_comes_back(autojump_clock: MockClock) -> None:
    """The writer's patience ends; the node gets everything when it is there again."""
    async with an_owner("a") as owner:
        await owner.table.extend([("j", [e.body() for e in new_job("j").entries])])
        owner.hub.cut("owner", "a")
        since = trio.current_time()
        assert await owner.table.extend([("j", [status("j", 1.0).entries[0].body()])]) == [1]
        assert seconds(since) == 2.0
        await trio.sleep(10)
        since = trio.current_time()
        await owner.table.extend([("j", [status("j", 2.0).entries[0].body()])])
        assert seconds(since) < 0.1, "it is known to be down"
        owner.hub.heal()
        await trio.sleep(20)
        assert owner.holders["a"].has("j", owner.table.record("j").entries())
        assert owner.replicator.others("j") == 1


async def test_jobs_of_a_dead_holder_get_new_copies(autojump_clock: MockClock) -> None:
    async with an_owner() as owner:
        jobs = [new_job(f"j{i}") for i in range(30)]
        for w in jobs:
            await owner.table.extend([(w.job, [e.body() for e in w.entries])])
        owner.kill("a")
        owner.registry.set("a", "dead")
        await trio.sleep(1)
        assert all(owner.copies(w.job) & {"b", "c"} for w in jobs)
        owner.registry.set("b", leaving=True)
        await trio.sleep(1)
        assert all("c" in owner.copies(w.job) for w in jobs)


async def test_a_silent_holder_is_replaced_after_a_while_a_short_silence_moves_nothing(autojump_clock: MockClock) -> None:
    async with an_owner() as owner:
        first = await holder_of(owner, "j")
        await owner.table.extend([("k", [e.body() for e in new_job("k").entries])])
        for peer in "abc":
            if peer != first:
                owner.hub.crash(peer)
        # Nobody but the first is there; the others' links are noticed to be down by a write that wants three copies.
        await owner.replicator.write([new_job("l")], wanted=3)
        for peer in "abc":
            if peer != first:
                owner.revive(peer)
        await trio.sleep(20)
        assert owner.replicator.statistics()["nodes_down"] == 0
        assert len(owner.copies("l")) == 3, "repaired"
        assert owner.copies("j") == {first}, "it had no cause to move"


async def test_a_full_disk_and_a_refusal_send_the_job_elsewhere(autojump_clock: MockClock) -> None:
    async with an_owner("ab") as owner:
        owner.holders["a"].full = True
        since = trio.current_time()
        copied = await owner.replicator.write([new_job(f"j{i}") for i in range(20)])
        assert {c.others for c in copied} == {1}
        assert set(owner.holders["b"].records) == {f"j{i}" for i in range(20)}
        owner.holders["b"].refuses = {"k"}
        owner.holders["a"].full = False
        await trio.sleep(6)  # the pause of a full node
        (copied,) = await owner.replicator.write([new_job("k")])
        assert (copied.others, owner.copies("k")) == (1, {"a"})
        assert seconds(since) < 7


async def test_nobody_takes_it(autojump_clock: MockClock) -> None:
    async with an_owner("ab") as owner:
        for h in owner.holders.values():
            h.full = True
        since = trio.current_time()
        (copied,) = await owner.replicator.write([new_job("j")])
        assert (copied.others, seconds(since) < 0.1) == (0, True)
        for h in owner.holders.values():
            h.full = False
        await owner.table.extend([("j", [e.body() for e in new_job("j").entries])])
        await trio.sleep(12)
        assert owner.copies("j")


async def test_a_wiped_holder_gets_the_whole_record(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        await owner.table.extend([("j", [e.body() for e in new_job("j").entries])])
        owner.holders["a"].records.clear()
        assert await owner.table.extend([("j", [status("j", 1.0).entries[0].body()])]) == [2]
        assert owner.holders["a"].has("j", owner.table.record("j").entries())


async def test_a_fence_reaches_every_writer_of_the_job_and_no_other(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        await owner.replicator.write([new_job("j"), new_job("k")])
        rival = claim(5, "rival", job="j")
        owner.holders["a"].fences["j"] = (Ballot(5, "rival", "b"), (rival,))
        got: dict[str, object] = {}

        async def write(name: str, w: Written) -> None:
            got[name] = (await owner.replicator.write([w, status("k", len(got) + 10.0)]))[0]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, "one", status("j", 1.0))
            nursery.start_soon(write, "two", status("j", 2.0))
        for copied in got.values():
            assert copied.fenced == Ballot(5, "rival", "b")
            assert copied.entries == [rival]
        assert owner.replicator.others("j") == 0
        assert owner.replicator.others("k") == 1
        sent = owner.holders["a"].requests.copy()
        await trio.sleep(60)
        assert owner.holders["a"].requests == sent, "a fenced job is left alone"


async def test_a_job_that_another_seat_accepted_first_is_fenced_by_a_lower_claim_too(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        rival = claim(1, "another", job="j")
        owner.holders["a"].fences["j"] = (Ballot(1, "another", "b"), (rival,))
        (copied,) = await owner.replicator.write([new_job("j")])
        assert copied.fenced == Ballot(1, "another", "b")
        owner.holders["a"].fences.clear()
        assert owner.holders["a"].new == {"j"}
        await owner.replicator.write([new_job("k")])
        await owner.replicator.write([status("k", 1.0)])
        owner.holders["a"].fences["k"] = (Ballot(1, "another", "b"), (rival,))
        (copied,) = await owner.replicator.write([status("k", 2.0)])
        assert copied.fenced is None, "an owner is fenced by higher claims only"


async def test_a_fence_that_there_cannot_be_stops_nobody(autojump_clock: MockClock) -> None:
    async with an_owner("ab") as owner:
        for h in owner.holders.values():
            h.fences["j"] = (Ballot(1 << 40, "liar", "b"), ())
        (copied,) = await owner.replicator.write([new_job("j")])
        assert (copied.fenced, copied.others) == (None, 0)
        sent = sum(len(h.requests) for h in owner.holders.values())
        await trio.sleep(50)
        assert sum(len(h.requests) for h in owner.holders.values()) <= sent + 4, "it is not asked again and again"


async def test_a_fence_that_proves_nothing_stops_nobody(autojump_clock: MockClock) -> None:
    async with an_owner("ab") as owner:
        ballot = Ballot(1, "owner", "b")
        forged = claim(9, "rival", job="j")
        forged = type(forged)(forged.payload, forged.author, b"x" * 32)
        for h in owner.holders.values():
            h.fences["j"] = (ballot, (forged,))
        (copied,) = await owner.replicator.write([new_job("j")])
        assert (copied.fenced, copied.others) == (None, 0)
        for h in owner.holders.values():
            h.fences.clear()
        await trio.sleep(1)
        assert owner.copies("j")


async def test_a_fence_that_nobody_waits_for_gets_into_the_record(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        await owner.table.extend([("j", [e.body() for e in new_job("j").entries])])
        rival = claim(5, "rival", job="j")
        owner.holders["a"].fences["j"] = (Ballot(5, "rival", "b"), (rival,))
        await owner.table.extend([("j", [status("j", 1.0).entries[0].body()])], wanted=0)
        await trio.sleep(1)
        owner_now = owner.table.view("j").owner
        assert owner_now == Ballot(5, "rival", "b")


async def test_an_owner_hears_that_the_job_was_cancelled_elsewhere_and_believes_no_forgery(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        await owner.table.extend([("j", [e.body() for e in new_job("j").entries])])
        cancelled = outcome(1, "cancelled", "rival", job="j")
        forged = type(cancelled)(cancelled.payload, cancelled.author, b"x" * 32)
        for told, ends in ((forged, False), (outcome(1, "cancelled", "rival", job="k"), False), (cancelled, True)):
            owner.holders["a"].ends["j"] = told
            await owner.table.extend([("j", [status("j", 1.0).entries[0].body()])], wanted=0)
            await trio.sleep(1)
            assert owner.table.view("j").terminal == ends


async def test_who_claims_the_job_again_writes_again(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        await owner.table.extend([("j", [e.body() for e in new_job("j").entries])])
        owner.replicator.drop(["j"])
        mine = Claim(job="j", ballot=Ballot(7, "owner", "b"))
        assert await owner.table.extend([("j", [mine])], copies_first=True) == [2]
        assert owner.holders["a"].has("j", owner.table.record("j").entries())


async def test_blocks_are_waited_for_longer_and_counted(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        owner.holders["a"].block_delay = 5.0
        since = trio.current_time()
        copied = await owner.replicator.write([new_job("j", ["x", "y"]), new_job("k")])
        assert [c.others for c in copied] == [1, 1]
        assert 5.0 < seconds(since) < 5.1
        assert owner.holders["a"].blocks == {"x", "y"}
        owner.holders["a"].block_delay = 25.0
        since = trio.current_time()
        (copied,) = await owner.replicator.write([new_job("l", ["z"])])
        assert (copied.others, seconds(since)) == (0, 10.0)
        (copied,) = await owner.replicator.write([status("l", 1.0)])
        assert (copied.others, seconds(since) < 10.1) == (1, True), "decisions do not wait for the inputs again"
        await trio.sleep(20)
        assert "z" in owner.holders["a"].blocks


async def test_more_blocks_than_one_request_may_name_go_in_several(autojump_clock: MockClock) -> None:
    async with an_owner("a", ReplicatorSettings(links=LinkSettings(max_blocks=2))) as owner:
        owner.holders["a"].max_blocks = 2
        (copied,) = await owner.replicator.write([new_job("j", "vwxyz")])
        assert (copied.others, owner.holders["a"].blocks) == (1, set("vwxyz"))


async def test_blocks_alone_go_to_who_has_the_record_and_its_end_does_not_wait_for_them_again(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        await owner.table.extend([("j", [e.body() for e in new_job("j").entries])])
        sent = owner.holders["a"].entries
        owner.holders["a"].block_delay = 5.0
        since = trio.current_time()
        assert await owner.table.append("j", blocks=["x"]) == 2
        assert 5.0 < seconds(since) < 5.1
        assert owner.holders["a"].blocks == {"x"}
        assert owner.holders["a"].entries == sent
        owner.holders["a"].block_delay = 25.0
        with trio.move_on_after(1.0) as stop:
            await owner.table.append("j", blocks=["y"])
        assert stop.cancelled_caught
        since = trio.current_time()
        end = outcome(1, "completed", "owner", job="j").body()
        assert isinstance(end, OutcomeEntry)
        assert (await owner.table.conclude("j", end)).terminal
        assert seconds(since) < 0.1
        assert owner.holders["a"].has("j", owner.table.record("j").entries())


async def test_blocks_of_a_record_that_nobody_was_sent_yet_go_with_it(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        await owner.table.merge("j", new_job("j").entries)
        assert await owner.table.append("j", blocks=["x"]) == 2
        assert owner.holders["a"].has("j", owner.table.record("j").entries())
        assert owner.holders["a"].blocks == {"x"}


async def test_who_cannot_get_the_blocks_is_no_copy(autojump_clock: MockClock) -> None:
    async with an_owner() as owner:
        peer = (await holder_of(owner, "j"),)[0]
        owner.holders[peer].no_blocks = True
        (copied,) = await owner.replicator.write([Written("j", status("j", 1.0).entries, blocks=["x"])])
        assert copied.others == 1
        other = next(h for p, h in owner.holders.items() if "x" in h.blocks)
        assert other.peer != peer
        assert other.has("j", [*new_job("j").entries, *status("j", 1.0).entries])


async def test_wanted_none_some_and_more(autojump_clock: MockClock) -> None:
    async with an_owner() as owner:
        since = trio.current_time()
        assert [c.others for c in await owner.replicator.write([new_job("j")], wanted=0)] == [0]
        assert seconds(since) == 0
        await trio.sleep(0.1)
        assert len(owner.copies("j")) == 1
        (copied,) = await owner.replicator.write([new_job("k")], wanted=3)
        assert copied.others == 3
        (copied,) = await owner.replicator.write([new_job("l")], wanted=9)
        assert copied.others == 3
        assert seconds(since) < 0.2, "there are no more, so nobody waits for them"


async def test_a_cancelled_writer_loses_no_place(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        owner.holders["a"].sync = 1.0
        with trio.move_on_after(0.1):
            await owner.replicator.write([new_job("j"), new_job("k")])
        (copied,) = await owner.replicator.write([status("j", 1.0)])
        assert copied.others == 1
        assert owner.copies("j", [*new_job("j").entries, *status("j", 1.0).entries]) == owner.copies("k") == {"a"}
        assert owner.holders["a"].entries == 5, "nothing went twice"


async def test_queues_are_bounded_and_writers_wait(autojump_clock: MockClock) -> None:
    settings = ReplicatorSettings(links=LinkSettings(max_waiting=500))
    async with an_owner("ab", settings) as owner:
        for h in owner.holders.values():
            h.sync = 0.2
        jobs = [new_job(f"j{i}") for i in range(10_000)]
        copied = await owner.replicator.write(jobs)
        assert 1000 <= sum(c.others for c in copied) < 10_000, "some had to be left for later"
        assert all(owner.copies(w.job) for w, c in zip(jobs, copied, strict=True) if c.others)
        assert max(sum(h.requests) for h in owner.holders.values()) < 10_000
        await trio.sleep(30)
        assert all(owner.copies(w.job) for w in jobs)


async def test_a_large_record_goes_in_several_requests(autojump_clock: MockClock) -> None:
    settings = ReplicatorSettings(links=LinkSettings(max_bytes=10_000))
    async with an_owner("a", settings) as owner:
        big = new_job("j", spec=b"x" * 9_000)
        (copied,) = await owner.replicator.write([Written("j", (*big.entries, *(status("j", float(i)).entries[0] for i in range(200))))])
        assert copied.others == 1
        assert len(owner.holders["a"].records["j"]) == 202
        assert len(owner.holders["a"].requests) > 2


async def test_ended_jobs_are_forgotten_here_and_others_not(autojump_clock: MockClock) -> None:
    async with an_owner("a") as owner:
        for i in range(100):
            await owner.table.extend([(f"j{i}", [e.body() for e in new_job(f"j{i}").entries])])
        for i in range(99):
            end = outcome(1, "completed", "owner", job=f"j{i}").body()
            await owner.table.extend([(f"j{i}", [end])], copies_first=True)
        assert owner.replicator.statistics()["jobs"] == 100
        await trio.sleep(60)
        assert owner.replicator.statistics()["jobs"] == 1
        assert set(owner.replicator.responsible("j7")) == {"a"}
        assert all(len(r) == 3 for j, r in owner.holders["a"].records.items() if j != "j99")


async def test_custody(autojump_clock: MockClock) -> None:
    async with an_owner(settings=ReplicatorSettings(replicas=3, copies_on=frozenset({"b"}))) as owner:
        (copied,) = await owner.replicator.write([new_job("j")])
        assert (copied.others, owner.copies("j")) == (1, {"b"})


async def test_a_busy_holder_is_left_alone_for_a_moment(autojump_clock: MockClock) -> None:
    async with an_owner("ab") as owner:
        owner.holders["a"].busy = True
        copied = await owner.replicator.write([new_job(f"j{i}") for i in range(10)])
        assert {c.others for c in copied} == {1}
        owner.holders["a"].busy = False
        await trio.sleep(2)
        assert owner.replicator.statistics()["nodes_down"] == 0
