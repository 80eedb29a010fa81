"""Whom to ask first."""

from __future__ import annotations

from dimnode.core.standing import Standing, StandingSettings

SETTINGS = StandingSettings(rest_min=1.0, rest_hung=10.0, rest_max=30.0, remembered=3)


def test_who_served_last_comes_first_and_strangers_keep_their_order() -> None:
    standing: Standing[str] = Standing(SETTINGS)
    assert standing.order("abcb", 0.0) == ("a", "b", "c")
    standing.served("c", 1.0)
    standing.served("b", 2.0)
    assert standing.order("abc", 3.0) == ("b", "c", "a")


def test_who_failed_comes_last_until_it_has_rested_and_is_never_left_out() -> None:
    standing: Standing[str] = Standing(SETTINGS)
    standing.failed("a", 0.0)
    standing.failed("b", 0.5, hung=True)
    assert standing.order("abc", 0.9) == ("c", "a", "b")
    assert standing.order("abc", 1.1) == ("a", "c", "b")
    assert standing.order("abc", 10.6) == ("a", "b", "c")


def test_rests_grow_with_failures_in_a_row_up_to_a_bound_and_end_with_an_answer() -> None:
    standing: Standing[str] = Standing(SETTINGS)
    for n in range(100):
        standing.failed("a", float(n))
    assert standing.order("ab", 128.9) == ("b", "a")
    assert standing.order("ab", 129.1) == ("a", "b")
    standing.failed("a", 200.0)
    standing.answered("a")
    assert standing.order("ab", 200.0) == ("a", "b")
    standing.failed("a", 200.0)
    assert standing.rests("a", 200.9)
    assert not standing.rests("a", 201.1)


def test_an_answer_alone_does_not_make_the_first_choice() -> None:
    standing: Standing[str] = Standing(SETTINGS)
    standing.served("b", 1.0)
    standing.answered("a")
    assert standing.order("ab", 2.0) == ("b", "a")


def test_only_so_many_are_remembered() -> None:
    standing: Standing[str] = Standing(SETTINGS)
    for n, key in enumerate("abcd"):
        standing.served(key, float(n))
    assert standing.order("abcd", 9.0) == ("d", "c", "b", "a")
    standing.failed("a", 9.0)  # a newcomer: b, heard of longest ago, is forgotten
    assert standing.order("abcd", 9.1) == ("d", "c", "b", "a")
    standing.forget("a")
    assert not standing.rests("a", 9.1)
