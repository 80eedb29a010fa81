"""A bitswap peer whose every answer a test decides: for lies, silence and sudden death."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio
from libp2p.abc import IHost

from p2p.ipfs import wire
from p2p.ipfs.link import Libp2pLink, LinkDown, MessageStream
from p2p.ipfs.wire import Entry, Envelope

Answer = Callable[[Entry], Awaitable[Envelope | None]]
"""What to send for one line of a want list, if anything."""


class ScriptedPeer:
    def __init__(self, link: Libp2pLink, answer: Answer) -> None:
        self.link = link
        self.seen: list[Entry] = []
        self._answer = answer

    async def handle(self, peer: str, stream: MessageStream) -> None:
        try:
            back: MessageStream | None = None
            while (body := await stream.receive(lambda: None)) is not None:
                for entry in wire.decode(body).wants:
                    self.seen.append(entry)
                    reply = None if entry.cancel else await self._answer(entry)
                    if reply is not None:
                        back = back or await self.link.open(peer)
                        await back.send(wire.encode(reply))
        except LinkDown:
            pass
        finally:
            await stream.close()

    async def push(self, peer: str, envelope: Envelope) -> None:
        """Send something on a stream of its own."""
        stream = await self.link.open(peer)
        await stream.send(wire.encode(envelope))
        await stream.close()


@asynccontextmanager
async def scripted_peer(host: IHost, answer: Answer) -> AsyncIterator[ScriptedPeer]:
    link = Libp2pLink(host, wire.PROTOCOL, max_message=4 << 20)
    peer = ScriptedPeer(link, answer)
    link.serve(peer.handle)
    yield peer
    link.stop_serving()


async def silence(_: Entry) -> Envelope | None:
    await trio.lowlevel.checkpoint()
    return None
