"""What waits to be sent to one peer: our own requests, and what it asked of us. Bounded, no I/O."""

from __future__ import annotations

import itertools
from collections import OrderedDict

import trio

from p2p.ipfs.cid import Cid
from p2p.ipfs.wants import Ask
from p2p.ipfs.wire import Entry


class Outbox:
    def __init__(self, max_queued: int) -> None:
        self._max_queued = max_queued
        self._requests: OrderedDict[Cid, Ask] = OrderedDict()
        self._queue: OrderedDict[bytes, Entry] = OrderedDict()
        self._absent: OrderedDict[bytes, None] = OrderedDict()
        self._news: OrderedDict[bytes, None] = OrderedDict()
        self._wake = trio.Event()

    def __bool__(self) -> bool:
        return bool(self._requests or self._queue or self._absent or self._news)

    async def wait(self) -> None:
        """Until there is something to send."""
        while not self:
            self._wake = trio.Event()
            await self._wake.wait()

    def ask(self, cid: Cid, ask: Ask) -> None:
        """A later request about the same block replaces the earlier one."""
        self._requests.pop(cid, None)
        self._requests[cid] = ask
        self._wake.set()

    def asked_by_peer(self, entries: tuple[Entry, ...], full: bool) -> None:
        """Queue a want list; what is beyond the bound is answered with "don't have"."""
        if full:
            self._queue.clear()
        for entry in entries:
            if entry.cancel:
                self._queue.pop(entry.key, None)
                self._news.pop(entry.key, None)
            elif entry.key in self._queue or len(self._queue) < self._max_queued:
                self._queue[entry.key] = entry
            elif entry.answer and len(self._absent) < self._max_queued:
                self._absent[entry.key] = None
        self._wake.set()

    def tell(self, key: bytes) -> None:
        """The peer asked for it before it was here."""
        if len(self._news) < self._max_queued:
            self._news[key] = None
            self._wake.set()

    def take_news(self) -> list[bytes]:
        news, self._news = list(self._news), OrderedDict()
        return news

    def take_requests(self) -> tuple[Entry, ...]:
        """Our own want list since the last call."""
        requests, self._requests = self._requests, OrderedDict()
        return tuple(Entry(cid.binary, ask is not Ask.HAVE, cancel=ask is Ask.CANCEL) for cid, ask in requests.items())

    def take_absent(self) -> list[bytes]:
        """Requests that were refused because too many wait."""
        absent, self._absent = list(self._absent), OrderedDict()
        return absent

    def oldest(self, most: int) -> list[bytes]:
        """CIDs that the peer asked for first; they stay until they are taken."""
        return list(itertools.islice(self._queue, most))

    def take(self, key: bytes) -> Entry | None:
        """None: it was cancelled meanwhile."""
        return self._queue.pop(key, None)
