"""The rules of the list of voters, and its signature."""

from __future__ import annotations

import pytest

from dimnode.core.electorate import ElectorateError, check, first, majority, others_needed, quorum, replaces, tag, with_voter, without_voter
from dimnode.domain import codec
from dimnode.domain.voting import Electorate, SignedElectorate
from dimnode.errors import InvalidArgument
from dimnode.security.electorate import read_electorate, sign_electorate
from p2p.identity import Identity


def test_a_list_changes_by_one_voter_and_names_the_one_before() -> None:
    one = first("s", ["b", "a", "a"], "op")
    assert (one.version, one.voters, one.previous) == (1, ("a", "b"), ())
    two = with_voter(one, "c")
    assert (two.version, two.voters, two.previous) == (2, ("a", "b", "c"), ("a", "b"))
    three = without_voter(two, "a")
    assert (three.version, three.voters, three.previous) == (3, ("b", "c"), ("a", "b", "c"))
    assert replaces(two, three)
    assert replaces(None, one)
    assert not replaces(two, one)


@pytest.mark.parametrize(
    "wrong",
    [
        Electorate(swarm="s", version=1, voters=(), operator="op"),
        Electorate(swarm="s", version=1, voters=("b", "a"), operator="op"),
        Electorate(swarm="s", version=0, voters=("a",), operator="op"),
        Electorate(swarm="s", version=2, voters=("a",), operator="op"),
        Electorate(swarm="s", version=2, voters=("a", "b"), previous=("a", "b"), operator="op"),
        Electorate(swarm="s", version=2, voters=("c", "d"), previous=("a",), operator="op"),
        Electorate(swarm="s", version=1, voters=tuple(f"p{i:02}" for i in range(64)), operator="op"),
    ],
)
def test_what_no_operator_makes_is_refused(wrong: Electorate) -> None:
    with pytest.raises(ElectorateError):
        check(wrong)


def test_a_voter_cannot_be_added_twice_nor_the_last_one_removed() -> None:
    one = first("s", ["a"], "op")
    with pytest.raises(ElectorateError, match="already"):
        with_voter(one, "a")
    with pytest.raises(ElectorateError, match="no voter"):
        without_voter(one, "b")
    with pytest.raises(ElectorateError):
        without_voter(one, "a")


def test_two_lists_of_one_version_have_unlike_tags_and_the_first_stays() -> None:
    one = first("s", ["a", "b"], "op")
    left, right = with_voter(one, "c"), with_voter(one, "d")
    assert tag(left) != tag(right)
    assert not replaces(left, right)


def test_a_version_that_is_not_known_to_act_needs_most_of_the_one_before_too() -> None:
    two = with_voter(first("s", ["a", "b"], "op"), "c")
    assert not quorum(two, ["a", "c"], settled=False)
    assert quorum(two, ["a", "b"], settled=False)
    assert quorum(two, ["a", "c"], settled=True)
    assert not quorum(two, ["a", "x", "y"], settled=True), "strangers do not count"


@pytest.mark.parametrize("voters", range(1, 10))
def test_majorities_of_neighbouring_versions_have_a_voter_in_common(voters: int) -> None:
    old = first("s", [f"p{i}" for i in range(voters)], "op")
    for new in [with_voter(old, "x"), *([without_voter(old, "p0")] if voters > 1 else [])]:
        for subset in range(1 << voters):
            a = {p for i, p in enumerate(old.voters) if subset >> i & 1}
            b = set(new.voters) - a
            assert not (majority(old.voters, a) and majority(new.voters, b)), (a, b)


def test_how_many_others_make_a_majority() -> None:
    assert others_needed((), "a") == 0
    assert [others_needed(tuple("abcde"[:n]), "a") for n in range(1, 6)] == [0, 1, 1, 2, 2]
    assert [others_needed(tuple("abcde"[:n]), "x") for n in range(1, 6)] == [1, 2, 2, 3, 3]


def test_only_what_the_operator_signed_for_this_swarm_is_believed() -> None:
    operator, other = Identity.generate(), Identity.generate()
    listed = first("s", [other.peer_id], operator.peer_id)
    signed = sign_electorate(listed, operator)
    assert read_electorate(signed, "s", operator.peer_id) == listed
    forged = sign_electorate(listed, other)
    foreign = sign_electorate(first("s", [other.peer_id], other.peer_id), other)
    changed = SignedElectorate(payload=codec.encode(first("s", [operator.peer_id], operator.peer_id)), signature=signed.signature)
    garbage = SignedElectorate(payload=b"\xff", signature=b"")
    for bad in (forged, foreign, changed, garbage):
        with pytest.raises(InvalidArgument):
            read_electorate(bad, "s", operator.peer_id)
    with pytest.raises(InvalidArgument):
        read_electorate(signed, "another swarm", operator.peer_id)
