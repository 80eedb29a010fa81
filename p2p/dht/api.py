"""What of the swarm's DHT others see. Sides: `p2p.dht.dht` (Kademlia), `p2p.dht.memory`."""

from __future__ import annotations

from typing import Protocol


class RecordKind(Protocol):
    """What may be stored under the keys of one namespace."""

    def check(self, name: str, value: bytes) -> None:
        """Raises `ValueError` for what must be neither stored nor believed."""
        ...

    def newer(self, name: str, value: bytes, than: bytes) -> bool:
        """Of two values that were checked."""
        ...


class Dht(Protocol):
    """Nothing here raises for what other nodes do or do not do: whoever asks goes on without the DHT."""

    async def provide(self, cid: str) -> int:
        """Tells those who are near the content's hash that this node has it; returns how many took note. Raises `BadCid`."""
        ...

    async def find_providers(self, cid: str) -> tuple[str, ...]:
        """Peer ids of nodes that say that they have it; their addresses are known to the network afterwards. Raises `BadCid`."""
        ...

    async def put(self, namespace: str, name: str, value: bytes) -> int:
        """Stores a record at those who are near it; returns how many took it. Raises `ValueError` if its kind refuses it."""
        ...

    async def get(self, namespace: str, name: str) -> bytes | None:
        """The newest record that anybody near it has, checked."""
        ...
