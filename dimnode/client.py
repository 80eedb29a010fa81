"""The Python client of a swarm: plain dicts and numpy arrays, synchronous.

    with Client("127.0.0.1:50051") as dim:
        job = dim.submit(form, {"x": array})
        print(dim.wait(job["job_id"])["outputs"])

Any orchestrator will do; give several addresses and the client turns to the next when one is gone. A submission
carries an idempotency key (its own if the form has none), so that repeating it makes no second job.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimnode.domain import tensors
from dimnode.domain.job_form import JobForm, parse_job_form
from dimnode.domain.tensors import TensorValue
from dimnode.errors import Code, DimError
from dimnode.rpc import documents
from dimnode.rpc.clients import ClientSettings, Connection
from dimnode.rpc.convert import form_to_spec, from_struct
from dimnode.rpc.v1 import orchestrator_pb2 as pb
from dimnode.rpc.v1.orchestrator_pb2_grpc import OrchestratorStub

Array = NDArray[Any]
Form = Mapping[str, Any]
Data = Mapping[str, Any]
"""Input name -> array (or what `numpy.asarray` takes)."""
TERMINAL = frozenset({"completed", "failed", "cancelled", "expired", "deleted"})


@dataclass(frozen=True, slots=True)
class TransferSettings:
    inline_bytes: int = 64 * 1024
    """Larger tensors are stored as artifacts and named by CID."""
    inline_total: int = 512 * 1024
    """Bytes of inline tensors in one job; beyond it the largest are stored too."""
    chunk: int = 256 * 1024
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


def tensor_from_numpy(array: Any) -> TensorValue:
    """An inline tensor of anything that `numpy.asarray` takes. Raises `InvalidArgument`."""
    return tensors.from_numpy(np.asarray(array))


class Client:
    """``targets``: ``host:port`` or ``unix:PATH``, one or several. Every method raises `DimError`. Thread-safe."""

    def __init__(self, targets: str | Sequence[str], settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        several = [targets] if isinstance(targets, str) else list(targets)
        self._connection = Connection(several, OrchestratorStub, self._settings.connection)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    # --- jobs

    def submit(self, form: Form, data: Data | None = None) -> dict[str, Any]:
        """``{"job_id", "copies"}``. ``data`` becomes the job's ``client_data``."""
        answer = self._connection.call("SubmitJob", pb.SubmitJobRequest(spec=self._spec(form, data)))
        return {"job_id": answer.job_id, "copies": answer.copies}

    def submit_many(self, forms: Iterable[Form]) -> list[dict[str, Any]]:
        """For each ``{"job_id", "copies"}`` or ``{"error": {code, message, hint}}``. A form that is wrong by itself raises
        before anything is sent."""
        request = pb.SubmitJobsRequest(specs=[self._spec(f, None) for f in forms])
        answer = self._connection.call("SubmitJobs", request)
        return [
            {"error": documents.error_from_proto(j.error)} if j.HasField("error") else {"job_id": j.job_id, "copies": j.copies}
            for j in answer.jobs
        ]

    def dry_run(self, form: Form, data: Data | None = None) -> dict[str, Any]:
        """``{"accepted", "placement", "estimated_cost"}``; large inputs are stored for it."""
        answer = self._connection.call("DryRun", pb.SubmitJobRequest(spec=self._spec(form, data)))
        return {"accepted": answer.accepted, "placement": from_struct(answer.placement), "estimated_cost": answer.estimated_cost}

    def get(self, job_id: str) -> dict[str, Any]:
        return documents.job_from_proto(self._connection.call("GetJob", pb.JobRequest(job_id=job_id)).job)

    def list(self, *, active: bool = False, limit: int = 0) -> list[dict[str, Any]]:
        """Newest first; ``limit`` 0 is the server's default."""
        answer = self._connection.call("ListJobs", pb.ListJobsRequest(active=active, limit=limit))
        return [documents.job_from_proto(j) for j in answer.jobs]

    def cancel(self, job_id: str) -> dict[str, Any]:
        return documents.job_from_proto(self._connection.call("CancelJob", pb.JobRequest(job_id=job_id)).job)

    def watch(self, job_id: str) -> Iterator[dict[str, Any]]:
        """The job at once and at every change, until it is terminal. Goes on over another orchestrator when one is gone."""
        last: dict[str, Any] = {}
        while last.get("status") not in TERMINAL:
            try:
                for event in self._connection.stream("WatchJob", pb.JobRequest(job_id=job_id)):
                    document = documents.job_from_proto(event.job)
                    if document != last:
                        last = document
                        yield document
                if last.get("status") not in TERMINAL:
                    self.get(job_id)  # the stream ended early; pauses and turns elsewhere if there is nobody
            except DimError as e:
                if e.code not in (Code.UNAVAILABLE, Code.CANCELLED):
                    raise
                self.get(job_id)

    def wait(self, job_id: str) -> dict[str, Any]:
        """Waits until the job has ended; its result, as `result`. Raises the job's error if it failed."""
        while True:
            asked = time.monotonic()
            try:
                return self.result(job_id, wait=self._settings.transfer.result_wait)
            except DimError as e:
                if e.code is not Code.NOT_READY:
                    raise
                if time.monotonic() - asked < self._settings.transfer.poll:  # the server does not wait
                    time.sleep(self._settings.transfer.poll)

    def result(self, job_id: str, *, fetch: bool = True, wait: float = 0.0) -> dict[str, Any]:
        """The result document; ``outputs`` are arrays. Outputs by CID are fetched, or left as `TensorValue` with
        ``fetch=False``. Raises NOT_READY if the job has not ended within ``wait`` seconds (the server may wait less)."""
        limit = wait + self._settings.connection.timeout
        answer = self._connection.call("GetResult", pb.JobRequest(job_id=job_id, wait=wait), timeout=limit)
        document = documents.result_from_proto(answer.result)
        outputs: dict[str, TensorValue] = document["outputs"]
        document["outputs"] = {name: value if value.raw is None and not fetch else self.tensor(value) for name, value in outputs.items()}
        return document

    # --- artifacts

    def tensor(self, value: TensorValue) -> Array:
        """The array of a tensor, fetched if it is by CID."""
        if value.cid is None:
            return tensors.to_numpy(value)
        return tensors.from_npy(b"".join(self.get_artifact(value.cid)))

    def put_artifact(self, chunks: Iterable[bytes] | bytes) -> dict[str, Any]:
        """Stores a file; ``{"cid", "size"}``. Bytes are sent again if an orchestrator vanishes, an iterable is not."""
        if isinstance(chunks, bytes):
            whole = chunks
            return self._connection.retry(lambda stub: self._put(stub, _pieces(whole, self._settings.transfer.chunk)))
        return self._connection.once(lambda stub: self._put(stub, chunks))

    def _put(self, stub: Any, chunks: Iterable[bytes]) -> dict[str, Any]:
        requests = (pb.ArtifactChunk(data=c) for c in chunks)
        answer = stub.PutArtifact(requests, timeout=self._settings.transfer.timeout)
        return {"cid": answer.cid, "size": answer.size}

    def get_artifact(self, cid: str) -> Iterator[bytes]:
        """The file's bytes in pieces. Begins again elsewhere, at the byte that it had reached, if an orchestrator vanishes."""
        have = 0
        for last in (False, True):
            at = 0
            try:
                for chunk in self._connection.stream("GetArtifact", pb.GetArtifactRequest(cid=cid)):
                    new = chunk.data[max(0, have - at) :]
                    at += len(chunk.data)
                    if new:
                        have += len(new)
                        yield new
                return
            except DimError as e:
                if last or e.code is not Code.UNAVAILABLE:
                    raise

    # --- models and the swarm

    def add_model(self, cid: str, *, id: str, format: str = "", licence: str = "", batch_axis: int | None = None) -> dict[str, Any]:
        """Makes a stored artifact a model of the swarm. ``format`` empty: recognised from the content."""
        request = pb.AddModelRequest(cid=cid, id=id, format=format, licence=licence, batch_axis=batch_axis)
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


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, max(1, len(data)), size):
        yield data[start : start + size]
