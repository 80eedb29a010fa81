"""Asks peers: one long-lived stream to each, opened on demand, shared by all requests."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from p2p import frames
from p2p.api import MAX_REQUEST_BYTES, NetworkError, RemoteFault, RequestTimeout, Unreachable
from p2p.frames import Assembly, Frame, FrameReader, Kind, ProtocolViolation
from p2p.outbox import Closed, Outbox
from p2p.server import ByteStream, read
from p2p.settings import RequestSettings

log = logging.getLogger(__name__)


class OwnedStream(ByteStream):
    async def reset(self) -> None: ...


@dataclass(slots=True)
class _Pending:
    done: trio.Event = field(default_factory=trio.Event)
    assembly: Assembly | None = None
    outcome: bytes | NetworkError | None = None

    def finish(self, outcome: bytes | NetworkError) -> None:
        self.outcome = outcome
        self.done.set()


class Channel:
    """The requests under way on one stream."""

    def __init__(self, stream: OwnedStream, settings: RequestSettings) -> None:
        self._stream = stream
        self._outbox = Outbox(settings.outgoing)
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self.closed = False

    @property
    def pending(self) -> int:
        return len(self._pending)

    async def run(self) -> None:
        """Until the stream ends; then every request under way fails with `Unreachable`."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, nursery.cancel_scope)
                await self._receive()
                nursery.cancel_scope.cancel()
        except* ProtocolViolation as problems:
            log.warning("a peer answers against the protocol: %s", problems.exceptions[0])
        finally:
            self.close()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                await self._stream.reset()

    def close(self) -> None:
        self.closed = True
        self._outbox.close()
        for pending in self._pending.values():
            pending.finish(Unreachable("the connection broke before the answer came"))
        self._pending.clear()

    async def ask(self, method: str, data: bytes, timeout: float) -> bytes:
        """Raises `Closed` if nothing was sent, `Unreachable`, `RemoteFault`."""
        id_ = next(self._ids)
        pending = self._pending[id_] = _Pending()
        begun = False
        try:
            for frame in frames.request_frames(id_, method, data, timeout):
                if pending.done.is_set():  # refused already
                    break
                await self._outbox.put(frame)
                begun = True
            await pending.done.wait()
        except Closed:
            if not begun:
                raise
        finally:
            unfinished = self._pending.pop(id_, None) is not None
            if begun and not self.closed and (unfinished or len(data) > frames.CHUNK):
                self._outbox.put_nowait(frames.encode(Kind.CANCEL, id_))
        return _result(pending)

    async def _send(self, scope: trio.CancelScope) -> None:
        try:
            while True:
                await self._stream.write(await self._outbox.take())
        except Closed:
            pass
        except Exception:  # libp2p's streams raise many types; all mean that the stream is over
            log.debug("a request stream broke", exc_info=True)
        scope.cancel()

    async def _receive(self) -> None:
        reader = FrameReader()
        while data := await read(self._stream):
            for frame in reader.feed(data):
                self._act(frame)

    def _act(self, frame: Frame) -> None:
        pending = self._pending.get(frame.id)
        if pending is None:
            return  # given up meanwhile
        if frame.kind is Kind.FAULT:
            self._finish(frame.id, RemoteFault(*frames.decode_fault(frame.payload)))
        elif frame.kind is Kind.ANSWER and pending.assembly is None:
            size, first = frames.decode_answer(frame.payload)
            if size > MAX_REQUEST_BYTES:
                raise ProtocolViolation("an answer is too large")
            pending.assembly = Assembly(size, first)
        elif frame.kind is Kind.DATA and pending.assembly is not None:
            pending.assembly.add(frame.payload)
        else:
            raise ProtocolViolation(f"{frame.kind.name} at the wrong moment")
        if pending.assembly is not None and pending.assembly.complete:
            self._finish(frame.id, pending.assembly.data())

    def _finish(self, id: int, outcome: bytes | NetworkError) -> None:
        self._pending.pop(id).finish(outcome)


def _result(pending: _Pending) -> bytes:
    if isinstance(pending.outcome, bytes):
        return pending.outcome
    raise pending.outcome or Unreachable("the connection broke before the answer came")


class RequestClient:
    """``open_stream(peer)`` connects if need be and raises `Unreachable`; ``start`` runs a task in the
    owner's nursery."""

    def __init__(
        self,
        open_stream: Callable[[str], Awaitable[OwnedStream]],
        settings: RequestSettings,
        start: Callable[..., None],
    ) -> None:
        self._open_stream = open_stream
        self._settings = settings
        self._start = start
        self._channels: dict[str, Channel] = {}
        self._opening: dict[str, trio.Lock] = {}
        self.requests = 0
        self.failures = 0

    async def request(self, peer: str, method: str, data: bytes, timeout: float) -> bytes:
        if len(data) > MAX_REQUEST_BYTES:
            raise ValueError(f"a request has at most {MAX_REQUEST_BYTES} bytes, not {len(data)}")
        self.requests += 1
        deadline = trio.current_time() + timeout
        try:
            with trio.move_on_at(deadline):
                return await self._ask(peer, method, data, deadline)
            raise RequestTimeout(f"no answer to {method} within {timeout} s")
        except NetworkError as problem:
            self.failures += not isinstance(problem, RemoteFault)
            raise

    async def _ask(self, peer: str, method: str, data: bytes, deadline: float) -> bytes:
        for _ in range(2):  # the stream may turn out to be closed just when it is used
            channel = await self._channel(peer)
            try:
                return await channel.ask(method, data, deadline - trio.current_time())
            except Closed:
                continue
        raise Unreachable(f"the connection to {peer} breaks at once")

    async def _channel(self, peer: str) -> Channel:
        channel = self._channels.get(peer)
        if channel is not None and not channel.closed:
            return channel
        lock = self._opening.setdefault(peer, trio.Lock())
        try:
            async with lock:
                channel = self._channels.get(peer)
                if channel is None or channel.closed:
                    stream = await self._open_stream(peer)
                    channel = self._channels[peer] = Channel(stream, self._settings)
                    self._start(self._run, peer, channel)
                return channel
        finally:
            if not lock.locked() and lock.statistics().tasks_waiting == 0:
                self._opening.pop(peer, None)

    async def _run(self, peer: str, channel: Channel) -> None:
        try:
            await channel.run()
        finally:
            if self._channels.get(peer) is channel:
                del self._channels[peer]
