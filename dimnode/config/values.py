"""Kinds of setting values and their rules."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from p2p.ipfs.kubo.address import authorization, endpoint

Seconds = Annotated[float, Field(gt=0, le=10 * 365 * 24 * 3600, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
CountOrNone = Annotated[int, Field(ge=0, le=1_000_000)]
Strings = Annotated[tuple[str, ...], Field(strict=False)]

_MULTIADDR = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/[^/\s]+/tcp/\d{1,5}(/[^\s]*)?")
_PEER_ID = re.compile(r"[1-9A-HJ-NP-Za-km-z]{40,64}")


class Section(BaseModel):
    """Base of every section: frozen, closed, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=False)


def split_host_port(text: str) -> tuple[str, int]:
    """``host:port`` or ``[ipv6]:port``. Raises `ValueError` saying what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be host:port with a port of 0 to 65535 (0: any free port)")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("must have an IPv6 address in square brackets, as in [::1]:50051")
    return host, int(port)


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def is_multiaddr(text: str) -> bool:
    """Whether this looks like a multiaddr over TCP."""
    return _MULTIADDR.fullmatch(text) is not None


def _host_port(value: str) -> str:
    split_host_port(value)
    return value


def _host_port_or_nothing(value: str) -> str:
    return _host_port(value) if value else value


def _multiaddrs(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not is_multiaddr(value):
            raise ValueError(f"has {value!r}, which is not a multiaddr such as /ip4/192.0.2.7/tcp/4101")
    return values


def _dialable(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in _multiaddrs(values):
        if "/p2p/" not in value:
            raise ValueError(f"has {value!r}, which does not end in /p2p/PEER_ID")
    return values


def _peer_ids(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not _PEER_ID.fullmatch(value):
            raise ValueError(f"has {value!r}, which is not a peer id such as 12D3KooW...")
    return values


def _ipfs_api(value: str) -> str:
    endpoint(value)
    return value


def _ipfs_credentials(value: str) -> str:
    authorization(value)
    return value


IpfsApi = Annotated[str, AfterValidator(_ipfs_api)]
IpfsCredentials = Annotated[str, AfterValidator(_ipfs_credentials)]
HostPort = Annotated[str, AfterValidator(_host_port)]
HostPortOrNothing = Annotated[str, AfterValidator(_host_port_or_nothing)]
Multiaddrs = Annotated[Strings, AfterValidator(_multiaddrs)]
DialableAddresses = Annotated[Strings, AfterValidator(_dialable)]
PeerIds = Annotated[Strings, AfterValidator(_peer_ids)]
