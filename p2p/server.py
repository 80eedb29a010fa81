"""Answers the requests of peers. Knows streams of bytes, not libp2p."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Protocol

import trio

from p2p import frames
from p2p.api import MAX_REQUEST_BYTES, Handler, RemoteFault
from p2p.frames import Assembly, Frame, FrameReader, Kind
from p2p.outbox import Closed, Outbox
from p2p.settings import RequestSettings

log = logging.getLogger(__name__)
READ_BYTES = 65_536
MOST_REFUSED = 4096
"""Refused requests of one stream whose remaining pieces are still to come; an honest asker cancels them."""
BUSY = "RESOURCE_EXHAUSTED"


class ByteStream(Protocol):
    async def read(self, n: int) -> bytes: ...
    async def write(self, data: bytes) -> None: ...


@dataclass(slots=True)
class _Method:
    handler: Handler
    limiter: trio.CapacityLimiter


class Methods:
    """The handlers of this node, with their bounds, which hold for all peers together."""

    def __init__(self, settings: RequestSettings) -> None:
        self._settings = settings
        self._methods: dict[str, _Method] = {}

    def serve(self, method: str, handler: Handler, concurrency: int) -> None:
        self._methods[method] = _Method(handler, trio.CapacityLimiter(concurrency))

    async def call(self, peer: str, method: str, data: bytes) -> bytes:
        """Raises `RemoteFault`: the handler's own, or one for what is unknown, too much or broken."""
        entry = self._methods.get(method)
        if entry is None:
            raise RemoteFault("UNIMPLEMENTED", f"no such method: {method[:64]}")
        if entry.limiter.statistics().tasks_waiting >= self._settings.backlog:
            raise RemoteFault(BUSY, f"too many requests are waiting for {method}")
        async with entry.limiter:
            try:
                answer = await entry.handler(peer, data)
            except RemoteFault:
                raise
            except Exception:
                log.exception("a request handler failed", extra={"method": method, "peer": peer})
                raise RemoteFault("INTERNAL", "the request failed on the other side") from None
        if len(answer) > MAX_REQUEST_BYTES:
            log.error("an answer is too large", extra={"method": method, "bytes": len(answer)})
            raise RemoteFault("INTERNAL", "the answer is too large")
        return answer


@dataclass(slots=True)
class _Load:
    """What one peer keeps busy here, over all its streams."""

    streams: int = 0
    requests: int = 0
    bytes: int = 0


class RequestServer:
    def __init__(self, methods: Methods, settings: RequestSettings) -> None:
        self._methods = methods
        self._settings = settings
        self._loads: dict[str, _Load] = {}

    async def serve(self, peer: str, stream: ByteStream) -> None:
        """Answers on one stream until it ends; what is unanswered then is cancelled."""
        load = self._loads.setdefault(peer, _Load())
        load.streams += 1
        try:
            await self._serve(peer, stream, load)
        finally:
            load.streams -= 1
            if load.streams == 0:
                del self._loads[peer]

    async def _serve(self, peer: str, stream: ByteStream, load: _Load) -> None:
        async with trio.open_nursery() as nursery:
            session = _Session(peer, self._methods, self._settings, load, nursery)
            nursery.start_soon(session.send, stream)
            try:
                await session.receive(stream)
            except frames.ProtocolViolation as problem:
                log.warning("a peer asks against the protocol: %s", problem, extra={"peer": peer})
            finally:
                session.close()
                nursery.cancel_scope.cancel()


@dataclass(slots=True)
class _Session:
    peer: str
    methods: Methods
    settings: RequestSettings
    load: _Load
    nursery: trio.Nursery
    outbox: Outbox = field(init=False)
    incomplete: dict[int, tuple[frames.Begin, Assembly]] = field(default_factory=dict)
    running: dict[int, trio.CancelScope] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    """Requests whose remaining pieces are to be skipped."""

    def __post_init__(self) -> None:
        self.outbox = Outbox(self.settings.outgoing)

    def close(self) -> None:
        self.outbox.close()
        for _, assembly in self.incomplete.values():
            self._release(assembly.size)
        self.incomplete.clear()

    async def send(self, stream: ByteStream) -> None:
        try:
            while True:
                await stream.write(await self.outbox.take())
        except Closed:
            return
        except Exception:  # libp2p's streams raise many types; all mean that the stream is over
            log.debug("a request stream broke", exc_info=True)
            self.nursery.cancel_scope.cancel()

    async def receive(self, stream: ByteStream) -> None:
        reader = FrameReader()
        while data := await read(stream):
            for frame in reader.feed(data):
                self._act(frame)

    def _act(self, frame: Frame) -> None:
        if frame.kind is Kind.BEGIN:
            self._begin(frame)
        elif frame.kind is Kind.DATA:
            self._data(frame)
        elif frame.kind is Kind.CANCEL:
            self._cancel(frame.id)
        else:
            raise frames.ProtocolViolation(f"{frame.kind.name} from the asking side")

    def _begin(self, frame: Frame) -> None:
        begin = frames.decode_begin(frame.payload)
        if frame.id in self.incomplete or frame.id in self.running or frame.id in self.refused:
            raise frames.ProtocolViolation("a request id is used twice")
        if (problem := self._problem(begin)) is not None:
            self._fault(frame.id, *problem)
            if len(begin.first) < begin.size:
                self.refused.add(frame.id)
                if len(self.refused) > MOST_REFUSED:
                    raise frames.ProtocolViolation("too many refused requests keep sending")
            return
        self.load.requests += 1
        self.load.bytes += begin.size
        self.incomplete[frame.id] = (begin, Assembly(begin.size, begin.first))
        self._start_if_complete(frame.id)

    def _problem(self, begin: frames.Begin) -> tuple[str, str] | None:
        if begin.size > MAX_REQUEST_BYTES:
            return "INVALID_ARGUMENT", f"a request has at most {MAX_REQUEST_BYTES} bytes"
        if self.load.requests >= self.settings.per_peer:
            return BUSY, "too many requests of one peer at once"
        if self.load.bytes + begin.size > self.settings.assembling:
            return BUSY, "too many bytes of one peer at once"
        return None

    def _data(self, frame: Frame) -> None:
        if frame.id in self.refused:
            return  # forgotten at the asker's CANCEL, which follows each fault it did not wait for
        if frame.id in self.incomplete:
            self.incomplete[frame.id][1].add(frame.payload)
            self._start_if_complete(frame.id)

    def _start_if_complete(self, id: int) -> None:
        begin, assembly = self.incomplete[id]
        if assembly.complete:
            del self.incomplete[id]
            scope = self.running[id] = trio.CancelScope()
            self.nursery.start_soon(self._answer, id, begin, assembly, scope)

    def _cancel(self, id: int) -> None:
        self.refused.discard(id)
        if id in self.running:
            self.running[id].cancel()
        elif id in self.incomplete:
            self._release(self.incomplete.pop(id)[1].size)

    async def _answer(self, id: int, begin: frames.Begin, assembly: Assembly, scope: trio.CancelScope) -> None:
        scope.deadline = trio.current_time() + begin.timeout
        try:
            with scope:
                for frame in await self._frames(id, begin.method, assembly.data()):
                    await self.outbox.put(frame)
        except Closed:
            pass
        finally:
            del self.running[id]
            self._release(assembly.size)

    async def _frames(self, id: int, method: str, data: bytes) -> list[bytes]:
        try:
            return list(frames.answer_frames(id, await self.methods.call(self.peer, method, data)))
        except RemoteFault as fault:
            return [frames.encode(Kind.FAULT, id, frames.encode_fault(fault.code, fault.message))]

    def _fault(self, id: int, code: str, message: str) -> None:
        self.outbox.put_nowait(frames.encode(Kind.FAULT, id, frames.encode_fault(code, message)))

    def _release(self, size: int) -> None:
        self.load.requests -= 1
        self.load.bytes -= size


async def read(stream: ByteStream) -> bytes:
    """Some bytes, or none at the end of the stream, however it ended."""
    try:
        return await stream.read(READ_BYTES)
    except Exception:  # as in `_Session.send`
        log.debug("a request stream ended", exc_info=True)
        return b""
