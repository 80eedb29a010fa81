"""Who is asked for a block, and for how long, where there are a swarm and a Kubo daemon: on virtual time."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import pytest
import trio

from p2p.ipfs import cid as cids
from p2p.ipfs.api import BlockCorrupt, BlockMissing, ContentError, StoreUnavailable
from p2p.ipfs.cid import Cid
from p2p.ipfs.kubo.rpc import Refused
from p2p.ipfs.kubo.store import KuboExchange
from p2p.ipfs.traffic import Traffic

DATA = b"content"
CID = cids.compute(cids.RAW, DATA)


class Source:
    """After ``delay`` seconds it has the block, or fails."""

    def __init__(self, answer: bytes | ContentError | None, delay: float = 0.0) -> None:
        self.traffic = Traffic()
        self.answer = answer
        self.delay = delay
        self.asked: list[tuple[float, float, bool]] = []
        """When, for how long, and whether others may be told."""

    async def _answer(self, timeout: float, closed: bool) -> bytes | None:
        self.asked.append((trio.current_time(), timeout, closed))
        with trio.move_on_after(timeout):
            await trio.sleep(self.delay)
            if isinstance(self.answer, ContentError):
                raise self.answer
            return self.answer
        return None

    async def fetch_block(self, cid: Cid, providers: Collection[str], timeout: float, *, private: bool = False) -> bytes:
        found = await self._answer(timeout, private)
        if found is None:
            raise BlockMissing("no member had it in time")
        return found

    async def block_get(self, cid: Cid, *, offline: bool, timeout: float) -> bytes | None:
        return await self._answer(timeout, offline)


class Blocks:
    def __init__(self) -> None:
        self.problem = ""

    def lost(self, error: StoreUnavailable) -> None:
        self.problem = str(error)


def exchange(swarm: Source, kubo: Source, problem: str = "") -> KuboExchange:
    blocks = Blocks()
    blocks.problem = problem
    return KuboExchange(cast(Any, blocks), cast(Any, kubo), swarm)


async def test_who_has_it_in_the_swarm_is_enough(autojump_clock: trio.testing.MockClock) -> None:
    swarm, kubo = Source(DATA, 4.0), Source(DATA)
    assert await exchange(swarm, kubo).fetch_block(CID, [], 10.0) == DATA
    assert kubo.asked == []


async def test_kubo_is_asked_at_once_when_no_member_has_it(autojump_clock: trio.testing.MockClock) -> None:
    began = trio.current_time()
    kubo = Source(DATA, 8.0)
    assert await exchange(Source(BlockMissing("none"), 1.0), kubo).fetch_block(CID, [], 10.0) == DATA
    assert kubo.asked == [(began + 1.0, 9.0, False)]


async def test_a_swarm_that_stalls_leaves_kubo_half_of_the_time(autojump_clock: trio.testing.MockClock) -> None:
    began = trio.current_time()
    kubo = Source(DATA, 4.0)
    assert await exchange(Source(DATA, 1000.0), kubo).fetch_block(CID, [], 10.0) == DATA
    assert kubo.asked == [(began + 5.0, 5.0, False)]


async def test_the_swarm_goes_on_while_kubo_looks(autojump_clock: trio.testing.MockClock) -> None:
    assert await exchange(Source(DATA, 8.0), Source(None, 1000.0)).fetch_block(CID, [], 10.0) == DATA
    assert await exchange(Source(DATA, 8.0), Source(Refused("no"))).fetch_block(CID, [], 10.0) == DATA
    assert await exchange(Source(DATA, 8.0), Source(DATA), "Kubo is away").fetch_block(CID, [], 10.0) == DATA


async def test_kubo_may_have_what_members_have_only_wrong(autojump_clock: trio.testing.MockClock) -> None:
    assert await exchange(Source(BlockCorrupt("wrong")), Source(DATA)).fetch_block(CID, [], 10.0) == DATA


@pytest.mark.parametrize(
    ("swarm", "kubo", "problem", "expected"),
    [
        (BlockMissing("none"), None, "", BlockMissing),
        (BlockCorrupt("wrong"), None, "", BlockCorrupt),
        (BlockMissing("none"), BlockCorrupt("wrong"), "", BlockCorrupt),
        (BlockMissing("none"), StoreUnavailable("away"), "", StoreUnavailable),
        (BlockCorrupt("wrong"), StoreUnavailable("away"), "", StoreUnavailable),
        (BlockMissing("none"), None, "Kubo is away", StoreUnavailable),
        (BlockMissing("none"), Refused("no"), "", BlockMissing),
    ],
)
async def test_what_is_said_when_neither_has_it(
    autojump_clock: trio.testing.MockClock, swarm: ContentError, kubo: ContentError | None, problem: str, expected: type[ContentError]
) -> None:
    began = trio.current_time()
    with pytest.raises(expected) as caught:
        await exchange(Source(swarm), Source(kubo, 0.0 if kubo else 1000.0), problem).fetch_block(CID, [], 10.0)
    assert type(caught.value) is expected
    assert trio.current_time() - began <= 10.0


async def test_what_is_private_is_not_told_to_either_ones_strangers(autojump_clock: trio.testing.MockClock) -> None:
    swarm, kubo = Source(BlockMissing("none")), Source(DATA)
    assert await exchange(swarm, kubo).fetch_block(CID, [], 10.0, private=True) == DATA
    assert [closed for _, _, closed in swarm.asked + kubo.asked] == [True, True]
