"""A swarm in a simulation, its users, and what everybody did: the stage on which scenarios and random walks play."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import structlog
import trio

from dimnode.core.job_view import view
from dimnode.domain.record import Ballot
from dimnode.errors import DeadlineExceeded, DimError, Unavailable
from dimnode.orchestrator.any_seat import AnySeat
from p2p.memory import LinkFaults, MemoryHub
from tests.simulation.checks import Checks, Violation
from tests.simulation.users import Job, Users
from tests.support.simulated_machine import MACHINE
from tests.support.simulated_node import Computer, NodeSettings, SimulatedNode, Site

T = TypeVar("T")
REMEMBERED = 20_000
"""Events that are kept; `checks.describe` chooses what a violation shows."""
CALM = 10.0
"""Seconds after the last fault from which on every node should know what users were told."""
NOISE = frozenset({"member", "seat.won", "seat.ended"})
MILD = LinkFaults(loss=0.01, duplicates=0.01, delay=(0.001, 0.02))
ROUGH = LinkFaults(loss=0.1, duplicates=0.05, delay=(0.001, 0.08), slow=0.02, slow_delay=(0.1, 1.5), lost_requests=0.01)


@dataclass(frozen=True, slots=True)
class WorldSettings:
    nodes: int = 5
    node: NodeSettings = field(default_factory=NodeSettings)
    faults: LinkFaults = field(default_factory=lambda: MILD)
    replicas: int = 1
    notice: float = 0.2
    """Seconds until a broken connection is noticed."""
    health: float = 5.0
    """Seconds until a silent one is closed."""
    lost_calls: float = 0.02
    """Share of the users' calls whose answer gets lost."""
    call_timeout: float = 8.0


class World:
    """See `open_world`. All randomness is ``rng``'s."""

    def __init__(self, seed: int, hub: MemoryHub, settings: WorldSettings) -> None:
        self.seed = seed
        self.settings = settings
        self.rng = random.Random(seed)
        self.hub = hub
        self.site = Site(hub, self.rng, settings.node)
        self.trace: deque[tuple[float, str, str]] = deque(maxlen=REMEMBERED)
        self.counts: Counter[str] = Counter()
        self.site.voters = tuple(map(_name, range(settings.nodes)))
        self.computers = {name: Computer(self.site, name, self.fail) for name in map(_name, range(settings.nodes))}
        for number, name in enumerate(self.computers):
            hub.hosts[name] = f"10.0.0.{number + 1}"
        self.users = Users(self)
        self.checks = Checks(self)
        self.destroyed: dict[str, float] = {}
        """Machines that are lost for good, and since when."""
        self._failed: Violation | None = None
        self.calm_since = 0.0
        """No fault is under way since then."""
        self._calls: dict[SimulatedNode, set[trio.Event]] = {}

    # --- what happened

    @property
    def by_majority(self) -> bool:
        return self.settings.node.election.mode == "majority"

    @property
    def calm(self) -> bool:
        """Whether the last fault is long past."""
        return trio.current_time() - self.calm_since > CALM

    def disturb(self) -> None:
        self.calm_since = trio.current_time()

    def log(self, who: str, what: str) -> None:
        self.trace.append((trio.current_time(), who, what))

    def fail(self, what: str) -> None:
        """A promise was broken: the run ends with the first that was."""
        if self._failed is None:
            self.log("WORLD", f"VIOLATION: {what}")
            self._failed = Violation(what, tuple(self.trace))
            assert self.hub.nursery is not None
            self.hub.nursery.cancel_scope.cancel()

    def raise_failure(self) -> None:
        if self._failed is not None:
            raise self._failed

    def summary(self) -> dict[str, int]:
        jobs = self.users.jobs
        ends = Counter(j.shown[-1] for j in jobs if j.shown)
        ran = self.site.ran
        return {"jobs": len(jobs), **ends, "runs": sum(ran.values()), "runs too many": sum(ran.values()) - len(ran), **self.counts}

    # --- nodes

    def nodes(self) -> dict[str, SimulatedNode]:
        """Those that are up and awake."""
        return {name: c.node for name, c in self.computers.items() if c.node is not None and not c.paused}

    def holders(self) -> dict[int, list[str]]:
        """Seat -> who holds it."""
        found: dict[int, list[str]] = {}
        for name, node in self.nodes().items():
            seat = node.elector.mine()
            if seat is not None:
                found.setdefault(seat.seat, []).append(name)
        return found

    def settled(self) -> bool:
        """As many seats as there shall be, each held by one node that serves."""
        wanted = min(self.settings.node.election.orchestrators, len(self.nodes()))
        held = self.holders()
        serve = all(self.nodes()[name].served is not None for names in held.values() for name in names)
        return len(held) == wanted and serve and all(len(names) == 1 for names in held.values())

    def add(self, name: str | None = None) -> str:
        """One more computer, switched off."""
        name = name or _name(len(self.computers))
        self.computers[name] = Computer(self.site, name, self.fail)
        self.hub.hosts[name] = f"10.0.0.{len(self.computers)}"
        return name

    def start(self, *names: str, alone: bool = False) -> None:
        self.disturb()
        for name in names or tuple(self.computers):
            self.log(name, "starts")
            self.computers[name].start(alone=alone)
        self.hub.connect_all()

    def crash(self, *names: str) -> None:
        self.disturb()
        for name in names:
            self.log(name, "crashes")
            self.counts["crashes"] += 1
            node = self.computers[name].node
            assert node is not None
            self.computers[name].crash()
            for done in self._calls.pop(node, ()):
                done.set()

    def restart(self, *names: str) -> None:
        self.crash(*(n for n in names if self.computers[n].node is not None))
        self.start(*names)

    def destroy(self, name: str) -> None:
        """The machine burns, its disk with it."""
        if self.computers[name].node is not None:
            self.crash(name)
        self.log(name, "is lost for good")
        self.destroyed[name] = trio.current_time()

    def pause(self, name: str) -> None:
        self.disturb()
        self.log(name, "is paused")
        self.counts["pauses"] += 1
        self.computers[name].pause()

    def resume(self, name: str) -> None:
        self.disturb()
        self.log(name, "goes on")
        self.computers[name].resume()
        self.hub.connect_all()

    def fill_disk(self, name: str, full: bool = True) -> None:
        self.log(name, "has a full disk" if full else "has room on its disk again")
        self.computers[name].disk.full = full

    # --- links

    def partition(self, *groups: Iterable[str]) -> None:
        self.disturb()
        sides = [sorted(g) for g in groups]
        self.counts["partitions"] += 1
        self.log("NET", "partition " + " | ".join(",".join(s) for s in sides))
        self.hub.partition(*sides)
        self.hub.connect_all()

    def cut(self, source: str, target: str) -> None:
        self.disturb()
        self.log("NET", f"nothing passes from {source} to {target}")
        self.hub.cut(source, target)

    def mend_links(self) -> None:
        self.disturb()
        self.log("NET", "all links are whole")
        self.hub.heal()
        self.hub.connect_all()

    def weather(self, faults: LinkFaults) -> None:
        self.log("NET", f"links: {faults}")
        self.hub.faults = replace(faults)

    def heal(self) -> None:
        """Everything that can be is up, and reaches everything."""
        self.calm_since = trio.current_time()
        self.weather(MILD)
        self.mend_links()
        for name, computer in self.computers.items():
            computer.disk.full = False
            if computer.paused:
                self.resume(name)
        self.start_missing()
        self.hub.connect_all()

    def start_missing(self) -> None:
        missing = [n for n, c in self.computers.items() if c.node is None and n not in self.destroyed]
        if missing:
            self.start(*missing)

    # --- jobs

    def _owner(self, job: Job, names: Iterable[str]) -> Ballot | None:
        """The highest claim on those disks, and in those nodes."""
        found: list[Ballot] = []
        for name in names:
            computer = self.computers[name]
            if (record := computer.disk.journal.records.get(job.id)) is not None and (owner := view(record).owner) is not None:
                found.append(owner)
            if computer.node is not None and computer.node.records.holds(job.id):
                owner = computer.node.records.view(job.id).owner
                found += [owner] if owner is not None else []
        return max(found, default=None)

    def owner(self, job: Job) -> str:
        found = self._owner(job, self.computers)
        assert found is not None
        return found.peer

    def owner_in(self, names: Iterable[str], job: Job) -> str | None:
        found = self._owner(job, names)
        return found.peer if found is not None else None

    def claims(self, job: Job) -> int:
        found = self._owner(job, self.computers)
        return found.n if found is not None else 0

    def copies(self, job: Job) -> list[str]:
        """Who has a job's record beside its owner."""
        return [n for n in self.checks.disks_with(job.id) if n != self.owner(job)]

    def divide(self, job: Job) -> tuple[list[str], list[str]]:
        """The swarm in two, the owner with as many others as possible but no copy on one side."""
        copies = self.copies(job)
        rest = [n for n in self.computers if n not in copies and n != self.owner(job)]
        return [self.owner(job), *rest[1:]], [*copies, *rest[:1]]

    def ended_on(self, names: Iterable[str], job: Job) -> bool:
        """Whether one of those disks has an end of it."""
        records = (self.computers[n].disk.journal.records.get(job.id) for n in names)
        return any(view(r).outcome for r in records if r is not None)

    def seat_in(self, names: Iterable[str]) -> str | None:
        """A seat holder that serves, of these."""
        return next((n for n in names if (node := self.nodes().get(n)) is not None and node.served is not None), None)

    # --- calls of users

    async def call(self, name: str, act: Callable[[AnySeat], Awaitable[T]]) -> T:
        """A user's call of an orchestrator. Raises what it raises, `Unavailable` where it cannot be reached or its answer
        gets lost, `DeadlineExceeded`."""
        await trio.sleep(self.rng.uniform(0.001, 0.02))
        node = self.computers[name].node
        if node is None or node.served is None:
            raise Unavailable("connection refused")
        answer: list[Any] = []
        done = trio.Event()
        self._calls.setdefault(node, set()).add(done)
        scope = trio.CancelScope()
        assert self.hub.nursery is not None
        node.network.context.copy().run(self.hub.nursery.start_soon, _serve, node.served, act, answer, done, scope)
        with trio.move_on_after(self.settings.call_timeout):
            await done.wait()
        self._calls.get(node, set()).discard(done)
        if not done.is_set():
            scope.cancel()
            raise DeadlineExceeded("no answer in time")
        if not answer or self.rng.random() < self.settings.lost_calls:
            raise Unavailable("the connection broke")
        if isinstance(answer[0], DimError):
            raise answer[0]
        if isinstance(answer[0], BaseException):
            self.fail(f"{name} answered a user with {answer[0]!r}")
            raise Unavailable("the call failed")
        return answer[0]

    # --- time

    async def until(
        self, what: str, condition: Callable[[], bool], limit: float, step: float = 0.25, why: Callable[[], str | None] | None = None
    ) -> float:
        """Seconds until it holds. A violation after ``limit``; ``why`` tells what it lacks."""
        began = trio.current_time()
        while not condition():
            if trio.current_time() - began > limit:
                self.fail(f"{what}: not within {limit:g} s{f'; {why()}' if why else ''}{self.checks.missing()}")
            await trio.sleep(step)
        return trio.current_time() - began


async def _serve(
    api: AnySeat, act: Callable[[AnySeat], Awaitable[Any]], answer: list[Any], done: trio.Event, scope: trio.CancelScope
) -> None:
    try:
        with scope:
            answer.append(await act(api))
    except Exception as e:  # noqa: BLE001 - the world judges
        answer.append(e)
    done.set()


def _name(number: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[number] if number < 26 else f"n{number}"


def _tracing(world: World) -> Callable[..., Any]:
    def note(logger: Any, method: str, event: dict[str, Any]) -> Any:
        del logger
        if event["event"] in NOISE:
            raise structlog.DropEvent
        machine = MACHINE.get()
        text = " ".join(f"{k}={v}" for k, v in event.items() if k != "event")
        world.trace.append((trio.current_time(), machine.name if machine else "-", f"{method}: {event['event']} {text}"))
        raise structlog.DropEvent

    return note


@asynccontextmanager
async def open_world(seed: int, settings: WorldSettings) -> AsyncGenerator[World]:
    """Raises `Violation`."""
    old = structlog.get_config()
    world: World | None = None
    over = False
    try:
        hub = MemoryHub(seed=seed, notice=settings.notice, health=settings.health, grain=0.005)
        async with hub:
            hub.faults = replace(settings.faults)
            world = World(seed, hub, settings)
            structlog.configure(processors=[_tracing(world)], wrapper_class=structlog.make_filtering_bound_logger(20))
            assert hub.nursery is not None
            hub.nursery.start_soon(world.checks.run)
            try:
                yield world
                over = True
            finally:
                for computer in world.computers.values():
                    computer.dismantle()
    except Exception:
        if world is not None:
            world.raise_failure()
        if not over:  # else it is what torn down nodes say
            raise
    finally:
        structlog.configure(**old)
    world.raise_failure()


__all__ = ["MILD", "ROUGH", "Job", "World", "WorldSettings", "open_world"]
