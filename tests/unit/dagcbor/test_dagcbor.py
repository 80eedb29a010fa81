"""Bytes stay bytes, also those that can be read as a CID; cbor2 is the second opinion."""

from __future__ import annotations

import random
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dagcbor
from dimnode.domain import codec
from p2p.ipfs import cid as cids
from p2p.ipfs.dagcbor import links

SHORT = bytes.fromhex("0169d6d479013f15")
"""A digest of eight bytes as it occurred: version 1, codec 0x69, and a multihash of one byte."""
RAW = b"\x01\x55\x12\x20" + bytes(32)
OLD = b"\x12\x20" + bytes(32)
LIKENESSES = [SHORT, RAW, OLD, RAW + b"more", b"\x01\x71\x00\x00"]

atoms = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
some_bytes = st.binary() | st.sampled_from(LIKENESSES)
values = st.recursive(atoms | some_bytes, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


def has_tag(value: Any) -> bool:
    match value:
        case cbor2.CBORTag():
            return True
        case list():
            return any(map(has_tag, value))
        case dict():
            return any(map(has_tag, value.values()))
        case _:
            return False


@pytest.mark.parametrize("data", LIKENESSES)
@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: [b], lambda b: {"x": {"y": [1, b]}, "z": "text"}])
def test_bytes_that_look_like_a_cid_are_no_link(data: bytes, wrap: Any):
    value = wrap(data)
    encoded = dagcbor.encode(value)
    assert cbor2.loads(encoded) == value
    assert dagcbor.decode(encoded) == value
    assert links(encoded) == []


@given(values)
def test_what_is_encoded_is_the_value_and_has_no_links(value: Any):
    encoded = dagcbor.encode(value)
    other = cbor2.loads(encoded)
    assert not has_tag(other)
    assert other == value == dagcbor.decode(encoded)
    assert links(encoded) == []


@given(st.dictionaries(st.text(), some_bytes, min_size=1), st.randoms())
def test_the_order_of_keys_does_not_matter(value: dict[str, bytes], rng: random.Random):
    keys = list(value)
    rng.shuffle(keys)
    assert dagcbor.encode({key: value[key] for key in keys}) == dagcbor.encode(value)


def test_tensors_and_digests_in_structs_too():
    value = {"digest": SHORT, "raw": RAW}
    assert links(codec.encode(value)) == []
    assert codec.decode_plain(codec.encode(value)) == value


def test_a_real_link_is_one():
    cid = cids.from_binary(RAW)
    encoded = dagcbor.LINK + dagcbor.head(2, 37) + b"\x00" + RAW
    assert links(encoded) == [cid]


@pytest.mark.parametrize("value", [(1,), {1: 2}, float("nan"), 2**65, object()])
def test_what_is_no_plain_value_is_refused(value: Any):
    with pytest.raises(ValueError, match="Failed to encode DAG-CBOR"):
        dagcbor.encode(value)


def test_nesting_without_end_is_refused():
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValueError, match="nested too deeply"):
        dagcbor.encode(value)
