"""What a voter grants, and what it never grants twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec.structs import replace as changed

from dimnode.core.election_types import ElectionSettings
from dimnode.core.election_voter import Voter
from dimnode.core.electorate import first, tag, with_voter
from dimnode.domain.node import Seat
from dimnode.domain.voting import Poll, Promises

S = ElectionSettings(mode="majority")
LISTED = first("s", ["v", "w", "x"], "op")
LONG = S.lease * (1 + S.drift)


def voter(now: float = 0.0, promises: Promises | None = None, settings: ElectionSettings = S) -> Voter:
    made = Voter(settings, "v", promises, now)
    made.electorate(LISTED, settled=True)
    return made


def poll(peer: str, seq: int, n: int, seat: int | None = None, *, boot: str = "1", term: int | None = None, held: bool = False) -> Poll:
    ask = None if seat is None else Seat(seat=seat, n=n if term is None else term, peer=peer, boot=boot)
    ballot = ask.n if ask else 0
    return Poll(
        peer=peer, boot=boot, seq=seq, n=n, version=LISTED.version, tag=tag(LISTED), ask=ask, ballot=ballot, held=held, standing=ask is None
    )


def grants(v: Voter, p: Poll, now: float) -> bool:
    return v.on_poll(p, now).vote.granted


def test_a_leased_seat_is_nobody_elses_until_the_lease_is_over() -> None:
    v = voter()
    assert grants(v, poll("a", 1, 1, 0), 0)
    assert not grants(v, poll("b", 1, 2, 0), 2.9)
    assert grants(v, poll("b", 2, 2, 1), 2.9), "another seat is free"
    assert grants(v, poll("c", 1, 3, 0), 3.0)


def test_a_holder_renews_under_its_term() -> None:
    v = voter()
    for seq, now in enumerate((0.0, 0.75, 1.5, 2.25), 1):
        assert grants(v, poll("a", seq, 1, 0, held=True), now)
    assert not grants(v, poll("b", 1, 2, 0), 5.2)


def test_a_term_of_a_seat_is_promised_to_one_candidate_for_ever() -> None:
    v = voter()
    assert grants(v, poll("a", 1, 7, 0), 0)
    assert not grants(v, poll("b", 1, 7, 0), 100), "the same term"
    assert not grants(v, poll("b", 2, 8, 0, term=6), 100), "a lower one"
    assert not grants(v, poll("a", 9, 7, 0, boot="2"), 100), "the same peer, started again"
    assert grants(v, poll("a", 2, 7, 0), 100), "the candidate itself"
    restarted = voter(200, v.promises())
    assert not grants(restarted, poll("b", 3, 7, 0), 300)
    assert grants(restarted, poll("b", 4, 8, 0), 300)


def test_a_holder_renews_under_a_higher_ballot_where_a_rival_was_promised_one() -> None:
    v = voter()
    assert grants(v, poll("rival", 1, 6, 0), 0)
    v.on_poll(poll("rival", 2, 6), 0.5)
    assert not grants(v, poll("a", 1, 6, 0, term=5, held=True), 1), "its own is below what was promised"
    assert grants(v, changed(poll("a", 2, 7, 0, term=5, held=True), ballot=7), 1)
    assert [(x.seat.peer, x.seat.n) for x in v.on_poll(poll("b", 1, 7), 1).vote.leases] == [("a", 5)], "its term stays"


def test_a_grant_waits_for_the_disk_once_per_promise() -> None:
    v = voter()
    reply = v.on_poll(poll("a", 1, 1, 0), 0)
    assert reply.revision == 1
    assert [(s.seat, s.n, s.peer) for s in v.promises().seats] == [(0, 1, "a")]
    assert v.on_poll(poll("a", 2, 1, 0, held=True), 1).revision == 1, "a renewal promises nothing new, and waits for the first"
    assert v.on_poll(poll("b", 1, 2, 0), 1).revision == 0, "a refusal waits for nothing"


def test_after_a_start_whoever_was_promised_a_seat_last_has_its_lease_anew() -> None:
    v = voter()
    assert grants(v, poll("a", 1, 1, 0), 0)
    again = voter(10, v.promises())
    assert not grants(again, poll("b", 1, 2, 0), 10 + LONG - 0.01)
    assert grants(again, poll("a", 2, 1, 0, held=True), 10.1), "which unseats nobody"
    assert grants(voter(10, v.promises()), poll("b", 1, 2, 0), 10 + LONG)
    assert grants(voter(10), poll("b", 1, 2, 0), 10), "who never promised anything keeps nobody waiting"


def test_what_is_given_back_is_free_at_once() -> None:
    v = voter()
    assert grants(v, poll("a", 1, 1, 0), 0)
    v.on_poll(poll("a", 2, 1), 1)
    assert grants(v, poll("b", 1, 2, 0), 1)


def test_a_late_poll_from_before_the_grant_gives_nothing_back() -> None:
    v = voter()
    assert grants(v, poll("a", 2, 1, 0), 0)
    assert not v.on_poll(poll("a", 1, 0), 1).vote.granted
    assert not grants(v, poll("b", 1, 2, 0), 1)
    restarted = voter(1, v.promises())  # it does not remember which polls it had
    restarted.on_poll(poll("a", 1, 0), 1.1)
    assert not grants(restarted, poll("b", 1, 2, 0), 1.2)


def test_an_overtaken_request_is_not_granted_any_more() -> None:
    v = voter()
    v.on_poll(poll("a", 2, 1), 0)
    assert not grants(v, poll("a", 1, 1, 0), 0.1)
    assert grants(v, poll("b", 1, 2, 0), 0.2)


def test_one_node_gets_one_seat() -> None:
    v = voter()
    assert grants(v, poll("a", 1, 1, 0), 0)
    assert grants(v, poll("a", 2, 2, 1), 1)
    assert grants(v, poll("b", 1, 3, 0), 1), "whoever asks for another seat has given the first back"
    assert not grants(v, poll("a", 1, 4, 2, boot="2"), 1.5), "its earlier life still has a lease"


@pytest.mark.parametrize(
    "changes",
    [{"version": 2}, {"tag": "another"}, {"ask": Seat(seat=3, n=1, peer="a", boot="1")}, {"ask": Seat(seat=0, n=1, peer="b", boot="1")},
     {"ask": Seat(seat=0, n=2, peer="a", boot="1")}, {"n": 1 << 40}],
)  # fmt: skip
def test_what_makes_no_sense_or_is_asked_under_another_list_is_not_granted(changes: dict[str, object]) -> None:
    assert not grants(voter(), changed(poll("a", 1, 1, 0), **changes), 0)


def test_who_is_not_on_the_list_grants_nothing_and_who_may_not_hold_a_seat_gets_none() -> None:
    stranger = Voter(S, "z", None, 0)
    assert not grants(stranger, poll("a", 1, 1, 0), 0), "no list at all"
    stranger.electorate(LISTED, settled=True)
    assert not grants(stranger, poll("a", 2, 1, 0), 0)
    assert not grants(voter(settings=replace(S, allow=frozenset({"b"}))), poll("a", 1, 1, 0), 0)


def test_a_new_list_keeps_what_was_granted_under_the_old_one() -> None:
    v = voter()
    assert grants(v, poll("a", 1, 1, 0), 0)
    grown = with_voter(LISTED, "y")
    v.electorate(grown, settled=False)
    assert not grants(v, changed(poll("b", 1, 2, 0), version=2, tag=tag(grown)), 1)
    assert grants(v, changed(poll("a", 2, 1, 0), version=2, tag=tag(grown)), 1)


def test_it_tells_leases_and_who_would_take_a_seat() -> None:
    v = voter()
    v.on_poll(poll("c", 1, 0), 0)
    v.on_poll(poll("b", 1, 0), 2.5)
    vote = v.on_poll(poll("a", 1, 1, 0, held=True), 3).vote
    assert [(x.seat.peer, x.left, x.held) for x in vote.leases] == [("a", 3.0, True)]
    assert vote.standing == ("b",), "c was not heard for longer than a silence"
