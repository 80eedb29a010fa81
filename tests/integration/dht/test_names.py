"""A node's name on real hosts, by the DHT alone: no gossip was heard and its node is gone."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack

import pytest
import trio

from dimnode.domain import codec
from dimnode.snapshots.documents import sign_card
from dimnode.snapshots.name_book import Announcement, Named, NameKind, decode
from dimnode.snapshots.names import NAMESPACE
from p2p.dht.dht import SwarmDht
from p2p.dht.settings import DhtSettings
from p2p.host import to_id
from p2p.identity import Identity, verify
from p2p.ipfs import cid as cids
from p2p.ipfs import ipns
from tests.support.networks import identity, opened

CID = cids.compute(cids.DAG_CBOR, b"\xa0").text
KEY = Identity(bytes(range(32)))


def record(signer: Identity, sequence: int, *, peer: str = "", expires: float = 60.0) -> bytes:
    card = sign_card(signer, "dim", ipns.name_of(KEY.peer_id), 1.0)
    made = ipns.make(KEY, CID, sequence=sequence, expires=time.time() + expires, ttl=5)
    return codec.encode(Announcement(card=card, record=made.raw))


def sequence(data: bytes | None) -> int:
    assert data is not None
    told = decode(data)
    return Named(told.card, ipns.read(told.card.name, told.record)).record.sequence


async def test_a_name_is_read_from_the_dht_alone():
    publisher = identity(9)
    async with AsyncExitStack() as stack:
        networks = [await stack.enter_async_context(opened(n)) for n in (1, 2, 3)]
        for network in networks[1:]:
            await network.connect(networks[0].addresses()[0])
        kind = NameKind("dim", time.time, verify)
        dhts = [SwarmDht(network, {NAMESPACE: kind}, DhtSettings(timeout=5, answer_timeout=1)) for network in networks]
        async with trio.open_nursery() as nursery:
            for dht in dhts:
                await nursery.start(dht.run)
            async with opened(9) as gone:
                await gone.connect(networks[0].addresses()[0])
                there = SwarmDht(gone, {NAMESPACE: kind}, DhtSettings(timeout=5))
                assert await there.put(NAMESPACE, publisher.peer_id, record(publisher, 7)) >= 1
            assert sequence(await dhts[2].get(NAMESPACE, publisher.peer_id)) == 7
            key = f"/{NAMESPACE}/{publisher.peer_id}".encode()
            at = to_id(networks[0].peer_id)
            assert not await dhts[1]._store_at(key, record(identity(2), 8), at), "somebody else's card"
            assert not await dhts[1]._store_at(key, record(publisher, 6), at), "older"
            assert not await dhts[1]._store_at(key, record(publisher, 8, expires=-1), at), "expired"
            assert not await dhts[1]._store_at(key, record(publisher, 8, expires=30 * 86_400), at), "valid for too long"
            assert sequence(await dhts[2].get(NAMESPACE, publisher.peer_id)) == 7
            with pytest.raises(ValueError, match="foreign"):
                await dhts[1].put(NAMESPACE, networks[1].peer_id, record(publisher, 9))
            nursery.cancel_scope.cancel()
