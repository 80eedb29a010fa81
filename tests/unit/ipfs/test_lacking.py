"""Whom to tell of a block that comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2p.ipfs.lacking import Lacking


def test_whoever_asked_is_told_once() -> None:
    lacking = Lacking(10)
    for peer in ("a", "b", "a"):
        lacking.note(b"1", peer)
    lacking.note(b"2", "a")
    lacking.forget(b"1", "b")
    lacking.forget(b"1", "c")
    assert lacking.take(b"1") == ("a",)
    assert lacking.take(b"1") == ()
    assert len(lacking) == 1
    lacking.forget(b"2", "a")
    assert lacking.take(b"2") == ()


@given(st.lists(st.tuples(st.sampled_from(["note", "forget", "take"]), st.integers(0, 5), st.sampled_from("abc"))))
def test_it_is_bounded_and_counts_right(events: list[tuple[str, int, str]]) -> None:
    lacking = Lacking(4)
    for what, number, peer in events:
        key = bytes([number])
        match what:
            case "note":
                lacking.note(key, peer)
            case "forget":
                lacking.forget(key, peer)
            case _:
                lacking.take(key)
        assert 0 <= len(lacking) <= 4
        assert len(lacking) == sum(len(peers) for peers in lacking._peers.values())
        assert all(lacking._peers.values())


def test_the_oldest_blocks_are_forgotten_first() -> None:
    lacking = Lacking(2)
    for number in range(3):
        lacking.note(bytes([number]), "a")
    assert [lacking.take(bytes([n])) for n in range(3)] == [(), ("a",), ("a",)]
