from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dimnode.domain import tensors
from dimnode.domain.job_form import parse_job_form
from dimnode.errors import InvalidArgument
from dimnode.rpc import convert, documents
from dimnode.rpc.v1 import common_pb2 as pb

SPEC_FORMS = [
    {"pattern": "collaborative", "config": {"model_id": "test-model-001", "nodes": ["node-001", "node-002"], "aggregation": {"method": "federated_averaging"}}, "priority": "normal", "max_cost": 1000},
    {"pattern": "comparative", "config": {"model_ids": ["model-001", "model-002"], "node_id": "node-001", "data_source": "cabinet-001", "consensus": {"method": "weighted_vote", "minAgreement": 0.75}}, "priority": "normal", "max_cost": 1000},
    {"pattern": "chained", "config": {"pipeline": [
        {"step": 1, "name": "Step1", "model_id": "model-001", "node_id": "node-001", "input_source": "client_data", "timeout": 60},
        {"step": 2, "name": "Step2", "model_id": "model-002", "node_id": "node-001", "input_source": "step_1_output", "timeout": 60}]}, "priority": "normal", "max_cost": 1000},
]  # fmt: skip

names = st.text("abcdefgh-_.é", min_size=1, max_size=12)
common = st.fixed_dictionaries(
    {},
    optional={
        "priority": st.sampled_from(["low", "normal", "high", "critical"]),
        "max_cost": st.floats(0, 1e9),
        "timeout": st.floats(0.001, 1e5),
        "retries": st.integers(0, 100),
        "min_copies": st.integers(1, 100),
        "labels": st.dictionaries(names, names, min_size=1, max_size=3),
        "idempotency_key": names,
    },
)
configs = st.one_of(
    st.fixed_dictionaries(
        {"model_id": names},
        optional={
            "nodes": st.lists(names, min_size=1, max_size=3, unique=True),
            "data_source": names,
            "min_nodes": st.just(1),
            "columns": st.lists(names, max_size=3) | st.dictionaries(names, st.lists(names, max_size=2), max_size=2),
            "aggregation": st.fixed_dictionaries(
                {"method": st.sampled_from(["mean", "trimmed_mean"])}, optional={"trim": st.floats(0, 0.49)}
            ),
        },
    ).map(lambda c: ("collaborative", c)),
    st.lists(names, min_size=1, max_size=3, unique=True).map(
        lambda m: (
            "comparative",
            {"model_ids": m, "consensus": {"method": "weighted_vote", "weights": dict.fromkeys(m, 2), "minAgreement": 1}},
        )
    ),
    st.lists(names, min_size=1, max_size=4).map(
        lambda m: ("chained", {"pipeline": [{"step": i + 1, "modelId": x, "outputs": {"y": x}} for i, x in enumerate(m)]})
    ),
)
arrays = st.sampled_from([*tensors.NUMERIC_DTYPES, "object"]).flatmap(
    lambda d: hnp.arrays(
        d, hnp.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=4), elements=st.text(max_size=4) if d == "object" else None
    )
)


@settings(max_examples=60, deadline=None)
@given(configs, common, st.dictionaries(names, arrays, max_size=2))
def test_a_job_form_survives_the_wire(config: Any, rest: dict[str, Any], data: dict[str, Any]) -> None:
    given_data = {n: tensors.from_numpy(a) for n, a in data.items()}
    form = parse_job_form({"pattern": config[0], "config": config[1], **rest, "client_data": given_data})
    message = pb.JobSpec.FromString(convert.form_to_spec(form).SerializeToString())
    assert convert.spec_to_form(message).to_plain() == form.to_plain()


@pytest.mark.parametrize("form", SPEC_FORMS, ids=lambda f: f["pattern"])
def test_a_json_form_is_a_spec_by_protobufs_own_rules(form: dict[str, Any]) -> None:
    spec = json_format.ParseDict(form, pb.JobSpec())
    assert convert.spec_to_form(spec).to_plain() == parse_job_form(form).to_plain()


def test_json_client_data_by_protobufs_own_rules() -> None:
    form = {**SPEC_FORMS[0], "client_data": {
        "x": {"dtype": "float32", "shape": [4], "data": [1, "NaN", "Infinity", "-Infinity"]},
        "i": {"dtype": "int64", "shape": [2], "data": [3, -4]},
        "s": {"dtype": "str", "shape": [1], "data": ["NaN"]},
        "e": {"dtype": "float64", "shape": [0, 3], "data": []},
        "c": {"dtype": "uint8", "shape": [9], "cid": "bafy"},
    }}  # fmt: skip
    assert convert.spec_to_form(json_format.ParseDict(form, pb.JobSpec())).to_plain() == parse_job_form(form).to_plain()


@settings(deadline=None)
@given(arrays, st.booleans())
def test_a_tensor_survives_the_wire(array: np.ndarray, as_data: bool) -> None:
    value = tensors.from_numpy(array)
    back = convert.tensor_from_proto(convert.tensor_to_proto(value, as_data=as_data), "t")
    assert (back.dtype, back.shape) == (value.dtype, value.shape)
    assert tensors.to_numpy(back).dtype == tensors.to_numpy(value).dtype
    np.testing.assert_array_equal(tensors.to_numpy(back), tensors.to_numpy(value))


def test_small_numbers_are_lists_and_large_or_inexact_ones_raw() -> None:
    def kind(array: Any) -> str:
        message = convert.tensor_to_proto(tensors.from_numpy(np.asarray(array)))
        return "data" if message.HasField("data") else "raw"

    assert kind([1.5, math.nan]) == "data"
    assert kind(np.zeros(1024)) == "data"
    assert kind(np.zeros(0)) == "data"
    assert kind(np.zeros(1025)) == "raw"
    assert kind([2**53]) == "data"
    assert kind([2**53 + 1]) == "raw"
    assert kind(np.array([2**64 - 1], dtype=np.uint64)) == "raw"
    assert kind([1j]) == "raw"


@pytest.mark.parametrize(
    ("tensor", "field", "rule"),
    [
        (pb.Tensor(dtype="float32", shape=[1]), "client_data.t", "must have one of"),
        (pb.Tensor(dtype="float32", shape=[1], raw=b"\0" * 4, cid="b"), "client_data.t", "exactly one"),
        (pb.Tensor(dtype="float32", shape=[2], raw=b"\0" * 4), "client_data.t.raw", "needs 8 bytes"),
        (pb.Tensor(dtype="float33", shape=[1], raw=b"\0" * 4), "client_data.t.dtype", "one of"),
        (pb.Tensor(dtype="str", shape=[1], raw=b"\xff"), "client_data.t.raw", "fit"),
        (pb.Tensor(dtype="float32", shape=[-1], raw=b"\0" * 4), "client_data.t.raw", "fit"),
        (pb.Tensor(dtype="float32", shape=[2**31 - 1] * 3, raw=b"\0" * 4), "client_data.t.raw", "fit"),
    ],
)
def test_bad_tensors_name_field_and_rule(tensor: pb.Tensor, field: str, rule: str) -> None:
    spec = json_format.ParseDict(SPEC_FORMS[0], pb.JobSpec())
    spec.client_data["t"].CopyFrom(tensor)
    with pytest.raises(InvalidArgument) as e:
        convert.spec_to_form(spec)
    assert e.value.fields[0].field == field
    assert rule in e.value.fields[0].rule


def test_all_problems_of_a_spec_are_told_at_once() -> None:
    spec = pb.JobSpec(pattern="collaborative", retries=-1, max_cost=math.nan)
    spec.config.update({"rounds": 1.5, "unheard_of": 1})
    spec.client_data["t"].dtype = "float32"
    spec.client_data["t"].shape.append(1)
    with pytest.raises(InvalidArgument) as e:
        convert.spec_to_form(spec)
    named = {p.field for p in e.value.fields}
    assert {"client_data.t", "retries", "max_cost", "config.model_id", "config.rounds", "config.unheard_of"} <= named


def test_unknown_fields_of_the_wire_are_ignored() -> None:
    spec = json_format.ParseDict(SPEC_FORMS[0], pb.JobSpec())
    newer = spec.SerializeToString() + b"\xfa\x06\x03abc"  # field 111
    assert convert.spec_to_form(pb.JobSpec.FromString(newer)).pattern == "collaborative"


def test_an_empty_spec_says_that_the_pattern_is_missing() -> None:
    with pytest.raises(InvalidArgument, match="pattern"):
        convert.spec_to_form(pb.JobSpec())


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.text(max_size=5)
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: not x.is_integer()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=4), plain, max_size=3))
def test_plain_documents_survive_a_struct(document: dict[str, Any]) -> None:
    assert convert.from_struct(convert.to_struct(document)) == document


def test_what_json_cannot_say_becomes_text() -> None:
    document = {"n": math.nan, "i": math.inf, "big": 2**60, "b": b"\x01", "a": np.arange(2), "s": np.float32(0.5), "o": 1 + 2j, "t": (1,)}
    back = convert.from_struct(convert.to_struct(document))
    assert back == {"n": "NaN", "i": "Infinity", "big": str(2**60), "b": "01", "a": [0, 1], "s": 0.5, "o": "(1+2j)", "t": [1]}
    json.dumps(back, allow_nan=False)


def test_documents_survive() -> None:
    task = {"task_id": "j:k:1", "node": "n", "model_cid": "b", "status": "failed", "attempt": 2, "started": 1.5, "ended": 2.5, "receipt": b"\1", "receipt_cid": "r",
            "error": {"code": "TASK_FAILED", "message": "m", "hint": "h", "details": {"exit": 9}}}  # fmt: skip
    job = {"job_id": "j", "pattern": "chained", "status": "failed", "owner": "p", "epoch": 2, "submitted": 1.0, "updated": 2.0, "priority": "low",
           "spec_cid": "b", "times": {"queued": 1.0}, "labels": {"a": "b"}, "tasks": [task], "error": {"code": "X", "message": "m", "hint": ""}}  # fmt: skip
    assert documents.job_from_proto(documents.job_to_proto(job)) == job
    value = tensors.from_numpy(np.array([1, 2], dtype=np.int64))
    result = {"job_id": "j", "pattern": "chained", "status": "completed", "cost": 2.0, "result_cid": "b", "outputs": {"y": value},
              "details": {"agreement": 1}, "tasks": [task]}  # fmt: skip
    assert documents.result_from_proto(documents.result_to_proto(result)) == result
    shape = {"name": "x", "dtype": "float32", "shape": ["N", 4, None]}
    model = {
        "id": "m",
        "cid": "b",
        "manifest_cid": "c",
        "format": "onnx",
        "size": 5,
        "licence": "MIT",
        "inputs": [shape],
        "outputs": [],
        "nodes": ["n"],
        "batch_axis": 0,
    }
    assert documents.model_from_proto(documents.model_to_proto(model)) == model
    assert documents.model_from_proto(documents.model_to_proto({**model, "batch_axis": None}))["batch_axis"] is None
    cabinet = {"name": "c", "rows": 3, "format": "csv", "columns": {"x": "int64"}}
    node = {"peer_id": "p", "name": "n", "state": "alive", "role": "node", "price": 1.0, "last_seen": 2.0, "capabilities": {"cpus": 4},
            "load": {"cpu": 0.5}, "models": ["m"], "cabinets": [cabinet]}  # fmt: skip
    assert documents.node_from_proto(documents.node_to_proto(node)) == node
    seat = {"peer_id": "p", "name": "n", "grpc": "h:1", "term": 3, "seat": 1, "local_only": True}
    assert documents.orchestrator_from_proto(documents.orchestrator_to_proto(seat)) == seat


def test_documents_may_leave_everything_out() -> None:
    assert documents.job_from_proto(documents.job_to_proto({"job_id": "j", "error": None}))["error"] is None
    assert documents.result_to_proto({}).outputs == {}


def test_an_error_document_holds_the_broken_fields() -> None:
    with pytest.raises(InvalidArgument) as e:
        convert.spec_to_form(pb.JobSpec())
    document = documents.error_from_proto(documents.error_to_proto(e.value))
    assert document["code"] == "INVALID_ARGUMENT"
    assert document["details"]["fields"][0]["field"] == "pattern"
