"""The swarm's published state at size: a snapshot of many finished jobs written, written again after a few changes, and fetched by a
newcomer, who catches up from it. Real store, real journal, real signatures; the network between the two stores is in memory.

    python -m tools.bench_snapshots [--jobs 100000] [--changed 100] [--json]
    python -m tools.bench_snapshots --nodes [--jobs 10000] [--json]

``--nodes``: real node processes instead, and how soon a newcomer is ready and has the snapshot.

Memory is the growth of the process's peak while the part runs, seconds are both of the clock and of the processor.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from dimnode.clock import SystemClock
from dimnode.core.record_gate import EntryRules
from dimnode.domain import codec
from dimnode.domain.ids import job_id
from dimnode.domain.node import Capabilities, Heartbeat, Load
from dimnode.domain.record import Ballot, Claim, Core, OutcomeEntry, SignedEntry, StatusEntry
from dimnode.records.exchange import RecordExchange
from dimnode.records.made_blocks import cid_of
from dimnode.records.messages import BlocksRequest
from dimnode.records.table import RecordTable
from dimnode.security.signing import sign_entry
from dimnode.snapshots.catch_up import CatchUp, CatchUpSettings
from dimnode.snapshots.names import SwarmNames
from dimnode.snapshots.reader import open_published
from dimnode.snapshots.writer import SnapshotWriter
from dimnode.state.journal import open_journal
from dimnode.swarm.elector import SwarmElector
from dimnode.swarm.registry import SwarmRegistry
from p2p.identity import Identity, verify
from p2p.ipfs.api import BlockMissing
from p2p.ipfs.blocks import BlocksOnDisk
from p2p.ipfs.cid import Cid
from p2p.ipfs.settings import StoreSettings
from p2p.ipfs.store import Store
from p2p.ipfs.traffic import Traffic
from p2p.memory import MemoryHub

SWARM = "bench"
MIB = 1 << 20


class Direct:
    """`p2p.ipfs.store.Exchange` with one other store at the end of the wire."""

    def __init__(self, other: BlocksOnDisk | None) -> None:
        self.traffic = Traffic()
        self._other = other

    async def fetch_block(self, cid: Cid, providers: Collection[str], timeout: float, *, private: bool = False) -> bytes:
        del providers, timeout
        data = await self._other.get(cid) if self._other is not None else None
        if data is None:
            raise BlockMissing(f"{cid} is not there")
        self.traffic.fetched(data)
        return data


@asynccontextmanager
async def a_store(folder: Path, other: BlocksOnDisk | None = None) -> AsyncGenerator[tuple[Store, BlocksOnDisk], None]:
    blocks = BlocksOnDisk(folder, StoreSettings())
    await blocks.open()
    try:
        yield Store("embedded", blocks, Direct(other), StoreSettings()), blocks
    finally:
        await blocks.close()


def finished(number: int, signer: Identity, now: float) -> list[SignedEntry]:
    """A small job of one task as its compacted record has it: about 2.5 KB."""
    spec = codec.encode({"pattern": "chained", "number": number, "client_data": {}, "text": "x" * 700})
    result = codec.encode({"outputs": {}, "tasks": [], "number": number, "text": "y" * 900})
    name = job_id(SWARM, "local", "", codec.digest(spec))
    ballot = Ballot(1, signer.peer_id, "boot")
    bodies = [
        Core(
            job=name, spec_cid=cid_of(spec), spec=spec, pattern="chained", priority="normal", principal="local", submitted=now, timeout=3600.0,
        ),
        Claim(job=name, ballot=ballot, at=now),
        StatusEntry(job=name, ballot=ballot, status="running", at=now + 0.1),
        OutcomeEntry(
            job=name, ballot=ballot, status="completed", at=now + 1, result_cid=cid_of(result), result=result,
        ),
    ]  # fmt: skip
    return [sign_entry(body, signer) for body in bodies]


@asynccontextmanager
async def measured(report: dict[str, Any], part: str) -> AsyncGenerator[dict[str, Any], None]:
    peak, wall, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
    found: dict[str, Any] = {}
    yield found
    found["seconds"] = round(time.perf_counter() - wall, 2)
    found["cpu_seconds"] = round(time.process_time() - cpu, 2)
    found["peak_growth_mib"] = round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024, 1)
    report[part] = found


def heartbeat(peer: str) -> Heartbeat:
    return Heartbeat(
        peer_id=peer, name=peer[-6:], swarm=SWARM, protocol=1, boot="boot", incarnation=1, seq=0, addresses=(), daemon="",
        capabilities=Capabilities(os="linux", arch="x", cpus=2, memory=1 << 30), load=Load(),
    )  # fmt: skip


async def nobody_needs(request: BlocksRequest) -> Collection[str]:
    return request.cids


async def run(jobs: int, changed: int, folder: Path, say: Callable[[str], None]) -> Mapping[str, Any]:
    clock, seat, key, newcomer = SystemClock(), Identity.generate(), Identity.generate(), Identity.generate()
    report: dict[str, Any] = {"jobs": jobs, "changed": changed}
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(MemoryHub())
        journal = await stack.enter_async_context(open_journal(folder / "seat.db"))
        store, blocks = await stack.enter_async_context(a_store(folder / "seat"))
        say("filling the journal")
        for start in range(0, jobs, 500):
            now = clock.wall()
            await journal.append([e for n in range(start, min(jobs, start + 500)) for e in finished(n, seat, now)])
        writer = SnapshotWriter(store, journal, clock)
        network = hub.network(seat.peer_id)
        registry = SwarmRegistry(network, seat, clock, heartbeat(seat.peer_id))
        names = SwarmNames(network, registry, journal, clock, swarm=SWARM, signer=seat, key=key)
        card = await names.card()
        say("writing")
        async with measured(report, "write") as found:
            made = await writer.write(card, {})
            found |= {"leaves": made.leaves, "blocks": store.statistics().blocks, "mib": round(store.statistics().bytes / MIB, 1)}
        await journal.append([e for n in range(jobs, jobs + changed) for e in finished(n, seat, clock.wall())])
        async with measured(report, "write_again") as found:
            had = store.statistics().bytes
            made = await writer.write(card, {})
            found |= {"leaves": made.leaves, "reused": made.reused, "new_mib": round((store.statistics().bytes - had) / MIB, 2)}
        named = await names.publish(made.cid)
        say("a newcomer reads")
        theirs = await stack.enter_async_context(open_journal(folder / "newcomer.db"))
        their_store, _ = await stack.enter_async_context(a_store(folder / "newcomer", blocks))
        there = hub.network(newcomer.peer_id)
        hub.connect_all()
        their_registry = SwarmRegistry(there, newcomer, clock, heartbeat(newcomer.peer_id))
        elector = SwarmElector(there, their_registry, theirs, clock, boot="boot", eligible=True)
        table = RecordTable(theirs, newcomer)
        their_names = SwarmNames(there, their_registry, theirs, clock, swarm=SWARM, signer=newcomer, key=Identity.generate())
        exchange = RecordExchange(there, table, clock, rules=EntryRules(verify, SWARM))
        catch_up = CatchUp(
            their_store, theirs, table, exchange, their_names, their_registry, elector, clock,
            CatchUpSettings(most_bytes=1 << 40, duty=0.99), me=newcomer.peer_id, swarm=SWARM, keep_blocks=nobody_needs,
        )  # fmt: skip
        async with measured(report, "newcomer_has_everything") as found:
            await catch_up.catch_up([seat.peer_id])
            found["informed_after_seconds"] = round(catch_up.seconds, 2)
            found["records"] = len(await theirs.digests("", 10_000_000))
        async with measured(report, "read_again_unchanged") as found:
            await catch_up.catch_up([seat.peer_id])
            found |= {k: v for k, v in catch_up.statistics().items() if k in ("same", "read")}
        async with measured(report, "list") as found:
            published = await open_published(their_store, named, SWARM, 30.0)
            async with aclosing(published.leaves()) as leaves:
                found["jobs"] = sum([len((await published.summaries(leaf))[0]) async for leaf in leaves])
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, help="default: 100000, with --nodes 10000")
    parser.add_argument("--nodes", action="store_true")
    parser.add_argument("--changed", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    say: Callable[[str], None] = (lambda _: None) if given.json else print
    with tempfile.TemporaryDirectory() as folder:
        if given.nodes:
            from tools.bench_newcomer import measure

            report = measure(given.jobs or 10_000, Path(folder), say)
        else:
            report = trio.run(run, given.jobs or 100_000, given.changed, Path(folder), say)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
