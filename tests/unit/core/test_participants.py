"""Who takes part in a job."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dimnode.core.participants import Participants, masters_in, named_in
from dimnode.domain.record import Assign, Attempt, Ballot, Claim, OutcomeEntry

OWNER, LATER = Ballot(1, "owner", "boot"), Ballot(2, "later", "boot")


def claim(ballot: Ballot) -> Claim:
    return Claim(job="j", ballot=ballot)


def assign(ballot: Ballot, node: str) -> Assign:
    return Assign(job="j", ballot=ballot, task="t", attempt=1, node=node, task_key="k", model_cid="m", at=0.0)


def attempt(ballot: Ballot, node: str) -> Attempt:
    return Attempt(job="j", ballot=ballot, task="t", attempt=1, task_key="k", status="completed", node=node)


def test_owners_former_owners_and_their_nodes_take_part():
    assert named_in([claim(OWNER), claim(LATER), assign(OWNER, "a"), assign(LATER, "b")]) == {"owner", "later", "a", "b"}


def test_whoever_signs_an_attempt_unasked_does_not():
    assert named_in([claim(OWNER), attempt(OWNER, "stranger")]) == {"owner"}


def test_an_assignment_that_no_owner_made_does_not_count():
    assert named_in([claim(OWNER), assign(Ballot(9, "stranger", "boot"), "friend")]) == {"owner"}


def test_of_a_job_that_is_over_the_one_who_ended_it_is_left():
    assert named_in([OutcomeEntry(job="j", ballot=OWNER, status="completed", at=1.0)]) == {"owner"}


def test_a_node_that_ran_a_task_knows_whom_it_ran_it_for():
    assert masters_in([attempt(OWNER, "me"), attempt(LATER, "me")]) == {"owner", "later"}


def test_a_no_counts_for_a_while_and_a_yes_ends_it():
    known = Participants(most=10, pause=1.0)
    assert known.worth_asking("p", "j", 0.0)
    known.turned_away("p", "j", 0.0)
    assert not known.worth_asking("p", "j", 0.9)
    assert known.worth_asking("p", "j", 1.0)
    assert known.worth_asking("p", "another", 0.5)
    known.let_in("p", "j")
    assert known.knows("p", "j")
    assert known.worth_asking("p", "j", 0.5)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcdef"), st.sampled_from("uvwxyz"))))
def test_what_is_remembered_is_bounded_and_the_latest_stays(events: list[tuple[bool, str, str]]):
    known = Participants(most=3, pause=1.0)
    for inside, peer, job in events:
        if inside:
            known.let_in(peer, job)
            assert known.knows(peer, job)
        else:
            known.turned_away(peer, job, 0.0)
            assert not known.worth_asking(peer, job, 0.5)
        assert len(known) <= 6
