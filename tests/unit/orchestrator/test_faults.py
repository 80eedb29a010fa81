"""What goes wrong in one job stays in that job, and what was interrupted goes on; on virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from dimnode.domain.record import Ballot, Claim, OutcomeEntry, SignedEntry
from dimnode.domain.tensors import from_numpy, to_json, to_numpy
from dimnode.errors import FailedPrecondition, Fenced, NotFound, ResourceExhausted, Unavailable
from dimnode.orchestrator.job_end import JobEnds
from dimnode.orchestrator.values import Values
from dimnode.records.table import RecordTable, TableSettings
from dimnode.security.signing import sign_entry
from dimnode.state.memory_journal import MemoryJournal
from p2p.ipfs.api import BlockMissing, DiskFull
from tests.support.orchestrated_jobs import double_model, finished, form, held_by, outcome, running
from tests.support.orchestration import FakeNode, FakeSwarm, failing, identity

CONCAT = {"model_id": "double", "aggregation": {"method": "concat"}}


class EagerJournal(MemoryJournal):
    """Like the real one: a write that is under way goes on, whether or not its caller still waits."""

    async def append(self, entries: Sequence[SignedEntry], **more: Any) -> dict[str, Ballot]:
        fenced = await super().append(entries, **more)
        await trio.sleep(0.2)
        return fenced


async def hang(order: Any) -> None:
    await trio.sleep_forever()


async def training(swarm: FakeSwarm) -> Any:
    """Three rounds of w += 1."""
    await swarm.add_model("step", lambda a: {"w2": a["w"] + a["x"].mean(0)}, {"x": ("N", 2), "w": (2,)}, {"w2": (2,)})
    config = {"model_id": "step", "data_source": "ward", "rounds": 3, "feedback": {"w2": "w"}}
    return form(pattern="collaborative", config=config, client_data={"w": to_json(from_numpy(np.zeros(2, np.float32)))})


def ward(name: str, rows: int = 2) -> FakeNode:
    return FakeNode(name, cabinets={"ward": {"x": np.ones((rows, 2), np.float32)}})


@pytest.mark.parametrize("error", [KeyError("/home/somebody/secret"), ZeroDivisionError("x"), BlockMissing("gone")])
async def test_an_unexpected_error_fails_its_job_and_no_other(
    autojump_clock: MockClock, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm = FakeSwarm([FakeNode("a")])
    await double_model(swarm)

    async def broken(order: Any) -> None:
        raise error

    async with running(swarm) as orchestrator:
        swarm.by_peer[next(iter(swarm.by_peer))].behave = broken
        last = await outcome(orchestrator, form())
        swarm.by_peer[next(iter(swarm.by_peer))].behave = None
        good = await outcome(orchestrator, form())
    assert (last["status"], last["error"]["code"]) == ("failed", "INTERNAL")
    assert "secret" not in str(last["error"])
    assert good["status"] == "completed"


async def test_an_aggregate_whose_values_are_gone_fails_the_job_with_the_reason(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: Any) -> Any:
        raise Unavailable("tensor x cannot be fetched")

    swarm = FakeSwarm([FakeNode("a"), FakeNode("b")])
    await double_model(swarm)
    monkeypatch.setattr(Values, "read_all", gone)
    async with running(swarm) as orchestrator:
        last = await outcome(orchestrator, form(pattern="collaborative", config=CONCAT))
    assert (last["status"], last["error"]["code"]) == ("failed", "UNAVAILABLE")


async def test_a_full_disk_delays_an_outcome_and_spares_the_other_jobs(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("a")])
    await double_model(swarm)
    journal = MemoryJournal()
    async with running(swarm, journal) as orchestrator:
        accepted = await orchestrator.submit(form(), "me")
        journal.disk.full = True
        await trio.sleep(30)
        with pytest.raises(ResourceExhausted):
            await orchestrator.submit(form(), "me")
        assert (await orchestrator.get(accepted.job_id))["status"] != "completed"
        journal.disk.full = False
        last = await finished(orchestrator, accepted.job_id)
    assert last["status"] in ("completed", "failed")
    assert await journal.unfinished() == ()


@pytest.mark.parametrize(("inline", "status"), [(1, "failed"), (1 << 20, "completed")])
async def test_a_full_block_store_fails_what_needs_it_and_not_the_node(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, inline: int, status: str
) -> None:
    """A result that fits into the journal needs no block."""
    swarm = FakeSwarm([FakeNode("a")])
    await double_model(swarm)

    async def full(*_: Any, **__: Any) -> str:
        raise DiskFull("no space left in /var/lib/dim/blocks")

    async with running(swarm, inline_result_bytes=inline) as orchestrator:
        monkeypatch.setattr(swarm.store, "put_dag_bytes", full)
        last = await outcome(orchestrator, form())
    assert last["status"] == status
    if status == "failed":
        assert last["error"]["code"] == "RESOURCE_EXHAUSTED"
    assert "/var" not in str(last["error"])


async def test_a_full_disk_at_the_start_of_a_term_does_not_stop_what_can_be_served(autojump_clock: MockClock) -> None:
    gate = trio.Event()
    node = FakeNode("a", behave=held_by(gate))
    swarm = FakeSwarm([node])
    await double_model(swarm)
    journal = MemoryJournal()
    async with running(swarm, journal) as first:
        accepted = await first.submit(form(), "me")
        await trio.sleep(1)
    journal.disk.full = True
    async with running(swarm, journal) as second:
        assert (await second.get(accepted.job_id))["job_id"] == accepted.job_id
        await trio.sleep(5)
        journal.disk.full = False
        gate.set()
        assert (await finished(second, accepted.job_id))["status"] == "completed"


async def test_an_owner_that_is_fenced_writes_no_outcome(autojump_clock: MockClock) -> None:
    async def fenced(order: Any) -> None:
        raise Fenced("a higher ballot owns this job")

    swarm = FakeSwarm([FakeNode("a", behave=fenced)])
    await double_model(swarm)
    journal = MemoryJournal()
    async with running(swarm, journal) as orchestrator:
        accepted = await orchestrator.submit(form(), "me")
        await trio.sleep(60)
        assert (await orchestrator.get(accepted.job_id))["status"] not in ("failed", "expired")
        assert len(await journal.unfinished()) == 1


async def test_an_owner_that_is_fenced_at_the_end_lets_its_job_go(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one's claim comes after the last task is done: there is nothing to be decided any more, and nothing to wait for."""
    swarm = FakeSwarm([FakeNode("a")])
    await double_model(swarm)
    journal = MemoryJournal()
    table = RecordTable(journal, identity("orchestrator"))
    end = JobEnds.end

    async def too_late(ends: JobEnds, outcome: OutcomeEntry, *_: Any) -> bool:
        other = identity("other")
        claim = Claim(job=outcome.job, ballot=Ballot(2, other.peer_id, "b"))
        await table.merge(outcome.job, [sign_entry(claim, other)])
        return await end(ends, outcome)

    async with running(swarm, journal, table=table) as orchestrator:
        monkeypatch.setattr(JobEnds, "end", too_late)
        accepted = await orchestrator.submit(form(), "me")
        await trio.sleep(5)
        document = await orchestrator.get(accepted.job_id)
        assert (document["status"], document["epoch"]) == ("scheduling", 2)
        assert orchestrator.load() == 0


async def test_training_goes_on_in_the_round_where_a_restart_interrupted_it(autojump_clock: MockClock) -> None:
    gate = trio.Event()

    async def hold_round_1(order: Any) -> None:
        if order.task.startswith("r1/"):
            await gate.wait()

    nodes = [ward("a"), ward("b")]
    for n in nodes:
        n.behave = hold_round_1
    swarm = FakeSwarm(nodes)
    job = await training(swarm)
    journal = MemoryJournal()
    async with running(swarm, journal) as first:
        accepted = await first.submit(job, "me")
        await trio.sleep(1)
    async with running(swarm, journal) as second:
        await trio.sleep(1)
        gate.set()
        last = await finished(second, accepted.job_id)
        result = await second.result(accepted.job_id)
    assert last["status"] == "completed"
    np.testing.assert_allclose(to_numpy(result["outputs"]["w2"]), [3.0, 3.0])
    assert [o.task for o in nodes[0].runs] == ["r0/s0", "r1/s0", "r2/s0"]
    assert [o.task for o in nodes[0].orders] == ["r0/s0", "r1/s0", "r1/s0", "r2/s0"]


async def test_a_job_is_resumed_before_its_nodes_are_seen_again(autojump_clock: MockClock) -> None:
    gate = trio.Event()
    b = FakeNode("b", behave=held_by(gate))
    swarm = FakeSwarm([FakeNode("a"), b])
    await double_model(swarm)
    journal = MemoryJournal()
    async with running(swarm, journal) as first:
        accepted = await first.submit(form(config={"pipeline": [{"step": 1, "model_id": "double", "node_id": "b"}]}), "me")
        await trio.sleep(1)
    del swarm.by_peer[b.peer]
    swarm.touch()
    async with running(swarm, journal) as second:
        await trio.sleep(5)
        assert (await second.get(accepted.job_id))["status"] != "failed"
        swarm.by_peer[b.peer] = b
        swarm.touch()
        gate.set()
        assert (await finished(second, accepted.job_id))["status"] == "completed"
    assert len(b.runs) == 1


async def test_tries_before_a_restart_count(autojump_clock: MockClock) -> None:
    gate = trio.Event()

    async def broken(order: Any) -> None:
        if order.attempt >= 3:
            await gate.wait()
        raise failing("the agent crashed")

    node = FakeNode("a", behave=broken)
    swarm = FakeSwarm([node])
    await double_model(swarm)
    journal = MemoryJournal()
    async with running(swarm, journal, retries=2) as first:
        accepted = await first.submit(form(), "me")
        await trio.sleep(20)
    async with running(swarm, journal, retries=2) as second:
        gate.set()
        assert (await finished(second, accepted.job_id))["status"] == "failed"
    assert [o.attempt for o in node.runs] == [1, 2, 3]


async def test_a_key_sent_twice_at_once_is_one_job_driven_once(autojump_clock: MockClock) -> None:
    node = FakeNode("a")
    swarm = FakeSwarm([node])
    await double_model(swarm)
    ids: list[str] = []
    async with running(swarm, MemoryJournal(sync=0.1)) as orchestrator:

        async def submit() -> None:
            ids.append((await orchestrator.submit(form(idempotency_key="k"), "me")).job_id)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(submit)
        await finished(orchestrator, ids[0])
        assert orchestrator.statistics()["accepted"] == 1
    assert len(set(ids)) == 1
    assert len(node.orders) == 1


async def test_a_key_whose_first_sending_failed_may_be_sent_again(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("a")])
    await double_model(swarm)
    journal = MemoryJournal(sync=0.1)
    outcomes: list[str] = []
    async with running(swarm, journal) as orchestrator:

        async def submit() -> None:
            try:
                outcomes.append((await orchestrator.submit(form(idempotency_key="k"), "me")).job_id)
            except ResourceExhausted:
                outcomes.append("refused")

        journal.disk.full = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit)
            await trio.sleep(0.05)
            nursery.start_soon(submit)
            await trio.sleep(0.06)
            journal.disk.full = False
        assert outcomes[0] == "refused"
        assert (await finished(orchestrator, outcomes[1]))["status"] == "completed"


async def test_a_job_does_not_wait_for_a_dead_nodes_cabinet_if_the_rest_are_enough(autojump_clock: MockClock) -> None:
    nodes = [ward("a"), ward("b"), ward("c")]
    nodes[2].behave = hang
    swarm = FakeSwarm(nodes)
    await double_model(swarm)
    config = {"model_id": "double", "data_source": "ward", "aggregation": {"method": "mean"}, "min_nodes": 2}
    async with running(swarm) as orchestrator:
        accepted = await orchestrator.submit(form(pattern="collaborative", config=config, client_data=None), "me")
        await trio.sleep(1)
        swarm.kill("c")
        with trio.fail_after(60):
            last = await finished(orchestrator, accepted.job_id)
    assert last["status"] == "completed"


async def test_tasks_that_start_together_do_not_spend_the_same_credits(autojump_clock: MockClock) -> None:
    """Each of three tasks could pay for the dear node alone; together they cannot."""
    cheap, dear = FakeNode("cheap", price=1.0), FakeNode("dear", price=10.0, slots=16)
    swarm = FakeSwarm([cheap, dear])
    models = ["double", "other", "third"]
    for model in models:
        await double_model(swarm, model)
    config = {"model_ids": models, "consensus": {"method": "mean", "minAgreement": 0.0}}
    async with running(swarm, MemoryJournal(sync=0.05)) as orchestrator:
        accepted = await orchestrator.submit(form(pattern="comparative", config=config, max_cost=12), "me")
        cheap.loaders = ()
        swarm.touch()
        await trio.sleep(60)
        assert len(dear.orders) == 1
        cheap.loaders = ("onnx",)
        swarm.touch()
        assert (await finished(orchestrator, accepted.job_id))["status"] == "completed"
        assert (await orchestrator.result(accepted.job_id))["cost"] == 12


async def test_time_in_the_queue_counts_towards_the_jobs_timeout(autojump_clock: MockClock) -> None:
    node = FakeNode("a", seconds=50.0)
    swarm = FakeSwarm([node])
    await double_model(swarm)
    async with running(swarm, max_running_jobs=1) as orchestrator:
        slow = await orchestrator.submit(form(), "me")
        queued = await orchestrator.submit(form(timeout=10), "me")
        await finished(orchestrator, slow.job_id)
        node.seconds = 0.01
        assert (await finished(orchestrator, queued.job_id))["status"] == "expired"
    assert len(node.orders) == 1


async def test_a_cancel_that_meets_the_end_of_the_job_does_not_undo_it(autojump_clock: MockClock) -> None:
    """Whichever is durable first is what every client is told, from then on."""
    swarm = FakeSwarm([FakeNode("a", seconds=1.0)])
    await double_model(swarm)
    for late in [0.9 + i / 40 for i in range(41)]:
        journal = MemoryJournal(sync=0.2)
        told: list[str] = []
        async with running(swarm, journal) as orchestrator:
            job = (await orchestrator.submit(form(), "me")).job_id

            async def cancel(job: str = job, late: float = late, orchestrator: Any = orchestrator) -> None:
                await trio.sleep(late)
                with suppress(FailedPrecondition):  # completed already
                    await orchestrator.cancel(job)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel)
                told += [document["status"] async for document in orchestrator.watch(job)]
            told.append((await orchestrator.get(job))["status"])
        async with running(swarm, journal) as orchestrator:
            told.append((await orchestrator.get(job))["status"])
        ends = {t for t in told if t in ("completed", "cancelled", "failed", "expired")}
        assert len(ends) == 1, (late, told)
        assert told[-1] in ends


async def test_a_timeout_that_meets_the_outcome_leaves_one_outcome(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("a", seconds=1.0)])
    await double_model(swarm)
    for timeout in [1.0 + i / 40 for i in range(57)]:
        journal = EagerJournal()
        async with running(swarm, journal) as orchestrator:
            last = await outcome(orchestrator, form(timeout=timeout))
        async with running(swarm, journal) as orchestrator:
            assert (await orchestrator.get(last["job_id"]))["status"] == last["status"], timeout


async def test_a_job_whose_tasks_ran_here_for_another_owner_is_not_known_here(autojump_clock: MockClock) -> None:
    """The executor's journal keeps the attempts it signed: they are not the job."""
    node = FakeNode("a")
    swarm = FakeSwarm([node])
    await double_model(swarm)
    own, executors = MemoryJournal(), MemoryJournal()
    async with running(swarm, own) as owner:
        job = (await owner.submit(form(), "me")).job_id
        await trio.sleep(0.005)
        entry = await swarm.sign_attempt(node, node.orders[-1])
        await executors.append([entry])
        await finished(owner, job)
    async with running(swarm, executors) as other:
        for ask in (other.get, other.cancel, other.result):
            with pytest.raises(NotFound):
                await ask(job)
        assert await other.list_jobs(False, 10) == []
        assert other.statistics()["active"] == 0
    assert len(executors.disk.records[job]) == 1


async def test_a_dry_run_spreads_the_tasks_of_a_job_as_the_job_itself_does(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("a"), FakeNode("b")])
    await double_model(swarm)
    async with running(swarm) as orchestrator:
        told = await orchestrator.dry_run(form(pattern="collaborative", config=CONCAT), "me")
    assert sorted(t["node"] for t in told["placement"].values()) == ["a", "b"]


async def test_cancelled_jobs_do_not_pile_up_in_the_queue_or_stop_it_when_they_are_forgotten(autojump_clock: MockClock) -> None:
    node = FakeNode("a", seconds=50.0)
    swarm = FakeSwarm([node])
    await double_model(swarm)
    async with running(swarm, keep=TableSettings(keep_finished=3), max_running_jobs=2) as orchestrator:
        slow = [(await orchestrator.submit(form(), "me")).job_id for _ in range(2)]
        for _ in range(50):
            await orchestrator.cancel((await orchestrator.submit(form(), "me")).job_id)
            assert orchestrator.statistics()["waiting"] <= 8
        for job in slow:
            assert (await finished(orchestrator, job))["status"] == "completed"
        assert (await outcome(orchestrator, form()))["status"] == "completed"
    assert len(node.orders) == 3


@pytest.mark.parametrize("bound", [{"keep_finished": 3}, {"keep_finished_bytes": 1}])
async def test_finished_jobs_are_answered_for_from_the_journal_when_memory_lets_them_go(
    autojump_clock: MockClock, bound: dict[str, int]
) -> None:
    swarm = FakeSwarm([FakeNode("a")])
    await double_model(swarm)
    async with running(swarm, keep=TableSettings(**bound)) as orchestrator:
        answers = await orchestrator.submit_many([form() for _ in range(8)], "me")
        jobs = [a.job_id for a in answers]  # type: ignore[union-attr]
        for job in jobs:
            assert (await finished(orchestrator, job))["status"] == "completed"
        assert len(orchestrator._table._memory._finished) <= 3
        for job in jobs:
            assert to_numpy((await orchestrator.result(job))["outputs"]["y"]).shape == (3, 2)
        assert len(await orchestrator.list_jobs(False, 10)) == 8


async def test_jobs_that_wait_for_the_swarm_do_not_keep_others_from_being_driven(autojump_clock: MockClock) -> None:
    a, b = FakeNode("a"), FakeNode("b")
    swarm = FakeSwarm([a, b])
    await double_model(swarm)
    on_b = {"pipeline": [{"step": 1, "model_id": "double", "node_id": "b"}]}
    async with running(swarm, max_running_jobs=2) as orchestrator:
        b.loaders = ()
        swarm.touch()
        waiting = [(await orchestrator.submit(form(config=on_b), "me")).job_id for _ in range(5)]
        short = (await orchestrator.submit(form(config=on_b, timeout=20), "me")).job_id
        cancelled = (await orchestrator.submit(form(config=on_b), "me")).job_id
        with trio.fail_after(10):
            assert (await outcome(orchestrator, form()))["status"] == "completed"
        await orchestrator.cancel(cancelled)
        assert (await finished(orchestrator, short))["status"] == "expired"
        b.loaders = ("onnx",)
        swarm.touch()
        for job in waiting:
            assert (await finished(orchestrator, job))["status"] == "completed"
        assert len(b.orders) == 5
        with trio.fail_after(10):
            assert (await outcome(orchestrator, form()))["status"] == "completed"


async def test_a_job_that_waits_for_its_cabinets_node_lends_its_place_and_takes_it_back(autojump_clock: MockClock) -> None:
    nodes = [ward("a"), ward("b")]
    swarm = FakeSwarm(nodes)
    await double_model(swarm)
    config = {"model_id": "double", "data_source": "ward", "nodes": ["a", "b"], "aggregation": {"method": "mean"}}
    async with running(swarm, max_running_jobs=1) as orchestrator:
        nodes[1].behave = hang
        first = await orchestrator.submit(form(pattern="collaborative", config=config, client_data=None), "me")
        await trio.sleep(1)
        swarm.kill("b")
        await trio.sleep(30)
        nodes[1].behave = None
        with trio.fail_after(10):
            assert (await outcome(orchestrator, form()))["status"] == "completed"
        swarm.revive("b")
        assert (await finished(orchestrator, first.job_id))["status"] == "completed"
        with trio.fail_after(10):
            assert (await outcome(orchestrator, form()))["status"] == "completed"
