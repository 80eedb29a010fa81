"""What a garbage collection leaves alone, and when one begins: real records, a real table, stores in memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing

from dimnode.clock import ManualClock
from dimnode.core.record_blocks import blocks_of
from dimnode.domain import codec
from dimnode.domain.record import Assign, Attempt, Core, OutcomeEntry, Receipt
from dimnode.domain.tensors import TensorValue
from dimnode.garbage import Garbage, GarbageSettings, wanted
from dimnode.records.holder import PIN
from dimnode.records.needed import RecordNeeds
from dimnode.records.table import RecordTable
from dimnode.state.memory_journal import MemoryJournal
from p2p.ipfs.api import DiskFull
from p2p.ipfs.blocks import BlocksInMemory
from p2p.ipfs.settings import StoreSettings
from p2p.ipfs.store import Store
from tests.support import entries as e

GONE = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
DAY = 86_400.0
DONE = e.attempt(1)


class Bench:
    def __init__(self, max_bytes: int = 0, grace: float = 0.0, **settings: Any) -> None:
        self.store = Store("memory", BlocksInMemory(max_bytes=max_bytes), None, StoreSettings(grace=grace))
        self.journal = MemoryJournal()
        self.table = RecordTable(self.journal, e.FakeSigner("me"))
        self.clock = ManualClock(epoch=time.time())
        self.free = 1 << 40
        self.models: list[str] = []
        self.garbage = Garbage(
            self.store, self.table, self.journal, lambda: self.models, lambda: self.free, self.clock, GarbageSettings(max_bytes=max_bytes, **settings)
        )  # fmt: skip
        self.store.make_room = self.garbage.make_room

    async def add(self, *contents: bytes) -> list[str]:
        return [await self.store.add_bytes(c) for c in contents]

    async def here(self, cids: Sequence[str]) -> list[bool]:
        return [await self.store.has(cid) for cid in cids]


def tensor(cid: str) -> dict[str, Any]:
    return {"dtype": "float32", "shape": [1], "cid": cid}


def core(job: str, spec_cid: str, *inputs: str, submitted: float = 1.0):
    spec = codec.encode({"client_data": {f"x{i}": tensor(cid) for i, cid in enumerate(inputs)}})
    return e.signed(
        Core(job=job, spec_cid=spec_cid, spec=spec, pattern="chained", priority="normal", principal="me", submitted=submitted, timeout=60)
    )


def completed(job: str, **more: Any):
    return e.signed(OutcomeEntry(job=job, ballot=e.ballot(1), status="completed", at=2.0, **more))


async def test_all_blocks_of_unfinished_and_of_finished_records_are_needed():
    b = Bench()
    spec, x, y, model, output, inline, large = await b.add(b"spec", b"x", b"y", b"model", b"output", b"inline", b"large")
    (garbage,) = await b.add(b"garbage")
    document = await b.store.put_dag_bytes(codec.encode({"outputs": {"o": tensor(large)}}))
    attempt = Attempt(
        job="live", ballot=e.ballot(1), task="t", attempt=1, task_key="k", status="completed", node="x",
        outputs={"o": TensorValue(dtype="float32", shape=(1,), cid=output)},
    )  # fmt: skip
    assign = Assign(job="live", ballot=e.ballot(1), task="t", attempt=1, node="x", task_key="k", model_cid=model, at=3.0)
    await b.table.merge("live", [core("live", spec, x, GONE), e.claim(1, job="live"), e.signed(assign), e.signed(attempt)])
    result = codec.encode({"outputs": {"o": tensor(inline)}})
    await b.table.merge("small", [core("small", GONE, y), e.claim(1, job="small"), completed("small", result=result, result_cid=GONE)])
    await b.table.merge("large", [core("large", GONE), e.claim(1, job="large"), completed("large", result_cid=document)])
    done = await b.garbage.collect()
    assert done.blocks == 1
    assert await b.here([spec, x, y, model, output, inline, large, document, garbage]) == [True] * 8 + [False]
    await b.table.forget(["small", "large"])
    assert (await b.garbage.collect()).blocks == 4, "what only the forgotten ones needed"
    assert await b.here([spec, x, model, output]) == [True] * 4


async def test_receipts_are_needed_as_long_as_their_records():
    b = Bench()
    receipt = Receipt(job="failed", task="t", attempt=1, node="x", model_cid="m", inputs={}, outputs={}, started=1.0, ended=2.0, cost=1.0)
    attempt = e.signed(
        Attempt(job="failed", ballot=e.ballot(1), task="t", attempt=1, task_key="k", status="failed", node="x", receipt=receipt)
    )
    told = [codec.encode({"receipt": n}) for n in range(2)]
    cids = [await b.store.put_dag_bytes(data) for data in (codec.encode(attempt), *told)]
    result, large = ({"outputs": {}, "tasks": [{"receipt": data}]} for data in told)
    document = await b.store.put_dag(large)
    failed = e.signed(OutcomeEntry(job="failed", ballot=e.ballot(1), status="failed", at=2.0))
    await b.table.merge("failed", [core("failed", GONE), e.claim(1, job="failed"), attempt, failed])
    await b.table.merge("small", [core("small", GONE), completed("small", result=codec.encode(result), result_cid=GONE)])
    await b.table.merge("large", [core("large", GONE), completed("large", result_cid=document)])
    assert (await b.garbage.collect()).blocks == 0
    await b.table.forget(["failed", "small", "large"])
    await b.garbage.collect()
    assert await b.here(cids) == [False] * 3


async def test_the_latest_checkpoint_of_an_unfinished_job_is_needed():
    b = Bench()
    first, second, other = await b.add(b"first", b"second", b"other")
    seals = [e.seal(1, 0, t=DONE.id), e.seal(1, 1, t=DONE.id), e.seal(2, 1, t=DONE.id)]
    entries = [
        *(e.core(), e.claim(1), DONE, *seals),
        e.checkpoint(1, seals[0].id, 0, cid=first),
        e.checkpoint(1, seals[1].id, 1, cid=second),
        e.checkpoint(1, seals[2].id, 1, cid=other),
    ]
    await b.table.merge(e.JOB, entries)
    assert set(blocks_of(b.table.record(e.JOB))) == {second, other}
    await b.garbage.collect()
    assert await b.here([first, second, other]) == [False, True, True]
    await b.table.merge(e.JOB, [e.outcome(1, "failed")])
    await b.garbage.collect()
    assert await b.here([second, other]) == [False, False]


async def test_a_checkpoint_of_no_seal_or_by_no_owner_of_its_round_takes_no_place():
    """It would be copied and kept in place of the one that a new owner goes on with."""
    b = Bench()
    good, bad = await b.add(b"good", b"bad")
    seal = e.seal(1, 0, t=DONE.id)
    mallory = e.claim(0, "mallory")
    forged = [
        e.checkpoint(1, "no-seal", 9, cid=bad),
        e.checkpoint(1, seal.id, 9, cid=bad),
        e.checkpoint(0, seal.id, 0, peer="mallory", cid=bad),
    ]
    await b.table.merge(e.JOB, [e.core(), e.claim(1), DONE, seal, mallory, *forged, e.checkpoint(1, seal.id, 0, cid=good)])
    assert blocks_of(b.table.record(e.JOB)) == (good,)
    await b.garbage.collect()
    assert await b.here([good, bad]) == [True, False]


async def test_a_record_whose_result_is_no_cid_keeps_no_pin():
    """It has no result document that would have to be known before any pin may go."""
    b = Bench()
    (kept,) = await b.add(b"kept")
    await b.store.pin(kept, reason=PIN + e.JOB)
    await b.table.merge(
        e.JOB, [e.core(), e.claim(1), e.signed(OutcomeEntry(job=e.JOB, ballot=e.ballot(1), status="failed", at=2.0, result_cid="Qm"))]
    )
    b.clock.advance(200_000.0)
    await b.garbage.collect()
    assert not await b.store.pins()


async def test_what_was_kept_for_a_job_goes_once_its_record_does_not_name_it_any_more():
    b = Bench(clock_skew=100.0)
    kept, passed, lacking = await b.add(b"kept", b"passed", b"lacking")
    for cid, job in ((kept, e.JOB), (passed, e.JOB), (lacking, "unknown")):
        await b.store.pin(cid, reason=PIN + job)
    seals = [e.seal(1, n, t=DONE.id) for n in range(2)]
    checkpoints = [e.checkpoint(1, seals[n].id, n, cid=cid) for n, cid in enumerate((passed, kept))]
    await b.table.merge(e.JOB, [e.core(), e.claim(1), DONE, *seals, *checkpoints])
    await b.garbage.collect()
    assert len(await b.store.pins()) == 3, "they are new: the record may be on its way"
    b.clock.advance(200.0)
    await b.garbage.collect()
    assert set(await b.store.pins()) == {kept, lacking}, "retention sees to jobs that are not known here"
    await b.table.merge("large", [core("large", GONE), completed("large", result_cid=GONE)])
    await b.store.pin(passed, reason=PIN + "large")
    b.clock.advance(200.0)
    await b.garbage.collect()
    assert passed in await b.store.pins(), "what a document refers to that is not here nobody can tell"


async def test_parts_that_this_node_signed_for_others_need_their_outputs():
    b = Bench()
    (output,) = await b.add(b"output")
    attempt = Attempt(
        job="other", ballot=e.ballot(1), task="t", attempt=1, task_key="k", status="completed", node="x",
        outputs={"o": TensorValue(dtype="float32", shape=(1,), cid=output)},
    )  # fmt: skip
    await b.journal.append([e.signed(attempt)])
    await b.garbage.collect()
    assert await b.store.has(output)


async def test_models_are_needed_as_long_as_others_are_told_of_them():
    b = Bench()
    b.models = await b.add(bytes(300_000), b"manifest")
    assert (await b.garbage.collect()).blocks == 0
    b.models = []
    assert (await b.garbage.collect()).blocks > 0
    assert b.store.statistics().blocks == 0


async def test_many_records_are_walked_page_by_page():
    b = Bench()
    cids = await b.add(*[b"%d" % i for i in range(600)])
    for i, cid in enumerate(cids):
        await b.journal.append([core(f"job-{i:04}", GONE, cid)])
    needs = RecordNeeds(b.table, b.journal, b.store)
    assert set(cids) <= {cid async for cid in needs.walk()}
    assert needs.complete


async def test_pins_that_only_bridge_a_moment_are_released_when_no_record_names_them():
    b = Bench()
    named, passing, kept = await b.add(b"named", b"passing", b"kept")
    await b.store.pin(named, reason="job input")
    await b.store.pin(passing, reason="tensor")
    await b.store.pin(kept, reason="artifact")
    await b.table.merge("old", [core("old", GONE, named, submitted=time.time()), e.claim(1, job="old")])
    b.clock.advance(DAY)
    await b.garbage.collect()
    assert set(await b.store.pins()) == {named, passing, kept}, "a job that is older than the pin may need it"
    await b.table.merge("old", [completed("old")])
    await b.garbage.collect()
    assert set(await b.store.pins()) == {named, kept}
    await b.garbage.collect()
    assert await b.here([named, passing, kept]) == [True, False, True]


async def test_passing_pins_stay_when_it_cannot_be_known_what_a_result_refers_to():
    b = Bench()
    (passing,) = await b.add(b"passing")
    await b.store.pin(passing, reason="tensor")
    broken = await b.store.put_dag({"outputs": 1})
    b.store._blocks._blocks[broken] = b"\xff"  # type: ignore[attr-defined]
    await b.table.merge("large", [core("large", GONE), e.claim(1, job="large"), completed("large", result_cid=broken)])
    b.clock.advance(DAY)
    await b.garbage.collect()
    assert await b.store.pins() == {passing: "tensor"}


@pytest.mark.parametrize(
    ("held", "free", "target"),
    [(0, 1000, None), (900, 1000, None), (901, 1000, 750), (5000, 1000, 750), (0, 99, 0), (5000, 99, 0)],
)
def test_when_a_collection_begins(held: int, free: int, target: int | None):
    assert wanted(GarbageSettings(max_bytes=1000, disk_free=100), held, free) == target


def test_without_a_bound_the_disk_decides():
    assert wanted(GarbageSettings(disk_free=100), 1 << 50, 100) is None


async def test_near_its_bound_the_store_is_tidied_up(autojump_clock: trio.testing.MockClock):
    b = Bench(max_bytes=1000)
    old, *_ = await b.add(bytes(300), b"b" * 300, b"c" * 300)
    await trio.sleep(1)
    await b.store.get_bytes(old)
    async with trio.open_nursery() as nursery:
        await nursery.start(b.garbage.run)
        await trio.sleep(60)
        assert b.store.statistics().blocks == 3, "not near enough"
        await trio.sleep(1)
        await b.store.get_bytes(old)
        await b.store.add_bytes(b"n" * 50)
        await trio.sleep(6)
        assert b.store.statistics().bytes <= 750
        assert await b.store.has(old), "used a moment ago"
        nursery.cancel_scope.cancel()


async def test_a_collection_that_does_not_help_is_not_repeated_at_once(autojump_clock: trio.testing.MockClock):
    b = Bench(max_bytes=1000, pause=60)
    (cid,) = await b.add(bytes(950))
    await b.store.pin(cid)
    runs = []
    collect = b.store.collect
    b.store.collect = lambda *a, **k: (runs.append(trio.current_time()), collect(*a, **k))[1]  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        await nursery.start(b.garbage.run)
        await trio.sleep(199)
        nursery.cancel_scope.cancel()
    assert len(runs) == 3
    assert runs[1] - runs[0] >= 60


async def test_writers_that_find_the_store_full_share_one_collection(autojump_clock: trio.testing.MockClock):
    b = Bench(max_bytes=1000)
    await b.add(b"a" * 500, b"b" * 500)
    added: list[str] = []

    async def add(content: bytes) -> None:
        added.append(await b.store.add_bytes(content))

    async with trio.open_nursery() as nursery:
        for i in range(3):
            nursery.start_soon(add, bytes([i]) * 80)
    assert await b.here(added) == [True] * 3
    assert b.store.statistics().collected_blocks <= 2


async def test_when_everything_is_needed_a_full_store_refuses_and_soon(autojump_clock: trio.testing.MockClock):
    b = Bench(max_bytes=1000)
    (cid,) = await b.add(bytes(950))
    await b.store.pin(cid)
    for _ in range(100):
        with pytest.raises(DiskFull):
            await b.store.add_bytes(b"more" * 20)
    assert await b.store.get_bytes(cid) == bytes(950)
    assert trio.current_time() < 1


async def test_a_full_disk_takes_all_garbage(autojump_clock: trio.testing.MockClock):
    b = Bench()
    pinned, other = await b.add(b"pinned", b"other")
    await b.store.pin(pinned)
    async with trio.open_nursery() as nursery:
        await nursery.start(b.garbage.run)
        b.free = 0
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert await b.here([pinned, other]) == [True, False]
