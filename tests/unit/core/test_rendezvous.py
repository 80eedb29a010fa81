"""The order of peers per job: the same everywhere, stable when others come and go, evenly spread."""

from __future__ import annotations

import random
from collections import Counter

from dimnode.core.rendezvous import rendezvous

PEERS = [f"peer-{i}" for i in range(20)]


def test_it_does_not_depend_on_the_order_given() -> None:
    rng = random.Random(1)
    for n in range(50):
        shuffled = rng.sample(PEERS, len(PEERS))
        assert rendezvous(f"job-{n}", [*shuffled, shuffled[0]]) == rendezvous(f"job-{n}", PEERS)


def test_who_goes_changes_nothing_for_the_others() -> None:
    for n in range(50):
        before = rendezvous(f"job-{n}", PEERS)
        assert rendezvous(f"job-{n}", PEERS[:-1]) == [p for p in before if p != PEERS[-1]]


def test_jobs_are_spread_evenly() -> None:
    first = Counter(rendezvous(f"job-{n}", PEERS)[0] for n in range(4000))
    assert len(first) == 20
    assert max(first.values()) < 2 * min(first.values())


def test_it_stays_what_it_is() -> None:
    """Nodes of different versions must agree."""
    assert rendezvous("job-a", ["p1", "p2", "p3", "p4"]) == ["p4", "p3", "p1", "p2"]
