"""The view of a record: who owns the job, how far it is, what counts."""

from __future__ import annotations

import itertools
import time

import pytest

from dimnode.core.job_record import Record
from dimnode.core.job_view import JobView, view
from dimnode.domain.record import SignedEntry
from tests.support import entries as e


def shown(*entries: SignedEntry) -> JobView:
    """The view, checked to be the same for other orders of arrival."""
    made = view(Record(e.JOB, entries))
    for order in itertools.islice(itertools.permutations(entries), 0, 5000, 97):
        assert view(Record(e.JOB, order)) == made
    return made


def test_status_follows_the_entries() -> None:
    so_far = [e.core()]
    for entry, status in [
        (None, "queued"),
        (e.claim(1), "scheduling"),
        (e.status(1, "fetching"), "fetching"),
        (e.assign(1), "fetching"),
        (e.attempt(1, status="failed"), "running"),
        (e.status(1, "aggregating"), "aggregating"),
        (e.status(1, "running", at=8.0), "aggregating"),
        (e.outcome(1, "completed"), "completed"),
    ]:
        so_far += [entry] if entry else []
        assert view(Record(e.JOB, so_far)).status == status


def test_nothing_at_all() -> None:
    v = shown()
    assert (v.status, v.core, v.owner, v.epoch, v.updated, v.elapsed, v.terminal, v.error) == (
        "queued",
        None,
        None,
        0,
        0.0,
        0.0,
        False,
        None,
    )


def test_a_new_owner_starts_at_scheduling_again() -> None:
    v = shown(e.core(), e.claim(1), e.status(1, "running", elapsed=5.0), e.claim(2, "q", at=6.0, elapsed=7.0))
    assert (v.status, v.epoch) == ("scheduling", 2)
    assert v.owner == e.ballot(2, "q")
    assert v.times == {"queued": 1.0, "scheduling": 6.0}
    assert v.elapsed == 7.0


def test_equal_n_is_decided_by_peer() -> None:
    assert shown(e.claim(2, "p"), e.claim(2, "q")).owner == e.ballot(2, "q")


def test_times_are_the_first_entry_into_each_status() -> None:
    v = shown(e.core(), e.claim(1), e.status(1, "running", at=5.0), e.status(1, "running", at=6.0), e.outcome(1, "failed", at=7.5))
    assert v.times == {"queued": 1.0, "scheduling": 2.0, "running": 5.0, "failed": 7.5}
    assert list(v.times) == ["queued", "scheduling", "running", "failed"]
    assert v.updated == 7.5


@pytest.mark.parametrize(
    ("entries", "status"),
    [
        ((e.outcome(1, "completed"), e.outcome(2, "cancelled")), "cancelled"),
        ((e.outcome(2, "completed"), e.outcome(1, "failed")), "completed"),
        ((e.outcome(1, "failed"), e.outcome(1, "expired")), "failed"),
        ((e.outcome(1, "deleted"), e.outcome(1, "cancelled")), "deleted"),
        ((e.claim(5), e.outcome(1, "completed")), "completed"),
        ((e.claim(5), e.outcome(1, "failed")), "scheduling"),
        ((e.claim(5), e.outcome(5, "expired")), "expired"),
        ((e.claim(5), e.outcome(6, "failed")), "failed"),
    ],
)
def test_which_outcome_counts(entries: tuple[SignedEntry, ...], status: str) -> None:
    assert shown(*entries).status == status


def test_an_acknowledged_cancel_never_becomes_completed() -> None:
    r = Record(e.JOB, [e.core(), e.claim(1), e.outcome(1, "cancelled")])
    for later in (e.claim(9), e.outcome(9, "completed"), e.outcome(1, "completed"), e.outcome(9, "failed")):
        r.add(later)
        assert view(r).status == "cancelled"


def test_ties_go_to_the_lowest_ballot_then_the_lowest_hash_and_losers_are_listed() -> None:
    low, high = e.outcome(1, "completed"), e.outcome(2, "completed", "q")
    v = shown(e.core(), e.claim(2, "q"), high, low)
    assert v.outcome_id == low.id
    assert [s.id for s in v.superseded] == [high.id]
    twins = [e.outcome(1, "completed", result=bytes([i])) for i in range(4)]
    v = shown(*twins)
    assert v.outcome_id == min(t.id for t in twins)
    assert len(v.superseded) == 3


def test_a_failure_superseded_by_a_new_owner_is_listed() -> None:
    v = shown(e.core(), e.outcome(1, "failed"), e.claim(2))
    assert v.status == "scheduling"
    assert [s.status for s in v.superseded] == ["failed"]


def test_the_lowest_plan_counts_even_from_a_former_owner() -> None:
    v = shown(e.plan(2, "q", x=2), e.plan(1, x=1), e.claim(2, "q"))
    assert v.plan == {"x": 1}


def test_assignments_show_the_latest_by_ballot_and_whose_it_is() -> None:
    v = shown(e.claim(1), e.claim(2), e.assign(1, "t", 3, "x"), e.assign(2, "t", 1, "y"), e.assign(1, "u", 1), e.assign(1, "u", 2, "z"))
    assert (v.assignments["t"].assign.node, v.assignments["t"].current) == ("y", True)
    assert (v.assignments["u"].assign.node, v.assignments["u"].current) == ("z", False)
    assert v.last_attempt == {"t": 3, "u": 2}


def test_attempts_count_from_any_ballot_and_void_ones_do_not() -> None:
    done, again = e.attempt(1, "t", 1), e.attempt(2, "t", 2, node="y")
    asked = (e.assign(1, "t", 1), e.assign(2, "t", 2, node="y"))
    v = shown(e.claim(2), *asked, done, again)
    assert v.attempts["t"].id == done.id
    assert [f.id for f in v.completed["t"]] == [done.id, again.id]
    assert shown(e.claim(2), *asked, done, again, e.void(2, done.id)).attempts["t"].id == again.id
    assert shown(e.claim(2), *asked, done, e.void(2, done.id)).attempts == {}


@pytest.mark.parametrize("asked", [e.assign(1, "u", 1), e.assign(1, "t", 2), e.assign(1, "t", 1, "y")])
def test_what_nobody_asked_for_does_not_count(asked: SignedEntry) -> None:
    """A node can sign what it likes; only an assignment of that task, attempt and node makes it an attempt of the job."""
    for unasked in (e.attempt(1, "t", 1), e.attempt(1, "t", 1, "failed")):
        r = Record(e.JOB, [e.core(), e.claim(1), asked, unasked])
        v = view(r)
        assert unasked.id in r, "it may be asked for by an assignment that has not arrived yet"
        assert (v.status, v.attempts, v.completed, v.failures("t")) == ("scheduling", {}, {}, 0)
        assert v.last_attempt == {asked.body().task: asked.body().attempt}
        assert view(Record(e.JOB, [e.core(), e.claim(1), asked, unasked, e.assign(1, "t", 1)])).status == "running"


def test_a_former_owners_void_does_not_count() -> None:
    done = e.attempt(1)
    assert shown(e.claim(1), e.claim(2), e.assign(1), done, e.void(1, done.id)).attempts["t"].id == done.id


def test_failures_are_counted_over_all_owners() -> None:
    v = shown(
        *(e.assign(1, "t", number) for number in (1, 2, 3)),
        e.attempt(1, "t", 1, "failed"),
        e.attempt(2, "t", 2, "failed"),
        e.attempt(2, "t", 3, "cancelled"),
        e.attempt(2, "t", 2, "failed", rows=1),
    )
    assert v.failures("t") == 2
    assert v.failures("u") == 0
    assert v.attempts == {}


def test_an_executor_that_signs_one_failure_twice_counts_once() -> None:
    v = shown(e.assign(1), e.attempt(1, status="failed"), e.attempt(1, status="failed", rows=7))
    assert v.failures("t") == 1


def test_the_first_owners_seal_is_adopted_and_decides_which_attempt_counts() -> None:
    first, second = e.attempt(1, "t", 1), e.attempt(1, "t", 2)
    old, new = e.seal(1, 0, t=second.id), e.seal(2, 0, "q", t=first.id)
    asked = (e.assign(1, "t", 1), e.assign(1, "t", 2))
    v = shown(e.claim(1), e.claim(2, "q"), *asked, first, second, old, new, e.seal(2, 1, "q"))
    assert v.seals[0].id == old.id
    assert sorted(v.seals) == [0, 1]
    assert v.attempts["t"].id == second.id


def test_error_comes_with_the_outcome() -> None:
    assert shown(e.outcome(1, "failed")).error is None


def test_the_view_is_made_once_per_version() -> None:
    r = Record(e.JOB, [e.core()])
    first = view(r)
    assert view(r) is first
    r.add(e.core())
    assert view(r) is first
    r.add(e.claim(1))
    assert view(r) is not first


def test_ten_thousand_jobs_are_cheap() -> None:
    """Adding an entry costs that entry, not the record: 200 more jobs' worth take as long with big records as with small ones."""
    body = [e.core(), e.claim(1), e.assign(1), e.status(1, "fetching"), e.status(1, "running"), e.attempt(1), e.seal(1)]
    records = [Record(e.JOB, body) for _ in range(2000)]
    start = time.perf_counter()
    for r in records:
        r.add(e_outcome)
        view(r)
    assert time.perf_counter() - start < 2.0


e_outcome = e.outcome(1, "failed")
