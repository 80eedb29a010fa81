"""Entries signed with a real key are believed, anything else is not."""

from __future__ import annotations

from dimnode.core.job_record import check_entry
from dimnode.domain.record import Attempt, Body, SignedEntry
from dimnode.security.signing import sign_entries, sign_entry, verify_entry
from p2p.identity import Identity, verify
from tests.support import entries as e


def test_a_real_signature_round() -> None:
    one, other = Identity.generate(), Identity.generate()
    body = e.core().body()
    entry = sign_entry(body, one)  # pyright: ignore[reportArgumentType]
    assert verify_entry(entry)
    assert check_entry(entry, verify) == body
    assert not verify_entry(SignedEntry(entry.payload, other.peer_id, entry.signature))
    assert not verify_entry(SignedEntry(entry.payload + b"x", one.peer_id, entry.signature))
    assert not verify_entry(SignedEntry(entry.payload, "not a peer id", entry.signature))


def test_an_attempt_is_signed_alone_whatever_it_is_written_with() -> None:
    """It is a receipt: its bytes, and so its CID, are the same wherever it was signed."""
    one = Identity.generate()
    attempt = Attempt(job="j", ballot=e.ballot(1), task="t", attempt=1, task_key="k", status="completed", node=one.peer_id)
    bodies: list[Body] = [b for x in (e.claim(1), e.claim(2)) if isinstance(b := x.body(), Body)]
    first, receipt, last = sign_entries([bodies[0], attempt, bodies[1]], one)
    assert receipt == sign_entry(attempt, one)
    assert len(first.signature) == len(last.signature) > 64
    assert all(verify_entry(x) for x in (first, receipt, last))
