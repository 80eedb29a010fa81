from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from dimnode.errors import Unavailable
from dimnode.security.certificates import (
    BadCertificate,
    CertificateSettings,
    CertificateStore,
    check_certificate,
    make_certificate,
    tls_name,
)
from p2p.api import RemoteFault
from tests.support.rpc_fakes import FakeSwitch

NOW = 1_800_000_000.0
SETTINGS = CertificateSettings()


class Time:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def store(switch: FakeSwitch, peer: str, time: Time, **settings: Any) -> CertificateStore:
    made = CertificateStore(switch.node(peer), time, CertificateSettings(**settings))
    made.serve()
    return made


def forged(peer: str, **changes: Any) -> bytes:
    key = changes.get("key") or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, tls_name(peer))])
    start = datetime.fromtimestamp(NOW, UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(start + timedelta(seconds=changes.get("start", -60)))
        .not_valid_after(start + timedelta(seconds=changes.get("end", 3600)))
        .add_extension(x509.BasicConstraints(ca=changes.get("ca", False), path_length=None), critical=True)
    )
    if changes.get("names", True):
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(n) for n in changes.get("names", [tls_name(peer)])]), critical=False
        )
    signer = changes.get("signer", key)
    return builder.sign(signer, None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()).public_bytes(Encoding.DER)


def test_names_fit_dns_and_tell_peers_apart() -> None:
    assert tls_name("12D3KooWa") != tls_name("12D3KooWA")
    assert all(len(label) <= 63 for label in tls_name("12D3KooW" + "x" * 44).split("."))


def test_an_own_certificate_passes_the_check() -> None:
    own = make_certificate("a", NOW, SETTINGS)
    assert check_certificate("a", own.der, NOW, SETTINGS).pem == own.pem
    assert check_certificate("a", forged("a"), NOW, SETTINGS)


@pytest.mark.parametrize(
    ("der", "rule"),
    [
        (b"", "expected form"),
        (b"\x30\x82" * 100, "expected form"),
        (b"x" * 10_000, "too large"),
        (forged("b"), "another name"),
        (forged("a", names=[tls_name("a"), tls_name("b")]), "another name"),
        (forged("a", names=[]), "expected form"),
        (forged("a", ca=True), "sign other"),
        (forged("a", start=60), "not valid now"),
        (forged("a", end=-1), "not valid now"),
        (forged("a", end=10 * 24 * 3600), "too long"),
        (forged("a", key=ec.generate_private_key(ec.SECP384R1())), "P-256"),
        (forged("a", signer=ec.generate_private_key(ec.SECP256R1())), "expected form"),
        (forged("a", key=ed25519.Ed25519PrivateKey.generate()), "P-256"),
    ],
)
def test_a_certificate_that_breaks_a_rule_is_refused(der: bytes, rule: str) -> None:
    with pytest.raises(BadCertificate, match=rule):
        check_certificate("a", der, NOW, SETTINGS)


async def test_one_exchange_serves_both_sides() -> None:
    switch, time = FakeSwitch(), Time()
    a, b = store(switch, "a", time), store(switch, "b", time)
    await a.ensure("b")
    await b.ensure("a")
    await a.ensure("b")
    assert switch.requests == 1
    assert a.peer_of(b.own.pem) == "b"
    assert b.peer_of(a.own.pem) == "a"
    assert a.peer_of(make_certificate("b", NOW, SETTINGS).pem) is None
    assert a.peer_of(b"garbage") is None


async def test_concurrent_dials_share_an_exchange() -> None:
    switch, time = FakeSwitch(), Time()
    a, _ = store(switch, "a", time), store(switch, "b", time)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(a.ensure, "b")
    assert switch.requests == 1


async def test_a_cancelled_exchange_leaves_the_next_one_free() -> None:
    switch, time = FakeSwitch(), Time()
    a, _ = store(switch, "a", time), store(switch, "b", time)
    with trio.CancelScope() as scope:
        scope.cancel()
        await a.exchange("b")
    await a.exchange("b")
    assert a.peers() == {"b"}


async def test_what_cannot_be_exchanged_is_unavailable() -> None:
    switch, time = FakeSwitch(), Time()
    a, b = store(switch, "a", time), store(switch, "b", time)
    for peer in ("nobody", "b"):
        switch.cut.add("b")
        with pytest.raises(Unavailable):
            await a.ensure(peer)
    with pytest.raises(Unavailable):
        a.channel_credentials("b")
    with pytest.raises(RemoteFault):
        await b._answer("a", b"garbage")


async def test_the_last_two_certificates_of_a_peer_count_until_they_expire() -> None:
    switch, time = FakeSwitch(), Time()
    a, b = store(switch, "a", time), store(switch, "b", time)
    seen = []
    for _ in range(3):
        await b.exchange("a")
        seen.append(b.own.pem)
        time.now += 3600
        b.rotate()
    assert [a.peer_of(pem) for pem in seen] == [None, "b", "b"]
    time.now = NOW + 3600 + SETTINGS.lifetime
    assert [a.peer_of(pem) for pem in seen] == [None, None, "b"]
    time.now += SETTINGS.lifetime
    assert a.peer_of(seen[-1]) is None


async def test_a_machine_that_slept_past_its_certificate_exchanges_a_new_one() -> None:
    switch, time = FakeSwitch(), Time()
    a, b = store(switch, "a", time), store(switch, "b", time)
    time.now += 2 * SETTINGS.lifetime
    await a.exchange("b")
    assert (a.peer_of(b.own.pem), b.peer_of(a.own.pem)) == ("b", "a")


async def test_the_number_of_peers_is_bounded_and_the_unused_go_first() -> None:
    switch, time = FakeSwitch(), Time()
    a = store(switch, "a", time, max_peers=3)
    others = {p: store(switch, p, time) for p in "bcd"}
    for other in others.values():
        await other.exchange("a")
    assert a.peer_of(others["b"].own.pem) == "b"  # used
    await store(switch, "e", time).exchange("a")
    assert a.peers() == {"b", "d", "e"}
    a.forget("b")
    assert a.peer_of(others["b"].own.pem) is None


async def test_a_certificate_is_renewed_at_half_its_life_and_told(autojump_clock: trio.testing.MockClock) -> None:
    switch = FakeSwitch()

    def now() -> float:
        return NOW + trio.current_time()

    a = CertificateStore(switch.node("a"), now)
    b = CertificateStore(switch.node("b"), now)
    a.serve()
    b.serve()
    await a.exchange("b")
    first = a.own
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.run)
        await trio.sleep(SETTINGS.lifetime / 2 - 61)
        assert a.own is first
        await trio.sleep(122)
        assert a.own.generation == 1
        assert b.peer_of(a.own.pem) == "a"
        assert b.peer_of(first.pem) == "a"
        switch.cut.add("b")  # nobody to tell: the next dial will
        await trio.sleep(SETTINGS.lifetime / 2 + 122)
        assert a.own.generation == 2
        nursery.cancel_scope.cancel()
