"""Jobs that change their owner: what is adopted, reused, made again and left alone. On virtual time, with several seats."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import trio
from trio.testing import MockClock

from dimnode.core.retention import RetentionRule
from dimnode.domain import codec
from dimnode.domain.record import Assign, Attempt, Ballot, Core, PlanEntry, SealEntry
from dimnode.domain.task import TaskOrder
from dimnode.domain.tensors import from_numpy, to_json, to_numpy
from dimnode.errors import DimError, Unavailable
from dimnode.records.messages import OFFER, JobEntries, OfferAnswer, OfferRequest
from dimnode.records.table import RecordTable
from dimnode.security.signing import sign_entry
from dimnode.state.memory_journal import MemoryJournal
from tests.support.orchestrated_jobs import double_model, finished, form, held_by, running
from tests.support.orchestration import FakeNode, FakeSwarm, identity
from tests.support.several_seats import town
from tests.support.takeovers import CONCAT, api, ended, owner_of, submitted

# --- who drives


async def test_a_dead_owners_job_is_driven_on_within_half_a_second_of_the_seat_being_seen_vacant(autojump_clock: MockClock) -> None:
    gate = trio.Event()
    swarm = FakeSwarm([FakeNode("a", behave=held_by(gate))])
    await double_model(swarm)
    async with town(swarm, ["p", "q", "r"], notice=1.0) as here:
        job, first = await submitted(here)
        await trio.sleep(5)
        here.crash(first.name)
        begun = trio.current_time()
        assert await owner_of(here, job) is not first
        assert trio.current_time() - begun < 1.5
        gate.set()
        document = await ended(here, job)
    assert (document["status"], document["epoch"]) == ("completed", 2)


async def test_a_demoted_owners_jobs_go_to_the_other_seats_and_it_follows_them(autojump_clock: MockClock) -> None:
    gate = trio.Event()
    node = FakeNode("a", behave=held_by(gate))
    swarm = FakeSwarm([node])
    await double_model(swarm)
    async with town(swarm, ["p", "q", "r"]) as here:
        job, first = await submitted(here)
        await trio.sleep(1)
        here.demote(first.name)
        second = await owner_of(here, job)
        assert second is not first
        gate.set()
        assert (await ended(here, job))["status"] == "completed"
        await trio.sleep(5)
        assert first.table.view(job).owner == second.table.view(job).owner
    assert (len(node.runs), node.cancelled) == (1, [])


async def test_a_restarted_owner_finds_its_job_driven_elsewhere_and_leaves_it_alone(autojump_clock: MockClock) -> None:
    gate = trio.Event()
    node = FakeNode("a", behave=held_by(gate))
    swarm = FakeSwarm([node])
    await double_model(swarm)
    async with town(swarm, ["p", "q", "r"]) as here:
        job, first = await submitted(here)
        await trio.sleep(1)
        here.crash(first.name)
        second = await owner_of(here, job)
        await here.start(first.name)
        await trio.sleep(20)
        assert await owner_of(here, job) is second
        gate.set()
        document = await ended(here, job)
    assert document["epoch"] == 2
    assert len(node.runs) == 1


async def test_an_owner_that_was_cut_off_stops_when_it_hears_of_the_new_one_and_cancels_nothing(autojump_clock: MockClock) -> None:
    gate = trio.Event()
    node = FakeNode("a", behave=held_by(gate))
    swarm = FakeSwarm([node])
    await double_model(swarm)
    async with town(swarm, ["p", "q"]) as here:
        job, first = await submitted(here)
        second = here.nodes["q"]
        await trio.sleep(1)
        here.forget_seat(first.name)  # to the other it looks dead
        assert await api(second).take_over([job]) == {job}
        await first.table.merge(job, second.table.record(job).entries())
        await trio.sleep(0.1)
        assert api(first).load() == 0
        gate.set()
        assert (await ended(here, job))["status"] == "completed"
    assert (len(node.runs), node.cancelled) == (1, [])


async def test_a_leaving_seat_hands_its_jobs_over_while_it_drives_them(autojump_clock: MockClock) -> None:
    gate = trio.Event()
    nodes = [FakeNode(n, behave=held_by(gate), slots=20) for n in "ab"]
    swarm = FakeSwarm(nodes)
    await double_model(swarm)
    async with town(swarm, ["p", "q", "r"]) as here:
        jobs = [(await submitted(here))[0] for _ in range(30)]
        first = here.nodes["p"]
        await trio.sleep(1)
        api(first).stop_accepting()
        begun = trio.current_time()
        assert await first.offers.hand_over(5.0) == 0
        assert trio.current_time() - begun < 1.0
        owners = [(await owner_of(here, job)).name for job in jobs]
        assert owners.count("q") > 5
        assert owners.count("r") > 5
        here.demote("p")
        gate.set()
        for job in jobs:
            assert (await ended(here, job))["status"] == "completed"
    assert sum(len(n.runs) for n in nodes) == 30
    assert all(n.cancelled == [] for n in nodes)


async def test_alone_there_is_nobody_to_hand_over_to(autojump_clock: MockClock) -> None:
    gate = trio.Event()
    swarm = FakeSwarm([FakeNode("a", behave=held_by(gate))])
    await double_model(swarm)
    async with town(swarm, ["p"]) as here:
        job, first = await submitted(here)
        begun = trio.current_time()
        assert await first.offers.hand_over(5.0) == 1
        assert trio.current_time() == begun
        gate.set()
        assert (await ended(here, job))["status"] == "completed"


async def test_a_record_without_a_claim_is_nobodys_business(autojump_clock: MockClock) -> None:
    """It was never accepted."""
    swarm = FakeSwarm([FakeNode("a")])
    await double_model(swarm)
    async with town(swarm, ["p", "q"]) as here:
        job, first = await submitted(here)
        core = next(e for e in first.table.record(job).entries() if isinstance(e.body(), Core))
        stranger = MemoryJournal()
        await stranger.append([core])
    async with town(swarm, ["p", "q"]) as here:
        for node in here.living():
            await node.table.merge(job, [core])
        await trio.sleep(60)
        assert all(node.table.view(job).owner is None for node in here.living())
        assert await api(here.nodes["p"]).take_over([job]) == set()


async def test_an_orphan_is_not_taken_over_by_whom_it_is_offered_to(autojump_clock: MockClock) -> None:
    """It was on a node that was away for longer than unfinished jobs are kept, and that may not end it itself."""
    swarm = FakeSwarm([FakeNode("a", behave=held_by(trio.Event()))])
    await double_model(swarm)
    async with town(swarm, ["p", "q"]) as here:
        job, first = await submitted(here, timeout=20)
        entries = first.table.record(job).entries()
    for away, taken in ((5, {job}), (40, set[str]())):
        async with town(swarm, ["q", "r"], retention=RetentionRule(retention=10.0)) as here:
            await trio.sleep(away)
            for node in here.living():
                await node.table.merge(job, entries)
            assert await api(here.nodes["q"]).take_over([job]) == taken
            await trio.sleep(10)
            assert {j for n in here.living() for j in api(n).owned()} == taken


async def test_a_job_whose_owner_lives_is_not_taken_whoever_offers_it(autojump_clock: MockClock) -> None:
    gate = trio.Event()
    swarm = FakeSwarm([FakeNode("a", behave=held_by(gate))])
    await double_model(swarm)
    async with town(swarm, ["p", "q", "r"]) as here:
        job, first = await submitted(here)
        second = api(here.nodes["q"])
        assert await second.take_over([job], handed_by=here.nodes["r"].peer) == set()
        assert await second.take_over([job], handed_by=first.peer) == {job}
        gate.set()


async def test_who_offers_a_job_that_it_has_claimed_meanwhile_gives_it_away_only_if_it_says_so(autojump_clock: MockClock) -> None:
    """Two seats that see an owner die offer its jobs to each other: the one that claims first keeps them."""
    gate = trio.Event()
    swarm = FakeSwarm([FakeNode("a", behave=held_by(gate))])
    await double_model(swarm)
    async with town(swarm, ["p", "q"]) as here:
        job, first = await submitted(here)
        second = here.nodes["q"]
        offered = JobEntries(job=job, entries=tuple(first.table.record(job).entries()))
        for give_away in (False, True):
            request = codec.encode(OfferRequest(jobs=(offered,), give_away=give_away))
            answer = codec.decode(await first.network.request(second.peer, OFFER, request, timeout=5.0), OfferAnswer)
            assert answer.taken == ((job,) if give_away else ())
        gate.set()


async def test_an_assignment_that_never_got_to_its_node_goes_there_under_its_number(autojump_clock: MockClock) -> None:
    """The owner dies between its decision and the call. Another node is better by now, and is not told."""
    nodes = [FakeNode(n) for n in "ab"]
    swarm = FakeSwarm(nodes)
    await double_model(swarm)
    lost: list[FakeNode] = []
    async with town(swarm, ["p", "q"]) as here:

        def loses_the_first_order(node: FakeNode) -> Callable[[TaskOrder], DimError | None]:
            def refuse(order: TaskOrder) -> DimError | None:
                del order
                if lost:
                    return None
                lost.append(node)
                node.price = 9.0
                swarm.touch()
                here.crash(here.living()[0].name)
                return Unavailable("the connection broke")

            return refuse

        for node in nodes:
            node.refuse = loses_the_first_order(node)
        job, _ = await submitted(here)
        document = await ended(here, job)
    assert [(t["node"], t["attempt"], t["status"]) for t in document["tasks"]] == [(lost[0].name, 1, "completed")]
    assert document["epoch"] == 2


async def test_a_cancelled_jobs_tasks_are_called_off_though_its_owner_is_dead(autojump_clock: MockClock) -> None:
    """Cancelled at a seat that does not drive it, before anybody took it over."""
    node = FakeNode("a", behave=held_by(trio.Event()))
    swarm = FakeSwarm([node])
    await double_model(swarm)
    async with town(swarm, ["p", "q"], notice=30.0) as here:
        job, first = await submitted(here)
        await trio.sleep(1)
        here.crash(first.name)
        second = here.living()[0]
        assert (await api(second).cancel(job))["status"] == "cancelled"
        with trio.fail_after(5):
            while node.cancelled == []:
                await trio.sleep(0.05)
    assert len(node.runs) == 1


# --- what is kept


async def test_a_new_owner_keeps_the_shards_though_the_swarm_has_grown(autojump_clock: MockClock) -> None:
    gate = trio.Event()
    nodes = [FakeNode(n, behave=held_by(gate)) for n in "ab"]
    swarm = FakeSwarm(nodes)
    await double_model(swarm)
    x = to_json(from_numpy(np.arange(12, dtype=np.float32).reshape(6, 2)))
    async with town(swarm, ["p", "q"]) as here:
        job, first = await submitted(here, pattern="collaborative", config=CONCAT, client_data={"x": x})
        await trio.sleep(1)
        newcomer = FakeNode("c")
        swarm.by_peer[newcomer.peer] = newcomer
        swarm.touch()
        here.crash(first.name)
        await owner_of(here, job)
        gate.set()
        document = await ended(here, job)
        assert document["status"] == "completed"
    assert sorted(t["node"] for t in document["tasks"]) == ["a", "b"]
    assert newcomer.runs == []


async def test_seals_of_another_plan_are_not_mixed_in(autojump_clock: MockClock) -> None:
    """Each side of a partition cut the data in its own way; they meet while one of them is at work."""
    gate = trio.Event()
    nodes = [FakeNode(n, behave=held_by(gate)) for n in "ab"]
    swarm = FakeSwarm(nodes)
    await double_model(swarm)
    table = RecordTable(MemoryJournal(), identity("orchestrator"))
    other = identity("other")
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    async with running(swarm, table=table) as orchestrator:
        asked = form(pattern="collaborative", config=CONCAT, client_data={"x": to_json(from_numpy(x))})
        job = (await orchestrator.submit(asked, "me")).job_id
        await trio.sleep(1)
        theirs = Ballot(0, other.peer_id, "b")
        plan = sign_entry(PlanEntry(job=job, ballot=theirs, plan={"tasks": [{"key": "r0/s0"}]}), other)
        assign = Assign(job=job, ballot=theirs, task="r0/s0", attempt=7, node=nodes[0].peer, task_key="k", model_cid="m", at=1.0)
        made = {"y": from_numpy(np.zeros((6, 2), np.float32))}
        attempt = sign_entry(
            Attempt(
                job=job, ballot=theirs, task="r0/s0", attempt=7, task_key="k", status="completed", outputs=made, rows=6, node=nodes[0].peer
            ),
            nodes[0].identity,
        )
        seal = SealEntry(job=job, ballot=theirs, round=0, attempts={"r0/s0": attempt.id}, plan=plan.id)
        await table.merge(job, [plan, sign_entry(assign, other), attempt, sign_entry(seal, other)])
        await trio.sleep(1)
        gate.set()
        assert (await finished(orchestrator, job))["status"] == "completed"
        result = await orchestrator.result(job)
    np.testing.assert_array_equal(to_numpy(result["outputs"]["y"]), 2 * x)


async def test_a_finished_task_is_reused_only_if_it_is_the_same_work(autojump_clock: MockClock) -> None:
    """Another model under the same name is other work."""
    gate = trio.Event()
    node = FakeNode("a")
    swarm = FakeSwarm([node])
    await double_model(swarm)
    steps = [
        {"step": 1, "model_id": "double"},
        {"step": 2, "model_id": "other", "input_source": "step_1_output", "inputs": {"y": "x"}},
    ]
    await double_model(swarm, "other")

    async def hold_step_2(order: TaskOrder) -> None:
        if order.task == "step-2":
            await gate.wait()

    node.behave = hold_step_2
    async with town(swarm, ["p", "q"]) as here:
        job, first = await submitted(here, config={"pipeline": steps})
        await trio.sleep(1)
        swarm.refs = [r for r in swarm.refs if r.id != "double"]
        await swarm.add_model("double", lambda a: {"y": a["x"] * 3}, {"x": ("M", 2)}, {"y": ("M", 2)}, artifact=b"another")
        here.crash(first.name)
        await owner_of(here, job)
        gate.set()
        assert (await ended(here, job))["status"] == "completed"
        assert [o.task for o in node.runs] == ["step-1", "step-2", "step-1", "step-2"]
        result = await api(here.living()[0]).result(job)
    np.testing.assert_array_equal(to_numpy(result["outputs"]["y"]), np.full((3, 2), 6, np.float32))


async def test_the_result_of_a_task_finds_its_jobs_owner_though_the_node_was_taken_for_dead(autojump_clock: MockClock) -> None:
    """It was started elsewhere meanwhile: the first answer counts, the other node is told to stop."""
    gate = trio.Event()
    a, b = FakeNode("a", behave=held_by(gate)), FakeNode("b", price=5.0, seconds=500.0)
    swarm = FakeSwarm([a, b])
    await double_model(swarm)
    async with town(swarm, ["p", "q"]) as here:
        job, first = await submitted(here)
        await trio.sleep(1)
        a.state = "dead"
        swarm.touch()
        await trio.sleep(5)
        assert len(b.runs) == 1
        gate.set()
        await trio.sleep(1)
        await first.table.merge(job, swarm.daemon(a.peer).kept())
        await trio.sleep(0.1)
        document = await ended(here, job)
    assert document["status"] == "completed"
    assert (len(a.runs), b.cancelled) == (1, ["step-1"])
