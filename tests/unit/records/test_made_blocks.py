"""Forms, small results and receipts as blocks: made by whoever holds the record, again until it works."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dimnode.domain import codec
from dimnode.domain.record import Attempt, Core, OutcomeEntry, Receipt, SignedEntry
from dimnode.records.made_blocks import BlockMaker, MakingSettings, cid_of
from dimnode.records.table import RecordTable
from dimnode.state.memory_journal import MemoryJournal
from p2p.ipfs import disk as disk_module
from p2p.ipfs.api import BlockCorrupt, BlockMissing, StoreUnavailable
from p2p.ipfs.embedded import open_embedded
from p2p.ipfs.memory import MemoryExchange, MemoryStore
from p2p.ipfs.store import Store
from tests.support import entries as e


def core(job: str, **form: Any) -> SignedEntry:
    spec = codec.encode({"job": job, **form})
    return e.signed(
        Core(job=job, spec_cid=cid_of(spec), spec=spec, pattern="chained", priority="normal", principal="me", submitted=1.0, timeout=60)
    )


def attempt(job: str, number: int = 1) -> SignedEntry:
    receipt = Receipt(job=job, task="t", attempt=number, node="x", model_cid="m", inputs={}, outputs={}, started=1.0, ended=2.0, cost=1.0)
    return e.signed(
        Attempt(job=job, ballot=e.ballot(1), task="t", attempt=number, task_key="k", status="completed", node="x", receipt=receipt)
    )


def ended(job: str, status: Any = "completed", **more: Any) -> SignedEntry:
    return e.signed(OutcomeEntry(job=job, ballot=e.ballot(1), status=status, at=2.0, **more))


class Holder:
    def __init__(self, store: Store | None = None) -> None:
        self.store = store or MemoryStore()
        self.journal = MemoryJournal()
        self.table = RecordTable(self.journal, e.FakeSigner("me"))

    @asynccontextmanager
    async def running(self, **settings: Any) -> AsyncGenerator[BlockMaker]:
        maker = BlockMaker(self.table, self.journal, self.store, MakingSettings(**settings))
        async with trio.open_nursery() as nursery:
            await nursery.start(maker.run)
            yield maker
            nursery.cancel_scope.cancel()

    async def has(self, *cids: str) -> list[bool]:
        return [await self.store.has(cid) for cid in cids]


@pytest.fixture
def holder() -> Holder:
    return Holder()


def spec_of(entry: SignedEntry) -> str:
    body = entry.body()
    assert isinstance(body, Core)
    return body.spec_cid


async def test_the_form_is_a_block_on_every_holder_and_the_rest_once_the_job_has_ended(holder: Holder, autojump_clock: MockClock) -> None:
    accepted, done = core("j"), attempt("j")
    receipt = codec.encode(done)
    result = codec.encode({"outputs": {}, "tasks": [{"receipt": receipt}, {"receipt": b""}]})
    async with holder.running() as maker:
        await holder.table.merge("j", [accepted, e.claim(1, job="j")])
        await trio.sleep(1)
        assert await holder.has(spec_of(accepted), cid_of(receipt), cid_of(result)) == [True, False, False]
        await holder.table.merge("j", [done, ended("j", result=result, result_cid=cid_of(result))])
        await trio.sleep(1)
        assert await holder.has(cid_of(receipt), cid_of(result)) == [True, True]
        assert (await holder.store.get_dag(spec_of(accepted)))["job"] == "j"
        assert maker.status() == {"backlog": 0, "failures": 0, "problem": ""}


async def test_receipts_come_from_the_record_of_a_job_that_failed_and_from_a_large_results_block(
    holder: Holder, autojump_clock: MockClock
) -> None:
    failed, large = codec.encode(attempt("failed")), codec.encode(attempt("large"))
    document = await holder.store.private_to("large").put_dag({"outputs": {}, "tasks": [{"receipt": large}]})
    async with holder.running():
        await holder.table.merge("failed", [core("failed"), e.claim(1, job="failed"), attempt("failed"), ended("failed", "failed")])
        await holder.table.merge("large", [core("large"), e.claim(1, job="large"), ended("large", result_cid=document)])
        await trio.sleep(1)
        assert await holder.has(cid_of(failed), cid_of(large)) == [True, True]


async def test_what_cannot_be_written_is_tried_again_and_is_in_the_backlog(
    holder: Holder, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[float] = []

    async def away(*_: Any, **__: Any) -> None:
        tries.append(trio.current_time())
        raise StoreUnavailable("away")

    async with holder.running(retry_first=1.0, retry_most=4.0) as maker:
        await trio.sleep(1)
        monkeypatch.setattr(holder.store._blocks, "put", away)
        entries = [core(f"j{n}") for n in range(3)]
        for n, entry in enumerate(entries):
            await holder.table.merge(f"j{n}", [entry, e.claim(1, job=f"j{n}")])
        await trio.sleep(12)
        assert (maker.status()["backlog"], maker.status()["problem"]) == (3, "away")
        rounds = sorted(set(tries))  # of those that wait, all are tried at once
        assert [round(b - a) for a, b in pairwise(rounds)][:4] == [1, 2, 4, 4]
        monkeypatch.undo()
        await trio.sleep(5)
        assert await holder.has(*map(spec_of, entries)) == [True] * 3
        assert maker.status() == {"backlog": 0, "failures": 0, "problem": ""}


async def test_a_job_that_cannot_be_written_does_not_hold_those_beside_it(
    holder: Holder, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [core(f"j{n}") for n in range(3)]
    put = holder.store._blocks.put

    async def all_but_the_first(blocks: Any, **options: Any) -> None:
        if spec_of(entries[0]) in str(blocks):
            raise StoreUnavailable("away")
        await put(blocks, **options)

    monkeypatch.setattr(holder.store._blocks, "put", all_but_the_first)
    async with holder.running() as maker:
        for n, entry in enumerate(entries):
            await holder.table.merge(f"j{n}", [entry, e.claim(1, job=f"j{n}")])
        await trio.sleep(3)
        assert await holder.has(*map(spec_of, entries)) == [False, True, True]
        assert maker.status()["backlog"] == 1
        monkeypatch.undo()
        await trio.sleep(5)
        assert await holder.has(*map(spec_of, entries)) == [True] * 3


async def test_a_burst_of_jobs_goes_first_but_not_for_ever(holder: Holder, autojump_clock: MockClock) -> None:
    entries = [core(f"j{n}") for n in range(50)]
    made: list[int] = []
    async with holder.running(quiet=0.25, delay_most=2.0) as maker:
        for n, entry in enumerate(entries):
            await holder.table.merge(f"j{n}", [entry, e.claim(1, job=f"j{n}")])
            await trio.sleep(0.1)
            made.append(maker.statistics()["made"])
        assert made[:19] == [0] * 19
        assert made[-1] >= 20  # after two seconds it does not wait any longer
        await trio.sleep(1)
        assert await holder.has(*map(spec_of, entries)) == [True] * 50


async def test_batches_with_short_pauses_between_them_do_not_keep_it_from_working(holder: Holder, autojump_clock: MockClock) -> None:
    async with holder.running(quiet=0.25, delay_most=2.0) as maker:
        for batch in range(40):
            jobs = [f"j{batch}-{n}" for n in range(20)]
            await holder.table.merge_many([(job, [core(job), e.claim(1, job=job)]) for job in jobs])
            await trio.sleep(0.26)
        assert maker.status()["backlog"] <= 20


async def test_a_short_job_is_done_in_one_go(holder: Holder, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    put = holder.store.put_lacking

    async def note(blocks: Sequence[bytes]) -> int:
        given.append(sorted(map(cid_of, blocks)))
        return await put(blocks)

    monkeypatch.setattr(holder.store, "put_lacking", note)
    result = codec.encode({"outputs": {}, "tasks": []})
    async with holder.running():
        await holder.table.merge("j", [core("j"), e.claim(1, job="j")])
        await trio.sleep(0.1)
        await holder.table.merge("j", [ended("j", result=result, result_cid=cid_of(result))])
        await trio.sleep(1)
        assert given == [sorted([spec_of(core("j")), cid_of(result)])]


async def test_after_a_start_and_when_too_many_wait_all_records_are_looked_at(holder: Holder, autojump_clock: MockClock) -> None:
    entries = [core(f"j{n}") for n in range(20)]
    for n, entry in enumerate(entries[:10]):
        await holder.table.merge(f"j{n}", [entry, e.claim(1, job=f"j{n}")])
    async with holder.running(page=3, most=2) as maker:
        await trio.sleep(10)
        assert all(await holder.has(*map(spec_of, entries[:10])))
        assert maker.statistics()["looked"] == 1
        await holder.table.merge_many([(f"j{n}", [entries[n], e.claim(1, job=f"j{n}")]) for n in range(10, 20)])
        assert maker.status()["backlog"] == 2
        await trio.sleep(10)
        assert all(await holder.has(*map(spec_of, entries)))


async def test_a_damaged_result_holds_nobody_up(holder: Holder, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    document = await holder.store.put_dag({"outputs": {}})

    async def damaged(*_: Any, **__: Any) -> Any:
        raise BlockMissing("gone")

    monkeypatch.setattr(holder.store, "get_dag", damaged)
    async with holder.running() as maker:
        await holder.table.merge("a", [core("a"), e.claim(1, job="a"), ended("a", result_cid=document)])
        await holder.table.merge("b", [accepted := core("b"), e.claim(1, job="b")])
        await trio.sleep(1)
        assert await holder.has(spec_of(accepted)) == [True]
        assert maker.status()["failures"] == 0


async def test_a_result_that_is_no_cid_holds_nobody_up(holder: Holder, autojump_clock: MockClock) -> None:
    """Neither when the job changes nor after a start."""
    accepted = [core("a"), core("b")]
    await holder.table.merge("a", [accepted[0], e.claim(1, job="a"), ended("a", result_cid="QmForeign")])
    await holder.table.merge("b", [accepted[1], e.claim(1, job="b")])
    async with holder.running() as maker:
        await trio.sleep(1)
        assert await holder.has(*map(spec_of, accepted)) == [True, True]
        await holder.table.merge("a", [ended("a", "cancelled", result_cid="b" * 59)])
        await trio.sleep(1)
        assert maker.status() == {"backlog": 0, "failures": 0, "problem": ""}


async def test_a_job_that_is_itself_what_is_wrong_goes_to_the_back_and_is_left_after_some_tries(
    holder: Holder, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong, sound = core("wrong"), core("sound")
    put = holder.store.put_lacking
    asked: list[str] = []

    async def refuse_one(blocks: Sequence[bytes]) -> int:
        asked.extend(map(cid_of, blocks))
        if spec_of(wrong) in map(cid_of, blocks):
            raise BlockCorrupt("not what it says")
        return await put(blocks)

    monkeypatch.setattr(holder.store, "put_lacking", refuse_one)
    async with holder.running(tries=3) as maker:
        await trio.sleep(1)
        await holder.table.merge_many([("wrong", [wrong, e.claim(1, job="wrong")]), ("sound", [sound, e.claim(1, job="sound")])])
        await trio.sleep(10)
        assert sorted(asked[:2]) == sorted([spec_of(wrong), spec_of(sound)])
        assert asked[2:] == [spec_of(wrong), spec_of(wrong)]
        assert maker.status() == {"backlog": 0, "failures": 0, "problem": ""}
    async with holder.running() as maker:  # that looks at all of them
        await trio.sleep(1)
        assert maker.statistics()["looked"] == 1


async def test_they_are_the_jobs_and_nobody_elses(autojump_clock: MockClock) -> None:
    asked: list[tuple[str, list[str]]] = []

    async def may_serve(peer: str, audiences: Any) -> bool:
        await trio.lowlevel.checkpoint()
        asked.append((peer, sorted(audiences)))
        return False

    hub = MemoryExchange()
    holder, stranger = Holder(MemoryStore("a", hub, may_serve=may_serve)), MemoryStore("b", hub)
    async with holder.running():
        await holder.table.merge("j", [accepted := core("j"), e.claim(1, job="j")])
        await trio.sleep(1)
        with pytest.raises(BlockMissing):
            await stranger.get_dag(spec_of(accepted), timeout=1)
    assert asked == [("b", ["j"])]


async def test_equal_forms_are_both_jobs(autojump_clock: MockClock) -> None:
    """Whether they come together or one after the other."""
    audiences: list[list[str]] = []

    async def may_serve(peer: str, its: Any) -> bool:
        await trio.lowlevel.checkpoint()
        audiences.append(sorted(its))
        return False

    def same(job: str) -> SignedEntry:
        spec = codec.encode({"equal": True})
        body = Core(
            job=job, spec_cid=cid_of(spec), spec=spec, pattern="chained", priority="normal", principal="me", submitted=1.0, timeout=60
        )
        return e.signed(body)

    hub = MemoryExchange()
    holder, stranger = Holder(MemoryStore("a", hub, may_serve=may_serve)), MemoryStore("b", hub)
    async with holder.running():
        await holder.table.merge_many([(job, [same(job), e.claim(1, job=job)]) for job in ("a", "b")])
        await trio.sleep(1)
        await holder.table.merge("c", [same("c"), e.claim(1, job="c")])
        await trio.sleep(1)
        with pytest.raises(BlockMissing):
            await stranger.get_dag(spec_of(same("a")), timeout=1)
    assert audiences == [["a", "b", "c"]]


async def test_what_never_will_be_a_block_keeps_the_jobs_other_blocks_from_nothing(holder: Holder, autojump_clock: MockClock) -> None:
    accepted, result = core("j"), codec.encode({"outputs": {}, "tasks": [], "large": bytes(3 << 20)})
    async with holder.running() as maker:
        await holder.table.merge("j", [accepted, e.claim(1, job="j"), ended("j", result=result, result_cid=cid_of(result))])
        await trio.sleep(1)
        assert await holder.has(spec_of(accepted), cid_of(result)) == [True, False]
        assert maker.status() == {"backlog": 0, "failures": 0, "problem": ""}


@pytest.mark.parametrize(("limits", "pieces"), [({"piece_blocks": 4}, [4, 4, 1]), ({"piece_bytes": 1}, [1] * 9), ({}, [9])])
async def test_many_blocks_of_a_job_go_in_pieces(
    holder: Holder, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], pieces: list[int]
) -> None:
    given: list[int] = []
    put = holder.store.put_lacking

    async def note(blocks: Sequence[bytes]) -> int:
        given.append(len(blocks))
        return await put(blocks)

    monkeypatch.setattr(holder.store, "put_lacking", note)
    receipts = [codec.encode(attempt("j", n)) for n in range(7)]
    result = codec.encode({"outputs": {}, "tasks": [{"receipt": r} for r in receipts]})
    done = ended("j", result=result, result_cid=cid_of(result))
    async with holder.running(**limits):
        await holder.table.merge("j", [accepted := core("j"), e.claim(1, job="j"), done])
        await trio.sleep(1)
        assert await holder.has(spec_of(accepted), *map(cid_of, receipts)) == [True] * 8
    assert given == pieces


async def test_jobs_beside_each_other_with_one_form_write_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    real = disk_module._write_new
    monkeypatch.setattr(disk_module, "_write_new", lambda path, data: (written.append(data), real(path, data))[1])
    spec = codec.encode({"the": "form"})
    common: dict[str, Any] = {"spec": spec, "spec_cid": cid_of(spec), "pattern": "chained", "priority": "normal", "principal": "me"}
    forms = {f"j{n}": e.signed(Core(job=f"j{n}", submitted=1.0, timeout=60, **common)) for n in range(8)}
    async with open_embedded(tmp_path) as store:
        holder = Holder(store)
        async with holder.running(quiet=0.0) as maker:
            with trio.fail_after(20):
                while not maker.statistics()["looked"]:  # the walk after the start is over: it makes one after the other
                    await trio.sleep(0.01)
                await holder.table.merge_many([(job, [form, e.claim(1, job=job)]) for job, form in forms.items()])
                while maker.statistics()["made"] < len(forms):
                    await trio.sleep(0.01)
        assert written == [spec]
