"""What is too old to run, and what may be forgotten."""

from __future__ import annotations

import random

import msgspec

from dimnode.core.job_record import Record
from dimnode.core.job_view import view
from dimnode.core.retention import RetentionRule
from dimnode.domain.record import Core, SignedEntry
from tests.support import entries as e

DAY = 86_400.0
RULE = RetentionRule()
H = 60 + 7 * DAY  # the jobs of `tests.support.entries` have a timeout of a minute


def _at(*entries: SignedEntry, now: float) -> tuple[bool, bool]:
    seen = view(Record(e.JOB, entries))
    return RULE.orphaned(seen, now), RULE.forgettable(seen, now)


def test_an_unfinished_record_is_orphaned_by_its_own_times() -> None:
    assert _at(e.core(submitted=100), now=100 + H) == (False, False)
    assert _at(e.core(submitted=100), now=101 + H) == (True, False)
    assert _at(e.core(submitted=100), e.claim(2, at=5000), now=101 + H) == (False, False)
    assert _at(e.core(submitted=100), e.claim(2, at=5000), now=5001 + H) == (True, False)


def test_a_finished_record_is_forgotten_later_than_its_unfinished_copies_are_orphaned() -> None:
    ended = (e.core(submitted=100), e.claim(1, at=100), e.outcome(1, "completed", at=160))
    assert _at(*ended, now=161 + H) == (False, False)
    assert _at(*ended, now=161 + H + RULE.clock_skew) == (False, True)
    assert _at(*ended[:2], now=161 + H) == (True, False)


def test_whatever_copy_is_away_it_is_orphaned_before_the_others_forget_the_end() -> None:
    """For any two clocks that differ by the tolerance at most: no moment at which the end is forgotten and a copy may run."""
    rng = random.Random(1)
    for _ in range(500):
        times = sorted(rng.uniform(0, 3 * DAY) for _ in range(3))
        whole = [e.core(submitted=times[0]), e.claim(1, at=times[1]), e.outcome(1, "failed", at=times[2])]
        stale = view(Record(e.JOB, whole[: rng.randint(1, 2)]))
        now = rng.uniform(6 * DAY, 12 * DAY)
        if RULE.forgettable(view(Record(e.JOB, whole)), now):
            assert RULE.orphaned(stale, now - rng.uniform(0, RULE.clock_skew))


def test_absurd_timeouts_are_bounded() -> None:
    core = e.core(submitted=0).body()
    assert isinstance(core, Core)
    for timeout, lifetime in ((1e18, 37 * DAY), (-5.0, 7 * DAY)):
        seen = view(Record(e.JOB, [e.signed(msgspec.structs.replace(core, timeout=timeout))]))
        assert RULE.lifetime(seen) == lifetime


def test_a_deletion_is_kept_as_long_as_the_longest_job() -> None:
    gone = (e.core(), e.outcome(1, "deleted", at=10))
    assert not _at(*gone, now=36 * DAY)[1]
    assert _at(*gone, now=38 * DAY)[1]
