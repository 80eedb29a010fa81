"""Heartbeats on the wire: signed by the node itself, so that others may pass them on."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from dimnode.domain import codec
from dimnode.domain.node import Heartbeat
from dimnode.ports import Signer

TOPIC = "dim/heartbeat/1"
METHOD = "registry/heartbeat"
SIGNING_PREFIX = b"dim-heartbeat-v1:"
MAX_BYTES = 128 * 1024
"""Of one heartbeat: some hundred models and cabinets."""

Verify = Callable[[str, bytes, bytes], bool]
"""(peer id, signed bytes, signature) -> valid."""


class SignedHeartbeat(msgspec.Struct, frozen=True):
    payload: bytes
    author: str
    signature: bytes


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """Request and answer of the registry: my own heartbeat; in the answer also those of the members I know."""

    heartbeats: tuple[SignedHeartbeat, ...]
    suspects: tuple[str, ...] = ()
    """Members that I suspect: whoever reads its own name here speaks up at once."""


class HeartbeatRefused(ValueError):
    """Not a heartbeat that may be believed; ``reason`` is a word for the statistics."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def sign(heartbeat: Heartbeat, signer: Signer) -> SignedHeartbeat:
    payload = codec.encode(heartbeat)
    return SignedHeartbeat(payload, signer.peer_id, signer.sign(SIGNING_PREFIX + payload))


def unpack(data: bytes) -> SignedHeartbeat:
    """Raises `HeartbeatRefused`."""
    if len(data) > MAX_BYTES:
        raise HeartbeatRefused("oversized")
    try:
        return codec.decode(data, SignedHeartbeat)
    except codec.CodecError as e:
        raise HeartbeatRefused("malformed") from e


def read(signed: SignedHeartbeat, *, swarm: str, protocol: int) -> Heartbeat:
    """The content, if it fits author and swarm; the signature is `authentic`'s to check. Raises `HeartbeatRefused`."""
    if len(signed.payload) > MAX_BYTES:
        raise HeartbeatRefused("oversized")
    try:
        heartbeat = codec.decode(signed.payload, Heartbeat)
    except codec.CodecError as e:
        raise HeartbeatRefused("malformed") from e
    if heartbeat.peer_id != signed.author:
        raise HeartbeatRefused("forged")
    if heartbeat.swarm != swarm or heartbeat.protocol != protocol:
        raise HeartbeatRefused("foreign")
    if not 0 < heartbeat.interval < float("inf"):
        raise HeartbeatRefused("malformed")
    return heartbeat


def authentic(signed: SignedHeartbeat, verify: Verify) -> bool:
    return verify(signed.author, SIGNING_PREFIX + signed.payload, signed.signature)
