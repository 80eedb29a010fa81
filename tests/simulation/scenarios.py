"""Known dangers, one scenario each: what happens, step by step, and what must come of it.

Every scenario ends with `heal_and_check`: all promises, once nothing disturbs any more.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import trio

from dimnode.core.election_types import ElectionSettings
from dimnode.domain import codec
from dimnode.domain.record import Ballot, Body, Claim, OutcomeEntry
from dimnode.records.messages import ATTEMPTS, AttemptsRequest
from p2p.api import NetworkError
from tests.simulation.users import Job
from tests.simulation.walk import heal_and_check
from tests.simulation.world import World, WorldSettings
from tests.support.entries import signed
from tests.support.simulated_node import NodeSettings, SimulatedNode

Scenario = tuple[Callable[[World], Awaitable[None]], WorldSettings]
SCENARIOS: dict[str, Scenario] = {}
FIVE = WorldSettings(nodes=5)
SLOW = replace(FIVE, node=NodeSettings(run_seconds=(3.0, 5.0), run_failures=0.0))
"""Tasks take long enough to have things happen meanwhile."""
LISTED = replace(SLOW, node=replace(SLOW.node, election=ElectionSettings(allow=frozenset("abc"))))
"""Only three of the five may orchestrate."""


MAJORITY = replace(SLOW, node=replace(SLOW.node, election=ElectionSettings(mode="majority")))


def scenario(settings: WorldSettings = FIVE) -> Callable[[Callable[[World], Awaitable[None]]], Callable[[World], Awaitable[None]]]:
    def note(play: Callable[[World], Awaitable[None]]) -> Callable[[World], Awaitable[None]]:
        SCENARIOS[play.__name__] = (play, settings)
        return play

    return note


async def _begin(world: World, jobs: int = 1, pattern: str | None = "chained") -> Job:
    """A swarm at rest, then ``jobs`` jobs; returns the first, just acknowledged."""
    world.start()
    await world.until("seats are held", world.settled, 30)
    made = [world.users.submit(pattern=pattern) for _ in range(jobs)]
    for job in made:
        await job.accepted.wait()
    return made[0]


async def _ends(world: World, job: Job, limit: float = 40) -> None:
    """Before anything is healed."""
    await world.until(f"{job.key} ({job.id}) ends", job.ended.is_set, limit)


@scenario(SLOW)
async def owner_dies_right_after_the_acknowledgement(world: World) -> None:
    job = await _begin(world)
    world.crash(world.owner(job))
    await _ends(world, job)
    await heal_and_check(world)


@scenario(SLOW)
async def owner_is_lost_for_good_right_after_the_acknowledgement(world: World) -> None:
    job = await _begin(world)
    world.destroy(world.owner(job))
    await _ends(world, job)
    await heal_and_check(world)


@scenario(SLOW)
async def new_owner_is_cut_off_between_its_claim_and_the_copies(world: World) -> None:
    job = await _begin(world)
    first = world.owner(job)
    world.crash(first)
    await world.until("somebody claims", lambda: world.claims(job) > 1, 30, step=0.001)
    second = world.owner(job)
    world.partition([second], [n for n in world.computers if n != second])
    await trio.sleep(10)
    world.mend_links()
    await _ends(world, job)
    await heal_and_check(world)


@scenario(SLOW)
async def both_sides_of_a_partition_complete_the_job(world: World) -> None:
    job = await _begin(world)
    owner = world.owner(job)
    mine, theirs = world.divide(job)
    world.partition(mine, theirs)
    await world.until("both sides have a result", lambda: world.ended_on(mine, job) and world.ended_on(theirs, job), 60)
    world.log("WORLD", f"both have results; {owner} was the owner")
    await heal_and_check(world)


@scenario(SLOW)
async def cancelled_on_one_side_completed_on_the_other(world: World) -> None:
    job = await _begin(world)
    mine, theirs = world.divide(job)
    world.partition(mine, theirs)
    await world.until("the other side has a seat", lambda: world.seat_in(theirs) is not None, 30)
    await world.until("the other side has claimed the job", lambda: world.owner_in(theirs, job) in theirs, 60)
    await world.users.cancel(job, at=world.seat_in(theirs))
    await world.until("this side has a result", lambda: world.ended_on(mine, job), 60)
    await heal_and_check(world)


@scenario(SLOW)
async def an_old_disk_returns_after_all_is_over(world: World) -> None:
    """Somebody starts a node from a copy of its disk that was made before the job was cancelled."""
    job = await _begin(world)
    name = world.copies(job)[0]
    old = copy.deepcopy(world.computers[name].disk)
    await trio.sleep(1)
    world.crash(name)
    await world.users.cancel(job)
    await trio.sleep(30)
    world.computers[name].disk = old
    world.start(name)
    await trio.sleep(10)
    await heal_and_check(world)


@scenario()
async def disk_full_at_a_copy(world: World) -> None:
    world.start()
    await world.until("seats are held", world.settled, 30)
    for name in ("a", "b"):
        world.fill_disk(name)
    jobs = [world.users.submit() for _ in range(8)]
    for job in jobs:
        await _ends(world, job)
    await heal_and_check(world)


@scenario(SLOW)
async def a_seat_holder_sleeps_for_ten_seconds(world: World) -> None:
    job = await _begin(world, jobs=6)
    owner = world.owner(job)
    world.pause(owner)
    await trio.sleep(10)
    world.resume(owner)
    await heal_and_check(world)


@scenario(SLOW)
async def a_seat_holder_sleeps_while_another_ends_its_job(world: World) -> None:
    job = await _begin(world)
    owner = world.owner(job)
    world.pause(owner)
    await _ends(world, job, 60)
    world.resume(owner)
    await heal_and_check(world)


@scenario(WorldSettings(nodes=3))
async def one_node_grows_to_three(world: World) -> None:
    world.start("a", alone=True)
    await world.until("the first serves", world.settled, 10)
    jobs = [world.users.submit() for _ in range(4)]
    for job in jobs:
        await job.accepted.wait()
    world.start("b", "c")
    await world.until("all hold seats", world.settled, 40)
    more = [world.users.submit() for _ in range(4)]
    for job in more:
        await job.accepted.wait()
    await world.until("everything has its copies", lambda: world.checks.enough_copies() is None, 40)
    world.destroy("a")
    for job in (*jobs, *more):
        await _ends(world, job)
    await heal_and_check(world)


@scenario()
async def all_nodes_restart_at_once(world: World) -> None:
    await _begin(world, jobs=8, pattern=None)
    world.restart(*world.computers)
    await heal_and_check(world)


@scenario(SLOW)
async def a_seat_holder_is_deaf(world: World) -> None:
    """What it says arrives; it hears nothing."""
    job = await _begin(world, jobs=4)
    owner = world.owner(job)
    for other in world.computers:
        if other != owner:
            world.cut(other, owner)
    await trio.sleep(15)
    await heal_and_check(world)


@scenario(SLOW)
async def a_seat_holder_is_mute(world: World) -> None:
    """It hears everybody, and nobody hears it."""
    job = await _begin(world, jobs=4)
    owner = world.owner(job)
    for other in world.computers:
        if other != owner:
            world.cut(owner, other)
    await trio.sleep(15)
    await heal_and_check(world)


@scenario(replace(SLOW, node=NodeSettings(run_seconds=(12.0, 15.0), run_failures=0.0)))
async def copy_and_owner_are_lost_one_after_the_other(world: World) -> None:
    job = await _begin(world)
    copies = world.copies(job)
    for name in copies:
        world.destroy(name)
    await world.until("there are copies again", lambda: len(world.copies(job)) >= 1, 20)
    world.destroy(world.owner(job))
    await _ends(world, job, 90)
    await heal_and_check(world)


@scenario(SLOW)
async def owner_dies_between_the_outcome_and_the_news(world: World) -> None:
    """Its user has not been told, but the outcome is durable."""
    job = await _begin(world)
    await world.until("an outcome is durable", lambda: any(world.ended_on([n], job) for n in world.computers), 60, step=0.001)
    world.crash(world.owner(job))
    await _ends(world, job)
    await heal_and_check(world)


@scenario(SLOW)
async def every_worker_of_a_job_restarts(world: World) -> None:
    job = await _begin(world, pattern="collaborative")
    await trio.sleep(1)
    owner = world.owner(job)
    world.restart(*(n for n in world.computers if n != owner))
    await _ends(world, job, 60)
    await heal_and_check(world)


@scenario(LISTED)
async def a_member_that_may_not_decide_decides(world: World) -> None:
    """It claims the job, cancels it and says that it ended, all in its own copy, which it compares with everybody's. Its disk is
    left out of what has to converge."""
    job = await _begin(world)
    liar = next(n for n in ("d", "e") if n != world.owner(job))
    node = world.computers[liar].node
    assert node is not None
    ballot = Ballot(world.claims(job) + 1, liar, "b")
    record = world.computers[world.owner(job)].disk.journal.records[job.id]
    forged: list[Body] = [Claim(job=job.id, ballot=ballot), OutcomeEntry(job=job.id, ballot=ballot, status="cancelled", at=0.0)]
    for other in world.nodes():
        if other != liar:  # to ask under a ballot is to fence
            with suppress(NetworkError):
                request = AttemptsRequest(jobs=((job.id, Ballot(ballot.n + 1000, liar, "b")),))
                await node.network.request(other, ATTEMPTS, codec.encode(request), timeout=1.0)
    await node.records.merge(job.id, [*record.entries(), *(signed(body, liar) for body in forged)])
    await world.until("others have refused it", lambda: any(_refused(n) for name, n in world.nodes().items() if name != liar), 60)
    await _ends(world, job, 60)
    if job.shown != ["completed"]:
        world.fail(f"{job.key} ({job.id}) was shown as {job.shown}: the member was believed")
    world.destroy(liar)
    await heal_and_check(world)


def _refused(node: SimulatedNode) -> int:
    """Entries of others' that it did not let in."""
    told = node.keeping.statistics()
    return sum(told[part].get("refused", 0) for part in ("held", "compared", "hints"))


@scenario(MAJORITY)
async def a_minority_loses_its_seats_and_acknowledges_nothing(world: World) -> None:
    """That what is acknowledged or shown is on most of the voters' disks is checked all the time."""
    job = await _begin(world)
    owner = world.owner(job)
    few = [owner, next(n for n in world.computers if n != owner)]
    many = [n for n in world.computers if n not in few]
    world.partition(few, many)
    late = [world.users.submit() for _ in range(6)]
    await world.until("the few hold no seat", lambda: world.seat_in(few) is None, 6)
    await world.until("the many have claimed the job", lambda: world.owner_in(many, job) in many, 30)
    for each in (job, *late):
        await _ends(world, each, 60)
    await heal_and_check(world)


@scenario(MAJORITY)
async def an_end_that_only_a_minority_has_is_not_shown(world: World) -> None:
    """The owner ends the job in the moment in which it is cut off from most of the others."""
    job = await _begin(world)
    owner = world.owner(job)
    few = [owner, next(n for n in world.copies(job))]
    many = [n for n in world.computers if n not in few]
    await trio.sleep(2.5)
    world.partition(few, many)
    await _ends(world, job, 60)
    await heal_and_check(world)


__all__ = ["SCENARIOS"]
