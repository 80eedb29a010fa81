"""Blocks that a node may still lack although it has the record."""

from __future__ import annotations

from dimnode.core.records_sync import OwedBlocks


def tried(owed: OwedBlocks, peer: str) -> tuple[str, ...]:
    jobs = owed.of(peer)
    for job in jobs:
        owed.tried(peer, job)
    return jobs


def test_what_was_not_given_is_tried_again_so_many_times() -> None:
    owed = OwedBlocks(tries=3)
    owed.add("a", "job")
    assert [tried(owed, "a") for _ in range(4)] == [("job",), ("job",), ("job",), ()]


def test_only_what_was_tried_loses_a_try_and_goes_to_the_end() -> None:
    owed = OwedBlocks(tries=2)
    owed.add("a", "one")
    owed.add("a", "two")
    assert owed.of("a") == owed.of("a") == ("one", "two")
    owed.tried("a", "one")
    assert owed.of("a") == ("two", "one")
    owed.tried("a", "one")
    owed.tried("a", "unknown")
    assert owed.of("a") == ("two",)


def test_what_was_given_is_not_owed_and_peers_do_not_mix() -> None:
    owed = OwedBlocks()
    owed.add("a", "one")
    owed.add("a", "two")
    owed.add("b", "one")
    owed.given("a", "one")
    assert (owed.of("a"), owed.of("b")) == (("two",), ("one",))


def test_they_take_turns_and_are_bounded() -> None:
    owed = OwedBlocks(most=3, at_once=2)
    for job in ("1", "2", "3", "4"):
        owed.add("a", job)
    assert [tried(owed, "a"), tried(owed, "a")] == [("2", "3"), ("4", "2")]
