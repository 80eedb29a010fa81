"""What py-libp2p's Kademlia must be told before it can serve a swarm of its own (0.8.1; look again when the version moves).

1. *A protocol of the swarm's own.* ``protocol_prefix`` is stored and never read: five modules open streams with the
   public DHT's id. (``PROTOCOL_ID``)
2. *Small messages.* Up to 4 MiB were read and parsed on the loop, twelve at once; ours have a few KB. (``MAX_DHT_MESSAGE_SIZE``)
3. *No signed address records.* Making and checking them took most of a message's time; who a peer is, its connection
   proves, and addresses are only places to try. (``env_to_send_in_RPC``, ``maybe_consume_signed_record``)
4. *Whether a peer is alive, `p2p.health` knows.* A full bucket sent a ping on a stream of its own for every newcomer.
   (`KBucket._ping_peer`)
"""

from __future__ import annotations

from typing import Any

import libp2p
import libp2p.kad_dht.common as common
import libp2p.kad_dht.kad_dht as kad_dht
import libp2p.kad_dht.peer_routing as peer_routing
import libp2p.kad_dht.provider_store as provider_store
import libp2p.kad_dht.routing_table as routing_table
import libp2p.kad_dht.value_store as value_store
import trio
from libp2p.custom_types import TProtocol

from p2p.patches import NEEDED_FOR

PROTOCOL = TProtocol("/dim/kad/1")
MAX_MESSAGE = 64 * 1024
"""Bytes: twenty peers with their addresses and a record of 13 KiB have room."""
_SPEAKERS = (kad_dht, peer_routing, provider_store, value_store)


def _no_record(host: Any) -> tuple[bytes, bool]:
    return b"", False


def _any_record(message: Any, host: Any, peer_id: Any = None) -> bool:
    return True


async def _is_connected(self: Any, peer_id: Any) -> bool:
    await trio.lowlevel.checkpoint()
    return peer_id in self.host.get_connected_peers()


def apply() -> None:
    """Installs the corrections in libp2p's modules, once per process."""
    if common.PROTOCOL_ID == PROTOCOL:
        return
    targets: list[tuple[Any, str, Any]] = [(routing_table.KBucket, "_ping_peer", _is_connected), (common, "PROTOCOL_ID", PROTOCOL)]
    for module in _SPEAKERS:
        targets += [
            (module, "PROTOCOL_ID", PROTOCOL),
            (module, "MAX_DHT_MESSAGE_SIZE", MAX_MESSAGE),
            (module, "env_to_send_in_RPC", _no_record),
            (module, "maybe_consume_signed_record", _any_record),
        ]
    for owner, name, value in targets:
        if not hasattr(owner, name):
            raise RuntimeError(f"py-libp2p {libp2p.__version__} has no {name}: p2p/dht/patches.py was made for {NEEDED_FOR}")
        setattr(owner, name, value)
