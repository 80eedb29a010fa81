"""What a record may name as its blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimnode.core.job_record import Record
from dimnode.core.record_blocks import blocks_of, is_cid, result_blocks
from dimnode.domain import codec
from dimnode.domain.record import OutcomeEntry
from p2p.ipfs import cid as cids
from p2p.ipfs.api import BadCid
from tests.support import entries as e

CODECS = st.sampled_from(sorted(cids.CODECS))
LETTERS = "abcdefghijklmnopqrstuvwxyz234567"


def taken(text: str) -> bool:
    """By the content store."""
    try:
        cids.parse(text)
    except BadCid:
        return False
    return True


@given(CODECS, st.binary(min_size=32, max_size=32), st.integers(0, 58), st.sampled_from(LETTERS + "A1=\n"))
def test_a_cid_is_what_the_store_takes(codec_: int, digest: bytes, at: int, other: str) -> None:
    text = cids.from_digest(codec_, digest).text
    assert is_cid(text)
    changed = text[:at] + other + text[at + 1 :]
    assert is_cid(changed) == taken(changed)


@pytest.mark.parametrize("text", ["", "c", "QmForeign", "b" * 59, cids.compute(cids.RAW, b"x").text + "\n"])
def test_what_is_no_cid_is_no_block(text: str) -> None:
    assert not is_cid(text)
    assert not taken(text)
    spec = codec.encode({"client_data": {"x": {"cid": text}}})
    outcome = OutcomeEntry(job=e.JOB, ballot=e.ballot(1), status="failed", at=1.0, result_cid=text)
    record = Record(e.JOB, [e.core(spec=spec), e.claim(1), e.signed(outcome)])
    assert blocks_of(record) == ()
    assert list(result_blocks([outcome])) == []
