"""One local socket that always leads to an elected orchestrator.

Every node listens on a Unix socket in its home; whoever connects is piped to the orchestrator API: to
the own one if this node holds a seat, otherwise through a libp2p tunnel to a node that does. The CLI
therefore is a plain gRPC client whatever the node's role.

A connection whose other end is gone, silent, or holds no seat any more is closed, so that the client connects again
and is led elsewhere.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from dimnode.core.standing import Standing
from dimnode.ports import Elector
from p2p.api import Network, NetworkError, RequestTimeout

TUNNEL = "orchestrator-grpc"
Stream = trio.abc.HalfCloseableStream
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """Times in seconds."""

    connections: int = 64
    """Open relayed connections at once; more wait in the socket's backlog."""
    open_timeout: float = 3.0
    """To reach an orchestrator."""
    stagger: float = 0.3
    """Without an answer, after which the next seat is tried, too: the first that answers is taken."""
    first_word: float = 2.0
    """In which an orchestrator must say something on a new connection (gRPC servers speak first)."""
    seat_grace: float = 1.5
    """For which a connection to a node that lost its seat is kept, so that calls under way may end."""
    linger: float = 5.0
    """For which the one direction is kept after the other has ended."""
    chunk: int = 64 * 1024


class _Connection:
    """``peer``: where it leads, None for here."""

    def __init__(self, peer: str | None) -> None:
        self.peer = peer
        self.scope = trio.CancelScope()
        self.heard = trio.Event()
        self.silent = False
        """It ended without a word of the other end, and not because the client left."""
        self.ended = 0
        """Directions."""


class Relay:
    """``local`` gives host and port of the own orchestrator API while a seat is held, else None."""

    def __init__(
        self,
        network: Network,
        elector: Elector,
        local: Callable[[], tuple[str, int] | None],
        settings: RelaySettings | None = None,
    ) -> None:
        self._network = network
        self._elector = elector
        self._local = local
        self._settings = settings or RelaySettings()
        self._limit = trio.CapacityLimiter(self._settings.connections)
        self._standing: Standing[str] = Standing()
        self._connections: set[_Connection] = set()
        network.serve_tunnel(TUNNEL, self._serve_remote)

    async def run(self, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listens on ``path`` (mode 0600) until cancelled."""
        listener = _unix_listener(path)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.follow_seats)
                await trio.serve_listeners(self.serve, [listener], task_status=_Started(task_status))
        finally:
            with trio.CancelScope(shield=True):
                await trio.Path(path).unlink(missing_ok=True)

    async def follow_seats(self) -> None:
        """Ends connections to nodes that hold no seat any more. Runs until cancelled."""
        while True:
            seen = self._elector.changed()
            for connection in self._connections:
                self._review(connection)
            await self._elector.wait_changed(seen)

    def _review(self, connection: _Connection) -> None:
        if connection.peer is None:
            return
        if any(s.peer == connection.peer for s in self._elector.seats()):
            connection.scope.deadline = float("inf")
        else:
            connection.scope.deadline = min(connection.scope.deadline, trio.current_time() + self._settings.seat_grace)

    async def serve(self, client: Stream) -> None:
        """Relays one connection until it ends."""
        async with self._limit, client:
            try:
                peer, upstream = await self._upstream()
            except (NetworkError, OSError) as e:  # OSError: the own API has closed a moment ago
                log.debug("relay.no_orchestrator", reason=str(e))
                return
            async with upstream:
                await self._pipe_both(client, upstream, peer)

    async def _upstream(self) -> tuple[str | None, Stream]:
        address = self._local()
        if address is not None:
            return None, await trio.open_tcp_stream(*address)
        seats = sorted((s for s in self._elector.seats() if s.peer != self._network.peer_id), key=lambda s: s.jobs)
        return await self._dial(self._standing.order((s.peer for s in seats), trio.current_time()))

    async def _dial(self, peers: Sequence[str]) -> tuple[str, Stream]:
        """The first that answers."""
        found: list[tuple[str, Stream]] = []
        failure = NetworkError("no orchestrator is known")

        async def attempt(peer: str, failed: trio.Event, scope: trio.CancelScope) -> None:
            nonlocal failure
            try:
                stream = await self._network.open_tunnel(peer, TUNNEL, timeout=self._settings.open_timeout)
            except NetworkError as e:
                self._standing.failed(peer, trio.current_time(), hung=isinstance(e, RequestTimeout))
                failure = e
                failed.set()
            else:
                found.append((peer, stream))
                scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                for peer in peers:
                    failed = trio.Event()
                    nursery.start_soon(attempt, peer, failed, nursery.cancel_scope)
                    with trio.move_on_after(self._settings.stagger):
                        await failed.wait()
        except BaseException:
            for _, stream in found:
                await trio.aclose_forcefully(stream)
            raise
        for _, late in found[1:]:
            await trio.aclose_forcefully(late)
        if not found:
            raise failure
        return found[0]

    async def _serve_remote(self, peer: str, stream: Stream) -> None:
        address = self._local()
        if address is None:
            log.debug("relay.refused", peer=peer, reason="no seat held here")
            return
        async with self._limit:
            try:
                upstream = await trio.open_tcp_stream(*address)
            except OSError as e:
                log.debug("relay.local_orchestrator_unreachable", error=type(e).__name__)
                return
            async with upstream:
                await self._pipe_both(stream, upstream, None)

    async def _pipe_both(self, client: Stream, upstream: Stream, peer: str | None) -> None:
        connection = _Connection(peer)
        self._connections.add(connection)
        self._review(connection)
        try:
            with connection.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pipe, client, upstream, connection, None)
                    nursery.start_soon(self._pipe, upstream, client, connection, connection.heard)
                    nursery.start_soon(self._expect_a_word, connection)
        finally:
            self._connections.discard(connection)
            if peer is not None and connection.silent:
                self._standing.failed(peer, trio.current_time(), hung=True)
                log.debug("relay.silent", peer=peer)

    async def _expect_a_word(self, connection: _Connection) -> None:
        with trio.move_on_after(self._settings.first_word):
            await connection.heard.wait()
            if connection.peer is not None:
                self._standing.served(connection.peer, trio.current_time())
            return
        connection.silent = True
        connection.scope.cancel()

    async def _pipe(self, source: Stream, sink: Stream, connection: _Connection, heard: trio.Event | None) -> None:
        """Bytes until the end of ``source``, then a half close; a broken side ends both directions."""
        try:
            while data := await source.receive_some(self._settings.chunk):
                if heard is not None:
                    heard.set()
                await sink.send_all(data)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            connection.scope.cancel()
        if heard is not None and not heard.is_set() and not connection.ended:
            connection.silent = True
        connection.ended += 1
        if connection.ended == 1:
            await trio.sleep(self._settings.linger)
        connection.scope.cancel()


class _Started:
    """`trio.serve_listeners` reports its listeners; our callers want to know only that it listens."""

    def __init__(self, inner: trio.TaskStatus[None]) -> None:
        self._inner = inner

    def started(self, value: object = None) -> None:
        del value
        self._inner.started()


def _unix_listener(path: Path) -> trio.SocketListener:
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o177)
    try:
        sock.bind(str(path))
    finally:
        os.umask(previous)
    sock.listen(128)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
