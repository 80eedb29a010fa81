"""Who gets a job's blocks from a node: by its record, by its seats, or by asking those who know."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from dimnode.core.participants import READER
from dimnode.records.participation import Door, ParticipationSettings
from p2p.memory import MemoryHub
from tests.support import entries as e
from tests.support.participation import Doorkeeper

RECORD = (e.core(), e.claim(1, "owner"), e.assign(1, node="worker", peer="owner"), e.assign(1, "u", node="next", peer="owner"))
PART = e.attempt(1, node="worker", peer="owner")
"""What a node has of a job that it ran a task for."""


@pytest.fixture
async def hub(autojump_clock: MockClock) -> AsyncIterator[MemoryHub]:
    async with MemoryHub(delay=(0.001, 0.002)) as made:
        yield made


def made(hub: MemoryHub, *peers: str, settings: ParticipationSettings | None = None) -> list[Doorkeeper]:
    keepers = [Doorkeeper(hub.network(peer), settings) for peer in peers]
    hub.connect_all()
    return keepers


async def test_the_record_says_who_takes_part(hub: MemoryHub, autojump_clock: MockClock):
    (keeper,) = made(hub, "keeper")
    await keeper.knows(*RECORD)
    assert [await keeper.serves(p) for p in ("owner", "worker", "next", "stranger")] == [True, True, True, False]
    await keeper.table.merge(e.JOB, [e.claim(2, "heir"), e.assign(2, "v", node="newcomer", peer="heir")])
    assert await keeper.serves("newcomer"), "the record grew"


async def test_holders_of_seats_get_everything_and_what_is_no_jobs_goes_to_them_only(hub: MemoryHub, autojump_clock: MockClock):
    (keeper,) = made(hub, "keeper")
    await keeper.knows(*RECORD)
    keeper.seated.holders = ["seat"]
    assert [await keeper.serves("seat"), await keeper.serves("seat", READER), await keeper.serves("owner", READER)] == [True, True, False]


async def test_who_has_just_won_a_seat_is_waited_for_a_moment(hub: MemoryHub, autojump_clock: MockClock):
    worker, _ = made(hub, "worker", "owner")
    await worker.knows(PART)

    async def hear() -> None:
        await trio.sleep(0.5)
        worker.seated.holders = ["heir"]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hear)
        assert await worker.serves("heir")


async def test_who_is_asked_to_keep_copies_gets_the_blocks(hub: MemoryHub, autojump_clock: MockClock):
    (owner,) = made(hub, "owner")
    await owner.knows(*RECORD)
    assert not await owner.serves("keeper")
    owner.participation.let_in("keeper", e.JOB)
    assert await owner.serves("keeper")
    assert not await owner.serves("keeper", "another job")


async def test_who_shall_keep_a_copy_of_a_record_that_is_here_gets_its_blocks_and_others_are_told_so(
    hub: MemoryHub, autojump_clock: MockClock
):
    worker, keeper = made(hub, "worker", "owner")
    await worker.knows(PART)
    await keeper.knows(*RECORD)
    keeper.shall_keep.add((e.JOB, "heir"))
    worker.shall_keep.add((e.JOB, "nobody"))
    assert [await keeper.serves("heir"), await keeper.serves("heir", "another job"), await keeper.serves("other")] == [True, False, False]
    assert [await worker.serves("heir"), await worker.serves("nobody")] == [True, False], "it has no record of the job"


async def test_a_block_of_two_jobs_is_for_the_participants_of_both(hub: MemoryHub, autojump_clock: MockClock):
    (keeper,) = made(hub, "keeper")
    await keeper.knows(*RECORD)
    assert await keeper.serves("worker", "another job", e.JOB)


async def test_a_node_that_ran_a_task_asks_the_owner_once(hub: MemoryHub, autojump_clock: MockClock):
    worker, owner, _ = made(hub, "worker", "owner", "next")
    await worker.knows(PART)
    await owner.knows(*RECORD)
    assert await worker.serves("next")
    assert await worker.serves("next")
    assert worker.asked == 1
    assert await worker.serves("owner")
    assert not await worker.serves("stranger")
    assert not await worker.serves("stranger")
    assert worker.asked == 2, "a no counts for a moment"
    await trio.sleep(0.5)
    await owner.table.merge(e.JOB, [e.assign(1, "w", node="stranger", peer="owner")])
    assert await worker.serves("stranger"), "it has got a task meanwhile"


async def test_when_the_owner_is_gone_the_seats_know(hub: MemoryHub, autojump_clock: MockClock):
    worker, heir, seat = made(hub, "worker", "heir", "seat")
    await worker.knows(PART)
    await heir.knows(*RECORD, e.claim(2, "heir"), e.assign(2, "v", node="last", peer="heir"))
    worker.seated.holders = ["seat", "heir"]
    assert await worker.serves("last")
    assert not await seat.serves("last"), "which had no record, and whose no was not the last word"


async def test_nobody_to_ask_is_a_no_that_is_not_remembered(hub: MemoryHub, autojump_clock: MockClock):
    worker, owner = made(hub, "worker", "owner")
    await worker.knows(PART)
    await owner.knows(*RECORD)
    hub.cut("worker", "owner")
    assert not await worker.serves("next")
    hub.heal()
    assert await worker.serves("next")


async def test_strangers_cannot_make_a_node_ask_without_end(hub: MemoryHub, autojump_clock: MockClock):
    worker, owner = made(hub, "worker", "owner", settings=ParticipationSettings(at_once=2))
    await worker.knows(PART)
    await owner.knows(*RECORD)
    async with trio.open_nursery() as nursery:
        for n in range(10):
            nursery.start_soon(worker.serves, f"stranger {n}")
    assert worker.asked == 2


async def test_before_a_node_knows_its_records_nobody_gets_anything(hub: MemoryHub, autojump_clock: MockClock):
    door = Door()
    assert not await door.may_serve("owner", {e.JOB})
    keeper = Doorkeeper(hub.network("keeper"), door=door)
    await keeper.knows(*RECORD)
    assert await door.may_serve("owner", {e.JOB})
