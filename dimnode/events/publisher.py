"""Sends events on their way: a lane for each outlet, so that one that is slow or away holds up no other, and nobody who has something to tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
import trio

from dimnode.core.event_flow import Numbers, Outgoing
from dimnode.domain import events
from dimnode.domain.events import KINDS, Event, Kind, Message
from dimnode.events.settings import EventSettings
from dimnode.ports import Clock, Signer
from dimnode.security import jws

log = structlog.get_logger(__name__)
TYPE = "dim-events+jws"


class NotSent(Exception):
    """The outlet cannot be used now; the message says why."""


class Outlet(Protocol):
    async def publish(self, topic: str, data: bytes) -> None:
        """Raises `NotSent`."""
        ...


@dataclass(frozen=True, slots=True)
class Desk:
    """What lanes share: who signs, under which numbers."""

    signer: Signer
    clock: Clock
    numbers: Numbers
    channel: str

    def message(self, kind: Kind, told: tuple[Event, ...], dropped: int) -> Message:
        now = self.clock.wall()
        return Message(
            kind=kind, channel=self.channel, publisher=self.signer.peer_id, seq=self.numbers.next(now), at=now, dropped=dropped, events=told
        )


class Lane:
    """``sent`` is told of every message that the outlet took."""

    def __init__(self, outlet: Outlet, desk: Desk, settings: EventSettings, sent: Callable[[Message], None] | None = None) -> None:
        self._outlet = outlet
        self._desk = desk
        self._settings = settings
        self._sent = sent
        self._waiting: dict[Kind, Outgoing] = {kind: Outgoing(settings.queue, settings.batch, settings.interval) for kind in KINDS}
        self._bell = trio.Event()
        self._published = 0
        self._messages = 0
        self._failures = 0
        self.problem = ""

    def put(self, kind: Kind, event: Event) -> None:
        """Never waits; when the queue is full the oldest gives way."""
        self._waiting[kind].put(event)
        self._bell.set()

    def status(self) -> dict[str, Any]:
        """``published`` events in ``messages``, ``waiting`` and ``dropped`` ones; ``problem`` while the outlet cannot be used."""
        return {
            "ok": not self.problem,
            "problem": self.problem,
            "published": self._published,
            "messages": self._messages,
            "waiting": sum(len(w) for w in self._waiting.values()),
            "dropped": sum(w.dropped for w in self._waiting.values()),
            "failures": self._failures,
        }

    async def run(self) -> None:
        """Until cancelled."""
        s = self._settings
        pause = s.retry_first
        while True:
            kind = await self._next()
            taken = self._waiting[kind].take(self._desk.clock.monotonic())
            if not taken:
                continue
            try:
                await self._send(kind, taken)
            except NotSent as e:
                self._failures += 1
                if str(e) != self.problem:
                    log.warning("events.not_sent", kind=kind, reason=str(e), again_in=pause)
                self.problem = str(e)
                self._waiting[kind].give_back(taken)
                await trio.sleep(pause)
                pause = min(2 * pause, s.retry_most)
            else:
                self.problem, pause = "", s.retry_first

    async def _next(self) -> Kind:
        """The kind of which a message may go now."""
        while True:
            self._bell = trio.Event()
            due: list[tuple[float, Kind]] = [(at, kind) for kind, w in self._waiting.items() if (at := w.due_at()) is not None]
            if due:
                at, kind = min(due, key=lambda item: item[0])
                left = at - self._desk.clock.monotonic()
                if left <= 0:
                    return kind
                with trio.move_on_after(left):
                    await self._bell.wait()
            else:
                await self._bell.wait()

    async def _send(self, kind: Kind, taken: tuple[Event, ...]) -> None:
        message = self._desk.message(kind, taken, self._waiting[kind].dropped)
        data = jws.sign(events.encode(message), TYPE, self._desk.signer)
        try:
            with trio.fail_after(self._settings.timeout):
                await self._outlet.publish(events.topic(self._desk.channel, kind), data)
        except trio.TooSlowError:
            raise NotSent(f"nothing could be sent within {self._settings.timeout:g} s") from None
        self._published += len(taken)
        self._messages += 1
        if self._sent is not None:
            self._sent(message)


class Publisher:
    """``lanes``: by the name under which `status` shows them."""

    def __init__(self, lanes: Mapping[str, Lane]) -> None:
        self._lanes = lanes

    def tell(self, kind: Kind, event: Event) -> None:
        """Never waits, never fails."""
        for lane in self._lanes.values():
            lane.put(kind, event)

    def status(self) -> dict[str, Any]:
        return {name: lane.status() for name, lane in self._lanes.items()}

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            for lane in self._lanes.values():
                nursery.start_soon(lane.run)
