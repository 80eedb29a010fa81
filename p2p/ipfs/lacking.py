"""What peers asked for that was not here: they are told when it is. Bounded, no I/O.

Nodes that fetch the same thing at the same time ask each other too early; without being told, each would get the block from the node that
had it first.
"""

from __future__ import annotations

from collections import OrderedDict


class Lacking:
    """``most``: pairs of a block and a peer that are remembered; the oldest blocks are forgotten first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._pairs = 0
        self._peers: OrderedDict[bytes, dict[str, None]] = OrderedDict()

    def __len__(self) -> int:
        return self._pairs

    def note(self, key: bytes, peer: str) -> None:
        """``key``: the CID as the peer wrote it."""
        peers = self._peers.setdefault(key, {})
        self._pairs += peer not in peers
        peers[peer] = None
        while self._pairs > self._most:
            self._pairs -= len(self._peers.popitem(last=False)[1])

    def forget(self, key: bytes, peer: str) -> None:
        """The peer does not want it any more."""
        peers = self._peers.get(key)
        if peers is not None and peer in peers:
            del peers[peer]
            self._pairs -= 1
            if not peers:
                del self._peers[key]

    def take(self, key: bytes) -> tuple[str, ...]:
        """It is here: whom to tell."""
        peers = self._peers.pop(key, {})
        self._pairs -= len(peers)
        return tuple(peers)
