"""Where messages go: the swarm's own gossip, and Kubo's pubsub."""

from __future__ import annotations

from typing import Protocol

from dimnode.events.publisher import NotSent
from p2p.api import Network, NetworkError
from p2p.ipfs.api import StoreUnavailable


class SwarmOutlet:
    """For members, and whoever else has the swarm key."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def publish(self, topic: str, data: bytes) -> None:
        try:
            await self._network.publish(topic, data)
        except NetworkError as e:
            raise NotSent(str(e)) from e


class Pubsub(Protocol):
    """`p2p.ipfs.kubo.pubsub.KuboPubsub`."""

    async def publish(self, topic: str, data: bytes) -> None:
        """Raises `StoreUnavailable`."""
        ...


class KuboOutlet:
    """For whoever in Kubo's network listens to the topic."""

    def __init__(self, pubsub: Pubsub) -> None:
        self._pubsub = pubsub

    async def publish(self, topic: str, data: bytes) -> None:
        try:
            await self._pubsub.publish(topic, data)
        except StoreUnavailable as e:
            raise NotSent(str(e)) from e
