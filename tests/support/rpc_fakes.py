"""Fakes of the ports behind the gRPC servers, and a network of two or more nodes that only answers requests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

import trio

from dimnode.domain.model import ModelRef
from dimnode.domain.record import Ballot, SignedEntry
from dimnode.domain.task import PartialOutput, TaskOrder, TaskUpdate
from dimnode.errors import NotFound, NotReady
from dimnode.ports import Accepted
from p2p.api import RequestTimeout, Unreachable


class FakeApi:
    """An orchestrator that accepts everything and remembers it."""

    def __init__(self) -> None:
        self.forms: list[tuple[Any, str]] = []
        self.submitted = 0
        self.entered = trio.Event()
        self.cancelled = trio.Event()
        self.events = 3
        self.watched = 0
        self.followed = 0
        self.pieces = [
            (1, 0, 0, "Once"),
            (1, 0, 4, " upon"),
            (1, 0, 4, " upon a"),
            (1, 1, 0, "Two"),
            (2, 0, 0, "On"),
            (2, 0, 2, "ce"),
            (1, 0, 0, "late"),
        ]
        self.release = trio.Event()
        self.documents: dict[str, dict[str, Any]] = {}

    async def submit(self, form: Any, principal: str) -> Accepted:
        self.forms.append((form, principal))
        self.submitted += 1
        return Accepted(f"job-{self.submitted}", 1)

    async def submit_many(self, forms: Any, principal: str) -> list[Any]:
        return [f if isinstance(f, Exception) else await self.submit(f, principal) for f in forms]

    async def get(self, job_id: str) -> dict[str, Any]:
        match job_id:
            case "slow":
                self.entered.set()
                try:
                    await self.release.wait()
                except trio.Cancelled:
                    self.cancelled.set()
                    raise
                return {"job_id": job_id, "status": "running"}
            case "broken":
                raise RuntimeError("a secret in /home/somebody")
            case _ if job_id in self.documents:
                return self.documents[job_id]
            case _:
                raise NotFound(f"there is no job {job_id}", hint="`dimnode jobs` lists them.")

    async def list_jobs(self, active: bool, limit: int) -> list[dict[str, Any]]:
        return [{"job_id": f"job-{i}", "status": "running" if active else "queued"} for i in range(min(limit, 2))]

    async def watch(self, job_id: str) -> AsyncGenerator[dict[str, Any], None]:
        if job_id == "endless":
            try:
                yield {"job_id": job_id, "status": "running"}
                self.entered.set()
                await trio.sleep_forever()
            finally:
                self.cancelled.set()
        for n in range(self.events):
            self.watched += 1
            yield {"job_id": job_id, "epoch": n, "status": "completed" if n == self.events - 1 else "running"}

    async def follow(self, job_id: str) -> AsyncGenerator[dict[str, Any] | PartialOutput, None]:
        """The first watcher gets less of the text than the next."""
        self.followed += 1
        for attempt, row, offset, text in self.pieces[: 2 if self.followed == 1 else None]:
            yield PartialOutput(task="s1", attempt=attempt, row=row, offset=offset, text=text)
        if self.followed > 1:
            yield {"job_id": job_id, "epoch": 1, "status": "completed"}

    async def cancel(self, job_id: str) -> dict[str, Any]:
        return {"job_id": job_id, "status": "cancelled"}

    async def result(self, job_id: str, wait: float = 0.0) -> dict[str, Any]:
        del wait
        if job_id not in self.documents:
            raise NotReady("the job is still running", retry_after=0.5)
        return self.documents[job_id]

    async def dry_run(self, form: Any, principal: str) -> Mapping[str, Any]:
        return {"accepted": True, "placement": {"m/a": {"node": "n"}}, "estimated_cost": 2.0}


class FakeSwarm:
    """`SwarmApi` and `NodeApi`."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.received = 0
        self.hold: trio.Event | None = None
        self.events_left = trio.Event()

    def nodes(self) -> list[Mapping[str, Any]]:
        return [
            {"peer_id": "p", "name": "n", "capabilities": {"cpus": 4}, "cabinets": [{"name": "c", "rows": 3, "columns": {"x": "float32"}}]}
        ]

    def cluster(self) -> Mapping[str, Any]:
        return {
            "swarm": "s",
            "orchestrators": [{"peer_id": "p", "name": "n", "grpc": "127.0.0.1:1", "term": 3, "seat": 0, "local_only": True}],
        }

    async def models(self) -> list[Mapping[str, Any]]:
        return [{"id": "m", "cid": "bafy", "inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 4, None]}], "batch_axis": 0}]

    async def put_artifact(self, chunks: Any) -> tuple[str, int]:
        pieces: list[bytes] = []
        async for chunk in chunks:
            if self.hold is not None:
                await self.hold.wait()
            self.received += 1
            pieces.append(chunk)
        out = b"".join(pieces)
        cid = f"bafy{len(self.blobs)}"
        self.blobs[cid] = out
        return cid, len(out)

    async def get_artifact(self, cid: str) -> AsyncGenerator[bytes, None]:
        if cid not in self.blobs:
            raise NotFound(f"nobody has {cid}")
        data = self.blobs[cid]
        for i in range(0, len(data), 1000):
            yield data[i : i + 1000]

    async def add_model(self, cid: str, **kwargs: Any) -> Mapping[str, Any]:
        return {"cid": cid, **kwargs}

    def status(self) -> Mapping[str, Any]:
        return {"name": "n", "term": 3, "gateway": None}

    def invite(self) -> str:
        return "dim:invite"

    def electorate(self) -> Mapping[str, Any]:
        voters = [{"peer_id": "p1", "name": "n", "state": "alive"}, {"peer_id": "p2", "name": "", "state": "unknown"}]
        return {
            "mode": "majority", "version": 2, "acts": True, "majority": 2, "quorum": False, "operator": "op", "operator_here": True, "voters": voters,
        }  # fmt: skip

    async def change_electorate(self, peer: str, action: str) -> Mapping[str, Any]:
        if peer == "nobody":
            raise NotFound("nobody is no voter")
        return {**self.electorate(), "version": 3, "voters": [{"peer_id": peer, "name": action, "state": "alive"}]}

    async def events(self, kinds: Any, *, follow: bool) -> AsyncGenerator[Mapping[str, Any], None]:
        """With ``follow`` one more, after which nothing comes until the caller leaves."""
        for number in range(3 if follow else 2):
            yield {"kind": kinds[0] if kinds else "jobs", "event": "accepted", "job": f"job-{number}", "at": 1.5, "epoch": number}
        if follow:
            try:
                await trio.sleep_forever()
            finally:
                self.events_left.set()

    async def node_stats(self, node: str) -> Mapping[str, Any]:
        return {"node": node, "queue": {"length": 0}}

    async def add_model_file(self, path: str, **kwargs: Any) -> Mapping[str, Any]:
        return {"cid": path, **kwargs}

    async def describe_model(self, name: str) -> Mapping[str, Any]:
        return {"id": name, "golden": None}

    async def check_model(self, name: str) -> Mapping[str, Any]:
        return {"id": name, "golden": True}

    async def remove_model(self, name: str) -> Mapping[str, Any]:
        return {"removed": [{"id": name, "cid": "c"}]}

    async def add_cabinet(self, name: str, path: str, policy: str) -> Mapping[str, Any]:
        return {"name": name, "rows": 1, "columns": {}, "format": "csv"}

    def cabinets(self) -> list[Mapping[str, Any]]:
        return [{"name": "c", "rows": 3, "columns": {"x": "float32"}, "format": "csv"}]


class FakeTasks:
    """A daemon whose tasks end when `release` is set; they run until then."""

    def __init__(self) -> None:
        self.callers: list[str] = []
        self.orders: list[TaskOrder] = []
        self.release = trio.Event()
        self.started = trio.Event()
        self.cancelled = trio.Event()
        self.cancels: list[Any] = []

    async def run_task(self, order: TaskOrder, caller: str) -> AsyncGenerator[TaskUpdate, None]:
        self.callers.append(caller)
        self.orders.append(order)
        yield TaskUpdate(stage="accepted")
        self.started.set()
        try:
            await self.release.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        yield TaskUpdate(stage="finished", entry=SignedEntry(b"payload", "author", b"signature"))

    async def cancel_task(self, job: str, task: str, attempt: int, ballot: Ballot) -> bool:
        self.cancels.append((job, task, attempt, ballot))
        return True

    async def prewarm(self, model_cid: str, manifest_cid: str, providers: Any) -> bool:
        return True

    def stats(self) -> Mapping[str, Any]:
        return {"queue": {"length": 0}, "load": 0.5}

    def models(self) -> tuple[ModelRef, ...]:
        return (ModelRef(id="m", cid="bafy", manifest_cid="bafm", format="onnx", size=5),)


def an_order(**changes: Any) -> TaskOrder:
    given: dict[str, Any] = {
        "job": "job-1", "task": "r0/s0", "attempt": 1, "ballot": Ballot(1, "p", "b"), "task_key": "k",
        "model_id": "m", "model_cid": "bafy", "manifest_cid": "bafm",
    }  # fmt: skip
    return TaskOrder(**{**given, **changes})


class FakeSwitch:
    """Connects `FakeNetwork`s; ``cut`` holds peers that nobody reaches."""

    def __init__(self) -> None:
        self.nodes: dict[str, FakeNetwork] = {}
        self.cut: set[str] = set()
        self.requests = 0

    def node(self, peer: str) -> FakeNetwork:
        self.nodes[peer] = FakeNetwork(self, peer)
        return self.nodes[peer]


class FakeNetwork:
    """The part of `p2p.api.Network` that certificates need."""

    def __init__(self, switch: FakeSwitch, peer: str) -> None:
        self._switch = switch
        self.peer_id = peer
        self._handlers: dict[str, Callable[[str, bytes], Awaitable[bytes]]] = {}

    def serve(self, method: str, handler: Callable[[str, bytes], Awaitable[bytes]], concurrency: int = 64) -> None:
        self._handlers[method] = handler

    def peers(self) -> frozenset[str]:
        return frozenset(self._switch.nodes) - {self.peer_id}

    async def request(self, peer: str, method: str, data: bytes, *, timeout: float) -> bytes:
        await trio.lowlevel.checkpoint()
        self._switch.requests += 1
        if peer not in self._switch.nodes:
            raise Unreachable(peer)
        if peer in self._switch.cut:
            raise RequestTimeout(peer)
        return await self._switch.nodes[peer]._handlers[method](self.peer_id, data)
