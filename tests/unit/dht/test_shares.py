"""What strangers ask a node to keep is bounded, and one of them cannot push the others out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.dht.shares import Quota, SharedTable


def test_who_stores_without_end_only_displaces_himself():
    table: SharedTable[str, int] = SharedTable(10)
    for number in range(3):
        assert table.put(f"good {number}", "good", number, 100) == []
    for number in range(1000):
        gone = table.put(f"bad {number}", "bad", number, 100)
        assert all(each.startswith("bad") for each in gone)
    assert len(table) == 10
    assert [table.get(f"good {n}", 0) for n in range(3)] == [0, 1, 2]
    assert table.get("bad 999", 0) == 999
    assert table.get("bad 0", 0) is None


def test_what_is_stored_again_lasts_longer_and_takes_no_more_room():
    table: SharedTable[str, int] = SharedTable(2)
    table.put("x", "a", 1, 10)
    table.put("y", "a", 1, 10)
    assert table.put("x", "b", 2, 20) == []
    assert table.expire(10) == ["y"]
    assert table.get("x", 19) == 2
    assert table.get("x", 20) is None
    assert table.expire(20) == ["x"]
    assert len(table) == 0


def test_a_table_without_room_makes_no_sense():
    with pytest.raises(ValueError, match="room"):
        SharedTable(0)


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abc"), st.floats(0, 50)), max_size=200), st.integers(1, 8))
def test_whatever_happens_the_bound_holds_and_the_newest_is_there(puts: list[tuple[int, str, float]], most: int):
    table: SharedTable[int, int] = SharedTable(most)
    held: set[int] = set()
    for turn, (key, owner, expires) in enumerate(puts):
        gone = table.put(key, owner, turn, expires + 1)
        held = (held | {key}) - set(gone)
        assert key in held
        assert table.get(key, 0) == turn
        assert len(table) == len(held) <= most
        if turn % 7 == 6:
            held -= set(table.expire(25))
            assert len(table) == len(held)


def test_a_peer_has_so_many_streams_and_others_have_theirs():
    quota = Quota(rate=2, burst=3, most=2)
    assert [quota.take("a", 0) for _ in range(4)] == [True, True, True, False]
    assert quota.take("b", 0)
    assert [quota.take("a", 1) for _ in range(3)] == [True, True, False]
    quota.take("c", 1)
    quota.take("d", 1)
    assert quota.take("a", 1), "who was forgotten begins anew: memory is bounded"
