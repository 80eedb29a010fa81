"""Whether an order can be taken at all: pure, before anything is stored or queued for it."""

from __future__ import annotations

import math

from dimnode.domain.task import TaskOrder
from dimnode.errors import FieldProblem, InvalidArgument

MAX_NAME = 1024
"""Bytes of a job id, a task key or a hash: they are kept for as long as the task is."""
MAX_ATTEMPT = (1 << 63) - 1


def check_order(order: TaskOrder) -> None:
    """Raises `InvalidArgument` naming the field."""
    check_task(order.job, order.task, order.attempt)
    if len(order.task_key.encode()) > MAX_NAME:
        raise _bad("task_key", f"must not be longer than {MAX_NAME} bytes")
    if order.timeout is not None and not math.isfinite(order.timeout):
        raise _bad("timeout", "must be a number of seconds, or left out")


def check_task(job: str, task: str, attempt: int) -> None:
    """Raises `InvalidArgument` naming the field."""
    for field, value in (("job", job), ("task", task)):
        if not 0 < len(value.encode()) <= MAX_NAME:
            raise _bad(field, f"must have 1 to {MAX_NAME} bytes")
    if not 0 <= attempt <= MAX_ATTEMPT:
        raise _bad("attempt", "must be a number of 0 or more")


def _bad(field: str, rule: str) -> InvalidArgument:
    return InvalidArgument(f"{field} {rule}", fields=(FieldProblem(field, rule),))
