"""Where a Kubo daemon is and what opens it."""

from __future__ import annotations

import pytest

from p2p.ipfs.kubo.address import Endpoint, authorization, endpoint


@pytest.mark.parametrize(
    ("api", "url", "socket"),
    [
        ("/ip4/127.0.0.1/tcp/5001", "http://127.0.0.1:5001/api/v0/", None),
        ("/ip6/::1/tcp/5001", "http://[::1]:5001/api/v0/", None),
        ("/dns4/kubo.example/tcp/443/https", "https://kubo.example:443/api/v0/", None),
        ("/dns/kubo/tcp/443/tls/http", "https://kubo:443/api/v0/", None),
        ("/ip4/10.0.0.1/tcp/5001/http", "http://10.0.0.1:5001/api/v0/", None),
        ("http://localhost:5001", "http://localhost:5001/api/v0/", None),
        ("https://host/ipfs/", "https://host/ipfs/api/v0/", None),
        ("http://host:1/api/v0", "http://host:1/api/v0/", None),
        ("unix:/run/kubo.sock", "http://kubo/api/v0/", "/run/kubo.sock"),
        ("/unix/run/kubo.sock", "http://kubo/api/v0/", "/run/kubo.sock"),
    ],
)
def test_addresses(api: str, url: str, socket: str | None):
    assert endpoint(api) == Endpoint(url, socket)


@pytest.mark.parametrize(
    "api",
    ["", "localhost:5001", "ftp://host", "http://", "http://user:pass@host", "http://host:x", "http://host?x=1", "/ip4/127.0.0.1", "/ip4/1.2.3.4/udp/1",
     "/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/x", "/ip4/127.0.0.1/tcp/1/ws", "unix:relative", "unix:/"],
)  # fmt: skip
def test_addresses_that_are_none(api: str):
    with pytest.raises(ValueError, match=r"."):
        endpoint(api)


def test_credentials():
    assert authorization("") is None
    assert authorization("bearer:abc:d") == "Bearer abc:d"
    assert authorization("basic:me:pass:word") == "Basic bWU6cGFzczp3b3Jk"
    for wrong in ("abc", "bearer:", "basic:me", "digest:x:y", "bearer:a\nb"):
        with pytest.raises(ValueError, match="must be"):
            authorization(wrong)
