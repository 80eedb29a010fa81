"""One local socket that always leads to an elected orchestrator.

Every node listens on a Unix socket in its home; whoever connects is piped to the orchestrator API: to
the own one if this node holds a seat, otherwise through a libp2p tunnel to a node that does. The CLI
therefore is a plain gRPC client whatever the node's role.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from dimnode.ports import Elector
from p2p.api import Network, NetworkError

TUNNEL = "orchestrator-grpc"
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RelaySettings:
    connections: int = 64
    """Open relayed connections at once; more wait in the socket's backlog."""
    open_timeout: float = 3.0
    """Seconds to reach an orchestrator."""
    chunk: int = 64 * 1024


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
        network.serve_tunnel(TUNNEL, self._serve_remote)

    async def run(self, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listens on ``path`` (mode 0600) until cancelled."""
        listener = _unix_listener(path)
        try:
            await trio.serve_listeners(self._serve_local, [listener], task_status=_Started(task_status))
        finally:
            with trio.CancelScope(shield=True):
                await trio.Path(path).unlink(missing_ok=True)

    async def _serve_local(self, client: trio.SocketStream) -> None:
        async with self._limit, client:
            try:
                upstream = await self._upstream()
            except (NetworkError, OSError) as e:  # OSError: the own API has closed a moment ago
                log.debug("relay.no_orchestrator", reason=str(e))
                return
            async with upstream:
                await self._pipe_both(client, upstream)

    async def _upstream(self) -> trio.abc.HalfCloseableStream:
        address = self._local()
        if address is not None:
            return await trio.open_tcp_stream(*address)
        failure: NetworkError = NetworkError("no orchestrator is known")
        for seat in self._elector.seats():
            if seat.peer == self._network.peer_id:
                continue
            try:
                return await self._network.open_tunnel(seat.peer, TUNNEL, timeout=self._settings.open_timeout)
            except NetworkError as e:
                failure = e
        raise failure

    async def _serve_remote(self, peer: str, stream: trio.abc.HalfCloseableStream) -> None:
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
                await self._pipe_both(stream, upstream)

    async def _pipe_both(self, a: trio.abc.HalfCloseableStream, b: trio.abc.HalfCloseableStream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pipe, a, b, nursery.cancel_scope)
            nursery.start_soon(self._pipe, b, a, nursery.cancel_scope)

    async def _pipe(self, source: trio.abc.ReceiveStream, sink: trio.abc.HalfCloseableStream, scope: trio.CancelScope) -> None:
        """Bytes until the end of ``source``, then a half close; a broken side ends both directions."""
        try:
            while data := await source.receive_some(self._settings.chunk):
                await sink.send_all(data)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            scope.cancel()


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
