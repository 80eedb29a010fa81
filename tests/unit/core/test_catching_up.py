"""What a node takes from the snapshots of others."""

from __future__ import annotations

import pytest

from dimnode.core.catching_up import Take, Taker, Told
from dimnode.core.records_sync import heirs

MEMBERS = ("a", "b", "c", "d")


def told(job: str = "job-1", *, finished: bool = True, owner: str = "gone", blocks: bool = False) -> Told:
    return Told(job, b"theirs", finished, owner, blocks)


def taker(me: str = "a", *, eligible: bool = True, owners: tuple[str, ...] = MEMBERS) -> Taker:
    return Taker(me, eligible, MEMBERS, owners, 1)


@pytest.mark.parametrize("finished", [True, False])
def test_equal_copies_are_left_alone(finished: bool) -> None:
    assert taker().decide(told(finished=finished), b"theirs", active=not finished) is Take.NO


def test_what_something_may_be_done_about_comes_first() -> None:
    heir, other = (next(p for p in MEMBERS if (p in heirs("job-1", MEMBERS, 1)) is is_heir) for is_heir in (True, False))
    assert taker(heir).decide(told(finished=False), None, active=False) is Take.NOW
    assert taker(other).decide(told(finished=False), None, active=False) is Take.NO
    assert taker(heir).decide(told(finished=False, owner=other), None, active=False) is Take.NO  # who sees to its copies
    assert taker().decide(told(), b"mine", active=True) is Take.NOW
    assert taker().decide(told(), b"mine", active=False) is Take.NOW
    assert taker().decide(told(owner="a", blocks=True), None, active=False) is Take.NOW
    assert taker().keeps_blocks(told(owner="a", blocks=True))


def test_ended_jobs_are_for_who_may_be_asked_about_them_and_for_who_shall_hold_them() -> None:
    heir, other = (next(p for p in MEMBERS if (p in heirs("job-1", MEMBERS, 1)) is is_heir) for is_heir in (True, False))
    assert taker(other).decide(told(), None, active=False) is Take.LATER
    assert taker(other, eligible=False).decide(told(), None, active=False) is Take.NO
    assert taker(heir, eligible=False).decide(told(), None, active=False) is Take.LATER
    assert taker(heir, eligible=False).decide(told(owner="b" if heir != "b" else "c"), None, active=False) is Take.NO


def test_a_record_without_its_blocks_is_not_taken_for_a_whole_copy() -> None:
    heir, other = (next(p for p in MEMBERS if (p in heirs("job-1", MEMBERS, 1)) is is_heir) for is_heir in (True, False))
    assert taker(other).decide(told(blocks=True), None, active=False) is Take.NO
    assert taker(heir).decide(told(blocks=True), None, active=False) is Take.LATER
    assert taker(heir).keeps_blocks(told(blocks=True))
    assert not taker(heir).keeps_blocks(told())
