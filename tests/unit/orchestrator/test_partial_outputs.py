"""Text of tasks that run, for those who watch: at the seat that drives the job and at any other."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dimnode.core.partial_text import Seen
from dimnode.domain.task import PartialOutput, TaskOrder, TextPiece
from dimnode.errors import Code
from dimnode.orchestrator.partials import PartialOutputs
from p2p.memory import MemoryHub
from tests.support.orchestrated_jobs import double_model, form
from tests.support.orchestration import FakeNode, FakeSwarm, failing
from tests.unit.orchestrator.test_any_seat import several, two_seats


def speaking(swarm: FakeSwarm, node: FakeNode, *words: str, pause: float = 1.0, fail_first: bool = False) -> None:
    """The node says the words while it works; with ``fail_first`` its first attempt fails after the first of them."""

    async def behave(order: TaskOrder) -> None:
        at = 0
        for word in words:
            swarm.daemon(node.peer).say(order, at, word)
            at += len(word)
            await trio.sleep(pause)
            if fail_first and order.attempt == 1:
                raise failing("it crashed", code=Code.UNAVAILABLE.value)

    node.behave = behave


async def follow(seat: Any, job: str, into: list[Any]) -> None:
    async for event in seat.follow(job):
        into.append(event)  # noqa: PERF401 - seen by others while it grows


def text(events: list[Any], attempt: int = 1) -> str:
    out = ""
    for event in events:
        if isinstance(event, PartialOutput) and event.attempt == attempt:
            assert event.offset == len(out)
            out += event.text
    return out


def statuses(events: list[Any]) -> list[str]:
    return [e["status"] for e in events if not isinstance(e, PartialOutput)]


async def test_both_seats_tell_the_text_while_it_grows_and_a_late_watcher_gets_what_there_is(autojump_clock: MockClock) -> None:
    node = FakeNode("n")
    swarm = FakeSwarm([node])
    await double_model(swarm)
    speaking(swarm, node, "Once ", "upon ", "a ", "time")
    async with two_seats(swarm, MemoryHub(seed=1)) as (a, b), trio.open_nursery() as nursery:
        job = (await a.submit(form(), "me")).job_id
        seen: dict[str, list[Any]] = {"a": [], "b": [], "late": []}
        nursery.start_soon(follow, a, job, seen["a"])
        nursery.start_soon(follow, b, job, seen["b"])
        with trio.fail_after(30):
            while not (text(seen["a"]) and text(seen["b"])):
                await trio.sleep(0.1)
        assert text(seen["a"]) != "Once upon a time"  # it is told before it is whole
        nursery.start_soon(follow, b, job, seen["late"])
        with trio.fail_after(60):
            while not all(statuses(s)[-1:] == ["completed"] for s in seen.values()):
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    for events in seen.values():
        assert text(events) == "Once upon a time"
        assert statuses(events).count("completed") == 1
        assert not isinstance(events[-1], PartialOutput)


async def test_a_task_that_is_tried_again_begins_its_text_anew(autojump_clock: MockClock) -> None:
    node = FakeNode("n")
    swarm = FakeSwarm([node])
    await double_model(swarm)
    speaking(swarm, node, "Once ", "upon", fail_first=True)
    async with two_seats(swarm, MemoryHub(seed=1)) as (a, b):
        job = (await a.submit(form(), "me")).job_id
        seen: list[list[Any]] = [[], []]
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                for seat, events in zip((a, b), seen, strict=True):
                    nursery.start_soon(follow, seat, job, events)
    for events in seen:
        assert statuses(events)[-1] == "completed"
        assert (text(events, attempt=1), text(events, attempt=2)) == ("Once ", "Once upon")
        attempts = [e.attempt for e in events if isinstance(e, PartialOutput)]
        assert attempts == sorted(attempts)


async def test_watchers_who_did_not_ask_are_told_no_text(autojump_clock: MockClock) -> None:
    node = FakeNode("n")
    swarm = FakeSwarm([node])
    await double_model(swarm)
    speaking(swarm, node, "Once ", "upon")
    async with two_seats(swarm, MemoryHub(seed=1)) as (a, b):
        job = (await a.submit(form(), "me")).job_id
        assert [d["status"] async for d in b.watch(job)][-1] == "completed"


async def test_text_is_never_in_a_record(autojump_clock: MockClock) -> None:
    node = FakeNode("n")
    swarm = FakeSwarm([node])
    await double_model(swarm)
    speaking(swarm, node, "a secret of a language model")
    async with several(swarm, MemoryHub(seed=1), ["seat-a"]) as made:
        job = (await made.seats[0].submit(form(), "me")).job_id
        events: list[Any] = []
        await follow(made.seats[0], job, events)
        assert text(events)
        record = made.tables[0].record(job)
        assert all("a secret" not in repr(body) for _, body in record.items())


async def test_waiting_costs_nothing_that_stays(autojump_clock: MockClock) -> None:
    outputs = PartialOutputs(each=10, most=20)
    with trio.move_on_after(1):
        await outputs.wait("j", Seen())
    assert not outputs._waiting
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outputs.wait, "j", Seen())
        nursery.start_soon(outputs.wait, "j", Seen())
        await trio.testing.wait_all_tasks_blocked()
        outputs.tell("other", "t", 1, TextPiece(row=0, offset=0, text="x"))
        outputs.tell("j", "t", 1, TextPiece(row=0, offset=0, text="x" * 100))
    assert [o.text for o in outputs.after("j", Seen())] == ["x" * 10]


@pytest.mark.parametrize("gap", [True, False])
def test_a_node_that_says_odd_things_is_not_believed(gap: bool) -> None:
    outputs = PartialOutputs()
    outputs.tell("j", "t", 1, TextPiece(row=0, offset=5 if gap else -5, text="x"))
    assert outputs.after("j", Seen()) == []
