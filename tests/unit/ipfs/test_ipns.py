"""IPNS records: made, read, compared, refused; judged by py-libp2p's validator as well."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.records.ipns import IPNSValidator
from libp2p.records.pb.ipns_pb2 import IpnsEntry

from p2p.identity import Identity
from p2p.ipfs import cid as cids
from p2p.ipfs import dagcbor, ipns

KEY = Identity(bytes(range(32)))
OTHER = Identity(bytes(32))
CID = cids.compute(cids.DAG_CBOR, b"\xa0").text
NOW = 1_800_000_000.0


def record(sequence: int = 1, expires: float = NOW + 60, key: Identity = KEY, ttl: float = 5.0) -> ipns.NameRecord:
    return ipns.make(key, CID, sequence=sequence, expires=expires, ttl=ttl)


def signed(**changes: object) -> bytes:
    """A record with other content, soundly signed."""
    plain = dagcbor.decode(IpnsEntry.FromString(record().raw).data)
    plain.update(changes)
    data = dagcbor.encode({k: v for k, v in plain.items() if v is not None})
    return IpnsEntry(data=data, signatureV2=KEY.sign(b"ipns-signature:" + data)).SerializeToString()


@pytest.mark.parametrize(
    ("peer", "name"),
    [  # Kubo's, as people show them; the last one by the npm package multiformats
        ("12D3KooWPVYKwhPsyD1kpaaVNvJoqd4tdZR4VgxVmo9NSzWVQjCj", "k51qzi5uqu5dl8wlbw09j1cpr1i456yb3mv0r5wnpx3wz6qq8pnppkvgqdepc8"),
        ("12D3KooWRBy97UB99e3J6hiPesre1MZeuNQvfan4gBziswrRJsNK", "k51qzi5uqu5dlvj2baxnqndepeb86cbk3ng7n3i46uzyxzyqj2xjonzllnv0v8"),
        ("12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA", "k51qzi5uqu5dhdmyb9bd18pypu2wp5lpv2xnskfmrqa4lb5knqryrotb05e7or"),
    ],
)
def test_a_name_is_the_libp2p_key_cid_that_kubo_prints(peer: str, name: str) -> None:
    assert ipns.name_of(peer) == name
    assert ipns.key_of(name) == peer


@pytest.mark.parametrize(
    "text", ["", "k", "k51", "b" + "a" * 60, "k" + "z" * 79, "K51qzi5uqu5d", "k51qzi5uqu5d" + "!" * 50, "k0" + "1" * 60]
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ipns.BadName):
        ipns.key_of(text)


@given(st.text(max_size=90))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    with contextlib.suppress(ipns.BadName):
        assert ipns.name_of(ipns.key_of(text)) == text


@given(st.binary(min_size=32, max_size=32), st.integers(0, ipns.MAX_SEQUENCE), st.floats(0, 2e11), st.floats(0, 1e6))
def test_what_was_made_is_read_again(seed: bytes, sequence: int, expires: float, ttl: float) -> None:
    key = Identity(seed)
    made = ipns.make(key, CID, sequence=sequence, expires=expires, ttl=ttl)
    read = ipns.read(ipns.name_of(key.peer_id), made.raw)
    assert (read.cid, read.sequence) == (CID, sequence)
    assert abs(read.expires - expires) < 1e-3
    assert abs(read.ttl - ttl) < 1e-6
    IPNSValidator(check_expiration=False).validate(f"/ipns/{key.peer_id}", made.raw)


def test_a_forged_record_is_refused() -> None:
    name = ipns.name_of(KEY.peer_id)
    with pytest.raises(ipns.BadRecord, match="signature"):
        ipns.read(name, record(key=OTHER).raw)
    entry = IpnsEntry.FromString(record().raw)
    entry.data = IpnsEntry.FromString(record(sequence=2).raw).data
    with pytest.raises(ipns.BadRecord, match="signature"):
        ipns.read(name, entry.SerializeToString())


def test_an_expired_record_is_refused() -> None:
    raw, name = record(expires=NOW).raw, ipns.name_of(KEY.peer_id)
    assert ipns.read(name, raw, now=NOW - 1).expires == NOW
    with pytest.raises(ipns.BadRecord, match="expired"):
        ipns.read(name, raw, now=NOW)


def test_a_record_that_is_too_large_is_refused() -> None:
    entry = IpnsEntry.FromString(record().raw)
    entry.signatureV1 = bytes(ipns.MAX_BYTES)
    with pytest.raises(ipns.BadRecord, match="at most"):
        ipns.read(ipns.name_of(KEY.peer_id), entry.SerializeToString())


@pytest.mark.parametrize(
    "changes",
    [
        {"Value": None}, {"Value": "text"}, {"Value": b""}, {"Value": b"\xff/"}, {"Value": b"ipfs"}, {"Sequence": -1}, {"Sequence": True}, {"Sequence": "1"},
        {"Sequence": (1 << 64) - 1}, {"ValidityType": 1}, {"Validity": b"tomorrow"}, {"Validity": b"\xff"}, {"Validity": b"2026-13-01T00:00:00Z"},
        {"TTL": -1}, {"TTL": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_what_the_specification_does_not_allow_is_refused_though_it_is_signed(changes: dict[str, object]) -> None:
    with pytest.raises(ipns.BadRecord):
        ipns.read(ipns.name_of(KEY.peer_id), signed(**changes))


def test_fields_of_the_first_version_must_say_the_same() -> None:
    entry = IpnsEntry.FromString(record().raw)
    entry.value = b"/ipfs/" + CID.encode()
    name = ipns.name_of(KEY.peer_id)
    assert ipns.read(name, entry.SerializeToString()).cid == CID
    entry.value = b"/ipfs/elsewhere"
    with pytest.raises(ipns.BadRecord):
        ipns.read(name, entry.SerializeToString())


def test_a_name_may_point_to_what_is_no_content_of_dim() -> None:
    other = ipns.read(ipns.name_of(KEY.peer_id), signed(Value=b"/ipns/example.org"))
    with pytest.raises(ipns.BadRecord):
        _ = other.cid


@given(st.binary(max_size=400) | st.binary(max_size=40).map(lambda cut: record().raw[: len(cut)] + cut))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    with contextlib.suppress(ipns.BadRecord):
        ipns.read(ipns.name_of(KEY.peer_id), raw)


@given(st.binary(max_size=300))
def test_any_signed_document_is_read_or_refused(data: bytes) -> None:
    raw = IpnsEntry(data=data, signatureV2=KEY.sign(b"ipns-signature:" + data)).SerializeToString()
    with pytest.raises(ipns.BadRecord):
        ipns.read(ipns.name_of(KEY.peer_id), raw)


def test_the_newer_record_has_the_higher_sequence_or_is_valid_for_longer() -> None:
    first, second = record(1, NOW + 100), record(2, NOW + 50)
    assert second.newer_than(first)
    assert not first.newer_than(second)
    assert record(2, NOW + 51).newer_than(second)
    assert not second.newer_than(second)
    assert IPNSValidator().select("", [first.raw, second.raw]) == 1


@pytest.mark.parametrize("bad", [{"sequence": -1}, {"sequence": 1 << 63}, {"ttl": -1.0}, {"expires": 1e18}])
def test_numbers_that_no_record_can_have(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"sequence|no such time"):
        ipns.make(KEY, CID, **{"sequence": 1, "expires": NOW, "ttl": 1.0, **bad})  # type: ignore[arg-type]
