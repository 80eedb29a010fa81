"""Jobs and results in their outside form (``Job`` and ``Result`` of common.proto, snake case)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from dimnode.core.job_record import Record
from dimnode.core.job_view import view
from dimnode.domain import codec
from dimnode.domain.ids import task_id
from dimnode.domain.record import Assign, Attempt, ErrorInfo, Void
from dimnode.domain.tensors import TensorValue
from p2p.ipfs.cid import DAG_CBOR, compute

NameOf = Callable[[str], str]
"""Peer id -> the node's configured name, or the peer id if it is unknown."""


def digest(document: Mapping[str, Any]) -> str:
    """Tells documents apart without sending them."""
    return codec.digest(codec.encode(document))


def error_document(error: ErrorInfo | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {"code": error.code, "message": error.message, "hint": error.hint, "details": error.details}


def job_document(record: Record, name_of: NameOf) -> dict[str, Any]:
    seen = view(record)
    core = seen.core
    return {
        "job_id": seen.job,
        "pattern": core.pattern if core else "",
        "status": seen.status,
        "owner": name_of(seen.owner.peer) if seen.owner else "",
        "epoch": seen.epoch,
        "submitted": core.submitted if core else 0.0,
        "updated": seen.updated,
        "times": dict(seen.times),
        "error": error_document(seen.error),
        "tasks": task_documents(record, name_of),
        "priority": core.priority if core else "normal",
        "labels": dict(core.labels) if core else {},
        "spec_cid": core.spec_cid if core else "",
    }


def task_documents(record: Record, name_of: NameOf) -> list[dict[str, Any]]:
    """Every attempt, finished ones with their receipt, in the order in which they were assigned. Of a
    completed job the record is compacted, and the tasks are those of its result."""
    outcome = view(record).outcome
    if outcome is not None and outcome.result is not None:
        return _tasks_in(outcome.result)
    given: dict[tuple[str, int, str], list[tuple[Assign, str]]] = {}
    for key, body in record.items():
        if isinstance(body, Assign):
            given.setdefault((body.task, body.attempt, body.node), []).append((body, key))
    attempts = {(b.task, b.attempt, b.node): (key, b) for key, b in record.items() if isinstance(b, Attempt)}
    voids = {b.attempt_id: b.reason for _, b in record.items() if isinstance(b, Void)}
    # One attempt may have been assigned several times: by a new owner who goes on with it, or after a refusal.
    latest = {place: max(found, key=lambda f: (f[0].ballot, f[0].at, f[1])) for place, found in given.items()}
    began = {place: min(a.at for a, _ in found) for place, found in given.items()}
    order = sorted(given, key=lambda place: (began[place], *place))
    return [_task_document(record, latest[p][0], began[p], attempts.get(p), voids.get(latest[p][1]), name_of) for p in order]


def _tasks_in(result: bytes) -> list[dict[str, Any]]:
    """Of a result document; none of one that another version made without them."""
    try:
        plain = codec.decode_plain(result)
    except codec.CodecError:
        return []
    tasks = plain.get("tasks") if isinstance(plain, dict) else None
    return [t for t in tasks if isinstance(t, dict)] if isinstance(tasks, list) else []


def _task_document(
    record: Record, assign: Assign, began: float, found: tuple[str, Attempt] | None, refusal: str | None, name_of: NameOf
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "task_id": task_id(record.job, assign.task, assign.attempt),
        "node": name_of(assign.node),
        "model_cid": assign.model_cid,
        "status": "refused" if refusal is not None else _task_status(record, assign),
        "attempt": assign.attempt,
        "started": began,
        "ended": 0.0,
        "receipt": b"",
        "receipt_cid": "",
        "error": None,
    }
    if found is None:
        if refusal is not None:
            code, _, message = refusal.partition(": ")
            document["error"] = {"code": code, "message": message, "hint": "", "details": {}}
        return document
    key, attempt = found
    entry = record.get(key)
    receipt = codec.encode(entry) if entry else b""
    document.update(
        status=attempt.status,
        receipt=receipt,
        receipt_cid=compute(DAG_CBOR, receipt).text if attempt.receipt is not None else "",
        error=error_document(attempt.error),
    )
    if attempt.receipt is not None:
        document.update(started=attempt.receipt.started, ended=attempt.receipt.ended)
    return document


def _task_status(record: Record, assign: Assign) -> str:
    """Of an assignment that nobody has answered."""
    seen = view(record)
    latest = seen.assignments.get(assign.task)
    if latest is not None and latest.assign.attempt > assign.attempt:
        return "lost"
    return "cancelled" if seen.terminal else "running"


def result_plain(
    record: Record, outputs: Mapping[str, TensorValue], details: Mapping[str, Any], cost: float, name_of: NameOf
) -> dict[str, Any]:
    """The result document as it is stored (DAG-CBOR): tensors as {dtype, shape, raw or cid}."""
    core = view(record).core
    return {
        "job_id": record.job,
        "pattern": core.pattern if core else "",
        "status": "completed",
        "outputs": {n: {"dtype": t.dtype, "shape": list(t.shape), "raw": t.raw, "cid": t.cid} for n, t in outputs.items()},
        "details": finite(with_names(details, record, name_of)),
        "tasks": task_documents(record, name_of),
        "cost": cost,
    }


def result_document(plain: Mapping[str, Any], result_cid: str | None) -> dict[str, Any]:
    """From the stored form to `dimnode.ports.ResultDocument`."""
    outputs = {
        n: TensorValue(dtype=t["dtype"], shape=tuple(t["shape"]), raw=t.get("raw"), cid=t.get("cid"))
        for n, t in (plain.get("outputs") or {}).items()
    }
    return {**plain, "outputs": outputs, "result_cid": result_cid or ""}


def with_names(details: Any, record: Record, name_of: NameOf) -> Any:
    """The same details with the configured names of the nodes that worked on the job for their peer ids."""
    names = {b.node: name_of(b.node) for _, b in record.items() if isinstance(b, Assign)}
    return _replaced(details, names)


def _replaced(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, Mapping):
        return {names.get(str(k), str(k)): _replaced(v, names) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replaced(v, names) for v in value]
    return value


def finite(value: Any) -> Any:
    """The same value with NaN and infinities as their names: DAG-CBOR and strict JSON have none."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value
