"""Pace and bounds of what goes out, and what of others is believed: on numbers, without a clock."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimnode.core.event_flow import Intake, IntakeSettings, Numbers, Outgoing
from dimnode.domain.events import MAX_BYTES, Event, Message

WALL, NOW = 1_000_000.0, 50.0


def event(number: int) -> Event:
    return Event(event="accepted", at=1.0, job=f"job-{number}")


def numbers(events: tuple[Event, ...]) -> list[int]:
    return [int(e.job[4:]) for e in events]


def filled(count: int, **changes: Any) -> Outgoing:
    out = Outgoing(**{"capacity": 1000, "batch": 10, "interval": 0.5, **changes})
    for number in range(count):
        out.put(event(number))
    return out


def test_the_first_goes_at_once_and_the_rest_together_after_the_interval() -> None:
    out = filled(1)
    assert out.due_at() is not None
    assert numbers(out.take(NOW)) == [0]
    assert out.due_at() is None
    for number in (1, 2, 3):
        out.put(event(number))
    assert out.due_at() == NOW + 0.5
    assert out.take(NOW + 0.49) == ()
    assert numbers(out.take(NOW + 0.5)) == [1, 2, 3]


def test_the_oldest_gives_way_and_is_counted() -> None:
    out = filled(25, capacity=20, batch=100)
    assert (len(out), out.dropped) == (20, 5)
    assert numbers(out.take(NOW)) == list(range(5, 25))


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=200), st.integers(1, 20))
def test_however_they_come_messages_keep_their_distance_and_size(pauses: list[float], batch: int) -> None:
    out, now, sent, last, got = Outgoing(1000, batch, 0.5), NOW, 0, float("-inf"), list[int]()
    for number, pause in enumerate(pauses):
        out.put(event(number))
        now += pause
        if taken := out.take(now):
            assert now - last >= 0.5
            assert len(taken) <= batch
            last, sent, got = now, sent + 1, got + numbers(taken)
    assert sent <= 1 + (now - NOW) / 0.5
    assert got == list(range(len(got)))
    assert len(got) + len(out) == len(pauses)


def test_what_could_not_be_sent_is_first_again_as_far_as_there_is_room() -> None:
    out = filled(10, capacity=12, batch=5)
    taken = out.take(NOW)
    for number in (10, 11, 12, 13):
        out.put(event(number))
    out.give_back(taken)
    assert (len(out), out.dropped) == (12, 2)
    assert numbers(out.take(NOW + 1)) == [2, 3, 4, 5, 6]


def test_numbers_grow_over_restarts_and_clocks_that_are_set_back() -> None:
    made = Numbers()
    first = [made.next(wall) for wall in (100.0, 100.0, 99.0, 100.001, 200.0)]
    assert first == sorted(set(first))
    assert Numbers().next(200.1) > first[-1]


# --- what others say


def message(seq: int = 1, *, publisher: str = "p", at: float = WALL, kind: Any = "jobs", channel: str = "c") -> Message:
    return Message(kind=kind, channel=channel, publisher=publisher, seq=seq, at=at, dropped=0, events=(event(0),))


def verdict(intake: Intake, said: Message, *, signer: str = "p", author: str | None = "p", good: bool = True, size: int = 100, now: float = NOW) -> str:  # fmt: skip
    before = dict(intake.refused)
    believed = intake.judge(size, lambda: (signer, said), lambda: good, author=author, wall=WALL, now=now)
    reasons = [reason for reason, count in intake.refused.items() if count > before.get(reason, 0)]
    assert believed == (not reasons)
    return reasons[0] if reasons else "believed"


def intake(**changes: Any) -> Intake:
    return Intake("jobs", "c", IntakeSettings(**changes))


@pytest.mark.parametrize(
    ("said", "how", "reason"),
    [
        (message(), {}, "believed"),
        (message(), {"author": None}, "believed"),
        (message(), {"size": MAX_BYTES + 1}, "oversized"),
        (message(), {"good": False}, "forged"),
        (message(), {"author": "q"}, "forged"),
        (message(publisher="q"), {}, "forged"),
        (message(kind="nodes"), {}, "foreign"),
        (message(channel="d"), {}, "foreign"),
        (message(at=WALL - 121), {}, "old"),
        (message(at=WALL + 121), {}, "old"),
        (message(at=WALL - 119), {}, "believed"),
    ],
)
def test_what_is_believed(said: Message, how: dict[str, Any], reason: str) -> None:
    assert verdict(intake(), said, **how) == reason


def test_what_cannot_be_read_is_malformed() -> None:
    def broken() -> tuple[str, Message]:
        raise ValueError

    judge = intake()
    assert not judge.judge(10, broken, lambda: True, author=None, wall=WALL, now=NOW)
    assert judge.refused == {"malformed": 1}


def test_repeated_messages_are_refused_whatever_the_order() -> None:
    judge = intake()
    assert [verdict(judge, message(n), now=NOW + n) for n in (1, 3, 2, 3, 2, 1)] == ["believed"] * 3 + ["repeated"] * 3
    assert verdict(judge, message(1, publisher="q"), signer="q", author="q") == "believed"


def test_numbers_below_the_window_count_as_repeated() -> None:
    judge = intake(window=4)
    for n in (10, 11, 12, 13, 14):
        assert verdict(judge, message(n), now=NOW + n) == "believed"
    assert [verdict(judge, message(n), now=NOW + 30) for n in (10, 9, 15)] == ["repeated", "repeated", "believed"]


def test_a_forger_does_not_use_up_what_is_anothers() -> None:
    """Neither its numbers nor its rate."""
    judge = intake(rate=1.0, burst=2)
    for _ in range(50):
        assert verdict(judge, message(7), good=False) == "forged"
    assert verdict(judge, message(7)) == "believed"


def test_who_speaks_too_often_is_not_heard_for_a_while() -> None:
    judge = intake(rate=1.0, burst=3)
    assert [verdict(judge, message(n)) for n in range(5)] == ["believed"] * 3 + ["rapid"] * 2
    assert verdict(judge, message(9), now=NOW + 1.1) == "believed"


def test_memory_of_publishers_is_bounded() -> None:
    judge = intake(publishers=3)
    for n in range(10):
        assert verdict(judge, message(publisher=f"p{n}"), signer=f"p{n}", author=None) == "believed"
    assert len(judge._seen) == 3
