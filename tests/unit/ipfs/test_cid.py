from __future__ import annotations

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.ipfs import cid as cids
from p2p.ipfs.api import BadCid

EMPTY = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"


def test_known_cids():
    assert cids.compute(cids.RAW, b"").text == EMPTY
    assert cids.compute(cids.DAG_CBOR, b"\xa0").text == "bafyreigbtj4x7ip5legnfznufuopl4sg4knzc2cof6duas4b3q2fy6swua"
    assert cids.compute(cids.DAG_PB, b"\x0a\x02\x08\x01").text == "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"


@given(st.sampled_from(sorted(cids.CODECS)), st.binary(max_size=200))
def test_both_spellings_come_back(codec: int, data: bytes):
    cid = cids.compute(codec, data)
    assert cids.parse(cid.text) == cids.from_binary(cid.binary) == cid
    assert cid.matches(data)
    assert not cid.matches(data + b"x")
    assert cid.binary[:4] == cid.prefix
    assert str(cid) == cid.text


@given(st.text(max_size=70) | st.binary(max_size=40).map(lambda b: "b" + base64.b32encode(b).decode().lower().rstrip("=")))
def test_parse_takes_only_what_it_would_write(text: str):
    with contextlib.suppress(BadCid):
        assert cids.parse(text).text == text


@pytest.mark.parametrize(
    "binary",
    [
        b"",
        bytes([1, 0x55, 0x12, 0x20]) + bytes(31),
        bytes([0, 0x55, 0x12, 0x20]) + bytes(32),
        bytes([1, 0x55, 0x13, 0x20]) + bytes(32),
        bytes([1, 0x72, 0x12, 0x20]) + bytes(32),
    ],
)
def test_other_kinds_are_refused(binary: bytes):
    with pytest.raises(BadCid):
        cids.from_binary(binary)


def test_a_last_character_with_stray_bits_is_refused():
    with pytest.raises(BadCid, match="canonical"):
        cids.parse(EMPTY[:-1] + "v")
