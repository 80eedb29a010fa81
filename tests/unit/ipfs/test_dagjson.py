"""DAG-CBOR as DAG-JSON: the form that Kubo's `dag get` prints."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.ipfs import cid as cids
from p2p.ipfs import dagcbor
from p2p.ipfs.api import BlockCorrupt
from p2p.ipfs.dagjson import from_cbor

LINK = cids.compute(cids.RAW, b"x")
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text().filter(lambda k: k != "/"), inner, max_size=4),
    max_leaves=20,
)


def test_keys_are_sorted_and_links_and_bytes_have_their_forms() -> None:
    data = dagcbor.encode_linked({"bb": 1, "a": [None, True, -2, 1.0, "é"], "link": LINK, "raw": b"\x00\xff", "like": LINK.binary})
    text = from_cbor(data).decode()
    assert text.startswith('{"a":[null,true,-2,1.0,"é"],"bb":1,"like":{"/":{"bytes":"')
    assert f'"link":{{"/":"{LINK.text}"}}' in text
    assert text.endswith('"raw":{"/":{"bytes":"AP8"}}}')


@given(plain)
def test_plain_values_are_plain_json(value: object) -> None:
    assert json.loads(from_cbor(dagcbor.encode(value))) == value


@pytest.mark.parametrize("data", [b"", b"\xa1", b"\x81" * 5000 + b"\x00", b"\xff"])
def test_what_is_no_dag_cbor_is_refused(data: bytes) -> None:
    with pytest.raises(BlockCorrupt):
        from_cbor(data)
