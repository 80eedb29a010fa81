"""Signatures made together hold for each entry by itself, and for nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimnode.core import entry_batches
from dimnode.core.entry_batches import MOST, PREFIX, holds, sign_together
from p2p import identity
from p2p.identity import Identity, verify

ONE = Identity(b"\1" * 32)
OTHER = Identity(b"\2" * 32)
MESSAGES = [b"message %d" % n for n in range(2 * MOST + 3)]


def root_of(messages: Sequence[bytes]) -> bytes:
    """The Merkle tree hash as RFC 9162, section 2.1.1, defines it: recursively."""
    if len(messages) == 1:
        return hashlib.sha256(b"\0" + messages[0]).digest()
    half = 1
    while 2 * half < len(messages):
        half *= 2
    return hashlib.sha256(b"\1" + root_of(messages[:half]) + root_of(messages[half:])).digest()


@pytest.mark.parametrize("count", range(len(MESSAGES) + 1))
def test_each_message_of_a_batch_holds_by_itself_and_only_for_its_author(count: int) -> None:
    signatures = sign_together(MESSAGES[:count], ONE.sign)
    assert len(signatures) == count
    for message, signature in zip(MESSAGES, signatures, strict=False):
        assert holds(ONE.peer_id, message, signature, verify)
        assert not holds(OTHER.peer_id, message, signature, verify)
        assert not holds(ONE.peer_id, message + b"x", signature, verify)


@pytest.mark.parametrize("count", range(2, MOST + 1))
def test_what_is_signed_is_the_tree_of_rfc_9162(count: int) -> None:
    signature = sign_together(MESSAGES[:count], ONE.sign)[0]
    assert verify(ONE.peer_id, PREFIX + bytes((count,)) + root_of(MESSAGES[:count]), signature[:64])


def test_one_message_alone_has_a_plain_signature() -> None:
    assert sign_together([b"alone"], ONE.sign) == [ONE.sign(b"alone")]
    *_, last = sign_together(MESSAGES[: MOST + 1], ONE.sign)
    assert last == ONE.sign(MESSAGES[MOST])


def test_a_batch_makes_one_signature_for_sixteen_messages_and_checks_one() -> None:
    made: list[bytes] = []
    checked: list[bytes] = []

    def sign(data: bytes) -> bytes:
        made.append(data)
        return ONE.sign(data)

    def check(author: str, data: bytes, signature: bytes) -> bool:
        checked.append(data)
        return verify(author, data, signature)

    signatures = sign_together(MESSAGES[:MOST], sign)
    assert all(holds(ONE.peer_id, m, s, check) for m, s in zip(MESSAGES, signatures, strict=False))
    assert len(made) == len(checked) == 1


@given(count=st.integers(2, MOST), which=st.integers(0, MOST - 1), at=st.integers(0), bit=st.integers(0, 7))
def test_a_signature_with_any_bit_turned_does_not_hold(count: int, which: int, at: int, bit: int) -> None:
    signature = bytearray(sign_together(MESSAGES[:count], ONE.sign)[which % count])
    signature[at % len(signature)] ^= 1 << bit
    assert not holds(ONE.peer_id, MESSAGES[which % count], bytes(signature), verify)


@given(count=st.integers(2, MOST), which=st.integers(0, MOST - 1), length=st.integers(0, 300))
def test_a_signature_of_another_length_does_not_hold(count: int, which: int, length: int) -> None:
    signature = sign_together(MESSAGES[:count], ONE.sign)[which % count]
    other = signature[:length] + bytes(max(0, length - len(signature)))
    assert (other == signature) == holds(ONE.peer_id, MESSAGES[which % count], other, verify)


def test_nothing_is_remembered_of_a_name_that_is_too_long_for_a_peer() -> None:
    """It would be kept as long as it is, some thousand times."""
    message, signature = MESSAGES[0], sign_together(MESSAGES[:2], ONE.sign)[0]
    before = entry_batches._signed.cache_info().currsize, identity._peer_id_bytes.cache_info().currsize
    for n in range(10):
        name = f"{n}" * 1000
        assert not holds(name, message, signature, verify)
        assert not holds(name, message, signature[:64], verify)
    assert (entry_batches._signed.cache_info().currsize, identity._peer_id_bytes.cache_info().currsize) == before


def test_a_place_in_the_tree_is_no_message() -> None:
    """The hash of an inner node, given out for a leaf, would let two messages pass for one."""
    signatures = sign_together(MESSAGES[:4], ONE.sign)
    left = [hashlib.sha256(b"\0" + m).digest() for m in MESSAGES[:2]]
    head = signatures[0][:64]
    path = signatures[0][66 + 32 :]
    for index in range(2):
        assert not holds(ONE.peer_id, b"".join(left), head + bytes((2, index)) + path, verify)
        assert not holds(ONE.peer_id, b"\1" + b"".join(left), head + bytes((2, index)) + path, verify)


def test_a_signed_root_is_no_signature_of_an_entry() -> None:
    """A batch signature without what proves the place is none; nor is its statement an entry."""
    signature = sign_together(MESSAGES[:2], ONE.sign)[0]
    assert not holds(ONE.peer_id, MESSAGES[0], signature[:64], verify)
    assert not PREFIX.startswith(b"dim-entry-v1:")
    assert not b"dim-entry-v1:".startswith(PREFIX)


def test_a_signature_that_did_not_hold_once_does_not_spoil_the_good_one() -> None:
    """What was checked is remembered, good and bad."""
    good = sign_together(MESSAGES[:2], ONE.sign)
    bad = bytes(64) + good[0][64:]
    assert not holds(ONE.peer_id, MESSAGES[0], bad, verify)
    assert holds(ONE.peer_id, MESSAGES[0], good[0], verify)
    assert not holds(ONE.peer_id, MESSAGES[0], bad, verify)
    assert not holds(ONE.peer_id, MESSAGES[1], bytes(64) + good[1][64:], verify)
