"""Finds peers of the same swarm on the local network (DNS-SD over multicast DNS).

zeroconf works on threads of its own; what they find is handed to trio by `TrioToken.run_sync_soon`.
"""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import Callable, Iterable

import trio
from zeroconf import Error as ZeroconfError
from zeroconf import InterfaceChoice, ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

from p2p.settings import MdnsSettings

log = logging.getLogger(__name__)
MOST_ADDRESSES = 8
CLOSE_TIMEOUT = 5.0
Found = Callable[[tuple[str, ...]], None]
"""Called on the trio thread with a peer's multiaddrs, unchecked."""


def encode_addresses(addresses: Iterable[str]) -> dict[str | bytes, str | bytes | None]:
    """TXT record of a node (libp2p's mDNS specification: ``dnsaddr=`` and a multiaddr each)."""
    chosen = list(addresses)[:MOST_ADDRESSES]
    return {f"dnsaddr{index or ''}": address for index, address in enumerate(chosen)}


def decode_addresses(record: dict[bytes, bytes | None]) -> tuple[str, ...]:
    found = [value for key, value in sorted(record.items()) if key.startswith(b"dnsaddr") and value]
    return tuple(value.decode(errors="replace") for value in found[:MOST_ADDRESSES])


class _Listener(ServiceListener):
    """Runs on zeroconf's thread."""

    def __init__(self, own: str, token: trio.lowlevel.TrioToken, found: Found, timeout: float) -> None:
        self._own = own
        self._token = token
        self._found = found
        self._timeout = timeout

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        if name == self._own:
            return
        info = zc.get_service_info(type_, name, timeout=int(self._timeout * 1000))
        addresses = decode_addresses(info.properties) if info else ()
        if addresses:
            try:
                self._token.run_sync_soon(self._found, addresses)
            except trio.RunFinishedError:
                return

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Nothing: whether a peer is there is told by connections."""


async def run(service: str, port: int, addresses: tuple[str, ...], found: Found, settings: MdnsSettings) -> None:
    """Announces and listens until cancelled. Without a usable network it logs a warning and returns."""
    name = f"{secrets.token_hex(16)}.{service}"
    token = trio.lowlevel.current_trio_token()
    zeroconf: Zeroconf | None = None
    try:
        zeroconf = await trio.to_thread.run_sync(_open, settings)
        listener = _Listener(name, token, found, settings.lookup_timeout)
        info = ServiceInfo(service, name, port=port, properties=encode_addresses(addresses), server=f"{name.split('.')[0]}.local.")
        await trio.to_thread.run_sync(_start, zeroconf, info, listener)
        await trio.sleep_forever()
    except (OSError, ZeroconfError) as problem:
        log.warning("looking for peers on the local network is not possible: %s", problem)
    finally:
        if zeroconf is not None:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_TIMEOUT):
                await trio.to_thread.run_sync(zeroconf.close, abandon_on_cancel=True)


def _open(settings: MdnsSettings) -> Zeroconf:
    interfaces = list(settings.interfaces) or InterfaceChoice.All
    return Zeroconf(interfaces=interfaces)


def _start(zeroconf: Zeroconf, info: ServiceInfo, listener: ServiceListener) -> None:
    info.addresses = [socket.inet_aton("127.0.0.1")]  # unused: the TXT record holds the multiaddrs
    ServiceBrowser(zeroconf, info.type, listener)
    zeroconf.register_service(info, cooperating_responders=True)
