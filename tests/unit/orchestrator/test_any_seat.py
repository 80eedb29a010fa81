"""Any seat answers for any job."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from dimnode.clock import TrioClock
from dimnode.core.load_sharing import LoadSharing, LoadSharingSettings
from dimnode.domain import codec
from dimnode.domain.model import ModelManifest, ModelRef
from dimnode.domain.node import Seat
from dimnode.domain.tensors import TensorValue, from_numpy, to_json, to_numpy
from dimnode.errors import Code, DimError, InvalidArgument, NotFound, PermissionDenied, Unavailable
from dimnode.orchestrator.any_seat import AnySeat
from dimnode.orchestrator.seat_questions import METHOD, Asker, AskSettings, JobAnswers, Question
from dimnode.ports import Accepted
from dimnode.records.search import Found
from dimnode.records.table import RecordTable
from dimnode.state.memory_journal import MemoryJournal
from dimnode.swarm.models import SwarmModels
from p2p.api import RemoteFault
from p2p.memory import MemoryHub
from tests.support.orchestrated_jobs import double_model, finished, form
from tests.support.orchestration import FakeNode, FakeSwarm, identity


class Seats:
    """Only what `AnySeat` asks of an elector."""

    def __init__(self, peers: list[str]) -> None:
        self._peers = peers
        self.jobs = [0] * len(peers)

    def seats(self) -> tuple[Seat, ...]:
        return tuple(Seat(seat=i, n=i + 1, peer=p, boot=f"boot-{i}", jobs=self.jobs[i]) for i, p in enumerate(self._peers))

    def changed(self) -> int:
        return 0

    async def wait_changed(self, since: int) -> int:
        await trio.sleep_forever()
        return since


class Swarm3(NamedTuple):
    seats: list[AnySeat]
    tables: list[RecordTable]
    elector: Seats
    hub: MemoryHub


@asynccontextmanager
async def several(swarm: FakeSwarm, hub: MemoryHub, names: Sequence[str]) -> AsyncGenerator[Swarm3]:
    peers = [identity(n).peer_id for n in names]
    networks = [hub.network(p) for p in peers]
    hub.connect_all()
    elector: Any = Seats(peers)
    journals = [MemoryJournal() for _ in names]
    tables = [RecordTable(j, identity(n)) for j, n in zip(journals, names, strict=True)]
    locals_ = [
        swarm.orchestrator(j, boot=f"boot-{i}", name=n, table=t) for i, (j, n, t) in enumerate(zip(journals, names, tables, strict=True))
    ]
    for network, local in zip(networks, locals_, strict=True):
        JobAnswers(network, elector, lambda local=local: local)
    async with hub, trio.open_nursery() as nursery:
        for local in locals_:
            await nursery.start(local.run)
        seats = [AnySeat(o, t, n, elector, TrioClock()) for o, t, n in zip(locals_, tables, networks, strict=True)]
        yield Swarm3(seats, tables, elector, hub)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def two_seats(swarm: FakeSwarm, hub: MemoryHub) -> AsyncGenerator[tuple[AnySeat, AnySeat]]:
    async with several(swarm, hub, ["seat-a", "seat-b"]) as made:
        yield made.seats[0], made.seats[1]


async def test_status_watch_result_and_list_through_the_other_seat(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("n", seconds=30.0)])
    await double_model(swarm)
    async with two_seats(swarm, MemoryHub(seed=1)) as (a, b):
        job = (await a.submit(form(), "me")).job_id
        assert (await b.get(job))["job_id"] == job
        with pytest.raises(DimError) as e:
            await b.result(job)
        assert e.value.code is Code.NOT_READY
        with pytest.raises(DimError):
            await b.result(job, wait=3.0)
        seen = [d["status"] async for d in b.watch(job)]
        assert seen[-1] == "completed"
        assert len(seen) > 1
        assert seen.count("completed") == 1
        result = await b.result(job, wait=3.0)
        assert [d["job_id"] for d in await b.list_jobs(False, 10)] == [job]
    np.testing.assert_array_equal(to_numpy(result["outputs"]["y"]), np.full((3, 2), 2, np.float32))
    assert result["tasks"][0]["receipt"]


async def test_cancelling_through_the_other_seat(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("n", seconds=1000.0)])
    await double_model(swarm)
    async with two_seats(swarm, MemoryHub(seed=1)) as (a, b):
        job = (await a.submit(form(), "me")).job_id
        assert (await b.cancel(job))["status"] == "cancelled"
        assert (await a.get(job))["status"] == "cancelled"


async def test_what_no_seat_knows_is_not_found_and_a_silent_seat_is_unavailable(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("n")])
    await double_model(swarm)
    hub = MemoryHub(seed=1)
    async with two_seats(swarm, hub) as (a, b):
        with pytest.raises(NotFound):
            await a.get("job-nobody")
        job = (await a.submit(form(), "me")).job_id
        await finished(a, job)  # type: ignore[arg-type]
        hub.partition([identity("seat-a").peer_id], [identity("seat-b").peer_id])
        with pytest.raises(Unavailable):
            await b.get(job)
        assert await b.list_jobs(False, 10) == []


async def test_what_no_seat_knows_and_a_silent_node_may_know_is_not_said_to_be_unknown(autojump_clock: MockClock) -> None:
    """Whoever is told that a job does not exist submits it again."""
    swarm = FakeSwarm([FakeNode("n")])
    await double_model(swarm)

    async def in_vain(job: str) -> Found:
        await trio.lowlevel.checkpoint()
        return Found.UNKNOWN

    async with two_seats(swarm, MemoryHub(seed=1)) as (a, _):
        a._search = in_vain
        for call in (a.get, a.cancel, a.result):
            with pytest.raises(Unavailable, match="may know it"):
                await call("job-" + 24 * "a")
            with pytest.raises(NotFound, match="no job's id"):
                await call("job-nobody")


async def test_nonsense_from_a_peer_is_refused(autojump_clock: MockClock) -> None:
    hub = MemoryHub(seed=1)
    one, other = (hub.network(identity(n).peer_id) for n in "ab")
    hub.connect_all()
    holder: list[Any] = [None]
    JobAnswers(other, Seats([]), lambda: holder[0])  # type: ignore[arg-type]
    async with hub:
        with pytest.raises(RemoteFault, match="UNAVAILABLE"):
            await one.request(other.peer_id, METHOD, b"\xff", timeout=1)
        holder[0] = FakeSwarm([FakeNode("n")]).orchestrator(MemoryJournal())
        with pytest.raises(RemoteFault, match="INVALID_ARGUMENT"):
            await one.request(other.peer_id, METHOD, b"\xff", timeout=1)
        asker = Asker(one)
        with pytest.raises(DimError) as e:
            await asker.ask(other.peer_id, Question(op="zzz"))
        assert e.value.code is Code.UNIMPLEMENTED
        with pytest.raises(PermissionDenied):  # it holds no seat
            await asker.submit(other.peer_id, [form()], "me")


async def test_a_burst_to_one_of_three_seats_is_shared(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode(n, seconds=50.0, slots=100) for n in "xyz"])
    await double_model(swarm)
    async with several(swarm, MemoryHub(seed=1), ["a", "b", "c"]) as made:
        first = made.seats[0]
        for _ in range(300):
            await first.submit(form(), "me")
        driven = [len(table.active) for table in made.tables]
        assert sum(driven) == 300
        assert all(60 <= n <= 150 for n in driven), driven
        listed = await made.seats[1].list_jobs(True, 1000)
        assert len(listed) == 300


async def test_a_batch_is_shared_and_answered_in_order(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("x", seconds=50.0, slots=100)])
    await double_model(swarm)
    wrong = InvalidArgument("pattern must be one of these")
    async with several(swarm, MemoryHub(seed=1), ["a", "b"]) as made:
        forms: list[Any] = [form(labels={"n": str(n)}) for n in range(20)]
        forms[7] = wrong
        answers = await made.seats[0].submit_many(forms, "me")
        assert answers[7] is wrong
        for n, answer in enumerate(answers):
            if n != 7:
                assert (await made.seats[1].get(answer.job_id))["labels"] == {"n": str(n)}  # type: ignore[union-attr]
        assert [len(t.active) for t in made.tables] == [10, 9]


async def test_a_single_job_at_a_time_stays_where_it_was_submitted(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("x")])
    await double_model(swarm)
    async with several(swarm, MemoryHub(seed=1), ["a", "b"]) as made:
        for _ in range(10):
            job = (await made.seats[0].submit(form(), "me")).job_id
            await finished(made.seats[0], job)  # type: ignore[arg-type]
        assert [len(await t.recent(100)) for t in made.tables] == [10, 0]


async def test_a_refusal_of_the_freer_seat_names_field_and_rule(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("x")])
    await double_model(swarm)
    collaborative: dict[str, Any] = {"pattern": "collaborative", "config": {"model_id": "double", "aggregation": {"method": "mean"}}}
    async with several(swarm, MemoryHub(seed=1), ["a", "b"]) as made:
        bad = form(client_data={"z": to_json(from_numpy(np.ones(2))), "x": to_json(from_numpy(np.ones(2)))}, **collaborative)
        answers = await Asker(made.hub.networks[identity("b").peer_id]).submit(identity("a").peer_id, [bad], "me")
        refusal = answers[0]
        assert isinstance(refusal, DimError)
        assert isinstance(refusal, InvalidArgument)
        assert refusal.fields[0].field == "client_data.z"


async def test_what_the_freer_seat_cannot_take_is_accepted_here(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("x", seconds=50.0, slots=100)])
    await double_model(swarm)
    hub = MemoryHub(seed=1)
    async with several(swarm, hub, ["a", "b"]) as made:
        hub.partition([identity("a").peer_id], [identity("b").peer_id])
        for _ in range(6):
            await made.seats[0].submit(form(), "me")
        assert [len(t.active) for t in made.tables] == [6, 0]


async def test_a_seat_that_does_not_answer_is_handed_nothing_more_for_a_while(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("x", seconds=500.0, slots=100)])
    await double_model(swarm)
    hub = MemoryHub(seed=1)
    async with several(swarm, hub, ["a", "b"]) as made:
        hub.pause(identity("b").peer_id)
        began = trio.current_time()
        for _ in range(20):
            await made.seats[0].submit(form(), "me")
        assert trio.current_time() - began < 2 * AskSettings().timeout
        hub.resume(identity("b").peer_id)
        await trio.sleep(AskSettings().silent)
        for _ in range(6):
            await made.seats[0].submit(form(), "me")
        assert len(made.tables[1].active) >= 5


@pytest.mark.parametrize("nonsense", [{"answer": None}, {"answer": [{"job": 5}]}, {"answer": 7}, [], "x"])
async def test_a_seat_that_answers_nonsense_is_passed_by(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, nonsense: Any) -> None:
    swarm = FakeSwarm([FakeNode("x", seconds=500.0, slots=100)])
    await double_model(swarm)
    hub = MemoryHub(seed=1)
    async with several(swarm, hub, ["a", "b"]) as made:
        network = hub.networks[identity("a").peer_id]
        request = network.request

        async def answer(peer: str, method: str, data: bytes, *, timeout: float) -> bytes:
            return codec.encode(nonsense) if method == METHOD else await request(peer, method, data, timeout=timeout)

        monkeypatch.setattr(network, "request", answer)
        for _ in range(6):
            await made.seats[0].submit(form(), "me")
        assert [len(t.active) for t in made.tables] == [6, 0]


async def test_nobody_waits_for_the_manifest_of_another_job(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    swarm = FakeSwarm([FakeNode("x", seconds=500.0, slots=100)])
    await double_model(swarm)
    manifest = SwarmModels.manifest
    slowly: ContextVar[bool] = ContextVar("slowly", default=False)

    async def slow(models: SwarmModels, ref: ModelRef) -> ModelManifest:
        if slowly.get():
            await trio.sleep(30)
        return await manifest(models, ref)

    monkeypatch.setattr(SwarmModels, "manifest", slow)
    async with several(swarm, MemoryHub(seed=1), ["a"]) as made, trio.open_nursery() as nursery:
        slowly.set(True)
        nursery.start_soon(made.seats[0].submit, form(labels={"n": "slow"}), "me")
        slowly.set(False)
        await trio.sleep(0.01)
        began = trio.current_time()
        await made.seats[0].submit(form(labels={"n": "good"}), "me")
        assert trio.current_time() - began < 1


async def test_jobs_that_come_at_the_same_time_are_handed_over_together(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    swarm = FakeSwarm([FakeNode("x", seconds=500.0, slots=100)])
    await double_model(swarm)
    hub = MemoryHub(seed=1)
    async with several(swarm, hub, ["a", "b"]) as made:
        asked: list[int] = []
        network = hub.networks[identity("a").peer_id]
        request = network.request

        async def counted(peer: str, method: str, data: bytes, *, timeout: float) -> bytes:
            if method == METHOD:
                asked.append(len(codec.decode(data, Question).forms))
                await trio.sleep(0.1)
            return await request(peer, method, data, timeout=timeout)

        monkeypatch.setattr(network, "request", counted)
        accepted: list[str] = []

        async def client(n: int) -> None:
            accepted.append((await made.seats[0].submit(form(labels={"n": str(n)}), "me")).job_id)

        async with trio.open_nursery() as nursery:
            for n in range(40):
                nursery.start_soon(client, n)
        assert len(set(accepted)) == 40
        assert sum(asked) == len(made.tables[1].active) >= 18
        assert len(asked) <= 5


async def test_a_batch_larger_than_a_request_is_handed_over_in_several(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("dimnode.orchestrator.seat_questions", "p2p.memory_node"):
        monkeypatch.setattr(f"{module}.MAX_REQUEST_BYTES", 300_000)
    swarm = FakeSwarm([FakeNode("x", seconds=500.0, slots=100)])
    await double_model(swarm)
    async with several(swarm, MemoryHub(seed=1), ["a", "b"]) as made:
        forms: list[Any] = [form(labels={"n": str(n)}) for n in range(41)]
        for f in forms:
            f.client_data["x"] = TensorValue(dtype="float32", shape=(1, 15_000), raw=bytes(60_000))
        answers = await made.seats[0].submit_many(forms, "me")
        assert all(isinstance(a, Accepted) for a in answers)
        assert len(made.tables[1].active) == 20


async def test_a_copy_answers_when_the_owner_is_gone_and_never_goes_back(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("n", seconds=1.0)])
    await double_model(swarm)
    hub = MemoryHub(seed=1)
    async with several(swarm, hub, ["a", "b"]) as made:
        a, b = made.seats
        job = (await a.submit(form(), "me")).job_id
        early = made.tables[0].record(job).entries()
        await finished(a, job)  # type: ignore[arg-type]
        await made.tables[1].merge(job, early)  # a copy that has not heard the end
        assert (await b.get(job))["status"] == "completed"
        seen: list[Any] = []
        async with trio.open_nursery() as nursery:

            async def follow() -> None:
                seen.extend([d async for d in b.watch(job)])

            nursery.start_soon(follow)
        assert [d["status"] for d in seen] == ["completed"]
        hub.partition([identity("a").peer_id], [identity("b").peer_id])
        assert (await b.get(job))["status"] != "completed"  # the best that is known here
        late = (await made.tables[0].find(job)).entries()
        await made.tables[1].merge(job, late)
        assert (await b.get(job))["status"] == "completed"
        assert to_numpy((await b.result(job))["outputs"]["y"]).shape == (3, 2)


async def test_a_watch_goes_on_when_its_owner_loses_its_seat(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("n", seconds=20.0)])
    await double_model(swarm)
    hub = MemoryHub(seed=1)
    async with several(swarm, hub, ["a", "b"]) as made:
        a, b = made.seats
        job = (await a.submit(form(), "me")).job_id
        await made.tables[1].merge(job, made.tables[0].record(job).entries())
        seen: list[str] = []
        with trio.move_on_after(12.0):
            async for document in b.watch(job):
                seen.append(document["status"])
                if len(seen) == 1:
                    hub.partition([identity("a").peer_id], [identity("b").peer_id])
        assert seen
        with trio.fail_after(60):
            hub.heal()
            seen.extend([d["status"] async for d in b.watch(job)])
        assert seen[-1] == "completed"


def test_handing_over_follows_what_seats_tell_and_what_was_handed_since() -> None:
    sharing = LoadSharing(LoadSharingSettings(slack=2, memory=1.0))
    assert sharing.place(0, {"b": 0}, 1, now=0.0) == [None]
    assert sharing.place(2, {"b": 0, "c": 1}, 1, now=0.0) == ["b"]
    assert sharing.place(2, {"b": 0, "c": 1}, 1, now=0.1) == [None]  # b has the one from before
    assert sharing.place(3, {"b": 0, "c": 1}, 1, now=0.1) == ["b"]
    assert sharing.place(9, {}, 2, now=0.1) == [None, None]
    assert sharing.place(3, {"b": 0, "c": 1}, 1, now=9.0) == ["b"]
    placed = sharing.place(0, {"b": 0, "c": 0}, 30, now=99.0)
    assert {s: placed.count(s) for s in (None, "b", "c")} == {None: 11, "b": 10, "c": 9}
