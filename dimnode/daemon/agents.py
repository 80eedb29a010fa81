"""The pool of agents: which process holds which model, and what happens when one dies.

A call takes an idle agent that holds the model, or starts one, if need be in the place of the agent that has
been idle longest. An agent serves one call at a time. One that died, timed out or was cancelled in the middle of
a call is killed with all it started; the queue moves on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from dimnode.daemon.agent_process import AgentDied, AgentProcess, Spawner
from dimnode.daemon.agent_protocol import Array, Header, SchemaItem
from dimnode.daemon.model_health import ModelHealth
from dimnode.daemon.settings import AgentSettings
from dimnode.domain.model import TensorSpec
from dimnode.errors import Code, DimError, FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model as an agent needs it."""

    cid: str
    format: str
    path: Path
    size: int
    about: str = ""
    """What its manifest says to the loader, see `model_about`."""
    memory: int = 0
    """Bytes that it needs, as its manifest says."""


@dataclass(frozen=True, slots=True)
class Schema:
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    memory: int = 0
    """The most bytes that the agent held."""


class AgentCrashed(Unavailable):
    """The agent died while it worked; another node may do better."""


class InferenceError(DimError):
    """The framework failed on inputs that looked right."""

    code = Code.TASK_FAILED


class AgentPool:
    """``admit(format, size)`` says why no further agent may be started now, or None."""

    def __init__(
        self,
        settings: AgentSettings,
        folder: Path,
        *,
        admit: Callable[[str, int], str | None] = lambda format, size: None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._admit = admit
        self._on_change = on_change
        self._spawner = Spawner()
        self._health = ModelHealth(settings)
        self._idle: list[AgentProcess] = []  # longest idle first
        self._busy: set[AgentProcess] = set()
        self._starting = 0
        self._room = trio.lowlevel.ParkingLot()
        self._nursery: trio.Nursery | None = None
        self._started = self._crashes = self._killed = self._cold = self._warm = 0

    async def run_pool(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; then every agent is killed and collected."""
        await trio.to_thread.run_sync(_make_empty, self._folder)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await self._evict_idle()
            finally:
                self._nursery = None
                with trio.CancelScope(shield=True):
                    for agent in [*self._idle, *self._busy]:
                        agent.kill()
                        await agent.reap()
                self._idle.clear()
                self._spawner.close()

    # --- calls -----------------------------------------------------------------------------------

    async def run(self, model: ModelFile, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference. Raises `InvalidArgument` (the inputs do not fit), `FailedPrecondition` (the model is
        refused), `InferenceError`, `AgentCrashed`, `ResourceExhausted`. Cancelling kills the agent.

        An agent that dies on its first word after idling may have been dying already, which nobody can tell
        from outside: a fresh one is asked once more."""
        agent = await self._acquire(model, warm=False)
        reused = agent.idle_since > 0
        try:
            return (await self._call(agent, model, Header(op="run"), inputs))[1]
        except AgentCrashed:
            if not reused:
                raise
        agent = await self._acquire(model, warm=False)
        return (await self._call(agent, model, Header(op="run"), inputs))[1]

    async def warm_up(self, model: ModelFile) -> None:
        """Makes sure that an agent holds the model and has run once. Raises as `run`."""
        if not self.is_warm(model.cid):
            self._release(await self._acquire(model, warm=True), healthy=True)

    async def inspect(self, model: ModelFile, *, trial: bool = True) -> Schema:
        """What the model says of itself: loads it and, for a ``trial``, runs it once, in an agent that is ended afterwards.
        Raises as `run`."""
        await self._make_room()
        agent, reply = await self._start(model, check=trial)
        self._busy.add(agent)
        self._release(agent, healthy=False)
        return Schema(_specs(reply.inputs), _specs(reply.outputs), reply.memory)

    def is_warm(self, cid: str) -> bool:
        return any(a.model == cid for a in self._idle) or any(a.model == cid for a in self._busy)

    def statistics(self) -> dict[str, Any]:
        return {
            "idle": len(self._idle),
            "busy": len(self._busy),
            "starting": self._starting,
            "limit": self._settings.max_agents,
            "started": self._started,
            "crashes": self._crashes,
            "killed": self._killed,
            "cold_calls": self._cold,
            "warm_calls": self._warm,
            "refused_models": self._health.refused(trio.current_time()),
            "agents": [{"pid": a.pid, "model_cid": a.model, "busy": a in self._busy, "calls": a.calls} for a in [*self._idle, *self._busy]],
        }

    async def _call(
        self, agent: AgentProcess, model: ModelFile, header: Header, inputs: Mapping[str, Array]
    ) -> tuple[Header, dict[str, Array]]:
        healthy = False
        try:
            reply, outputs = await agent.call(header, inputs, self._settings.max_reply_bytes)
            healthy = reply.kind != "memory"
        except AgentDied as e:
            raise self._crashed(model, str(e)) from e
        finally:
            self._release(agent, healthy=healthy)
        self._health.worked(model.cid)
        if reply.op == "error":
            raise _failure(reply)
        return reply, outputs

    def _crashed(self, model: ModelFile, reason: str) -> AgentCrashed:
        self._crashes += 1
        self._health.crashed(model.cid, reason, trio.current_time())
        return AgentCrashed(reason, hint="The task may work on another node.")

    # --- who holds what --------------------------------------------------------------------------

    async def _acquire(self, model: ModelFile, *, warm: bool) -> AgentProcess:
        """An agent that holds the model and is marked busy."""
        agent = self._take_idle(model.cid)
        if agent is None:
            await self._make_room()
            agent, _ = await self._start(model, warm=warm)
            self._cold += 1
        else:
            self._warm += 1
        self._busy.add(agent)
        return agent

    def _take_idle(self, cid: str) -> AgentProcess | None:
        for agent in reversed(self._idle):
            if agent.model == cid:
                self._idle.remove(agent)
                if agent.alive():
                    return agent
                self._end(agent)
                return self._take_idle(cid)
        return None

    async def _make_room(self) -> None:
        """Returns when one more agent may be started; its place is taken (``_starting``)."""
        while len(self._idle) + len(self._busy) + self._starting >= self._settings.max_agents:
            if self._idle:
                self._end(self._idle.pop(0))
            else:
                await self._room.park()
        self._starting += 1

    async def _start(self, model: ModelFile, *, warm: bool = False, check: bool = False) -> tuple[AgentProcess, Header]:
        """A new agent with the model loaded; gives the taken place up if that fails."""
        agent: AgentProcess | None = None
        good = False
        try:
            await trio.sleep(self._health.delay(model.cid, trio.current_time()))
            self._check_memory(model)
            with trio.move_on_after(self._settings.start_timeout) as scope:
                memory = max(model.memory, self._settings.memory_base + int(self._settings.memory_per_model_byte * model.size))
                agent = await AgentProcess.start(self._spawner, self._settings, self._folder, memory)
                self._started += 1
                agent.model = model.cid
                header = Header(op="load", path=str(model.path), format=model.format, about=model.about, warm=warm, check=check)
                reply, _ = await agent.call(header, {}, self._settings.max_reply_bytes)
                if reply.op == "error":
                    raise _failure(reply)
                good = True
                return agent, reply
            assert scope.cancelled_caught
            raise self._crashed(model, f"the model was not loaded within {self._settings.start_timeout:g} s")
        except AgentDied as e:
            raise self._crashed(model, str(e)) from e
        finally:
            self._starting -= 1
            if not good:
                if agent is not None:
                    self._end(agent)
                self._room.unpark()

    def _check_memory(self, model: ModelFile) -> None:
        """Ends idle agents while memory is short. Raises `ResourceExhausted`."""
        reason = self._admit(model.format, model.size)
        if reason is not None and self._idle:
            for agent in self._idle:
                self._end(agent)
            self._idle.clear()
        elif reason is not None:
            raise ResourceExhausted(f"no agent can be started: {reason}", hint="Try another node, or later.", retry_after=1.0)

    def _release(self, agent: AgentProcess, *, healthy: bool) -> None:
        self._busy.discard(agent)
        if healthy and self._nursery is not None:
            agent.idle_since = trio.current_time()
            self._idle.append(agent)
        else:
            self._end(agent)
        self._room.unpark()
        self._on_change()

    def _end(self, agent: AgentProcess) -> None:
        self._killed += 1
        agent.kill()
        if self._nursery is not None:
            self._nursery.start_soon(agent.reap)

    async def _evict_idle(self) -> None:
        while True:
            await trio.sleep(self._settings.idle_seconds / 4)
            limit = trio.current_time() - self._settings.idle_seconds
            while self._idle and self._idle[0].idle_since <= limit:
                self._end(self._idle.pop(0))
                self._room.unpark()
                self._on_change()


def _make_empty(folder: Path) -> None:
    """The agents' working directory: nothing in it, nothing can be put there."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(PermissionError):
        folder.chmod(0o500)


def _specs(items: tuple[SchemaItem, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=i.name, dtype=i.dtype, shape=i.shape) for i in items)


def _failure(reply: Header) -> DimError:
    """What the agent reported, as an error for people."""
    match reply.kind:
        case "input":
            return InvalidArgument(reply.message, hint="Compare the inputs with the model's schema.")
        case "rejected":
            return FailedPrecondition(f"the model cannot be loaded: {reply.message}")
        case "memory":
            return ResourceExhausted(reply.message, hint="Send fewer rows at once, or use a node with more memory.")
        case _:
            return InferenceError(reply.message)
