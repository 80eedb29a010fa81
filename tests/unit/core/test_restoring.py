"""When records of nodes that are gone are brought to others, and to whom."""

from __future__ import annotations

from dimnode.core.restoring import Restoring, RestoringRule

RULE = RestoringRule(after=30.0, tries=2, most=6)
OWNERS = {"job-1": "gone", "job-2": "here", "job-3": "gone", "job-4": "", "job-5": "me"}


def heirs(job: str) -> list[str]:
    return ["a", "me"] if job == "job-1" else ["a", "b"]


def started(*there: str) -> Restoring:
    """After the walk that follows a start, which finds nothing."""
    made = Restoring(RULE, 0.0)
    made.observe({*there, "me"}, 30.0)
    assert made.cursor == ""
    made.turned({}, 9, heirs, "me")
    assert made.cursor is None
    return made


def all_due(restoring: Restoring) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    while (due := restoring.next()) is not None:
        found[due[0]] = list(due[1])
    return found


def test_a_walk_follows_a_start_when_who_is_there_has_shown() -> None:
    made = Restoring(RULE, 100.0)
    made.observe({"me"}, 129.0)
    assert made.cursor is None
    made.observe({"me"}, 130.0)
    assert made.cursor == ""


def test_records_of_the_gone_are_for_their_heirs_and_those_of_others_are_not() -> None:
    restoring = started("a", "b", "here", "gone")
    restoring.observe({"a", "b", "here", "me"}, 100.0)
    assert not restoring.room()
    restoring.observe({"a", "b", "here", "me"}, 130.0)
    assert restoring.room()
    restoring.turned(OWNERS, 9, heirs, "me")
    assert all_due(restoring) == {"a": ["job-1", "job-3"], "b": ["job-3"]}
    assert restoring.cursor is None


def test_who_is_back_in_time_was_never_gone() -> None:
    restoring = started("a", "gone")
    restoring.observe({"a", "me"}, 100.0)
    restoring.observe({"a", "gone", "me"}, 129.0)
    restoring.observe({"a", "me"}, 131.0)
    restoring.observe({"a", "me"}, 160.0)
    assert restoring.cursor is None
    restoring.observe({"a", "me"}, 161.0)
    assert restoring.cursor == ""


def test_the_walk_goes_on_page_by_page_and_once_more_if_another_one_went_meanwhile() -> None:
    restoring = started("a", "b", "gone", "c")
    restoring.observe({"a", "b", "c", "me"}, 100.0)
    restoring.observe({"a", "b", "c", "me"}, 130.0)
    restoring.turned({"job-1": "a", "job-3": "a"}, 2, heirs, "me")
    assert restoring.cursor == "job-3"
    restoring.observe({"a", "b", "me"}, 131.0)
    restoring.observe({"a", "b", "me"}, 161.0)
    assert restoring.cursor == "job-3"
    restoring.turned({"job-5": "a"}, 2, heirs, "me")
    assert restoring.cursor == "", "from the start"
    restoring.turned({"job-1": "a"}, 2, heirs, "me")
    assert restoring.cursor is None


def test_what_did_not_get_there_is_tried_again_so_many_times_and_not_with_who_is_gone() -> None:
    restoring = started("a", "b", "here", "gone")
    restoring.observe({"a", "b", "here", "me"}, 100.0)
    restoring.observe({"a", "b", "here", "me"}, 130.0)
    restoring.turned(OWNERS, 9, heirs, "me")
    for tries in (2, 1):
        due = restoring.next()
        assert due == ("a", {"job-1": tries, "job-3": tries})
        restoring.failed(*due)
        other = restoring.next()
        assert other == ("b", {"job-3": tries})
        restoring.failed(*other)
    assert restoring.next() is None
    restoring = started("a", "b", "here", "gone")
    restoring.observe({"a", "b", "here", "me"}, 100.0)
    restoring.observe({"a", "b", "here", "me"}, 130.0)
    restoring.turned(OWNERS, 9, heirs, "me")
    restoring.observe({"b", "here", "me"}, 131.0)
    assert all_due(restoring) == {"b": ["job-3"]}


def test_the_walk_waits_while_too_much_is_under_way() -> None:
    restoring = started("a", "b", "here", "gone")
    restoring.observe({"a", "b", "here", "me"}, 100.0)
    restoring.observe({"a", "b", "here", "me"}, 130.0)
    restoring.turned({f"job-{n}": "gone" for n in range(2, 5)}, 3, heirs, "me")
    assert not restoring.room(), "three records for two heirs each"
    restoring.next()
    assert restoring.room()
