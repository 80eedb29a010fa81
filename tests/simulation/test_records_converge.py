"""Copies of records become equal whatever was lost, hints help and may fail, and what is old goes and does not come back."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from dimnode.core.job_record import Record
from dimnode.core.records_sync import heirs
from dimnode.core.retention import RetentionRule
from dimnode.domain import codec
from dimnode.domain.record import Ballot, SignedEntry
from dimnode.errors import ResourceExhausted
from dimnode.records.anti_entropy import AntiEntropySettings
from dimnode.records.exchange import ExchangeSettings
from dimnode.records.hints import HintSettings
from dimnode.records.holder import HolderSettings
from dimnode.records.messages import COMPARE, HINTS, Hint, Hints
from dimnode.records.retention import RetentionSettings
from p2p.ipfs import cid as cids
from tests.support import entries as e
from tests.support.record_nodes import QUICK, SMALL, RecordNode, holders, record_swarm, until

DAY = 86_400.0


def started(job: str, peer: str = "p0") -> list[SignedEntry]:
    return [e.core(job), e.claim(1, peer, job=job)]


# --- anti-entropy --------------------------------------------------------------------------------


async def test_a_node_that_missed_every_message_converges(autojump_clock: MockClock) -> None:
    names = [f"p{i}" for i in range(30)]
    async with record_swarm(names, "anti_entropy", anti_entropy=SMALL) as swarm:
        nodes = swarm.nodes
        late = nodes["p29"]
        swarm.hub.partition(set(names) - {"p29"})
        records: dict[str, list[SignedEntry]] = {}
        for i in range(40):
            owner = f"p{i % 4}"
            job = f"job-{i:02}"
            records[job] = [*started(job, owner), *([e.outcome(1, "failed", owner, job=job)] if i % 3 else [])]
            await nodes[owner].table.merge(job, records[job])
            nodes[owner].chosen[job] = ("p10", "p29")
            await nodes["p10"].table.merge(job, records[job][:2])  # it knows whose it is, and leaves the copies to that node
        await trio.sleep(30)
        swarm.hub.heal()

        async def converged() -> bool:
            return all([{"p10", "p29"} <= await holders({"p10": nodes["p10"], "p29": late}, j, r) for j, r in records.items()])

        took = await until(converged, 400, step=5)
        print(f"converged after {took:.0f} s")
        assert late.table.active == tuple(late.table.active)
        assert set(late.table.active) == {j for j, r in records.items() if len(r) == 2}
        assert not [j for j in records if nodes["p20"].table.holds(j)], "nobody gets what it shall not hold"


async def test_copies_that_diverged_in_any_way_become_equal(autojump_clock: MockClock) -> None:
    """Also records that are larger than an answer, and such as one side has compacted."""
    rng = random.Random(4)
    tiny = ExchangeSettings(max_bytes=3000, max_jobs=5)
    names = [f"p{i}" for i in range(6)]
    async with record_swarm(
        names, "anti_entropy", anti_entropy=replace(QUICK, exchange=tiny), holder=HolderSettings(max_bytes=3000)
    ) as swarm:
        want: dict[str, Record] = {}
        for i in range(25):
            job = f"job-{i}"
            pool = [e.core(job), *(e.claim(n, p, job=job) for n in (1, 2) for p in ("p0", "p1"))]
            pool += [e.raw(type="novelty", job=job, n=n, x=bytes(rng.choice((10, 600)))) for n in range(rng.choice((2, 12)))]
            pool += [e.outcome(1, s, "p0", job=job) for s in rng.sample(["failed", "completed", "cancelled", "deleted"], rng.randint(0, 2))]
            for peer in rng.sample(names, 4):
                await swarm.nodes[peer].table.merge(job, [pool[0], *rng.sample(pool, rng.randint(1, len(pool)))])
            parts = [x for n in swarm.nodes.values() for x in await n.journal.load(job)]
            want[job] = Record(job, parts)

        async def equal() -> bool:
            for job, record in want.items():
                for node in swarm.nodes.values():
                    entries = await node.journal.load(job)
                    if entries and Record(job, entries) != record:
                        return False
            return True

        await until(equal, 600, step=5)
        quiet = {p: Counter(n.anti_entropy.statistics()) for p, n in swarm.nodes.items()}
        await trio.sleep(60)
        for peer, node in swarm.nodes.items():
            more = Counter(node.anti_entropy.statistics()) - quiet[peer]
            assert more["rounds"] > 30
            assert more["sent"] == more["taken"] == more["failed"] == 0, "what is equal is not sent again"


async def test_records_whose_owner_is_gone_get_heirs_with_their_blocks(autojump_clock: MockClock) -> None:
    names = [f"p{i}" for i in range(12)]
    settings = replace(QUICK, replicas=2)
    async with record_swarm(names, "anti_entropy", anti_entropy=settings) as swarm:
        nodes = swarm.nodes
        data = b"input" * 100
        cid = await nodes["p0"].store.add_bytes(data)
        spec = codec.encode({"client_data": {"x": {"cid": cid}}})
        record = [e.core(spec=spec), e.claim(1, "p0")]
        await nodes["p0"].table.merge(e.JOB, record)
        nodes["p0"].chosen[e.JOB] = ("p1",)
        await until(lambda: nodes["p1"].table.holds(e.JOB), 200)
        await until(lambda: _pinned(nodes["p1"], cid), 30)
        await trio.sleep(100)
        assert await holders(nodes, e.JOB, record) == {"p0", "p1"}, "while its owner is there it is its owner's matter"
        swarm.crash("p0")
        shall = set(heirs(e.JOB, nodes, 2)) | {"p1"}

        async def inherited() -> bool:
            return await holders(nodes, e.JOB, record) == shall

        await until(inherited, 300)
        for peer in shall:
            await until(lambda peer=peer: _pinned(nodes[peer], cid), 30)
        await trio.sleep(100)
        assert await holders(nodes, e.JOB, record) == shall


async def _pinned(node: RecordNode, cid: str) -> bool:
    return cid in await node.store.pins() and await node.store.has(cid)


async def test_an_owner_that_came_back_as_another_process_is_not_there(autojump_clock: MockClock) -> None:
    async with record_swarm(["p0", "p1", "p2"], "anti_entropy", anti_entropy=replace(QUICK, replicas=2)) as swarm:
        await swarm.nodes["p1"].table.merge(e.JOB, started(e.JOB))
        swarm.members.boots["p0"] = "another"
        await until(lambda: all(n.table.holds(e.JOB) for n in swarm.nodes.values()), 200)


async def test_custody_holds_for_heirs(autojump_clock: MockClock) -> None:
    names = [f"p{i}" for i in range(6)]
    settings = replace(QUICK, replicas=5, copies_on=frozenset({"p1", "p2"}))
    async with record_swarm(names, "anti_entropy", anti_entropy=settings) as swarm:
        await swarm.nodes["p1"].table.merge(e.JOB, [e.core(), e.claim(1, "gone")])
        await until(lambda: swarm.nodes["p2"].table.holds(e.JOB), 200)
        await trio.sleep(100)
        assert [p for p, n in swarm.nodes.items() if n.table.holds(e.JOB)] == ["p1", "p2"]


async def test_a_restarted_node_learns_at_once_what_it_missed(autojump_clock: MockClock) -> None:
    async with record_swarm(["p0", "p1", "p2", "p3"]) as swarm:
        jobs = [f"job-{i}" for i in range(600)]
        for job in jobs:
            await swarm.nodes["p0"].journal.append(started(job))
        disk = swarm.crash("p0")
        for i, job in enumerate(jobs):
            there = swarm.nodes[f"p{1 + i % 3}"]
            await there.journal.append([*started(job), e.claim(2, "p1", job=job), e.outcome(2, "completed", "p1", job=job)])
        await swarm.nodes["p2"].journal.append([*started("job-more"), e.outcome(1, "cancelled", "p0", job="job-more")])
        again = await swarm.add("p0", disk=disk)
        assert len(again.table.active) == 600
        swarm.hub.cut("p3", "p0")
        start = trio.current_time()
        await again.anti_entropy.sync_now([*jobs, "job-more"], ["p1", "p2", "p3", "nobody", "p0"], timeout=3.0)
        assert trio.current_time() - start <= 3.0
        assert set(again.table.active) == {j for i, j in enumerate(jobs) if i % 3 == 2}, "all but what only p3 knows"
        assert again.table.view("job-more").status == "cancelled"
        assert not swarm.nodes["p1"].table.holds("job-1000")


async def test_a_full_disk_stops_a_sync_and_no_rounds(autojump_clock: MockClock) -> None:
    async with record_swarm(["p0", "p1"], "anti_entropy", anti_entropy=QUICK) as swarm:
        full, other = swarm.nodes["p0"], swarm.nodes["p1"]
        await full.table.merge(e.JOB, started(e.JOB, "p1"))
        full.journal.disk.full = True
        await other.table.merge(e.JOB, [*started(e.JOB, "p1"), e.outcome(1, "failed", "p1")])
        with pytest.raises(ResourceExhausted):
            await full.anti_entropy.sync_now([e.JOB], ["p1"], timeout=5)
        await trio.sleep(20)
        assert not full.table.view(e.JOB).terminal
        full.journal.disk.full = False
        await until(lambda: full.table.view(e.JOB).terminal, 100)


async def test_what_one_side_refuses_is_not_sent_again_and_again(autojump_clock: MockClock) -> None:
    async with record_swarm(["p0", "p1"], "anti_entropy", anti_entropy=QUICK) as swarm:
        forged = SignedEntry(e.claim(9, "mallory").payload, "mallory", b"0" * 32)
        await swarm.nodes["p0"].journal.append([*started(e.JOB), forged])
        await swarm.nodes["p1"].journal.append(started(e.JOB))
        await trio.sleep(1200)
        refused = sum(n.anti_entropy.statistics().get("refused", 0) for n in swarm.nodes.values())
        refused += swarm.nodes["p1"].holder.statistics().get("refused", 0)
        assert 1 <= refused <= 2 * (6 + 1200 / 300), "each side tries ever more rarely, at last once in five minutes"
        assert forged not in await swarm.nodes["p1"].journal.load(e.JOB)


async def test_a_peer_that_answers_nonsense_does_no_harm(autojump_clock: MockClock) -> None:
    async with record_swarm(["p0", "p1"], "anti_entropy", anti_entropy=QUICK) as swarm:

        async def nonsense(peer: str, data: bytes) -> bytes:
            del peer, data
            await trio.lowlevel.checkpoint()
            return b"\xff\x00"

        swarm.nodes["p1"].network.serve(COMPARE, nonsense)
        await swarm.nodes["p0"].table.merge(e.JOB, started(e.JOB))
        await trio.sleep(20)
        assert swarm.nodes["p0"].anti_entropy.statistics()["failed"] > 3


# --- hints ---------------------------------------------------------------------------------------


async def test_hints_tell_owners_and_who_is_behind_catches_up(autojump_clock: MockClock) -> None:
    async with record_swarm(["p0", "p1", "p2"], "hints") as swarm:
        owner, copy, other = (swarm.nodes[p] for p in ("p0", "p1", "p2"))
        await copy.table.merge(e.JOB, started(e.JOB))
        await owner.table.merge(e.JOB, [*started(e.JOB), e.assign(1, peer="p0")])
        await trio.sleep(1)
        assert [n.hints.owner_of(e.JOB) for n in (owner, copy, other)] == ["p0", "p0", "p0"]
        assert other.hints.owner_of("job-unknown") is None
        assert len(copy.table.record(e.JOB)) == 2, "it has its time to arrive by itself"
        await until(lambda: len(copy.table.record(e.JOB)) == 3, 5)
        assert await copy.has(e.JOB, [*started(e.JOB), e.assign(1, peer="p0")])
        assert not other.table.holds(e.JOB)
        await owner.table.merge(e.JOB, [e.claim(2, "p2")])
        await trio.sleep(1)
        assert owner.hints.owner_of(e.JOB) == "p2"


async def test_a_burst_goes_out_in_few_messages(autojump_clock: MockClock) -> None:
    async with record_swarm(["p0", "p1"], "hints") as swarm:
        jobs = [f"job-{i}" for i in range(2500)]
        await swarm.nodes["p0"].table.merge_many([(j, started(j)) for j in jobs])
        await trio.sleep(2)
        assert all(swarm.nodes["p1"].hints.owner_of(j) == "p0" for j in jobs)
        assert swarm.nodes["p0"].network.statistics().published == 3
        assert swarm.nodes["p0"].hints.statistics()["told"] == 2500


async def test_bursts_lose_nothing_in_the_end(autojump_clock: MockClock) -> None:
    """Nine of ten gossip messages are lost, and no copy is sent at all: hints and anti-entropy bring everything."""
    names = [f"p{i}" for i in range(5)]
    settings = AntiEntropySettings(interval=1.0)
    async with record_swarm(names, "hints", "anti_entropy", loss=0.9, anti_entropy=settings) as swarm:
        owner = swarm.nodes["p0"]
        jobs = [f"job-{i:03}" for i in range(600)]
        for job in jobs:
            owner.chosen[job] = ("p1", "p2")
        await owner.table.merge_many([(j, started(j)) for j in jobs])
        await trio.sleep(5)
        for start in range(0, 600, 100):
            await owner.table.merge_many([(j, [e.outcome(1, "failed", "p0", job=j)]) for j in jobs[start : start + 100]])
            await trio.sleep(0.3)
        want = {j: Record(j, [*started(j), e.outcome(1, "failed", "p0", job=j)]).digest for j in jobs}

        async def everywhere() -> bool:
            found = [await swarm.nodes[p].journal.digests_of(jobs) for p in ("p1", "p2")]
            return all({j: d.digest for j, d in f.items()} == want for f in found)

        await until(everywhere, 300, step=5)


async def test_what_changed_while_nobody_was_reached_is_equal_soon_however_many_records_there_are(autojump_clock: MockClock) -> None:
    """An end that is buried under later changes, among records that are the same everywhere: it does not wait for the walk."""
    names = [f"p{i}" for i in range(5)]
    async with record_swarm(names, "anti_entropy", anti_entropy=SMALL) as swarm:
        jobs = [f"job-{i:04}" for i in range(1500)]
        for node in swarm.nodes.values():
            await node.table.merge_many([(j, [*started(j), e.outcome(1, "failed", "p0", job=j)]) for j in jobs])
        await trio.sleep(200)  # all are compared once with all others, at this size of comparisons
        swarm.hub.partition(["p0"], names[1:])
        changed = jobs[700:760]
        for job in changed:
            await swarm.nodes["p0"].table.merge(job, [e.outcome(1, "cancelled", "p0", job=job)])
        await trio.sleep(60)
        swarm.hub.heal()
        swarm.hub.connect_all()

        async def equal() -> bool:
            found = [await n.journal.digests_of(changed) for n in swarm.nodes.values()]
            return all({j: d.digest for j, d in f.items()} == {j: d.digest for j, d in found[0].items()} for f in found)

        assert not await equal()
        await until(equal, 30)


async def test_hints_from_strangers_and_garbage_do_no_harm(autojump_clock: MockClock) -> None:
    async with record_swarm(["p0", "p1", "mallory"], "hints", hints=HintSettings(index=50)) as swarm:
        await swarm.nodes["p1"].table.merge(e.JOB, started(e.JOB))
        liar = swarm.nodes["mallory"].network
        hint = Hint(job=e.JOB, digest=b"\x01" * 8, epoch=5, terminal=True)
        bad = [
            b"\xff",
            codec.encode(Hints(hints=(hint,) * 1001)),
            codec.encode(Hints(hints=(Hint(job="j" * 99, digest=b"\x01" * 8, epoch=1, terminal=False),))),
            codec.encode(Hints(hints=(Hint(job="j", digest=b"short", epoch=1, terminal=False),))),
            codec.encode(Hints(hints=(Hint(job="j", digest=b"\x01" * 8, epoch=-1, terminal=False),))),
        ]
        for data in bad:
            await liar.publish(HINTS, data)
        await liar.publish(HINTS, codec.encode(Hints(hints=(hint,))))
        for n in range(100):
            flood = Hint(job=f"job-{n}", digest=b"\x02" * 8, epoch=1, terminal=False)
            await liar.publish(HINTS, codec.encode(Hints(hints=(flood,))))
        await trio.sleep(10)
        victim = swarm.nodes["p1"]
        assert victim.hints.statistics()["refused"] == len(bad)
        assert victim.hints.statistics()["index"] == 50
        assert await victim.has(e.JOB, started(e.JOB)), "a hint decides nothing"


# --- retention -----------------------------------------------------------------------------------

RULE = RetentionRule(retention=7 * DAY)
SLOW = AntiEntropySettings(interval=900.0, replicas=3)


def _submitted(job: str) -> SignedEntry:
    return e.core(job, submitted=1_700_000_000.0 + trio.current_time())


async def test_old_records_go_everywhere_and_do_not_come_back(autojump_clock: MockClock) -> None:
    names = [f"p{i}" for i in range(4)]
    hourly = RetentionSettings(interval=3600.0)
    async with record_swarm(names, "anti_entropy", "retention", anti_entropy=SLOW, retention=hourly, rule=RULE) as swarm:
        nodes = swarm.nodes
        now = 1_700_000_000.0 + trio.current_time()
        record = [_submitted(e.JOB), e.claim(1, "p0", at=now), e.outcome(1, "completed", "p0", at=now)]
        await nodes["p0"].table.merge(e.JOB, record)
        nodes["p0"].chosen[e.JOB] = names[1:]
        cid = await nodes["p1"].store.private_to(e.JOB).add_bytes(b"input")
        await nodes["p1"].store.private_to("another-job").add_bytes(b"input")
        await nodes["p1"].store.pin(cid, reason=f"job {e.JOB}")
        model = await nodes["p1"].store.add_bytes(b"model")
        await nodes["p1"].store.pin(model, reason="model m")
        await nodes["p2"].journal.append([e.attempt(1, node="p2")])
        await trio.sleep(6.9 * DAY)
        assert await holders(nodes, e.JOB, record) == set(names)
        await trio.sleep(0.4 * DAY)
        assert [await n.journal.load(e.JOB) for n in nodes.values()] == [()] * 4
        assert [n.table.holds(e.JOB) for n in nodes.values()] == [False] * 4
        assert await nodes["p1"].store.pins() == {model: "model m"}
        assert await nodes["p1"].store._blocks.audiences(cids.parse(cid)) == {"another-job"}
        await trio.sleep(2 * DAY)
        assert [await n.journal.load(e.JOB) for n in nodes.values()] == [()] * 4


async def test_a_journal_that_returns_too_late_brings_nothing_back(autojump_clock: MockClock) -> None:
    """Its unfinished job has ended elsewhere, and those who know have forgotten."""
    names = ["p0", "p1", "p2"]
    hourly = RetentionSettings(interval=3600.0)
    async with record_swarm(names, "anti_entropy", "retention", anti_entropy=SLOW, retention=hourly, rule=RULE) as swarm:
        start = [_submitted(e.JOB), e.claim(1, "p2")]
        ended = [*start, e.claim(2, "p0"), e.outcome(2, "completed", "p0", at=1_700_000_060.0 + trio.current_time())]
        await swarm.nodes["p2"].table.merge(e.JOB, start)
        disk = swarm.crash("p2")
        for peer in ("p0", "p1"):
            await swarm.nodes[peer].table.merge(e.JOB, ended)
        await trio.sleep(8 * DAY)
        assert not swarm.nodes["p0"].table.holds(e.JOB)
        swarm.members.boots["p2"] = "later"
        back = await swarm.add("p2", disk=disk)
        assert back.table.active == (e.JOB,)
        assert await back.retention.expire_orphans() == 1, "before it resumes anything"
        seen = back.table.view(e.JOB)
        assert (seen.status, seen.error and seen.error.code) == ("expired", "DEADLINE_EXCEEDED")
        await trio.sleep(DAY)
        for node in swarm.nodes.values():
            assert node.table.active == ()
        await trio.sleep(9 * DAY)
        assert [await n.journal.load(e.JOB) for n in swarm.nodes.values()] == [()] * 3


async def test_who_may_not_decide_leaves_orphans_to_those_that_may(autojump_clock: MockClock) -> None:
    async with record_swarm([], rule=RULE) as swarm:
        for peer in ("listed", "other"):
            node = await swarm.add(peer, deciders={"listed"})
            await node.table.merge(e.JOB, [_submitted(e.JOB), e.claim(1, "gone")])
        listed, other = swarm.nodes.values()
        await trio.sleep(8 * DAY)
        assert await listed.retention.expire_orphans() == 1
        assert await other.retention.expire_orphans() == 0
        assert other.table.view(e.JOB).status == "scheduling"
        assert await other.retention.forget_old() == 1, "those that may end it have long done so"
        assert await listed.retention.forget_old() == 0, "an end is kept for its time"
        assert not other.table.holds(e.JOB)


async def test_orphans_are_few_at_a_time_and_not_those_of_an_owner_that_is_there(autojump_clock: MockClock) -> None:
    async with record_swarm(["p0", "p1"], retention=RetentionSettings(records=3), rule=RULE) as swarm:
        node = swarm.nodes["p1"]
        for i in range(5):
            await node.table.merge(f"job-{i}", [e.core(f"job-{i}"), e.claim(1, "gone", job=f"job-{i}")])
        await node.table.merge("job-there", started("job-there", "p0"))
        await node.table.merge("job-unclaimed", [e.core("job-unclaimed")])
        assert [await node.retention.expire_orphans() for _ in range(3)] == [3, 3, 0]
        assert node.table.active == ("job-there",)
        outcome = node.table.view("job-0").outcome
        assert outcome is not None
        assert outcome.ballot == Ballot(2, "p1", "b")


async def test_pins_of_jobs_that_never_arrived_are_released(autojump_clock: MockClock) -> None:
    async with record_swarm(["p0"], rule=RULE) as swarm:
        node = swarm.nodes["p0"]
        await node.table.merge("job-here", started("job-here"))
        pins = {}
        for job in ("job-here", "job-late", "job-never"):
            pins[job] = await node.store.add_bytes(job.encode())
            await node.store.pin(pins[job], reason=f"job {job}")
        await node.retention.forget_old()
        assert set(await node.store.pins()) == set(pins.values()), "its record may be on its way"
        await node.table.merge("job-late", started("job-late"))
        await node.retention.forget_old()
        assert set(await node.store.pins()) == {pins["job-here"], pins["job-late"]}
