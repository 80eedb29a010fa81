"""Orchestrators as a client sees them: real gRPC servers in threads that share a swarm's jobs, each behind a gate that
can hang, break or close like a machine."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from dimnode.errors import DimError, NotFound, NotReady
from dimnode.rpc import documents
from dimnode.rpc.errors import to_status
from dimnode.rpc.v1 import orchestrator_pb2 as pb
from dimnode.rpc.v1.orchestrator_pb2_grpc import OrchestratorServicer, add_OrchestratorServicer_to_server


def wait_for(look: Callable[[], Any], what: str, within: float = 10.0) -> Any:
    until = time.monotonic() + within
    while not (seen := look()):
        assert time.monotonic() < until, f"not within {within} s: {what}"
        time.sleep(0.01)
    return seen


Pair = tuple[socket.socket, socket.socket]


def _end(s: socket.socket) -> None:
    with contextlib.suppress(OSError):
        s.shutdown(socket.SHUT_RDWR)


class Gate:
    """A TCP relay. ``hang``: as SIGSTOP, the kernel still accepts; ``kill``: as kill -9, connections break."""

    def __init__(self, upstream: int, port: int = 0) -> None:
        self._upstream = upstream
        self._flows = threading.Event()
        self._flows.set()
        self._lock = threading.Lock()
        self._open: set[Pair] = set()
        self._threads: list[threading.Thread] = []
        self.accepted = 0
        self._listen(port)

    def _listen(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=64)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept, self._listener)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True, name="gate")
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                try:
                    inner, _ = listener.accept()
                except OSError:
                    return
                pair = (inner, socket.create_connection(("127.0.0.1", self._upstream)))
                with self._lock:
                    self._open.add(pair)
                    self.accepted += 1
                self._start(self._relay, pair)

    def _relay(self, pair: Pair) -> None:
        inner, outer = pair
        back = threading.Thread(target=self._pump, args=(outer, inner), daemon=True, name="gate")
        back.start()
        self._pump(inner, outer)
        back.join()
        with self._lock:
            self._open.discard(pair)
        inner.close()
        outer.close()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                sink.sendall(data)
        _end(source)
        _end(sink)

    def connections(self) -> int:
        with self._lock:
            return len(self._open)

    def hang(self) -> None:
        self._flows.clear()

    def resume(self) -> None:
        self._flows.set()

    def kill(self) -> None:
        _end(self._listener)
        with self._lock:
            for pair in self._open:
                for one in pair:
                    _end(one)
        self._flows.set()

    def revive(self) -> None:
        self._listen(int(self.address.rpartition(":")[2]))

    def close(self) -> None:
        self.kill()
        for thread in self._threads:
            thread.join(10)


class Swarm:
    """What all orchestrators of one swarm know."""

    def __init__(self, name: str = "s") -> None:
        self.name = name
        self.changed = threading.Condition()
        self.jobs: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, str] = {}
        self.specs: dict[str, Any] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.holders: list[Orchestrator] = []
        self._all: list[Orchestrator] = []

    def __enter__(self) -> Swarm:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._all:
            one.close()

    def start(self, *, port: int = 0) -> Orchestrator:
        one = Orchestrator(self, f"p{len(self._all)}", port)
        self._all.append(one)
        self.holders.append(one)
        return one

    def submit(self, spec: Any) -> str:
        with self.changed:
            job = self.keys.setdefault(spec.idempotency_key, f"job-{len(self.keys)}")
            self.specs.setdefault(job, spec)
            self.jobs.setdefault(job, {"job_id": job, "status": "queued", "epoch": 1, "updated": 1.0})
            return job

    def change(self, job: str, **fields: Any) -> None:
        with self.changed:
            self.jobs[job] = {**self.jobs[job], **fields}
            self.changed.notify_all()


Hook = Callable[[Any], None]
"""Called with a request; may block, or raise `DimError` to refuse."""


class Orchestrator(OrchestratorServicer):
    """One seat. ``before`` and ``after`` hold hooks by method name, called around what the method does."""

    def __init__(self, swarm: Swarm, peer: str, port: int) -> None:
        self.swarm = swarm
        self.peer = peer
        self.asked: Counter[str] = Counter()
        self.before: dict[str, Hook] = {}
        self.after: dict[str, Hook] = {}
        self.view: dict[str, dict[str, Any]] | None = None
        """What it believes of jobs, if that is not the latest."""
        self.batches: list[int] = []
        self._stopping = False
        self._pool = ThreadPoolExecutor(32)
        self._server = grpc.server(self._pool, options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 16 << 20)])
        add_OrchestratorServicer_to_server(self, self._server)
        inner = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self.gate = Gate(inner, port)

    @property
    def address(self) -> str:
        return self.gate.address

    def lose_seat(self) -> None:
        """It is alive and does not serve any more."""
        self.swarm.holders.remove(self)
        self.gate.kill()

    def kill(self) -> None:
        self.lose_seat()

    def hang(self) -> None:
        self.swarm.holders.remove(self)
        self.gate.hang()

    def thaw(self) -> None:
        self.gate.resume()
        self.swarm.holders.append(self)

    def close(self) -> None:
        self._stopping = True
        with self.swarm.changed:
            self.swarm.changed.notify_all()
        self.gate.close()
        self._server.stop(0).wait()
        self._pool.shutdown()

    def _jobs(self) -> dict[str, dict[str, Any]]:
        return self.swarm.jobs if self.view is None else self.view

    def _serve(self, method: str, request: Any, context: Any, work: Callable[[], Any]) -> Any:
        self.asked[method] += 1
        try:
            if method in self.before:
                self.before[method](request)
            answer = work()
            if method in self.after:
                self.after[method](request)
        except DimError as e:
            self._refuse(e, context)
        return answer

    def _refuse(self, error: DimError, context: Any) -> None:
        code, text, metadata = to_status(error)
        context.set_trailing_metadata(metadata)
        context.abort(code, text)

    def _find(self, job: str) -> dict[str, Any]:
        if job not in self._jobs():
            raise NotFound(f"there is no job {job}")
        return self._jobs()[job]

    def SubmitJob(self, request: Any, context: Any) -> Any:
        return self._serve("SubmitJob", request, context, lambda: pb.SubmitJobResponse(job_id=self.swarm.submit(request.spec), copies=2))

    def SubmitJobs(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            self.batches.append(len(request.specs))
            return pb.SubmitJobsResponse(jobs=[self._item(spec) for spec in request.specs])

        return self._serve("SubmitJobs", request, context, work)

    def _item(self, spec: Any) -> Any:
        try:
            if "item" in self.before:
                self.before["item"](spec)
        except DimError as e:
            return pb.SubmitJobsItem(error=documents.error_to_proto(e))
        return pb.SubmitJobsItem(job_id=self.swarm.submit(spec), copies=2)

    def GetJob(self, request: Any, context: Any) -> Any:
        return self._serve("GetJob", request, context, lambda: pb.GetJobResponse(job=documents.job_to_proto(self._find(request.job_id))))

    def GetResult(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            self._find(request.job_id)
            with self.swarm.changed:
                self.swarm.changed.wait_for(lambda: self._stopping or request.job_id in self.swarm.results, request.wait)
            if request.job_id not in self.swarm.results:
                raise NotReady("not yet")
            return pb.GetResultResponse(result=documents.result_to_proto(self.swarm.results[request.job_id]))

        return self._serve("GetResult", request, context, work)

    def WatchJob(self, request: Any, context: Any) -> Iterator[Any]:
        self.asked["WatchJob"] += 1
        shown: Any = None
        while not self._stopping and context.is_active():
            try:
                if "WatchJob" in self.before:
                    self.before["WatchJob"](request)
                document = self._find(request.job_id)
            except DimError as e:
                self._refuse(e, context)
                return
            if document != shown:
                shown = document
                yield pb.JobEvent(job=documents.job_to_proto(document))
                if document["status"] == "completed":
                    return
            with self.swarm.changed:
                self.swarm.changed.wait(0.02)

    def GetCluster(self, request: Any, context: Any) -> Any:
        def work() -> Any:
            told = [{"peer_id": o.peer, "grpc": o.address, "local_only": True} for o in self.swarm.holders]
            return pb.GetClusterResponse(swarm=self.swarm.name, orchestrators=[documents.orchestrator_to_proto(o) for o in told])

        return self._serve("GetCluster", request, context, work)

    def ListNodes(self, request: Any, context: Any) -> Any:
        return self._serve("ListNodes", request, context, pb.ListNodesResponse)

    def PutArtifact(self, requests: Any, context: Any) -> Any:
        self.asked["PutArtifact"] += 1
        data = b""
        for chunk in requests:
            data += chunk.data
            if "PutArtifact" in self.before:
                self.before["PutArtifact"](chunk)
        self.swarm.blobs[cid := f"bafy{len(data)}"] = data
        return pb.PutArtifactResponse(cid=cid, size=len(data))

    def GetArtifact(self, request: Any, context: Any) -> Iterator[Any]:
        self.asked["GetArtifact"] += 1
        data = self.swarm.blobs[request.cid]
        for n in range(0, len(data), 1000):
            yield pb.ArtifactChunk(data=data[n : n + 1000])
            if "GetArtifact" in self.before:
                self.before["GetArtifact"](n)
