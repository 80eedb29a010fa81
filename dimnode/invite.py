"""Invites: one string that lets a node into a swarm, and the rules of joining.

``dim1`` and the base64url of canonical DAG-CBOR ``{v, swarm, key, addresses, sum}``. ``sum`` is the
start of the sha-256 of the rest: a swarm key with a typing error would otherwise only show as peers that
never answer. ``operator`` is there if the inviting node knows it, and ``electorate``, the list of voters that this key signed;
the list proves itself and is not in the sum. An invite contains the swarm key: whoever has it can join.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from dimnode.domain import codec
from dimnode.domain.voting import SignedElectorate
from dimnode.errors import FailedPrecondition, InvalidArgument
from dimnode.home import Home, new_key, read_key
from dimnode.security.electorate import read_electorate
from p2p.identity import IdentityError, is_peer_id, load_or_create

PREFIX = "dim1"
DEFAULT_SWARM = "dim"
MAX_LENGTH = 16_384
_HINT = "Copy the whole string that `dimnode invite` printed on a node of the swarm."
_JOIN_HINT = "Join with an invite (`dimnode invite` on a member), or give swarm.key_file the swarm's key."


class Invite(msgspec.Struct, frozen=True, kw_only=True):
    swarm: str
    key: str
    """64 hexadecimal digits."""
    addresses: tuple[str, ...]
    """Multiaddrs of a member, each ending in /p2p/PEER_ID."""
    operator: str | None = None
    """Peer id of the key that signs the electorate."""
    electorate: SignedElectorate | None = None


class _Wire(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    v: int
    swarm: str
    key: bytes
    addresses: tuple[str, ...]
    sum: bytes
    operator: str | None = None
    electorate: SignedElectorate | None = None


@dataclass(frozen=True, slots=True)
class Membership:
    """What a node needs to be in its swarm."""

    swarm: str
    key: str
    bootstrap: tuple[str, ...]
    """Multiaddrs to dial and keep dialling."""
    operator: str | None = None
    """Peer id of the key that signs the electorate, if it is known."""
    electorate: SignedElectorate | None = None
    """As an invite told."""


def make(invite: Invite) -> str:
    body = _body(invite.swarm, bytes.fromhex(invite.key), invite.addresses, invite.operator)
    listed = {"electorate": msgspec.to_builtins(invite.electorate, builtin_types=(bytes,))} if invite.electorate else {}
    raw = codec.encode({**body, "sum": _sum(body), **listed})
    return PREFIX + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def parse(text: str) -> Invite:
    """Raises `InvalidArgument` for anything that `make` did not make."""
    text = text.strip()
    if not text.startswith(PREFIX):
        raise InvalidArgument("this is not an invite: it does not start with dim1", hint=_HINT)
    if len(text) > MAX_LENGTH:
        raise InvalidArgument("this invite is too long", hint=_HINT)
    coded = text[len(PREFIX) :]
    try:
        raw = base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True)
        plain = codec.decode_plain(raw)
        version = plain.get("v") if isinstance(plain, dict) else None  # pyright: ignore[reportUnknownVariableType]
        if isinstance(version, int) and version > 1:
            raise InvalidArgument("this invite is of a newer version of DIM", hint="Update this node.")
        wire = msgspec.convert(plain, _Wire, builtin_types=(bytes,))
    except (ValueError, msgspec.ValidationError) as e:
        raise InvalidArgument("this invite is damaged", hint=_HINT) from e
    body = _body(wire.swarm, wire.key, wire.addresses, wire.operator)
    if wire.v != 1 or len(wire.key) != 32 or not wire.swarm or wire.sum != _sum(body):
        raise InvalidArgument("this invite is damaged", hint=_HINT)
    for address in wire.addresses:
        _require_dialable(address)
    operator = _checked_operator(wire)
    return Invite(swarm=wire.swarm, key=wire.key.hex(), addresses=wire.addresses, operator=operator, electorate=wire.electorate)


def _checked_operator(wire: _Wire) -> str | None:
    """A list that its operator did not sign shows that the string was damaged, or made up."""
    if wire.operator is not None and not is_peer_id(wire.operator):
        raise InvalidArgument("this invite is damaged", hint=_HINT)
    if wire.electorate is not None:
        if wire.operator is None:
            raise InvalidArgument("this invite is damaged", hint=_HINT)
        read_electorate(wire.electorate, wire.swarm, wire.operator)
    return wire.operator


def check_join(join: Sequence[str]) -> None:
    """Raises `InvalidArgument` for what is neither an invite nor an address that can be dialled."""
    for text in join:
        if text.startswith(PREFIX):
            parse(text)
        else:
            _require_dialable(text)


def settle(home: Home, *, swarm: str, key_file: str, bootstrap: Sequence[str], join: Sequence[str]) -> Membership:
    """Decide which swarm this home belongs to, store it, and say whom to dial.

    ``swarm`` and ``key_file`` are the settings (empty: not set), ``join`` what ``--join`` was given:
    invites and multiaddrs. A home whose node has never run takes the swarm of an invite or key file;
    after that another swarm is refused with `FailedPrecondition`. Blocking.
    """
    invites = [parse(text) for text in join if text.startswith(PREFIX)]
    direct = [_require_dialable(text) for text in join if not text.startswith(PREFIX)]
    if len({(i.swarm, i.key) for i in invites}) > 1:
        raise InvalidArgument("the invites are of different swarms", hint="Join one swarm with one home.")
    invite = invites[0] if invites else None
    if invite and swarm and swarm != invite.swarm:
        raise FailedPrecondition(
            f"the invite is to swarm {invite.swarm!r} and swarm.name is {swarm!r}", hint="Remove swarm.name, or use another --home."
        )
    given = _given_key(invite, key_file)
    own, settled = home.swarm_key(), home.was_started()
    if own is None and given is None and (direct or bootstrap):
        raise FailedPrecondition("a new home cannot join by address alone: it has no swarm key", hint=_JOIN_HINT)
    if own is not None and given is not None and own != given and settled:
        raise FailedPrecondition("this home belongs to another swarm", hint="Use another --home for this swarm.")
    key = given or own or new_key()
    stored = home.swarm_name()
    if invite and settled and stored and stored != invite.swarm:
        raise FailedPrecondition(f"this home belongs to swarm {stored!r}", hint="Use another --home for this swarm.")
    name = (invite.swarm if invite else "") or swarm or stored or DEFAULT_SWARM
    operator = _settle_operator(home, invite, founding=given is None and own is None, own_swarm=own == key and stored == name)
    if (own, stored) != (key, name):
        home.set_swarm(name, key)
    dial = [*bootstrap, *direct, *(address for i in invites for address in i.addresses)]
    listed = invite.electorate if invite and invite.operator == operator else None
    return Membership(swarm=name, key=key, bootstrap=tuple(dict.fromkeys(dial)), operator=operator, electorate=listed)


def _settle_operator(home: Home, invite: Invite | None, *, founding: bool, own_swarm: bool) -> str | None:
    """Whose lists of voters count here: whoever made the swarm, or whom the invite to it names. Once known it stays."""
    if founding:
        return found(home)
    known = home.operator() if own_swarm else None
    told = invite.operator if invite else None
    if known and told and known != told and home.was_started():
        raise FailedPrecondition("the invite names another operator than this home knows", hint="Use an invite of this home's own swarm.")
    operator = (told or known) if not home.was_started() else (known or told)
    if operator != home.operator():
        home.set_operator(operator)
    return operator


def found(home: Home) -> str:
    """This home has the operator's key from now on. Blocking; returns its peer id."""
    try:
        operator = load_or_create(home.operator_key_path).peer_id
    except IdentityError as e:
        raise FailedPrecondition(str(e)) from e
    if home.operator() != operator:
        home.set_operator(operator)
    return operator


def _given_key(invite: Invite | None, key_file: str) -> str | None:
    from_file = read_key(Path(key_file).expanduser()) if key_file else None
    if invite and from_file and from_file != invite.key:
        raise FailedPrecondition("swarm.key_file holds another key than the invite", hint="Remove one of the two.")
    return invite.key if invite else from_file


def _require_dialable(address: str) -> str:
    from dimnode.config.values import is_multiaddr

    if not is_multiaddr(address) or "/p2p/" not in address:
        raise InvalidArgument(
            f"{address!r} is neither an invite nor a multiaddr that ends in /p2p/PEER_ID",
            hint="For example /ip4/192.0.2.7/tcp/4101/p2p/12D3KooW...",
        )
    return address


def _body(swarm: str, key: bytes, addresses: Sequence[str], operator: str | None) -> dict[str, Any]:
    body: dict[str, Any] = {"v": 1, "swarm": swarm, "key": key, "addresses": list(addresses)}
    return body if operator is None else {**body, "operator": operator}


def _sum(body: dict[str, Any]) -> bytes:
    return hashlib.sha256(codec.encode(body)).digest()[:4]
