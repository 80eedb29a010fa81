"""Where a Kubo daemon's RPC is, and what opens it: settings to what an HTTP client wants. Pure."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from urllib.parse import urlsplit

PREFIX = "/api/v0/"
_HOSTS = frozenset({"ip4", "ip6", "dns", "dns4", "dns6"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    base_url: str
    """Ends in ``/api/v0/``."""
    socket: str | None = None
    """Path of a Unix socket, instead of the host in ``base_url``."""


def endpoint(api: str) -> Endpoint:
    """From a multiaddr (``/ip4/127.0.0.1/tcp/5001``, ``/dns/host/tcp/443/https``, ``/unix/run/kubo.sock``), a URL
    (``http://host:5001``) or ``unix:/run/kubo.sock``. Raises `ValueError`."""
    if api.startswith("unix:"):
        return _on_socket(api.removeprefix("unix:"))
    if api.startswith("/unix/"):
        return _on_socket(api.removeprefix("/unix"))
    if api.startswith("/"):
        return Endpoint(_of_multiaddr(api) + PREFIX)
    parts = urlsplit(api)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError("must be a multiaddr, an http(s) URL without credentials, or unix:/PATH")
    _ = parts.port  # raises for one that is no number
    path = parts.path.rstrip("/").removesuffix(PREFIX.rstrip("/"))
    return Endpoint(f"{parts.scheme}://{parts.netloc}{path}{PREFIX}")


def _on_socket(path: str) -> Endpoint:
    if not path.startswith("/") or path == "/":
        raise ValueError("a socket has an absolute path")
    return Endpoint("http://kubo" + PREFIX, path)


def _of_multiaddr(api: str) -> str:
    match api.strip("/").split("/"):
        case [kind, host, "tcp", port, *more] if kind in _HOSTS and host and port.isdecimal() and 0 < int(port) < 65536:
            if more not in ([], ["http"], ["https"], ["tls", "http"]):
                raise ValueError("after the port only /http, /https or /tls/http may follow")
            scheme = "https" if more in (["https"], ["tls", "http"]) else "http"
            return f"{scheme}://{f'[{host}]' if kind == 'ip6' else host}:{port}"
        case _:
            raise ValueError("a multiaddr of an RPC API is /ip4|ip6|dns/HOST/tcp/PORT, or /unix/PATH")


def authorization(credentials: str) -> str | None:
    """The header's value for ``basic:USER:PASSWORD``, ``bearer:TOKEN`` (as in Kubo's API.Authorizations), or nothing.
    Raises `ValueError`."""
    kind, _, secret = credentials.partition(":")
    if not credentials:
        return None
    if kind == "bearer" and secret and secret.isprintable():
        return f"Bearer {secret}"
    if kind == "basic" and ":" in secret:
        return "Basic " + base64.b64encode(secret.encode()).decode("ascii")
    raise ValueError("must be basic:USER:PASSWORD or bearer:TOKEN")
