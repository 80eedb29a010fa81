"""What nodes say about names: believed only if it is theirs, sound, and news."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimnode.domain import codec
from dimnode.snapshots.documents import Card, sign_card
from dimnode.snapshots.name_book import MAX_BYTES, Announcement, BookSettings, NameBook, NameKind, Refused, decode
from p2p.identity import Identity
from p2p.ipfs import cid as cids
from p2p.ipfs import ipns
from tests.support.entries import FakeSigner, fake_verify

NOW = 1_800_000_000.0
KEY, OTHER = Identity(bytes(range(32))), Identity(bytes(32))
CID = cids.compute(cids.DAG_CBOR, b"\xa0").text


def card(peer: str = "a", key: Identity = KEY, since: float = 1.0, swarm: str = "dim") -> Card:
    return sign_card(FakeSigner(peer), swarm, ipns.name_of(key.peer_id), since)


def told(sequence: int = 1, *, key: Identity = KEY, expires: float = NOW + 60, by: Card | None = None, cid: str = CID) -> Announcement:
    return Announcement(card=by or card(key=key), record=ipns.make(key, cid, sequence=sequence, expires=expires, ttl=5).raw)


def book(**settings: float) -> NameBook:
    return NameBook("dim", fake_verify, BookSettings(**settings))  # type: ignore[arg-type]


def refused(names: NameBook, announcement: Announcement, now: float = NOW) -> str:
    with pytest.raises(Refused) as error:
        names.take(announcement, now)
    return error.value.reason


def test_the_newest_record_of_a_name_counts() -> None:
    names = book()
    names.take(told(2), NOW)
    assert refused(names, told(1)) == "older"
    assert refused(names, told(2)) == "known"
    assert names.take(told(3), NOW).record.sequence == 3
    seen = names.of("a", NOW)
    assert seen is not None
    assert (seen.record.sequence, seen.cid) == (3, CID)


def test_what_is_older_stays_refused_after_a_restart_and_when_the_record_itself_was_forgotten() -> None:
    names = book(most=1)
    names.take(told(5), NOW)
    names.take(told(by=card("b")), NOW)
    assert names.of("a", NOW) is None, "there is no room for it"
    assert refused(names, told(4)) == "older"
    again = book()
    again.recall(names.marks(), NOW)
    assert refused(again, told(4)) == "older"
    assert refused(again, told(5, expires=NOW + 59)) == "older"
    assert again.take(told(5), NOW).record.sequence == 5, "the very record that was believed"
    again.take(told(1, key=OTHER, by=card(key=OTHER, since=2.0)), NOW)
    third = book()
    third.recall(again.marks(), NOW)
    assert refused(third, told(9)) == "older", "its key was replaced"


def test_what_came_before_the_marks_were_read_is_judged_by_them() -> None:
    names, before = book(), book()
    before.take(told(5), NOW)
    names.take(told(4), NOW)
    names.take(told(7, by=card("b")), NOW)
    names.recall(before.marks(), NOW)
    assert [names.of(p, NOW) is not None for p in ("a", "b")] == [False, True]
    assert {m.peer: m.sequence for m in names.marks()} == {"a": 5, "b": 7}


def test_marks_are_bounded_and_go_when_nothing_older_can_be_valid() -> None:
    names = book(marks=2, longest=100.0)
    for peer in ("a", "b", "c"):
        names.take(told(by=card(peer)), NOW)
    assert [m.peer for m in names.marks()] == ["b", "c"]
    later = book(longest=100.0)
    later.recall(names.marks(), NOW + 101)
    assert later.marks() == []


def test_nobody_can_speak_for_another() -> None:
    names = book()
    assert refused(names, told(by=msgspec.structs.replace(card("b"), peer="a"))) == "forged"
    assert refused(names, Announcement(card=card(key=OTHER), record=told().record)) == "forged"
    assert refused(names, told(by=card(swarm="other"))) == "foreign"
    assert names.of("a", NOW) is None


def test_a_lost_key_is_replaced_and_does_not_come_back() -> None:
    names = book()
    names.take(told(1_000), NOW)
    names.take(told(1, key=OTHER, by=card(key=OTHER, since=2.0)), NOW)
    assert refused(names, told(2_000)) == "older"
    seen = names.of("a", NOW)
    assert seen is not None
    assert seen.card.name == ipns.name_of(OTHER.peer_id)


def test_expired_and_endless_records_are_refused() -> None:
    names = book(longest=100.0)
    assert refused(names, told(expires=NOW)) == "expired"
    assert refused(names, told(expires=NOW + 101)) == "expired"
    names.take(told(expires=NOW + 50), NOW)
    assert names.of("a", NOW + 49) is not None
    assert names.of("a", NOW + 50) is None


def test_large_ones_are_refused_before_anything_is_done_with_them() -> None:
    names = book()
    with pytest.raises(Refused, match="oversized"):
        decode(bytes(MAX_BYTES + 1))
    assert refused(names, Announcement(card=card(), record=bytes(ipns.MAX_BYTES + 1))) == "oversized"


def test_only_so_many_nodes_are_remembered() -> None:
    names = book(most=2)
    for peer in ("a", "b", "c"):
        names.take(told(by=card(peer)), NOW)
    assert [names.of(p, NOW) is not None for p in ("a", "b", "c")] == [False, True, True]


def test_what_points_to_no_content_is_refused() -> None:
    record = msgspec.structs.replace(told(), record=b"\x00" * 40)
    assert refused(book(), record) == "forged"


def why(name: str, value: bytes, now: float = NOW) -> str:
    with pytest.raises(Refused) as error:
        NameKind("dim", lambda: now, fake_verify, BookSettings(longest=100.0)).check(name, value)
    return error.value.reason


def test_what_the_dht_may_keep_is_what_may_be_believed() -> None:
    kind = NameKind("dim", lambda: NOW, fake_verify)
    kind.check("a", codec.encode(told()))
    assert why("b", codec.encode(told())) == "foreign", "under another node's key"
    assert why("a", codec.encode(told(by=card(swarm="other")))) == "foreign"
    assert why("a", codec.encode(told(by=msgspec.structs.replace(card("b"), peer="a")))) == "forged"
    assert why("a", codec.encode(Announcement(card=card(key=OTHER), record=told().record))) == "forged"
    assert why("a", codec.encode(told()), NOW + 61) == "expired"
    assert why("a", codec.encode(told(expires=NOW + 101))) == "expired"
    assert why("a", bytes(MAX_BYTES + 1)) == "oversized"
    assert why("a", b"\x00") == "malformed"


def test_of_two_records_in_the_dht_the_later_card_counts_and_then_the_later_record() -> None:
    kind = NameKind("dim", lambda: NOW, fake_verify)
    first, second = codec.encode(told(1)), codec.encode(told(2))
    replaced = codec.encode(told(1, key=OTHER, by=card(key=OTHER, since=2.0)))
    assert kind.newer("a", second, first)
    assert not kind.newer("a", first, second)
    assert kind.newer("a", replaced, second)
    assert not kind.newer("a", second, replaced)
    assert not kind.newer("a", first, first)


@given(st.binary(max_size=200) | st.builds(lambda a, n: codec.encode(a)[:n], st.just(told()), st.integers(0, 600)))
def test_any_bytes_are_an_announcement_or_refused(data: bytes) -> None:
    names = book()
    try:
        announcement = decode(data)
    except Refused:
        return
    names.take(announcement, NOW)
