"""Checking receipts offline: a peer id contains the public key, so nobody is asked."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import msgspec

from dimnode.domain import codec
from dimnode.domain.record import Attempt, SignedEntry


def check_receipts(document: Mapping[str, Any]) -> dict[str, Any]:
    """``{"ok", "job_id", "tasks": [{"task_id", "node", "ok", "reason"}]}``. A completed task without a
    receipt is not ok; nor is a document without tasks."""
    tasks = [_check(task, str(document.get("job_id", ""))) for task in document.get("tasks") or ()]
    return {"ok": bool(tasks) and all(t["ok"] for t in tasks), "job_id": document.get("job_id", ""), "tasks": tasks}


def _check(task: Mapping[str, Any], job_id: str) -> dict[str, Any]:
    reason = _problem(task, job_id)
    return {"task_id": task.get("task_id", ""), "node": task.get("node", ""), "ok": not reason, "reason": reason}


def _problem(task: Mapping[str, Any], job_id: str) -> str:
    from dimnode.security.signing import verify_entry

    raw = _bytes(task.get("receipt"))
    if not raw:
        return "" if task.get("status") != "completed" else "there is no receipt"
    try:
        entry: SignedEntry = msgspec.convert(codec.decode_plain(raw), SignedEntry, builtin_types=(bytes,))
        attempt = entry.body()
    except (codec.CodecError, msgspec.ValidationError):
        return "the receipt is damaged"
    if not isinstance(attempt, Attempt) or attempt.receipt is None:
        return "this is not a receipt"
    if not verify_entry(entry):
        return "the signature is not the node's"
    receipt = attempt.receipt
    told = {"job": (receipt.job, job_id), "model_cid": (receipt.model_cid, task.get("model_cid"))}
    for name, (signed, claimed) in told.items():
        if claimed and signed != claimed:
            return f"the receipt is for another {name}"
    if task.get("status") and attempt.status != task["status"]:
        return "the receipt tells another status"
    return "" if receipt.node in ("", entry.author) else "the receipt names another node than its signer"


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        return b""
    try:
        return bytes.fromhex(value)
    except ValueError:
        pass
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return b"\xff"
