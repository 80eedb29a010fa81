"""Tunnels: a byte stream of its own to a peer, as a trio stream, on one libp2p stream each.

The accepting side first writes one byte, 0 for yes; else a refusal of that many bytes follows (see
`p2p.frames.encode_fault`). Then the bytes belong to the users. A close sends the end of the stream and keeps
the libp2p stream until the other side has read everything, since what is unread when a connection closes
is lost.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import trio
from libp2p.network.stream.exceptions import StreamEOF

from p2p import frames
from p2p.api import RemoteFault, RequestTimeout, TunnelHandler, Unreachable
from p2p.host import Stream
from p2p.settings import TunnelSettings

log = logging.getLogger(__name__)
PROTOCOL = "/dim/tunnel/1/"
ACCEPTED = b"\x00"
READ_BYTES = 65_536


class TunnelStream(trio.abc.HalfCloseableStream):
    """A libp2p stream with trio's rules."""

    def __init__(self, stream: Stream, retire: Callable[[TunnelStream, bool], None]) -> None:
        self._stream = stream
        self._retire = retire
        self._sending: trio.CancelScope | None = None
        self._receiving: trio.CancelScope | None = None
        self._sent_eof = False
        self._got_eof = False
        self._broken = False
        self._closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._check_sending()
        if self._sent_eof:
            raise trio.ClosedResourceError("this side has ended")
        whole = False
        try:
            with trio.CancelScope() as self._sending:
                await self._stream.write(bytes(data))
                whole = True
        except Exception as problem:
            raise trio.BrokenResourceError("the tunnel broke") from problem
        finally:
            self._sending = None
            self._broken |= not whole  # some of the data may be on its way: nothing can follow it
        self._check_open()

    def _check_sending(self) -> None:
        self._check_open()
        if self._sending is not None:
            raise trio.BusyResourceError("another task is sending")
        self._check()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()
        self._check()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self._check_sending()
        if self._sent_eof:
            return
        self._sent_eof = True
        whole = False
        try:
            await self._stream.close_write()
            whole = True
        except Exception as problem:
            raise trio.BrokenResourceError("the tunnel broke") from problem
        finally:
            self._broken |= not whole

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        await trio.lowlevel.checkpoint()
        self._check()
        if self._got_eof:
            return b""
        if self._receiving is not None:
            raise trio.BusyResourceError("another task is receiving")
        data = b""
        try:
            with trio.CancelScope() as self._receiving:
                data = await self._stream.read(max_bytes or READ_BYTES)
        except StreamEOF:
            self._got_eof = True
        except Exception as problem:
            self._broken = True
            raise trio.BrokenResourceError("the tunnel broke") from problem
        finally:
            self._receiving = None
        self._check_open()
        return data

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this side is closed")

    def _check(self) -> None:
        self._check_open()
        if self._broken:
            raise trio.BrokenResourceError("the tunnel broke")

    async def aclose(self) -> None:
        """Never waits for the other side: that goes on in the background (`TunnelSettings.linger`). Under a
        cancellation the tunnel is reset instead."""
        if not self._closed:
            self._closed = True
            cancelled = trio.current_effective_deadline() <= trio.current_time()
            graceful = not (self._broken or cancelled or self._sending)
            for scope in (self._sending, self._receiving):
                if scope is not None:
                    scope.cancel()
            self._retire(self, graceful)
        await trio.lowlevel.checkpoint()

    async def _finish(self, graceful: bool, linger: float) -> None:
        """Background part of `aclose`."""
        clean = False
        try:
            with trio.move_on_after(linger):
                clean = graceful and await self._end()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                await (self._stream.close() if clean else self._stream.reset())

    async def _end(self) -> bool:
        """Whether the other side took everything and ended too. Data that still comes means it did not."""
        try:
            if not self._sent_eof:
                await self._stream.close_write()
            return self._got_eof or not await self._stream.read(1)
        except StreamEOF:
            return True
        except Exception:  # libp2p's streams raise many types; all mean that the stream is over
            log.debug("a tunnel broke while closing", exc_info=True)
            return False


class Tunnels:
    def __init__(
        self,
        settings: TunnelSettings,
        open_stream: Callable[..., Any],
        start: Callable[..., None],
    ) -> None:
        self._settings = settings
        self._open_stream = open_stream
        self._start = start
        self._handlers: dict[str, TunnelHandler] = {}
        self._open: Counter[str] = Counter()
        self._lingering = 0
        self._settled = trio.Event()

    # --- the asking side

    async def open(self, peer: str, name: str, timeout: float) -> TunnelStream:
        with trio.move_on_after(timeout):
            stream = await self._open_stream(peer, PROTOCOL + name)
            tunnel = None
            try:
                await _wait_accepted(stream)
                tunnel = TunnelStream(stream, self._retire)
                return tunnel
            finally:
                if tunnel is None:
                    self._start(stream.reset)
        raise RequestTimeout(f"{peer} did not accept tunnel {name} within {timeout} s")

    # --- the accepting side

    def handler_of(self, name: str, handler: TunnelHandler) -> Callable[[Stream], Any]:
        """The libp2p stream handler for tunnels of this name."""
        self._handlers[name] = handler

        async def accept(stream: Stream) -> None:
            peer = str(stream.muxed_conn.peer_id)
            if self._open[peer] >= self._settings.per_peer:
                await _refuse(stream, "RESOURCE_EXHAUSTED", "too many tunnels of one peer")
                return
            self._open[peer] += 1
            try:
                await self._serve(peer, name, stream)
            finally:
                self._open[peer] -= 1
                self._open += Counter()  # drops zeros

        return accept

    async def _serve(self, peer: str, name: str, stream: Stream) -> None:
        graceful = False
        tunnel = TunnelStream(stream, self._retire)
        try:
            await stream.write(ACCEPTED)
            await self._handlers[name](peer, tunnel)
            graceful = True
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("a tunnel broke", exc_info=True, extra={"tunnel": name, "peer": peer})
        except Exception:
            log.exception("a tunnel handler failed", extra={"tunnel": name, "peer": peer})
        finally:
            tunnel._broken |= not graceful
            with trio.CancelScope(shield=True):
                await tunnel.aclose()

    # --- closing

    def _retire(self, tunnel: TunnelStream, graceful: bool) -> None:
        self._lingering += 1
        self._start(self._bury, tunnel, graceful)

    async def _bury(self, tunnel: TunnelStream, graceful: bool) -> None:
        try:
            await tunnel._finish(graceful, self._settings.linger)
        finally:
            self._lingering -= 1
            if self._lingering == 0:
                self._settled.set()
                self._settled = trio.Event()

    async def wait_settled(self) -> None:
        """Returns when every closed tunnel has been flushed or given up."""
        while self._lingering:
            await self._settled.wait()


async def _wait_accepted(stream: Stream) -> None:
    """Raises `RemoteFault` if the other side refuses, `Unreachable` if it says nothing."""
    answer = b""
    try:
        while len(answer) <= frames.MAX_FAULT and (more := await stream.read(frames.MAX_FAULT if answer else 1)):
            answer += more
            if answer == ACCEPTED:
                return
    except StreamEOF:
        log.debug("a tunnel was refused")
    except trio.Cancelled:
        raise
    except Exception as problem:
        raise Unreachable("the connection broke while a tunnel was opened") from problem
    if len(answer) > 1:
        raise RemoteFault(*frames.decode_fault(answer[1:]))
    raise Unreachable("the tunnel was closed while it was opened")


async def _refuse(stream: Stream, code: str, message: str) -> None:
    await stream.write(b"\x01" + frames.encode_fault(code, message))
    await stream.close()
