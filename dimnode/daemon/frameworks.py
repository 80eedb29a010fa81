"""The fork servers of a node, one for each framework: started at need, started again after an end, ended when nothing needs them.

What fails before an agent has seen a model is the framework's failure: it is counted here, and no model is blamed for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from dimnode.daemon.agent_main import AgentOptions
from dimnode.daemon.agent_process import AgentDied, AgentProcess
from dimnode.daemon.agent_servers import ServerDied, ServerProcess
from dimnode.daemon.model_health import ModelHealth
from dimnode.daemon.preload import framework_of
from dimnode.daemon.settings import AgentSettings
from dimnode.daemon.spawner import Spawner
from dimnode.errors import ResourceExhausted, Unavailable


class FrameworkFailed(Unavailable):
    """No agent could be started, whatever the model."""


class Frameworks:
    def __init__(self, settings: AgentSettings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._spawner = Spawner()
        self._health = ModelHealth(settings)
        self._servers: dict[str, ServerProcess] = {}
        self._used: dict[str, float] = {}
        self._locks: dict[str, trio.Lock] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; then all servers are killed and collected."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None
                for server in self._servers.values():
                    server.kill()
                self._spawner.close()

    async def start_agent(self, options: AgentOptions) -> AgentProcess:
        """A new agent that has its framework, is in its sandbox and has told how far, and has seen no model. Raises `FrameworkFailed`;
        after repeated failures at once."""
        name = framework_of(options.format)
        try:
            await trio.sleep(self._health.delay(name, trio.current_time()))
        except ResourceExhausted as e:
            raise FrameworkFailed(
                "this node's framework failed again and again and is not started for now",
                hint="`dimnode doctor` looks at the frameworks; the task may work on another node.",
                retry_after=e.retry_after,
            ) from e
        server: ServerProcess | None = None
        try:
            server = await self._get(name)
            began = trio.current_time()
            agent = await AgentProcess.start(server, options, self._settings.share_from)
            await self._greeted(agent)
        except (ServerDied, AgentDied) as e:
            self._failed(name, server, str(e))
            raise FrameworkFailed(str(e), hint="The task may work on another node.") from e
        self._health.worked(name)
        agent.load_seconds = trio.current_time() - began
        return agent

    async def _greeted(self, agent: AgentProcess) -> None:
        """Where agents are not forked they import the framework now. Raises `AgentDied`."""
        ready = False
        try:
            with trio.move_on_after(self._settings.framework_timeout):
                await agent.wait_ready()
                ready = True
            if not ready:
                raise AgentDied(self._late())
        finally:
            if not ready:
                agent.kill()
                if self._nursery is not None:
                    self._nursery.start_soon(agent.reap)

    async def _get(self, name: str) -> ServerProcess:
        """The framework's server, ready. Raises `ServerDied`."""
        self._used[name] = trio.current_time()
        async with self._locks.setdefault(name, trio.Lock()):
            server = self._servers.get(name)
            if server is None or server.gone:
                server = await self._start(name)
            with trio.move_on_at(server.started + self._settings.framework_timeout) as scope:
                try:
                    await server.wait_ready()
                except ServerDied as e:
                    self._failed(name, server, str(e))
                    raise
            if scope.cancelled_caught:
                server.kill()
                del self._servers[name]  # or whoever is next would wait for it
                self._failed(name, server, self._late())
                raise ServerDied(self._late())
        self._used[name] = trio.current_time()
        return server

    def _late(self) -> str:
        return f"the framework was not there within {self._settings.framework_timeout:g} s"

    def _failed(self, name: str, server: ServerProcess | None, reason: str) -> None:
        """Counts the end of a server once, however many agents it was about to start."""
        if server is not None and not server.blamed:
            server.blamed = server.gone
            self._health.crashed(name, reason, trio.current_time())

    async def _start(self, name: str) -> ServerProcess:
        if self._nursery is None:
            raise ServerDied("the node is stopping")
        server = await ServerProcess.start(self._spawner, self._settings, name, self._folder)
        if self._nursery is None:  # stopped in the meantime
            server.kill()
            raise ServerDied("the node is stopping")
        self._servers[name] = server
        self._nursery.start_soon(server.run)
        return server

    def end_unused(self, since: float) -> None:
        """Servers without agents that nobody asked for since then: a framework may hold hundreds of megabytes."""
        for name, server in list(self._servers.items()):
            if not server.agents and self._used[name] <= since and not self._locks[name].locked():
                server.kill()
                del self._servers[name]

    def statistics(self) -> dict[str, Any]:
        return {f: {"pid": s.pid, "agents": s.agents, "forks": s.forks} for f, s in self._servers.items() if not s.gone}
