"""The pre-warmer's loop on virtual time: what is fetched, what is warmed, what is left alone."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
import trio.testing

from dimnode.daemon.prewarmer import PATIENCE, Known, Prewarmer, Stock
from dimnode.daemon.settings import PrewarmSettings
from dimnode.domain.model import ModelRef
from dimnode.errors import Unavailable


@dataclass
class Shop:
    """Models here and elsewhere; fetching and warming take their time, and may fail."""

    here: set[str] = field(default_factory=set[str])
    warm: set[str] = field(default_factory=set[str])
    elsewhere: dict[str, Known] = field(default_factory=dict[str, Known])
    queued: dict[Known, int] = field(default_factory=dict[Known, int])
    places: int = 10
    broken: bool = False
    fetch_seconds: float = 0.0
    did: list[tuple[float, str, str]] = field(default_factory=list[tuple[float, str, str]])

    def stock(self) -> Stock:
        return Stock(
            models=lambda: tuple(ModelRef(id=f"id-{c}", cid=c, manifest_cid=f"man-{c}", format="onnx", size=1) for c in sorted(self.here)),
            find=self.elsewhere.get, queued=lambda: self.queued, is_here=self.here.__contains__, is_warm=self.warm.__contains__,
            may_warm=lambda: len(self.warm) < self.places, fetch=self._fetch, warm=self._warm,
        )  # fmt: skip

    async def _fetch(self, known: Known) -> None:
        self.did.append((trio.current_time(), "fetch", known.cid))
        await trio.sleep(self.fetch_seconds)
        if self.broken:
            raise Unavailable("nobody has it")
        self.here.add(known.cid)

    async def _warm(self, known: Known) -> None:
        if known.cid not in self.here:
            await self._fetch(known)
        self.did.append((trio.current_time(), "warm", known.cid))
        await trio.sleep(0.1)
        if self.broken:
            raise Unavailable("it does not load")
        self.warm.add(known.cid)

    def done(self) -> list[tuple[str, str]]:
        return [(what, cid) for _, what, cid in self.did]


@asynccontextmanager
async def prewarming(shop: Shop, *pinned: str, most: int = 2) -> AsyncGenerator[Prewarmer]:
    prewarmer = Prewarmer(PrewarmSettings(most=most, interval=5.0, pinned=pinned, frequent=2.0), shop.stock())
    async with trio.open_nursery() as nursery:
        await nursery.start(prewarmer.run)
        yield prewarmer
        nursery.cancel_scope.cancel()


async def test_a_pinned_model_of_another_node_is_fetched_and_warmed_before_anybody_asks(autojump_clock: trio.testing.MockClock) -> None:
    shop = Shop(elsewhere={"id-a": Known("a", "man-a", ("peer",))})
    async with prewarming(shop, "id-a") as prewarmer:
        await trio.sleep(12)
        assert shop.done() == [("fetch", "a"), ("warm", "a")]
        assert prewarmer.keeps("a")
        assert (prewarmer.warmed, prewarmer.failed) == (1, 0)


async def test_a_pinned_model_is_kept_on_disk_also_where_nothing_is_kept_warm(autojump_clock: trio.testing.MockClock) -> None:
    shop = Shop(elsewhere={"a": Known("a", "man-a")})
    async with prewarming(shop, "a", most=0):
        await trio.sleep(12)
        shop.here.clear()  # somebody took it away
        await trio.sleep(12)
        assert shop.done() == [("fetch", "a"), ("fetch", "a")]


async def test_a_long_download_of_a_pinned_model_holds_up_nothing_else(autojump_clock: trio.testing.MockClock) -> None:
    shop = Shop(here={"b"}, elsewhere={"a": Known("a", "man-a")}, fetch_seconds=1000)
    async with prewarming(shop, "a"):
        await trio.sleep(1)
        shop.queued = {Known("b", "man-b"): 3}
        await trio.sleep(10)
        assert shop.done() == [("fetch", "a"), ("warm", "b")]


async def test_nothing_wanted_is_ended_for_something_less_wanted(autojump_clock: trio.testing.MockClock) -> None:
    shop = Shop(here={"a", "b", "c"}, places=1)
    async with prewarming(shop, "a", "b") as prewarmer:
        await trio.sleep(12)
        assert shop.warm == {"a"}
        assert prewarmer.keeps("b")
        shop.places = 3
        await trio.sleep(6)
        assert shop.warm == {"a", "b"}


async def test_frequent_models_are_warmed_soon_after_their_use(autojump_clock: trio.testing.MockClock) -> None:
    shop = Shop(here={"a"})
    async with prewarming(shop) as prewarmer:
        await trio.sleep(1)
        prewarmer.used(Known("a", "man-a"))
        await trio.sleep(10)
        assert shop.done() == []
        prewarmer.used(Known("a", "man-a"))
        prewarmer.used(Known("a", "man-a"))
        await trio.sleep(0.5)
        await trio.sleep(1e-9)
        assert shop.done() == [("warm", "a")]


async def test_what_fails_is_tried_again_after_a_while(autojump_clock: trio.testing.MockClock) -> None:
    shop = Shop(here={"a"}, broken=True)
    async with prewarming(shop, "a") as prewarmer:
        await trio.sleep(PATIENCE - 1)
        assert shop.done() == [("warm", "a")]
        shop.broken = False
        await trio.sleep(10)
        assert shop.warm == {"a"}
        assert (prewarmer.warmed, prewarmer.failed) == (1, 1)


async def test_a_removed_model_is_forgotten_even_while_it_is_fetched_and_though_it_is_pinned(
    autojump_clock: trio.testing.MockClock,
) -> None:
    known = Known("a", "man-a")
    shop = Shop(elsewhere={"a": known}, queued={known: 1}, fetch_seconds=10)
    async with prewarming(shop, "a") as prewarmer:
        prewarmer.used(known)
        await trio.sleep(1)
        assert shop.done() == [("fetch", "a")]
        prewarmer.forget("a")
        await trio.sleep(200)
        assert (shop.done(), shop.here, prewarmer.keeps("a")) == ([("fetch", "a")], set(), False)
        prewarmer.used(known)  # a task asks for it
        await trio.sleep(20)
        assert shop.warm == {"a"}
