"""IPNS records: a signed pointer from a key to content. Pure: https://specs.ipfs.tech/ipns/ipns-record/

A name is the libp2p-key CID of an Ed25519 key in base36 (``k51...``), as Kubo prints it. Records have the V2 signature
and no V1 fields: what is signed is the DAG-CBOR document in ``data``. Signatures and the agreement of V1 fields, where a record of
somebody else has them, are checked by py-libp2p's validator; here the document is read strictly first, and time is the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.message import DecodeError
from libp2p.records.ipns import MAX_RECORD_SIZE, SIGNATURE_PREFIX, IPNSValidator
from libp2p.records.pb.ipns_pb2 import IpnsEntry
from libp2p.records.utils import InvalidRecordType

from p2p.identity import ID_PREFIX, KEY_BYTES, Identity, peer_id_bytes, peer_id_text, verify
from p2p.ipfs import cid as cids
from p2p.ipfs import dagcbor
from p2p.ipfs.api import BadCid, BlockCorrupt

MAX_BYTES = MAX_RECORD_SIZE
"""Of a record: 10 KiB, as the specification has it."""
MAX_SEQUENCE = (1 << 63) - 1
"""Of the numbers that the specification allows the half that DAG-CBOR decoders agree on."""
_LIBP2P_KEY = b"\x01\x72"
"""CID version 1, codec libp2p-key."""
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_VALIDATOR = IPNSValidator(check_expiration=False)


class BadName(ValueError):
    """Not the name of an Ed25519 key."""


class BadRecord(ValueError):
    """Not a record that may be believed: malformed, forged, too large, or expired. The text says which."""


@dataclass(frozen=True, slots=True)
class NameRecord:
    """A record whose signature was checked."""

    name: str
    value: str
    """The path that the name points to: ``/ipfs/CID``."""
    sequence: int
    expires: float
    """Seconds since the epoch."""
    ttl: float
    """Seconds for which it may be used without asking for a newer one."""
    raw: bytes
    """The record as it travels."""

    @property
    def cid(self) -> str:
        """What it points to. Raises `BadRecord` if that is not one block that DIM can use."""
        try:
            return cids.parse(self.value.removeprefix("/ipfs/")).text
        except BadCid as error:
            raise BadRecord(f"the name points to something else than content of DIM: {error}") from error

    def newer_than(self, other: NameRecord) -> bool:
        """Of the same name: a higher sequence number, or as high a one that is valid for longer."""
        return (self.sequence, self.expires, self.raw) > (other.sequence, other.expires, other.raw)


def name_of(peer_id: str) -> str:
    """Raises `BadName`."""
    raw = peer_id_bytes(peer_id)
    if raw is None:
        raise BadName("not the peer id of an Ed25519 key")
    number, text = int.from_bytes(_LIBP2P_KEY + raw, "big"), ""
    while number:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
    return "k" + text


def key_of(name: str) -> str:
    """The peer id of the key behind a name. Raises `BadName`."""
    length = len(_LIBP2P_KEY) + len(ID_PREFIX) + KEY_BYTES
    try:
        if not 2 <= len(name) <= 80 or name[0] != "k" or not set(name[1:]) <= set(_DIGITS):
            raise BadName("a name is a CID in base36, beginning with 'k'")
        binary = int(name[1:], 36).to_bytes(length, "big")
    except (ValueError, OverflowError) as error:
        raise BadName("not the name of an Ed25519 key") from error
    raw = binary[len(_LIBP2P_KEY) :]
    if not binary.startswith(_LIBP2P_KEY + ID_PREFIX) or name_of(peer_id_text(raw)) != name:
        raise BadName("not the name of an Ed25519 key")
    return peer_id_text(raw)


def make(key: Identity, cid: str, *, sequence: int, expires: float, ttl: float) -> NameRecord:
    """``expires``: seconds since the epoch. Raises `BadCid`, `ValueError` for numbers that no record can have."""
    if not 0 <= sequence <= MAX_SEQUENCE or ttl < 0:
        raise ValueError("a sequence number has 63 bits, a time to live is not negative")
    value = f"/ipfs/{cids.parse(cid).text}"
    data = dagcbor.encode(
        {
            "Value": value.encode(),
            "ValidityType": 0,
            "Validity": _timestamp(expires),
            "Sequence": sequence,
            "TTL": int(ttl * 1e9),
        }
    )
    raw = IpnsEntry(data=data, signatureV2=key.sign(SIGNATURE_PREFIX + data)).SerializeToString(deterministic=True)
    return read(name_of(key.peer_id), raw)


def read(name: str, raw: bytes, *, now: float | None = None) -> NameRecord:
    """A record of this name, signed by its key. ``now``: seconds since the epoch, to refuse expired ones; None: any time.
    Raises `BadRecord`, `BadName`."""
    peer = key_of(name)
    if not 0 < len(raw) <= MAX_BYTES:
        raise BadRecord(f"a record has at most {MAX_BYTES} bytes")
    data = _document(peer, raw)
    try:
        parsed = _VALIDATOR.validate_with_details(f"/ipns/{peer}", raw)
    except (InvalidRecordType, ValueError, OverflowError) as error:
        raise BadRecord(f"not a record of this name: {error}") from error
    try:
        value = data["Value"].decode()
    except UnicodeDecodeError as error:
        raise BadRecord("the value is not text") from error
    if not value.startswith("/"):
        raise BadRecord("the value is not a path")
    expires = (parsed.validity - _EPOCH) / timedelta(seconds=1)
    if now is not None and expires <= now:
        raise BadRecord("the record has expired")
    return NameRecord(name, value, data["Sequence"], expires, data.get("TTL", 0) / 1e9, raw)


_KINDS: dict[str, type] = {"Value": bytes, "Validity": bytes, "ValidityType": int, "Sequence": int}


def _document(peer: str, raw: bytes) -> dict[str, Any]:
    """The signed document, with the kinds of values that it must have. (libsodium checks a signature in a tenth of the time that the
    validator takes, so what is forged costs little.)"""
    try:
        entry = IpnsEntry.FromString(raw)
        data = dagcbor.decode(entry.data)
        canonical = dagcbor.encode(data) == entry.data
    except (DecodeError, BlockCorrupt, ValueError) as error:
        raise BadRecord("not an IPNS record") from error
    if not canonical or not isinstance(data, dict):
        raise BadRecord("the signed document is not canonical DAG-CBOR")
    wrong = [k for k, kind in {**_KINDS, **({"TTL": int} if "TTL" in data else {})}.items() if type(data.get(k)) is not kind]
    if not verify(peer, SIGNATURE_PREFIX + entry.data, entry.signatureV2):
        raise BadRecord("the signature is not that of the name's key")
    if wrong or data["ValidityType"] != 0 or not 0 <= data["Sequence"] <= MAX_SEQUENCE or data.get("TTL", 0) < 0:
        raise BadRecord(f"the signed document lacks {', '.join(wrong) or 'a number that makes sense'}")
    return data


def _timestamp(seconds: float) -> bytes:
    """RFC 3339 with nine digits, as Kubo writes it. Raises `ValueError` for times beyond the year 9999."""
    try:
        moment = _EPOCH + timedelta(seconds=seconds)
    except OverflowError as error:
        raise ValueError("no such time") from error
    return moment.strftime("%Y-%m-%dT%H:%M:%S.").encode() + f"{moment.microsecond:06d}000Z".encode()
