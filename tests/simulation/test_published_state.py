"""Seats publish the swarm's state under names of their own; others resolve it, and nodes that are new or were away catch up."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from dimnode.core.records_sync import heirs
from dimnode.core.retention import RetentionRule
from dimnode.domain import codec
from dimnode.errors import InvalidArgument, NotFound, Unavailable
from dimnode.snapshots.name_book import Announcement
from dimnode.snapshots.names import NamesSettings
from dimnode.snapshots.publisher import PublisherSettings
from dimnode.snapshots.writer import PIN
from p2p.dht import memory as dhts
from p2p.ipfs import ipns
from p2p.ipfs.api import StoreUnavailable
from p2p.ipfs.memory import MemoryStore
from p2p.memory import MemoryHub
from tests.support.content_contract import nothing
from tests.support.entries import claim, outcome
from tests.support.state_nodes import BARE, QUICK, StateNode, StateSwarm, job, job_with_blocks, key_of, name_of_job


@asynccontextmanager
async def state_swarm(**kw: Any) -> AsyncGenerator[StateSwarm]:
    async with MemoryHub(seed=5, delay=(0.001, 0.01)) as hub, trio.open_nursery() as nursery:
        yield StateSwarm(hub, nursery, **kw)
        nursery.cancel_scope.cancel()


async def published(*nodes: StateNode, since: float = 0.0) -> None:
    """Each has published something later than that (trio's time)."""
    with trio.fail_after(60):
        while not all(n.state.publisher.state.at > n.clock.wall() - trio.current_time() + since for n in nodes):
            await trio.sleep(0.1)


async def caught_up(node: StateNode, jobs: int, seconds: float = 120) -> None:
    with trio.fail_after(seconds):
        while len(await node.digests()) < jobs:
            await trio.sleep(0.1)


async def test_seats_publish_and_everybody_resolves_the_merged_state(autojump_clock: trio.testing.MockClock) -> None:
    async with state_swarm() as swarm:
        a, b = await swarm.add("a"), await swarm.add("b")
        await a.learn(*[job(n) for n in range(50)])
        await b.learn(*[job(n) for n in range(40, 80)], job(100, None))
        await published(a, b, since=trio.current_time())
        c = await swarm.add("c")
        await c.state.catch_up.informed.wait()
        found = await c.state.resolver.resolve("jobs")
        assert {s["peer_id"] for s in found["seats"]} == {"a", "b"}
        assert {s["ipns"] for s in found["seats"]} == {ipns.name_of(key_of(p).peer_id) for p in "ab"}
        assert [j["job_id"] for j in found["jobs"]] == sorted([name_of_job(n) for n in (*range(80), 100)])
        assert not found["more"]
        by_id = {j["job_id"]: j for j in found["jobs"]}
        assert (by_id[name_of_job(3)]["status"], by_id[name_of_job(100)]["status"]) == ("completed", "scheduling")
        page = await c.state.resolver.resolve("jobs", limit=7)
        rest = await c.state.resolver.resolve("jobs", after=page["jobs"][-1]["job_id"], limit=100)
        assert page["more"]
        assert page["jobs"] + rest["jobs"] == found["jobs"]
        one = (await c.state.resolver.resolve(f"jobs/{name_of_job(60)}"))["job"]
        assert (one["status"], one["verified"], one["spec_cid"]) == ("completed", True, "c")
        nodes: list[Any] = []
        with trio.fail_after(60):
            while len(nodes) < 3:
                nodes = (await c.state.resolver.resolve("registry"))["nodes"]
                await trio.sleep(0.5)
        assert {n["peer_id"]: n["role"] for n in nodes} == {"a": "orchestrator", "b": "orchestrator", "c": "node"}
        with pytest.raises(NotFound):
            await c.state.resolver.resolve("jobs/nonsense")
        with pytest.raises(InvalidArgument):
            await c.state.resolver.resolve("elsewhere")


async def test_a_deleted_job_is_not_shown_though_one_seat_still_has_it(autojump_clock: trio.testing.MockClock) -> None:
    async with state_swarm() as swarm:
        a, b = await swarm.add("a"), await swarm.add("b")
        name, entries = job(1)
        await a.learn((name, entries))
        await b.learn((name, [*entries, outcome(1, "deleted", "p", job=name)]), job(2))
        await published(a, b, since=trio.current_time())
        assert [j["job_id"] for j in (await a.state.resolver.resolve("jobs"))["jobs"]] == [name_of_job(2)]
        with pytest.raises(NotFound):
            await a.state.resolver.resolve(f"jobs/{name}")


async def test_the_snapshot_of_before_is_let_go_and_the_present_one_is_a_root(autojump_clock: trio.testing.MockClock) -> None:
    async with state_swarm(seats=1) as swarm:
        a = await swarm.add("a")
        await a.learn(*[job(n) for n in range(300)])
        await published(a)
        first = a.state.publisher.state.root
        await a.learn(job(1000))
        await published(a, since=trio.current_time())
        state = a.state.publisher.state
        assert state.root != first
        assert (state.leaves - state.reused, state.jobs) == (1, 301)
        assert [cid for cid, reason in (await a.store.pins()).items() if reason == PIN] == [state.root]
        await a.store.collect(nothing(), grace=0)
        assert not await a.store.has(first)
        assert len((await a.state.resolver.resolve("jobs"))["jobs"]) == 301


async def test_nothing_is_published_while_nothing_changes(autojump_clock: trio.testing.MockClock) -> None:
    async with state_swarm(seats=1) as swarm:
        a = await swarm.add("a")
        await a.learn(job(1))
        await published(a)
        before = a.state.publisher.state.sequence
        await trio.sleep(30)
        assert a.state.publisher.state.sequence == before
        a.clock._epoch += 0.6 * 86_400
        await trio.sleep(10)  # but a name does not expire
        assert a.state.publisher.state.sequence > before


async def test_a_newcomer_catches_up(autojump_clock: trio.testing.MockClock) -> None:
    async with state_swarm() as swarm:
        a, b = await swarm.add("a"), await swarm.add("b")
        open_ = next(n for n in range(900, 1000) if "c" in heirs(name_of_job(n), "abc", 1))  # one that the newcomer shall hold
        await a.learn(*[job(n) for n in range(400)], job(open_, None))
        await b.learn(*[job(n) for n in range(300, 500)])
        await published(a, b, since=trio.current_time())
        c = await swarm.add("c")
        with trio.fail_after(5):
            await c.state.catch_up.informed.wait()
        assert name_of_job(open_) in c.table.active
        await caught_up(c, 501)
        assert await c.digests() == {**await a.digests(), **await b.digests()}


async def nobody(peer: str, audiences: Collection[str]) -> bool:
    await trio.lowlevel.checkpoint()
    return False


async def has_all(node: StateNode, cids: Iterable[str]) -> bool:
    return all([await node.store.has(cid) for cid in cids])


async def blocks_come(node: StateNode, cids: Collection[str], seconds: float = 120) -> None:
    with trio.fail_after(seconds):
        while not await has_all(node, cids):
            await trio.sleep(0.1)


async def test_a_newcomer_gets_the_blocks_of_the_records_that_it_shall_keep(autojump_clock: trio.testing.MockClock) -> None:
    """It holds no seat and no record names it: by its place among the holders it takes part, for nobody brings it the blocks later.
    What a result document names comes along."""
    async with state_swarm(seats=1) as swarm:
        a, _ = await swarm.add("a"), await swarm.add("b")
        made = [await job_with_blocks(a.store, n) for n in range(40)]
        await a.learn(*[told for told, _ in made])
        await published(a, since=trio.current_time())
        c = await swarm.add("c")
        mine = [(told[0], cids) for told, cids in made if "c" in heirs(told[0], "abc", 1)]
        assert 0 < len(mine) < len(made)
        await blocks_come(c, [cid for _, cids in mine for cid in cids])
        assert set(await c.digests()) == {name for name, _ in mine}
        others = [(name, cid) for (name, _), cids in made if name not in dict(mine) for cid in cids]
        assert not any([await c.store.has(cid) for _, cid in others])
        assert not await a.participation.may_serve("c", [others[0][0]]), "of other jobs it gets nothing"


async def test_a_record_is_taken_once_its_blocks_are_here(autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async with state_swarm(seats=1) as swarm:
        a = await swarm.add("a")
        told, cids = await job_with_blocks(a.store, 1)
        await a.learn(told, job(2))
        await published(a)
        monkeypatch.setattr(a.participation, "may_serve", nobody)
        c = await swarm.add("c")
        await caught_up(c, 1)
        await trio.sleep(3)
        assert set(await c.digests()) == {name_of_job(2)}, "without its blocks it would pass for a whole copy"
        assert c.state.catch_up.statistics()["lacking"] == 1
        monkeypatch.undo()
        await caught_up(c, 2)
        assert await has_all(c, cids)
        assert c.state.catch_up.statistics()["lacking"] == 0


async def test_anti_entropy_gives_blocks_that_did_not_come_with_their_record(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = replace(QUICK, publisher=PublisherSettings(settle=1e6))
    async with state_swarm(seats=1, deltas=True, state=silent) as swarm:
        a = await swarm.add("a")
        told, cids = await job_with_blocks(a.store, 1)
        await a.learn(told)
        monkeypatch.setattr(a.participation, "may_serve", nobody)
        c = await swarm.add("c")
        await caught_up(c, 1)
        await trio.sleep(3)
        assert not await has_all(c, cids)
        monkeypatch.undo()
        await blocks_come(c, cids)


async def test_a_record_whose_blocks_nobody_has_is_taken_in_the_end(autojump_clock: trio.testing.MockClock) -> None:
    async with state_swarm(seats=1) as swarm:
        a = await swarm.add("a")
        told, _ = await job_with_blocks(MemoryStore("gone"), 1)
        await a.learn(told)
        await published(a)
        c = await swarm.add("c")
        await caught_up(c, 1, 600)
        assert c.state.catch_up.statistics()["without_blocks"] == 1


async def test_an_owner_that_lost_its_disk_gets_record_and_blocks_back(autojump_clock: trio.testing.MockClock) -> None:
    async with state_swarm(seats=1) as swarm:
        a, _ = await swarm.add("a"), await swarm.add("b")
        (name, entries), cids = await job_with_blocks(a.store, 1)
        await a.learn((name, [*entries, claim(2, "b", job=name)]))
        await published(a, since=trio.current_time())
        swarm.crash("b")
        await trio.sleep(10)
        b = await swarm.add("b", boots=2)
        await blocks_come(b, cids)
        assert await b.digests() == await a.digests()


async def test_a_node_back_after_a_week_brings_nothing_back_to_life(autojump_clock: trio.testing.MockClock) -> None:
    """What it knew as unfinished has ended, was deleted, or is forgotten; what it knew as ended the others have forgotten."""
    rule = RetentionRule(retention=6 * 86_400.0, clock_skew=0.0)
    async with state_swarm(rule=rule, deltas=True) as swarm:
        a = await swarm.add("a")
        b = await swarm.add("b")
        now = a.clock.wall()
        ends = {n: job(n, None, submitted=now) for n in range(30)}
        await b.learn(*ends.values(), job(50, submitted=now))
        disk = swarm.crash("b")
        await trio.sleep(30)
        a.clock._epoch += 7 * 86_400
        later = a.clock.wall()
        for n in range(10):
            await a.learn(
                (ends[n][0], [*ends[n][1], claim(2, "a", at=later, job=ends[n][0]), outcome(2, "completed", "a", at=later, job=ends[n][0])])
            )
        for n in range(10, 20):
            await a.learn((ends[n][0], [outcome(2, "deleted", "a", at=later, job=ends[n][0])]))
        await published(a, since=trio.current_time())
        b = await swarm.add("b", disk=disk, boots=2)
        b.clock._epoch += 7 * 86_400
        await b.state.catch_up.informed.wait()
        views = {n: await b.table.load(name_of_job(n)) for n in range(20)}
        assert {views[n].status for n in range(10)} == {"completed"}
        assert {views[n].status for n in range(10, 20)} == {"deleted"}
        assert not set(b.table.active) & {name_of_job(n) for n in range(20)}
        await trio.sleep(30)
        assert name_of_job(50) not in await a.digests()  # forgotten there, and refused when it is offered
        assert {(await a.table.load(name_of_job(n))).status for n in range(10)} == {"completed"}


async def test_an_orchestrator_that_lost_its_disk_recovers_what_the_swarm_has(autojump_clock: trio.testing.MockClock) -> None:
    async with state_swarm(seats=3) as swarm:
        a, b = await swarm.add("a"), await swarm.add("b")
        await a.learn(*[job(n, owner="b") for n in range(0, 200, 2)])
        await b.learn(*[job(n, owner="b") for n in range(200)])
        await published(a, b, since=trio.current_time())
        old = (await a.state.names.resolve(["b"]))["b"]
        swarm.crash("b")
        await published(a, since=trio.current_time())
        b = await swarm.add("b", boots=2, key=key_of("another"))
        await caught_up(b, 100)
        await published(b, since=trio.current_time())
        new = (await a.state.names.resolve(["b"]))["b"]
        assert new.card.name != old.card.name
        assert new.card.since > old.card.since
        seats = {s["peer_id"]: s["jobs"] for s in (await a.state.resolver.resolve("jobs"))["seats"]}
        assert seats["b"] == 100


async def test_a_seat_that_may_not_give_records_away_publishes_states_only(autojump_clock: trio.testing.MockClock) -> None:
    async with state_swarm(seats=1, state=BARE) as swarm:
        a = await swarm.add("a")
        await a.learn(*[job(n) for n in range(20)], job(50, None))
        await published(a)
        c = await swarm.add("c")
        await c.state.catch_up.informed.wait()
        assert set(await c.digests()) == {name_of_job(50)}  # asked of the seat, which knows whom it answers
        one = (await c.state.resolver.resolve(f"jobs/{name_of_job(3)}"))["job"]
        assert (one["status"], one["verified"]) == ("completed", False)
        assert len((await c.state.resolver.resolve("jobs"))["jobs"]) == 21


async def test_a_seat_that_died_is_still_read_by_who_heard_its_name(autojump_clock: trio.testing.MockClock) -> None:
    async with state_swarm(seats=1) as swarm:
        a, b, c = await swarm.add("a"), await swarm.add("b"), await swarm.add("c")
        await a.learn(job(1))
        await published(a)
        assert (await b.state.names.resolve(["a"]))["a"].card.peer == "a"
        await trio.sleep(5)
        swarm.hub.partition(["a"], ["b", "c"])
        assert (await c.state.names.resolve(["a"])).keys() == {"a"}
        newcomer = await swarm.add("d")
        swarm.hub.partition(["a"], ["b", "c", "d"])
        swarm.hub.connect_all()
        await trio.sleep(3)
        assert (await newcomer.state.names.resolve(["a"])).keys() == {"a"}  # from somebody who heard of it


async def test_a_name_that_nobody_alive_has_heard_is_read_from_the_dht(autojump_clock: trio.testing.MockClock) -> None:
    dht = dhts.MemoryHub()
    async with state_swarm(seats=1, dht=dht) as swarm:
        a = await swarm.add("a")
        await a.learn(job(1))
        await published(a)
        cid = (await a.state.names.resolve(["a"]))["a"].cid
        assert list(dht.records) == [("names", "a")]
        swarm.crash("a")
        b = await swarm.add("b")
        assert (await b.state.names.resolve(["a"]))["a"].cid == cid
        assert b.state.names.statistics()["read_from_dht"] == 1


async def test_a_forged_an_older_and_an_expired_name_in_the_dht_are_not_believed(autojump_clock: trio.testing.MockClock) -> None:
    dht = dhts.MemoryHub()
    short = replace(QUICK, names=NamesSettings(ttl=1.0, validity=120.0))
    async with state_swarm(seats=1, dht=dht, state=short) as swarm:
        a = await swarm.add("a")
        await a.learn(job(1))
        await published(a)
        genuine = dht.records["names", "a"]
        swarm.crash("a")
        b = await swarm.add("b")
        dht.records["names", "a"] = genuine[:-40] + bytes(40)
        assert await b.state.names.resolve(["a"]) == {}
        dht.records["names", "a"] = genuine
        known = (await b.state.names.resolve(["a"]))["a"]
        again = codec.decode(genuine, Announcement)
        key = key_of("a")
        older = ipns.make(key, known.cid, sequence=known.record.sequence - 1, expires=known.record.expires, ttl=1)
        dht.records["names", "a"] = codec.encode(msgspec.structs.replace(again, record=older.raw))
        assert (await b.state.names.resolve(["a"]))["a"].record.sequence == known.record.sequence
        assert b.state.names.statistics()["older"] >= 1
        dht.records["names", "a"] = genuine
        await trio.sleep(130)
        assert await b.state.names.resolve(["a"]) == {}


async def test_after_a_restart_an_older_name_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    dht = dhts.MemoryHub()
    async with state_swarm(seats=1, dht=dht) as swarm:
        a, b = await swarm.add("a"), await swarm.add("b")
        await a.learn(job(1))
        await published(a)
        older = dht.records["names", "a"]
        await a.learn(job(2))
        await published(a, since=trio.current_time())
        assert set(await b.state.names.resolve(["a"])) == {"a"}
        await trio.sleep(3)
        disk = swarm.crash("b")
        swarm.crash("a")
        dht.records["names", "a"] = older
        b = await swarm.add("b", disk=disk, boots=2)
        assert await b.state.names.resolve(["a"]) == {}
        c = await swarm.add("c")
        assert set(await c.state.names.resolve(["a"])) == {"a"}, "who never heard of a later one believes it"


async def test_what_a_seat_published_before_it_died_is_resolved_when_no_seat_has_published(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with state_swarm(seats=1) as swarm:
        a, b = await swarm.add("a"), await swarm.add("b", state=replace(QUICK, publisher=PublisherSettings(settle=1e6)))
        await a.learn(job(1))
        await published(a)
        assert len((await b.state.resolver.resolve("jobs"))["jobs"]) == 1  # from here on it has the blocks
        swarm.crash("a")
        with trio.fail_after(60):
            while [s.peer for s in b.elector.seats()] != ["b"]:
                await trio.sleep(0.1)
        found = await b.state.resolver.resolve("jobs")
        assert [s["peer_id"] for s in found["seats"]] == ["a"]
        assert [j["job_id"] for j in found["jobs"]] == [name_of_job(1)]


async def test_a_dht_that_is_down_costs_nothing_and_hears_of_the_name_later(autojump_clock: trio.testing.MockClock) -> None:
    dht = dhts.MemoryHub()
    dht.down = True
    async with state_swarm(seats=1, dht=dht) as swarm:
        a = await swarm.add("a")
        await a.learn(job(1))
        await published(a)
        assert dht.records == {}
        dht.down = False
        await trio.sleep(61)
        assert list(dht.records) == [("names", "a")]
        assert a.state.names.statistics()["stored"] == 1


async def test_without_a_publication_there_is_nothing_to_resolve(autojump_clock: trio.testing.MockClock) -> None:
    async with state_swarm(seats=1) as swarm:
        a = await swarm.add("a")
        with pytest.raises(Unavailable, match=r"nothing|no orchestrator"):
            await a.state.resolver.resolve("jobs")


async def test_a_store_that_fails_is_tried_again_and_said(autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async with state_swarm(seats=1) as swarm:
        a = await swarm.add("a")
        await a.learn(job(1))

        async def fail(*_: Any, **__: Any) -> str:
            raise StoreUnavailable("away")

        monkeypatch.setattr(a.store, "put_dag_bytes", fail)
        await trio.sleep(10)
        state = a.state.publisher.state
        assert (state.backlog, state.problem, state.at) == (1, "away", 0.0)
        assert state.failures >= 2
        monkeypatch.undo()
        await published(a)
        assert (state.backlog, state.problem) == (0, "")


class Outlet:
    def __init__(self) -> None:
        self.given: list[str] = []
        self.away = True
        self.times = 0

    def generation(self) -> int:
        return self.times

    async def publish(self, cid: str, lifetime: float, ttl: float) -> str:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable("no daemon")
        self.given.append(cid)
        return "k51outside"


async def test_what_is_published_elsewhere_too_is_published_here_first(autojump_clock: trio.testing.MockClock) -> None:
    async with state_swarm(seats=1) as swarm:
        outlet = Outlet()
        a = await swarm.add("a", outlet=outlet)
        await a.learn(job(1))
        await trio.sleep(10)
        state = a.state.publisher.state
        assert (state.problem, outlet.given) == ("no daemon", [])
        assert len((await a.state.resolver.resolve("jobs"))["jobs"]) == 1
        outlet.away = False
        await trio.sleep(60)
        assert (outlet.given[-1], state.elsewhere, state.problem) == (state.root, "k51outside", "")
        assert QUICK.publisher.interval < 60


async def test_what_is_published_elsewhere_is_published_there_again_once_it_may_be_gone(autojump_clock: trio.testing.MockClock) -> None:
    short = replace(QUICK, publisher=replace(QUICK.publisher, validity=200.0), names=NamesSettings(validity=200.0))
    async with state_swarm(seats=1, state=short) as swarm:
        outlet = Outlet()
        outlet.away = False
        a = await swarm.add("a", outlet=outlet)
        await a.learn(job(1))
        await published(a)
        await trio.sleep(30)
        root, before = a.state.publisher.state.root, len(outlet.given)
        outlet.times += 1  # another daemon answers
        await trio.sleep(2 * QUICK.publisher.interval)
        assert (outlet.given[-1], len(outlet.given)) == (root, before + 1)
        await trio.sleep(120)  # a record that is to be made anew is made anew there, too
        assert outlet.given[before:].count(root) >= 2
