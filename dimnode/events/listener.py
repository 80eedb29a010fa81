"""Hears what others publish, believes what is signed, new and of now, and hands it to whoever watches at this node."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Collection
from typing import Any

import trio

from dimnode.core.event_flow import Intake, IntakeSettings
from dimnode.domain import events
from dimnode.domain.events import KINDS, Kind, Message
from dimnode.errors import ResourceExhausted
from dimnode.events.publisher import TYPE
from dimnode.events.settings import EventSettings
from dimnode.ports import Clock
from dimnode.security import jws
from p2p.api import GossipMessage, Network
from p2p.identity import verify as verify_with_peer_id
from p2p.queues import DropOldest

Document = dict[str, Any]


def judge(intake: Intake, data: bytes, clock: Clock, *, author: str | None, verify: jws.Verify = verify_with_peer_id) -> bool:
    """Whether to believe what came on a topic. Never raises; `Intake.refused` counts reasons."""
    found: list[jws.Statement] = []

    def read() -> tuple[str, Message]:
        statement = jws.read(data, TYPE)
        found.append(statement)
        return statement.author, events.decode(statement.payload)

    return intake.judge(len(data), read, lambda: jws.authentic(found[0], verify), author=author, wall=clock.wall(), now=clock.monotonic())


class EventListener:
    """Subscribes when made. The latest events are remembered for those who ask later."""

    def __init__(self, network: Network, clock: Clock, settings: EventSettings, *, verify: jws.Verify = verify_with_peer_id) -> None:
        self._clock = clock
        self._settings = settings
        self._verify = verify
        self._recent: deque[Document] = deque(maxlen=settings.remember)
        self._watchers: list[tuple[frozenset[str], DropOldest[Document]]] = []
        self._heard = 0
        self._intakes: dict[Kind, Intake] = {}
        self._inboxes: list[trio.MemoryReceiveChannel[GossipMessage]] = []
        for kind in KINDS:
            intake = self._intakes[kind] = Intake(kind, settings.channel, IntakeSettings(max_age=settings.max_age))
            topic = events.topic(settings.channel, kind)

            def accept(author: str, data: bytes, intake: Intake = intake) -> bool:
                return judge(intake, data, clock, author=author, verify=verify)

            self._inboxes.append(network.subscribe(topic, accept, settings.inbox))

    def statistics(self) -> dict[str, Any]:
        """Events ``heard``, messages ``refused`` by reason (oversized, malformed, forged, foreign, old, repeated, rapid), ``watchers``."""
        refused = sum((i.refused for i in self._intakes.values()), start=type(self._intakes["jobs"].refused)())
        return {"heard": self._heard, "refused": dict(refused), "watchers": len(self._watchers)}

    async def run(self) -> None:
        """Until cancelled; then watchers hear no more."""
        try:
            async with trio.open_nursery() as nursery:
                for inbox in self._inboxes:
                    nursery.start_soon(self._listen, inbox)
        finally:
            for _, queue in self._watchers:
                queue.close()

    async def _listen(self, inbox: trio.MemoryReceiveChannel[GossipMessage]) -> None:
        async for received in inbox:
            self.hear(events.decode(jws.read(received.data, TYPE).payload))

    def hear(self, message: Message) -> None:
        """A message that is believed; the own ones come here without a detour."""
        for event in message.events:
            self._heard += 1
            document = events.document(message, event)
            self._recent.append(document)
            for kinds, queue in self._watchers:
                if message.kind in kinds:
                    queue.put(document)

    async def watch(self, kinds: Collection[str], *, follow: bool) -> AsyncGenerator[Document, None]:
        """The remembered events, oldest first; with ``follow`` then those that come. A slow reader misses the oldest. Raises
        `ResourceExhausted`."""
        if len(self._watchers) >= self._settings.watchers:
            raise ResourceExhausted(
                f"{len(self._watchers)} programs follow this node's events already", hint="End one of them.", retry_after=5.0
            )
        queue = DropOldest[Document](self._settings.watcher_queue)
        entry = (frozenset(kinds), queue)
        recent = [d for d in self._recent if d["kind"] in kinds]
        if follow:
            self._watchers.append(entry)
        try:
            with queue.reader() as reader:
                for document in recent:
                    yield document
                if follow:
                    async for document in reader:
                        yield document
        finally:
            if entry in self._watchers:
                self._watchers.remove(entry)
