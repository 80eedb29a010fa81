"""Members met before. A node that starts again dials them, so that it finds its swarm without the invite that it
joined with, and without the node that gave it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import structlog
import trio

from dimnode.domain import codec
from dimnode.errors import DimError
from dimnode.ports import Journal, Registry

log = structlog.get_logger(__name__)
KEY = "swarm.acquaintances"
Addresses = Mapping[str, tuple[str, ...]]
"""Peer id -> multiaddrs."""


@dataclass(frozen=True, slots=True)
class AcquaintanceSettings:
    most: int = 32
    """Members that are remembered."""
    pause: float = 5.0
    """Seconds between two looks at who is there."""


async def recall(journal: Journal) -> Addresses:
    stored = await journal.get(KEY)
    if stored is None:
        return {}
    try:
        return codec.decode(stored, dict[str, tuple[str, ...]])
    except codec.CodecError:
        log.warning("acquaintances.unreadable")
        return {}


def merge(present: Addresses, before: Addresses, most: int) -> Addresses:
    """Those who are there, then those who were, ``most`` at the most."""
    gone = {peer: addresses for peer, addresses in before.items() if peer not in present}
    return dict([*sorted(present.items())[:most], *gone.items()][:most])


async def keep(journal: Journal, registry: Registry, me: str, before: Addresses, settings: AcquaintanceSettings | None = None) -> None:
    """Writes down whom this node meets, until cancelled."""
    settings = settings or AcquaintanceSettings()
    stored = before
    while True:
        version = registry.changed()
        present = {
            v.heartbeat.peer_id: v.heartbeat.addresses for v in registry.alive() if v.heartbeat.peer_id != me and v.heartbeat.addresses
        }
        now = merge(present, stored, settings.most)
        if now != stored:
            try:
                await journal.put(KEY, codec.encode(dict(now)))
                stored = now
            except DimError as e:
                log.warning("acquaintances.not_stored", reason=e.message)
            await trio.sleep(settings.pause)
        await registry.wait_changed(version)
