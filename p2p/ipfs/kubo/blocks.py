"""Blocks and pins that live in a Kubo daemon, behind a spool on the node's own disk.

What is written is on the disk here first, and durable here; a publisher hands it over to Kubo and takes it off the disk some time
after Kubo has it. So nothing waits for Kubo, and while it is down what was written meanwhile can be read, pinned and served. Pins are kept
here with their reasons and are made in Kubo as well. A pin that Kubo already had is its owner's and is never removed there.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable
from pathlib import Path
from typing import TypeVar

import trio

from p2p.ipfs import cid as cids
from p2p.ipfs.api import BlockCorrupt, Pin, StoreUnavailable
from p2p.ipfs.blocks import BlocksOnDisk
from p2p.ipfs.cid import Cid
from p2p.ipfs.disk import Kept
from p2p.ipfs.kubo.rpc import KuboRpc, Refused
from p2p.ipfs.kubo.settings import KuboSettings
from p2p.ipfs.pins import DiskPins
from p2p.ipfs.settings import StoreSettings
from p2p.ipfs.unixfs import Block

log = logging.getLogger(__name__)
T = TypeVar("T")


class KuboBlocks:
    """`p2p.ipfs.blocks.Blocks`. `run` is the publisher; without it nothing gets to Kubo."""

    def __init__(self, folder: Path, rpc: KuboRpc, settings: StoreSettings, kubo: KuboSettings) -> None:
        self._rpc = rpc
        self._settings = kubo
        self._spool = BlocksOnDisk(folder, settings)
        self._made = DiskPins(folder / "kubo-pins.sqlite")
        """Pins that this node made in Kubo, as they are there."""
        self._foreign: set[str] = set()
        """Pins that Kubo had before, as far as seen since the daemon was last reached."""
        self._todo: OrderedDict[Cid, None] = OrderedDict()
        self._given: OrderedDict[Cid, float] = OrderedDict()
        """Blocks that Kubo has and that are still here, and since when."""
        self._stuck: set[str] = set()
        """CIDs of blocks and pins that Kubo refuses; tried again when it has been away."""
        self._bell = trio.Event()
        self._moving = trio.Lock()
        """Held while blocks leave the spool, and while somebody relies on those that are in it."""
        self.problem = "not asked yet"
        """Why Kubo cannot be used now; empty: it can."""

    async def open(self) -> None:
        await self._spool.open()
        await trio.to_thread.run_sync(self._made.open)
        async for page in self._spool.inventory():
            self._todo.update((kept.cid, None) for kept in page)

    async def close(self) -> None:
        with trio.CancelScope(shield=True):
            await self._spool.close()
            await trio.to_thread.run_sync(self._made.close)

    @property
    def backlog(self) -> int:
        """Blocks and pins that Kubo does not have yet, or not any more."""
        return len(self._todo) + len(self._pins_to_make()) + len(self._pins_to_remove())

    # `Blocks`

    async def has(self, cid: Cid) -> bool:
        return await self.size(cid) is not None

    async def size(self, cid: Cid) -> int | None:
        here = await self._spool.size(cid)
        return here if here is not None else await self._ask(lambda: self._rpc.block_stat(cid))

    async def get(self, cid: Cid, *, touch: bool = True) -> bytes | None:
        here = await self._spool.get(cid, touch=touch)
        return here if here is not None else await self._ask(lambda: self._rpc.block_get(cid, offline=True))

    async def touch(self, cid: Cid) -> None:
        await self._spool.touch(cid)

    async def put(self, blocks: list[Block], *, durable: bool, audience: str = "") -> None:
        await self._spool.put(blocks, durable=durable, audience=audience)
        for block in blocks:
            self._given.pop(block.cid, None)
            self._todo[block.cid] = None
        self._bell.set()

    async def audiences(self, cid: Cid) -> frozenset[str]:
        return await self._spool.audiences(cid)

    async def share(self, cid: Cid, audience: str) -> None:
        await self._spool.share(cid, audience)

    async def open_to_all(self, cids: Collection[Cid]) -> None:
        await self._spool.open_to_all(cids)

    async def rename_audience(self, old: str, new: str) -> None:
        await self._spool.rename_audience(old, new)

    async def forget_audiences(self, names: Collection[str]) -> None:
        await self._spool.forget_audiences(names)

    async def sync(self, cids: Iterable[Cid]) -> None:
        """What is not in the spool any more is on Kubo's disk."""
        async with self._moving:
            await self._spool.sync([cid for cid in cids if await self._spool.has(cid)])

    async def pin(self, cid: Cid, pin: Pin | None) -> None:
        await self._spool.pin(cid, pin)
        self._bell.set()

    def pins(self) -> dict[str, Pin]:
        return self._spool.pins()

    def pin_of(self, cid: Cid) -> Pin | None:
        return self._spool.pin_of(cid)

    async def inventory(self) -> AsyncGenerator[list[Kept], None]:
        """Of the spool."""
        async for page in self._spool.inventory():
            yield page

    async def remove(self, cids: Iterable[Cid]) -> int:
        return await self._spool.remove(cids)

    def count(self) -> tuple[int, int]:
        return self._spool.count()

    async def _ask(self, call: Callable[[], Awaitable[T | None]]) -> T | None:
        """None also while Kubo is away: then nobody waits for it before the publisher has reached it again."""
        if self.problem:
            return None
        try:
            return await call()
        except (Refused, BlockCorrupt) as error:
            log.warning("Kubo gave no usable answer: %s", error)
        except StoreUnavailable as error:
            self.lost(error)
        return None

    # The publisher

    async def run(self) -> None:
        """Until cancelled: asks whether Kubo is there and hands over what it lacks."""
        delay = self._settings.retry_first
        while True:
            try:
                await self.reach()
                await self._publish()
                delay = self._settings.retry_first
                await self._take_off()
                await self._pause()
            except StoreUnavailable as error:
                self.lost(error)
                await trio.sleep(delay)
                delay = min(2 * delay, self._settings.retry_most)

    async def reach(self) -> None:
        """Raises `StoreUnavailable`."""
        await self._rpc.id()
        if self.problem:
            await self._recognise()
            self.problem = ""
            log.info("Kubo can be used; %d blocks and pins are to be handed over", self.backlog)

    def lost(self, error: StoreUnavailable) -> None:
        if not self.problem:
            log.warning("Kubo cannot be used: %s", error)
        self.problem = str(error)

    async def _recognise(self) -> None:
        """After an absence: which of our pins are still there."""
        there = {True: await self._rpc.pin_ls("recursive"), False: await self._rpc.pin_ls("direct")}
        gone = [text for text, pin in self._made.all().items() if text not in there[pin.recursive]]
        await self._write_made([(text, None) for text in gone])
        self._stuck.clear()
        self._foreign.clear()

    async def _publish(self) -> None:
        while todo := [cid for cid in self._todo if cid.text not in self._stuck][: self._settings.parallel]:
            errors: list[StoreUnavailable] = []
            async with trio.open_nursery() as nursery:
                for cid in todo:
                    nursery.start_soon(self._give, cid, errors)
            if errors:
                raise errors[0]
        for text, pin in self._pins_to_remove():
            if text not in self._stuck:
                await self._unless_refused(text, self._remove_pin(text, pin))
        for text, pin in self._pins_to_make():
            if text not in self._stuck:
                await self._unless_refused(text, self._make_pin(text, pin))

    async def _give(self, cid: Cid, errors: list[StoreUnavailable]) -> None:
        try:
            data = await self._spool.get(cid, touch=False)
            if data is not None:
                await self._rpc.block_put(cid, data)
                self._given[cid] = trio.current_time()
            self._todo.pop(cid, None)
        except Refused as error:
            log.warning("Kubo does not take %s: %s", cid, error)
            self._stuck.add(cid.text)
        except StoreUnavailable as error:
            errors.append(error)

    async def _unless_refused(self, text: str, call: Awaitable[None]) -> None:
        try:
            await call
        except Refused as error:
            log.warning("Kubo refuses a pin of %s: %s", text, error)
            self._stuck.add(text)

    async def _make_pin(self, text: str, pin: Pin) -> None:
        cid = cids.parse(text)
        if await self._rpc.pinned(cid):
            self._foreign.add(text)
            return
        await self._rpc.pin_add(cid, recursive=pin.recursive)
        await self._write_made([(text, Pin("", pin.recursive, time.time()))])

    async def _remove_pin(self, text: str, pin: Pin) -> None:
        await self._rpc.pin_rm(cids.parse(text), recursive=pin.recursive)
        await self._write_made([(text, None)])

    async def _write_made(self, changes: list[tuple[str, Pin | None]]) -> None:
        if changes:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._made.apply, changes)

    def _pins_to_make(self) -> list[tuple[str, Pin]]:
        made = self._made.all()
        return [(text, pin) for text, pin in self.pins().items() if text not in made and text not in self._foreign]

    def _pins_to_remove(self) -> list[tuple[str, Pin]]:
        """Also those that are to be of another kind."""
        wanted = self.pins()
        return [(text, pin) for text, pin in self._made.all().items() if text not in wanted or wanted[text].recursive != pin.recursive]

    async def _take_off(self) -> None:
        """What Kubo has had for a while goes from the disk here."""
        now = trio.current_time()
        old = [cid for cid, since in self._given.items() if now - since >= self._settings.settle and cid not in self._todo]
        if old and not self._pins_to_make():
            async with self._moving:
                await self._spool.move_out(old)
            for cid in old:
                self._given.pop(cid, None)

    async def _pause(self) -> None:
        """Until there is something to hand over, or to ask whether Kubo is there."""
        with trio.move_on_after(self._settings.ping):
            await self._bell.wait()
        self._bell = trio.Event()
