"""One contract for both journals, then what is the twin's own; what is SQLite's own: `test_sqlite_journal`."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from dimnode.core.job_record import Record
from dimnode.core.job_view import view
from dimnode.domain.record import Ballot, SignedEntry
from dimnode.errors import InvalidArgument, ResourceExhausted, Unavailable
from dimnode.ports import Journal
from dimnode.state.journal import open_journal
from dimnode.state.memory_journal import MemoryJournal
from tests.support import entries as e


class Wall:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture(params=["sqlite", "memory"])
async def journal(request: pytest.FixtureRequest, tmp_path: Path, wall: Wall) -> AsyncIterator[Journal]:
    if request.param == "memory":
        yield MemoryJournal(wall=wall)
    else:
        async with open_journal(tmp_path / "journal.db", wall=wall) as opened:
            yield opened


# --- the contract --------------------------------------------------------------------------------


async def test_entries_come_back_in_order_of_arrival(journal: Journal) -> None:
    await journal.append([e.core(), e.claim(1)])
    await journal.append([e.attempt(1)])
    assert await journal.load(e.JOB) == (e.core(), e.claim(1), e.attempt(1))
    assert await journal.load("job-unknown") == ()


async def test_known_entries_are_ignored(journal: Journal) -> None:
    await journal.append([e.core(), e.core()])
    await journal.append([e.core()])
    await journal.append([])
    assert await journal.load(e.JOB) == (e.core(),)


async def test_unknown_kinds_are_kept(journal: Journal) -> None:
    novelty = e.raw(type="novelty", job=e.JOB, x=1)
    await journal.append([novelty])
    assert await journal.load(e.JOB) == (novelty,)


@pytest.mark.parametrize("payload", [b"", b"\xff", b"\xa0"])
async def test_what_is_no_entry_is_refused_and_nothing_of_the_call_is_stored(journal: Journal, payload: bytes) -> None:
    with pytest.raises(InvalidArgument):
        await journal.append([e.core(), SignedEntry(payload, "p", b"")])
    assert await journal.load(e.JOB) == ()


async def test_unfinished_and_recent(journal: Journal) -> None:
    for name in ("job-1", "job-2", "job-3"):
        await journal.append([e.core(name)])
    await journal.append([e.claim(1, job="job-4"), e.outcome(1, "failed", job="job-2")])
    assert await journal.unfinished() == ("job-1", "job-3")
    assert await journal.recent(3) == ("job-3", "job-2", "job-1")
    await journal.append([e.core("job-4")])
    assert await journal.unfinished() == ("job-1", "job-3", "job-4")
    assert await journal.recent(3) == ("job-4", "job-3", "job-2")


async def test_discarded_entries_are_gone(journal: Journal) -> None:
    await journal.append([e.core(), e.claim(1), e.attempt(1)])
    await journal.discard(e.JOB, [e.attempt(1).id, "unknown"])
    await journal.discard(e.JOB, [])
    assert await journal.load(e.JOB) == (e.core(), e.claim(1))
    assert (await journal.digests("", 9))[0].digest == Record(e.JOB, [e.core(), e.claim(1)]).digest
    await journal.discard(e.JOB, [e.core().id, e.claim(1).id])
    assert (await journal.load(e.JOB), await journal.unfinished(), await journal.recent(9), await journal.digests("", 9)) == (
        (),
        (),
        (),
        (),
    )
    await journal.append([e.core()])
    assert await journal.unfinished() == (e.JOB,)


async def test_a_failure_that_a_later_claim_undid_is_unfinished(journal: Journal) -> None:
    await journal.append([e.core(), e.claim(1), e.outcome(1, "failed")])
    assert await journal.unfinished() == ()
    await journal.append([e.claim(2, "q")])
    assert await journal.unfinished() == (e.JOB,)
    await journal.append([e.outcome(2, "expired", "p")])
    assert await journal.unfinished() == (e.JOB,), "below the claim of q"
    await journal.append([e.outcome(2, "expired", "q")])
    assert await journal.unfinished() == ()
    await journal.append([e.outcome(1, "cancelled"), e.claim(9)])
    assert await journal.unfinished() == ()


POOL = [
    e.core(),
    e.core(submitted=7.0),
    *(e.claim(n, peer) for n in (1, 2) for peer in "pq"),
    e.plan(1, x=1),
    e.assign(1),
    *(e.attempt(n, number=n) for n in (1, 2)),
    *(e.outcome(n, s) for n in (1, 2) for s in ("completed", "failed", "expired", "cancelled")),
    *(e.outcome(n, "deleted") for n in (1, 2)),
    e.status(1, "running"),
    e.raw(type="novelty", job=e.JOB, x=1),
]


async def test_it_holds_what_a_record_of_the_same_entries_holds(journal: Journal) -> None:
    """In any order and in any groups: entries, digest, whether it is finished."""
    rng = random.Random(3)
    for _ in range(60):
        chosen = rng.sample(POOL, rng.randint(1, 9))
        cut = rng.randint(0, len(chosen))
        for part in (chosen[:cut], chosen[cut:], rng.sample(chosen, 1)):
            await journal.append(part)
        want = Record(e.JOB, chosen)
        assert Record(e.JOB, await journal.load(e.JOB)) == want
        assert {x.id for x in await journal.load(e.JOB)} == want.ids(), "nothing that compaction would drop is stored"
        listed = (*await journal.digests("", 9), *await journal.digests("", 9, parts=True))
        assert [(d.job, d.digest, d.finished) for d in listed] == [(e.JOB, want.digest, view(want).terminal)]
        await journal.forget([e.JOB])


async def test_digests_come_in_order_and_in_bounded_portions(journal: Journal, wall: Wall) -> None:
    for name in ("job-3", "job-1", "job-2"):
        await journal.append([e.core(name)])
    await journal.append([e.claim(1, job="job-part"), e.outcome(1, "deleted", job="job-0")])
    wall.now = 105.0
    await journal.append([e.claim(1, job="job-2"), e.core("job-1")])
    first = await journal.digests("", 3)
    assert [(d.job, d.finished, d.at) for d in first] == [("job-0", True, 100.0), ("job-1", False, 100.0), ("job-2", False, 105.0)]
    assert first[2].digest == Record("job-2", [e.claim(1, job="job-2"), e.core("job-2")]).digest
    assert [d.job for d in await journal.digests("job-2", 3)] == ["job-3"]
    assert [d.job for d in await journal.digests("", 3, parts=True)] == ["job-part"]
    assert await journal.digests_of(["job-2", "job-0", "job-part", "job-unknown"]) == {"job-0": first[0], "job-2": first[2]}
    assert await journal.digests_of([]) == {}
    await journal.append([e.claim(2, "q", job="job-2")])
    assert [(d.job, d.owner) for d in await journal.digests("job-0", 9)] == [("job-1", ""), ("job-2", "q"), ("job-3", "")]
    await journal.append([e.outcome(2, "deleted", "q", job="job-2")])
    assert (await journal.digests_of(["job-2"]))["job-2"].owner == ""


async def test_many_are_loaded_at_once(journal: Journal) -> None:
    await journal.append([e.core("job-1"), e.core("job-2"), e.claim(1, job="job-2")])
    assert await journal.load_many(["job-2", "job-unknown"]) == {"job-2": (e.core("job-2"), e.claim(1, job="job-2"))}
    assert await journal.load_many([]) == {}


async def test_what_is_forgotten_is_unknown(journal: Journal) -> None:
    await journal.append([e.core("job-1"), e.core("job-2"), e.outcome(1, "failed", job="job-1")])
    await journal.raise_ballot("job-1", e.ballot(9))
    await journal.forget(["job-1", "job-unknown"])
    await journal.forget([])
    assert [d.job for d in await journal.digests("", 9)] == ["job-2"]
    assert (await journal.load("job-1"), await journal.recent(9)) == ((), ("job-2",))
    assert await journal.raise_ballot("job-1", e.ballot(1)) == e.ballot(1)
    await journal.append([e.core("job-1")])
    assert await journal.unfinished() == ("job-2", "job-1")


async def test_a_claim_fences_what_is_decided_below_it(journal: Journal) -> None:
    other = e.core("job-b")
    assert await journal.append([e.core(), e.claim(2, "q")], under={e.JOB: e.ballot(2, "q")}) == {}
    fenced = await journal.append([e.assign(1), other], under={e.JOB: e.ballot(1), "job-b": e.ballot(1)})
    assert fenced == {e.JOB: e.ballot(2, "q")}
    assert await journal.load(e.JOB) == (e.core(), e.claim(2, "q"))
    assert await journal.load("job-b") == (other,), "one fenced job does not spoil the others"
    assert await journal.append([e.assign(1)]) == {}, "merging takes everything"
    assert await journal.append([], under={e.JOB: e.ballot(2, "p")}) == {e.JOB: e.ballot(2, "q")}, "also if there is nothing to store"


async def test_a_job_is_accepted_once(journal: Journal) -> None:
    """Whoever comes first: also a lower claim of somebody else fences what is just being accepted."""
    first, second = e.claim(1, "a"), e.claim(1, "b")
    assert await journal.append([e.core(), first], under={e.JOB: e.ballot(1, "a")}, fresh=[e.JOB]) == {}
    assert await journal.append([e.core(), second], under={e.JOB: e.ballot(1, "b")}, fresh=[e.JOB]) == {e.JOB: e.ballot(1, "a")}
    assert await journal.append([e.core(), first], under={e.JOB: e.ballot(1, "a")}, fresh=[e.JOB]) == {}, "said again"
    assert await journal.load(e.JOB) == (e.core(), first)


async def test_claims_and_raised_ballots_are_one_fence(journal: Journal) -> None:
    await journal.raise_ballot(e.JOB, e.ballot(3))
    assert await journal.append([e.core()], under={e.JOB: e.ballot(2)}) == {e.JOB: e.ballot(3)}
    await journal.append([e.claim(5), e.claim(4)])
    assert await journal.raise_ballot(e.JOB, e.ballot(4)) == e.ballot(5)
    assert await journal.append([e.core()], under={e.JOB: e.ballot(4)}) == {e.JOB: e.ballot(5)}
    with trio.CancelScope() as scope:
        scope.cancel()
        await journal.append([e.claim(7)])
    await journal.append([e.claim(6)])
    assert await journal.raise_ballot(e.JOB, e.ballot(6)) in (e.ballot(6), e.ballot(7))
    fence = await journal.raise_ballot(e.JOB, e.ballot(1))
    assert await journal.append([], under={e.JOB: e.ballot(1)}) == {e.JOB: fence}, "what is remembered is what is on disk"


async def test_small_values(journal: Journal) -> None:
    assert await journal.get("election.n") is None
    await journal.put("election.n", b"1")
    await journal.put("election.n", b"2")
    assert await journal.get("election.n") == b"2"


async def test_ballots_only_rise(journal: Journal) -> None:
    assert await journal.raise_ballot("job", Ballot(2, "p", "b")) == Ballot(2, "p", "b")
    assert await journal.raise_ballot("job", Ballot(1, "z", "z")) == Ballot(2, "p", "b")
    assert await journal.raise_ballot("job", Ballot(2, "q", "a")) == Ballot(2, "q", "a")
    assert await journal.raise_ballot("other", Ballot(1, "p", "b")) == Ballot(1, "p", "b")


async def test_many_at_once_and_some_cancelled(journal: Journal) -> None:
    acknowledged: list[str] = []

    async def one(i: int) -> None:
        await journal.append([e.core(f"job-{i}")])
        acknowledged.append(f"job-{i}")

    async with trio.open_nursery() as nursery:
        for i in range(60):
            nursery.start_soon(one, i)
        await trio.lowlevel.checkpoint()
        if len(acknowledged) < 60:
            nursery.cancel_scope.deadline = trio.current_time() + 0.003
    await journal.append([e.core("job-last")])
    assert set(acknowledged) <= set(await journal.recent(1000))


async def test_after_closing_calls_are_refused(journal: Journal) -> None:
    await journal.append([e.core()])
    await journal.aclose()
    for call in (journal.append([e.claim(1)]), journal.load(e.JOB), journal.put("k", b"")):
        with pytest.raises(Unavailable):
            await call


# --- the twin ------------------------------------------------------------------------------------


async def test_a_crash_loses_exactly_what_was_not_acknowledged(autojump_clock: trio.testing.MockClock) -> None:
    journal = MemoryJournal(sync=0.01)
    await journal.append([e.core()])
    failed: list[bool] = []

    async def late() -> None:
        try:
            await journal.append([e.claim(1)])
        except Unavailable:
            failed.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(late)
        await trio.sleep(0.005)
        after = journal.crash()
    assert failed == [True]
    assert await after.load(e.JOB) == (e.core(),)


async def test_writes_become_durable_in_order_also_when_the_disk_gets_faster(autojump_clock: trio.testing.MockClock) -> None:
    journal = MemoryJournal(sync=1.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.put, "k", b"first")
        await trio.sleep(0.1)
        journal.sync = 0.0
        nursery.start_soon(journal.put, "k", b"second")
        await trio.sleep(0.1)
        assert await journal.get("k") is None
    assert await journal.get("k") == b"second"


async def test_a_cancelled_write_is_not_half_there(autojump_clock: trio.testing.MockClock) -> None:
    journal = MemoryJournal(sync=1.0)
    with trio.move_on_after(0.5):
        await journal.append([e.core(), e.claim(1)])
    assert await journal.load(e.JOB) == ()
    await journal.put("k", b"")
    assert len(await journal.load(e.JOB)) == 2


async def test_the_twins_disk_can_be_full() -> None:
    journal = MemoryJournal()
    journal.disk.full = True
    with pytest.raises(ResourceExhausted):
        await journal.append([e.core()])
    assert await journal.load(e.JOB) == ()
    journal.disk.full = False
    await journal.append([e.core()])
    assert await journal.load(e.JOB) == (e.core(),)
