"""Which content the DHT hears of, with a real store and the in-memory DHT."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio
import trio.testing

from dimnode.core.provide_plan import ProvideSettings
from dimnode.providing import Providing, worth_announcing
from p2p.dht.memory import MemoryDht, MemoryHub
from p2p.ipfs.api import Pin
from p2p.ipfs.memory import MemoryExchange, MemoryStore

QUICK = ProvideSettings(repeat=100, retry=10, look=1.0, pace=0.01)


class Node(MemoryDht):
    def __init__(self, hub: MemoryHub) -> None:
        super().__init__(hub, "me", {})
        self.gone: list[str] = []

    def withdraw(self, cid: str) -> None:
        self.gone.append(cid)


async def test_models_and_public_pins_are_announced_and_a_jobs_blocks_never(autojump_clock: trio.testing.MockClock) -> None:
    hub, store = MemoryHub(), MemoryStore("me", MemoryExchange())
    private = store.private_to("job 1")
    model = await store.add_bytes(b"model")
    pinned = await store.add_bytes(b"pinned")
    tensor, kept = await private.add_bytes(b"tensor"), await private.add_bytes(b"somebody pinned it, and it is private")
    await store.pin(pinned, reason="artifact")
    await store.pin(tensor, reason="output of 1")
    await store.pin(kept, reason="by hand")
    node = Node(hub)
    async with running(Providing(node, store, lambda: [model], lambda: True, QUICK)):
        await trio.sleep(5)
        assert set(hub.providers) == {model, pinned}
        await store.open_to_all(kept)
        await trio.sleep(120)
        assert set(hub.providers) == {model, pinned, kept}
        await store.unpin(pinned)
        await trio.sleep(2)
        assert node.gone == [pinned]


async def test_nothing_is_said_to_nobody_and_what_was_not_heard_is_said_again(autojump_clock: trio.testing.MockClock) -> None:
    hub, store, met = MemoryHub(), MemoryStore("me", MemoryExchange()), False
    hub.down = True
    model = await store.add_bytes(b"model")
    async with running(Providing(Node(hub), store, lambda: [model], lambda: met, QUICK)) as providing:
        await trio.sleep(5)
        assert providing.statistics()["announced"] == 0
        met = True
        await trio.sleep(2)
        assert providing.statistics()["announced"] == 1
        hub.down = False
        await trio.sleep(12)
        assert set(hub.providers) == {model}


def test_the_newest_pins_go_first_after_models() -> None:
    pins = {
        "old": Pin("artifact", at=1), "new": Pin("snapshot", at=2), "job": Pin("job x", at=3), "in": Pin("job input", at=3),
        "tensor": Pin("tensor", at=3), "out": Pin("output of x", at=3), "result": Pin("result of x", at=3),
    }  # fmt: skip
    assert worth_announcing(["m"], pins) == ["m", "new", "old"]


@asynccontextmanager
async def running(providing: Providing) -> AsyncGenerator[Providing, None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(providing.run)
        yield providing
        nursery.cancel_scope.cancel()
