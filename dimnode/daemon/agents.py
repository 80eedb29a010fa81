"""The pool of agents: which process holds which model, and what happens when one dies.

A call takes an idle agent that holds the model, or starts one, if need be in the place of the agent that has
been idle longest. An agent serves one call at a time. One that died, timed out or was cancelled in the middle of
a call is killed with all it started; the queue moves on.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import trio

from dimnode.daemon.admission import Admit, Freed, granted_with, unbounded
from dimnode.daemon.agent_answers import AgentCrashed, Check, Said, Schema, Tell, failure, no_check, specs
from dimnode.daemon.agent_options import options_for
from dimnode.daemon.agent_process import AgentDied, AgentProcess
from dimnode.daemon.agent_protocol import Array, Header
from dimnode.daemon.agent_value import in_order_of_worth, spare_ones
from dimnode.daemon.agent_watch import stop_who_takes_too_much_of_a_card, watch
from dimnode.daemon.batch_runner import Batching
from dimnode.daemon.frameworks import Frameworks
from dimnode.daemon.gpus import Gpu
from dimnode.daemon.grant import Grant
from dimnode.daemon.model_file import Key, ModelFile
from dimnode.daemon.model_health import ModelHealth
from dimnode.daemon.resources import NoRoom
from dimnode.daemon.sandbox.confine import expected
from dimnode.daemon.sandbox.policy import library_folders, without
from dimnode.daemon.sandbox.report import Confinement
from dimnode.daemon.settings import AgentSettings
from dimnode.errors import DimError, ResourceExhausted


@dataclass(slots=True, eq=False)
class Starting:
    """The place of an agent that is being started."""

    key: Key
    grant: Grant
    for_task: bool
    """Somebody waits for it, who will run at once."""
    removed: bool = False
    """Its model was removed meanwhile."""


class AgentPool:
    """``admit`` grants a further agent what it may use, ``loaded`` is told of each grant when its load has ended, see
    `dimnode.daemon.admission`. ``private``: the node's home, which agents never see."""

    def __init__(
        self,
        settings: AgentSettings,
        folder: Path,
        *,
        private: Path | None = None,
        admit: Admit | None = None,
        loaded: Callable[[Grant], None] = lambda grant: None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.keep: Callable[[str], bool] = lambda cid: False
        """Models whose agents are not ended for idleness alone."""
        self._settings = settings
        self._folder = folder
        self._private = private or folder
        self._admit, self._loaded = admit or unbounded(settings), loaded
        self._on_change = on_change
        self._frameworks = Frameworks(settings, folder)
        self._libraries: tuple[str, ...] = ()
        self._confinement = expected() if settings.sandbox != "off" else Confinement()
        self._batching = Batching(settings.batch, self)
        self._health = ModelHealth(settings)
        self._idle: list[AgentProcess] = []  # longest idle first
        self._busy: set[AgentProcess] = set()
        self._starting: list[Starting] = []
        self._short: set[Key] = set()
        """Models of which no further agent could be started for want of room, since the last look at it: theirs are waited for."""
        self._room = trio.lowlevel.ParkingLot()
        self._nursery: trio.Nursery | None = None
        self._count = self._started = self._crashes = self._killed = self._cold = self._warm = 0

    async def run_pool(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; then every agent is killed and collected."""
        await trio.to_thread.run_sync(self._prepare)
        async with trio.open_nursery() as nursery:
            await nursery.start(self._frameworks.run)
            self._nursery = nursery
            task_status.started()
            try:
                async with trio.open_nursery() as watching:
                    watching.start_soon(watch, self._settings, self._living)
                    await self._evict_idle()
            finally:
                self._nursery = None
                with trio.CancelScope(shield=True):
                    for agent in [*self._idle, *self._busy]:
                        agent.kill()
                        await agent.reap()
                self._idle.clear()

    def _prepare(self) -> None:
        """An empty folder for the agents' own ones. Blocks."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._libraries = without(library_folders(), self._private)

    # --- calls -----------------------------------------------------------------------------------

    async def run(
        self, model: ModelFile, inputs: Mapping[str, Array], owner: str | None = None, tell: Tell | None = None, check: Check = no_check
    ) -> dict[str, Array]:
        """One inference, perhaps together with others of the same ``owner`` (None: alone in any case). ``tell`` hears of text as it comes; some
        of it may be told again. ``check``, for an inference that is alone, gets the serving agent's own report before that gets any data, and may
        raise. Raises `InvalidArgument` (the inputs do not fit), `FailedPrecondition` (the model is
        refused), `InferenceError`, `AgentCrashed`, `FrameworkFailed`, `ResourceExhausted`. Cancelling kills the agent, unless others wait for
        the same batch."""
        if owner is None or tell is not None or not self._batching.possible(model):
            return await self.run_on(await self.acquire(model), model, inputs, tell, check)
        if self._batching.independent(model.key) and self._nursery is not None:
            return await self._batching.runner(model, self._nursery).submit(inputs, owner)
        outputs = await self.run_on(await self.acquire(model), model, inputs)
        self._batching.ask(model, self._nursery)
        return outputs

    def batches(self, key: Key) -> bool:
        """Whether requests for this model run together, as far as is known by now."""
        return self._batching.independent(key)

    async def probe(self, model: ModelFile) -> bool | None:
        """See `dimnode.daemon.batch_runner.Pool`."""
        agent = self._take_idle(model.key)
        if agent is None:
            self._room.unpark_all()
            return None
        self._busy.add(agent)
        return (await self._call(agent, model, Header(op="probe"), {}))[0].independent

    async def run_on(
        self, agent: AgentProcess, model: ModelFile, inputs: Mapping[str, Array], tell: Tell | None = None, check: Check = no_check
    ) -> dict[str, Array]:
        """An agent that dies on its first word after idling may have been dying already, which nobody can tell
        from outside: a fresh one is asked once more."""
        reused = agent.idle_since > 0
        header = Header(op="run", stream=tell is not None)
        try:
            self._check(agent, check)
            return (await self._call(agent, model, header, inputs, tell))[1]
        except AgentCrashed:
            if not reused:
                raise
        agent = await self.acquire(model)
        self._check(agent, check)
        return (await self._call(agent, model, header, inputs, tell))[1]

    def _check(self, agent: AgentProcess, check: Check) -> None:
        """Gives the agent back if it may not have the data."""
        try:
            check(agent.confinement)
        except DimError:
            self.release(agent)
            raise

    async def warm_up(self, model: ModelFile) -> None:
        """Makes sure that an agent holds the model and has run once. Raises as `run`."""
        if not self._has(model.key):
            self._release(await self.acquire(model, warm=True), healthy=True)

    async def inspect(self, model: ModelFile, *, trial: bool = True) -> Schema:
        """What the model says of itself: loads it and, for a ``trial``, runs it once, in an agent that is ended afterwards.
        Raises as `run`."""
        await trio.sleep(self._health.delay(model.cid, trio.current_time(), model.claims))
        while (place := self._take_place(model)) is None:
            await self._room.park()
        agent, reply = await self._start(model, place, check=trial, anew=True)
        self._busy.add(agent)
        self._release(agent, healthy=False)
        return Schema(specs(reply.inputs), specs(reply.outputs), reply.memory, reply.task)

    def forget(self, cid: str) -> None:
        """A model was removed: its agents end, busy ones when they are done; so does what is known of its failures."""
        for agent in [a for a in self._idle if a.model == cid]:
            self._evict(agent)
        for agent in self._busy:
            agent.retired = agent.retired or agent.model == cid
        for place in self._starting:
            place.removed = place.removed or place.key[0] == cid
        self._health.forget(cid)
        self._batching.forget(cid)
        self._room.unpark_all()

    def is_warm(self, cid: str) -> bool:
        """Under whatever manifest."""
        return any(a.model == cid for a in self._living())

    def _has(self, key: Key) -> bool:
        return any(self._key(a) == key for a in self._living())

    @staticmethod
    def _key(agent: AgentProcess) -> Key:
        return agent.model, agent.claims

    @property
    def confinement(self) -> Confinement:
        """What holds agents, by the latest that told; before the first, what this system has."""
        return self._confinement

    def has_room(self) -> bool:
        """An agent could be started without ending another."""
        return self._places_left() > 0

    def may_warm(self) -> bool:
        """An agent could be started without ending one that is wanted."""
        return self.has_room() or bool(self._spare())

    def _places_left(self) -> int:
        return self._settings.max_agents - len(self._idle) - len(self._busy) - len(self._starting)

    def statistics(self) -> dict[str, Any]:
        return {
            "idle": len(self._idle),
            "busy": len(self._busy),
            "starting": len(self._starting),
            "limit": self._settings.max_agents,
            "started": self._started,
            "crashes": self._crashes,
            "killed": self._killed,
            "cold_calls": self._cold,
            "warm_calls": self._warm,
            "batching": self._batching.statistics(),
            "frameworks": self._frameworks.statistics(),
            "sandbox": self._confinement.summary(),
            "refused_models": self._health.refused(trio.current_time()),
            "agents": [
                {"pid": a.pid, "model_cid": a.model, "busy": a in self._busy, "calls": a.calls, "grant": msgspec.to_builtins(a.grant)}
                for a in [*self._idle, *self._busy]
            ],
        }

    async def _call(
        self, agent: AgentProcess, model: ModelFile, header: Header, inputs: Mapping[str, Array], tell: Tell | None = None
    ) -> tuple[Header, dict[str, Array]]:
        healthy = False
        began, deadline, said = trio.current_time(), trio.current_effective_deadline(), Said(tell)
        try:
            reply, outputs = await agent.call(header, inputs, self._settings.max_reply_bytes, said.piece if tell is not None else None)
            healthy = reply.kind != "memory"
        except AgentDied as e:
            raise self._crashed(agent, model, str(e)) from e
        except trio.Cancelled:
            now = trio.current_time()
            if now >= deadline and not said.anything:
                self._health.ran_out(model.cid, now - began, now)
            raise
        finally:
            self._release(agent, healthy=healthy)
        if reply.op == "error":
            raise failure(reply)
        self._health.worked(model.cid, trio.current_time() - began)
        return reply, outputs

    def _crashed(self, agent: AgentProcess | None, model: ModelFile, reason: str) -> AgentCrashed:
        """An agent that ended because its framework's server did says nothing about its model."""
        self._crashes += 1
        if agent is None or not agent.orphaned:
            self._health.crashed(model.cid, reason, trio.current_time())
        return AgentCrashed(reason, hint="The task may work on another node.")

    # --- who holds what --------------------------------------------------------------------------

    async def acquire(self, model: ModelFile, *, warm: bool = False) -> AgentProcess:
        """An agent that holds the model and is marked busy. ``warm``: ahead of need, so that no agent ends for it that is wanted, and it takes
        no core of its own."""
        while True:
            # whoever waits looks for an agent of its own model first: ending that one to start another would be for nothing
            may = warm or self._has_cores()
            if (may or not self._busy) and (agent := self._take_idle(model.key)) is not None:
                self._warm += 1
                break
            pause = math.inf
            if may and self._may_have_another(model.key):
                pause = self._refuse(model) or math.inf
                if pause == math.inf:
                    try:
                        place = self._take_place(model, spare=warm, for_task=not warm)
                    except NoRoom:
                        if not self.holds(model.key):
                            raise
                        self._short.add(model.key)
                        continue
                    if place is not None:
                        agent, _ = await self._start(model, place, warm=warm)
                        self._cold += 1
                        break
                    if warm:
                        raise ResourceExhausted("no agent can be spared to warm this model", retry_after=1.0)
            with trio.move_on_after(pause):
                await self._room.park()
        self._busy.add(agent)
        return agent

    def _has_cores(self) -> bool:
        """For the threads of one more inference, beside those that run and what tasks have begun to load. What is loaded ahead of need or on
        trial takes no core from a task."""
        s, active = self._settings, len(self._busy) + sum(place.for_task for place in self._starting)
        return not s.cores or not active or (active + 1) * s.threads <= s.cores

    def holds(self, key: Key) -> bool:
        """There is an agent of this model, or one is being started."""
        return self._has(key) or any(place.key == key for place in self._starting)

    def _refuse(self, model: ModelFile) -> float:
        """Before any agent ends for a model that is not loaded for now: seconds until it may be. Raises `FailedPrecondition`,
        `ResourceExhausted`."""
        now = trio.current_time()
        self._health.check(model.cid, model.claims, now)
        return self._health.delay(model.cid, now, model.claims)

    def _may_have_another(self, key: Key) -> bool:
        if self._batching.asking(key):  # which takes milliseconds
            return False
        if key in self._short and self.holds(key):
            return False
        most = self._settings.per_model or max(1, (os.cpu_count() or 1) // self._settings.threads)
        return sum(self._key(a) == key for a in self._living()) + sum(place.key == key for place in self._starting) < most

    def _take_idle(self, key: Key) -> AgentProcess | None:
        for agent in reversed(self._idle):
            if self._key(agent) == key:
                self._idle.remove(agent)
                if agent.alive():
                    return agent
                self._end(agent)
                return self._take_idle(key)
        return None

    def _take_place(self, model: ModelFile, *, spare: bool = False, for_task: bool = False) -> Starting | None:
        """A place and a grant for one more agent, at once; idle agents (``spare``: those that nobody wants) end for both together, or none
        does. None: no place for now. Raises as `Admit`."""
        may_go, chosen = self._may_go(spare=spare), list[AgentProcess]()
        if not self.has_room():
            if not may_go:
                return None
            chosen.append(may_go.pop(0))
        grant = granted_with(self._admit, model, may_go, chosen, self._nothing_freed())
        for agent in chosen:
            self._evict(agent)
        place = Starting(model.key, grant, for_task)
        self._starting.append(place)
        return place

    async def _start(
        self, model: ModelFile, place: Starting, *, warm: bool = False, check: bool = False, anew: bool = False
    ) -> tuple[AgentProcess, Header]:
        """A new agent with the model loaded; gives the taken place up in any case. ``anew``: whatever came of it before, and
        what comes of it now counts for nothing unless it is a crash."""
        agent: AgentProcess | None = None
        good = False
        try:
            agent = await self._launch(model, place.grant)
            began = trio.current_time()
            with trio.move_on_after(self._settings.start_timeout) as scope:
                rows = self._batching.possible(model)
                header = Header(op="load", path=str(model.path), format=model.format, about=model.about, warm=warm, check=check, rows=rows)
                reply, _ = await agent.call(header, {}, self._settings.max_reply_bytes)
                if reply.op == "error":
                    raise failure(reply) if anew else self._not_loaded(model, reply)
                self._health.accepted(model.cid, model.claims)
                if reply.independent is not None:
                    self._batching.learn(model.key, reply.independent)
                agent.load_seconds += trio.current_time() - began
                agent.retired = place.removed
                good = True
                return agent, reply
            assert scope.cancelled_caught
            raise self._crashed(agent, model, f"the model was not loaded within {self._settings.start_timeout:g} s")
        except AgentDied as e:
            raise self._crashed(agent, model, str(e)) from e
        finally:
            self._starting.remove(place)
            self._loaded(place.grant)
            if not good:
                if agent is not None:
                    self._end(agent)
                self._room.unpark_all()

    def _not_loaded(self, model: ModelFile, reply: Header) -> DimError:
        """Loading it again would probably end as before, and cost as much."""
        error, now = failure(reply), trio.current_time()
        if reply.kind == "rejected":
            self._health.rejected(model.cid, model.claims, error.message, now)
        elif reply.kind not in ("unconfined", "device"):
            self._health.not_loaded(model.cid, model.claims, error.message, now)
        return error

    async def _launch(self, model: ModelFile, grant: Grant) -> AgentProcess:
        """Without the model as yet. Raises `FrameworkFailed`."""
        self._count += 1
        scratch = str(self._folder / f"agent-{self._count}")
        agent = await self._frameworks.start_agent(options_for(self._settings, model, grant, libraries=self._libraries, scratch=scratch))
        self._started += 1
        self._confinement = agent.confinement
        agent.model, agent.claims, agent.grant = model.cid, model.claims, grant
        return agent

    def idle(self) -> Freed:
        """What idle agents would give back."""
        freed = self._nothing_freed()
        for agent in self._idle:
            freed.add(agent.used, agent.grant)
        return freed

    def _nothing_freed(self) -> Freed:
        freed = Freed()
        for granted in (*self._living(), *self._starting):
            freed.hold(granted.grant)
        return freed

    def relieve(self, short: int) -> None:
        """There was a look at the machine. Memory is short by so many bytes: idle agents go, dead ones and then the least valuable first."""
        if self._short:
            self._short.clear()
            self._room.unpark_all()
        for agent in [a for a in self._idle if not a.alive()]:
            self._evict(agent)
            self._room.unpark_all()
            self._on_change()
        for agent in self._may_go():
            if short <= 0:
                break
            self._evict(agent)
            short -= agent.used
            self._room.unpark_all()
            self._on_change()

    def _may_go(self, *, spare: bool = False) -> list[AgentProcess]:
        """Idle agents, the first to go first: what nobody is known to want, then what is worth least. ``spare``: only the former."""
        unwanted = self._spare()
        return in_order_of_worth(unwanted if spare else self._idle, trio.current_time(), unwanted)

    def _spare(self) -> list[AgentProcess]:
        """Idle agents but for one of each model that is to be kept."""
        return spare_ones(self._idle, {a.model for a in self._busy}, self.keep)

    def _evict(self, agent: AgentProcess) -> None:
        self._idle.remove(agent)
        self._end(agent)

    def release(self, agent: AgentProcess) -> None:
        """An agent that was acquired and not used."""
        self._release(agent, healthy=True)

    def _release(self, agent: AgentProcess, *, healthy: bool) -> None:
        self._busy.discard(agent)
        if healthy and not agent.retired and self._nursery is not None:
            agent.idle_since = trio.current_time()
            self._idle.append(agent)
        else:
            self._end(agent)
        self._room.unpark_all()
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
            for agent in [a for a in self._idle if a.idle_since <= limit and not self.keep(a.model)]:
                self._evict(agent)
                self._room.unpark_all()
                self._on_change()
            self._frameworks.end_unused(limit)

    def watch_cards(self, cards: Sequence[Gpu]) -> None:
        """The drivers have told how much of a card each process holds: agents with more than they were granted are ended."""
        stop_who_takes_too_much_of_a_card(self._living(), cards)

    def _living(self) -> list[AgentProcess]:
        return [*self._idle, *self._busy]
