"""When records of nodes that are gone are brought to others, and to whom."""

from __future__ import annotations

from dimnode.core.restoring import Restoring, RestoringRule

RULE = RestoringRule(after=30.0, tries=2, most=6, at_once=2)
HEIRS = {"job-1": ["a"], "job-3": ["a", "b"]}
PAGE = ["job-1", "job-2", "job-3"]


def started(*there: str) -> Restoring:
    """After the walk that follows a start, which finds nothing."""
    made = Restoring(RULE, 0.0)
    look(made, 30.0, *there)
    assert made.cursor == ""
    made.turned([], 9, {})
    assert made.cursor is None
    return made


def look(restoring: Restoring, now: float, *alive: str, suspect: tuple[str, ...] = ()) -> None:
    restoring.observe([*alive, "me"], [*alive, *suspect, "me"], now)


def all_due(restoring: Restoring) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    while (peer := restoring.next(())) is not None:
        found.setdefault(peer, []).extend(restoring.take(peer))
    return found


def test_a_walk_follows_a_start_when_who_is_there_has_shown() -> None:
    made = Restoring(RULE, 100.0)
    look(made, 129.0)
    assert made.cursor is None
    look(made, 130.0)
    assert made.cursor == ""


def test_a_walk_follows_a_loss_and_its_records_are_for_the_heirs() -> None:
    restoring = started("a", "b", "gone")
    look(restoring, 100.0, "a", "b")
    assert (restoring.room(), restoring.gone("gone"), restoring.gone("a")) == (True, True, False)
    restoring.turned(PAGE, 9, HEIRS)
    assert all_due(restoring) == {"a": ["job-1", "job-3"], "b": ["job-3"]}
    assert restoring.cursor is None


def test_it_counts_from_when_a_node_was_last_seen_alive_but_who_is_suspected_may_be_there() -> None:
    restoring = started("a", "gone")
    look(restoring, 50.0, "a", "gone")
    look(restoring, 52.0, "a", suspect=("gone",))
    look(restoring, 85.0, "a", suspect=("gone",))
    assert restoring.cursor is None
    look(restoring, 86.0, "a")
    assert restoring.cursor == "", "36 s after it was last seen"


def test_who_is_back_in_time_was_never_gone() -> None:
    restoring = started("a", "gone")
    look(restoring, 59.0, "a")
    look(restoring, 60.0 - 0.5, "a", "gone")
    look(restoring, 61.0, "a")
    look(restoring, 89.0, "a")
    assert restoring.cursor is None
    look(restoring, 89.5, "a")
    assert restoring.cursor == ""


def test_the_walk_goes_on_page_by_page_and_once_more_if_another_one_went_meanwhile() -> None:
    restoring = started("a", "b", "gone", "c")
    look(restoring, 40.0, "a", "b", "c", "gone")
    look(restoring, 70.0, "a", "b", "c")
    restoring.turned(["job-1", "job-3"], 2, {})
    assert restoring.cursor == "job-3"
    look(restoring, 100.0, "a", "b")
    assert restoring.cursor == "job-3"
    restoring.turned(["job-5"], 2, {})
    assert restoring.cursor == "", "from the start"
    restoring.turned(["job-1"], 2, {})
    assert restoring.cursor is None


def test_what_did_not_get_there_is_tried_again_so_many_times() -> None:
    restoring = started("a", "b", "gone")
    look(restoring, 100.0, "a", "b")
    restoring.turned(PAGE, 9, HEIRS)
    for tries in (2, 1):
        due = restoring.take("a")
        assert due == {"job-1": tries, "job-3": tries}
        restoring.failed("a", due)
    assert restoring.take("a") == {}
    assert restoring.next(("b",)) is None
    assert restoring.next(()) == "b"


def test_an_heir_that_is_away_for_a_moment_is_owed_what_it_was() -> None:
    restoring = started("a", "b", "gone")
    look(restoring, 100.0, "a", "b")
    restoring.turned(PAGE, 9, HEIRS)
    look(restoring, 110.0, "b")
    assert (restoring.take("a"), restoring.next(())) == ({}, "b")
    look(restoring, 120.0, "a", "b")
    assert all_due(restoring) == {"a": ["job-1", "job-3"], "b": ["job-3"]}


def test_an_heir_that_is_gone_for_good_is_owed_nothing_and_begins_a_walk() -> None:
    restoring = started("a", "b", "gone")
    look(restoring, 100.0, "a", "b")
    restoring.turned(PAGE, 9, HEIRS)
    look(restoring, 130.0, "b")
    assert restoring.cursor == ""
    look(restoring, 140.0, "a", "b")
    assert all_due(restoring) == {"b": ["job-3"]}


def test_the_walk_waits_while_too_much_is_under_way_and_nobody_gets_too_much_at_once() -> None:
    restoring = started("a", "b", "gone")
    look(restoring, 100.0, "a", "b")
    restoring.turned([f"job-{n}" for n in range(3)], 3, {f"job-{n}": ["a", "b"] for n in range(3)})
    assert not restoring.room(), "three records for two heirs each"
    assert list(restoring.take("a")) == ["job-0", "job-1"]
    assert restoring.room()
    assert list(restoring.take("a")) == ["job-2"]
