"""The contract of the content store, kept by the memory store and by the embedded one without a network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from pathlib import Path

import pytest
import trio

from p2p.ipfs.api import BlockMissing, ContentStore
from p2p.ipfs.embedded import open_embedded
from p2p.ipfs.memory import MemoryExchange, MemoryStore
from tests.support.content_contract import GarbageContract, Pair, PairContract, SingleContract


class TestMemory(SingleContract, GarbageContract):
    @pytest.fixture
    def store(self) -> ContentStore:
        return MemoryStore()


class TestEmbedded(SingleContract, GarbageContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[ContentStore]:
        async with open_embedded(tmp_path / "store") as store:
            yield store


class TestMemoryPair(PairContract):
    @pytest.fixture
    def pair(self) -> Pair:
        hub = MemoryExchange()
        return MemoryStore("a", hub), MemoryStore("b", hub), "a", "b"


async def test_a_peer_taken_off_the_hub_is_not_reached(autojump_clock: trio.testing.MockClock):
    hub = MemoryExchange(delay=2)
    a, b = MemoryStore("a", hub), MemoryStore("b", hub)
    cid = await a.add_bytes(b"x")
    hub.disconnect("a")
    with pytest.raises(BlockMissing):
        await b.get_bytes(cid)
    hub.reconnect("a")
    with pytest.raises(BlockMissing):
        await b.get_bytes(cid, timeout=1)
    assert await b.get_bytes(cid, timeout=3) == b"x"


async def test_private_blocks_are_served_to_nobody_else():
    async def may_serve(peer: str, audiences: Collection[str]) -> bool:
        return (peer, audiences) == ("b", {"job"})

    hub = MemoryExchange()
    a = MemoryStore("a", hub, may_serve=may_serve)
    b, c = MemoryStore("b", hub), MemoryStore("c", hub)
    private, public = await a.private_to("job").add_bytes(b"x"), await a.add_bytes(b"y")
    with pytest.raises(BlockMissing):
        await c.get_bytes(private)
    assert a.statistics().withheld_blocks == 1
    assert await c.get_bytes(public) == b"y"
    assert await b.get_bytes(private) == b"x"


def test_a_name_is_taken_once():
    hub = MemoryExchange()
    MemoryStore("a", hub)
    with pytest.raises(ValueError, match="already"):
        MemoryStore("a", hub)
