"""Values on the wire and inside: structs, tensors and job forms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from google.protobuf.struct_pb2 import ListValue, Struct, Value

from dimnode.domain import tensors
from dimnode.domain.job_form import JobForm, parse_job_form
from dimnode.domain.tensors import TensorValue
from dimnode.errors import FieldProblem, InvalidArgument
from dimnode.rpc.v1 import common_pb2 as pb

DATA_ELEMENTS = 1024
"""Tensors of up to this many elements are sent as lists, which any client can read; larger ones as raw bytes."""
EXACT = 1 << 53
"""Whole numbers up to this size are exact in a double, which is what a Struct holds."""


# --- Struct --------------------------------------------------------------------------------------


def to_struct(mapping: Mapping[str, Any]) -> Struct:
    """A Struct of plain values. What JSON cannot say becomes a string: NaN and infinities by name, whole
    numbers beyond 2^53 in digits, bytes in hexadecimal, anything else by `str`."""
    out = Struct()
    for key, value in mapping.items():
        _set_value(out.fields[str(key)], value)
    return out


def from_struct(struct: Struct) -> dict[str, Any]:
    """Plain values; whole numbers come back as int."""
    return {key: _get_value(value) for key, value in struct.fields.items()}


def _set_value(out: Value, value: Any) -> None:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    match value:
        case None:
            out.null_value = 0  # pyright: ignore[reportAttributeAccessIssue]
        case bool():
            out.bool_value = value
        case int() if abs(value) <= EXACT:
            out.number_value = value
        case float() if math.isfinite(value):
            out.number_value = value
        case float():
            out.string_value = _name_of(value)
        case str():
            out.string_value = value
        case bytes():
            out.string_value = value.hex()
        case Mapping():
            out.struct_value.CopyFrom(to_struct(value))
        case list() | tuple() | set() | frozenset():
            out.list_value.CopyFrom(_to_list(value))
        case _:
            out.string_value = str(value)


def _to_list(values: Iterable[Any]) -> ListValue:
    out = ListValue()
    for item in values:
        _set_value(out.values.add(), item)
    return out


def _get_value(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) <= EXACT else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return from_struct(value.struct_value)
        case "list_value":
            return [_get_value(v) for v in value.list_value.values]
        case _:
            return None


def _name_of(number: float) -> str:
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


# --- tensors -------------------------------------------------------------------------------------


def tensor_to_proto(value: TensorValue, *, as_data: bool = True) -> pb.Tensor:
    """``as_data``: as a list where it is small and exact in doubles, otherwise always raw."""
    out = pb.Tensor(dtype=value.dtype, shape=value.shape)
    if value.cid is not None:
        out.cid = value.cid
        return out
    if as_data and math.prod(value.shape) <= DATA_ELEMENTS and _fill_data(out.data, value):
        return out
    out.ClearField("data")
    out.raw = value.raw or b""
    return out


def _fill_data(out: ListValue, value: TensorValue) -> bool:
    """False if the numbers would not be exact in doubles."""
    array = tensors.to_numpy(value)
    kind = array.dtype.kind
    if kind == "c" or (kind in "iu" and array.dtype.itemsize == 8 and any(abs(x) > EXACT for x in array.ravel().tolist())):
        return False
    out.SetInParent()
    for item in array.ravel().tolist():
        _set_value(out.values.add(), item)
    return True


def tensor_from_proto(message: pb.Tensor, field: str) -> TensorValue:
    """Raises `InvalidArgument` naming ``field`` and the rule. Bytes without list and CID are ``raw``, even if there
    are none: proto3 does not tell an empty value from a missing one."""
    given = [name for name, is_there in (("data", message.HasField("data")), ("raw", message.raw), ("cid", message.cid)) if is_there]
    if len(given) > 1:
        raise _bad(field, f"must have exactly one of data, raw and cid, has {' and '.join(given)}")
    shape = tuple(message.shape)
    if message.cid:
        return tensors.from_json({"dtype": message.dtype, "shape": list(shape), "cid": message.cid}, field)
    if message.HasField("data"):
        data = [v.number_value if v.WhichOneof("kind") == "number_value" else _get_value(v) for v in message.data.values]
        return tensors.from_json({"dtype": message.dtype, "shape": list(shape), "data": data}, field)
    if not message.raw and math.prod(shape) != 0:
        raise _bad(field, "must have one of data, raw and cid")
    if message.dtype not in tensors.DTYPES:
        raise _bad(f"{field}.dtype", f"must be one of {', '.join(tensors.DTYPES)}")
    value = TensorValue(dtype=message.dtype, shape=shape, raw=message.raw or (b"[]" if message.dtype == tensors.STRING else b""))
    try:
        tensors.to_numpy(value)
    except InvalidArgument as e:
        raise _bad(f"{field}.raw", f"does not fit: {e.message}") from None
    return value


def _bad(field: str, rule: str) -> InvalidArgument:
    return InvalidArgument(f"{field} {rule}", fields=(FieldProblem(field, rule),), hint="See the job form in docs/api.md.")


# --- job forms -----------------------------------------------------------------------------------


def spec_to_form(spec: pb.JobSpec) -> JobForm:
    """The job form of a JobSpec; empty strings and absent optional fields count as left out. Raises
    `InvalidArgument` with a problem for every broken rule."""
    problems: list[FieldProblem] = []
    data: dict[str, TensorValue] = {}
    for name, message in spec.client_data.items():
        try:
            data[name] = tensor_from_proto(message, f"client_data.{name}")
        except InvalidArgument as e:
            problems.extend(e.fields)
    try:
        form = parse_job_form(_plain_form(spec))
    except InvalidArgument as e:
        problems.extend(e.fields)
    else:
        if not problems:
            return JobForm(form.form, data)
    text = "; ".join(f"{p.field} {p.rule}".strip() for p in problems[:10])
    raise InvalidArgument(text, fields=tuple(problems), hint="Correct the named fields; the forms are in docs/api.md.")


def _plain_form(spec: pb.JobSpec) -> dict[str, Any]:
    plain: dict[str, Any] = {"pattern": spec.pattern}
    if spec.HasField("config"):
        plain["config"] = from_struct(spec.config)
    for name in ("priority", "idempotency_key"):
        if text := getattr(spec, name):
            plain[name] = text
    for name in ("max_cost", "timeout", "retries", "min_copies"):
        if spec.HasField(name):
            plain[name] = getattr(spec, name)
    if spec.labels:
        plain["labels"] = dict(spec.labels)
    return plain


def form_to_spec(form: JobForm) -> pb.JobSpec:
    """The inverse of `spec_to_form`; tensors travel raw."""
    plain = form.form.model_dump(mode="json", exclude_unset=True, by_alias=False)
    config = plain.pop("config", None)
    given = {k: v for k, v in plain.items() if v is not None and k != "pattern"}
    spec = pb.JobSpec(pattern=form.pattern, **given)
    if config is not None:
        spec.config.CopyFrom(to_struct(config))
    for name, value in form.client_data.items():
        spec.client_data[name].CopyFrom(tensor_to_proto(value, as_data=False))
    return spec
