"""Streams that break under running tasks, over real gRPC: the task goes on, and its caller finds it again."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from dimnode.clock import SystemClock
from dimnode.daemon.execution import Execution
from dimnode.daemon.settings import DaemonSettings
from dimnode.daemon.tasks import Tasks
from dimnode.domain.record import Attempt
from dimnode.domain.task import TaskOrder
from dimnode.errors import Unavailable
from dimnode.rpc.bridge import open_bridge
from dimnode.rpc.channels import open_pool
from dimnode.rpc.daemon_client import GrpcDaemonClient
from dimnode.rpc.daemon_server import NodeIdentity, serve_daemon
from dimnode.security.certificates import CertificateStore
from dimnode.state.memory_journal import MemoryJournal
from tests.support.daemon_tasks import attempt_of, order, owner
from tests.support.entries import FakeSigner
from tests.support.rpc_fakes import FakeSwitch, FakeTasks


class Cable:
    """Carries connections to ``target`` until it is cut; a cut one that is not mended refuses new ones."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._open = trio.CancelScope()
        self.broken = False
        self.carried = 0
        self.address = ""

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.address = "127.0.0.1:" + str(listeners[0].socket.getsockname()[1])
        await trio.serve_listeners(self._carry, listeners, task_status=task_status)

    def cut(self, *, mend: bool) -> None:
        self.broken = not mend
        self._open.cancel()
        self._open = trio.CancelScope()

    async def _carry(self, near: trio.SocketStream) -> None:
        if self.broken:
            return
        self.carried += 1
        scope = self._open
        with scope:
            async with await trio.open_tcp_stream(self._host, self._port) as far, trio.open_nursery() as nursery:
                nursery.start_soon(_copy, near, far)
                nursery.start_soon(_copy, far, near)


async def _copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    try:
        async for data in source:
            await sink.send_all(data)
        await sink.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


@dataclass
class Line:
    """A caller, a cable and a worker whose work lasts until it is released."""

    client: GrpcDaemonClient
    cable: Cable
    tasks: Tasks
    release: trio.Event
    ran: list[str] = field(default_factory=list)


class Served(FakeTasks):
    def __init__(self, tasks: Tasks) -> None:
        super().__init__()
        self._tasks = tasks

    def run_task(self, order: TaskOrder, caller: str) -> Any:
        return self._tasks.watch(order)

    async def cancel_task(self, job: str, task: str, attempt: int, ballot: Any) -> bool:
        return await self._tasks.cancel(job, task, attempt, ballot)


@asynccontextmanager
async def line() -> AsyncGenerator[Line]:
    release, ran = trio.Event(), list[str]()

    async def work(execution: Execution) -> Attempt:
        task = execution.order
        ran.append(task.task)
        execution.stage("running")
        await release.wait()
        return Attempt(job=task.job, ballot=task.ballot, task=task.task, attempt=1, task_key="k", status="completed", node="node")

    tasks = Tasks(
        signer=FakeSigner("b"), clock=SystemClock(), journal=MemoryJournal(), settings=DaemonSettings(slots=2), work=work,
        refusal=lambda order: None, on_change=lambda: None,
    )  # fmt: skip
    switch = FakeSwitch()
    theirs, mine = CertificateStore(switch.node("b"), time.time), CertificateStore(switch.node("a"), time.time)
    theirs.serve()
    mine.serve()
    async with open_bridge() as bridge, trio.open_nursery() as nursery, AsyncExitStack() as stack:
        await nursery.start(tasks.run)
        identity = NodeIdentity("b", "b", lambda: 0.0)
        server = await stack.enter_async_context(serve_daemon(bridge, Served(tasks), theirs, lambda _: True, identity, "127.0.0.1:0"))  # type: ignore[arg-type]
        cable = Cable(server.address)
        await nursery.start(cable.run)
        pool = await stack.enter_async_context(open_pool(bridge, mine, lambda _: cable.address))
        yield Line(GrpcDaemonClient(pool, "a", FakeTasks()), cable, tasks, release, ran)  # type: ignore[arg-type]
        nursery.cancel_scope.cancel()


async def test_a_stream_that_breaks_is_taken_up_again_and_the_task_runs_once() -> None:
    async with line() as on:
        stages: list[str] = []
        with trio.fail_after(30):
            async with aclosing(on.client.run_task("b", order("a"))) as updates:
                async for update in updates:
                    stages.append(update.stage)
                    if update.stage == "running" and on.cable.carried < 3:
                        on.cable.cut(mend=True)
                        on.release.set()
        assert update.entry is not None
        assert attempt_of(update.entry).status == "completed"
        assert stages == ["accepted", "running", "finished"]
        assert on.ran == ["a"]
        assert on.cable.carried > 1
        assert on.tasks.unfetched() == ()


async def test_a_caller_that_is_cut_off_is_told_and_the_result_is_kept() -> None:
    async with line() as on:
        with trio.fail_after(30):
            async with aclosing(on.client.run_task("b", order("a"))) as updates:
                assert (await anext(updates)).stage == "accepted"
                assert (await anext(updates)).stage == "running"
                on.cable.cut(mend=False)
                with pytest.raises(Unavailable):
                    await anext(updates)
            while on.tasks.counters["accepted"] and any(e.watchers for e in on.tasks._all()):
                await trio.sleep(0.01)  # the worker's side of the stream ends
            on.release.set()
            await on.tasks.wait_unfetched(0)
            assert attempt_of(on.tasks.unfetched()[0]).status == "completed"
            on.cable.broken = False
            again = [u async for u in on.client.run_task("b", order("a", n=2))]
        assert [u.stage for u in again] == ["finished"]
        assert on.ran == ["a"]
        assert on.tasks.unfetched() == ()


async def test_closing_the_updates_cancels_nothing_and_cancel_task_does() -> None:
    async with line() as on:
        with trio.fail_after(30):
            async with aclosing(on.client.run_task("b", order("a"))) as updates:
                assert (await anext(updates)).stage == "accepted"
                assert (await anext(updates)).stage == "running"
            assert not any(e.why for e in on.tasks._all())
            assert await on.client.cancel_task("b", "job-1", "a", 1, owner(1))
            await on.tasks.wait_idle()
            assert attempt_of(on.tasks.unfetched()[0]).status == "cancelled"
