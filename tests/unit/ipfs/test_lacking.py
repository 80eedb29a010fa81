"""Whom to tell of a block that comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2p.ipfs.lacking import Lacking


def test_whoever_asked_is_told_once() -> None:
    lacking = Lacking(10, 10)
    for peer in ("a", "b", "a"):
        lacking.note(b"1", peer)
    lacking.note(b"2", "a")
    lacking.forget(b"1", "b")
    lacking.forget(b"1", "c")
    assert lacking.take(b"1") == ("a",)
    assert lacking.take(b"1") == ()
    assert len(lacking) == 1
    lacking.forget_peer("a")
    lacking.forget_peer("a")
    assert lacking.take(b"2") == ()
    assert len(lacking) == 0


@given(st.lists(st.tuples(st.sampled_from(["note", "note", "forget", "take", "gone"]), st.integers(0, 5), st.sampled_from("abc"))))
def test_it_is_bounded_and_counts_right(events: list[tuple[str, int, str]]) -> None:
    lacking = Lacking(5, 2)
    for what, number, peer in events:
        key = bytes([number])
        match what:
            case "note":
                lacking.note(key, peer)
            case "forget":
                lacking.forget(key, peer)
            case "gone":
                lacking.forget_peer(peer)
            case _:
                lacking.take(key)
        assert 0 <= len(lacking) <= 5
        assert len(lacking) == sum(len(peers) for peers in lacking._peers.values())
        assert all(lacking._peers.values())
        assert all(0 < len(keys) <= 2 for keys in lacking._keys.values())
        assert {(p, k) for k, ps in lacking._peers.items() for p in ps} == {(p, k) for p, ks in lacking._keys.items() for k in ks}


def test_the_oldest_of_the_same_peer_are_forgotten_first_and_nobody_pushes_others_out() -> None:
    lacking = Lacking(6, 3)
    lacking.note(b"mine", "quiet")
    for number in range(100):
        lacking.note(bytes([number]), "loud")
        lacking.note(bytes([number]), "also loud")
    assert lacking.take(b"mine") == ("quiet",)
    assert lacking.take(bytes([99])) == ("loud", "also loud")
    assert lacking.take(bytes([1])) == ()
