"""The candidate's side, step by step: when it stands, what makes it win, what it loses its seat by."""

from __future__ import annotations

import random

from dimnode.core.election_majority import MajorityElection
from dimnode.core.election_majority_types import ExchangeLists, MajorityAction, SendPoll, Settled
from dimnode.core.election_types import ElectionSettings, Lost, Won
from dimnode.core.electorate import first, tag, with_voter
from dimnode.domain.node import Seat
from dimnode.domain.voting import Electorate, Lease, Poll, Vote

S = ElectionSettings(mode="majority", orchestrators=1)
LISTED = first("s", ["a", "v", "w"], "op")
LEASE = S.lease * (1 - S.drift)


def candidate(eligible: bool = True, listed: Electorate = LISTED, settled: bool = True) -> MajorityElection:
    made = MajorityElection(S, "a", "1", n=0, now=0.0, rng=random.Random(1), eligible=eligible)
    made.electorate(listed, settled=settled)
    return made


def polled(actions: list[MajorityAction]) -> Poll:
    (poll,) = [a.poll for a in actions if isinstance(a, SendPoll)]
    return poll


def answer(poll: Poll, voter: str, granted: bool = False, leases: tuple[Lease, ...] = (), n: int = 0, **more: object) -> Vote:
    return Vote(voter=voter, seq=poll.seq, granted=granted, n=max(n, poll.n), version=poll.version, tag=poll.tag, leases=leases, **more)  # pyright: ignore


def lease(peer: str, left: float = 3.0, n: int = 1) -> Lease:
    return Lease(seat=Seat(seat=0, n=n, peer=peer, boot="1"), left=left, held=True)


def asking(c: MajorityElection, at: float = 1.0) -> Poll:
    """It has looked, found the seat vacant, and stands for it."""
    look = polled(c.tick(at))
    assert look.ask is None
    for voter in ("v", "w"):
        c.on_vote(answer(look, voter), at)
    poll = polled(c.tick(at + 0.01))
    assert poll.ask is not None
    return poll


def won(c: MajorityElection, at: float = 1.0) -> None:
    poll = asking(c, at)
    c.on_vote(answer(poll, "v", granted=True), at + 0.02)
    assert [type(a) for a in c.on_vote(answer(poll, "w", granted=True), at + 0.03)] == [Won]


def test_it_stands_when_a_majority_of_the_voters_says_that_a_seat_is_vacant() -> None:
    c = candidate()
    look = polled(c.tick(1))
    c.on_vote(answer(look, "v"), 1)
    assert not any(isinstance(a, SendPoll) for a in c.tick(1.1)), "one of three says so"
    c.on_vote(answer(look, "w", leases=(lease("b"),)), 1.1)
    assert not any(isinstance(a, SendPoll) and a.poll.ask for a in c.tick(1.2))
    c.on_vote(answer(look, "a"), 1.2)
    assert polled(c.tick(1.3)).ask == Seat(seat=0, n=1, peer="a", boot="1")


def test_a_lease_runs_from_when_its_poll_was_sent() -> None:
    c = candidate()
    poll = asking(c, 1.0)
    c.on_vote(answer(poll, "v", granted=True), 2.0)
    assert c.mine(2.0) is None
    assert [type(a) for a in c.on_vote(answer(poll, "a", granted=True), 2.5)] == [Won]
    assert c.mine(1.01 + LEASE - 0.001) is not None
    assert c.mine(1.01 + LEASE) is None, "by the clock, before anything ticks"
    lost = [a for a in c.tick(1.01 + LEASE) if isinstance(a, Lost)]
    assert [a.reason for a in lost] == ["expired"]


def test_grants_that_come_when_the_lease_would_be_over_win_nothing() -> None:
    c = candidate()
    poll = asking(c, 1.0)
    c.on_vote(answer(poll, "v", granted=True), 1.1)
    assert c.on_vote(answer(poll, "w", granted=True), 1.01 + LEASE) == []
    assert c.mine(1.01 + LEASE) is None


def test_a_renewal_by_a_majority_extends_it_and_one_voter_does_not() -> None:
    c = candidate()
    won(c, 1.0)
    renewal = polled(c.tick(1.8))
    assert renewal.held
    c.on_vote(answer(renewal, "v", granted=True), 1.9)
    assert c.expires == 1.01 + LEASE
    c.on_vote(answer(renewal, "w", granted=True), 1.9)
    assert c.expires == 1.8 + LEASE


def test_where_a_rival_that_lost_was_promised_more_the_holder_renews_under_a_higher_ballot_and_keeps_its_term() -> None:
    c = candidate()
    won(c, 1.0)
    renewal = polled(c.tick(1.8))
    assert renewal.ballot == 1
    c.on_vote(answer(renewal, "v", n=6), 1.9)
    again = polled(c.tick(2.6))
    assert again.ask is not None
    assert (again.ask.n, again.ballot) == (1, 7)
    c.on_vote(answer(again, "v", leases=(lease("b", n=6),)), 2.7)
    assert polled(c.tick(3.4)).ballot == 7, "where a rival has a lease it only waits"


def test_who_has_no_majority_gives_its_grants_back_and_waits() -> None:
    c = candidate()
    poll = asking(c, 1.0)
    c.on_vote(answer(poll, "v", granted=True), 1.1)
    c.on_vote(answer(poll, "w"), 1.1)
    c.on_vote(answer(poll, "a"), 1.1)
    back = polled(c.tick(1.12))
    assert back.ask is None
    assert back.n >= 1, "so that the voter knows it for a later poll than the one that asked"
    assert c.on_vote(answer(poll, "w", granted=True), 1.13) == [], "a late grant counts for nothing"
    assert c.mine(1.13) is None


def test_a_request_that_nobody_answers_is_given_back_too() -> None:
    c = candidate()
    asking(c, 1.0)
    assert polled(c.tick(1.0 + S.ask + 0.02)).ask is None


def test_a_gap_in_its_ticks_drops_the_seat() -> None:
    c = candidate()
    won(c, 1.0)
    c.tick(1.2)
    actions = c.tick(1.2 + S.pause + 0.01)
    assert [a.reason for a in actions if isinstance(a, Lost)] == ["pause"]
    assert polled(actions).ask is None, "and the voters are told at once"


def test_a_release_is_told_at_once_and_it_stands_no_more() -> None:
    c = candidate()
    won(c, 1.0)
    actions = c.release(1.5)
    assert [a.reason for a in actions if isinstance(a, Lost)] == ["released"]
    poll = polled(actions)
    assert poll.ask is None
    assert not poll.standing


def test_ranks_that_have_no_vacancy_of_their_own_wait() -> None:
    c = candidate()
    look = polled(c.tick(1.0))
    ahead = tuple(f"p{i}" for i in range(40))
    for voter in ("v", "w"):
        c.on_vote(answer(look, voter, standing=ahead), 1.0)
    assert not any(isinstance(a, SendPoll) and a.poll.ask for a in c.tick(1.1))


def test_who_is_not_eligible_looks_and_never_stands() -> None:
    c = candidate(eligible=False)
    look = polled(c.tick(1.0))
    assert not look.standing
    for voter in ("v", "w"):
        c.on_vote(answer(look, voter, leases=(lease("b", n=4),), n=4), 1.0)
    assert [s.peer for s in c.seats(1.1)] == ["b"]
    assert c.n == 4
    later = polled(c.tick(1.8))
    for voter in ("v", "w"):
        c.on_vote(answer(later, voter), 1.8)
    assert c.seats(1.9) == ()
    assert not any(isinstance(a, SendPoll) and a.poll.ask for a in c.tick(2.0))


def test_the_seats_that_it_sees_end_with_their_leases() -> None:
    c = candidate(eligible=False)
    c.on_vote(answer(polled(c.tick(1.0)), "v", leases=(lease("b", left=1.0),)), 1.0)
    assert [s.peer for s in c.seats(1.9)] == ["b"]
    assert c.seats(2.0) == ()


def test_another_list_at_a_voter_is_exchanged_and_its_grant_does_not_count() -> None:
    c = candidate()
    poll = asking(c, 1.0)
    grown = with_voter(LISTED, "x")
    old = answer(poll, "v", granted=True)
    c.electorate(grown, settled=False)
    assert c.on_vote(old, 1.1) == [ExchangeLists("v")]
    c.on_vote(answer(poll, "w", granted=True), 1.1)
    assert c.mine(1.1) is None, "grants under two lists are not counted together"


def test_a_list_acts_once_a_majority_of_the_one_before_has_it() -> None:
    grown = with_voter(LISTED, "x")
    c = candidate(listed=grown, settled=False)
    look = polled(c.tick(1.0))
    assert (look.version, look.tag) == (2, tag(grown))
    assert c.on_vote(answer(look, "x"), 1.0) == []
    assert c.on_vote(answer(look, "v"), 1.0) == []
    assert c.on_vote(answer(look, "w"), 1.0) == [Settled(2)]


def test_a_vote_with_a_leaping_term_is_refused() -> None:
    c = candidate()
    look = polled(c.tick(1.0))
    c.on_vote(answer(look, "v", n=1 << 30), 1.0)
    assert c.n == 0
    assert c.refused == 1
