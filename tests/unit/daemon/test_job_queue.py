from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimnode.daemon.job_queue import LEVELS, JobQueue
from dimnode.errors import InvalidArgument, ResourceExhausted

PRIORITIES = st.sampled_from(sorted(LEVELS))


def queue(capacity: int = 100, aging: float = 10.0) -> JobQueue[int]:
    return JobQueue(capacity=capacity, aging=aging, slots=2)


def drain(q: JobQueue[int]) -> list[int]:
    out = []
    while (t := q.pop()) is not None:
        out.append(t.item)
    return out


@given(st.lists(PRIORITIES, max_size=60))
def test_of_those_that_wait_together_priority_goes_first_and_equals_in_order(priorities: list[str]) -> None:
    q = queue()
    for n, p in enumerate(priorities):
        q.push(n, p, 0.0)
    assert drain(q) == sorted(range(len(priorities)), key=lambda n: (LEVELS[priorities[n]], n))


@given(st.lists(st.tuples(PRIORITIES, st.floats(0, 5)), max_size=60))
def test_order_within_a_priority_is_arrival_and_nobody_is_lost(arrivals: list[tuple[str, float]]) -> None:
    q, now = queue(), 0.0
    for n, (p, gap) in enumerate(arrivals):
        now += gap
        q.push(n, p, now)
    order = drain(q)
    assert sorted(order) == list(range(len(arrivals)))
    for p in LEVELS:
        mine = [n for n in order if arrivals[n][0] == p]
        assert mine == sorted(mine)


def test_a_low_task_runs_although_critical_ones_keep_coming() -> None:
    q, now = queue(), 0.0
    q.push(-1, "low", now)
    served = []
    for n in range(40):
        now += 1.0
        q.push(n, "critical", now)
        ticket = q.pop()
        assert ticket is not None
        served.append(ticket.item)
        if ticket.item == -1:
            break
    assert served[-1] == -1
    assert 29 <= len(served) <= 31


def test_full_queue_refuses_and_says_when_to_come_back() -> None:
    q = queue(capacity=2)
    first = q.push(1, "normal", 0)
    q.push(2, "normal", 0)
    with pytest.raises(ResourceExhausted) as refused:
        q.push(3, "critical", 0)
    assert refused.value.retry_after is not None
    assert refused.value.retry_after >= 0.1
    assert q.cancel(first)
    q.push(3, "low", 1)
    s = q.statistics(5.0)
    assert (s.queued, s.refused, s.cancelled, s.oldest_wait) == (2, 1, 1, 5.0)
    assert s.by_priority["low"] == 1


@given(st.lists(st.tuples(PRIORITIES, st.booleans()), max_size=120))
def test_cancelled_tickets_never_run_and_free_their_place(items: list[tuple[str, bool]]) -> None:
    q = queue(capacity=200)
    tickets = [q.push(n, p, float(n)) for n, (p, _) in enumerate(items)]
    for ticket, (_, cancel) in zip(tickets, items, strict=True):
        if cancel:
            assert q.cancel(ticket)
            assert not q.cancel(ticket)
    kept = {n for n, (_, cancel) in enumerate(items) if not cancel}
    assert len(q) == len(kept)
    assert set(drain(q)) == kept
    assert len(q) == 0


def test_waiting_estimate_follows_what_tasks_take() -> None:
    q = queue()
    before = q.retry_after()
    for _ in range(20):
        q.finished(30.0)
    assert q.retry_after() > before


def test_unknown_priority_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        queue().push(1, "urgent", 0)


def test_served_tickets_cannot_be_cancelled() -> None:
    q = queue()
    ticket = q.push(1, "low", 0)
    assert q.pop() is ticket
    assert not q.cancel(ticket)


@given(st.lists(st.tuples(PRIORITIES, st.booleans()), max_size=40), st.integers(1, 8))
def test_company_is_taken_along_in_order_and_the_rest_stays_in_place(items: list[tuple[str, bool]], most: int) -> None:
    q = queue()
    for n, (priority, _) in enumerate(items):
        q.push(n, priority, 0.0)
    in_order = sorted(range(len(items)), key=lambda n: (LEVELS[items[n][0]], n))
    front = in_order[: 4 * most]
    taken = [t.item for t in q.pop_like(lambda n: items[n][1], most)]
    assert taken == [n for n in front if items[n][1]][:most]
    assert len(q) == len(items) - len(taken)
    assert sorted(q.waiting()) == sorted(set(in_order) - set(taken))
    assert drain(q) == [n for n in in_order if n not in taken]
