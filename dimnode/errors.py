"""The error tree: every failure a person can meet has a code, a message and a hint.

The codes are gRPC's canonical status names, so that the mapping to gRPC and HTTP at the edge is
a table and not a judgement. Internal failures that reach no caller are ordinary exceptions.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Code(enum.StrEnum):
    """What kind of failure it is, in gRPC's words plus DIM's own refinements."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    NOT_READY = "NOT_READY"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    UNAVAILABLE = "UNAVAILABLE"
    ABORTED = "ABORTED"
    CANCELLED = "CANCELLED"
    DATA_LOSS = "DATA_LOSS"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"
    FENCED = "FENCED"
    """A decision was refused because a higher ballot owns the job."""
    NO_CONSENSUS = "NO_CONSENSUS"
    """Models agreed less than ``minAgreement``."""
    TASK_FAILED = "TASK_FAILED"
    """A task failed on every node that was tried."""


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One field of a client's input that broke one rule."""

    field: str
    """Path as the client wrote it, for example ``config.nodes[1]``."""
    rule: str
    """What the field must be, in words."""


class DimError(Exception):
    """Base of all errors that may reach a person.

    ``message`` says what happened, ``hint`` what to do. Neither may hold a path, a stack trace or
    data of a client.
    """

    code: Code = Code.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        code: Code | None = None,
        fields: tuple[FieldProblem, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields = fields
        self.retry_after = retry_after
        """Seconds after which a refused request may be tried again."""
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return self.message


class InvalidArgument(DimError):
    code = Code.INVALID_ARGUMENT


class NotFound(DimError):
    code = Code.NOT_FOUND


class AlreadyExists(DimError):
    code = Code.ALREADY_EXISTS


class NotReady(DimError):
    code = Code.NOT_READY


class FailedPrecondition(DimError):
    code = Code.FAILED_PRECONDITION


class PermissionDenied(DimError):
    code = Code.PERMISSION_DENIED


class ResourceExhausted(DimError):
    code = Code.RESOURCE_EXHAUSTED


class DeadlineExceeded(DimError):
    code = Code.DEADLINE_EXCEEDED


class Unavailable(DimError):
    code = Code.UNAVAILABLE


class Cancelled(DimError):
    code = Code.CANCELLED


class DataLoss(DimError):
    code = Code.DATA_LOSS


class TaskFailed(DimError):
    code = Code.TASK_FAILED


class Fenced(DimError):
    code = Code.FENCED


_BY_CODE: dict[Code, type[DimError]] = {kind.code: kind for kind in DimError.__subclasses__()}


def error_of(
    code: Code, message: str, *, hint: str = "", retry_after: float | None = None, fields: tuple[FieldProblem, ...] = ()
) -> DimError:
    """The error that another node reported, of the class that its code has here."""
    return _BY_CODE.get(code, DimError)(message, code=code, hint=hint, retry_after=retry_after, fields=fields)


def again(error: DimError) -> DimError:
    """The same error for one more hearer: an exception object collects one traceback."""
    return type(error)(error.message, hint=error.hint, code=error.code, fields=error.fields, retry_after=error.retry_after)
