"""How long a call goes on."""

from __future__ import annotations

import random

import pytest

from dimnode.core.retrying import Attempts, RetrySettings, Setback

SETTINGS = RetrySettings(retry_for=10.0, backoff_min=0.1, backoff_max=1.0, busy_for=5.0, missing_for=3.0)


def attempts(deadline: float = 1e9, exists: bool = True, settings: RetrySettings = SETTINGS) -> Attempts:
    return Attempts(settings, random.Random(1), deadline=deadline, exists=exists)


def run(a: Attempts, setback: Setback, began: float = 0.0) -> tuple[float, list[float]]:
    """Fails until it gives up: when, and the pauses."""
    now, pauses = began, []
    while (wait := a.after(setback, now, round_over=True)) is not None:
        pauses.append(wait)
        now += wait
    return now, pauses


def test_pauses_double_with_jitter_up_to_a_bound_and_end_in_time() -> None:
    ended, pauses = run(attempts(), Setback.GONE)
    assert 9.0 <= ended <= 10.0
    for n, pause in enumerate(pauses):
        full = min(1.0, 0.1 * 2**n)
        assert full / 2 <= pause <= full
    assert len(set(pauses)) == len(pauses)


def test_the_others_are_asked_at_once() -> None:
    a = attempts()
    a.avoid = {"x"}
    assert a.after(Setback.GONE, 0.0, round_over=False) == 0.0
    assert a.avoid == {"x"}
    assert a.after(Setback.GONE, 0.0, round_over=True)
    assert a.avoid == set()


def test_the_callers_deadline_holds() -> None:
    ended, _ = run(attempts(deadline=2.0), Setback.GONE)
    assert ended <= 2.0
    assert attempts(deadline=2.0).after(Setback.GONE, 2.0, round_over=False) is None


def test_without_patience_every_address_is_asked_once() -> None:
    a = attempts(settings=RetrySettings(retry_for=0.0))
    assert a.after(Setback.GONE, 0.0, round_over=False) == 0.0
    assert a.after(Setback.GONE, 0.0, round_over=True) is None


def test_failures_count_from_the_last_answer() -> None:
    a = attempts()
    ended, _ = run(a, Setback.GONE)
    a.heard()
    again, _ = run(a, Setback.GONE, ended + 100)
    assert again - (ended + 100) >= 9.0


def test_one_who_answers_and_breaks_off_is_not_asked_in_a_tight_loop() -> None:
    a, now, count = attempts(), 0.0, 0
    while now < 60:
        wait = a.after(Setback.GONE, now, round_over=True)
        assert wait is not None, "it answers again and again: never given up"
        a.heard()
        now, count = now + wait, count + 1
    assert count < 150


@pytest.mark.parametrize("exists", [True, False])
def test_what_is_known_to_exist_may_be_missing_for_a_while(exists: bool) -> None:
    ended, pauses = run(attempts(exists=exists), Setback.MISSING)
    assert (2.0 <= ended <= 3.0) if exists else pauses == []


def test_a_busy_one_is_given_the_time_that_it_asks_for() -> None:
    a = attempts()
    wait = a.after(Setback.BUSY, 0.0, round_over=False, retry_after=2.0)
    assert wait is not None
    assert 2.0 <= wait <= 2.5
    assert a.after(Setback.BUSY, 4.0, round_over=False, retry_after=2.0) is None
    assert attempts(settings=RetrySettings()).after(Setback.BUSY, 0.0, round_over=False, retry_after=0.1) is None
