"""Short-lived certificates for node-to-node TLS.

Every node signs its own certificate and exchanges it over the authenticated libp2p stream, so that the peer id
vouches for it: no authority is needed. Each certificate is its own trust root, and its owner can sign another one with
any name on it; gRPC's verifier lets that through even if the root says that it may not sign others. So a name proves
nothing here: who calls is decided by the fingerprint of the certificate that was exchanged (`CertificateStore.peer_of`),
and a client trusts the certificates of the one peer it dials and no others.

A peer's last two certificates are kept, so that connections survive its rotation.
"""

from __future__ import annotations

import hashlib
import ssl
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import grpc
import structlog
import trio
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dimnode.errors import Unavailable
from p2p.api import Network, NetworkError, RemoteFault

METHOD = "tls/certificate"
MAX_CERTIFICATE_BYTES = 4096
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CertificateSettings:
    lifetime: float = 24 * 3600.0
    """Seconds a certificate is valid; a new one is made at half of it."""
    skew: float = 3600.0
    """Seconds by which clocks may differ: certificates are valid from that much before they were made."""
    max_peers: int = 1024
    """Peers whose certificates are kept; the longest unused goes first."""
    exchange_timeout: float = 5.0
    exchange_concurrency: int = 8
    """Exchanges at once when the own certificate was renewed."""


class BadCertificate(ValueError):
    """A peer's certificate breaks a rule; the text says which."""


@dataclass(frozen=True, slots=True)
class OwnCertificate:
    pem: bytes
    key: bytes
    """PEM, PKCS8."""
    der: bytes
    renew_at: float
    """Seconds since the epoch."""
    generation: int


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    pem: bytes
    fingerprint: str
    not_after: float


def tls_name(peer: str) -> str:
    """The DNS name in a peer's certificate. Peer ids tell upper from lower case and DNS does not: so a hash."""
    return hashlib.sha256(peer.encode()).hexdigest()[:40] + ".dim"


def fingerprint(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()


def make_certificate(peer: str, now: float, settings: CertificateSettings, generation: int = 0) -> OwnCertificate:
    """A new P-256 key and its self-signed certificate, which may not sign others."""
    key = ec.generate_private_key(ec.SECP256R1())
    # The serial number makes subjects unique: with two roots of one subject the verifier might try the wrong one.
    serial = x509.random_serial_number()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, tls_name(peer)), x509.NameAttribute(NameOID.SERIAL_NUMBER, f"{serial:x}")])
    start = datetime.fromtimestamp(now, UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(start - timedelta(seconds=settings.skew))
        .not_valid_after(start + timedelta(seconds=settings.lifetime))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(tls_name(peer))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return OwnCertificate(
        pem=certificate.public_bytes(Encoding.PEM),
        key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        der=certificate.public_bytes(Encoding.DER),
        renew_at=now + settings.lifetime / 2,
        generation=generation,
    )


def check_certificate(peer: str, der: bytes, now: float, settings: CertificateSettings) -> PeerCertificate:
    """Raises `BadCertificate` unless it is a certificate that `make_certificate` could have made for ``peer``."""
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise BadCertificate("is too large")
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        key = certificate.public_key()
        certificate.verify_directly_issued_by(certificate)
    except (ValueError, TypeError, x509.ExtensionNotFound, x509.DuplicateExtension, InvalidSignature) as e:
        raise BadCertificate("is not a self-signed certificate of the expected form") from e
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise BadCertificate("has a key that is not P-256")
    if list(names) != [x509.DNSName(tls_name(peer))]:
        raise BadCertificate("is for another name")
    if constraints.ca:
        raise BadCertificate("may sign other certificates")
    _check_times(certificate, now, settings)
    return PeerCertificate(certificate.public_bytes(Encoding.PEM), fingerprint(der), certificate.not_valid_after_utc.timestamp())


def _check_times(certificate: x509.Certificate, now: float, settings: CertificateSettings) -> None:
    start, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    if not start <= now < end:
        raise BadCertificate("is not valid now: do the clocks agree?")
    if end - start > settings.lifetime + 2 * settings.skew:
        raise BadCertificate("is valid for too long")


class CertificateStore:
    """The own certificate, and those that peers gave.

    ``now`` tells seconds since the epoch. Call `serve` once, then keep `run` running.
    """

    def __init__(self, network: Network, now: Callable[[], float], settings: CertificateSettings | None = None) -> None:
        self._network = network
        self._now = now
        self._settings = settings or CertificateSettings()
        self._own = make_certificate(network.peer_id, now(), self._settings)
        self._peers: OrderedDict[str, tuple[PeerCertificate, ...]] = OrderedDict()
        self._by_fingerprint: dict[str, str] = {}
        self._roots = b""
        self._version = 0
        self._exchanging: dict[str, trio.Event] = {}

    # --- own certificate

    @property
    def own(self) -> OwnCertificate:
        return self._own

    def rotate(self) -> None:
        """A new own certificate; connections made with the last one stay."""
        self._own = make_certificate(self._network.peer_id, self._now(), self._settings, self._own.generation + 1)
        self._version += 1

    def _rotate_if_due(self) -> bool:
        due = self._now() >= self._own.renew_at
        if due:
            self.rotate()
        return due

    async def run(self, poll: float = 60.0) -> None:
        """Renews the own certificate at half its life and tells the peers that are connected. ``poll``: seconds between
        looks at the clock, which may jump. Runs until cancelled."""
        while True:
            await trio.sleep(min(poll, max(0.01, self._own.renew_at - self._now())))
            if self._rotate_if_due():
                await self.announce()

    async def announce(self) -> None:
        """Exchange with every connected peer that we have a certificate of. Failures are left to the next dial."""
        limit = trio.CapacityLimiter(self._settings.exchange_concurrency)

        async def one(peer: str) -> None:
            async with limit:
                try:
                    await self.exchange(peer)
                except Unavailable as e:
                    _log.debug("certificate not exchanged", peer=peer, reason=e.message)

        async with trio.open_nursery() as nursery:
            for peer in self._peers.keys() & self._network.peers():
                nursery.start_soon(one, peer)

    # --- peers' certificates

    def serve(self) -> None:
        """Answer exchanges from now on."""
        self._network.serve(METHOD, self._answer)

    async def _answer(self, peer: str, data: bytes) -> bytes:
        try:
            self.add(peer, data)
        except BadCertificate as e:
            raise RemoteFault("INVALID_ARGUMENT", f"the certificate {e}") from e
        self._rotate_if_due()
        return self._own.der

    async def exchange(self, peer: str) -> None:
        """Give the peer our certificate and take its. Raises `Unavailable`. Concurrent calls for one peer share one
        exchange's result."""
        going = self._exchanging.get(peer)
        if going is not None:
            await going.wait()
            if self.certificates_of(peer):
                return
        done = self._exchanging[peer] = trio.Event()
        self._rotate_if_due()  # a machine that slept may come here before `run` does
        try:
            answer = await self._network.request(peer, METHOD, self._own.der, timeout=self._settings.exchange_timeout)
            self.add(peer, answer)
        except NetworkError as e:
            raise Unavailable("the node could not be asked for its certificate", hint="Is it running and connected?") from e
        except BadCertificate as e:
            raise Unavailable(f"the node's certificate {e}") from e
        finally:
            if self._exchanging.get(peer) is done:
                del self._exchanging[peer]
            done.set()

    async def ensure(self, peer: str) -> None:
        """Exchange unless a valid certificate of the peer is known."""
        if not self.certificates_of(peer):
            await self.exchange(peer)

    def add(self, peer: str, der: bytes) -> None:
        """Take a certificate in that ``peer`` sent over its authenticated stream. Raises `BadCertificate`."""
        new = check_certificate(peer, der, self._now(), self._settings)
        known = self._peers.get(peer, ())
        if any(c.fingerprint == new.fingerprint for c in known):
            self._peers.move_to_end(peer)
            return
        self._keep(peer, (new, *known[:1]))
        while len(self._peers) > self._settings.max_peers:
            self.forget(next(iter(self._peers)))

    def _keep(self, peer: str, certificates: tuple[PeerCertificate, ...]) -> None:
        for old in self._peers.pop(peer, ()):
            self._by_fingerprint.pop(old.fingerprint, None)
        if certificates:
            self._peers[peer] = certificates
            self._by_fingerprint.update({c.fingerprint: peer for c in certificates})
        self._roots = b"".join(c.pem for kept in self._peers.values() for c in kept)
        self._version += 1

    def forget(self, peer: str) -> None:
        self._keep(peer, ())

    def certificates_of(self, peer: str) -> tuple[PeerCertificate, ...]:
        """Valid ones, newest first."""
        now = self._now()
        return tuple(c for c in self._peers.get(peer, ()) if c.not_after > now)

    def peer_of(self, pem: bytes) -> str | None:
        """Whose certificate a connection was made with, None if it is nobody's or has expired."""
        try:
            mark = fingerprint(ssl.PEM_cert_to_DER_cert(pem.decode()))
        except ValueError:
            return None
        peer = self._by_fingerprint.get(mark)
        if peer is None or not any(c.fingerprint == mark for c in self.certificates_of(peer)):
            return None
        self._peers.move_to_end(peer)
        return peer

    def peers(self) -> frozenset[str]:
        return frozenset(self._peers)

    # --- for gRPC

    def server_credentials(self) -> grpc.ServerCredentials:
        """Mutual TLS that takes new roots and renewed certificates live: gRPC asks at every handshake, in a thread
        of its own."""
        asked = self._version
        first = self._configuration()

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal asked
            version = self._version
            if version == asked:
                return None  # unchanged
            asked = version
            return self._configuration()

        return grpc.dynamic_ssl_server_credentials(first, fetch, require_client_authentication=True)  # pyright: ignore[reportArgumentType]

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        own = self._own
        # Without any root gRPC would refuse the configuration; our own admits nobody else.
        return grpc.ssl_server_certificate_configuration([(own.key, own.pem)], root_certificates=self._roots or own.pem)

    def channel_credentials(self, peer: str) -> grpc.ChannelCredentials:
        """For dialling one peer: nothing but its own certificates is trusted. Raises `Unavailable` if none is known."""
        known = self.certificates_of(peer)
        if not known:
            raise Unavailable("no certificate of the node is known")
        return grpc.ssl_channel_credentials(b"".join(c.pem for c in known), self._own.key, self._own.pem)
