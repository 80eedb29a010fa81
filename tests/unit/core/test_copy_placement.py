"""Where the copies of a job go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimnode.core.copy_placement import Candidate, choose

PEERS = tuple(f"p{i}" for i in range(12))


def nodes(peers: Sequence[str], hosts: dict[str, str] | None = None) -> list[Candidate]:
    return [Candidate(p, (hosts or {}).get(p), alive=True, leaving=False) for p in peers]


def test_the_owner_the_dead_and_the_leaving_hold_none() -> None:
    there = [*nodes(("me", "a")), Candidate("b", None, alive=False, leaving=False), Candidate("c", None, alive=True, leaving=True)]
    assert choose("j", 3, there, "me") == ("a",)


def test_custody() -> None:
    assert set(choose("j", 12, nodes(PEERS), "p0", allowed={"p3", "p4", "p0"})) == {"p3", "p4"}


def test_machines_of_their_own_come_first() -> None:
    hosts = {"a": "10.0.0.1", "b": "10.0.0.1", "c": "10.0.0.2", "d": "10.0.0.9"}
    for number in range(50):
        chosen = choose(f"j{number}", 2, nodes(tuple(hosts), hosts), "me", own_hosts={"10.0.0.9"})
        assert len({hosts[p] for p in chosen} | {"10.0.0.9"}) == 3
    assert set(choose("j", 4, nodes(tuple(hosts), hosts), "me", own_hosts={"10.0.0.9"})) == set(hosts), "better than none"


def test_a_holder_stays_even_on_a_shared_machine() -> None:
    hosts = {"a": "10.0.0.1", "b": "10.0.0.2"}
    for number in range(20):
        assert choose(f"j{number}", 1, nodes(("a", "b"), hosts), "me", own_hosts={"10.0.0.1"}, held_by={"a"}) == ("a",)


def test_jobs_spread_evenly() -> None:
    counts = Counter(choose(f"job-{i}", 1, nodes(PEERS), "p0")[0] for i in range(5500))
    assert set(counts) == set(PEERS) - {"p0"}
    assert all(400 < n < 600 for n in counts.values()), counts


@given(job=st.text(max_size=20), gone=st.sampled_from(PEERS[1:]), replicas=st.integers(1, 4))
def test_who_does_not_hold_it_may_go_without_a_move(job: str, gone: str, replicas: int) -> None:
    before = choose(job, replicas, nodes(PEERS), "p0")
    after = choose(job, replicas, nodes([p for p in PEERS if p != gone]), "p0", held_by=before)
    assert set(before) - {gone} <= set(after)
    assert len(after) == replicas


@given(job=st.text(max_size=20), replicas=st.integers(1, 4))
def test_who_comes_moves_nothing(job: str, replicas: int) -> None:
    before = choose(job, replicas, nodes(PEERS), "p0")
    assert choose(job, replicas, nodes((*PEERS, "new-1", "new-2")), "p0", held_by=before) == before


@given(job=st.text(max_size=20), owner=st.sampled_from(PEERS), order=st.permutations(PEERS))
def test_a_new_owner_finds_the_copies(job: str, owner: str, order: list[str]) -> None:
    """Whoever asks: the same order, without the owner itself."""
    assert choose(job, 12, nodes(order), owner) == tuple(p for p in choose(job, 12, nodes(PEERS), "nobody") if p != owner)


@pytest.mark.parametrize("replicas", [0, 1, 5, 50])
def test_at_most_so_many(replicas: int) -> None:
    chosen = choose("j", replicas, nodes(PEERS), "p0")
    assert len(chosen) == len(set(chosen)) == min(replicas, 11)
