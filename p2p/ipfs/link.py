"""How the exchange reaches peers: a stream of messages each way. The libp2p side is here, the twin in tests.

Kubo answers on a stream of its own and expects the same, so a stream is only ever written by the side
that opened it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID

from p2p.api import NetworkError
from p2p.ipfs.protobuf import Malformed, read_varint

_READ = 256 * 1024
_MAX_LENGTH_BYTES = 10


class LinkDown(Exception):
    """The peer or the stream cannot be used."""


class MessageStream(Protocol):
    async def send(self, message: bytes) -> None:
        """A message with its length. Raises `LinkDown`."""
        ...

    async def receive(self, heard: Callable[[], None]) -> bytes | None:
        """The next message, None at the end of the stream; ``heard`` is called when bytes arrive.
        Raises `LinkDown`, `Malformed`."""
        ...

    async def close(self) -> None: ...

    async def reset(self) -> None: ...


StreamHandler = Callable[[str, MessageStream], Awaitable[None]]


class Link(Protocol):
    async def open(self, peer: str) -> MessageStream:
        """Raises `LinkDown`."""
        ...

    def serve(self, handler: StreamHandler) -> None: ...

    def stop_serving(self) -> None: ...


OpenStream = Callable[[str, str], Awaitable[INetStream]]
"""(peer id, protocol) -> a stream; dials if need be. Raises `NetworkError`."""


class Libp2pLink:
    """Streams of one protocol on a libp2p host that somebody else runs.

    ``open_stream`` is how they are opened: `Libp2pNetwork.open_stream` knows the peers' addresses and picks
    the liveliest connection; without it the host's own way is used.
    """

    def __init__(self, host: IHost, protocol: str, *, max_message: int, open_stream: OpenStream | None = None) -> None:
        self._host = host
        self._protocol = TProtocol(protocol)
        self._max_message = max_message
        self._open_stream = open_stream or self._ask_host

    async def open(self, peer: str) -> MessageStream:
        try:
            stream = await self._open_stream(peer, self._protocol)
        except NetworkError as error:
            raise LinkDown(f"no stream to {peer}: {error}") from error
        except (BaseLibp2pError, OSError, ValueError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LinkDown(f"no stream to {peer}") from error
        return Libp2pStream(stream, self._max_message)

    async def _ask_host(self, peer: str, protocol: str) -> INetStream:
        return await self._host.new_stream(ID.from_string(peer), [TProtocol(protocol)])

    def serve(self, handler: StreamHandler) -> None:
        async def handle(stream: INetStream) -> None:
            await handler(str(stream.muxed_conn.peer_id), Libp2pStream(stream, self._max_message))

        self._host.set_stream_handler(self._protocol, handle)

    def stop_serving(self) -> None:
        remove: Any = getattr(self._host, "remove_stream_handler", None)
        if remove is not None:
            remove(self._protocol)


class Libp2pStream:
    def __init__(self, stream: INetStream, max_message: int) -> None:
        self._stream = stream
        self._max_message = max_message
        self._buffer = bytearray()

    async def send(self, message: bytes) -> None:
        try:
            await self._stream.write(message)
        except (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LinkDown("the stream broke") from error

    async def receive(self, heard: Callable[[], None]) -> bytes | None:
        length = None
        while length is None:
            length = self._length()
            if length is None and not await self._more(heard):
                if self._buffer:
                    raise LinkDown("the stream ended in a message")
                return None
        while len(self._buffer) < length:
            if not await self._more(heard):
                raise LinkDown("the stream ended in a message")
        message = bytes(memoryview(self._buffer)[:length])
        del self._buffer[:length]
        return message

    async def close(self) -> None:
        """Never waits for long, never raises: for ``finally`` blocks, under cancellation too."""
        await self._end(self._stream.close)

    async def reset(self) -> None:
        await self._end(self._stream.reset)

    async def _end(self, how: Callable[[], Awaitable[None]]) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
            try:
                await how()
            except (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                return  # it is gone already, which is what was wanted

    def _length(self) -> int | None:
        """Takes the length off the buffer, if it is there whole. Raises `Malformed`."""
        if not any(byte < 0x80 for byte in self._buffer[:_MAX_LENGTH_BYTES]):
            if len(self._buffer) >= _MAX_LENGTH_BYTES:
                raise Malformed("a length that does not end")
            return None
        length, offset = read_varint(self._buffer, 0)
        if length > self._max_message:
            raise Malformed("a message that is too long")
        del self._buffer[:offset]
        return length

    async def _more(self, heard: Callable[[], None]) -> bool:
        """False at the end of the stream."""
        try:
            data = await self._stream.read(_READ)
        except EOFError:
            return False
        except (BaseLibp2pError, OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise LinkDown("the stream broke") from error
        heard()
        self._buffer += data
        return bool(data)
