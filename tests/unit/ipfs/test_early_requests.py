"""Requests that come just before the block does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio

from p2p.ipfs import cid as cids
from p2p.ipfs.blocks import BlocksInMemory, Found
from p2p.ipfs.cid import Cid
from p2p.ipfs.exchange import BitswapExchange
from p2p.ipfs.outbox import Outbox
from p2p.ipfs.settings import ExchangeSettings
from p2p.ipfs.unixfs import Block
from p2p.ipfs.wire import Entry

DATA = b"x"
CID = cids.compute(cids.RAW, DATA)


class SlowLook(BlocksInMemory):
    """Has looked, and needs a while to say so."""

    def __init__(self) -> None:
        super().__init__()
        self.looked = trio.Event()
        self.say = trio.Event()

    async def look(self, cids: Sequence[Cid]) -> dict[Cid, Found]:
        found = await super().look(cids)
        self.looked.set()
        await self.say.wait()
        return found


async def test_a_block_that_comes_while_it_is_looked_for_is_told() -> None:
    blocks = SlowLook()
    link: Any = None  # nothing is sent
    async with trio.open_nursery() as nursery:
        exchange = BitswapExchange(link, blocks, ExchangeSettings(), lambda: {"peer"}, None, nursery)
        box = exchange._outboxes["peer"] = Outbox(10)
        box.asked_by_peer((Entry(CID.binary, block=True),), full=False)

        async def keep() -> None:
            await blocks.looked.wait()
            await blocks.put([Block(CID, DATA)], durable=False)
            exchange.kept([CID])
            blocks.say.set()

        nursery.start_soon(keep)
        first = await exchange._pack("peer", box)
        assert first.presences == ((CID.binary, False),)
        second = await exchange._pack("peer", box)
        assert second.presences == ((CID.binary, True),)
        assert not box
        assert not len(exchange._lacking)


async def test_what_is_here_leaves_nothing_to_tell() -> None:
    blocks = BlocksInMemory()
    await blocks.put([Block(CID, DATA)], durable=False)
    link: Any = None
    async with trio.open_nursery() as nursery:
        exchange = BitswapExchange(link, blocks, ExchangeSettings(), lambda: {"peer"}, None, nursery)
        box = Outbox(10)
        box.asked_by_peer((Entry(CID.binary, block=True),), full=False)
        assert (await exchange._pack("peer", box)).blocks == ((CID.prefix, DATA),)
        assert not len(exchange._lacking)
