"""Corrections to py-libp2p, all in one place. Every one was needed with 0.8.1; look at each again when the
version moves. `apply` may be called any number of times.

1. *Writes survive cancellation.* A cancelled write left half a noise message on the wire, which killed every
   stream of the connection. A frame is now either not started or written whole; a write that does not end
   in time closes the connection instead of leaving it corrupt. (`Yamux._write_frame`)
2. *Closing never waits for a stuck write.* The goodbye frame queued behind a write to a peer that had
   stopped reading, for ever. (`Yamux.close`)
3. *A slow reader is not an error.* A writer gave up after 5 s with a full window, and polled every 10 ms
   until then. It now waits for the window; dead peers are found by `p2p.health`. (`YamuxStream.write`,
   ``send_window``)
4. *Pings belong to us.* The built-in loop measures every 30 s and concludes nothing; it would share state
   with ours. (`Yamux._measure_rtt_loop`)
5. *Signs of life.* The time of the last frame of a connection is kept on it as ``dim_heard``.
   (``read_exactly`` in the yamux module)
6. *An occupied port is an error.* Listeners were opened with SO_REUSEPORT, so that two processes shared one
   port silently. (``_open_reuseport_listeners``)
7. *No logging to the root logger*, which installs a handler that prints to stderr. (``swarm_connection``)
8. *No signed address record in each gossip message*: making and checking one took half of a message's
   time. `p2p.gossip` leaves the field out. (``env_to_send_in_RPC``)
9. *A reset is not an end.* Readers of a stream that was reset, or whose connection broke with data unread,
   saw its regular end: a truncated transfer looked complete. And a cancelled read lost the data that it had
   taken already. (`YamuxStream.read`, `Yamux.close`)
10. *A cancelled opening leaves nothing behind.* It kept one of a connection's 256 slots.
   (`Yamux.open_stream`, `SwarmConn.new_stream`)
11. *What a reset stream held is freed at once*, as nobody can read it; it was kept for a minute. And a reader
   that was waiting when its stream ended no longer leaves an event behind. (``_finalize_stream_locked``)
12. *Window updates in halves of the window*, not for every read. (``_yamux_release_on_read``)
13. *A window of 4 MiB at the most*: any small reads doubled it until each stream might hold 16 MiB unread.
   (``MAX_WINDOW_SIZE``)
14. *A frame fits into one noise message.* Full ones were 17 bytes too long: each took two, and two writes and
   four reads more than that. (`YamuxStream.write`)
15. *Reads of a connection are buffered.* Each message took a read for its length and others for the rest, and for
   each of them a turn of the event loop. (`TrioTCPStream.read`)
"""

from __future__ import annotations

import logging
import socket
import struct
from typing import Any

import libp2p
import libp2p.network.connection.swarm_connection as swarm_connection
import libp2p.pubsub.gossipsub as gossipsub
import libp2p.pubsub.pubsub as pubsub
import libp2p.stream_muxer.yamux.yamux as yamux
import libp2p.transport.tcp.tcp as tcp
import trio
from libp2p.io import trio as trio_io
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.utils import read_exactly
from libp2p.security.noise.io import MAX_PLAINTEXT_LENGTH
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset

NEEDED_FOR = "0.8.1"
WRITE_TIMEOUT = 15.0
"""Seconds for one frame to reach the kernel. Health checks find a silent peer long before."""
GOODBYE_TIMEOUT = 0.5
MAX_WINDOW = 4 * 1024 * 1024
READ_ALL = 1 << 30
RECHECK = 0.5
"""Seconds between looks whether a stream that waits for its window was closed meanwhile."""
READ_AHEAD = 64 * 1024
_FRAME = min(yamux.MAX_MESSAGE_SIZE, MAX_PLAINTEXT_LENGTH) - yamux.HEADER_SIZE

_original_tcp_read = trio_io.TrioTCPStream.read
_original_close = yamux.Yamux.close
_original_finalize = yamux.Yamux._finalize_stream_locked
_original_read_exactly = read_exactly


async def _write_frame(self: Any, data: bytes) -> None:
    async with self._write_lock:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + WRITE_TIMEOUT) as scope:
            await self.secured_conn.write(data)
        if scope.cancelled_caught:
            await _force_close(self)
            raise ConnectionClosedError("the peer does not take data", transport="tcp")


async def _force_close(self: Any) -> None:
    with trio.CancelScope(shield=True, deadline=trio.current_time() + GOODBYE_TIMEOUT):
        await self.secured_conn.close()


async def _close(self: Any, error_code: int = yamux.GO_AWAY_NORMAL) -> None:
    with trio.move_on_after(GOODBYE_TIMEOUT) as patience:
        async with self._write_lock:
            pass
    if patience.cancelled_caught:
        await _force_close(self)
    for stream in self.streams.values():
        stream.reset_received |= not stream.recv_closed or bool(self.stream_buffers.get(stream.stream_id))
    await _original_close(self, error_code)


def _get_window(self: Any) -> int:
    return self._dim_window


def _set_window(self: Any, value: int) -> None:
    self._dim_window = value
    waiting = self.__dict__.pop("_dim_window_event", None)
    if waiting is not None and value > 0:
        waiting.set()
    elif waiting is not None:
        self._dim_window_event = waiting


async def _wait_window(self: Any) -> None:
    event = self.__dict__.setdefault("_dim_window_event", trio.Event())
    with trio.move_on_after(RECHECK):
        await event.wait()


async def _write(self: Any, data: bytes) -> None:
    sent = 0
    while sent < len(data):
        if self.send_closed or self.closed:
            raise MuxedStreamError("stream is closed for sending")
        if self.send_window <= 0:
            await _wait_window(self)
            continue
        chunk = data[sent : sent + min(self.send_window, _FRAME)]
        self.send_window -= len(chunk)
        header = struct.pack(yamux.YAMUX_HEADER_FORMAT, 0, yamux.TYPE_DATA, 0, self.stream_id, len(chunk))
        await self.conn._write_frame(header + chunk)
        sent += len(chunk)


async def _open_stream(self: Any) -> yamux.YamuxStream:
    await self.stream_backlog_semaphore.acquire()
    if self.event_shutting_down.is_set():
        self.stream_backlog_semaphore.release()
        raise MuxedStreamError("the connection is closing")
    number = self.next_stream_id
    self.next_stream_id += 2
    stream = yamux.YamuxStream(number, self, True)
    stream._owns_backlog_slot = True
    self.streams[number] = stream
    self.stream_buffers[number] = bytearray()
    self.stream_events[number] = trio.Event()
    try:
        await self._write_frame(struct.pack(yamux.YAMUX_HEADER_FORMAT, 0, yamux.TYPE_WINDOW_UPDATE, yamux.FLAG_SYN, number, 0))
    except BaseException:  # nothing was sent: see _write_frame
        self._finalize_stream_locked(stream, fully_closed=True)
        raise
    return stream


async def _new_stream(self: Any) -> Any:
    muxed = await self.muxed_conn.open_stream()
    with trio.CancelScope(shield=True):
        return await self._add_stream(muxed)


async def _read(self: Any, n: int | None = -1) -> bytes:
    most = n if n is not None and n > 0 else READ_ALL
    try:
        data = await self.conn.read_stream(self.stream_id, most)
        with trio.CancelScope(shield=True):
            await self._auto_tune_and_send_window_update(bytes_read=len(data))
        return data
    except MuxedStreamEOF:
        if self.reset_received or not self.recv_closed:
            raise MuxedStreamReset("the stream was reset") from None
        raise
    finally:
        if self.stream_id not in self.conn.streams:
            self.conn.stream_events.pop(self.stream_id, None)


def _finalize(self: Any, stream: Any, *, fully_closed: bool) -> None:
    if fully_closed and stream.reset_received and stream.stream_id in self.stream_buffers:
        self.stream_buffers[stream.stream_id].clear()
    _original_finalize(self, stream, fully_closed=fully_closed)


async def _no_rtt_loop(self: Any) -> None:
    await self.event_shutting_down.wait()


async def _read_exactly(reader: Any, n: int, *args: Any, **kwargs: Any) -> bytes:
    data = await _original_read_exactly(reader, n, *args, **kwargs)
    reader.dim_heard = trio.current_time()
    return data


async def _buffered_read(self: Any, n: int | None = None) -> bytes:
    data, start = self.__dict__.pop("_dim_unread", (b"", 0))
    if not data:
        if n is None or not 0 < n < READ_AHEAD:
            return await _original_tcp_read(self, n)
        data = await _original_tcp_read(self, READ_AHEAD)
    end = len(data) if n is None or n < 0 else start + n
    if end < len(data):
        self._dim_unread = data, end
    return data[start:end]


async def _open_exclusive_listeners(host: str | None, port: int) -> list[trio.SocketListener]:
    family = socket.AF_INET6 if host is not None and ":" in host else socket.AF_INET
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await sock.bind((host or "0.0.0.0", port))  # noqa: S104 - libp2p's meaning of "no host"
        sock.listen(128)
        return [trio.SocketListener(sock)]
    except BaseException:
        sock.close()
        raise


def _no_record(host: Any) -> tuple[bytes, bool]:
    return b"", False


def _hush() -> None:
    """libp2p logs broken connections as errors with stack traces; what matters of that, `p2p` says itself. Set
    the level of the logger ``libp2p`` to see it all."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("libp2p."):
            logging.getLogger(name).setLevel(logging.NOTSET)
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)


def apply() -> None:
    """Installs the corrections in libp2p's modules, once per process."""
    if yamux.Yamux._write_frame is _write_frame:
        return
    _hush()
    targets: list[tuple[Any, str, Any]] = [
        (yamux.Yamux, "_write_frame", _write_frame),
        (yamux.Yamux, "close", _close),
        (yamux.Yamux, "open_stream", _open_stream),
        (yamux.Yamux, "_finalize_stream_locked", _finalize),
        (swarm_connection.SwarmConn, "new_stream", _new_stream),
        (yamux.Yamux, "_measure_rtt_loop", _no_rtt_loop),
        (yamux.YamuxStream, "write", _write),
        (yamux.YamuxStream, "read", _read),
        (yamux.YamuxStream, "send_window", property(_get_window, _set_window)),
        (yamux, "read_exactly", _read_exactly),
        (yamux, "MAX_WINDOW_SIZE", MAX_WINDOW),
        (yamux, "_yamux_release_on_read", lambda: False),
        (trio_io.TrioTCPStream, "read", _buffered_read),
        (tcp, "_open_reuseport_listeners", _open_exclusive_listeners),
        (swarm_connection, "logging", logging.getLogger("libp2p.network.swarm_connection")),
        (pubsub, "env_to_send_in_RPC", _no_record),
        (gossipsub, "env_to_send_in_RPC", _no_record),
    ]
    for owner, name, value in targets:
        if not hasattr(owner, name) and name != "send_window":
            raise RuntimeError(f"py-libp2p {libp2p.__version__} has no {name}: p2p/patches.py was made for {NEEDED_FOR}")
        setattr(owner, name, value)
