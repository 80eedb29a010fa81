"""Where a set of tasks stands: the part of a decision that all patterns share."""

from __future__ import annotations

from collections.abc import Sequence

from patterns.api import Decision, Fail, Finish, Progress, Run, Seal, TaskPlan, TaskState, Wait


def with_status(tasks: Sequence[TaskPlan], progress: Progress, status: str) -> list[TaskPlan]:
    return [t for t in tasks if t.key in progress.tasks and progress.tasks[t.key].status == status]


def drive(tasks: Sequence[TaskPlan], progress: Progress) -> Decision:
    """`Run` what is not running yet, else `Wait`."""
    idle = [t for t in tasks if t.key not in progress.tasks or progress.tasks[t.key].status == "pending"]
    return Run(tuple(idle)) if idle else Wait()


def failure(failed: Sequence[TaskPlan], progress: Progress, why: str = "") -> Fail:
    """The job's failure for tasks that failed for good; the first of the plan speaks for all."""
    states = [progress.tasks[t.key] for t in failed]
    return Fail(
        code="TASK_FAILED",
        message=why + "; ".join(_said(t, s) for t, s in list(zip(failed, states, strict=True))[:3]),
        hint="`dimnode describe` shows every attempt.",
        details={"failed": [{"task": s.key, "node": s.node, "error": s.error} for s in states]},
    )


def _said(task: TaskPlan, state: TaskState) -> str:
    where = f" on node {state.node}" if state.node else ""
    return f"task {task.key} (model {task.model}) failed{where}" + (f": {state.error}" if state.error else "")


def all_or_nothing(round_: int, tasks: Sequence[TaskPlan], progress: Progress, ready: Sequence[TaskPlan]) -> Decision:
    """Every task must complete: fail with the first that failed, else run ``ready``, seal, finish."""
    if round_ in progress.seals:
        return Finish(round_, progress.seals[round_])
    failed = with_status(tasks, progress, "failed")
    if failed:
        return failure(failed, progress)
    if len(with_status(tasks, progress, "completed")) == len(tasks):
        return Seal(round_, tuple(t.key for t in tasks))
    return drive(ready, progress)
