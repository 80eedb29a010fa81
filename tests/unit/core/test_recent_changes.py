"""Which records changed lately: in the order of their last change, from wherever it is asked, however many there are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dimnode.core.recent_changes import RecentChanges

Step = tuple[str, bool, float]
"""(job, whether it is forgotten instead, seconds since the step before)."""


@given(
    steps=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans(), st.floats(0, 2)), max_size=40),
    most=st.integers(1, 10),
    since=st.integers(0, 45),
    quiet=st.floats(0, 10),
    limit=st.integers(1, 10),
)
def test_what_comes_after_a_change_is_what_a_plain_list_of_all_changes_says(
    steps: list[Step], most: int, since: int, quiet: float, limit: int
) -> None:
    changes, last, now, count = RecentChanges(most), dict[str, tuple[int, float]](), 0.0, 0
    for job, forgotten, pause in steps:
        now += pause
        last.pop(job, None)
        if forgotten:
            changes.forget(job)
            continue
        count += 1
        changes.note(job, now)
        last[job] = (count, now)
        if len(last) > most:
            del last[next(iter(last))]
    wanted = [(job, number) for job, (number, at) in last.items() if number > since and at <= now - quiet]
    found = changes.after(since, now - quiet, limit)
    assert found.jobs == tuple(job for job, _ in wanted[:limit])
    assert found.more == (len(wanted) > limit)
    assert found.until == (wanted[:limit][-1][1] if wanted else since)
