"""The fork servers of a node, by format: started at need, started again after an end, ended when nothing needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from dimnode.daemon.agent_servers import ServerDied, ServerProcess
from dimnode.daemon.model_health import ModelHealth
from dimnode.daemon.settings import AgentSettings
from dimnode.daemon.spawner import Spawner
from dimnode.errors import ResourceExhausted


class Frameworks:
    def __init__(self, settings: AgentSettings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._spawner = Spawner()
        self._health = ModelHealth(settings)
        self._servers: dict[str, ServerProcess] = {}
        self._used: dict[str, float] = {}
        self._locks: dict[str, trio.Lock] = {}
        self._nursery: trio.Nursery | None = None
        self._started = 0

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

    async def get(self, format: str) -> ServerProcess:
        """The framework's server, ready. Raises `ServerDied`; after repeated ends only later."""
        self._used[format] = trio.current_time()
        async with self._locks.setdefault(format, trio.Lock()):
            server = self._servers.get(format)
            if server is None or server.gone:
                server = await self._start(format)
            try:
                await server.wait_ready()
            except ServerDied:
                self._health.crashed(format, "it ended while it started", trio.current_time())
                raise
        self._health.worked(format)
        self._used[format] = trio.current_time()
        return server

    async def _start(self, format: str) -> ServerProcess:
        try:
            await trio.sleep(self._health.delay(format, trio.current_time()))
        except ResourceExhausted as e:
            raise ServerDied("the framework ended again and again and is not started for now") from e
        if self._nursery is None:
            raise ServerDied("the node is stopping")
        server = await ServerProcess.start(self._spawner, self._settings, format, self._folder)
        if self._nursery is None:  # stopped in the meantime
            server.kill()
            raise ServerDied("the node is stopping")
        self._started += 1
        self._servers[format] = server
        self._nursery.start_soon(server.run)
        return server

    def end_unused(self, since: float) -> None:
        """Servers without agents that nobody asked for since then: a framework may hold hundreds of megabytes."""
        for name, server in list(self._servers.items()):
            if not server.agents and self._used[name] <= since and not self._locks[name].locked():
                server.kill()
                del self._servers[name]

    def statistics(self) -> dict[str, Any]:
        return {f: {"pid": s.pid, "agents": s.agents} for f, s in self._servers.items() if not s.gone}
