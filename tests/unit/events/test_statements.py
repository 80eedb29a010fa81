"""Messages as they are signed: by the author or not at all, small, and free of what nobody outside may learn."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimnode.domain import events
from dimnode.domain.events import Event, Message
from dimnode.events.publisher import TYPE
from dimnode.security import jws
from p2p.identity import Identity, verify

ANNA, BERT = Identity(bytes([1]) * 32), Identity(bytes([2]) * 32)
PEER = ANNA.peer_id


def message(**changes: Any) -> Message:
    given: dict[str, Any] = {
        "kind": "jobs", "channel": "c", "publisher": PEER, "seq": 7, "at": 1.5, "dropped": 0,
        "events": (Event(event="accepted", at=1.0, job="job-1", epoch=1),),
    }  # fmt: skip
    return Message(**{**given, **changes})


def b64(value: object) -> bytes:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def test_a_message_is_read_as_it_was_written_and_is_its_authors() -> None:
    data = jws.sign(events.encode(message()), TYPE, ANNA)
    statement = jws.read(data, TYPE)
    assert (statement.author, jws.authentic(statement, verify)) == (PEER, True)
    assert events.decode(statement.payload) == message()


def test_json_says_what_the_documents_say() -> None:
    assert json.loads(events.encode(message())) == {
        "v": 1, "kind": "jobs", "channel": "c", "publisher": PEER, "seq": 7, "at": 1.5, "dropped": 0,
        "events": [{"event": "accepted", "at": 1.0, "job": "job-1", "epoch": 1}],
    }  # fmt: skip
    seat = Event(event="seat_won", at=1.0, node=PEER, seat=0, term=3)
    assert json.loads(events.encode(message(kind="nodes", events=(seat,))))["events"] == [
        {"event": "seat_won", "at": 1.0, "node": PEER, "seat": 0, "term": 3}
    ]


def test_nothing_but_these_fields_can_be_told() -> None:
    """A new field is a new thing that outsiders learn: docs/security.md and decision 18 come first."""
    assert set(Event.__struct_fields__) == {"event", "at", "job", "epoch", "node", "seat", "term"}
    assert set(Message.__struct_fields__) == {"v", "kind", "channel", "publisher", "seq", "at", "dropped", "events"}


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_noticed(place: int, flip: int) -> None:
    data = bytearray(jws.sign(events.encode(message()), TYPE, ANNA))
    data[place % len(data)] ^= flip
    try:
        statement = jws.read(bytes(data), TYPE)
    except jws.NotAStatement:
        return
    assert not jws.authentic(statement, verify)


def test_another_ones_signature_is_forged() -> None:
    mine = jws.read(jws.sign(events.encode(message()), TYPE, ANNA), TYPE)
    theirs = jws.read(jws.sign(events.encode(message()), TYPE, BERT), TYPE)
    assert not jws.authentic(jws.Statement(mine.author, mine.payload, mine.signed, theirs.signature), verify)


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none", "kid": PEER, "typ": TYPE},
        {"alg": "HS256", "kid": PEER, "typ": TYPE},
        {"alg": "EdDSA", "kid": PEER, "typ": "JWT"},
        {"alg": "EdDSA", "kid": PEER, "typ": TYPE, "crit": ["x"]},
        {"alg": "EdDSA", "typ": TYPE},
        [],
    ],
)
def test_other_headers_are_refused(header: object) -> None:
    signed = b64(header) + b"." + b64(events.encode(message()))
    with pytest.raises(jws.NotAStatement):
        jws.read(signed + b"." + b64(ANNA.sign(signed)), TYPE)


@pytest.mark.parametrize("data", [b"", b"..", b"a.b", b"a.b.c.d", b"\xff.\xff.\xff", b"e30.e30.e30", b"e30=.e30.e30"])
def test_rubbish_is_no_statement(data: bytes) -> None:
    with pytest.raises(jws.NotAStatement):
        jws.read(data, TYPE)


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2}, {"kind": "gossip"}, {"seq": -1}, {"seq": 2**53}, {"events": []}, {"at": -1.0}, {"at": None}, {"publisher": "x" * 65},
        {"events": [{"event": "", "at": 1.0}]}, {"events": [{"event": "x" * 33, "at": 1.0}]}, {"events": [{"at": 1.0}]},
        {"events": [{"event": "a", "at": 1.0, "job": "j" * 65}]}, {"events": [{"event": "a", "at": 1.0}] * 201},
    ],
)  # fmt: skip
def test_what_breaks_the_schema_is_refused(change: dict[str, Any]) -> None:
    plain = {**json.loads(events.encode(message())), **change}
    with pytest.raises(ValueError, match=r".+"):
        events.decode(json.dumps(plain).encode())


def test_words_and_fields_of_later_versions_are_passed_over() -> None:
    plain = {**json.loads(events.encode(message())), "more": 1}
    plain["events"] = [{"event": "moved", "at": 1.0, "job": "job-1", "why": "x"}]
    assert events.decode(json.dumps(plain).encode()).events == (Event(event="moved", at=1.0, job="job-1"),)


def test_the_largest_message_fits() -> None:
    widest = Event(event="e" * 32, at=1_800_000_000.123456, job="j" * 64, epoch=2**53 - 1, node="n" * 64, seat=2**53 - 1, term=2**53 - 1)
    data = jws.sign(events.encode(message(events=(widest,) * 100)), TYPE, ANNA)
    assert len(data) < events.MAX_BYTES


def test_the_channel_is_the_same_for_all_who_have_the_key_and_says_nothing_of_it() -> None:
    key = "ab" * 32
    assert events.channel_of(key) == events.channel_of(key.upper()) == "ee38f7eb0cec7a6125beb6ac0156bc0b"  # by openssl
    assert events.channel_of(key) != events.channel_of("ac" + "ab" * 31)
    assert len(events.channel_of(key)) == events.CHANNEL_CHARACTERS
    assert events.topic("c", "jobs") == "dim/events/c/jobs/1"
