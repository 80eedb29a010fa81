"""The DHT without a network, for tests and simulation: what every node is told, every node finds."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from p2p.dht.api import RecordKind
from p2p.ipfs import cid as cids


class MemoryHub:
    """What the nodes of one simulation share. ``down``: nobody answers."""

    def __init__(self) -> None:
        self.providers: dict[str, dict[str, None]] = {}
        self.records: dict[tuple[str, str], bytes] = {}
        self.down = False


class MemoryDht:
    """`p2p.dht.api.Dht`."""

    def __init__(self, hub: MemoryHub, peer: str, kinds: Mapping[str, RecordKind]) -> None:
        self._hub = hub
        self._peer = peer
        self._kinds = kinds

    async def provide(self, cid: str) -> int:
        await trio.lowlevel.checkpoint()
        key = cids.parse(cid).text
        if self._hub.down:
            return 0
        self._hub.providers.setdefault(key, {})[self._peer] = None
        return 1

    async def find_providers(self, cid: str) -> tuple[str, ...]:
        await trio.lowlevel.checkpoint()
        known = self._hub.providers.get(cids.parse(cid).text, {})
        return () if self._hub.down else tuple(peer for peer in known if peer != self._peer)

    async def put(self, namespace: str, name: str, value: bytes) -> int:
        await trio.lowlevel.checkpoint()
        kind = self._kinds[namespace]
        kind.check(name, value)
        known = self._hub.records.get((namespace, name))
        if self._hub.down or (known is not None and kind.newer(name, known, value)):
            return 0
        self._hub.records[namespace, name] = value
        return 1

    async def get(self, namespace: str, name: str) -> bytes | None:
        await trio.lowlevel.checkpoint()
        value = None if self._hub.down else self._hub.records.get((namespace, name))
        try:
            if value is not None:
                self._kinds[namespace].check(name, value)
        except ValueError:
            return None
        return value
