"""Where events come from: records, members and the own seat, looked at beside the work that changes them. Nothing there waits for this."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import trio

from dimnode.core.event_stories import JobStory, NodeStory, Seen
from dimnode.domain.events import Event, Kind
from dimnode.domain.node import Seat
from dimnode.events.settings import EventSettings
from dimnode.ports import Clock, Elector, Registry
from dimnode.records.table import RecordTable

Tell = Callable[[Kind, Event], None]
IN_ONE_GO = 50
"""Jobs that are looked at before others may run."""


class JobSource:
    """What happens to the jobs that this node drives or ends."""

    def __init__(self, table: RecordTable, clock: Clock, tell: Tell, settings: EventSettings, *, me: str, boot: str) -> None:
        self._table = table
        self._clock = clock
        self._tell = tell
        self._settings = settings
        self._story = JobStory(me, boot, settings.told_jobs, settings.max_age)
        self._changed: OrderedDict[str, None] = OrderedDict()
        self._bell = trio.Event()
        self.missed = 0
        """Jobs that changed too many at once, or left the memory, before they were looked at."""
        table.on_change(self._note)

    def _note(self, job: str) -> None:
        if job in self._changed:
            return
        if len(self._changed) >= self._settings.changed_jobs:
            self.missed += 1
            return
        self._changed[job] = None
        self._bell.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._bell.wait()
            self._bell = trio.Event()
            while self._changed:
                for _ in range(min(IN_ONE_GO, len(self._changed))):
                    self._look(self._changed.popitem(last=False)[0])
                await trio.lowlevel.checkpoint()
            await trio.sleep(self._settings.looks)

    def _look(self, job: str) -> None:
        if not self._table.holds(job):
            self.missed += 1
            return
        for event in self._story.observe(self._table.view(job), self._clock.wall()):
            self._tell("jobs", event)


class NodeSource:
    """Members, told by whoever holds the lowest seat; seats, told by who wins and loses them."""

    def __init__(self, registry: Registry, elector: Elector, clock: Clock, tell: Tell, settings: EventSettings, *, me: str) -> None:
        self._registry = registry
        self._elector = elector
        self._clock = clock
        self._tell = tell
        self._settings = settings
        self._me = me
        self._story = NodeStory(me)

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_seat)
            await self._watch_members()

    async def _watch_members(self) -> None:
        while True:
            version = self._registry.changed()
            members = {v.heartbeat.peer_id: Seen(v.state, v.heartbeat.boot) for v in self._registry.nodes()}
            told = self._story.observe(members, self._clock.wall())
            if told and self._tells():
                for event in told:
                    self._tell("nodes", event)
            await trio.sleep(self._settings.looks)
            await self._registry.wait_changed(version)

    def _tells(self) -> bool:
        seats = self._elector.seats()
        return bool(seats) and min(seats, key=lambda s: s.seat).peer == self._me

    async def _watch_seat(self) -> None:
        while True:
            seat = await self._elector.wait_seat()
            self._say("seat_won", seat)
            await self._elector.wait_lost(seat)
            self._say("seat_lost", seat)

    def _say(self, word: str, seat: Seat) -> None:
        self._tell("nodes", Event(event=word, at=self._clock.wall(), node=self._me, seat=seat.seat, term=seat.n))
