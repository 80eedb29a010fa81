"""Whose turn it is to be offered what nobody takes care of."""

from __future__ import annotations

from dimnode.core.offers import Offering, OfferSettings, Turn
from dimnode.core.rendezvous import rendezvous

SEATS = ["p", "q", "r"]


def offering(**settings: float) -> Offering:
    return Offering(OfferSettings(**{"settle": 0.2, **settings}))  # type: ignore[arg-type]


def test_what_has_an_owner_again_soon_is_not_offered() -> None:
    o = offering()
    o.see(["job"], 0.0)
    assert o.due(SEATS, 0.1) == []
    o.see([], 0.15)
    o.see(["job"], 0.3)
    assert o.due(SEATS, 0.4) == []
    assert [t.keys for t in o.due(SEATS, 0.5)] == [("job",)]


def test_the_seats_have_their_turns_in_the_jobs_own_order_again_and_again() -> None:
    o = offering()
    o.see(["job"], 0.0)
    asked = [turn.peer for second in range(7) for turn in o.due(SEATS, 0.2 + second)]
    assert asked == [*rendezvous("job", SEATS) * 2, rendezvous("job", SEATS)[0]]


def test_every_holder_offers_a_job_to_the_same_seat_first_and_the_jobs_are_spread() -> None:
    jobs = [f"job-{i}" for i in range(100)]
    one, other = offering(), offering()
    one.see(jobs, 0.0)
    other.see(reversed(jobs), 0.0)
    turns = {t.peer: set(t.keys) for t in one.due(SEATS, 1.0)}
    assert turns == {t.peer: set(t.keys) for t in other.due(SEATS[::-1], 1.0)}
    assert all(len(keys) > 15 for keys in turns.values())
    assert sum(len(keys) for keys in turns.values()) == 100


def test_a_seat_that_declines_does_not_keep_the_next_one_waiting_but_all_of_them_together_do() -> None:
    o = offering(pause_most=4.0)
    o.see(["job"], 0.0)
    at, asked = 0.2, list[tuple[float, str]]()
    while at < 9:
        for turn in o.due(SEATS, at):
            asked.append((at, turn.peer))
            o.declined(turn.keys, SEATS, at)
        at = round(at + 0.2, 1)
    rounds = [asked[i : i + 3] for i in range(0, 9, 3)]
    assert all([p for _, p in r] == rendezvous("job", SEATS) for r in rounds)
    assert all(r[2][0] - r[0][0] < 0.5 for r in rounds)
    assert rounds[1][0][0] - rounds[0][2][0] == 1.0
    assert rounds[2][0][0] - rounds[1][2][0] == 2.0


def test_what_goes_to_a_busy_seat_waits_and_its_turn_is_not_over_meanwhile() -> None:
    o = offering()
    first = rendezvous("job", SEATS)[0]
    o.see(["job"], 0.0)
    assert o.due(SEATS, 0.2, busy={first}) == []
    assert o.due(SEATS, 5.0, busy={first}) == []
    assert o.due(SEATS, 5.1) == [Turn(first, ("job",))]


def test_as_much_as_a_seat_takes_at_once_and_a_large_record_alone() -> None:
    o = Offering(OfferSettings(settle=0.0, most=3, most_bytes=100))
    o.see(["a", "b", "c", "d"], 0.0)
    assert [len(t.keys) for t in o.due(["p"], 0.0)] == [3]
    assert [t.keys for t in o.due(["p"], 0.0)] == [("d",)]
    o = Offering(OfferSettings(settle=0.0, most=3, most_bytes=100))
    o.see(["large", "a", "b"], 0.0)
    size = {"large": 500, "a": 60, "b": 60}.__getitem__
    assert [t.keys for t in o.due(["p"], 0.0, size=size)] == [("large",)]
    assert [t.keys for t in o.due(["p"], 0.0, size=size)] == [("a",)]
    assert [t.keys for t in o.due(["p"], 0.0, size=size)] == [("b",)]


def test_without_a_seat_everything_waits_for_one() -> None:
    o = offering()
    o.see(["job"], 0.0)
    assert o.due([], 10.0) == []
    assert o.due(["p"], 10.0) == [Turn("p", ("job",))]


def test_a_seat_that_has_just_come_is_asked_before_the_others_again() -> None:
    o = offering()
    o.see(["job"], 0.0)
    assert o.due(["p"], 0.2) == [Turn("p", ("job",))]
    assert o.due(["p", "q"], 1.2) == [Turn("q", ("job",))]


def test_it_tells_when_to_look_again() -> None:
    o = offering()
    assert o.next_at() is None
    o.see(["job"], 0.0)
    assert o.next_at() == 0.2
    o.due(SEATS, 0.2)
    assert o.next_at() == 1.2
