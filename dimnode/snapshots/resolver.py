"""``registry``, ``jobs`` and ``jobs/ID`` as the names of all present seats tell them, merged into documents.

Heartbeats and the entries of one job's record are checked against their authors' keys, so no seat can make them up; it can leave
something out. The states in the list of jobs are the seats' word.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import trio

from dimnode.core.job_record import EntryRefused, Record
from dimnode.core.job_view import view
from dimnode.core.record_gate import EntryRules, NotADecider, RecordGate
from dimnode.errors import InvalidArgument, NotFound, Unavailable
from dimnode.orchestrator.documents import job_document
from dimnode.ports import Elector, NodeView, Registry
from dimnode.snapshots.documents import JobSummary
from dimnode.snapshots.members import checked, later
from dimnode.snapshots.name_book import Named
from dimnode.snapshots.names import SwarmNames
from dimnode.snapshots.reader import Published, open_published
from dimnode.swarm.views import node_document
from p2p.ipfs.api import ContentError, ContentStore

MOST = 10_000
"""Jobs in one answer."""
MOST_MEMBERS = 10_000
JOBS = "jobs/"


@dataclass(frozen=True, slots=True)
class ResolverSettings:
    timeout: float = 10.0
    """Seconds for a block."""
    others: int = 8
    """Nodes whose names are tried when no seat's can be read."""


class Resolver:
    def __init__(
        self,
        store: ContentStore,
        names: SwarmNames,
        registry: Registry,
        elector: Elector,
        settings: ResolverSettings | None = None,
        *,
        swarm: str,
        protocol: int,
        rules: EntryRules,
    ) -> None:
        self._store = store
        self._names = names
        self._elector = elector
        self._settings = settings or ResolverSettings()
        self._swarm = swarm
        self._protocol = protocol
        self._registry = registry
        self._verify = rules.verify
        self._gate = RecordGate(rules)

    def _name_of(self, peer: str) -> str:
        found = self._registry.find(peer)
        return found[0].heartbeat.name if found else peer

    async def resolve(self, path: str, *, after: str = "", limit: int = 1000) -> Mapping[str, Any]:
        """Raises `InvalidArgument` for other paths, `NotFound` for an unknown job, `Unavailable` if no seat's state can be read."""
        if path == "registry":
            return await self.registry()
        if path == "jobs":
            return await self.jobs(after, max(1, min(limit, MOST)))
        if path.startswith(JOBS) and path != JOBS:
            return await self.job(path.removeprefix(JOBS))
        raise InvalidArgument(f"{path!r} is not a path of the swarm's state", hint="There are: registry, jobs, jobs/ID.")

    async def registry(self) -> dict[str, Any]:
        seats = await self._seats()
        found: dict[str, NodeView] = {}
        for seat in seats:
            with seat.tolerate():
                async with aclosing(seat.published.members()) as members:
                    async for member in members:
                        if len(found) >= MOST_MEMBERS:
                            break
                        seen = checked(member, swarm=self._swarm, protocol=self._protocol, verify=self._verify)
                        if seen is not None:
                            found[member.peer] = later(seen, found[member.peer]) if member.peer in found else seen
                        await trio.lowlevel.checkpoint()
        holders = {s.peer for s in self._elector.seats()}
        nodes = [node_document(found[peer], peer in holders) for peer in sorted(found)]
        return {"path": "registry", "seats": self._documents(seats), "nodes": nodes}

    async def jobs(self, after: str, limit: int) -> dict[str, Any]:
        """Sorted by id, beginning after ``after``."""
        seats = await self._seats()
        jobs: list[dict[str, Any]] = []
        more = False
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(aclosing(self._states(seat, after))) for seat in seats]
            heads = [await anext(stream, None) for stream in streams]
            while any(heads):
                job = min(head.job for head in heads if head is not None)
                said = [head for head in heads if head is not None and head.job == job]
                best = reduce(_better, said)
                if best.status != "deleted":
                    if len(jobs) == limit:
                        more = True
                        break
                    jobs.append(self._job_line(best))
                heads = [
                    await anext(stream, None) if head is not None and head.job == job else head
                    for stream, head in zip(streams, heads, strict=True)
                ]
        return {"path": "jobs", "seats": self._documents(seats), "jobs": jobs, "more": more}

    async def job(self, job: str) -> dict[str, Any]:
        seats = await self._seats()
        record, said = Record(job), list[JobSummary]()
        for seat in seats:
            with seat.tolerate():
                found = await seat.published.job(job)
                if found is None:
                    continue
                said.append(found[0])
                if found[1] is not None:
                    async with aclosing(seat.published.records(found[1], {job})) as records:
                        async for _, entries in records:
                            self._merge(record, entries)
        best = reduce(_better, said) if said else None
        status = view(record).status if len(record) else (best.status if best else "deleted")
        if best is None or status == "deleted":
            raise NotFound(f"no seat has published job {job}", hint="`dimnode ipfs resolve jobs` lists the jobs; new ones take a moment.")
        document = {**self._job_line(best), "verified": bool(len(record))}
        if len(record):
            outcome = view(record).outcome
            made = job_document(record, self._name_of)
            made["tasks"] = [{k: v for k, v in task.items() if k != "receipt"} for task in made["tasks"]]
            document = {**document, **made, "result_cid": (outcome.result_cid or "") if outcome else ""}
        return {"path": JOBS + job, "seats": self._documents(seats), "job": document}

    def _merge(self, record: Record, entries: Sequence[Any]) -> None:
        good: list[Any] = []
        for entry in entries:
            try:
                if self._gate.check(record.job, entry, record):
                    good.append(entry)
            except NotADecider:
                return  # what else it has would tell something else without that
            except EntryRefused:
                continue  # what a seat made up is left out
        for entry in good:
            record.add(entry)

    async def _states(self, seat: _Seat, after: str) -> AsyncGenerator[JobSummary, None]:
        with seat.tolerate():
            async with aclosing(seat.published.leaves(after)) as leaves:
                async for leaf in leaves:
                    for summary in (await seat.published.summaries(leaf))[0]:
                        if summary.job > after:
                            yield summary

    def _job_line(self, s: JobSummary) -> dict[str, Any]:
        return {
            "job_id": s.job,
            "status": s.status,
            "pattern": s.pattern,
            "priority": s.priority,
            "owner": self._name_of(s.owner) if s.owner else "",
            "epoch": s.epoch,
            "submitted": s.submitted,
            "updated": s.updated,
            "spec_cid": s.spec_cid,
            "result_cid": s.result_cid,
            "error": s.error,
        }

    # --- seats

    async def _seats(self) -> list[_Seat]:
        """Those whose state can be read; if there is none, those who published before and are gone, or hold no seat any more: their blocks may
        be with others. Raises `Unavailable`."""
        peers = [s.peer for s in self._elector.seats()]
        problem = "no orchestrator has published anything yet" if peers else "no orchestrator is known"
        seats, problem = await self._readable(peers, problem)
        if not seats:
            seats, problem = await self._readable(self._former(peers), problem)
        if not seats:
            raise Unavailable(f"the swarm's state cannot be read: {problem}", hint="A seat publishes it some seconds after it was won.")
        return seats

    def _former(self, seats: Sequence[str]) -> list[str]:
        """Whose names were heard, and members that are gone, whose names the DHT may have."""
        gone = [v.heartbeat.peer_id for v in self._registry.nodes() if v.state != "alive"]
        known = dict.fromkeys([*self._names.heard_of(), *gone])
        return [p for p in known if p not in seats and self._gate.may_decide(p)][: self._settings.others]

    async def _readable(self, peers: Sequence[str], problem: str) -> tuple[list[_Seat], str]:
        named = await self._names.resolve(peers)
        seats: list[_Seat] = []
        for peer in peers:
            if peer in named:
                try:
                    published = await open_published(self._store, named[peer], self._swarm, self._settings.timeout)
                    seats.append(_Seat(named[peer], published))
                except ContentError as error:
                    problem = str(error)
        return seats, problem

    def _documents(self, seats: Sequence[_Seat]) -> list[dict[str, Any]]:
        return [
            {
                "peer_id": seat.named.peer,
                "name": self._name_of(seat.named.peer),
                "ipns": seat.named.card.name,
                "root": seat.named.cid,
                "sequence": seat.named.record.sequence,
                "expires": seat.named.record.expires,
                "at": seat.published.root.at,
                "jobs": seat.published.root.job_count,
                "nodes": seat.published.root.member_count,
                "problem": seat.problem,
            }
            for seat in seats
        ]


@dataclass(slots=True)
class _Seat:
    named: Named
    published: Published
    problem: str = ""

    @contextmanager
    def tolerate(self) -> Generator[None, None, None]:
        """What cannot be read of one seat is noted; the others go on."""
        try:
            yield
        except ContentError as error:
            self.problem = str(error)


def _better(a: JobSummary, b: JobSummary) -> JobSummary:
    """Of two states of one job the one that the merged record would have."""
    return b if b.outdoes(a) else a
