"""Jobs that change their owner: what is gone with a node, time that passes, nodes that refuse. On virtual time, with several seats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from dimnode.domain.record import Assign, Ballot, Claim, Core, StatusEntry
from dimnode.domain.task import TaskOrder
from dimnode.domain.tensors import to_numpy
from dimnode.errors import DimError, ResourceExhausted, Unavailable
from dimnode.orchestrator.values import Values
from dimnode.records.table import RecordTable
from dimnode.security.signing import sign_entry
from dimnode.state.memory_journal import MemoryJournal
from tests.support.orchestrated_jobs import double_model, finished, form, held_by, running
from tests.support.orchestration import FakeNode, FakeSwarm, failing, identity
from tests.support.several_seats import town
from tests.support.takeovers import CONCAT, ended, owner_of, submitted

# --- what is lost


def losing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Peers whose outputs cannot be had any more; all outputs count as large."""
    lost = set[str]()

    async def here(self: Values, values: Any) -> bool:
        return not lost

    async def gone(self: Values, values: Any, job: str, providers: Any) -> str | None:
        return "no provider had it" if lost.intersection(providers) else None

    monkeypatch.setattr(Values, "here", here)
    monkeypatch.setattr(Values, "gone", gone)
    return lost


async def test_what_a_dead_node_made_is_made_again_after_a_takeover_if_nobody_has_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = losing(monkeypatch)
    gate = trio.Event()

    async def hold_step_2(order: TaskOrder) -> None:
        if order.task == "step-2":
            await gate.wait()

    a, b = FakeNode("a"), FakeNode("b", price=5.0, behave=hold_step_2)
    swarm = FakeSwarm([a, b])
    await double_model(swarm)
    steps: list[dict[str, Any]] = [
        {"step": 1, "model_id": "double"},
        {"step": 2, "model_id": "double", "node_id": "b", "input_source": "step_1_output", "inputs": {"y": "x"}},
    ]
    async with town(swarm, ["p", "q"]) as here:
        job, first = await submitted(here, config={"pipeline": steps})
        await trio.sleep(1)
        lost.add(a.peer)
        swarm.kill("a")
        here.crash(first.name)
        await owner_of(here, job)
        gate.set()
        document = await ended(here, job)
    assert document["status"] == "completed"
    assert [o.task for o in a.runs] == ["step-1"]
    assert [o.task for o in b.runs] == ["step-2", "step-1"]  # the second step ran on, and its input is the same


async def test_a_step_that_cannot_get_its_input_has_it_made_again(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = losing(monkeypatch)
    a, b = FakeNode("a"), FakeNode("b", price=5.0)

    async def no_input(order: TaskOrder) -> None:
        if order.task == "step-2" and lost:
            raise failing("input 'x' could not be fetched", code="UNAVAILABLE")

    async def made_again(order: TaskOrder) -> None:
        if order.attempt > 1:
            lost.clear()

    a.behave, b.behave = made_again, no_input
    swarm = FakeSwarm([a, b])
    await double_model(swarm)
    steps: list[dict[str, Any]] = [
        {"step": 1, "model_id": "double"},
        {"step": 2, "model_id": "double", "node_id": "b", "input_source": "step_1_output", "inputs": {"y": "x"}},
    ]
    lost.add(a.peer)
    async with running(swarm, retries=1) as orchestrator:
        accepted = await orchestrator.submit(form(config={"pipeline": steps}), "me")
        document = await finished(orchestrator, accepted.job_id)
    assert document["status"] == "completed"
    assert [o.task for o in (*a.runs, *b.runs)].count("step-1") == 2


async def test_a_value_that_is_lost_before_it_is_aggregated_is_made_again(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = FakeNode("a"), FakeNode("b")
    swarm = FakeSwarm([a, b])
    await double_model(swarm)
    real, failures = Values.read_all, iter(range(1))

    async def once_gone(self: Values, values: Any, job: str, providers: Any = ()) -> Any:
        if next(failures, None) is not None:
            raise Unavailable("tensor x cannot be fetched")
        return await real(self, values, providers)

    monkeypatch.setattr(Values, "read_all", once_gone)
    async with running(swarm) as orchestrator:
        accepted = await orchestrator.submit(form(pattern="collaborative", config=CONCAT), "me")
        document = await finished(orchestrator, accepted.job_id)
        result = await orchestrator.result(accepted.job_id)
    assert document["status"] == "completed"
    np.testing.assert_array_equal(to_numpy(result["outputs"]["y"]), np.full((3, 2), 2, np.float32))
    assert len(a.runs) + len(b.runs) == 3


# --- time


async def test_a_jobs_timeout_holds_though_its_owners_die_again_and_again(autojump_clock: MockClock) -> None:
    """Each of them lives for half a minute; the job must not outlive its two minutes by much."""
    gate = trio.Event()
    swarm = FakeSwarm([FakeNode("a", behave=held_by(gate))])
    await double_model(swarm)
    async with town(swarm, ["p", "q", "r"]) as here:
        job, _ = await submitted(here, timeout=120)
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def plague() -> None:
                while True:
                    owner = await owner_of(here, job)
                    await trio.sleep(30)
                    here.crash(owner.name)
                    await trio.sleep(2)
                    await here.start(owner.name)

            nursery.start_soon(plague)
            document = await ended(here, job)
            nursery.cancel_scope.cancel()
        assert document["status"] == "expired"
        assert 115 < trio.current_time() - begun < 180


async def test_a_long_jobs_age_takes_few_entries(autojump_clock: MockClock) -> None:
    gate = trio.Event()
    swarm = FakeSwarm([FakeNode("a", behave=held_by(gate))])
    await double_model(swarm)
    async with town(swarm, ["p"]) as here:
        job, first = await submitted(here, timeout=4_000)
        await trio.sleep(1)
        updated = first.table.view(job).updated
        await trio.sleep(3_600)
        ages = [b.elapsed for _, b in first.table.record(job).items() if isinstance(b, StatusEntry)]
        assert len(ages) < 40
        assert max(ages) > 0.75 * 3_600
        assert first.table.view(job).updated == updated
        gate.set()


# --- refusals


def refusing(times: int, error: Callable[[], DimError]) -> Callable[[TaskOrder], DimError | None]:
    left = iter(range(times))
    return lambda order: error() if next(left, None) is not None else None


async def test_a_node_that_is_busy_for_long_costs_one_assignment_and_is_shown_as_refusing(autojump_clock: MockClock) -> None:
    gate = trio.Event()
    node = FakeNode("a", refuse=refusing(50, lambda: ResourceExhausted("the queue is full")), behave=held_by(gate))
    swarm = FakeSwarm([node])
    await double_model(swarm)
    journal = MemoryJournal()
    async with running(swarm, journal, retries=0) as orchestrator:
        job = (await orchestrator.submit(form(), "me")).job_id
        await trio.sleep(60)
        assert len(node.orders) > 10
        (shown,) = (await orchestrator.get(job))["tasks"]
        assert (shown["status"], shown["attempt"], shown["error"]["message"]) == ("refused", 1, "the queue is full")
        await trio.sleep(300)
        (shown,) = (await orchestrator.get(job))["tasks"]
        assert (shown["status"], shown["error"]) == ("running", None)
        gate.set()
        assert (await finished(orchestrator, job))["status"] == "completed"
    assert {o.attempt for o in node.orders} == {1}
    assert len(node.runs) == 1


async def test_nodes_that_refuse_in_turn_cost_an_assignment_each(autojump_clock: MockClock) -> None:
    nodes = [FakeNode(n, refuse=refusing(20, lambda: ResourceExhausted("the queue is full"))) for n in "ab"]
    swarm = FakeSwarm(nodes)
    await double_model(swarm)
    journal = MemoryJournal()
    async with running(swarm, journal, retries=0) as orchestrator:
        job = (await orchestrator.submit(form(), "me")).job_id
        await trio.sleep(30)
        assigned = [e for e in await journal.load(job) if isinstance(e.body(), Assign)]
        assert len(assigned) <= 2
        assert (await finished(orchestrator, job))["status"] == "completed"


# --- details of claims


async def test_a_fence_that_nobody_shows_the_claim_of_is_outdone_after_a_while(autojump_clock: MockClock) -> None:
    """Whoever claimed the job died with its disk; only a node remembers."""
    node = FakeNode("a", seconds=1.0)
    swarm = FakeSwarm([node])
    await double_model(swarm)
    async with town(swarm, ["p"]) as here:
        job, _ = await submitted(here)
        swarm.daemon(node.peer).attempts_of(job, Ballot(2, "zzz-gone", "boot"))
        document = await ended(here, job)
    assert document["status"] == "completed"
    assert document["epoch"] >= 2


async def test_what_a_former_owner_only_noted_is_forgotten_when_it_lets_go(autojump_clock: MockClock) -> None:
    table = RecordTable(MemoryJournal(), identity("p"))
    me = Ballot(1, identity("p").peer_id, "b")
    core = Core(job="j", spec_cid="c", spec=b"", pattern="chained", priority="normal", principal="me", submitted=1.0, timeout=9.0)
    await table.create([("j", [core, Claim(job="j", ballot=me)])])
    table.note("j", StatusEntry(job="j", ballot=me, status="running", at=2.0))
    other = Ballot(2, identity("q").peer_id, "b")
    await table.merge("j", [sign_entry(Claim(job="j", ballot=other), identity("q"))])
    table.forsake("j")
    assert not any(isinstance(b, StatusEntry) for _, b in table.record("j").items())
    assert table.view("j").owner == other
