"""The client API, served by holders of a seat for as long as they hold it."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from dimnode.domain.job_form import JobForm
from dimnode.domain.task import PartialOutput
from dimnode.errors import DimError, FailedPrecondition, FieldProblem, InvalidArgument
from dimnode.ports import Accepted, OrchestratorApi, SwarmApi
from dimnode.rpc import convert, documents
from dimnode.rpc.bridge import Bridge
from dimnode.rpc.dispatch import Call, Service, closing
from dimnode.rpc.server import RunningServer, ServerSettings, is_loopback, serve
from dimnode.rpc.tls import TlsFiles, server_credentials
from dimnode.rpc.v1 import orchestrator_pb2 as pb

RateLimit = Callable[[str], None]
"""Called with the principal before every call; raises `ResourceExhausted` to refuse."""
ANONYMOUS = "anonymous"


def _no_limit(_principal: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class OrchestratorServerSettings:
    server: ServerSettings = field(default_factory=lambda: ServerSettings(setting="orchestrator.listen"))
    max_spec_bytes: int = 1024 * 1024
    """Largest job spec, inline inputs included. Larger inputs go by CID."""
    max_batch: int = 1000
    """Most jobs in one SubmitJobs."""
    max_listed: int = 1000
    """Most jobs in one ListJobs; its default too."""
    tls: TlsFiles | None = None
    insecure_public: bool = False
    """Listen beyond loopback although nobody is authenticated."""


class OrchestratorService:
    """`dim.v1.Orchestrator` over the ports; runs in trio."""

    def __init__(self, api: OrchestratorApi, swarm: SwarmApi, settings: OrchestratorServerSettings, limit: RateLimit = _no_limit) -> None:
        self._api = api
        self._swarm = swarm
        self._settings = settings
        self._limit = limit

    def _admit(self, call: Call) -> str:
        """The caller's principal, if its rate allows the call. With client certificates it is the name that the
        operator's CA vouches for."""
        name = call.common_name if self._settings.tls is not None else None
        principal = f"cert:{name}" if name else ANONYMOUS
        self._limit(principal)
        return principal

    def _form(self, spec: Any, path: str) -> JobForm:
        size = spec.ByteSize()
        if size > self._settings.max_spec_bytes:
            rule = f"must not be larger than {self._settings.max_spec_bytes} bytes, is {size}"
            hint = "Store large inputs with PutArtifact and name them by CID."
            raise InvalidArgument(f"{path} {rule}", fields=(FieldProblem(path, rule),), hint=hint)
        return convert.spec_to_form(spec)

    async def SubmitJob(self, request: Any, call: Call) -> Any:  # noqa: N802 - gRPC's names
        principal = self._admit(call)
        accepted = await self._api.submit(self._form(request.spec, "spec"), principal)
        return pb.SubmitJobResponse(job_id=accepted.job_id, copies=accepted.copies)

    async def SubmitJobs(self, request: Any, call: Call) -> Any:  # noqa: N802
        principal = self._admit(call)
        if len(request.specs) > self._settings.max_batch:
            rule = f"must not have more than {self._settings.max_batch} jobs"
            raise InvalidArgument(f"specs {rule}", fields=(FieldProblem("specs", rule),))
        forms = [self._form_or_error(spec, f"specs[{i}]") for i, spec in enumerate(request.specs)]
        answers = await self._api.submit_many(forms, principal)
        return pb.SubmitJobsResponse(jobs=[_item(a) for a in answers])

    def _form_or_error(self, spec: Any, path: str) -> JobForm | DimError:
        try:
            return self._form(spec, path)
        except DimError as e:
            return e

    async def GetJob(self, request: Any, call: Call) -> Any:  # noqa: N802
        self._admit(call)
        return pb.GetJobResponse(job=documents.job_to_proto(await self._api.get(_job_id(request))))

    async def ListJobs(self, request: Any, call: Call) -> Any:  # noqa: N802
        self._admit(call)
        most = self._settings.max_listed
        jobs = await self._api.list_jobs(request.active, min(request.limit, most) if request.limit > 0 else most)
        return pb.ListJobsResponse(jobs=[documents.job_to_proto(j) for j in jobs])

    async def WatchJob(self, request: Any, call: Call) -> AsyncIterator[Any]:  # noqa: N802
        self._admit(call)
        job = _job_id(request)
        async with closing(self._api.follow(job) if request.partials else self._api.watch(job)) as events:
            async for event in events:
                if isinstance(event, PartialOutput):
                    yield pb.JobEvent(partial=pb.PartialOutput(**msgspec.structs.asdict(event)))
                else:
                    yield pb.JobEvent(job=documents.job_to_proto(event))

    async def CancelJob(self, request: Any, call: Call) -> Any:  # noqa: N802
        self._admit(call)
        return pb.GetJobResponse(job=documents.job_to_proto(await self._api.cancel(_job_id(request))))

    async def GetResult(self, request: Any, call: Call) -> Any:  # noqa: N802
        self._admit(call)
        wait = request.wait if 0 < request.wait < math.inf else 0.0
        return pb.GetResultResponse(result=documents.result_to_proto(await self._api.result(_job_id(request), wait)))

    async def DryRun(self, request: Any, call: Call) -> Any:  # noqa: N802
        principal = self._admit(call)
        plan = await self._api.dry_run(self._form(request.spec, "spec"), principal)
        placement = plan.get("placement") or {}
        if not isinstance(placement, dict):
            placement = {"tasks": placement}
        out = pb.DryRunResponse(accepted=bool(plan.get("accepted")), estimated_cost=float(plan.get("estimated_cost") or 0))
        out.placement.CopyFrom(convert.to_struct(placement))
        return out

    async def ListNodes(self, request: Any, call: Call) -> Any:  # noqa: N802
        self._admit(call)
        return pb.ListNodesResponse(nodes=[documents.node_to_proto(n) for n in self._swarm.nodes()])

    async def GetCluster(self, request: Any, call: Call) -> Any:  # noqa: N802
        self._admit(call)
        cluster = self._swarm.cluster()
        seats = [documents.orchestrator_to_proto(o) for o in cluster.get("orchestrators") or ()]
        return pb.GetClusterResponse(swarm=cluster.get("swarm") or "", orchestrators=seats)

    async def PutArtifact(self, requests: AsyncIterator[Any], call: Call) -> Any:  # noqa: N802
        self._admit(call)
        cid, size = await self._swarm.put_artifact(_pieces(requests))
        return pb.PutArtifactResponse(cid=cid, size=size)

    async def GetArtifact(self, request: Any, call: Call) -> AsyncIterator[Any]:  # noqa: N802
        self._admit(call)
        async with closing(self._swarm.get_artifact(_required(request, "cid"))) as pieces:
            async for piece in pieces:
                yield pb.ArtifactChunk(data=piece)

    async def AddModel(self, request: Any, call: Call) -> Any:  # noqa: N802
        self._admit(call)
        axis = request.batch_axis if request.HasField("batch_axis") else None
        cid = _required(request, "cid")
        model = await self._swarm.add_model(
            cid, id=_required(request, "id"), format=request.format, licence=request.licence, batch_axis=axis, form=request.form
        )
        return pb.AddModelResponse(model=documents.model_to_proto(model))

    async def ListModels(self, request: Any, call: Call) -> Any:  # noqa: N802
        self._admit(call)
        return pb.ListSwarmModelsResponse(models=[documents.model_to_proto(m) for m in await self._swarm.models()])


def _required(request: Any, name: str) -> str:
    value = getattr(request, name)
    if not value:
        raise InvalidArgument(f"{name} is missing", fields=(FieldProblem(name, "is missing"),))
    return value


def _job_id(request: Any) -> str:
    return _required(request, "job_id")


async def _pieces(requests: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    async for chunk in requests:
        yield chunk.data


def _item(answer: Accepted | Exception) -> Any:
    if isinstance(answer, Accepted):
        return pb.SubmitJobsItem(job_id=answer.job_id, copies=answer.copies)
    error = answer if isinstance(answer, DimError) else DimError("internal error")
    return pb.SubmitJobsItem(error=documents.error_to_proto(error))


@asynccontextmanager
async def serve_orchestrator(
    bridge: Bridge,
    api: OrchestratorApi,
    swarm_api: SwarmApi,
    listen: str,
    settings: OrchestratorServerSettings | None = None,
    *,
    rate_limit: RateLimit = _no_limit,
) -> AsyncGenerator[RunningServer]:
    """Serve the client API on ``listen`` (``host:port``) while the block runs. Raises `FailedPrecondition` naming the
    setting if the address is taken, or reachable from other machines while nobody is authenticated."""
    settings = settings or OrchestratorServerSettings()
    authenticated = settings.tls is not None and settings.tls.client_ca is not None
    if not (is_loopback(listen) or authenticated or settings.insecure_public):
        raise FailedPrecondition(
            f"{settings.server.setting} = {listen!r} can be reached from other machines, and clients are not authenticated",
            hint="Set tls.cert, tls.key and tls.client_ca, or listen on 127.0.0.1.",
        )
    credentials = server_credentials(settings.tls) if settings.tls is not None else None
    service = OrchestratorService(api, swarm_api, settings, rate_limit)
    contract = Service(pb.DESCRIPTOR.services_by_name["Orchestrator"], service, endless=frozenset({"WatchJob"}))
    async with serve(bridge, [contract], listen, settings.server, credentials) as running:
        yield running
