"""Wrong, oversized and impossible jobs against a running node, over gRPC and on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from google.protobuf import json_format

from dimnode.cli.main import cli
from dimnode.client import Client
from dimnode.errors import Code, DimError
from dimnode.rpc.errors import from_rpc_error
from dimnode.rpc.v1 import common_pb2
from dimnode.rpc.v1 import orchestrator_pb2 as pb
from dimnode.rpc.v1.orchestrator_pb2_grpc import OrchestratorStub
from tests.support.real_swarm import FORMS, RealNode, RealSwarm, mlp, one_task, rows, write_json

INVALID = sorted((FORMS / "invalid").glob("*.json"), key=lambda p: p.stem)
EXAMPLES = ("collaborative", "comparative", "chained")


@pytest.fixture
def node(swarm: RealSwarm) -> RealNode:
    return swarm["node-001"]


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def run(node: RealNode, *argv: str) -> tuple[int, Any, str]:
    """A verb in this process: exit code, its one JSON document, what it said on stderr."""
    done = CliRunner().invoke(cli, [*argv, "--home", str(node.home.path), "--json"])
    return done.exit_code, json.loads(done.stdout), done.stderr


def submit(node: RealNode, spec: Any) -> DimError | None:
    """The refusal of a SubmitJob with this message as it is."""
    channel = grpc.insecure_channel(node.status()["grpc"])
    with channel:
        try:
            OrchestratorStub(channel).SubmitJob(pb.SubmitJobRequest(spec=spec), timeout=30)
        except grpc.RpcError as e:
            return from_rpc_error(e)
    return None


def jobs_of(node: RealNode) -> set[str]:
    with node.client() as client:
        return {j["job_id"] for j in client.list(limit=1000)}


def assert_clean(node: RealNode, *texts: str) -> None:
    for text in texts:
        assert "Traceback" not in text
        assert str(node.home.path) not in text
        assert "/dimnode/" not in text
    assert not node.crashed(), node.log()


@pytest.mark.parametrize("path", INVALID, ids=lambda p: p.stem)
def test_an_invalid_form_names_field_and_rule_over_grpc(node: RealNode, path: Path) -> None:
    document = load(path)
    try:
        spec = json_format.ParseDict(document["form"], common_pb2.JobSpec())
    except json_format.ParseError:
        pytest.skip("this form is no message: it cannot be sent")
    jobs = jobs_of(node)
    error = submit(node, spec)
    assert error is not None
    assert error.code is Code.INVALID_ARGUMENT
    assert [f.field for f in error.fields][:1] == [document["field"]], error.fields
    assert all(f.rule for f in error.fields)
    assert jobs_of(node) == jobs
    assert_clean(node, error.message, error.hint)


@pytest.mark.parametrize("path", INVALID, ids=lambda p: p.stem)
def test_an_invalid_form_names_field_and_rule_on_the_command_line(node: RealNode, path: Path, tmp_path: Path) -> None:
    document = load(path)
    form = write_json(tmp_path / "job.json", document["form"])
    for extra in ([], ["--dry-run"]):
        code, said, _ = run(node, "submit", str(form), *extra)
        assert code in (1, 2)
        assert said["error"]["code"] == "INVALID_ARGUMENT"
        if document["field"]:
            assert document["field"] in {f["field"] for f in said["error"]["fields"]}
        assert_clean(node, said["error"]["message"], said["error"]["hint"])


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_documented_examples_pass_a_dry_run_as_they_are(node: RealNode, swarm: RealSwarm, name: str) -> None:
    for asked in (node, swarm["node-002"]):
        code, said, _ = run(asked, "submit", str(FORMS / "valid" / f"{name}.json"), "--dry-run")
        assert code == 0, said
        assert said["accepted"] is True
        assert all(task["node"] for task in said["placement"].values())
        assert 0 < said["estimated_cost"] <= 1000


@pytest.mark.parametrize("name", ["collaborative", "chained"])
def test_without_the_data_it_reads_an_example_is_refused(node: RealNode, name: str) -> None:
    code, said, _ = run(node, "submit", str(FORMS / "valid" / f"{name}.json"))
    assert (code, said["error"]["code"]) == (1, "INVALID_ARGUMENT")
    assert said["error"]["fields"][0]["field"] == "client_data"


def test_the_comparative_example_runs_on_its_cabinet(node: RealNode) -> None:
    code, said, _ = run(node, "submit", str(FORMS / "valid" / "comparative.json"), "--wait")
    assert code == 0, said
    assert said["details"]["agreement"] == 1.0
    expected = mlp(rows(12)).argmax(axis=1)
    found = next(v for v in said["outputs"].values() if v["dtype"].startswith("int") and v["shape"] == [12])
    np.testing.assert_array_equal(found["data"], expected)


def nothing(model: str = "nothing") -> dict[str, Any]:
    return one_task(model, client_data={"x": {"dtype": "float32", "shape": [1, 30], "data": [0.0] * 30}})


def step(**changes: Any) -> dict[str, Any]:
    form = nothing("model-001")
    form["config"]["pipeline"][0] |= changes
    return form


@pytest.mark.parametrize(
    ("form", "code", "text"),
    [
        (nothing(), "NOT_FOUND", "nothing"),
        (step(node_id="nobody"), "NOT_FOUND", "nobody"),
        (step(input_source="drawer"), "NOT_FOUND", "drawer"),
        ({**step(), "max_cost": 0.25}, "FAILED_PRECONDITION", "cheapest estimate is 1"),
        ({**step(), "client_data": {"x": {"cid": "not-a-cid"}}}, "INVALID_ARGUMENT", "client_data.x"),
        ({**step(), "client_data": {"nope": {"dtype": "int8", "shape": [1], "data": [1]}, "other": {"dtype": "int8", "shape": [1], "data": [1]}}},
         "INVALID_ARGUMENT", "config.pipeline[0].input_source"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_at_submission(node: RealNode, tmp_path: Path, form: dict[str, Any], code: str, text: str) -> None:
    jobs = jobs_of(node)
    exit_code, said, _ = run(node, "submit", str(write_json(tmp_path / "job.json", form)))
    assert exit_code == 1
    assert said["error"]["code"] == code
    assert text in said["error"]["message"] + str(said["error"].get("fields"))
    assert jobs_of(node) == jobs
    assert_clean(node, said["error"]["message"], said["error"]["hint"])


def test_an_oversized_spec_is_refused_by_name(node: RealNode) -> None:
    spec = json_format.ParseDict(step(), common_pb2.JobSpec())
    spec.labels["a"] = "x" * (2 << 20)
    jobs = jobs_of(node)
    error = submit(node, spec)
    assert error is not None
    assert error.code is Code.INVALID_ARGUMENT
    assert "1048576" in error.message
    assert jobs_of(node) == jobs
    spec.labels["a"] = "x" * (40 << 20)
    error = submit(node, spec)
    assert error is not None
    assert error.code in (Code.RESOURCE_EXHAUSTED, Code.INVALID_ARGUMENT)


def test_a_model_that_fails_says_why_and_leaks_nothing(node: RealNode) -> None:
    with node.client() as client:
        job = client.submit(one_task("model-001"), {"x": np.zeros((2, 7), np.float32)})["job_id"]
        with pytest.raises(DimError) as caught:
            client.wait(job)
        assert client.get(job)["status"] == "failed"
    assert caught.value.message
    assert_clean(node, caught.value.message, caught.value.hint)


def test_random_job_ids_and_cids_are_not_found(node: RealNode) -> None:
    with node.client() as client:
        for call in (client.get, client.cancel, client.result, lambda j: list(client.watch(j))):
            for job in ("job-none", "", "../../etc/passwd", "x" * 10_000, "\x00"):
                assert_refused(node, call, job)
        for cid in ("", "nonsense", "../" * 9, "b" * 5000):
            assert_refused(node, lambda c: list(client.get_artifact(c)), cid)


def assert_refused(node: RealNode, call: Any, argument: str) -> None:
    with pytest.raises(DimError) as caught:
        call(argument)
    assert caught.value.code in (Code.NOT_FOUND, Code.INVALID_ARGUMENT), (argument[:20], caught.value.code, caught.value.message)
    assert_clean(node, caught.value.message, caught.value.hint)


def test_afterwards_work_goes_on(node: RealNode, swarm: RealSwarm) -> None:
    x = rows(5)
    for one in swarm.nodes.values():
        with one.client() as client:
            got = client.wait(client.submit(one_task("model-002"), {"x": x})["job_id"])
        np.testing.assert_allclose(got["outputs"]["probabilities"], mlp(x), rtol=1e-6)


def test_the_client_refuses_what_it_can_see_itself(node: RealNode) -> None:
    with Client(node.status()["grpc"]) as client, pytest.raises(DimError) as caught:
        client.submit({"pattern": "dance"})
    assert caught.value.code is Code.INVALID_ARGUMENT
