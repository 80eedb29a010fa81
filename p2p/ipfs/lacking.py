"""What peers asked for that was not here: they are told when it is. Bounded, no I/O.

Nodes that fetch the same thing at the same time ask each other too early; without being told, each would get the block from the node that
had it first.
"""

from __future__ import annotations

from collections import OrderedDict


class Lacking:
    """``most``: pairs of a block and a peer that are remembered; ``share``: of one peer. The oldest of the same peer are forgotten first, so
    that nobody pushes the others out."""

    def __init__(self, most: int, share: int) -> None:
        self._most = most
        self._share = share
        self._pairs = 0
        self._peers: dict[bytes, dict[str, None]] = {}
        self._keys: dict[str, OrderedDict[bytes, None]] = {}

    def __len__(self) -> int:
        return self._pairs

    def note(self, key: bytes, peer: str) -> None:
        """``key``: the CID as the peer wrote it."""
        keys = self._keys.get(peer, {})
        if key in keys:
            return
        if keys and (len(keys) >= self._share or self._pairs >= self._most):
            self.forget(next(iter(keys)), peer)
        if self._pairs >= self._most:
            return  # it has none that could go: it is told nothing, as if it had asked an older program
        self._keys.setdefault(peer, OrderedDict())[key] = None
        self._peers.setdefault(key, {})[peer] = None
        self._pairs += 1

    def forget(self, key: bytes, peer: str) -> None:
        """The peer does not want it any more."""
        if key in self._keys.get(peer, {}):
            self._drop(key, peer)
            del self._peers[key][peer]
            if not self._peers[key]:
                del self._peers[key]

    def forget_peer(self, peer: str) -> None:
        for key in list(self._keys.get(peer, ())):
            self.forget(key, peer)

    def take(self, key: bytes) -> tuple[str, ...]:
        """It is here: whom to tell."""
        peers = tuple(self._peers.pop(key, ()))
        for peer in peers:
            self._drop(key, peer)
        return peers

    def _drop(self, key: bytes, peer: str) -> None:
        del self._keys[peer][key]
        if not self._keys[peer]:
            del self._keys[peer]
        self._pairs -= 1
