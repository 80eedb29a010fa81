"""How long records are kept, and when an unfinished one has lost its right to run. docs/decisions/0009.

H = the job's timeout + the retention time. Both rules go by what the record itself says, so that every node comes to the
same result, whenever it got its copy:

- an unfinished record that is older than H, and whose owner is not there, is *orphaned*: whoever drove it is long gone, and if
  it ended elsewhere those who know are about to forget it. It expires, and nobody drives it any more;
- a finished record is forgotten when it is older than H and the tolerance for clocks: later than any unfinished copy of it is
  orphaned, so that no copy that was away comes back to life.
"""

from __future__ import annotations

from dataclasses import dataclass

from dimnode.core.job_view import JobView


@dataclass(frozen=True, slots=True)
class RetentionRule:
    """Times in seconds; ``now`` is wall clock, for this is about days."""

    retention: float = 7 * 86_400.0
    """Finished jobs are kept for so long after their timeout (``jobs.retention``)."""
    clock_skew: float = 3_600.0
    """Clocks of nodes may differ by so much."""
    longest_job: float = 30 * 86_400.0
    """No job's timeout counts for more."""

    def lifetime(self, view: JobView) -> float:
        """H; of a record without a core that of the longest job."""
        timeout = self.longest_job if view.core is None else max(0.0, min(view.core.timeout, self.longest_job))
        return timeout + self.retention

    def orphaned(self, view: JobView, now: float) -> bool:
        """Unfinished, and too old to be driven. Only if its owner is not there: an owner that is there knows the job's true age."""
        return not view.terminal and view.core is not None and now > view.updated + self.lifetime(view)

    def forgettable(self, view: JobView, now: float) -> bool:
        return view.terminal and now > view.updated + self.lifetime(view) + self.clock_skew
