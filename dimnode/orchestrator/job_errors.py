"""How the end of a job that did not complete is told to its client."""

from __future__ import annotations

from typing import Any

import structlog

from dimnode.core.job_view import JobView
from dimnode.domain.record import ErrorInfo
from dimnode.errors import Code, DimError, FailedPrecondition, Unavailable
from dimnode.orchestrator.documents import finite
from dimnode.orchestrator.work import Work
from p2p.ipfs.api import DiskFull
from patterns.api import Fail, PatternError

log = structlog.get_logger(__name__)


def error_of_failure(fail: Fail, work: Work) -> ErrorInfo:
    """What the pattern says, with the reasons of the tasks."""
    details: dict[str, Any] = finite(fail.details)
    if work.failures:
        details["tasks"] = {k: {"code": e.code.value, "message": e.message, "hint": e.hint} for k, e in sorted(work.failures.items())}
    if len(work.failures) == 1 and fail.code in (Code.TASK_FAILED.value,):
        only = next(iter(work.failures.values()))
        return ErrorInfo(code=only.code.value, message=only.message, hint=only.hint or fail.hint, details=details)
    return ErrorInfo(code=fail.code, message=fail.message, hint=fail.hint, details=details)


def error_of_exception(job: str, error: BaseException) -> ErrorInfo:
    """What a client is told: of what nobody foresaw nothing but that it happened, the rest is in the log."""
    match error:
        case PatternError():
            return ErrorInfo(code=error.code, message=error.message, hint=error.hint, details=finite(error.details))
        case DimError():
            return ErrorInfo(code=error.code.value, message=error.message, hint=error.hint)
        case DiskFull():
            return ErrorInfo(code=Code.RESOURCE_EXHAUSTED.value, message="the disk of the orchestrator is full", hint="Free space there.")
        case _:
            log.error("job.internal_error", job=job, exc_info=error)
            return ErrorInfo(
                code=Code.INTERNAL.value,
                message="an internal error of the orchestrator ended this job",
                hint=f"The orchestrator's log has the reason; look for {job}.",
            )


def unacknowledged() -> Unavailable:
    return Unavailable(
        "a majority of the voters has not acknowledged the job",
        hint="Try again, with the same `idempotency_key` if there is one: this orchestrator may be cut off from the others.",
        retry_after=1.0,
    )


def no_result(seen: JobView) -> DimError:
    """A job that ended without a result answers with its own reason."""
    error = seen.error
    if error is None:
        return FailedPrecondition(f"job {seen.job} was {seen.status} and has no result")
    code = Code(error.code) if error.code in Code.__members__ else Code.FAILED_PRECONDITION
    return DimError(f"job {seen.job} {seen.status}: {error.message}", code=code, hint=error.hint)
