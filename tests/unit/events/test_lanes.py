"""The ways out, on virtual time: paced, bounded, and no harm to anybody when one is away or slow."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from dimnode.clock import TrioClock
from dimnode.core.event_flow import Numbers
from dimnode.domain import events
from dimnode.domain.events import Event
from dimnode.events.publisher import TYPE, Desk, Lane, NotSent, Publisher
from dimnode.events.settings import EventSettings
from dimnode.security import jws
from tests.support.entries import FakeSigner, fake_verify

SETTINGS = EventSettings(channel="c", interval=0.5, batch=10, queue=50, timeout=5.0, retry_first=1.0, retry_most=8.0)


class Post:
    """An outlet that remembers what it took, and when."""

    def __init__(self) -> None:
        self.taken: list[tuple[float, str, events.Message]] = []
        self.tries: list[float] = []
        self.away = ""
        self.takes = 0.0

    async def publish(self, topic: str, data: bytes) -> None:
        self.tries.append(trio.current_time())
        await trio.sleep(self.takes)
        if self.away:
            raise NotSent(self.away)
        statement = jws.read(data, TYPE)
        assert jws.authentic(statement, fake_verify)
        self.taken.append((trio.current_time(), topic, events.decode(statement.payload)))

    def jobs(self) -> list[int]:
        return [int(e.job[4:]) for _, _, m in self.taken for e in m.events if e.job]


def event(number: int) -> Event:
    return Event(event="accepted", at=1.0, job=f"job-{number}")


def lane(post: Post, settings: EventSettings = SETTINGS) -> Lane:
    return Lane(post, Desk(FakeSigner("p"), TrioClock(), Numbers(), "c"), settings)


async def test_a_burst_goes_out_in_few_messages_at_their_distance(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    post = Post()
    out = lane(post)
    nursery.start_soon(out.run)
    await trio.sleep(1)
    for number in range(35):
        out.put("jobs", event(number))
    out.put("nodes", Event(event="joined", at=1.0, node="q"))
    await trio.sleep(3)
    assert post.jobs() == list(range(35))
    job_times = [at for at, topic, _ in post.taken if topic == "dim/events/c/jobs/1"]
    assert len(job_times) == 4
    assert all(b - a >= 0.5 - 1e-9 for a, b in pairwise(job_times))
    assert job_times[0] == pytest.approx(1.0)
    assert [m.seq for _, _, m in post.taken] == sorted({m.seq for _, _, m in post.taken})
    assert out.status() == {"ok": True, "problem": "", "published": 36, "messages": 5, "waiting": 0, "dropped": 0, "failures": 0}


async def test_an_outlet_that_is_away_is_tried_later_each_time_and_gets_the_latest(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    post = Post()
    post.away = "pubsub is off"
    out = lane(post)
    nursery.start_soon(out.run)
    for number in range(70):
        out.put("jobs", event(number))
    await trio.sleep(40)
    pauses = [b - a for a, b in pairwise(post.tries)]
    assert pauses[:5] == pytest.approx([1, 2, 4, 8, 8])
    told = out.status()
    assert (told["ok"], told["problem"], told["waiting"], told["dropped"]) == (False, "pubsub is off", 50, 20)
    post.away = ""
    await trio.sleep(20)
    assert post.jobs() == list(range(20, 70))
    assert post.taken[0][2].dropped == 20
    assert (out.status()["ok"], out.status()["problem"]) == (True, "")


async def test_an_outlet_that_hangs_is_given_up_in_time_and_holds_up_no_other(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    slow, quick = Post(), Post()
    slow.takes = 1000.0
    lanes = {"slow": lane(slow), "quick": lane(quick)}
    publisher = Publisher(lanes)
    nursery.start_soon(publisher.run)
    began = trio.current_time()
    for number in range(1000):
        publisher.tell("jobs", event(number))
    assert trio.current_time() == began
    await trio.sleep(5.1)
    assert quick.jobs() == list(range(950, 1000))
    told = publisher.status()
    assert "5 s" in told["slow"]["problem"]
    assert told["slow"]["published"] == 0


async def test_cancelled_in_the_midst_of_sending_it_ends_at_once(autojump_clock: MockClock) -> None:
    post = Post()
    post.takes = 1000.0
    out = lane(post)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(out.run)
        out.put("jobs", event(1))
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert trio.current_time() < 2
