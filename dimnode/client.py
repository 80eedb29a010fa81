"""The Python client of a swarm: plain dicts and numpy arrays, synchronous.

    with Client(["10.0.0.1:50051", "10.0.0.2:50051"]) as dim:
        job = dim.submit(form, {"x": array})
        print(dim.wait(job["job_id"])["outputs"])

Any orchestrator will do. The client learns from the one that answers who the others are and turns to them when it is
gone; the addresses that it was given stay in reserve. A submission carries an idempotency key (its own if the form
has none), so that repeating it makes no second job.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dimnode.core.following import TERMINAL as TERMINAL
from dimnode.core.following import Follower
from dimnode.core.partial_text import Seen
from dimnode.core.routes import Told
from dimnode.domain import tensors
from dimnode.domain.job_form import JobForm, parse_job_form
from dimnode.domain.task import PartialOutput
from dimnode.domain.tensors import TensorValue
from dimnode.errors import Code, DimError
from dimnode.rpc import documents
from dimnode.rpc.convert import form_to_spec, from_struct
from dimnode.rpc.finder import Greeting, Swarm
from dimnode.rpc.roaming import ClientSettings, Connection
from dimnode.rpc.server import is_loopback
from dimnode.rpc.v1 import orchestrator_pb2 as pb
from dimnode.rpc.v1.orchestrator_pb2_grpc import OrchestratorStub

Array = NDArray[Any]
Form = Mapping[str, Any]
Data = Mapping[str, Any]
"""Input name -> array (or what `numpy.asarray` takes)."""


@dataclass(frozen=True, slots=True)
class TransferSettings:
    inline_bytes: int = 64 * 1024
    """Larger tensors are stored as artifacts and named by CID."""
    inline_total: int = 512 * 1024
    """Bytes of inline tensors in one job; beyond it the largest are stored too."""
    chunk: int = 256 * 1024
    """Bytes in one piece of an artifact."""
    batch_jobs: int = 500
    """Most jobs in one message of `Client.submit_many`."""
    batch_bytes: int = 4 * 1024 * 1024
    """Most bytes in such a message, unless a single job is larger."""
    result_wait: float = 20.0
    """Seconds that one question for a result may wait on the server."""
    poll: float = 0.25
    """Least seconds between two such questions."""
    timeout: float = 600.0
    """Seconds for one transfer, and for AddModel."""


@dataclass(frozen=True, slots=True)
class Settings:
    connection: ClientSettings = field(default_factory=ClientSettings)
    transfer: TransferSettings = field(default_factory=TransferSettings)
    remembered: int = 10_000
    """Jobs that the client knows to exist because it submitted or saw them. That one of these is NOT_FOUND is not
    believed for `ClientSettings.missing_for` seconds: its new owner may have to get it first."""


def tensor_from_numpy(array: Any) -> TensorValue:
    """An inline tensor of anything that `numpy.asarray` takes. Raises `InvalidArgument`."""
    return tensors.from_numpy(np.asarray(array))


def _read_cluster(answer: Any) -> Swarm:
    told = tuple(Told(o.peer_id, o.grpc, o.local_only or is_loopback(o.grpc)) for o in answer.orchestrators)
    return Swarm(answer.swarm, told)


_GREETING = Greeting("GetCluster", pb.GetClusterRequest(), _read_cluster)


class Client:
    """``targets``: ``host:port`` or ``unix:PATH``, one or several. Thread-safe; close it after use: calls under way then
    end with CANCELLED. Every method raises `DimError`: UNAVAILABLE when nobody answers for `ClientSettings.retry_for`
    seconds, DEADLINE_EXCEEDED when an orchestrator that is there does not finish in time."""

    def __init__(self, targets: str | Sequence[str], settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        several = [targets] if isinstance(targets, str) else list(targets)
        self._connection = Connection(several, OrchestratorStub, self._settings.connection, _GREETING)
        self._jobs = _Remembered(self._settings.remembered)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def addresses(self) -> tuple[str, ...]:
        """Where orchestrators are looked for, in this order: those given and those learned."""
        return self._connection.finder.routes.order(time.monotonic())

    # --- jobs

    def submit(self, form: Form, data: Data | None = None) -> dict[str, Any]:
        """``{"job_id", "copies"}``. ``data`` becomes the job's ``client_data``. When this raises UNAVAILABLE or
        DEADLINE_EXCEEDED the job may have been accepted all the same: submit it again with the ``idempotency_key`` of
        the first time, if the form had one, to learn its id."""
        answer = self._connection.call("SubmitJob", pb.SubmitJobRequest(spec=self._spec(form, data)))
        self._jobs.add(answer.job_id)
        return {"job_id": answer.job_id, "copies": answer.copies}

    def submit_many(self, forms: Iterable[Form]) -> list[dict[str, Any]]:
        """For each ``{"job_id", "copies"}`` or ``{"error": {code, message, hint}}``. A form that is wrong by itself raises
        before anything is sent. What nobody acknowledged is sent again, elsewhere if need be; it has an error in the end
        if that does not help, or the error is raised if nothing at all was acknowledged."""
        specs = [self._spec(f, None) for f in forms]
        transfer = self._settings.transfer
        answers: list[dict[str, Any]] = []
        for batch in _batches(specs, transfer.batch_jobs, transfer.batch_bytes):
            try:
                self._submit_batch(batch, answers)
            except DimError as e:
                if not any("job_id" in a for a in answers):
                    raise
                document = {"code": e.code.value, "message": e.message, "hint": e.hint}
                answers += [{"error": document} for _ in range(len(specs) - len(answers))]
                break
        return answers

    def _submit_batch(self, specs: Sequence[Any], answers: list[dict[str, Any]]) -> None:
        """Appends an answer for each. Raises if nobody took the batch as a whole."""
        found: list[dict[str, Any]] = [{} for _ in specs]
        pending = list(range(len(specs)))

        def attempt(stub: Any, left: float) -> None:
            """Raises the first error that may pass, after everything that was acknowledged is noted."""
            jobs = stub.SubmitJobs(pb.SubmitJobsRequest(specs=[specs[i] for i in pending]), timeout=left).jobs
            passing: list[DimError] = []
            for i, job in zip(tuple(pending), jobs, strict=True):
                found[i] = self._item(job)
                error = _may_pass(found[i].get("error"))
                if error is None:
                    pending.remove(i)
                else:
                    passing.append(error)
            if passing:
                raise min(passing, key=lambda e: e.code is not Code.UNAVAILABLE)

        try:
            self._connection.run(attempt)
        except DimError:
            if not any(found):
                raise
        answers += found

    def _item(self, job: Any) -> dict[str, Any]:
        if job.HasField("error"):
            return {"error": documents.error_from_proto(job.error)}
        self._jobs.add(job.job_id)
        return {"job_id": job.job_id, "copies": job.copies}

    def dry_run(self, form: Form, data: Data | None = None) -> dict[str, Any]:
        """``{"accepted", "placement", "estimated_cost"}``; large inputs are stored for it."""
        answer = self._connection.call("DryRun", pb.SubmitJobRequest(spec=self._spec(form, data)))
        return {"accepted": answer.accepted, "placement": from_struct(answer.placement), "estimated_cost": answer.estimated_cost}

    def get(self, job_id: str) -> dict[str, Any]:
        return documents.job_from_proto(self._about(job_id, "GetJob").job)

    def list(self, *, active: bool = False, limit: int = 0) -> list[dict[str, Any]]:
        """Newest first; ``limit`` 0 is the server's default."""
        answer = self._connection.call("ListJobs", pb.ListJobsRequest(active=active, limit=limit))
        for job in answer.jobs:
            self._jobs.add(job.job_id)
        return [documents.job_from_proto(j) for j in answer.jobs]

    def cancel(self, job_id: str) -> dict[str, Any]:
        return documents.job_from_proto(self._about(job_id, "CancelJob").job)

    def watch(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job at once and at every change, until it is terminal. Goes on over another orchestrator when one is gone:
        nothing is shown twice, and nothing older than what was shown."""
        follower = Follower()
        attempts = self._connection.attempts(exists=job_id in self._jobs)
        for _, event in self._connection.follow("WatchJob", pb.JobRequest(job_id=job_id), attempts, endless=True):
            self._jobs.add(job_id)
            attempts.exists = True
            document = documents.job_from_proto(event.job)
            if follower.news(document):
                yield document
            if follower.ended:
                return

    def follow(self, job_id: str) -> Iterator[dict[str, Any]]:
        """As `watch`, and between the documents pieces of the text that language models write, as they come: ``{"partial": {"task",
        "attempt", "row", "offset", "text"}}``. The pieces of one attempt and row, joined, are the beginning of its text, and all of it
        once the job has completed, unless it is very long. A piece with a higher ``attempt`` than the last of its task begins the
        text anew: the task is tried again. The result is what counts."""
        follower, seen = Follower(), Seen()
        attempts = self._connection.attempts(exists=job_id in self._jobs)
        for _, event in self._connection.follow("WatchJob", pb.JobRequest(job_id=job_id, partials=True), attempts, endless=True):
            self._jobs.add(job_id)
            attempts.exists = True
            if event.HasField("partial"):
                p = event.partial
                new = seen.news(PartialOutput(task=p.task, attempt=p.attempt, row=p.row, offset=p.offset, text=p.text))
                if new is not None:
                    yield {"partial": msgspec.structs.asdict(new)}
                continue
            document = documents.job_from_proto(event.job)
            if follower.news(document):
                yield document
            if follower.ended:
                return

    def wait(self, job_id: str, timeout: float = math.inf, *, fetch: bool = True) -> dict[str, Any]:
        """Waits until the job has ended; its result, as `result`. Raises the job's error if it failed, NOT_READY if it has
        not ended after ``timeout`` seconds."""
        end = time.monotonic() + timeout
        transfer = self._settings.transfer
        while True:
            asked = time.monotonic()
            try:
                return self.result(job_id, fetch=fetch, wait=max(0.0, min(transfer.result_wait, end - asked)))
            except DimError as e:
                if e.code is not Code.NOT_READY or time.monotonic() >= end:
                    raise
                self._jobs.add(job_id)
                self._connection.sleep(asked + transfer.poll - time.monotonic())  # the server may not wait

    def result(self, job_id: str, *, fetch: bool = True, wait: float = 0.0) -> dict[str, Any]:
        """The result document; ``outputs`` are arrays. Outputs by CID are fetched, or left as `TensorValue` with
        ``fetch=False``. Raises NOT_READY if the job has not ended within ``wait`` seconds (the server may wait less)."""
        answer = self._about(job_id, "GetResult", wait)
        document = documents.result_from_proto(answer.result)
        outputs: dict[str, TensorValue] = document["outputs"]
        document["outputs"] = {name: value if value.raw is None and not fetch else self.tensor(value) for name, value in outputs.items()}
        return document

    def _about(self, job_id: str, method: str, wait: float = 0.0) -> Any:
        request = pb.JobRequest(job_id=job_id, wait=wait)
        answer = self._connection.call(method, request, timeout=wait + self._settings.connection.timeout, exists=job_id in self._jobs)
        self._jobs.add(job_id)
        return answer

    # --- artifacts

    def tensor(self, value: TensorValue) -> Array:
        """The array of a tensor, fetched if it is by CID."""
        if value.cid is None:
            return tensors.to_numpy(value)
        return tensors.from_npy(b"".join(self.get_artifact(value.cid)))

    def put_artifact(self, chunks: Iterable[bytes] | bytes) -> dict[str, Any]:
        """Stores a file; ``{"cid", "size"}``. Bytes are sent again if an orchestrator vanishes, an iterable is not."""
        limit = self._settings.transfer.timeout
        if isinstance(chunks, bytes):
            whole = chunks
            return self._connection.run(lambda stub, left: _put(stub, _pieces(whole, self._settings.transfer.chunk), left), timeout=limit)
        return self._connection.once(lambda stub, left: _put(stub, chunks, left), timeout=limit)

    def put_file(self, path: Path) -> dict[str, Any]:
        """As `put_artifact`; it is read again if an orchestrator vanishes. Raises `OSError` if it cannot be opened."""

        def attempt(stub: Any, left: float) -> dict[str, Any]:
            with path.open("rb") as file:
                return _put(stub, iter(lambda: file.read(self._settings.transfer.chunk), b""), left)

        return self._connection.run(attempt, timeout=self._settings.transfer.timeout)

    def get_artifact(self, cid: str) -> Iterator[bytes]:
        """The file's bytes in pieces. Begins again elsewhere, at the byte that it had reached, if an orchestrator vanishes."""
        have = at = stream = 0
        attempts = self._connection.attempts(timeout=self._settings.transfer.timeout)
        for number, chunk in self._connection.follow("GetArtifact", pb.GetArtifactRequest(cid=cid), attempts, endless=False):
            if number != stream:
                stream, at = number, 0
            new = chunk.data[max(0, have - at) :]
            at += len(chunk.data)
            if new:
                have += len(new)
                yield new

    # --- models and the swarm

    def add_model(
        self, cid: str, *, id: str, format: str = "", licence: str = "", batch_axis: int | None = None, form: str = ""
    ) -> dict[str, Any]:
        """Makes a stored artifact a model of the swarm. ``format`` empty: recognised from the content. ``form``: what the
        author says of it, JSON (docs/models.md)."""
        request = pb.AddModelRequest(cid=cid, id=id, format=format, licence=licence, batch_axis=batch_axis, form=form)
        answer = self._connection.call("AddModel", request, timeout=self._settings.transfer.timeout)
        return documents.model_from_proto(answer.model)

    def models(self) -> list[dict[str, Any]]:
        answer = self._connection.call("ListModels", pb.ListSwarmModelsRequest())
        return [documents.model_from_proto(m) for m in answer.models]

    def nodes(self) -> list[dict[str, Any]]:
        answer = self._connection.call("ListNodes", pb.ListNodesRequest())
        return [documents.node_from_proto(n) for n in answer.nodes]

    def cluster(self) -> dict[str, Any]:
        """``{"swarm", "orchestrators": [{peer_id, name, grpc, term, seat, local_only}]}``"""
        answer = self._connection.call("GetCluster", pb.GetClusterRequest())
        return {"swarm": answer.swarm, "orchestrators": [documents.orchestrator_from_proto(o) for o in answer.orchestrators]}

    # --- building a job

    def _spec(self, form: Form, data: Data | None) -> Any:
        parsed = parse_job_form(form)
        values = {**parsed.client_data, **{name: tensor_from_numpy(a) for name, a in (data or {}).items()}}
        spec = form_to_spec(JobForm(parsed.form, self._store_large(values)))
        if not spec.idempotency_key:
            spec.idempotency_key = uuid.uuid4().hex
        return spec

    def _store_large(self, values: Mapping[str, TensorValue]) -> dict[str, TensorValue]:
        """Largest first, until what is left inline is small enough."""
        transfer = self._settings.transfer
        out = dict(values)
        total = sum(v.nbytes for v in out.values())
        for name in sorted(out, key=lambda n: -out[n].nbytes):
            value = out[name]
            if value.nbytes <= transfer.inline_bytes and total <= transfer.inline_total:
                break
            stored = self.put_artifact(tensors.to_npy(tensors.to_numpy(value)))
            total -= value.nbytes
            out[name] = TensorValue(dtype=value.dtype, shape=value.shape, cid=stored["cid"])
        return out


class _Remembered:
    """The last so many ids. Thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, key: str) -> None:
        with self._lock:
            self._ids[key] = None
            self._ids.move_to_end(key)
            while len(self._ids) > self._most:
                self._ids.popitem(last=False)

    def __contains__(self, key: str) -> bool:
        with self._lock:
            return key in self._ids


def _put(stub: Any, chunks: Iterable[bytes], timeout: float) -> dict[str, Any]:
    answer = stub.PutArtifact((pb.ArtifactChunk(data=c) for c in chunks), timeout=timeout)
    return {"cid": answer.cid, "size": answer.size}


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, max(1, len(data)), size):
        yield data[start : start + size]


def _batches(specs: Sequence[Any], most: int, most_bytes: int) -> Iterator[list[Any]]:
    """In order, as large as the limits allow, one spec at the least."""
    batch: list[Any] = []
    size = 0
    for spec in specs:
        more = spec.ByteSize() + 8  # with its tag and length
        if batch and (len(batch) >= most or size + more > most_bytes):
            yield batch
            batch, size = [], 0
        batch.append(spec)
        size += more
    if batch:
        yield batch


def _may_pass(error: Mapping[str, Any] | None) -> DimError | None:
    """The error of one job of a batch, if it says that there was no place for it now."""
    if error is None or error["code"] not in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED):
        return None
    retry_after = error.get("details", {}).get("retry_after")
    return DimError(error["message"], hint=error["hint"], code=Code(error["code"]), retry_after=retry_after)
