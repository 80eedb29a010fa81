"""A command line whose clients are in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from dimnode.cli import common
from dimnode.cli.main import cli
from dimnode.domain.tensors import TensorValue
from dimnode.errors import DimError, NotFound
from dimnode.home import Control, Home

JOB = {
    "job_id": "job-1", "pattern": "chained", "status": "completed", "owner": "p", "submitted": 1.0, "updated": 2.0,
    "times": {"queued": 1.0, "completed": 2.0}, "error": None,
    "tasks": [{"task_id": "job-1:a:1", "node": "anna", "status": "completed", "attempt": 1}],
}  # fmt: skip


@dataclass
class FakeClient:
    """Both clients in one: what was asked, and canned answers."""

    asked: list[tuple[Any, ...]] = field(default_factory=list)
    fails: DimError | None = None
    status_: str = "completed"
    closed: int = 0
    texts: list[dict[str, Any]] = field(default_factory=list)
    """Pieces of text that come before the job's documents."""

    def close(self) -> None:
        self.closed += 1

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.asked.append((name, args, kwargs))
            if self.fails is not None:
                raise self.fails
            return self.answer(name, *args, **kwargs)

        return call

    def answer(self, name: str, *args: Any, **kwargs: Any) -> Any:
        match name:
            case "status":
                return {"peer_id": "p", "name": "anna", "swarm": "s", "role": "orchestrator", "term": 1, "orchestrators": [],
                        "listen": ["/x"], "grpc": None, "daemon_grpc": "h:1", "gateway": None, "peers": 0,
                        "ipfs": {"backend": "embedded", "ok": True}}  # fmt: skip
            case "pins":
                return {"pins": [{"cid": "bafk", "kind": "direct", "reason": "operator: x", "since": 1.0}, {"cid": "bafy", "kind": "recursive", "reason": "", "since": None}]}  # fmt: skip
            case "add_content" | "get_content":
                return {"cid": "bafk", "size": 3, "pinned": True}
            case "pin_content" | "unpin_content":
                return {"cid": "bafk", "kind": "recursive", "reason": "operator", "since": 1.0}
            case "collect_garbage":
                return {"blocks": 1, "bytes": 2, "needed": 3, "recent": 4}
            case "export_archive" | "import_archive":
                return {"roots": ["bafk"], "size": 9, "blocks": 1, "bytes": 3, "pinned": True}
            case "resolve":
                if args[0] == "jobs/none":
                    raise NotFound("no seat has published job none")
                seats = [{"name": "anna", "ipns": "k51", "root": "bafyr", "at": 1.0, "problem": ""}]
                line = {"job_id": "job-1", "pattern": "chained", "status": "completed", "owner": "anna", "submitted": 1.0, "updated": 2.0}
                found = {"registry": {"nodes": self.answer("nodes")}, "jobs": {"jobs": [line], "more": False}}.get(args[0], {"job": line})
                return {"path": args[0], "seats": seats, **found}
            case "store_statistics":
                return {"backend": "embedded", "ok": True, "blocks": 1}
            case "events":
                told = [{"kind": "jobs", "publisher": "p", "event": "accepted", "at": 1.0, "job": "job-1", "epoch": 1},
                        {"kind": "nodes", "publisher": "p", "event": "seat_won", "at": 2.0, "node": "q", "seat": 0, "term": 3}]  # fmt: skip
                return iter([e for e in told if e["kind"] in (args[0] or ("jobs", "nodes"))])
            case "invite":
                return "dim1abc"
            case "nodes":
                return [{"peer_id": "p", "name": "anna", "state": "alive", "role": "node", "capabilities": {"loaders": ["onnx"]},
                         "load": {}, "models": [], "cabinets": [{"name": "c"}], "price": 1.0, "last_seen": 1.0}]  # fmt: skip
            case "stats":
                if args and args[0] == "nobody":
                    raise NotFound("'nobody' is not a node")
                return {"queue": {"waiting": 0}, "agents": [{"pid": 3}]}
            case "models" | "add_model" | "add_model_file":
                model = {"id": "m", "cid": "bafy", "format": "onnx", "size": 2048, "inputs": [{"name": "x", "dtype": "float32", "shape": ["n", 2]}],
                         "outputs": [], "nodes": ["anna"]}  # fmt: skip
                return [model] if name == "models" else model
            case "describe_model":
                tensor = {"dtype": "float32", "shape": [1, 2]}
                return {"id": "m", "cid": "bafy", "manifest_cid": "bafm", "format": "mlx", "size": 2048, "licence": "MIT", "nodes": ["anna"],
                        "inputs": [{"name": "x", "dtype": "float32", "shape": ["n", 2]}], "outputs": [], "needs": {"memory": 1 << 20, "gpu": True}, "author": "",
                        "golden": {"inputs": {"x": tensor}, "outputs": {}, "rtol": 0.5, "atol": 0.0}}  # fmt: skip
            case "check_model":
                return {"id": "m", "cid": "bafy", "format": "mlx", "signed": False, "golden": True, "schema": False, "memory": 1 << 20}
            case "remove_model":
                return {"removed": [{"id": "m", "cid": "bafy"}]}
            case "electorate" | "change_electorate":
                if "nobody" in args:
                    raise NotFound("nobody is no voter")
                peers = args[:1] or ("p1", "p2")
                voters = [{"peer_id": p, "name": args[1] if args else "", "state": "alive"} for p in peers]
                return {"mode": "majority", "version": 2.0, "acts": True, "majority": 2.0, "quorum": False, "operator": "op",
                        "operator_here": True, "voters": voters}  # fmt: skip
            case "cabinets" | "add_cabinet":
                cabinet = {"name": "c", "rows": 3, "columns": {"a": "float64"}, "format": "csv"}
                return [cabinet] if name == "cabinets" else cabinet
            case "put_file":
                return {"cid": "bafk", "size": args[0].stat().st_size}
            case "submit":
                return {"job_id": "job-1", "copies": 1}
            case "dry_run":
                return {"accepted": True, "placement": {}, "estimated_cost": 1.0}
            case "list":
                return [JOB]
            case "follow":
                return [*self.texts, *self.documents()]
            case "get" | "cancel":
                return {**JOB, "error": {"code": "X", "message": "m", "hint": "h"}}
            case "result" | "wait":
                return {"job_id": "job-1", "pattern": "chained", "status": "completed", "details": {"n": 1}, "tasks": [{"receipt": b"\x01"}],
                        "cost": 1.0, "result_cid": "bafy", "outputs": self.outputs(kwargs.get("fetch", True))}  # fmt: skip
            case _:
                raise AssertionError(name)

    def documents(self) -> Iterator[dict[str, Any]]:
        yield {**JOB, "status": "running"}
        yield {**JOB, "status": self.status_}

    def outputs(self, fetch: bool) -> dict[str, Any]:
        big = np.arange(20.0) if fetch else TensorValue(dtype="float64", shape=(20,), cid="bafkbig")
        return {"y": np.array([1.5, float("nan")]), "text": np.array(["a", "b"], dtype=object), "big": big}


@dataclass
class Shell:
    home: Home
    client: FakeClient
    targets: list[Any]

    def __call__(self, *argv: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(cli, [*argv, "--home", str(self.home.path)], input=stdin)

    def json(self, *argv: str, exit_code: int = 0, stdin: str | None = None) -> Any:
        done = self(*argv, "--json", stdin=stdin)
        assert done.exit_code == exit_code, done.output
        return json.loads(done.stdout)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A home whose node runs, as far as the command line can tell."""
    home = Home(tmp_path / "home")
    home.create()
    home.write_control(Control(node="unix:/n", orchestrator="unix:/o", pid=os.getpid()))
    client, targets = FakeClient(), []

    def connect(target: Any) -> FakeClient:
        targets.append(target)
        return client

    monkeypatch.setattr(common, "node_client", connect)
    monkeypatch.setattr(common, "orchestrator_client", connect)
    monkeypatch.delenv("DIM_HOME", raising=False)
    return Shell(home, client, targets)
