"""A job's blocks between real nodes on loopback: bitswap gives them to whoever takes part in the job, and to no other member."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from dimnode.records.participation import Door
from p2p.ipfs.api import BlockMissing
from p2p.ipfs.embedded import EmbeddedStore, open_embedded
from p2p.ipfs.settings import ExchangeSettings, StoreSettings
from p2p.network import Libp2pNetwork
from tests.support import entries as e
from tests.support.networks import opened
from tests.support.participation import Doorkeeper
from tests.support.unixfs_reference import CHUNK, pattern

QUICK = StoreSettings(reserve_bytes=0, exchange=ExchangeSettings(stall=3.0, hedge=2.5, tick=0.05, open_timeout=2))


class Member:
    def __init__(self, network: Libp2pNetwork, store: EmbeddedStore, keeper: Doorkeeper) -> None:
        self.peer = network.peer_id
        self.store = store
        self.keeper = keeper


async def member(stack: AsyncExitStack, number: int, folder: Path) -> tuple[Member, Libp2pNetwork]:
    network = await stack.enter_async_context(opened(number))
    door = Door()
    options = {"host": network.host, "connected": network.peers, "open_stream": network.open_stream, "settings": QUICK}
    store = await stack.enter_async_context(open_embedded(folder / str(number), may_serve=door.may_serve, **options))
    return Member(network, store, Doorkeeper(network, door=door)), network


@pytest.fixture
async def members(tmp_path: Path) -> AsyncIterator[list[Member]]:
    """Worker, owner, the node of the next task, a member that has nothing to do with the job; all connected."""
    async with AsyncExitStack() as stack:
        made = [await member(stack, number, tmp_path) for number in range(1, 5)]
        for n, (_, network) in enumerate(made):
            for _, other in made[n + 1 :]:
                await network.connect(other.addresses()[0])
        yield [each for each, _ in made]


async def test_a_jobs_blocks_are_not_there_for_a_stranger_and_are_for_participants(members: list[Member]):
    worker, owner, following, stranger = members
    await worker.keeper.knows(e.attempt(1, node=worker.peer, peer=owner.peer))
    await owner.keeper.knows(
        e.core(),
        e.claim(1, owner.peer),
        e.assign(1, node=worker.peer, peer=owner.peer),
        e.assign(1, "u", node=following.peer, peer=owner.peer),
    )
    data = pattern(2 * CHUNK + 1)
    output = await worker.store.private_to(e.JOB).add_bytes(data)
    model = await worker.store.add_bytes(b"a model")

    for private in (stranger.store, stranger.store.private_to("some job")):
        with pytest.raises(BlockMissing):
            await private.get_bytes(output, providers=[worker.peer, owner.peer], timeout=5)
    assert await stranger.store.get_bytes(model, providers=[worker.peer], timeout=5) == b"a model"
    assert await owner.store.private_to(e.JOB).get_bytes(output, providers=[worker.peer], timeout=5) == data
    assert await following.store.private_to(e.JOB).get_bytes(output, providers=[worker.peer, owner.peer], timeout=5) == data
    with pytest.raises(BlockMissing):
        await stranger.store.get_bytes(output, timeout=5)
    assert worker.store.statistics().withheld_blocks >= 2
    assert owner.store.statistics().withheld_blocks + following.store.statistics().withheld_blocks >= 1, "copies are as private"


async def test_a_new_holder_of_a_seat_and_a_keeper_of_copies_get_them(members: list[Member]):
    worker, owner, heir, keeper = members
    await worker.keeper.knows(e.attempt(1, node=worker.peer, peer=owner.peer))
    await owner.keeper.knows(e.core(), e.claim(1, owner.peer))
    data = await worker.store.private_to(e.JOB).add_bytes(b"output"), await owner.store.private_to(e.JOB).add_bytes(b"input")
    worker.keeper.seated.holders = [heir.peer]
    owner.keeper.participation.let_in(keeper.peer, e.JOB)
    with trio.fail_after(10):
        assert await heir.store.private_to(e.JOB).get_bytes(data[0], providers=[worker.peer]) == b"output"
        assert await keeper.store.private_to(e.JOB).get_bytes(data[1], providers=[owner.peer]) == b"input"
    with pytest.raises(BlockMissing):
        await heir.store.get_bytes(data[1], providers=[owner.peer], timeout=5)
