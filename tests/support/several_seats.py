"""Several seats over one set of daemons, in memory and on virtual time: real orchestrators, tables, offers and questions.
The election is told who holds a seat; copies go straight into the other seats' tables."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from dimnode.clock import TrioClock
from dimnode.core.record_gate import EntryRules
from dimnode.domain.job_form import JobForm
from dimnode.domain.node import Seat
from dimnode.domain.record import Attempt, Ballot, Claim, Core, SignedEntry, Unknown
from dimnode.errors import DimError, NotFound, Unavailable
from dimnode.orchestrator import Orchestrator, OrchestratorSettings, ask_over, build_orchestrator
from dimnode.ports import Copied, Written
from dimnode.records.no_copies import NoCopies
from dimnode.records.offers import JobOffers
from dimnode.records.questions import Questions
from dimnode.records.table import RecordTable
from dimnode.state.memory_journal import MemoryDisk, MemoryJournal
from dimnode.swarm.models import SwarmModels
from p2p.identity import verify
from p2p.memory import MemoryHub
from tests.support.orchestration import FakeSwarm, identity, in_place

RULES = EntryRules(verify)


class Journal(MemoryJournal):
    """Each write is two steps: before it is durable, and before anybody knows that it is."""

    def __init__(self, seat: SeatNode, disk: MemoryDisk) -> None:
        super().__init__(disk)
        self._seat = seat

    async def append(self, entries: Sequence[SignedEntry], **more: Any) -> Any:
        await self._seat.step()
        done = await super().append(entries, **more)
        await self._seat.step()
        return done


class Copies(NoCopies):
    """To all other living nodes, which fence as the real ones do."""

    def __init__(self, seat: SeatNode) -> None:
        self._seat = seat

    async def write(self, jobs: Sequence[Written], *, wanted: int | None = None) -> list[Copied]:
        del wanted
        await self._seat.step()
        answers = [await self._copy(w) for w in jobs]
        await self._seat.step()
        return answers

    async def _copy(self, written: Written) -> Copied:
        stored = 0
        bodies = [e.body() for e in written.entries]
        ballot = max((b.ballot for b in bodies if not isinstance(b, (Core, Attempt, Unknown))), default=Ballot(0, "", ""))
        for other in self._seat.town.living():
            if other is self._seat:
                continue
            higher = await _higher(other.table, written.job, ballot, new=written.new)
            if higher is not None:
                return Copied(written.job, 0, higher, other.table.record(written.job).entries())
            mine = self._seat.table.record(written.job).entries() if self._seat.table.holds(written.job) else ()
            try:
                await other.table.merge(written.job, [*mine, *written.entries])
            except Unavailable:  # it crashed over that
                continue
            stored += 1
        return Copied(written.job, stored)

    def others(self, job: str) -> int:
        del job
        return len(self._seat.town.living()) - 1

    def drop(self, jobs: Sequence[str]) -> None:
        del jobs


async def _higher(table: RecordTable, job: str, ballot: Ballot, *, new: bool) -> Ballot | None:
    """The claim that fences this ballot, if there is one. A new job is fenced by any claim that somebody else made."""
    try:
        record = await table.find(job)
    except NotFound:
        return None
    top = max((b.ballot for _, b in record.items() if isinstance(b, Claim)), default=ballot)
    return top if top > ballot or (new and top != ballot) else None


class Elector:
    """As one node sees the seats."""

    def __init__(self, town: Town, seat: SeatNode) -> None:
        self._town = town
        self._seat = seat

    @property
    def boot(self) -> str:
        return self._seat.boot

    def seats(self) -> tuple[Seat, ...]:
        return tuple(Seat(seat=i, n=i + 1, peer=s.peer, boot=s.boot) for i, s in enumerate(self._town.seated))

    def changed(self) -> int:
        return self._town.version

    async def wait_changed(self, since: int) -> int:
        await trio.lowlevel.checkpoint()
        while self._town.version <= since:
            await self._town.changed.wait()
        return self._town.version


class SeatNode:
    def __init__(self, town: Town, name: str, settings: OrchestratorSettings) -> None:
        self.town = town
        self.name = name
        self.identity = identity(name)
        self.peer = self.identity.peer_id
        self.settings = settings
        self.disk = MemoryDisk()
        self.boots = 0
        self.scope: trio.CancelScope | None = None
        self.term = trio.CancelScope()
        self.orchestrator: Orchestrator | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """One life, with a seat from the start."""
        self.boots += 1
        self.boot = f"{self.name}-{self.boots}"
        self.journal = Journal(self, self.disk)
        self.network = self.town.hub.network(self.peer)
        self.town.hub.connect_all()
        self.table = RecordTable(self.journal, self.identity, Copies(self))
        elector: Any = Elector(self.town, self)
        self.offers = JobOffers(self.network, self.table, elector, TrioClock(), lambda: self.orchestrator, rules=RULES)
        Questions(self.network, self.table, self, lambda: self.orchestrator, rules=RULES)
        self.scope = life = trio.CancelScope()
        try:
            with life:
                await self._live(task_status)
        except* DimError:
            if not life.cancel_called:
                raise  # else what was shielded found the disk of a crashed node gone

    async def _live(self, task_status: trio.TaskStatus[None]) -> None:
        await self.table.open()
        async with trio.open_nursery() as nursery:
            await nursery.start(self.offers.run)
            self.town.seat(self)
            with trio.CancelScope() as self.term:
                await self._lead(task_status)
            await trio.sleep_forever()

    async def _lead(self, task_status: trio.TaskStatus[None]) -> None:
        orchestrator = self._orchestrator()
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(orchestrator.run)
                self.orchestrator = orchestrator
                task_status.started()
        finally:
            self.orchestrator = None

    def _orchestrator(self) -> Orchestrator:
        swarm, settings = self.town.swarm, self.settings
        over_network = ask_over(self.network, settings.inquiry_timeout)

        async def ask(peer: str, request: Any) -> Any:
            return await swarm.ask(peer, request) if peer in swarm.by_peer else await over_network(peer, request)

        return build_orchestrator(
            swarm="test",
            rules=RULES,
            boot=self.boot,
            signer=self.identity,
            table=self.table,
            store=swarm.store,
            registry=swarm,
            models=SwarmModels(swarm, swarm.store),
            client=swarm,
            clock=TrioClock(),
            settings=settings,
            ask=ask,
            sync=self._sync,
            seats=lambda: {(s.peer, s.boot) for s in self.town.seated},
            compute=in_place,
        )

    async def _sync(self, jobs: Sequence[str]) -> None:
        for other in self.town.living():
            for job in jobs:
                if other is not self and other.table.holds(job):
                    await self.table.merge(job, other.table.record(job).entries())

    async def attempts_of(self, job: str, ballot: Ballot) -> Any:
        raise Unavailable("no tasks run here")

    async def step(self) -> None:
        """A point where this node may crash. If it does, whatever it was about to do is not done: all its tasks are
        cancelled, and to what is shielded the disk is gone."""
        await trio.lowlevel.checkpoint()
        if self.scope is None or self.town.crash_here(self):
            await trio.lowlevel.checkpoint()  # its own tasks end here
            raise Unavailable("the node has crashed")


class Town:
    def __init__(self, swarm: FakeSwarm, hub: MemoryHub, nursery: trio.Nursery, notice: float) -> None:
        self.swarm = swarm
        self.hub = hub
        self.nursery = nursery
        self.notice = notice
        """Seconds until the others see that a seat is vacant."""
        self.nodes: dict[str, SeatNode] = {}
        self.seated: list[SeatNode] = []
        self.version = 1
        self.changed = trio.Event()
        self.crash_at: Callable[[SeatNode], bool] = lambda node: False
        self.crashes: list[str] = []

    def living(self) -> list[SeatNode]:
        return [n for n in self.nodes.values() if n.scope is not None]

    async def start(self, name: str, **settings: Any) -> SeatNode:
        node = self.nodes.setdefault(name, SeatNode(self, name, OrchestratorSettings(**settings)))
        await self.nursery.start(node.run)
        return node

    def seat(self, node: SeatNode) -> None:
        self.seated.append(node)
        self._tell()

    def _tell(self) -> None:
        self.version += 1
        self.changed.set()
        self.changed = trio.Event()

    def crash_here(self, node: SeatNode) -> bool:
        if self.crash_at(node):
            self.crash(node.name)
        return node.scope is None

    def crash(self, name: str) -> None:
        """As kill -9: what was not durable is lost, nobody is told, the daemons go on."""
        node = self.nodes[name]
        assert node.scope is not None
        self.crashes.append(name)
        node.journal.crash()
        node.scope.cancel()
        node.scope = None
        node.orchestrator = None
        self.hub.crash(node.peer)
        self.nursery.start_soon(self._unseat, node, node.boot)

    def demote(self, name: str) -> None:
        """It loses its seat, and lives on."""
        node = self.nodes[name]
        node.term.cancel()
        self.forget_seat(name)

    def forget_seat(self, name: str) -> None:
        """Nobody sees its seat any more."""
        self.seated = [s for s in self.seated if s.name != name]
        self._tell()

    async def _unseat(self, node: SeatNode, boot: str) -> None:
        await trio.sleep(self.notice)
        self.seated = [s for s in self.seated if s is not node or s.boot != boot]
        self._tell()

    async def end(self, form: JobForm) -> tuple[str, dict[str, Any]]:
        """What a client does that will have its answer: the same job at whichever seat answers, until it has ended. Its id
        and its last document."""
        assert form.form.idempotency_key
        while True:
            for node in self.living():
                if (ended := await self._ask_in_time(node, form)) is not None:
                    return ended
            await trio.sleep(0.1)

    async def _ask_in_time(self, node: SeatNode, form: JobForm) -> tuple[str, dict[str, Any]] | None:
        with trio.move_on_after(2):
            return await _ask(node, form)
        return None


async def _ask(node: SeatNode, form: JobForm) -> tuple[str, dict[str, Any]] | None:
    api = node.orchestrator
    if api is None:
        return None
    try:
        job = (await api.submit(form, "me")).job_id
        with suppress(DimError):  # not ready, or no result
            await api.result(job, 1.0)
        document = dict(await api.get(job))
    except DimError:
        return None
    return (job, document) if node.scope is not None and node.table.view(job).terminal else None


@asynccontextmanager
async def town(swarm: FakeSwarm, names: Sequence[str], notice: float = 0.5, **settings: Any) -> AsyncGenerator[Town]:
    async with MemoryHub() as hub, trio.open_nursery() as nursery:
        made = Town(swarm, hub, nursery, notice)
        for name in names:
            await made.start(name, **settings)
        yield made
        nursery.cancel_scope.cancel()
