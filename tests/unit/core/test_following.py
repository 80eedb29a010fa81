"""What is news to somebody who watches a job."""

from __future__ import annotations

from typing import Any

import pytest

from dimnode.core.following import TERMINAL, Follower


def doc(status: str, epoch: int = 1, updated: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"status": status, "epoch": epoch, "updated": updated, **more}


def shown(*documents: dict[str, Any]) -> list[dict[str, Any]]:
    follower = Follower()
    return [d for d in documents if follower.news(d)]


def test_nothing_is_shown_twice_and_nothing_older() -> None:
    running = doc("running", updated=5.0)
    assert shown(running, dict(running), doc("queued"), doc("running", updated=4.0), doc("aggregating")) == [running, doc("aggregating")]


def test_a_change_at_the_same_time_is_news() -> None:
    assert len(shown(doc("running", tasks=[]), doc("running", tasks=[1]))) == 2


def test_a_new_owner_may_go_back_and_the_former_one_is_not_heard_any_more() -> None:
    back = doc("scheduling", epoch=2)
    assert shown(doc("aggregating"), back, doc("aggregating", updated=9.0)) == [doc("aggregating"), back]


@pytest.mark.parametrize("end", sorted(TERMINAL))
def test_an_end_is_always_shown_once(end: str) -> None:
    follower = Follower()
    assert follower.news(doc("running", epoch=7, updated=9.0))
    assert follower.news(doc(end, epoch=1))
    assert follower.ended
    assert not follower.news(doc(end, epoch=8))


def test_a_status_of_a_later_version_is_shown() -> None:
    assert len(shown(doc("running"), doc("polishing", updated=1.0), doc("running", updated=2.0))) == 2


def test_documents_that_lack_fields_are_taken() -> None:
    assert len(shown({}, {"status": "running"})) == 1
    assert len(shown({"status": None, "epoch": None, "updated": None}, {"status": "completed"})) == 2
