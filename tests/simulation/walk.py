"""A random walk: jobs, cancels and faults by a seed; then all is healed, and what was promised must be so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from tests.simulation.world import MILD, ROUGH, World


@dataclass(frozen=True, slots=True)
class WalkSettings:
    jobs: int = 16
    seconds: float = 12.0
    """Of faults."""
    pause: tuple[float, float] = (0.3, 2.0)
    """Between two of them."""
    end: float = 90.0
    """Seconds in which all jobs end once all is healed."""
    agree: float = 60.0
    """And seconds after that until all copies agree."""


async def walk(world: World, settings: WalkSettings | None = None) -> None:
    s = settings or WalkSettings()
    world.start()
    await world.until("seats are held", world.settled, 30)
    assert world.hub.nursery is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.users.stream, s.jobs, s.seconds / s.jobs * 0.8)
        with trio.move_on_after(s.seconds):
            await _nemesis(world, s)
    await heal_and_check(world, s.end, s.agree)


async def heal_and_check(world: World, end: float = 90.0, agree: float = 60.0) -> None:
    """The promises, once nothing disturbs any more."""
    world.heal()
    await world.until("seats are held after healing", world.settled, 40)
    await world.until("all jobs end after healing", world.checks.all_ended, end)
    await world.until("copies agree", lambda: world.checks.unlike() is None, agree, step=1.0, why=world.checks.unlike)
    if (problem := world.checks.unlike()) is not None:
        world.fail(problem)
    await world.until("nodes are at rest", world.checks.at_rest, 20, step=1.0, why=world.checks.busy)
    world.checks.final()


async def _nemesis(world: World, s: WalkSettings) -> None:
    acts = _acts(world)
    while True:
        await trio.sleep(world.rng.uniform(*s.pause))
        world.rng.choices([a for a, _ in acts], [w for _, w in acts])[0]()


def _acts(world: World) -> list[tuple[Callable[[], None], int]]:
    rng = world.rng

    def some_node() -> str | None:
        nodes = sorted(world.nodes())
        return rng.choice(nodes) if nodes else None

    def a_holder() -> str | None:
        held = sorted(n for names in world.holders().values() for n in names)
        return rng.choice(held) if held else some_node()

    def crash() -> None:
        if (name := rng.choice((some_node, a_holder))()) is not None:
            world.crash(name)

    def restart() -> None:
        down = [n for n, c in world.computers.items() if c.node is None and n not in world.destroyed]
        if down:
            world.start(*rng.sample(down, rng.randint(1, len(down))))

    def restart_at_once() -> None:
        if (name := a_holder()) is not None:
            world.restart(name)

    def restart_all() -> None:
        world.restart(*(n for n in world.computers if n not in world.destroyed))

    def pause() -> None:
        if (name := rng.choice((some_node, a_holder))()) is not None:
            world.pause(name)

    def resume() -> None:
        paused = [n for n, c in world.computers.items() if c.paused]
        if paused:
            world.resume(rng.choice(paused))

    def partition() -> None:
        names = sorted(world.computers)
        rng.shuffle(names)
        cut = rng.randint(1, len(names) - 1)
        world.partition(names[:cut], names[cut:])

    def one_way() -> None:
        one, other = rng.sample(sorted(world.computers), 2)
        world.cut(one, other)

    def deaf_holder() -> None:
        if (name := a_holder()) is not None:
            for other in world.computers:
                if other != name:
                    world.cut(other, name)

    def weather() -> None:
        world.weather(rng.choice((MILD, ROUGH, ROUGH)))

    def full_disk() -> None:
        if (name := some_node()) is not None:
            world.fill_disk(name)

    def room() -> None:
        for name, computer in world.computers.items():
            if computer.disk.full:
                world.fill_disk(name, full=False)

    def burn() -> None:
        least = len(world.computers) // 2 + 1 if world.by_majority else 3
        spare = len(world.computers) - len(world.destroyed) - least
        name = some_node()
        if spare > 0 and name is not None and world.checks.spared(name):
            world.destroy(name)

    return [
        (crash, 4), (restart, 5), (restart_at_once, 2), (restart_all, 1), (pause, 3), (resume, 4), (partition, 3),
        (world.mend_links, 3), (one_way, 2), (deaf_holder, 1), (weather, 3), (full_disk, 1), (room, 2), (burn, 1),
    ]  # fmt: skip
