"""When an orchestrator may begin another job: not while the node is so busy that what it says comes late.

A node that drives too many jobs at once does all of it late: its beats, so that others take it for dead and take its jobs over, its answers,
its copies. All that makes more work. So it measures how late its own loop is, and lets those finish that it has begun.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PaceSettings:
    late: float = 0.1
    """Seconds: a loop that is later than this is busy enough."""
    least: int = 16
    """So many jobs are driven however late it is: the load may be somebody else's."""
    look: float = 0.05
    """Seconds between two looks at the loop."""
    pause_most: float = 1.0
    """Seconds until it is looked at again."""
    patience: float = 5.0
    """Seconds after which one more is begun however late the loop is."""
    decay: float = 0.5
    """Share of what was seen that is left after a look at which there was nothing to see."""


class Pace:
    def __init__(self, settings: PaceSettings | None = None) -> None:
        self.settings = settings or PaceSettings()
        self.late = 0.0
        """Seconds, of late."""

    def looked(self, late: float) -> None:
        """Something that was to happen now happened ``late`` seconds later."""
        self.late = max(late, self.settings.decay * self.late)

    def pause(self, driven: int) -> float:
        """Seconds that have to pass before another job may be begun, beside so many; 0: now."""
        s = self.settings
        if driven < s.least or self.late < s.late:
            return 0.0
        return min(self.late, s.pause_most)
