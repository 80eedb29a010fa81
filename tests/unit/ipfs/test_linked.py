"""DAG-CBOR values with links."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.ipfs import cid as cids
from p2p.ipfs import dagcbor
from p2p.ipfs.api import BlockCorrupt

ONE, TWO = (cids.compute(codec, b"x") for codec in (cids.RAW, cids.DAG_CBOR))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(max_size=300).filter(str.isascii), inner, max_size=30),
    max_leaves=40,
)  # fmt: skip


@given(PLAIN)
def test_values_without_links_are_encoded_as_ever(value: Any) -> None:
    assert dagcbor.encode_linked(value) == dagcbor.encode(value)


def test_links_are_found_and_read_again() -> None:
    data = dagcbor.encode_linked({"b": [ONE, 1.5], "a": TWO, "long key": dagcbor.Encoded(dagcbor.encode([1, {"x": b"y"}]))})
    assert dagcbor.links(data) == [TWO, ONE]
    plain = dagcbor.decode(data)
    assert (dagcbor.link_in(plain["a"]), dagcbor.link_in(plain["b"][0])) == (TWO, ONE)
    assert plain["long key"] == [1, {"x": b"y"}]


@pytest.mark.parametrize("value", [None, "text", b"", b"\x01", 7])
def test_what_is_no_link(value: Any) -> None:
    with pytest.raises(BlockCorrupt):
        dagcbor.link_in(value)
