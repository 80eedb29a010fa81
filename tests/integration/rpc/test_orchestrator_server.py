"""The client API with stock stubs, on loopback."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest
import trio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from dimnode.errors import Cancelled, FailedPrecondition, ResourceExhausted
from dimnode.rpc.bridge import Bridge, BridgeSettings, open_bridge
from dimnode.rpc.errors import from_rpc_error
from dimnode.rpc.orchestrator_server import OrchestratorServerSettings, serve_orchestrator
from dimnode.rpc.server import RunningServer, ServerSettings
from dimnode.rpc.v1 import common_pb2
from dimnode.rpc.v1 import orchestrator_pb2 as pb
from dimnode.rpc.v1.orchestrator_pb2_grpc import OrchestratorStub
from tests.support.rpc_fakes import FakeApi, FakeSwarm

SETTINGS = OrchestratorServerSettings(server=ServerSettings(setting="orchestrator.listen", grace=0.2))


@dataclass
class Served:
    bridge: Bridge
    server: RunningServer
    api: FakeApi
    swarm: FakeSwarm
    channel: grpc.aio.Channel

    async def call(self, method: str, request: Any, timeout: float = 10) -> Any:
        async def go() -> Any:
            return await getattr(OrchestratorStub(self.channel), method)(request, timeout=timeout)

        return await self.bridge.aio(go())


@asynccontextmanager
async def served(settings: OrchestratorServerSettings = SETTINGS, buffer: int = 16, **options: Any) -> AsyncGenerator[Served]:
    api, swarm = FakeApi(), FakeSwarm()
    async with (
        open_bridge(BridgeSettings(stream_buffer=buffer)) as bridge,
        serve_orchestrator(bridge, api, swarm, "127.0.0.1:0", settings, **options) as server,
    ):
        channel = await bridge.run(grpc.aio.insecure_channel, server.address)
        try:
            yield Served(bridge, server, api, swarm, channel)
        finally:
            with trio.CancelScope(shield=True):
                await bridge.aio(channel.close())


def spec(**changes: Any) -> Any:
    out = common_pb2.JobSpec(pattern="collaborative", **changes)
    out.config.update({"model_id": "m"})
    return out


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.005)


async def refused(awaitable: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as e:
        await awaitable
    return e.value


async def test_every_method_answers() -> None:
    async with served() as s:
        answer = await s.call("SubmitJob", pb.SubmitJobRequest(spec=spec()))
        assert (answer.job_id, answer.copies) == ("job-1", 1)
        form, principal = s.api.forms[0]
        assert form.config.model_id == "m"
        assert principal == "anonymous"
        s.api.documents["j"] = {"job_id": "j", "status": "completed"}
        job = pb.JobRequest(job_id="j")
        assert (await s.call("GetJob", job)).job.status == "completed"
        assert (await s.call("GetResult", job)).result.status == "completed"
        assert (await s.call("CancelJob", job)).job.status == "cancelled"
        assert len((await s.call("ListJobs", pb.ListJobsRequest())).jobs) == 2
        assert len((await s.call("ListJobs", pb.ListJobsRequest(limit=1))).jobs) == 1
        assert (await s.call("ListNodes", pb.ListNodesRequest())).nodes[0].capabilities["cpus"] == 4
        assert (await s.call("GetCluster", pb.GetClusterRequest())).orchestrators[0].term == 3
        assert (await s.call("DryRun", pb.SubmitJobRequest(spec=spec()))).placement["m/a"]["node"] == "n"
        assert list((await s.call("ListModels", pb.ListSwarmModelsRequest())).models[0].inputs[0].shape) == ["N", "4", "?"]
        assert (await s.call("AddModel", pb.AddModelRequest(id="m", cid="c", batch_axis=0))).model.batch_axis == 0
        assert [e.job.epoch async for e in s.bridge.stream(lambda: OrchestratorStub(s.channel).WatchJob(job))] == [0, 1, 2]


async def test_a_batch_is_accepted_and_refused_one_by_one() -> None:
    async with served() as s:
        answer = await s.call("SubmitJobs", pb.SubmitJobsRequest(specs=[spec(), common_pb2.JobSpec(), spec()]))
        assert [j.job_id for j in answer.jobs] == ["job-1", "", "job-2"]
        assert answer.jobs[1].error.code == "INVALID_ARGUMENT"
        assert "pattern" in answer.jobs[1].error.message


async def test_artifacts_go_both_ways_in_pieces() -> None:
    data = bytes(range(256)) * 40
    async with served(buffer=2) as s:

        async def put() -> Any:
            pieces = (pb.ArtifactChunk(data=data[i : i + 100]) for i in range(0, len(data), 100))
            return await OrchestratorStub(s.channel).PutArtifact(pieces, timeout=10)

        answer = await s.bridge.aio(put())
        assert answer.size == len(data)
        request = pb.GetArtifactRequest(cid=answer.cid)
        assert b"".join([c.data async for c in s.bridge.stream(lambda: OrchestratorStub(s.channel).GetArtifact(request))]) == data


async def test_health_and_reflection_with_stock_stubs() -> None:
    async with served() as s:

        async def check(service: str) -> Any:
            return await health_pb2_grpc.HealthStub(s.channel).Check(health_pb2.HealthCheckRequest(service=service))

        for service in ("", "dim.v1.Orchestrator"):
            assert (await s.bridge.aio(check(service))).status == health_pb2.HealthCheckResponse.SERVING

        async def services() -> list[str]:
            stub = reflection_pb2_grpc.ServerReflectionStub(s.channel)
            call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
            return [x.name async for answer in call for x in answer.list_services_response.service]

        assert {"dim.v1.Orchestrator", "grpc.health.v1.Health"} <= set(await s.bridge.aio(services()))


async def test_errors_reach_plain_clients_readably_and_ours_whole() -> None:
    async with served() as s:
        e = await refused(s.call("GetJob", pb.JobRequest(job_id="none")))
        assert (e.code(), e.details()) == (grpc.StatusCode.NOT_FOUND, "there is no job none")
        assert from_rpc_error(e).hint == "`dimnode jobs` lists them."
        e = await refused(s.call("GetResult", pb.JobRequest(job_id="none")))
        assert e.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert e.details().startswith("NOT_READY")
        assert dict(e.trailing_metadata())["retry-after"] == "0.5"
        e = await refused(s.call("GetJob", pb.JobRequest()))
        assert e.details() == "job_id is missing"


async def test_a_broken_handler_is_internal_without_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    async with served() as s:
        e = await refused(s.call("GetJob", pb.JobRequest(job_id="broken")))
        assert e.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in str(e) + str(e.trailing_metadata())
    out = capsys.readouterr()
    assert (out.out + out.err).count("a handler failed") == 1


async def test_the_rate_limit_refuses_before_anything_happens() -> None:
    def limit(principal: str) -> None:
        raise ResourceExhausted(f"{principal} asks too often", retry_after=1.5)

    async with served(rate_limit=limit) as s:
        e = await refused(s.call("SubmitJob", pb.SubmitJobRequest(spec=spec())))
        assert e.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(e.trailing_metadata())["retry-after"] == "1.5"
        assert s.api.submitted == 0


async def test_a_clients_deadline_cancels_the_handler() -> None:
    async with served() as s:
        e = await refused(s.call("GetJob", pb.JobRequest(job_id="slow"), timeout=0.1))
        assert e.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        with trio.fail_after(5):
            await s.api.cancelled.wait()
        await until(lambda: s.server.dispatcher.running() == 0)


async def test_cancelling_the_trio_caller_cancels_the_call_and_its_handler() -> None:
    async with served() as s, trio.open_nursery() as nursery:
        nursery.start_soon(s.call, "GetJob", pb.JobRequest(job_id="slow"))
        await s.api.entered.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True), trio.fail_after(5):
            await s.api.cancelled.wait()


async def test_closing_a_stream_early_ends_its_handler() -> None:
    async with served() as s:
        messages = s.bridge.stream(lambda: OrchestratorStub(s.channel).WatchJob(pb.JobRequest(job_id="endless")))
        assert (await anext(messages)).job.status == "running"
        await messages.aclose()
        with trio.fail_after(5):
            await s.api.cancelled.wait()


async def test_a_vanished_connection_cancels_its_handlers() -> None:
    async with served() as s, trio.open_nursery() as nursery:

        async def call() -> None:
            with pytest.raises(Cancelled):
                await s.call("GetJob", pb.JobRequest(job_id="slow"))

        nursery.start_soon(call)
        await s.api.entered.wait()
        await s.bridge.aio(s.channel.close())
        with trio.fail_after(5):
            await s.api.cancelled.wait()


async def test_a_slow_reader_holds_the_stream_back() -> None:
    async with served(buffer=4) as s:
        s.api.events = 20_000
        s.api.documents["pad"] = {}

        messages = s.bridge.stream(lambda: OrchestratorStub(s.channel).WatchJob(pb.JobRequest(job_id="x" * 20_000)))
        await anext(messages)
        before = -1
        while before != s.api.watched:  # until nothing moves any more
            before = s.api.watched
            await trio.sleep(0.2)
        assert s.api.watched < 2000
        await messages.aclose()


async def test_a_slow_handler_holds_the_sender_back() -> None:
    sent = 0

    async with served(buffer=4) as s, trio.open_nursery() as nursery:
        s.swarm.hold = trio.Event()

        async def chunks() -> Any:
            nonlocal sent
            for _ in range(2000):
                sent += 1
                yield pb.ArtifactChunk(data=b"x" * 20_000)

        async def put() -> None:
            async def go() -> Any:
                return await OrchestratorStub(s.channel).PutArtifact(chunks())

            assert (await s.bridge.aio(go())).size == 2000 * 20_000

        nursery.start_soon(put)
        before = -1
        while before != sent or not sent:
            before = sent
            await trio.sleep(0.2)
        assert sent < 1000
        s.swarm.hold.set()


async def test_stopping_lets_calls_end_and_cancels_the_rest() -> None:
    answers: list[str] = []
    api = FakeApi()
    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        async with serve_orchestrator(
            bridge, api, FakeSwarm(), "127.0.0.1:0", replace(SETTINGS, server=ServerSettings(grace=2.0))
        ) as server:
            channel = await bridge.run(grpc.aio.insecure_channel, server.address)

            async def go() -> None:
                async def call() -> Any:
                    return await OrchestratorStub(channel).GetJob(pb.JobRequest(job_id="slow"))

                answers.append((await bridge.aio(call())).job.status)

            nursery.start_soon(go)
            await api.entered.wait()
            nursery.start_soon(_set_soon, api.release)
        assert server.dispatcher.running() == 0
        await until(lambda: answers == ["running"])

        async def again() -> Any:
            return await OrchestratorStub(channel).GetJob(pb.JobRequest(job_id="x"))

        assert (await refused(bridge.aio(again()))).code() is grpc.StatusCode.UNAVAILABLE
        await bridge.aio(channel.close())


async def _set_soon(event: trio.Event) -> None:
    await trio.sleep(0.1)
    event.set()


async def test_stopping_turns_watchers_away_at_once() -> None:
    codes: list[Any] = []
    api = FakeApi()
    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        async with serve_orchestrator(
            bridge, api, FakeSwarm(), "127.0.0.1:0", replace(SETTINGS, server=ServerSettings(grace=30.0))
        ) as server:
            channel = await bridge.run(grpc.aio.insecure_channel, server.address)

            async def watch() -> None:
                try:
                    async for _ in bridge.stream(lambda: OrchestratorStub(channel).WatchJob(pb.JobRequest(job_id="endless"))):
                        pass
                except grpc.aio.AioRpcError as e:
                    codes.append(e.code())

            nursery.start_soon(watch)
            await api.entered.wait()
            start = trio.current_time()
        assert trio.current_time() - start < 5
        await until(lambda: codes == [grpc.StatusCode.UNAVAILABLE])
        await bridge.aio(channel.close())


async def test_serving_ends_within_its_grace_when_the_scope_around_is_cancelled() -> None:
    api, ended = FakeApi(), trio.Event()
    async with open_bridge() as bridge, trio.open_nursery() as calls:
        channel: Any = None
        with trio.CancelScope() as scope:
            async with serve_orchestrator(bridge, api, FakeSwarm(), "127.0.0.1:0", SETTINGS) as server:
                channel = await bridge.run(grpc.aio.insecure_channel, server.address)

                async def call() -> None:
                    async def go() -> Any:
                        return await OrchestratorStub(channel).GetJob(pb.JobRequest(job_id="slow"))

                    await refused(bridge.aio(go()))
                    ended.set()

                calls.start_soon(call)
                await api.entered.wait()
                scope.cancel()
                await trio.sleep_forever()
        assert api.cancelled.is_set()
        assert server.dispatcher.running() == 0
        await ended.wait()
        await bridge.aio(channel.close())


async def test_thirty_terms_leave_nothing_behind() -> None:
    me = psutil.Process()
    counts: list[tuple[int, int]] = []
    async with open_bridge() as bridge:
        address = "127.0.0.1:0"
        for _ in range(30):
            async with serve_orchestrator(bridge, FakeApi(), FakeSwarm(), address, SETTINGS) as server:
                address = server.address  # the same port each time
                channel = await bridge.run(grpc.aio.insecure_channel, address, [("grpc.use_local_subchannel_pool", 1)])

                async def go(channel: Any = channel) -> Any:
                    return await OrchestratorStub(channel).GetCluster(pb.GetClusterRequest(), timeout=5)

                assert (await bridge.aio(go())).swarm == "s"
                await bridge.aio(channel.close())
            counts.append((me.num_fds(), me.num_threads()))
    assert counts[-1][0] <= counts[4][0] + 3
    assert counts[-1][1] <= counts[4][1] + 2


async def test_a_taken_port_is_an_error_that_names_the_setting() -> None:
    async with served() as s:
        with pytest.raises(FailedPrecondition, match=r"orchestrator\.listen"):
            async with serve_orchestrator(s.bridge, s.api, s.swarm, s.server.address, SETTINGS):
                pytest.fail("two servers on one port")


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "example.org:1", ":0"])
async def test_listening_for_strangers_needs_authentication(listen: str) -> None:
    async with open_bridge() as bridge:
        with pytest.raises(FailedPrecondition, match="not authenticated"):
            async with serve_orchestrator(bridge, FakeApi(), FakeSwarm(), listen, SETTINGS):
                pytest.fail("it listens")
        async with serve_orchestrator(bridge, FakeApi(), FakeSwarm(), "0.0.0.0:0", replace(SETTINGS, insecure_public=True)) as server:
            assert server.address.startswith("0.0.0.0:")


async def test_two_bridges_share_one_thread() -> None:
    async with open_bridge() as one, open_bridge() as two:
        assert one.loop is two.loop

        async def answer() -> int:
            return 7

        assert await one.aio(answer()) + await two.aio(answer()) == 14


async def test_errors_of_coroutines_reach_trio() -> None:
    async def fail() -> None:
        raise KeyError("x")

    async with open_bridge() as bridge:
        with pytest.raises(KeyError):
            await bridge.aio(fail())


async def test_a_start_that_is_cancelled_leaves_the_port_free() -> None:
    async with open_bridge() as bridge:
        address = "127.0.0.1:0"
        for n in range(12):
            with trio.move_on_after(0 if n % 2 else 0.002):
                async with serve_orchestrator(bridge, FakeApi(), FakeSwarm(), address, SETTINGS) as server:
                    address = server.address
                    await trio.sleep(0.001)
            async with serve_orchestrator(bridge, FakeApi(), FakeSwarm(), address, SETTINGS) as server:
                address = server.address


async def test_a_handler_that_outlives_everything_is_refused_when_its_bridge_closes() -> None:
    api = FakeApi()
    codes: list[Any] = []
    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        async with serve_orchestrator(bridge, api, FakeSwarm(), "127.0.0.1:0", SETTINGS) as server:
            channel = await bridge.run(grpc.aio.insecure_channel, server.address)

            async def call() -> None:
                async def go() -> Any:
                    return await OrchestratorStub(channel).GetJob(pb.JobRequest(job_id="x"), timeout=5)

                codes.append((await refused(bridge.aio(go()))).code())

            bridge.close()
            nursery.start_soon(call)
            await until(lambda: bool(codes))
        assert codes == [grpc.StatusCode.UNAVAILABLE]
        await bridge.aio(channel.close())
