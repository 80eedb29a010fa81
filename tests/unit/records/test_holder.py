"""What a holder of copies promises to whoever sends it entries."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator

import pytest
from trio.testing import MockClock

from dimnode.core import job_record
from dimnode.core.job_record import Record
from dimnode.domain import codec
from dimnode.domain.ids import job_id
from dimnode.domain.record import Core, SignedEntry
from dimnode.records.holder import HolderSettings
from dimnode.records.messages import (
    BLOCKS,
    COMPARE,
    FETCH,
    STORE,
    BlocksAnswer,
    BlocksRequest,
    CompareAnswer,
    CompareItem,
    CompareRequest,
    FetchAnswer,
    FetchRequest,
    JobEntries,
    StoreAnswer,
    StoreRequest,
)
from p2p.api import RemoteFault
from tests.support import entries as e
from tests.support.record_nodes import RecordNode, RecordSwarm, record_swarm


@pytest.fixture
async def swarm(autojump_clock: MockClock) -> AsyncIterator[RecordSwarm]:
    async with record_swarm(["p", "q", "holder"]) as made:
        yield made


@pytest.fixture
def owner(swarm: RecordSwarm) -> RecordNode:
    return swarm.nodes["p"]


@pytest.fixture
def holder(swarm: RecordSwarm) -> RecordNode:
    return swarm.nodes["holder"]


START = (e.core(), e.claim(1))

# --- storing -------------------------------------------------------------------------------------


async def test_what_is_stored_is_durable_and_seen_at_once(owner: RecordNode, holder: RecordNode, autojump_clock: MockClock) -> None:
    assert (await owner.store_at("holder", e.JOB, *START, new=True)).status == "stored"
    assert await holder.has(e.JOB, START)
    assert holder.table.active == (e.JOB,)
    assert (await owner.store_at("holder", e.JOB, e.assign(1))).status == "stored"
    assert (await owner.store_at("holder", e.JOB, e.assign(1))).status == "stored", "known entries are ignored"
    assert (await owner.store_at("holder", e.JOB, e.outcome(1, "completed"))).status == "stored"
    assert await holder.has(e.JOB, (*START, e.outcome(1, "completed")))
    assert holder.table.active == ()
    assert await holder.journal.unfinished() == ()


async def test_it_is_not_stored_before_the_disk_says_so(
    swarm: RecordSwarm, owner: RecordNode, holder: RecordNode, autojump_clock: MockClock
) -> None:
    holder.journal.sync = 3.0
    with pytest.raises(Exception, match="no answer"):
        await owner.ask("holder", STORE, StoreRequest(jobs=(JobEntries(job=e.JOB, entries=START),)), StoreAnswer, timeout=1.0)
    assert not holder.table.holds(e.JOB)
    disk = swarm.crash("holder")
    assert e.JOB not in disk.records


async def test_many_jobs_of_a_request_share_one_write(owner: RecordNode, holder: RecordNode, autojump_clock: MockClock) -> None:
    holder.journal.sync = 1.0
    jobs = [f"job-{i}" for i in range(400)]
    request = StoreRequest(jobs=tuple(JobEntries(job=j, entries=(e.core(j), e.claim(1, job=j)), new=True) for j in jobs))
    answer = await owner.ask("holder", STORE, request, StoreAnswer, timeout=1.5)
    assert [(r.job, r.status) for r in answer.results] == [(j, "stored") for j in jobs]
    assert set(holder.table.active) == set(jobs)


async def test_a_lower_ballot_is_fenced_with_proof_and_not_stored(
    swarm: RecordSwarm, owner: RecordNode, holder: RecordNode, autojump_clock: MockClock
) -> None:
    await owner.store_at("holder", e.JOB, *START)
    taken = e.claim(2, "q")
    assert (await swarm.nodes["q"].store_at("holder", e.JOB, taken)).status == "stored"
    for late in (e.assign(1), e.outcome(1, "failed"), e.outcome(1, "completed"), e.outcome(1, "cancelled"), e.claim(1)):
        answer = await owner.store_at("holder", e.JOB, late)
        assert (answer.status, answer.ballot) == ("fenced", e.ballot(2, "q"))
        assert taken in answer.entries
    assert await holder.has(e.JOB, (*START, taken))
    assert (await swarm.nodes["q"].store_at("holder", e.JOB, e.assign(2, peer="q"))).status == "stored"


async def test_whoever_goes_on_with_a_job_that_ended_is_told_so(
    swarm: RecordSwarm, owner: RecordNode, holder: RecordNode, autojump_clock: MockClock
) -> None:
    end = e.outcome(1, "cancelled")
    await owner.store_at("holder", e.JOB, *START)
    assert (await owner.store_at("holder", e.JOB, end)).entries == (), "it knows"
    q = swarm.nodes["q"]
    answer = await q.store_at("holder", e.JOB, e.claim(2, "q"))
    assert (answer.status, answer.entries) == ("stored", (end,))
    assert (await q.store_at("holder", e.JOB, e.assign(2, peer="q"))).entries == (end,)
    assert (await q.store_at("holder", e.JOB, end, merge=True)).entries == ()
    failed = e.outcome(2, "failed", "q", job="other")
    await q.store_at("holder", "other", e.core("other"), e.claim(2, "q", job="other"), failed)
    assert (await owner.store_at("holder", "other", e.claim(3, job="other"))).entries == (), "a failed job may be taken up again"


async def test_a_fence_alone_fences_too(owner: RecordNode, holder: RecordNode, autojump_clock: MockClock) -> None:
    await holder.journal.raise_ballot(e.JOB, e.ballot(4, "z"))
    answer = await owner.store_at("holder", e.JOB, *START)
    assert (answer.status, answer.ballot, answer.entries) == ("fenced", e.ballot(4, "z"), ())
    assert not holder.table.holds(e.JOB)


async def test_the_owner_may_send_what_others_decided_before_it(swarm: RecordSwarm, holder: RecordNode, autojump_clock: MockClock) -> None:
    """A record that is sent in parts: one of them may hold nothing but a former owner's decisions."""
    q = swarm.nodes["q"]
    assert (await q.store_at("holder", e.JOB, *START, e.claim(2, "q"))).status == "stored"
    assert (await q.store_at("holder", e.JOB, e.assign(1), e.attempt(1))).status == "stored"


async def test_a_job_is_accepted_once(swarm: RecordSwarm, owner: RecordNode, holder: RecordNode, autojump_clock: MockClock) -> None:
    assert (await owner.store_at("holder", e.JOB, *START, new=True)).status == "stored"
    late = await swarm.nodes["q"].store_at("holder", e.JOB, e.core(submitted=3.0), e.claim(1, "q"), new=True)
    assert (late.status, late.ballot) == ("fenced", e.ballot(1, "p"))
    assert set(late.entries) == set(START), "whoever came second learns the record"
    assert (await owner.store_at("holder", e.JOB, *START, new=True)).status == "stored", "said again"
    assert (await swarm.nodes["q"].store_at("holder", e.JOB, e.claim(1, "q"))).status == "stored", "not new: the higher ballot counts"


async def test_parts_of_records_between_holders_are_never_fenced(swarm: RecordSwarm, holder: RecordNode, autojump_clock: MockClock) -> None:
    q = swarm.nodes["q"]
    await q.store_at("holder", e.JOB, e.core(), e.claim(2, "q"))
    assert (await swarm.nodes["p"].store_at("holder", e.JOB, e.claim(1), e.assign(1), merge=True)).status == "stored"
    assert await holder.has(e.JOB, (e.core(), e.claim(2, "q"), e.claim(1), e.assign(1)))


async def test_without_a_core_it_is_incomplete(owner: RecordNode, holder: RecordNode, autojump_clock: MockClock) -> None:
    assert (await owner.store_at("holder", e.JOB, e.claim(1))).status == "incomplete"
    await holder.journal.append([e.attempt(1, node="holder")])  # it ran a task for somebody
    assert (await owner.store_at("holder", e.JOB, e.claim(1))).status == "incomplete"
    assert (await owner.store_at("holder", e.JOB, *START)).status == "stored"
    assert await holder.has(e.JOB, (*START, e.attempt(1, node="holder")))
    assert (await owner.store_at("holder", "job-b", e.outcome(1, "deleted", job="job-b"))).status == "stored"


async def test_one_bad_job_does_not_spoil_the_others(owner: RecordNode, holder: RecordNode, autojump_clock: MockClock) -> None:
    forged = SignedEntry(e.claim(1, job="job-f").payload, "p", b"0" * 32)
    bad = {
        "job-f": (e.core("job-f"), forged),
        "job-x": (e.core("job-y"),),
        "job-n": (e.core("job-n"), e.claim(1 << 40, job="job-n")),
        "job-g": (e.core("job-g"), SignedEntry(b"\xff", "p", b"")),
    }
    jobs = {"job-1": (e.core("job-1"),), **bad, "job-2": (e.core("job-2"),)}
    request = StoreRequest(jobs=tuple(JobEntries(job=j, entries=entries) for j, entries in jobs.items()))
    results = {r.job: r for r in (await owner.ask("holder", STORE, request, StoreAnswer)).results}
    assert {j for j, r in results.items() if r.status == "stored"} == {"job-1", "job-2"}
    assert {j for j, r in results.items() if r.status == "refused" and r.reason} == bad.keys() - {"job-g"} | {"job-g"}
    assert set(holder.table.active) == {"job-1", "job-2"}
    assert holder.holder.statistics() == {"stored": 2, "refused": 4}


async def test_a_core_must_be_of_its_job(swarm: RecordSwarm, owner: RecordNode, autojump_clock: MockClock) -> None:
    await swarm.add("strict", swarm="dim")
    said = {"spec_cid": "c", "spec": b"spec", "pattern": "chained", "priority": "low", "principal": "me", "submitted": 1.0, "timeout": 9.0}
    right = job_id("dim", "me", "n", codec.digest(b"spec"))
    assert (await owner.store_at("strict", right, e.signed(Core(job=right, nonce="n", **said)))).status == "stored"  # pyright: ignore
    assert (await owner.store_at("strict", "job-w", e.signed(Core(job="job-w", nonce="n", **said)))).status == "refused"  # pyright: ignore


async def test_a_full_record_is_refused(owner: RecordNode, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    await owner.store_at("holder", e.JOB, *START)
    monkeypatch.setattr(job_record, "MAX_RECORD_ENTRIES", 2)
    answer = await owner.store_at("holder", e.JOB, e.assign(1))
    assert answer.status == "refused"
    assert "at most 2 entries" in answer.reason
    assert (await owner.store_at("holder", e.JOB, e.outcome(1, "cancelled"))).status == "stored", "it can still end"


async def test_a_full_disk_is_said_and_nothing_pretended(owner: RecordNode, holder: RecordNode, autojump_clock: MockClock) -> None:
    holder.journal.disk.full = True
    assert (await owner.store_at("holder", e.JOB, *START)).status == "full"
    assert not holder.table.holds(e.JOB)
    holder.journal.disk.full = False
    assert (await owner.store_at("holder", e.JOB, *START)).status == "stored"


async def test_custody(swarm: RecordSwarm, owner: RecordNode, autojump_clock: MockClock) -> None:
    await swarm.add("picky", accepts=lambda peer: peer == "q")
    assert (await owner.store_at("picky", e.JOB, *START)).status == "refused"
    assert (await swarm.nodes["q"].store_at("picky", e.JOB, *START)).status == "stored"
    ask = CompareRequest(items=(CompareItem(job="job-z", digest=b"x", keep=True),))
    assert (await owner.ask("picky", COMPARE, ask, CompareAnswer)).want == ()
    assert (await swarm.nodes["q"].ask("picky", COMPARE, ask, CompareAnswer)).want == ("job-z",)


async def test_who_may_not_decide_is_refused_and_fences_nobody(swarm: RecordSwarm, owner: RecordNode, autojump_clock: MockClock) -> None:
    strict = await swarm.add("strict", deciders={"p", "acceptor"})
    refused = await swarm.nodes["q"].store_at("strict", e.JOB, e.core(), e.claim(9, "q"))
    assert (refused.status, "may decide" in refused.reason) == ("refused", True)
    assert (await owner.store_at("strict", e.JOB, *START)).status == "stored"
    assert (await swarm.nodes["q"].store_at("strict", e.JOB, e.claim(9, "q"), merge=True)).status == "refused"
    assert (await owner.store_at("strict", e.JOB, e.assign(1))).status == "stored", "nothing has fenced it"
    assert strict.table.view(e.JOB).owner == e.ballot(1)


@pytest.mark.parametrize("merge", [False, True])
async def test_a_record_with_what_somebody_else_decided_is_stored_whole_or_not_at_all(
    swarm: RecordSwarm, owner: RecordNode, merge: bool, autojump_clock: MockClock
) -> None:
    """The operator took q off the list, and remembered, or not, to name it among those that were on it."""
    record = (e.core(), e.claim(1, "q"), e.assign(1, peer="q"), e.claim(2, "p"), e.outcome(2, "completed", "p"))
    strict = await swarm.add("strict", deciders={"p", "acceptor"})
    answer = await owner.store_at("strict", e.JOB, *record, merge=merge)
    assert (answer.status, "election.former" in answer.reason) == ("refused", True)
    assert not strict.table.holds(e.JOB)
    knows = await swarm.add("knows", deciders={"p", "q", "acceptor"})
    assert (await owner.store_at("knows", e.JOB, *record, merge=merge)).status == "stored"
    assert knows.table.view(e.JOB).status == "completed"


@pytest.mark.parametrize("method", [STORE, COMPARE, FETCH, BLOCKS])
async def test_garbage_is_refused(owner: RecordNode, method: str, autojump_clock: MockClock) -> None:
    rng = random.Random(2)
    for data in (b"", b"\xff", codec.encode({"jobs": 3}), codec.encode([1]), *(rng.randbytes(40) for _ in range(30))):
        with pytest.raises(RemoteFault) as caught:
            await owner.network.request("holder", method, data, timeout=1)
        assert caught.value.code == "INVALID_ARGUMENT"


async def test_requests_are_bounded(owner: RecordNode, autojump_clock: MockClock) -> None:
    many = tuple(f"job-{i}" for i in range(2000))
    big = tuple(e.core(f"job-{i}", spec=b"x" * (3 << 20)) for i in range(2))
    for method, request in (
        (STORE, StoreRequest(jobs=tuple(JobEntries(job=j, entries=()) for j in many))),
        (STORE, StoreRequest(jobs=(JobEntries(job="job-1", entries=()), JobEntries(job="job-1", entries=())))),
        (STORE, StoreRequest(jobs=tuple(JobEntries(job=f"job-{i}", entries=(x,)) for i, x in enumerate(big)))),
        (COMPARE, CompareRequest(items=tuple(CompareItem(job=j, digest=b"") for j in many))),
        (FETCH, FetchRequest(jobs=many)),
        (BLOCKS, BlocksRequest(job="j", cids=many, providers=())),
    ):
        with pytest.raises(RemoteFault, match="at most"):
            await owner.network.request("holder", method, codec.encode(request), timeout=9)
    assert (await owner.store_at("holder", "job-0", big[0])).status == "stored", "one entry may be large"


# --- comparing and fetching ----------------------------------------------------------------------


async def test_a_comparison_tells_what_differs_and_what_is_wanted(owner: RecordNode, holder: RecordNode, autojump_clock: MockClock) -> None:
    await holder.journal.append([e.core("same"), e.core("other"), e.claim(1, job="other")])
    same, mine = Record("same", [e.core("same")]).digest, Record("other", [e.core("other")]).digest
    items = (
        CompareItem(job="same", digest=same, keep=True),
        CompareItem(job="other", digest=mine),
        CompareItem(job="lacking", digest=mine, keep=True),
        CompareItem(job="not mine to keep", digest=mine),
    )
    answer = await owner.ask("holder", COMPARE, CompareRequest(items=items), CompareAnswer)
    assert answer.want == ("lacking",)
    assert {d.job: set(d.entries) for d in answer.differ} == {"other": {e.core("other"), e.claim(1, job="other")}}
    assert answer.more == ()


async def test_what_does_not_fit_is_named_and_can_be_fetched_in_parts(
    swarm: RecordSwarm, owner: RecordNode, autojump_clock: MockClock
) -> None:
    small = await swarm.add("small", holder=HolderSettings(max_bytes=3000))
    big = [e.core(), *(e.raw(type="novelty", job=e.JOB, n=n, x=os.urandom(400)) for n in range(20))]
    await small.journal.append([*big, e.core("job-b"), e.core("job-c")])
    items = tuple(CompareItem(job=j, digest=b"") for j in (e.JOB, "job-b"))
    answer = await owner.ask("small", COMPARE, CompareRequest(items=items), CompareAnswer)
    assert ([d.job for d in answer.differ], answer.more) == (["job-b"], (e.JOB,))
    got: list[SignedEntry] = []
    after, rounds = "", 0
    while True:
        part = await owner.ask("small", FETCH, FetchRequest(jobs=(e.JOB, "job-b"), after=after), FetchAnswer)
        rounds += 1
        got += part.jobs[0].entries
        if not part.cut or part.jobs[-1].job != e.JOB:
            break
        after = got[-1].id
    assert set(got) == set(big)
    assert rounds > 3
    assert {j.job for j in part.jobs} == {e.JOB, "job-b"}
    whole = await owner.ask("small", FETCH, FetchRequest(jobs=("unknown", "job-c", "job-b")), FetchAnswer)
    assert [j.job for j in whole.jobs] == ["job-c", "job-b"]


# --- blocks --------------------------------------------------------------------------------------


async def _keep(node: RecordNode, *cids: str, at: str = "holder", job: str = e.JOB) -> tuple[str, ...]:
    return (await node.ask(at, BLOCKS, BlocksRequest(job=job, cids=cids, providers=(node.peer,)), BlocksAnswer, timeout=60)).kept


async def test_blocks_are_fetched_whole_and_pinned(owner: RecordNode, holder: RecordNode, autojump_clock: MockClock) -> None:
    small, large = await owner.store.add_bytes(b"input"), await owner.store.add_bytes(os.urandom(900_000))
    missing = await owner.store.add_bytes(b"elsewhere")
    owner.store._blocks._blocks.pop(missing)  # pyright: ignore
    assert await _keep(owner, small, large, missing, "not a cid") == (small, large)
    assert await holder.store.pins() == {small: f"job {e.JOB}", large: f"job {e.JOB}"}
    assert len(await holder.store.get_bytes(large)) == 900_000
    assert holder.holder.statistics() == {"blocks_kept": 2, "blocks_not_kept": 2}


async def test_a_pin_for_something_else_stays(owner: RecordNode, holder: RecordNode, autojump_clock: MockClock) -> None:
    shared, model = await owner.store.add_bytes(b"shared"), await holder.store.add_bytes(b"model")
    await holder.store.pin(model, reason="model m")
    assert await _keep(owner, shared, model, job="job-1") == (shared, model)
    assert await _keep(owner, shared, job="job-2") == (shared,)
    assert await holder.store.pins() == {shared: "job job-2", model: "model m"}, "of several jobs the last one has the pin"


async def test_no_blocks_are_kept_when_the_disk_is_nearly_full(swarm: RecordSwarm, owner: RecordNode, autojump_clock: MockClock) -> None:
    free = [1 << 20]
    await swarm.add("tight", free=lambda: free[0])
    cid = await owner.store.add_bytes(b"input")
    assert await _keep(owner, cid, at="tight") == ()
    free[0] = 1 << 40
    assert await _keep(owner, cid, at="tight") == (cid,)
