"""Blocks and pins that live in a Kubo daemon, behind a spool on the node's own disk.

What is written is on the disk here first, and durable here; a publisher hands it over to Kubo and takes it off the disk some time
after Kubo has it. So nothing waits for Kubo, and while it is down what was written meanwhile can be read, pinned and served. Pins are kept
here with their reasons and are made in Kubo as well (`p2p.ipfs.kubo.pins`).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import trio

from p2p.ipfs import cid as cids
from p2p.ipfs.api import BlockCorrupt, Pin, StoreUnavailable
from p2p.ipfs.blocks import BlocksOnDisk, Found
from p2p.ipfs.cid import Cid
from p2p.ipfs.disk import Kept
from p2p.ipfs.garbage import Marks, Uses
from p2p.ipfs.kubo.pins import KuboPins
from p2p.ipfs.kubo.rpc import KuboRpc, Refused
from p2p.ipfs.kubo.settings import KuboSettings
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
        self._kubo_pins = KuboPins(folder / "kubo-pins.sqlite", rpc)
        self._todo: OrderedDict[Cid, None] = OrderedDict()
        self._given: OrderedDict[Cid, float] = OrderedDict()
        """Blocks that Kubo has and that are still here, and since when."""
        self._stuck: set[str] = set()
        """CIDs of blocks and pins that Kubo refuses; tried again when it has been away."""
        self._below_stuck = Marks(self)
        self._marked: set[tuple[str, bool]] = set()
        """Of which pins that Kubo refuses, and whether they are recursive, the blocks are in ``_below_stuck``."""
        self._pinned = 0
        """How often a pin was asked for."""
        self._publishing = trio.Lock()
        self._bell = trio.Event()
        self.uses = Uses()
        """Which blocks are being written or relied on, and stay in the spool for so long, and which are leaving it."""
        self._daemon = ""
        self.reached = 0
        """How often Kubo was found again after an absence: what was only told to it may be gone."""
        self.problem = "not asked yet"
        """Why Kubo cannot be used now; empty: it can."""

    async def open(self) -> None:
        await self._spool.open()
        await self._kubo_pins.open()
        async for page in self._spool.inventory():
            self._todo.update((kept.cid, None) for kept in page)

    async def close(self) -> None:
        with trio.CancelScope(shield=True):
            await self._spool.close()
            await self._kubo_pins.close()

    @property
    def backlog(self) -> int:
        """Blocks and pins that Kubo does not have yet, or not any more."""
        wanted = self.pins()
        return len(self._todo) + len(self._kubo_pins.to_make(wanted)) + len(self._kubo_pins.to_remove(wanted))

    # `Blocks`

    async def has(self, cid: Cid) -> bool:
        return await self.size(cid) is not None

    async def adopt(self, blocks: Sequence[Block], audience: str) -> list[Block]:
        lacking: list[Block] = []
        for block in await self._spool.adopt(blocks, audience):
            if await self._ask(lambda cid=block.cid: self._rpc.block_stat(cid)) is None:
                lacking.append(block)
            elif audience:
                await self.share(block.cid, audience)
        return lacking

    async def size(self, cid: Cid) -> int | None:
        here = await self._spool.size(cid)
        return here if here is not None else await self._ask(lambda: self._rpc.block_stat(cid))

    async def get(self, cid: Cid, *, touch: bool = True) -> bytes | None:
        here = await self._spool.get(cid, touch=touch)
        return here if here is not None else await self._ask(lambda: self._rpc.block_get(cid, offline=True))

    async def touch(self, cid: Cid) -> None:
        await self._spool.touch(cid)

    async def put(self, blocks: list[Block], *, durable: bool, audience: str = "") -> None:
        """Waits for those of them that are just leaving the spool, and writes them again."""
        staying: list[Cid] = []
        with self.uses.hold(staying):
            await self.uses.spare([block.cid for block in blocks], hold=staying)
            await self._spool.put(blocks, durable=durable, audience=audience)
            for block in blocks:
                self._given.pop(block.cid, None)
                self._todo[block.cid] = None
        self._bell.set()

    async def audiences(self, cid: Cid) -> frozenset[str]:
        return await self._spool.audiences(cid)

    async def look(self, cids: Sequence[Cid]) -> dict[Cid, Found]:
        found = await self._spool.look(cids)
        for cid in cids:
            if cid not in found and (size := await self.size(cid)) is not None:
                found[cid] = Found(size, await self._spool.audiences(cid))
        return found

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
        wanted, staying = list(cids), list[Cid]()
        with self.uses.hold(staying):
            await self.uses.spare(wanted, hold=staying)
            await self._spool.sync([cid for cid in wanted if await self._spool.has(cid)])

    async def pin(self, cid: Cid, pin: Pin | None) -> None:
        await self._spool.pin(cid, pin)
        self._pinned += pin is not None
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
                await self.publish()
                delay = self._settings.retry_first
                await self._take_off()
                await self._pause()
            except StoreUnavailable as error:
                self.lost(error)
                await trio.sleep(delay)
                delay = min(2 * delay, self._settings.retry_most)

    async def reach(self) -> None:
        """Raises `StoreUnavailable`."""
        daemon = str((await self._rpc.id()).get("ID"))
        if self.problem or daemon != self._daemon:
            await self._recognise()
            self.problem, self._daemon = "", daemon
            self.reached += 1
            log.info("Kubo can be used; %d blocks and pins are to be handed over", self.backlog)

    def lost(self, error: StoreUnavailable) -> None:
        if not self.problem:
            log.warning("Kubo cannot be used: %s", error)
        self.problem = str(error)

    async def _recognise(self) -> None:
        """After an absence: it may be another daemon, or an empty one. What is still here is handed over again."""
        await self._kubo_pins.recognise(self.pins())
        self._todo.update(dict.fromkeys(self._given))
        self._given.clear()
        self._try_stuck_again()

    def _try_stuck_again(self) -> None:
        self._stuck.clear()
        self._below_stuck, self._marked = Marks(self), set()

    async def publish(self) -> None:
        """Everything that Kubo lacks now, as far as it takes it. Raises `StoreUnavailable`."""
        async with self._publishing:
            await self._publish()

    async def _publish(self) -> None:
        """What is written meanwhile comes the next time: pins do not wait for it."""
        wanted = self.pins()  # before the blocks: those that a pin holds were written before it was wanted
        todo = [cid for cid in self._todo if cid.text not in self._stuck]
        for start in range(0, len(todo), self._settings.parallel):
            errors: list[StoreUnavailable] = []
            async with trio.open_nursery() as nursery:
                for cid in todo[start : start + self._settings.parallel]:
                    nursery.start_soon(self._give, cid, errors)
            if errors:
                raise errors[0]
        for text, pin in self._kubo_pins.to_remove(self.pins()):
            if text not in self._stuck:
                await self._unless_refused(text, self._kubo_pins.remove, pin)
        for text, pin in self._kubo_pins.to_make(self.pins()):
            if text not in self._stuck and wanted.get(text) == pin:
                await self._unless_refused(text, self._kubo_pins.make, pin)

    async def _give(self, cid: Cid, errors: list[StoreUnavailable]) -> None:
        try:
            data = await self._spool.get(cid, touch=False)
            if data is None:
                log.warning("%s was to be handed over to Kubo and cannot be read any more", cid)
            else:
                await self._rpc.block_put(cid, data)
                self._given[cid] = trio.current_time()
            self._todo.pop(cid, None)
        except Refused as error:
            log.warning("Kubo does not take %s: %s", cid, error)
            self._stuck.add(cid.text)
        except StoreUnavailable as error:
            errors.append(error)

    async def _unless_refused(self, text: str, act: Callable[[str, Pin], Awaitable[None]], pin: Pin) -> None:
        try:
            await act(text, pin)
        except Refused as error:
            log.warning("Kubo refuses a pin of %s: %s", text, error)
            self._stuck.add(text)

    async def _take_off(self) -> None:
        """What Kubo has had for a while, and has now, goes from the disk here. Not while a pin is to be made there, which may be what
        keeps it from Kubo's garbage collection; what a pin needs that Kubo refuses stays here."""
        pinned = self._pinned
        lacking = self._kubo_pins.to_make(self.pins())  # once: with many pins it takes its time
        if any(text not in self._stuck for text, _ in lacking):
            return
        await self._mark_below_stuck(lacking)
        now, parallel = trio.current_time(), self._settings.parallel
        old = [cid for cid, since in self._given.items() if now - since >= self._settings.settle and cid not in self._below_stuck]
        for start in range(0, len(old), parallel):
            if self._pinned != pinned:  # it is made first; the bell has been rung for it
                return
            there = await self._still_there(old[start : start + parallel])
            with self.uses.removing([cid for cid in there if cid in self._given and cid not in self._todo]) as going:
                await self._spool.move_out(going)
            for cid in going:
                self._given.pop(cid, None)

    async def _mark_below_stuck(self, stuck: list[tuple[str, Pin]]) -> None:
        """Each DAG is read once, not with every look."""
        wanted = {(text, pin.recursive) for text, pin in stuck}
        if not wanted >= self._marked:
            self._below_stuck, self._marked = Marks(self), set()
        for text, recursive in wanted - self._marked:
            if recursive:
                await self._below_stuck.dag(cids.parse(text))
            else:
                self._below_stuck.block(cids.parse(text))
            self._marked.add((text, recursive))

    async def _still_there(self, batch: list[Cid]) -> set[Cid]:
        """Of these. Others were collected by Kubo, or lost, and are to be handed over again: those here may be the only ones."""
        there: set[Cid] = set()
        errors: list[StoreUnavailable] = []

        async def ask(cid: Cid) -> None:
            try:
                if await self._rpc.block_stat(cid) is not None:
                    there.add(cid)
            except StoreUnavailable as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for cid in batch:
                nursery.start_soon(ask, cid)
        if errors:
            raise errors[0]
        for cid in batch:
            if cid not in there and self._given.pop(cid, None) is not None:
                self._todo[cid] = None
                self._try_stuck_again()  # pins may have waited for it
                self._bell.set()
        return there

    # Keeping something in Kubo for a moment

    async def hold(self, roots: Collection[Cid]) -> None:
        """DAGs that are in Kubo whole stay there until `release`, also if this fails. Raises `StoreUnavailable`."""
        try:
            await self._kubo_pins.hold(roots)
        except BaseException as error:
            self._daemon = ""  # which of them it has pinned is not certain, and is looked at when it is reached the next time
            if isinstance(error, StoreUnavailable):
                self.lost(error)
            raise

    def release(self) -> None:
        self._kubo_pins.release()
        self._bell.set()

    async def _pause(self) -> None:
        """Until there is something to hand over, or to ask whether Kubo is there."""
        with trio.move_on_after(self._settings.ping):
            await self._bell.wait()
        self._bell = trio.Event()
