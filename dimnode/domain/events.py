"""What is told to listeners outside of the swarm's own work: docs/events.md describes it for people who do not have this code.

A message is JSON, signed as a compact JWS (`dimnode.security.jws`). It says that something happened, to which job or node, and when;
it never holds anything of a form, an input, a result, an error or a name: whoever hears it may not be a member.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated, Any, Literal

import msgspec

VERSION = 1
Kind = Literal["jobs", "nodes"]
KINDS: tuple[Kind, ...] = ("jobs", "nodes")
MAX_BYTES = 64 * 1024
"""Of a signed message."""
MAX_EVENTS = 200
"""In a message."""
CHANNEL_CHARACTERS = 32
_EXACT = 2**53 - 1
"""Above it JSON numbers are not the same everywhere."""

_Number = Annotated[int, msgspec.Meta(ge=0, le=_EXACT)]
_Time = Annotated[float, msgspec.Meta(ge=0, le=_EXACT)]


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``event`` is a word of docs/events.md; readers pass over words and fields that they do not know."""

    event: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    at: _Time
    """Wall clock of whoever saw it, seconds since 1970."""
    job: Annotated[str, msgspec.Meta(max_length=64)] = ""
    epoch: _Number = 0
    """Of the job's owner: grows when another one takes it over."""
    node: Annotated[str, msgspec.Meta(max_length=64)] = ""
    """Peer id."""
    seat: _Number | None = None
    term: _Number = 0


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What one publication says."""

    v: Literal[1] = VERSION
    kind: Kind
    channel: Annotated[str, msgspec.Meta(max_length=64)]
    publisher: Annotated[str, msgspec.Meta(max_length=64)]
    """Peer id of the signer."""
    seq: _Number
    """Grows with every message of this publisher, restarts included."""
    at: _Time
    """When it was signed."""
    dropped: _Number
    """Events of this kind that the publisher could not send since it started."""
    events: Annotated[tuple[Event, ...], msgspec.Meta(min_length=1, max_length=MAX_EVENTS)]


def topic(channel: str, kind: Kind) -> str:
    return f"dim/events/{channel}/{kind}/{VERSION}"


def channel_of(swarm_key: str) -> str:
    """A name that whoever has the swarm key (hexadecimal) can make and nobody else can guess; it tells nothing of the key."""
    return hmac.new(bytes.fromhex(swarm_key), b"dim-events-v1", hashlib.sha256).hexdigest()[:CHANNEL_CHARACTERS]


def encode(message: Message) -> bytes:
    return msgspec.json.encode(message)


def decode(data: bytes) -> Message:
    """Raises `ValueError`."""
    return msgspec.json.decode(data, type=Message)


def document(message: Message, event: Event) -> dict[str, Any]:
    """One event as `dimnode events` shows it."""
    return {"kind": message.kind, "publisher": message.publisher, **msgspec.to_builtins(event)}
