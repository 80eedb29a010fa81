"""What a round came to outlives the outputs that it was made from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from dimnode.core.job_record import Record
from dimnode.core.job_view import SealFact
from dimnode.domain.record import Checkpoint, SealEntry
from dimnode.domain.tensors import TensorValue, from_numpy, to_json, to_numpy
from dimnode.errors import Unavailable
from dimnode.orchestrator.checkpoints import PIN, Checkpoints, Place, candidates
from dimnode.orchestrator.values import Values
from p2p.ipfs.api import StoreUnavailable
from p2p.ipfs.memory import MemoryStore
from tests.support import entries as e
from tests.support.orchestrated_jobs import form
from tests.support.orchestration import FakeNode, FakeSwarm
from tests.support.several_seats import Town, town

DONE = (e.attempt(1), e.attempt(2, task="u"))
"""Ordered by two owners."""
SEAL = e.seal(1, 0, t=DONE[0].id, u=DONE[1].id)
OTHER = e.seal(1, 0, t=DONE[0].id)


def fact(entry: Any) -> SealFact:
    body = entry.body()
    assert isinstance(body, SealEntry)
    return SealFact(entry.id, body)


def place(seal: Any = SEAL, plan: str = "plan") -> Place:
    return Place(e.JOB, plan, fact(seal))


class Bench:
    def __init__(self) -> None:
        self.store = MemoryStore()
        self.values = Values(self.store, 16, 1.0)
        self.checkpoints = Checkpoints(self.store, self.values, 1.0)

    async def outputs(self) -> dict[str, TensorValue]:
        large = await self.values.write(np.arange(100, dtype=np.float32), e.JOB)
        return {"large": large, "small": from_numpy(np.ones(2, np.float32))}

    async def saved(self, made_for: Place) -> str:
        cid = await self.checkpoints.save(made_for, await self.outputs(), {"shards": 2, "odd": float("nan")})
        assert cid is not None
        return cid


async def test_what_was_saved_is_loaded_and_kept_whole_until_it_is_let_go() -> None:
    b = Bench()
    cid = await b.saved(place())
    record = Record(e.JOB, [e.claim(1), *DONE, SEAL, e.checkpoint(1, SEAL.id, cid=cid)])
    assert await b.checkpoints.load(place(), record) == (cid, await b.outputs())
    assert (await b.store.pins())[cid] == PIN
    document = await b.store.get_dag(cid)
    assert (document["details"], document["round"], document["seal"]) == ({"shards": 2, "odd": "NaN"}, 0, SEAL.id)
    await b.checkpoints.let_go(cid)
    assert cid not in await b.store.pins()


async def test_only_one_of_the_very_seal_and_plan_counts_and_only_by_an_owner() -> None:
    b = Bench()
    cid = await b.saved(place())
    entry = e.checkpoint(1, SEAL.id, cid=cid)
    told = [e.claim(1), *DONE, SEAL, OTHER]
    assert await b.checkpoints.load(place(), Record(e.JOB, [*told, e.checkpoint(1, OTHER.id, cid=cid)])) is None
    assert await b.checkpoints.load(place(OTHER), Record(e.JOB, [*told, e.checkpoint(1, OTHER.id, cid=cid)])) is None
    assert await b.checkpoints.load(place(plan="another"), Record(e.JOB, [*told, entry])) is None
    assert await b.checkpoints.load(place(), Record(e.JOB, [*DONE, SEAL, entry])) is None, "nobody claimed that ballot"
    assert await b.checkpoints.load(place(), Record(e.JOB, [e.claim(1), *DONE, entry])) is None, "there is no such seal"
    assert await b.checkpoints.load(place(), Record(e.JOB, [*told, entry])) is not None


async def test_one_by_a_member_that_ordered_none_of_the_sealed_attempts_does_not_count() -> None:
    b = Bench()
    good = await b.saved(place())
    forged = await b.store.put_dag({**place().head(), "outputs": {}, "details": {}})
    told = [e.claim(1), *DONE, SEAL, e.claim(0, "mallory"), e.checkpoint(0, SEAL.id, peer="mallory", cid=forged)]
    assert await b.checkpoints.load(place(), Record(e.JOB, told)) is None, "the round is aggregated again"
    found = await b.checkpoints.load(place(), Record(e.JOB, [*told, e.checkpoint(1, SEAL.id, cid=good)]))
    assert found is not None
    assert found[0] == good


@pytest.mark.parametrize("alone", [False, True])
async def test_an_executors_word_for_a_ballot_of_its_own_counts_only_if_it_made_the_whole_round(alone: bool) -> None:
    b = Bench()
    own = e.attempt(0, node="x", peer="x")
    others = [] if alone else [e.attempt(1, task="u", node="y")]
    seal = e.seal(1, 0, **{f"t{n}": a.id for n, a in enumerate([own, *others])})
    cid = await b.saved(place(seal))
    record = Record(e.JOB, [e.claim(1), e.claim(0, "x"), own, *others, seal, e.checkpoint(0, seal.id, peer="x", cid=cid)])
    assert (await b.checkpoints.load(place(seal), record) is not None) == alone


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"outputs": {}},
        {"outputs": []},
        {"outputs": {"y": 1}},
        {"outputs": {"y": {"dtype": 1, "shape": [], "raw": b"", "cid": None}}},
    ],
)
async def test_what_is_no_checkpoint_is_passed_over(document: Any) -> None:
    b = Bench()
    if isinstance(document, dict) and document.get("outputs"):
        document = {**place().head(), **document}
    bad, good = await b.store.put_dag(document), await b.saved(place())
    record = Record(e.JOB, [e.claim(1), e.claim(2), *DONE, SEAL, e.checkpoint(1, SEAL.id, cid=bad), e.checkpoint(2, SEAL.id, cid=good)])
    assert [c.cid for c in candidates(record, fact(SEAL))] == [bad, good]
    found = await b.checkpoints.load(place(), record)
    assert found is not None
    assert found[0] == good


async def test_one_whose_outputs_are_gone_is_of_no_use() -> None:
    b = Bench()
    cid = await b.saved(place())
    only = MemoryStore()
    await only.put_dag_bytes(await b.store.get_dag_bytes(cid))
    record = Record(e.JOB, [e.claim(1), *DONE, SEAL, e.checkpoint(1, SEAL.id, cid=cid)])
    assert await Checkpoints(only, Values(only, 16, 1.0), 1.0).load(place(), record) is None


async def test_a_job_goes_on_without_one_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Bench()
    outputs = await b.outputs()

    async def away(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(b.store._blocks, "put", away)
    assert await b.checkpoints.save(place(), outputs, {}) is None


async def trained(swarm: FakeSwarm, here: Town, gate: trio.Event) -> tuple[str, dict[str, Any]]:
    """Ends a training of three rounds whose owner dies in the second one."""
    await swarm.add_model("step", lambda a: {"w2": a["w"] + a["x"].mean(0)}, {"x": ("N", 2), "w": (2,)}, {"w2": (2,)})
    config = {"model_id": "step", "data_source": "ward", "rounds": 3, "feedback": {"w2": "w"}}
    data = {"w": to_json(from_numpy(np.zeros(2, np.float32)))}
    first = here.living()[0]
    assert first.orchestrator is not None
    job = (await first.orchestrator.submit(form(pattern="collaborative", config=config, client_data=data), "me")).job_id
    await trio.sleep(1)
    here.crash(first.name)
    await trio.sleep(5)
    gate.set()
    with trio.fail_after(60):
        while not (second := here.living()[0]).table.view(job).terminal:
            await trio.sleep(0.1)
    assert second.orchestrator is not None
    return job, dict(await second.orchestrator.result(job))


@pytest.mark.parametrize("lost", [False, True])
async def test_a_new_owner_goes_on_though_the_outputs_of_the_round_before_are_gone(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """``lost``: the checkpoint, too. Then the round is made again."""
    gate = trio.Event()

    async def hold_round_1(order: Any) -> None:
        if order.task.startswith("r1/"):
            await gate.wait()

    nodes = [FakeNode(n, cabinets={"ward": {"x": np.ones((2, 2), np.float32)}}, behave=hold_round_1) for n in "ab"]
    swarm = FakeSwarm(nodes)
    real = Values.read_all
    reads: list[Any] = []
    missing = iter(nodes)

    async def read_all(self: Values, values: Any, job: str, providers: Any = ()) -> Any:
        reads.append(values)
        of_round_0 = to_numpy(values["w2"]).max() == 1.0
        if of_round_0 and len(reads) > 2 and next(missing, None) is not None:  # not for the first owner, and not when it was made again
            raise Unavailable("nobody has it")
        return await real(self, values, job, providers)

    async def none(self: Checkpoints, *_: Any) -> None:
        return None

    monkeypatch.setattr(Values, "read_all", read_all)
    if lost:
        monkeypatch.setattr(Checkpoints, "load", none)
    async with town(swarm, ["p", "q"]) as here:
        job, result = await trained(swarm, here, gate)
        record = here.living()[0].table.record(job)
        assert not any(isinstance(body, Checkpoint) for _, body in record.items()), "it is gone with the rest when the job has ended"
    np.testing.assert_allclose(to_numpy(result["outputs"]["w2"]), [3.0, 3.0])
    ran = [o.task for n in nodes for o in n.runs]
    assert ran.count("r0/s0") + ran.count("r0/s1") == (2 if not lost else 4)
