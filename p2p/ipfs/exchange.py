"""Bitswap on the node's own libp2p host: fetches blocks that were asked for, serves those that may be.

The decisions are in `wants`; this is the shell that owns streams and tasks. One task for each peer with
something to send writes on one outgoing stream (wants, answers and blocks); incoming streams are read by
the tasks that libp2p starts for them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager

import trio

from p2p.ipfs import cid as cids
from p2p.ipfs import wire
from p2p.ipfs.api import BadCid, BlockCorrupt, BlockMissing, ContentError
from p2p.ipfs.blocks import Blocks, Found
from p2p.ipfs.cid import Cid
from p2p.ipfs.lacking import Lacking
from p2p.ipfs.link import Link, LinkDown, MessageStream
from p2p.ipfs.outbox import Outbox
from p2p.ipfs.protobuf import Malformed
from p2p.ipfs.settings import MAX_BLOCK, ExchangeSettings
from p2p.ipfs.traffic import MayServe, Traffic
from p2p.ipfs.wants import Delivery, Search, Send, WantBook

log = logging.getLogger(__name__)
FindProviders = Callable[[str], Awaitable[Collection[str]]]
"""CID -> peer ids of nodes that say that they have it; never raises, ends in time."""

_HASH_INLINE = 64 * 1024
"""So many bytes of blocks are hashed on the loop: a thread costs more."""
_LOOK = 8
"""Requests of a peer that are looked at in one go."""


class _Arrival:
    """A block on its way and the tasks that wait for it."""

    def __init__(self) -> None:
        self.event = trio.Event()
        self.waiters = 0
        self.data: bytes | None = None
        self.error: ContentError | None = None


class BitswapExchange:
    """Open with `open_exchange`. All methods belong to the trio thread."""

    def __init__(
        self,
        link: Link,
        blocks: Blocks,
        settings: ExchangeSettings,
        connected: Callable[[], Collection[str]],
        may_serve: MayServe | None,
        nursery: trio.Nursery,
        find_providers: FindProviders | None = None,
    ) -> None:
        self._link = link
        self._blocks = blocks
        self._settings = settings
        self._connected = connected
        self._may_serve = may_serve
        self._nursery = nursery
        self._find_providers = find_providers
        self._book = WantBook(settings, connected, searches=find_providers is not None)
        self._arrivals: dict[Cid, _Arrival] = {}
        self._slots = trio.CapacityLimiter(settings.max_wants)
        self._outboxes: dict[str, Outbox] = {}
        self._lacking = Lacking(settings.max_lacking, settings.max_queued)
        self._inbound: dict[str, int] = {}
        self._scopes: set[trio.CancelScope] = set()
        self._wanted = trio.Event()
        self._closed = False
        self.traffic = Traffic()

    async def fetch_block(self, cid: Cid, providers: Collection[str], timeout: float, *, private: bool = False) -> bytes:
        """A verified block from peers; the same block wanted twice is fetched once. ``private``: no search for
        others that have it, which would tell them of it. Raises `BlockMissing`, `BlockCorrupt`. The caller keeps the block."""
        async with _slot(self._slots):
            if self._closed:
                raise BlockMissing("the exchange was closed")
            arrival = self._arrivals.setdefault(cid, _Arrival())
            arrival.waiters += 1
            try:
                self._book.want(cid, providers, timeout, trio.current_time(), search=not private)
                self._act()
                self._wanted.set()
                await arrival.event.wait()
            finally:
                self._leave(cid, arrival)
        if arrival.data is None:
            raise arrival.error or BlockMissing("the exchange was closed")
        return arrival.data

    def kept(self, blocks: Collection[Cid]) -> None:
        """They are in the store from now on: who asked for one before is told."""
        if not len(self._lacking) or self._closed:
            return
        waiting = [(peer, cid.binary) for cid in blocks for peer in self._lacking.take(cid.binary)]
        connected = self._connected() if waiting else ()
        for peer, key in waiting:
            if peer in connected and (peer in self._outboxes or len(self._outboxes) < self._settings.max_peers):
                self._outbox(peer).tell(key)

    @property
    def idle(self) -> bool:
        """Nothing is wanted, queued or being sent."""
        return not self._arrivals and not self._outboxes

    def _leave(self, cid: Cid, arrival: _Arrival) -> None:
        arrival.waiters -= 1
        if not arrival.waiters and self._arrivals.get(cid) is arrival:
            del self._arrivals[cid]
            self._book.leave(cid)
            self._act()

    def _settle(self, cid: Cid, data: bytes | None, error: ContentError | None = None) -> None:
        arrival = self._arrivals.pop(cid, None)
        if arrival is not None:
            arrival.data, arrival.error = data, error
            arrival.event.set()

    def _act(self) -> None:
        """Carry out what the book decided."""
        while not self._closed and (actions := self._book.actions()):
            for action in actions:
                if isinstance(action, Send):
                    self._outbox(action.peer).ask(action.cid, action.ask)
                elif isinstance(action, Search):
                    self._nursery.start_soon(self._search, action.cid)
                elif action.corrupt:
                    self._settle(action.cid, None, BlockCorrupt(f"only wrong content was offered for {action.cid}"))
                else:
                    self._settle(action.cid, None, BlockMissing(f"no provider had {action.cid} in time"))

    async def _search(self, cid: Cid) -> None:
        """At most one for each block that is wanted."""
        assert self._find_providers is not None
        found = await self._find_providers(cid.text)
        if found:
            log.debug("a search found %s holders of %s", len(found), cid)
        self._book.searched(cid, found, trio.current_time())
        self._act()

    async def _watch_deadlines(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            while len(self._book):
                await trio.sleep(self._settings.tick)
                self._book.tick(trio.current_time())
                self._act()

    # Sending

    def _outbox(self, peer: str) -> Outbox:
        box = self._outboxes.get(peer)
        if box is None:
            box = self._outboxes[peer] = Outbox(self._settings.max_queued)
            self._nursery.start_soon(self._send_to, peer, box)
        return box

    async def _send_to(self, peer: str, box: Outbox) -> None:
        """Empties one peer's outbox until it has been idle for a while or the peer is gone."""
        stream: MessageStream | None = None
        sound = False
        try:
            while await self._work(box):
                envelope = await self._pack(peer, box)
                stream = await self._deliver(peer, stream, wire.encode(envelope))
                self.traffic.served(envelope.blocks)
            sound = True
        except LinkDown as error:
            log.debug("peer %s is not reachable by bitswap: %s", peer, error)
        except Exception:
            # Nothing one peer causes may end the node.
            log.exception("bitswap with peer %s failed", peer)
        finally:
            if self._outboxes.get(peer) is box:
                del self._outboxes[peer]
            if stream is not None:
                await (stream.close() if sound else stream.reset())
        if not sound:
            self._lacking.forget_peer(peer)
            self._book.down(peer, trio.current_time())
            self._act()

    async def _work(self, box: Outbox) -> bool:
        with trio.move_on_after(self._settings.idle):
            await box.wait()
        return bool(box)

    async def _deliver(self, peer: str, stream: MessageStream | None, message: bytes) -> MessageStream:
        """Sends on the open stream, or on a new one if that broke since (the peer may have restarted)."""
        if stream is not None:
            try:
                await self._send(stream, message)
            except LinkDown:
                await stream.reset()
            else:
                return stream
        stream = await self._open(peer)
        try:
            await self._send(stream, message)
        except BaseException:
            await stream.reset()
            raise
        return stream

    async def _open(self, peer: str) -> MessageStream:
        with trio.move_on_after(self._settings.open_timeout):
            return await self._link.open(peer)
        raise LinkDown("no stream in time")

    async def _send(self, stream: MessageStream, message: bytes) -> None:
        with trio.move_on_after(self._settings.write_timeout):
            await stream.send(message)
            return
        raise LinkDown("the peer does not read")

    async def _pack(self, peer: str, box: Outbox) -> wire.Envelope:
        """One message: all our own requests, and answers until they fill it."""
        presences = [(key, False) for key in box.take_absent()]
        presences += await self._news(peer, box.take_news())
        serve: list[tuple[Cid, wire.Entry]] = []
        room = self._settings.serve_bytes
        while room > 0 and (keys := box.oldest(_LOOK)):
            wanted = {key: cid for key in keys if (cid := _parsed(key)) is not None}
            for key in wanted:
                self._lacking.note(key, peer)  # before it is looked at: what comes meanwhile is told
            found = await self._blocks.look(list(wanted.values()))
            for cid in found:
                self._lacking.forget(cid.binary, peer)
            for key in keys:
                if room <= 0:
                    break
                if (entry := box.take(key)) is None:
                    self._lacking.forget(key, peer)
                    continue
                cid = wanted.get(key)
                here = found.get(cid) if cid is not None else None
                if cid is not None and here is not None and not await self._may_have(peer, here):
                    here = None
                if cid is not None and here is not None and entry.block:
                    serve.append((cid, entry))
                    room -= here.size
                elif here is not None or entry.answer:
                    presences.append((key, here is not None))
                room -= len(key)
        blocks: list[tuple[bytes, bytes]] = []
        for (cid, entry), data in zip(serve, await self._read_all([cid for cid, _ in serve]), strict=True):
            if data is not None:
                blocks.append((cid.prefix, data))
            elif entry.answer:
                presences.append((entry.key, False))
        return wire.Envelope(wants=box.take_requests(), blocks=tuple(blocks), presences=tuple(presences))

    async def _news(self, peer: str, keys: list[bytes]) -> list[tuple[bytes, bool]]:
        """Those that are here now and that the peer may have."""
        wanted = {key: cid for key in keys if (cid := _parsed(key)) is not None}
        found = await self._blocks.look(list(wanted.values())) if wanted else {}
        return [(key, True) for key, cid in wanted.items() if cid in found and await self._may_have(peer, found[cid])]

    async def _read_all(self, wanted: list[Cid]) -> list[bytes | None]:
        if len(wanted) <= 1:
            return [await self._blocks.get(cid) for cid in wanted]
        read: dict[Cid, bytes | None] = {}

        async def one(cid: Cid) -> None:
            read[cid] = await self._blocks.get(cid)

        async with trio.open_nursery() as nursery:
            for cid in wanted:
                nursery.start_soon(one, cid)
        return [read[cid] for cid in wanted]

    async def _may_have(self, peer: str, found: Found) -> bool:
        """Otherwise the block is not here for that peer."""
        if self._may_serve is None or not found.audiences or await self._may_serve(peer, found.audiences):
            return True
        self.traffic.withheld_blocks += 1
        return False

    # Receiving

    async def handle(self, peer: str, stream: MessageStream) -> None:
        """One incoming stream. Never raises (libp2p would end the program), always ends the stream."""
        sound = False
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            self._inbound[peer] = self._inbound.get(peer, 0) + 1
            try:
                sound = self._inbound[peer] <= self._settings.max_streams and await self._read(peer, stream)
            except (LinkDown, Malformed) as error:
                log.debug("bitswap stream from %s: %s", peer, error)
            except Exception:
                log.exception("bitswap stream from %s failed", peer)
            finally:
                self._scopes.discard(scope)
                self._inbound[peer] -= 1
                if not self._inbound[peer]:
                    del self._inbound[peer]
                await (stream.close() if sound else stream.reset())

    def close(self) -> None:
        """Ends the tasks that libp2p owns and the fetches of everybody."""
        self._closed = True
        for scope in list(self._scopes):
            scope.cancel()
        for cid in list(self._arrivals):
            self._settle(cid, None)

    async def _read(self, peer: str, stream: MessageStream) -> bool:
        def heard() -> None:
            self._book.heard(peer, trio.current_time())

        while (body := await stream.receive(heard)) is not None:
            envelope = wire.decode(body)
            del body
            self._take_wants(peer, envelope)
            self._take_presences(peer, envelope)
            await self._take_blocks(peer, envelope)
            self._act()
            if not self._book.trusts(peer, trio.current_time()):
                return False
        return True

    def _take_wants(self, peer: str, envelope: wire.Envelope) -> None:
        if (envelope.wants or envelope.full) and (peer in self._outboxes or len(self._outboxes) < self._settings.max_peers):
            self._outbox(peer).asked_by_peer(envelope.wants, envelope.full)
        if envelope.full:
            self._lacking.forget_peer(peer)
        for entry in envelope.wants:
            if entry.cancel:
                self._lacking.forget(entry.key, peer)

    def _take_presences(self, peer: str, envelope: wire.Envelope) -> None:
        now = trio.current_time()
        for key, here in envelope.presences:
            try:
                cid = cids.from_binary(key)
            except BadCid:
                continue
            (self._book.have if here else self._book.dont_have)(peer, cid, now)

    async def _take_blocks(self, peer: str, envelope: wire.Envelope) -> None:
        for cid, (_, data) in zip(await _identify(envelope.blocks), envelope.blocks, strict=True):
            verdict = Delivery.UNSOLICITED
            if cid is None or len(data) > MAX_BLOCK:
                self._book.refused(peer, trio.current_time())
            else:
                verdict = self._book.delivered(peer, cid, trio.current_time())
            if cid is not None and verdict is Delivery.WANTED:
                self.traffic.fetched(data)
                self._settle(cid, data)
            elif verdict is Delivery.UNSOLICITED:
                self.traffic.refused_blocks += 1


def _parsed(key: bytes) -> Cid | None:
    try:
        return cids.from_binary(key)
    except BadCid:
        return None


async def _identify(blocks: Sequence[tuple[bytes, bytes]]) -> list[Cid | None]:
    def identify() -> list[Cid | None]:
        return [wire.identify(prefix, data) for prefix, data in blocks]

    if sum(len(data) for _, data in blocks) <= _HASH_INLINE:
        return identify()
    return await trio.to_thread.run_sync(identify)


@asynccontextmanager
async def _slot(limiter: trio.CapacityLimiter) -> AsyncGenerator[None, None]:
    """A place among the wanted blocks; unlike the limiter alone it may be taken several times by a task."""
    borrower = object()
    await limiter.acquire_on_behalf_of(borrower)
    try:
        yield
    finally:
        limiter.release_on_behalf_of(borrower)


@asynccontextmanager
async def open_exchange(
    link: Link,
    blocks: Blocks,
    settings: ExchangeSettings,
    connected: Callable[[], Collection[str]],
    may_serve: MayServe | None,
    find_providers: FindProviders | None = None,
) -> AsyncGenerator[BitswapExchange, None]:
    """Serves and fetches as long as the block lasts; leaves no task or stream behind. ``find_providers`` is asked about
    blocks that no named provider and no connected peer has."""
    error: BaseException | None = None
    async with trio.open_nursery() as nursery:
        exchange = BitswapExchange(link, blocks, settings, connected, may_serve, nursery, find_providers)
        nursery.start_soon(exchange._watch_deadlines)
        link.serve(exchange.handle)
        try:
            yield exchange
        except BaseException as raised:  # noqa: BLE001 - raised again below, where the nursery does not wrap it
            error = raised
        link.stop_serving()
        exchange.close()
        nursery.cancel_scope.cancel()
    if error is not None:
        raise error
