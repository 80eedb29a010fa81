"""TLS of the client API, with the operator's own certificates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from dimnode.errors import FailedPrecondition


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Contents of the files, PEM. With ``client_ca`` clients must show a certificate that it signed."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None = None


async def load_tls(cert: str | Path, key: str | Path, client_ca: str | Path | None = None) -> TlsFiles:
    """Reads ``tls.cert``, ``tls.key``, ``tls.client_ca``. Raises `FailedPrecondition` naming the setting that is wrong."""
    files = TlsFiles(
        certificate=await _read("tls.cert", cert),
        key=await _read("tls.key", key),
        client_ca=await _read("tls.client_ca", client_ca) if client_ca else None,
    )
    check_tls(files)
    return files


async def _read(setting: str, path: str | Path) -> bytes:
    try:
        return await trio.Path(path).read_bytes()
    except OSError as e:
        raise FailedPrecondition(f"{setting}: the file cannot be read ({e.strerror})", hint=f"Check {setting}.") from e


def check_tls(files: TlsFiles) -> None:
    """gRPC accepts nonsense here and then fails every handshake without a word."""
    certificate = _certificate("tls.cert", files.certificate)
    try:
        key = load_pem_private_key(files.key, password=None)
    except (ValueError, TypeError) as e:
        raise FailedPrecondition("tls.key is not a PEM private key without a password", hint="Check tls.key.") from e
    der = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*der) != certificate.public_key().public_bytes(*der):
        raise FailedPrecondition("tls.key is not the key of tls.cert", hint="Check tls.cert and tls.key.")
    if files.client_ca is not None:
        _certificate("tls.client_ca", files.client_ca)


def _certificate(setting: str, pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(pem)[0]
    except ValueError as e:
        raise FailedPrecondition(f"{setting} is not a PEM certificate", hint=f"Check {setting}.") from e


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    check_tls(files)
    return grpc.ssl_server_credentials([(files.key, files.certificate)], files.client_ca, require_client_auth=files.client_ca is not None)
