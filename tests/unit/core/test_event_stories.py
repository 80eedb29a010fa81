"""What is told of jobs and nodes, by whom, and that nothing is told twice."""

from __future__ import annotations

from typing import Any

import pytest

from dimnode.core.event_stories import JobStory, NodeStory, Seen
from dimnode.core.job_record import Record
from dimnode.core.job_view import view
from tests.support.entries import JOB, assign, attempt, claim, core, outcome, status

NOW = 20.0


def story(me: str = "p", boot: str = "b", most: int = 100, max_age: float = 1000.0) -> JobStory:
    return JobStory(me, boot, most, max_age)


def told(teller: JobStory, *entries: Any, now: float = NOW, job: str = JOB) -> list[tuple[str, float, int]]:
    return [(e.event, e.at, e.epoch) for e in teller.observe(view(Record(job, entries)), now) if e.job == job]


FULL = (core(), claim(1), status(1, "fetching", 3.0), status(1, "running", 4.0), status(1, "aggregating", 5.0), outcome(1, "completed"))


def test_a_whole_job_in_order_and_each_state_once() -> None:
    teller = story()
    steps = [told(teller, *FULL[: n + 1]) for n in range(len(FULL))]
    assert steps == [
        [],  # a core that nobody claimed is not accepted yet
        [("accepted", 1.0, 1)],
        [("fetching", 3.0, 1)],
        [("running", 4.0, 1)],
        [("aggregating", 5.0, 1)],
        [("completed", 9.0, 1)],
    ]
    assert told(teller, *FULL) == []


def test_jobs_that_ended_are_forgotten_when_nothing_of_them_would_be_told_any_more() -> None:
    teller = story(max_age=60.0)
    told(teller, *FULL, now=10.0)
    told(teller, core(job="job-long"), claim(1, job="job-long"), now=11.0, job="job-long")
    assert len(teller) == 2
    told(teller, core(job="job-new"), claim(1, job="job-new"), now=100.0, job="job-new")
    assert len(teller) == 2, "one that goes on is remembered"
    assert told(teller, *FULL, now=100.0) == []
    assert len(teller) == 3


def test_what_happened_between_two_looks_is_told_together() -> None:
    assert [e[0] for e in told(story(), *FULL)] == ["accepted", "fetching", "running", "aggregating", "completed"]


def test_a_state_that_attempts_prove_is_told() -> None:
    assert [e[0] for e in told(story(), core(), claim(1), assign(1), attempt(1))] == ["accepted", "running"]


def test_only_the_owner_tells_progress() -> None:
    assert told(story("other"), *FULL) == []
    assert told(story(boot="before"), *FULL) == []


def test_a_new_owner_tells_that_it_took_over_and_the_old_one_no_more() -> None:
    old, new = story("p"), story("q")
    before = (core(), claim(1), status(1, "running", 4.0))
    after = (*before, claim(2, "q", at=6.0))
    assert [e[0] for e in told(old, *before)] == ["accepted", "running"]
    assert told(old, *after) == []
    assert told(new, *before) == []
    assert told(new, *after) == [("taken_over", 6.0, 2)]
    assert told(new, *after, status(2, "running", 7.0, peer="q"), outcome(2, "failed", "q")) == [("running", 7.0, 2), ("failed", 9.0, 2)]
    assert told(old, *after, outcome(2, "failed", "q")) == []


def test_an_owner_that_claims_its_job_again_tells_its_progress_again() -> None:
    teller = story()
    before = (core(), claim(1), status(1, "running", 4.0))
    told(teller, *before)
    again = (*before, claim(2, at=6.0), status(2, "running", 7.0))
    assert told(teller, *again) == [("taken_over", 6.0, 2), ("running", 7.0, 2)]


def test_an_end_is_told_by_whoever_wrote_it() -> None:
    """A job that another seat cancelled: its owner hears of it, and says nothing."""
    owner, canceller = story("p"), story("q")
    told(owner, core(), claim(1))
    cancelled = (core(), claim(1), outcome(2, "cancelled", "q"))
    assert told(owner, *cancelled) == []
    assert told(canceller, *cancelled) == [("cancelled", 9.0, 1)]


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled", "expired"])
def test_every_end_is_told_and_a_deletion_is_not(end: str) -> None:
    assert [e[0] for e in told(story(), core(), claim(1), outcome(1, end))] == ["accepted", end]
    assert "deleted" not in [e[0] for e in told(story(), core(), claim(1), outcome(1, "deleted"))]


def test_what_is_long_past_is_no_news() -> None:
    teller = story(max_age=5.0)
    assert told(teller, *FULL, now=9.5) == [("aggregating", 5.0, 1), ("completed", 9.0, 1)]
    assert told(teller, *FULL, now=9.5) == []


def test_memory_is_bounded() -> None:
    teller = story(most=3)
    for number in range(10):
        name = f"job-{number}"
        told(teller, core(name), claim(1, job=name), job=name)
    assert len(teller) == 3
    name = "job-9"
    assert told(teller, core(name), claim(1, job=name), job=name) == []


# --- nodes


def look(teller: NodeStory, **members: str) -> list[tuple[str, str]]:
    seen = {peer: Seen(state, "boot") if ":" not in state else Seen(*state.split(":")) for peer, state in members.items()}  # type: ignore[arg-type]
    return sorted((e.event, e.node) for e in teller.observe(seen, NOW))


def test_joining_falling_silent_and_leaving() -> None:
    teller = NodeStory("me")
    assert look(teller, me="alive", a="alive", b="alive", c="dead") == [("joined", "a"), ("joined", "b")]
    assert look(teller, me="alive", a="suspect", b="alive", c="dead") == [("suspected", "a")]
    assert look(teller, me="alive", a="dead", b="alive") == [("died", "a"), ("forgotten", "c")]
    assert look(teller, me="alive", a="alive", b="alive") == [("recovered", "a")]
    assert look(teller, me="alive", a="alive") == [("left", "b")]
    assert look(teller, me="alive", a="alive") == []


def test_a_restart_is_told() -> None:
    teller = NodeStory("me")
    look(teller, a="alive:1", b="dead:1")
    assert look(teller, a="alive:2", b="alive:2") == [("recovered", "b"), ("restarted", "a"), ("restarted", "b")]
