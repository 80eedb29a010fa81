"""DIM's errors on the wire: a gRPC status that any client can read, and all of it for ours.

A plain gRPC client sees a canonical status and a readable text; codes that gRPC does not have are named at the
start of the text (``NOT_READY: ...``). The trailing metadata ``dim-error-bin`` holds the whole error as canonical
DAG-CBOR ``{code, message, hint, fields: [{field, rule}], retry_after}``, and ``retry-after`` the seconds to wait.
"""

from __future__ import annotations

from typing import Any

import grpc

from dimnode import errors
from dimnode.domain import codec
from dimnode.errors import Code, DimError, FieldProblem

DETAILS_KEY = "dim-error-bin"
RETRY_KEY = "retry-after"
MAX_TEXT = 1024
"""Characters of a status text. HTTP/2 peers refuse headers above 8 KiB in all."""
MAX_DETAILS = 4096
"""Bytes of `DETAILS_KEY`."""

STATUS: dict[Code, grpc.StatusCode] = {
    Code.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Code.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Code.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Code.NOT_READY: grpc.StatusCode.FAILED_PRECONDITION,
    Code.FAILED_PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Code.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Code.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Code.RESOURCE_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Code.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Code.ABORTED: grpc.StatusCode.ABORTED,
    Code.CANCELLED: grpc.StatusCode.CANCELLED,
    Code.DATA_LOSS: grpc.StatusCode.DATA_LOSS,
    Code.UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    Code.INTERNAL: grpc.StatusCode.INTERNAL,
    Code.FENCED: grpc.StatusCode.ABORTED,
    Code.NO_CONSENSUS: grpc.StatusCode.FAILED_PRECONDITION,
    Code.TASK_FAILED: grpc.StatusCode.FAILED_PRECONDITION,
}
_FROM_STATUS: dict[grpc.StatusCode, Code] = {status: Code(status.name) for status in STATUS.values()}
_CLASSES: dict[Code, type[DimError]] = {
    kind.code: kind
    for kind in (
        errors.InvalidArgument,
        errors.NotFound,
        errors.AlreadyExists,
        errors.NotReady,
        errors.FailedPrecondition,
        errors.PermissionDenied,
        errors.ResourceExhausted,
        errors.DeadlineExceeded,
        errors.Unavailable,
        errors.Cancelled,
        errors.DataLoss,
        errors.TaskFailed,
        errors.Fenced,
    )
}

Metadata = tuple[tuple[str, str | bytes], ...]


def make_error(
    code: Code, message: str, *, hint: str = "", fields: tuple[FieldProblem, ...] = (), retry_after: float | None = None
) -> DimError:
    """The error of this code, of its own class where there is one."""
    kind = _CLASSES.get(code)
    if kind is not None:
        return kind(message, hint=hint, fields=fields, retry_after=retry_after)
    return DimError(message, hint=hint, code=code, fields=fields, retry_after=retry_after)


def to_status(error: DimError) -> tuple[grpc.StatusCode, str, Metadata]:
    """Status code, text and trailing metadata."""
    text = error.message if error.code.value in grpc.StatusCode.__members__ else f"{error.code.value}: {error.message}"
    metadata: list[tuple[str, str | bytes]] = [(DETAILS_KEY, _encode(error))]
    if error.retry_after is not None:
        metadata.append((RETRY_KEY, f"{error.retry_after:g}"))
    return STATUS[error.code], _cut(text), tuple(metadata)


def from_status(code: grpc.StatusCode, text: str, metadata: Any) -> DimError:
    """The error that a call ended with. ``metadata``: the call's trailing metadata, or None. Statuses that
    carry no details (from gRPC itself, from a proxy) get an error of their code."""
    for key, value in metadata or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            error = _decode(value)
            if error is not None:
                return error
    return make_error(_FROM_STATUS.get(code, Code.INTERNAL), text or code.name)


def from_rpc_error(error: Any) -> DimError:
    """The same from a `grpc.RpcError` of either API."""
    return from_status(error.code(), error.details() or "", error.trailing_metadata())


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."


def _encode(error: DimError) -> bytes:
    """At most `MAX_DETAILS` bytes: field problems are left out from the end, the message names the first ones."""
    fields = [{"field": _cut(p.field), "rule": _cut(p.rule)} for p in error.fields]
    document: dict[str, Any] = {
        "code": error.code.value,
        "message": _cut(error.message),
        "hint": _cut(error.hint),
        "retry_after": None if error.retry_after is None else float(error.retry_after),
    }
    while True:
        data = codec.encode({**document, "fields": fields})
        if len(data) <= MAX_DETAILS or not (fields or document["hint"]):
            return data
        if fields:
            fields = fields[: len(fields) // 2]
        else:
            document["hint"] = ""


def _decode(data: bytes) -> DimError | None:
    """None if the bytes are not an error of ours: the other side may be anything."""
    try:
        plain = codec.decode_plain(data)
        return make_error(
            Code(plain["code"]),
            str(plain["message"]),
            hint=str(plain.get("hint", "")),
            fields=tuple(FieldProblem(str(p["field"]), str(p["rule"])) for p in plain.get("fields", ())),
            retry_after=None if plain.get("retry_after") is None else float(plain["retry_after"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
