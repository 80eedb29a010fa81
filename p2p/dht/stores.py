"""Kademlia's two stores with bounds: who has what, and records of names.

py-libp2p's have none that matter (providers: any number of keys; records: 50,000 of a megabyte), and it stores what it reads, so that
whoever asks once does not ask again for a day.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from libp2p.kad_dht.common import format_time_rfc3339
from libp2p.kad_dht.pb.kademlia_pb2 import Record
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.kad_dht.value_store import ValueStore
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo

from p2p.dht.settings import DhtSettings
from p2p.dht.shares import SharedTable
from p2p.identity import is_peer_id

KEY_BYTES = 34
"""Of a sha2-256 multihash."""
_EACH = 20
"""Providers of one key."""


class Providers(ProviderStore):
    """Only what providers say of themselves."""

    def __init__(self, host: Any, routing: Any, settings: DhtSettings) -> None:
        super().__init__(host=host, peer_routing=routing)
        self._settings = settings
        self._table: SharedTable[tuple[bytes, str], PeerInfo] = SharedTable(settings.most_providers)
        self._of: dict[bytes, dict[str, None]] = {}

    def add_provider(self, key: bytes, provider: PeerInfo) -> None:
        peer = str(provider.peer_id)
        if len(key) != KEY_BYTES or not is_peer_id(peer):
            return
        known = self._of.get(key, {})
        if peer not in known and len(known) >= _EACH:
            return
        info = PeerInfo(provider.peer_id, list(provider.addrs)[: self._settings.addresses_each])
        gone = self._table.put((key, peer), peer, info, time.time() + self._settings.provider_lifetime)
        self._of.setdefault(key, {})[peer] = None
        self._forget(gone)

    def get_providers(self, key: bytes) -> list[PeerInfo]:
        now = time.time()
        return [info for peer in self._of.get(key, {}) if (info := self._table.get((key, peer), now)) is not None]

    def withdraw(self, key: bytes, peer: str) -> None:
        if self._table.remove((key, peer)):
            self._forget([(key, peer)])

    def cleanup_expired(self) -> None:
        self._forget(self._table.expire(time.time()))

    def size(self) -> int:
        return len(self._table)

    def _forget(self, gone: list[tuple[bytes, str]]) -> None:
        for key, peer in gone:
            peers = self._of.get(key, {})
            peers.pop(peer, None)
            if not peers:
                self._of.pop(key, None)


class Records(ValueStore):
    """``sender``: the peer whose stream is being served, or this node."""

    def __init__(self, host: Any, local: ID, sender: Callable[[], str], settings: DhtSettings) -> None:
        super().__init__(host=host, local_peer_id=local)
        self._sender = sender
        self._settings = settings
        self._table: SharedTable[bytes, Record] = SharedTable(settings.most_records)

    def put(self, key: bytes, value: bytes, validity: float = 0.0) -> None:
        del validity
        self.put_record(key, unsigned(key, value))

    def put_record(self, key: bytes, record: Record) -> None:
        record.timeReceived = format_time_rfc3339()
        self._table.put(key, self._sender(), record, time.time() + self._settings.record_lifetime)

    def get(self, key: bytes) -> Record | None:
        return self._table.get(key, time.time())

    def remove(self, key: bytes) -> bool:
        return self._table.remove(key)

    def has(self, key: bytes) -> bool:
        return self.get(key) is not None

    def cleanup_expired(self) -> int:
        return len(self._table.expire(time.time()))

    def size(self) -> int:
        return len(self._table)


def unsigned(key: bytes, value: bytes) -> Record:
    """What is stored is signed in itself; whoever carried it there is of no interest."""
    return Record(key=key, value=value)
