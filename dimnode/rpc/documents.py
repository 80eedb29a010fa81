"""Jobs, results, nodes and models: the plain documents of `dimnode.ports` and the messages of common.proto.

Documents use the messages' snake-case names; what a document leaves out, or has as None, is the message's empty value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf.message import Message

from dimnode.domain.tensors import TensorValue
from dimnode.errors import DimError
from dimnode.rpc.convert import from_struct, tensor_from_proto, tensor_to_proto, to_struct
from dimnode.rpc.v1 import common_pb2 as pb

Document = Mapping[str, Any]
M = TypeVar("M", bound=Message)


def _fill(message: M, document: Document, *names: str) -> M:
    """Sets the scalar fields that the document has."""
    for name in names:
        value = document.get(name)
        if value is not None:
            setattr(message, name, value)
    return message


def _take(message: Message, *names: str) -> dict[str, Any]:
    return {name: getattr(message, name) for name in names}


_JOB = ("job_id", "pattern", "status", "owner", "epoch", "submitted", "updated", "priority", "spec_cid")
_TASK = ("task_id", "node", "model_cid", "status", "attempt", "started", "ended", "receipt", "receipt_cid")
_RESULT = ("job_id", "pattern", "status", "cost", "result_cid")
_MODEL = ("id", "cid", "manifest_cid", "format", "size", "licence")
_NODE = ("peer_id", "name", "state", "role", "price", "last_seen")
_ORCHESTRATOR = ("peer_id", "name", "grpc", "term", "seat", "local_only")


def error_to_proto(document: Document | DimError) -> pb.Error:
    """From a document ``{code, message, hint, details}`` or from an error."""
    if isinstance(document, DimError):
        return pb.Error(code=document.code.value, message=document.message, hint=document.hint, details=_error_details(document))
    out = _fill(pb.Error(), document, "code", "message", "hint")
    if document.get("details"):
        out.details.CopyFrom(to_struct(document["details"]))
    return out


def _error_details(error: DimError) -> Any:
    details: dict[str, Any] = {}
    if error.fields:
        details["fields"] = [{"field": p.field, "rule": p.rule} for p in error.fields]
    if error.retry_after is not None:
        details["retry_after"] = error.retry_after
    return to_struct(details) if details else None


def error_from_proto(message: pb.Error) -> dict[str, Any]:
    out = _take(message, "code", "message", "hint")
    if message.HasField("details"):
        out["details"] = from_struct(message.details)
    return out


def task_to_proto(document: Document) -> pb.TaskInfo:
    out = _fill(pb.TaskInfo(), document, *_TASK)
    if document.get("error"):
        out.error.CopyFrom(error_to_proto(document["error"]))
    return out


def task_from_proto(message: pb.TaskInfo) -> dict[str, Any]:
    out = _take(message, *_TASK)
    if message.HasField("error"):
        out["error"] = error_from_proto(message.error)
    return out


def job_to_proto(document: Document) -> pb.Job:
    out = _fill(pb.Job(), document, *_JOB)
    out.times.update(document.get("times") or {})
    out.labels.update(document.get("labels") or {})
    if document.get("error"):
        out.error.CopyFrom(error_to_proto(document["error"]))
    out.tasks.extend(task_to_proto(t) for t in document.get("tasks") or ())
    return out


def job_from_proto(message: pb.Job) -> dict[str, Any]:
    out = _take(message, *_JOB)
    out["times"] = dict(message.times)
    out["labels"] = dict(message.labels)
    out["tasks"] = [task_from_proto(t) for t in message.tasks]
    out["error"] = error_from_proto(message.error) if message.HasField("error") else None
    return out


def result_to_proto(document: Document) -> pb.Result:
    out = _fill(pb.Result(), document, *_RESULT)
    for name, value in (document.get("outputs") or {}).items():
        out.outputs[name].CopyFrom(tensor_to_proto(value))
    if document.get("details"):
        out.details.CopyFrom(to_struct(document["details"]))
    out.tasks.extend(task_to_proto(t) for t in document.get("tasks") or ())
    return out


def result_from_proto(message: pb.Result) -> dict[str, Any]:
    """``outputs`` holds `TensorValue`."""
    out = _take(message, *_RESULT)
    outputs: dict[str, TensorValue] = {n: tensor_from_proto(t, f"outputs.{n}") for n, t in message.outputs.items()}
    out["outputs"] = outputs
    out["details"] = from_struct(message.details)
    out["tasks"] = [task_from_proto(t) for t in message.tasks]
    return out


def tensor_info_to_proto(document: Document) -> pb.TensorInfo:
    shape = ["?" if n is None else str(n) for n in document.get("shape") or ()]
    return _fill(pb.TensorInfo(shape=shape), document, "name", "dtype")


def tensor_info_from_proto(message: pb.TensorInfo) -> dict[str, Any]:
    return {**_take(message, "name", "dtype"), "shape": [_axis(n) for n in message.shape]}


def _axis(text: str) -> int | str | None:
    return None if text == "?" else int(text) if text.isdecimal() else text


def model_to_proto(document: Document) -> pb.ModelInfo:
    out = _fill(pb.ModelInfo(), document, *_MODEL, "batch_axis")
    out.inputs.extend(tensor_info_to_proto(t) for t in document.get("inputs") or ())
    out.outputs.extend(tensor_info_to_proto(t) for t in document.get("outputs") or ())
    out.nodes.extend(document.get("nodes") or ())
    return out


def model_from_proto(message: pb.ModelInfo) -> dict[str, Any]:
    return {
        **_take(message, *_MODEL),
        "inputs": [tensor_info_from_proto(t) for t in message.inputs],
        "outputs": [tensor_info_from_proto(t) for t in message.outputs],
        "nodes": list(message.nodes),
        "batch_axis": message.batch_axis if message.HasField("batch_axis") else None,
    }


def cabinet_to_proto(document: Document) -> pb.CabinetInfo:
    out = _fill(pb.CabinetInfo(), document, "name", "rows", "format")
    out.columns.update(document.get("columns") or {})
    return out


def cabinet_from_proto(message: pb.CabinetInfo) -> dict[str, Any]:
    return {**_take(message, "name", "rows", "format"), "columns": dict(message.columns)}


def node_to_proto(document: Document) -> pb.NodeInfo:
    out = _fill(pb.NodeInfo(), document, *_NODE)
    for name in ("capabilities", "load"):
        if document.get(name):
            getattr(out, name).CopyFrom(to_struct(document[name]))
    out.models.extend(document.get("models") or ())
    out.cabinets.extend(cabinet_to_proto(c) for c in document.get("cabinets") or ())
    return out


def node_from_proto(message: pb.NodeInfo) -> dict[str, Any]:
    return {
        **_take(message, *_NODE),
        "capabilities": from_struct(message.capabilities),
        "load": from_struct(message.load),
        "models": list(message.models),
        "cabinets": [cabinet_from_proto(c) for c in message.cabinets],
    }


def orchestrator_to_proto(document: Document) -> pb.OrchestratorInfo:
    return _fill(pb.OrchestratorInfo(), document, *_ORCHESTRATOR)


def orchestrator_from_proto(message: pb.OrchestratorInfo) -> dict[str, Any]:
    return _take(message, *_ORCHESTRATOR)
