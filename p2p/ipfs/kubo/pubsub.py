"""Publishing through a Kubo daemon's pubsub, an experimental part of it that may be switched off."""

from __future__ import annotations

from p2p.ipfs.api import StoreUnavailable
from p2p.ipfs.kubo.rpc import KuboRpc, Refused


class KuboPubsub:
    def __init__(self, rpc: KuboRpc) -> None:
        self._rpc = rpc

    async def publish(self, topic: str, data: bytes) -> None:
        """To whoever in Kubo's network subscribes to the topic; nobody may. Raises `StoreUnavailable`."""
        try:
            await self._rpc.pubsub_pub(topic, data)
        except Refused as error:
            if "pubsub" in str(error):
                raise StoreUnavailable("pubsub is off in the Kubo daemon: start it with --enable-pubsub-experiment") from error
            raise
