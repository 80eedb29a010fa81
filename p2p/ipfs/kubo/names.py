"""Publishing under a name through a Kubo daemon: with a key that Kubo makes and keeps, for whoever looks from outside the swarm."""

from __future__ import annotations

import re
from collections.abc import Callable

from p2p.ipfs import cid as cids
from p2p.ipfs.api import StoreUnavailable
from p2p.ipfs.kubo.rpc import KuboRpc, Refused


class KuboNames:
    """``label``: what the key is called in Kubo. It is none of DIM's keys: those stay in the node's home. ``reached``: how often the
    daemon was found again."""

    def __init__(self, rpc: KuboRpc, label: str, timeout: float, reached: Callable[[], int]) -> None:
        self._rpc = rpc
        self._label = re.sub(r"[^A-Za-z0-9._-]", "-", label)
        self._timeout = timeout
        self._reached = reached
        self._made = False

    def generation(self) -> int:
        """Another one once the daemon was away: what was published may be gone."""
        return self._reached()

    async def publish(self, cid: str, lifetime: float, ttl: float) -> str:
        """Returns the name. Raises `StoreUnavailable`, `BadCid`."""
        root = cids.parse(cid)
        if not self._made:
            await self._make()
        try:
            return await self._publish(root, lifetime, ttl)
        except Refused:
            self._made = False  # it may be another daemon, or have lost the key
            raise

    async def _make(self) -> None:
        if self._label not in await self._rpc.key_list():
            await self._rpc.key_gen(self._label)
        self._made = True

    async def _publish(self, root: cids.Cid, lifetime: float, ttl: float) -> str:
        name, value = await self._rpc.name_publish(root, key=self._label, lifetime=lifetime, ttl=ttl, timeout=self._timeout)
        if value.removeprefix("/ipfs/") != root.text:
            raise StoreUnavailable("the Kubo daemon published something else than it was asked to")
        return name
