"""What an orchestrator does with jobs from their submission on, on virtual time; how they end is in `test_job_ends`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from dimnode.domain.tensors import from_numpy, to_json, to_numpy
from dimnode.errors import (
    Code,
    DimError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    NotReady,
    ResourceExhausted,
    Unavailable,
)
from dimnode.state.memory_journal import MemoryJournal
from tests.support.orchestrated_jobs import double_model, finished, form, held_by, outcome, running
from tests.support.orchestration import FakeNode, FakeSwarm, failing


async def test_a_chain_runs_and_its_result_has_values_tasks_receipts_and_cost(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("a", price=2.0), FakeNode("b", price=2.0)])
    await double_model(swarm)
    steps = [
        {"step": 1, "model_id": "double"},
        {"step": 2, "model_id": "double", "input_source": "step_1_output", "inputs": {"y": "x"}},
    ]
    async with running(swarm) as orchestrator:
        accepted = await orchestrator.submit(form(config={"pipeline": steps}), "me")
        assert accepted.copies == 1
        seen = [dict(d)["status"] async for d in orchestrator.watch(accepted.job_id)]
        assert seen[-1] == "completed"
        assert seen == sorted(seen, key=["queued", "scheduling", "fetching", "running", "aggregating", "completed"].index)
        result = await orchestrator.result(accepted.job_id)
    np.testing.assert_array_equal(to_numpy(result["outputs"]["y"]), np.full((3, 2), 4, np.float32))
    assert [t["status"] for t in result["tasks"]] == ["completed", "completed"]
    assert {s["node"] for s in result["details"]["steps"]} <= {"a", "b"}
    assert all(t["receipt"] for t in result["tasks"])
    assert result["cost"] == 4.0
    assert result["result_cid"].startswith("bafyrei")


async def test_client_data_is_sharded_over_the_nodes_and_put_back_in_order(autojump_clock: MockClock) -> None:
    nodes = [FakeNode(n) for n in "abc"]
    swarm = FakeSwarm(nodes)
    await double_model(swarm)
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    config = {"model_id": "double", "nodes": ["a", "b", "c"], "aggregation": {"method": "concat"}}
    async with running(swarm) as orchestrator:
        accepted = await orchestrator.submit(form(pattern="collaborative", config=config, client_data={"x": to_json(from_numpy(x))}), "me")
        await finished(orchestrator, accepted.job_id)
        result = await orchestrator.result(accepted.job_id)
    np.testing.assert_array_equal(to_numpy(result["outputs"]["y"]), x * 2)
    assert sorted(len(n.orders) for n in nodes) == [1, 1, 1]


async def test_cabinets_stay_on_their_nodes_and_rounds_feed_back(autojump_clock: MockClock) -> None:
    data = {n: np.full((k, 2), v, np.float32) for n, k, v in (("a", 1, 1.0), ("b", 3, 5.0))}
    nodes = [FakeNode(n, cabinets={"ward": {"x": d}}) for n, d in data.items()]
    swarm = FakeSwarm(nodes)
    await swarm.add_model("step", lambda a: {"w2": a["w"] + a["x"].mean(0)}, {"x": ("N", 2), "w": (2,)}, {"w2": (2,)})
    config = {"model_id": "step", "data_source": "ward", "rounds": 3, "feedback": {"w2": "w"}}
    w = to_json(from_numpy(np.zeros(2, np.float32)))
    async with running(swarm) as orchestrator:
        accepted = await orchestrator.submit(form(pattern="collaborative", config=config, client_data={"w": w}), "me")
        last = await finished(orchestrator, accepted.job_id)
        assert last["status"] == "completed", last["error"]
        result = await orchestrator.result(accepted.job_id)
    np.testing.assert_allclose(to_numpy(result["outputs"]["w2"]), [12.0, 12.0])  # 3 rounds of (1*1 + 3*5) / 4
    assert all(o.cabinet is not None for n in nodes for o in n.orders)
    assert all(len(n.orders) == 3 for n in nodes)


async def test_models_are_compared_and_too_little_agreement_fails_with_the_votes(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("a"), FakeNode("b")])
    for i, name in enumerate(("m0", "m1", "m2")):
        await swarm.add_model(name, lambda a, i=i: {"c": np.full(len(a["x"]), min(i, 1))}, {"x": ("N", 2)}, {"c": ("N",)}, "int64")
    config = {"model_ids": ["m0", "m1", "m2"], "consensus": {"method": "majority_vote", "minAgreement": 0.6}}
    async with running(swarm) as orchestrator:
        good = await orchestrator.submit(form(pattern="comparative", config=config), "me")
        assert (await finished(orchestrator, good.job_id))["status"] == "completed"
        result = await orchestrator.result(good.job_id)
        strict = {**config, "consensus": {"method": "unanimous", "minAgreement": 0.9}}
        bad = await outcome(orchestrator, form(pattern="comparative", config=strict))
        with pytest.raises(DimError) as e:
            await orchestrator.result(bad["job_id"])
    assert any(to_numpy(v).tolist() == [1, 1, 1] for v in result["outputs"].values())
    assert bad["status"] == "failed"
    assert bad["error"]["code"] == "NO_CONSENSUS"
    assert bad["error"]["details"]
    assert e.value.code is Code.NO_CONSENSUS


async def test_a_failed_task_is_tried_again_on_another_node(autojump_clock: MockClock) -> None:
    async def broken(order: Any) -> None:
        raise failing("the agent crashed")

    a, b = FakeNode("a", behave=broken), FakeNode("b", price=5.0)
    swarm = FakeSwarm([a, b])
    await double_model(swarm)
    async with running(swarm) as orchestrator:
        last = await outcome(orchestrator, form())
    assert last["status"] == "completed"
    assert [t["status"] for t in last["tasks"]] == ["failed", "completed"]
    assert (len(a.orders), len(b.orders)) == (1, 1)


async def test_a_node_that_dies_while_it_works_is_replaced(autojump_clock: MockClock) -> None:
    async def hang(order: Any) -> None:
        await trio.sleep_forever()

    a, b = FakeNode("a", behave=hang), FakeNode("b", price=5.0)
    swarm = FakeSwarm([a, b])
    await double_model(swarm)
    async with running(swarm) as orchestrator:
        accepted = await orchestrator.submit(form(), "me")
        await trio.sleep(1)
        swarm.kill("a")
        last = await finished(orchestrator, accepted.job_id)
    assert last["status"] == "completed"
    assert len(b.orders) == 1


async def test_retries_are_bounded_and_the_reason_is_told(autojump_clock: MockClock) -> None:
    async def broken(order: Any) -> None:
        raise failing("the agent crashed")

    swarm = FakeSwarm([FakeNode("a", behave=broken)])
    await double_model(swarm)
    async with running(swarm, retries=2) as orchestrator:
        last = await outcome(orchestrator, form())
        assert (await outcome(orchestrator, form(retries=0)))["status"] == "failed"
    assert last["status"] == "failed"
    assert last["error"]["code"] == "TASK_FAILED"
    assert "the agent crashed" in last["error"]["message"]
    assert len(last["tasks"]) == 3


async def test_restarts_of_a_node_do_not_count_as_failures_of_its_tasks_unless_they_go_on(autojump_clock: MockClock) -> None:
    for ends, status in ((5, "completed"), (6, "failed")):

        async def interrupted(order: Any, ends: int = ends) -> None:
            if order.attempt <= ends:
                raise failing("the node restarted before the task was done", code="UNAVAILABLE", interrupted=True)

        swarm = FakeSwarm([FakeNode("a", behave=interrupted)])
        await double_model(swarm)
        async with running(swarm, retries=0, interruptions=5) as orchestrator:
            last = await outcome(orchestrator, form(timeout=3600))
        assert last["status"] == status
        assert len(last["tasks"]) == 6


async def test_failures_count_among_interruptions_also_after_a_restart(autojump_clock: MockClock) -> None:
    async def behave(order: Any) -> None:
        if order.attempt == 3:
            held.set()
            await gate.wait()
        raise failing("ended", interrupted=order.attempt % 2 == 1)

    held, gate = trio.Event(), trio.Event()
    swarm = FakeSwarm([FakeNode("a", behave=behave)])
    await double_model(swarm)
    journal = MemoryJournal()
    async with running(swarm, journal, retries=1) as first:
        job = (await first.submit(form(timeout=3600), "me")).job_id
        await held.wait()
    async with running(swarm, journal, retries=1) as second:
        gate.set()
        last = await finished(second, job)
    assert last["status"] == "failed"
    assert [t["attempt"] for t in last["tasks"]] == [1, 2, 3, 4]  # 2 and 4 are failures


async def test_an_error_that_no_node_could_mend_is_not_retried(autojump_clock: MockClock) -> None:
    async def bad(order: Any) -> None:
        raise failing("input x has the wrong rank", retryable=False, code="INVALID_ARGUMENT")

    a = FakeNode("a", behave=bad)
    swarm = FakeSwarm([a])
    await double_model(swarm)
    async with running(swarm) as orchestrator:
        last = await outcome(orchestrator, form())
    assert last["error"]["code"] == "INVALID_ARGUMENT"
    assert len(a.orders) == 1


async def test_a_busy_node_is_asked_again_without_spending_retries(autojump_clock: MockClock) -> None:
    refusals = iter(range(5))

    async def busy(order: Any) -> None:
        if next(refusals, None) is not None:
            raise ResourceExhausted("queue full")

    swarm = FakeSwarm([FakeNode("a", behave=busy)])
    await double_model(swarm)
    async with running(swarm, retries=0) as orchestrator:
        assert (await outcome(orchestrator, form()))["status"] == "completed"


async def test_a_forged_answer_does_not_count(autojump_clock: MockClock) -> None:
    a, b = FakeNode("a", forge="mallory"), FakeNode("b", price=5.0)
    swarm = FakeSwarm([a, b])
    await double_model(swarm)
    async with running(swarm) as orchestrator:
        last = await outcome(orchestrator, form())
    assert last["status"] == "completed"
    assert len(a.orders) == len(b.orders) == 1


async def test_min_nodes_lets_a_job_complete_with_the_rest(autojump_clock: MockClock) -> None:
    async def broken(order: Any) -> None:
        raise failing("disk on fire")

    nodes = [FakeNode(n, cabinets={"ward": {"x": np.ones((2, 2), np.float32)}}) for n in "abc"]
    nodes[0].behave = broken
    swarm = FakeSwarm(nodes)
    await double_model(swarm)
    config: dict[str, Any] = {"model_id": "double", "data_source": "ward", "aggregation": {"method": "mean"}}
    async with running(swarm, retries=0) as orchestrator:
        strict = await outcome(orchestrator, form(pattern="collaborative", config=config, client_data=None))
        lax = await outcome(orchestrator, form(pattern="collaborative", config={**config, "min_nodes": 2}, client_data=None))
    assert strict["status"] == "failed"
    assert lax["status"] == "completed"


async def test_a_job_waits_for_a_node_and_goes_on_when_it_comes(autojump_clock: MockClock) -> None:
    a = FakeNode("a", loaders=("pt2",))
    swarm = FakeSwarm([a])
    await double_model(swarm)
    async with running(swarm) as orchestrator:
        accepted = await orchestrator.submit(form(), "me")
        await trio.sleep(60)
        assert (await orchestrator.get(accepted.job_id))["status"] == "scheduling"
        with pytest.raises(NotReady):
            await orchestrator.result(accepted.job_id)
        a.loaders = ("onnx",)
        swarm.touch()
        assert (await finished(orchestrator, accepted.job_id))["status"] == "completed"


async def test_an_accepted_job_survives_a_crash_and_finishes_under_a_higher_ballot(autojump_clock: MockClock) -> None:
    a = FakeNode("a")
    swarm = FakeSwarm([a])
    await double_model(swarm)
    journal = MemoryJournal()
    gate = trio.Event()
    a.behave = held_by(gate)
    async with running(swarm, journal) as first:
        accepted = await first.submit(form(), "me")
        await trio.sleep(1)
    async with running(swarm, journal) as second:
        gate.set()
        last = await finished(second, accepted.job_id)
        result = await second.result(accepted.job_id)
    assert last["status"] == "completed"
    assert last["epoch"] == 2
    assert len(a.runs) == 1
    assert a.cancelled == []
    np.testing.assert_array_equal(to_numpy(result["outputs"]["y"]), np.full((3, 2), 2, np.float32))


async def test_finished_steps_are_not_run_again_after_a_restart(autojump_clock: MockClock) -> None:
    a = FakeNode("a")
    swarm = FakeSwarm([a])
    await double_model(swarm)
    journal = MemoryJournal()

    async def hang_at_step_2(order: Any) -> None:
        if order.task == "step-2":
            await trio.sleep_forever()

    a.behave = hang_at_step_2
    steps = [
        {"step": 1, "model_id": "double"},
        {"step": 2, "model_id": "double", "input_source": "step_1_output", "inputs": {"y": "x"}},
    ]
    async with running(swarm, journal) as first:
        accepted = await first.submit(form(config={"pipeline": steps}), "me")
        await trio.sleep(1)
    a.behave = None
    async with running(swarm, journal) as second:
        await finished(second, accepted.job_id)
    assert [o.task for o in a.orders] == ["step-1", "step-2", "step-2"]


async def test_the_same_idempotency_key_and_form_is_the_same_job(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("a")])
    await double_model(swarm)
    journal = MemoryJournal()
    async with running(swarm, journal) as orchestrator:
        one = await orchestrator.submit(form(idempotency_key="k"), "me")
        two = await orchestrator.submit(form(idempotency_key="k"), "me")
        other = await orchestrator.submit(form(idempotency_key="k2"), "me")
        await finished(orchestrator, one.job_id)
    async with running(swarm, journal) as orchestrator:
        three = await orchestrator.submit(form(idempotency_key="k"), "me")
    assert one.job_id == two.job_id == three.job_id != other.job_id


async def test_a_batch_is_accepted_and_refused_job_by_job(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("a")])
    await double_model(swarm)
    async with running(swarm) as orchestrator:
        unknown = form(config={"pipeline": [{"step": 1, "model_id": "nothing"}]})
        answers = await orchestrator.submit_many([form(), unknown, InvalidArgument("bad form"), form()], "me")
        for a in answers:
            if not isinstance(a, Exception):
                await finished(orchestrator, a.job_id)
        assert len(await orchestrator.list_jobs(False, 10)) == 2
        assert await orchestrator.list_jobs(True, 10) == []
    assert isinstance(answers[1], NotFound)
    assert isinstance(answers[2], InvalidArgument)


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"config": {"pipeline": [{"step": 1, "model_id": "nope"}]}}, NotFound, "nope"),
        ({"config": {"pipeline": [{"step": 1, "model_id": "double", "node_id": "nobody"}]}}, NotFound, "nobody"),
        ({"config": {"pipeline": [{"step": 1, "model_id": "double", "input_source": "drawer"}]}}, NotFound, "drawer"),
        ({"client_data": None}, InvalidArgument, "client_data"),
        ({"max_cost": 0.5}, FailedPrecondition, "cheapest estimate is 1"),
        ({"client_data": {"zz": {"dtype": "float32", "shape": [1], "data": [1]}, "yy": {"dtype": "float32", "shape": [1], "data": [1]}}}, DimError, "x"),
    ],
)  # fmt: skip
async def test_what_cannot_work_is_refused_at_submission_and_nothing_is_stored(
    autojump_clock: MockClock, changes: dict[str, Any], kind: type[DimError], text: str
) -> None:
    swarm = FakeSwarm([FakeNode("a")])
    await double_model(swarm)
    journal = MemoryJournal()
    async with running(swarm, journal) as orchestrator:
        with pytest.raises(kind, match=text):
            await orchestrator.submit(form(**changes), "me")
    assert await journal.recent(10) == ()


async def test_a_spec_that_is_too_large_is_refused_and_large_inputs_go_by_cid(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("a")])
    await double_model(swarm)
    x = np.ones((20_000, 2), np.float32)
    async with running(swarm, max_spec_bytes=10_000) as orchestrator:
        big = form(client_data={"x": to_json(from_numpy(x))})
        last = await outcome(orchestrator, big)
        assert last["status"] == "completed"
        result = await orchestrator.result(last["job_id"])
        assert result["outputs"]["y"].cid or result["outputs"]["y"].raw
        with pytest.raises(InvalidArgument, match="must not be larger"):
            await orchestrator.submit(form(labels={str(i): "x" * 250 for i in range(64)}), "me")


async def test_admission_is_bounded_and_a_stopping_orchestrator_accepts_nothing(autojump_clock: MockClock) -> None:
    async def hang(order: Any) -> None:
        await trio.sleep_forever()

    swarm = FakeSwarm([FakeNode("a", behave=hang)])
    await double_model(swarm)
    async with running(swarm, max_active_jobs=2) as orchestrator:
        await orchestrator.submit(form(), "me")
        await orchestrator.submit(form(), "me")
        with pytest.raises(ResourceExhausted) as e:
            await orchestrator.submit(form(), "me")
        assert e.value.retry_after
        orchestrator.stop_accepting()
        with pytest.raises(Unavailable):
            await orchestrator.submit(form(), "me")


async def test_a_batch_beyond_the_bound_is_accepted_as_far_as_there_is_room(autojump_clock: MockClock) -> None:
    """It may be of many clients, and one of them asks again for what was accepted."""

    async def hang(order: Any) -> None:
        await trio.sleep_forever()

    swarm = FakeSwarm([FakeNode("a", behave=hang)])
    await double_model(swarm)
    async with running(swarm, max_active_jobs=4) as orchestrator:
        known = await orchestrator.submit(form(idempotency_key="k"), "me")
        batch = [*(form(labels={"n": str(n)}) for n in range(5)), form(idempotency_key="k")]
        answers = await orchestrator.submit_many(batch, "me")
        assert answers[-1] == known
        assert [isinstance(a, ResourceExhausted) for a in answers] == [False, False, False, True, True, False]
        assert orchestrator.load() == 4


async def test_critical_jobs_are_driven_before_low_ones(autojump_clock: MockClock) -> None:
    order: list[str] = []

    async def note(task: Any) -> None:
        order.append(task.priority)

    swarm = FakeSwarm([FakeNode("a", behave=note)])
    await double_model(swarm)
    async with running(swarm, max_running_jobs=1) as orchestrator:
        jobs = await orchestrator.submit_many([form(priority=p) for p in ("low", "normal", "critical", "high")], "me")
        for job in jobs:
            await finished(orchestrator, job.job_id)  # type: ignore[union-attr]
    assert order == ["critical", "high", "normal", "low"]


async def test_a_dry_run_explains_the_choice_and_every_refusal_without_data(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("a", price=3.0), FakeNode("b", price=2.0), FakeNode("c", loaders=())])
    await double_model(swarm)
    async with running(swarm) as orchestrator:
        told = await orchestrator.dry_run(form(client_data=None), "me")
        spread = {"model_id": "double", "nodes": ["a", "b"], "aggregation": {"method": "federated_averaging"}}
        shared = await orchestrator.dry_run(form(pattern="collaborative", config=spread, client_data=None), "me")
        assert await orchestrator.list_jobs(False, 10) == []
    step = told["placement"]["step-1"]
    assert step["node"] == "b"
    assert step["refused"] == {"c": "has no loader for onnx"}
    assert told["estimated_cost"] == 2.0
    assert len(shared["placement"]) == 2


async def test_an_unknown_job_is_not_found(autojump_clock: MockClock) -> None:
    swarm = FakeSwarm([FakeNode("a")])
    async with running(swarm) as orchestrator:
        for call in (orchestrator.get, orchestrator.result, orchestrator.cancel):
            with pytest.raises(NotFound):
                await call("job-nothing")
        with pytest.raises(NotFound):
            async for _ in orchestrator.watch("job-nothing"):
                pass
