"""The command line as scripts see it: exit codes, and with ``--json`` exactly one document on stdout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.models import slow_onnx
from tests.support.real_swarm import FORMS, MODELS, RealNode, RealSwarm, mlp, one_task, rows, run_cli, write_json


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with RealSwarm(tmp_path_factory.mktemp("s")) as swarm:
        yield swarm.start("anna")["anna"]


def test_every_verb_prints_one_document_and_exits_0(node: RealNode, tmp_path: Path) -> None:
    np.savetxt(tmp_path / "d.csv", rows(6), delimiter=",", header=",".join(f"c{i}" for i in range(30)), comments="")
    assert node.cli("model", "add", str(MODELS / "mlp.onnx"), "--id", "mlp")["id"] == "mlp"
    assert {m["id"] for m in node.cli("model", "list")} >= {"mlp"}
    assert node.cli("cabinet", "add", "ward", str(tmp_path / "d.csv"))["rows"] == 6
    assert [c["name"] for c in node.cli("cabinet", "list")] == ["ward"]
    x = rows(3)
    np.savez(tmp_path / "x.npz", x=x)
    form = str(write_json(tmp_path / "job.json", one_task()))
    data = ("--data", str(tmp_path / "x.npz"))
    assert node.cli("submit", form, *data, "--dry-run")["accepted"] is True
    job = node.cli("submit", form, *data)["job_id"]
    assert node.cli("watch", job)["status"] == "completed"
    result = node.cli("result", job)
    got = result["outputs"]["probabilities"]
    np.testing.assert_allclose(np.reshape(got["data"], got["shape"]), mlp(x), rtol=1e-6)
    assert node.cli("describe", job)["job_id"] == job
    assert [j["job_id"] for j in node.cli("jobs")] == [job]
    assert node.cli("jobs", "--active") == []
    assert node.cli("verify", job)["ok"] is True
    assert node.cli("doctor")
    for verb in ("status", "nodes", "stats", "invite"):
        assert node.cli(verb)


def test_a_job_that_fails_and_one_that_is_cancelled_exit_1(node: RealNode, tmp_path: Path) -> None:
    node.cli("model", "add", str(slow_onnx(tmp_path / "endless.onnx")), "--id", "endless", "--no-trial")
    data = {"x": {"dtype": "float32", "shape": [1], "data": [0.0]}}
    form = str(write_json(tmp_path / "job.json", one_task("endless", client_data=data)))
    job = node.cli("submit", form)["job_id"]
    assert node.cli("result", job, code=1)["error"]["code"] == "NOT_READY"
    assert node.cli("cancel", job)["status"] == "cancelled"
    assert node.cli("watch", job, code=1)["status"] == "cancelled"
    assert node.cli("cancel", job)["status"] == "cancelled"
    expired = str(write_json(tmp_path / "short.json", one_task("endless", client_data=data, timeout=0.5)))
    assert node.cli("submit", expired, "--wait", code=1)["status"] == "expired"


def test_what_the_node_refuses_exits_1(node: RealNode, tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"\x00noise")
    assert node.cli("model", "add", str(tmp_path / "noise.onnx"), code=1)["error"]["code"]
    (tmp_path / "noise.npz").write_bytes(b"PK\x03\x04noise")
    assert node.cli("cabinet", "add", "noise", str(tmp_path / "noise.npz"), code=1)["error"]["code"]
    unknown = str(write_json(tmp_path / "job.json", one_task("unknown", client_data={"x": {"dtype": "int8", "shape": [1], "data": [1]}})))
    assert node.cli("submit", unknown, code=1)["error"]["code"] == "NOT_FOUND"


@pytest.mark.parametrize("argv", [["dance"], ["submit"], ["jobs", "--limit", "many"], ["start", "--set", "node.nothing=1"]])
def test_wrong_usage_exits_2(tmp_path: Path, argv: list[str]) -> None:
    more = ["--home", str(tmp_path / "h")] if argv[0] == "start" else []
    done = run_cli(*argv, *more)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_files_that_are_no_json_are_wrong_usage(node: RealNode, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{")
    assert node.cli("submit", str(tmp_path / "job.json"), code=2)["error"]["code"] == "INVALID_ARGUMENT"
    assert node.cli("submit", "-", code=2, stdin="[1, 2]")["error"]["code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("argv", [["describe", "job-none"], ["result", "job-none"], ["stats", "nobody"], ["cancel", "job-none"]])
def test_no_such_job_or_node_exits_3(node: RealNode, argv: list[str]) -> None:
    assert node.cli(*argv, code=3)["error"]["code"] == "NOT_FOUND"


def test_without_a_node_it_exits_3(tmp_path: Path) -> None:
    for argv in (["status"], ["jobs"], ["submit", str(FORMS / "valid" / "comparative.json")]):
        done = run_cli(*argv, "--home", str(tmp_path / "none"), "--json")
        assert done.returncode == 3
        assert said(done.stdout)["error"]["code"] == "UNAVAILABLE"


def said(text: str) -> Any:
    """One JSON document and nothing else."""
    return json.loads(text)
