"""An owner may die at any moment: whoever takes its job over brings it to the same end, and nothing runs twice."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from dimnode.domain import codec
from dimnode.domain.job_form import JobForm
from dimnode.domain.tensors import from_numpy, to_json
from dimnode.orchestrator.documents import result_document
from tests.support.orchestrated_jobs import form
from tests.support.orchestration import FakeNode, FakeSwarm
from tests.support.several_seats import SeatNode, Town, town

SEATS = ["north", "south", "west"]


async def hospitals() -> FakeSwarm:
    """Two nodes with data, and a model whose weights grow with every round."""
    a = FakeNode("a", price=1.0, seconds=0.3, cabinets={"ward": {"x": np.ones((1, 2), np.float32)}})
    b = FakeNode("b", price=5.0, seconds=0.3, cabinets={"ward": {"x": np.full((3, 2), 5, np.float32)}})
    swarm = FakeSwarm([a, b])
    await swarm.add_model("step", lambda a: {"w2": a["w"] + a["x"].mean(0)}, {"x": ("N", 2), "w": (2,)}, {"w2": (2,)})
    await swarm.add_model("double", lambda a: {"y": a["x"] * 2}, {"x": ("N", 2)}, {"y": ("N", 2)})
    return swarm


def training() -> JobForm:
    config = {"model_id": "step", "data_source": "ward", "rounds": 2, "feedback": {"w2": "w"}}
    w = to_json(from_numpy(np.zeros(2, np.float32)))
    return form(pattern="collaborative", config=config, client_data={"w": w}, idempotency_key="training")


def chain() -> JobForm:
    steps = [
        {"step": 1, "model_id": "double"},
        {"step": 2, "model_id": "double", "input_source": "step_1_output", "inputs": {"y": "x"}},
    ]
    return form(config={"pipeline": steps}, idempotency_key="chain")


def shards() -> JobForm:
    return form(pattern="collaborative", config={"model_id": "double", "aggregation": {"method": "concat"}}, idempotency_key="shards")


JOBS = {"training": training, "chain": chain, "shards": shards}
TASKS = {
    "training": ["r0/s0", "r0/s1", "r1/s0", "r1/s1"],
    "chain": ["step-1", "step-2"],
    "shards": ["r0/s0", "r0/s1"],
}


class CrashAt:
    """Each owner crashes at its own step, counted from when it began."""

    def __init__(self, *steps: int) -> None:
        self._left = list(steps)
        self._seen: Counter[str] = Counter()

    def __call__(self, node: SeatNode) -> bool:
        self._seen[node.boot] += 1
        if self._left and self._seen[node.boot] == self._left[0]:
            del self._left[0]
            _turn_prices(node.town.swarm)
            return True
        return False


def _turn_prices(swarm: FakeSwarm) -> None:
    """From now on the scheduler would choose otherwise: what runs must be found, not guessed."""
    first, second = swarm.by_peer.values()
    first.price, second.price = second.price, first.price
    swarm.touch()


async def one_end(swarm: FakeSwarm, the_town: Town, job: str) -> Any:
    """What all living nodes say of the job once they have told each other everything: its result."""
    for node in the_town.living():
        await node._sync([job])
    records = [await n.table.find(job) for n in the_town.living()]
    views = [await n.table.load(job) for n in the_town.living()]
    assert {v.status for v in views} == {"completed"}
    assert len({v.outcome_id for v in views}) == 1
    assert all(r == records[0] for r in records)
    outcome = views[0].outcome
    assert outcome is not None
    assert outcome.result is not None
    return result_document(codec.decode_plain(outcome.result), outcome.result_cid)


def ran(swarm: FakeSwarm) -> list[str]:
    return sorted(order.task for node in swarm.by_peer.values() for order in node.runs)


async def undisturbed(name: str) -> Any:
    swarm = await hospitals()
    async with town(swarm, SEATS) as here:
        job, _ = await here.end(JOBS[name]())
        return await one_end(swarm, here, job)


def outputs(result: Any) -> dict[str, list[Any]]:
    return {n: np.frombuffer(t.raw, t.dtype).tolist() for n, t in result["outputs"].items()}


@pytest.mark.parametrize("name", JOBS)
async def test_an_owner_may_crash_at_every_write(autojump_clock: MockClock, name: str) -> None:
    """Before and after each write to its disk and to the copies, one after the other: the same result, no task run twice,
    one end on every node, and the crashed node brings nothing back when it returns."""
    expected = outputs(await undisturbed(name))
    crashed = 1
    step = 0
    while crashed:
        step += 1
        swarm = await hospitals()
        async with town(swarm, SEATS) as here:
            here.crash_at = CrashAt(step)
            job, _ = await here.end(JOBS[name]())
            crashed = len(here.crashes)
            here.crash_at = CrashAt()
            for gone in here.crashes:
                await here.start(gone)
            assert outputs(await one_end(swarm, here, job)) == expected, step
            assert ran(swarm) == TASKS[name], step
            assert all(n.cancelled == [] for n in swarm.by_peer.values()), step
    assert step > 10


@pytest.mark.parametrize("seed", range(12))
async def test_several_owners_may_crash_one_after_the_other(autojump_clock: MockClock, seed: int) -> None:
    """The second in the middle of taking over, the third soon after; those that crashed come back in between."""
    rng = random.Random(seed)
    name = rng.choice(list(JOBS))
    expected = outputs(await undisturbed(name))
    swarm = await hospitals()
    async with town(swarm, SEATS) as here, trio.open_nursery() as nursery:
        here.crash_at = CrashAt(*(rng.randrange(1, 14) for _ in range(4)))

        async def restart() -> None:
            while True:
                await trio.sleep(rng.uniform(0.5, 3))
                for gone in set(here.nodes) - {n.name for n in here.living()}:
                    await here.start(gone)

        nursery.start_soon(restart)
        job, _ = await here.end(JOBS[name]())
        nursery.cancel_scope.cancel()
        here.crash_at = CrashAt()  # the job has ended; what is left of the plan must not hit the comparison
        assert outputs(await one_end(swarm, here, job)) == expected
    assert ran(swarm) == TASKS[name]
    assert here.crashes
