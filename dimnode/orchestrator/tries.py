"""What was tried for one task, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from dimnode.domain.record import Assign
from dimnode.errors import DimError, TaskFailed
from patterns.api import TaskPlan


@dataclass(slots=True)
class Tries:
    """What was tried for one task so far."""

    failed_nodes: list[str] = field(default_factory=list[str])
    """Of each attempt that came to nothing, the node."""
    interrupted: int = 0
    """How many of these attempts the stop or restart of their node ended."""
    shortages: int = 0
    """Attempts, none of these, that came to nothing because their node had no room when it came to that."""
    adopt: list[Assign] = field(default_factory=list[Assign])
    """Assignments of a former owner that may still run, the best last."""
    closed: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    """(node, attempt) that came to nothing without an answer: not sent again."""
    last: DimError | None = None
    refusals: int = 0
    refused: set[str] = field(default_factory=set[str])
    """Assignments, by entry id, that their nodes did not take."""
    unwilling: dict[str, None] = field(default_factory=dict[str, None])
    """Nodes that did not take the task, the latest last: busy ones, those with a full disk, those that do not believe that this one
    holds a seat (one that just won it is not known everywhere yet), those that cannot be reached. Others are better."""
    unreached_since: float | None = None
    """Since when no node that was tried could be reached."""

    def failures(self, interruptions: int, shortages: int) -> int:
        """Attempts that count as failures of the task, if ``interruptions`` of those that their nodes ended do not, nor ``shortages``."""
        return len(self.failed_nodes) - min(self.interrupted, interruptions) + max(0, self.shortages - shortages)


class Refused(Exception):
    """The node did not take the task, or not now."""

    def __init__(self, error: DimError) -> None:
        super().__init__(error.message)
        self.error = error


class Unreached(Refused):
    """The node lives, as far as anybody knows, and the order did not get there: the task has not been tried."""


class Failed(Refused):
    """The attempt came to nothing; another may not."""

    def __init__(self, error: DimError, *, interrupted: bool = False) -> None:
        super().__init__(error)
        self.interrupted = interrupted


class Short(Refused):
    """The node took the task and had no room for it when it came to that: it has not run."""


def given_up(plan: TaskPlan, tries: Tries) -> DimError:
    last = tries.last
    nodes = len(set(tries.failed_nodes))
    if not nodes:
        return TaskFailed(
            f"no node had room for task {plan.key}, {tries.shortages} times; last: {last.message if last else ''}",
            hint="Free memory, disk or a card on a node that could run it, or add a node.",
        )
    return TaskFailed(
        f"task {plan.key} failed {len(tries.failed_nodes)} times on {nodes} node{'s' if nodes != 1 else ''}; last: {last.message if last else ''}",
        hint=(last.hint if last else "") or "`dimnode describe JOB` lists every attempt.",
    )
